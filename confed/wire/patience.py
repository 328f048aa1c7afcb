"""Trying again: pauses that double, an end to them, and an end to calls that no longer move.

A call that moves bytes has no deadline: how long it may take depends on how long it moves nothing. A peer that is gone
without a word is found by keep-alive (``confed.wire.channel``), one that answers but stands still by ``Stalls``.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Protocol

import grpc

from confed.errors import UnreachableError
from confed.wire.addresses import PART_BYTES

PAUSES_S = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8)
"""Long enough, together, for a service to be restarted by whoever watches it."""

_SPREAD = 0.25
_LOOKS = 4
_STALLS_IN_A_ROW = 2
_WORTH_ANOTHER_TRY = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        # A server that stops cancels its calls; a proxy that dies resets them.
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.INTERNAL,
    }
)


def spread_sleep(seconds: float) -> None:
    """Sleep for about this long: many clients of a service that was restarted do not come back at one moment."""
    time.sleep(seconds * random.uniform(1 - _SPREAD, 1 + _SPREAD))  # noqa: S311


class Patience:
    """How often a call to one service is tried again: as often as there are pauses, anew after real progress."""

    def __init__(self, service: str, sleep: Callable[[float], None]) -> None:
        self._service, self._sleep = service, sleep
        self._pauses = list(PAUSES_S)
        self._mark = 0
        self._stalls = 0

    def note(self, transferred_bytes: int) -> None:
        """Begin the pauses anew if at least a part was transferred since the last time."""
        if transferred_bytes >= self._mark + PART_BYTES:
            self._mark = transferred_bytes
            self._pauses = list(PAUSES_S)
            self._stalls = 0

    def pause(self, error: grpc.RpcError | None, *, stalled: bool = False) -> None:
        """Wait before the next attempt; ``stalled`` says that the last one was ended because it stood still.

        Raises:
            UnreachableError: the failure is not one that passes, or there were enough attempts.
        """
        status = error.code() if isinstance(error, grpc.Call) else None
        passing = error is None or status in _WORTH_ANOTHER_TRY
        self._stalls += stalled
        if self._stalls >= _STALLS_IN_A_ROW:
            raise UnreachableError(self._service, expected="progress", got="none") from error
        if not passing or not self._pauses:
            got = status.name if status is not None else "an incomplete answer"
            raise UnreachableError(self._service, expected="an answer", got=got) from error
        self._sleep(self._pauses.pop(0))


class _Cancellable(Protocol):
    """A running gRPC call."""

    def cancel(self) -> bool | None:
        """End it."""
        ...


class Progress:
    """When a watched call last moved, and whether it was ended for having stood still."""

    def __init__(self) -> None:
        self.moved_at = time.monotonic()
        self.stalled = False

    def note(self) -> None:
        """Say that it moved just now."""
        self.moved_at = time.monotonic()


class Stalls:
    """Ends calls that have moved nothing for ``stall_s``; safe between threads.

    One thread looks after all calls of a client, and only while there are any.
    """

    def __init__(self, stall_s: float) -> None:
        self._stall_s = stall_s
        self._calls: dict[Progress, _Cancellable] = {}
        self._changed = threading.Condition()
        self._watching = False

    @contextmanager
    def watching(self, call: _Cancellable, progress: Progress) -> Generator[None]:
        """Watch a call during the block; ``progress`` is to be told of every part that moves."""
        progress.note()
        with self._changed:
            self._calls[progress] = call
            if not self._watching:
                self._watching = True
                threading.Thread(target=self._watch, name="confed-stalls", daemon=True).start()
        try:
            yield
        finally:
            with self._changed:
                del self._calls[progress]
                self._changed.notify()

    def _watch(self) -> None:
        while True:
            with self._changed:
                # A client that is idle keeps its thread for as long as a call may stand still, then lets it go.
                if not self._calls and not self._changed.wait_for(lambda: bool(self._calls), self._stall_s):
                    self._watching = False
                    return
                late = time.monotonic() - self._stall_s
                standing = [(call, progress) for progress, call in self._calls.items() if progress.moved_at < late]
            for call, progress in standing:
                progress.stalled = True
                call.cancel()
            time.sleep(self._stall_s / _LOOKS)
