"""The result of an appraisal as a token that others can verify: EAR, an EAT Attestation Result.

``issue`` makes a signed token of claims and of what appraisal said to each part (the TEE, and the devices beside it);
``verify`` reads one under keys that the relying party trusts already. What a token says comes from the appraisal:

1. a part that was refused is contraindicated, in the aspect that the refusal's class speaks of;
2. a simulated TEE is a warning at best, with a hardware claim that says so: never affirming, not even in simulation;
3. a part that only the floors were applied to is a warning: genuine, but nobody recognised its code or configuration;
4. what is left is affirming, in the aspects that were looked at and in no other;
5. the status of the whole is the worst of its parts, and a part that nobody appraised has no token.

A token names evidence by its digest and carries none of it, no chip identifier and no address. It is a compact JWS
with one allowed header (``alg``, ``kid``, ``typ``) and one algorithm: a token that brings a key, a chain or the address
of one along is refused, whatever it is signed with. Both parts are canonical JSON, so nothing in them stands twice.

Source: draft-ietf-rats-ear-04 (claims), draft-ietf-rats-ar4si-10 (values), RFC 7515 (JWS), RFC 9864 (``Ed25519``),
RFC 9782 (``eat+jwt``).
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import OKPKey

import confed
from confed import canonical, record, statement
from confed.attestation.appraisal import SKEW_MS
from confed.attestation.ear_claims import (
    FLOORS,
    PROFILE,
    SIMULATED,
    Appraised,
    EarAppraisal,
    EarClaims,
    Subject,
    VerifierId,
)
from confed.attestation.trustworthiness import (
    APPROVED_CONFIGURATION,
    APPROVED_EXECUTABLES,
    GENUINE_HARDWARE,
    OPAQUE_RUNTIME,
    SIMULATED_HARDWARE,
    UNRECOGNISED_EXECUTABLES,
    UNSEEN_CONFIGURATION,
    Vector,
    of_refusal,
    worst,
)
from confed.attestation.verifier import Claims
from confed.errors import (
    AlgorithmError,
    BindingMismatchError,
    EncodingError,
    NonceError,
    PolicyMissingError,
    RefusedError,
    SignatureError,
    SizeError,
    StaleEvidenceError,
)
from confed.manifest import Unchecked

LIFETIME_LIMIT_S = 24 * 3600
"""Longest life of a token: results age as evidence does."""

DEVELOPER = "confed"
BUILD = f"confed {confed.__version__}"
_CPU = "cpu"
# Source: RFC 9864, section 2.2 (the algorithm once called EdDSA, with its one curve).
_ALGORITHM = "Ed25519"
# Source: RFC 9782, section 6.3.
_TYPE = "eat+jwt"
_LIMIT_BYTES = 32 * 1024
_HEADER_LIMIT_BYTES = 512
# Source: RFC 7515, section 4.1: headers that would let a token say which key to trust, or what else must be understood.
_KEYS_OF_ITS_OWN = frozenset({"jwk", "jku", "x5c", "x5u", "x5t", "x5t#S256", "crit"})
# What keeps memory from the host by encryption, and says so in evidence. The others assert nothing here.
_OPAQUE = frozenset({"sev-snp/1", "tdx/1", "sgx/1", "azure-snp/1", "azure-tdx/1", "arm-cca/1"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What appraisal said to one part.

    Attributes:
        refusal: why it was refused; ``None`` if it was accepted.
        policy: digest of the owner's policy that was applied; empty where only the floors were.
    """

    refusal: RefusedError | None
    policy: str


def key_id(public_key: bytes) -> str:
    """Return the name of a token key (raw Ed25519, 32 bytes): its SHA-256 in hexadecimal."""
    return canonical.digest(public_key)


