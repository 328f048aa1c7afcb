"""One run inside the enclave: what each of the governor's calls does, in order.

The caller is hostile. It chooses when something is asked, and nothing else: rounds come in the order that
``round.py`` permits, cohorts, parameters and limits are the manifest's, and no answer holds more than the manifest
lets out in clear after a countersigned commit.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from aggregator.arrivals import arrived, documents
from aggregator.batches import Batches
from aggregator.combine.choose import strategy_of
from aggregator.combine.partial import part_of
from aggregator.combine.passes import Contribution
from aggregator.combine.private import PrivateMean
from aggregator.combine.successor import Base, advance, successor
from aggregator.combine.weights import Weights
from aggregator.enclave import Asked, Enclave, RoundKeys, round_keys
from aggregator.inbox import SMALL_BYTES, Inbox, Parcel, Store
from aggregator.privacy import Account
from aggregator.release import Proposal, Releaser, SealedVersion, clear_metrics
from aggregator.round import NOTHING, Accepted, Arrival, Round, Rounds, check_declaration, purpose_named, require_cohort
from confed import canonical
from confed.errors import (
    ConfedError,
    LineageError,
    QuorumError,
    RoundError,
    ShapeError,
    ShortCohortError,
)
from confed.journey import Kind, Purpose, base_version
from confed.keybroker.committing import Letters
from confed.keybroker.course import Course
from confed.keybroker.lineage import require_counted
from confed.keybroker.statements import Candidate, CommitRecord, Ticket
from confed.memory import KeptRoom
from confed.model.bundle import MOST_BYTES, Enclosed, unbundle
from confed.model.update import Declaration, update_key_info
from confed.model.weights import unpack
from confed.sealing.container import Container, OpenContainer
from confed.statement import unverified

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from confed.manifest import Party

_LOG = logging.getLogger("confed.aggregator")
STAGES: tuple[str, ...] = ("release", "fetch", "open", "combine", "seal", "send", "commit")


class Courier(Store, Letters, Protocol):
    """Ciphertext and letters; ``confed.wire.courier_client.CourierClient`` is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """An open round, as the governor is told."""

    base: str
    version: int
    cohort: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed:
    """A committed round, as the governor is told."""

    record: bytes
    metrics: Mapping[str, float]
    excluded: Mapping[str, str]
    seconds: Mapping[str, float]
    cohort_size: int


@dataclass(slots=True, kw_only=True)
class _Version:
    """The version that the run is at; weights and state once they are open."""

    version: int
    digest: str
    attempt: int = 0
    record: bytes = b""
    signer: bytes
    state_digest: str = ""
    weights: Weights | None = field(default=None, repr=False)
    state: Mapping[str, NDArray[Any]] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pending:
    """A round that is sealed and proposed, until it is committed."""

    round: Round
    proposal: Proposal
    cohort: tuple[Accepted, ...]
    sealed: SealedVersion
    metrics: Mapping[str, float]
    excluded: Mapping[str, str]
    weights: Weights | None = field(default=None, repr=False)
    state: Mapping[str, NDArray[Any]] | None = field(default=None, repr=False)


