"""A network that ends at a deadline: every connection, handshake, read and write gets the time that is left, at most.

Time-outs alone do not bound a fetch: a server that sends one byte at a time, in a header or a body, renews them for
ever, and a name with many addresses is tried with the full time-out for each.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable, Mapping
from socket import SOCK_STREAM, getaddrinfo
from typing import Any

import httpcore

_MOST_ADDRESSES = 4


class Deadline:
    """A moment of a monotonic clock, ``total_s`` from now."""

    def __init__(self, clock: Callable[[], float], total_s: float) -> None:
        self._clock = clock
        self._ends_at = clock() + total_s

    @property
    def left_s(self) -> float:
        """Seconds until the deadline; none or fewer when it is over."""
        return self._ends_at - self._clock()

    def within(self, timeout_s: float | None) -> float:
        """Return a time-out that does not outlast the deadline.

        Raises:
            httpcore.ReadTimeout: the deadline is over.
        """
        left = self.left_s
        if left <= 0:
            raise httpcore.ReadTimeout("deadline")
        return left if timeout_s is None else min(timeout_s, left)


class DeadlineBackend(httpcore.NetworkBackend):
    """Connects over TCP until a deadline.

    Args:
        addresses: where to connect for a host instead of what its name resolves to.
    """

    def __init__(self, deadline: Deadline, addresses: Mapping[str, tuple[str, int]]) -> None:
        self._deadline = deadline
        self._addresses = addresses
        self._inner = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        """Connect to the first address that answers.

        Raises:
            httpcore.ConnectError, httpcore.TimeoutException: none does.
        """
        name, number = self._addresses.get(host, (host, port))
        try:
            found = [str(entry[4][0]) for entry in getaddrinfo(name, number, type=SOCK_STREAM)]
        except (OSError, UnicodeError) as error:  # the latter: a label that no name can have
            raise httpcore.ConnectError("the name does not resolve") from error
        failure: httpcore.ConnectError | httpcore.ConnectTimeout = httpcore.ConnectError("no address")
        for address in dict.fromkeys(found[:_MOST_ADDRESSES]):
            try:
                stream = self._inner.connect_tcp(
                    address, number, self._deadline.within(timeout), local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
                continue
            return _DeadlineStream(stream, self._deadline)
        raise failure


class _DeadlineStream(httpcore.NetworkStream):
    """A connection whose every operation ends at the deadline."""

    def __init__(self, inner: httpcore.NetworkStream, deadline: Deadline) -> None:
        self._inner = inner
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, self._deadline.within(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, self._deadline.within(timeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        stream = self._inner.start_tls(ssl_context, server_hostname, self._deadline.within(timeout))
        return _DeadlineStream(stream, self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)
