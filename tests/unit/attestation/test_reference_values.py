"""Reference values against an independent computation, which itself gives sev-snp-measure's published answers."""

import hashlib
import json
import struct
import sys
import uuid
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confed import canonical
from confed.attestation import measurement, reference_values
from confed.attestation.reference_values import SnpGuest, snp_launch_digest
from confed.errors import ConfedError, ConfigError, MissingFileError, UsageError
from confed.journey import Role

MEMORY, SECRETS, CPUID, CALLING_AREA, HASHES = 1, 2, 3, 4, 0x10
FOOTER, METADATA, HASH_TABLE, RESET = (
    uuid.UUID(text)
    for text in (
        "96b582de-1fb2-45f7-baea-a366c55a082d",
        "dc886566-984a-4798-a75e-5585a7bf67cc",
        "7255371f-3a3b-4b04-927b-1da6efa8d454",
        "00f771de-1a7e-4fcb-890e-68c77e2fb44e",
    )
)
# The memory map of edk2's AmdSev build with kernel hashes, as sev-snp-measure's own test firmware has it.
AMD_SEV = (
    (0x800000, 0x9000, MEMORY),
    (0x80A000, 0x3000, MEMORY),
    (0x80D000, 0x1000, SECRETS),
    (0x80E000, 0x1000, CPUID),
    (0x80F000, 0x1000, CALLING_AREA),
    (0x810000, 0x1000, HASHES),
    (0x811000, 0xF000, MEMORY),
)
RESET_EIP = 0x80B004
TABLE = 0x810C00
EPYC_V4 = 0x800F12
KERNEL, INITRD = b"a kernel" * 1000, b"an initial file system"


def firmware(
    *, sections=AMD_SEV, table=TABLE, reset: int | None = RESET_EIP, metadata=True, size=2 * 4096, signature=b"ASEV"
) -> bytes:
    """Return an image with what an SEV-SNP launch reads of OVMF: the GUIDed table at its end, and SEV metadata."""
    image = bytearray(hashlib.shake_256(b"firmware").digest(size))
    described = signature + struct.pack("<III", 16 + 12 * len(sections), 1, len(sections))
    described += b"".join(struct.pack("<III", *section) for section in sections)
    offset = size - 1024
    image[offset : offset + len(described)] = described
    entries = b""
    if metadata:
        entries += struct.pack("<IH", size - offset, 22) + METADATA.bytes_le
    if table is not None:
        entries += struct.pack("<IIH", table, 0x400, 26) + HASH_TABLE.bytes_le
    if reset is not None:
        entries += struct.pack("<IH", reset, 22) + RESET.bytes_le
    entries += struct.pack("<H", len(entries) + 18) + FOOTER.bytes_le
    image[size - 32 - len(entries) : size - 32] = entries
    return bytes(image)


class LaunchDigest:
    """The digest that the AMD secure processor keeps of a guest's initial pages, computed from its specification."""

    def __init__(self, seed: bytes = bytes(48)) -> None:
        self.value = seed

    def add(self, kind: int, address: int, contents: bytes = bytes(48)) -> None:
        info = self.value + contents + struct.pack("<HBBBBBBQ", 0x70, kind, 0, 0, 0, 0, 0, address)
        self.value = hashlib.sha384(info).digest()

    def add_data(self, kind: int, address: int, data: bytes) -> None:
        for at in range(0, len(data), 4096):
            self.add(kind, address + at, hashlib.sha384(data[at : at + 4096]).digest())


def hashes_page(kernel: bytes, initrd: bytes, append: str, *, offset: int) -> bytes:
    def entry(guid: str, data: bytes) -> bytes:
        return uuid.UUID(guid).bytes_le + struct.pack("<H", 50) + hashlib.sha256(data).digest()

    table = uuid.UUID("9438d606-4f22-4cc9-b479-a793d411fd21").bytes_le + struct.pack("<H", 168)
    table += entry("97d02dd8-bd20-4c94-aa78-e7714d36ab2a", append.encode() + b"\0")
    table += entry("44baf731-3a2f-4bd7-9af1-41e29169781d", initrd)
    table += entry("4de79437-abd2-427f-b835-d5b172d2045b", kernel)
    return (bytes(offset) + table).ljust(4096, b"\0")


