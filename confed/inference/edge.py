"""The edge of a replica: four paths over HTTP, an ASGI application; the network sees nothing else.

- ``POST /confed/v1/evidence``: a nonce of 32 bytes; the manifest, evidence for that nonce, and the epoch's signed key.
- ``GET  /confed/v1/epoch``: the epoch's signed key alone, for who has verified this instance already.
- ``POST /confed/v1/stream``: an exchange whose windows and answers alternate (``confed.inference.windows``).
- ``POST /confed/v1/exchange``: a sealed request; a sealed answer, streamed. The status tells only whether the request
  was taken: 422 sealed to a key that is gone, 409 a replay, 413 too large, 503 too many at once or no lease, 400
  anything else. A status is nobody's word; beside the code of 422, 413 and 503 stands a refusal that the replica signed
  (``confed.inference.refusals``), once it knows which request it refuses.

What is refused is told by a stable code; nothing is logged of a request but that code.
"""

from __future__ import annotations

import asyncio
import base64
import threading
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from confed import canonical
from confed.errors import BusyError, ConfedError, EncodingError, LeaseError, ReplayedError, SizeError, StaleEpochError
from confed.inference.apis import report_failure
from confed.inference.engine import answering_for
from confed.inference.exchange import Answering
from confed.inference.messages import Request
from confed.inference.outlet import Outlet
from confed.inference.outputs import Answers, Directed
from confed.inference.refusals import reason_of, told
from confed.inference.replica import NONCE_BYTES, Replica
from confed.inference.streaming import IDLE_S, Stream
from confed.inference.windows import STREAM_PATH, Windows

EVIDENCE_PATH, EPOCH_PATH, EXCHANGE_PATH = "/confed/v1/evidence", "/confed/v1/epoch", "/confed/v1/exchange"
EXCHANGE_TYPE = "application/vnd.confed.exchange"
_AHEAD_BYTES = 1024 * 1024
"""Sealed bytes of one answer that wait for a slow reader, before its engine waits too."""

