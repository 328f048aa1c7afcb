"""Keys of Arm CCA: the Realm's, which its token carries, and the platform's, which somebody has to vouch for.

A platform's attestation key (CPAK) has no certificate and no vendor's root: whoever relies on it has it from the
manufacturer and gives it as an endorsement, in one of these forms:

- a JSON Web Key;
- a list of ``{"pkey": JSON Web Key, "implementation-id": hex, "instance-id": hex}``, each for that platform alone;
- a public key as PEM or DER (SubjectPublicKeyInfo).

Source: RFC 7518, section 6.2 (JSON Web Keys of elliptic curves); RFC 9053, section 7.1 (COSE_Key); Arm DEN0137,
section A7.2.3.1.7; draft-ffm-rats-cca-token.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from confed.attestation.tee.arm_cca_token import CcaRealmClaims
from confed.attestation.tee.cose import ES256, ES384, ES512, decode_cbor
from confed.errors import AlgorithmError, EndorsementFormatError, EvidenceFormatError

ENDORSEMENT_LIMIT_BYTES = 64 * 1024
"""Largest file of platform keys."""

_KEY_LIMIT = 64
_COSE_KEY_LIMIT_BYTES = 512
_PEM_BEGIN = b"-----BEGIN PUBLIC KEY-----"
_DER_SEQUENCE = b"\x30"
# RFC 9052, table 4, and RFC 9053, section 7.1.1: kty, alg, crv, x, y; EC2.
_KTY, _ALG, _CRV, _X, _Y, _EC2 = 1, 3, -1, -2, -3, 2
# RFC 9053, table 18: curves by their COSE identifiers, with the algorithm that belongs to each (section 2.1).
_COSE_CURVES: Mapping[int, tuple[ec.EllipticCurve, int]] = {
    1: (ec.SECP256R1(), ES256),
    2: (ec.SECP384R1(), ES384),
    3: (ec.SECP521R1(), ES512),
}
# RFC 7518, section 6.2.1.1: curves by their JOSE names.
_JOSE_CURVES: Mapping[str, ec.EllipticCurve] = {
    "P-256": ec.SECP256R1(),
    "P-384": ec.SECP384R1(),
    "P-521": ec.SECP521R1(),
}
_ENTRY = frozenset({"pkey", "implementation-id", "instance-id"})
_JWK_DEMANDED, _JWK_OPTIONAL = frozenset({"kty", "crv", "x", "y"}), frozenset({"kid", "alg", "use", "key_ops"})


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformKey:
    """A platform's attestation key; the identifiers are ``None`` where it was given for no platform in particular."""

    key: ec.EllipticCurvePublicKey
    implementation_id: bytes | None = None
    instance_id: bytes | None = None


def realm_key(claims: CcaRealmClaims) -> ec.EllipticCurvePublicKey:
    """Return the key that a Realm token carries (RAK): a COSE_Key, or a bare point where the token has no profile.

    Raises:
        EvidenceFormatError, EvidenceSizeError, TrailingBytesError: not exactly one point of its curve.
        AlgorithmError: a key for another algorithm than its curve's.
    """
    if not claims.profile:
        # Before 1.0: an uncompressed point of P-384 (SEC 1, section 2.3.3).
        return _point(claims.public_key, ec.SECP384R1())
    value = decode_cbor(claims.public_key, limit_bytes=_COSE_KEY_LIMIT_BYTES, what="CCA RAK")
    if not isinstance(value, dict) or value.keys() - {_ALG} != {_KTY, _CRV, _X, _Y}:  # pyright: ignore[reportUnknownMemberType]
        raise EvidenceFormatError("CCA RAK", expected="a COSE_Key of type, curve, x and y", got="something else")
    fields: dict[int, Any] = value  # pyright: ignore[reportUnknownVariableType]
    if any(type(fields.get(label, 0)) is not int for label in (_KTY, _ALG, _CRV)):
        raise EvidenceFormatError("CCA RAK", expected="type, curve and algorithm by number", got="something else")
    if fields[_KTY] != _EC2 or fields[_CRV] not in _COSE_CURVES:
        raise EvidenceFormatError("CCA RAK", expected="P-256, P-384 or P-521", got="another kind of key")
    curve, algorithm = _COSE_CURVES[fields[_CRV]]
    if fields.get(_ALG, algorithm) != algorithm:
        raise AlgorithmError("CCA RAK algorithm", expected=f"{algorithm}, of its curve", got=fields[_ALG])
    size = (curve.key_size + 7) // 8
    for label in (_X, _Y):
        if not isinstance(fields[label], bytes) or len(fields[label]) != size:
            raise EvidenceFormatError("CCA RAK", expected=f"coordinates of {size} bytes", got="something else")
    return _point(b"\x04" + fields[_X] + fields[_Y], curve)


