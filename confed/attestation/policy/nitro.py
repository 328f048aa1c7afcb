"""Is an AWS Nitro enclave acceptable?

A floor holds whatever a policy says: PCR0, PCR1 and PCR2 are not zero, as they are in debug mode, where the console can
be read from outside. The rest is the owner's choice: registers by number, and the document's age.

Source: AWS, Nitro Enclaves user guide, "Where to get an enclave's measurements" (what each register holds).
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from confed.attestation.policy.allow_lists import Allowed, require_allow_list, require_allowed
from confed.attestation.tee.nitro import PROFILE, NitroClaims
from confed.attestation.tee.nitro_document import PCR_BYTES
from confed.errors import (
    DebugError,
    FreshnessError,
    MeasurementError,
    PolicyFormatError,
    RegisterError,
    SignerError,
)
from confed.manifest import Unchecked

LONGEST_AGE_S = 3 * 3600
"""A leaf certificate's life: no document is genuine for longer."""

_SKEW_S = 30
# The registers that have a field of their own; the others stand under ``registers`` by number.
_NAMED = (0, 1, 2, 3, 4, 8)
_PCR_COUNT = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class NitroPolicy:
    """What an owner accepts of a Nitro enclave; every value is 48 bytes in hexadecimal.

    Attributes:
        pcr0: the enclave image file.
        pcr1: kernel and bootstrap.
        pcr2: application.
        pcr3: the IAM role of the parent instance; zeros where it has none.
        pcr4: the parent instance's identifier.
        pcr8: the certificate that signed the enclave image file.
        registers: further registers by number (``"16"``), each with the values accepted.
        max_age_s: how old a document may be; at most three hours.

    Raises:
        PolicyFormatError: an empty list, zeros for code, a value of another size, or a register that has its own field.
    """

    PROFILE: ClassVar[str] = PROFILE

    pcr0: tuple[str, ...] | Unchecked
    pcr1: tuple[str, ...] | Unchecked
    pcr2: tuple[str, ...] | Unchecked
    pcr3: tuple[str, ...] | Unchecked
    pcr4: tuple[str, ...] | Unchecked
    pcr8: tuple[str, ...] | Unchecked
    registers: Mapping[str, tuple[str, ...]] | Unchecked
    max_age_s: int

    def __post_init__(self) -> None:
        for index in _NAMED:
            allowed: Allowed = getattr(self, f"pcr{index}")
            require_allow_list(f"pcr{index}", allowed, sizes=(PCR_BYTES,), zeros=index == 3)
        if not isinstance(self.registers, Unchecked):
            _require_registers(self.registers)
        if not 1 <= self.max_age_s <= LONGEST_AGE_S:
            raise PolicyFormatError("max_age_s", expected=f"1 to {LONGEST_AGE_S}", got=self.max_age_s)


def require_floors(claims: NitroClaims) -> None:
    """Refuse an enclave in debug mode.

    Raises:
        DebugError: PCR0, PCR1 or PCR2 is zero.
    """
    if claims.debug:
        raise DebugError("PCR0 to PCR2", expected="measurements", got="zeros, as in debug mode")


def require_defaults(claims: NitroClaims) -> None:
    """Check what holds where nobody gave a policy: the floors.

    Raises:
        DebugError: see ``require_floors``.
    """
    require_floors(claims)


def appraise(claims: NitroClaims, policy: NitroPolicy, *, now: datetime.datetime) -> None:
    """Accept an enclave, or refuse it with the class that says why.

    Raises:
        DebugError: see ``require_floors``.
        MeasurementError: PCR0 is not in the policy.
        SignerError: PCR8 is not in the policy.
        RegisterError: another register is not, or is not in the document.
        FreshnessError: a document older than ``max_age_s``, or from the future.
    """
    require_floors(claims)
    require_allowed("PCR0", claims.pcr(0), policy.pcr0, MeasurementError)
    require_allowed("PCR8", claims.pcr(8), policy.pcr8, SignerError)
    for index in (1, 2, 3, 4):
        allowed: Allowed = getattr(policy, f"pcr{index}")
        require_allowed(f"PCR{index}", claims.pcr(index), allowed, RegisterError)
    if not isinstance(policy.registers, Unchecked):
        for number, values in policy.registers.items():
            require_allowed(f"PCR{number}", claims.pcr(int(number)), values, RegisterError)
    age_s = now.timestamp() - claims.timestamp_ms / 1000
    if not -_SKEW_S <= age_s <= policy.max_age_s:
        raise FreshnessError("age in seconds", expected=f"{-_SKEW_S} to {policy.max_age_s}", got=round(age_s))


def _require_registers(registers: Mapping[str, tuple[str, ...]]) -> None:
    if not registers:
        raise PolicyFormatError("registers", expected="at least one, or unchecked", got="none")
    for number, allowed in registers.items():
        # The one spelling of a number: two spellings would be two rules for one register.
        if number not in map(str, range(_PCR_COUNT)) or int(number) in _NAMED:
            raise PolicyFormatError(f"registers.{number}", expected="a register without a field of its own", got=number)
        require_allow_list(f"registers.{number}", allowed, sizes=(PCR_BYTES,), zeros=True)
