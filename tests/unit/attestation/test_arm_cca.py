"""Arm CCA tokens under keys that the test makes: every refusal with its class, and what a policy accepts."""

import contextlib
import dataclasses
import json

import cbor2
import pytest
from attestation_world import BINDING
from cca_world import (
    CHALLENGE,
    COMPONENTS,
    CPAK,
    IMPLEMENTATION,
    INSTANCE,
    KEY,
    OLD_PLATFORM_PROFILE,
    OTHER_KEY,
    PERSONALIZATION,
    PLATFORM_PROFILE,
    RAK,
    REALM_PROFILE,
    REMOVED,
    RIM,
    collection,
    cose_key,
    entry,
    jwk,
    platform,
    platform_token,
    point,
    realm,
    sign,
    spki,
    token,
    verify,
)
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from confed import record
from confed.attestation.evidence import Envelope, Expectation
from confed.attestation.policy.arm_cca import CcaFirmware, CcaPolicy, appraise, require_defaults, require_floors
from confed.attestation.tee.arm_cca import PROFILE, CcaVerifier
from confed.errors import (
    AlgorithmError,
    AttestationError,
    BindingMismatchError,
    ConfigurationError,
    EndorsementFormatError,
    EndorsementMismatchError,
    EvidenceFormatError,
    EvidenceSignatureError,
    EvidenceSizeError,
    EvidenceVersionError,
    ExperimentalError,
    FirmwareError,
    KeyBindingError,
    LifecycleError,
    MeasurementError,
    MissingClaimError,
    MissingEndorsementError,
    NonceError,
    PlatformError,
    PlatformInfoError,
    PolicyFormatError,
    ProductError,
    RegisterError,
    ReportVersionError,
    TrailingBytesError,
    TrustAnchorError,
)
from confed.manifest import Unchecked

GOOD = token()


def test_a_genuine_token_gives_its_claims():
    found = verify(GOOD)
    assert (found.experimental, found.secured) == (True, True)
    assert (found.realm.challenge, found.realm.personalization_value) == (CHALLENGE, PERSONALIZATION)
    assert found.realm.initial_measurement == RIM
    assert [rem[0] for rem in found.realm.extensible_measurements] == [1, 2, 3, 4]
    assert (found.platform.implementation_id, found.platform.instance_id) == (IMPLEMENTATION, INSTANCE)
    assert [component.kind for component in found.platform.software] == ["BL", "RMM"]
    assert (found.platform.software[1].version, found.platform.software[1].hash_algorithm) == ("", "")
    json.dumps(record.to_json(found))


def test_tokens_of_before_1_0_carry_a_bare_point():
    old = token(profile=REMOVED, key=point(), platform_changes={"profile": OLD_PLATFORM_PROFILE, "service": REMOVED})
    assert verify(old).realm.profile == ""
    with pytest.raises(EvidenceFormatError):
        verify(token(profile=REMOVED))
    with pytest.raises(EvidenceFormatError):
        verify(token(key=point()))


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()])
def test_keys_of_each_curve_sign_with_its_algorithm(curve):
    key = ec.generate_private_key(curve)
    made = token(realm_key=key, key=cose_key(key), platform_key=key, key_hash="sha-512")
    assert verify(made, endorsements=(json.dumps(jwk(key)).encode(),))


def test_a_cose_key_may_name_its_algorithm():
    assert verify(token(key=cose_key(alg=-35)))


def test_halves_may_be_without_their_tag():
    bound = realm()
    assert verify(collection(sign(platform(bound), CPAK, tag=b""), sign(bound, RAK, tag=b"")))


def halves(**changes):
    bound = realm()
    parts = {"platform_token": sign(platform(bound), CPAK), "realm_token": sign(bound, RAK), **changes}
    return collection(parts.pop("platform_token"), parts.pop("realm_token"), **parts)


def point_off_its_curve():
    encoded = point()
    return encoded[:-1] + bytes([encoded[-1] ^ 1])


