"""The client TEE of a run without an aggregator: it makes the versions itself, agreed to by brokers like any other.

1. It trains only while the run goes on (``keybroker.course``): the commit records say so, never the governor.
2. With the base's key it is given the keys of the version that follows and of its state; one instance an attempt.
3. What it made is within the manifest's bounds (norm, weight, finite, the model's tensors), sealed under the key that
   the model owner can derive, and stays here until the site's own broker has countersigned it.
4. Then it goes to the courier, the model owner's broker commits it, and the record is posted.
5. Metrics leave in clear with the record, as the manifest lists them: this is a cohort of one, which the data key's
   floors allow or not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from confed.client.keeping import Keeper, Round, SealedCheckpoints
from confed.client.result import norm_of, trained_of
from confed.client.step import Arrays, Grants, Itself, MakerKeys, Step, timed
from confed.errors import LineageError, NormError, NotFiniteError, RoundError, SessionError, WeightError
from confed.journey import Kind, Purpose, Use
from confed.keybroker.client import BrokerClient
from confed.keybroker.committing import Committer, Proposed, hidden, version_draft
from confed.keybroker.course import Course
from confed.keybroker.statements import Candidate, CommitRecord, KeyName
from confed.manifest import Manifest, Site
from confed.model.weights import layout_of, pack
from confed.sealing.container import Container
from confed.sealing.sealer import Draft, seal_to_memory
from confed.statement import sign, unverified
from confed.wire.courier_client import CourierClient

if TYPE_CHECKING:
    from flwr.app import Context

STATE_FORMAT = "confed-training-state/1"
"""What a version's state holds where a client made it: what its app carries over to the next round."""

_THREADS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class _Made:
    """A sealed version that has not left: its file digest and its ciphertext."""

    digest: str
    data: memoryview = field(repr=False)


