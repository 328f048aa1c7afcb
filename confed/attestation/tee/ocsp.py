"""OCSP responses given as bytes: what the issuer of a certificate says of it at this time.

1. The response is a successful basic response within bounds, and nothing follows it.
2. It speaks of the certificate: a CertID with its serial number, its issuer's name and its issuer's key.
3. It is signed by that issuer, or by a responder that the same issuer certified for OCSP; the responder's certificate
   is valid now.
4. It carries the nonce, where the caller sent one.
5. ``now`` lies between thisUpdate and nextUpdate; a response without nextUpdate is refused, since nobody could tell
   when it has aged.
6. The status: revoked is an error; on hold, unknown and good are told apart and returned.

Whether a responder's own certificate was revoked is not asked: authorities make it short-lived or say so themselves
(``id-pkix-ocsp-nocheck``). The hash in a CertID only names an issuer, whose key then verifies; SHA-1 may stand there.

Responses that hold are kept (bounded, by their bytes), so that many devices under one authority cost one signature.
Times are compared at every call.

Source: RFC 6960, sections 3.2, 4.2.1 and 4.2.2; RFC 5280, section 5.3.1 (certificateHold).
"""

from __future__ import annotations

import datetime
import functools
import hashlib
from dataclasses import dataclass
from enum import StrEnum

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID

from confed.attestation.certificates import (
    Certificate,
    load_certificate,
    require_issued,
    require_valid,
    verify_signature,
)
from confed.errors import (
    AlgorithmError,
    EndorsementFormatError,
    EndorsementMismatchError,
    EvidenceSignatureError,
    RevocationUnknownError,
    RevokedError,
    StaleEndorsementError,
)

RESPONSE_LIMIT_BYTES = 64 * 1024
"""Largest response."""

_SINGLES_LIMIT = 16
_CERTIFICATES_LIMIT = 4
_KEPT = 128
_SEQUENCE, _ENUMERATED = 0x30, 0x0A
_LONG_FORM = 0x80


class OcspStatus(StrEnum):
    """What an issuer says of a certificate that it has not revoked for good."""

    GOOD = "good"
    HOLD = "hold"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class SingleStatus:
    """What a response says of one certificate: named by hashes, with its times."""

    algorithm: str
    issuer_name_hash: bytes
    issuer_key_hash: bytes
    serial: int
    status: ocsp.OCSPCertStatus
    reason: x509.ReasonFlags | None
    this_update: datetime.datetime
    next_update: datetime.datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OcspResponse:
    """A response that was read and not yet verified.

    Attributes:
        der: the bytes received.
        tbs, signature, algorithm: what is signed, the signature and its hash.
        responder_name, responder_key: how the responder names itself, by name or by SHA-1 of its key.
        certificates: responders' certificates that came along.
        nonce: the requester's, if it is there.
        singles: what it says, certificate by certificate.
    """

    der: bytes
    tbs: bytes
    signature: bytes
    algorithm: hashes.HashAlgorithm | None
    responder_name: x509.Name | None
    responder_key: bytes | None
    certificates: tuple[Certificate, ...]
    nonce: bytes | None
    singles: tuple[SingleStatus, ...]


def is_response(data: bytes) -> bool:
    """Tell an OCSP response from other DER: its first part is an enumerated status, where a certificate has a body."""
    if len(data) < 4 or data[0] != _SEQUENCE:
        return False
    start = 2 + (data[1] & ~_LONG_FORM if data[1] & _LONG_FORM else 0)
    return data[start : start + 1] == bytes([_ENUMERATED])


@functools.lru_cache(maxsize=_KEPT)
def load_response(data: bytes) -> OcspResponse:
    """Return the successful response of DER bytes.

    Raises:
        EndorsementFormatError: anything else, trailing bytes and over-size included.
    """
    # 1.
    if len(data) > RESPONSE_LIMIT_BYTES:
        raise EndorsementFormatError("OCSP response", expected=f"at most {RESPONSE_LIMIT_BYTES} bytes", got=len(data))
    try:
        parsed = ocsp.load_der_ocsp_response(data)
        if parsed.response_status is not ocsp.OCSPResponseStatus.SUCCESSFUL:
            raise EndorsementFormatError("OCSP response", expected="a successful one", got=parsed.response_status.name)
        singles = tuple(_single(single) for single in parsed.responses)
        brought = parsed.certificates
        nonce = _nonce(parsed.extensions)
        response = OcspResponse(
            der=data,
            tbs=parsed.tbs_response_bytes,
            signature=parsed.signature,
            algorithm=parsed.signature_hash_algorithm,
            responder_name=parsed.responder_name,
            responder_key=parsed.responder_key_hash,
            certificates=tuple(
                load_certificate(found.public_bytes(serialization.Encoding.DER), what="OCSP responder")
                for found in brought[:_CERTIFICATES_LIMIT]
            ),
            nonce=nonce,
            singles=singles,
        )
    except (
        ValueError,
        TypeError,
        UnsupportedAlgorithm,
        x509.DuplicateExtension,
        x509.UnsupportedGeneralNameType,
        x509.InvalidVersion,
    ) as error:
        raise EndorsementFormatError("OCSP response", expected="a basic response", got="something else") from error
    if not 1 <= len(singles) <= _SINGLES_LIMIT or len(brought) > _CERTIFICATES_LIMIT:
        raise EndorsementFormatError("OCSP response", expected="a few statuses and certificates", got="none or many")
    return response


def speaks_of(response: OcspResponse, certificate: Certificate, *, issuer: Certificate) -> bool:
    """Tell whether a response names this certificate of this issuer, whoever signed it."""
    return any(_names(single, certificate, issuer) for single in response.singles)


