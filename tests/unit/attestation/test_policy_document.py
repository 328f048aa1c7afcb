import dataclasses
import datetime
import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_world import FILE, LAST_MOMENT, OTHER, OTHER_PUBLIC, OWNER, OWNER_PUBLIC, RULES, ToyClaims, with_line

from confed import canonical, statement
from confed.attestation.policy import document as documents
from confed.attestation.policy import registry
from confed.attestation.policy.document import LIMIT_BYTES, PolicySignature
from confed.errors import (
    ConfedError,
    DebugError,
    EncodingError,
    MeasurementError,
    PolicyExpiredError,
    PolicyFormatError,
    PolicyMissingError,
    ProfileNotAllowedError,
    SignatureError,
    SizeError,
    TcbError,
)
from confed.manifest import Unchecked

DATA = FILE.encode()
DAY = datetime.timedelta(days=1)
SECOND = datetime.timedelta(seconds=1)


def load(data=DATA):
    return documents.load(data, rules=RULES)


def appraise(claims, document=None, *, profile="toy/1", now=LAST_MOMENT):
    (document or load()).appraise(claims, profile=profile, now=now, rules=RULES)


def test_a_file_gives_its_document():
    found = load()
    assert (found.name, found.profile, found.issued, found.expires) == (
        "toy-2026.1", "toy/1", "2026-11-21", "2027-03-31",
    )  # fmt: skip
    assert found.sources == ("TOY-SB-1, 2026-11-01", "our own build")
    assert found.policy.measurements == ("aa", "bb")
    assert found.policy.minimum_tcb["toy"].svn == 3
    assert found.policy.least == Unchecked(unchecked="minimum_tcb says it for each product")


FORMS = {
    "a key nobody knows": (with_line("single_socket", "single_sokcet"), "policy.single_sokcet", "nearest: single_socket"),
    "a key nobody knows in the head": (with_line("issued", "issed"), "issed", "nearest: issued"),
    "a key nobody knows deep down": (with_line("svn", "snv"), "policy.minimum_tcb.toy.snv", "nearest: svn"),
    "a key that is missing": (with_line("single_socket = true", ""), "policy.single_socket", "a value"),
    "a key that is missing deep down": (with_line("svn = 3", ""), "policy.minimum_tcb.toy.svn", "a value"),
    "no sources": (with_line('["TOY-SB-1, 2026-11-01", "our own build"]', "[]"), "sources", "at least one"),
    "a blank source": (with_line('"our own build"', '" "'), "sources[1]", "text"),
    "an empty list": (with_line('["aa", "bb"]', "[]"), "policy.measurements", "at least one"),
    "an empty table": (
        with_line('[policy.minimum_tcb.toy]\nsvn = 3\nsince = "2026-01"', "[policy.minimum_tcb]"),
        "policy.minimum_tcb", "at least one",
    ),
    "text for a list": (with_line('["aa", "bb"]', '"aa"'), "policy.measurements", "a list"),
    "a number in a list of text": (with_line('["aa", "bb"]', '["aa", 1]'), "policy.measurements[1]", "text"),
    "text for a number": (with_line("svn = 3", 'svn = "3"'), "policy.minimum_tcb.toy.svn", "a whole number"),
    "true for a number": (with_line("svn = 3", "svn = true"), "policy.minimum_tcb.toy.svn", "a whole number"),
    "a fraction for a number": (with_line("svn = 3", "svn = 3.0"), "policy.minimum_tcb.toy.svn", "a whole number"),
    "a number that JSON cannot hold": (with_line("svn = 3", "svn = 9007199254740992"), "policy.minimum_tcb.toy.svn", "2^53"),
    "a date for text": (with_line('since = "2026-01"', "since = 2026-01-01"), "policy.minimum_tcb.toy.since", "text"),
    "left out without a reason": (with_line('unchecked = "minimum_tcb says it for each product"', 'unchecked = " "'), "policy.least.unchecked", "a reason"),
    "left out with true for a reason": (with_line('unchecked = "minimum_tcb says it for each product"', "unchecked = true"), "policy.least.unchecked", "text"),
    "a misspelt table for one left out": (with_line('least = { unchecked = "minimum_tcb says it for each product" }', 'least = { svn = 1, sinc = "x" }'), "policy.least.sinc", "nearest: since"),
    "left out where the class does not allow it": (with_line("single_socket = true", 'single_socket = { unchecked = "why not" }'), "policy.single_socket", "true or false"),
    "a value that the class refuses": (with_line('["aa", "bb"]', '["00"]'), "measurements", "digests of code"),
    "another format": (with_line("confed-appraisal/1", "confed-appraisal/2"), "format", "confed-appraisal/1"),
    "a profile nobody knows": (with_line("toy/1", "toy/2"), "profile", "nearest: toy/1"),
    "no name": (with_line('"toy-2026.1"', '""'), "name", "lower-case"),
    "a name with a path in it": (with_line('"toy-2026.1"', '"../toy"'), "name", "lower-case"),
    "a date in another form": (with_line('issued = "2026-11-21"', 'issued = "21.11.2026"'), "issued", "YYYY-MM-DD"),
    "a date that is none": (with_line('issued = "2026-11-21"', 'issued = "2026-02-30"'), "issued", "YYYY-MM-DD"),
    "a date in a form of the week": (with_line('issued = "2026-11-21"', 'issued = "2026-W47-6"'), "issued", "YYYY-MM-DD"),
    "a date of TOML's own": (with_line('issued = "2026-11-21"', "issued = 2026-11-21"), "issued", "text"),
    "an end before the start": (with_line('"2027-03-31"', '"2026-11-20"'), "expires", "2026-11-21"),
    "an end that is too far": (with_line('"2027-03-31"', '"2028-11-22"'), "expires", "731 days"),
    "a policy of another kind": (with_line("[policy]\n", "policy = 1\n[policies]\n").replace(b"[policy.min", b"[min"), "policies", "nearest: policy"),
    "TOML that is none": (b"format = ", "policy file", "TOML"),
    "a key twice": (with_line("single_socket = true", "single_socket = true\nsingle_socket = false"), "policy file", "TOML"),
    "bytes that are no text": (b"\xff", "policy file", "TOML"),
    "nothing": (b"", "policy file", "at least one entry"),
    "a number without end": (with_line("svn = 3", f"svn = {'9' * 5000}"), "policy file", "TOML"),
    "nine levels": (with_line("least = {", "deep = [[[[[[[1]]]]]]]\nleast = {"), "policy.deep[0][0][0][0][0][0]", "levels"),
    "a file too large": (DATA + b"#" * LIMIT_BYTES, "policy file in bytes", "at most"),
    "a line too long": (DATA + b"#" * 8193, "line 17 in bytes", "at most 8192"),
    "a key without end": (DATA + b"a" + b".a" * 65 + b" = 1", "line 17, dots", "at most 64"),
    "text without end": (with_line('since = "2026-01"', f'since = "{"x" * 2001}"'), "policy.minimum_tcb.toy.since", "at most 2000"),
}  # fmt: skip


