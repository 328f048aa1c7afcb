"""Enrolment: a verifier finds out once which TPM an attestation key lives in, and signs what it found.

Credential activation is a conversation, evidence in an envelope is not. So they are taken apart:

1. ``begin_enrolment`` (verifier): the EK certificate chains to an anchor, the EK's public area is that key's, the AK is
   restricted to attesting; a fresh secret is wrapped for this EK and this AK (``credential``).
2. The TPM activates the credential, and gives the secret back if it holds both keys.
3. ``finish_enrolment`` (verifier): the answer is the secret. The verifier signs both keys' names, with an expiry.
4. ``verify_enrolment`` (whoever verifies evidence): a record signed by an authority that the manifest names, current,
   of exactly this AK and this EK.

The enrolment travels with the evidence as an endorsement. It binds names, and a key's name covers its attributes, so
another key, the same key with other attributes, or another TPM's certificate does not fit.
"""

from __future__ import annotations

import datetime
import hmac
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from confed import canonical, statement
from confed.attestation.certificates import Certificate
from confed.attestation.tee.credential import SECRET_BYTES, Credential, make_credential
from confed.attestation.tee.tpm_certificates import EndorsementKeyClaims, verify_endorsement_certificate
from confed.attestation.tee.tpm_claims import key_digest
from confed.attestation.tee.tpm_quote import require_attestation_key
from confed.attestation.tee.tpm_structures import parse_public
from confed.errors import (
    EncodingError,
    EndorsementFormatError,
    EndorsementMismatchError,
    EvidenceSignatureError,
    KeyBindingError,
    SignatureError,
    SizeError,
    StaleEndorsementError,
    TrustAnchorError,
)

LIMIT_BYTES = 4 * 1024
"""Largest enrolment."""

LONGEST_S = 366 * 24 * 3600
"""How long an enrolment can last."""

ENROLMENT_START = b'{"payload":'
"""How the file of an enrolment begins, and no other endorsement of a TPM does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TpmEnrolment:
    """What an authority states: these two keys are in one TPM.

    Attributes:
        attestation_key: the AK's name.
        endorsement_key: SHA-256 of the EK (SPKI).
        issued_at, expires_at: Unix milliseconds.
    """

    TYPE: ClassVar[str] = "confed/v1/tpm-enrolment"

    attestation_key: bytes
    endorsement_key: bytes
    issued_at: int
    expires_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingEnrolment:
    """What a verifier keeps between its challenge and the TPM's answer; for one answer, soon."""

    attestation_key: bytes
    endorsement_key: EndorsementKeyClaims
    secret: bytes = field(repr=False)


def begin_enrolment(
    *,
    attestation_key: bytes,
    endorsement_key: bytes,
    certificate: Certificate,
    intermediates: Sequence[Certificate],
    anchors: Sequence[Certificate],
    now: datetime.datetime,
) -> tuple[Credential, PendingEnrolment]:
    """Return a credential for a TPM to activate, and what to remember until it answers.

    Args:
        attestation_key: the AK's public area as the TPM returned it.
        endorsement_key: the EK's.
        certificate: the EK's.
        intermediates: authorities between it and an anchor.
        anchors: roots of TPM vendors that the owners trust.
        now: aware time to judge at.

    Raises:
        KeyBindingError: keys with other attributes, or an EK that is not the certificate's.
        AttestationError: public areas or a chain that do not hold.
    """
    # 1.
    attestation, endorsement = parse_public(attestation_key), parse_public(endorsement_key)
    require_attestation_key(attestation)
    claims = verify_endorsement_certificate(certificate, intermediates=intermediates, anchors=anchors, now=now)
    if key_digest(endorsement.key) != claims.key:
        raise KeyBindingError("endorsement key", expected="the certificate's", got="another")
    secret = os.urandom(SECRET_BYTES)
    credential = make_credential(endorsement, name=attestation.name, secret=secret)
    return credential, PendingEnrolment(attestation_key=attestation.name, endorsement_key=claims, secret=secret)


def finish_enrolment(
    pending: PendingEnrolment, answer: bytes, *, authority: Ed25519PrivateKey, now_ms: int, lifetime_s: int
) -> bytes:
    """Return the signed enrolment after a TPM's answer.

    Raises:
        KeyBindingError: not the secret, so not a TPM with both keys.
        StaleEndorsementError: a lifetime that is not allowed.
    """
    # 3.
    if not hmac.compare_digest(answer, pending.secret):
        raise KeyBindingError("activated credential", expected="the secret", got="something else")
    if not 0 < lifetime_s <= LONGEST_S:
        raise StaleEndorsementError("enrolment lifetime in seconds", expected=f"1 to {LONGEST_S}", got=lifetime_s)
    record = TpmEnrolment(
        attestation_key=pending.attestation_key,
        endorsement_key=pending.endorsement_key.key,
        issued_at=now_ms,
        expires_at=now_ms + lifetime_s * 1000,
    )
    return canonical.encode(statement.sign(record, authority).to_json())


def verify_enrolment(
    data: bytes, *, authorities: Sequence[bytes], attestation_key: bytes, endorsement_key: bytes, now_ms: int
) -> TpmEnrolment:
    """Return the enrolment of two keys by one of the authorities, current now.

    Args:
        data: as ``finish_enrolment`` returned it.
        authorities: raw Ed25519 public keys.
        attestation_key: the AK's name.
        endorsement_key: SHA-256 of the EK (SPKI).
        now_ms: Unix milliseconds.

    Raises:
        EndorsementFormatError: not an enrolment.
        TrustAnchorError: signed by nobody whom the authorities name.
        EvidenceSignatureError: a signature that does not hold.
        KeyBindingError: of another attestation key.
        EndorsementMismatchError: of another endorsement key.
        StaleEndorsementError: before or after its time.
    """
    # 4.
    record = _verified(data, authorities)
    if record.attestation_key != attestation_key:
        raise KeyBindingError(
            "enrolled attestation key", expected=attestation_key.hex()[:20], got=record.attestation_key.hex()[:20]
        )
    if record.endorsement_key != endorsement_key:
        raise EndorsementMismatchError(
            "enrolled endorsement key", expected=endorsement_key.hex()[:16], got=record.endorsement_key.hex()[:16]
        )
    if not record.issued_at <= now_ms <= record.expires_at <= record.issued_at + LONGEST_S * 1000:
        raise StaleEndorsementError(
            "enrolment", expected=f"a time from {record.issued_at} to {record.expires_at}", got=now_ms
        )
    return record


def _verified(data: bytes, authorities: Sequence[bytes]) -> TpmEnrolment:
    try:
        signed = statement.Signed.from_json(canonical.decode(data, limit_bytes=LIMIT_BYTES))
        if canonical.encode(signed.to_json()) != data:
            raise EndorsementFormatError("enrolment", expected="the one spelling", got="another")
        if signed.signer not in authorities:
            raise TrustAnchorError("enrolment authority", expected="one that was named", got=signed.signer.hex()[:16])
        return statement.verify(signed, TpmEnrolment, signer=signed.signer)
    except SignatureError as error:
        raise EvidenceSignatureError("enrolment", expected=error.expected, got=error.got) from error
    except (EncodingError, SizeError) as error:
        raise EndorsementFormatError("enrolment", expected=error.expected, got=error.got) from error
