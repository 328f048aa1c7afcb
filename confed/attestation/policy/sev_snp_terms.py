"""What an owner of data or models can choose about SEV-SNP guests: the policy's fields, each in its one form.

Whether a guest meets them is decided in ``confed.attestation.policy.sev_snp``; what holds whatever is written here (no
debugging, no migration, …) stands there too.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from confed.attestation.tee.sev_snp import PROFILE
from confed.attestation.tee.sev_snp_report import FirmwareVersion, GuestPolicyBit, PlatformBit, Product, SigningKey, Tcb
from confed.errors import PolicyFormatError
from confed.manifest import Unchecked

GUEST_LEVELS = range(4)
"""The privilege levels (VMPL) of a guest; the host asks for reports with another value."""

_VERSIONS = range(2, 6)
_BYTE = range(256)
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}\Z")
_PROCESSOR = re.compile(r"[0-9a-f]{2}-[0-9a-f]{2}-[0-9a-f]{2}\Z")
_PROCESSORS = re.compile(r"[0-9a-f]{2}-[0-9a-f]{2}(-[0-9a-f]{2})?\Z")
_DIGITS = re.compile(r"[0-9a-f]+\Z")
CHIP_DIGITS = 128
"""A chip id in hexadecimal."""

_SHA384, _TURIN_CHIP, _HOST_DATA, _ID, _MASK = 96, 16, 64, 32, 16


class Revocation(StrEnum):
    """What is demanded of revocation: that it was checked."""

    REQUIRED = "required"


class Committed(StrEnum):
    """What is demanded of the committed TCB and firmware version: that they are the current ones."""

    CURRENT = "current"


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class AbiVersion:
    """A version of the firmware's interface, as guest policies name it."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


@dataclass(frozen=True, slots=True, kw_only=True)
class MinimumTcb:
    """The least acceptable TCB of each processor, as of a date.

    Attributes:
        issued, expires: first and last day (UTC) of the data, as ``YYYY-MM-DD``.
        processors: by CPUID family, model and stepping in hexadecimal, as ``19-11-01``; one that is not listed is
            refused, so a report of version 2 always is.
    """

    issued: str
    expires: str
    processors: Mapping[str, Tcb]

    @property
    def last_day(self) -> datetime.date:
        """The last day on which the data may be used."""
        return _date("expires", self.expires)

    def __post_init__(self) -> None:
        _require(_date("issued", self.issued) <= self.last_day, "minimum_tcb.expires", "after issued", self.expires)
        _require(bool(self.processors), "minimum_tcb.processors", "at least one", "none")
        for name, tcb in self.processors.items():
            _require(bool(_PROCESSOR.match(name)), "minimum_tcb.processors", "a name like 19-11-01", name[:40])
            levels = (tcb.fmc, tcb.bootloader, tcb.tee, tcb.snp, tcb.microcode)
            _require(all(level in _BYTE for level in levels), f"minimum_tcb.{name}", "levels from 0 to 255", levels)
            _require(any(levels), f"minimum_tcb.{name}", "a level above 0", "none")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mitigations:
    """Bits that must be set in the mitigation vectors at launch and now, as 16 hexadecimal digits each; never none."""

    launch: str | Unchecked
    current: str | Unchecked

    def __post_init__(self) -> None:
        for name in ("launch", "current"):
            mask: str | Unchecked = getattr(self, name)
            _require_hex(f"mitigations.{name}", mask if isinstance(mask, Unchecked) else (mask,), (_MASK,))


