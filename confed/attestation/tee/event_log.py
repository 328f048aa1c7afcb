"""Event logs of firmware: parsed within bounds, replayed into registers, and only then read.

A log is hearsay. What it says counts where its events, extended one after another, give the registers that hardware
has signed, and where an event's digest covers the words that stand beside it. So:

1. ``parse_event_log`` reads the bytes, and believes nothing;
2. ``replay`` extends the digests: EV_NO_ACTION extends nothing, StartupLocality sets where PCR 0 begins;
3. ``require_replays`` compares with signed registers, and recomputes the digest of each event whose data the
   specification hashes directly;
4. ``verified_events`` does 3. and returns of each event exactly the bytes that its digest covers.

**Digests that are recomputed**: EV_SEPARATOR, EV_ACTION, EV_EFI_ACTION, EV_S_CRTM_VERSION, EV_EFI_GPT_EVENT,
EV_EFI_VARIABLE_DRIVER_CONFIG, EV_EFI_VARIABLE_BOOT, EV_EFI_VARIABLE_BOOT2 and EV_EFI_VARIABLE_AUTHORITY. A log in
which one of these differs is refused. **Not recomputed**, because the log does not hold what was hashed: images,
firmware volumes, handoff tables, tagged events, EV_IPL and everything else. Of those, ``verified_events`` returns the
data only where the digest happens to cover it; otherwise ``None``, so that nobody reads text that was never measured.

No digest covers an event's *type*, and whatever runs in a machine can extend the firmware's registers too. So what
firmware says of itself is looked for only before its separator, which is known by its digest (``before_separator``).

The forms: the crypto-agile log (its first event is the Specification ID event of version 2), the older one that holds
SHA-1 only, and the CCEL of TDs, which is a crypto-agile log with measurement registers in place of PCRs. Which digest
is replayed is the caller's choice, never the log's. Memory after the last event must be all zeros or all ones.

Source: TCG PC Client Platform Firmware Profile Specification 1.06, section 10 (event logging); UEFI 2.10, section
38 (confidential computing), and ACPI 6.5, table CCEL.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from confed.errors import AlgorithmError, EventLogError, EvidenceFormatError, EvidenceSizeError, TrailingBytesError

LOG_LIMIT_BYTES = 1024 * 1024
"""Largest log."""

EVENT_LIMIT = 4096
"""Most events of a log."""

DATA_LIMIT_BYTES = 256 * 1024
"""Largest data of one event; forbidden-signature databases of today are below 64 KiB."""

RUNTIME_REGISTERS = 4
"""How many runtime measurement registers a TD has."""

# TCG PC Client Platform Firmware Profile 1.06, section 10.4.1, table of event types.
EV_NO_ACTION = 0x03
EV_SEPARATOR = 0x04
EV_ACTION = 0x05
EV_S_CRTM_VERSION = 0x08
EV_IPL = 0x0D
EV_EFI_VARIABLE_DRIVER_CONFIG = 0x80000001
EV_EFI_VARIABLE_BOOT = 0x80000002
EV_EFI_GPT_EVENT = 0x80000006
EV_EFI_ACTION = 0x80000007
EV_EFI_VARIABLE_BOOT2 = 0x8000000C
EV_EFI_VARIABLE_AUTHORITY = 0x800000E0

_HASHED_DIRECTLY = frozenset({
    EV_SEPARATOR,
    EV_ACTION,
    EV_S_CRTM_VERSION,
    EV_EFI_VARIABLE_DRIVER_CONFIG,
    EV_EFI_VARIABLE_BOOT,
    EV_EFI_GPT_EVENT,
    EV_EFI_ACTION,
    EV_EFI_VARIABLE_BOOT2,
    EV_EFI_VARIABLE_AUTHORITY,
})  # fmt: skip

# TPM 2.0 Library, part 2, section 6.3 (TPM_ALG_ID).
_ALGORITHMS = {0x0004: ("sha1", 20), 0x000B: ("sha256", 32), 0x000C: ("sha384", 48), 0x000D: ("sha512", 64)}
_ALGORITHM_LIMIT = 8
_LARGEST_DIGEST = 64
_LAST_PCR = 23
# TPM 2.0 PC Client Platform TPM Profile, section 4.6.2: registers of a dynamic launch start at all ones.
_DYNAMIC_PCRS = range(17, 23)
# Platform Firmware Profile, section 10.4.5.1 (Specification ID event) and 10.4.5.3 (StartupLocality event).
_SPECIFICATION_ID = b"Spec ID Event03\x00"
_STARTUP_LOCALITY = b"StartupLocality\x00"
_LOCALITIES = (0, 3, 4)
# The same, EV_SEPARATOR: what it says when the firmware failed, and what it says otherwise.
_SEPARATOR_ERROR = b"\x01\x00\x00\x00"
_SEPARATORS = (b"\x00\x00\x00\x00", b"\xff\xff\xff\xff")
_VARIABLE_HEADER_BYTES = 32
_GRUB_PREFIX = b": "


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One event as the log tells it.

    Attributes:
        register: the PCR, or in a CCEL that was read by ``parse_ccel`` the RTMR.
        type: the TCG event type.
        digests: what was extended, by algorithm (``sha1``, ``sha256``, ``sha384``, ``sha512``).
        data: what the log says about it; hearsay (see ``verified_events``).
    """

    register: int
    type: int
    digests: Mapping[str, bytes]
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class EventLog:
    """A log as parsed: the events in their order, without the Specification ID event, and the algorithms they have."""

    events: tuple[Event, ...]
    algorithms: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredEvent:
    """One event of a log that replayed.

    Attributes:
        register: see ``Event``.
        type: what the log says; hearsay even here, since no digest covers it.
        digest: what was extended.
        data: exactly the bytes that ``digest`` is the hash of; ``None`` where the log does not hold them.
    """

    register: int
    type: int
    digest: bytes
    data: bytes | None


