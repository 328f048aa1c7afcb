"""Is a report of AMD SEV-SNP genuine? A pure function of the report, its endorsements, the roots and a time.

``verify_report`` goes this way; whether genuine evidence is acceptable is ``confed.attestation.policy.sev_snp``:

1. the report's frame is read: size, version, reserved fields, algorithm, which key signed it;
2. the certificate of a key of that kind (VCEK or VLEK) is taken, and what it says is read;
3. the product is the one of the report's CPUID; a report of version 2 has none, and takes the certificate's;
4. the root is the pinned one of that product, and no other that came along under its name;
5. the chain is checked link by link: the VEK by AMD's authority for chip keys (ASK) or for loaded keys (ASVK), that by
   the product's root (ARK); names, validity, signatures;
6. if a revocation list is there, it is the root's and of this time, and the authority is not on it; one outside its
   time says nothing where another is of this time (an attester's hint grows old beside the verifier's own);
7. the VEK was made for this product, the REPORTED_TCB and this chip;
8. the VEK's key signed the report, and only then are its fields read.

AMD gives every VEK the serial number 0, so a revocation list names authorities only; a single chip is shut out by its
id, and old firmware by its TCB. Not promised: that a revocation list was there (``revocation_checked`` says so).

Source: AMD 56860 (SEV-SNP firmware ABI), AMD 57230 (VCEK certificate and KDS interface).
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from confed.attestation.certificates import Certificate, require_chain, require_issued, verify_signature
from confed.attestation.evidence import Envelope, Expectation, Report
from confed.attestation.revocation import lists_of_this_time, require_not_revoked
from confed.attestation.tee import sev_snp_report as layout
from confed.attestation.tee.sev_snp_endorsements import pinned, pinned_roots, read_anchors, read_endorsements
from confed.attestation.tee.sev_snp_report import GuestPolicyBit, Product, SigningKey, SnpReport
from confed.attestation.tee.sev_snp_vek import Vek, common_name, kind_of, read_vek, require_endorses
from confed.errors import (
    AlgorithmError,
    AttestationError,
    BindingMismatchError,
    CertificateChainError,
    EndorsementFormatError,
    EndorsementMismatchError,
    EvidenceFormatError,
    EvidenceSizeError,
    MissingEndorsementError,
    NonceError,
    TrustAnchorError,
)

PROFILE = "sev-snp/1"

_FILE_LIMIT_BYTES = 16 * 1024
_SAME_NAME_LIMIT = 4
_REPORT_DATA_BYTES = 64
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_HEX = frozenset(b"0123456789abcdefABCDEF")


@dataclass(frozen=True, slots=True, kw_only=True)
class SnpClaims:
    """What a genuine report and its endorsement say.

    Attributes:
        product: by CPUID, or by the VEK's certificate for a report of version 2.
        signing_key: which kind of key signed.
        endorsement: SHA-256 of the VEK's certificate.
        csp_id: the cloud whose VLEK signed; empty for a VCEK.
        chip_id: the report's, or where the host masks that, the VCEK's; zeros for a VLEK with a masked chip.
        revocation_checked: the VEK's authority was looked up in the root's revocation list of this time.
        report: the report's own fields.
    """

    product: Product
    signing_key: SigningKey
    endorsement: str
    csp_id: str
    chip_id: bytes
    revocation_checked: bool
    report: SnpReport


@dataclass(frozen=True, slots=True)
class _Given:
    """What a report is verified with."""

    certificates: tuple[Certificate, ...]
    crls: tuple[x509.CertificateRevocationList, ...]
    anchors: tuple[Certificate, ...]
    now: datetime.datetime


def verify_report(
    report: bytes,
    *,
    certificates: Sequence[Certificate],
    crls: Sequence[x509.CertificateRevocationList] = (),
    anchors: Sequence[Certificate],
    now: datetime.datetime,
) -> SnpClaims:
    """Return the claims of a genuine report.

    Args:
        report: exactly 1184 bytes.
        certificates: the VEK's, and the ASK's or ASVK's; AMD's own is used where no authority is given. Of several
            VEKs of the right kind (at most 4) one for which everything holds is enough.
        crls: may be empty; each must be the root's, and of this time unless another is.
        anchors: pinned roots (ARK), told apart by their names.
        now: aware time to judge at.

    Raises:
        EvidenceFormatError, TrailingBytesError, EvidenceVersionError, AlgorithmError: the report's form.
        MissingEndorsementError, EndorsementMismatchError, EndorsementFormatError: the VEK is not there, was made for
            something else, or cannot be read.
        TrustAnchorError, CertificateChainError, CertificateValidityError: its chain.
        RevokedError, RevocationUnknownError: its authority is revoked, or a list that was given does not hold.
        EvidenceSignatureError: the report is not signed, or not by that key.
    """
    # 1.
    frame = layout.read_frame(report)
    given = _Given(tuple(certificates), tuple(crls), tuple(anchors), now)
    failure: AttestationError | None = None
    # 2.
    for certificate in _veks(given.certificates, frame.signing_key):
        try:
            return _verify(report, frame, read_vek(certificate), given)
        except AttestationError as error:
            failure = failure or error
    raise failure or MissingEndorsementError("endorsements", expected=f"a {frame.signing_key} certificate", got="none")


def verify_files(
    evidence: bytes,
    endorsements: Sequence[bytes],
    *,
    expectation: Expectation,
    now: datetime.datetime,
    anchors: Sequence[bytes] | None,
) -> SnpClaims:
    """Return the claims of a report in a vendor's files.

    Args:
        evidence: the report, as its bytes or as hexadecimal text.
        endorsements: in any order: certificates (DER or PEM, several in one file too) and revocation lists.
        expectation: a nonce and report data are the same thing here: what REPORT_DATA must be, zero-padded to 64 bytes.
        now: aware time to judge at.
        anchors: roots in DER; ``None`` means AMD's.

    Raises:
        EvidenceSizeError: a file that is too large to be a report.
        NonceError, BindingMismatchError: a genuine report with other REPORT_DATA.
        AttestationError: see ``verify_report``.
    """
    read = read_endorsements(endorsements)
    claims = verify_report(
        _read_evidence(evidence),
        certificates=read.certificates,
        crls=read.crls,
        anchors=pinned_roots() if anchors is None else read_anchors(anchors),
        now=now,
    )
    _require_expected(claims.report.report_data, expectation)
    return claims


class SnpVerifier:
    """The driver for ``sev-snp/1``. A pure function of its arguments."""

    PROFILE: ClassVar[str] = PROFILE
    EVIDENCE_CLASS: ClassVar[str] = "amd-sev-snp"
    HARDWARE_ROOTED: ClassVar[bool] = True

    def verify(
        self, envelope: Envelope, *, endorsements: Sequence[bytes], now_ms: int, anchors: Sequence[bytes]
    ) -> Report:
        """Return the report of evidence whose chain and signature hold at ``now_ms``.

        The measurement is MEASUREMENT (96 hexadecimal digits), the configuration is HOST_DATA (64).

        Raises:
            EvidenceFormatError: an event log, which this TEE does not have.
            AttestationError: see ``verify_report``.
        """
        if envelope.event_logs:
            raise EvidenceFormatError("envelope.event_logs", expected=f"none in {PROFILE}", got="some")
        read = read_endorsements((*endorsements, *envelope.endorsements))
        claims = verify_report(
            envelope.evidence,
            certificates=read.certificates,
            crls=read.crls,
            anchors=read_anchors(anchors),
            now=_EPOCH + datetime.timedelta(milliseconds=now_ms),
        )
        return Report(
            report_data=claims.report.report_data,
            measurement=claims.report.measurement.hex(),
            configuration=claims.report.host_data.hex(),
            environment="",
            debug=GuestPolicyBit.DEBUG in claims.report.guest_policy_bits,
            shared=False,
            layers=(),
            details=claims,
        )


def _verify(report: bytes, frame: layout.Frame, vek: Vek, given: _Given) -> SnpClaims:
    # 3.
    product = frame.product or vek.product
    if vek.product is not product:
        raise EndorsementMismatchError(f"{vek.kind} product", expected=product, got=vek.product)
    # 4.
    root = _root(product, given)
    # 5.
    authority = _authority(vek, given)
    require_chain((vek.certificate, authority), anchors=(root,), now=given.now, what=vek.kind)
    # 6.
    for crl in lists_of_this_time(given.crls, given.now):
        require_not_revoked(authority, issuer=root, crl=crl, now=given.now, what=f"{vek.kind} authority")
    # 7.
    chip_id = layout.chip_id_of(report)
    require_endorses(vek, tcb=layout.reported_tcb_of(report), chip_id=chip_id)
    # 8.
    verify_signature(
        vek.certificate.public_key,
        frame.signature,
        report[: layout.SIGNED_BYTES],
        algorithm=hashes.SHA384(),
        what="SNP report",
    )
    return SnpClaims(
        product=product,
        signing_key=vek.kind,
        endorsement=hashlib.sha256(vek.certificate.der).hexdigest(),
        csp_id=vek.csp_id,
        chip_id=vek.chip_id or chip_id,
        revocation_checked=bool(given.crls),
        report=layout.read_report(report, product=product),
    )


def _veks(certificates: Sequence[Certificate], kind: SigningKey) -> tuple[Certificate, ...]:
    found = {certificate.der: certificate for certificate in certificates if kind_of(certificate) is kind}
    if len(found) > _SAME_NAME_LIMIT:
        raise EndorsementFormatError(f"{kind} certificates", expected=f"at most {_SAME_NAME_LIMIT}", got=len(found))
    if not found and any(kind_of(certificate) for certificate in certificates):
        raise EndorsementMismatchError("VEK certificate", expected=kind, got="one of the other kind")
    return tuple(found.values())


def _root(product: Product, given: _Given) -> Certificate:
    name = f"ARK-{product}"
    roots = {anchor.der: anchor for anchor in given.anchors if common_name(anchor) == name}
    if len(roots) != 1:
        raise TrustAnchorError(f"pinned root {name}", expected="one", got=len(roots))
    for certificate in given.certificates:
        if common_name(certificate) == name and certificate.der not in roots:
            raise TrustAnchorError(f"root {name}", expected="the pinned one", got="another of its name")
    return next(iter(roots.values()))


def _authority(vek: Vek, given: _Given) -> Certificate:
    """Return the ASK or ASVK that issued a VEK: of those given if there is any, otherwise AMD's."""
    loaded = vek.kind is SigningKey.VLEK
    name = f"SEV-VLEK-{vek.product}" if loaded else f"SEV-{vek.product}"
    every = {f"SEV-{kind}{product}" for kind in ("", "VLEK-") for product in Product}
    candidates = [certificate for certificate in given.certificates if common_name(certificate) in every] or pinned()
    named = [candidate for candidate in candidates if common_name(candidate) == name]
    if len(named) > _SAME_NAME_LIMIT:
        raise EndorsementFormatError(f"certificates of {name}", expected=f"at most {_SAME_NAME_LIMIT}", got=len(named))
    failure: AttestationError | None = None
    for candidate in named:
        try:
            require_issued(vek.certificate, candidate, what=vek.kind)
        except (CertificateChainError, AlgorithmError) as error:
            failure = failure or error
        else:
            return candidate
    raise failure or CertificateChainError(f"{vek.kind} issuer", expected=name, got="another authority")


def _read_evidence(data: bytes) -> bytes:
    if len(data) > _FILE_LIMIT_BYTES:
        raise EvidenceSizeError("SNP report file", expected=f"at most {_FILE_LIMIT_BYTES} bytes", got=len(data))
    text = b"".join(data.split())
    if not _HEX.issuperset(text):
        return data
    if len(text) % 2:
        raise EvidenceFormatError("SNP report", expected="pairs of hexadecimal digits", got=f"{len(text)} digits")
    return bytes.fromhex(text.decode("ascii"))


def _require_expected(report_data: bytes, expectation: Expectation) -> None:
    nonce, expected = (
        None if value is None else value.ljust(_REPORT_DATA_BYTES, b"\0")
        for value in (expectation.nonce, expectation.report_data)
    )
    if nonce is not None and expected is not None and nonce != expected:
        raise BindingMismatchError("nonce and report data", expected="the same REPORT_DATA", got="two")
    for value, error in ((nonce, NonceError), (expected, BindingMismatchError)):
        if value is not None and value != report_data:
            raise error("REPORT_DATA", expected=value.hex(), got=report_data.hex())
