"""X.509 as evidence uses it: certificates read within bounds, every link of a chain checked, and pinned anchors.

What the checks are made for, and general path validation is not: a verifier names the certificates that must be there
and the roots that may be at the end, and nothing is looked up. So a chain is checked link by link:

1. every certificate is valid now;
2. every issuer is a certificate authority that may sign certificates, within its path length, and carries the name
   that its subject calls its issuer;
3. every signature holds, with SHA-256 or better and no key that is short;
4. critical extensions are known;
5. the last certificate is a pinned anchor, byte for byte, or was issued by one.

Times are arguments. Certificates with the serial number 0, which AMD issues, are parsed with another serial number in
its place, because pyca/cryptography announces that it will refuse them; signatures are checked over the bytes received.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import itertools
import re
import threading
import warnings
from collections.abc import Collection, Generator, Iterable, Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

from confed.errors import (
    AlgorithmError,
    CertificateChainError,
    CertificateValidityError,
    EndorsementFormatError,
    EvidenceSignatureError,
    TrustAnchorError,
)

CERTIFICATE_LIMIT_BYTES = 16 * 1024
"""Largest certificate in DER."""

BUNDLE_LIMIT_BYTES = 256 * 1024
"""Largest file of certificates."""

_COUNT_LIMIT = 16
_FILTERS = threading.Lock()
_RSA_LEAST_BITS = 2048
HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512)
"""Hashes of signatures that are not weak."""
_SEQUENCE, _INTEGER, _BIT_STRING, _VERSION = 0x30, 0x02, 0x03, 0xA0
_PEM = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----", re.DOTALL)
_KNOWN_CRITICAL = frozenset({
    x509.BasicConstraints.oid,
    x509.KeyUsage.oid,
    x509.ExtendedKeyUsage.oid,
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate: the bytes received, what they say, and the part that its issuer signed.

    Attributes:
        der: the bytes received.
        parsed: its fields; ``parsed.serial_number`` is not to be used, take ``serial``.
        tbs: the bytes under the issuer's signature.
        serial: the serial number; 0 in AMD's certificates.
    """

    der: bytes
    parsed: x509.Certificate
    tbs: bytes
    serial: int

    @property
    def public_key(self) -> PublicKeyTypes:
        """The subject's public key.

        Raises:
            EndorsementFormatError: a key of a kind that is not known.
        """
        try:
            return self.parsed.public_key()
        except (ValueError, UnsupportedAlgorithm) as error:
            raise EndorsementFormatError("public key", expected="a known kind", got="another") from error

    @property
    def subject(self) -> str:
        """The subject as RFC 4514 text."""
        return self.parsed.subject.rfc4514_string()

    @property
    def spki(self) -> bytes:
        """The subject's public key as DER SubjectPublicKeyInfo."""
        return self.public_key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)

    def extension(self, oid: str) -> bytes | None:
        """Return the DER value of an extension, or ``None`` where the certificate has none of this identifier."""
        for extension in self.parsed.extensions:
            if extension.oid.dotted_string == oid:
                return extension.value.public_bytes()
        return None


def load_certificate(data: bytes, *, what: str) -> Certificate:
    """Return the certificate of DER bytes, or of PEM text that holds exactly one.

    Raises:
        EndorsementFormatError: anything else, trailing bytes and over-size included.
    """
    found = load_certificates(data, what=what)
    if len(found) != 1:
        raise EndorsementFormatError(what, expected="one certificate", got=len(found))
    return found[0]


def load_certificates(data: bytes, *, what: str, limit: int = _COUNT_LIMIT) -> tuple[Certificate, ...]:
    """Return the certificates of PEM text in their order, or the one of DER bytes.

    Raises:
        EndorsementFormatError: none, more than ``limit``, over-size, or bytes that are no certificate.
    """
    if len(data) > BUNDLE_LIMIT_BYTES:
        raise EndorsementFormatError(what, expected=f"at most {BUNDLE_LIMIT_BYTES} bytes", got=len(data))
    if not data.lstrip().startswith(b"-----BEGIN"):
        return (_from_der(data, what),)
    blocks = [block for block in _PEM.finditer(data) if block[1] == b"CERTIFICATE"]
    if not 1 <= len(blocks) <= limit:
        raise EndorsementFormatError(what, expected=f"1 to {limit} certificates", got=len(blocks))
    return tuple(_from_der(_from_pem(block[0], what), what) for block in blocks)


