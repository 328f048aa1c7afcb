"""Is an Azure confidential VM acceptable: its hardware, its paravisor's settings, and what its virtual TPM measured?

Floors hold whatever a policy says: those of the hardware (``sev_snp``, ``tdx``), a quote over a register that not
anybody can reset, and a virtual TPM that the paravisor says is enabled. Where nobody gave a policy, a console that the
host can type into is refused too, and settings that are not known here, since nobody has said what they allow.

A policy is three, and the worst part decides: ``hardware`` as for the same chip elsewhere, ``runtime`` for what the
paravisor says, ``quote`` for the registers. It has to pin the paravisor, by the measurement or, on SNP, by the key that
signed its ID block: registers are the paravisor's word, and whoever has a chip of the same kind could run a program of
his own in its place.

Source: Microsoft Learn, "Azure confidential VMs guest attestation design" (what each part covers).
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from confed.attestation.policy import sev_snp, tdx
from confed.attestation.policy.allow_lists import require_allowed, require_text_list
from confed.attestation.policy.sev_snp_terms import SnpPolicy
from confed.attestation.policy.tdx import TdxPolicy
from confed.attestation.policy.tpm_quote import QuotePolicy, appraise_quote, require_quote_floors, require_true
from confed.attestation.tee.azure import SNP_PROFILE, TDX_PROFILE, AzureSnpClaims, AzureTdxClaims
from confed.attestation.tee.azure_hcl import AzureRuntimeClaims
from confed.errors import AttributesError, DebugError, PlatformError, PlatformInfoError, PolicyFormatError, SignerError
from confed.manifest import Unchecked


class InteractiveConsole(StrEnum):
    """What is demanded of a serial console that the host can type into.

    ``off``: the paravisor says that there is none. ``off-or-unsaid``: it does not say that there is one; older versions
    do not know the setting.
    """

    OFF = "off"
    OFF_OR_UNSAID = "off-or-unsaid"


@dataclass(frozen=True, slots=True, kw_only=True)
class AzureRuntimePolicy:
    """What an owner accepts of the machine's settings; a setting that is demanded has to be there.

    Attributes:
        secure_boot: ``true``: it is on.
        no_console: ``true``: the host has no serial console.
        interactive_console: what is demanded of one that the host can type into.
        no_filtered_devices: ``true``: none of the host's devices is given to the machine.
        root_certificates: thumbprints of authorities for key release.
        vm_ids: machines, as the paravisor spells their identifiers.
        other_settings: names of settings that are not known here and accepted all the same, whatever they say.

    Raises:
        PolicyFormatError: an empty list, or ``false``.
    """

    secure_boot: bool | Unchecked
    no_console: bool | Unchecked
    interactive_console: InteractiveConsole | Unchecked
    no_filtered_devices: bool | Unchecked
    root_certificates: tuple[str, ...] | Unchecked
    vm_ids: tuple[str, ...] | Unchecked
    other_settings: tuple[str, ...] | Unchecked

    def __post_init__(self) -> None:
        for name in ("secure_boot", "no_console", "no_filtered_devices"):
            demanded: bool | Unchecked = getattr(self, name)
            require_true(f"runtime.{name}", demanded)
        for name in ("root_certificates", "vm_ids", "other_settings"):
            listed: tuple[str, ...] | Unchecked = getattr(self, name)
            require_text_list(f"runtime.{name}", listed)


@dataclass(frozen=True, slots=True, kw_only=True)
class AzureSnpPolicy:
    """What an owner accepts of a machine on AMD SEV-SNP.

    Attributes:
        hardware: of chip and paravisor; its measurement, ID keys or author keys have to be checked.
        runtime: of the machine's settings.
        quote: of the virtual TPM's registers.

    Raises:
        PolicyFormatError: a paravisor that is not pinned.
    """

    PROFILE: ClassVar[str] = SNP_PROFILE

    hardware: SnpPolicy
    runtime: AzureRuntimePolicy
    quote: QuotePolicy

    def __post_init__(self) -> None:
        pins = (self.hardware.measurements, self.hardware.id_keys, self.hardware.author_keys)
        _require_pinned("hardware.measurements, id_keys or author_keys", pins)


@dataclass(frozen=True, slots=True, kw_only=True)
class AzureTdxPolicy:
    """What an owner accepts of a machine on Intel TDX.

    Attributes:
        hardware: of platform and paravisor; MRTD has to be checked.
        runtime: of the machine's settings.
        quote: of the virtual TPM's registers.

    Raises:
        PolicyFormatError: a paravisor that is not pinned.
    """

    PROFILE: ClassVar[str] = TDX_PROFILE

    hardware: TdxPolicy
    runtime: AzureRuntimePolicy
    quote: QuotePolicy

    def __post_init__(self) -> None:
        _require_pinned("hardware.mr_td", (self.hardware.mr_td,))


def require_floors(claims: AzureSnpClaims | AzureTdxClaims) -> None:
    """Refuse what no policy can accept.

    Raises:
        AttributesError: a virtual TPM that is not enabled.
        AppraisalError: of the class that ``sev_snp``, ``tdx`` or ``tpm_quote`` gives.
    """
    if isinstance(claims, AzureSnpClaims):
        sev_snp.require_floors(claims.hardware)
    else:
        tdx.require_floors(claims.hardware)
    _require_other_floors(claims)


def require_defaults(claims: AzureSnpClaims | AzureTdxClaims) -> None:
    """Check what holds where nobody gave a policy.

    Raises:
        DebugError: a console that the host can type into.
        PlatformInfoError: a setting that is not known here.
        AppraisalError: see ``require_floors``, and of the class that ``sev_snp`` or ``tdx`` gives.
    """
    if isinstance(claims, AzureSnpClaims):
        sev_snp.require_defaults(claims.hardware)
    else:
        tdx.require_defaults(claims.hardware)
    _require_other_floors(claims)
    _require_no_typing(claims.runtime, InteractiveConsole.OFF_OR_UNSAID)
    _require_known(claims.runtime, ())


def appraise(
    claims: AzureSnpClaims | AzureTdxClaims, policy: AzureSnpPolicy | AzureTdxPolicy, *, now: datetime.datetime
) -> None:
    """Accept a machine, or refuse it with the class that says why.

    Raises:
        PolicyFormatError: a policy for the other hardware.
        PlatformInfoError, DebugError, PlatformError: settings that the policy does not accept.
        AppraisalError: see ``require_floors``, and of the class that ``sev_snp``, ``tdx`` or ``tpm_quote`` gives.
    """
    require_floors(claims)
    match claims, policy:
        case AzureSnpClaims(), AzureSnpPolicy():
            sev_snp.appraise(claims.hardware, policy.hardware, now=now)
        case AzureTdxClaims(), AzureTdxPolicy():
            tdx.appraise(claims.hardware, policy.hardware, now=now)
        case _:
            raise PolicyFormatError("policy", expected=f"one for {type(claims).__name__}", got=type(policy).__name__)
    _appraise_runtime(claims.runtime, policy.runtime)
    appraise_quote(claims.tpm, policy.quote)


def _require_other_floors(claims: AzureSnpClaims | AzureTdxClaims) -> None:
    if not claims.runtime.tpm_enabled:
        raise AttributesError("tpm-enabled", expected="true", got="false")
    require_quote_floors(claims.tpm)


def _appraise_runtime(runtime: AzureRuntimeClaims, policy: AzureRuntimePolicy) -> None:
    for name, found, demanded in (
        ("secure-boot", runtime.secure_boot, policy.secure_boot),
        ("console-enabled", _is_off(runtime.console_enabled), policy.no_console),
        ("filtered-vpci-devices-allowed", _is_off(runtime.filtered_devices_allowed), policy.no_filtered_devices),
    ):
        if not isinstance(demanded, Unchecked) and not found:
            raise PlatformInfoError(name, expected="what the policy demands", got="another setting, or none")
    if not isinstance(policy.interactive_console, Unchecked):
        _require_no_typing(runtime, policy.interactive_console)
    thumbprint = runtime.root_certificate_thumbprint
    require_allowed("root-cert-thumbprint", thumbprint, policy.root_certificates, SignerError)
    require_allowed("vmUniqueId", runtime.vm_id, policy.vm_ids, PlatformError)
    if not isinstance(policy.other_settings, Unchecked):
        _require_known(runtime, policy.other_settings)


def _require_no_typing(runtime: AzureRuntimeClaims, demanded: InteractiveConsole) -> None:
    said = runtime.interactive_console_enabled
    if said or (said is None and demanded is InteractiveConsole.OFF):
        raise DebugError("interactive-console-enabled", expected=demanded, got="not said" if said is None else "on")


def _require_known(runtime: AzureRuntimeClaims, accepted: tuple[str, ...]) -> None:
    unknown = [name for name in runtime.unknown if name not in accepted]
    if unknown:
        raise PlatformInfoError("runtime data", expected="known settings", got=unknown[0][:60])


def _is_off(setting: bool | None) -> bool:  # noqa: FBT001
    return setting is False


def _require_pinned(field: str, pins: tuple[tuple[str, ...] | Unchecked, ...]) -> None:
    if all(isinstance(pin, Unchecked) for pin in pins):
        raise PolicyFormatError(field, expected="a pinned paravisor", got="any program on such a chip")
