"""AWS Nitro Enclaves: is an attestation document genuine, and whose is it?

1. The document is COSE_Sign1 with ES384 and nothing in its unprotected header, read within AWS's bounds.
2. Its fields are the ones that AWS names, each of its type and size; none is unknown, twice there, or missing.
3. ``cabundle[0]`` is a pinned root, byte for byte: the root that a document brings along is never believed.
4. The chain from the root through ``cabundle`` to ``certificate`` holds; the leaf is no authority, and its key signs.
5. The document's key is that leaf's, on P-384: the signature holds.
6. The chain was valid at the document's own time, and still is; a document from the future is refused.
7. Nonce and user data are the expected ones.

Certificates live for three hours, so step 6 bounds a document's age; a policy narrows it (``max_age_s``).

A document lists the registers that are locked. confed's enclave extends PCR16 with the manifest's digest and locks it
before it asks for a document, so a PCR16 that is there cannot change any more; a document does not say when it was
locked, and that nothing else was extended is seen from its value alone.

Source: AWS, aws-nitro-enclaves-nsm-api, docs/attestation_process.md, sections 2.2 and 3.2.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import importlib.resources
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

from confed.attestation.certificates import Certificate, load_certificate, load_certificates, require_chain
from confed.attestation.evidence import Binding, Envelope, Expectation, Report
from confed.attestation.tee import cose
from confed.attestation.tee.nitro_document import (
    CODE_PCRS,
    PAYLOAD_LIMIT_BYTES,
    PCR_BYTES,
    NitroRegister,
    parse_document,
)
from confed.errors import (
    BindingMismatchError,
    CertificateChainError,
    CertificateValidityError,
    EndorsementFormatError,
    EvidenceFormatError,
    NonceError,
    StaleEvidenceError,
    TrustAnchorError,
)

PROFILE = "aws-nitro/1"
CONFIGURATION_PCR = 16
"""The register that confed's enclave extends with the manifest's digest, and locks."""

# Section 3.1: around the payload a header, two lengths and the signature.
_DOCUMENT_LIMIT_BYTES = PAYLOAD_LIMIT_BYTES + 128
_SKEW = datetime.timedelta(seconds=30)
_REPORT_DATA_BYTES = 64
_BUNDLES_KEPT = 64
_DER_SEQUENCE = b"\x30"


@dataclass(frozen=True, slots=True, kw_only=True)
class NitroClaims:
    """What a genuine document says.

    Attributes:
        module_id: the enclave's identifier, which begins with its instance's.
        timestamp_ms: when the document was made, Unix milliseconds.
        pcrs: locked registers by number, ascending.
        public_key, user_data, nonce: what the enclave asked to have signed; ``None`` where it asked for nothing.
        debug: PCR0, PCR1 or PCR2 is zero, as they are in debug mode.
        certificate: SHA-256 of the leaf certificate.
        root: SHA-256 of the root that the chain ends at.
        expires_ms: when the first certificate of the chain expires, Unix milliseconds.
    """

    module_id: str
    timestamp_ms: int
    pcrs: tuple[NitroRegister, ...]
    public_key: bytes | None
    user_data: bytes | None
    nonce: bytes | None
    debug: bool
    certificate: bytes
    root: bytes
    expires_ms: int

    def pcr(self, index: int) -> bytes | None:
        """Return a register's value, or ``None`` where the document does not list it."""
        return next((register.value for register in self.pcrs if register.index == index), None)


@dataclass(frozen=True, slots=True)
class _Chain:
    """A chain that holds at every moment from ``start`` to ``end``, and its leaf's key."""

    key: PublicKeyTypes
    start: datetime.datetime
    end: datetime.datetime


@dataclass(frozen=True, slots=True)
class _Authorities:
    """The authorities of a chain, which hold at every moment from ``start`` to ``end``, and the leaf's issuer."""

    issuer: Certificate
    start: datetime.datetime
    end: datetime.datetime


