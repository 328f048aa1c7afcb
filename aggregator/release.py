"""What leaves the enclave, and in which order: sealed, then countersigned, then committed, only then published.

1. The strategy's state and the next version are sealed under the keys that the model owner's broker released. The
   model owner can derive these keys, so the ciphertext stays in the enclave; where it is too large for memory, its
   chunks lie in the folder without the header, whose salt every chunk's key is derived from.
2. The candidate names both, the cohort, its tickets and the digest of the metrics; the enclave signs it.
3. Every site's broker is asked to countersign it; more than half must. From here on they remember this cohort.
4. The ciphertext goes to the courier, so that a committed version is never lost.
5. The model owner's broker commits it.
6. The record is verified as any client would, and posted. Before that, no metric and no digest is told to the
   governor.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aggregator.combine.flower_strategy import STATE_FORMAT
from aggregator.combine.fold import factors
from aggregator.combine.weights import Weights
from aggregator.inbox import SMALL_BYTES, Store
from confed import canonical
from confed.errors import ConfedError, QuorumError, SessionError
from confed.journey import Kind, Purpose
from confed.keybroker.lineage import verify_commit_record
from confed.keybroker.statements import Candidate, ClearMetrics, Closing, CommitRecord
from confed.model.weights import pack
from confed.sealing.container import Draft, seal, seal_to_bytes
from confed.sealing.recipients import RecipientEntry
from confed.statement import Signed, sign, verify

if TYPE_CHECKING:
    from io import FileIO
    from pathlib import Path

    from numpy.typing import NDArray

    from aggregator.enclave import Enclave, Letters, RoundKeys
    from aggregator.round import Accepted, Step
    from confed.model.update import Declaration
    from confed.privacy.terms import PrivacyState

Timed = Callable[[str], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedVersion:
    """The next version: file digests of the model and of its strategy state (empty without one), and the files."""

    digest: str
    state: str
    withheld: tuple[Withheld, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Withheld:
    """A sealed container that has not left: the whole of it, or its front, whose place in the file is a hole."""

    digest: str
    front: bytes = field(repr=False)
    path: Path | None

    def send(self, store: Store) -> None:
        """Store the container."""
        if self.path is None:
            store.put(self.front, digest=self.digest)
            return
        with self.path.open("r+b") as file:
            file.write(self.front)
        store.put(self.path, digest=self.digest)

    def discard(self) -> None:
        """Delete what lies in the folder."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


class _WithoutFront:
    """A sink that keeps a container's front in memory, and writes the chunks behind a hole of its size."""

    def __init__(self, file: FileIO) -> None:
        self._file = file
        self.front = b""

    def write(self, data: memoryview, /) -> int | None:
        if not self.front:
            self.front = bytes(data)
            return self._file.seek(len(self.front))
        return self._file.write(data)


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """A signed candidate and what brokers need with it; may be proposed again until it is committed."""

    step: Step
    candidate: Signed
    tickets: tuple[Signed, ...]
    base_record: bytes
    metrics: ClearMetrics
    withheld: tuple[Withheld, ...] = ()


def clear_metrics(names: Sequence[str], decimals: int, declarations: Sequence[Declaration]) -> dict[str, float]:
    """Return the weighted means that may leave in clear, rounded, in the manifest's order.

    Guarantees: only names that the manifest lists, and only those that every member of the cohort declares: a mean
    over fewer would be of a smaller cohort than was promised. Computed as Flower does.

    Source: flwr 1.41, ``serverapp/strategy/strategy_utils.py``, ``aggregate_metricrecords``.
    """
    shares = factors([declaration.weight for declaration in declarations])
    found: dict[str, float] = {}
    for name in names:
        if all(name in declaration.metrics for declaration in declarations):
            total = 0.0
            for at, (declaration, share) in enumerate(zip(declarations, shares, strict=True)):
                value = declaration.metrics[name] * share
                total = value if at == 0 else total + value
            found[name] = round(total, decimals)
    return found