class Alone:
    """Makes the versions of one run, in one client TEE.

    Args:
        digest: of the manifest, computed once.
        signing_key: the TEE's own.
    """

    def __init__(
        self,
        manifest: Manifest,
        *,
        digest: str,
        itself: Itself,
        signing_key: Ed25519PrivateKey,
        brokers: Mapping[bytes, BrokerClient],
        courier: CourierClient,
    ) -> None:
        self.itself = itself
        self._manifest = manifest
        self._digest = digest
        self._signing = signing_key
        self._courier = courier
        self._committer = Committer(manifest, digest=digest, brokers=brokers, letters=courier)
        self._course = Course(manifest, courier, records=None)
        self._record = b""
        owners = (manifest.model.owner, *(site.owner for site in manifest.sites))
        self._keeper = Keeper(
            manifest,
            digest=digest,
            instance=itself.instance,
            signing_key=signing_key,
            brokers=[(owner.broker, brokers[owner.broker]) for owner in owners if owner.broker in brokers],
            courier=courier,
        )
        self._kept: tuple[Step, SealedCheckpoints] | None = None

    def begin(self, *, version: int, purpose: Purpose, round_number: int) -> None:
        """Take up the run at a version, and refuse a round to train that may not come any more, or not yet (rule 1).

        Raises:
            RunEndedError: a stop rule has fired.
            RoundError: the evaluation that a rule reads is not committed.
            LineageError: a version without its valid commit record.
        """
        self._take_up(version)
        if purpose is Purpose.TRAIN:
            self._course.require_next(round_number)

    def asked(self, *, version: int, attempt: int, base_record: bytes) -> tuple[KeyName, ...]:
        """Return the keys that an attempt at the version after ``version`` seals with (rule 2).

        That of the state which the base carries comes last, where its record says that it carries one.
        """
        key_id = self._manifest.model.start.key_id
        wanted = [(Use.VERSION, version + 1, attempt), (Use.STATE, version + 1, attempt)]
        wanted.append((Use.CHECKPOINT, version + 1, 0))
        base = _candidate_of(base_record)
        if base is not None and base.state:
            wanted.append((Use.STATE, version, base.attempt))
        return tuple(
            KeyName(key_id=key_id, use=use, container="", version=number, attempt=at) for use, number, at in wanted
        )

    @staticmethod
    def keys_of(opened: Sequence[bytes]) -> MakerKeys:
        """Return what ``asked`` was answered with."""
        version, state, checkpoint, *base_state = opened
        return MakerKeys(
            version=version, state=state, checkpoint=checkpoint, base_state=base_state[0] if base_state else None
        )

    def checkpoints(self, step: Step, context: Context) -> SealedCheckpoints:
        """Return the checkpoints of a training step: the same object for the same step.

        Raises:
            SessionError: a step that makes no version.
        """
        known = self._kept
        if known is not None and known[0] is step:
            return known[1]
        if known is not None:
            known[1].abandon()
        if step.keys is None:
            raise SessionError("checkpoints", expected="a step that trains", got=step.purpose)
        of = Round(
            number=step.round_number,
            attempt=step.attempt,
            base=step.base,
            key=step.keys.checkpoint,
            carried=lambda: self._carried(step),
        )
        made = SealedCheckpoints(self._keeper, of, context)
        self._kept = (step, made)
        return made

    def finish(
        self,
        site: Site,
        step: Step,
        grants: Grants,
        *,
        arrays: Arrays | None,
        weight: float,
        metrics: Mapping[str, float],
        seconds: dict[str, float],
    ) -> str:
        """Make a version of what the app gave back (none when evaluating), have it committed, and return its digest.

        Raises:
            ShapeError: other tensors than the model's.
            NotFiniteError, NormError, WeightError: a result that is not within the manifest's bounds.
            QuorumError: the site's broker did not countersign; nothing has left this TEE.
            ConfedError: a broker or the courier refused or is down.
        """
        self._require_numbers(weight, metrics)
        with timed(seconds, "seal"):
            state, made = None, None
            if arrays is not None:
                state = self._sealed_state(step)
                made = self._sealed(step, arrays, state="" if state is None else state.digest)
            proposed = self._proposed(site, step, grants, made=made, state=state, metrics=metrics)
        with timed(seconds, "commit"):
            countersignatures = self._committer.countersigned(proposed)
        with timed(seconds, "send"):
            for each in (state, made):
                if each is not None:
                    self._courier.put(each.data, digest=each.digest)
        with timed(seconds, "commit"):
            record = self._committer.committed(proposed, countersignatures)
        self._course.history.add(record)
        if arrays is not None:
            self._record = record.to_bytes()
        return step.base if made is None else made.digest

    def close_run(self, version: int) -> None:
        """Have the run closed in the version in which it ended; the documents are posted.

        Raises:
            RoundError: it goes on, or an evaluation is missing.
            ConfedError: a broker refused or is down.
        """
        self._take_up(version)
        self._course.history.require_ended()
        self._committer.close_run(self._record, history=self._course.history.records)

    def _take_up(self, version: int) -> None:
        if self._course.history.version == version:
            return
        if not 1 <= version <= self._manifest.rounds:
            raise RoundError("version", expected=f"from 1 to {self._manifest.rounds}", got=version)
        self._course.history, _, record = self._course.read(version)
        self._record = record.to_bytes()

    def _require_numbers(self, weight: float, metrics: Mapping[str, float]) -> None:
        for name, value in (("weight", weight), *metrics.items()):
            if not math.isfinite(value):
                raise NotFiniteError(name, expected="a finite number", got="NaN or infinity")
        if not 0 < weight <= self._manifest.update.weight_cap:
            raise WeightError("weight", expected=f"up to {self._manifest.update.weight_cap}", got="another")

    def _carried(self, step: Step) -> memoryview | None:
        """Return the opened state that the base carries, or nothing."""
        base = _candidate_of(step.record)
        if base is None or not base.state or step.keys is None or step.keys.base_state is None:
            return None
        container = Container.parse(self._courier.get(base.state))
        # Its digest is a countersigned commit's, so its signer is that version's maker.
        if container.header.kind is not Kind.STRATEGY_STATE or container.header.detail.get("format") != STATE_FORMAT:
            raise LineageError("state of the base", expected=STATE_FORMAT, got="another")
        return container.unlock(step.keys.base_state).read_all(_THREADS)

    def _sealed_state(self, step: Step) -> _Made | None:
        """End the step's checkpoints, and seal what it carries over under the state's key."""
        known, self._kept = self._kept, None
        if known is None or known[0] is not step or step.keys is None:
            return None
        known[1].end()
        if known[1].carried is None:
            return None
        draft = self._draft(Kind.STRATEGY_STATE, step, {"format": STATE_FORMAT})
        parts = known[1].carried.parts
        data, sealed = seal_to_memory(
            parts, draft, data_key=step.keys.state, signing_key=self._signing, threads=_THREADS
        )
        return _Made(digest=sealed.digest, data=data)

    def _sealed(self, step: Step, given: Arrays, *, state: str) -> _Made:
        """Seal the next version under its key (rule 3)."""
        if step.keys is None:
            raise SessionError("version key", expected="one for this attempt", got="none")
        trained = trained_of(self._manifest, step)
        taken = trained.taken(given)
        bound, norm = self._manifest.update.norm_bound, norm_of(trained, taken, step.arrays)
        if not math.isfinite(norm):
            raise NotFiniteError("next version", expected="finite values", got="NaN or infinity")
        if norm > bound:
            raise NormError("norm of the difference from the base", expected=f"up to {bound:g}", got="more")
        layout = layout_of(step.arrays)
        parts = pack(trained.whole_of(taken, given, step.arrays), like=layout)
        draft = self._draft(Kind.MODEL, step, {"layout": layout.digest, "state": state, "cohort": 1})
        data, sealed = seal_to_memory(
            parts, draft, data_key=step.keys.version, signing_key=self._signing, threads=_THREADS
        )
        return _Made(digest=sealed.digest, data=data)

    def _draft(self, kind: Kind, step: Step, detail: Mapping[str, str | int]) -> Draft:
        return version_draft(
            self._manifest,
            digest=self._digest,
            kind=kind,
            version=step.round_number,
            attempt=step.attempt,
            base=step.base,
            detail=detail,
        )

    def _proposed(
        self,
        site: Site,
        step: Step,
        grants: Grants,
        *,
        made: _Made | None,
        state: _Made | None,
        metrics: Mapping[str, float],
    ) -> Proposed:
        terms = self._manifest.metrics
        clear = hidden({name: round(metrics[name], terms.decimals) for name in terms.clear if name in metrics})
        candidate = Candidate(
            run=self._manifest.run,
            manifest=self._digest,
            round=step.round_number,
            attempt=step.attempt,
            purpose=step.purpose,
            base=step.base,
            version=step.round_number,
            digest=step.base if made is None else made.digest,
            state="" if state is None else state.digest,
            instance=self.itself.instance,
            cohort=(site.owner.identity,),
            tickets=(grants.ticket.digest,),
            excluded={},
            metrics=clear.digest,
            privacy=None,
        )
        return Proposed(
            candidate=sign(candidate, self._signing),
            tickets=(grants.ticket,),
            base_record=step.record,
            metrics=clear,
        )


def _candidate_of(record: bytes) -> Candidate | None:
    """Return what a commit record that the session has verified is of; nothing for the start."""
    return unverified(CommitRecord.from_bytes(record).candidate, Candidate) if record else None