def parse_event_log(data: bytes) -> EventLog:
    """Return the events of a log: crypto-agile, or the older form that holds SHA-1 only.

    Every event of a crypto-agile log must hold one digest of each algorithm that the log declares; those of algorithms
    that are not known here are read over.

    Raises:
        EvidenceSizeError: a log, an event or a count above its bound.
        TrailingBytesError: something after the last event that is neither zeros nor ones throughout.
        EvidenceFormatError: anything else that is not a log.
    Source: TCG PC Client Platform Firmware Profile 1.06, sections 10.2 (TCG_PCR_EVENT2) and 10.4.5.1.
    """
    if len(data) > LOG_LIMIT_BYTES:
        raise EvidenceSizeError("event log in bytes", expected=f"at most {LOG_LIMIT_BYTES}", got=len(data))
    reader = _Reader(data)
    first = _legacy_event(reader)
    if not (first.type == EV_NO_ACTION and first.data.startswith(_SPECIFICATION_ID)):
        return EventLog(events=(first, *_events(reader, None)), algorithms=("sha1",))
    declared = _declared(first.data)
    names = tuple(_ALGORITHMS[identifier][0] for identifier in declared if identifier in _ALGORITHMS)
    return EventLog(events=tuple(_events(reader, declared)), algorithms=names)


def parse_ccel(data: bytes) -> EventLog:
    """Return the log of a TD with RTMR numbers (0 to 3) as registers; events that extend nothing are left out.

    Raises:
        EventLogError: an event of MRTD or of a register that a TD does not have.
        EvidenceFormatError: see ``parse_event_log``.
    Source: UEFI 2.10, section 38.4.1 (TDX: measurement register 0 is MRTD, 1 to 4 are RTMR 0 to 3).
    """
    log = parse_event_log(data)
    events = tuple(event for event in log.events if event.type != EV_NO_ACTION)
    for event in events:
        if not 1 <= event.register <= RUNTIME_REGISTERS:
            raise EventLogError("event log register", expected=f"1 to {RUNTIME_REGISTERS}", got=event.register)
    return replace(log, events=tuple(replace(event, register=event.register - 1) for event in events))


def replay(log: EventLog, *, algorithm: str) -> Mapping[int, bytes]:
    """Return the value that each register has after the log; registers that nothing extended are left out.

    Raises:
        AlgorithmError: the log holds no digests of ``algorithm``.
        EventLogError: a StartupLocality event that is malformed, repeated or after the start.
    Source: TCG PC Client Platform Firmware Profile 1.06, sections 10.4.5.3 and 3.3.
    """
    values, starts = _extended(log, algorithm)
    return {register: value for register, value in values.items() if register not in starts}


