"""A container's public part: the header, its canonical bytes, and the frame around them.

    file = MAGIC ‖ u32be header length ‖ header ‖ signer (32) ‖ signature (64) ‖ chunks

The header is canonical JSON. Its signature (Ed25519) is the maker's; its digest is in the key of every chunk.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from confed import canonical, record
from confed.errors import ContainerFormatError, EncodingError, SignatureError, SizeError, TruncatedError
from confed.journey import Kind
from confed.sealing.recipients import RecipientEntry

FORMAT = "confed-container/1"
MAGIC = b"CONFED\x00\x01"
MAX_HEADER_BYTES = 1024 * 1024
MAX_DECLARATION_BYTES = 64 * 1024
CHUNK_BYTES = 1024 * 1024
MIN_CHUNK_BYTES = 4 * 1024
MAX_CHUNK_BYTES = 4 * 1024 * 1024
TAG_BYTES = 16

FRAME_BYTES = len(MAGIC) + 4
"""Bytes before the header."""
SIGNER_BYTES = 32
SIGNATURE_BYTES = 64

_DOMAIN = b"confed/v1/container-header\x00"
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What anybody may read about a container; signed by its maker.

    Attributes:
        container_id: the maker's unique name for it; the data keys of starts and datasets are derived from it.
        version: a model's version (0 is the start); 0 for kinds that have none.
        parents: file digests of the containers this one was made from.
        owner: identity key (raw Ed25519) of whom it belongs to, or empty.
        manifest: digest of the run's manifest, or empty before there is a run.
        detail: what this kind of container says in public.
        declaration: what it says under the data key only (AES-256-GCM), may be empty.

    Raises:
        ContainerFormatError: a field out of its range.
    """

    FORMAT: ClassVar[str] = FORMAT

    format: str
    kind: Kind
    container_id: str
    version: int
    parents: tuple[str, ...]
    owner: bytes
    manifest: str
    chunk_bytes: int
    plaintext_bytes: int
    salt: bytes
    key_commitment: bytes
    recipients: tuple[RecipientEntry, ...]
    detail: Mapping[str, Any]
    declaration: bytes

    def __post_init__(self) -> None:
        _require("format", self.format == FORMAT, FORMAT, self.format[:60])
        named = 1 <= len(self.container_id) <= 128 and self.container_id.isprintable()
        _require("container_id", named, "1 to 128 printable characters", len(self.container_id))
        _require("version", self.version >= 0, "0 or more", self.version)
        _require("parents", all(_DIGEST.fullmatch(parent) for parent in self.parents), "digests", "something else")
        _require("owner", len(self.owner) in (0, 32), "32 bytes or none", len(self.owner))
        whole = self.manifest == "" or _DIGEST.fullmatch(self.manifest) is not None
        _require("manifest", whole, "a digest or nothing", self.manifest[:64])
        _require_chunk_bytes(self.chunk_bytes)
        _require("plaintext_bytes", self.plaintext_bytes >= 0, "0 or more", self.plaintext_bytes)
        _require("salt", len(self.salt) == 32, "32 bytes", len(self.salt))
        _require("key_commitment", len(self.key_commitment) == 32, "32 bytes", len(self.key_commitment))
        longest = MAX_DECLARATION_BYTES + TAG_BYTES
        fits = self.declaration == b"" or TAG_BYTES <= len(self.declaration) <= longest
        _require("declaration", fits, f"none or {TAG_BYTES} to {longest} bytes", len(self.declaration))

    @property
    def chunk_count(self) -> int:
        """How many chunks follow: an empty plaintext still has one, final and empty."""
        return max(1, -(-self.plaintext_bytes // self.chunk_bytes))

    @property
    def sealed_bytes(self) -> int:
        """Length of all chunks with their tags."""
        return self.plaintext_bytes + self.chunk_count * TAG_BYTES

    def chunk_span(self, index: int) -> tuple[int, int]:
        """Return where chunk ``index`` starts and ends in the plaintext.

        Raises:
            SizeError: no such chunk.
        """
        if not 0 <= index < self.chunk_count:
            raise SizeError("chunk", expected=f"0 to {self.chunk_count - 1}", got=index)
        start = index * self.chunk_bytes
        return start, min(start + self.chunk_bytes, self.plaintext_bytes)

    def encode(self) -> bytes:
        """Return the header's canonical bytes.

        Raises:
            SizeError: more than 1 MiB.
            EncodingError: a detail that JSON cannot hold.
        """
        encoded = canonical.encode(record.to_json(self))
        if len(encoded) > MAX_HEADER_BYTES:
            raise SizeError("header size in bytes", expected=f"at most {MAX_HEADER_BYTES}", got=len(encoded))
        return encoded

    @classmethod
    def decode(cls, encoded: bytes) -> Header:
        """Return the header of canonical bytes.

        Raises:
            ContainerFormatError: not canonical, or a field that is unknown, missing or out of its range.
        """
        try:
            value = canonical.decode(encoded, limit_bytes=MAX_HEADER_BYTES)
        except EncodingError as error:
            raise ContainerFormatError("header", expected="canonical JSON", got="something else") from error
        return record.from_json(cls, value, at="header", error=ContainerFormatError)


def frame(encoded: bytes, *, signing_key: Ed25519PrivateKey) -> bytes:
    """Return everything before the first chunk: the header's bytes framed and signed."""
    signer = signing_key.public_key().public_bytes_raw()
    signature = signing_key.sign(_DOMAIN + encoded)
    return b"".join((MAGIC, len(encoded).to_bytes(4, "big"), encoded, signer, signature))


def header_length(start: bytes) -> int:
    """Return the header's length from a file's first 12 bytes, bounded before anything of that size is read.

    Raises:
        TruncatedError: fewer than 12 bytes.
        ContainerFormatError: not a container.
        SizeError: a header above 1 MiB.
    """
    if start[: len(MAGIC)] != MAGIC[: len(start)] or not start:
        raise ContainerFormatError("file", expected="a sealed container", got="something else")
    if len(start) < FRAME_BYTES:
        raise TruncatedError("container size in bytes", expected=f"at least {FRAME_BYTES}", got=len(start))
    length = int.from_bytes(start[len(MAGIC) : FRAME_BYTES], "big")
    if length > MAX_HEADER_BYTES:
        raise SizeError("header size in bytes", expected=f"at most {MAX_HEADER_BYTES}", got=length)
    return length


def verify_signature(encoded: bytes, *, signer: bytes, signature: bytes) -> None:
    """Check that ``signer`` signed the header's bytes; whether it may, the caller decides.

    Raises:
        SignatureError: it did not.
    """
    try:
        Ed25519PublicKey.from_public_bytes(signer).verify(signature, _DOMAIN + encoded)
    except (InvalidSignature, ValueError) as error:
        raise SignatureError("container header", expected="a valid signature", got="another") from error


def _require_chunk_bytes(chunk_bytes: int) -> None:
    fits = MIN_CHUNK_BYTES <= chunk_bytes <= MAX_CHUNK_BYTES and chunk_bytes & (chunk_bytes - 1) == 0
    _require("chunk_bytes", fits, f"a power of two from {MIN_CHUNK_BYTES} to {MAX_CHUNK_BYTES}", chunk_bytes)


def _require(field: str, holds: bool, expected: object, got: object) -> None:  # noqa: FBT001
    if not holds:
        raise ContainerFormatError(f"header.{field}", expected=expected, got=got)
