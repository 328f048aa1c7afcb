"""What the governor does when the aggregator enclave is gone: wait for its next instance, and see what was committed.

1. An instance that died had nothing that outlives it: its keys are gone, and with them every update sent to it.
2. If its result was committed, the record is published with the courier: the round is over.
3. Otherwise the next instance opens the round again, as an attempt that was never made. What counts twice or is
   released twice is not decided here: brokers countersign one successor for each attempt.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from confed.errors import ConfedError, EnclaveLostError, InstanceError
from confed.governor.enclave_client import ClosedRound, Enclave
from confed.journey import Purpose
from confed.keybroker.lineage import verify_commit_record
from confed.keybroker.statements import CommitRecord
from confed.manifest import Manifest

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 5.0


class Letters(Protocol):
    """Where public documents are published; ``confed.wire.courier_client.CourierClient`` is one."""

    def collect(self, topic: str) -> list[bytes]:
        """Return what is there under a topic, oldest first."""
        ...


class Survivor:
    """Counts attempts, waits for the enclave and reads what was committed; does not open or close rounds.

    Args:
        patience_s: how long the enclave may take to come back.
    """

    def __init__(
        self,
        manifest: Manifest,
        enclave: Enclave,
        letters: Letters,
        *,
        patience_s: float,
        sleep: Callable[[float], None],
    ) -> None:
        self._manifest, self._enclave, self._letters = manifest, enclave, letters
        self._patience_s, self._sleep = patience_s, sleep
        self._attested: tuple[int, int] | None = None
        self._spent: dict[tuple[int, Purpose], int] = {}
        self.instance = ""

    def attest(self, first_round: int) -> str:
        """Have the enclave attest for the rounds from ``first_round`` on, once it is back; return its instance.

        Raises:
            EnclaveLostError: it did not come back in time.
            RefusedError: it refused, of the class that says why.
        """
        deadline, pause_s = time.monotonic() + self._patience_s, _FIRST_PAUSE_S
        while True:
            attempt = self._spent.get((first_round, Purpose.TRAIN), -1) + 1
            try:
                self.instance = self._enclave.attest(first_round=first_round, attempt=attempt)
            except EnclaveLostError:
                if time.monotonic() > deadline:
                    raise
                self._sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            except InstanceError:
                # An instance that died was given this attempt's keys, and nobody else ever gets them.
                self._spent[first_round, Purpose.TRAIN] = attempt
                if attempt + 1 >= self._manifest.max_attempts:
                    raise
            else:
                self._attested = first_round, attempt
                return self.instance

    def next_attempt(self, round_number: int, purpose: Purpose) -> int:
        """Return the attempt that the enclave has just attested for, or one that nobody has made.

        Raises:
            EnclaveLostError: there were as many as the manifest allows.
        """
        attempt = self._spent.get((round_number, purpose), -1) + 1
        if purpose is Purpose.TRAIN and self._attested is not None and self._attested[0] == round_number:
            attempt, self._attested = self._attested[1], None
        if attempt >= self._manifest.max_attempts:
            expected = f"at most {self._manifest.max_attempts} attempts at round {round_number}"
            raise EnclaveLostError("aggregator", expected=expected, got="one more")
        self._spent[round_number, purpose] = attempt
        return attempt

    def published(self, round_number: int, purpose: Purpose) -> ClosedRound | None:
        """Return a round as its published commit record shows it, or nothing if there is none that holds.

        Raises:
            UnreachableError: the courier is down.
        """
        return published(self._manifest, self._letters, round_number=round_number, purpose=purpose)


def published(manifest: Manifest, letters: Letters, *, round_number: int, purpose: Purpose) -> ClosedRound | None:
    """Return a round as its published commit record shows it, or nothing if there is none that holds.

    Raises:
        UnreachableError: the courier is down.
    """
    for body in letters.collect(f"{manifest.run}/commit/{purpose}/{round_number}"):
        try:
            record = CommitRecord.from_bytes(body)
            candidate = verify_commit_record(record, manifest=manifest, round_number=round_number, purpose=purpose)
        except ConfedError:
            continue  # Anybody may post there.
        return ClosedRound(
            record=body,
            version=candidate.version,
            digest=candidate.digest,
            metrics=dict(record.metrics.values),
            excluded=dict(candidate.excluded),
            seconds={},
            cohort_size=len(candidate.cohort),
        )
    return None