def require_replays(log: EventLog, *, algorithm: str, registers: Mapping[int, bytes]) -> None:
    """Check that a log gives the signed ``registers``, and that digests cover the data where they have to.

    A register that the log does not extend must hold what it holds after a reset. Registers that the caller does not
    name are not compared: name every signed one.

    Raises:
        EventLogError: the register that differs, or the event whose digest does not recompute.
        AlgorithmError: the log holds no digests of ``algorithm``.
    """
    # 2.
    values, _ = _extended(log, algorithm)
    # 3.
    for register, signed in sorted(registers.items()):
        if values.get(register, _after_reset(register, algorithm)) != signed:
            raise EventLogError(
                f"event log: register {register}", expected=signed.hex(), got="another value after replay"
            )
    for event in _of(log, registers):
        if event.type in _HASHED_DIRECTLY and _covered(event, algorithm) is None:
            raise EventLogError(
                f"event log: event of type {event.type:#x} in register {event.register}",
                expected="data that its digest covers",
                got="other data",
            )


def verified_events(log: EventLog, *, algorithm: str, registers: Mapping[int, bytes]) -> tuple[MeasuredEvent, ...]:
    """Return the events of ``registers``, after the log has replayed to them, with the data that was measured.

    Raises:
        EventLogError, AlgorithmError: see ``require_replays``.
    """
    require_replays(log, algorithm=algorithm, registers=registers)
    # 4.
    return tuple(
        MeasuredEvent(
            register=event.register,
            type=event.type,
            digest=event.digests[algorithm],
            data=_covered(event, algorithm),
        )
        for event in _of(log, registers)
    )


def before_separator(events: Sequence[MeasuredEvent], *, register: int, algorithm: str) -> tuple[MeasuredEvent, ...]:
    """Return a register's events before the separator, with which firmware hands over to what it starts.

    None are returned where there is no separator: then nothing tells firmware's events from later ones.

    Args:
        events: from ``verified_events``.
        register: whose.
        algorithm: of the events' digests.

    Source: TCG PC Client Platform Firmware Profile 1.06, section 10.4.1 (EV_SEPARATOR).
    """
    separators = {hashlib.new(algorithm, data).digest() for data in (*_SEPARATORS, _SEPARATOR_ERROR)}
    own = [event for event in events if event.register == register]
    end = next((index for index, event in enumerate(own) if event.digest in separators), 0)
    return tuple(own[:end])


def _of(log: EventLog, registers: Collection[int]) -> Iterator[Event]:
    return (event for event in log.events if event.type != EV_NO_ACTION and event.register in registers)


def _extended(log: EventLog, algorithm: str) -> tuple[dict[int, bytes], set[int]]:
    """Return registers after the log, and those of them that only a StartupLocality event has set."""
    if algorithm not in log.algorithms:
        raise AlgorithmError("event log digests", expected=algorithm, got=", ".join(log.algorithms))
    values: dict[int, bytes] = {}
    starts: set[int] = set()
    for event in log.events:
        if event.type != EV_NO_ACTION:
            before = values.get(event.register, _after_reset(event.register, algorithm))
            values[event.register] = hashlib.new(algorithm, before + event.digests[algorithm]).digest()
            starts.discard(event.register)
        elif event.register == 0 and event.data.startswith(_STARTUP_LOCALITY):
            locality = event.data[len(_STARTUP_LOCALITY) :]
            if len(locality) != 1 or locality[0] not in _LOCALITIES or 0 in values:
                raise EventLogError(
                    "event log: StartupLocality", expected="locality 0, 3 or 4, once, first", got="another"
                )
            values[0] = _after_reset(0, algorithm)[:-1] + locality
            starts.add(0)
    return values, starts


def _after_reset(register: int, algorithm: str) -> bytes:
    return (b"\xff" if register in _DYNAMIC_PCRS else b"\x00") * hashlib.new(algorithm).digest_size


def _covered(event: Event, algorithm: str) -> bytes | None:
    """Return the part of an event's data that its digest is the hash of."""
    digest = event.digests[algorithm]
    for part in _hashable(event):
        if hashlib.new(algorithm, part).digest() == digest:
            return part
    return None


def _hashable(event: Event) -> Iterator[bytes]:
    data = event.data
    yield data
    match event.type:
        case 0x04 if data not in _SEPARATORS:  # EV_SEPARATOR: a failure is hashed, and what stands beside it is not
            yield _SEPARATOR_ERROR
        case 0x80000002 if len(data) >= _VARIABLE_HEADER_BYTES:  # EV_EFI_VARIABLE_BOOT: EDK2 hashes the value alone
            name, value = struct.unpack_from("<QQ", data, 16)
            if _VARIABLE_HEADER_BYTES + 2 * name + value == len(data):
                yield data[_VARIABLE_HEADER_BYTES + 2 * name :]
        case 0x800000E0:  # EV_EFI_VARIABLE_AUTHORITY: older shims log one byte more than they hash (shim issue 184)
            yield data[:-1]
        case 0x0D:  # EV_IPL: GRUB hashes a command, and logs it with a word before and a zero after
            yield data.removesuffix(b"\x00").partition(_GRUB_PREFIX)[2]
        case _:
            pass