@pytest.mark.parametrize(("data", "field", "expected"), FORMS.values(), ids=FORMS.keys())
def test_a_file_is_refused_with(data, field, expected):
    with pytest.raises(PolicyFormatError) as caught:
        load(data)
    assert type(caught.value) is PolicyFormatError
    assert caught.value.field == field
    assert expected in str(caught.value.expected)
    assert len(str(caught.value)) < 700


def test_a_faulty_file_is_a_user_s_mistake():
    assert PolicyFormatError.exit_code == 2


BOMBS = {
    "one table with a long name and many lines": b"[a"
    + b".a" * 63
    + b"]\n"
    + b"".join(b"k%d=1\n" % n for n in range(28_000)),
    "many keys with many parts": b"".join(b"k%d%s=1\n" % (n, b".a" * 60) for n in range(500)),
    "lists in lists": b"".join(b"k%d=%s%s\n" % (n, b"[" * 4000, b"]" * 4000) for n in range(30)),
    "one long text": b'a="""' + b"\n".join([b"x" * 8000] * 32) + b'"""',
    "many empty tables": b"".join(b"[t%d]\n" % n for n in range(25_000)),
}


@pytest.mark.parametrize("data", BOMBS.values(), ids=BOMBS.keys())
def test_no_file_takes_long_to_refuse(data):
    assert len(data) <= LIMIT_BYTES
    started = time.process_time()
    with pytest.raises(PolicyFormatError):
        load(data)
    assert time.process_time() - started < 10


