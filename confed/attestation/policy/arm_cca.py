"""Is an Arm CCA Realm acceptable?

A floor holds whatever a policy says: the platform's lifecycle state is *secured*, the only one in which nobody debugs
Root or Realm Management firmware. Arm CCA is experimental here, so a policy has to accept that by name
(``experimental = "accepted"``); without any policy the floor alone holds, and the claims say ``experimental``.

The owner's choices: what runs (RIM, REMs), what it was started with, on which implementation and platform, with which
firmware. A list of firmware is complete: a component that it does not name is refused, and so is one that is missing.

Source: Arm DEN0137, sections A7.1 (measurements), A7.2.3.2.6 (lifecycle), A7.2.3.2.7 (software components).
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from confed.attestation.policy.allow_lists import require_allow_list, require_allowed, require_text_list
from confed.attestation.tee.arm_cca import PROFILE, CcaClaims
from confed.attestation.tee.arm_cca_token import CHALLENGE_BYTES
from confed.errors import (
    ConfigurationError,
    ExperimentalError,
    FirmwareError,
    LifecycleError,
    MeasurementError,
    PlatformError,
    PlatformInfoError,
    PolicyFormatError,
    ProductError,
    RegisterError,
    ReportVersionError,
)
from confed.manifest import Unchecked

ACCEPTED = "accepted"
"""What ``experimental`` must be."""

NO_PROFILE = "none"
"""How a policy names a Realm token without profile."""

_HASH_SIZES = (32, 48, 64)
_REGISTERS = ("0", "1", "2", "3")


@dataclass(frozen=True, slots=True, kw_only=True)
class CcaFirmware:
    """A software component of the platform that an owner accepts.

    Attributes:
        kind: the component's type, as the platform names it.
        measurements: hashes accepted, in hexadecimal.
        signers: identifiers of signing authorities accepted, in hexadecimal.

    Raises:
        PolicyFormatError: an empty name or list, or neither measurement nor signer checked.
    """

    kind: str
    measurements: tuple[str, ...] | Unchecked
    signers: tuple[str, ...] | Unchecked

    def __post_init__(self) -> None:
        require_text_list("firmware.kind", (self.kind,))
        require_allow_list("firmware.measurements", self.measurements, sizes=_HASH_SIZES)
        require_allow_list("firmware.signers", self.signers, sizes=_HASH_SIZES)
        if isinstance(self.measurements, Unchecked) and isinstance(self.signers, Unchecked):
            raise PolicyFormatError(f"firmware {self.kind}", expected="measurements or signers checked", got="neither")


@dataclass(frozen=True, slots=True, kw_only=True)
class CcaPolicy:
    """What an owner accepts of a Realm and its platform; values are hexadecimal.

    Attributes:
        experimental: ``accepted``; anything else accepts nothing.
        platform_profiles, realm_profiles: formats of the two tokens; ``none`` for a Realm token without profile.
        measurements: RIM.
        registers: REMs by number (``"0"`` to ``"3"``), each with the values accepted, zeros too.
        personalization_values: 64 bytes each.
        implementations: implementation identifiers, 32 bytes each.
        instances: platforms, by the 33 bytes that name their attestation key.
        configs: the platform's implementation options.
        firmware: all of the platform's software components, each type once.

    Raises:
        PolicyFormatError: an empty list, zeros as a measurement, a value of another size, a type of firmware twice.
    """

    PROFILE: ClassVar[str] = PROFILE

    experimental: str
    platform_profiles: tuple[str, ...]
    realm_profiles: tuple[str, ...]
    measurements: tuple[str, ...] | Unchecked
    registers: Mapping[str, tuple[str, ...]] | Unchecked
    personalization_values: tuple[str, ...] | Unchecked
    implementations: tuple[str, ...] | Unchecked
    instances: tuple[str, ...] | Unchecked
    configs: tuple[str, ...] | Unchecked
    firmware: tuple[CcaFirmware, ...] | Unchecked

    def __post_init__(self) -> None:
        require_text_list("platform_profiles", self.platform_profiles)
        require_text_list("realm_profiles", self.realm_profiles)
        require_allow_list("measurements", self.measurements, sizes=_HASH_SIZES)
        require_allow_list("personalization_values", self.personalization_values, sizes=(CHALLENGE_BYTES,), zeros=True)
        require_allow_list("implementations", self.implementations, sizes=(32,))
        require_allow_list("instances", self.instances, sizes=(33,))
        require_allow_list("configs", self.configs, zeros=True)
        if not isinstance(self.registers, Unchecked):
            _require_registers(self.registers)
        if not isinstance(self.firmware, Unchecked):
            kinds = [entry.kind for entry in self.firmware]
            if not kinds or len(set(kinds)) != len(kinds):
                raise PolicyFormatError("firmware", expected="at least one type, each once", got=kinds)


def require_floors(claims: CcaClaims) -> None:
    """Refuse a platform that is not secured.

    Raises:
        LifecycleError: any other state, or one that Arm has not defined.
    """
    if not claims.secured:
        raise LifecycleError(
            "lifecycle", expected="0x3000 to 0x30ff (secured)", got=f"{claims.platform.lifecycle:#06x}"
        )


def require_defaults(claims: CcaClaims) -> None:
    """Check what holds where nobody gave a policy: the floor.

    Raises:
        LifecycleError: see ``require_floors``.
    """
    require_floors(claims)


def appraise(claims: CcaClaims, policy: CcaPolicy, *, now: datetime.datetime) -> None:
    """Accept a Realm, or refuse it with the class that says why.

    Raises:
        LifecycleError: see ``require_floors``.
        ExperimentalError: the policy does not accept what is experimental.
        ReportVersionError: a token of another profile.
        MeasurementError, RegisterError: another RIM or REM.
        ConfigurationError: another personalization value.
        ProductError, PlatformError, PlatformInfoError: another implementation, platform or configuration of it.
        FirmwareError: firmware that the policy does not name, or that is missing.
    """
    del now  # a token has no time; its challenge is what makes it fresh
    require_floors(claims)
    if policy.experimental != ACCEPTED:
        raise ExperimentalError("experimental", expected=ACCEPTED, got=policy.experimental[:40])
    platform, realm = claims.platform, claims.realm
    require_allowed("platform profile", platform.profile, policy.platform_profiles, ReportVersionError)
    require_allowed("Realm profile", realm.profile or NO_PROFILE, policy.realm_profiles, ReportVersionError)
    require_allowed("RIM", realm.initial_measurement, policy.measurements, MeasurementError)
    if not isinstance(policy.registers, Unchecked):
        for number, allowed in policy.registers.items():
            found = realm.extensible_measurements[int(number)]
            require_allowed(f"REM{number}", found, allowed, RegisterError)
    values = policy.personalization_values
    require_allowed("personalization value", realm.personalization_value, values, ConfigurationError)
    require_allowed("implementation id", platform.implementation_id, policy.implementations, ProductError)
    require_allowed("instance id", platform.instance_id, policy.instances, PlatformError)
    require_allowed("config", platform.config, policy.configs, PlatformInfoError)
    if not isinstance(policy.firmware, Unchecked):
        _require_firmware(claims, policy.firmware)


def _require_firmware(claims: CcaClaims, firmware: tuple[CcaFirmware, ...]) -> None:
    accepted = {entry.kind: entry for entry in firmware}
    for component in claims.platform.software:
        entry = accepted.get(component.kind)
        if entry is None:
            raise FirmwareError("firmware", expected=", ".join(accepted), got=component.kind or "one without a type")
        require_allowed(f"firmware {entry.kind}", component.measurement, entry.measurements, FirmwareError)
        require_allowed(f"signer of {entry.kind}", component.signer, entry.signers, FirmwareError)
    missing = accepted.keys() - {component.kind for component in claims.platform.software}
    if missing:
        raise FirmwareError("firmware", expected=min(missing), got="none")


def _require_registers(registers: Mapping[str, tuple[str, ...]]) -> None:
    if not registers or not registers.keys() <= set(_REGISTERS):
        raise PolicyFormatError("registers", expected=f"some of {', '.join(_REGISTERS)}", got=", ".join(registers))
    for number, allowed in registers.items():
        require_allow_list(f"registers.{number}", allowed, sizes=_HASH_SIZES, zeros=True)
