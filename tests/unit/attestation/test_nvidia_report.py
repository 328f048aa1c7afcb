"""NVIDIA's reports are read field by field, to their true length and no further."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nvidia_world import FIRMWARE, GPU, MEASUREMENTS, NONCE, REPORT, Parts, block, field, make_report, switch_report

from confed.attestation.tee.nvidia_opaque import OpaqueData, parse_opaque
from confed.attestation.tee.nvidia_report import REPORT_LIMIT_BYTES, parse_report
from confed.errors import (
    AttestationError,
    EvidenceFormatError,
    EvidenceSizeError,
    EvidenceVersionError,
    MissingClaimError,
    TrailingBytesError,
)


def test_a_report_says_what_was_put_into_it():
    report = parse_report(REPORT)
    assert report.nonce == NONCE
    assert report.measurements == MEASUREMENTS
    assert report.signed + report.signature == REPORT
    opaque = report.opaque
    assert (opaque.driver_version, opaque.gpu_vbios_version, opaque.board) == (
        "550.90.07",
        "96.00.9F.00.01",
        "1010_0200_882",
    )
    assert (opaque.firmware_id, opaque.mode, opaque.protected_pcie, opaque.video_decoder) == (
        FIRMWARE,
        "spt",
        False,
        False,
    )


def test_a_switch_says_its_own_identity_and_its_gpus():
    opaque = parse_report(switch_report(GPU)).opaque
    assert (opaque.switch_bios_version, opaque.switch_pdi, opaque.locked) == ("96.10.55.00.01", b"\x02" * 8, True)
    assert opaque.gpu_pdis == (b"\x01" * 8,)


def test_exactly_one_zero_byte_may_follow_the_signature():
    padded = parse_report(make_report(GPU, trailing=b"\x00"))
    assert padded.signed + padded.signature + b"\x00" == make_report(GPU, trailing=b"")[: len(padded.signed)] + (
        padded.signature + b"\x00"
    )


@pytest.mark.parametrize("trailing", [b"\x01", b"\n", b"\x00\x00", b"\x00" * 96])
def test_nothing_else_may_follow_the_signature(trailing):
    with pytest.raises(TrailingBytesError):
        parse_report(make_report(GPU, trailing=trailing))


REFUSED = {
    "another version of SPDM in the request": ({"request": b"\x12\xe0\x01\xff"}, EvidenceVersionError),
    "another request": ({"request": b"\x11\xe1\x01\xff"}, EvidenceFormatError),
    "a request without signature": ({"request": b"\x11\xe0\x00\xff"}, EvidenceFormatError),
    "a request for some measurements": ({"request": b"\x11\xe0\x01\x01"}, EvidenceFormatError),
    "another slot": ({"slot": b"\x01"}, EvidenceFormatError),
    "another version of SPDM in the response": ({"response": b"\x12\x60\x00\x00"}, EvidenceVersionError),
    "an error as response": ({"response": b"\x11\x7f\x00\x00"}, EvidenceFormatError),
    "another first parameter in the response": ({"response": b"\x11\x60\x01\x00"}, EvidenceFormatError),
    "another slot in the response": ({"response": b"\x11\x60\x00\x01"}, EvidenceFormatError),
    "no measurement": ({"blocks": ()}, EvidenceFormatError),
    "fewer measurements than it counts": ({"count": 41}, EvidenceFormatError),
    "more measurements than it counts": ({"count": 39}, EvidenceFormatError),
    "an index twice": ({"blocks": (block(1, bytes(48)), block(1, bytes(48)))}, EvidenceFormatError),
    "the index 0": ({"blocks": (block(0, bytes(48)),)}, EvidenceFormatError),
    "a measurement of another specification": (
        {"blocks": (block(1, bytes(48), specification=2),)},
        EvidenceFormatError,
    ),
    "a raw measurement": ({"blocks": (block(1, bytes(48), kind=0x81),)}, EvidenceFormatError),
    "a measurement of another size": ({"blocks": (block(1, bytes(32)),)}, EvidenceFormatError),
    "two sizes that differ": ({"blocks": (b"\x01\x01\x34\x00\x01\x30\x00" + bytes(48),)}, EvidenceFormatError),
    "opaque data above its bound": ({"opaque": field(99, bytes(1024))}, EvidenceSizeError),
    "opaque data in the next format": ({"opaque": b"NVDAOD" + bytes(6)}, EvidenceVersionError),
    "opaque data of a later version": ({"opaque": field(34, b"\x03\x00")}, EvidenceVersionError),
    "an opaque field twice": ({"opaque": field(3, b"1") * 2}, EvidenceFormatError),
    "an opaque field cut short": ({"opaque": field(3, b"550.90.07")[:-1]}, EvidenceFormatError),
    "half an opaque field's head": ({"opaque": b"\x03\x00\x01"}, EvidenceFormatError),
}


@pytest.mark.parametrize(("changes", "error"), REFUSED.values(), ids=REFUSED.keys())
def test_a_report_is_refused_with(changes, error):
    with pytest.raises(error) as caught:
        parse_report(make_report(GPU, **changes))
    assert caught.type is error


def test_a_report_above_its_bound_is_refused_before_it_is_read():
    with pytest.raises(EvidenceSizeError):
        parse_report(REPORT + bytes(REPORT_LIMIT_BYTES))


def test_a_report_cut_anywhere_is_refused():
    for size in range(len(REPORT)):
        with pytest.raises(EvidenceFormatError):
            parse_report(REPORT[:size])


FIELDS = {
    "a driver version of other text": ({3: b"five"}, "driver_version", EvidenceFormatError),
    "a driver version that is not text": ({3: b"\xff\xfe"}, "driver_version", EvidenceFormatError),
    "no driver version": ({3: None}, "driver_version", MissingClaimError),
    "no VBIOS version": ({6: None}, "gpu_vbios_version", MissingClaimError),
    "a VBIOS version of another size": ({6: bytes(7)}, "gpu_vbios_version", EvidenceFormatError),
    "a VBIOS version with more than five bytes": ({6: b"\x01" * 8}, "gpu_vbios_version", EvidenceFormatError),
    "a BIOS version that is none": ({6: b"96.10"}, "switch_bios_version", EvidenceFormatError),
    "no project": ({17: None}, "board", MissingClaimError),
    "a project with a line break": ({17: b"10\n10"}, "board", EvidenceFormatError),
    "a FWID of another size": ({20: bytes(32)}, "firmware_id", EvidenceFormatError),
    "a feature flag of another size": ({36: b"\x01"}, "mode", EvidenceFormatError),
    "a protected PCIe status that is neither": ({21: b"\x00"}, "protected_pcie", EvidenceFormatError),
    "an NVDEC0 status that is neither": ({11: b"\xab"}, "video_decoder", EvidenceFormatError),
    "switch PDIs that are cut": ({22: bytes(9)}, "switch_pdis", EvidenceFormatError),
    "a switch's PDI of another size": ({22: bytes(16)}, "switch_pdi", EvidenceFormatError),
    "no switch's PDI": ({22: None}, "switch_pdi", MissingClaimError),
    "a lock status of another size": ({25: b"\x01"}, "locked", EvidenceFormatError),
}


@pytest.mark.parametrize(("fields", "name", "error"), FIELDS.values(), ids=FIELDS.keys())
def test_an_opaque_field_is_refused_with(fields, name, error):
    opaque = parse_report(make_report(GPU, fields=fields)).opaque
    with pytest.raises(error) as caught:
        getattr(opaque, name)
    assert caught.type is error


@pytest.mark.parametrize(
    ("fields", "mode"),
    [
        ({36: b"\x00\x00"}, "mpt"),
        ({36: b"\x02\x00"}, "ppcie"),
        ({36: b"\x03\x00"}, "unknown-3"),
        ({36: None}, "unreported"),
        ({34: None}, "unreported"),
        ({34: b"\x00\x00"}, "unreported"),
    ],
)
def test_a_mode_is_told_by_newer_drivers_only(fields, mode):
    assert parse_report(make_report(GPU, fields=fields)).opaque.mode == mode


def test_an_opaque_field_that_is_not_known_is_kept():
    assert parse_opaque(field(250, b"later")).fields == {250: b"later"}


def test_linked_devices_are_told_once_and_without_zeros():
    one, two = b"\x01" * 8, b"\x02" * 7 + b"\x03"
    assert OpaqueData({26: two + one + two + bytes(8)}).gpu_pdis == (one, two)
    # GPUs write the identities of switches the other way round than switches themselves.
    assert OpaqueData({22: two + one + two + bytes(8)}).switch_pdis == (one, b"\x03" + b"\x02" * 7)


@given(st.binary(max_size=600))
@settings(max_examples=300)
def test_whatever_bytes_come_nothing_but_an_attestation_error_is_raised(data):
    for candidate in (data, REPORT[: len(data)] + data, Parts().signed[:37] + data):
        try:
            report = parse_report(candidate)
        except AttestationError:
            continue
        assert candidate.startswith(report.signed + report.signature)


@given(st.integers(0, len(REPORT) - 1), st.integers(1, 255))
@settings(max_examples=300)
def test_a_byte_changed_is_an_error_or_another_report(position, change):
    data = bytearray(REPORT)
    data[position] ^= change
    try:
        report = parse_report(bytes(data))
    except AttestationError:
        return
    assert dataclasses.astuple(report)[-2:] != dataclasses.astuple(parse_report(REPORT))[-2:]
