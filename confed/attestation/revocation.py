"""Revocation lists of X.509 (CRL): read within bounds, and asked about a certificate only where all of this holds.

1. the list is its issuer's: by name, by a key that may sign lists, with a signature that is not weak and holds;
2. it is whole: no delta, nor of a part of the certificates, and nothing in it is critical that is not known;
3. it is of this time, which is an argument.

What does not hold is an error, never a certificate that passes.

Source: RFC 5280, section 5.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from confed.attestation.certificates import HASHES, Certificate, long_names, may_sign
from confed.errors import AlgorithmError, EndorsementFormatError, RevocationUnknownError, RevokedError

CRL_LIMIT_BYTES = 4 * 1024 * 1024
"""Largest revocation list."""


def load_crl(data: bytes, *, what: str) -> x509.CertificateRevocationList:
    """Return the certificate revocation list of DER bytes or PEM text.

    Raises:
        EndorsementFormatError: anything else, or over-size.
    """
    if len(data) > CRL_LIMIT_BYTES:
        raise EndorsementFormatError(what, expected=f"at most {CRL_LIMIT_BYTES} bytes", got=len(data))
    try:
        pem = data.lstrip().startswith(b"-----BEGIN")
        crl = x509.load_pem_x509_crl(data) if pem else x509.load_der_x509_crl(data)
        # Names are read when they are first asked for, and may turn out to be none.
        with long_names():
            _ = crl.issuer, crl.last_update_utc, crl.next_update_utc
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise EndorsementFormatError(what, expected="a revocation list", got="something else") from error
    return crl


def require_not_revoked(
    certificate: Certificate,
    *,
    issuer: Certificate,
    crl: x509.CertificateRevocationList,
    now: datetime.datetime,
    what: str,
) -> None:
    """Check a certificate against its issuer's revocation list of this time.

    Raises:
        RevocationUnknownError: a list of another issuer, of a key that signs none, with a bad signature, outside its
            time, or of a part only.
        AlgorithmError: a list whose signature is weak.
        RevokedError: it is on the list.
    """
    if issuer_of(crl) != issuer.parsed.subject:
        raise RevocationUnknownError(f"{what} revocation list", expected=issuer.subject[:80], got="another issuer's")
    if not may_sign(issuer, "crl_sign"):
        raise RevocationUnknownError(f"{what} revocation list", expected="a key that signs lists", got="another use")
    _require_whole(crl, what)
    try:
        algorithm = crl.signature_hash_algorithm
        if not isinstance(algorithm, HASHES):
            got = getattr(algorithm, "name", "none")
            raise AlgorithmError(f"{what} revocation list hash", expected="SHA-256 or better", got=got)
        genuine = crl.is_signature_valid(issuer.public_key)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError, UnsupportedAlgorithm) as error:
        raise RevocationUnknownError(f"{what} revocation list", expected="a known signature", got="another") from error
    if not genuine:
        raise RevocationUnknownError(f"{what} revocation list", expected="its issuer's signature", got="another")
    until = crl.next_update_utc
    if until is None or not crl.last_update_utc <= now <= until:
        raise RevocationUnknownError(f"{what} revocation list", expected="one of this time", got=f"until {until}")
    if certificate.serial > 0 and crl.get_revoked_certificate_by_serial_number(certificate.serial) is not None:
        raise RevokedError(
            f"{what} certificate", expected="one that is not revoked", got=f"serial {certificate.serial}"
        )


def lists_of_this_time(
    crls: Sequence[x509.CertificateRevocationList], now: datetime.datetime
) -> Sequence[x509.CertificateRevocationList]:
    """Return the lists of this time; all of them where none is, so that the check refuses and says why.

    A list that an attester brought along grows old, and says nothing beside the verifier's own of this time.
    """
    current = [crl for crl in crls if crl.next_update_utc and crl.last_update_utc <= now <= crl.next_update_utc]
    return current or crls


def issuer_of(crl: x509.CertificateRevocationList) -> x509.Name:
    """Return whose revocation list it is.

    Raises:
        EndorsementFormatError: a name that cannot be read.
    """
    try:
        with long_names():
            return crl.issuer
    except ValueError as error:
        raise EndorsementFormatError("revocation list issuer", expected="a name", got="something else") from error


def _require_whole(crl: x509.CertificateRevocationList, what: str) -> None:
    """Refuse a list that speaks of a part of an issuer's certificates, and whatever else is critical in it.

    Source: RFC 5280, sections 5.2.4 (delta lists) and 5.2.5 (lists of some certificates, or for some reasons).
    """
    try:
        extensions = list(crl.extensions)
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise RevocationUnknownError(f"{what} revocation list", expected="known extensions", got="others") from error
    for extension in extensions:
        match extension.value:
            case x509.IssuingDistributionPoint() as of:
                part = of.only_contains_user_certs or of.only_contains_ca_certs or of.only_contains_attribute_certs
                unknown = bool(part or of.only_some_reasons or of.indirect_crl)
            case x509.DeltaCRLIndicator():
                unknown = True
            case _:
                unknown = extension.critical
        if unknown:
            oid = extension.oid.dotted_string
            raise RevocationUnknownError(f"{what} revocation list", expected="a whole one", got=f"one with {oid}")