def verify_document(document: bytes, *, anchors: Sequence[bytes], now: datetime.datetime) -> NitroClaims:
    """Return the claims of a document whose chain ends at an anchor and whose signature holds.

    Args:
        document: COSE_Sign1 as the Nitro Secure Module returns it.
        anchors: pinned roots in DER.
        now: aware time to judge at.

    Raises:
        EvidenceFormatError, EvidenceSizeError, TrailingBytesError, MissingClaimError: not of the one form.
        AlgorithmError: another algorithm than ES384 with SHA-384 registers.
        TrustAnchorError, CertificateChainError, EndorsementFormatError: a chain that does not hold.
        EvidenceSignatureError: another signer.
        CertificateValidityError: a chain outside its validity, at the document's time or now.
        StaleEvidenceError: from the future.
    """
    # 1.
    message = cose.load_sign1(
        document, algorithms=(cose.ES384,), limit_bytes=_DOCUMENT_LIMIT_BYTES, what="Nitro document"
    )
    # 2.
    fields = parse_document(message.payload)
    # 3. and 4.
    chain = _require_chain(fields.certificate, fields.cabundle, tuple(anchors))
    # 5.
    cose.verify_sign1(message, chain.key, what="Nitro document")
    # 6.
    _require_time(fields.timestamp_ms, chain, now)
    return NitroClaims(
        module_id=fields.module_id,
        timestamp_ms=fields.timestamp_ms,
        pcrs=fields.pcrs,
        public_key=fields.public_key,
        user_data=fields.user_data,
        nonce=fields.nonce,
        debug=any(not any(register.value) for register in fields.pcrs if register.index in CODE_PCRS),
        certificate=hashlib.sha256(fields.certificate).digest(),
        root=hashlib.sha256(fields.cabundle[0]).digest(),
        expires_ms=int(chain.end.timestamp()) * 1000,
    )


def verify_files(
    evidence: bytes,
    endorsements: Sequence[bytes],
    *,
    expectation: Expectation,
    now: datetime.datetime,
    anchors: Sequence[bytes] | None,
) -> NitroClaims:
    """Return the claims of a document in a file; it carries its own chain, so there are no endorsements.

    Raises:
        EndorsementFormatError: an endorsement was given.
        NonceError, BindingMismatchError: another nonce or other user data than expected.
        AttestationError: see ``verify_document``.
    """
    if endorsements:
        raise EndorsementFormatError("endorsements of a Nitro document", expected="none", got=len(endorsements))
    claims = verify_document(evidence, anchors=pinned_roots() if anchors is None else anchors, now=now)
    # 7.
    _require_expected(claims, expectation)
    return claims


def configuration_pcr(manifest_digest: bytes) -> bytes:
    """Return what PCR16 holds after one extension of zeros by a manifest's digest (32 bytes)."""
    return hashlib.sha384(bytes(PCR_BYTES) + manifest_digest).digest()


@functools.cache
def pinned_roots() -> tuple[bytes, ...]:
    """Return AWS's published roots in DER."""
    bundle = importlib.resources.files("confed.attestation.roots").joinpath("aws_nitro.pem").read_bytes()
    pem = bundle[bundle.index(b"-----BEGIN") :]
    return tuple(certificate.der for certificate in load_certificates(pem, what="AWS Nitro root"))


class NitroVerifier:
    """The driver for ``aws-nitro/1``.

    ``user_data`` is the binding's REPORT_DATA, ``nonce`` the binding's nonce. The measurement is PCR0; the
    configuration is the manifest's digest where PCR16 is what that digest gives, otherwise PCR16 itself, or nothing
    where the document does not list it.
    """

    PROFILE: ClassVar[str] = PROFILE
    EVIDENCE_CLASS: ClassVar[str] = "aws-nitro"
    HARDWARE_ROOTED: ClassVar[bool] = True

    def verify(
        self, envelope: Envelope, *, endorsements: Sequence[bytes], now_ms: int, anchors: Sequence[bytes]
    ) -> Report:
        """Return the report of a document that is genuine at ``now_ms`` and carries the binding's nonce.

        Raises:
            EvidenceFormatError: an event log, which this TEE does not have.
            NonceError: another nonce than the binding's.
            BindingMismatchError: user data that is not 64 bytes.
            AttestationError: see ``verify_document``.
        """
        del endorsements  # the document carries its chain, and the anchors are the manifest's
        if envelope.event_logs:
            raise EvidenceFormatError("envelope.event_logs", expected=f"none in {PROFILE}", got="some")
        now = datetime.datetime.fromtimestamp(now_ms / 1000, tz=datetime.UTC)
        claims = verify_document(envelope.evidence, anchors=anchors, now=now)
        binding = Binding.decode(envelope.binding)
        # 7.
        _require_expected(claims, Expectation(nonce=binding.nonce, report_data=None))
        if claims.user_data is None or len(claims.user_data) != _REPORT_DATA_BYTES:
            raise BindingMismatchError("Nitro user_data", expected=f"{_REPORT_DATA_BYTES} bytes", got="another size")
        return Report(
            report_data=claims.user_data,
            measurement=(claims.pcr(0) or b"").hex(),
            configuration=_configuration(claims, binding),
            environment="",
            debug=claims.debug,
            shared=False,
            layers=(),
            details=claims,
        )


