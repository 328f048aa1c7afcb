import base64
import dataclasses
import json

import pytest
from attestation_world import BINDING, NOW, attest
from hypothesis import given, settings
from hypothesis import strategies as st

from confed import canonical
from confed.attestation.evidence import ENVELOPE_LIMIT_BYTES, Binding, Envelope, instance_of
from confed.errors import EvidenceFormatError
from confed.journey import Role

ENVELOPE = attest()
blobs = st.binary(max_size=200)
attachments = st.lists(blobs, max_size=16).map(tuple)


@given(blobs, blobs, attachments, attachments, attachments)
def test_an_envelope_comes_back_as_it_was_sent(evidence, binding, endorsements, event_logs, device_evidence):
    envelope = Envelope(
        profile="tdx/4",
        evidence=evidence,
        binding=binding,
        endorsements=endorsements,
        event_logs=event_logs,
        device_evidence=device_evidence,
    )
    encoded = envelope.encode()
    assert Envelope.decode(encoded) == envelope
    assert Envelope.decode(encoded).encode() == encoded
    assert envelope.digest == canonical.digest(encoded)


@given(
    st.binary(min_size=32, max_size=32),
    st.sampled_from(Role),
    st.text(min_size=1, max_size=40, alphabet=st.characters(exclude_categories=["Cs"])),
    st.integers(0, 2**53 - 1),
)
def test_a_binding_comes_back_as_it_was_sent(nonce, role, run, issued_at):
    binding = dataclasses.replace(BINDING, nonce=nonce, role=role, run=run, issued_at=issued_at)
    assert Binding.decode(binding.encoded) == binding


@settings(max_examples=300)
@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_refused_by_name(data):
    for decode in (Envelope.decode, Binding.decode):
        with pytest.raises(EvidenceFormatError):
            decode(data)


def edited(**changes) -> bytes:
    return canonical.encode({**json.loads(ENVELOPE.encode()), **changes})


def without(name: str) -> bytes:
    value = json.loads(ENVELOPE.encode())
    del value[name]
    return canonical.encode(value)


# "QQ==" and "QR==" decode to the same byte.
FORMS = {
    "an unknown field": edited(comment="hello"),
    "a missing field": without("event_logs"),
    "a trailing byte": ENVELOPE.encode() + b" ",
    "a trailing document": ENVELOPE.encode() + b"{}",
    "white space": json.dumps(json.loads(ENVELOPE.encode()), sort_keys=True).encode(),
    "another order of keys": json.dumps(
        dict(sorted(json.loads(ENVELOPE.encode()).items(), reverse=True)), separators=(",", ":")
    ).encode(),
    "a key twice": ENVELOPE.encode().replace(b'{"binding"', b'{"binding":"","binding"', 1),
    "another spelling of base64": edited(evidence="QR=="),
    "base64 with a line break": edited(evidence="QUFB\n"),
    "bytes that are not text": edited(evidence=7),
    "a list that is none": edited(endorsements="QQ=="),
    "a list of something else": edited(endorsements=[7]),
    "a profile that is no name": edited(profile="../etc"),
    "a profile that is no text": edited(profile=None),
    "too many endorsements": edited(endorsements=["QQ=="] * 17),
    "too many event logs": edited(event_logs=["QQ=="] * 17),
    "too much device evidence": edited(device_evidence=["QQ=="] * 17),
    "more than a mebibyte": edited(evidence=base64.b64encode(bytes(ENVELOPE_LIMIT_BYTES)).decode()),
    "a list at the top": b"[]",
    "a lone surrogate as a key": b'{"\\ud800":1}',
    "a deep nest": b"[" * 100_000,
    "nothing": b"",
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_an_envelope_of_another_form_is_refused(form):
    with pytest.raises(EvidenceFormatError):
        Envelope.decode(form)


def test_an_envelope_beyond_a_mebibyte_is_not_sent_either():
    with pytest.raises(EvidenceFormatError):
        dataclasses.replace(ENVELOPE, evidence=bytes(ENVELOPE_LIMIT_BYTES)).encode()


BINDINGS = {
    "a short nonce": {"nonce": b"n" * 31},
    "a long nonce": {"nonce": b"n" * 33},
    "an audience that is no digest": {"audience": "3C" * 32},
    "a manifest that is no digest": {"manifest": "2b" * 31},
    "a digest with a line break": {"manifest": "2b" * 32 + "\n"},
    "an HPKE key of another size": {"hpke_public": b"h" * 32},
    "a signing key of another size": {"signing_public": b"s" * 33},
    "no run": {"run": ""},
    "a run without end": {"run": "r" * 257},
    "a time before time": {"issued_at": -1},
    "a time beyond JSON": {"issued_at": 2**53},
    "a profile without a version": {"profile": "simulated"},
}


@pytest.mark.parametrize("changes", BINDINGS.values(), ids=BINDINGS.keys())
def test_a_binding_of_another_form_is_refused(changes):
    with pytest.raises(EvidenceFormatError):
        dataclasses.replace(BINDING, **changes)


OTHERS = {
    "profile": "tdx/4",
    "nonce": b"m" * 32,
    "audience": "4d" * 32,
    "manifest": "5e" * 32,
    "role": Role.AGGREGATOR,
    "run": "digits-2",
    "hpke_public": b"i" * 1216,
    "signing_public": b"t" * 32,
    "issued_at": NOW + 1,
}


@pytest.mark.parametrize("name", OTHERS)
def test_report_data_depends_on_every_part_of_the_binding(name):
    assert set(OTHERS) == {field.name for field in dataclasses.fields(Binding)}
    other = dataclasses.replace(BINDING, **{name: OTHERS[name]})
    assert len(BINDING.report_data()) == 64
    assert other.report_data() != BINDING.report_data()
    assert other.digest != BINDING.digest


def test_report_data_depends_on_device_evidence():
    plain = Envelope(profile="tdx/4", evidence=b"", binding=BINDING.encoded)
    one = dataclasses.replace(plain, device_evidence=(b"ab",))
    two = dataclasses.replace(plain, device_evidence=(b"a", b"b"))
    assert plain.device_digest == b""
    assert len({BINDING.report_data(envelope.device_digest) for envelope in (plain, one, two)}) == 3


def test_an_instance_is_named_by_both_of_its_keys():
    assert BINDING.instance == instance_of(BINDING.hpke_public, BINDING.signing_public)
    names = {instance_of(b"ab", b"c"), instance_of(b"a", b"bc"), instance_of(b"ab", b"d"), instance_of(b"bb", b"c")}
    assert len(names) == 4