P256 = ec.generate_private_key(ec.SECP256R1())
BIG = [{2: bytes(32), 5: bytes(32)}] * 65
REFUSED = {
    # 1. collection and form
    "no tag": (GOOD[3:], EvidenceFormatError),
    "another tag": (b"\xd9\x01\x90" + GOOD[3:], EvidenceFormatError),
    "a tag in a longer form": (b"\xda\x00\x00\x01\x8f" + GOOD[3:], EvidenceFormatError),
    "a collection that is a list": (b"\xd9\x01\x8f" + cbor2.dumps([1]), EvidenceFormatError),
    "a third token": (halves(**{"44242": b""}), EvidenceFormatError),
    "a platform token alone": (b"\xd9\x01\x8f" + cbor2.dumps({44234: b""}), EvidenceFormatError),
    "a token that is text": (halves(realm_token="token"), EvidenceFormatError),
    "the halves swapped": (collection(sign(realm(), RAK), sign(platform(realm()), CPAK)), MissingClaimError),
    "a byte after the token": (GOOD + b"\x00", TrailingBytesError),
    "a byte after a half": (halves(realm_token=sign(realm(), RAK) + b"\x00"), TrailingBytesError),
    "a token above its bound": (b"\xd9\x01\x8f" + bytes(100_000), EvidenceSizeError),
    "an unprotected header": (halves(realm_token=sign(realm(), RAK, unprotected={1: -35})), EvidenceFormatError),
    "an algorithm of symmetric keys": (halves(realm_token=sign(realm(), RAK, protected=cbor2.dumps({1: 5}))), AlgorithmError),
    "claims that are no map": (halves(realm_token=sign([1], RAK)), EvidenceFormatError),
    "claims without length": (halves(realm_token=sign(b"\xbf\xff", RAK)), EvidenceFormatError),
    # Realm claims
    **{
        f"no Realm {name}": (token(**{name: REMOVED}), MissingClaimError)
        for name in ("challenge", "personalization", "hash", "key", "rim", "rems", "key_hash")
    },
    **{
        f"a null Realm {name}": (token(**{name: None}), EvidenceFormatError)
        for name in ("profile", "challenge", "personalization", "key", "rim", "rems")
    },
    "an unknown Realm claim": (token(extra=1), EvidenceFormatError),
    "another Realm profile": (token(profile="tag:arm.com,2025:realm#2.0.0"), EvidenceVersionError),
    "a Realm profile of bytes": (token(profile=b"tag"), EvidenceFormatError),
    "a challenge of 32 bytes": (token(challenge=bytes(32)), EvidenceFormatError),
    "a personalization value of 32 bytes": (token(personalization=bytes(32)), EvidenceFormatError),
    "a RIM of 20 bytes": (token(rim=bytes(20)), EvidenceFormatError),
    "three REMs": (token(rems=[bytes(64)] * 3), EvidenceFormatError),
    "five REMs": (token(rems=[bytes(64)] * 5), EvidenceFormatError),
    "a REM of another size than RIM": (token(rems=[bytes(32)] + [bytes(64)] * 3), EvidenceFormatError),
    "measurements by SHA-1": (token(hash="sha-1"), AlgorithmError),
    "a hash by number": (token(hash=-16), AlgorithmError),
    "a key hashed with SHA-1": (token(key_hash="sha-1"), AlgorithmError),
    # the Realm's key
    "a key that is text": (token(key="key"), EvidenceFormatError),
    "an empty key": (token(key=b""), EvidenceFormatError),
    "a key above its bound": (token(key=bytes(513)), EvidenceFormatError),
    "a COSE_Key without y": (token(key=cose_key(y=REMOVED)), EvidenceFormatError),
    "a COSE_Key with more in it": (token(key=cose_key(extra=b"kid")), EvidenceFormatError),
    "a COSE_Key of another type": (token(key=cose_key(kty=1)), EvidenceFormatError),
    "a COSE_Key whose type is text": (token(key=cose_key(kty="EC2")), EvidenceFormatError),
    "a COSE_Key on an unknown curve": (token(key=cose_key(crv=8)), EvidenceFormatError),
    "a COSE_Key whose curve is text": (token(key=cose_key(crv="P-384")), EvidenceFormatError),
    "a COSE_Key for another algorithm": (token(key=cose_key(alg=-7)), AlgorithmError),
    "a COSE_Key with y as a sign": (token(key=cose_key(y=True)), EvidenceFormatError),
    "a COSE_Key with a short coordinate": (token(key=cose_key(x=bytes(47))), EvidenceFormatError),
    "a COSE_Key off its curve": (token(key=cose_key(y=bytes(48))), EvidenceFormatError),
    "a COSE_Key with bytes at its end": (token(key=cose_key() + b"\x00"), TrailingBytesError),
    "a point off its curve": (token(profile=REMOVED, key=point_off_its_curve()), EvidenceFormatError),
    "a compressed point": (token(profile=REMOVED, key=b"\x02" + point()[1:49]), EvidenceFormatError),
    "a point of another curve": (token(profile=REMOVED, key=point(P256)), EvidenceFormatError),
    "a Realm key of another curve than its signature's": (token(key=cose_key(P256)), AlgorithmError),
    # platform claims
    **{
        f"no platform {name}": (platform_token(**{name: REMOVED}), MissingClaimError)
        for name in ("profile", "challenge", "implementation", "instance", "config", "lifecycle", "software", "hash")
    },
    "an unknown platform claim": (platform_token(extra=1), EvidenceFormatError),
    "another platform profile": (platform_token(profile="tag:arm.com,2025:cca_platform#2.0.0"), EvidenceVersionError),
    "a platform challenge of 20 bytes": (platform_token(challenge=bytes(20)), EvidenceFormatError),
    "an implementation of 31 bytes": (platform_token(implementation=bytes(31)), EvidenceFormatError),
    "an instance of 32 bytes": (platform_token(instance=INSTANCE[:32]), EvidenceFormatError),
    "an instance of another type": (platform_token(instance=b"\x02" + INSTANCE[1:]), EvidenceFormatError),
    "a config that is text": (platform_token(config="0102"), EvidenceFormatError),
    "a config above its bound": (platform_token(config=bytes(1025)), EvidenceFormatError),
    "a lifecycle above 16 bits": (platform_token(lifecycle=0x10000), EvidenceFormatError),
    "a negative lifecycle": (platform_token(lifecycle=-1), EvidenceFormatError),
    "a lifecycle that is true": (platform_token(lifecycle=True), EvidenceFormatError),
    "no software": (platform_token(software=[]), EvidenceFormatError),
    "software in a map": (platform_token(software={1: COMPONENTS[0]}), EvidenceFormatError),
    "more software than the bound": (platform_token(software=BIG), EvidenceSizeError),
    "software without measurement": (platform_token(software=[{5: bytes(32)}]), MissingClaimError),
    "software without signer": (platform_token(software=[{2: bytes(32)}]), MissingClaimError),
    "software with an unknown field": (platform_token(software=[{2: bytes(32), 5: bytes(32), 3: 1}]), EvidenceFormatError),
    "software that is text": (platform_token(software=["BL"]), EvidenceFormatError),
    "software measured by SHA-1": (platform_token(software=[{2: bytes(32), 5: bytes(32), 6: "sha-1"}]), AlgorithmError),
    "a measurement of 20 bytes": (platform_token(software=[{2: bytes(20), 5: bytes(32)}]), EvidenceFormatError),
    "a type of software that is empty": (platform_token(software=[{1: "", 2: bytes(32), 5: bytes(32)}]), EvidenceFormatError),
    "a null type of software": (platform_token(software=[{1: None, 2: bytes(32), 5: bytes(32)}]), EvidenceFormatError),
    "a service that is no text": (platform_token(service=7), EvidenceFormatError),
    "a platform hash of SHA-1": (platform_token(hash="sha-1"), AlgorithmError),
    # 2. to 4.
    "a Realm token of another signer": (token(realm_key=OTHER_KEY), EvidenceSignatureError),
    "a key that the platform does not vouch for": (
        halves(realm_token=sign(realm(key=cose_key(OTHER_KEY)), OTHER_KEY)), KeyBindingError,
    ),
    "the same key hashed with another algorithm": (
        halves(realm_token=sign(realm(key_hash="sha-512"), RAK)), KeyBindingError,
    ),
    "a challenge of zeros": (platform_token(challenge=bytes(32)), KeyBindingError),
    "a platform token of another signer": (token(platform_key=OTHER_KEY), EvidenceSignatureError),
    "a platform token that the Realm's key signed": (token(platform_key=RAK), EvidenceSignatureError),
    "a platform key on another curve": (token(platform_key=P256), AlgorithmError),
}  # fmt: skip