def vcpu_page(address: int, *, features: int, vmm: str = "qemu") -> bytes:
    """Return a VMSA: what a vCPU of this hypervisor starts with, at its reset address."""
    played = {
        "qemu": {"cs": 0x9B, "ss": 0x93, "tr": 0x8B, "pat": 0x7040600070406, "rdx": EPYC_V4, "mxcsr": 0x1F80, "fcw": 0x37F},
        "ec2": {
            "cs": 0x9A if address == 0xFFFFFFF0 else 0x9B,
            "ss": 0x92, "tr": 0x83, "pat": 0x7040600070406, "rdx": 0x600, "mxcsr": 0, "fcw": 0,
        },
        "gce": {"cs": 0x9B, "ss": 0x93, "tr": 0x8B, "pat": 0x00070106, "rdx": 0x600, "mxcsr": 0, "fcw": 0},
    }[vmm]  # fmt: skip
    page = bytearray(4096)
    segments = [
        (0, 0x93, 0xFFFF, 0), (0xF000, played["cs"], 0xFFFF, address & 0xFFFF0000), (0, played["ss"], 0xFFFF, 0),
        (0, 0x93, 0xFFFF, 0), (0, 0x93, 0xFFFF, 0), (0, 0x93, 0xFFFF, 0), (0, 0, 0xFFFF, 0), (0, 0x82, 0xFFFF, 0),
        (0, 0, 0xFFFF, 0), (0, played["tr"], 0xFFFF, 0),
    ]  # fmt: skip
    for index, segment in enumerate(segments):
        struct.pack_into("<HHIQ", page, 16 * index, *segment)
    for offset, value in {
        0x0D0: 0x1000, 0x148: 0x40, 0x158: 0x10, 0x160: 0x400, 0x168: 0xFFFF0FF0, 0x170: 2, 0x178: address & 0xFFFF,
        0x268: played["pat"], 0x310: played["rdx"], 0x3B0: features, 0x3E8: 1,
    }.items():  # fmt: skip
        struct.pack_into("<Q", page, offset, value)
    struct.pack_into("<I", page, 0x408, played["mxcsr"])
    struct.pack_into("<H", page, 0x410, played["fcw"])
    return bytes(page)


def expected_digest(
    *, image: bytes = b"", seed: bytes = bytes(48), hashes: bytes | None, vcpus: int = 1, features: int = 1,
    sections=AMD_SEV, vmm: str = "qemu",
) -> str:  # fmt: skip
    digest = LaunchDigest(seed)
    digest.add_data(1, 2**32 - len(image), image)
    postponed = []
    for address, size, kind in sections:
        if kind == SECRETS:
            digest.add(5, address)
        elif kind == CPUID:
            if vmm == "ec2":
                postponed.append(address)
            else:
                digest.add(6, address)
        elif kind == HASHES and hashes is not None:
            digest.add_data(1, address, hashes)
        else:
            for page in range(address, address + size, 4096):
                digest.add(4 if vmm == "gce" and kind == MEMORY else 3, page)
    for address in postponed:
        digest.add(6, address)
    for number in range(vcpus):
        digest.add_data(2, 0xFFFFFFFFF000, vcpu_page(RESET_EIP if number else 0xFFFFFFF0, features=features, vmm=vmm))
    return digest.value.hex()