@dataclass(frozen=True, slots=True, kw_only=True)
class SnpPolicy:
    """Which SEV-SNP guests an owner accepts. Lists are allow-lists unless their name says otherwise.

    Attributes:
        products: Milan is accepted only where it stands here.
        denied_processors: by family and model (``19-01``) or with the stepping too (``19-01-01``).
        minimum_report_version: 2 to 5; floors refuse version 2 in practice.
        signing_keys: VCEK, VLEK. csp_ids: whose VLEK; says nothing of a VCEK.
        chips: chip ids, 128 hexadecimal digits, or 16 for Turin.
        measurements, id_keys, author_keys: SHA-384 each, 96 hexadecimal digits; what is listed must all hold.
        minimum_guest_svn, family_ids, image_ids: from the guest's ID block, so worth as much as the key that signed it.
        host_data: 64 hexadecimal digits.
        privilege_levels: VMPLs, 0 to 3.
        minimum_abi: least interface version that the guest's own policy demands.
        minimum_firmware: least committed firmware version.
        mitigations: by processor, as in ``MinimumTcb``; one that is not listed is refused.

    Raises:
        PolicyFormatError: an empty list, a value that is not of its one form, zeros as a golden value.
    """

    PROFILE: ClassVar[str] = PROFILE

    products: tuple[Product, ...]
    denied_processors: tuple[str, ...] | Unchecked
    minimum_report_version: int
    signing_keys: tuple[SigningKey, ...]
    csp_ids: tuple[str, ...] | Unchecked
    chips: tuple[str, ...] | Unchecked
    revocation: Revocation | Unchecked
    measurements: tuple[str, ...] | Unchecked
    id_keys: tuple[str, ...] | Unchecked
    author_keys: tuple[str, ...] | Unchecked
    minimum_guest_svn: int | Unchecked
    family_ids: tuple[str, ...] | Unchecked
    image_ids: tuple[str, ...] | Unchecked
    host_data: tuple[str, ...] | Unchecked
    privilege_levels: tuple[int, ...]
    guest_policy_required: tuple[GuestPolicyBit, ...] | Unchecked
    guest_policy_forbidden: tuple[GuestPolicyBit, ...] | Unchecked
    minimum_abi: AbiVersion | Unchecked
    platform_info_required: tuple[PlatformBit, ...] | Unchecked
    platform_info_forbidden: tuple[PlatformBit, ...] | Unchecked
    minimum_firmware: FirmwareVersion | Unchecked
    committed: Committed | Unchecked
    minimum_tcb: MinimumTcb | Unchecked
    mitigations: Mapping[str, Mitigations] | Unchecked

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if isinstance(value, tuple | Mapping):
                _require(bool(value), name, "at least one entry", "none")  # pyright: ignore[reportUnknownArgumentType]
        for name, digits in (
            ("chips", (CHIP_DIGITS, _TURIN_CHIP)),
            ("measurements", (_SHA384,)),
            ("id_keys", (_SHA384,)),
            ("author_keys", (_SHA384,)),
            ("family_ids", (_ID,)),
            ("image_ids", (_ID,)),
            ("host_data", (_HOST_DATA,)),
        ):
            _require_hex(name, getattr(self, name), digits)
        for name in listed(self.denied_processors):
            _require(bool(_PROCESSORS.match(name)), "denied_processors", "names like 19-01 or 19-01-01", name[:40])
        for name in listed(self.mitigations):
            _require(bool(_PROCESSOR.match(name)), "mitigations", "names like 19-11-01", name[:40])
        _require(all(csp.strip() for csp in listed(self.csp_ids)), "csp_ids", "names", "nothing")
        _require(self.minimum_report_version in _VERSIONS, "minimum_report_version", "2 to 5", "another")
        _require(all(level in GUEST_LEVELS for level in self.privilege_levels), "privilege_levels", "0 to 3", "others")
        if not isinstance(self.minimum_guest_svn, Unchecked):
            _require(1 <= self.minimum_guest_svn < 2**32, "minimum_guest_svn", "1 to 2^32 - 1", self.minimum_guest_svn)
        for name in ("minimum_abi", "minimum_firmware"):
            version = getattr(self, name)
            if not isinstance(version, Unchecked):
                parts = [getattr(version, part) for part in version.__slots__]
                _require(all(part in _BYTE for part in parts) and any(parts), name, "0 to 255, not all 0", parts)


def listed(value: Collection[str] | Unchecked) -> Collection[str]:
    """Return what a policy lists; nothing where it leaves the field unchecked."""
    return () if isinstance(value, Unchecked) else value


def _date(field: str, text: str) -> datetime.date:
    try:
        if _DATE.match(text):
            return datetime.date.fromisoformat(text)
    except ValueError:
        pass
    raise PolicyFormatError(f"minimum_tcb.{field}", expected="a date as YYYY-MM-DD", got=repr(text)[:60])


def _require_hex(name: str, entries: Collection[str] | Unchecked, digits: tuple[int, ...]) -> None:
    for entry in listed(entries):
        form = " or ".join(map(str, digits))
        _require(len(entry) in digits and bool(_DIGITS.match(entry)), name, f"{form} hexadecimal digits", entry[:40])
        _require(bool(entry.strip("0")), name, "values other than zero", "zeros")


def _require(holds: bool, field: str, expected: object, got: object) -> None:  # noqa: FBT001
    if not holds:
        raise PolicyFormatError(field, expected=expected, got=got)
