import base64
import dataclasses
import json

import pytest
from attestation_world import BINDING, CLAIMS, MANIFEST, NOW
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from joserfc import jws
from joserfc.jwk import OctKey, OKPKey

from confed import canonical, errors, record
from confed.attestation import ear
from confed.attestation.ear import BUILD, DEVELOPER, Outcome, issue, key_id, verify
from confed.attestation.ear_claims import FLOORS, EarClaims
from confed.attestation.trustworthiness import Tier, Vector, of_refusal, tier_of, worst
from confed.attestation.verifier import DeviceClaims
from confed.errors import (
    AlgorithmError,
    AppraisalError,
    BindingMismatchError,
    ConfedError,
    DebugError,
    EncodingError,
    MeasurementError,
    NonceError,
    PlatformError,
    PolicyMissingError,
    SignatureError,
    SimulatedInProductionError,
    SizeError,
    StaleEvidenceError,
    TcbError,
)
from confed.manifest import Unchecked

KEY = Ed25519PrivateKey.from_private_bytes(b"v" * 32)
PUBLIC = KEY.public_key().public_bytes_raw()
ATTACKER = Ed25519PrivateKey.from_private_bytes(b"a" * 32)
KEYS = {key_id(PUBLIC): PUBLIC}
POLICY = "4d" * 32
HARDWARE = dataclasses.replace(
    CLAIMS, profile="sev-snp/1", evidence_class="amd-sev-snp", hardware_rooted=True, environment=""
)
GPU = DeviceClaims(profile="nvidia-gpu/1", details=None)
WITH_GPU = dataclasses.replace(HARDWARE, devices=(GPU,))
ACCEPTED = Outcome(refusal=None, policy=POLICY)
HEADER = {"alg": "Ed25519", "kid": key_id(PUBLIC), "typ": "eat+jwt"}


def token_of(claims=HARDWARE, outcomes=None, **changes):
    arguments = {"signing_key": KEY, "audience": "broker", "now_ms": NOW, "lifetime_s": 600, **changes}
    profiles = [claims.profile, *(device.profile for device in claims.devices)]
    return issue(claims, outcomes=outcomes or dict.fromkeys(profiles, ACCEPTED), **arguments)


def check(token, **changes):
    arguments = {"keys": KEYS, "audience": "broker", "nonce": BINDING.nonce, "now_ms": NOW, **changes}
    return verify(token, **arguments)


def refused(*refusals, claims=WITH_GPU):
    profiles = [claims.profile, *(device.profile for device in claims.devices)]
    outcomes = {
        profile: Outcome(refusal=refusal, policy=POLICY) for profile, refusal in zip(profiles, refusals, strict=True)
    }
    return check(token_of(claims, outcomes))