_TOGETHER_BYTES = 64 * 1024
"""Pieces that wait go out together up to this size: larger ones would only be copied once more."""

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class Edge:
    """The ASGI application of one replica.

    Args:
        replica: with its model opened.
        door: what answers opened requests.
        most_at_once: answers on their way; one more is refused, and not run.
        outlet: where outputs go that are no answers to requesters; needed where the manifest has such.
        idle_s: how long a request may stand still, a stream bring no window, and a reader read nothing.
    """

    def __init__(
        self,
        replica: Replica,
        door: Answers,
        *,
        most_at_once: int,
        outlet: Outlet | None = None,
        idle_s: float = IDLE_S,
    ) -> None:
        self._replica = replica
        self._door = Directed(door, replica=replica, outlet=outlet)
        self._free = most_at_once
        self._idle_s = idle_s
        self._engine = ThreadPoolExecutor(max_workers=most_at_once, thread_name_prefix="answer")
        self._attesting = ThreadPoolExecutor(max_workers=1, thread_name_prefix="attest")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request of HTTP."""
        if scope["type"] != "http":
            raise EncodingError("connection", expected="http", got=str(scope["type"])[:40])
        routes = {
            ("POST", EVIDENCE_PATH): self._evidence,
            ("GET", EPOCH_PATH): self._epoch,
            ("POST", EXCHANGE_PATH): self._exchange,
            ("POST", STREAM_PATH): self._stream,
        }
        route = routes.get((scope["method"], scope["path"]))
        if route is None:
            await send_json(send, 404, {"code": "not-found"})
            return
        try:
            await route(receive, send)
        except ConfedError as error:
            await send_json(send, status_of(error), {"code": error.code})
        except Exception as error:  # noqa: BLE001 (the service's edge: what is logged of it must not quote a request)
            report_failure(error)

    async def _evidence(self, receive: Receive, send: Send) -> None:
        nonce = b"".join([piece async for piece in body_of(receive, NONCE_BYTES, idle_s=self._idle_s)])
        if len(nonce) != NONCE_BYTES:
            raise EncodingError("nonce size in bytes", expected=NONCE_BYTES, got=len(nonce))
        loop = asyncio.get_running_loop()
        envelope = await loop.run_in_executor(self._attesting, self._replica.attest, nonce)
        shown = {
            "envelope": base64.b64encode(envelope).decode(),
            "epoch": self._replica.epochs.current().signed.to_json(),
            "manifest": base64.b64encode(self._replica.manifest.encoded).decode(),
        }
        await send_json(send, 200, shown)

    async def _epoch(self, receive: Receive, send: Send) -> None:
        del receive
        self._replica.lease.require()
        await send_json(send, 200, {"epoch": self._replica.epochs.current().signed.to_json()})

    async def _exchange(self, receive: Receive, send: Send) -> None:
        with self._place() as place:
            opened = await self._opened(place, body_of(receive, None, idle_s=self._idle_s), send)
            if opened is not None:
                await self._answer(*opened, receive, send)

    async def _stream(self, receive: Receive, send: Send) -> None:
        with self._place() as place:
            opened = await self._opened(place, body_of(receive, None, idle_s=self._idle_s), send, until_ended=True)
            if opened is None:
                return
            request, answering = opened
            largest = self._replica.serving.largest_request_bytes
            windows = Windows(answering, request, largest_bytes=largest)
            await send_start(send)
            if await self._windows_answered(windows, receive, send):
                await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _windows_answered(self, windows: Windows, receive: Receive, send: Send) -> bool:
        """Answer windows; return whether the stream ended with its last frame."""
        padding = self._replica.serving.padding
        stream = Stream(replica=self._replica, door=self._door, engine=self._engine, idle_s=self._idle_s)
        try:
            await send_piece(send, windows.begin(padding=padding))
            await stream.run(windows, receive, lambda data: send_piece(send, data))
        except ConfedError as error:
            report_failure(error)
            await send_piece(send, windows.refuse(error.code, padding=padding))
        except Exception as error:  # noqa: BLE001 (the service's edge: the requester sees a stream without its end)
            report_failure(error)
            return False
        return True

    async def _opened(
        self, place: Callable[[], None], pieces: AsyncIterator[bytes], send: Send, *, until_ended: bool = False
    ) -> tuple[Request, Answering] | None:
        """Return a request, taken as used; ``None`` where it was refused, and that was said.

        Args:
            place: takes a place for it.
            pieces: of its body.
            send: of the ASGI application.
            until_ended: read no further than its last frame.

        Raises:
            ConfedError: it is refused, and not by signature.
        """
        opening = self._replica.opening(admit=place)
        try:
            async for piece in pieces:
                opening.feed(piece)
                if until_ended and opening.has_ended:
                    break
            return opening.finish()
        except ConfedError as error:
            reason, signed = reason_of(error), self._replica.refusal(opening, error)
            if reason is None or signed is None:
                raise
            await send_json(send, status_of(error), told(signed, reason))
            return None

    @contextmanager
    def _place(self) -> Generator[Callable[[], None]]:
        """Give what takes one of the places for answers at once, which is free again afterwards."""
        held = 0

        def take() -> None:
            nonlocal held
            if self._free <= 0:
                raise BusyError("answers at once", expected="fewer", got="as many as there may be")
            self._free -= 1
            held += 1

        try:
            yield take
        finally:
            self._free += held

    async def _answer(self, request: Request, answering: Answering, receive: Receive, send: Send) -> None:
        pump = Pump(asyncio.get_running_loop())
        self._engine.submit(pump.run, lambda: self._sealed(request, answering))
        watch = asyncio.ensure_future(gone(receive))
        watch.add_done_callback(lambda _future: pump.stop())
        try:
            started = False
            async for data in pump.pieces():
                if not started:
                    await send_start(send)
                    started = True
                async with asyncio.timeout(self._idle_s):
                    await send_piece(send, data)
            if pump.whole:  # else the connection ends without its end, and the answer without its last frame
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except TimeoutError as error:  # whoever does not read holds no place for ever
            report_failure(error)
        finally:
            pump.stop()
            watch.cancel()

    def _sealed(self, request: Request, answering: Answering) -> Iterator[bytes]:
        """Run the engine and yield its answer, sealed; on an engine's thread.

        The head goes with the first piece, and a short answer that is there whole as one: whoever carries it is woken
        less often.
        """
        padding, begun = self._replica.serving.padding, b""
        try:
            answer = self._door.answer(request)
            begun = answering.begin(answer.head, padding=padding)
            if isinstance(answer.body, tuple) and sum(map(len, answer.body)) <= _TOGETHER_BYTES:
                frames = [frame for piece in answer.body for frame in answering.body(piece)]
                begun = b"".join((begun, *frames))
            else:
                for piece in answer.body:
                    for frame in answering.body(piece):
                        yield begun + frame
                        begun = b""
            yield begun + answering.end(self._replica.receipt(answering, delivered=answer.delivered))
        except ConfedError as error:
            report_failure(error)
            yield begun + answering.refuse(error.code, padding=padding)
        except Exception:
            if begun:  # its requester sees an answer that was begun, without its end
                yield begun
            raise


class Pump:
    """Carries bytes from an engine's thread to the event loop: as many as are there at once, and never too many."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: deque[bytes] = deque()
        self._size = 0
        self._changed = threading.Condition()
        self._woken = asyncio.Event()
        self._ended = False
        self._stopped = False
        self.whole = False
        """Whether everything has been carried."""

    def run(self, source: Callable[[], Iterator[bytes]]) -> None:
        """Put everything that a source yields, until it ends or nobody reads any more; on the engine's thread."""
        pieces = source()
        try:
            with answering_for(lambda: self._stopped):
                for piece in pieces:
                    if not self._put(piece):
                        return
            self.whole = True
        except Exception as error:  # noqa: BLE001 (the service's edge: the requester sees an answer without its end)
            report_failure(error)
        finally:
            close = getattr(pieces, "close", None)
            if close is not None:
                close()
            self._ended = True
            self._wake()

    def stop(self) -> None:
        """Nobody reads any more."""
        with self._changed:
            self._stopped = True
            self._changed.notify()

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield what has been put, several pieces as one where they wait."""
        while True:
            await self._woken.wait()
            self._woken.clear()
            with self._changed:
                waiting = tuple(self._waiting)
                self._waiting.clear()
                self._size = 0
                self._changed.notify()
                ended = self._ended
            for data in _together(waiting):
                yield data
            if ended and not self._waiting:
                return

    def _put(self, piece: bytes) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._size < _AHEAD_BYTES)
            if self._stopped:
                return False
            first = not self._waiting
            self._waiting.append(piece)
            self._size += len(piece)
        if first:
            self._wake()
        return True

    def _wake(self) -> None:
        self._loop.call_soon_threadsafe(self._woken.set)


def _together(pieces: Sequence[bytes]) -> Iterator[bytes]:
    """Yield pieces, small ones joined."""
    begun: list[bytes] = []
    size = 0
    for piece in pieces:
        if begun and size + len(piece) > _TOGETHER_BYTES:
            yield b"".join(begun)
            begun, size = [], 0
        begun.append(piece)
        size += len(piece)
    if begun:
        yield b"".join(begun)


def status_of(error: ConfedError) -> int:
    """Return the status of HTTP for an error, beside whose code it goes."""
    statuses = {StaleEpochError: 422, ReplayedError: 409, BusyError: 503, LeaseError: 503, SizeError: 413}
    return next((status for kind, status in statuses.items() if isinstance(error, kind)), 400)


async def send_start(send: Send) -> None:
    """Begin a sealed answer."""
    headers = [(b"content-type", EXCHANGE_TYPE.encode()), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})


async def send_piece(send: Send, data: bytes) -> None:
    """Send a piece of an answer that goes on."""
    await send({"type": "http.response.body", "body": data, "more_body": True})


async def send_json(send: Send, status: int, value: Any) -> None:
    """Send a whole answer of canonical JSON."""
    body = canonical.encode(value)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def body_of(receive: Receive, limit_bytes: int | None, *, idle_s: float | None) -> AsyncIterator[bytes]:
    """Yield the body of a request in pieces.

    Args:
        receive: of the ASGI application.
        limit_bytes: of all pieces; ``None``: whoever reads bounds them.
        idle_s: how long a piece may take to come; ``None``: as long as its caller is there.

    Raises:
        SizeError: it is larger than its bound.
        EncodingError: its caller went away, or sends nothing.
    """
    size = 0
    while True:
        try:
            async with asyncio.timeout(idle_s):
                message = await receive()
        except TimeoutError as error:
            raise EncodingError("request", expected="its end", got="nothing in time") from error
        if message["type"] != "http.request":
            raise EncodingError("request", expected="its end", got="a caller that went away")
        piece = message.get("body", b"")
        size += len(piece)
        if limit_bytes is not None and size > limit_bytes:
            raise SizeError("request size in bytes", expected=f"at most {limit_bytes}", got="more")
        yield piece
        if not message.get("more_body", False):
            return


async def gone(receive: Receive) -> None:
    """Return when the caller has gone away."""
    while (await receive())["type"] != "http.disconnect":
        pass
