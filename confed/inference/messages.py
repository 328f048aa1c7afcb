"""What is inside an exchange: a whole HTTP request, and an answer's status, headers and body.

Method, path, headers and body are all sealed, so the network and the host see none of them. Heads are canonical JSON
with known keys only; a body follows in pieces.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from confed import canonical, record
from confed.errors import EncodingError

HEAD_LIMIT_BYTES = 64 * 1024
TENANT_BYTES = 32
NO_TENANT = bytes(TENANT_BYTES)
_MOST_HEADERS = 64
_METHODS = ("GET", "POST")
_PATH = re.compile(r"/[!-~]{0,2047}\Z")
_NAME = re.compile(r"[a-z0-9-]{1,64}\Z")
_VALUE = re.compile(r"[\t -~]{0,8192}\Z")
_CACHE_DOMAIN = b"confed/v1/cache-salt\x00"
Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestHead:
    """Method, path and headers (names in lower case) of an inner request.

    Raises:
        EncodingError: a part that is not of its one form.
    """

    method: str
    path: str
    headers: Headers = field(repr=False)

    def __post_init__(self) -> None:
        if self.method not in _METHODS:
            raise EncodingError("request method", expected=" or ".join(_METHODS), got="another")
        if not _PATH.match(self.path):
            raise EncodingError("request path", expected="a path of printable characters", got="another")
        _require_headers(self.headers)

    def header(self, name: str) -> str:
        """Return a header's value, empty where there is none."""
        return next((value for key, value in self.headers if key == name), "")

    @property
    def encoded(self) -> bytes:
        """The head as canonical JSON."""
        return canonical.encode(record.to_json(self))

    @classmethod
    def decode(cls, data: bytes) -> RequestHead:
        """Return the head of canonical JSON.

        Raises:
            EncodingError, SizeError: anything else.
        """
        return record.from_json(cls, canonical.decode(data, limit_bytes=HEAD_LIMIT_BYTES), at="request")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """An inner request, whole.

    Attributes:
        head: method, path and headers.
        body: as it came.
        tenant: 32 bytes that the caller drew and keeps to itself; what a replica caches of a request serves only
            requests of the same tenant. ``NO_TENANT``: nothing is kept. It is in no receipt and in no proof, which are
            shown to others.
    """

    head: RequestHead
    body: bytes | bytearray = field(repr=False)
    tenant: bytes = field(default=NO_TENANT, repr=False)

    def __post_init__(self) -> None:
        if len(self.tenant) != TENANT_BYTES:
            raise EncodingError("tenant size in bytes", expected=TENANT_BYTES, got=len(self.tenant))

    @property
    def cache_salt(self) -> str | None:
        """What names the tenant to an engine and its caches (hexadecimal); the tenant itself cannot be told from it."""
        if self.tenant == NO_TENANT:
            return None
        return canonical.digest(_CACHE_DOMAIN + self.tenant)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerHead:
    """Status and headers (names in lower case) of an inner answer.

    Raises:
        EncodingError: a part that is not of its one form.
    """

    status: int
    headers: Headers = field(repr=False)

    def __post_init__(self) -> None:
        if not 200 <= self.status <= 599:
            raise EncodingError("answer status", expected="from 200 to 599", got=self.status)
        _require_headers(self.headers)

    @property
    def encoded(self) -> bytes:
        """The head as canonical JSON."""
        return canonical.encode(record.to_json(self))

    @classmethod
    def decode(cls, data: bytes) -> AnswerHead:
        """Return the head of canonical JSON.

        Raises:
            EncodingError, SizeError: anything else.
        """
        return record.from_json(cls, canonical.decode(data, limit_bytes=HEAD_LIMIT_BYTES), at="answer")


class Commitment:
    """The digest of one direction of an exchange: SHA-256 of salt ‖ length of the head (8 bytes) ‖ head ‖ body.

    The salt (32 bytes) is known to both ends alone: a receipt shows nobody else what was asked, until its holder shows
    the salt and the text.
    """

    __slots__ = ("_hash",)

    def __init__(self, salt: bytes, head: bytes) -> None:
        self._hash = hashlib.sha256(salt + len(head).to_bytes(8, "big") + head)

    def add(self, body: bytes | bytearray | memoryview) -> None:
        """Go on with a piece of the body."""
        self._hash.update(body)

    @property
    def digest(self) -> str:
        """The digest so far, in hexadecimal."""
        return self._hash.hexdigest()


def _require_headers(headers: Sequence[tuple[str, str]]) -> None:
    if len(headers) > _MOST_HEADERS:
        raise EncodingError("headers", expected=f"at most {_MOST_HEADERS}", got=len(headers))
    for name, value in headers:
        if not _NAME.match(name) or not _VALUE.match(value):
            raise EncodingError("header", expected="a lower-case name and a printable value", got="another")
