"""Quotes in files: every form that is read, and what has to vouch for the key that signed."""

import base64
import contextlib
import hashlib
import json
import struct

import pytest
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st
from tpm_world import (
    AK,
    ANCHORS,
    AUTHORITY,
    DAY,
    EK,
    EK_CERTIFICATE,
    INTERMEDIATE,
    NAMESAKE,
    NONCE,
    NOW,
    OTHER_AK,
    OTHER_AUTHORITY,
    OTHER_EK,
    OTHER_ROOT,
    PCRS,
    ROOT,
    SHA1,
    SHA384,
    TPM_BINDING,
    attest,
    ek_certificate,
    enrolment,
    event,
    event_log,
    evidence,
    extended,
    files_json,
    public_area,
    register_file,
    registers,
    signed,
    sized,
    spki,
    tpm_names,
)

from confed import record
from confed.attestation.evidence import Expectation
from confed.attestation.tee.tpm import verify_files
from confed.attestation.tee.tpm_evidence import nonce_of
from confed.attestation.tee.tpm_files import read_registers
from confed.errors import (
    AlgorithmError,
    AttestationError,
    BindingMismatchError,
    CertificateChainError,
    CertificateValidityError,
    EndorsementFormatError,
    EndorsementMismatchError,
    EventLogError,
    EvidenceFormatError,
    EvidenceSignatureError,
    EvidenceSizeError,
    KeyBindingError,
    MissingEndorsementError,
    NonceError,
    PcrDigestError,
    StaleEndorsementError,
    TrailingBytesError,
    TrustAnchorError,
)

UNCHECKED = Expectation(nonce=None, report_data=None)
EXPECTED = Expectation(nonce=NONCE, report_data=None)
MESSAGE = attest(PCRS)
PEM_KEY, DER_KEY = spki(AK, Encoding.PEM), spki(AK)
TOOLS = (signed(MESSAGE, AK), register_file(PCRS))
CHAIN = (EK_CERTIFICATE, INTERMEDIATE.pem, ROOT.pem)
PUBLIC = public_area(AK)
NAMED_AUTHORITY = spki(AUTHORITY, Encoding.PEM)


def verified(data, *endorsements, expectation=EXPECTED, now=NOW, anchors=None):
    return verify_files(data, endorsements, expectation=expectation, now=now, anchors=anchors)


def test_a_quote_of_tools_is_verified_with_what_lies_beside_it():
    claims = verified(MESSAGE, *TOOLS, PEM_KEY)
    assert (claims.evidence_class, claims.hardware_rooted) == ("software-tpm", False)
    assert (claims.rooted_by, claims.endorsement_key) == ("pinned-key", None)
    assert (claims.attributes, claims.attestation_key_name) == ((), b"")
    assert {register.number: register.value for register in claims.registers} == PCRS
    assert (claims.bank, claims.nonce, claims.nonce_checked) == ("sha256", NONCE, True)
    assert (claims.clock, claims.firmware_version) == ("000000000001e240", "2019102300163636")
    assert (claims.register(7), claims.register(8)) == (PCRS[7], None)
    assert (claims.replayed, claims.events) == ((), ())
    record.to_json(claims)


@pytest.mark.parametrize("order", [0, 1, 2, 3, 4, 5])
def test_endorsements_are_told_apart_in_any_order(order):
    files = [*TOOLS, DER_KEY, *CHAIN]
    claims = verified(MESSAGE, *files[order:], *files[:order])
    assert claims.endorsement_key is not None
    assert claims.endorsement_key.manufacturer == "id:00001014"
    assert (claims.endorsement_key.model, claims.endorsement_key.version) == ("test-tpm", "id:00010002")


def test_an_endorsement_certificate_alone_is_not_activated():
    claims = verified(MESSAGE, *TOOLS, PEM_KEY, *CHAIN)
    assert claims.rooted_by == "pinned-key"
    assert claims.endorsement_key is not None
    assert claims.endorsement_key.activated is False


def test_an_endorsement_certificate_roots_no_key():
    with pytest.raises(MissingEndorsementError):
        verified(MESSAGE, *TOOLS, *CHAIN)
    with pytest.raises(TrustAnchorError):
        verified(files_json(), *CHAIN)


