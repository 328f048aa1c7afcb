"""The claims of an Arm CCA token's two halves, each as its one allowed form; nothing is verified here.

Claims that are not known are refused: a token that says more is of a later profile, whose meaning is not known either.

Source: Arm DEN0137 (Realm Management Monitor specification) 1.0, sections A7.2.3.1 (Realm claims) and A7.2.3.2 (CCA
platform claims); draft-ffm-rats-cca-token.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from confed.attestation.tee.cose import decode_cbor
from confed.errors import (
    AlgorithmError,
    EvidenceFormatError,
    EvidenceSizeError,
    EvidenceVersionError,
    MissingClaimError,
)

PAYLOAD_LIMIT_BYTES = 32 * 1024
"""Largest set of claims; Arm gives no bound."""

CHALLENGE_BYTES = 64
"""Size of the Realm's challenge and of its personalization value."""

# A7.2.3.2.1 and A7.2.3.1.2. The first one of the platform's is that of implementations before 1.0; before it, a Realm
# token named no profile, and its key was a bare point instead of a COSE_Key.
_PLATFORM_PROFILES = ("http://arm.com/CCA-SSD/1.0.0", "tag:arm.com,2023:cca_platform#1.0.0")
_REALM_PROFILES = ("tag:arm.com,2023:realm#1.0.0",)
# IANA, hash function textual names: those that are SHA-256 or better, and their names here.
HASHES = {"sha-256": "sha256", "sha-384": "sha384", "sha-512": "sha512"}
"""Hash algorithms by the name that a token gives them."""

_HASH_SIZES = (32, 48, 64)
_CONFIG_LIMIT_BYTES = 1024
_TEXT_LIMIT = 512
_COMPONENT_LIMIT = 64
_KEY_LIMIT_BYTES = 512
_REGISTERS = 4
_LIFECYCLE_LIMIT = 0xFFFF
# EAT (RFC 9711), 4.2.1: the type of a random UEID.
_INSTANCE_TYPE = b"\x01"
_PROFILE, _CHALLENGE = 265, 10
_PLATFORM_DEMANDED = {
    _PROFILE: "profile",
    _CHALLENGE: "challenge",
    2396: "implementation id",
    256: "instance id",
    2401: "config",
    2395: "lifecycle",
    2399: "software components",
    2402: "hash algorithm",
}
_PLATFORM_OPTIONAL = {2400: "verification service"}
_REALM_DEMANDED = {
    _CHALLENGE: "challenge",
    44235: "personalization value",
    44236: "hash algorithm",
    44237: "public key",
    44238: "initial measurement",
    44239: "extensible measurements",
    44240: "public key hash algorithm",
}
_REALM_OPTIONAL = {_PROFILE: "profile"}
_COMPONENT_DEMANDED = {2: "measurement", 5: "signer id"}
_COMPONENT_OPTIONAL = {1: "type", 4: "version", 6: "hash algorithm"}


@dataclass(frozen=True, slots=True, kw_only=True)
class CcaSoftwareComponent:
    """Firmware that can affect the platform; ``kind``, ``version`` and ``hash_algorithm`` are empty where not given."""

    kind: str
    measurement: bytes
    version: str
    signer: bytes
    hash_algorithm: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CcaPlatformClaims:
    """What a platform token says.

    Attributes:
        profile: of the claims' format.
        challenge: hash of the Realm's attestation key.
        implementation_id: 32 bytes that name the implementation.
        instance_id: 33 bytes that name the platform's attestation key.
        config: implementation options, as the manufacturer defines them.
        lifecycle: state in the upper byte, implementation-defined in the lower.
        software: firmware in the token's order.
        verification_service: a hint; empty where not given.
        hash_algorithm: of the software's measurements.
    """

    profile: str
    challenge: bytes
    implementation_id: bytes
    instance_id: bytes
    config: bytes
    lifecycle: int
    software: tuple[CcaSoftwareComponent, ...]
    verification_service: str
    hash_algorithm: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CcaRealmClaims:
    """What a Realm token says.

    Attributes:
        profile: of the claims' format; empty where not given.
        challenge: 64 bytes of the caller's.
        personalization_value: 64 bytes that the host gave at the Realm's creation; no part of RIM.
        initial_measurement: RIM.
        extensible_measurements: REM 0 to 3.
        hash_algorithm: of the measurements.
        public_key: RAK as the token carries it: a COSE_Key, or a bare point in tokens without profile.
        public_key_hash_algorithm: with which the platform's challenge is made from ``public_key``.
    """

    profile: str
    challenge: bytes
    personalization_value: bytes
    initial_measurement: bytes
    extensible_measurements: tuple[bytes, ...]
    hash_algorithm: str
    public_key: bytes
    public_key_hash_algorithm: str


def parse_platform(payload: bytes) -> CcaPlatformClaims:
    """Return the claims of a platform token's payload.

    Raises:
        EvidenceFormatError, EvidenceSizeError, EvidenceVersionError, MissingClaimError: not of the one form.
        AlgorithmError: a hash that is not SHA-256 or better.
    """
    claims = _claims(payload, _PLATFORM_DEMANDED, _PLATFORM_OPTIONAL, "platform token")
    profile = _profile(claims[_PROFILE], _PLATFORM_PROFILES, "platform profile")
    instance_id = _bytes(claims[256], (33,), "instance id")
    if not instance_id.startswith(_INSTANCE_TYPE):
        raise EvidenceFormatError("CCA instance id", expected="type 1", got=f"type {instance_id[0]}")
    config, lifecycle = claims[2401], claims[2395]
    if not isinstance(config, bytes) or len(config) > _CONFIG_LIMIT_BYTES:
        raise EvidenceFormatError("CCA config", expected=f"at most {_CONFIG_LIMIT_BYTES} bytes", got="something else")
    if type(lifecycle) is not int or not 0 <= lifecycle <= _LIFECYCLE_LIMIT:
        raise EvidenceFormatError("CCA lifecycle", expected="16 bits", got=repr(lifecycle)[:40])
    return CcaPlatformClaims(
        profile=profile,
        challenge=_bytes(claims[_CHALLENGE], _HASH_SIZES, "platform challenge"),
        implementation_id=_bytes(claims[2396], (32,), "implementation id"),
        instance_id=instance_id,
        config=config,
        lifecycle=lifecycle,
        software=_software(claims[2399]),
        verification_service=_text(claims, 2400, "verification service"),
        hash_algorithm=_hash_name(claims[2402], "platform hash algorithm"),
    )


