"""The course of a run as its commit records show it: taken up by a new instance, and held against the stop rules.

- A round to train is opened only while the run goes on: not after a stop rule fired, and not before the evaluation
  that a rule reads is committed. So the governor gains nothing by leaving an evaluation out.
- A run is closed only in the version in which it ends.
- An instance that takes up a run reads every record from the first on, and comes to the same answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from confed.errors import ConfedError, LineageError, PrivacyBudgetError, RoundError, RunEndedError, UnreachableError
from confed.journey import Purpose
from confed.keybroker.committing import Letters
from confed.keybroker.history import History
from confed.keybroker.lineage import verify_commit_record
from confed.keybroker.statements import Candidate, CommitRecord
from confed.keybroker.topics import commit_topic
from confed.stopping import PRIVACY

if TYPE_CHECKING:
    from pathlib import Path

    from confed.manifest import Manifest


class Course:
    """What was committed, and what may come.

    Args:
        letters: where commit records are posted.
        records: a folder with commit records of an earlier instance, beside those; or none.
    """

    def __init__(self, manifest: Manifest, letters: Letters, *, records: Path | None) -> None:
        self._manifest = manifest
        self._letters = letters
        self._folder = records
        self.history = History(manifest)

    def read(self, version: int) -> tuple[History, Candidate, CommitRecord]:
        """Return the history up to a committed version, and what made that version; changes nothing.

        Raises:
            LineageError: a version without its valid commit record, or, where a stop rule reads evaluations, one before
                this version without its evaluation's.
        """
        if not self._manifest.stop.any:
            found = self._find(Purpose.TRAIN, version)
            return History(self._manifest, version=version, privacy=found[0].privacy), *found
        history = History(self._manifest)
        found = None
        for number in range(1, version + 1):
            found = self._find(Purpose.TRAIN, number, base=history.digest)
            history.add(found[1])
            if self._manifest.stop.evaluates:
                self._add_evaluation(history, number, newest=number == version)
        if found is None:
            raise LineageError("commit record", expected="one of a version after the start", got="none")
        return history, *found

    def trains(self, round_number: int) -> bool:
        """Return whether there may be a training round of this number."""
        if round_number > self._manifest.rounds:
            return False
        try:
            return not self._manifest.stop.any or self.history.ending() is None
        except RoundError:  # It depends on an evaluation that is still to come.
            return True

    def require_next(self, round_number: int) -> None:
        """Refuse a round to train that may not come any more, or not yet.

        Raises:
            RunEndedError: a stop rule has fired.
            PrivacyBudgetError: the privacy budget has no room for it.
            RoundError: the evaluation that a rule reads is not committed.
        """
        found = self.history.ending()
        if found is not None and found.rule == PRIVACY:
            raise PrivacyBudgetError("round to train", expected=f"none after {found.told}", got=round_number)
        if found is not None and self._manifest.stop.any:
            raise RunEndedError("round to train", expected=f"none after {found.told}", got=round_number)

    def _add_evaluation(self, history: History, number: int, *, newest: bool) -> None:
        try:
            history.add(self._find(Purpose.EVALUATE, number, base=history.digest)[1])
        except UnreachableError:
            raise
        except ConfedError:
            # The newest version may still have to be evaluated. Where its record is only kept from this instance,
            # the model owner's broker commits no other, and the run stands still.
            if not newest:
                raise

    def _find(self, purpose: Purpose, number: int, *, base: str | None = None) -> tuple[Candidate, CommitRecord]:
        failure: ConfedError = LineageError(f"{purpose} commit record", expected=f"one of version {number}", got="none")
        bodies = self._letters.collect(commit_topic(self._manifest.run, purpose, number))
        if self._folder is not None:
            bodies += [path.read_bytes() for path in sorted(self._folder.glob("*.json"))]
        for body in bodies:
            try:
                record = CommitRecord.from_bytes(body)
                verified = verify_commit_record(
                    record, manifest=self._manifest, round_number=number, purpose=purpose, base=base
                )
            except ConfedError as error:
                failure = error
            else:
                return verified, record
        raise failure
