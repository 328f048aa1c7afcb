"""The attestation report of AMD SEV-SNP: its one layout for each version, read strictly.

What is read here is not yet verified. A report is taken apart in two steps, because where the components of a TCB stand
depends on the product, and a report of version 2 does not say what product it is from:

1. ``read_frame``: size, version, algorithm, the key that signed, reserved fields, the signature's form, the processor;
2. ``read_report``: every field, once the product is known.

Versions 2 to 5 are read. Version 3 adds the processor's CPUID, version 4 has the layout of version 3 (AMD published no
specification of it on its own; revision 1.58 made it 5), version 5 adds the mitigation vectors. Version 6 (revision
1.59, August 2026) is refused: the meaning of its extended TCB fields is not implemented.

Source: AMD 56860 (SEV-SNP firmware ABI) revision 1.58, section 2.3 (TCB_VERSION), tables 9 (guest policy), 23
(ATTESTATION_REPORT) and 24 (PLATFORM_INFO), chapter 10 (signature); revision 1.59 for bit 6 of PLATFORM_INFO.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from confed.errors import (
    AlgorithmError,
    EvidenceFormatError,
    EvidenceSignatureError,
    EvidenceVersionError,
    TrailingBytesError,
    TrustAnchorError,
)

REPORT_BYTES = 0x4A0
SIGNED_BYTES = 0x2A0
"""The part of a report that its signature covers."""

_VERSIONS = (2, 3, 4, 5)
_ECDSA_P384_SHA384 = 1
_FIELDS = struct.Struct("<IIQ16s16sII8sQII64s48s32s48s48s32s32s8s3B21x64s8s3Bx3Bx8sQQ152x")
_SCALAR_BYTES, _SCALAR_FIELD_BYTES = 48, 72
_AUTHOR_KEY_EN, _MASK_CHIP_KEY, _SIGNING_KEY_SHIFT = 0x1, 0x2, 2
_UNSIGNED = 7
_MUST_BE_ONE = 1 << 17


class Product(StrEnum):
    """A line of processors with a root of its own; Genoa's covers Bergamo and Siena."""

    MILAN = "Milan"
    GENOA = "Genoa"
    TURIN = "Turin"


class SigningKey(StrEnum):
    """Who vouches for a report: the chip's own key (VCEK), or one that AMD gave to a cloud (VLEK)."""

    VCEK = "VCEK"
    VLEK = "VLEK"


class GuestPolicyBit(StrEnum):
    """What the guest's owner allows or demands. Source: AMD 56860, table 9."""

    SMT = "SMT"
    MIGRATE_MA = "MIGRATE_MA"
    DEBUG = "DEBUG"
    SINGLE_SOCKET = "SINGLE_SOCKET"
    CXL_ALLOW = "CXL_ALLOW"
    MEM_AES_256_XTS = "MEM_AES_256_XTS"
    RAPL_DIS = "RAPL_DIS"
    CIPHERTEXT_HIDING_DRAM = "CIPHERTEXT_HIDING_DRAM"
    PAGE_SWAP_DISABLE = "PAGE_SWAP_DISABLE"


class PlatformBit(StrEnum):
    """How the platform is set up. Source: AMD 56860, table 24; bit 6 from revision 1.59 and AMD-SB-3016."""

    SMT_EN = "SMT_EN"
    TSME_EN = "TSME_EN"
    ECC_EN = "ECC_EN"
    RAPL_DIS = "RAPL_DIS"
    CIPHERTEXT_HIDING_DRAM_EN = "CIPHERTEXT_HIDING_DRAM_EN"
    ALIAS_CHECK_COMPLETE = "ALIAS_CHECK_COMPLETE"
    IOMMU_WRITE_SAFE = "IOMMU_WRITE_SAFE"
    TIO_EN = "TIO_EN"


