"""How far a part can be trusted, in the vocabulary of AR4SI: tiers, and eight claims with a value each.

A value stands in one of four tiers. Values that AR4SI enumerates are used where one fits; the one that is confed's own
is negative, as the draft asks.

Source: draft-ietf-rats-ar4si-10, section 2.3 (tiers: 2.3.2, values of each claim: 2.3.4).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from confed.errors import (
    AdvisoryError,
    AliasCheckError,
    AppraisalError,
    DebugError,
    DeviceModeError,
    EncodingError,
    EvaluationNumberError,
    ExperimentalError,
    FirmwareError,
    GoldenValueError,
    LifecycleError,
    MeasurementError,
    MigrationError,
    MitigationError,
    PlatformError,
    ProductError,
    ProfileNotAllowedError,
    RefusedError,
    RegisterError,
    RegisterSelectionError,
    SecurityModuleError,
    SignerError,
    SimulatedInProductionError,
    TcbError,
    TcbStatusError,
)

APPROVED_CONFIGURATION = 2
UNSEEN_CONFIGURATION = 36
APPROVED_EXECUTABLES = 3
"""Approved code was loaded at boot; what runs later is not measured."""
UNRECOGNISED_EXECUTABLES = 33
GENUINE_HARDWARE = 2
OPAQUE_RUNTIME = 2
CONTRAINDICATED = 96
UNRECOGNISED = 97
NOT_VALIDATED = 99
SIMULATED_HARDWARE = -33
"""confed's own warning: there is no hardware, a simulated TEE vouches for itself."""


class Tier(StrEnum):
    """A trustworthiness tier."""

    AFFIRMING = "affirming"
    NONE = "none"
    WARNING = "warning"
    CONTRAINDICATED = "contraindicated"


_ORDER = (Tier.AFFIRMING, Tier.NONE, Tier.WARNING, Tier.CONTRAINDICATED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Vector:
    """A trustworthiness vector: a value from -128 to 127 for each of the eight claims; 0 asserts nothing.

    Raises:
        EncodingError: a value outside that range.
    """

    instance_identity: int = 0
    configuration: int = 0
    executables: int = 0
    file_system: int = 0
    hardware: int = 0
    runtime_opaque: int = 0
    storage_opaque: int = 0
    sourced_data: int = 0

    def __post_init__(self) -> None:
        for name, value in self.to_json().items():
            if not -128 <= value <= 127:
                raise EncodingError(f"trustworthiness vector, {name}", expected="from -128 to 127", got=value)

    @property
    def tier(self) -> Tier:
        """The worst tier of the claims that assert something; ``none`` where none does."""
        asserted = [tier_of(value) for value in self.to_json().values() if value != 0]
        return worst(*asserted) if asserted else Tier.NONE

    def to_json(self) -> dict[str, int]:
        """Return the vector under the draft's names."""
        return {field.name.replace("_", "-"): getattr(self, field.name) for field in dataclasses.fields(self)}

    @classmethod
    def from_json(cls, value: Mapping[str, int]) -> Vector:
        """Return the vector that ``to_json`` gave.

        Raises:
            EncodingError: not the eight claims, or a value outside the range.
        """
        names = {field.name.replace("_", "-"): field.name for field in dataclasses.fields(cls)}
        if set(value) != set(names):
            raise EncodingError("trustworthiness vector", expected=", ".join(names), got="other claims")
        return cls(**{names[name]: number for name, number in value.items()})


# In which aspect a refusal contraindicates; a class that is not here speaks as the nearest one above it does.
_ASPECTS: Mapping[type[Exception], Vector] = {
    **dict.fromkeys(
        (MeasurementError, SignerError, RegisterError, RegisterSelectionError, GoldenValueError),
        Vector(executables=CONTRAINDICATED),
    ),
    **dict.fromkeys((DebugError, MigrationError), Vector(runtime_opaque=CONTRAINDICATED)),
    **dict.fromkeys(
        (
            AdvisoryError,
            AliasCheckError,
            DeviceModeError,
            EvaluationNumberError,
            FirmwareError,
            LifecycleError,
            MitigationError,
            SecurityModuleError,
            TcbError,
            TcbStatusError,
        ),
        Vector(hardware=CONTRAINDICATED),
    ),
    **dict.fromkeys(
        (ExperimentalError, ProductError, ProfileNotAllowedError, SimulatedInProductionError),
        Vector(hardware=UNRECOGNISED),
    ),
    PlatformError: Vector(instance_identity=UNRECOGNISED),
    AppraisalError: Vector(configuration=CONTRAINDICATED),
    RefusedError: Vector(hardware=NOT_VALIDATED),
}


def of_refusal(refusal: RefusedError) -> Vector:
    """Return the vector of a part that was refused: contraindicated in the aspect that the refusal speaks of."""
    return next(_ASPECTS[kind] for kind in type(refusal).__mro__ if kind in _ASPECTS)


def tier_of(value: int) -> Tier:
    """Return the tier in which a claim's value stands.

    Source: draft-ietf-rats-ar4si-10, section 2.3.2.
    """
    if -1 <= value <= 1:
        return Tier.NONE
    if -32 <= value <= 31:
        return Tier.AFFIRMING
    return Tier.WARNING if -96 <= value <= 95 else Tier.CONTRAINDICATED


def worst(*tiers: Tier) -> Tier:
    """Return the tier of least trust; no assertion is less than affirming."""
    return max(tiers, key=_ORDER.index)