@given(st.text(max_size=300) | st.text(alphabet='[]{}="\n.#ab1', max_size=300))
@settings(max_examples=300, deadline=None)
def test_no_text_gets_anything_but_a_refusal(text):
    with pytest.raises(PolicyFormatError):
        load(text.encode(errors="surrogatepass"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["unchecked", "svn", "x"]), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(
    st.sampled_from(["format", "sources", "issued", "policy"])
    | st.sampled_from(["least", "measurements", "minimum_tcb"]),
    JSON,
)
@settings(max_examples=200, deadline=None)
def test_no_value_in_any_place_gets_anything_but_a_document_or_a_refusal(key, value):
    table = load().to_table()
    (table if key in table else table["policy"])[key] = value
    try:
        found = documents._read(table, RULES)
    except PolicyFormatError:
        return
    assert documents._read(found.to_table(), RULES) == found


def test_a_document_survives_the_way_into_a_manifest_and_back():
    found = load()
    table = json.loads(found.encoded)
    assert documents.from_table("toy/1", table, rules=RULES) == found == documents.decode(found.encoded, rules=RULES)
    assert found.digest == canonical.digest(found.encoded)
    with pytest.raises(PolicyFormatError) as caught:
        documents.from_table("sev-snp/1", table, rules=RULES)
    assert caught.value.field == "profile"


@pytest.mark.parametrize("data", [b"", b"[]", b"1", b"{}", b'{"format": 1}', b"[" * 5000, b"\xff"])
def test_canonical_json_that_is_no_document_is_refused(data):
    with pytest.raises(PolicyFormatError):
        documents.decode(data, rules=RULES)


@pytest.mark.parametrize("field", ["name", "expires", "sources", "policy"])
def test_the_digest_depends_on_everything_that_a_document_says(field):
    found = load()
    changes = {
        "name": "other", "expires": "2027-03-30", "sources": ("other",),
        "policy": dataclasses.replace(found.policy, single_socket=False),
    }  # fmt: skip
    assert dataclasses.replace(found, **{field: changes[field]}).digest != found.digest


def test_what_a_file_looks_like_does_not_change_the_document_s_digest():
    assert load(DATA + b"# a remark\n").digest == load().digest


def test_a_document_cannot_be_made_for_another_profile_than_its_policy_s():
    with pytest.raises(PolicyFormatError):
        dataclasses.replace(load(), profile="sev-snp/1")
    with pytest.raises(PolicyFormatError):
        dataclasses.replace(load(), policy=None)


def test_a_document_cannot_be_made_without_sources():
    with pytest.raises(PolicyFormatError):
        dataclasses.replace(load(), sources=())


REFUSALS = {
    "debugging": (ToyClaims(debug=True), {}, DebugError),
    "debugging, by an expired policy too": (ToyClaims(debug=True), {"now": LAST_MOMENT + SECOND}, DebugError),
    "other code": (ToyClaims(measurement="cc"), {}, MeasurementError),
    "an old TCB": (ToyClaims(svn=2), {}, TcbError),
    "another kind of TEE": (ToyClaims(), {"profile": "tdx/1"}, ProfileNotAllowedError),
    "a policy past its last day": (ToyClaims(), {"now": LAST_MOMENT + SECOND}, PolicyExpiredError),
}


@pytest.mark.parametrize(("claims", "changes", "error"), REFUSALS.values(), ids=REFUSALS.keys())
def test_evidence_is_refused_for(claims, changes, error):
    with pytest.raises(error) as caught:
        appraise(claims, **changes)
    assert type(caught.value) is error


def test_a_policy_holds_to_the_end_of_its_last_day_in_utc():
    appraise(ToyClaims())
    elsewhere = LAST_MOMENT.astimezone(datetime.timezone(datetime.timedelta(hours=14)))
    assert elsewhere.date() > LAST_MOMENT.date()
    appraise(ToyClaims(), now=elsewhere)


def test_an_expired_document_can_still_be_read_and_shown():
    found = load(with_line('"2027-03-31"', '"2026-11-22"'))
    assert found.to_table()["expires"] == "2026-11-22"
    with pytest.raises(PolicyExpiredError):
        found.require_current(LAST_MOMENT)


def test_a_kind_without_rules_cannot_be_appraised():
    for call in (registry.require_floors, registry.require_defaults):
        with pytest.raises(PolicyMissingError):
            call("toy/2", ToyClaims(), rules=RULES)
    with pytest.raises(PolicyMissingError):
        registry.appraise("toy/2", ToyClaims(), load().policy, now=LAST_MOMENT, rules=RULES)


def test_a_policy_of_another_class_is_no_policy():
    with pytest.raises(PolicyMissingError):
        registry.appraise("toy/1", ToyClaims(), None, now=LAST_MOMENT, rules=RULES)


def signature_of(data=DATA, key=OWNER):
    return canonical.encode(statement.sign(PolicySignature(policy=canonical.digest(data)), key).to_json())


def changed(**changes):
    return canonical.encode({**json.loads(signature_of()), **changes})


def other_statement(kind):
    @dataclasses.dataclass(frozen=True)
    class Other:
        policy: str
        TYPE = kind

    return canonical.encode(statement.sign(Other(policy=canonical.digest(DATA)), OWNER).to_json())


def test_the_key_that_signed_is_told():
    found = documents.verify_policy_signature(DATA, signature_of(), trusted_keys=[OTHER_PUBLIC, OWNER_PUBLIC])
    assert found == OWNER_PUBLIC


SIGNATURES = {
    "no trusted key": ({"trusted_keys": []}, SignatureError),
    "a signer nobody trusts, who names himself": ({"trusted_keys": [OTHER_PUBLIC]}, SignatureError),
    "another file": ({"data": DATA + b"#"}, SignatureError),
    "a signature over another file": ({"signature_file": signature_of(DATA + b"#")}, SignatureError),
    "a trusted name over another's signature": ({"signature_file": changed(signer=OTHER_PUBLIC.hex())}, SignatureError),
    "another's payload": (
        {"signature_file": changed(payload=json.loads(signature_of(DATA + b"#"))["payload"])}, SignatureError,
    ),
    "no signature": ({"signature_file": changed(signature="")}, SignatureError),
    "another kind of statement": ({"signature_file": other_statement("confed/v1/approval")}, EncodingError),
    "a key too many": ({"signature_file": changed(more="x")}, EncodingError),
    "a number": ({"signature_file": b"1"}, EncodingError),
    "spaces": ({"signature_file": json.dumps(json.loads(signature_of())).encode()}, EncodingError),
    "capitals in hexadecimal": (
        {"signature_file": changed(signature=json.loads(signature_of())["signature"].upper())}, EncodingError,
    ),
    "capitals in the signer": ({"signature_file": changed(signer=OWNER_PUBLIC.hex().upper())}, EncodingError),
    "a space in hexadecimal": ({"signature_file": changed(signer=OWNER_PUBLIC.hex(" "))}, EncodingError),
    # "QQ==" and "QR==" decode to the same byte.
    "loose bits at the end of base64": ({"signature_file": changed(payload="QR==")}, EncodingError),
    "trailing bytes": ({"signature_file": signature_of() + b"\n"}, EncodingError),
    "no file": ({"signature_file": b""}, EncodingError),
    "a file too large": ({"signature_file": b" " * 4097}, SizeError),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "error"), SIGNATURES.values(), ids=SIGNATURES.keys())