@pytest.mark.parametrize("sentence", REFUSED)
def test_a_token_is_refused_with(sentence):
    data, error = REFUSED[sentence]
    with pytest.raises(AttestationError) as caught:
        verify(data)
    assert type(caught.value) is error


ENDORSED = {
    "a JSON Web Key": KEY,
    "a JSON Web Key with its use": json.dumps(jwk(use="sig", kid="cpak", alg="ES384")).encode(),
    "a list with this platform's": json.dumps([entry()]).encode(),
    "a list with others too": json.dumps([entry(OTHER_KEY, **{"instance-id": "01" + "77" * 32}), entry()]).encode(),
    "PEM": spki(form="PEM"),
    "DER": spki(),
}
UNUSABLE = {
    "nothing": ((), MissingEndorsementError),
    "another key": ((json.dumps(jwk(OTHER_KEY)).encode(),), EvidenceSignatureError),
    "a key of another curve": ((json.dumps(jwk(P256)).encode(),), AlgorithmError),
    "a key for another instance": (
        (json.dumps([entry(**{"instance-id": "01" + "77" * 32})]).encode(),), EndorsementMismatchError,
    ),
    "a key for another implementation": (
        (json.dumps([entry(**{"implementation-id": "77" * 32})]).encode(),), EndorsementMismatchError,
    ),
    **{
        f"a JSON Web Key with {what}": ((json.dumps(jwk(**changes)).encode(),), EndorsementFormatError)
        for what, changes in {
            "its private part": {"d": "AA"}, "another type": {"kty": "RSA"}, "an unknown curve": {"crv": "secp256k1"},
            "a curve by number": {"crv": 2}, "another curve than its point's": {"crv": "P-256"}, "no y": {"y": REMOVED},
            "y not in base64": {"y": "*" * 64}, "y in letters beyond ASCII": {"y": "é" * 64}, "y that is no text": {"y": 7},
            "y of zeros": {"y": "A" * 64}, "y in the other alphabet": {"y": "+" + "A" * 63},
        }.items()
    },
    **{
        f"{what}": ((data,), EndorsementFormatError)
        for what, data in {
            "an empty file": b"", "no JSON": b"key", "JSON that is deep": b"[" * 60_000, "a number": b"7",
            "an empty list": b"[]", "a list of 65": json.dumps([entry()] * 65).encode(),
            "a list of numbers": b"[1]", "a list of bare keys": json.dumps([jwk()]).encode(),
            "an entry with more in it": json.dumps([entry(note="x")]).encode(),
            "an entry whose key is text": json.dumps([entry(pkey="key")]).encode(),
            "an entry whose instance is short": json.dumps([entry(**{"instance-id": "01"})]).encode(),
            "an entry whose instance is no hexadecimal": json.dumps([entry(**{"instance-id": "x" * 66})]).encode(),
            "an entry whose instance is a number": json.dumps([entry(**{"instance-id": 1})]).encode(),
            "a field twice": KEY[:-1] + b', "kty": "EC"}', "a file above its bound": b" " * 70_000 + KEY,
            "DER with bytes at its end": spki() + b"\x00", "DER that is no key": b"\x30\x00",
            "PEM that is no key": b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
            "an RSA key": rsa.generate_private_key(65537, 2048).public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            ),
        }.items()
    },
    "more keys than the bound": ((json.dumps([entry()] * 64).encode(), KEY), EndorsementFormatError),
}  # fmt: skip


