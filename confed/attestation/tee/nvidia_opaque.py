"""NVIDIA's opaque data: what a report says of a device beside its measurements, field by field.

A field is a number, a size and a value, all little-endian, one after the other. Numbers that are not known here are
kept and not interpreted: they are under the report's signature as the others are.

Source: NVIDIA nvtrust and attestation-sdk (github.com/NVIDIA): OPAQUE_FIELD_ID_… and how each is written.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from confed.errors import EvidenceFormatError, EvidenceSizeError, EvidenceVersionError, MissingClaimError

MEASUREMENT_BYTES = 48
"""SHA-384, which every measurement and firmware id is."""

VBIOS_VERSION = re.compile(r"[0-9A-F]{2}(\.[0-9A-F]{2}){4}\Z")
"""How NVIDIA writes the version of a VBIOS or of a switch's BIOS."""

DRIVER_VERSION = re.compile(r"[0-9]{3,4}(\.[0-9]{1,4}){1,3}\Z")
"""How NVIDIA writes the version of a driver."""

# DSP0274 version 1.1, OpaqueLength of MEASUREMENTS.
_OPAQUE_LIMIT_BYTES = 1024
# NVIDIA's next format of opaque data begins with this; it has typed values and is not read here.
_NEXT_FORMAT = b"NVDAOD"
_VERSION_LIMIT = 2

# Numbers of fields, from nvtrust and attestation-sdk.
_DRIVER_VERSION, _VBIOS_VERSION, _NVDEC0_STATUS = 3, 6, 11
_CHIP_SKU, _PROJECT, _PROJECT_SKU = 15, 17, 18
_FWID, _PROTECTED_PCIE, _PDI = 20, 21, 22
_LOCK, _GPU_PDIS, _OPAQUE_VERSION, _CHIP, _FEATURE = 25, 26, 34, 35, 36
# The one board that NVIDIA has manifests of switches for: nvtrust, switch settings.
_SWITCH_BOARD = "5612_0002_890"
_SWITCHED = {b"\xaa": True, b"\x55": False}
_MODES = ("mpt", "spt", "ppcie")
_PDI_BYTES = 8
_GPU_PDIS_BYTES = 8 * _PDI_BYTES
_GPU_VBIOS_BYTES = 8
_PLAIN = re.compile(r"[0-9A-Za-z.]{0,32}\Z")


