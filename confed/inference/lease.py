"""The lease that a replica holds: how long it may go on without its owner's broker, by a clock that nobody sets.

1. Time runs from when the replica asked for the lease, which is never later than when the broker signed it: whoever
   holds an answer back shortens a lease and does not lengthen it.
2. The clock counts since the machine was started, suspension included. One that goes back means that time is unknown,
   and unknown is over.
3. A lease ends with its instance. Another instance has neither the key that it was wrapped to nor a time to count from:
   it asks the broker, and does not serve while there is none.

Not promised: a machine that is frozen as a whole, clock and all, does not count the time meanwhile.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from confed.errors import LeaseError
from confed.keybroker.lease import Lease
from confed.serving import LeaseTerms


def since_boot() -> float:
    """Return seconds since this machine was started, those that it was suspended included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class HeldLease:
    """What is left of a replica's lease. Threads may share it.

    Args:
        terms: of the manifest; ``None`` where it has none: then nothing ends, and no lease is taken.
        clock: seconds that only go on.
    """

    def __init__(self, terms: LeaseTerms | None, *, clock: Callable[[], float] = since_boot) -> None:
        self._terms = terms
        self._clock = clock
        self._lock = threading.Lock()
        self._ends: float | None = None
        self._last = clock()

    def asked(self) -> float:
        """Return the time to note before a lease is asked for.

        Raises:
            LeaseError: the clock went back.
        """
        return self._now()

    def take(self, lease: Lease | None, *, asked_at: float) -> None:
        """Take over a verified lease, or none where the manifest has none.

        Args:
            lease: what the broker gave.
            asked_at: what ``asked`` returned before.

        Raises:
            LeaseError: none where there must be one, one where there must be none, or one longer than the manifest's.
        """
        if (lease is None) != (self._terms is None):
            raise LeaseError("lease", expected="one exactly where the manifest has terms of one", got="the contrary")
        if lease is None or self._terms is None:
            return
        length_ms = lease.expires_at - lease.issued_at
        if not 0 < length_ms <= self._terms.seconds * 1000:
            raise LeaseError("lease length in ms", expected=f"at most {self._terms.seconds * 1000}", got=length_ms)
        with self._lock:
            ends = asked_at + length_ms / 1000
            self._ends = ends if self._ends is None else max(self._ends, ends)

    def left_s(self) -> float:
        """Return the seconds that are left; none are where time is unknown."""
        try:
            now = self._now()
        except LeaseError:
            return 0.0
        return 0.0 if self._ends is None else max(0.0, self._ends - now)

    def require(self) -> None:
        """Refuse to go on once the lease is over.

        Raises:
            LeaseError: it is, or time is unknown.
        """
        if self._terms is not None and self.left_s() <= 0:
            raise LeaseError("lease", expected="one whose time is now", got="none, or one that is over")

    def _now(self) -> float:
        with self._lock:
            now = self._clock()
            if now < self._last:
                self._ends = None
                raise LeaseError("enclave clock", expected="one that goes on", got="one that went back")
            self._last = now
            return now
