"""The certificates of the simulated TEE: its root, and an instance's with what was launched in an extension.

An instance's certificate holds exactly two extensions, both critical: basic constraints, and canonical JSON of a
``Launch``. It is issued by the root itself and is valid for at most 24 hours.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509.oid import NameOID

from confed import canonical, record
from confed.attestation.evidence import parse_canonical, require_digest
from confed.errors import EvidenceFormatError, TrustAnchorError

ROOT_SUBJECT = "confed SIMULATED TEE root - not hardware"
INSTANCE_SUBJECT = "confed SIMULATED TEE instance - not hardware"
LIFETIME_S = 24 * 3600
"""Longest validity of an instance's certificate."""

# A UUID-based object identifier needs no registration (ITU-T X.667): uuid5 of https://confed.invalid/simulated-tee/1.
LAUNCH_OID = x509.ObjectIdentifier("2.25.222099519749201025675409422730742669592")

# DER: BIT STRING, 65 bytes, no unused bits; an Ed25519 signature follows.
_SIGNATURE_HEADER = b"\x03\x41\x00"
_LAUNCH_LIMIT_BYTES = 4096
_ROOT_LIFETIME_S = 10 * 365 * 24 * 3600
# Certificates hold whole seconds, and a verifier's clock may be a little behind the one that launched.
_BACKDATED_S = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What an instance was launched with: the content of its certificate's extension.

    Raises:
        EvidenceFormatError: a measurement or configuration that is not a digest.
    """

    measurement: str
    configuration: str
    environment: str
    shared: bool
    debug: bool

    def __post_init__(self) -> None:
        require_digest("launch.measurement", self.measurement)
        require_digest("launch.configuration", self.configuration)


def issue_root(key: Ed25519PrivateKey, *, now_ms: int) -> x509.Certificate:
    """Return a self-signed root, valid for ten years."""
    name = _name(ROOT_SUBJECT)
    builder = _builder(name, name, key.public_key(), now_ms=now_ms, seconds=_ROOT_LIFETIME_S)
    return builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True).sign(key, None)


def issue_instance(
    launch: Launch,
    *,
    key: Ed25519PublicKey,
    root: x509.Certificate,
    root_key: Ed25519PrivateKey,
    now_ms: int,
    lifetime_s: int = LIFETIME_S,
) -> bytes:
    """Return the certificate (DER) of an instance's key; a verifier refuses a lifetime above 24 hours."""
    content = canonical.encode(record.to_json(launch))
    builder = _builder(_name(INSTANCE_SUBJECT), root.subject, key, now_ms=now_ms, seconds=lifetime_s)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(x509.UnrecognizedExtension(LAUNCH_OID, content), critical=True)
    return builder.sign(root_key, None).public_bytes(serialization.Encoding.DER)


def parse_certificate(data: bytes) -> x509.Certificate:
    """Return the certificate of exactly these DER bytes.

    Raises:
        EvidenceFormatError: anything else.
    """
    try:
        certificate = x509.load_der_x509_certificate(data)
        # The parser lets unused bits of the signature's BIT STRING pass, so its one form is asked for: 64 whole bytes.
        signed = data.endswith(_SIGNATURE_HEADER + certificate.signature)
        if not signed or certificate.public_bytes(serialization.Encoding.DER) != data:
            raise EvidenceFormatError("certificate", expected="the one DER form", got="another")
    except (ValueError, x509.InvalidVersion, CryptographyDeprecationWarning) as error:
        # The warning is an exception where a process says so; what it warns of is refused all the same.
        raise EvidenceFormatError("certificate", expected="an X.509 certificate (DER)", got="something else") from error
    return certificate


def public_key(certificate: x509.Certificate) -> Ed25519PublicKey:
    """Return the key that a certificate is for.

    Raises:
        EvidenceFormatError: of another kind than Ed25519.
    """
    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise EvidenceFormatError("certificate key", expected="Ed25519", got="something else") from error
    if not isinstance(key, Ed25519PublicKey):
        raise EvidenceFormatError("certificate key", expected="Ed25519", got=type(key).__name__)
    return key


def _extensions(certificate: x509.Certificate) -> x509.Extensions:
    try:
        return certificate.extensions
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise EvidenceFormatError("certificate extensions", expected="well-formed ones", got="others") from error


def launch_of(certificate: x509.Certificate) -> Launch:
    """Return what the certificate's extension says was launched.

    Raises:
        EvidenceFormatError: other extensions than the two of an instance, or content that is not a ``Launch``.
    """
    found = {extension.oid: extension for extension in _extensions(certificate)}
    wanted = {x509.BasicConstraints.oid, LAUNCH_OID}
    if set(found) != wanted or not all(extension.critical for extension in found.values()):
        raise EvidenceFormatError("certificate extensions", expected="the two of an instance, critical", got="others")
    if cast("x509.BasicConstraints", found[x509.BasicConstraints.oid].value).ca:
        raise EvidenceFormatError("certificate", expected="one of an instance", got="one of an authority")
    content = cast("x509.UnrecognizedExtension", found[LAUNCH_OID].value).value
    value = parse_canonical(content, limit_bytes=_LAUNCH_LIMIT_BYTES, what="launch")
    return record.from_json(Launch, value, at="launch", error=EvidenceFormatError)


def require_chain(certificate: x509.Certificate, *, anchors: Sequence[bytes], now_ms: int) -> None:
    """Refuse a certificate that no anchor issued, that is not valid at ``now_ms``, or for more than 24 hours.

    Raises:
        TrustAnchorError: any of these, or an anchor that is not a simulated TEE root.
    """
    roots = [_root(anchor) for anchor in anchors]
    issuer = next((root for root in roots if _is_issued_by(certificate, root)), None)
    if issuer is None:
        raise TrustAnchorError("certificate issuer", expected="a trust anchor", got="another")
    for name, held in (("certificate", certificate), ("trust anchor", issuer)):
        starts, ends = _validity_s(held)
        if not starts * 1000 <= now_ms <= ends * 1000:
            raise TrustAnchorError(f"{name} validity", expected=f"from {starts} to {ends}", got=now_ms // 1000)
    starts, ends = _validity_s(certificate)
    if ends - starts > LIFETIME_S:
        raise TrustAnchorError("certificate lifetime in seconds", expected=f"at most {LIFETIME_S}", got=ends - starts)


@lru_cache(maxsize=64)
def _root(anchor: bytes) -> x509.Certificate:
    try:
        root = parse_certificate(anchor)
        constraints = _extensions(root).get_extension_for_class(x509.BasicConstraints)
    except (EvidenceFormatError, x509.ExtensionNotFound) as error:
        raise TrustAnchorError("trust anchor", expected="a simulated TEE root (DER)", got="something else") from error
    if root.subject != _name(ROOT_SUBJECT) or not constraints.value.ca or not _is_issued_by(root, root):
        raise TrustAnchorError("trust anchor", expected=ROOT_SUBJECT, got="another certificate")
    return root


def _is_issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm):
        return False
    return True


def _validity_s(certificate: x509.Certificate) -> tuple[int, int]:
    return int(certificate.not_valid_before_utc.timestamp()), int(certificate.not_valid_after_utc.timestamp())


def _builder(
    subject: x509.Name, issuer: x509.Name, key: Ed25519PublicKey, *, now_ms: int, seconds: int
) -> x509.CertificateBuilder:
    start = dt.datetime.fromtimestamp(now_ms // 1000 - _BACKDATED_S, tz=dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + dt.timedelta(seconds=seconds))
    )


@lru_cache(maxsize=8)
def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
