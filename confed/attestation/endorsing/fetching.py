"""HTTPS as endorsements are fetched: from hosts that were named, in bounded time, size and number.

1. the scheme is https and the host is in the list; both are settled before anything is resolved;
2. no more requests a minute than the budget has: unverified evidence decides what is asked for, not how often;
3. connection, TLS and every byte come within their own time-outs and within one deadline for the whole fetch, waits
   included; a server that drips bytes does not move it;
4. 429 and 503 are asked again after the wait that the server names, or one that doubles, while the deadline allows;
5. any other status than 200 is refused, redirects included: none is followed;
6. the answer is not encoded, and is cut off at its bound while it streams, whatever length it announced.

Built on httpcore, the transport under httpx: it follows no redirect, reads no environment (so no proxy), keeps no
cookies and decodes nothing. How long the system's resolver takes is not in our hands.
"""

from __future__ import annotations

import ssl
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Lock
from urllib.parse import urlsplit

import httpcore

from confed import __version__
from confed.attestation.endorsing.deadline import Deadline, DeadlineBackend
from confed.errors import EndorsementFetchError, MissingFileError

_AGAIN = (429, 503)
_MINUTE_S = 60.0
_FAILURES = (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a fetch may take.

    Attributes:
        connect_s, read_s: for a connection, for its TLS, and for the next bytes.
        total_s: for the fetch as a whole, attempts and waits included.
        attempts: how often it asks at most while the answer is 429 or 503.
        wait_s: before the second attempt where the server names no wait; doubles.
    """

    connect_s: float = 5.0
    read_s: float = 10.0
    total_s: float = 60.0
    attempts: int = 3
    # AMD's KDS answers a client about once in 10 s (AMD 57230, section 4, and what its users report).
    wait_s: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A 200 answer: who gave it, its body, and its headers by lower-case name."""

    host: str
    body: bytes
    headers: Mapping[str, str]


def tls_context(authorities: Path | None = None) -> ssl.SSLContext:
    """Return TLS that trusts the system's certificate authorities, or only those of a file (for a PCCS of one's own).

    Raises:
        MissingFileError: no such file, or one without certificates.
    """
    try:
        context = ssl.create_default_context(cafile=authorities)
    except OSError as error:
        raise MissingFileError(str(authorities), expected="certificates in PEM", got="none") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


@cache
def _system_tls() -> ssl.SSLContext:
    """Return what the system trusts, read once."""
    return tls_context()


class Fetcher:
    """Fetches within the bounds of the module; threads may share one.

    Args:
        hosts: the only hosts that are asked, as ``host`` or ``host:port``.
        tls: whom to trust by host; for all others what the system trusts.
        addresses: where to connect for a host instead of what its name resolves to; TLS still demands the name.
        most_per_minute: the budget of requests.
        clock, wait: monotonic seconds, and a sleep.
    """

    def __init__(
        self,
        hosts: Collection[str],
        *,
        tls: Mapping[str, ssl.SSLContext] | None = None,
        patience: Patience | None = None,
        addresses: Mapping[str, tuple[str, int]] | None = None,
        most_per_minute: int = 120,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self._hosts = frozenset(hosts)
        self._tls = dict(tls or {})
        self._patience = patience or Patience()
        self._addresses = dict(addresses or {})
        self._most_per_minute = most_per_minute
        self._clock = clock
        self._wait = wait
        self._started: deque[float] = deque()
        self._lock = Lock()

    def get(self, url: str, *, limit_bytes: int) -> Answer:
        """Return the answer to a GET.

        Raises:
            EndorsementFetchError: what the module refuses, by host and reason; never with what the server sent.
        """
        return self._fetch("GET", url, {}, b"", limit_bytes)

    def post(self, url: str, content: bytes, *, content_type: str, limit_bytes: int) -> Answer:
        """Return the answer to a POST of ``content``.

        Raises:
            EndorsementFetchError: as ``get``.
        """
        return self._fetch("POST", url, {"Content-Type": content_type}, content, limit_bytes)

    def _fetch(self, method: str, url: str, headers: Mapping[str, str], content: bytes, limit_bytes: int) -> Answer:
        # 1.
        host = self._allowed(url)
        deadline = Deadline(self._clock, self._patience.total_s)
        for attempt in range(self._patience.attempts):
            # 2.
            self._spend(host)
            # 3.
            try:
                answer = self._ask(method, url, headers, content, limit_bytes, host=host, deadline=deadline)
            except _FAILURES as error:
                raise EndorsementFetchError(host, expected="an answer", got=_reason(error)) from error
            if isinstance(answer, Answer):
                return answer
            # 4.
            self._pause(answer, attempt, host=host, deadline=deadline)
        raise EndorsementFetchError(host, expected="HTTP 200", got=f"no answer in {self._patience.attempts} attempts")

    def _ask(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        content: bytes,
        limit_bytes: int,
        *,
        host: str,
        deadline: Deadline,
    ) -> Answer | float | None:
        """Return the answer, or the seconds after which to ask again, ``None`` where the server does not say."""
        times = {"connect": self._patience.connect_s, "read": self._patience.read_s, "write": self._patience.read_s}
        sent = {"User-Agent": f"confed/{__version__}", "Accept-Encoding": "identity", "Connection": "close", **headers}
        pool = httpcore.ConnectionPool(
            ssl_context=self._tls.get(host) or _system_tls(),
            network_backend=DeadlineBackend(deadline, self._addresses),
        )
        timed = {"timeout": times}
        with pool, pool.stream(method, url, headers=list(sent.items()), content=content, extensions=timed) as response:
            received = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}
            if response.status in _AGAIN:
                wait = received.get("retry-after", "")
                return float(wait) if wait.isascii() and wait.isdigit() and len(wait) < 10 else None
            # 5.
            if response.status != 200:
                raise EndorsementFetchError(host, expected="HTTP 200", got=f"HTTP {response.status}")
            # 6.
            return Answer(host=host, body=_body(response, received, limit_bytes, host), headers=received)

    def _allowed(self, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme != "https":
            raise EndorsementFetchError(parts.netloc[:100], expected="https", got=parts.scheme[:20])
        if parts.netloc not in self._hosts:
            raise EndorsementFetchError("host", expected="one that is allowed", got=parts.netloc[:100])
        return parts.netloc

    def _spend(self, host: str) -> None:
        now = self._clock()
        with self._lock:
            while self._started and self._started[0] <= now - _MINUTE_S:
                self._started.popleft()
            if len(self._started) >= self._most_per_minute:
                raise EndorsementFetchError(host, expected=f"{self._most_per_minute} requests a minute", got="more")
            self._started.append(now)

    def _pause(self, asked_s: float | None, attempt: int, *, host: str, deadline: Deadline) -> None:
        wait_s = self._patience.wait_s * 2**attempt if asked_s is None else asked_s
        if attempt + 1 < self._patience.attempts:
            if wait_s >= deadline.left_s:
                raise EndorsementFetchError(host, expected="an answer", got=f"to ask again in {wait_s:.0f} s")
            self._wait(wait_s)


def _body(response: httpcore.Response, headers: Mapping[str, str], limit_bytes: int, host: str) -> bytes:
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise EndorsementFetchError(host, expected="an answer that is not encoded", got="an encoded one")
    length = headers.get("content-length", "0")
    body = bytearray()
    if not (length.isascii() and length.isdigit()) or len(length) > 15 or int(length) > limit_bytes:
        raise EndorsementFetchError(host, expected=f"at most {limit_bytes} bytes", got=f"{length[:20]} announced")
    for chunk in response.iter_stream():
        if len(body) + len(chunk) > limit_bytes:
            raise EndorsementFetchError(host, expected=f"at most {limit_bytes} bytes", got="more")
        body += chunk
    return bytes(body)


def _reason(error: Exception) -> str:
    """Say what failed; a protocol error's own text quotes what the server sent."""
    if isinstance(error, httpcore.TimeoutException):
        return "none in time"
    if isinstance(error, httpcore.ProtocolError):
        return "one that is not HTTP, or cut short"
    return str(error)[:120] or type(error).__name__
