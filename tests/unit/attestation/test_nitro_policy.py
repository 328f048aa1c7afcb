"""What an owner accepts of a Nitro enclave, and what no policy can accept."""

import dataclasses

import pytest
from nitro_world import PCRS, SECOND, TIME, claims

from confed import record
from confed.attestation.policy.nitro import NitroPolicy, appraise, require_defaults, require_floors
from confed.errors import (
    DebugError,
    FreshnessError,
    MeasurementError,
    PolicyFormatError,
    RegisterError,
    SignerError,
)
from confed.manifest import Unchecked

WHY = Unchecked(unchecked="a test")
OTHER = "ab" * 48
ZEROS = "00" * 48
POLICY = NitroPolicy(
    pcr0=(PCRS[0].hex(),),
    pcr1=(OTHER, PCRS[1].hex()),
    pcr2=(PCRS[2].hex(),),
    pcr3=(PCRS[3].hex(), ZEROS),
    pcr4=(PCRS[4].hex(),),
    pcr8=(PCRS[8].hex(),),
    registers={"16": (PCRS[16].hex(),), "5": (ZEROS,)},
    max_age_s=60,
)
CLAIMS = claims()


def check(found=CLAIMS, *, now=TIME + SECOND, **changes):
    appraise(found, dataclasses.replace(POLICY, **changes), now=now)


def test_an_enclave_that_the_policy_names_is_accepted():
    check()
    require_defaults(CLAIMS)


def test_what_is_unchecked_may_be_anything():
    unchecked = dict.fromkeys(("pcr1", "pcr2", "pcr3", "pcr4", "pcr8", "registers"), WHY)
    others = dict.fromkeys((1, 2, 3, 4, 8), b"w" * 48)
    check(claims(pcrs=PCRS | others), **unchecked)
    check(claims(pcrs=PCRS | {0: b"\x77" * 48}), pcr0=WHY)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_debug_is_refused_whatever_a_policy_says(index):
    debug = claims(pcrs=PCRS | {index: bytes(48)})
    for attempt in (require_floors, require_defaults, lambda found: check(found, pcr0=WHY, pcr1=WHY, pcr2=WHY)):
        with pytest.raises(DebugError):
            attempt(debug)


REFUSED = {
    **{
        f"another PCR{index}": ({index: b"\x77" * 48}, {}, error)
        for index, error in (
            (0, MeasurementError), (1, RegisterError), (2, RegisterError), (3, RegisterError), (4, RegisterError),
            (8, SignerError), (16, RegisterError), (5, RegisterError),
        )
    },
    "an enclave without signer": ({8: bytes(48)}, {}, SignerError),
    "a PCR8 that the document does not list": ({8: None}, {}, SignerError),
    "a PCR3 that the document does not list": ({3: None}, {}, RegisterError),
    "a PCR16 that is not locked": ({16: None}, {}, RegisterError),
    "PCR0 in the place of PCR1": ({1: PCRS[0]}, {}, RegisterError),
    "registers shifted by one": ({index: PCRS[index + 1] for index in range(4)}, {}, MeasurementError),
    "a document that is too old": ({}, {"now": TIME + 61 * SECOND}, FreshnessError),
    "a document from the future": ({}, {"now": TIME - 31 * SECOND}, FreshnessError),
}  # fmt: skip


@pytest.mark.parametrize("sentence", REFUSED)
def test_the_policy_refuses(sentence):
    pcrs, options, error = REFUSED[sentence]
    changed = {index: value for index, value in (PCRS | pcrs).items() if value is not None}
    with pytest.raises(error) as caught:
        check(claims(pcrs=changed), **options)
    assert type(caught.value) is error


def test_a_document_is_accepted_to_the_last_second_of_its_age():
    check(now=TIME + 60 * SECOND)
    check(now=TIME - 30 * SECOND)


def test_values_are_compared_by_number_and_not_by_place():
    for index in (0, 1, 2, 4, 8):
        with pytest.raises((MeasurementError, RegisterError, SignerError)):
            check(**{f"pcr{index}": (PCRS[3].hex(),)})


MALFORMED = {
    **{f"an empty list for pcr{index}": {f"pcr{index}": ()} for index in (0, 1, 2, 3, 4, 8)},
    **{f"zeros for pcr{index}": {f"pcr{index}": (OTHER, ZEROS)} for index in (0, 1, 2, 4, 8)},
    "a value in capitals": {"pcr0": (OTHER.upper(),)},
    "a value of 32 bytes": {"pcr0": ("ab" * 32,)},
    "a value with a prefix": {"pcr0": ("0x" + "ab" * 47,)},
    "a value with a line after it": {"pcr0": (OTHER + "\n",)},
    "no registers": {"registers": {}},
    "an empty list for a register": {"registers": {"16": ()}},
    "a register of 32 bytes": {"registers": {"16": ("ab" * 32,)}},
    "a register with a field of its own": {"registers": {"8": (OTHER,)}},
    "a register 32": {"registers": {"32": (OTHER,)}},
    "a register in another spelling": {"registers": {"016": (OTHER,)}},
    "a negative register": {"registers": {"-5": (OTHER,)}},
    "an age of nothing": {"max_age_s": 0},
    "an age beyond a certificate's life": {"max_age_s": 3 * 3600 + 1},
}


@pytest.mark.parametrize("sentence", MALFORMED)
def test_a_policy_is_refused_with(sentence):
    with pytest.raises(PolicyFormatError):
        dataclasses.replace(POLICY, **MALFORMED[sentence])


def test_a_policy_is_read_from_its_document_and_no_field_is_optional():
    table = record.to_json(dataclasses.replace(POLICY, pcr4=WHY, registers=WHY))
    assert record.from_json(NitroPolicy, table, error=PolicyFormatError).pcr4 == WHY
    assert record.from_json(NitroPolicy, record.to_json(POLICY), error=PolicyFormatError) == POLICY
    for field in table:
        with pytest.raises(PolicyFormatError):
            record.from_json(NitroPolicy, {key: table[key] for key in table if key != field}, error=PolicyFormatError)