def test_a_signature_is_refused_with(changes, error):
    arguments = {"data": DATA, "signature_file": signature_of(), "trusted_keys": [OWNER_PUBLIC], **changes}
    with pytest.raises(error) as caught:
        documents.verify_policy_signature(
            arguments["data"], arguments["signature_file"], trusted_keys=arguments["trusted_keys"]
        )
    assert type(caught.value) is error


@given(st.integers(0, 10_000), st.integers(1, 255))
@settings(max_examples=200, deadline=None)
def test_no_byte_of_a_signature_file_can_be_changed(position, mask):
    data = bytearray(signature_of())
    data[position % len(data)] ^= mask
    with pytest.raises(ConfedError):
        documents.verify_policy_signature(DATA, bytes(data), trusted_keys=[OWNER_PUBLIC])


def test_only_a_policy_can_be_signed():
    assert documents.sign_policy(DATA, OTHER, rules=RULES) == signature_of(key=OTHER)
    with pytest.raises(PolicyFormatError):
        documents.sign_policy(b"anything", OWNER, rules=RULES)


def test_a_signed_file_is_read_after_its_signature_was_checked():
    trusted = {"trusted_keys": [OWNER_PUBLIC], "rules": RULES}
    assert documents.load_signed(DATA, signature_of(), **trusted) == load()
    with pytest.raises(SignatureError):
        documents.load_signed(b"not TOML at all =", signature_of(), **trusted)
    with pytest.raises(PolicyFormatError):
        documents.load_signed(b"not TOML at all =", signature_of(b"not TOML at all ="), **trusted)
