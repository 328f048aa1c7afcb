"""Certificates of TPM keys: a path from a leaf to an anchor, and what an endorsement key's certificate says.

The issuer of a certificate is looked for among certificates that came along, by name and by signature, since a vendor
gives several issuers the same name. What is found is then checked link by link (``certificates.require_chain``).

Source: TCG EK Credential Profile for TPM Family 2.0, version 2.6, section 3 (certificate fields).
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509

from confed.attestation.certificates import Certificate, require_chain, require_issued
from confed.errors import AlgorithmError, CertificateChainError, EndorsementFormatError

# TCG OID registry: tcg-kp-EKCertificate; TPM manufacturer, model and version as attributes of a directory name.
EK_CERTIFICATE = "2.23.133.8.1"
_MANUFACTURER, _MODEL, _VERSION = "2.23.133.2.1", "2.23.133.2.2", "2.23.133.2.3"
# The profile makes the alternative name critical where the subject is empty; it is read here.
_KNOWN_CRITICAL = (x509.SubjectAlternativeName.oid.dotted_string,)
_DEPTH_LIMIT = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class EndorsementKeyClaims:
    """What a certificate that chains to an anchor says of an endorsement key.

    Attributes:
        certificate, key, root: SHA-256 of the certificate, of its public key (SPKI) and of the anchor.
        manufacturer, model, version: of the TPM, as the certificate spells them; empty where it does not say.
        activated: the TPM has shown that this key and the attestation key are both in it. Without that, the
            certificate says only that such a TPM exists, not that it made the quote.
    """

    certificate: bytes
    key: bytes
    manufacturer: str
    model: str
    version: str
    root: bytes
    activated: bool


def require_path(
    leaf: Certificate,
    *,
    intermediates: Sequence[Certificate],
    anchors: Sequence[Certificate],
    now: datetime.datetime,
    what: str,
) -> tuple[Certificate, ...]:
    """Return a checked path from a leaf to an anchor, both included.

    Raises:
        TrustAnchorError: no path to an anchor.
        CertificateChainError, CertificateValidityError, AlgorithmError, EndorsementFormatError: see ``require_chain``.
    """
    path = [leaf]
    known = {anchor.der for anchor in anchors}
    while path[-1].der not in known and len(path) < _DEPTH_LIMIT:
        issuer = _issuer_of(path[-1], (*anchors, *intermediates))
        if issuer is None or issuer in path:
            break
        path.append(issuer)
    require_chain(path, anchors=anchors, now=now, what=what, known_critical=_KNOWN_CRITICAL)
    return tuple(path)


def require_leaf(certificate: Certificate, *, signs: bool, what: str) -> None:
    """Refuse an authority's certificate, or one of a key for another use.

    Args:
        certificate: the leaf.
        signs: whether the key has to sign (AK) or to decrypt (EK).
        what: whose it is, for messages.

    Raises:
        CertificateChainError: an authority, or another use.
    """
    extensions = certificate.parsed.extensions
    try:
        authority = extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        usage = extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound as error:
        raise CertificateChainError(
            f"{what} certificate", expected="basic constraints and key usage", got="none"
        ) from error
    fits = usage.digital_signature if signs else usage.key_encipherment or usage.key_agreement
    if authority or not fits:
        raise CertificateChainError(f"{what} certificate", expected="a key of its use, no authority", got="another")


def is_endorsement_certificate(certificate: Certificate) -> bool:
    """Say whether a certificate claims to be of an endorsement key, and is no authority's."""
    extensions = certificate.parsed.extensions
    try:
        uses = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        authority = extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False
    return not authority and any(use.dotted_string == EK_CERTIFICATE for use in uses)


def verify_endorsement_certificate(
    certificate: Certificate,
    *,
    intermediates: Sequence[Certificate],
    anchors: Sequence[Certificate],
    now: datetime.datetime,
) -> EndorsementKeyClaims:
    """Return what an endorsement key's certificate says, after its chain has held; nothing is activated yet.

    Raises:
        EndorsementFormatError: not a certificate of an endorsement key.
        TrustAnchorError, CertificateChainError, CertificateValidityError, AlgorithmError: see ``require_path``.
    """
    if not is_endorsement_certificate(certificate):
        raise EndorsementFormatError("EK certificate", expected="one of an endorsement key", got="another")
    path = require_path(certificate, intermediates=intermediates, anchors=anchors, now=now, what="EK")
    require_leaf(certificate, signs=False, what="EK")
    names = _tpm_names(certificate)
    return EndorsementKeyClaims(
        certificate=hashlib.sha256(certificate.der).digest(),
        key=hashlib.sha256(certificate.spki).digest(),
        manufacturer=names.get(_MANUFACTURER, ""),
        model=names.get(_MODEL, ""),
        version=names.get(_VERSION, ""),
        root=hashlib.sha256(path[-1].der).digest(),
        activated=False,
    )


def _issuer_of(subject: Certificate, candidates: Sequence[Certificate]) -> Certificate | None:
    """Return the candidate that issued a certificate; failing that, one of the issuer's name, for the refusal."""
    named = [candidate for candidate in candidates if candidate.parsed.subject == subject.parsed.issuer]
    return next((candidate for candidate in named if _issued(subject, candidate)), named[0] if named else None)


def _issued(subject: Certificate, issuer: Certificate) -> bool:
    try:
        require_issued(subject, issuer, what="chain")
    except (CertificateChainError, AlgorithmError, EndorsementFormatError):
        return False
    return True


def _tpm_names(certificate: Certificate) -> dict[str, str]:
    try:
        alternative = certificate.parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return {}
    return {
        attribute.oid.dotted_string: str(attribute.value)
        for name in alternative.get_values_for_type(x509.DirectoryName)
        for attribute in name
    }