@pytest.mark.parametrize("form", ENDORSED)
def test_a_platform_key_may_be_given_as(form):
    assert verify(GOOD, endorsements=(ENDORSED[form],)) == verify(GOOD)


@pytest.mark.parametrize("sentence", UNUSABLE)
def test_a_platform_key_is_refused_that_is(sentence):
    endorsements, error = UNUSABLE[sentence]
    with pytest.raises(AttestationError) as caught:
        verify(GOOD, endorsements=endorsements)
    assert type(caught.value) is error


def test_one_of_several_platform_keys_is_enough():
    assert verify(GOOD, endorsements=(json.dumps(jwk(OTHER_KEY)).encode(), spki(P256), KEY))


def test_where_anchors_are_given_no_other_key_counts():
    assert verify(GOOD, endorsements=(), anchors=(spki(),)) == verify(GOOD)
    assert verify(GOOD, anchors=(spki(), spki(OTHER_KEY))) == verify(GOOD)
    with pytest.raises(TrustAnchorError):
        verify(GOOD, anchors=(spki(OTHER_KEY),))
    with pytest.raises(TrustAnchorError):
        verify(GOOD, anchors=())
    with pytest.raises(MissingEndorsementError):
        verify(GOOD, endorsements=(), anchors=())


def test_an_anchor_is_for_the_platform_that_it_names_whatever_an_endorsement_says():
    of_another = json.dumps([entry(**{"instance-id": "01" + "77" * 32})]).encode()
    assert verify(GOOD, anchors=(json.dumps([entry()]).encode(),)) == verify(GOOD)
    for endorsements in ((), (KEY,), (json.dumps([entry()]).encode(),)):
        with pytest.raises(EndorsementMismatchError):
            verify(GOOD, endorsements=endorsements, anchors=(of_another,))