def issue(
    claims: Claims,
    *,
    outcomes: Mapping[str, Outcome],
    signing_key: Ed25519PrivateKey,
    audience: str,
    now_ms: int,
    lifetime_s: int,
) -> str:
    """Return a token for claims and for what appraisal said to them.

    Args:
        claims: from ``Registry.verify``.
        outcomes: by profile, of the TEE and of every device; one that is missing has no result to tell.
        signing_key: the verifier's own.
        audience: whom the token is for.
        now_ms: when, in Unix milliseconds.
        lifetime_s: at most a day.

    Raises:
        PolicyMissingError: a part without an outcome.
        SizeError: a lifetime that is not from 1 second to a day.
    """
    if not 1 <= lifetime_s <= LIFETIME_LIMIT_S:
        raise SizeError("token lifetime in seconds", expected=f"from 1 to {LIFETIME_LIMIT_S}", got=lifetime_s)
    parts = {_CPU: _appraisal(claims, claims.profile, outcomes)}
    for device in claims.devices:
        parts[device.profile.partition("/")[0]] = _appraisal(claims, device.profile, outcomes)
    token = EarClaims(
        eat_profile=PROFILE,
        iat=now_ms // 1000,
        exp=now_ms // 1000 + lifetime_s,
        aud=audience,
        eat_nonce=_to_base64url(claims.binding.nonce),
        ear_verifier_id=VerifierId(developer=DEVELOPER, build=BUILD),
        # 5.
        ear_status=worst(*(part.ear_status for part in parts.values())),
        confed_subject=Subject(
            instance=claims.binding.instance,
            manifest=claims.binding.manifest,
            role=str(claims.binding.role),
            run=claims.binding.run,
        ),
        submods=parts,
    )
    header = {"alg": _ALGORITHM, "kid": key_id(statement.public_bytes(signing_key)), "typ": _TYPE}
    payload = canonical.encode(record.to_json(token))
    return jws.serialize_compact(header, payload, OKPKey.import_key(signing_key), algorithms=[_ALGORITHM])


def verify(
    token: str,
    *,
    keys: Mapping[str, bytes],
    audience: str,
    nonce: bytes | Unchecked,
    now_ms: int,
) -> EarClaims:
    """Return what a token says that one of the trusted keys has signed, for this audience and nonce, and valid now.

    It says what the verifier found, good or bad: whoever relies on it calls ``require_affirming``, and compares
    ``confed_subject`` with the enclave that it talks to.

    Args:
        token: compact JWS.
        keys: raw Ed25519 public keys by ``key_id``; nothing in the token adds to them.
        audience: the relying party's own name.
        nonce: the one that the evidence was asked for under.
        now_ms: when, in Unix milliseconds.

    Raises:
        SizeError, EncodingError: not the one form, or a status better than what it rests on.
        AlgorithmError: another algorithm, ``none`` included.
        SignatureError: a key of the token's own, an unknown key, or a signature that does not verify.
        StaleEvidenceError: not yet valid, past its expiry, or valid for too long.
        BindingMismatchError: for another audience.
        NonceError: made under another nonce.
    """
    header, payload = _split(token)
    public_key = _key_for(header, keys)
    try:
        jws.deserialize_compact(token, OKPKey.import_key(public_key), algorithms=[_ALGORITHM])
    except (JoseError, ValueError) as error:
        raise SignatureError("token signature", expected="a valid signature", got="another") from error
    value = canonical.decode(payload, limit_bytes=_LIMIT_BYTES)
    claims = record.from_json(EarClaims, value, at="token", error=EncodingError)
    _require_now(claims, now_ms)
    if claims.aud != audience:
        raise BindingMismatchError("token audience", expected=audience[:80], got=claims.aud[:80])
    if not isinstance(nonce, Unchecked) and claims.eat_nonce != _to_base64url(nonce):
        raise NonceError("token nonce", expected=_to_base64url(nonce)[:16], got=claims.eat_nonce[:16])
    return claims


def _appraisal(claims: Claims, profile: str, outcomes: Mapping[str, Outcome]) -> EarAppraisal:
    outcome = outcomes.get(profile)
    if outcome is None:
        raise PolicyMissingError(f"outcome of {profile}", expected="what appraisal said", got="nothing")
    device = profile != claims.profile
    vector = _vector(outcome, profile, simulated=_is_simulated(claims))
    return EarAppraisal(
        ear_status=vector.tier,
        ear_trustworthiness_vector=vector.to_json(),
        ear_appraisal_policy_ids=(FLOORS, f"sha256:{outcome.policy}") if outcome.policy else (FLOORS,),
        ear_verifier_claims=Appraised(
            profile=profile,
            evidence_class=profile.partition("/")[0] if device else claims.evidence_class,
            hardware_rooted=claims.hardware_rooted,
            evidence=claims.evidence_digest,
            code=outcome.refusal.code if outcome.refusal is not None else "",
        ),
    )


