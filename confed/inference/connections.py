"""Connections to replicas that are kept for the next request; and a request on its way that its caller may end.

HTTP is ``httpcore``'s. A thread that waits for an answer cannot notice that nobody wants it any more; so another one
ends the call, which shuts the connection that the waiting thread stands at, and that one alone.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, Self

import httpcore
import httpx

_NAMES = (
    "ConnectError", "ConnectTimeout", "ReadError", "ReadTimeout", "WriteError", "WriteTimeout", "PoolTimeout",
    "LocalProtocolError", "RemoteProtocolError", "UnsupportedProtocol",
)  # fmt: skip
_KINDS: dict[type[Exception], type[httpx.TransportError]] = {
    getattr(httpcore, name): getattr(httpx, name) for name in _NAMES
}


class Call:
    """What its thread sends and reads over ``Connections`` while in this context; any thread may end it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: httpcore.NetworkStream | None = None
        self._ended = False

    @property
    def ended(self) -> bool:
        """Whether somebody has ended it."""
        return self._ended

    def end(self) -> None:
        """Nobody waits any more: what waits fails at once, and nothing further is sent or read."""
        with self._lock:
            self._ended = True
            if self._held is not None:
                with suppress(OSError):  # its own method, not that of TLS, which is not for two threads
                    socket.socket.shutdown(self._held.get_extra_info("socket"), socket.SHUT_RDWR)

    def require(self) -> None:
        """Check that it goes on.

        Raises:
            httpcore.ReadError: it was ended. Not a ``WriteError``, after which httpcore would wait for an answer.
        """
        if self._ended:
            raise httpcore.ReadError("nobody waits for the answer")

    def hold(self, stream: httpcore.NetworkStream) -> None:
        """Say that its thread stands at this connection now.

        Raises:
            httpcore.ReadError: it was ended.
        """
        with self._lock:
            self.require()
            self._held = stream

    def let_go(self) -> None:
        """Say that its thread stands at no connection: it may soon be another call's."""
        with self._lock:
            self._held = None

    def __enter__(self) -> Self:
        _current.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        _current.set(None)


_current: ContextVar[Call | None] = ContextVar("call", default=None)


class Connections(httpx.BaseTransport):
    """A transport of ``httpx``: no redirects, no proxies, nothing of the environment.

    Args:
        tls: for addresses with ``https``; ``None`` where there are none.
        limits: how many connections there are, and how long one is kept.
    """

    def __init__(self, *, tls: ssl.SSLContext | None, limits: httpx.Limits) -> None:
        self._pool = httpcore.ConnectionPool(
            ssl_context=tls,
            max_connections=limits.max_connections,
            max_keepalive_connections=limits.max_keepalive_connections,
            keepalive_expiry=limits.keepalive_expiry,
            network_backend=_Backend(),
        )

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request and return its answer as it begins.

        Raises:
            httpx.TransportError: it does not.
        """
        url = request.url
        address = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        content: Any = request.stream
        outer = httpcore.Request(
            request.method, address, headers=request.headers.raw, content=content, extensions=request.extensions
        )
        with _mapped():
            found = self._pool.handle_request(outer)
        return httpx.Response(found.status, headers=found.headers, stream=_Body(found), extensions=found.extensions)

    def close(self) -> None:
        """Close all connections."""
        self._pool.close()


def tls_for(urls: Sequence[str], *, given: ssl.SSLContext | None) -> ssl.SSLContext | None:
    """Return what speaks TLS to these addresses: what is given, else the public authorities where one has ``https``."""
    if given is None and any(url.startswith("https:") for url in urls):
        return httpx.create_ssl_context(trust_env=False)
    return given


class _Body(httpx.SyncByteStream):
    def __init__(self, response: httpcore.Response) -> None:
        self._response = response

    def __iter__(self) -> Iterator[bytes]:
        with _mapped():
            yield from self._response.iter_stream()

    def close(self) -> None:
        with _mapped():
            self._response.close()


@contextmanager
def _mapped() -> Generator[None]:
    """Raise httpcore's errors as httpx's of the same names."""
    try:
        yield
    except tuple(_KINDS) as error:
        raise _KINDS[type(error)](str(error)) from error


class _Backend(httpcore.NetworkBackend):
    def __init__(self) -> None:
        self._inner = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        call = _current.get()
        if call is not None:
            call.require()
        return _Stream(self._inner.connect_tcp(host, port, timeout, local_address, socket_options))


class _Stream(httpcore.NetworkStream):
    """A connection, at which the call that uses it can be ended."""

    def __init__(self, inner: httpcore.NetworkStream) -> None:
        self._inner = inner

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        call = _current.get()
        if call is None:
            return self._inner.read(max_bytes, timeout)
        call.hold(self._inner)
        try:
            return self._inner.read(max_bytes, timeout)
        finally:
            call.let_go()

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        call = _current.get()
        if call is None:
            self._inner.write(buffer, timeout)
            return
        call.hold(self._inner)
        try:
            self._inner.write(buffer, timeout)
        finally:
            call.let_go()

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)
