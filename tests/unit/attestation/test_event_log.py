"""Event logs: parsed within bounds, replayed, and only then read."""

import struct

import pytest
from event_log_world import (
    ACTION,
    ALL,
    APPLICATION,
    CRTM_VERSION,
    EFI_ACTION,
    EVENT_TAG,
    GPT,
    IPL,
    NO_ACTION,
    POST_CODE,
    SEPARATOR,
    SHA384,
    VARIABLE_AUTHORITY,
    VARIABLE_BOOT,
    VARIABLE_BOOT2,
    VARIABLE_CONFIG,
    agile,
    ccel,
    digest,
    event,
    extend,
    legacy_event,
    specification,
    variable,
)  # fmt: skip
from hypothesis import given, settings
from hypothesis import strategies as st

from confed.attestation.tee import event_log
from confed.attestation.tee.event_log import (
    before_separator,
    parse_ccel,
    parse_event_log,
    replay,
    require_replays,
    verified_events,
)
from confed.errors import (
    AlgorithmError,
    AttestationError,
    EventLogError,
    EvidenceFormatError,
    EvidenceSizeError,
    TrailingBytesError,
)

SECURE_BOOT = variable("SecureBoot", b"\x01")
BOOT_ORDER = variable("BootOrder", b"\x01\x00")
ENTRIES = (
    (0, CRTM_VERSION, b"firmware 1", None),
    (7, VARIABLE_CONFIG, SECURE_BOOT, None),
    (1, VARIABLE_BOOT, BOOT_ORDER, b"\x01\x00"),
    (0, SEPARATOR, bytes(4), None),
    (7, SEPARATOR, bytes(4), None),
    (4, APPLICATION, b"where the loader is", b"the loader"),
    (8, IPL, b"kernel_cmdline: /vmlinuz root=/dev/vda1\x00", b"/vmlinuz root=/dev/vda1"),
    (9, IPL, b"/vmlinuz\x00", b"the kernel"),
    (5, EFI_ACTION, b"Exit Boot Services Invocation", None),
)
LOCALITY = (0, NO_ACTION, b"StartupLocality\x00\x03", None)


def built(entries=ENTRIES, make=event):
    return tuple(make(register, kind, data, measured=measured) for register, kind, data, measured in entries)


def expected(algorithm, entries=ENTRIES):
    values = {}
    for register, kind, data, measured in entries:
        if kind != NO_ACTION:
            extend(values, register, data if measured is None else measured, algorithm=algorithm)
    return values


GOOD = agile(*built())


@pytest.mark.parametrize("algorithm", ALL)
def test_a_log_replays_in_each_of_its_algorithms(algorithm):
    log = parse_event_log(GOOD)
    assert log.algorithms == ALL
    assert len(log.events) == len(ENTRIES)
    assert replay(log, algorithm=algorithm) == expected(algorithm)
    require_replays(log, algorithm=algorithm, registers=expected(algorithm))


def test_a_log_of_the_older_form_replays_in_sha1_and_in_nothing_better():
    log = parse_event_log(b"".join(built(make=legacy_event)))
    assert replay(log, algorithm="sha1") == expected("sha1")
    with pytest.raises(AlgorithmError):
        replay(log, algorithm="sha256")


def test_a_log_that_calls_itself_older_is_not_taken_for_one_with_better_digests():
    log = parse_event_log(specification(signature=b"Spec ID Event02\x00") + legacy_event(0, CRTM_VERSION, b"x"))
    assert log.algorithms == ("sha1",)
    with pytest.raises(AlgorithmError):
        require_replays(log, algorithm="sha256", registers={})


def test_only_an_event_that_extends_nothing_can_say_how_a_log_is_written():
    first = specification()[32:]
    log = parse_event_log(legacy_event(0, ACTION, first))
    assert log.algorithms == ("sha1",)
    assert replay(log, algorithm="sha1") == expected("sha1", [(0, ACTION, first, None)])


def test_digests_of_an_unknown_algorithm_are_read_over():
    algorithms = ("sm3", "sha256")
    log = parse_event_log(agile(event(3, SEPARATOR, bytes(4), algorithms=algorithms), algorithms=algorithms))
    assert log.algorithms == ("sha256",)
    assert dict(log.events[0].digests) == {"sha256": digest("sha256", bytes(4))}
    with pytest.raises(AlgorithmError):
        replay(log, algorithm="sm3")


def test_every_register_is_compared_and_the_message_names_it():
    log = parse_event_log(GOOD)
    for register, value in expected("sha256").items():
        wrong = expected("sha256") | {register: bytes(reversed(value))}
        with pytest.raises(EventLogError, match=f"register {register}\\b"):
            require_replays(log, algorithm="sha256", registers=wrong)