@pytest.mark.parametrize("named", [PEM_KEY, DER_KEY, PUBLIC, sized(PUBLIC)], ids=["PEM", "DER", "TPMT", "TPM2B"])
def test_the_json_form_is_read_and_the_key_has_to_be_named(named):
    assert verified(files_json(), named).rooted_by == "pinned-key"
    with pytest.raises(TrustAnchorError):
        verified(files_json())


def test_a_public_area_beside_the_quote_is_checked_and_told():
    claims = verified(files_json(public=sized(PUBLIC)), PEM_KEY)
    assert "restricted" in claims.attributes
    assert len(claims.attestation_key_name) == 34


def test_values_without_numbers_are_those_from_zero_on():
    pcrs = registers(*range(24))
    assert len(verified(files_json(pcrs, positions=False), PEM_KEY).registers) == 24
    with pytest.raises(PcrDigestError):
        verified(files_json(PCRS, positions=False), PEM_KEY)


def test_what_a_file_says_of_its_nonce_is_not_believed():
    data = files_json(nonce="00" * 32, note="genuine", expected_pcr11_good="00" * 32)
    assert verified(data, PEM_KEY, expectation=UNCHECKED).nonce == NONCE
    with pytest.raises(NonceError):
        verified(data, PEM_KEY, expectation=Expectation(nonce=bytes(32), report_data=None))


def test_freshness_is_claimed_only_where_a_nonce_was_compared():
    assert verified(files_json(), PEM_KEY).nonce_checked is True
    assert verified(files_json(), PEM_KEY, expectation=UNCHECKED).nonce_checked is False
    empty = files_json(message=attest(PCRS, nonce=b""))
    claims = verified(empty, PEM_KEY, expectation=Expectation(nonce=b"", report_data=None))
    assert (claims.nonce, claims.nonce_checked) == (b"", False)


def test_the_callers_data_is_padded_to_64_bytes():
    for data in (NONCE, NONCE + bytes(32)):
        verified(files_json(), PEM_KEY, expectation=Expectation(nonce=None, report_data=data))
    for data in (b"", b"m" * 32, NONCE + b"\x01", NONCE + bytes(33), bytes(64)):
        with pytest.raises(BindingMismatchError):
            verified(files_json(), PEM_KEY, expectation=Expectation(nonce=None, report_data=data))


def envelope_form(**changes):
    return evidence(pcrs=PCRS, message=attest(PCRS), **changes).encode()


def test_the_evidence_of_an_envelope_is_read_too():
    claims = verified(envelope_form(), NAMED_AUTHORITY, INTERMEDIATE.der, ROOT.der)
    assert claims.rooted_by == "enrolment"
    assert claims.endorsement_key is not None
    assert claims.endorsement_key.activated is True
    bare = envelope_form(ek_certificate=None, enrolment=None)
    assert verified(bare, PEM_KEY).rooted_by == "pinned-key"
    assert verified(bare, NAMED_AUTHORITY, enrolment(), *CHAIN).rooted_by == "enrolment"
    assert verified(envelope_form(), INTERMEDIATE.der, anchors=ANCHORS).rooted_by == "enrolment"
    with pytest.raises(EvidenceFormatError):
        verified(envelope_form(ak_certificate=EK_CERTIFICATE), NAMED_AUTHORITY, INTERMEDIATE.der, ROOT.der)


def test_anchors_that_are_given_are_the_only_ones():
    with pytest.raises(TrustAnchorError):
        verified(envelope_form(), NAMED_AUTHORITY, INTERMEDIATE.der, ROOT.der, anchors=(OTHER_ROOT.der,))
    with pytest.raises(TrustAnchorError):
        verified(envelope_form(), NAMED_AUTHORITY, INTERMEDIATE.der, ROOT.der, anchors=())


def without(name):
    value = json.loads(files_json())
    del value[name]
    return json.dumps(value).encode()


def quote_with(**changes):
    value = json.loads(files_json())
    value["tpm_quote"] |= changes
    return json.dumps(value).encode()


def to_text(data):
    return base64.b64encode(data).decode()