class Reader:
    """Takes little-endian fields from bytes, in order, and no byte that is not there."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.position = 0

    @property
    def rest(self) -> bytes:
        """What has not been taken yet."""
        return self._data[self.position :]

    def take(self, size: int, what: str) -> bytes:
        """Return the next bytes.

        Raises:
            EvidenceFormatError: there are fewer.
        """
        end = self.position + size
        if end > len(self._data):
            raise EvidenceFormatError(f"{what} in bytes", expected=size, got=len(self._data) - self.position)
        taken = self._data[self.position : end]
        self.position = end
        return taken

    def number(self, size: int, what: str) -> int:
        """Return the next number.

        Raises:
            EvidenceFormatError: there are fewer bytes.
        """
        return int.from_bytes(self.take(size, what), "little")


@dataclass(frozen=True, slots=True)
class OpaqueData:
    """NVIDIA's fields in a report, by their number.

    Every property raises ``MissingClaimError`` where a field that it needs is not there, and ``EvidenceFormatError``
    where a field holds something else.
    """

    fields: Mapping[int, bytes]

    @property
    def driver_version(self) -> str:
        """The driver's version, such as ``550.90.07``."""
        text = self._text("driver version", _DRIVER_VERSION)
        if not DRIVER_VERSION.match(text):
            raise EvidenceFormatError("opaque driver version", expected="numbers and dots", got=text)
        return text

    @property
    def gpu_vbios_version(self) -> str:
        """A GPU's VBIOS version, such as ``96.00.9F.00.01``: four bytes from the last to the first, then the fifth."""
        value = self._value("VBIOS version", _VBIOS_VERSION)
        if len(value) != _GPU_VBIOS_BYTES or any(value[5:]):
            raise EvidenceFormatError("opaque VBIOS version", expected="5 bytes and 3 zeros", got=value.hex()[:40])
        return ".".join(f"{value[position]:02X}" for position in (3, 2, 1, 0, 4))

    @property
    def switch_bios_version(self) -> str:
        """A switch's BIOS version, such as ``96.10.55.00.01``."""
        text = self._text("BIOS version", _VBIOS_VERSION).upper()
        if not VBIOS_VERSION.match(text):
            raise EvidenceFormatError("opaque BIOS version", expected="five bytes and dots", got=text)
        return text

    @property
    def board(self) -> str:
        """Project, project SKU and chip SKU as NVIDIA's manifests are named: ``1010_0200_882``."""
        parts = (("project", _PROJECT), ("project SKU", _PROJECT_SKU), ("chip SKU", _CHIP_SKU))
        return "_".join(self._text(name, number) for name, number in parts)

    @property
    def firmware_id(self) -> bytes | None:
        """The FWID (SHA-384), or ``None`` where the driver does not report it."""
        value = self.fields.get(_FWID)
        if value is not None and len(value) != MEASUREMENT_BYTES:
            raise EvidenceFormatError("opaque FWID in bytes", expected=MEASUREMENT_BYTES, got=len(value))
        return value

    @property
    def follows_firmware_id(self) -> bool:
        """Whether there is a field that GPUs' drivers tell only since they tell the FWID: those numbered after it."""
        return any(number > _FWID for number in self.fields)

    @property
    def chip(self) -> str:
        """The chip that a Blackwell driver's manifest is named by, ``GB100`` where the driver does not say."""
        return self._text("chip", _CHIP) if _CHIP in self.fields else "GB100"

    @property
    def mode(self) -> str:
        """How several GPUs are used: ``mpt``, ``spt`` or ``ppcie``; ``unreported`` by older drivers.

        A mode that is not known here is ``unknown-`` and its number; floors refuse it.
        """
        if self.version == 0 or _FEATURE not in self.fields:
            return "unreported"
        number = self._number("feature flag", _FEATURE)
        return _MODES[number] if number < len(_MODES) else f"unknown-{number}"

    @property
    def version(self) -> int:
        """The version of the opaque data; 0 where it is not told."""
        return self._number("version", _OPAQUE_VERSION) if _OPAQUE_VERSION in self.fields else 0

    @property
    def protected_pcie(self) -> bool | None:
        """Whether Protected PCIe is on; ``None`` where it is not told."""
        return self._switched("protected PCIe status", _PROTECTED_PCIE)

    @property
    def video_decoder(self) -> bool | None:
        """Whether NVDEC0, of which measurement 35 speaks, is on; ``None`` where it is not told."""
        return self._switched("NVDEC0 status", _NVDEC0_STATUS)

    @property
    def switch_pdis(self) -> tuple[bytes, ...]:
        """The identities (PDI) of the switches that a GPU is linked to, each once, ascending.

        A GPU writes them from the last byte to the first, the other way round than switches and certificates do.
        """
        return tuple(sorted(pdi[::-1] for pdi in _pdis("switch PDIs", self.fields.get(_PDI, b""))))

    @property
    def switch_pdi(self) -> bytes:
        """A switch's own identity (PDI, 8 bytes)."""
        value = self._value("PDI", _PDI)
        if len(value) != _PDI_BYTES:
            raise EvidenceFormatError("opaque PDI in bytes", expected=_PDI_BYTES, got=len(value))
        return value

    @property
    def gpu_pdis(self) -> tuple[bytes, ...]:
        """The identities of the GPUs that a switch is linked to, each once, ascending.

        The field holds eight places of 8 bytes for GPUs, and as much again for the ports.
        """
        value = self.fields.get(_GPU_PDIS, b"")
        return _pdis("GPU PDIs", value[:_GPU_PDIS_BYTES])

    @property
    def locked(self) -> bool | None:
        """Whether a switch's settings are locked; ``None`` where it is not told."""
        return self._number("lock status", _LOCK) == 1 if _LOCK in self.fields else None

    def _value(self, name: str, number: int) -> bytes:
        value = self.fields.get(number)
        if value is None:
            raise MissingClaimError(f"opaque {name}", expected="a value", got="none")
        return value

    def _text(self, name: str, number: int) -> str:
        value = self._value(name, number).rstrip(b"\x00")
        text = value.decode("latin-1")
        if not _PLAIN.match(text):
            raise EvidenceFormatError(f"opaque {name}", expected="letters, digits and dots", got=value.hex()[:40])
        return text

    def _number(self, name: str, number: int) -> int:
        value = self._value(name, number)
        if len(value) != 2:
            raise EvidenceFormatError(f"opaque {name} in bytes", expected=2, got=len(value))
        return int.from_bytes(value, "little")

    def _switched(self, name: str, number: int) -> bool | None:
        value = self.fields.get(number)
        if value is not None and value not in _SWITCHED:
            raise EvidenceFormatError(f"opaque {name}", expected="aa or 55", got=value.hex()[:40])
        return None if value is None else _SWITCHED[value]


