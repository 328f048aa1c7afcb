"""A stream at the replica's edge: windows in, answers out, over one request of HTTP whose answer begins before it ends.

1. Between windows a stream holds one of the replica's places, and no thread; an engine's thread runs one at a time.
2. The replica ends a stream that brings no whole window for too long, and before its epoch's key is gone, so that what
   was said in it is as safe as any exchange: with a receipt, as if the requester had ended.
3. Whoever goes away, or sends what does not open, ends it without one; so do an ended lease, and an output that did not
   get where it must. What runs when its requester goes away is stopped at its next piece.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from typing import Any

from confed.errors import EncodingError, SizeError
from confed.inference.engine import Answer
from confed.inference.messages import AnswerHead
from confed.inference.outputs import Answers
from confed.inference.replica import Replica
from confed.inference.windows import Message, Windows

IDLE_S = 300.0
"""How long a stream may bring no window."""
LARGEST_ANSWER_BYTES = 256 * 1024 * 1024
Receive = Callable[[], Awaitable[dict[str, Any]]]


class Caller:
    """What a stream's requester sends, message by message, and whether it is still there.

    Args:
        receive: of the ASGI application.
        windows: opens what comes.
    """

    def __init__(self, receive: Receive, windows: Windows) -> None:
        self._receive = receive
        self._windows = windows
        self._pending: asyncio.Future[dict[str, Any]] | None = None
        self._waiting: deque[Message] = deque()
        self.gone = threading.Event()

    async def message(self, *, within_s: float) -> Message | None:
        """Return the next message; ``None`` where the requester has ended, or none came in time.

        Raises:
            TruncatedError, TamperedError, EncodingError, SizeError: what came is not the requester's, or not whole.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + within_s
        while not self._waiting:
            if self._windows.ended:
                self._windows.close()
                return None
            done, _ = await asyncio.wait({self._next()}, timeout=max(0.0, until - loop.time()))
            if not done:
                return None
            self._waiting += self._opened()
        return self._waiting.popleft()

    async def while_here(self, work: asyncio.Future[bytes]) -> bytes:
        """Return what work on an engine's thread gives; tell it when the requester goes away meanwhile."""
        pending = self._next()
        await asyncio.wait({work, pending}, return_when=asyncio.FIRST_COMPLETED)
        if pending.done() and pending.result()["type"] != "http.request":
            self.gone.set()
        return await work

    def close(self) -> None:
        """Wait for nothing any more."""
        self.gone.set()
        if self._pending is not None:
            self._pending.cancel()

    def _next(self) -> asyncio.Future[dict[str, Any]]:
        if self._pending is None:
            self._pending = asyncio.ensure_future(self._receive())
        return self._pending

    def _opened(self) -> list[Message]:
        received, self._pending = self._next().result(), None
        if received["type"] != "http.request":
            self.gone.set()
            raise EncodingError("windows", expected="their end", got="a requester that went away")
        found = self._windows.feed(received.get("body", b""))
        if not received.get("more_body", False):
            self._windows.close()
        return found


class Stream:
    """One stream of a replica.

    Args:
        replica: with its model opened.
        door: what answers windows.
        engine: whose threads run them.
        idle_s: how long it may bring none.
    """

    def __init__(self, *, replica: Replica, door: Answers, engine: Executor, idle_s: float) -> None:
        self._replica = replica
        self._door = door
        self._engine = engine
        self._idle_s = idle_s

    async def run(self, windows: Windows, receive: Receive, send: Callable[[bytes], Awaitable[None]]) -> None:
        """Answer windows until the stream ends, and end it with a receipt; ``windows`` has begun.

        Raises:
            ConfedError: it did not end as it must; there is no receipt.
            TimeoutError: its requester does not read.
        """
        caller = Caller(receive, windows)
        loop = asyncio.get_running_loop()
        try:
            while (left_s := self._left_s(windows)) > 0:
                message = await caller.message(within_s=min(self._idle_s, left_s))
                if message is None:
                    break
                work = loop.run_in_executor(self._engine, self._answered, windows, message, caller.gone)
                await asyncio.wait_for(send(await caller.while_here(work)), self._idle_s)
            await asyncio.wait_for(send(windows.end(self._replica.receipt(windows))), self._idle_s)
        finally:
            caller.close()

    def _left_s(self, windows: Windows) -> float:
        return self._replica.epochs.left_ms(windows.epoch) / 1000

    def _answered(self, windows: Windows, message: Message, gone: threading.Event) -> bytes:
        """Take a message and return its answer, sealed; on an engine's thread."""
        request = windows.take(message)
        if request is None:
            return windows.receipt(self._replica.receipt(windows))
        head, body = whole(self._door.answer(request), gone=gone)
        return windows.answer(head, body)


def whole(answer: Answer, *, gone: threading.Event) -> tuple[AnswerHead, bytes]:
    """Return an answer once it is there, piece by piece, as long as somebody waits for it.

    Raises:
        EncodingError: nobody does any more.
        SizeError: it is larger than its bound.
    """
    body = bytearray()
    pieces = iter(answer.body)
    try:
        for piece in pieces:
            body += piece
            if gone.is_set():
                raise EncodingError("windows", expected="a requester", got="one that went away")
            if len(body) > LARGEST_ANSWER_BYTES:
                raise SizeError("answer size in bytes", expected=f"at most {LARGEST_ANSWER_BYTES}", got="more")
    finally:
        close = getattr(pieces, "close", None)
        if close is not None:
            close()
    return answer.head, bytes(body)