class Releaser:
    """Seals, countersigns, commits and publishes for one enclave.

    Args:
        folder: where large ciphertext is written before it is sent.
        threads: how many seal.
    """

    def __init__(self, enclave: Enclave, store: Store, letters: Letters, *, folder: Path, threads: int = 1) -> None:
        self._enclave = enclave
        self._store = store
        self._letters = letters
        self._folder = folder
        self._threads = threads

    def seal_version(
        self,
        step: Step,
        weights: Weights,
        state: Mapping[str, NDArray[Any]],
        *,
        keys: RoundKeys,
        cohort_size: int,
        timed: Timed,
    ) -> SealedVersion:
        """Seal the next version and its state, and keep the ciphertext (step 1).

        Args:
            step: the attempt that made it.
            weights: the next version.
            state: the strategy's state, empty without one.
            keys: of this attempt.
            cohort_size: identities in it, public in its header.
            timed: counts the block under a stage's name.

        Raises:
            SessionError: a state without a key for it.
        """
        name = f"{step.run}/{step.round}.{step.attempt}"
        common = {"run": step.run, "version": step.round, "attempt": step.attempt}
        withheld: list[Withheld] = []
        if state:
            if keys.following_state is None:
                raise SessionError("state key", expected="one for this attempt", got="none")
            detail = {**common, "format": STATE_FORMAT}
            draft = self._draft(Kind.STRATEGY_STATE, f"{name}/state", step, detail)
            with timed("seal"):
                withheld.append(self._seal(pack(state), draft, keys.following_state))
        state_digest = withheld[0].digest if withheld else ""
        detail = {**common, "layout": weights.layout.digest, "state": state_digest, "cohort": cohort_size}
        draft = self._draft(Kind.MODEL, name, step, detail)
        with timed("seal"):
            withheld.append(self._seal(pack(weights.arrays(), like=weights.layout), draft, keys.following))
        return SealedVersion(digest=withheld[-1].digest, state=state_digest, withheld=tuple(withheld))

    def propose(
        self,
        step: Step,
        *,
        sealed: SealedVersion,
        cohort: Sequence[Accepted],
        excluded: Mapping[str, str],
        metrics: Mapping[str, float],
        base_record: bytes,
        privacy: PrivacyState | None,
    ) -> Proposal:
        """Return the signed candidate (step 2), in which the privacy that the release costs is charged."""
        clear = ClearMetrics(salt=os.urandom(32), values=metrics)
        candidate = Candidate(
            run=step.run,
            manifest=step.manifest,
            round=step.round,
            attempt=step.attempt,
            purpose=step.purpose,
            base=step.base,
            version=step.round,
            digest=sealed.digest,
            state=sealed.state,
            instance=step.instance,
            cohort=tuple(entry.site.owner.identity for entry in cohort),
            tickets=tuple(entry.ticket.digest for entry in cohort),
            excluded=excluded,
            metrics=clear.digest,
            privacy=privacy,
        )
        return Proposal(
            step=step,
            candidate=sign(candidate, self._enclave.signing_key),
            tickets=tuple(entry.ticket for entry in cohort),
            base_record=base_record,
            metrics=clear,
            withheld=sealed.withheld,
        )

    def commit(self, proposal: Proposal, *, timed: Timed) -> bytes:
        """Have a proposal countersigned and committed, publish the record and return it (steps 3 to 6).

        Raises:
            QuorumError: too few brokers countersigned; nothing has left the enclave.
            ConfedError: the model owner's broker refused, or a service is down; the proposal may be tried again.
        """
        # 3.
        with timed("commit"):
            countersignatures = self._countersigned(proposal)
        # 4.
        with timed("send"):
            for container in proposal.withheld:
                container.send(self._store)
        # 5. and 6.
        with timed("commit"):
            record = self._committed(proposal, countersignatures)
        for container in proposal.withheld:
            container.discard()
        return record

    def _countersigned(self, proposal: Proposal) -> tuple[Signed, ...]:
        manifest, enclave = self._enclave.manifest, self._enclave
        answers = enclave.each_server(
            [site.owner.broker for site in manifest.sites],
            lambda server, brokers: server.countersign(
                brokers, candidate=proposal.candidate, tickets=proposal.tickets, base_record=proposal.base_record
            ),
        )
        return _quorum("countersignatures", answers, manifest.quorum)

    def _committed(self, proposal: Proposal, countersignatures: tuple[Signed, ...]) -> bytes:
        manifest, enclave = self._enclave.manifest, self._enclave
        owner = manifest.model.owner.broker
        commit = enclave.broker(owner).commit(
            owner,
            candidate=proposal.candidate,
            tickets=proposal.tickets,
            countersignatures=countersignatures,
            base_record=proposal.base_record,
        )
        record = CommitRecord(
            candidate=proposal.candidate,
            tickets=proposal.tickets,
            countersignatures=countersignatures,
            commit=commit,
            metrics=proposal.metrics,
        )
        step = proposal.step
        verify_commit_record(
            record,
            manifest=manifest,
            round_number=step.round,
            purpose=step.purpose,
            attempt=step.attempt,
            base=step.base,
        )
        encoded = record.to_bytes()
        self._letters.post(commit_topic(step.run, step.purpose, step.round), encoded)
        return encoded

    def close_run(self, final_record: bytes, *, history: Sequence[bytes]) -> bytes:
        """Have the run closed by the model owner's broker and countersigned by the others; return the documents.

        ``history`` are all commit records in their order, abridged, where the manifest has a stop rule.

        Raises:
            QuorumError: too few brokers agree that the run ended so.
            ConfedError: the model owner's broker refused or is down.
        """
        manifest, enclave = self._enclave.manifest, self._enclave
        terms: dict[str, Any] = {
            "run": manifest.run,
            "manifest": enclave.manifest_digest,
            "final_record": final_record,
            "history": history,
        }
        owner = manifest.model.owner.broker
        (closing,) = enclave.broker(owner).close([owner], **terms)
        if isinstance(closing, ConfedError):
            raise closing
        verify(closing, Closing, signer=owner)
        answers = enclave.each_server(
            [site.owner.broker for site in manifest.sites],
            lambda server, brokers: server.close(brokers, **terms, closing=closing),
        )
        agreed = _quorum("closing countersignatures", answers, manifest.quorum)
        documents = {"closing": closing.to_json(), "countersignatures": [signed.to_json() for signed in agreed]}
        return canonical.encode(documents)

    def _draft(self, kind: Kind, container_id: str, step: Step, detail: Mapping[str, Any]) -> Draft:
        model = self._enclave.manifest.model
        return Draft(
            kind=kind,
            container_id=container_id,
            version=step.round,
            parents=(step.base,),
            owner=model.owner.identity,
            manifest=step.manifest,
            detail=detail,
            recipients=(RecipientEntry.owner_key(model.start.key_id),),
        )

    def _seal(self, parts: Sequence[memoryview], draft: Draft, data_key: bytes) -> Withheld:
        """Seal to memory if small, else to a file in the folder that lacks its front."""
        signing_key = self._enclave.signing_key
        if sum(len(part) for part in parts) <= SMALL_BYTES:
            data, sealed = seal_to_bytes(parts, draft, data_key=data_key, signing_key=signing_key)
            return Withheld(digest=sealed.digest, front=data, path=None)
        path = self._folder / f"{draft.kind}.sealed"
        with path.open("wb", buffering=0) as file:
            sink = _WithoutFront(file)
            sealed = seal(parts, draft, data_key=data_key, signing_key=signing_key, sink=sink, threads=self._threads)
        return Withheld(digest=sealed.digest, front=sink.front, path=path)


def commit_topic(run: str, purpose: Purpose, round_number: int) -> str:
    """Return where a round's commit record is posted."""
    return f"{run}/commit/{purpose}/{round_number}"


def _quorum(what: str, answers: Mapping[bytes, Signed | ConfedError], least: int) -> tuple[Signed, ...]:
    """Return what was signed, if at least ``least`` brokers did.

    Raises:
        QuorumError: fewer; its cause is the first refusal.
    """
    signed = tuple(answer for answer in answers.values() if isinstance(answer, Signed))
    if len(signed) < least:
        codes = sorted({answer.code for answer in answers.values() if isinstance(answer, ConfedError)})
        first = next((answer for answer in answers.values() if isinstance(answer, ConfedError)), None)
        raise QuorumError(what, expected=f"{least} identities", got=f"{len(signed)} ({', '.join(codes)})") from first
    return signed
