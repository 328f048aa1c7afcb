"""A run's commit records from its first round on, and what its stop rules make of them.

The enclave, every broker, the governor and ``confed verify`` come to the same answer, since they read the same records.
Where the manifest has no stop rule, only the number of the version and what it has spent of a privacy budget count, and
no records are kept.
"""

from __future__ import annotations

from collections.abc import Iterable

from confed.errors import LineageError, RoundError
from confed.journey import Purpose
from confed.keybroker.lineage import Lineage, parsed, read_record
from confed.keybroker.spending import base_state
from confed.keybroker.statements import Candidate, Commit, CommitRecord
from confed.manifest import Manifest
from confed.privacy.accounting import epsilon
from confed.privacy.terms import PrivacyState
from confed.stopping import LAST_ROUND, PRIVACY, Ending, Shown, ending


class History:
    """What was committed in a run, in order. Not promised: that a record holds; whoever adds one has verified it."""

    def __init__(self, manifest: Manifest, *, version: int = 0, privacy: PrivacyState | None = None) -> None:
        self._manifest = manifest
        self.version = version
        self.privacy = base_state(manifest, None) if version == 0 else privacy
        self.digest = manifest.model.start.digest if version == 0 else ""
        self._shown: list[Shown] = []
        self._records: list[bytes] = []

    @classmethod
    def verified(cls, lineage: Lineage, records: Iterable[bytes]) -> History:
        """Return the history of abridged commit records in the order in which they were committed, each verified.

        Raises:
            RoundError: a record that is missing, twice there or out of order.
            LineageError, QuorumError, CohortError, SignatureError, EncodingError: one does not hold.
        """
        history = cls(lineage.manifest)
        for data in records:
            record = read_record(data)
            lineage.verify_abridged(record, base=history.digest)
            history.add(record)
        return history

    @property
    def records(self) -> tuple[bytes, ...]:
        """The records that stop rules read, in their order and abridged; none where the manifest has no rule."""
        return tuple(self._records)

    def add(self, record: CommitRecord) -> None:
        """Add the next committed record: of the next round, or of the evaluation of the version.

        Raises:
            RoundError: another one.
        """
        said = parsed(record.candidate, Candidate)
        trains = said.purpose is Purpose.TRAIN
        expected = self.version + 1 if trains else self.version
        again = not trains and bool(self._shown) and self._shown[-1].evaluate is not None
        if said.round != expected or again:
            raise RoundError(f"committed round to {said.purpose}", expected=expected, got=said.round)
        if trains:
            self.version, self.digest, self.privacy = said.round, said.digest, said.privacy
        if not self._manifest.stop.any:
            return
        self._show(record, said)
        if trains or self._manifest.stop.evaluates:
            self._records.append(record.abridged().to_bytes())

    def _show(self, record: CommitRecord, said: Candidate) -> None:
        values = dict(record.metrics.values)
        if said.purpose is Purpose.TRAIN:
            time = parsed(record.commit, Commit).time
            self._shown.append(Shown(round=said.round, committed_at=time, train=values, evaluate=None))
            return
        if not self._shown:
            raise RoundError("evaluation", expected="one of a version that was committed", got=said.round)
        last = self._shown.pop()
        self._shown.append(Shown(round=last.round, committed_at=last.committed_at, train=last.train, evaluate=values))

    def ending(self) -> Ending | None:
        """Return why the run ends and in which round, or ``None`` while it goes on.

        Raises:
            RoundError: the evaluation that a rule reads is not committed yet.
        """
        stop, rounds = self._manifest.stop, self._manifest.rounds
        if stop.any:
            found = ending(stop, rounds=rounds, shown=self._shown)
        else:
            found = Ending(rule=LAST_ROUND, round=rounds) if self.version == rounds else None
        return found or self._spent()

    def _spent(self) -> Ending | None:
        """The privacy budget ends a run where it has no room for the next round's first attempt."""
        terms, state = self._manifest.privacy, self.privacy
        if terms is None or state is None or self.version == 0:
            return None
        following = epsilon(terms, state.releases + 1)
        if following <= terms.epsilon_budget:
            return None
        # Rounded, since brokers compare the reason and their machines' logarithms differ in the last bits.
        values = {"epsilon": state.epsilon, "budget": terms.epsilon_budget, "next": following}
        rounded = {name: round(value, 6) for name, value in values.items()}
        return Ending(rule=PRIVACY, round=self.version, values=rounded)

    def require_ended(self) -> Ending:
        """Return why the run ended in its newest version.

        Raises:
            RoundError: it goes on, or an evaluation is missing.
            LineageError: it ended before and was not stopped.
        """
        found = self.ending()
        if found is None:
            expected = f"version {self._manifest.rounds}"
            if self._manifest.stop.any:
                expected += " or a stop rule that fired"
            if self._manifest.privacy is not None:
                expected += " or a privacy budget without room"
            raise RoundError("closing", expected=expected, got=self.version)
        if found.round != self.version:
            raise LineageError("closing", expected=f"the end in round {found.round} ({found.told})", got=self.version)
        return found
