"""Is the evidence of an Intel TDX guest (a TD) genuine? A pure function of quote, collateral, roots and a time.

``verify_quote`` goes this way; whether genuine evidence is acceptable is ``confed.attestation.policy.tdx``:

1. the quote is verified as a DCAP quote (``intel_dcap``), and only then is the TD report in it read;
2. the event log of the firmware (CCEL), where there is one, must replay to the runtime measurement registers, and only
   then are its events read.

The report's 64 bytes of report data are what binds a quote to its purpose. Where a relying party has no binding but a
nonce of its own, the nonce must be their beginning.

Source: Intel TDX DCAP Quoting Library API, appendix A.3; UEFI 2.10, section 38.4.1 (event log registers).
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from confed.attestation.evidence import Envelope, Expectation, Report
from confed.attestation.tee import intel_dcap
from confed.attestation.tee.event_log import LOG_LIMIT_BYTES, parse_ccel, verified_events
from confed.attestation.tee.intel_dcap import PlatformClaims, TcbClaims
from confed.attestation.tee.intel_quote import TeeKind, read_quote_file
from confed.attestation.tee.intel_reports import TdReport, read_td_report
from confed.errors import EndorsementFormatError, EvidenceSizeError

PROFILE = "tdx/1"

# TDX Module Base Architecture Specification, table of ATTRIBUTES: the TUD group, whose bits make a TD untrusted.
_UNDER_DEBUG = 0xFF
_FILE_LIMIT = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeEvent:
    """An event that was extended into a runtime register: its TCG type and what was extended, SHA-384."""

    register: int
    type: int
    digest: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class TdxClaims:
    """What a genuine quote of a TD says.

    Attributes:
        quote_version: 4, or 5 which can say what service TDs are bound.
        debug: somebody outside can look in, or watch it closely (the TUD bits).
        report: the TD report's own fields.
        platform, tcb: what Intel says about platform and TCB.
        event_log_replayed: an event log was there and gives the registers that were signed.
        events: its events in their order; empty where there was none.
    """

    quote_version: int
    debug: bool
    report: TdReport
    platform: PlatformClaims
    tcb: TcbClaims
    event_log_replayed: bool
    events: tuple[RuntimeEvent, ...]


def verify_quote(
    quote: bytes,
    *,
    collateral: Sequence[bytes],
    now: datetime.datetime,
    anchors: Sequence[bytes],
    event_logs: Sequence[bytes] = (),
) -> TdxClaims:
    """Return the claims of a genuine quote.

    Args:
        quote: version 4 or 5, zero padding allowed.
        collateral: JSON in dcap-qvl's form; that of the quote's platform family is chosen.
        now: aware time to judge at.
        anchors: Intel's root in DER.
        event_logs: none, or the firmware's one (CCEL), which must replay to all four registers.

    Raises:
        EvidenceFormatError, EvidenceSizeError, TrailingBytesError, EvidenceVersionError, AlgorithmError: the form.
        MissingEndorsementError, EndorsementMismatchError, StaleEndorsementError, EndorsementFormatError: collateral.
        TrustAnchorError, CertificateChainError, CertificateValidityError, RevokedError, RevocationUnknownError: chains.
        EvidenceSignatureError, KeyBindingError: signatures. EventLogError: a log that does not replay.
    """
    # 1.
    verified = intel_dcap.verify_quote(quote, tee=TeeKind.TDX, collateral=collateral, anchors=anchors, now=now)
    report = read_td_report(verified.quote.body)
    # 2.
    if len(event_logs) > 1:
        raise EvidenceSizeError("event logs", expected="at most one", got=len(event_logs))
    return TdxClaims(
        quote_version=verified.quote.version,
        debug=bool(report.td_attributes[0] & _UNDER_DEBUG),
        report=report,
        platform=verified.platform,
        tcb=verified.tcb,
        event_log_replayed=bool(event_logs),
        events=tuple(event for log in event_logs for event in _replayed(log, report)),
    )


def verify_files(
    evidence: bytes,
    endorsements: Sequence[bytes],
    *,
    expectation: Expectation,
    now: datetime.datetime,
    anchors: Sequence[bytes] | None,
) -> TdxClaims:
    """Return the claims of a quote in a vendor's files.

    Args:
        evidence: the quote, binary or in hexadecimal.
        endorsements: collateral JSON and a CCEL, told apart by content, in any order.
        expectation: the nonce must be the beginning of report data.
        now: aware time to judge at.
        anchors: DER; ``None`` for Intel's pinned root.

    Raises:
        NonceError, BindingMismatchError: another nonce or other report data.
        AttestationError: see ``verify_quote``.
    """
    if len(endorsements) > _FILE_LIMIT:
        raise EndorsementFormatError("endorsements", expected=f"at most {_FILE_LIMIT}", got=len(endorsements))
    collateral = [data for data in endorsements if _is_json(data)]
    claims = verify_quote(
        read_quote_file(evidence),
        collateral=collateral,
        now=now,
        anchors=intel_dcap.pinned_roots() if anchors is None else anchors,
        event_logs=[data for data in endorsements if not _is_json(data)],
    )
    intel_dcap.require_expected(claims.report.report_data, expectation)
    return claims


class TdxVerifier:
    """The driver for TDs.

    Measurement is MRTD. Configuration is MRCONFIGID: the manifest's digest where 16 zero bytes follow it.
    """

    PROFILE: ClassVar[str] = PROFILE
    EVIDENCE_CLASS: ClassVar[str] = "intel-tdx"
    HARDWARE_ROOTED: ClassVar[bool] = True

    def verify(
        self, envelope: Envelope, *, endorsements: Sequence[bytes], now_ms: int, anchors: Sequence[bytes]
    ) -> Report:
        """Return what the quote in an envelope says.

        The verifier's own endorsements go first, then the envelope's hints; one collateral is taken, whole.

        Raises:
            AttestationError: see ``verify_quote``.
        """
        claims = verify_quote(
            envelope.evidence,
            collateral=(*endorsements, *envelope.endorsements),
            now=intel_dcap.time_of(now_ms),
            anchors=anchors,
            event_logs=envelope.event_logs,
        )
        report = claims.report
        return Report(
            report_data=report.report_data,
            measurement=report.mr_td.hex(),
            configuration=intel_dcap.configuration_of(report.mr_config_id),
            environment="",
            debug=claims.debug,
            shared=False,
            layers=(),
            details=claims,
        )


def _replayed(data: bytes, report: TdReport) -> tuple[RuntimeEvent, ...]:
    if len(data) > LOG_LIMIT_BYTES:
        raise EvidenceSizeError("event log in bytes", expected=f"at most {LOG_LIMIT_BYTES}", got=len(data))
    events = verified_events(parse_ccel(data), algorithm="sha384", registers=dict(enumerate(report.rtmr)))
    return tuple(RuntimeEvent(register=event.register, type=event.type, digest=event.digest) for event in events)


def _is_json(data: bytes) -> bool:
    return data.lstrip()[:1] == b"{"
