"""Is the TCB of an Intel platform acceptable, and is it a platform that the owner knows? The same for SGX and TDX.

Intel gives a platform a status and advisories, as of the collateral's evaluation number and date. A floor holds
whatever a policy says: a status must be one that Intel gives and that dcap-qvl has evaluated, and it is not Revoked.
Where nobody gave a policy, nothing that is out of date is accepted (``DEFAULT_STATUSES``). An owner names each status
and each advisory with the last day on which it is accepted: what can be tolerated until a maintenance window cannot be
for ever.

``require_tcb`` goes in this order: evaluation number, status, advisories, platform.

Source: Intel PCS API version 4 (tcbStatus, advisoryIDs, tcbEvaluationDataNumber); Intel SGX PCK Certificate and CRL
Profile Specification (FMSPC, PPID, platform instance id).
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from dataclasses import dataclass

from confed.attestation.policy.allow_lists import require_allow_list, require_allowed
from confed.attestation.tee.intel_dcap import NOT_EVALUATED, UNKNOWN_MODULE, PlatformClaims, TcbClaims
from confed.errors import (
    AdvisoryError,
    AppraisalError,
    EvaluationNumberError,
    PlatformError,
    PolicyFormatError,
    SecurityModuleError,
    TcbStatusError,
)
from confed.manifest import Unchecked

DEFAULT_STATUSES = (
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
)
"""What is accepted where nobody gave a policy."""

STATUSES = (
    *DEFAULT_STATUSES,
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
    "TDRelaunchAdvised",
    "TDRelaunchAdvisedConfigurationNeeded",
)
"""What a policy can accept."""

_ADVISORY = re.compile(r"INTEL-(SA|DOC)-[0-9]{5}\Z")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}\Z")
_MOST_EVALUATION = 2**31


@dataclass(frozen=True, slots=True, kw_only=True)
class NoneAccepted:
    """An allow-list that accepts nothing, and why."""

    none_accepted: str

    def __post_init__(self) -> None:
        if not self.none_accepted.strip():
            raise PolicyFormatError("none_accepted", expected="a reason", got="nothing")


@dataclass(frozen=True, slots=True, kw_only=True)
class IntelTcbPolicy:
    """What an owner accepts of a platform's TCB, and which platforms.

    Attributes:
        statuses: Intel's TCB statuses, each with the last day (UTC, ``YYYY-MM-DD``) on which it is accepted.
        advisories: Intel's advisories, each with its last day likewise.
        minimum_evaluation_number: least tcbEvaluationDataNumber of the collateral, so that older data, in which a
            platform is still up to date, cannot be chosen.
        fmspcs: platform families, 6 bytes in hexadecimal.
        ppids, platform_instance_ids: single platforms, 16 bytes in hexadecimal each.

    Raises:
        PolicyFormatError: an empty list, an unknown status, a date that is none, a value of another size.
    """

    statuses: Mapping[str, str]
    advisories: NoneAccepted | Unchecked | Mapping[str, str]
    minimum_evaluation_number: int | Unchecked
    fmspcs: tuple[str, ...] | Unchecked
    ppids: tuple[str, ...] | Unchecked
    platform_instance_ids: tuple[str, ...] | Unchecked

    def __post_init__(self) -> None:
        _require_dated("tcb.statuses", self.statuses)
        for status in self.statuses:
            if status not in STATUSES:
                raise PolicyFormatError("tcb.statuses", expected=", ".join(STATUSES), got=status[:40])
        if not isinstance(self.advisories, NoneAccepted | Unchecked):
            _require_dated("tcb.advisories", self.advisories)
            for advisory in self.advisories:
                if not _ADVISORY.match(advisory):
                    raise PolicyFormatError("tcb.advisories", expected="names like INTEL-SA-00837", got=advisory[:40])
        number = self.minimum_evaluation_number
        if not isinstance(number, Unchecked) and not 1 <= number < _MOST_EVALUATION:
            raise PolicyFormatError("tcb.minimum_evaluation_number", expected="a whole number from 1", got=number)
        require_allow_list("tcb.fmspcs", self.fmspcs, sizes=(6,))
        require_allow_list("tcb.ppids", self.ppids, sizes=(16,))
        require_allow_list("tcb.platform_instance_ids", self.platform_instance_ids, sizes=(16,))


def require_tcb_floors(tcb: TcbClaims) -> None:
    """Refuse a TCB that no policy can accept, except for one that was not evaluated: see ``require_evaluated``.

    Raises:
        SecurityModuleError: a TDX module that Intel's TCB info does not know.
        TcbStatusError: revoked, or below every level.
    """
    if tcb.status == UNKNOWN_MODULE:
        raise SecurityModuleError("TDX module", expected="one that TCB info knows", got=tcb.refusal)
    if tcb.status not in {*STATUSES, NOT_EVALUATED}:
        raise TcbStatusError("TCB status", expected=", ".join(STATUSES), got=tcb.status)


def require_evaluated(tcb: TcbClaims) -> None:
    """Refuse whatever dcap-qvl has refused for what the report says: the last floor, after every plainer reason.

    Raises:
        TcbStatusError: a status that is not one of Intel's.
    """
    if tcb.status not in STATUSES:
        raise TcbStatusError("TCB status", expected=", ".join(STATUSES), got=f"{tcb.status} {tcb.refusal}")


def require_default_tcb(tcb: TcbClaims) -> None:
    """Refuse a TCB that is out of date; what holds where nobody gave a policy.

    Raises:
        TcbStatusError: a status that is not in ``DEFAULT_STATUSES``.
    """
    if tcb.status not in DEFAULT_STATUSES:
        raise TcbStatusError("TCB status", expected=", ".join(DEFAULT_STATUSES), got=tcb.status)


def require_tcb(tcb: TcbClaims, platform: PlatformClaims, policy: IntelTcbPolicy, *, now: datetime.datetime) -> None:
    """Accept TCB and platform, or refuse them with the class that says why.

    Raises:
        EvaluationNumberError: older TCB data than demanded.
        TcbStatusError, AdvisoryError: not in the policy, or no longer.
        PlatformError: another platform.
    """
    least = policy.minimum_evaluation_number
    if not isinstance(least, Unchecked) and tcb.evaluation_number < least:
        raise EvaluationNumberError("tcbEvaluationDataNumber", expected=f"at least {least}", got=tcb.evaluation_number)
    today = now.astimezone(datetime.UTC).date()
    _require_until("TCB status", tcb.status, policy.statuses, today, TcbStatusError)
    if not isinstance(policy.advisories, Unchecked):
        accepted = {} if isinstance(policy.advisories, NoneAccepted) else policy.advisories
        for advisory in tcb.advisory_ids:
            _require_until("advisory", advisory, accepted, today, AdvisoryError)
    require_allowed("FMSPC", platform.fmspc, policy.fmspcs, PlatformError)
    require_allowed("PPID", platform.ppid, policy.ppids, PlatformError)
    require_allowed(
        "platform instance id", platform.platform_instance_id or None, policy.platform_instance_ids, PlatformError
    )


def _require_until(
    field: str, found: str, accepted: Mapping[str, str], today: datetime.date, error: type[AppraisalError]
) -> None:
    until = accepted.get(found)
    if until is None:
        raise error(field, expected=", ".join(accepted) or "none", got=found)
    if today > datetime.date.fromisoformat(until):
        raise error(field, expected=f"{found} until {until}", got=f"{found} on {today}")


def _require_dated(field: str, accepted: Mapping[str, str]) -> None:
    if not accepted:
        raise PolicyFormatError(field, expected="at least one entry", got="none")
    for name, until in accepted.items():
        try:
            valid = bool(_DATE.match(until)) and datetime.date.fromisoformat(until)
        except ValueError:
            valid = False
        if not valid:
            raise PolicyFormatError(f"{field}.{name[:40]}", expected='a date as text, "YYYY-MM-DD"', got=until[:40])
