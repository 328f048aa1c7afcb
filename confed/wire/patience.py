"""Trying again: pauses that double, and an end to it."""

from __future__ import annotations

from collections.abc import Callable

import grpc

from confed.errors import UnreachableError
from confed.wire.addresses import PART_BYTES

PAUSES_S = (0.1, 0.2, 0.4, 0.8, 1.6)
"""Long enough, together, for a service to be restarted."""

_WORTH_ANOTHER_TRY = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        # A server that stops cancels its calls; a proxy that dies resets them.
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.INTERNAL,
    }
)


class Patience:
    """How often a call to one service is tried again: as often as there are pauses, anew after real progress."""

    def __init__(self, service: str, sleep: Callable[[float], None]) -> None:
        self._service, self._sleep = service, sleep
        self._pauses = list(PAUSES_S)
        self._mark = 0

    def note(self, transferred_bytes: int) -> None:
        """Begin the pauses anew if at least a part was transferred since the last time."""
        if transferred_bytes >= self._mark + PART_BYTES:
            self._mark = transferred_bytes
            self._pauses = list(PAUSES_S)

    def pause(self, error: grpc.RpcError | None) -> None:
        """Wait before the next attempt.

        Raises:
            UnreachableError: the failure is not one that passes, or there were enough attempts.
        """
        status = error.code() if isinstance(error, grpc.Call) else None
        passing = error is None or status in _WORTH_ANOTHER_TRY
        if not passing or not self._pauses:
            got = status.name if status is not None else "an incomplete answer"
            raise UnreachableError(self._service, expected="an answer", got=got) from error
        self._sleep(self._pauses.pop(0))