def load_platform_keys(data: bytes) -> tuple[PlatformKey, ...]:
    """Return the platform keys of an endorsement, in any of the forms that the module names.

    Raises:
        EndorsementFormatError: anything else, a private key included.
    """
    if len(data) > ENDORSEMENT_LIMIT_BYTES:
        raise EndorsementFormatError("platform key", expected=f"at most {ENDORSEMENT_LIMIT_BYTES} bytes", got=len(data))
    if data.startswith(_DER_SEQUENCE) or data.lstrip().startswith(_PEM_BEGIN):
        return (PlatformKey(key=_from_spki(data)),)
    value = _from_json(data)
    if isinstance(value, dict):
        return (PlatformKey(key=_from_jwk(value)),)
    if not isinstance(value, list) or not 1 <= len(value) <= _KEY_LIMIT:
        raise EndorsementFormatError("platform keys", expected=f"a key, or a list of 1 to {_KEY_LIMIT}", got="neither")
    items: list[Any] = value
    return tuple(_from_entry(item) for item in items)


def _from_entry(value: Any) -> PlatformKey:
    if not isinstance(value, dict) or value.keys() != _ENTRY:  # pyright: ignore[reportUnknownMemberType]
        raise EndorsementFormatError("platform key", expected=", ".join(sorted(_ENTRY)), got="other fields")
    entry: dict[str, Any] = value  # pyright: ignore[reportUnknownVariableType]
    return PlatformKey(
        key=_from_jwk(entry["pkey"]),
        implementation_id=_from_hex(entry["implementation-id"], 32),
        instance_id=_from_hex(entry["instance-id"], 33),
    )


def _from_jwk(value: Any) -> ec.EllipticCurvePublicKey:
    if not isinstance(value, dict) or not _JWK_DEMANDED <= value.keys() <= _JWK_DEMANDED | _JWK_OPTIONAL:  # pyright: ignore[reportUnknownMemberType]
        raise EndorsementFormatError("JSON Web Key", expected="a public key's fields", got="others")
    fields: dict[str, Any] = value  # pyright: ignore[reportUnknownVariableType]
    curve = _JOSE_CURVES.get(fields["crv"]) if isinstance(fields["crv"], str) else None
    if fields["kty"] != "EC" or curve is None:
        raise EndorsementFormatError("JSON Web Key", expected="P-256, P-384 or P-521", got="another kind of key")
    size = (curve.key_size + 7) // 8
    try:
        return _point(b"\x04" + _coordinate(fields["x"], size) + _coordinate(fields["y"], size), curve)
    except EvidenceFormatError as error:
        raise EndorsementFormatError("JSON Web Key", expected="a point of its curve", got="another") from error


def _coordinate(value: Any, size: int) -> bytes:
    try:
        decoded = base64.b64decode(value.encode("ascii") + b"=" * (-len(value) % 4), altchars=b"-_", validate=True)
    except (AttributeError, ValueError) as error:
        raise EndorsementFormatError("JSON Web Key", expected="coordinates in base64url", got="others") from error
    if len(decoded) != size:
        raise EndorsementFormatError("JSON Web Key", expected=f"coordinates of {size} bytes", got=len(decoded))
    return decoded


def _from_spki(data: bytes) -> ec.EllipticCurvePublicKey:
    pem = not data.startswith(_DER_SEQUENCE)
    try:
        key = serialization.load_pem_public_key(data) if pem else serialization.load_der_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise EndorsementFormatError("platform key", expected="a public key", got="something else") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise EndorsementFormatError("platform key", expected="an elliptic curve's", got="another kind")
    return key


def _from_json(data: bytes) -> Any:
    try:
        return json.loads(data, object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise EndorsementFormatError("platform key", expected="JSON, PEM or DER", got="something else") from error


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a key twice")
    return fields


def _from_hex(value: Any, size: int) -> bytes:
    try:
        decoded = bytes.fromhex(value)
    except (TypeError, ValueError) as error:
        raise EndorsementFormatError("platform key", expected="identifiers in hexadecimal", got="others") from error
    if len(decoded) != size:
        raise EndorsementFormatError("platform key", expected=f"an identifier of {size} bytes", got=len(decoded))
    return decoded


def _point(encoded: bytes, curve: ec.EllipticCurve) -> ec.EllipticCurvePublicKey:
    if not encoded.startswith(b"\x04"):
        raise EvidenceFormatError("public key", expected="an uncompressed point", got="another form")
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(curve, encoded)
    except ValueError as error:
        raise EvidenceFormatError("public key", expected=f"a point of {curve.name}", got="another") from error