HEXES = [PCRS[number].hex() for number in sorted(PCRS)]
EVIDENCE = {
    "another signature": (files_json(signature=signed(MESSAGE, OTHER_AK)), EvidenceSignatureError),
    "another message": (
        files_json(message=attest(PCRS, nonce=b"x"), signature=signed(MESSAGE, AK)),
        EvidenceSignatureError,
    ),
    "another nonce": (files_json(message=attest(PCRS, nonce=b"x")), NonceError),
    "another value": (quote_with(pcrs=["00" * 32, *HEXES[1:]]), PcrDigestError),
    "a value less": (quote_with(pcrs=HEXES[:-1]), EvidenceFormatError),
    "numbers that were not signed": (files_json(claimed_selection_by_position=[*range(8), 12]), PcrDigestError),
    "fewer numbers than values": (files_json(claimed_selection_by_position=[0]), EvidenceFormatError),
    "a number twice": (files_json(claimed_selection_by_position=[*range(8), 7]), EvidenceFormatError),
    "a number that there is not": (files_json(claimed_selection_by_position=[*range(8), 24]), EvidenceFormatError),
    "a number below zero": (files_json(claimed_selection_by_position=[*range(8), -1]), EvidenceFormatError),
    "a truth value for a number": (
        files_json(claimed_selection_by_position=[False, *range(1, 8), 11]),
        EvidenceFormatError,
    ),
    "text for numbers": (files_json(claimed_selection_by_position="0"), EvidenceFormatError),
    "no key": (without("ak_public"), EvidenceFormatError),
    "no quote": (without("tpm_quote"), EvidenceFormatError),
    "a field that is not known": (files_json(trusted=True), EvidenceFormatError),
    "a quote's field that is not known": (quote_with(bank="sha1"), EvidenceFormatError),
    "a quote that is text": (files_json(tpm_quote="quote"), EvidenceFormatError),
    "a message that is not base64": (quote_with(message="?"), EvidenceFormatError),
    "a signature that is a number": (quote_with(signature=1), EvidenceFormatError),
    "registers that are text": (quote_with(pcrs="00"), EvidenceFormatError),
    "a register that is a number": (quote_with(pcrs=[0, *HEXES[1:]]), EvidenceFormatError),
    "a register with blanks": (quote_with(pcrs=[" " + HEXES[0], *HEXES[1:]]), EvidenceFormatError),
    "a register that is too long": (quote_with(pcrs=["00" * 65, *HEXES[1:]]), EvidenceFormatError),
    "too many registers": (quote_with(pcrs=["00"] * 25), EvidenceFormatError),
    "a key that is not base64": (files_json(ak_public="?"), EvidenceFormatError),
    "a key that is none": (files_json(ak_public=to_text(b"0")), EvidenceFormatError),
    "a key of another kind": (files_json(ak_public=to_text(spki(AUTHORITY))), EvidenceFormatError),
    "the public area of another key": (files_json(public=public_area(OTHER_AK)), KeyBindingError),
    "a key that is not restricted": (files_json(public=public_area(AK, attributes=0x00040072)), KeyBindingError),
    "half a public area": (files_json(public=PUBLIC[:-1]), EvidenceFormatError),
    "a key twice": (b'{"ak_public":1,' + files_json()[1:], EvidenceFormatError),
    "a list": (b"[]", EvidenceFormatError),
    "nothing": (b"", EvidenceFormatError),
    "something else": (b"\x00" * 100, EvidenceFormatError),
    "JSON without end": (b'{"a":' * 10_000, EvidenceFormatError),
    "a long number": (b'{"ak_public":' + b"1" * 10_000 + b"}", EvidenceFormatError),
    "too many bytes": (b"{" + b" " * 70_000, EvidenceSizeError),
    "trailing bytes": (files_json() + b"{}", EvidenceFormatError),
    "a trailing byte in the message": (files_json(message=attest(PCRS, trailing=b"\x00")), TrailingBytesError),
    "an envelope's form that is not canonical": (envelope_form() + b"\n", EvidenceFormatError),
}


@pytest.mark.parametrize(("data", "error"), EVIDENCE.values(), ids=EVIDENCE.keys())
def test_evidence_is_refused_with(data, error):
    with pytest.raises(error) as refused:
        verified(data, PEM_KEY)
    assert isinstance(refused.value, AttestationError)


