"""Arm CCA's example tokens: their verdicts, and what becomes of them when anything about them changes."""

import hashlib
import json

import cbor2
import pytest
from folder import needs_vectors, read, sets_of

from confed.attestation.evidence import Expectation
from confed.attestation.policy import arm_cca as policy
from confed.attestation.tee import arm_cca
from confed.errors import (
    AlgorithmError,
    AttestationError,
    BindingMismatchError,
    EndorsementFormatError,
    EndorsementMismatchError,
    EvidenceFormatError,
    EvidenceSignatureError,
    EvidenceVersionError,
    KeyBindingError,
    MissingClaimError,
    MissingEndorsementError,
    NonceError,
    TrailingBytesError,
)

pytestmark = needs_vectors

SETS = sets_of("cca")
TRUSTEE, VERAISON = (read(SETS[name]["evidence"]) if SETS else b"" for name in ("cca/trustee", "cca/veraison"))
CPAK = read("cca/trustee/cpak-pub.json") if SETS else b"{}"


def verify(data, endorsements=(CPAK,), *, nonce=None, report_data=None):
    expectation = Expectation(nonce=nonce, report_data=report_data)
    return arm_cca.verify_files(data, endorsements, expectation=expectation, now=None, anchors=None)


def test_all_sets_are_here():
    assert sorted(SETS) == ["cca/trustee", "cca/veraison"]


def test_trustees_token_is_genuine_under_its_platform_key():
    found = verify(TRUSTEE)
    challenge = "57e979ae2618de0c1ab73144c440d741cf9236dc9d52ed190053382a4d190252f9f0370403c35dcb155fb4362d73c66d5b0494bf939315d3dc52b8cdc8b85a96"
    assert found.realm.challenge.hex() == challenge
    assert found.platform.lifecycle == 0x3003
    assert (found.experimental, found.secured) == (True, True)
    assert [component.kind for component in found.platform.software][:3] == ["RSE_BL1_2", "RSE_BL2", "RSE_S"]
    assert verify(TRUSTEE, nonce=bytes.fromhex(challenge), report_data=bytes.fromhex(challenge)) == found
    policy.require_defaults(found)


def test_trustees_own_list_of_platform_keys_is_read():
    assert verify(TRUSTEE, (read("cca/trustee/tastore.json"),)) == verify(TRUSTEE)


def test_trustees_firmware_is_what_its_reference_values_say():
    claims = json.loads(read("cca/trustee/rvstore.json"))["platform"]
    (entry,) = [
        entry for entry in claims if entry["implementation-id"] == verify(TRUSTEE).platform.implementation_id.hex()
    ]
    wanted = {item["component-type"]: (item["measurement-value"], item["signer-id"]) for item in entry["sw-components"]}
    software = verify(TRUSTEE).platform.software
    assert {part.kind: (part.measurement.hex(), part.signer.hex()) for part in software} == wanted


def test_veraisons_platform_key_is_not_there():
    for endorsements, error in (
        ((), MissingEndorsementError),
        ((CPAK,), AlgorithmError),
        ((read("cca/trustee/tastore.json"),), EndorsementMismatchError),
    ):
        with pytest.raises(AttestationError) as caught:
            verify(VERAISON, endorsements)
        assert type(caught.value) is error


def test_reference_values_are_no_platform_keys():
    for name in ("cca/trustee/rvstore.json", "cca/trustee/cca-claims.json"):
        with pytest.raises(EndorsementFormatError):
            verify(TRUSTEE, (read(name),))


def test_another_challenge_is_refused():
    with pytest.raises(NonceError):
        verify(TRUSTEE, nonce=b"n" * 64)
    with pytest.raises(BindingMismatchError):
        verify(TRUSTEE, report_data=b"n" * 64)


