"""Is the evidence of an Intel SGX enclave genuine? A pure function of quote, collateral, roots and a time.

The quote is verified as a DCAP quote (``intel_dcap``), and only then is the enclave's report in it read. Whether
genuine evidence is acceptable is ``confed.attestation.policy.sgx``.

The report's 64 bytes of report data are what binds a quote to its purpose. Where a relying party has no binding but a
nonce of its own, the nonce must be their beginning.

Source: Intel SGX ECDSA QuoteLibReference DCAP API, appendix A.4.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from confed.attestation.evidence import Envelope, Expectation, Report
from confed.attestation.tee import intel_dcap
from confed.attestation.tee.intel_dcap import PlatformClaims, TcbClaims
from confed.attestation.tee.intel_quote import TeeKind, read_quote_file
from confed.attestation.tee.intel_reports import EnclaveReport, read_enclave_report
from confed.errors import EvidenceFormatError

PROFILE = "sgx/1"

# Intel SDM volume 3D, table 38-3: ATTRIBUTES.DEBUG.
_DEBUG = 0x02


@dataclass(frozen=True, slots=True, kw_only=True)
class SgxClaims:
    """What a genuine quote of an enclave says.

    Attributes:
        quote_version: 3.
        debug: somebody outside can look in.
        report: the enclave report's own fields.
        platform, tcb: what Intel says about platform and TCB.
    """

    quote_version: int
    debug: bool
    report: EnclaveReport
    platform: PlatformClaims
    tcb: TcbClaims


def verify_quote(
    quote: bytes, *, collateral: Sequence[bytes], now: datetime.datetime, anchors: Sequence[bytes]
) -> SgxClaims:
    """Return the claims of a genuine quote.

    Args:
        quote: version 3, zero padding allowed.
        collateral: JSON in dcap-qvl's form; that of the quote's platform family is chosen.
        now: aware time to judge at.
        anchors: Intel's root in DER.

    Raises:
        EvidenceFormatError, EvidenceSizeError, TrailingBytesError, EvidenceVersionError, AlgorithmError: the form.
        MissingEndorsementError, EndorsementMismatchError, StaleEndorsementError, EndorsementFormatError: collateral.
        TrustAnchorError, CertificateChainError, CertificateValidityError, RevokedError, RevocationUnknownError: chains.
        EvidenceSignatureError, KeyBindingError: signatures.
    """
    verified = intel_dcap.verify_quote(quote, tee=TeeKind.SGX, collateral=collateral, anchors=anchors, now=now)
    report = read_enclave_report(verified.quote.body)
    return SgxClaims(
        quote_version=verified.quote.version,
        debug=bool(report.attributes[0] & _DEBUG),
        report=report,
        platform=verified.platform,
        tcb=verified.tcb,
    )


def verify_files(
    evidence: bytes,
    endorsements: Sequence[bytes],
    *,
    expectation: Expectation,
    now: datetime.datetime,
    anchors: Sequence[bytes] | None,
) -> SgxClaims:
    """Return the claims of a quote in a vendor's files.

    Args:
        evidence: the quote, binary or in hexadecimal.
        endorsements: collateral JSON, in any order.
        expectation: the nonce must be the beginning of report data.
        now: aware time to judge at.
        anchors: DER; ``None`` for Intel's pinned root.

    Raises:
        NonceError, BindingMismatchError: another nonce or other report data.
        AttestationError: see ``verify_quote``.
    """
    claims = verify_quote(
        read_quote_file(evidence),
        collateral=endorsements,
        now=now,
        anchors=intel_dcap.pinned_roots() if anchors is None else anchors,
    )
    intel_dcap.require_expected(claims.report.report_data, expectation)
    return claims


class SgxVerifier:
    """The driver for enclaves.

    Measurement is MRENCLAVE. Configuration is CONFIGID: the manifest's digest where 32 zero bytes follow it.
    """

    PROFILE: ClassVar[str] = PROFILE
    EVIDENCE_CLASS: ClassVar[str] = "intel-sgx"
    HARDWARE_ROOTED: ClassVar[bool] = True

    def verify(
        self, envelope: Envelope, *, endorsements: Sequence[bytes], now_ms: int, anchors: Sequence[bytes]
    ) -> Report:
        """Return what the quote in an envelope says.

        The verifier's own endorsements go first, then the envelope's hints; one collateral is taken, whole.

        Raises:
            EvidenceFormatError: an event log, which enclaves do not have.
            AttestationError: see ``verify_quote``.
        """
        if envelope.event_logs:
            raise EvidenceFormatError("envelope.event_logs", expected="none", got=len(envelope.event_logs))
        claims = verify_quote(
            envelope.evidence,
            collateral=(*endorsements, *envelope.endorsements),
            now=intel_dcap.time_of(now_ms),
            anchors=anchors,
        )
        report = claims.report
        return Report(
            report_data=report.report_data,
            measurement=report.mr_enclave.hex(),
            configuration=intel_dcap.configuration_of(report.config_id),
            environment="",
            debug=claims.debug,
            shared=False,
            layers=(),
            details=claims,
        )
