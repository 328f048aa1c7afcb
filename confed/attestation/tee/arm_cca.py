"""Arm CCA: is a Realm's token genuine? EXPERIMENTAL: no token of real hardware has been seen here.

1. The token is a CBOR collection (tag 399) of a platform token and a Realm token, each COSE_Sign1.
2. The Realm token is signed by the key that it carries (RAK).
3. The platform token's challenge is the hash of that key: the platform vouches for it, since only what runs below the
   Realm can have a key's hash put there.
4. The platform token is signed by the platform's attestation key (CPAK), which somebody whom the verifier trusts has
   named: Arm has no root, and the token's own words about its key count for nothing.
5. The Realm's challenge is the expected one.

Hash and signature algorithms are SHA-256 or better, and ECDSA on the curve that belongs to the algorithm. Nothing in a
token says when it was made: freshness rests on the challenge alone. Whether the platform is in a state in which it can
vouch for anything (lifecycle) is ``confed.attestation.policy.arm_cca``'s question.

Source: Arm DEN0137 (Realm Management Monitor specification) 1.0, section A7.2; draft-ffm-rats-cca-token.
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from cryptography.hazmat.primitives import serialization

from confed.attestation.evidence import Envelope, Expectation, Report
from confed.attestation.tee import cose
from confed.attestation.tee.arm_cca_keys import PlatformKey, load_platform_keys, realm_key
from confed.attestation.tee.arm_cca_token import (
    CHALLENGE_BYTES,
    HASHES,
    PAYLOAD_LIMIT_BYTES,
    CcaPlatformClaims,
    CcaRealmClaims,
    parse_platform,
    parse_realm,
)
from confed.errors import (
    AlgorithmError,
    BindingMismatchError,
    EndorsementFormatError,
    EndorsementMismatchError,
    EvidenceFormatError,
    EvidenceSignatureError,
    KeyBindingError,
    MissingEndorsementError,
    NonceError,
    TrustAnchorError,
)

PROFILE = "arm-cca/1"

# RFC 8949, section 3.4: tag 399 (CMW collection), as its three bytes.
_COLLECTION_TAG = b"\xd9\x01\x8f"
# A7.2.1: labels of the collection.
_PLATFORM, _REALM = 44234, 44241
_ALGORITHMS = (cose.ES256, cose.ES384, cose.ES512)
_PART_LIMIT_BYTES = PAYLOAD_LIMIT_BYTES + 256
_TOKEN_LIMIT_BYTES = 2 * _PART_LIMIT_BYTES + 64
_KEY_LIMIT = 64
_DIGEST_BYTES = 32
# A7.2.3.2.6: the upper byte of the lifecycle; of all states the one in which nobody debugs.
_SECURED = 0x30


@dataclass(frozen=True, slots=True, kw_only=True)
class CcaClaims:
    """What a genuine token says.

    Attributes:
        experimental: always; a policy has to accept it by name.
        secured: the platform is in the state in which nobody debugs it.
        platform_key: SHA-256 of the key that signed the platform token (SubjectPublicKeyInfo).
        platform, realm: the tokens' own claims.
    """

    experimental: bool
    secured: bool
    platform_key: bytes
    platform: CcaPlatformClaims
    realm: CcaRealmClaims


def verify_token(token: bytes, *, keys: Sequence[PlatformKey]) -> CcaClaims:
    """Return the claims of a token whose halves are bound to each other and whose platform half one of ``keys`` signed.

    Args:
        token: the collection, as a Realm gets it.
        keys: platform keys that the verifier trusts.

    Raises:
        EvidenceFormatError, EvidenceSizeError, EvidenceVersionError, TrailingBytesError, MissingClaimError: not of the
            one form.
        AlgorithmError: a weak hash, or an algorithm that is not the key's.
        EvidenceSignatureError: a half that another key signed.
        KeyBindingError: the Realm's key is not the one that the platform vouches for.
        MissingEndorsementError, EndorsementMismatchError: no platform key, or none for this platform.
    """
    # 1.
    platform_token, realm_token = _halves(token)
    platform, realm = parse_platform(platform_token.payload), parse_realm(realm_token.payload)
    # 2.
    cose.verify_sign1(realm_token, realm_key(realm), what="CCA Realm token")
    # 3.
    digest = hashlib.new(HASHES[realm.public_key_hash_algorithm], realm.public_key).digest()
    if digest != platform.challenge:
        raise KeyBindingError("CCA platform challenge", expected=digest.hex()[:32], got=platform.challenge.hex()[:32])
    # 4.
    signer = _require_platform_signature(platform_token, platform, keys)
    return CcaClaims(
        experimental=True,
        secured=platform.lifecycle >> 8 == _SECURED,
        platform_key=hashlib.sha256(_spki(signer)).digest(),
        platform=platform,
        realm=realm,
    )


def verify_files(
    evidence: bytes,
    endorsements: Sequence[bytes],
    *,
    expectation: Expectation,
    now: datetime.datetime,
    anchors: Sequence[bytes] | None,
) -> CcaClaims:
    """Return the claims of a token in a file, under the platform keys that the caller gives.

    Args:
        evidence: the token.
        endorsements: platform keys (see ``arm_cca_keys``); the caller's word is what they are trusted on.
        expectation: the Realm's challenge is both nonce and report data; either is zero-padded to 64 bytes.
        now: unused: nothing in a token has a time.
        anchors: if given, the only platform keys that count, in any of these forms, each for the platform that the
            anchor names it for, whatever an endorsement says.

    Raises:
        TrustAnchorError: an endorsement that is not one of the anchors.
        EndorsementFormatError: an endorsement that is no platform key.
        NonceError, BindingMismatchError: another challenge.
        AttestationError: see ``verify_token``.
    """
    del now
    keys = _load_keys(endorsements)
    if anchors is not None:
        trusted = _load_keys(anchors)
        named, pinned = {_spki(key) for key in keys}, {_spki(key) for key in trusted}
        if not named <= pinned:
            raise TrustAnchorError("CCA platform key", expected="a pinned one", got="another")
        keys = tuple(key for key in trusted if not named or _spki(key) in named)
    claims = verify_token(evidence, keys=keys)
    # 5.
    for wanted, error in ((expectation.nonce, NonceError), (expectation.report_data, BindingMismatchError)):
        if wanted is not None and wanted.ljust(CHALLENGE_BYTES, b"\x00") != claims.realm.challenge:
            raise error("CCA Realm challenge", expected=wanted.hex()[:32], got=claims.realm.challenge.hex()[:32])
    return claims


class CcaVerifier:
    """The driver for ``arm-cca/1``.

    The Realm's challenge is REPORT_DATA, RIM is the measurement, and the configuration is the first half of the
    personalization value where the second is zeros, otherwise all of it. Anchors are platform keys (DER).
    """

    PROFILE: ClassVar[str] = PROFILE
    EVIDENCE_CLASS: ClassVar[str] = "arm-cca"
    HARDWARE_ROOTED: ClassVar[bool] = True

    def verify(
        self, envelope: Envelope, *, endorsements: Sequence[bytes], now_ms: int, anchors: Sequence[bytes]
    ) -> Report:
        """Return the report of a token that a platform key among the anchors signed.

        Raises:
            EvidenceFormatError: an event log, which this TEE does not have.
            AttestationError: see ``verify_token``.
        """
        del endorsements, now_ms  # only the manifest says which platforms count; nothing in a token has a time
        if envelope.event_logs:
            raise EvidenceFormatError("envelope.event_logs", expected=f"none in {PROFILE}", got="some")
        claims = verify_token(envelope.evidence, keys=_load_keys(anchors))
        return Report(
            report_data=claims.realm.challenge,
            measurement=claims.realm.initial_measurement.hex(),
            configuration=_configuration(claims.realm.personalization_value),
            environment="",
            debug=not claims.secured,
            shared=False,
            layers=(),
            details=claims,
        )


def _halves(token: bytes) -> tuple[cose.Sign1, cose.Sign1]:
    if not token.startswith(_COLLECTION_TAG):
        raise EvidenceFormatError("CCA token", expected="a collection (tag 399)", got="something else")
    value = cose.decode_cbor(token.removeprefix(_COLLECTION_TAG), limit_bytes=_TOKEN_LIMIT_BYTES, what="CCA token")
    if not isinstance(value, dict) or value.keys() != {_PLATFORM, _REALM}:  # pyright: ignore[reportUnknownMemberType]
        raise EvidenceFormatError("CCA token", expected="a platform token and a Realm token", got="something else")
    parts: dict[int, Any] = value  # pyright: ignore[reportUnknownVariableType]
    return _half(parts[_PLATFORM], "CCA platform token"), _half(parts[_REALM], "CCA Realm token")


def _half(value: Any, what: str) -> cose.Sign1:
    if not isinstance(value, bytes):
        raise EvidenceFormatError(what, expected="a byte string", got="another type")
    return cose.load_sign1(value, algorithms=_ALGORITHMS, limit_bytes=_PART_LIMIT_BYTES, what=what)


def _require_platform_signature(
    token: cose.Sign1, claims: CcaPlatformClaims, keys: Sequence[PlatformKey]
) -> PlatformKey:
    """Return the key that signed a platform token."""
    if not keys:
        raise MissingEndorsementError("CCA platform key", expected="one that the caller trusts", got="none")
    failure: AlgorithmError | EvidenceSignatureError | None = None
    for key in keys:
        if key.implementation_id in {None, claims.implementation_id} and key.instance_id in {None, claims.instance_id}:
            try:
                cose.verify_sign1(token, key.key, what="CCA platform token")
            except (AlgorithmError, EvidenceSignatureError) as error:
                failure = failure or error
            else:
                return key
    raise failure or EndorsementMismatchError(
        "CCA platform key", expected=f"one for instance {claims.instance_id.hex()[:32]}", got="others'"
    )


def _load_keys(endorsements: Sequence[bytes]) -> tuple[PlatformKey, ...]:
    keys = tuple(key for endorsement in endorsements for key in load_platform_keys(endorsement))
    if len(keys) > _KEY_LIMIT:
        raise EndorsementFormatError("CCA platform keys", expected=f"at most {_KEY_LIMIT}", got=len(keys))
    return keys


def _configuration(personalization_value: bytes) -> str:
    digest, rest = personalization_value[:_DIGEST_BYTES], personalization_value[_DIGEST_BYTES:]
    return (personalization_value if any(rest) else digest).hex()


def _spki(key: PlatformKey) -> bytes:
    return key.key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
