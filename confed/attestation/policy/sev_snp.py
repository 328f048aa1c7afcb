"""Is a genuine report of AMD SEV-SNP acceptable? Floors in code first, then the owner's choices.

Floors hold whatever a policy says (``require_floors``), in this order:

- nobody can debug the guest (DEBUG), no migration agent can take it over (MIGRATE_MA, REPORT_ID_MA);
- no bit of the guest policy or of PLATFORM_INFO is set that is not known here;
- the guest asked for the report, not the host (VMPL at most 3);
- the TCB is consistent with itself: REPORTED_TCB and COMMITTED_TCB are at most CURRENT_TCB, and the committed firmware
  version is at most the current one;
- the platform has looked for memory aliases since it started (ALIAS_CHECK_COMPLETE), which only firmware that makes
  reports of version 3 and up can say; the measurement is not zero.

Not floors, because clouds differ there without being unsafe: a cloud may report a TCB below the one that it has
committed, so that a whole fleet reports one; and what runs may be newer than what is committed while an update is on
its way. ``require_defaults`` refuses the latter where nobody has said otherwise; a policy may leave it unchecked.

``appraise`` then goes through the owner's choices:

1. the dated minimum TCB has not expired;
2. what the report is: its version, product and processor, who vouches for it, revocation, chip;
3. what runs: measurement, the keys that signed the guest's ID block and what that says, host data;
4. how it runs: privilege level, guest policy, platform;
5. on what firmware: interface version, committed and minimum TCB, mitigations.

LAUNCH_TCB stands in no fixed order to the others. A minimum TCB holds for it as for REPORTED_TCB: what old firmware did
at launch, newer firmware does not undo.

Source: AMD 56860 (SEV-SNP firmware ABI) revision 1.58; AMD-SB-3015 (memory aliases), AMD-SB-3016 (IOMMU writes).
"""

from __future__ import annotations

import datetime
from collections.abc import Collection, Mapping

from confed.attestation.policy.sev_snp_terms import (
    CHIP_DIGITS,
    GUEST_LEVELS,
    AbiVersion,
    Mitigations,
    SnpPolicy,
    listed,
)
from confed.attestation.tee.sev_snp import SnpClaims
from confed.attestation.tee.sev_snp_report import GuestPolicyBit, PlatformBit, SigningKey, SnpReport, Tcb
from confed.errors import (
    AliasCheckError,
    AppraisalError,
    ConfigurationError,
    DebugError,
    FirmwareError,
    GuestPolicyError,
    MeasurementError,
    MigrationError,
    MitigationError,
    PlatformError,
    PlatformInfoError,
    PolicyExpiredError,
    PrivilegeLevelError,
    ProductError,
    ReportVersionError,
    RevocationStatusError,
    SignerError,
    TcbError,
)
from confed.manifest import Unchecked

LEAST_DEFAULT_VERSION = 3
"""Oldest report that is accepted where nobody gave a policy: the first that says what processor it is from."""


def require_floors(claims: SnpClaims) -> None:
    """Check what holds whatever a policy says.

    Raises:
        DebugError, MigrationError, GuestPolicyError, PrivilegeLevelError, TcbError, AliasCheckError,
        PlatformInfoError, MeasurementError: see the module.
    """
    _require_guest_floors(claims.report)
    _require_platform_floors(claims.report)


def require_defaults(claims: SnpClaims) -> None:
    """Check the floors, and what holds where nobody gave a policy.

    Raises:
        ReportVersionError: a version before 3. PrivilegeLevelError: a VMPL other than 0.
        TcbError: what runs is not what is committed.
        AppraisalError: see ``require_floors``.
    """
    require_floors(claims)
    _require_version(claims.report, LEAST_DEFAULT_VERSION)
    _require_level(claims.report, (0,))
    _require_committed(claims.report)


def appraise(claims: SnpClaims, policy: SnpPolicy, *, now: datetime.datetime) -> None:
    """Accept what a genuine report says, or refuse it with the class that says why.

    Args:
        claims: from ``verify_report``.
        policy: the owner's.
        now: when, with its time zone.

    Raises:
        PolicyExpiredError: the minimum TCB's last day is over.
        AppraisalError: of the class of the first floor or choice that is not met.
    """
    require_floors(claims)
    # 1.
    if not isinstance(policy.minimum_tcb, Unchecked):
        today = now.astimezone(datetime.UTC).date()
        if today > policy.minimum_tcb.last_day:
            raise PolicyExpiredError("minimum_tcb", expected=f"a day until {policy.minimum_tcb.last_day}", got=today)
    # 2. to 5.
    _require_origin(claims, policy)
    _require_guest(claims.report, policy)
    _require_settings(claims.report, policy)
    _require_firmware(claims.report, policy)