ROOTS = {
    "another key than the named one": (files_json(), (spki(OTHER_AK),), KeyBindingError),
    "a named public area with other attributes": (
        files_json(public=PUBLIC), (public_area(AK, attributes=0x00050072),), KeyBindingError,
    ),
    "a named public area that is not restricted": (files_json(), (public_area(AK, attributes=0x00040072),), KeyBindingError),
    "two named keys beside tools' files": (MESSAGE, (*TOOLS, PEM_KEY, spki(OTHER_AK)), EndorsementFormatError),
    "no key beside tools' files": (MESSAGE, TOOLS, MissingEndorsementError),
    "no signature beside a message": (MESSAGE, (TOOLS[1], PEM_KEY), MissingEndorsementError),
    "no registers beside a message": (MESSAGE, (TOOLS[0], PEM_KEY), MissingEndorsementError),
    "two signatures": (MESSAGE, (*TOOLS, TOOLS[0], PEM_KEY), EndorsementFormatError),
    "a signature beside JSON": (files_json(), (TOOLS[0], PEM_KEY), EvidenceFormatError),
    "a certificate that is of no endorsement key": (files_json(), (PEM_KEY, ROOT.pem), EndorsementFormatError),
    "two endorsement keys": (files_json(), (PEM_KEY, *CHAIN, ek_certificate(OTHER_EK)), EndorsementFormatError),
    "no intermediate": (files_json(), (PEM_KEY, EK_CERTIFICATE, ROOT.pem), TrustAnchorError),
    "no root": (files_json(), (PEM_KEY, EK_CERTIFICATE, INTERMEDIATE.pem), TrustAnchorError),
    "another root": (files_json(), (PEM_KEY, EK_CERTIFICATE, INTERMEDIATE.pem, OTHER_ROOT.pem), TrustAnchorError),
    "another intermediate of that name": (
        files_json(), (PEM_KEY, EK_CERTIFICATE, NAMESAKE.pem, ROOT.pem, OTHER_ROOT.pem), CertificateChainError,
    ),
    "an authority that enrolled nothing": (envelope_form(enrolment=None), (NAMED_AUTHORITY, *CHAIN[1:]), MissingEndorsementError),
    "an enrolment by nobody who is named": (envelope_form(), (spki(OTHER_AUTHORITY), *CHAIN[1:]), TrustAnchorError),
    "an enrolment without an EK certificate": (
        envelope_form(ek_certificate=None), (NAMED_AUTHORITY,), MissingEndorsementError,
    ),
    "an enrolment without a public area": (
        files_json(), (NAMED_AUTHORITY, enrolment(), *CHAIN), MissingEndorsementError,
    ),
    "an enrolment of another attestation key": (
        envelope_form(enrolment=enrolment(key=OTHER_AK)), (NAMED_AUTHORITY, *CHAIN[1:]), KeyBindingError,
    ),
    "an enrolment of another endorsement key": (
        envelope_form(enrolment=enrolment(endorsement_key=OTHER_EK)), (NAMED_AUTHORITY, *CHAIN[1:]), EndorsementMismatchError,
    ),
    "an enrolment, and another key named": (
        envelope_form(), (NAMED_AUTHORITY, spki(OTHER_AK), *CHAIN[1:]), KeyBindingError,
    ),
    "a key of another kind": (files_json(), (spki(Ed448PrivateKey.generate()),), EndorsementFormatError),
    "a file of no kind": (files_json(), (PEM_KEY, b"hello"), EndorsementFormatError),
    "an empty file": (files_json(), (PEM_KEY, b""), EndorsementFormatError),
    "half a PEM key": (files_json(), (PEM_KEY[:80],), EndorsementFormatError),
    "half a certificate": (files_json(), (PEM_KEY, EK_CERTIFICATE[:-1]), EndorsementFormatError),
    "half a public area": (files_json(), (PUBLIC[:-1],), EndorsementFormatError),
    "too many files": (files_json(), (PEM_KEY,) * 33, EvidenceSizeError),
    "too many certificates": (files_json(), (PEM_KEY, *((ROOT.pem * 12,) * 3)), EvidenceSizeError),
    "two event logs": (files_json(), (PEM_KEY, event_log(), event_log()), EvidenceFormatError),
}  # fmt: skip