def parse_realm(payload: bytes) -> CcaRealmClaims:
    """Return the claims of a Realm token's payload.

    Raises:
        EvidenceFormatError, EvidenceSizeError, EvidenceVersionError, MissingClaimError: not of the one form.
        AlgorithmError: a hash that is not SHA-256 or better.
    """
    claims = _claims(payload, _REALM_DEMANDED, _REALM_OPTIONAL, "Realm token")
    profile = _profile(claims[_PROFILE], _REALM_PROFILES, "Realm profile") if _PROFILE in claims else ""
    initial = _bytes(claims[44238], _HASH_SIZES, "RIM")
    registers, public_key = claims[44239], claims[44237]
    if not isinstance(registers, list) or len(registers) != _REGISTERS:
        raise EvidenceFormatError("CCA REMs", expected=f"{_REGISTERS} measurements", got="something else")
    if not isinstance(public_key, bytes) or not 1 <= len(public_key) <= _KEY_LIMIT_BYTES:
        raise EvidenceFormatError("CCA RAK", expected=f"1 to {_KEY_LIMIT_BYTES} bytes", got="something else")
    return CcaRealmClaims(
        profile=profile,
        challenge=_bytes(claims[_CHALLENGE], (CHALLENGE_BYTES,), "Realm challenge"),
        personalization_value=_bytes(claims[44235], (CHALLENGE_BYTES,), "personalization value"),
        initial_measurement=initial,
        extensible_measurements=tuple(_bytes(register, (len(initial),), "REM") for register in registers),
        hash_algorithm=_hash_name(claims[44236], "Realm hash algorithm"),
        public_key=public_key,
        public_key_hash_algorithm=_hash_name(claims[44240], "RAK hash algorithm"),
    )


def _claims(payload: bytes, demanded: Mapping[int, str], optional: Mapping[int, str], what: str) -> dict[int, Any]:
    value = decode_cbor(payload, limit_bytes=PAYLOAD_LIMIT_BYTES, what=f"CCA {what}")
    return _map(value, demanded, optional, what)


def _map(value: Any, demanded: Mapping[int, str], optional: Mapping[int, str], what: str) -> dict[int, Any]:
    if not isinstance(value, dict):
        raise EvidenceFormatError(f"CCA {what}", expected="a map", got="another type")
    claims: dict[Any, Any] = value  # pyright: ignore[reportUnknownVariableType]
    for label, name in demanded.items():
        if label not in claims:
            raise MissingClaimError(f"CCA {what} {name}", expected="a value", got="nothing")
    unknown = claims.keys() - demanded.keys() - optional.keys()
    if unknown:
        raise EvidenceFormatError(f"CCA {what}", expected="known claims", got=repr(next(iter(unknown)))[:40])
    return claims


def _software(value: Any) -> tuple[CcaSoftwareComponent, ...]:
    if not isinstance(value, list) or not value:
        raise EvidenceFormatError("CCA software components", expected="at least one", got="none")
    items: list[Any] = value  # pyright: ignore[reportUnknownVariableType]
    if len(items) > _COMPONENT_LIMIT:
        raise EvidenceSizeError("CCA software components", expected=f"at most {_COMPONENT_LIMIT}", got=len(items))
    return tuple(_component(item) for item in items)


def _component(value: Any) -> CcaSoftwareComponent:
    fields = _map(value, _COMPONENT_DEMANDED, _COMPONENT_OPTIONAL, "software component")
    return CcaSoftwareComponent(
        kind=_text(fields, 1, "component type"),
        measurement=_bytes(fields[2], _HASH_SIZES, "component measurement"),
        version=_text(fields, 4, "component version"),
        signer=_bytes(fields[5], _HASH_SIZES, "component signer"),
        hash_algorithm=_hash_name(fields[6], "component hash algorithm") if 6 in fields else "",
    )


def _profile(value: Any, known: Collection[str], what: str) -> str:
    if not isinstance(value, str):
        raise EvidenceFormatError(f"CCA {what}", expected="text", got="another type")
    if value not in known:
        raise EvidenceVersionError(f"CCA {what}", expected=", ".join(known), got=value[:80])
    return value


def _hash_name(value: Any, what: str) -> str:
    if not isinstance(value, str) or value not in HASHES:
        raise AlgorithmError(f"CCA {what}", expected=", ".join(HASHES), got=repr(value)[:40])
    return value


def _bytes(value: Any, sizes: Collection[int], what: str) -> bytes:
    if not isinstance(value, bytes) or len(value) not in sizes:
        raise EvidenceFormatError(f"CCA {what}", expected=f"{'/'.join(map(str, sizes))} bytes", got="something else")
    return value


def _text(claims: Mapping[int, Any], label: int, what: str) -> str:
    if label not in claims:
        return ""
    value = claims[label]
    if not isinstance(value, str) or not 1 <= len(value) <= _TEXT_LIMIT:
        raise EvidenceFormatError(f"CCA {what}", expected=f"1 to {_TEXT_LIMIT} characters", got="something else")
    return value