EXPECTATIONS = {
    "the same challenge": ({"nonce": CHALLENGE, "report_data": CHALLENGE}, {}, None),
    "a challenge that is padded with zeros": ({"nonce": b"n" * 48}, {"challenge": b"n" * 48 + bytes(16)}, None),
    "another nonce": ({"nonce": b"n" * 64}, {}, NonceError),
    "other report data": ({"report_data": b"n" * 64}, {}, BindingMismatchError),
    "a shorter one": ({"report_data": CHALLENGE[:63]}, {}, BindingMismatchError),
    "a longer one": ({"report_data": CHALLENGE + b"\x00"}, {}, BindingMismatchError),
}


@pytest.mark.parametrize("sentence", EXPECTATIONS)
def test_of_what_is_expected(sentence):
    wanted, changes, error = EXPECTATIONS[sentence]
    expectation = Expectation(**{"nonce": None, "report_data": None, **wanted})
    with pytest.raises(error) if error else contextlib.nullcontext():
        verify(token(**changes), expectation=expectation)


def test_a_flipped_bit_anywhere_is_refused():
    for index in range(len(GOOD)):
        with pytest.raises(AttestationError):
            verify(GOOD[:index] + bytes([GOOD[index] ^ 1 << index % 8]) + GOOD[index + 1 :])


def test_every_truncation_is_refused_as_malformed():
    for end in range(len(GOOD)):
        with pytest.raises(EvidenceFormatError):
            verify(GOOD[:end])


JUNK = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.binary(max_size=100) | st.text(max_size=9)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(["profile", "challenge", "hash", "extra"]) | st.sampled_from(["key", "rim", "rems", "key_hash"]),
    st.sampled_from(["profile", "challenge", "instance", "software", "lifecycle", "service"]),
    JUNK | st.lists(JUNK, max_size=4) | st.dictionaries(st.integers(-4, 7), JUNK, max_size=5).map(cbor2.dumps),
    JUNK | st.lists(st.dictionaries(st.integers(0, 7), JUNK, max_size=4), max_size=3),
)
def test_nothing_but_attestation_errors_comes_out_of_claims_of_any_kind(in_realm, in_platform, one, other):
    with contextlib.suppress(AttestationError):
        verify(token(**{in_realm: one}))
    with contextlib.suppress(AttestationError):
        verify(platform_token(**{in_platform: other}))


@settings(max_examples=200, deadline=None)
@given(
    st.binary(max_size=80)
    | st.recursive(
        JUNK.filter(lambda x: not isinstance(x, bytes)),
        lambda x: st.lists(x, max_size=2) | st.dictionaries(st.sampled_from([*jwk(), *entry()]), x, max_size=4),
        max_leaves=6,
    ).map(lambda x: json.dumps(x).encode())
)
def test_nothing_but_attestation_errors_comes_out_of_endorsements_of_any_kind(data):
    with contextlib.suppress(AttestationError):
        verify(GOOD, endorsements=(data,))


# The driver.

CCA_BINDING = dataclasses.replace(BINDING, profile=PROFILE)


