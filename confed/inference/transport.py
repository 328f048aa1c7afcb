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

from collections.abc import Iterator
from typing import Any

from confed.inference.client import ConfidentialClient
from confed.inference.reply import Reply


def confidential_transport(client: ConfidentialClient, *, library: Any) -> Any:
    """Return a transport of ``library`` (the module ``httpx`` or ``httpx2``) over a client.

    Errors of the client are raised as they are: nothing is sent in any other way.
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
            headers = tuple((name, value) for name, value in request.headers.items())
            reply = client.request(request.method, path, body=request.read(), headers=headers)
            return library.Response(reply.head.status, headers=list(reply.head.headers), stream=_Body(reply))

    return _Transport()
