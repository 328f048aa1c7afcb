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

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from confed.client.result import norm_of, trained_of
from confed.client.step import Arrays, Grants, Itself, MakerKeys, Step, timed
from confed.errors import NormError, NotFiniteError, RoundError, SessionError, WeightError
from confed.journey import Kind, Purpose, Use
from confed.keybroker.committing import Committer, CommittingBrokers, Proposed, hidden, version_draft
from confed.keybroker.course import Course
from confed.keybroker.statements import Candidate, KeyName
from confed.manifest import Manifest, Site
from confed.model.weights import Layout, layout_of, pack
from confed.sealing.sealer import seal_to_memory
from confed.statement import sign
from confed.wire.courier_client import CourierClient

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
        brokers: Mapping[bytes, CommittingBrokers],
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

    def asked(self, *, version: int, attempt: int) -> tuple[KeyName, ...]:
        """Return the keys that an attempt at the version after ``version`` seals with (rule 2)."""
        start = self._manifest.model.start
        return (KeyName(key_id=start.key_id, use=Use.VERSION, container="", version=version + 1, attempt=attempt),)

    @staticmethod
    def keys_of(opened: Sequence[bytes]) -> MakerKeys:
        """Return what ``asked`` was answered with."""
        (version,) = opened
        return MakerKeys(version=version)

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
            made = _Made(digest=step.base, data=memoryview(b"")) if arrays is None else self._sealed(step, arrays)
            proposed = self._proposed(site, step, grants, made=made, metrics=metrics)
        with timed(seconds, "commit"):
            countersignatures = self._committer.countersigned(proposed)
        with timed(seconds, "send"):
            if arrays is not None:
                self._courier.put(made.data, digest=made.digest)
        with timed(seconds, "commit"):
            record = self._committer.committed(proposed, countersignatures)
        self._course.history.add(record)
        if arrays is not None:
            self._record = record.to_bytes()
        return made.digest

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

    def _sealed(self, step: Step, given: Arrays) -> _Made:
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
        draft = version_draft(
            self._manifest,
            digest=self._digest,
            kind=Kind.MODEL,
            version=step.round_number,
            attempt=step.attempt,
            base=step.base,
            detail=self._detail(layout),
        )
        data, sealed = seal_to_memory(
            parts, draft, data_key=step.keys.version, signing_key=self._signing, threads=_THREADS
        )
        return _Made(digest=sealed.digest, data=data)

    @staticmethod
    def _detail(layout: Layout) -> dict[str, str | int]:
        return {"layout": layout.digest, "state": "", "cohort": 1}

    def _proposed(
        self, site: Site, step: Step, grants: Grants, *, made: _Made, metrics: Mapping[str, float]
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
            digest=made.digest,
            state="",
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
