"""A proxy on the requester's machine: plain HTTP in on loopback, sealed exchanges out; an ASGI application.

So any client of the interfaces (curl, an OpenAI client) talks to an attested TEE, and nobody past this machine reads a
word. What cannot be sent sealed is not sent: an error of the client is status 502 with its stable code. What may have
run is not sent again, and clients are told not to: "busy" they hear only where a replica has signed it. A page in a
browser is refused: who sends an ``Origin`` did not mean to use this.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from confed.errors import ConfedError, EncodingError, RefusedError
from confed.inference.client import ConfidentialClient
from confed.inference.connections import Call
from confed.inference.edge import Pump, Receive, Scope, Send, body_of, gone
from confed.inference.own_errors import WholeAnswer, own_error, told_error
from confed.inference.reply import Reply
from confed.inference.requester import Proof

_LOCAL = ("127.0.0.1", "localhost")


class Proxy:
    """The ASGI application.

    Args:
        client: which replicas, and whom of them to believe.
        keep: is given each answer's proof, once the answer has ended.
        largest_bytes: of a request's body.
        most_at_once: requests on their way.
    """

    def __init__(
        self,
        client: ConfidentialClient,
        *,
        keep: Callable[[Proof], None] = lambda _proof: None,
        largest_bytes: int = 1024**3,
        most_at_once: int = 128,
    ) -> None:
        self._client = client
        self._keep = keep
        self._largest = largest_bytes
        self._workers = ThreadPoolExecutor(max_workers=most_at_once, thread_name_prefix="proxy")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request of HTTP."""
        if scope["type"] != "http":
            raise EncodingError("connection", expected="http", got=str(scope["type"])[:40])
        headers = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"])
        told = dict(headers)
        path = "?".join(part.decode("latin-1") for part in (scope["raw_path"], scope["query_string"]) if part)
        if told.get("host", "").rpartition(":")[0] not in _LOCAL or "origin" in told:
            message = "this proxy is for programs on this machine"
            await _send_error(send, told_error(path, status=403, code="forbidden", message=message))
            return
        loop = asyncio.get_running_loop()
        try:
            body = b"".join([piece async for piece in body_of(receive, self._largest, idle_s=None)])
        except ConfedError as error:
            await _send_error(send, own_error(path, error))
            return

        def asked(call: Call) -> Reply:
            with call:
                return self._client.request(scope["method"], path, body=body, headers=headers)

        call = Call()
        watch = asyncio.ensure_future(gone(receive))
        watch.add_done_callback(lambda _future: call.end())  # who goes away ends the request too, begun or not
        try:
            try:
                reply = await loop.run_in_executor(self._workers, asked, call)
            except ConfedError as error:
                await _send_error(send, own_error(path, error))
                return
            await self._carry(reply, call, watch, send)
        finally:
            watch.cancel()

    async def _carry(self, reply: Reply, call: Call, watch: asyncio.Future[None], send: Send) -> None:
        pump = Pump(asyncio.get_running_loop())
        self._workers.submit(pump.run, lambda: self._pieces(reply, call))
        watch.add_done_callback(lambda _future: pump.stop())
        # Without a length the answer ends with its last chunk, which goes once the receipt holds: else it is cut off.
        headers = [(name.encode(), value.encode()) for name, value in reply.head.headers if name != "content-length"]
        try:
            await send({"type": "http.response.start", "status": reply.head.status, "headers": headers})
            async for data in pump.pieces():
                await send({"type": "http.response.body", "body": data, "more_body": True})
            if pump.whole:  # else the connection ends without its end: what came is not the whole answer
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            pump.stop()

    def _pieces(self, reply: Reply, call: Call) -> Iterator[bytes]:
        with call, reply:
            try:
                yield from reply
            except RefusedError:
                if not call.ended:  # else it was cut off here, for nobody waits
                    raise
            if reply.proof is not None:
                self._keep(reply.proof)


async def _send_error(send: Send, error: WholeAnswer) -> None:
    headers = [(name.encode(), value.encode()) for name, value in error.headers]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": error.body})