class Run:
    """The aggregator's side of one run.

    Guarantees: calls may come from any thread and in any order; at most one of them changes the run at a time.

    Args:
        folder: the enclave's own folder, for ciphertext only.
        threads: how many open, fold and seal.
        courier_directory: the courier's own, where this enclave may read it, and write to its ``handed``.
        records: a folder with commit records of an earlier instance, beside those in the courier.
        strategy: files of a strategy class of somebody's own; run only if they are the manifest's.
    """

    def __init__(
        self,
        enclave: Enclave,
        courier: Courier,
        *,
        folder: Path,
        threads: int = 1,
        courier_directory: Path | None = None,
        records: Path | None = None,
        strategy: Mapping[str, str] | None = None,
    ) -> None:
        self._enclave = enclave
        self._manifest = enclave.manifest
        self._courier = courier
        self._folder = folder
        self._threads = threads
        self._course = Course(self._manifest, courier, records=records)
        self._optimizer = strategy_of(self._manifest, strategy or {})
        self._account = Account(self._manifest)
        self._inbox = Inbox(courier, folder=folder, beside=courier_directory)
        self._releaser = Releaser(enclave, courier, folder=folder, threads=threads, beside=courier_directory)
        self._rounds = Rounds(self._manifest, instance=enclave.instance, key_id=enclave.hpke.key_id)
        self._lock = threading.RLock()
        self._room = KeptRoom(blocks=2)  # a base and its successor, which change places
        self._keys: dict[tuple[int, int], RoundKeys] = {}
        self._pending: _Pending | None = None
        self._batches: Batches | None = None
        self._bases: dict[int, Weights] = {}
        self._owner_knows_from: int | None = None
        """The first round for which the model owner's broker has seen this instance."""
        self._seconds: dict[str, float] = dict.fromkeys(STAGES, 0.0)
        self.excluded: Mapping[str, str] = {}
        """Why drawn sites are not in the round that was closed last, also if it failed."""
        self._at = _Version(
            version=0, digest=self._manifest.model.start.digest, signer=self._manifest.model.owner.identity
        )

    @property
    def instance(self) -> str:
        """The name of this enclave instance."""
        return self._enclave.instance

    def attest(self, *, first_round: int, attempt: int) -> str:
        """Attest to every owner's broker for the rounds from ``first_round`` on; return the instance's name.

        An instance that is new to a run that has begun takes up the version before ``first_round`` from its
        commit record; the model owner's broker releases keys only if that is the newest that it has witnessed. Where
        nothing is left to train (one more than the last round, or a stop rule fired), it takes up the version alone: to
        evaluate it, for which it is credentialed then, and to close the run.

        Raises:
            RoundError: not the round that comes next.
            LineageError: no valid commit record of the version before.
            QuorumError, CohortError: too few sites' brokers credential this enclave.
            ConfedError: the model owner's broker refused, of the class that says why.
        """
        with self._lock:
            if not 1 <= first_round <= self._manifest.rounds + 1:
                raise RoundError("first round", expected=f"from 1 to {self._manifest.rounds + 1}", got=first_round)
            if first_round - 1 != self._rounds.version:
                self._begin_at(first_round - 1)
            if not self._course.trains(first_round):
                return self.instance
            asked = self._asked(first_round, attempt)
            with self._timed("release"):
                self._keys = {(first_round, attempt): self._new_keys(asked)}
                self._credential(self._manifest.sites, asked)
            return self.instance

    def open_round(self, *, round_number: int, attempt: int, purpose: str) -> Opened:
        """Open a round: its keys and base for training, nothing but its cohort for evaluation.

        Raises:
            PurposeError, RoundError, CohortError: as ``round.Rounds``.
            RunEndedError, RoundError: as ``course.Course``: a stop rule fired, or needs an evaluation first.
            PrivacyBudgetError: the privacy budget has no room for this attempt.
            ConfedError: a broker refused, of the class that says why; or the base does not open.
        """
        with self._lock:
            wanted = purpose_named(purpose)
            opened = self._rounds.reopened(round_number=round_number, attempt=attempt, purpose=purpose)
            if opened is None:
                self._rounds.require_next(round_number=round_number, attempt=attempt, purpose=wanted)
                if wanted is Purpose.TRAIN:
                    self._course.require_next(round_number)
                    self._account.require_room(attempt=attempt)
                size = NOTHING
                self._renew(round_number, attempt, wanted)
                self._end_batches()
                if wanted is Purpose.TRAIN:
                    base = self._prepare(round_number, attempt)
                    size = base.update_size
                    self._batches = self._begin_batches(base)
                opened = self._rounds.open(round_number=round_number, attempt=attempt, purpose=wanted, size=size)
                self._inbox.clear()
                self._pending = None
                self.excluded = {}
            return Opened(
                base=opened.step.base,
                version=base_version(purpose=wanted, round_number=round_number),
                cohort=tuple(site.owner.name for site in opened.cohort),
            )

    def submit(self, *, site: str, digest: str) -> None:
        """Fetch a sealed result and count it, if it keeps every rule of ``round.py``.

        Raises:
            ConfedError: of the class that says why not; the site may send another.
        """
        with self._lock:
            current = self._current()
            owner = current.drawn(site).owner
        try:
            started = time.perf_counter()
            size = current.size
            parcel = self._inbox.fetch(digest, plaintext_bytes=size.plaintext_bytes, chunk_bytes=size.chunk_bytes)
            try:
                self._count(current, self._arrival(current, site, digest, parcel), owner, parcel)
                self._note(digest)
            except BaseException:
                self._inbox.discard(parcel)
                raise
            finally:
                with self._lock:
                    self._seconds["fetch"] += time.perf_counter() - started
        except ConfedError as error:
            with self._lock:
                current.note_refused(site, error)
            raise

    def submit_bundle(self, *, digest: str) -> dict[str, str]:
        """Fetch sealed results that came as one object, and count each as ``submit`` would.

        Returns:
            Each site's code of why its result does not count; empty where it does.

        Raises:
            RoundError: no round is open.
            ConfedError: the bundle is not to be had, or is none.
        """
        with self._lock:
            current = self._current()
        started = time.perf_counter()
        results = unbundle(bytes(self._courier.get(digest, limit_bytes=MOST_BYTES)))
        with self._lock:
            self._seconds["fetch"] += time.perf_counter() - started
        codes: dict[str, str] = {}
        for entry in results:
            try:
                self._take_enclosed(current, entry)
                codes[entry.site] = ""
                self._note(digest)
            except ConfedError as error:
                codes[entry.site] = error.code
                with self._lock:
                    current.note_refused(entry.site, error)
        return codes

    def _take_enclosed(self, current: Round, entry: Enclosed) -> None:
        with self._lock:
            owner = current.drawn(entry.site).owner
        size = current.size
        parcel = self._inbox.enclosed(entry.sealed, plaintext_bytes=size.plaintext_bytes, chunk_bytes=size.chunk_bytes)
        try:
            arrival = arrived(entry.site, canonical.digest(entry.sealed), parcel, [(entry.credential, entry.ticket)])
            self._count(current, arrival, owner, parcel)
        except BaseException:
            self._inbox.discard(parcel)
            raise

    def _count(self, current: Round, arrival: Arrival, owner: Party, parcel: Parcel) -> None:
        with self._lock:
            if current is not self._rounds.current:
                raise RoundError("round", expected="the one that was open", got="another")
            current.accept(arrival, now_ms=self._enclave.now(owner.broker))
            self._inbox.keep(arrival.site, parcel)

    def fold_batch(self, *, batch: int) -> None:
        """Add the batch that is open, from 0, to the round's sum, and open the next; the last one ends with the round.

        Raises:
            RoundError: no round is open, or this is not its open batch, or the last one.
            ConfedError: the batch could not be folded; the round has failed and needs another attempt.
        """
        with self._lock:
            current, batches = self._current(), self._batches
            if batches is None:
                raise RoundError("batch", expected="a round in batches", got="one that is not")
            accepted = current.end_batch(batch)
            try:
                self._add_batch(current, batches, accepted)
            except BaseException:
                current.void()
                raise
            finally:
                self._inbox.clear()
            batches.tell(batch, current.step, enclave=self._enclave, letters=self._courier)

    def _add_batch(self, current: Round, batches: Batches, accepted: Sequence[Accepted]) -> None:
        with self._timed("open"):
            opened = self._declared(accepted, batches.failed)
        with self._timed("combine"):
            batches.add(
                [self._contribution(current, site, *entry) for site, entry in opened.items()],
                {site: declaration for site, (_, declaration) in opened.items()},
            )

    def _begin_batches(self, base: Base) -> Batches | None:
        if self._manifest.aggregation.batch is None:
            return None
        private = self._account.rule()
        return Batches(self._manifest, base, private=private, folder=self._folder, threads=self._threads)

    def _end_batches(self) -> None:
        if self._batches is not None:
            self._batches.close()
            self._batches = None

    def _note(self, digest: str) -> None:
        if self._batches is not None:
            self._batches.note(digest)

    def close_round(self, *, absent: Mapping[str, str]) -> Closed:
        """Combine what counts, seal it, have it countersigned and committed, publish it.

        A call that failed for want of a broker or the courier, after the round was sealed, may be repeated: it
        proposes the same candidate again.

        Raises:
            RoundError: no round is open.
            CohortError: too few remain; the round has failed and needs another attempt.
            QuorumError: too few countersignatures.
            ConfedError: a broker or the courier refused or is down.
        """
        with self._lock:
            if self._pending is None:
                self._pending = self._combined(self._current(), absent)
            pending = self._pending
            record = self._releaser.commit(pending.proposal, timed=self._timed)
            self._committed(pending, record)
            seconds, self._seconds = self._seconds, dict.fromkeys(STAGES, 0.0)
            return Closed(
                record=record,
                metrics=pending.metrics,
                excluded=pending.excluded,
                seconds=seconds,
                cohort_size=len(pending.cohort),
            )

    def close_run(self) -> bytes:
        """End the run: closing and countersignatures as canonical JSON.

        Raises:
            RoundError: neither the last round was committed nor a stop rule fired, or an evaluation is missing.
            QuorumError: too few brokers agree.
            ConfedError: the model owner's broker refused or is down.
        """
        with self._lock:
            if not self._at.record:
                raise RoundError("closing", expected="at least one committed version", got="none")
            history = self._course.history
            history.require_ended()
            return self._enclave.committer.close_run(self._at.record, history=history.records)

    def _begin_at(self, version: int) -> None:
        history, candidate, record = self._course.read(version)
        self._rounds.begin_at(version=version, base=candidate.digest)
        self._course.history = history
        self._account.begin_at(candidate)
        self._at = _Version(
            version=version,
            digest=candidate.digest,
            attempt=candidate.attempt,
            record=record.to_bytes(),
            signer=record.candidate.signer,
            state_digest=candidate.state,
        )

    def _asked(self, round_number: int, attempt: int) -> Asked:
        return Asked(round=round_number, attempt=attempt, base=self._at.digest, base_record=self._at.record)

    def _new_keys(self, asked: Asked) -> RoundKeys:
        stateful = self._optimizer.stateful
        self._owner_knows_from = min(asked.round, self._owner_knows_from or asked.round)
        return round_keys(
            self._enclave,
            asked,
            base_attempt=self._at.attempt,
            with_base=self._at.weights is None,
            with_base_state=stateful and self._at.state is None and bool(self._at.state_digest),
            with_state=stateful,
        )

    def _credential(self, sites: Sequence[Any], asked: Asked) -> None:
        refused = self._enclave.credential_by(sites, asked)
        for name, error in refused.items():
            _LOG.warning("the broker of %s did not credential this enclave: %s", name, error.code)
        covered = sum(self._enclave.covered(site, asked.round) for site in self._manifest.sites)
        first = next(iter(refused.values()), None)
        for least, error in ((self._manifest.quorum, QuorumError), (self._manifest.cohort.least, ShortCohortError)):
            if covered < least:
                raise error("credentials", expected=f"{least} identities", got=covered) from first

    def _renew(self, round_number: int, attempt: int, purpose: Purpose) -> None:
        """Attest again to the brokers whose credentials do not cover a round, with half of their time for it."""
        for_ms = self._manifest.aggregator_tee.reattest_s * 1000 // 2
        lacking = [
            site for site in self._manifest.sites if not self._enclave.covered(site, round_number, for_ms=for_ms)
        ]
        asked = self._asked(round_number, attempt)
        if purpose is Purpose.EVALUATE:
            asked = replace(asked, purpose=Purpose.EVALUATE)
        with self._timed("release"):
            if lacking:
                self._credential(lacking, asked)
            if purpose is Purpose.EVALUATE and round_number < (self._owner_knows_from or round_number + 1):
                # An instance that takes the run up in an evaluation has asked its owner for no key of that round.
                self._enclave.model_keys((), asked)
                self._owner_knows_from = round_number

    def _prepare(self, round_number: int, attempt: int) -> Base:
        """Have a training round's keys, and its base open."""
        keys = self._keys.get((round_number, attempt))
        if keys is None:
            with self._timed("release"):
                keys = self._new_keys(self._asked(round_number, attempt))
            self._keys = {(round_number, attempt): keys}
        with self._timed("open"):
            if self._at.weights is None:
                packed = self._open(Kind.MODEL, self._at.digest, keys.base)
                weights = Weights.parse(packed)
                if weights.layout.digest != self._manifest.model.layout:
                    raise ShapeError("base version", expected="the manifest's tensors", got="others")
                self._at.weights = weights
            if self._at.state is None:
                digest = self._at.state_digest
                stored = bool(digest) and self._optimizer.stateful
                self._at.state = unpack(self._open(Kind.STRATEGY_STATE, digest, keys.base_state)) if stored else {}
        return Base.of(self._at.weights, self._at.state, manifest=self._manifest)

    def _open(self, kind: Kind, digest: str, key: bytes | None) -> memoryview:
        """Fetch and open a container of the base version."""
        if key is None:
            raise LineageError(f"key of {kind}", expected="one with this attempt", got="none")
        if self._manifest.model.start.size_bytes <= SMALL_BYTES:
            return self._plaintext(Container.parse(self._courier.get(digest)), kind, key)
        path = self._folder / f"{kind}.base"
        try:
            self._courier.get_to_file(digest, path)
            return self._plaintext(Container.map(path), kind, key)
        finally:
            path.unlink(missing_ok=True)

    def _plaintext(self, container: Container, kind: Kind, key: bytes) -> memoryview:
        # Its digest is the manifest's or a countersigned commit's; its signer must be that version's maker too.
        container.verify_signer(self._at.signer)
        if container.header.kind is not kind:
            raise LineageError("base container", expected=kind, got=container.header.kind)
        opened = container.unlock(key)
        plaintext = self._room.lend(opened.plaintext_bytes)
        opened.read_all_into(plaintext, threads=self._threads)
        return plaintext

    def _current(self) -> Round:
        if self._rounds.current is None:
            raise RoundError("round", expected="an open one", got="none")
        return self._rounds.current

    def _arrival(self, current: Round, site: str, digest: str, parcel: Parcel) -> Arrival:
        """Find the documents that the container's header names among the site's letters."""
        step = current.step_of(parcel.container.header)
        topic = f"{step.run}/{step.purpose}/{step.round}/{step.attempt}/{site}"
        return arrived(site, digest, parcel, documents(self._courier.collect(topic)))

    def _combined(self, current: Round, absent: Mapping[str, str]) -> _Pending:
        step, batches = current.step, self._batches
        failed = dict[str, ConfedError]() if batches is None else batches.failed
        try:
            accepted = current.close()
            folded = {} if batches is None else batches.declared
            seen = folded.keys() | failed.keys()
            with self._timed("open"):
                opened = self._declared([entry for entry in accepted if entry.site.owner.name not in seen], failed)
            declared = {**folded, **{site: declaration for site, (_, declaration) in opened.items()}}
            require_cohort(self._manifest, len(declared))
            weights, state, sealed, spent = None, None, SealedVersion(digest=step.base, state=""), None
            if step.purpose is Purpose.TRAIN:
                private = self._account.rule() if batches is None else batches.private
                weights, state = self._next_version(current, opened, failed, private=private)
                spent = self._account.after(private, attempt=step.attempt)
                declared = {site: declaration for site, declaration in declared.items() if site not in failed}
            cohort = tuple(entry for entry in accepted if entry.site.owner.name in declared)
            identities = frozenset(entry.site.owner.identity for entry in cohort)
            for entry in cohort:  # each owner's own terms, before anything is made of the result
                require_counted(identities, unverified(entry.ticket, Ticket))
            metrics = clear_metrics(
                self._manifest.metrics.clear,
                self._manifest.metrics.decimals,
                [declared[entry.site.owner.name] for entry in cohort],
            )
            if weights is not None and state is not None:
                keys = self._keys[step.round, step.attempt]
                sealed = self._releaser.seal_version(
                    step, weights, state, keys=keys, cohort_size=len(cohort), timed=self._timed
                )
        finally:
            self._inbox.clear()
            self.excluded = current.excluded(absent=absent, failed=failed)
            for name, code in self.excluded.items():
                _LOG.warning("round %d to %s: %s is not in it: %s", step.round, step.purpose, name, code)
        proposal = self._releaser.propose(
            step,
            sealed=sealed,
            cohort=cohort,
            excluded=self.excluded,
            metrics=metrics,
            base_record=self._at.record,
            privacy=spent,
        )
        return _Pending(
            round=current,
            proposal=proposal,
            cohort=cohort,
            sealed=sealed,
            metrics=metrics,
            excluded=self.excluded,
            weights=weights,
            state=state,
        )

    def _declared(
        self, accepted: Sequence[Accepted], failed: dict[str, ConfedError]
    ) -> dict[str, tuple[OpenContainer, Declaration]]:
        """Unwrap each data key and open each declaration; note in ``failed`` who is refused."""
        opened: dict[str, tuple[OpenContainer, Declaration]] = {}
        for entry in accepted:
            name, step = entry.site.owner.name, entry.step
            try:
                container = self._inbox.container(name)
                info = update_key_info(
                    run=step.run, round_number=step.round, attempt=step.attempt, purpose=step.purpose, site=name
                )
                (recipient,) = container.header.recipients
                unlocked = container.unlock(self._enclave.hpke.unwrap(recipient.wrapped, info=info))
                declaration = Declaration.from_bytes(unlocked.declaration())
                check_declaration(declaration, manifest=self._manifest, site=entry.site, purpose=step.purpose)
                opened[name] = (unlocked, declaration)
            except ConfedError as error:
                failed[name] = error
        return opened

    def _next_version(
        self,
        current: Round,
        opened: Mapping[str, tuple[OpenContainer, Declaration]],
        failed: dict[str, ConfedError],
        *,
        private: PrivateMean | None,
    ) -> tuple[Weights, Mapping[str, NDArray[Any]]]:
        """Fold, and apply the server optimizer; note in ``failed`` who is excluded."""
        if self._at.weights is None:
            raise RoundError("base", expected="an open one", got="none")
        base = Base.of(self._at.weights, self._at.state or {}, manifest=self._manifest)
        contributions = [self._contribution(current, site, *entry) for site, entry in opened.items()]
        declared = {site: declaration for site, (_, declaration) in opened.items()}
        number = current.step.round
        with self._timed("combine"):
            if self._batches is not None:
                self._batches.add(contributions, declared)
                part, combined = self._batches.finish()
                return advance(base, part, combined, optimizer=self._optimizer, round_number=number)
            return successor(
                base,
                contributions,
                manifest=self._manifest,
                optimizer=self._optimizer,
                round_number=number,
                metrics={site: declaration.metrics for site, declaration in declared.items()},
                private=private,
                excluded=failed,
                threads=self._threads,
                room=self._room.lend,
            )

    def _contribution(self, current: Round, site: str, chunks: OpenContainer, declaration: Declaration) -> Contribution:
        started = current.step_from(site).round
        return Contribution(
            site=site,
            chunks=chunks,
            weight=declaration.weight,
            norm=declaration.norm,
            base=self._bases.get(started),
            staleness=current.step.round - started,
        )

    def _committed(self, pending: _Pending, record: bytes) -> None:
        tickets = tuple(unverified(entry.ticket, Ticket).ticket_id for entry in pending.cohort)
        self._rounds.commit(pending.round, digest=pending.sealed.digest, tickets=tickets)
        committed = CommitRecord.from_bytes(record)
        self._course.history.add(committed)
        self._account.begin_at(unverified(committed.candidate, Candidate))
        self._pending = None
        self._end_batches()
        step = pending.round.step
        if step.purpose is Purpose.TRAIN:
            self._keys = {}
            self._keep_base(step.round)
            self._at = _Version(
                version=step.round,
                digest=pending.sealed.digest,
                attempt=step.attempt,
                record=record,
                signer=pending.proposal.candidate.signer,
                state_digest=pending.sealed.state,
                weights=pending.weights,
                state=pending.state,
            )

    def _keep_base(self, round_number: int) -> None:
        """Keep what was trained of a round's base while updates that start from it may come (FedBuff)."""
        late = self._manifest.strategy.staleness
        if late and self._at.weights is not None:
            base = Base.of(self._at.weights, {}, manifest=self._manifest)
            self._bases[round_number] = part_of(base.weights, base.trained)
            self._bases = {number: kept for number, kept in self._bases.items() if number > round_number - late}

    @contextmanager
    def _timed(self, stage: str) -> Generator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[stage] += time.perf_counter() - started