_GUEST_POLICY_POSITIONS = {
    GuestPolicyBit.SMT: 16,
    GuestPolicyBit.MIGRATE_MA: 18,
    GuestPolicyBit.DEBUG: 19,
    GuestPolicyBit.SINGLE_SOCKET: 20,
    GuestPolicyBit.CXL_ALLOW: 21,
    GuestPolicyBit.MEM_AES_256_XTS: 22,
    GuestPolicyBit.RAPL_DIS: 23,
    GuestPolicyBit.CIPHERTEXT_HIDING_DRAM: 24,
    GuestPolicyBit.PAGE_SWAP_DISABLE: 25,
}
_PLATFORM_POSITIONS = {bit: position for position, bit in enumerate(PlatformBit)}

# Source: AMD 56860, section 2.3: the bytes of TCB_VERSION, lowest first; an empty name is a reserved byte.
_BEFORE_TURIN = ("bootloader", "tee", "", "", "", "", "snp", "microcode")
_TCB_LAYOUTS = {
    Product.MILAN: _BEFORE_TURIN,
    Product.GENOA: _BEFORE_TURIN,
    Product.TURIN: ("fmc", "bootloader", "tee", "snp", "", "", "", "microcode"),
}

# Source: AMD 57230 (VCEK certificate and KDS interface), section 1.5: family, first and last model of each product.
_PROCESSORS = (
    (0x19, 0x00, 0x0F, Product.MILAN),
    (0x19, 0x10, 0x1F, Product.GENOA),
    (0x19, 0xA0, 0xAF, Product.GENOA),
    (0x1A, 0x00, 0x1F, Product.TURIN),
)

# First and last byte (exclusive) of what must be zero, in every version and beyond that.
_RESERVED = ((0x4C, 0x50), (0x18B, 0x1A0), (0x1EB, 0x1EC), (0x1EF, 0x1F0), (0x330, 0x4A0))
_RESERVED_IN = {
    2: ((0x188, 0x18B), (0x1F8, 0x2A0)),
    3: ((0x1F8, 0x2A0),),
    4: ((0x1F8, 0x2A0),),
    5: ((0x208, 0x2A0),),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tcb:
    """Security patch levels, 0 to 255 each; ``fmc`` is 0 before Turin."""

    fmc: int
    bootloader: int
    tee: int
    snp: int
    microcode: int

    def covers(self, other: Tcb) -> bool:
        """Whether every component is at least the other's."""
        return all(getattr(self, name) >= getattr(other, name) for name in self.__slots__)


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class FirmwareVersion:
    """A version of the SEV-SNP firmware's interface, with its build."""

    major: int
    minor: int
    build: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.build}"


class Frame(NamedTuple):
    """What can be read of a report before its product is known.

    Attributes:
        version: 2 to 5.
        signing_key: which key must have signed it.
        product: by CPUID; ``None`` in version 2, which does not say.
        signature: in DER, as ECDSA libraries take it.
    """

    version: int
    signing_key: SigningKey
    product: Product | None
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SnpReport:
    """The fields of a report, 64-bit sets of bits as 16 hexadecimal digits and their known bits by name.

    Attributes:
        version: of the report's format.
        processor: CPUID family, model and stepping as ``19-11-01``; empty in version 2.
        guest_svn, family_id, image_id: from the guest's ID block; zero without one.
        abi_major, abi_minor: least firmware interface that the guest's owner accepts.
        vmpl: privilege level that asked for the report; above 3 it was the host.
        author_key_enabled: whether an author key certified the ID key.
        measurement: digest of the guest at launch. host_data: what the host gave it then.
        report_id_ma: of the migration agent; all ones where there is none.
        reported_tcb: the one that the signing key is derived from. committed_tcb: the one that the platform cannot fall
            below. current_tcb: what runs. launch_tcb: what ran when the guest was launched.
        chip_id: zeros where the host masks it.
        launch_mitigations, current_mitigations: as 16 hexadecimal digits; empty before version 5.
    """

    version: int
    processor: str
    guest_svn: int
    guest_policy: str
    guest_policy_bits: tuple[GuestPolicyBit, ...]
    abi_major: int
    abi_minor: int
    family_id: bytes
    image_id: bytes
    vmpl: int
    platform_info: str
    platform_bits: tuple[PlatformBit, ...]
    author_key_enabled: bool
    report_data: bytes
    measurement: bytes
    host_data: bytes
    id_key_digest: bytes
    author_key_digest: bytes
    report_id: bytes
    report_id_ma: bytes
    chip_id: bytes
    reported_tcb: Tcb
    committed_tcb: Tcb
    current_tcb: Tcb
    launch_tcb: Tcb
    current_version: FirmwareVersion
    committed_version: FirmwareVersion
    launch_mitigations: str
    current_mitigations: str

    @property
    def unknown_guest_policy(self) -> int:
        """The bits of the guest policy that no specification known here names."""
        known = sum(1 << position for position in _GUEST_POLICY_POSITIONS.values())
        return int(self.guest_policy, 16) & ~(known | _MUST_BE_ONE | 0xFFFF)

    @property
    def unknown_platform_info(self) -> int:
        """The bits of PLATFORM_INFO that no specification known here names."""
        return int(self.platform_info, 16) >> len(_PLATFORM_POSITIONS)


