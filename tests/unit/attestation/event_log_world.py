"""Event logs of the test's own, in each form that firmware writes."""

import hashlib
import struct

SIZES = {
    "sha1": (0x0004, 20),
    "sha256": (0x000B, 32),
    "sha384": (0x000C, 48),
    "sha512": (0x000D, 64),
    "sm3": (0x12, 32),
}
NO_ACTION, SEPARATOR, ACTION, EVENT_TAG, CRTM_VERSION, POST_CODE, IPL = 3, 4, 5, 6, 8, 1, 13
VARIABLE_CONFIG, VARIABLE_BOOT, APPLICATION, GPT, EFI_ACTION = (0x80000000 + number for number in (1, 2, 3, 6, 7))
VARIABLE_BOOT2, VARIABLE_AUTHORITY = 0x8000000C, 0x800000E0
SHA384 = ("sha384",)
ALL = ("sha1", "sha256", "sha384")


def digest(algorithm, data):
    return hashlib.new("sha256" if algorithm == "sm3" else algorithm, data).digest()


def legacy_event(register, kind, data, *, measured=None):
    extended = bytes(20) if kind == NO_ACTION else digest("sha1", data if measured is None else measured)
    return struct.pack("<II", register, kind) + extended + struct.pack("<I", len(data)) + data


def event(register, kind, data, *, measured=None, algorithms=ALL, declared=None, count=None):
    """Return a crypto-agile event whose digests cover ``measured`` (the data unless given)."""
    found = b""
    for algorithm in algorithms:
        identifier, size = SIZES[algorithm]
        covered = digest(algorithm, data if measured is None else measured)
        found += struct.pack("<H", identifier) + (bytes(size) if kind == NO_ACTION else covered)
    header = struct.pack("<III", register, kind, len(algorithms) if count is None else count)
    return header + found + struct.pack("<I", len(data) if declared is None else declared) + data


def specification(*, algorithms=ALL, register=0, signature=b"Spec ID Event03\x00", sizes=None, vendor=b"", tail=b""):
    entries = b"".join(
        struct.pack("<HH", SIZES[name][0], (sizes or {}).get(name, SIZES[name][1])) for name in algorithms
    )
    data = signature + bytes(4) + bytes([0, 2, 0, 2]) + struct.pack("<I", len(algorithms)) + entries
    return legacy_event(register, NO_ACTION, data + bytes([len(vendor)]) + vendor + tail)


def agile(*events, algorithms=ALL, tail=b"", **options):
    return specification(algorithms=algorithms, **options) + b"".join(events) + tail


def variable(name, value, guid=bytes(16)):
    text = name.encode("utf-16-le")
    return guid + struct.pack("<QQ", len(name), len(value)) + text + value


def ccel(*events, tail=b"\xff" * 64):
    """Return a CCEL of (measurement register, type, data, what was measured) entries."""
    return agile(
        *(
            event(register, kind, data, measured=measured, algorithms=SHA384)
            for register, kind, data, measured in events
        ),
        algorithms=SHA384,
        register=1,
        tail=tail,
    )


def extend(values, register, measured, *, algorithm="sha384", start=None):
    before = values.get(register, start or bytes(SIZES[algorithm][1]))
    values[register] = digest(algorithm, before + digest(algorithm, measured))
