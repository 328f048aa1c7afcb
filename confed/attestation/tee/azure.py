"""Azure confidential VMs: hardware vouches for a paravisor, that for a virtual TPM, and that has measured the guest.

On Azure a guest gets no hardware report of its own. Microsoft's paravisor runs beside it at the highest privilege
level, keeps a virtual TPM there, and has the hardware sign the hash of its runtime data, in which the TPM's attestation
key stands. So a quote of that TPM counts if every link holds:

1. the evidence is of one of its forms (``azure_evidence``), and the paravisor's report of its own (``azure_hcl``);
2. the hardware's report is genuine: of SNP the one in the paravisor's report (``sev_snp``), of TDX the TD quote beside
   it (``tdx``); a TD report, which only its own processor can check, is not looked at;
3. it was asked for by the paravisor, which alone runs at VMPL 0, and its REPORT_DATA is the hash of the runtime data,
   followed by zeros;
4. the attestation key in the runtime data signed the quote, which is over exactly the registers that are presented
   (``tpm_quote``);
5. quote and runtime data answer what is expected: the nonce is the quote's qualifying data, the caller's data what the
   guest had the paravisor put into the runtime data;
6. the firmware's event log, where there is one, replays; only then is it read.

That it is Microsoft's paravisor, and not somebody's own program on the same kind of chip, is seen from the hardware's
measurement alone: a policy has to pin it (``confed.attestation.policy.azure``). That the key is restricted to attesting
is the paravisor's word, as everything in the virtual TPM is. Evidence counts for no more than its worst part: one part
that is not genuine, and none of it is.

Source: Microsoft Learn, "Azure confidential VMs guest attestation design".
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from confed.attestation.certificates import load_certificate
from confed.attestation.evidence import Binding, Envelope, Expectation, Report
from confed.attestation.tee import intel_dcap, sev_snp, sev_snp_endorsements, tdx
from confed.attestation.tee.azure_evidence import AzureEvidence, read_files
from confed.attestation.tee.azure_hcl import USER_DATA_BYTES, AzureRuntimeClaims, HclReport, Isolation, parse_report
from confed.attestation.tee.sev_snp import SnpClaims
from confed.attestation.tee.tdx import TdxClaims
from confed.attestation.tee.tpm import only_log
from confed.attestation.tee.tpm_claims import KeyRoot, TpmClaims, claims_of
from confed.attestation.tee.tpm_evidence import BANK, configuration_of, measurement_of, nonce_of
from confed.attestation.tee.tpm_files import is_event_log
from confed.attestation.tee.tpm_quote import verify_quote
from confed.errors import (
    BindingMismatchError,
    EvidenceSignatureError,
    EvidenceVersionError,
    KeyBindingError,
)

SNP_PROFILE = "azure-snp/1"
TDX_PROFILE = "azure-tdx/1"

HARDWARE_REPORT = "hardware-report"
"""What the attestation key of these virtual TPMs is rooted in."""

_SNP_CLASS, _TDX_CLASS = "azure-sev-snp", "azure-tdx"
_REPORT_DATA_BYTES = 64
# AMD 56860, section 4.4 and chapter 7: a guest of several levels; what runs at 0 rules over the others.
_PARAVISOR_LEVEL = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AzureSnpClaims:
    """What genuine evidence of a virtual machine on AMD SEV-SNP says.

    Attributes:
        hardware: the hardware's report, which measures the paravisor.
        runtime: what the paravisor says of the machine.
        tpm: the quote, which measures the guest.
    """

    hardware: SnpClaims
    runtime: AzureRuntimeClaims
    tpm: TpmClaims


@dataclass(frozen=True, slots=True, kw_only=True)
class AzureTdxClaims:
    """What genuine evidence of a virtual machine on Intel TDX says; attributes as of ``AzureSnpClaims``."""

    hardware: TdxClaims
    runtime: AzureRuntimeClaims
    tpm: TpmClaims


def verify_snp(
    evidence: AzureEvidence,
    *,
    endorsements: Sequence[bytes],
    event_logs: Sequence[bytes],
    nonce: bytes | None,
    now: datetime.datetime,
    anchors: Sequence[bytes],
) -> AzureSnpClaims:
    """Return the claims of genuine evidence of SEV-SNP.

    Args:
        evidence: its parts.
        endorsements: certificates of the chip's key and its authorities, and revocation lists: hints.
        event_logs: none, or the guest firmware's one.
        nonce: what the quote must answer; ``None`` leaves freshness unchecked.
        now: aware time to judge at.
        anchors: AMD's roots in DER.

    Raises:
        KeyBindingError: runtime data that the hardware did not sign for the paravisor, or a quote of another key.
        AttestationError: of the class that ``sev_snp``, ``azure_hcl`` or ``tpm_quote`` gives.
    """
    # 1.
    hcl = _parse(evidence, Isolation.SNP)
    read = sev_snp_endorsements.read_endorsements(endorsements)
    # 2.
    hardware = sev_snp.verify_report(
        hcl.hardware_report,
        certificates=read.certificates,
        crls=read.crls,
        anchors=[load_certificate(anchor, what="trust anchor") for anchor in anchors],
        now=now,
    )
    # 3.
    if hardware.report.vmpl != _PARAVISOR_LEVEL:
        raise KeyBindingError("VMPL", expected=f"{_PARAVISOR_LEVEL}, the paravisor's", got=hardware.report.vmpl)
    _require_runtime_data(hcl, hardware.report.report_data)
    # 4. to 6.
    quoted = _verify_quote(evidence, hcl, nonce=nonce, event_logs=event_logs, evidence_class=_SNP_CLASS)
    return AzureSnpClaims(hardware=hardware, runtime=hcl.runtime, tpm=quoted)


def verify_tdx(
    evidence: AzureEvidence,
    *,
    endorsements: Sequence[bytes],
    event_logs: Sequence[bytes],
    nonce: bytes | None,
    now: datetime.datetime,
    anchors: Sequence[bytes],
) -> AzureTdxClaims:
    """Return the claims of genuine evidence of TDX.

    Args:
        evidence: its parts.
        endorsements: collateral in dcap-qvl's form.
        event_logs: none, or the guest firmware's one, of the virtual TPM.
        nonce: what the quote must answer; ``None`` leaves freshness unchecked.
        now: aware time to judge at.
        anchors: Intel's root in DER.

    Raises:
        KeyBindingError: runtime data that the hardware did not sign, or a quote of another key.
        AttestationError: of the class that ``tdx``, ``azure_hcl`` or ``tpm_quote`` gives.
    """
    # 1.
    hcl = _parse(evidence, Isolation.TDX)
    # 2.
    hardware = tdx.verify_quote(evidence.td_quote, collateral=endorsements, now=now, anchors=anchors)
    # 3.
    _require_runtime_data(hcl, hardware.report.report_data)
    # 4. to 6.
    quoted = _verify_quote(evidence, hcl, nonce=nonce, event_logs=event_logs, evidence_class=_TDX_CLASS)
    return AzureTdxClaims(hardware=hardware, runtime=hcl.runtime, tpm=quoted)


def verify_snp_files(
    evidence: bytes,
    endorsements: Sequence[bytes],
    *,
    expectation: Expectation,
    now: datetime.datetime,
    anchors: Sequence[bytes] | None,
) -> AzureSnpClaims:
    """Return the claims of evidence of SEV-SNP in a file (``azure_evidence`` says in which forms).

    Args:
        evidence: the file; the chip's certificate in it is a hint.
        endorsements: further certificates, revocation lists, and the guest firmware's event log, in any order.
        expectation: ``nonce`` is the quote's qualifying data, ``report_data`` the runtime data's, padded to 64 bytes.
        now: aware time to judge at.
        anchors: roots in DER; ``None`` for AMD's, which are pinned.

    Raises:
        NonceError, BindingMismatchError: another nonce, or other data.
        AttestationError: see ``verify_snp``.
    """
    read = read_files(evidence, isolation=Isolation.SNP)
    logs, others = _sorted(endorsements)
    roots = [root.der for root in sev_snp_endorsements.pinned_roots()]
    claims = verify_snp(
        read,
        endorsements=[read.vcek, *others] if read.vcek else others,
        event_logs=logs,
        nonce=expectation.nonce,
        now=now,
        anchors=roots if anchors is None else anchors,
    )
    # 5.
    _require_user_data(claims.runtime, expectation.report_data)
    return claims


def verify_tdx_files(
    evidence: bytes,
    endorsements: Sequence[bytes],
    *,
    expectation: Expectation,
    now: datetime.datetime,
    anchors: Sequence[bytes] | None,
) -> AzureTdxClaims:
    """Return the claims of evidence of TDX in a file (``azure_evidence`` says in which forms).

    Args:
        evidence: the file.
        endorsements: collateral, and the guest firmware's event log, in any order.
        expectation: ``nonce`` is the quote's qualifying data, ``report_data`` the runtime data's, padded to 64 bytes.
        now: aware time to judge at.
        anchors: roots in DER; ``None`` for Intel's, which is pinned.

    Raises:
        NonceError, BindingMismatchError: another nonce, or other data.
        AttestationError: see ``verify_tdx``.
    """
    logs, others = _sorted(endorsements)
    claims = verify_tdx(
        read_files(evidence, isolation=Isolation.TDX),
        endorsements=others,
        event_logs=logs,
        nonce=expectation.nonce,
        now=now,
        anchors=intel_dcap.pinned_roots() if anchors is None else anchors,
    )
    # 5.
    _require_user_data(claims.runtime, expectation.report_data)
    return claims


class AzureSnpVerifier:
    """The driver for ``azure-snp/1``.

    The quote's qualifying data derives from REPORT_DATA; measurement and configuration are registers of the virtual TPM
    (``tpm_evidence``). What the hardware measured, the paravisor, is in the details, for a policy to pin.
    """

    PROFILE: ClassVar[str] = SNP_PROFILE
    EVIDENCE_CLASS: ClassVar[str] = _SNP_CLASS
    HARDWARE_ROOTED: ClassVar[bool] = True

    def verify(
        self, envelope: Envelope, *, endorsements: Sequence[bytes], now_ms: int, anchors: Sequence[bytes]
    ) -> Report:
        """Return the report of evidence that is genuine at ``now_ms`` and answers the envelope's binding.

        Raises:
            NonceError: a quote for another binding.
            MissingClaimError: a quote that leaves out the configuration, or everything else.
            AttestationError: see ``verify_snp``.
        """
        evidence = AzureEvidence.decode(envelope.evidence, isolation=Isolation.SNP)
        binding = Binding.decode(envelope.binding)
        report_data = binding.report_data(envelope.device_digest)
        claims = verify_snp(
            evidence,
            endorsements=(*endorsements, *envelope.endorsements),
            event_logs=envelope.event_logs,
            nonce=nonce_of(report_data),
            now=intel_dcap.time_of(now_ms),
            anchors=anchors,
        )
        debug = sev_snp.GuestPolicyBit.DEBUG in claims.hardware.report.guest_policy_bits
        return _report(evidence, binding, report_data=report_data, debug=debug, details=claims)


class AzureTdxVerifier:
    """The driver for ``azure-tdx/1``; see ``AzureSnpVerifier``."""

    PROFILE: ClassVar[str] = TDX_PROFILE
    EVIDENCE_CLASS: ClassVar[str] = _TDX_CLASS
    HARDWARE_ROOTED: ClassVar[bool] = True

    def verify(
        self, envelope: Envelope, *, endorsements: Sequence[bytes], now_ms: int, anchors: Sequence[bytes]
    ) -> Report:
        """Return the report of evidence that is genuine at ``now_ms`` and answers the envelope's binding.

        Raises:
            NonceError: a quote for another binding.
            MissingClaimError: a quote that leaves out the configuration, or everything else.
            AttestationError: see ``verify_tdx``.
        """
        evidence = AzureEvidence.decode(envelope.evidence, isolation=Isolation.TDX)
        binding = Binding.decode(envelope.binding)
        report_data = binding.report_data(envelope.device_digest)
        claims = verify_tdx(
            evidence,
            endorsements=(*endorsements, *envelope.endorsements),
            event_logs=envelope.event_logs,
            nonce=nonce_of(report_data),
            now=intel_dcap.time_of(now_ms),
            anchors=anchors,
        )
        return _report(evidence, binding, report_data=report_data, debug=claims.hardware.debug, details=claims)


def _parse(evidence: AzureEvidence, isolation: Isolation) -> HclReport:
    hcl = parse_report(evidence.hcl_report)
    if hcl.isolation is not isolation:
        raise EvidenceVersionError("HCL report type", expected=isolation, got=hcl.isolation)
    return hcl


def _require_runtime_data(hcl: HclReport, report_data: bytes) -> None:
    # 3.
    expected = hashlib.new(hcl.hash, hcl.runtime_data).digest().ljust(_REPORT_DATA_BYTES, b"\x00")
    if report_data != expected:
        raise KeyBindingError(
            "REPORT_DATA", expected=f"the hash of runtime data, {expected.hex()[:32]}", got=report_data.hex()[:32]
        )


def _verify_quote(
    evidence: AzureEvidence,
    hcl: HclReport,
    *,
    nonce: bytes | None,
    event_logs: Sequence[bytes],
    evidence_class: str,
) -> TpmClaims:
    key = hcl.attestation_key
    # 4. and 5.
    try:
        quote = verify_quote(evidence.quote, evidence.signature, key, pcrs=evidence.pcrs, bank=BANK, nonce=nonce)
    except EvidenceSignatureError as error:
        raise KeyBindingError("TPM quote", expected="signed by the key in runtime data", got="not") from error
    # 6.
    return claims_of(
        quote,
        root=KeyRoot(by=HARDWARE_REPORT, key=key, public=None, endorsement_key=None),
        pcrs=evidence.pcrs,
        bank=BANK,
        nonce_checked=bool(nonce),
        event_log=only_log(event_logs),
        evidence_class=evidence_class,
        hardware_rooted=True,
    )


def _require_user_data(runtime: AzureRuntimeClaims, expected: bytes | None) -> None:
    if expected is not None and expected.ljust(USER_DATA_BYTES, b"\x00") != runtime.user_data:
        raise BindingMismatchError("user-data", expected=expected.hex()[:32], got=runtime.user_data.hex()[:32])


def _report(
    evidence: AzureEvidence,
    binding: Binding,
    *,
    report_data: bytes,
    debug: bool,
    details: AzureSnpClaims | AzureTdxClaims,
) -> Report:
    return Report(
        report_data=report_data,
        measurement=measurement_of(evidence.pcrs),
        configuration=configuration_of(evidence.pcrs, binding),
        environment="",
        debug=debug,
        shared=False,
        layers=(),
        details=details,
    )


def _sorted(endorsements: Sequence[bytes]) -> tuple[list[bytes], list[bytes]]:
    """Return event logs, and everything else."""
    logs = [data for data in endorsements if is_event_log(data)]
    return logs, [data for data in endorsements if not is_event_log(data)]