def read_frame(data: bytes) -> Frame:
    """Return what a report says before its product is known.

    Raises:
        EvidenceFormatError: another size, a reserved field that is not zero, an unknown signing key.
        TrailingBytesError: bytes after its end.
        EvidenceVersionError: a version other than 2 to 5.
        AlgorithmError: another algorithm than ECDSA P-384 with SHA-384.
        EvidenceSignatureError: a report that says that it is not signed.
        TrustAnchorError: a processor of no product that is known.
    """
    if len(data) > REPORT_BYTES:
        raise TrailingBytesError("SNP report", expected=f"{REPORT_BYTES} bytes", got=len(data))
    if len(data) < REPORT_BYTES:
        raise EvidenceFormatError("SNP report", expected=f"{REPORT_BYTES} bytes", got=len(data))
    version = int.from_bytes(data[:4], "little")
    if version not in _VERSIONS:
        raise EvidenceVersionError("SNP report version", expected="2 to 5", got=version)
    for start, end in (*_RESERVED, *_RESERVED_IN[version]):
        if any(data[start:end]):
            raise EvidenceFormatError(f"SNP report, bytes {start:#x} to {end:#x}", expected="zeros", got="others")
    algorithm = int.from_bytes(data[0x34:0x38], "little")
    if algorithm != _ECDSA_P384_SHA384:
        raise AlgorithmError("SIGNATURE_ALGO", expected="1 (ECDSA P-384 with SHA-384)", got=algorithm)
    return Frame(
        version=version,
        signing_key=_signing_key(int.from_bytes(data[0x48:0x4C], "little")),
        product=None if version == 2 else _product(data[0x188], data[0x189]),
        signature=encode_dss_signature(_scalar(data, 0x2A0), _scalar(data, 0x2E8)),
    )


