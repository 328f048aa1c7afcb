"""Messages for whoever waits for them, in memory: how the governor and sites talk while a run goes on.

- A box is one caller's. The governor may leave messages in any box, everybody else in the governor's alone; each reads
  its own. Where nobody is asked who calls, anybody may do anything, as with letters.
- A box keeps its newest messages, up to a number and a size. What it drops, or loses with the process, its sender
  leaves again while it waits for the answer.
- Places rise, over restarts too, as long as the clock does not go back further than the process was down.

Nothing here is trusted: a message says no more than Flower's do, which every reader checks.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from confed.errors import EncodingError, RefusedError, SizeError
from confed.wire.addresses import GOVERNOR_BOX, MESSAGE_BYTES

_BOXES, _MESSAGES, _BOX_BYTES = 10_000, 1024, 16 * 1024 * 1024
_NAME_CHARACTERS = 128
_LONGEST_WAIT_MS = 10_000
_WAITING = 128
"""How many may wait at a time, each with a thread of the server; others are answered at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """A message in a box."""

    place: int
    name: str
    body: bytes
    sender: str


class Switchboard:
    """The boxes of one courier; safe between threads.

    Args:
        clock: nanoseconds, from which the first place is taken.
    """

    def __init__(self, *, clock: Callable[[], int] = time.time_ns) -> None:
        self._boxes: dict[str, dict[str, Left]] = {}
        self._place = clock()
        self._changed = threading.Condition()
        self._waiting = threading.BoundedSemaphore(_WAITING)

    def leave(self, box: str, *, name: str, body: bytes, sender: str) -> None:
        """Put a message into a box, behind those that are there; the same name again takes its place anew.

        The sender is the caller; empty where nobody is asked.

        Raises:
            RefusedError: a box that the sender may not write to.
            EncodingError: a box or a name that is none.
            SizeError: a message that is too large, or one box too many.
        """
        if sender and GOVERNOR_BOX not in (sender, box):
            raise RefusedError("box", expected="the governor's", got=repr(box)[:80])
        for what, text in (("box", box), ("message name", name)):
            if not text.isprintable() or not 1 <= len(text) <= _NAME_CHARACTERS:
                raise EncodingError(what, expected=f"1 to {_NAME_CHARACTERS} printable characters", got=repr(text)[:80])
        if len(body) > MESSAGE_BYTES:
            raise SizeError("message size in bytes", expected=f"at most {MESSAGE_BYTES}", got=len(body))
        with self._changed:
            if box not in self._boxes and len(self._boxes) >= _BOXES:
                raise SizeError("boxes", expected=f"at most {_BOXES}", got="one more")
            held = self._boxes.setdefault(box, {})
            held.pop(name, None)
            self._place += 1
            held[name] = Left(place=self._place, name=name, body=body, sender=sender)
            size_bytes = sum(len(left.body) for left in held.values())
            while len(held) > _MESSAGES or size_bytes > _BOX_BYTES:
                size_bytes -= len(held.pop(next(iter(held))).body)
            self._changed.notify_all()

    def wait(self, box: str, *, after: int, wait_ms: int, reader: str) -> tuple[list[Left], int]:
        """Return what lies in a box behind a place, and the place of the newest; wait for the first if there is none.

        ``after`` 0 returns nothing and the place alone, at once.

        Raises:
            RefusedError: another's box.
        """
        if reader and reader != box:
            raise RefusedError("box", expected=repr(reader), got=repr(box)[:80])
        with self._changed:
            if after and not self._behind(box, after) and self._waiting.acquire(blocking=False):
                try:
                    self._changed.wait_for(lambda: self._behind(box, after), min(wait_ms, _LONGEST_WAIT_MS) / 1000)
                finally:
                    self._waiting.release()
            return (self._behind(box, after) if after else []), self._place

    def _behind(self, box: str, after: int) -> list[Left]:
        return [left for left in self._boxes.get(box, {}).values() if left.place > after]
