"""COSE_Sign1 as attestation tokens use it: CBOR read within bounds, one signature, one algorithm that is signed itself.

CBOR is walked before it is decoded, so that what a decoder would build is bounded beforehand:

1. size, number of items and depth are within bounds, and no length points beyond the end;
2. only integers, byte and text strings, arrays, maps, true, false and null occur: no tags, floats or other values;
3. lengths and integers are written in their shortest form, strings in one piece, and containers with their length
   unless the caller allows the other form; map keys are integers or text; nothing follows the one item.

Then cbor2 decodes it, and refuses text that is not UTF-8 and keys that occur twice. A message's algorithm comes from
its protected header, which holds nothing else; the unprotected header is empty.

Source: RFC 8949 (CBOR), sections 3 and 4.2.1; RFC 9052 (COSE), sections 3 and 4.2; RFC 9053, section 2.1.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import cbor2
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from confed.attestation.certificates import verify_signature
from confed.errors import (
    AlgorithmError,
    EvidenceFormatError,
    EvidenceSignatureError,
    EvidenceSizeError,
    TrailingBytesError,
)

# RFC 9053, table 1.
ES256, ES384, ES512 = -7, -35, -36
"""ECDSA algorithms by their COSE identifiers."""

_ITEM_LIMIT = 1024
_DEPTH_LIMIT = 8
# RFC 9052, section 2: the tag of COSE_Sign1, as its one byte.
_SIGN1_TAG = b"\xd2"
# RFC 9052, table 3.
_ALGORITHM_LABEL = 1
_SIGN1_PARTS = 4
# RFC 8949, section 3.1: major types.
_UNSIGNED, _NEGATIVE, _BYTES, _TEXT, _ARRAY, _MAP, _TAG, _SIMPLE = range(8)
# RFC 8949, section 3.2: an unknown length, and the end of what has one.
_INDEFINITE, _BREAK = 31, b"\xff"
_UNKNOWN = -1
# RFC 8949, section 3.3: false, true and null.
_SIMPLE_VALUES = frozenset({20, 21, 22})


@dataclass(frozen=True, slots=True)
class _Curve:
    """What RFC 9053 fixes for an algorithm here: the hash, the curve, and the size of r and of s in bytes."""

    hash: hashes.HashAlgorithm
    curve: str
    size: int


_CURVES = {
    ES256: _Curve(hashes.SHA256(), "secp256r1", 32),
    ES384: _Curve(hashes.SHA384(), "secp384r1", 48),
    ES512: _Curve(hashes.SHA512(), "secp521r1", 66),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sign1:
    """A COSE_Sign1 message whose signature has not been checked.

    Attributes:
        algorithm: COSE identifier from the protected header.
        protected: the protected header's bytes as received.
        payload: the bytes that are signed.
        signature: r ‖ s.
    """

    algorithm: int
    protected: bytes
    payload: bytes
    signature: bytes


def decode_cbor(data: bytes, *, limit_bytes: int, what: str, indefinite: bool = False) -> Any:
    """Return the value of one CBOR item that keeps to the bounds and forms that the module names.

    Args:
        data: the item and nothing else.
        limit_bytes: most bytes.
        what: what it is, for messages.
        indefinite: allow arrays and maps without their length.

    Raises:
        EvidenceSizeError: too large, too deep, too many items.
        TrailingBytesError: bytes after the item.
        EvidenceFormatError: anything else.
    """
    if len(data) > limit_bytes:
        raise EvidenceSizeError(f"{what} size in bytes", expected=f"at most {limit_bytes}", got=len(data))
    end = _Walk(data, indefinite=indefinite, what=what).item(0, depth=0)
    if end != len(data):
        raise TrailingBytesError(what, expected=f"{end} bytes", got=len(data))
    try:
        return cbor2.loads(data, max_depth=2 * _DEPTH_LIMIT, allow_duplicate_keys=False)
    except cbor2.CBORError as error:
        raise EvidenceFormatError(what, expected="UTF-8 text and keys that differ", got="something else") from error


def load_sign1(data: bytes, *, algorithms: Collection[int], limit_bytes: int, what: str) -> Sign1:
    """Return the parts of a COSE_Sign1 message, tagged or not.

    Raises:
        AlgorithmError: no algorithm in the protected header, or none of ``algorithms``.
        EvidenceSizeError, TrailingBytesError, EvidenceFormatError: not of the one form.
    """
    value = decode_cbor(data.removeprefix(_SIGN1_TAG), limit_bytes=limit_bytes, what=what)
    if not isinstance(value, list) or len(value) != _SIGN1_PARTS:  # pyright: ignore[reportUnknownArgumentType]
        raise EvidenceFormatError(what, expected="COSE_Sign1: an array of four", got="something else")
    protected, unprotected, payload, signature = value  # pyright: ignore[reportUnknownVariableType]
    for name, part in (("protected header", protected), ("payload", payload), ("signature", signature)):
        if not isinstance(part, bytes):
            raise EvidenceFormatError(f"{what} {name}", expected="a byte string", got="another type")
    if not isinstance(unprotected, dict) or unprotected:
        raise EvidenceFormatError(f"{what} unprotected header", expected="an empty map", got="something else")
    return Sign1(
        algorithm=_algorithm(protected, algorithms, what),
        protected=protected,
        payload=payload,
        signature=signature,
    )


def verify_sign1(message: Sign1, key: PublicKeyTypes, *, what: str) -> None:
    """Check the signature with a key on the curve that belongs to the message's algorithm.

    Raises:
        AlgorithmError: a key of another kind or on another curve.
        EvidenceSignatureError: a signature that does not hold.
    """
    required = _CURVES[message.algorithm]
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != required.curve:
        raise AlgorithmError(f"{what} key", expected=required.curve, got="another curve or kind")
    size = required.size
    if len(message.signature) != 2 * size:
        raise EvidenceSignatureError(f"{what} signature", expected=f"{2 * size} bytes", got=len(message.signature))
    r, s = int.from_bytes(message.signature[:size], "big"), int.from_bytes(message.signature[size:], "big")
    # RFC 9052, section 4.4: Sig_structure, without external data.
    signed = cbor2.dumps(["Signature1", message.protected, b"", message.payload])
    verify_signature(key, encode_dss_signature(r, s), signed, algorithm=required.hash, what=what)


def _algorithm(protected: bytes, algorithms: Collection[int], what: str) -> int:
    if not protected:
        raise AlgorithmError(f"{what} algorithm", expected="one in the protected header", got="none")
    header = decode_cbor(protected, limit_bytes=_ITEM_LIMIT, what=f"{what} protected header")
    if not isinstance(header, dict):
        raise EvidenceFormatError(f"{what} protected header", expected="a map", got="another type")
    found: Any = header.pop(_ALGORITHM_LABEL, None)  # pyright: ignore[reportUnknownVariableType]
    if header:
        raise EvidenceFormatError(f"{what} protected header", expected="the algorithm alone", got="more")
    if type(found) is not int or found not in algorithms:
        raise AlgorithmError(f"{what} algorithm", expected=", ".join(map(str, algorithms)), got=repr(found)[:40])
    return found


class _Walk:
    """Walks over one item of ``data`` and checks everything that the module's list says, building nothing."""

    def __init__(self, data: bytes, *, indefinite: bool, what: str) -> None:
        self._data = data
        self._indefinite = indefinite
        self._what = what
        self._count = 0

    def item(self, position: int, *, depth: int, is_key: bool = False) -> int:
        """Return where the item at ``position`` ends."""
        self._count += 1
        # 1.
        if self._count > _ITEM_LIMIT or depth > _DEPTH_LIMIT:
            raise EvidenceSizeError(self._what, expected=f"{_ITEM_LIMIT} items, {_DEPTH_LIMIT} deep", got="more")
        major, argument, position = self._head(position)
        # 3.
        if is_key and major not in {_UNSIGNED, _NEGATIVE, _TEXT}:
            raise EvidenceFormatError(self._what, expected="integers or text as keys", got=f"major type {major}")
        if major in {_ARRAY, _MAP}:
            return self._contents(position, argument, is_map=major == _MAP, depth=depth + 1)
        return position + (self._within(position, argument) if major in {_BYTES, _TEXT} else 0)

    def _contents(self, position: int, entries: int, *, is_map: bool, depth: int) -> int:
        if entries != _UNKNOWN:
            for _ in range(self._within(position, entries)):
                position = self._entry(position, is_map=is_map, depth=depth)
            return position
        if not self._indefinite:
            raise EvidenceFormatError(self._what, expected="a container with its length", got="one without")
        while self._data[position : position + 1] != _BREAK:
            position = self._entry(position, is_map=is_map, depth=depth)
        return position + len(_BREAK)

    def _entry(self, position: int, *, is_map: bool, depth: int) -> int:
        if is_map:
            position = self.item(position, depth=depth, is_key=True)
        return self.item(position, depth=depth)

    def _within(self, position: int, length: int) -> int:
        """Return a length that does not point beyond the end; each entry of a container has a byte at least."""
        left = len(self._data) - position
        if length > left:
            raise EvidenceFormatError(self._what, expected=f"at most {left} to come", got=length)
        return length

    def _head(self, position: int) -> tuple[int, int, int]:
        """Return major type and argument of the item at ``position``, and where its content begins."""
        if position >= len(self._data):
            raise EvidenceFormatError(self._what, expected="an item", got="the end")
        major, short = self._data[position] >> 5, self._data[position] & 0x1F
        # 2.
        if major == _TAG or (major == _SIMPLE and short not in _SIMPLE_VALUES):
            raise EvidenceFormatError(self._what, expected="a plain item", got=f"major type {major}, {short}")
        position += 1
        if short < 24:
            return major, short, position
        if short == _INDEFINITE and major in {_ARRAY, _MAP}:
            return major, _UNKNOWN, position
        if short > 27:
            raise EvidenceFormatError(self._what, expected="a number", got=f"additional information {short}")
        # 3.
        size = 1 << (short - 24)
        argument = int.from_bytes(self._data[position : position + size], "big")
        if position + size > len(self._data) or argument < (24 if size == 1 else 1 << (4 * size)):
            raise EvidenceFormatError(self._what, expected="a number in its shortest form", got="another form")
        return major, argument, position + size