def test_a_register_that_nothing_extended_holds_its_value_after_reset():
    log = parse_event_log(GOOD)
    require_replays(log, algorithm="sha256", registers={3: bytes(32), 17: b"\xff" * 32})
    for register, value in ((3, b"\xff" * 32), (17, bytes(32))):
        with pytest.raises(EventLogError):
            require_replays(log, algorithm="sha256", registers={register: value})


def test_registers_of_a_dynamic_launch_start_at_ones():
    log = parse_event_log(agile(event(17, ACTION, b"launch")))
    values = {}
    extend(values, 17, b"launch", algorithm="sha256", start=b"\xff" * 32)
    assert replay(log, algorithm="sha256") == values


@pytest.mark.parametrize("locality", [0, 3, 4])
def test_startup_locality_sets_where_pcr_0_begins(locality):
    start = event(0, NO_ACTION, b"StartupLocality\x00" + bytes([locality]))
    log = parse_event_log(agile(start, event(0, CRTM_VERSION, b"v")))
    begin = bytes(31) + bytes([locality])
    assert replay(log, algorithm="sha256") == {0: digest("sha256", begin + digest("sha256", b"v"))}
    alone = parse_event_log(agile(start))
    assert replay(alone, algorithm="sha256") == {}
    require_replays(alone, algorithm="sha256", registers={0: begin})


@pytest.mark.parametrize(
    "events",
    [
        ((0, NO_ACTION, b"StartupLocality\x00\x01", None),),
        ((0, NO_ACTION, b"StartupLocality\x00", None),),
        ((0, NO_ACTION, b"StartupLocality\x00\x03\x00", None),),
        (LOCALITY, LOCALITY),
        ((0, CRTM_VERSION, b"v", None), LOCALITY),
    ],
    ids=["of no locality", "without one", "with more", "twice", "after the start"],
)
def test_a_startup_locality_that_cannot_be_is_refused(events):
    log = parse_event_log(agile(*built(events)))
    with pytest.raises(EventLogError):
        replay(log, algorithm="sha256")


def test_no_action_extends_nothing_wherever_it_stands():
    others = [(0, NO_ACTION, b"SP800-155 Event\x00", None), (0xFFFFFFFF, NO_ACTION, b"anything", None)]
    log = parse_event_log(agile(*built([*others, *ENTRIES, (5, NO_ACTION, b"StartupLocality\x00\x09", None)])))
    assert replay(log, algorithm="sha384") == expected("sha384")
    events = verified_events(log, algorithm="sha384", registers=expected("sha384"))
    assert NO_ACTION not in {entry.type for entry in events}


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (SEPARATOR, bytes(4)), (SEPARATOR, b"\xff" * 4), (SEPARATOR, b"WBCL"), (ACTION, b"Entering ROM"),
        (CRTM_VERSION, b"v1"), (VARIABLE_CONFIG, SECURE_BOOT), (VARIABLE_BOOT, BOOT_ORDER),
        (VARIABLE_BOOT2, BOOT_ORDER), (VARIABLE_AUTHORITY, SECURE_BOOT), (GPT, b"EFI PART"), (EFI_ACTION, b"Exit"),
    ],
)  # fmt: skip
def test_data_that_is_hashed_directly_must_be_what_was_extended(kind, data):
    log = parse_event_log(agile(event(2, kind, data)))
    registers = replay(log, algorithm="sha256")
    (found,) = verified_events(log, algorithm="sha256", registers=registers)
    assert (found.register, found.type, found.data, found.digest) == (2, kind, data, digest("sha256", data))
    lie = parse_event_log(agile(event(2, kind, data[:-1] + b"?", measured=data)))
    for check in (require_replays, verified_events):
        with pytest.raises(EventLogError, match="type"):
            check(lie, algorithm="sha256", registers=registers)


@pytest.mark.parametrize("kind", [EVENT_TAG, POST_CODE, APPLICATION, IPL, 0x8000000B, 0x8000000A, 0x12345678])
def test_data_that_is_not_measured_is_not_shown(kind):
    log = parse_event_log(agile(event(4, kind, b"harmless", measured=b"something else")))
    (found,) = verified_events(log, algorithm="sha256", registers=replay(log, algorithm="sha256"))
    assert found.data is None
    assert found.digest == digest("sha256", b"something else")


def test_what_grub_measured_is_shown_without_what_it_wrote_around_it():
    log = parse_event_log(GOOD)
    shown = verified_events(log, algorithm="sha256", registers=expected("sha256"))
    assert [entry.data for entry in shown if entry.type == IPL] == [b"/vmlinuz root=/dev/vda1", None]