def require_chain(
    path: Sequence[Certificate],
    *,
    anchors: Iterable[Certificate],
    now: datetime.datetime,
    what: str,
    known_critical: Collection[str] = (),
) -> None:
    """Check a chain, leaf first, as the module says; the root may be left out of ``path``.

    Args:
        path: leaf first; each is issued by the next.
        anchors: pinned roots.
        now: aware time to judge at.
        what: whose chain it is, for messages.
        known_critical: dotted identifiers of critical extensions that the caller understands.

    Raises:
        CertificateValidityError, CertificateChainError, AlgorithmError, TrustAnchorError, EndorsementFormatError.
    """
    pinned = tuple(anchors)
    if not path:
        raise TrustAnchorError(f"{what} chain", expected="a leaf", got="nothing")
    last = path[-1]
    full = list(path)
    if not any(last.der == anchor.der for anchor in pinned):
        issuers = [anchor for anchor in pinned if anchor.parsed.subject == last.parsed.issuer]
        if not issuers:
            raise TrustAnchorError(f"{what} chain", expected="a pinned root at its end", got=last.subject[:120])
        full.append(next((issuer for issuer in issuers if _issued(last, issuer)), issuers[0]))
    # 1.
    for certificate in full:
        require_valid(certificate, now=now, what=what)
        # 4.
        _require_known_critical(certificate, frozenset(known_critical), what)
    # 2. and 3.
    for depth, (subject, issuer) in enumerate(itertools.pairwise(full)):
        require_issued(subject, issuer, depth=depth, what=what)
    # 5.
    if not any(full[-1].der == anchor.der for anchor in pinned):
        raise TrustAnchorError(f"{what} chain", expected="a pinned root at its end", got=full[-1].subject[:120])


def require_valid(certificate: Certificate, *, now: datetime.datetime, what: str) -> None:
    """Check that a certificate is valid at ``now``, both ends included.

    Raises:
        CertificateValidityError: before or after its validity.
    """
    start, end = certificate.parsed.not_valid_before_utc, certificate.parsed.not_valid_after_utc
    if not start <= now <= end:
        raise CertificateValidityError(
            f"{what} certificate {certificate.subject[:80]}",
            expected=f"{start:%F %T} to {end:%F %T}",
            got=f"{now:%F %T}",
        )


def require_issued(subject: Certificate, issuer: Certificate, *, depth: int = 0, what: str) -> None:
    """Check that ``issuer``, a certificate authority with ``depth`` authorities below it, issued ``subject``.

    Raises:
        CertificateChainError: another name, no authority, a path too long, or a signature that does not hold.
        AlgorithmError: a weak signature.
    """
    link = f"{what} certificate {subject.subject[:80]}"
    if subject.parsed.issuer != issuer.parsed.subject:
        raise CertificateChainError(f"{link} issuer", expected=issuer.subject[:80], got="another name")
    extensions = _extensions(issuer)
    try:
        constraints = extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound as error:
        raise CertificateChainError(f"{link} issuer", expected="a certificate authority", got="none") from error
    if not constraints.ca or (constraints.path_length is not None and constraints.path_length < depth):
        raise CertificateChainError(f"{link} issuer", expected="an authority for this depth", got="none")
    if not may_sign(issuer, "key_cert_sign"):
        raise CertificateChainError(f"{link} issuer", expected="a key that signs certificates", got="another use")
    parsed = subject.parsed
    try:
        algorithm, scheme = parsed.signature_hash_algorithm, parsed.signature_algorithm_parameters
    except (ValueError, UnsupportedAlgorithm) as error:
        raise AlgorithmError(f"{link} signature", expected="a known algorithm", got="another") from error
    try:
        verify_signature(
            issuer.public_key, parsed.signature, subject.tbs, algorithm=algorithm, scheme=scheme, what=link
        )
    except EvidenceSignatureError as error:
        raise CertificateChainError(f"{link} signature", expected="its issuer's", got="another") from error


def verify_signature(
    key: PublicKeyTypes,
    signature: bytes,
    data: bytes,
    *,
    algorithm: hashes.HashAlgorithm | None,
    scheme: object = None,
    what: str,
) -> None:
    """Check a signature with a hash that is not weak; ``scheme`` is RSA's padding (default PKCS #1 v1.5).

    Raises:
        AlgorithmError: a hash below SHA-256, an RSA key below 2048 bits, or another kind of key.
        EvidenceSignatureError: it does not hold.
    """
    if not isinstance(key, ed25519.Ed25519PublicKey) and not isinstance(algorithm, HASHES):
        raise AlgorithmError(f"{what} hash", expected="SHA-256 or better", got=getattr(algorithm, "name", "none"))
    try:
        match key:
            case rsa.RSAPublicKey():
                if key.key_size < _RSA_LEAST_BITS:
                    raise AlgorithmError(f"{what} key", expected=f"at least {_RSA_LEAST_BITS} bits", got=key.key_size)
                chosen = scheme if isinstance(scheme, padding.PSS) else padding.PKCS1v15()
                key.verify(signature, data, chosen, algorithm)  # pyright: ignore[reportArgumentType]
            case ec.EllipticCurvePublicKey():
                key.verify(signature, data, ec.ECDSA(algorithm))  # pyright: ignore[reportArgumentType]
            case ed25519.Ed25519PublicKey():
                key.verify(signature, data)
            case _:
                raise AlgorithmError(f"{what} key", expected="RSA, ECDSA or Ed25519", got=type(key).__name__)
    except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise EvidenceSignatureError(f"{what} signature", expected="one that verifies", got="another") from error