def driven(data, *, anchors=None, **changes):
    letter = Envelope(profile=PROFILE, evidence=data, binding=CCA_BINDING.encoded, **changes)
    return CcaVerifier().verify(letter, endorsements=(), now_ms=0, anchors=(spki(),) if anchors is None else anchors)


def test_the_driver_reports_rim_and_the_manifest():
    manifest = bytes.fromhex(CCA_BINDING.manifest)
    report = driven(token(challenge=CCA_BINDING.report_data(), personalization=manifest + bytes(32)))
    assert report.report_data == CCA_BINDING.report_data()
    assert (report.measurement, report.configuration) == (RIM.hex(), CCA_BINDING.manifest)
    assert (report.environment, report.debug, report.shared, report.layers) == ("", False, False, ())
    assert report.details.experimental is True


def test_a_personalization_value_that_is_no_digest_is_the_configuration_as_it_is():
    assert driven(token(personalization=b"\x07" * 64)).configuration == "07" * 64
    assert driven(token(personalization=bytes(64))).configuration == "00" * 32


def test_a_platform_that_is_not_secured_is_debug():
    assert driven(platform_token(lifecycle=0x4000)).debug is True


def test_the_driver_trusts_the_manifests_keys_alone():
    assert driven(GOOD, endorsements=(b"a hint that nobody reads",))
    with pytest.raises(MissingEndorsementError):
        driven(GOOD, anchors=(), endorsements=(KEY,))
    with pytest.raises(EvidenceSignatureError):
        driven(GOOD, anchors=(spki(OTHER_KEY),), endorsements=(KEY,))
    with pytest.raises(EvidenceFormatError):
        driven(GOOD, event_logs=(b"log",))


# The policy.

WHY = Unchecked(unchecked="a test")
POLICY = CcaPolicy(
    experimental="accepted",
    platform_profiles=(PLATFORM_PROFILE,),
    realm_profiles=(REALM_PROFILE,),
    measurements=(RIM.hex(),),
    registers={"0": ("01" * 64,), "3": ("04" * 64,)},
    personalization_values=(PERSONALIZATION.hex(),),
    implementations=(IMPLEMENTATION.hex(),),
    instances=(INSTANCE.hex(),),
    configs=("0102",),
    firmware=(
        CcaFirmware(kind="BL", measurements=("4d" * 32,), signers=("5e" * 32,)),
        CcaFirmware(kind="RMM", measurements=WHY, signers=("5e" * 32,)),
    ),
)


def check(data=GOOD, **changes):
    appraise(verify(data), dataclasses.replace(POLICY, **changes), now=None)


def test_a_realm_that_the_policy_names_is_accepted():
    check()
    require_defaults(verify(GOOD))


def test_without_a_policy_a_genuine_token_is_accepted_and_says_that_it_is_experimental():
    found = verify(GOOD)
    require_floors(found)
    require_defaults(found)
    assert found.experimental is True


def test_firmware_is_known_by_its_measurement_or_by_its_signer():
    measured = CcaFirmware(kind="BL", measurements=("4d" * 32,), signers=WHY)
    check(firmware=(measured, POLICY.firmware[1]))
    with pytest.raises(FirmwareError):
        check(firmware=(dataclasses.replace(measured, measurements=("4e" * 32,)), POLICY.firmware[1]))


@pytest.mark.parametrize("lifecycle", [0x0000, 0x1000, 0x2000, 0x2FFF, 0x3100, 0x4000, 0x5000, 0x6000, 0x7000, 0xFFFF])
def test_a_platform_that_is_not_secured_is_refused_whatever_a_policy_says(lifecycle):
    found = verify(platform_token(lifecycle=lifecycle))
    for attempt in (require_floors, require_defaults, lambda claims: appraise(claims, POLICY, now=None)):
        with pytest.raises(LifecycleError):
            attempt(found)


def test_the_whole_range_of_secured_is_accepted():
    for lifecycle in (0x3000, 0x30FF):
        require_floors(verify(platform_token(lifecycle=lifecycle)))