# Source: github.com/virtee/sev-snp-measure, tests/test_guest.py: the digest of its firmware, and what follows from it
# for an empty kernel and initrd on EPYC-v4; the memory map is that of the same firmware.
PUBLISHED_SEED = bytes.fromhex(
    "086e2e9149ebf45abdc3445fba5b2da8270bdbb04094d7a2c37faaa4b24af3aa16aff8c374c2a55c467a50da6d466b74"
)
PUBLISHED = {
    "one vCPU, debug swap": (
        "", 1, 0x21, "329c8ce0972ae52343b64d34a434a86f245dfd74f5ed7aae15d22efc78fb9683632b9b50e4e1d7fa41179ef98a7ef198",
    ),
    "one vCPU": (
        "", 1, 0x1, "ddc5224521617a536ee7ce9dd6224d1b58a8d4fda1c741f3ac99fc4bfa04ba6e9fc98646d4a07a9079397fa3852819b5",
    ),
    "one vCPU, a command line": (
        "console=ttyS0 loglevel=7", 1, 0x1,
        "6d287813eb5222d770f75005c664e34c204f385ce832cc2ce7d0d6f354454362f390ef83a92046c042e706363b4b08fa",
    ),
    "four vCPUs, a command line": (
        "console=ttyS0 loglevel=7", 4, 0x1,
        "ef493c232fc8fac47f485398e3873a84ac5c45570bcd8a34aba093c084060534d633824df94b9eba33dc3a3052ae565a",
    ),
    "four vCPUs, debug swap": (
        "", 4, 0x21, "4953b1fb416fa874980e8442b3706d345926d5f38879134e00813c5d7abcbe78eafe7b422907be0b4698e2414a631942",
    ),
    "no kernel": (
        None, 1, 0x1, "19358ba9a7615534a9a1e2f0dfc29384dcd4dcb7062ff9c6013b26869a5fc6ecabe033c48dd6f6db5d6d76e7c5df632d",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("append", "vcpus", "features", "answer"), PUBLISHED.values(), ids=PUBLISHED.keys())
def test_the_independent_computation_gives_the_published_answer_for(append, vcpus, features, answer):
    hashes = None if append is None else hashes_page(b"", b"", append, offset=0xC00)
    found = expected_digest(seed=PUBLISHED_SEED, hashes=hashes, vcpus=vcpus, features=features)
    assert found == answer


@pytest.fixture
def files(tmp_path):
    (tmp_path / "OVMF.fd").write_bytes(firmware())
    (tmp_path / "vmlinuz").write_bytes(KERNEL)
    (tmp_path / "initrd").write_bytes(INITRD)
    return tmp_path


def guest(folder: Path, **changes) -> SnpGuest:
    arguments = {
        "firmware": folder / "OVMF.fd", "kernel": folder / "vmlinuz", "initrd": folder / "initrd",
        "append": "console=ttyS0", "vcpus": 2, "vcpu_signature": EPYC_V4, "guest_features": 1, "vmm": "qemu", **changes,
    }  # fmt: skip
    return SnpGuest(**arguments)


GUESTS = {
    "two vCPUs with kernel, initrd and command line": {},
    "one vCPU": {"vcpus": 1},
    "sixteen vCPUs": {"vcpus": 16},
    "debug swap": {"guest_features": 0x21},
    "no command line": {"append": None},
    "no initrd": {"initrd": None},
    "no kernel": {"kernel": None, "initrd": None, "append": None},
    "a guest of EC2": {"vmm": "ec2", "vcpu_signature": None},
    "a guest of GCE": {"vmm": "gce", "vcpu_signature": None},
}


@pytest.mark.parametrize("changes", GUESTS.values(), ids=GUESTS.keys())
def test_the_launch_digest_is_that_of(files, changes):
    measured = guest(files, **changes)
    initrd = INITRD if measured.initrd else b""
    hashes = None if measured.kernel is None else hashes_page(KERNEL, initrd, measured.append or "", offset=0xC00)
    assert snp_launch_digest(measured) == expected_digest(
        image=firmware(), hashes=hashes, vcpus=measured.vcpus, features=measured.guest_features, vmm=measured.vmm
    )


def test_every_input_is_measured(files):
    (files / "other").write_bytes(b"something else")
    (files / "other.fd").write_bytes(firmware(size=3 * 4096))
    base = snp_launch_digest(guest(files))
    for changes in (
        {"firmware": files / "other.fd"}, {"kernel": files / "other"}, {"initrd": files / "other"}, {"append": "other"},
        {"vcpus": 3}, {"vcpu_signature": EPYC_V4 + 1}, {"guest_features": 0x21},
    ):  # fmt: skip
        assert snp_launch_digest(guest(files, **changes)) != base


IMPOSSIBLE = {
    "no vCPU": {"vcpus": 0},
    "more vCPUs than there are": {"vcpus": 5000},
    "features without SEV-SNP": {"guest_features": 0x20},
    "features of more than 64 bits": {"guest_features": 1 << 64 | 1},
    "QEMU without a vCPU signature": {"vcpu_signature": None},
    "EC2 with a vCPU signature": {"vmm": "ec2"},
    "a vCPU signature of zero": {"vcpu_signature": 0},
    "a vCPU signature of more than 32 bits": {"vcpu_signature": 1 << 32},
    "another hypervisor": {"vmm": "bhyve", "vcpu_signature": None},
    "an initrd without a kernel": {"kernel": None, "append": None},
    "a command line without a kernel": {"kernel": None, "initrd": None},
    "an empty command line without a kernel": {"kernel": None, "initrd": None, "append": ""},
}


@pytest.mark.parametrize("changes", IMPOSSIBLE.values(), ids=IMPOSSIBLE.keys())
def test_a_guest_cannot_have(files, changes):
    with pytest.raises(UsageError):
        guest(files, **changes)


HASHES_ELSEWHERE = tuple((0x820000 if kind == HASHES else address, size, kind) for address, size, kind in AMD_SEV)
FIRMWARES = {
    "no firmware": b"",
    "half a page more": firmware() + bytes(2048),
    "a page of zeros": bytes(4096),
    "no SEV metadata": firmware(metadata=False),
    "SEV metadata of no sections": firmware(sections=()),
    "SEV metadata of another signature": firmware(signature=b"ASVM"),
    "a section of a kind that nobody knows": firmware(sections=(*AMD_SEV, (0x830000, 0x1000, 9))),
    "a section of half a page": firmware(sections=((0x800000, 0x800, MEMORY), *AMD_SEV)),
    "a section of no size": firmware(sections=((0x800000, 0, MEMORY), *AMD_SEV)),
    "a section that begins within a page": firmware(sections=((0x800800, 0x1000, MEMORY), *AMD_SEV)),
    "no page for the kernel's hashes": firmware(sections=[section for section in AMD_SEV if section[2] != HASHES]),
    "two pages for the kernel's hashes": firmware(
        sections=[(a, 0x2000 if k == HASHES else s, k) for a, s, k in AMD_SEV]
    ),
    "a page for the kernel's hashes elsewhere": firmware(sections=HASHES_ELSEWHERE),
    "no place for the kernel's hashes": firmware(table=None),
    "a place of zero for the kernel's hashes": firmware(table=0),
    "a place beyond the page's end": firmware(table=0x810F80),
    "no reset address": firmware(reset=None),
}  # fmt: skip


@pytest.mark.parametrize("image", FIRMWARES.values(), ids=FIRMWARES.keys())
def test_a_firmware_is_refused_with(files, image):
    (files / "OVMF.fd").write_bytes(image)
    with pytest.raises(UsageError):
        snp_launch_digest(guest(files))


NEED_NO_KERNEL = ("no SEV metadata", "SEV metadata of no sections", "a section of half a page", "no reset address")


@pytest.mark.parametrize("why", NEED_NO_KERNEL)
def test_without_a_kernel_too_a_firmware_is_refused_with(files, why):
    (files / "OVMF.fd").write_bytes(FIRMWARES[why])
    with pytest.raises(UsageError):
        snp_launch_digest(guest(files, kernel=None, initrd=None, append=None))


def test_without_a_kernel_no_page_for_its_hashes_is_needed(files):
    sections = [section for section in AMD_SEV if section[2] != HASHES]
    image = firmware(sections=sections, table=None)
    (files / "OVMF.fd").write_bytes(image)
    found = snp_launch_digest(guest(files, kernel=None, initrd=None, append=None))
    assert found == expected_digest(image=image, hashes=None, vcpus=2, sections=sections)


def test_a_firmware_larger_than_its_bound_is_refused_unread(files):
    with (files / "OVMF.fd").open("wb") as file:
        file.truncate(reference_values.FIRMWARE_LIMIT_BYTES + 4096)
    with pytest.raises(UsageError, match="in bytes"):
        snp_launch_digest(guest(files))


@pytest.mark.parametrize("name", ["firmware", "kernel", "initrd"])
def test_a_file_that_is_not_there_is_named(files, name):
    for path in (files / "absent", files):
        with pytest.raises(MissingFileError, match=name):
            snp_launch_digest(guest(files, **{name: path}))


def test_a_file_that_cannot_be_read_is_told(files, monkeypatch):
    monkeypatch.setattr(Path, "is_file", lambda _: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    with pytest.raises(UsageError, match="Permission denied"):
        snp_launch_digest(guest(files))


@pytest.mark.parametrize(
    "call", [lambda files: snp_launch_digest(guest(files)), lambda _: reference_values.vcpu_signature("EPYC-v4")]
)
def test_without_sev_snp_measure_it_says_what_to_install(files, monkeypatch, call):
    monkeypatch.setitem(sys.modules, "sevsnpmeasure", None)
    with pytest.raises(UsageError, match=r"confed\[measure\]"):
        call(files)


@settings(max_examples=200, deadline=None)
@given(st.integers(4096, 8191), st.binary(min_size=1, max_size=12))
def test_whatever_a_firmware_holds_it_is_measured_or_refused(tmp_path_factory, at, changed):
    folder = tmp_path_factory.getbasetemp()
    image = firmware()
    (folder / "OVMF.fd").write_bytes((image[:at] + changed + image[at + len(changed) :])[:8192])
    try:
        found = snp_launch_digest(guest(folder, kernel=None, initrd=None, append=None))
    except ConfedError as error:
        assert isinstance(error, UsageError)  # noqa: PT017
    else:
        assert len(bytes.fromhex(found)) == 48


def test_vcpu_models_have_the_signatures_of_qemu():
    found = {name: reference_values.vcpu_signature(name) for name in ("EPYC-v4", "EPYC-Milan", "EPYC-Genoa")}
    assert found == {"EPYC-v4": 0x800F12, "EPYC-Milan": 0xA00F11, "EPYC-Genoa": 0xA10F10}
    with pytest.raises(UsageError, match="EPYC-v4"):
        reference_values.vcpu_signature("EPYC-v5")


@pytest.mark.parametrize(
    ("role", "key"), [(Role.CLIENT, "client_measurements"), (Role.AGGREGATOR, "aggregator_measurements")]
)
def test_what_is_pinned_for_a_guest_is_its_launch_digest(files, role, key):
    found = reference_values.snp(guest(files), role=role)
    digest = snp_launch_digest(guest(files))
    assert (found.profile, found.values) == ("sev-snp/1", {"measurement": digest})
    assert found.lines == ("[tee]", 'profile = "sev-snp/1"', f'{key} = ["{digest}"]')
    assert found.inputs["vcpu signature"] == "0x800f12"
    assert not any("firmware is measured" in note for note in found.notes)


def test_a_guest_without_a_measured_kernel_says_so(files):
    found = reference_values.snp(guest(files, kernel=None, initrd=None, append=None), role=Role.CLIENT)
    assert any("only the firmware is measured" in note for note in found.notes)


def test_the_simulated_tee_s_values_are_those_that_a_manifest_holds(tmp_path):
    (tmp_path / "app.py").write_text("code = 1\n")
    lock = canonical.digest(b"lock")
    found = reference_values.simulated(tmp_path, lock)
    assert found.values == {
        "client": measurement.client_image(tmp_path, lock), "aggregator": measurement.aggregator_image(lock),
    }  # fmt: skip
    assert "SIMULATED" in found.notes[0]
    assert reference_values.simulated(None, lock).values["client"] != found.values["client"]
    with pytest.raises(ConfigError):
        reference_values.simulated(Path("relative"), lock)


REGISTERS = {name: hashlib.sha384(name.encode()).hexdigest() for name in ("PCR0", "PCR1", "PCR2")}
BUILT = {"Measurements": {"HashAlgorithm": "Sha384 { ... }", **REGISTERS}}


@pytest.mark.parametrize("built", [BUILT, BUILT["Measurements"], {"Measurements": {**REGISTERS, "PCR8": "ab" * 48}}])
def test_an_enclave_s_registers_are_read_from_what_nitro_cli_printed(built):
    found = reference_values.nitro(json.dumps(built).encode(), role=Role.AGGREGATOR)
    assert (found.profile, found.values) == ("aws-nitro/1", REGISTERS)
    assert found.lines[2] == f'aggregator_measurements = ["{REGISTERS["PCR0"]}"]'


OUTPUTS = {
    "nothing": b"",
    "text": b"Start building the Enclave Image...",
    "a list": b"[]",
    "measurements that are a list": b'{"Measurements": []}',
    "brackets without end": b"[" * 60_000,
    "more than its bound": json.dumps(BUILT).encode() + b" " * 65_536,
    "a register too few": json.dumps({"Measurements": {"PCR0": REGISTERS["PCR0"]}}).encode(),
    "a register of zeros": json.dumps({**REGISTERS, "PCR1": "0" * 96}).encode(),
    "a register of SHA-256": json.dumps({**REGISTERS, "PCR1": "ab" * 32}).encode(),
    "a register in capitals": json.dumps({**REGISTERS, "PCR1": REGISTERS["PCR1"].upper()}).encode(),
    "a register and a line": json.dumps({**REGISTERS, "PCR1": REGISTERS["PCR1"] + "\n"}).encode(),
    "a register that is a number": json.dumps({**REGISTERS, "PCR1": 1}).encode(),
}


@pytest.mark.parametrize("output", OUTPUTS.values(), ids=OUTPUTS.keys())
def test_an_enclave_s_registers_are_not_read_from(output):
    with pytest.raises(UsageError):
        reference_values.nitro(output, role=Role.CLIENT)
