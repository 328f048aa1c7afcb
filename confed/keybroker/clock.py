"""What time it is inside an enclave, whose machine's clock is its host's."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from confed.errors import SessionError


class EnclaveClock:
    """Time inside an enclave: the last broker-signed time plus the enclave's own monotonic clock.

    Guarantees: never goes back, so an old statement that is played again cannot revive what has expired.
    """

    def __init__(self, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._offset_ms: float | None = None

    def advance(self, time_ms: int) -> None:
        """Take over a time that a broker has signed, unless the clock is already past it."""
        offset = time_ms - self._monotonic() * 1000
        with self._lock:
            self._offset_ms = offset if self._offset_ms is None else max(self._offset_ms, offset)

    def now(self) -> int:
        """Return Unix milliseconds.

        Raises:
            SessionError: no broker has been heard yet: unknown means refuse.
        """
        if self._offset_ms is None:
            raise SessionError("enclave clock", expected="a broker-signed time", got="none yet")
        return int(self._offset_ms + self._monotonic() * 1000)
