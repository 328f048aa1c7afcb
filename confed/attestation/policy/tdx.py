"""Is a genuine Intel TDX guest acceptable? Floors in code first, then the owner's choices.

Floors hold whatever a policy says (``require_floors``), in this order:

- nobody can look into the TD or profile it (the TUD bits), and nobody can migrate it (MIGRATABLE);
- the TDX module is one that TCB info knows, and the TCB is neither revoked nor below every level (``intel_tcb``);
- no attribute is set that is not known here (SERVTD_EXT is not), and SEPT_VE_DISABLE is set, so that the host cannot
  take a page of the TD's away and see how it goes on;
- no service TD is bound that could take it over (MRSERVICETD);
- MRTD is not zero;
- dcap-qvl has evaluated the TCB: it has found nothing in the report that it refuses.

``appraise`` then goes through the owner's choices:

1. Intel's judgement of the platform, and which platform (``intel_tcb``);
2. the quote's version: 4 cannot say that a service TD is bound, and the host chooses it;
3. what runs: MRTD and the runtime registers, by their values or by the events of a log that replayed to them;
4. how it was started: MRCONFIGID, MROWNER, MROWNERCONFIG, attributes and XFAM;
5. under which TDX module: MRSEAM, MRSIGNERSEAM and the least TEE_TCB_SVN, component by component, of the module that
   started the TD and, where the report says it, of the one that runs now.

Report data is not here: it is compared with what the quote was asked for when the quote is verified.

Source: Intel TDX Module Base Architecture Specification (ATTRIBUTES, XFAM); Linux, arch/x86/include/asm/shared/tdx.h
(the attributes' bits); Intel TDX DCAP Quoting Library API, A.3.3 and A.3.4.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from confed.attestation.policy.allow_lists import Allowed, require_allow_list, require_allowed
from confed.attestation.policy.intel_tcb import (
    IntelTcbPolicy,
    require_default_tcb,
    require_evaluated,
    require_tcb,
    require_tcb_floors,
)
from confed.attestation.tee.event_log import RUNTIME_REGISTERS
from confed.attestation.tee.tdx import PROFILE, TdxClaims
from confed.errors import (
    AttributesError,
    ConfigurationError,
    DebugError,
    MeasurementError,
    MigrationError,
    PolicyFormatError,
    RegisterError,
    ReportVersionError,
    SecurityModuleError,
)
from confed.manifest import Unchecked

_SHA384_BYTES = 48
_SVN_BYTES = 16
_VERSIONS = (4, 5)

DECIDED_IN_PRODUCTION = ("registers",)
"""MRTD, which manifests pin, covers the virtual firmware alone: any kernel could run under it."""


class TdAttribute(StrEnum):
    """Attributes of a TD that an owner can demand or forbid."""

    ICSSD = "ICSSD"
    LASS = "LASS"
    PKS = "PKS"
    KL = "KL"
    TPA = "TPA"
    PERFMON = "PERFMON"


_BITS = {
    TdAttribute.ICSSD: 16,
    TdAttribute.LASS: 27,
    TdAttribute.PKS: 30,
    TdAttribute.KL: 31,
    TdAttribute.TPA: 62,
    TdAttribute.PERFMON: 63,
}
_SEPT_VE_DISABLE, _MIGRATABLE = 28, 29
_KNOWN = sum(1 << bit for bit in (*_BITS.values(), _SEPT_VE_DISABLE))

Attributes = tuple[TdAttribute, ...] | Unchecked


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisterValues:
    """Accepted values of the runtime registers, 48 bytes in hexadecimal each; zeros where nothing is extended."""

    rtmr0: tuple[str, ...] | Unchecked
    rtmr1: tuple[str, ...] | Unchecked
    rtmr2: tuple[str, ...] | Unchecked
    rtmr3: tuple[str, ...] | Unchecked

    def __post_init__(self) -> None:
        for index, allowed in enumerate(self.values):
            require_allow_list(f"registers.rtmr{index}", allowed, sizes=(_SHA384_BYTES,), zeros=True)
        if all(isinstance(allowed, Unchecked) for allowed in self.values):
            raise PolicyFormatError("registers", expected="at least one checked", got="none")

    @property
    def values(self) -> tuple[Allowed, ...]:
        """The lists by register number."""
        return (self.rtmr0, self.rtmr1, self.rtmr2, self.rtmr3)


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisterEvents:
    """Accepted events of a log that replays to the runtime registers; each is the digest that was extended.

    Attributes:
        accepted_events: what may have been extended; anything else is refused.
        required_events: what must have been extended; a subset of the former.
    """

    accepted_events: tuple[str, ...]
    required_events: tuple[str, ...] | Unchecked

    def __post_init__(self) -> None:
        for name in ("accepted_events", "required_events"):
            require_allow_list(f"registers.{name}", getattr(self, name), sizes=(_SHA384_BYTES,))
        if not isinstance(self.required_events, Unchecked):
            missing = set(self.required_events) - set(self.accepted_events)
            if missing:
                raise PolicyFormatError("registers.required_events", expected="accepted events", got=min(missing))


@dataclass(frozen=True, slots=True, kw_only=True)
class TdxPolicy:
    """Which TDs an owner accepts. Values are lower-case hexadecimal; all lists are allow-lists.

    Attributes:
        tcb: Intel's judgement, and which platforms.
        minimum_quote_version: 4 or 5.
        mr_td, mr_config_id, mr_owner, mr_owner_config, mr_seam, mr_signer_seam: 48 bytes each. Zeros are accepted in
            the last five, where they mean that nothing was set, or that Intel signed.
        registers: of the runtime, by value or by event.
        attributes_required, attributes_forbidden: beyond those that floors decide.
        xfam: 8 bytes, as in the report.
        minimum_tee_tcb_svn: 16 bytes, each the least of its component.

    Raises:
        PolicyFormatError: an empty list, a value that is not of its one form, zeros for a measurement.
    """

    PROFILE: ClassVar[str] = PROFILE

    tcb: IntelTcbPolicy
    minimum_quote_version: int
    mr_td: tuple[str, ...] | Unchecked
    registers: RegisterValues | RegisterEvents | Unchecked
    mr_config_id: tuple[str, ...] | Unchecked
    mr_owner: tuple[str, ...] | Unchecked
    mr_owner_config: tuple[str, ...] | Unchecked
    attributes_required: tuple[TdAttribute, ...] | Unchecked
    attributes_forbidden: tuple[TdAttribute, ...] | Unchecked
    xfam: tuple[str, ...] | Unchecked
    mr_seam: tuple[str, ...] | Unchecked
    mr_signer_seam: tuple[str, ...] | Unchecked
    minimum_tee_tcb_svn: str | Unchecked

    def __post_init__(self) -> None:
        if self.minimum_quote_version not in _VERSIONS:
            raise PolicyFormatError("minimum_quote_version", expected=_VERSIONS, got=self.minimum_quote_version)
        for name, zeros in (
            ("mr_td", False),
            ("mr_seam", False),
            ("mr_config_id", True),
            ("mr_owner", True),
            ("mr_owner_config", True),
            ("mr_signer_seam", True),
        ):
            require_allow_list(name, getattr(self, name), sizes=(_SHA384_BYTES,), zeros=zeros)
        require_allow_list("xfam", self.xfam, sizes=(8,))
        for name in ("attributes_required", "attributes_forbidden"):
            if not getattr(self, name):
                raise PolicyFormatError(name, expected="at least one entry, or unchecked", got="none")
        if not isinstance(self.minimum_tee_tcb_svn, Unchecked):
            require_allow_list("minimum_tee_tcb_svn", (self.minimum_tee_tcb_svn,), sizes=(_SVN_BYTES,))


def require_floors(claims: TdxClaims) -> None:
    """Check what holds whatever a policy says.

    Raises:
        DebugError, MigrationError, AttributesError, SecurityModuleError, MeasurementError, TcbStatusError: see above.
    """
    report = claims.report
    attributes = int.from_bytes(report.td_attributes, "little")
    if claims.debug:
        raise DebugError("TD attributes", expected="no debugging or profiling", got=report.td_attributes.hex())
    if attributes >> _MIGRATABLE & 1:
        raise MigrationError("TD attributes", expected="no MIGRATABLE", got=report.td_attributes.hex())
    require_tcb_floors(claims.tcb)
    if attributes & ~_KNOWN:
        raise AttributesError("TD attributes", expected="known bits", got=report.td_attributes.hex())
    if not attributes >> _SEPT_VE_DISABLE & 1:
        raise AttributesError("TD attributes", expected="SEPT_VE_DISABLE", got=report.td_attributes.hex())
    if any(report.mr_service_td):
        raise SecurityModuleError("MRSERVICETD", expected="no service TD", got=report.mr_service_td.hex()[:32])
    if not any(report.mr_td):
        raise MeasurementError("MRTD", expected="a digest", got="zeros")
    require_evaluated(claims.tcb)


def require_defaults(claims: TdxClaims) -> None:
    """Check the floors, and what holds where nobody gave a policy.

    Raises:
        TcbStatusError: a TCB that is out of date.
        AppraisalError: see ``require_floors``.
    """
    require_floors(claims)
    require_default_tcb(claims.tcb)


def appraise(claims: TdxClaims, policy: TdxPolicy, *, now: datetime.datetime) -> None:
    """Accept what a genuine quote says, or refuse it with the class that says why.

    Args:
        claims: from ``verify_quote``.
        policy: the owner's.
        now: when, with its time zone.

    Raises:
        AppraisalError: of the class of the first floor or choice that is not met.
    """
    require_floors(claims)
    # 1.
    require_tcb(claims.tcb, claims.platform, policy.tcb, now=now)
    # 2.
    if claims.quote_version < policy.minimum_quote_version:
        least = policy.minimum_quote_version
        raise ReportVersionError("quote version", expected=f"at least {least}", got=claims.quote_version)
    # 3.
    report = claims.report
    require_allowed("MRTD", report.mr_td, policy.mr_td, MeasurementError)
    _require_registers(claims, policy)
    # 4.
    require_allowed("MRCONFIGID", report.mr_config_id, policy.mr_config_id, ConfigurationError)
    require_allowed("MROWNER", report.mr_owner, policy.mr_owner, ConfigurationError)
    require_allowed("MROWNERCONFIG", report.mr_owner_config, policy.mr_owner_config, ConfigurationError)
    _require_attributes(report.td_attributes, policy)
    require_allowed("XFAM", report.xfam, policy.xfam, AttributesError)
    # 5.
    require_allowed("MRSEAM", report.mr_seam, policy.mr_seam, SecurityModuleError)
    require_allowed("MRSIGNERSEAM", report.mr_signer_seam, policy.mr_signer_seam, SecurityModuleError)
    _require_svn("TEE_TCB_SVN", report.tee_tcb_svn, policy.minimum_tee_tcb_svn)
    if report.tee_tcb_svn2:
        _require_svn("TEE_TCB_SVN2", report.tee_tcb_svn2, policy.minimum_tee_tcb_svn)


def _require_registers(claims: TdxClaims, policy: TdxPolicy) -> None:
    match policy.registers:
        case RegisterValues():
            for index in range(RUNTIME_REGISTERS):
                found = claims.report.rtmr[index]
                require_allowed(f"RTMR{index}", found, policy.registers.values[index], RegisterError)
        case RegisterEvents():
            _require_events(claims, policy.registers)
        case Unchecked():
            pass


def _require_events(claims: TdxClaims, policy: RegisterEvents) -> None:
    if not claims.event_log_replayed:
        raise RegisterError("event log", expected="one that replays to the registers", got="none")
    for event in claims.events:
        require_allowed(f"event in RTMR{event.register}", event.digest, policy.accepted_events, RegisterError)
    if not isinstance(policy.required_events, Unchecked):
        missing = set(policy.required_events) - {event.digest.hex() for event in claims.events}
        if missing:
            raise RegisterError("event log", expected=f"the event {min(missing)[:32]}", got="none like it")


def _require_attributes(attributes: bytes, policy: TdxPolicy) -> None:
    bits = int.from_bytes(attributes, "little")
    found = {attribute for attribute, bit in _BITS.items() if bits >> bit & 1}
    required: Attributes = policy.attributes_required
    forbidden: Attributes = policy.attributes_forbidden
    missing = [] if isinstance(required, Unchecked) else [name for name in required if name not in found]
    unwanted = [] if isinstance(forbidden, Unchecked) else [name for name in forbidden if name in found]
    if missing:
        raise AttributesError("TD attributes", expected=", ".join(missing), got=attributes.hex())
    if unwanted:
        raise AttributesError("TD attributes", expected=f"no {', '.join(unwanted)}", got=attributes.hex())


def _require_svn(field: str, found: bytes, least: str | Unchecked) -> None:
    if isinstance(least, Unchecked):
        return
    if any(have < want for have, want in zip(found, bytes.fromhex(least), strict=True)):
        raise SecurityModuleError(field, expected=f"at least {least} in each byte", got=found.hex())