def parse_opaque(data: bytes) -> OpaqueData:
    """Return the fields of opaque data.

    Raises:
        EvidenceSizeError: more than SPDM allows.
        EvidenceVersionError: another format or version.
        EvidenceFormatError: cut short, or a field twice.
    """
    if len(data) > _OPAQUE_LIMIT_BYTES:
        raise EvidenceSizeError("opaque data in bytes", expected=f"at most {_OPAQUE_LIMIT_BYTES}", got=len(data))
    if data.startswith(_NEXT_FORMAT):
        raise EvidenceVersionError("opaque data", expected="fields without a header", got=_NEXT_FORMAT.decode())
    reader, fields = Reader(data), dict[int, bytes]()
    while reader.rest:
        number = reader.number(2, "opaque field")
        if number in fields:
            raise EvidenceFormatError("opaque field", expected="each once", got=number)
        fields[number] = reader.take(reader.number(2, "opaque field size"), f"opaque field {number}")
    opaque = OpaqueData(fields)
    if opaque.version > _VERSION_LIMIT:
        raise EvidenceVersionError("opaque data version", expected=f"at most {_VERSION_LIMIT}", got=opaque.version)
    return opaque


def manifest_ids(opaque: OpaqueData, *, architecture: str) -> tuple[str, ...]:
    """Return how NVIDIA's service names the manifests that a device needs: driver and VBIOS, or a switch's BIOS.

    Args:
        opaque: what the device reports.
        architecture: ``HOPPER``, ``BLACKWELL`` or ``LS10``.

    Raises:
        EvidenceVersionError: another architecture.
        MissingClaimError, EvidenceFormatError: a field that a name needs is not there, or holds something else.

    Source: NVIDIA attestation-sdk (github.com/NVIDIA), get_driver_rim_id and get_vbios_rim_id.
    """
    match architecture:
        case "HOPPER":
            driver = f"NV_GPU_DRIVER_GH100_{opaque.driver_version}"
        case "BLACKWELL":
            driver = f"NV_GPU_CC_DRIVER_{opaque.chip}_{opaque.driver_version}"
        case "LS10":
            return (f"NV_SWITCH_BIOS_{_SWITCH_BOARD}_{_compact(opaque.switch_bios_version)}",)
        case _:
            raise EvidenceVersionError("device architecture", expected="HOPPER, BLACKWELL or LS10", got="another")
    return driver, f"NV_GPU_VBIOS_{opaque.board}_{_compact(opaque.gpu_vbios_version)}".upper()


def _compact(version: str) -> str:
    return version.replace(".", "")


def _pdis(name: str, value: bytes) -> tuple[bytes, ...]:
    if len(value) % _PDI_BYTES:
        raise EvidenceFormatError(f"opaque {name} in bytes", expected=f"times {_PDI_BYTES}", got=len(value))
    found = {value[start : start + _PDI_BYTES] for start in range(0, len(value), _PDI_BYTES)}
    return tuple(sorted(pdi for pdi in found if any(pdi)))