class _Reader:
    """Reads forward through bytes; what is not there is an error."""

    __slots__ = ("content", "data", "position")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0
        # Where nothing but zeros, or nothing but ones, begins.
        self.content = min(len(data.rstrip(fill)) for fill in (b"\x00", b"\xff"))

    def take(self, count: int) -> bytes:
        end = self.position + count
        if end > len(self.data):
            raise EvidenceFormatError("event log", expected=f"{count} bytes at {self.position}", got="its end")
        taken = self.data[self.position : end]
        self.position = end
        return taken

    def number(self, count: int = 4) -> int:
        return int.from_bytes(self.take(count), "little")

    def ends(self) -> bool:
        """Say whether nothing but padding is left."""
        return self.position >= self.content


def _events(reader: _Reader, declared: Mapping[int, int] | None) -> Iterator[Event]:
    count = 1
    while not reader.ends():
        count += 1
        if count > EVENT_LIMIT:
            raise EvidenceSizeError("event log: events", expected=f"at most {EVENT_LIMIT}", got="more")
        # The fields that every event has: register, type, a digest or a count of digests, a size.
        least = 32 if declared is None else 16
        if len(reader.data) - reader.position < least:
            raise TrailingBytesError("event log", expected="events, then padding", got="other bytes at its end")
        yield _legacy_event(reader) if declared is None else _event(reader, declared)


def _legacy_event(reader: _Reader) -> Event:
    register, kind = reader.number(), reader.number()
    digest = reader.take(20)
    return _made(register, kind, {"sha1": digest}, _data(reader))


def _event(reader: _Reader, declared: Mapping[int, int]) -> Event:
    register, kind, count = reader.number(), reader.number(), reader.number()
    if count != len(declared):
        raise EvidenceFormatError("event log: digests of an event", expected=len(declared), got=count)
    found: dict[int, bytes] = {}
    for _ in range(count):
        identifier = reader.number(2)
        if identifier not in declared or identifier in found:
            raise EvidenceFormatError("event log: algorithm", expected="each declared one once", got=f"{identifier:#x}")
        found[identifier] = reader.take(declared[identifier])
    digests = {_ALGORITHMS[identifier][0]: found[identifier] for identifier in found if identifier in _ALGORITHMS}
    return _made(register, kind, digests, _data(reader))


def _made(register: int, kind: int, digests: Mapping[str, bytes], data: bytes) -> Event:
    if register > _LAST_PCR and kind != EV_NO_ACTION:
        raise EvidenceFormatError("event log: register", expected=f"at most {_LAST_PCR}", got=register)
    return Event(register=register, type=kind, digests=digests, data=data)


def _data(reader: _Reader) -> bytes:
    size = reader.number()
    if size > DATA_LIMIT_BYTES:
        raise EvidenceSizeError("event log: data of an event", expected=f"at most {DATA_LIMIT_BYTES}", got=size)
    return reader.take(size)


def _declared(data: bytes) -> dict[int, int]:
    """Return the digest sizes by algorithm of a Specification ID event."""
    reader = _Reader(data)
    reader.take(len(_SPECIFICATION_ID))
    # platformClass, specVersionMinor, specVersionMajor, specErrata and uintnSize say nothing that is needed here.
    reader.take(8)
    count = reader.number()
    if not 1 <= count <= _ALGORITHM_LIMIT:
        raise EvidenceSizeError("event log: algorithms", expected=f"1 to {_ALGORITHM_LIMIT}", got=count)
    sizes: dict[int, int] = {}
    for _ in range(count):
        identifier, size = reader.number(2), reader.number(2)
        known = _ALGORITHMS.get(identifier, ("", size))[1]
        if identifier in sizes or size != known or not 1 <= size <= _LARGEST_DIGEST:
            raise EvidenceFormatError("event log: algorithm", expected="distinct, of its size", got=f"{identifier:#x}")
        sizes[identifier] = size
    reader.take(reader.number(1))
    if reader.position != len(data):
        raise TrailingBytesError("event log: Specification ID event", expected="its end", got="more bytes")
    return sizes
