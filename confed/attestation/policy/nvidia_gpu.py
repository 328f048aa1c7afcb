"""Are these NVIDIA GPUs and switches acceptable?

Floors hold whatever a policy says:

- confidential computing is on (in a Protected PCIe system: that is), developer tools are off, and the environment is
  production, where NVML told; records of a live device always tell it, files never do;
- NVML says Protected PCIe exactly where the device signs it, so nobody's word alone stands for confidential computing;
- no mode that is not known, none that the report itself contradicts, no device whose DICE flags say debug, recovery or
  not secure, and no switch that is not locked;
- a manifest that came along matches on every index, and it has golden values, of which one at least is not zeros.

The last is how devtools shows in what the device signs: there is no field for it, and firmware and configuration of
a GPU in devtools mode are not the golden ones. So a policy that leaves manifests unchecked rests on NVML's word alone.

Where there is no policy, a certificate on hold is refused too. The rest is the owner's choice.

Source: NVIDIA, Confidential Computing deployment guides (CC and PPCIE modes, devtools); attestation-sdk, gpu/verify and
switch/verify (what a successful comparison means).
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from confed.attestation.tee.nvidia_claims import GOOD, HOLD, HOLD_UNKNOWN, NvidiaClaims, NvidiaDevice
from confed.attestation.tee.nvidia_evidence import DEVICE_LIMIT, NvidiaState
from confed.attestation.tee.nvidia_gpu import PROFILE
from confed.attestation.tee.nvidia_identity import GPU
from confed.attestation.tee.nvidia_opaque import DRIVER_VERSION, VBIOS_VERSION
from confed.attestation.tee.nvidia_rim import DRIVER, VBIOS
from confed.errors import (
    DeviceCountError,
    DeviceModeError,
    FirmwareError,
    GoldenValueError,
    PolicyFormatError,
    ProductError,
    RevocationStatusError,
)
from confed.manifest import Unchecked

REQUIRED = "required"
CLOSED = "closed"
ARCHITECTURES = ("HOPPER", "BLACKWELL", "LS10")
MODES = ("mpt", "spt", "ppcie", "unreported")

_BOARD = re.compile(r"[0-9A-Z]{1,8}_[0-9A-Z]{1,8}_[0-9A-Z]{1,8}\Z")
_FORBIDDEN_FLAGS = ("not-secure", "recovery", "debug")
_PROTECTED_PCIE, _UNREPORTED = "ppcie", "unreported"


@dataclass(frozen=True, slots=True, kw_only=True)
class AtLeast:
    """A least version for each family: what is older, or of a family that is not here, is refused.

    A driver's family is its first number (``550``), a VBIOS's its first two (``96.00``).
    """

    at_least: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exactly:
    """A number of devices, no more and no fewer."""

    exactly: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Least:
    """A least number of devices."""

    least: int


Versions = tuple[str, ...] | AtLeast | Unchecked


@dataclass(frozen=True, slots=True, kw_only=True)
class NvidiaGpuPolicy:
    """What an owner accepts of GPUs and switches.

    Attributes:
        architectures: of GPUs and switches: ``HOPPER``, ``BLACKWELL``, ``LS10``.
        boards: of GPUs: project, project SKU and chip SKU, such as ``1010_0200_882``.
        drivers: of GPUs: versions, or a least one for each branch.
        vbios: of GPUs and switches: versions, or a least one for each family.
        manifests: ``required``: NVIDIA's manifests for driver and VBIOS came along and match.
        revocation: ``required``: issuers say now that no certificate is revoked, of devices and of manifests.
        allow_hold: whether a certificate on hold is accepted, where its issuer says so now.
        nvml_state: ``required``: NVML told the modes; files do not have them.
        modes: of GPUs: ``mpt``, ``spt``, ``ppcie``, or ``unreported`` by older drivers, which tell ``ppcie`` alone.
        gpus, switches: how many.
        links: ``closed``: every link that a device reports ends at a device of this evidence.

    Raises:
        PolicyFormatError: an empty list, an unknown word, a version or number that is none.
    """

    PROFILE: ClassVar[str] = PROFILE

    architectures: tuple[str, ...]
    boards: tuple[str, ...] | Unchecked
    drivers: tuple[str, ...] | AtLeast | Unchecked
    vbios: tuple[str, ...] | AtLeast | Unchecked
    manifests: str | Unchecked
    revocation: str | Unchecked
    allow_hold: bool
    nvml_state: str | Unchecked
    modes: tuple[str, ...] | Unchecked
    gpus: Exactly | Least
    switches: Exactly | Least | Unchecked
    links: str | Unchecked

    def __post_init__(self) -> None:
        _require_each("architectures", self.architectures, lambda entry: entry in ARCHITECTURES)
        _require_each("boards", self.boards, lambda entry: bool(_BOARD.match(entry)))
        _require_each("drivers", self.drivers, lambda entry: bool(DRIVER_VERSION.match(entry)))
        _require_each("vbios", self.vbios, lambda entry: bool(VBIOS_VERSION.match(entry)))
        _require_each("modes", self.modes, lambda entry: entry in MODES)
        for name, word in (
            ("manifests", REQUIRED),
            ("revocation", REQUIRED),
            ("nvml_state", REQUIRED),
            ("links", CLOSED),
        ):
            found = getattr(self, name)
            if not isinstance(found, Unchecked) and found != word:
                raise PolicyFormatError(name, expected=word, got=found)
        _require_count("gpus", self.gpus, floor=1)
        _require_count("switches", self.switches, floor=0)


def require_floors(claims: NvidiaClaims) -> None:
    """Refuse what no policy can accept.

    Raises:
        DeviceModeError, GoldenValueError: see the module.
    """
    for device in claims.devices:
        if device.state is not None:
            _require_state(device.state, mode=_mode_of(device))
        _require_mode(device)
        _require_golden(device)


def require_defaults(claims: NvidiaClaims) -> None:
    """Refuse what is not acceptable where nobody gave a policy: the floors, and certificates on hold.

    Raises:
        DeviceModeError, GoldenValueError: a floor.
        RevocationStatusError: on hold.
    """
    require_floors(claims)
    for device in claims.devices:
        _require_not_on_hold(device)


def appraise(claims: NvidiaClaims, policy: NvidiaGpuPolicy, *, now: datetime.datetime) -> None:
    """Accept devices, or refuse with the class that says why.

    Args:
        claims: from ``tee.nvidia_gpu``.
        policy: the owner's.
        now: not needed: what ages was judged when the claims were made.

    Raises:
        DeviceModeError, GoldenValueError: a floor, a mode, or manifests that are missing.
        DeviceCountError: fewer or more devices, or a link to one that is not here.
        ProductError: another architecture or board.
        FirmwareError: another driver or VBIOS.
        RevocationStatusError: on hold, or not known.
    """
    del now
    require_floors(claims)
    _require_number("GPUs", len(claims.gpus), policy.gpus)
    _require_number("switches", len(claims.switches), policy.switches)
    for device in claims.devices:
        _appraise_device(device, policy)
    if policy.links == CLOSED:
        _require_closed(claims)


def _mode_of(device: NvidiaDevice) -> str:
    """Return the mode that a device signs: drivers that do not tell it yet tell whether Protected PCIe is on."""
    return _PROTECTED_PCIE if device.mode == _UNREPORTED and device.protected_pcie else device.mode


def _require_state(state: NvidiaState, *, mode: str) -> None:
    if state.multi_gpu != "unreported" and (state.multi_gpu == "protected-pcie") != (mode == _PROTECTED_PCIE):
        raise DeviceModeError("NVML's multi-GPU mode", expected=f"as the report has it ({mode})", got=state.multi_gpu)
    if state.confidential_compute != "on" and state.multi_gpu != "protected-pcie":
        raise DeviceModeError("confidential computing", expected="on", got=state.confidential_compute)
    if state.devtools != "off":
        raise DeviceModeError("devtools", expected="off", got=state.devtools)
    if state.environment != "production":
        raise DeviceModeError("environment", expected="production", got=state.environment)


def _require_mode(device: NvidiaDevice) -> None:
    if device.mode not in MODES:
        raise DeviceModeError("mode", expected=", ".join(MODES), got=device.mode)
    if device.mode != _UNREPORTED and device.protected_pcie not in (None, device.mode == _PROTECTED_PCIE):
        raise DeviceModeError("protected PCIe", expected=f"as the mode {device.mode} has it", got=device.protected_pcie)
    for flag in _FORBIDDEN_FLAGS:
        if flag in device.operational_flags:
            raise DeviceModeError("DICE flags", expected=f"without {flag}", got=", ".join(device.operational_flags))
    if device.kind != GPU and device.locked is not True:
        raise DeviceModeError("switch", expected="locked", got="unlocked or unreported")


def _require_golden(device: NvidiaDevice) -> None:
    for manifest in device.manifests:
        if manifest.mismatched:
            shown = ", ".join(str(index) for index in manifest.mismatched[:8])
            raise GoldenValueError(f"measurements of the {manifest.kind} manifest", expected="golden", got=shown)
        if manifest.matched == manifest.zeros:
            raise GoldenValueError(f"{manifest.kind} manifest", expected="golden values that are not zeros", got="none")


def _require_not_on_hold(device: NvidiaDevice) -> None:
    for what, status in _revocations(device):
        if status in (HOLD, HOLD_UNKNOWN):
            raise RevocationStatusError(f"certificates of the {what}", expected="not on hold", got=status)


def _appraise_device(device: NvidiaDevice, policy: NvidiaGpuPolicy) -> None:
    if device.architecture not in policy.architectures:
        raise ProductError("architecture", expected=", ".join(policy.architectures), got=device.architecture)
    if device.kind == GPU:
        _appraise_gpu(device, policy)
    _require_version("VBIOS", device.vbios_version, policy.vbios, family=2, base=16)
    if policy.manifests == REQUIRED:
        wanted = (DRIVER, VBIOS) if device.kind == GPU else (VBIOS,)
        given = tuple(manifest.kind for manifest in device.manifests)
        if not set(wanted) <= set(given):
            raise GoldenValueError("manifests", expected=" and ".join(wanted), got=", ".join(given) or "none")
    if not policy.allow_hold:
        _require_not_on_hold(device)
    if policy.revocation == REQUIRED:
        for what, status in _revocations(device):
            if status not in (GOOD, HOLD):
                raise RevocationStatusError(f"certificates of the {what}", expected=GOOD, got=status)


def _appraise_gpu(device: NvidiaDevice, policy: NvidiaGpuPolicy) -> None:
    if not isinstance(policy.boards, Unchecked) and device.board not in policy.boards:
        raise ProductError("board", expected=", ".join(policy.boards)[:200], got=device.board)
    if not isinstance(policy.modes, Unchecked) and _mode_of(device) not in policy.modes:
        raise DeviceModeError("mode", expected=", ".join(policy.modes), got=_mode_of(device))
    if policy.nvml_state == REQUIRED and device.state is None:
        raise DeviceModeError("NVML's modes", expected="told by the guest", got="nothing")
    _require_version("driver", device.driver_version, policy.drivers, family=1, base=10)


def _revocations(device: NvidiaDevice) -> list[tuple[str, str]]:
    manifests = [(f"{manifest.kind} manifest", manifest.revocation) for manifest in device.manifests]
    return [("device", device.revocation), *manifests]


def _require_version(what: str, found: str, allowed: Versions, *, family: int, base: int) -> None:
    if isinstance(allowed, Unchecked):
        return
    if not isinstance(allowed, AtLeast):
        if found not in allowed:
            raise FirmwareError(f"{what} version", expected=", ".join(allowed)[:200], got=found)
        return
    parts = _parts(found, base)
    floors = [_parts(entry, base) for entry in allowed.at_least]
    if not any(parts[:family] == floor[:family] and parts >= floor for floor in floors):
        raise FirmwareError(f"{what} version", expected=f"at least {', '.join(allowed.at_least)}"[:200], got=found)


def _parts(version: str, base: int) -> tuple[int, ...]:
    return tuple(int(part, base) for part in version.split("."))


def _require_number(what: str, found: int, allowed: Exactly | Least | Unchecked) -> None:
    match allowed:
        case Exactly(exactly=wanted):
            holds, expected = found == wanted, f"exactly {wanted}"
        case Least(least=wanted):
            holds, expected = found >= wanted, f"at least {wanted}"
        case Unchecked():
            return
    if not holds:
        raise DeviceCountError(what, expected=expected, got=found)


def _require_closed(claims: NvidiaClaims) -> None:
    present = {device.pdi for device in claims.devices}
    for device in claims.devices:
        absent = [pdi for pdi in device.linked if pdi not in present]
        if absent:
            raise DeviceCountError(
                f"links of {device.kind} {device.pdi.hex()}",
                expected="to devices of this evidence",
                got=absent[0].hex(),
            )


def _require_each(field: str, allowed: Versions, holds: Callable[[str], bool]) -> None:
    if isinstance(allowed, Unchecked):
        return
    entries = allowed.at_least if isinstance(allowed, AtLeast) else allowed
    if not entries:
        raise PolicyFormatError(field, expected="at least one", got="none")
    for entry in entries:
        if not holds(entry):
            raise PolicyFormatError(field, expected="a value of its one form", got=entry[:40])


def _require_count(field: str, count: Exactly | Least | Unchecked, *, floor: int) -> None:
    if isinstance(count, Unchecked):
        return
    number = count.exactly if isinstance(count, Exactly) else count.least
    if not floor <= number <= DEVICE_LIMIT:
        raise PolicyFormatError(field, expected=f"{floor} to {DEVICE_LIMIT}", got=number)