@pytest.mark.parametrize(("data", "endorsements", "error"), ROOTS.values(), ids=ROOTS.keys())
def test_a_genuine_quote_is_refused_with(data, endorsements, error):
    with pytest.raises(error):
        verified(data, *endorsements)


@pytest.mark.parametrize("moment", [NOW + 31 * DAY, NOW - 31 * DAY])
def test_certificates_have_their_time(moment):
    with pytest.raises(CertificateValidityError):
        verified(files_json(), PEM_KEY, *CHAIN, now=moment)


def test_an_enrolment_has_its_time():
    with pytest.raises(StaleEndorsementError):
        verified(envelope_form(), NAMED_AUTHORITY, *CHAIN[1:], now=NOW + DAY)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"usage": "digital_signature"}, CertificateChainError),
        ({"use": None}, EndorsementFormatError),
        ({"authority": True}, EndorsementFormatError),
        ({"since": NOW + DAY}, CertificateValidityError),
        ({"until": NOW - DAY}, CertificateValidityError),
        ({"issuer": OTHER_ROOT}, TrustAnchorError),
    ],
)
def test_an_endorsement_certificate_is_of_a_key_that_decrypts(changes, error):
    with pytest.raises(error):
        verified(files_json(), PEM_KEY, ek_certificate(EK, **changes), INTERMEDIATE.pem, ROOT.pem)


def test_a_certificate_says_which_tpm_it_is_of_or_nothing():
    certificate = ek_certificate(EK, names=tpm_names("id:49465800", "SLB9670", "id:0007003E"))
    claims = verified(files_json(), PEM_KEY, certificate, INTERMEDIATE.pem, ROOT.pem)
    assert claims.endorsement_key is not None
    assert claims.endorsement_key.manufacturer == "id:49465800"


# Register files.


def test_registers_of_a_file_stand_under_the_numbers_in_it():
    assert read_registers(register_file(PCRS)) == (PCRS, "sha256")
    pcrs = registers(*range(24), size=48)
    assert read_registers(register_file(pcrs, bank=SHA384)) == (pcrs, "sha384")


WITH_17 = register_file(registers(*range(17)))
REGISTER_FILES = {
    "no bank": (register_file(PCRS, banks=0), EndorsementFormatError),
    "two banks": (register_file(PCRS, banks=2), EndorsementFormatError),
    "SHA-1": (register_file(registers(0, size=20), bank=SHA1), AlgorithmError),
    "another count of lists": (register_file(PCRS, count=3), EndorsementFormatError),
    "a list less": (WITH_17[:-532], EndorsementFormatError),
    "a byte less": (register_file(PCRS)[:-1], EndorsementFormatError),
    "a byte more": (register_file(PCRS) + b"\x00", EndorsementFormatError),
    "five lists": (register_file(PCRS) + bytes(532 * 3), EndorsementFormatError),
    "nine values in a list": (register_file(PCRS)[:136] + struct.pack("<I", 9) + register_file(PCRS)[140:], EndorsementFormatError),
    "a value too long": (register_file(PCRS)[:140] + struct.pack("<H", 65) + register_file(PCRS)[142:], EndorsementFormatError),
    "a bitmap too long": (register_file(PCRS)[:6] + b"\x05" + register_file(PCRS)[7:], EndorsementFormatError),
    "a register that there is not": (
        register_file(PCRS)[:6] + b"\x04" + register_file(PCRS)[7:10] + b"\x01" + register_file(PCRS)[11:], EvidenceFormatError,
    ),
    "nothing": (b"", EndorsementFormatError),
}  # fmt: skip


@pytest.mark.parametrize(("data", "error"), REGISTER_FILES.values(), ids=REGISTER_FILES.keys())
def test_a_register_file_is_refused_with(data, error):
    with pytest.raises(error):
        read_registers(data)
    with pytest.raises(AttestationError):
        verified(MESSAGE, TOOLS[0], data, PEM_KEY)


def test_registers_of_another_bank_than_the_signed_one_are_refused():
    with pytest.raises(PcrDigestError):
        verified(MESSAGE, TOOLS[0], register_file(registers(*PCRS, size=48), bank=SHA384), PEM_KEY)


