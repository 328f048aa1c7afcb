"""Is a genuine Intel SGX enclave acceptable? Floors in code first, then the owner's choices.

Floors hold whatever a policy says (``require_floors``), in this order:

- nobody can look into the enclave (DEBUG);
- the TCB is neither revoked nor below every level (``intel_tcb``);
- the enclave was initialised (INIT), and no attribute and no bit of MISCSELECT is set that is not known here;
- MRENCLAVE is not zero;
- dcap-qvl has evaluated the TCB: it has found nothing in the report that it refuses.

Where nobody gave a policy, an enclave that may use the platform's provisioning or launch key is refused too: those
belong to Intel's own enclaves, and tell platforms apart.

``appraise`` then goes through the owner's choices:

1. Intel's judgement of the platform, and which platform (``intel_tcb``);
2. what runs: MRENCLAVE, or who signed it (MRSIGNER), as which product and in which version;
3. how it was started: CONFIGID, CONFIGSVN, family and extended product;
4. attributes, XFRM and MISCSELECT.

Report data is not here: it is compared with what the quote was asked for when the quote is verified.

Source: Intel SDM volume 3D, sections 38.7.1 (ATTRIBUTES), 38.7.2 (MISCSELECT) and 38.15 (REPORT).
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from confed.attestation.policy.allow_lists import require_allow_list, require_allowed
from confed.attestation.policy.intel_tcb import (
    IntelTcbPolicy,
    require_default_tcb,
    require_evaluated,
    require_tcb,
    require_tcb_floors,
)
from confed.attestation.tee.intel_reports import EnclaveReport
from confed.attestation.tee.sgx import PROFILE, SgxClaims
from confed.errors import (
    AttributesError,
    ConfigurationError,
    DebugError,
    MeasurementError,
    PolicyFormatError,
    SignerError,
)
from confed.manifest import Unchecked

_NUMBERS = range(2**16)


class EnclaveAttribute(StrEnum):
    """Attributes of an enclave that an owner can demand or forbid."""

    MODE64BIT = "MODE64BIT"
    PROVISION_KEY = "PROVISION_KEY"
    EINITTOKEN_KEY = "EINITTOKEN_KEY"
    CET = "CET"
    KSS = "KSS"
    AEX_NOTIFY = "AEX_NOTIFY"


# Intel SDM volume 3D, table 38-3.
_BITS = {
    EnclaveAttribute.MODE64BIT: 2,
    EnclaveAttribute.PROVISION_KEY: 4,
    EnclaveAttribute.EINITTOKEN_KEY: 5,
    EnclaveAttribute.CET: 6,
    EnclaveAttribute.KSS: 7,
    EnclaveAttribute.AEX_NOTIFY: 10,
}
_INIT = 0x01
_KNOWN = sum(1 << bit for bit in _BITS.values()) | _INIT
# The same, table 38-5: EXINFO and CPINFO.
_KNOWN_MISC = 0x03
_PLATFORM_KEYS = (EnclaveAttribute.PROVISION_KEY, EnclaveAttribute.EINITTOKEN_KEY)


@dataclass(frozen=True, slots=True, kw_only=True)
class EnclaveMeasurements:
    """Exactly these enclaves: MRENCLAVE, 32 bytes in hexadecimal."""

    mr_enclave: tuple[str, ...]

    def __post_init__(self) -> None:
        require_allow_list("code.mr_enclave", self.mr_enclave, sizes=(32,))


@dataclass(frozen=True, slots=True, kw_only=True)
class EnclaveSigners:
    """Whatever these signers release as these products: MRSIGNER (32 bytes in hexadecimal), ISVPRODID, least ISVSVN."""

    mr_signer: tuple[str, ...]
    isv_prod_ids: tuple[int, ...]
    minimum_isv_svn: int

    def __post_init__(self) -> None:
        require_allow_list("code.mr_signer", self.mr_signer, sizes=(32,))
        if not self.isv_prod_ids or any(number not in _NUMBERS for number in self.isv_prod_ids):
            raise PolicyFormatError("code.isv_prod_ids", expected="numbers from 0 to 65535", got=self.isv_prod_ids)
        _require_number("code.minimum_isv_svn", self.minimum_isv_svn)


@dataclass(frozen=True, slots=True, kw_only=True)
class SgxPolicy:
    """Which enclaves an owner accepts. Values are lower-case hexadecimal; all lists are allow-lists.

    Attributes:
        tcb: Intel's judgement, and which platforms.
        code: by measurement, or by signer, product and version.
        config_ids, minimum_config_svn: CONFIGID (64 bytes) and CONFIGSVN, set by whoever started the enclave.
        isv_family_ids, isv_ext_prod_ids: 16 bytes each, set by the signer.
        attributes_required, attributes_forbidden: beyond those that floors decide.
        xfrm, misc_select: 8 and 4 bytes, as in the report.

    Raises:
        PolicyFormatError: an empty list, a value that is not of its one form, zeros for a measurement.
    """

    PROFILE: ClassVar[str] = PROFILE

    tcb: IntelTcbPolicy
    code: EnclaveMeasurements | EnclaveSigners | Unchecked
    config_ids: tuple[str, ...] | Unchecked
    minimum_config_svn: int | Unchecked
    isv_family_ids: tuple[str, ...] | Unchecked
    isv_ext_prod_ids: tuple[str, ...] | Unchecked
    attributes_required: tuple[EnclaveAttribute, ...] | Unchecked
    attributes_forbidden: tuple[EnclaveAttribute, ...] | Unchecked
    xfrm: tuple[str, ...] | Unchecked
    misc_select: tuple[str, ...] | Unchecked

    def __post_init__(self) -> None:
        for name, size in (("config_ids", 64), ("isv_family_ids", 16), ("isv_ext_prod_ids", 16), ("misc_select", 4)):
            require_allow_list(name, getattr(self, name), sizes=(size,), zeros=True)
        require_allow_list("xfrm", self.xfrm, sizes=(8,))
        for name in ("attributes_required", "attributes_forbidden"):
            if not getattr(self, name):
                raise PolicyFormatError(name, expected="at least one entry, or unchecked", got="none")
        if not isinstance(self.minimum_config_svn, Unchecked):
            _require_number("minimum_config_svn", self.minimum_config_svn, least=1)


def require_floors(claims: SgxClaims) -> None:
    """Check what holds whatever a policy says.

    Raises:
        DebugError, AttributesError, MeasurementError, TcbStatusError: see above.
    """
    report = claims.report
    attributes = int.from_bytes(report.attributes, "little")
    if claims.debug:
        raise DebugError("enclave attributes", expected="no DEBUG", got=report.attributes.hex())
    require_tcb_floors(claims.tcb)
    if attributes & ~_KNOWN:
        raise AttributesError("enclave attributes", expected="known bits", got=report.attributes.hex())
    if not attributes & _INIT:
        raise AttributesError("enclave attributes", expected="INIT", got=report.attributes.hex())
    if int.from_bytes(report.misc_select, "little") & ~_KNOWN_MISC:
        raise AttributesError("MISCSELECT", expected="known bits", got=report.misc_select.hex())
    if not any(report.mr_enclave):
        raise MeasurementError("MRENCLAVE", expected="a digest", got="zeros")
    require_evaluated(claims.tcb)


def require_defaults(claims: SgxClaims) -> None:
    """Check the floors, and what holds where nobody gave a policy.

    Raises:
        TcbStatusError: a TCB that is out of date.
        AttributesError: an enclave that may use the provisioning or launch key.
        AppraisalError: see ``require_floors``.
    """
    require_floors(claims)
    require_default_tcb(claims.tcb)
    _require_attributes(claims.report, required=(), forbidden=_PLATFORM_KEYS)


def appraise(claims: SgxClaims, policy: SgxPolicy, *, now: datetime.datetime) -> None:
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
    report = claims.report
    _require_code(report, policy.code)
    # 3.
    require_allowed("CONFIGID", report.config_id, policy.config_ids, ConfigurationError)
    least = policy.minimum_config_svn
    if not isinstance(least, Unchecked) and report.config_svn < least:
        raise ConfigurationError("CONFIGSVN", expected=f"at least {least}", got=report.config_svn)
    require_allowed("ISVFAMILYID", report.isv_family_id, policy.isv_family_ids, SignerError)
    require_allowed("ISVEXTPRODID", report.isv_ext_prod_id, policy.isv_ext_prod_ids, SignerError)
    # 4.
    required, forbidden = (
        () if isinstance(names, Unchecked) else names
        for names in (policy.attributes_required, policy.attributes_forbidden)
    )
    _require_attributes(report, required=required, forbidden=forbidden)
    require_allowed("XFRM", report.xfrm, policy.xfrm, AttributesError)
    require_allowed("MISCSELECT", report.misc_select, policy.misc_select, AttributesError)


def _require_code(report: EnclaveReport, code: EnclaveMeasurements | EnclaveSigners | Unchecked) -> None:
    match code:
        case EnclaveMeasurements():
            require_allowed("MRENCLAVE", report.mr_enclave, code.mr_enclave, MeasurementError)
        case EnclaveSigners():
            require_allowed("MRSIGNER", report.mr_signer, code.mr_signer, SignerError)
            if report.isv_prod_id not in code.isv_prod_ids:
                raise SignerError("ISVPRODID", expected=code.isv_prod_ids, got=report.isv_prod_id)
            if report.isv_svn < code.minimum_isv_svn:
                raise SignerError("ISVSVN", expected=f"at least {code.minimum_isv_svn}", got=report.isv_svn)
        case Unchecked():
            pass


def _require_attributes(
    report: EnclaveReport, *, required: tuple[EnclaveAttribute, ...], forbidden: tuple[EnclaveAttribute, ...]
) -> None:
    bits = int.from_bytes(report.attributes, "little")
    found = {attribute for attribute, bit in _BITS.items() if bits >> bit & 1}
    missing = [name for name in required if name not in found]
    unwanted = [name for name in forbidden if name in found]
    if missing:
        raise AttributesError("enclave attributes", expected=", ".join(missing), got=report.attributes.hex())
    if unwanted:
        raise AttributesError("enclave attributes", expected=f"no {', '.join(unwanted)}", got=report.attributes.hex())


def _require_number(field: str, value: int, *, least: int = 0) -> None:
    if value not in _NUMBERS or value < least:
        raise PolicyFormatError(field, expected=f"a number from {least} to 65535", got=value)