def status_of(
    response: OcspResponse,
    certificate: Certificate,
    *,
    issuer: Certificate,
    now: datetime.datetime,
    nonce: bytes | None = None,
) -> OcspStatus:
    """Return what the issuer of ``certificate`` says of it now.

    Args:
        response: from ``load_response``.
        certificate: whose status is asked.
        issuer: whose chain the caller has checked, or is about to.
        now: aware time to judge at.
        nonce: what the response must carry; ``None`` where its times are enough.

    Raises:
        EndorsementMismatchError: a response about another certificate, or two statuses for this one.
        RevocationUnknownError: signed by somebody else than the issuer or its responder, or with another nonce.
        AlgorithmError, CertificateChainError, CertificateValidityError: a weak signature, or a responder's certificate
            that the issuer did not issue or that is not valid now.
        StaleEndorsementError: outside its time.
        RevokedError: revoked.
    """
    # 2.
    named = [single for single in response.singles if _names(single, certificate, issuer)]
    if len(named) != 1:
        raise EndorsementMismatchError(
            "OCSP response", expected=f"one status of {certificate.serial:x}", got=len(named)
        )
    # 3.
    responder = _responder(response.der, issuer.der)
    if responder is not None:
        require_valid(responder, now=now, what="OCSP responder")
    # 4.
    if nonce is not None and response.nonce != nonce:
        raise RevocationUnknownError("OCSP nonce", expected=nonce.hex()[:32], got=(response.nonce or b"").hex()[:32])
    # 5.
    single = named[0]
    start, end = single.this_update, single.next_update
    if end is None or not start <= now <= end:
        raise StaleEndorsementError("OCSP response", expected=f"one of {now:%F %T}", got=f"{start} to {end}")
    # 6.
    if single.status is ocsp.OCSPCertStatus.REVOKED and single.reason is not x509.ReasonFlags.certificate_hold:
        raise RevokedError(
            f"certificate {certificate.subject[:80]}",
            expected="one that is not revoked",
            got=single.reason.value if single.reason else "revoked",
        )
    if single.status is ocsp.OCSPCertStatus.REVOKED:
        return OcspStatus.HOLD
    return OcspStatus.GOOD if single.status is ocsp.OCSPCertStatus.GOOD else OcspStatus.UNKNOWN


@functools.lru_cache(maxsize=_KEPT)
def _responder(der: bytes, issuer_der: bytes) -> Certificate | None:
    """Check the signature, and return the responder's own certificate; ``None`` where the issuer itself signed."""
    response, issuer = load_response(der), load_certificate(issuer_der, what="OCSP issuer")
    signer = next(
        (found for found in (issuer, *response.certificates) if _calls_itself(response, found)),
        None,
    )
    if signer is None:
        raise RevocationUnknownError("OCSP responder", expected="the issuer or its responder", got="another")
    if signer.der != issuer.der:
        require_issued(signer, issuer, what="OCSP responder")
        _require_ocsp_signing(signer)
    try:
        verify_signature(
            signer.public_key, response.signature, response.tbs, algorithm=response.algorithm, what="OCSP response"
        )
    except EvidenceSignatureError as error:
        raise RevocationUnknownError("OCSP signature", expected="its responder's", got="another") from error
    return None if signer.der == issuer.der else signer


def _calls_itself(response: OcspResponse, candidate: Certificate) -> bool:
    if response.responder_name is not None:
        return candidate.parsed.subject == response.responder_name
    # RFC 6960, section 4.2.1: the responder's KeyHash is always SHA-1.
    return response.responder_key == hashlib.sha1(_key_bits(candidate), usedforsecurity=False).digest()


def _require_ocsp_signing(responder: Certificate) -> None:
    try:
        usages = responder.parsed.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound as error:
        raise RevocationUnknownError("OCSP responder", expected="one certified for OCSP", got="no usage") from error
    if ExtendedKeyUsageOID.OCSP_SIGNING not in usages:
        raise RevocationUnknownError("OCSP responder", expected="one certified for OCSP", got="another usage")


def _names(single: SingleStatus, certificate: Certificate, issuer: Certificate) -> bool:
    if single.serial != certificate.serial:
        return False
    name = hashlib.new(single.algorithm, issuer.parsed.subject.public_bytes(), usedforsecurity=False).digest()
    key = hashlib.new(single.algorithm, _key_bits(issuer), usedforsecurity=False).digest()
    return (single.issuer_name_hash, single.issuer_key_hash) == (name, key)


def _key_bits(certificate: Certificate) -> bytes:
    """Return the contents of the subjectPublicKey bit string."""
    key = certificate.public_key
    if isinstance(key, ec.EllipticCurvePublicKey):
        return key.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
    try:
        return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.PKCS1)
    except (ValueError, TypeError, AttributeError) as error:
        raise AlgorithmError("OCSP issuer's key", expected="ECDSA or RSA", got=type(key).__name__) from error


def _single(single: ocsp.OCSPSingleResponse) -> SingleStatus:
    return SingleStatus(
        algorithm=single.hash_algorithm.name,
        issuer_name_hash=single.issuer_name_hash,
        issuer_key_hash=single.issuer_key_hash,
        serial=single.serial_number,
        status=single.certificate_status,
        reason=single.revocation_reason,
        this_update=single.this_update_utc,
        next_update=single.next_update_utc,
    )


def _nonce(extensions: x509.Extensions) -> bytes | None:
    """Return the nonce among a response's extensions, and refuse critical ones that are not known."""
    nonce = None
    for extension in extensions:
        if isinstance(extension.value, x509.OCSPNonce):
            nonce = extension.value.nonce
        elif extension.critical:
            raise EndorsementFormatError("OCSP response", expected="known extensions", got=extension.oid.dotted_string)
    return nonce
