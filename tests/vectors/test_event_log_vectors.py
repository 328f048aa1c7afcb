"""Event logs that real firmware wrote: what they replay to, and what is noticed."""

import hashlib

import pytest
from folder import needs_vectors, read, sets_of

from confed.attestation.tee.event_log import (
    EV_IPL,
    parse_ccel,
    parse_event_log,
    replay,
    require_replays,
    verified_events,
)
from confed.errors import AttestationError, EventLogError

pytestmark = needs_vectors

LOGS = {name: entry for name, entry in sets_of("vtpm").items() if name.startswith("vtpm/eventlogs/")}
ALGORITHMS = {"0x4": "sha1", "0xb": "sha256", "0xc": "sha384"}
COS, LIVE = "tdx/go-tdx-guest-cos113", "tdx/lunal-live"


def rtmrs(name):
    return {number: bytes.fromhex(value) for number, value in enumerate(sets_of("tdx")[name]["rtmr"])}


def test_there_are_logs_to_look_at():
    assert len(LOGS) == 8


@pytest.mark.parametrize("name", LOGS)
def test_each_log_replays_to_the_values_in_the_index(name):
    entry = LOGS[name]
    log = parse_event_log(read(entry["file"]))
    assert log.algorithms == tuple(ALGORITHMS[identifier] for identifier in entry["algs"])
    assert len(log.events) == entry["events"]
    algorithm = "sha256" if "sha256" in log.algorithms else "sha1"
    values = replay(log, algorithm=algorithm)
    assert {str(register): value.hex() for register, value in values.items()} == entry["replay"]


@pytest.mark.parametrize("name", LOGS)
def test_firmware_hashes_directly_what_the_specification_says_it_does(name):
    log = parse_event_log(read(LOGS[name]["file"]))
    for algorithm in log.algorithms:
        values = replay(log, algorithm=algorithm)
        for event in verified_events(log, algorithm=algorithm, registers=values):
            assert event.data is None or hashlib.new(algorithm, event.data).digest() == event.digest


@pytest.mark.parametrize("name", [name for name, entry in LOGS.items() if entry["replay"]])
def test_another_value_in_any_register_is_refused(name):
    log = parse_event_log(read(LOGS[name]["file"]))
    for algorithm in log.algorithms:
        values = replay(log, algorithm=algorithm)
        for register, value in values.items():
            with pytest.raises(EventLogError):
                require_replays(log, algorithm=algorithm, registers={**values, register: bytes(len(value))})


@pytest.mark.parametrize("name", LOGS)
def test_a_changed_byte_is_noticed_or_changes_nothing_that_is_shown(name):
    data = read(LOGS[name]["file"])
    honest = parse_event_log(data)
    algorithm = honest.algorithms[-1]
    values = replay(honest, algorithm=algorithm)
    digests = [event.digest for event in verified_events(honest, algorithm=algorithm, registers=values)]
    for position in range(0, len(data), max(1, len(data) // 150)):
        changed = data[:position] + bytes([data[position] ^ 0x10]) + data[position + 1 :]
        try:
            events = verified_events(parse_event_log(changed), algorithm=algorithm, registers=values)
        except AttestationError:
            continue
        assert [event.digest for event in events] == digests
        assert all(
            event.data is None or hashlib.new(algorithm, event.data).digest() == event.digest for event in events
        )


def test_googles_td_log_replays_and_tells_the_kernels_command_line():
    log = parse_ccel(read(f"{COS}/ccel_data.bin"))
    events = verified_events(log, algorithm="sha384", registers=rtmrs(COS))
    lines = [event.data for event in events if event.type == EV_IPL and event.data]
    assert any(line.startswith(b"/syslinux/vmlinuz.A init=") for line in lines)


@pytest.mark.parametrize("number", range(4))
def test_a_td_log_is_refused_beside_other_registers(number):
    log = parse_ccel(read(f"{COS}/ccel_data.bin"))
    wrong = rtmrs(COS) | {number: hashlib.sha384(b"another").digest()}
    with pytest.raises(EventLogError, match=f"register {number}"):
        require_replays(log, algorithm="sha384", registers=wrong)


def test_a_log_that_its_td_never_finished_is_refused_by_the_register():
    log = parse_ccel(read(f"{LIVE}/ccel.bin"))
    with pytest.raises(EventLogError, match="register 2"):
        require_replays(log, algorithm="sha384", registers=rtmrs(LIVE))


def test_an_acpi_table_is_not_a_log():
    with pytest.raises(AttestationError):
        parse_ccel(read(f"{COS}/ccel_table.bin"))