def rebuilt(data, *, realm=None, platform=None):
    """Return a token with claims changed and the signatures left as they were; ``None`` leaves a claim out."""
    parts = dict(cbor2.loads(data).value)
    for label, changes in ((44234, platform), (44241, realm)):
        if changes:
            header, unprotected, payload, signature = cbor2.loads(parts[label]).value
            claims = {key: value for key, value in (dict(cbor2.loads(payload)) | changes).items() if value is not None}
            parts[label] = cbor2.dumps(cbor2.CBORTag(18, [header, unprotected, cbor2.dumps(claims), signature]))
    return cbor2.dumps(cbor2.CBORTag(399, parts))


def other_half(label):
    parts, others = dict(cbor2.loads(TRUSTEE).value), cbor2.loads(VERAISON).value
    return cbor2.dumps(cbor2.CBORTag(399, parts | {label: others[label]}))


CHANGES = {
    "another challenge": ({"realm": {10: bytes(64)}}, EvidenceSignatureError),
    "another personalization value": ({"realm": {44235: b"p" * 64}}, EvidenceSignatureError),
    "another RIM": ({"realm": {44238: bytes(64)}}, EvidenceSignatureError),
    "another REM": ({"realm": {44239: [b"r" * 64] + [bytes(64)] * 3}}, EvidenceSignatureError),
    "another hash of the Realm": ({"realm": {44236: "sha-256"}}, EvidenceSignatureError),
    "a weak hash of the Realm": ({"realm": {44236: "sha-1"}}, AlgorithmError),
    "another hash of the key": ({"realm": {44240: "sha-512"}}, EvidenceSignatureError),
    "a Realm profile": ({"realm": {265: "tag:arm.com,2023:realm#1.0.0"}}, TrailingBytesError),
    "no RIM": ({"realm": {44238: None}}, MissingClaimError),
    "another platform challenge": ({"platform": {10: bytes(32)}}, KeyBindingError),
    "another implementation": ({"platform": {2396: bytes(32)}}, EvidenceSignatureError),
    "another instance": ({"platform": {256: b"\x01" + bytes(32)}}, EvidenceSignatureError),
    "another config": ({"platform": {2401: b""}}, EvidenceSignatureError),
    "another lifecycle": ({"platform": {2395: 0x3004}}, EvidenceSignatureError),
    "a lifecycle of debugging": ({"platform": {2395: 0x4000}}, EvidenceSignatureError),
    "another platform profile": ({"platform": {265: "tag:arm.com,2030:platform"}}, EvidenceVersionError),
    "another service": ({"platform": {2400: "https://other.example"}}, EvidenceSignatureError),
    "another platform hash": ({"platform": {2402: "sha-512"}}, EvidenceSignatureError),
    "other software": ({"platform": {2399: [{2: bytes(32), 5: bytes(32)}]}}, EvidenceSignatureError),
    "no software": ({"platform": {2399: None}}, MissingClaimError),
}


def test_a_token_that_is_built_again_is_the_same():
    assert rebuilt(TRUSTEE) == TRUSTEE


@pytest.mark.parametrize("sentence", CHANGES)
def test_a_changed_token_is_refused(sentence):
    changes, error = CHANGES[sentence]
    with pytest.raises(AttestationError) as caught:
        verify(rebuilt(TRUSTEE, **changes))
    assert type(caught.value) is error


def test_halves_of_two_tokens_do_not_go_together():
    for label in (44234, 44241):
        with pytest.raises(KeyBindingError):
            verify(other_half(label))


def test_a_platform_challenge_over_another_key_is_refused():
    digest = hashlib.sha256(b"\x04" + bytes(96)).digest()
    with pytest.raises(KeyBindingError):
        verify(rebuilt(TRUSTEE, platform={10: digest}))


def test_flipped_truncated_and_extended_tokens_are_refused():
    for index in range(0, len(TRUSTEE), 3):
        with pytest.raises(AttestationError):
            verify(TRUSTEE[:index] + bytes([TRUSTEE[index] ^ 1 << index % 8]) + TRUSTEE[index + 1 :])
        with pytest.raises(EvidenceFormatError):
            verify(TRUSTEE[:index])
    with pytest.raises(TrailingBytesError):
        verify(TRUSTEE + b"\x00")