def test_edk2_measures_only_the_value_of_a_boot_variable():
    log = parse_event_log(agile(event(1, VARIABLE_BOOT, BOOT_ORDER, measured=b"\x01\x00")))
    (found,) = verified_events(log, algorithm="sha256", registers=replay(log, algorithm="sha256"))
    assert found.data == b"\x01\x00"


@pytest.mark.parametrize(
    "header",
    [struct.pack("<QQ", *sizes) for sizes in ((2**63, 2), (1, 2**63), (8, 3), (9, 3), (9, 1), (2**63 - 16, 2))],
)
def test_a_boot_variable_with_lengths_that_do_not_fit_is_refused(header):
    data = bytes(16) + header + BOOT_ORDER[32:]
    log = parse_event_log(agile(event(1, VARIABLE_BOOT, data, measured=b"\x01\x00")))
    with pytest.raises(EventLogError):
        require_replays(log, algorithm="sha256", registers=replay(log, algorithm="sha256"))


def test_a_separator_of_failed_firmware_is_measured_as_such():
    failed = parse_event_log(agile(event(0, SEPARATOR, b"why it failed", measured=b"\x01\x00\x00\x00")))
    (found,) = verified_events(failed, algorithm="sha256", registers=replay(failed, algorithm="sha256"))
    assert found.data == b"\x01\x00\x00\x00"
    for pretended in (bytes(4), b"\xff" * 4):
        log = parse_event_log(agile(event(0, SEPARATOR, pretended, measured=b"\x01\x00\x00\x00")))
        with pytest.raises(EventLogError):
            require_replays(log, algorithm="sha256", registers=replay(log, algorithm="sha256"))


@pytest.mark.parametrize("called", [SEPARATOR, POST_CODE])
def test_firmware_s_events_stand_before_its_separator_whatever_that_is_called(called):
    log = parse_event_log(
        agile(
            event(0, CRTM_VERSION, b"firmware 1"),
            event(7, SEPARATOR, bytes(4)),
            event(0, called, bytes(4)),
            event(0, CRTM_VERSION, b"firmware 9"),
            event(4, ACTION, b"loading"),
        )
    )
    for algorithm in ("sha256", "sha384"):
        shown = verified_events(log, algorithm=algorithm, registers=replay(log, algorithm=algorithm))
        (found,) = before_separator(shown, register=0, algorithm=algorithm)
        assert found.data == b"firmware 1"
        assert before_separator(shown, register=7, algorithm=algorithm) == ()
        assert before_separator(shown, register=4, algorithm=algorithm) == ()


def test_events_of_registers_that_were_not_signed_are_not_shown():
    shown = verified_events(parse_event_log(GOOD), algorithm="sha256", registers={7: expected("sha256")[7]})
    assert {entry.register for entry in shown} == {7}


@pytest.mark.parametrize("fill", [b"\x00", b"\xff"])
@pytest.mark.parametrize("count", [1, 7, 15, 16, 31, 4096])
def test_memory_after_the_last_event_may_be_zeros_or_ones(fill, count):
    assert parse_event_log(GOOD + fill * count) == parse_event_log(GOOD)