def _require_guest_floors(report: SnpReport) -> None:
    if GuestPolicyBit.DEBUG in report.guest_policy_bits:
        raise DebugError("guest policy", expected="no DEBUG", got=report.guest_policy)
    if GuestPolicyBit.MIGRATE_MA in report.guest_policy_bits:
        raise MigrationError("guest policy", expected="no MIGRATE_MA", got=report.guest_policy)
    if report.report_id_ma not in (b"\xff" * len(report.report_id_ma), bytes(len(report.report_id_ma))):
        raise MigrationError("REPORT_ID_MA", expected="no migration agent", got=report.report_id_ma.hex()[:16])
    if report.unknown_guest_policy:
        raise GuestPolicyError("guest policy", expected="known bits", got=f"{report.unknown_guest_policy:#x}")
    if report.unknown_platform_info:
        raise PlatformInfoError("PLATFORM_INFO", expected="known bits", got=report.platform_info)
    if report.vmpl not in GUEST_LEVELS:
        raise PrivilegeLevelError("VMPL", expected="a report that the guest asked for", got=report.vmpl)


def _require_platform_floors(report: SnpReport) -> None:
    for name, tcb in (("REPORTED_TCB", report.reported_tcb), ("COMMITTED_TCB", report.committed_tcb)):
        if not report.current_tcb.covers(tcb):
            raise TcbError(name, expected=f"at most CURRENT_TCB {_shown(report.current_tcb)}", got=_shown(tcb))
    if report.committed_version > report.current_version:
        raise TcbError("committed firmware", expected=f"at most {report.current_version}", got=report.committed_version)
    if PlatformBit.ALIAS_CHECK_COMPLETE not in report.platform_bits:
        raise AliasCheckError("PLATFORM_INFO", expected="ALIAS_CHECK_COMPLETE", got=report.platform_info)
    if not any(report.measurement):
        raise MeasurementError("MEASUREMENT", expected="a digest", got="zeros")


def _require_origin(claims: SnpClaims, policy: SnpPolicy) -> None:
    _require_version(claims.report, policy.minimum_report_version)
    _require_in("product", claims.product, policy.products, ProductError)
    processor = claims.report.processor
    if not isinstance(policy.denied_processors, Unchecked):
        denied = [name for name in policy.denied_processors if f"{processor}-".startswith(f"{name}-")]
        if denied or not processor:
            raise ProductError("processor", expected="one that is known and not denied", got=processor or "unknown")
    _require_in("signing key", claims.signing_key, policy.signing_keys, PlatformError)
    if claims.signing_key is SigningKey.VLEK:
        _require_in("CSP_ID", claims.csp_id, policy.csp_ids, PlatformError)
    if not isinstance(policy.revocation, Unchecked) and not claims.revocation_checked:
        raise RevocationStatusError("revocation", expected="a list of the root's", got="none")
    if not isinstance(policy.chips, Unchecked):
        chips = [chip.ljust(CHIP_DIGITS, "0") for chip in policy.chips]
        _require_in("CHIP_ID", claims.chip_id.hex(), chips, PlatformError)


def _require_guest(report: SnpReport, policy: SnpPolicy) -> None:
    _require_in("MEASUREMENT", report.measurement.hex(), policy.measurements, MeasurementError)
    _require_in("ID_KEY_DIGEST", report.id_key_digest.hex(), policy.id_keys, SignerError)
    author = report.author_key_digest.hex() if report.author_key_enabled else "none"
    _require_in("AUTHOR_KEY_DIGEST", author, policy.author_keys, SignerError)
    if not isinstance(policy.minimum_guest_svn, Unchecked) and report.guest_svn < policy.minimum_guest_svn:
        raise SignerError("GUEST_SVN", expected=f"at least {policy.minimum_guest_svn}", got=report.guest_svn)
    _require_in("FAMILY_ID", report.family_id.hex(), policy.family_ids, SignerError)
    _require_in("IMAGE_ID", report.image_id.hex(), policy.image_ids, SignerError)
    _require_in("HOST_DATA", report.host_data.hex(), policy.host_data, ConfigurationError)