def read_report(data: bytes, *, product: Product) -> SnpReport:
    """Return the fields of a report whose frame has been read.

    Raises:
        EvidenceFormatError: a reserved byte of a TCB, or a bit of the guest policy, that has the wrong value.
    """
    # fmt: off
    (
        version, guest_svn, policy, family_id, image_id, vmpl, _, current, platform, keys, _, report_data, measurement,
        host_data, id_key_digest, author_key_digest, report_id, report_id_ma, reported, family, model, stepping,
        chip_id, committed, current_build, current_minor, current_major, committed_build, committed_minor,
        committed_major, launch, launch_mitigations, current_mitigations,
    ) = _FIELDS.unpack_from(data)
    # fmt: on
    if not policy & _MUST_BE_ONE:
        raise EvidenceFormatError("guest policy, bit 17", expected=1, got=0)
    return SnpReport(
        version=version,
        processor="" if version == 2 else f"{family:02x}-{model:02x}-{stepping:02x}",
        guest_svn=guest_svn,
        guest_policy=f"{policy:016x}",
        guest_policy_bits=tuple(bit for bit, at in _GUEST_POLICY_POSITIONS.items() if policy >> at & 1),
        abi_major=policy >> 8 & 0xFF,
        abi_minor=policy & 0xFF,
        family_id=family_id,
        image_id=image_id,
        vmpl=vmpl,
        platform_info=f"{platform:016x}",
        platform_bits=tuple(bit for bit, at in _PLATFORM_POSITIONS.items() if platform >> at & 1),
        author_key_enabled=bool(keys & _AUTHOR_KEY_EN),
        report_data=report_data,
        measurement=measurement,
        host_data=host_data,
        id_key_digest=id_key_digest,
        author_key_digest=author_key_digest,
        report_id=report_id,
        report_id_ma=report_id_ma,
        chip_id=chip_id,
        reported_tcb=_tcb("REPORTED_TCB", reported, product),
        committed_tcb=_tcb("COMMITTED_TCB", committed, product),
        current_tcb=_tcb("CURRENT_TCB", current, product),
        launch_tcb=_tcb("LAUNCH_TCB", launch, product),
        current_version=FirmwareVersion(major=current_major, minor=current_minor, build=current_build),
        committed_version=FirmwareVersion(major=committed_major, minor=committed_minor, build=committed_build),
        launch_mitigations=f"{launch_mitigations:016x}" if version >= 5 else "",
        current_mitigations=f"{current_mitigations:016x}" if version >= 5 else "",
    )


def reported_tcb_of(data: bytes) -> bytes:
    """Return REPORTED_TCB as its eight bytes."""
    return data[0x180:0x188]


def chip_id_of(data: bytes) -> bytes:
    """Return CHIP_ID, 64 bytes."""
    return data[0x1A0:0x1E0]


def _signing_key(flags: int) -> SigningKey:
    # Source: AMD 56860, section 3.6: with MASK_CHIP_KEY the firmware writes zeros instead of a signature.
    if flags & _MASK_CHIP_KEY:
        raise EvidenceSignatureError("MASK_CHIP_KEY", expected="a signed report", got="an unsigned one")
    match flags >> _SIGNING_KEY_SHIFT:  # Bits 4 to 2, and those above, which are reserved.
        case 0:
            return SigningKey.VCEK
        case 1:
            return SigningKey.VLEK
        case value if value == _UNSIGNED:
            raise EvidenceSignatureError("SIGNING_KEY", expected="VCEK or VLEK", got="none")
        case value:
            raise EvidenceFormatError("signing key flags", expected="0 (VCEK) or 1 (VLEK)", got=value)


def _product(family: int, model: int) -> Product:
    for known, first, last, product in _PROCESSORS:
        if family == known and first <= model <= last:
            return product
    raise TrustAnchorError("processor", expected="Milan, Genoa or Turin", got=f"family {family:#x}, model {model:#x}")


def _scalar(data: bytes, start: int) -> int:
    """Return r or s: 48 bytes, lowest first, in a field of 72."""
    field = data[start : start + _SCALAR_FIELD_BYTES]
    if any(field[_SCALAR_BYTES:]):
        raise EvidenceFormatError(f"signature, bytes from {start:#x}", expected="zeros above 48 bytes", got="others")
    return int.from_bytes(field, "little")


def _tcb(name: str, data: bytes, product: Product) -> Tcb:
    layout = _TCB_LAYOUTS[product]
    if any(value for value, part in zip(data, layout, strict=True) if not part):
        raise EvidenceFormatError(name, expected="zeros in reserved bytes", got=data.hex())
    parts = {part: value for value, part in zip(data, layout, strict=True) if part}
    return Tcb(**{"fmc": 0, **parts})