REFUSED = {
    "nothing at all": (b"", EvidenceFormatError),
    "not a log": (b"\x7fELF" + bytes(60), EvidenceFormatError),
    "more than the bound": (GOOD + bytes(event_log.LOG_LIMIT_BYTES), EvidenceSizeError),
    "more events than the bound": (agile(*[event(1, SEPARATOR, b"")] * 4096), EvidenceSizeError),
    "data above its bound": (
        agile(event(1, IPL, bytes(event_log.DATA_LIMIT_BYTES + 1))),
        EvidenceSizeError,
    ),
    "data said to be above its bound": (agile(event(1, IPL, b"", declared=2**32 - 1)), EvidenceSizeError),
    "data longer than the log": (agile(event(1, IPL, b"abc", declared=4)), EvidenceFormatError),
    "zeros, then something": (GOOD + bytes(8) + b"\x01", TrailingBytesError),
    "ones, then something": (GOOD + b"\xff" * 14 + b"\x01", TrailingBytesError),
    "a half header": (GOOD + b"\x01" * 15, TrailingBytesError),
    "a register that no TPM has": (agile(event(24, SEPARATOR, bytes(4))), EvidenceFormatError),
    "a digest too few": (agile(event(0, SEPARATOR, bytes(4), algorithms=ALL[:2])), EvidenceFormatError),
    "a digest twice": (
        agile(event(0, SEPARATOR, bytes(4), algorithms=("sha1", "sha256", "sha256"))),
        EvidenceFormatError,
    ),
    "a digest that was not declared": (
        agile(event(0, SEPARATOR, bytes(4), algorithms=("sha1", "sha256", "sha512"))),
        EvidenceFormatError,
    ),
    "a count of digests that is not the declared one": (
        agile(event(0, SEPARATOR, bytes(4), count=2)),
        EvidenceFormatError,
    ),
    "an algorithm of another size": (agile(*built(), sizes={"sha256": 20}), EvidenceFormatError),
    "an algorithm of another size, and no event": (
        agile(algorithms=("sha256",), sizes={"sha256": 20}),
        EvidenceFormatError,
    ),
    "an unknown algorithm without size": (agile(algorithms=("sm3",), sizes={"sm3": 0}), EvidenceFormatError),
    "an unknown algorithm of a size that none has": (
        agile(algorithms=("sm3",), sizes={"sm3": 65}),
        EvidenceFormatError,
    ),
    "an algorithm declared twice": (agile(algorithms=("sha256", "sha256")), EvidenceFormatError),
    "no algorithm": (agile(algorithms=()), EvidenceSizeError),
    "too many algorithms": (agile(algorithms=("sha1",) * 9), EvidenceSizeError),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_a_log_is_refused(name):
    data, error = REFUSED[name]
    with pytest.raises(error):
        parse_event_log(data)


def test_a_specification_event_may_carry_the_vendors_own_bytes_and_nothing_after_them():
    assert parse_event_log(specification(vendor=b"vendor")).events == ()
    with pytest.raises(TrailingBytesError):
        parse_event_log(specification(vendor=b"vendor", tail=b"!"))


@pytest.mark.parametrize("make", [event, legacy_event], ids=["crypto-agile", "older"])
def test_a_log_cut_anywhere_but_between_events_is_refused(make):
    parts = built(make=make)
    head = specification() if make is event else b""
    whole = head + b"".join(parts)
    ends = {len(head) + sum(map(len, parts[:count])) for count in range(len(parts) + 1)} - {0}
    for length in range(len(whole)):
        # A register's first zeros are no event yet: they read as padding.
        if any(end <= length and not any(whole[end:length]) for end in ends):
            assert len(parse_event_log(whole[:length]).events) < len(parts)
        else:
            with pytest.raises(AttestationError):
                parse_event_log(whole[:length])


def test_measurement_registers_of_a_td_are_its_runtime_registers():
    entries = [(1, SEPARATOR, bytes(4), None), (2, ACTION, b"a", None), (4, IPL, b"b", b"c")]
    log = parse_ccel(ccel((1, NO_ACTION, b"StartupLocality\x00\x03", None), *entries))
    values = {}
    for register, _, data, measured in entries:
        extend(values, register - 1, data if measured is None else measured)
    assert replay(log, algorithm="sha384") == values
    require_replays(log, algorithm="sha384", registers={0: values[0], 1: values[1], 2: bytes(48), 3: values[3]})


@pytest.mark.parametrize("register", [0, 5, 23])
def test_a_td_log_with_another_register_is_refused(register):
    with pytest.raises(EventLogError, match="register"):
        parse_ccel(ccel((register, SEPARATOR, bytes(4), None)))


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(GOOD) * 8 - 1))
def test_no_bit_of_a_log_changes_what_was_measured_without_being_noticed(bit):
    data = bytearray(GOOD)
    data[bit // 8] ^= 1 << bit % 8
    registers = expected("sha256")
    try:
        found = verified_events(parse_event_log(bytes(data)), algorithm="sha256", registers=registers)
    except AttestationError:
        return
    honest = verified_events(parse_event_log(GOOD), algorithm="sha256", registers=registers)
    assert [(entry.register, entry.digest) for entry in found] == [(entry.register, entry.digest) for entry in honest]
    shown = {entry.digest: entry.data for entry in honest}
    assert all(entry.data in {None, shown[entry.digest]} for entry in found)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400), st.sampled_from([b"", specification(), specification(algorithms=SHA384)]))
def test_whatever_the_bytes_nothing_but_an_attestation_error_is_raised(tail, head):
    for parse in (parse_event_log, parse_ccel):
        try:
            log = parse(head + tail)
            verified_events(log, algorithm="sha384", registers=replay(log, algorithm="sha384"))
        except AttestationError:
            pass


ENTRY = st.tuples(
    st.integers(0, 23),
    st.sampled_from([SEPARATOR, ACTION, IPL, APPLICATION, CRTM_VERSION]),
    st.binary(max_size=40),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(ENTRY, max_size=12))
def test_whatever_firmware_logs_replays_to_what_it_extended(entries):
    log = parse_event_log(agile(*(event(*entry) for entry in entries)))
    values = {}
    for register, _, data in entries:
        start = b"\xff" * 48 if 17 <= register <= 22 else None
        extend(values, register, data, start=start)
    assert replay(log, algorithm="sha384") == values
    events = verified_events(log, algorithm="sha384", registers=values)
    assert [entry.data for entry in events] == [data for _, _, data in entries]
