"""A transport for HTTP clients in Python: what they send goes sealed to a replica, whatever address they name.

``httpx`` and ``httpx2`` (which the ``openai`` package uses) have the same two classes; the library is an argument,
since each takes its own alone::

    openai.OpenAI(
        base_url="http://confed.invalid/v1",
        api_key="none",
        http_client=httpx2.Client(transport=confidential_transport(client, library=httpx2)),
    )
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from confed.errors import ConfedError, SizeError
from confed.inference.attempts import ELSEWHERE
from confed.inference.client import ConfidentialClient
from confed.inference.own_errors import WholeAnswer, own_error, told_error
from confed.inference.reply import Reply

_REPEATS = "x-stainless-retry-count"
"""A header of clients that repeat by themselves whatever failed (``openai``'s, and others of the same make)."""
_HAS_NOT_RUN = (*ELSEWHERE, SizeError)
_EVENTS = "text/event-stream"


def confidential_transport(client: ConfidentialClient, *, library: Any) -> Any:
    """Return a transport of ``library`` (the module ``httpx`` or ``httpx2``) over a client.

    Errors of the client are raised as they are: nothing is sent in any other way. Only who sends again by itself what
    failed (it says so in a header) gets what may have run as an answer instead, which says not to: status 502.
    """

    class _Body(library.SyncByteStream):
        def __init__(self, reply: Reply) -> None:
            self._reply = reply

        def __iter__(self) -> Iterator[bytes]:
            yield from self._reply

        def close(self) -> None:
            self._reply.close()

    class _Transport(library.BaseTransport):
        def handle_request(self, request: Any) -> Any:
            path = request.url.raw_path.decode("ascii")
            headers = tuple((name.lower(), value) for name, value in request.headers.items())

            def ask() -> Reply:
                return client.request(request.method, path, body=request.read(), headers=headers)

            found = _asked_once(path, ask) if _REPEATS in dict(headers) else ask()
            if isinstance(found, Reply):
                return library.Response(found.head.status, headers=list(found.head.headers), stream=_Body(found))
            return library.Response(found.status, headers=list(found.headers), content=found.body)

    return _Transport()


def _asked_once(path: str, ask: Callable[[], Reply]) -> Reply | WholeAnswer:
    """Return an answer for who sends again whatever raises: raise only where the request has certainly not run."""
    try:
        reply = ask()
    except _HAS_NOT_RUN:
        raise
    except ConfedError as error:
        return own_error(path, error)
    if dict(reply.head.headers).get("content-type", "").startswith(_EVENTS):
        return reply  # who reads event by event does not send again what breaks off
    try:
        with reply:
            return WholeAnswer(status=reply.head.status, headers=reply.head.headers, body=reply.read())
    except ConfedError as error:  # whatever the reason, it had begun
        return told_error(path, status=502, code=error.code, message=str(error))
