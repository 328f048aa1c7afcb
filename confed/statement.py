"""Signed statements: a typed record in canonical JSON under an Ed25519 signature.

Every statement carries its own ``type`` inside the signed bytes, so a signature over one kind of statement is
worthless as any other. The bytes received are what is hashed and verified; nothing is encoded again.
"""

from __future__ import annotations

import base64
import hashlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Protocol, TypeVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from confed import canonical, record
from confed.errors import EncodingError, SignatureError

T = TypeVar("T")

_DOMAIN = b"confed/v1/statement\x00"
_SIGNER_BYTES = 32
_SIGNATURE_BYTES = 64
_MOST_KNOWN = 262_144
_KEPT_BYTES = 4096


class Statement(Protocol):
    """A frozen dataclass that says in ``TYPE`` what it states."""

    TYPE: ClassVar[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Signed:
    """A statement's bytes, its signer and the signature over them; not yet verified.

    Attributes:
        payload: canonical JSON of the record with its ``type``.
        signer: raw Ed25519 public key, 32 bytes.
        signature: 64 bytes.
    """

    payload: bytes
    signer: bytes
    signature: bytes

    @property
    def digest(self) -> str:
        """SHA-256 of the payload in hexadecimal: the statement's name in ledgers and other statements."""
        return canonical.digest(self.payload)

    def to_json(self) -> dict[str, str]:
        """Return the statement as a JSON value (payload in base64, keys in hexadecimal)."""
        return {
            "payload": base64.b64encode(self.payload).decode(),
            "signature": self.signature.hex(),
            "signer": self.signer.hex(),
        }

    @classmethod
    def from_json(cls, value: Any) -> Signed:
        """Return the statement of a JSON value that ``to_json`` made.

        Raises:
            EncodingError: anything else.
        """
        if not isinstance(value, dict) or sorted(value) != ["payload", "signature", "signer"]:  # pyright: ignore[reportUnknownArgumentType]
            raise EncodingError("signed statement", expected="payload, signature, signer", got="other keys")
        try:
            return cls(
                payload=base64.b64decode(value["payload"], validate=True),
                signer=bytes.fromhex(value["signer"]),
                signature=bytes.fromhex(value["signature"]),
            )
        except (ValueError, TypeError) as error:
            raise EncodingError("signed statement", expected="base64 and hexadecimal", got="something else") from error


def public_bytes(key: Ed25519PrivateKey) -> bytes:
    """Return the raw public half (32 bytes) of a signing key."""
    return key.public_key().public_bytes_raw()


def sign(statement: Statement, key: Ed25519PrivateKey) -> Signed:
    """Sign a statement."""
    payload = canonical.encode({"type": statement.TYPE, **record.to_json(statement)})
    signed = Signed(payload=payload, signer=public_bytes(key), signature=key.sign(_DOMAIN + payload))
    _known.add(_known_by(signed))
    return signed


def verify(signed: Signed, kind: type[T], *, signer: bytes) -> T:
    """Return the statement, its signature checked against the one expected signer.

    Raises:
        SignatureError: another signer, or a signature that does not verify.
        EncodingError: another type of statement, or bytes that are not canonical.
    """
    if signed.signer != signer:
        raise SignatureError(f"{kind.__name__} signer", expected=signer.hex()[:16], got=signed.signer.hex()[:16])
    if not _signature_holds(signed):
        raise SignatureError(f"{kind.__name__} signature", expected="a valid signature", got="another")
    return unverified(signed, kind)


def unverified(signed: Signed, kind: type[T]) -> T:
    """Parse a statement WITHOUT checking its signature, to learn whom it claims to be from.

    Raises:
        EncodingError: another type of statement, or bytes that are not canonical.
    """
    if len(signed.payload) > _KEPT_BYTES:
        return _parsed(signed.payload, kind)
    # Of what does not change there may be one object: a ticket is parsed once, not wherever it is looked at.
    parse = _parsed_once if record.is_unchangeable(kind) else _parsed
    return parse(signed.payload, kind)  # pyright: ignore[reportReturnType]


def _parsed(payload: bytes, kind: type[T]) -> T:
    value = dict(_decoded(payload))
    expected: str = kind.TYPE  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType, reportUnknownVariableType]
    found = value.pop("type", None)
    if found != expected:
        raise EncodingError("statement type", expected=expected, got=str(found)[:60])  # pyright: ignore[reportUnknownArgumentType]
    return record.from_json(kind, value, at=kind.__name__)


@lru_cache(maxsize=4096)
def _parsed_once(payload: bytes, kind: type[object]) -> object:
    return _parsed(payload, kind)


def word_of(signed: Signed, name: str) -> str:
    """Return a word that this claims to say, its type for one, WITHOUT checking anything else of it.

    Raises:
        EncodingError: bytes that are not canonical, or that say no such word.
    """
    found = _decoded(signed.payload).get(name)
    if not isinstance(found, str):
        raise EncodingError(f"statement {name}", expected="text", got="none")
    return found


@lru_cache(maxsize=4)
def _decoded(payload: bytes) -> Mapping[str, Any]:
    """Whom a statement is for, of which kind it is and what it says are asked for one after the other."""
    value = canonical.decode(payload)
    if not isinstance(value, dict):
        raise EncodingError("statement", expected="an object", got=type(value).__name__)
    return value  # pyright: ignore[reportUnknownVariableType]


class _Known:
    """Signatures that hold, by a digest of signer, signature and payload; the older half is forgotten at once.

    Verification is a pure function of these three, so brokers that share a process check a ticket once, and nobody
    checks what this very process signed. One at a time would cost more than a signature: whoever looks for the oldest
    of a dictionary passes by all that were taken out of it before.
    """

    def __init__(self, most: int) -> None:
        self._half = max(1, most // 2)
        self._newer: set[bytes] = set()
        self._older: set[bytes] = set()
        self._lock = threading.Lock()

    def __contains__(self, name: bytes) -> bool:
        return name in self._newer or name in self._older

    def add(self, name: bytes) -> None:
        with self._lock:
            if len(self._newer) >= self._half:
                self._older, self._newer = self._newer, set()
            self._newer.add(name)


_known = _Known(_MOST_KNOWN)


def _known_by(signed: Signed) -> bytes:
    # Signer and signature have fixed sizes where a signature can hold, so nothing can move between the three.
    return hashlib.sha256(signed.signer + signed.signature + signed.payload).digest()


@lru_cache(maxsize=4096)
def _public_key(signer: bytes) -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(signer)


def _signature_holds(signed: Signed) -> bool:
    if len(signed.signer) != _SIGNER_BYTES or len(signed.signature) != _SIGNATURE_BYTES:
        return False
    name = _known_by(signed)
    if name in _known:
        return True
    try:
        _public_key(signed.signer).verify(signed.signature, _DOMAIN + signed.payload)
    except (InvalidSignature, ValueError):
        return False
    _known.add(name)
    return True
