"""What an owner pins: the measurements that evidence of this release will carry, computed before anything runs.

- simulated TEE: the digests of the code that is installed here (``measurement``);
- SEV-SNP: the launch digest of a guest from its firmware, kernel, initrd, command line and vCPUs, computed by
  sev-snp-measure, which is asked nothing before its inputs are known to be what it silently assumes;
- Nitro: PCR0 to PCR2 from what ``nitro-cli build-enclave`` printed; only it can build the image that they measure.

Not here: TDX (MRTD depends on the order in which a hypervisor adds pages, and on its version; take it from a quote of a
machine that you trust, verified by ``confed evidence verify``) and SGX (Gramine prints MRENCLAVE when it signs).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from confed.attestation.measurement import aggregator_image, client_image, inference_image
from confed.errors import MissingFileError, UsageError
from confed.journey import Role

PAGE_BYTES = 4096
FIRMWARE_LIMIT_BYTES = 64 * 1024 * 1024
"""Largest firmware image; it ends at 4 GiB in the guest."""

VMMS = ("qemu", "ec2", "gce")
"""Hypervisors whose initial vCPU state sev-snp-measure knows."""

_MOST_VCPUS = 4096
# AMD 24593, APM volume 2, table B-4 (VMSA): SEV_FEATURES, bit 0 (SNPActive).
_SNP_ACTIVE = 1
_SECTION_KERNEL_HASHES = 0x10
# QEMU target/i386/sev.c: PaddedSevHashTable.
_HASH_TABLE_BYTES = 176
_NITRO_LIMIT_BYTES = 64 * 1024
_NITRO_REGISTERS = ("PCR0", "PCR1", "PCR2")
_REGISTER = re.compile(r"[0-9a-f]{96}\Z")
# A serving file's table is the experiment file's; the TEE that opens a model is its client.
_MEASURED = {
    Role.CLIENT: "client_measurements",
    Role.AGGREGATOR: "aggregator_measurements",
    Role.INFERENCE: "client_measurements",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceValues:
    """What was computed, from what, and how it is pinned.

    Attributes:
        profile: of the evidence that will carry the values.
        inputs: what they were computed from.
        values: by name, in hexadecimal.
        lines: TOML for the experiment file.
        policy: TOML for the appraisal policy of the same profile, where the owner pins them there too.
        notes: what has to be known about them.
    """

    profile: str
    inputs: Mapping[str, str]
    values: Mapping[str, str]
    lines: tuple[str, ...]
    policy: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SnpGuest:
    """Everything that a launch digest of an SEV-SNP guest depends on.

    Attributes:
        firmware: OVMF image.
        kernel: for direct boot; ``None`` where the firmware finds its kernel on a disk, which is then not measured.
        initrd, append: with a kernel only.
        vcpus: how many.
        vcpu_signature: CPUID Fn0000_0001_EAX of the vCPU model; for QEMU, and only there.
        guest_features: SEV_FEATURES of the VMSA.
        vmm: one of ``VMMS``.

    Raises:
        UsageError: a value that cannot be, or one that contradicts another.
    """

    firmware: Path
    kernel: Path | None
    initrd: Path | None
    append: str | None
    vcpus: int
    vcpu_signature: int | None
    guest_features: int
    vmm: str

    def __post_init__(self) -> None:
        _require(self.vmm in VMMS, "vmm", f"one of {', '.join(VMMS)}", self.vmm)
        _require(1 <= self.vcpus <= _MOST_VCPUS, "vcpus", f"from 1 to {_MOST_VCPUS}", self.vcpus)
        _require(
            self.guest_features < 1 << 64 and bool(self.guest_features & _SNP_ACTIVE),
            "guest features",
            "64 bits of which bit 0 (SNPActive) is set",
            hex(self.guest_features),
        )
        _require(
            (self.vcpu_signature is not None) == (self.vmm == VMMS[0]),
            "vcpu type or signature",
            "one for QEMU, none for another hypervisor",
            "the contrary",
        )
        if self.vcpu_signature is not None:
            _require(0 < self.vcpu_signature < 1 << 32, "vcpu signature", "32 bits", hex(self.vcpu_signature))
        if self.kernel is None:
            for name in ("initrd", "append"):
                _require(getattr(self, name) is None, name, "none without a kernel", getattr(self, name))


def simulated(app_directory: Path | None, lock: str) -> ReferenceValues:
    """Return the measurements of the simulated TEEs that would run the code installed here.

    Args:
        app_directory: absolute path of the app's code; ``None`` for an app that the lock file pins.
        lock: digest of the lock file.

    Raises:
        ConfigError, MissingFileError, MeasurementError: see ``measurement``.
    """
    client, aggregator = client_image(app_directory, lock), aggregator_image(lock)
    return ReferenceValues(
        profile="simulated/1",
        inputs={"app": str(app_directory or "none: pinned by the lock file"), "lock": lock},
        values={"client": client, "aggregator": aggregator},
        lines=("[tee]", 'profile = "simulated/1"'),
        policy=(),
        notes=(
            "SIMULATED: whoever has the root's key file can claim any measurement. Production refuses it.",
            "An experiment file leaves these out: resolving it measures the code again.",
            "They hold for these files, this Python version and this lock file.",
        ),
    )


def simulated_serving(folder: Path, lock: str) -> ReferenceValues:
    """Return the measurement of the simulated inference TEE that would run the engine in a folder.

    Args:
        folder: absolute path of the serving file's folder: the engine's code.
        lock: digest of the lock file.

    Raises:
        ConfigError, MissingFileError, MeasurementError: see ``measurement``.
    """
    return ReferenceValues(
        profile="simulated/1",
        inputs={"engine": str(folder), "lock": lock},
        values={"inference": inference_image(folder, lock)},
        lines=("[tee]", 'profile = "simulated/1"'),
        policy=(),
        notes=(
            "SIMULATED: whoever has the root's key file can claim any measurement. Production refuses it.",
            "A serving file leaves it out: resolving it measures the code again. It is the manifest's client_image.",
            "It holds for these files, this Python version and this lock file.",
        ),
    )


def snp_launch_digest(guest: SnpGuest) -> str:
    """Return the MEASUREMENT that an SEV-SNP report of this guest carries: 96 hexadecimal digits.

    Raises:
        MissingFileError: a file that is not there.
        UsageError: sev-snp-measure is not installed, or a firmware that an SEV-SNP guest with these inputs cannot
            start from.
    Source: AMD 56860, SEV Secure Nested Paging Firmware ABI, section 8.17.2 (PAGE_INFO), as sev-snp-measure has it.
    """
    library = _library()
    try:
        _require_files(guest)
        _require_firmware(library["OVMF"](str(guest.firmware)), guest)
        digest = library["launch_digest"](
            guest.vcpus,
            guest.vcpu_signature or 0,
            str(guest.firmware),
            str(guest.kernel) if guest.kernel else None,
            str(guest.initrd) if guest.initrd else None,
            guest.append,
            guest.guest_features,
            "",
            library["VMMType"][guest.vmm.upper() if guest.vmm == VMMS[0] else guest.vmm],
        )
    except OSError as error:
        raise UsageError("guest", expected="files that can be read", got=str(error)) from error
    except (RuntimeError, ValueError, IndexError) as error:
        raise UsageError("firmware", expected="OVMF for SEV-SNP", got=f"{guest.firmware} ({error})") from error
    return bytes(digest).hex()


def snp(guest: SnpGuest, *, role: Role) -> ReferenceValues:
    """Return an SEV-SNP guest's launch digest as what an owner pins for a role.

    Raises:
        MissingFileError, UsageError: see ``snp_launch_digest``.
    """
    digest = snp_launch_digest(guest)
    signature = "the hypervisor's own" if guest.vcpu_signature is None else f"{guest.vcpu_signature:#x}"
    inputs = {
        "firmware": str(guest.firmware),
        "kernel": str(guest.kernel or "none"),
        "initrd": str(guest.initrd or "none"),
        "append": guest.append or "",
        "vcpus": str(guest.vcpus),
        "vcpu signature": signature,
        "guest features": f"{guest.guest_features:#x}",
        "vmm": guest.vmm,
    }
    notes = [
        "Start the guest with HOST_DATA = the manifest's digest (QEMU: host-data, base64); it is not measured here.",
        "Another number or model of vCPUs is another value: pin one for each shape.",
    ]
    if guest.kernel is None:
        notes.append("Without a kernel only the firmware is measured: whatever it boots from a disk is not.")
    values = {"measurement": digest}
    return _pinned(
        "sev-snp/1", role, digest, inputs=inputs, values=values, fields={"measurements": digest}, notes=notes
    )


def nitro(build_output: bytes, *, role: Role) -> ReferenceValues:
    """Return the registers of an enclave image from the JSON that ``nitro-cli build-enclave`` printed.

    Raises:
        UsageError: not that JSON, a register that is missing or not SHA-384, or zeros (an enclave in debug mode).
    """
    _require(len(build_output) <= _NITRO_LIMIT_BYTES, "measurements", f"at most {_NITRO_LIMIT_BYTES} bytes", "more")
    try:
        parsed: Any = json.loads(build_output)
    except (ValueError, RecursionError) as error:
        raise UsageError("measurements", expected="JSON of nitro-cli build-enclave", got="something else") from error
    found: Any = parsed.get("Measurements", parsed) if isinstance(parsed, dict) else None
    _require(isinstance(found, dict), "measurements", "JSON of nitro-cli build-enclave", "something else")
    values: dict[str, str] = {}
    for name in _NITRO_REGISTERS:
        value: Any = found.get(name)
        fits = isinstance(value, str) and bool(_REGISTER.match(value)) and bool(value.strip("0"))
        _require(fits, name, "96 lower-case hexadecimal digits, not zeros", repr(value)[:60])
        values[name] = value
    notes = [
        "PCR0 covers the whole image; pin PCR1 (kernel) and PCR2 (application) in the appraisal policy.",
        "PCR16 is the manifest's: the enclave extends and locks it when it starts, and confed checks it by itself.",
    ]
    fields = {name.lower(): value for name, value in values.items()}
    return _pinned("aws-nitro/1", role, values["PCR0"], inputs={}, values=values, fields=fields, notes=notes)


def vcpu_signature(name: str) -> int:
    """Return CPUID Fn0000_0001_EAX of a QEMU CPU model, such as ``EPYC-v4``.

    Raises:
        UsageError: sev-snp-measure is not installed, or does not know the model.
    """
    signatures: dict[str, int] = _library()["signatures"]
    if name not in signatures:
        raise UsageError("vcpu type", expected=", ".join(signatures), got=name)
    return signatures[name]


def _pinned(
    profile: str,
    role: Role,
    measurement: str,
    *,
    inputs: Mapping[str, str],
    values: Mapping[str, str],
    fields: Mapping[str, str],
    notes: list[str],
) -> ReferenceValues:
    return ReferenceValues(
        profile=profile,
        inputs={"role": str(role), **inputs},
        values=values,
        lines=("[tee]", f'profile = "{profile}"', f'{_MEASURED[role]} = ["{measurement}"]'),
        policy=("[policy]", *(f'{name} = ["{value}"]' for name, value in fields.items())),
        notes=tuple(notes),
    )


def _library() -> dict[str, Any]:
    try:
        from sevsnpmeasure import guest, ovmf, vcpu_types, vmm_types  # noqa: PLC0415 (an extra: confed[measure])
    except ImportError as error:
        raise UsageError(
            "sev-snp-measure", expected="installed: pip install confed[measure]", got="not there"
        ) from error
    return {
        "OVMF": ovmf.OVMF,
        "launch_digest": guest.snp_calc_launch_digest,
        "signatures": vcpu_types.CPU_SIGS,
        "VMMType": vmm_types.VMMType,
    }


def _require_files(guest: SnpGuest) -> None:
    for name in ("firmware", "kernel", "initrd"):
        path: Path | None = getattr(guest, name)
        if path is not None and not path.is_file():
            raise MissingFileError(name, expected="a file", got=str(path))
    size = guest.firmware.stat().st_size
    whole = size % PAGE_BYTES == 0 and 0 < size <= FIRMWARE_LIMIT_BYTES
    _require(whole, "firmware in bytes", f"whole pages, at most {FIRMWARE_LIMIT_BYTES}", size)


def _require_firmware(ovmf: Any, guest: SnpGuest) -> None:
    """Refuse what sev-snp-measure takes without a word, or with an assertion that can be switched off."""
    sections: list[Any] = ovmf.metadata_items()
    # Without its metadata, pages that the hypervisor adds are left out of the digest: no guest ever has that value.
    _require(bool(sections), "firmware", "SEV metadata (ASEV) in its footer table", "none")
    for section in sections:
        aligned = section.gpa % PAGE_BYTES == 0 and section.size % PAGE_BYTES == 0 and section.size > 0
        _require(aligned, "SEV metadata section", "whole pages", f"{section.size:#x} bytes at {section.gpa:#x}")
    if guest.kernel is None:
        return
    table: int = ovmf.sev_hashes_table_gpa()
    pages = [
        section.gpa
        for section in sections
        if section.section_type_int == _SECTION_KERNEL_HASHES and section.size == PAGE_BYTES
    ]
    fits = table - table % PAGE_BYTES in pages and table % PAGE_BYTES + _HASH_TABLE_BYTES <= PAGE_BYTES
    _require(fits, "firmware", "a page of SEV metadata for the kernel's hashes (AmdSev build)", "none")


def _require(holds: bool, field: str, expected: object, got: object) -> None:  # noqa: FBT001
    if not holds:
        raise UsageError(field, expected=expected, got=got)