def _configuration(claims: NitroClaims, binding: Binding) -> str:
    found = claims.pcr(CONFIGURATION_PCR) or b""
    return binding.manifest if found == configuration_pcr(bytes.fromhex(binding.manifest)) else found.hex()


def _require_expected(claims: NitroClaims, expectation: Expectation) -> None:
    """Compare the nonce exactly, and user data exactly or with the caller's padded to REPORT_DATA's 64 bytes."""
    if expectation.nonce is not None and claims.nonce != expectation.nonce:
        raise NonceError("Nitro nonce", expected=expectation.nonce.hex()[:32], got=_shown(claims.nonce))
    wanted = expectation.report_data
    if wanted is not None and claims.user_data not in (wanted, wanted.ljust(_REPORT_DATA_BYTES, b"\x00")):
        raise BindingMismatchError("Nitro user_data", expected=wanted.hex()[:32], got=_shown(claims.user_data))


def _shown(value: bytes | None) -> str:
    return "none" if value is None else value.hex()[:32]


def _require_chain(certificate: bytes, cabundle: tuple[bytes, ...], anchors: tuple[bytes, ...]) -> _Chain:
    """Check a chain apart from the time, and return from when to when all of it is valid."""
    # 3. and 4.
    authorities = _require_authorities(cabundle, anchors)
    leaf = _load(certificate)
    _require_leaf(leaf)
    start = max(authorities.start, leaf.parsed.not_valid_before_utc)
    end = min(authorities.end, leaf.parsed.not_valid_after_utc)
    require_chain((leaf, authorities.issuer), anchors=(authorities.issuer,), now=start, what="Nitro")
    return _Chain(key=leaf.public_key, start=start, end=end)


@functools.lru_cache(maxsize=_BUNDLES_KEPT)
def _require_authorities(cabundle: tuple[bytes, ...], anchors: tuple[bytes, ...]) -> _Authorities:
    """Check a bundle from its last authority to its root, apart from the time.

    It depends on nothing but its arguments. Bundles that hold are kept, since all enclaves of an instance share one for
    a day, and their times are compared at every use.
    """
    # 3.
    if cabundle[0] not in anchors:
        raise TrustAnchorError("Nitro root", expected="a pinned one", got=hashlib.sha256(cabundle[0]).hexdigest())
    path = [_load(der) for der in reversed(cabundle)]
    # 4.
    start = max(authority.parsed.not_valid_before_utc for authority in path)
    end = min(authority.parsed.not_valid_after_utc for authority in path)
    require_chain(path, anchors=path[-1:], now=start, what="Nitro")
    for below, authority in enumerate(path):
        _require_path_length(authority, below)
    return _Authorities(issuer=path[0], start=start, end=end)


def _require_path_length(authority: Certificate, below: int) -> None:
    """Check an authority's path length against the authorities below it, the last of which issues the leaf."""
    try:
        constraints = authority.parsed.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound as error:
        raise CertificateChainError("Nitro authority", expected="basic constraints", got="none") from error
    if constraints.path_length is not None and constraints.path_length < below:
        raise CertificateChainError("Nitro authority", expected=f"a path length of {below}", got="less")


def _load(der: bytes) -> Certificate:
    if not der.startswith(_DER_SEQUENCE):
        raise EndorsementFormatError("Nitro certificate", expected="DER", got="another form")
    return load_certificate(der, what="Nitro certificate")


def _require_leaf(leaf: Certificate) -> None:
    extensions = leaf.parsed.extensions
    try:
        signs = extensions.get_extension_for_class(x509.KeyUsage).value.digital_signature
        authority = extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound as error:
        raise CertificateChainError("Nitro leaf", expected="key usage and basic constraints", got="none") from error
    if authority or not signs:
        raise CertificateChainError("Nitro leaf", expected="a key that signs documents", got="another use")


def _require_time(timestamp_ms: int, chain: _Chain, now: datetime.datetime) -> None:
    made = datetime.datetime.fromtimestamp(timestamp_ms / 1000, tz=datetime.UTC)
    if made - now > _SKEW:
        raise StaleEvidenceError("Nitro document time", expected=f"at most {now:%F %T}", got=f"{made:%F %T}")
    for what, moment in (("when the document was made", made), ("now", max(made, now))):
        if not chain.start <= moment <= chain.end:
            raise CertificateValidityError(
                f"Nitro chain {what}", expected=f"{chain.start:%F %T} to {chain.end:%F %T}", got=f"{moment:%F %T}"
            )