def _vector(outcome: Outcome, profile: str, *, simulated: bool) -> Vector:
    # 1.
    if outcome.refusal is not None:
        return of_refusal(outcome.refusal)
    # 2.
    hardware = SIMULATED_HARDWARE if simulated else GENUINE_HARDWARE
    opaque = OPAQUE_RUNTIME if profile in _OPAQUE and not simulated else 0
    # 3.
    if not outcome.policy:
        return Vector(
            hardware=hardware,
            runtime_opaque=opaque,
            configuration=UNSEEN_CONFIGURATION,
            executables=UNRECOGNISED_EXECUTABLES,
        )
    # 4.
    return Vector(
        hardware=hardware,
        runtime_opaque=opaque,
        configuration=APPROVED_CONFIGURATION,
        executables=APPROVED_EXECUTABLES,
    )


def _is_simulated(claims: Claims) -> bool:
    return claims.evidence_class == SIMULATED or not claims.hardware_rooted


def _split(token: str) -> tuple[bytes, bytes]:
    """Return the header's and the payload's bytes of a token that is spelt in the one way."""
    if len(token) > _LIMIT_BYTES:
        raise SizeError("token size in bytes", expected=f"at most {_LIMIT_BYTES}", got=len(token))
    parts = token.split(".") if token.isascii() else []
    if len(parts) != 3:
        raise EncodingError("token", expected="a compact JWS", got="something else")
    names = ("token header", "token payload", "token signature")
    header, payload, _ = (_from_base64url(name, part) for name, part in zip(names, parts, strict=True))
    return header, payload


def _key_for(encoded: bytes, keys: Mapping[str, bytes]) -> Ed25519PublicKey:
    header: Any = canonical.decode(encoded, limit_bytes=_HEADER_LIMIT_BYTES)
    if not isinstance(header, dict):
        raise EncodingError("token header", expected="an object", got="something else")
    own = sorted(_KEYS_OF_ITS_OWN.intersection(header))
    if own:
        raise SignatureError("token header", expected="no key and no demand of its own", got=", ".join(own))
    if set(header) != {"alg", "kid", "typ"}:
        raise EncodingError("token header", expected="alg, kid, typ", got="other fields")
    if header["alg"] != _ALGORITHM:
        raise AlgorithmError("token algorithm", expected=_ALGORITHM, got=repr(header["alg"])[:40])
    if header["typ"] != _TYPE:
        raise EncodingError("token type", expected=_TYPE, got=repr(header["typ"])[:40])
    public_key = keys.get(header["kid"]) if isinstance(header["kid"], str) else None
    if public_key is None:
        raise SignatureError("token key", expected="one of the trusted keys", got=repr(header["kid"])[:40])
    try:
        return Ed25519PublicKey.from_public_bytes(public_key)
    except ValueError as error:
        raise SignatureError("token key", expected="a raw Ed25519 public key", got="something else") from error


def _require_now(claims: EarClaims, now_ms: int) -> None:
    if not 0 < claims.exp - claims.iat <= LIFETIME_LIMIT_S:
        lifetime = claims.exp - claims.iat
        raise StaleEvidenceError("token lifetime in seconds", expected=f"from 1 to {LIFETIME_LIMIT_S}", got=lifetime)
    if not claims.iat * 1000 - SKEW_MS <= now_ms < claims.exp * 1000:
        raise StaleEvidenceError("token time", expected=f"from {claims.iat} to {claims.exp}", got=now_ms // 1000)


def _from_base64url(field: str, text: str) -> bytes:
    try:
        decoded = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError as error:
        raise EncodingError(field, expected="base64url", got="something else") from error
    if _to_base64url(decoded) != text:
        raise EncodingError(field, expected="the one base64url spelling", got="another")
    return decoded


def _to_base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