def encode(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def decode(text):
    return json.loads(base64.urlsafe_b64decode(text + "=="))


PAYLOAD = decode(token_of(WITH_GPU).split(".")[1])


def forged(payload=PAYLOAD, *, key=KEY, **header):
    """A token that the verifier signed, whatever stands in it."""
    head = encode(canonical.encode({**HEADER, **header}))
    body = encode(payload if isinstance(payload, bytes) else canonical.encode(payload))
    return f"{head}.{body}.{encode(key.sign(f'{head}.{body}'.encode()))}"


def changed(path, value, payload=PAYLOAD):
    copy = json.loads(json.dumps(payload))
    inner = copy
    for name in path[:-1]:
        inner = inner[name]
    if value is None:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return copy


def test_accepted_hardware_is_affirmed_in_what_was_looked_at_and_in_nothing_else():
    found = check(token_of())
    found.require_affirming()
    assert found.ear_status == found.submods["cpu"].ear_status == Tier.AFFIRMING
    assert found.submods["cpu"].ear_trustworthiness_vector == {
        "instance-identity": 0, "configuration": 2, "executables": 3, "file-system": 0,
        "hardware": 2, "runtime-opaque": 2, "storage-opaque": 0, "sourced-data": 0,
    }  # fmt: skip


def test_a_token_says_who_appraised_whom_for_whom_under_which_policy_and_nonce_and_for_how_long():
    found = check(token_of(WITH_GPU))
    assert (found.iat, found.exp, found.aud) == (NOW // 1000, NOW // 1000 + 600, "broker")
    assert (found.ear_verifier_id.developer, found.ear_verifier_id.build) == (DEVELOPER, BUILD)
    assert base64.urlsafe_b64decode(found.eat_nonce + "=") == BINDING.nonce
    assert record.to_json(found.confed_subject) == {
        "instance": BINDING.instance, "manifest": MANIFEST, "role": "client", "run": "digits-1",
    }  # fmt: skip
    assert set(found.submods) == {"cpu", "nvidia-gpu"}
    for part in found.submods.values():
        assert part.ear_appraisal_policy_ids == (FLOORS, f"sha256:{POLICY}")
        assert part.ear_verifier_claims.evidence == HARDWARE.evidence_digest
    assert found.submods["nvidia-gpu"].ear_verifier_claims.profile == "nvidia-gpu/1"


def test_a_token_has_the_draft_s_profile_and_names():
    assert PAYLOAD["eat_profile"] == "tag:ietf.org,2026:rats/ear#04"
    assert {"iat", "exp", "ear_verifier_id", "ear_status", "eat_nonce", "submods"} <= set(PAYLOAD)
    assert {"ear_status", "ear_trustworthiness_vector", "ear_appraisal_policy_ids"} <= set(PAYLOAD["submods"]["cpu"])


def test_a_token_carries_no_evidence():
    details = {"chip_id": "c0ffee" * 10}
    token = token_of(dataclasses.replace(HARDWARE, details=details, layers=("landlock-7",)))
    body = json.dumps(decode(token.split(".")[1]))
    assert "c0ffee" not in body
    assert "landlock" not in body
    assert HARDWARE.measurement not in body


REFUSALS = {
    "code": (MeasurementError("x"), "executables", 96),
    "debugging": (DebugError("x"), "runtime-opaque", 96),
    "an old TCB": (TcbError("x"), "hardware", 96),
    "a product": (errors.ProductError("x"), "hardware", 97),
    "a chip": (PlatformError("x"), "instance-identity", 97),
    "a configuration": (errors.ConfigurationError("x"), "configuration", 96),
    "an expired policy": (errors.PolicyExpiredError("x"), "configuration", 96),
    "stale evidence": (StaleEvidenceError("x"), "hardware", 99),
}


@pytest.mark.parametrize(("refusal", "claim", "value"), REFUSALS.values(), ids=REFUSALS.keys())
def test_what_was_refused_is_contraindicated_in_the_aspect_that_was_refused(refusal, claim, value):
    found = refused(refusal, claims=HARDWARE)
    assert found.ear_status == found.submods["cpu"].ear_status == Tier.CONTRAINDICATED
    asserted = {name: entry for name, entry in found.submods["cpu"].ear_trustworthiness_vector.items() if entry}
    assert asserted == {claim: value}
    assert found.submods["cpu"].ear_verifier_claims.code == refusal.code
    with pytest.raises(AppraisalError, match=refusal.code):
        found.require_affirming()


def every_refusal(kind=errors.RefusedError):
    return [kind, *(found for child in kind.__subclasses__() for found in every_refusal(child))]


@pytest.mark.parametrize("kind", every_refusal(), ids=lambda kind: kind.__name__)
def test_no_refusal_of_any_class_leaves_less_than_contraindicated(kind):
    assert of_refusal(kind("x")).tier == Tier.CONTRAINDICATED


def test_the_whole_is_as_bad_as_its_worst_part():
    assert refused(None, None).ear_status == Tier.AFFIRMING
    assert refused(None, TcbError("x")).ear_status == Tier.CONTRAINDICATED
    assert refused(TcbError("x"), None).ear_status == Tier.CONTRAINDICATED
    floors = {"sev-snp/1": ACCEPTED, "nvidia-gpu/1": Outcome(refusal=None, policy="")}
    assert check(token_of(WITH_GPU, floors)).ear_status == Tier.WARNING


def test_a_simulated_tee_is_never_affirming():
    found = check(token_of(CLAIMS))
    cpu = found.submods["cpu"]
    assert found.ear_status == cpu.ear_status == Tier.WARNING
    assert cpu.ear_trustworthiness_vector["hardware"] == -33
    assert cpu.ear_trustworthiness_vector["runtime-opaque"] == 0
    assert not cpu.ear_verifier_claims.hardware_rooted
    with pytest.raises(AppraisalError):
        found.require_affirming()


@pytest.mark.parametrize("changes", [{"evidence_class": "simulated"}, {"hardware_rooted": False}])
def test_neither_is_one_that_calls_itself_otherwise(changes):
    found = check(token_of(dataclasses.replace(HARDWARE, **changes)))
    assert found.ear_status == Tier.WARNING
    assert found.submods["cpu"].ear_trustworthiness_vector["runtime-opaque"] == 0


def test_a_simulated_tee_in_production_is_contraindicated():
    assert refused(SimulatedInProductionError("x"), claims=CLAIMS).ear_status == Tier.CONTRAINDICATED


def test_genuine_evidence_without_an_owner_s_policy_is_a_warning():
    found = check(token_of(HARDWARE, {"sev-snp/1": Outcome(refusal=None, policy="")}))
    assert found.ear_status == Tier.WARNING
    assert found.submods["cpu"].ear_appraisal_policy_ids == (FLOORS,)


def test_memory_is_called_opaque_only_where_evidence_says_so():
    nitro = dataclasses.replace(HARDWARE, profile="aws-nitro/1")
    assert check(token_of(nitro)).submods["cpu"].ear_trustworthiness_vector["runtime-opaque"] == 0


def test_a_part_that_nobody_appraised_has_no_token():
    with pytest.raises(PolicyMissingError):
        token_of(WITH_GPU, {"sev-snp/1": ACCEPTED})
    with pytest.raises(PolicyMissingError):
        token_of(WITH_GPU, {"nvidia-gpu/1": ACCEPTED})


@pytest.mark.parametrize("lifetime_s", [0, -1, 86_401])
def test_a_token_lives_at_most_a_day(lifetime_s):
    with pytest.raises(SizeError):
        token_of(lifetime_s=lifetime_s)
    check(token_of(lifetime_s=86_400), now_ms=NOW + 86_399_999)


def test_a_nonce_is_left_unchecked_only_with_a_reason():
    check(token_of(), nonce=Unchecked(unchecked="the relying party asked for no evidence of its own"))


JWK = OKPKey.import_key(ATTACKER.public_key()).as_dict()
ATTACKER_ID = key_id(ATTACKER.public_key().public_bytes_raw())
UNTRUSTED = {
    "a token trusted by the key in its own header": (forged(key=ATTACKER, jwk=JWK), {}, SignatureError),
    "the same with the attacker's key id": (forged(key=ATTACKER, jwk=JWK, kid=ATTACKER_ID), {}, SignatureError),
    "a trusted signature with a key in the header": (forged(jwk=JWK), {}, SignatureError),
    "the address of a key": (forged(jku="https://attacker.example/keys"), {}, SignatureError),
    "a chain": (forged(x5c=["MIIB"]), {}, SignatureError),
    "the address of a chain": (forged(x5u="https://attacker.example/chain"), {}, SignatureError),
    "a demand of its own": (forged(crit=["exp"]), {}, SignatureError),
    "another header": (forged(cty="json"), {}, EncodingError),
    "an unencoded payload": (forged(b64=False), {}, EncodingError),
    "a header without a type": (
        f"{encode(canonical.encode({'alg': 'Ed25519', 'kid': HEADER['kid']}))}.{token_of().partition('.')[2]}", {},
        EncodingError,
    ),
    "another type": (forged(typ="JWT"), {}, EncodingError),
    "no signature at all": (f"{encode(canonical.encode({**HEADER, 'alg': 'none'}))}.{encode(b'{}')}.", {}, AlgorithmError),
    "the public key as a shared secret": (
        jws.serialize_compact({**HEADER, "alg": "HS256"}, canonical.encode(PAYLOAD), OctKey.import_key(PUBLIC)), {},
        AlgorithmError,
    ),
    "an algorithm's old name": (forged(alg="EdDSA"), {}, AlgorithmError),
    "a number as algorithm": (forged(alg=1), {}, AlgorithmError),
    "an unknown key": (forged(kid=ATTACKER_ID, key=ATTACKER), {}, SignatureError),
    "a trusted signature under another key id": (forged(kid=ATTACKER_ID), {}, SignatureError),
    "a list as key id": (forged(kid=[HEADER["kid"]]), {}, SignatureError),
    "no trusted key": (token_of(), {"keys": {}}, SignatureError),
    "a trusted key that is none": (token_of(), {"keys": {key_id(PUBLIC): b"short"}}, SignatureError),
    "another's signature under a trusted key id": (forged(key=ATTACKER), {}, SignatureError),
    "another payload": (
        ".".join([token_of().split(".")[0], encode(canonical.encode(PAYLOAD)), token_of().split(".")[2]]), {},
        SignatureError,
    ),
    "another audience": (token_of(audience="broker-b"), {}, BindingMismatchError),
    "another nonce": (token_of(), {"nonce": b"m" * 32}, NonceError),
    "an expired token": (token_of(), {"now_ms": NOW + 600_000}, StaleEvidenceError),
    "a token from the future": (token_of(), {"now_ms": NOW - 31_000}, StaleEvidenceError),
    "a token that lives for years": (forged(changed(["exp"], NOW)), {}, StaleEvidenceError),
    "a token that ended before it was issued": (
        forged(changed(["exp"], PAYLOAD["iat"] - 10)), {"now_ms": NOW - 20_000}, StaleEvidenceError,
    ),
    "a token that ends as it starts": (forged(changed(["exp"], PAYLOAD["iat"])), {}, StaleEvidenceError),
}  # fmt: skip


@pytest.mark.parametrize(("token", "changes", "error"), UNTRUSTED.values(), ids=UNTRUSTED.keys())
def test_a_token_is_refused_with(token, changes, error):
    with pytest.raises(error) as caught:
        check(token, **changes)
    assert type(caught.value) is error


def test_a_token_is_valid_to_its_last_second_and_half_a_minute_early():
    check(token_of(), now_ms=NOW + 599_999)
    check(token_of(), now_ms=NOW - 30_000)


REFUSED_CPU = refused(DebugError("x"), claims=HARDWARE)
CPU = ["submods", "cpu"]
FORMS = {
    "a claim too many": changed(["more"], 1),
    "a claim too few": changed(["eat_nonce"], None),
    "a claim too many in a part": changed([*CPU, "more"], 1),
    "another profile": changed(["eat_profile"], "tag:github.com,2023:veraison/ear"),
    "no parts": changed(["submods"], {}),
    "too many parts": changed(["submods"], {f"gpu{n}": PAYLOAD["submods"]["cpu"] for n in range(33)}),
    "an unknown status": changed(["ear_status"], "trusted"),
    "a fraction as time": canonical.encode(changed(["iat"], 5)).replace(b'"iat":5', b'"iat":5.5'),
    "text as time": changed(["iat"], "1"),
    "true as time": changed(["iat"], True),
    "a value outside the range": changed([*CPU, "ear_trustworthiness_vector", "hardware"], 128),
    "a vector with a claim of its own": changed([*CPU, "ear_trustworthiness_vector", "luck"], 2),
    "a vector that lacks a claim": changed([*CPU, "ear_trustworthiness_vector", "hardware"], None),
    "no policy": changed([*CPU, "ear_appraisal_policy_ids"], []),
    "affirming over a worse vector": changed([*CPU, "ear_trustworthiness_vector", "hardware"], 32),
    "affirming over nothing asserted": changed([*CPU, "ear_trustworthiness_vector"], dict.fromkeys(Vector().to_json(), 0)),
    "affirming what was refused": changed([*CPU, "ear_verifier_claims", "code"], "debug"),
    "affirming what is simulated": changed([*CPU, "ear_verifier_claims", "evidence_class"], "simulated"),
    "affirming what no hardware vouches for": changed([*CPU, "ear_verifier_claims", "hardware_rooted"], False),
    "affirming without a policy": changed([*CPU, "ear_appraisal_policy_ids"], [FLOORS]),
    "a whole better than its parts": changed(["ear_status"], "affirming", record.to_json(REFUSED_CPU)),
    "a warning over what was refused": changed(
        ["submods", "cpu"], {**record.to_json(REFUSED_CPU)["submods"]["cpu"], "ear_status": "warning"},
    ),
    "a key twice": canonical.encode(PAYLOAD)[:-1] + b',"iat":1}',
    "spaces": json.dumps(PAYLOAD).encode(),
    "a list": [],
    "nothing": b"",
    "depth without end": b"[" * 20_000,
}  # fmt: skip


@pytest.mark.parametrize("payload", FORMS.values(), ids=FORMS.keys())
def test_a_verifier_s_own_signature_does_not_help(payload):
    with pytest.raises(EncodingError):
        check(forged(payload))


SPELLINGS = {
    "a header with a key twice": (
        lambda head, body, tail: (encode(canonical.encode(HEADER)[:-1] + b',"alg":"none"}'), body, tail)
    ),
    "a header with spaces": lambda head, body, tail: (encode(json.dumps(HEADER).encode()), body, tail),
    "a number as header": lambda head, body, tail: (encode(b"1"), body, tail),
    "a list as header": lambda head, body, tail: (encode(b"[]"), body, tail),
    "padding": lambda head, body, tail: (head + "=", body, tail),
    "another base64 spelling": lambda head, body, tail: (head, body, tail[:-1] + chr(ord(tail[-1]) + 1)),
    "a character that base64 has not": lambda head, body, tail: (head, body[:-1] + "!", tail),
    "a part too many": lambda head, body, tail: (head, body, tail, ""),
    "a part too few": lambda head, body, tail: (head, body),
    "one part": lambda head, body, tail: (head,),
    "letters beyond ASCII": lambda head, body, tail: (head, body, tail + "é"),
}


@pytest.mark.parametrize("spell", SPELLINGS.values(), ids=SPELLINGS.keys())
def test_a_token_has_one_spelling(spell):
    with pytest.raises(EncodingError):
        check(".".join(spell(*token_of().split("."))))


def test_a_token_s_size_is_bounded():
    with pytest.raises(SizeError):
        check("a" * 32_769)
    with pytest.raises(SizeError):
        check(forged(kid="k" * 600))


@given(
    st.text(max_size=200) | st.binary(max_size=200).map(lambda data: f"{encode(data)}.{encode(data)}.{encode(data)}")
)
@settings(max_examples=300, deadline=None)
def test_no_text_gets_anything_but_a_refusal(text):
    with pytest.raises(ConfedError):
        check(text)


@given(st.integers(0, 10_000), st.integers(1, 127))
@settings(max_examples=300, deadline=None)
def test_no_character_of_a_token_can_be_changed(position, shift):
    token = token_of(WITH_GPU)
    position %= len(token)
    other = chr((ord(token[position]) + shift) % 128)
    with pytest.raises(ConfedError):
        check(token[:position] + other + token[position + 1 :])


@given(st.integers(-128, 127), st.integers(-128, 127))
@settings(max_examples=300, deadline=None)
def test_a_vector_stands_in_the_worst_tier_of_what_it_asserts(hardware, executables):
    found = Vector(hardware=hardware, executables=executables).tier
    asserted = [tier_of(value) for value in (hardware, executables) if value]
    assert found == (worst(*asserted) if asserted else Tier.NONE)
    assert Vector.from_json(Vector(hardware=hardware).to_json()) == Vector(hardware=hardware)


@pytest.mark.parametrize("value", [-129, 128])
def test_a_claim_s_value_is_a_signed_byte(value):
    with pytest.raises(EncodingError):
        Vector(hardware=value)


def test_no_assertion_is_less_than_affirming_and_a_warning_less_than_that():
    assert worst(Tier.AFFIRMING, Tier.NONE) == Tier.NONE
    assert worst(Tier.WARNING, Tier.NONE) == Tier.WARNING
    assert worst(Tier.WARNING, Tier.CONTRAINDICATED) == Tier.CONTRAINDICATED


def test_the_tiers_begin_and_end_where_the_draft_says():
    bounds = {
        Tier.NONE: (-1, 0, 1), Tier.AFFIRMING: (2, 31, -2, -32), Tier.WARNING: (32, 95, -33, -96),
        Tier.CONTRAINDICATED: (96, 127, -97, -128),
    }  # fmt: skip
    for tier, values in bounds.items():
        assert {tier_of(value) for value in values} == {tier}


def test_a_token_read_is_the_token_written():
    found = check(token_of(WITH_GPU))
    assert record.to_json(found) == PAYLOAD
    assert isinstance(found, EarClaims)
    assert ear.LIFETIME_LIMIT_S == 86_400