@contextlib.contextmanager
def long_names() -> Generator[None]:
    """Read names that are longer than X.520 has them, as Google's are, without a warning whenever one is read.

    Warnings' filters belong to the whole process, so one thread at a time.
    """
    with _FILTERS, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Attribute's length must be", category=UserWarning)
        yield


def may_sign(issuer: Certificate, use: str) -> bool:
    """Tell whether a key has a use; without the extension it is not restricted (RFC 5280, section 4.2.1.3).

    Raises:
        EndorsementFormatError: extensions that cannot be read.
    """
    try:
        return getattr(_extensions(issuer).get_extension_for_class(x509.KeyUsage).value, use)
    except x509.ExtensionNotFound:
        return True


def _issued(subject: Certificate, issuer: Certificate) -> bool:
    try:
        require_issued(subject, issuer, what="chain")
    except (CertificateChainError, AlgorithmError):
        return False
    return True


def _require_known_critical(certificate: Certificate, known: Collection[str], what: str) -> None:
    for extension in _extensions(certificate):
        if extension.critical and extension.oid not in _KNOWN_CRITICAL and extension.oid.dotted_string not in known:
            raise CertificateChainError(
                f"{what} certificate", expected="known critical extensions", got=extension.oid.dotted_string
            )


def _extensions(certificate: Certificate) -> x509.Extensions:
    try:
        return certificate.parsed.extensions
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise EndorsementFormatError("certificate extensions", expected="extensions", got="something else") from error


def _from_pem(block: bytes, what: str) -> bytes:
    try:
        return base64.b64decode(b"".join(block.splitlines()[1:-1]).replace(b" ", b""), validate=True)
    except ValueError as error:
        raise EndorsementFormatError(what, expected="a certificate in PEM", got="something else") from error


def _from_der(data: bytes, what: str) -> Certificate:
    try:
        if len(data) > CERTIFICATE_LIMIT_BYTES:
            raise ValueError
        outer = _element(data, 0, _SEQUENCE)
        if outer[1] != len(data):
            raise ValueError
        tbs = _element(data, outer[0], _SEQUENCE)
        # The parser lets unused bits of the signature's BIT STRING pass, so its one form is asked for: whole bytes.
        signature = _element(data, _element(data, tbs[1], _SEQUENCE)[1], _BIT_STRING)
        if data[signature[0]] != 0 or signature[1] != outer[1]:
            raise ValueError
        position = tbs[0]
        if data[position] == _VERSION:
            position = _element(data, position, _VERSION)[1]
        start, end = _element(data, position, _INTEGER)
        serial = int.from_bytes(data[start:end], "big", signed=True)
        readable = data if serial > 0 else data[: end - 1] + b"\x01" + data[end:]
        if serial < 0 or start == end:
            raise ValueError
        parsed = x509.load_der_x509_certificate(readable)
        with long_names():
            _ = parsed.extensions, parsed.subject, parsed.issuer, parsed.not_valid_after_utc
    except (
        ValueError,
        TypeError,
        IndexError,
        x509.DuplicateExtension,
        x509.UnsupportedGeneralNameType,
        x509.InvalidVersion,
    ) as error:
        raise EndorsementFormatError(what, expected="a certificate", got="something else") from error
    return Certificate(der=data, parsed=parsed, tbs=data[outer[0] : tbs[1]], serial=serial)


def _element(data: bytes, position: int, tag: int) -> tuple[int, int]:
    """Return where the value of a DER element begins and ends."""
    if data[position] != tag:
        raise ValueError
    length, start = data[position + 1], position + 2
    if length & 0x80:
        size = length & 0x7F
        if not 1 <= size <= 4:
            raise ValueError
        length, start = int.from_bytes(data[start : start + size], "big"), start + size
    if start + length > len(data):
        raise ValueError
    return start, start + length