# Event logs.

EVENTS = (event(0, 0x08, b"firmware 1"), event(0, 0x04, bytes(4)), event(7, 0x0D, b"image"))
LOG = event_log(*EVENTS)
LOGGED = registers(1, 2, 11) | {
    0: extended(b"firmware 1", bytes(4)),
    7: extended(b"image"),
    8: bytes(32),
    16: bytes(32),
    17: b"\xff" * 32,
}


def test_a_log_is_read_where_it_gives_the_signed_registers():
    claims = verified(files_json(LOGGED), PEM_KEY, LOG)
    assert claims.replayed == (0, 7, 8, 17)
    assert [(found.register, found.type, found.data) for found in claims.events] == [
        (0, 0x08, b"firmware 1"), (0, 0x04, bytes(4)), (7, 0x0D, b"image"),
    ]  # fmt: skip


def test_events_of_registers_that_were_not_signed_are_not_told():
    pcrs = {number: LOGGED[number] for number in (0, 1)}
    claims = verified(files_json(pcrs), PEM_KEY, event_log(*EVENTS, event(9, 0x0D, b"lie")))
    assert claims.replayed == (0,)
    assert {found.register for found in claims.events} == {0}


def test_nothing_explains_a_register_that_anybody_can_reset():
    pcrs = LOGGED | {23: extended(b"lie")}
    claims = verified(files_json(pcrs), PEM_KEY, event_log(*EVENTS, event(23, 0x0D, b"lie")))
    assert 23 not in claims.replayed
    assert all(found.register != 23 for found in claims.events)


LOGS = {
    "an event less": (event_log(*EVENTS[1:]), EventLogError),
    "an event more": (event_log(*EVENTS, event(7, 0x0D, b"more")), EventLogError),
    "two events in each other's place": (event_log(EVENTS[1], EVENTS[0], EVENTS[2]), EventLogError),
    "an event in another register": (event_log(*EVENTS[:2], event(2, 0x0D, b"image")), EventLogError),
    "another event": (event_log(event(0, 0x08, b"firmware 2"), *EVENTS[1:]), EventLogError),
    "words that were not hashed": (
        event_log(event(0, 0x08, b"firmware 9", digest=hashlib.sha256(b"firmware 1").digest()), *EVENTS[1:]), EventLogError,
    ),
    "another bank's digests": (event_log(event(0, 0x08, b"firmware 1", bank=SHA384), bank=SHA384), AlgorithmError),
    "half an event": (LOG[:-1], EvidenceFormatError),
}  # fmt: skip


@pytest.mark.parametrize(("log", "error"), LOGS.values(), ids=LOGS.keys())
def test_an_event_log_is_refused_with(log, error):
    with pytest.raises(error):
        verified(files_json(LOGGED), PEM_KEY, log)


# Whatever bytes come in.

SAMPLES = (
    files_json(public=PUBLIC),
    envelope_form(),
    MESSAGE,
    *TOOLS,
    *CHAIN,
    PEM_KEY,
    DER_KEY,
    PUBLIC,
    enrolment(),
    LOG,
)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(SAMPLES), st.data())
def test_no_change_of_a_file_raises_anything_but_attestation_errors(original, data):
    changed = bytearray(original)
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(AttestationError):
        verified(bytes(changed), *TOOLS, PEM_KEY, *CHAIN)
    with contextlib.suppress(AttestationError):
        verified(files_json(), bytes(changed), PEM_KEY)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_no_bytes_raise_anything_but_attestation_errors(data):
    for found in (data, b"{" + data, b"0" + data, b"\xff\x54\x43\x47" + data, b'{"payload":' + data):
        with contextlib.suppress(AttestationError):
            verified(found, *TOOLS, PEM_KEY)
        with contextlib.suppress(AttestationError):
            verified(files_json(), found, PEM_KEY)


def test_the_nonce_of_an_envelope_is_of_its_binding():
    report_data = TPM_BINDING.report_data()
    assert nonce_of(report_data) != nonce_of(report_data[:-1] + bytes([report_data[-1] ^ 1]))
    assert len(nonce_of(report_data)) == 32
