"""What of a sealed request stands in clear: which replicas may open it, each with the secret wrapped to its key.

Its digest, the *transcript*, names the request: it is bound into all keys, a replica remembers it, and a receipt or a
refusal is for it alone, since nobody but the requester makes two requests under one header.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from confed import canonical, record
from confed.errors import EncodingError, SizeError
from confed.sealing.recipients import WRAPPED_KEY_BYTES

REQUEST_MAGIC = b"confed-exchange/1\n"
MOST_REPLICAS = 16
_LENGTH_BYTES = 4
_HEADER_LIMIT_BYTES = 64 * 1024
_REQUEST_ID_BYTES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Wrapped:
    """The secret for one replica: its epoch's name, and the secret wrapped to that epoch's key."""

    epoch: str
    wrapped: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangeHeader:
    """What of a request stands in clear, and is bound into all its keys.

    Raises:
        EncodingError: no replica or too many, one twice, or a part of another length.
    """

    manifest: str
    request_id: bytes
    replicas: tuple[Wrapped, ...]

    def __post_init__(self) -> None:
        epochs = {entry.epoch for entry in self.replicas}
        if not 1 <= len(epochs) == len(self.replicas) <= MOST_REPLICAS:
            raise EncodingError("exchange replicas", expected=f"1 to {MOST_REPLICAS}, each once", got="others")
        sizes = {len(entry.wrapped) for entry in self.replicas}
        if len(self.request_id) != _REQUEST_ID_BYTES or sizes != {WRAPPED_KEY_BYTES}:
            raise EncodingError("exchange header", expected="a request id and wrapped secrets", got="another length")

    @property
    def epochs(self) -> tuple[str, ...]:
        """The names of the epochs, in their order."""
        return tuple(entry.epoch for entry in self.replicas)


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedHeader:
    """A header as its bytes are, which the transcript is the digest of (32 bytes)."""

    header: ExchangeHeader
    encoded: bytes
    transcript: bytes

    @classmethod
    def of(cls, header: ExchangeHeader) -> SealedHeader:
        """Return a header, encoded."""
        return cls._of(header, canonical.encode(record.to_json(header)))

    @classmethod
    def decode(cls, encoded: bytes) -> SealedHeader:
        """Return the header of canonical JSON.

        Raises:
            EncodingError: anything else.
        """
        return cls._of(record.from_json(ExchangeHeader, canonical.decode(encoded), at="exchange"), encoded)

    @property
    def front(self) -> bytes:
        """The beginning of a sealed request: magic, length (4 bytes, big-endian), header."""
        return REQUEST_MAGIC + len(self.encoded).to_bytes(_LENGTH_BYTES, "big") + self.encoded

    def info(self, epoch: str) -> bytes:
        """Return what the wrapping of the secret to an epoch's key is bound to (32 bytes)."""
        return wrapping_info(self.header.manifest, self.header.request_id, epoch)

    @classmethod
    def _of(cls, header: ExchangeHeader, encoded: bytes) -> SealedHeader:
        transcript = hashlib.sha256(b"confed/v1/exchange-transcript\x00" + encoded).digest()
        return cls(header=header, encoded=encoded, transcript=transcript)


class HeaderReader:
    """Reads a request's header as its bytes come in."""

    def __init__(self) -> None:
        self._start = bytearray()

    def feed(self, data: bytes) -> tuple[SealedHeader, bytes] | None:
        """Return the header and the bytes after it, once it is whole.

        Raises:
            EncodingError, SizeError: no header of a sealed request.
        """
        self._start += data
        at = len(REQUEST_MAGIC)
        if not REQUEST_MAGIC.startswith(bytes(self._start[:at])):
            raise EncodingError("request", expected="a sealed request", got="something else")
        if len(self._start) < at + _LENGTH_BYTES:
            return None
        size = int.from_bytes(self._start[at : at + _LENGTH_BYTES], "big")
        if size > _HEADER_LIMIT_BYTES:
            raise SizeError("exchange header in bytes", expected=f"at most {_HEADER_LIMIT_BYTES}", got=size)
        end = at + _LENGTH_BYTES + size
        if len(self._start) < end:
            return None
        return SealedHeader.decode(bytes(self._start[at + _LENGTH_BYTES : end])), bytes(self._start[end:])


def wrapping_info(manifest: str, request_id: bytes, epoch: str) -> bytes:
    """Return what a secret's wrapping to an epoch's key is bound to (32 bytes)."""
    value = ["confed/v1/exchange", manifest, request_id.hex(), epoch]
    return bytes.fromhex(canonical.digest(canonical.encode(value)))