def _require_settings(report: SnpReport, policy: SnpPolicy) -> None:
    _require_level(report, policy.privilege_levels)
    abi = AbiVersion(major=report.abi_major, minor=report.abi_minor)
    if not isinstance(policy.minimum_abi, Unchecked) and abi < policy.minimum_abi:
        raise GuestPolicyError("guest policy", expected=f"at least {policy.minimum_abi}", got=abi)
    required, forbidden = policy.guest_policy_required, policy.guest_policy_forbidden
    _require_bits("guest policy", report.guest_policy_bits, required, forbidden, GuestPolicyError)
    required, forbidden = policy.platform_info_required, policy.platform_info_forbidden
    _require_bits("PLATFORM_INFO", report.platform_bits, required, forbidden, PlatformInfoError)


def _require_firmware(report: SnpReport, policy: SnpPolicy) -> None:
    least = policy.minimum_firmware
    if not isinstance(least, Unchecked) and report.committed_version < least:
        raise FirmwareError("committed firmware", expected=f"at least {least}", got=report.committed_version)
    if not isinstance(policy.committed, Unchecked):
        _require_committed(report)
    if not isinstance(policy.minimum_tcb, Unchecked):
        floor = policy.minimum_tcb.processors.get(report.processor)
        if floor is None:
            raise TcbError("minimum_tcb", expected="an entry for the processor", got=report.processor or "unknown")
        for name, tcb in (("REPORTED_TCB", report.reported_tcb), ("LAUNCH_TCB", report.launch_tcb)):
            if not tcb.covers(floor):
                raise TcbError(name, expected=f"at least {_shown(floor)}", got=_shown(tcb))
    if not isinstance(policy.mitigations, Unchecked):
        _require_mitigations(report, policy.mitigations)


def _require_mitigations(report: SnpReport, mitigations: Mapping[str, Mitigations]) -> None:
    wanted = mitigations.get(report.processor)
    if wanted is None:
        raise MitigationError("mitigations", expected="an entry for the processor", got=report.processor or "unknown")
    for name, found, mask in (
        ("LAUNCH_MIT_VECTOR", report.launch_mitigations, wanted.launch),
        ("CURRENT_MIT_VECTOR", report.current_mitigations, wanted.current),
    ):
        if isinstance(mask, Unchecked):
            continue
        if not found or int(mask, 16) & ~int(found, 16):
            raise MitigationError(name, expected=f"the bits {mask}", got=found or "no vector before version 5")


def _require_version(report: SnpReport, least: int) -> None:
    if report.version < least:
        raise ReportVersionError("report version", expected=f"at least {least}", got=report.version)


def _require_level(report: SnpReport, levels: Collection[int]) -> None:
    if report.vmpl not in levels:
        raise PrivilegeLevelError("VMPL", expected=", ".join(map(str, levels)), got=report.vmpl)


def _require_committed(report: SnpReport) -> None:
    if report.committed_tcb != report.current_tcb:
        got = _shown(report.current_tcb)
        raise TcbError("CURRENT_TCB", expected=f"the committed {_shown(report.committed_tcb)}", got=got)
    if report.committed_version != report.current_version:
        raise TcbError("firmware", expected=f"the committed {report.committed_version}", got=report.current_version)


def _require_in(field: str, value: str, allowed: Collection[str] | Unchecked, error: type[AppraisalError]) -> None:
    if not isinstance(allowed, Unchecked) and value not in allowed:
        raise error(field, expected=", ".join(entry[:16] for entry in allowed)[:200], got=value[:16])


def _require_bits(
    field: str,
    found: Collection[str],
    required: Collection[str] | Unchecked,
    forbidden: Collection[str] | Unchecked,
    error: type[AppraisalError],
) -> None:
    missing = [bit for bit in listed(required) if bit not in found]
    if missing:
        raise error(field, expected=", ".join(missing), got="not set")
    present = [bit for bit in listed(forbidden) if bit in found]
    if present:
        raise error(field, expected=f"no {', no '.join(present)}", got="set")


def _shown(tcb: Tcb) -> str:
    return f"{tcb.fmc}.{tcb.bootloader}.{tcb.tee}.{tcb.snp}.{tcb.microcode}"
