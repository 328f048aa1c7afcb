"""One request of HTTP/1.1 whose answer is read while it is still being sent: what a stream travels over.

HTTP clients send a request whole before they read its answer. This one sends a body chunk by chunk and reads in
between; HTTP itself is ``h11``'s. A proxy on the way must not hold a request's body back until it has ended.
"""

from __future__ import annotations

import socket
import ssl
from contextlib import suppress
from typing import Any

import h11
import httpx

from confed.errors import ConfigError

_CONNECT_S = 10.0
_AT_ONCE_BYTES = 65536
BROKEN = (OSError, h11.ProtocolError)
"""What is raised where the connection or the HTTP on it does not hold."""


class Duplex:
    """A connection with one request on it. Not for several threads at once.

    Args:
        url: scheme, host and port.
        path: what is asked for.
        content_type: of the body.
        wait_s: how long one read or write may take.
        tls: for an address with ``https``.

    Raises:
        ConfigError: no address, or one with ``https`` and nothing for it.
        OSError: nobody there.
    """

    def __init__(self, url: str, path: str, *, content_type: str, wait_s: float, tls: ssl.SSLContext | None) -> None:
        parsed = httpx.URL(url)
        if parsed.scheme not in ("http", "https" if tls else "") or not parsed.host:
            raise ConfigError("url", expected="http://HOST:PORT or https://HOST:PORT", got=url)
        port = parsed.port or {"http": 80, "https": 443}[parsed.scheme]
        connected = socket.create_connection((parsed.host, port), timeout=_CONNECT_S)
        # A window is small, and waited for: it must not wait for the one before it to be acknowledged.
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls is not None and parsed.scheme == "https":
            connected = tls.wrap_socket(connected, server_hostname=parsed.host)
        connected.settimeout(wait_s)
        self._wait_s = wait_s
        self._socket = connected
        self._http = h11.Connection(h11.CLIENT)
        self._ahead: Any = None
        host = parsed.netloc.decode("ascii")
        headers = [("host", host), ("content-type", content_type), ("transfer-encoding", "chunked")]
        try:
            self._write(h11.Request(method="POST", target=path, headers=headers))
        except BROKEN:
            self.close()
            raise

    def send(self, data: bytes) -> None:
        """Send a piece of the body.

        Raises:
            OSError, h11.ProtocolError: the connection does not hold.
        """
        self._write(h11.Data(data=data))

    def end(self) -> None:
        """End the body.

        Raises:
            OSError, h11.ProtocolError: the connection does not hold.
        """
        self._write(h11.EndOfMessage())

    def status(self) -> int:
        """Wait for the answer to begin, and return its status.

        Raises:
            OSError, h11.ProtocolError: the connection does not hold.
        """
        while True:
            event = self._event()
            if isinstance(event, h11.Response):
                return event.status_code
            if not isinstance(event, h11.InformationalResponse):
                raise h11.RemoteProtocolError("an answer without a beginning")

    def read(self) -> bytes:
        """Wait for the next piece of the answer, and return it; empty once it has ended.

        Raises:
            OSError, h11.ProtocolError: the connection does not hold, or ended before the answer.
        """
        while True:
            event = self._event()
            if isinstance(event, h11.Data):
                return bytes(event.data)
            if isinstance(event, h11.EndOfMessage):
                return b""
            raise h11.RemoteProtocolError("an answer that goes on after its end")

    @property
    def is_readable(self) -> bool:
        """Whether something has come that was not asked for: the other side has ended, or is gone."""
        # An end of a chunk, or a message of TLS itself (new keys, a question who this is), is nothing of the other
        # side's: whether there is more only reading tells.
        self._socket.settimeout(0)
        try:
            self._ahead = self._event()
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        except BROKEN:
            return True  # who reads is told
        finally:
            self._socket.settimeout(self._wait_s)
        return True

    def close(self) -> None:
        """Close the connection."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _event(self) -> Any:
        if self._ahead is not None:
            event, self._ahead = self._ahead, None
            return event
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(self._socket.recv(_AT_ONCE_BYTES))
        return event

    def _write(self, event: Any) -> None:
        data = self._http.send(event)
        if data:
            self._socket.sendall(data)