APPRAISED = {
    "a policy that does not accept what is experimental": (GOOD, {"experimental": "no"}, ExperimentalError),
    "another platform profile": (GOOD, {"platform_profiles": (OLD_PLATFORM_PROFILE,)}, ReportVersionError),
    "a Realm token without profile": (token(profile=REMOVED, key=point()), {}, ReportVersionError),
    "another RIM": (token(rim=b"\x3d" * 64), {}, MeasurementError),
    "another REM": (token(rems=[bytes(64)] * 4), {}, RegisterError),
    "REMs in another order": (GOOD, {"registers": {"1": ("01" * 64,)}}, RegisterError),
    "another personalization value": (token(personalization=b"\x2c" * 64), {}, ConfigurationError),
    "another implementation": (platform_token(implementation=bytes(32)), {}, ProductError),
    "another platform": (platform_token(instance=b"\x01" + bytes(32)), {}, PlatformError),
    "another config": (platform_token(config=b""), {}, PlatformInfoError),
    "firmware that nobody named": (platform_token(software=[*COMPONENTS, COMPONENTS[0] | {1: "X"}]), {}, FirmwareError),
    "firmware without a type": (platform_token(software=[*COMPONENTS, {2: bytes(32), 5: bytes(32)}]), {}, FirmwareError),
    "firmware of another measurement": (platform_token(software=[COMPONENTS[0] | {2: bytes(32)}]), {}, FirmwareError),
    "firmware of another signer": (platform_token(software=[COMPONENTS[0], COMPONENTS[1] | {5: bytes(32)}]), {}, FirmwareError),
    "firmware that is missing": (platform_token(software=COMPONENTS[:1]), {}, FirmwareError),
    "one of two components of a type with another measurement": (
        platform_token(software=[*COMPONENTS, COMPONENTS[0] | {2: bytes(32)}]), {}, FirmwareError,
    ),
}  # fmt: skip


@pytest.mark.parametrize("sentence", APPRAISED)
def test_the_policy_refuses(sentence):
    data, changes, error = APPRAISED[sentence]
    with pytest.raises(error) as caught:
        check(data, **changes)
    assert type(caught.value) is error


def test_what_is_unchecked_may_be_anything():
    fields = (
        "measurements",
        "registers",
        "personalization_values",
        "implementations",
        "instances",
        "configs",
        "firmware",
    )
    check(
        token(
            rim=bytes(64),
            rems=[bytes(64)] * 4,
            personalization=bytes(64),
            platform_changes={"implementation": bytes(32), "config": b"", "software": COMPONENTS[:1]},
        ),
        **dict.fromkeys(fields, WHY),
    )
    check(token(profile=REMOVED, key=point()), realm_profiles=("none",))


MALFORMED = {
    **{
        f"an empty list of {field}": {field: ()}
        for field in (
            "platform_profiles", "realm_profiles", "measurements", "personalization_values", "implementations",
            "instances", "configs", "firmware",
        )
    },
    "an empty profile": {"realm_profiles": ("",)},
    "a RIM of zeros": {"measurements": ("00" * 64,)},
    "a RIM of 20 bytes": {"measurements": ("ab" * 20,)},
    "a RIM in capitals": {"measurements": ("AB" * 32,)},
    "an implementation of zeros": {"implementations": ("00" * 32,)},
    "no registers": {"registers": {}},
    "a register 4": {"registers": {"4": ("ab" * 32,)}},
    "a register with an empty list": {"registers": {"0": ()}},
    "firmware of one type twice": {"firmware": (POLICY.firmware[0], POLICY.firmware[0])},
}  # fmt: skip


@pytest.mark.parametrize("sentence", MALFORMED)
def test_a_policy_is_refused_with(sentence):
    with pytest.raises(PolicyFormatError):
        dataclasses.replace(POLICY, **MALFORMED[sentence])


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": ""},
        {"measurements": ()},
        {"signers": ()},
        {"measurements": WHY, "signers": WHY},
        {"signers": ("00" * 32,)},
    ],
)
def test_firmware_is_refused_with(changes):
    with pytest.raises(PolicyFormatError):
        dataclasses.replace(POLICY.firmware[0], **changes)


def test_a_policy_is_read_from_its_document_and_no_field_is_optional():
    table = record.to_json(POLICY)
    assert record.from_json(CcaPolicy, table, error=PolicyFormatError) == POLICY
    for field in table:
        with pytest.raises(PolicyFormatError):
            record.from_json(CcaPolicy, {key: table[key] for key in table if key != field}, error=PolicyFormatError)
