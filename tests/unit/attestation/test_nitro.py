"""Nitro documents under a root that the test makes: every refusal, with its class."""

import base64
import contextlib
import dataclasses
import datetime
import json

import cbor2
import pytest
from attestation_world import BINDING
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st
from nitro_world import (
    CABUNDLE,
    DAY,
    HOUR,
    INSTANCE,
    INSTANCE_KEY,
    LEAF,
    LEAF_KEY,
    MODULE,
    NONCE,
    OTHER_KEY,
    OTHER_ROOT,
    PCRS,
    REGION,
    REGION_KEY,
    REMOVED,
    REPORT_DATA,
    ROOT,
    ROOT_KEY,
    SECOND,
    START,
    TIME,
    ZONE,
    ZONE_KEY,
    claims,
    document,
    good,
    issue,
    leaf,
    new_key,
    payload,
    sign,
    verify,
)

from confed import record
from confed.attestation.evidence import Binding, Envelope, Expectation
from confed.attestation.tee import nitro
from confed.attestation.verifier import ExpectedBinding, Registry
from confed.errors import (
    AlgorithmError,
    AttestationError,
    BindingMismatchError,
    CertificateChainError,
    CertificateValidityError,
    EndorsementFormatError,
    EvidenceFormatError,
    EvidenceSignatureError,
    EvidenceSizeError,
    MissingClaimError,
    NonceError,
    StaleEvidenceError,
    TrailingBytesError,
    TrustAnchorError,
)

GOOD = good()


def test_a_genuine_document_gives_its_claims():
    found = verify(GOOD)
    assert (found.module_id, found.user_data, found.nonce, found.public_key) == (MODULE, REPORT_DATA, NONCE, None)
    assert [(register.index, register.value) for register in found.pcrs] == sorted(PCRS.items())
    assert found.pcr(0) == PCRS[0]
    assert found.pcr(20) is None
    assert found.debug is False
    assert found.timestamp_ms == TIME.timestamp() * 1000
    assert found.expires_ms == (START + 3 * HOUR).timestamp() * 1000
    json.dumps(record.to_json(found))


def test_a_document_may_be_tagged_and_its_maps_without_length():
    assert verify(b"\xd2" + GOOD) == verify(GOOD)
    assert verify(document(indefinite=True)) == verify(GOOD)


def test_what_was_not_asked_for_may_be_null_or_left_out():
    for absent in (None, REMOVED):
        found = claims(user_data=absent, nonce=absent, public_key=absent)
        assert (found.user_data, found.nonce, found.public_key) == (None, None, None)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_zeros_in_a_register_of_code_are_debug(index):
    assert claims(pcrs=PCRS | {index: bytes(48)}).debug is True


def test_fields_as_large_as_they_may_be_are_accepted():
    found = claims(user_data=b"u" * 512, nonce=b"n" * 512, public_key=b"k" * 1024)
    assert (len(found.user_data), len(found.nonce), len(found.public_key)) == (512, 512, 1024)
    assert claims(user_data=b"", nonce=b"").nonce == b""
    assert len(claims(pcrs=dict.fromkeys(range(32), b"\x01" * 48)).pcrs) == 32


def chain(*, top=ROOT, region=REGION, zone=ZONE, instance=INSTANCE):
    return [top, region, zone, instance]


def signed_by(key, certificate, **changes):
    return document(key=key, certificate=certificate, **changes)


SHORT_KEY = new_key(ec.SECP256R1())
PLAIN = leaf(plain=True)
REFUSED = {
    # 1. COSE
    "a bare payload": (cbor2.dumps(payload()), EvidenceFormatError),
    "another algorithm": (sign(cbor2.dumps(payload()), key=SHORT_KEY, algorithm=-7, digest=hashes.SHA256()), AlgorithmError),
    "an algorithm that is only in the unprotected header": (
        sign(cbor2.dumps(payload()), protected=b"", unprotected={1: -35}), EvidenceFormatError,
    ),
    "an empty protected header": (sign(cbor2.dumps(payload()), protected=b""), AlgorithmError),
    "something in the unprotected header": (sign(cbor2.dumps(payload()), unprotected={4: b"k"}), EvidenceFormatError),
    "a byte after the document": (GOOD + b"\x00", TrailingBytesError),
    "a byte after the payload's map": (sign(cbor2.dumps(payload()) + b"\x00"), TrailingBytesError),
    "a document above the bound": (sign(b"x" * 20_000), EvidenceSizeError),
    "a payload above the bound": (sign(b"x" * 16_385), EvidenceSizeError),
    # 2. fields
    "a payload that is no map": (sign(cbor2.dumps([1])), EvidenceFormatError),
    "a payload that is no CBOR": (sign(b"\xff"), EvidenceFormatError),
    "an unknown field": (document(extra=1), EvidenceFormatError),
    "a field under a number": (sign(cbor2.dumps(payload() | {7: 1})), EvidenceFormatError),
    "a field twice": (
        sign(b"\xaa" + cbor2.dumps(payload())[1:] + cbor2.dumps("nonce") + cbor2.dumps(b"m")), EvidenceFormatError,
    ),
    **{
        f"no {field}": (document(**{field: REMOVED}), MissingClaimError)
        for field in ("module_id", "digest", "timestamp", "pcrs", "certificate", "cabundle")
    },
    **{
        f"a null {field}": (document(**{field: None}), EvidenceFormatError)
        for field in ("module_id", "timestamp", "pcrs", "certificate", "cabundle")
    },
    "registers of SHA-256": (document(digest="SHA256"), AlgorithmError),
    "a digest of another type": (document(digest=384), AlgorithmError),
    "a module identifier of bytes": (document(module_id=MODULE.encode()), EvidenceFormatError),
    "an empty module identifier": (document(module_id=""), EvidenceFormatError),
    "a long module identifier": (document(module_id="i" * 257), EvidenceFormatError),
    "a timestamp of zero": (document(timestamp=0), EvidenceFormatError),
    "a negative timestamp": (document(timestamp=-1), EvidenceFormatError),
    "a timestamp that is true": (document(timestamp=True), EvidenceFormatError),
    "a timestamp beyond all years": (document(timestamp=2**63), EvidenceFormatError),
    "a timestamp as text": (document(timestamp="now"), EvidenceFormatError),
    "no registers": (document(pcrs={}), EvidenceFormatError),
    "registers in a list": (document(pcrs=[bytes(48)]), EvidenceFormatError),
    "a register 32": (document(pcrs=PCRS | {32: bytes(48)}), EvidenceFormatError),
    "a register -1": (document(pcrs=PCRS | {-1: bytes(48)}), EvidenceFormatError),
    "a register by name": (document(pcrs=PCRS | {"17": bytes(48)}), EvidenceFormatError),
    "a register of 32 bytes": (document(pcrs=PCRS | {3: bytes(32)}), EvidenceSizeError),
    "a register of 64 bytes": (document(pcrs=PCRS | {3: bytes(64)}), EvidenceSizeError),
    "a register as text": (document(pcrs=PCRS | {3: "0" * 48}), EvidenceFormatError),
    **{
        f"no PCR{index}": (document(pcrs={key: value for key, value in PCRS.items() if key != index}), MissingClaimError)
        for index in (0, 1, 2)
    },
    "user data above its bound": (document(user_data=b"u" * 513), EvidenceSizeError),
    "a nonce above its bound": (document(nonce=b"n" * 513), EvidenceSizeError),
    "a public key above its bound": (document(public_key=b"k" * 1025), EvidenceSizeError),
    "an empty public key": (document(public_key=b""), EvidenceSizeError),
    "user data as text": (document(user_data="u"), EvidenceFormatError),
    "an empty certificate": (document(certificate=b""), EvidenceSizeError),
    "a certificate above its bound": (document(certificate=LEAF + bytes(1025 - len(LEAF))), EvidenceSizeError),
    "a certificate with bytes at its end": (document(certificate=LEAF + b"\x00"), EndorsementFormatError),
    "a certificate that is none": (document(certificate=b"\x30\x00"), EndorsementFormatError),
    "a certificate in PEM": (
        document(certificate=b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(LEAF) + b"-----END CERTIFICATE-----\n"),
        EndorsementFormatError,
    ),
    "an empty bundle": (document(cabundle=[]), EvidenceFormatError),
    "a bundle that is one certificate": (document(cabundle=ROOT), EvidenceFormatError),
    "a bundle of text": (document(cabundle=[ROOT, "region"]), EvidenceFormatError),
    "a bundle of nine": (document(cabundle=[ROOT] * 9), EvidenceSizeError),
    # 3. root
    "another root of the same name": (document(cabundle=chain(top=OTHER_ROOT)), TrustAnchorError),
    "a bundle without its root": (document(cabundle=CABUNDLE[1:]), TrustAnchorError),
    "a bundle in the other order": (document(cabundle=CABUNDLE[::-1]), TrustAnchorError),
    "a root that is not first": (document(cabundle=[REGION, ROOT, ZONE, INSTANCE]), TrustAnchorError),
    "a chain of its own from leaf to root": (
        signed_by(
            OTHER_KEY,
            issue("enclave", OTHER_KEY, issuer="aws.nitro-enclaves", by=OTHER_KEY, ca=False),
            cabundle=[OTHER_ROOT],
        ),
        TrustAnchorError,
    ),
    # 4. chain
    "a chain of its own under the name of the pinned root": (
        signed_by(
            OTHER_KEY,
            issue("enclave", OTHER_KEY, issuer="aws.nitro-enclaves", by=OTHER_KEY, ca=False),
            cabundle=[ROOT],
        ),
        CertificateChainError,
    ),
    "an authority left out": (document(cabundle=[ROOT, REGION, INSTANCE]), CertificateChainError),
    "authorities swapped": (document(cabundle=[ROOT, ZONE, REGION, INSTANCE]), CertificateChainError),
    "an authority twice": (document(cabundle=[ROOT, REGION, REGION, ZONE, INSTANCE]), CertificateChainError),
    "an authority with another's signature": (
        document(cabundle=chain(zone=issue("zone", ZONE_KEY, issuer="region", by=OTHER_KEY))), CertificateChainError,
    ),
    "an authority that is none": (
        document(cabundle=chain(instance=issue("instance", INSTANCE_KEY, issuer="zone", by=ZONE_KEY, ca=False))),
        CertificateChainError,
    ),
    "an authority that may not sign certificates": (
        document(
            cabundle=chain(
                instance=issue("instance", INSTANCE_KEY, issuer="zone", by=ZONE_KEY, signs_certificates=False, signs=True)
            )
        ),
        CertificateChainError,
    ),
    "a path longer than an authority allows": (
        document(cabundle=chain(region=issue("region", REGION_KEY, issuer="aws.nitro-enclaves", by=ROOT_KEY, path_length=1))),
        CertificateChainError,
    ),
    "an authority signed with SHA-1's successor of 224 bits": (
        document(cabundle=chain(zone=issue("zone", ZONE_KEY, issuer="region", by=REGION_KEY, algorithm=hashes.SHA224()))),
        AlgorithmError,
    ),
    "a critical extension that nobody knows": (
        document(certificate=leaf(critical="1.2.3.4")), CertificateChainError,
    ),
    "a leaf of another issuer": (document(certificate=leaf(issuer="zone", by=ZONE_KEY)), CertificateChainError),
    "an authority as the leaf": (document(certificate=leaf(ca=True, signs=True)), CertificateChainError),
    "a leaf that may not sign": (document(certificate=leaf(signs=False)), CertificateChainError),
    "a leaf that does not say what it is for": (document(certificate=PLAIN), CertificateChainError),
    "a leaf on another curve": (
        sign(cbor2.dumps(payload(certificate=leaf(SHORT_KEY))), key=SHORT_KEY), AlgorithmError,
    ),
    # 5. signature
    "another signer": (document(key=OTHER_KEY), EvidenceSignatureError),
    "the authority's key as signer": (document(key=INSTANCE_KEY), EvidenceSignatureError),
    "a payload signed with SHA-256": (sign(cbor2.dumps(payload()), digest=hashes.SHA256()), EvidenceSignatureError),
    # 6. time
    "a document before its leaf": (
        document(timestamp=round((START - SECOND).timestamp() * 1000)), CertificateValidityError,
    ),
    "a document from the future": (document(timestamp=round((TIME + 32 * SECOND).timestamp() * 1000)), StaleEvidenceError),
    "a zone that had expired": (
        document(cabundle=chain(zone=issue("zone", ZONE_KEY, issuer="region", by=REGION_KEY, path_length=1, end=START))),
        CertificateValidityError,
    ),
    "certificates that were never valid together": (
        document(
            cabundle=chain(
                zone=issue("zone", ZONE_KEY, issuer="region", by=REGION_KEY, start=START - DAY, end=START - HOUR)
            )
        ),
        CertificateValidityError,
    ),
}  # fmt: skip


@pytest.mark.parametrize("sentence", REFUSED)
def test_a_document_is_refused_with(sentence):
    data, error = REFUSED[sentence]
    with pytest.raises(AttestationError) as caught:
        verify(data)
    assert type(caught.value) is error


def test_a_chain_is_valid_to_the_second_at_both_ends():
    first, last = START, START + 3 * HOUR
    for moment in (first, last):
        made = document(timestamp=round(moment.timestamp() * 1000))
        assert verify(made, now=moment).timestamp_ms == moment.timestamp() * 1000
    with pytest.raises(CertificateValidityError):
        verify(document(timestamp=round(last.timestamp() * 1000) + 1), now=last)


def test_a_document_is_genuine_until_its_first_certificate_expires():
    assert verify(GOOD, now=START + 3 * HOUR)
    for later in (START + 3 * HOUR + SECOND, TIME + DAY):
        with pytest.raises(CertificateValidityError):
            verify(GOOD, now=later)


def test_a_clock_that_is_half_a_minute_slow_still_accepts():
    assert verify(GOOD, now=TIME - 30 * SECOND)
    for earlier in (TIME - 31 * SECOND, TIME - DAY):
        with pytest.raises(StaleEvidenceError):
            verify(GOOD, now=earlier)


def test_only_the_pinned_root_counts():
    for anchors in ((), (OTHER_ROOT,), (REGION,), (LEAF,)):
        with pytest.raises(TrustAnchorError):
            verify(GOOD, anchors=anchors)
    assert verify(GOOD, anchors=(OTHER_ROOT, ROOT))


def test_a_chain_that_held_is_not_believed_under_another_root():
    verify(GOOD)
    with pytest.raises(TrustAnchorError):
        verify(GOOD, anchors=(OTHER_ROOT,))
    with pytest.raises(TrustAnchorError):
        nitro.verify_files(GOOD, (), expectation=Expectation(nonce=None, report_data=None), now=TIME, anchors=None)


def test_the_pinned_root_is_the_one_that_aws_publishes():
    # AWS, Nitro Enclaves user guide, "Verifying the root of trust".
    published = "641a0321a3e244efe456463195d606317ed7cdcc3c1756e09893f3c68f79bb5b"
    (root,) = nitro.pinned_roots()
    digest = hashes.Hash(hashes.SHA256())
    digest.update(root)
    assert digest.finalize().hex() == published


EXPECTATIONS = {
    "the same nonce": ({"nonce": NONCE}, {}, None),
    "another nonce": ({"nonce": b"m" * 32}, {}, NonceError),
    "a shorter nonce": ({"nonce": NONCE[:31]}, {}, NonceError),
    "a nonce where the document has none": ({"nonce": NONCE}, {"nonce": None}, NonceError),
    "an empty nonce where the document has none": ({"nonce": b""}, {"nonce": None}, NonceError),
    "the same user data": ({"report_data": REPORT_DATA}, {}, None),
    "a digest that the document pads with zeros": (
        {"report_data": b"d" * 32},
        {"user_data": b"d" * 32 + bytes(32)},
        None,
    ),
    "a digest that the document holds as it is": ({"report_data": b"d" * 32}, {"user_data": b"d" * 32}, None),
    "user data longer than 64 bytes": ({"report_data": b"d" * 120}, {"user_data": b"d" * 120}, None),
    "padding where the document has none": (
        {"report_data": b"d" * 32 + bytes(32)},
        {"user_data": b"d" * 32},
        BindingMismatchError,
    ),
    "padding that is not zeros": (
        {"report_data": b"d" * 32},
        {"user_data": b"d" * 32 + bytes(31) + b"1"},
        BindingMismatchError,
    ),
    "more padding than 64 bytes": (
        {"report_data": b"d" * 32},
        {"user_data": b"d" * 32 + bytes(33)},
        BindingMismatchError,
    ),
    "other user data": ({"report_data": b"q" * 64}, {}, BindingMismatchError),
    "user data where the document has none": ({"report_data": REPORT_DATA}, {"user_data": None}, BindingMismatchError),
    "nothing where the document has something": ({"report_data": b""}, {}, BindingMismatchError),
}


@pytest.mark.parametrize("sentence", EXPECTATIONS)
def test_of_what_is_expected(sentence):
    wanted, changes, error = EXPECTATIONS[sentence]
    expectation = Expectation(**{"nonce": None, "report_data": None, **wanted})
    with pytest.raises(error) if error else contextlib.nullcontext():
        verify(document(**changes), expectation=expectation)


def test_a_document_takes_no_endorsements():
    with pytest.raises(EndorsementFormatError):
        verify(GOOD, endorsements=(ROOT,))


def test_a_flipped_bit_anywhere_is_refused():
    for index in range(0, len(GOOD), 5):
        with pytest.raises(AttestationError):
            verify(GOOD[:index] + bytes([GOOD[index] ^ 1 << index % 8]) + GOOD[index + 1 :])


def test_every_truncation_is_refused_as_malformed():
    for end in range(len(GOOD)):
        with pytest.raises(EvidenceFormatError):
            verify(GOOD[:end])


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_nothing_but_attestation_errors_comes_out_of_fields_of_any_kind(data):
    junk = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.binary(max_size=60) | st.text(max_size=9)
    value = data.draw(
        junk | st.lists(junk, max_size=3) | st.dictionaries(st.integers(-2, 40) | st.text(max_size=3), junk, max_size=3)
    )
    field = data.draw(st.sampled_from([*payload(), "extra"]))
    with contextlib.suppress(AttestationError):
        claims(**{field: value})


# The driver.

AWS_BINDING = dataclasses.replace(BINDING, profile=nitro.PROFILE, issued_at=round(TIME.timestamp() * 1000))
NOW_MS = round(TIME.timestamp() * 1000)


def envelope(binding=AWS_BINDING, *, evidence=None, **changes):
    fields = {"user_data": binding.report_data(), "nonce": binding.nonce, **changes}
    return Envelope(profile=nitro.PROFILE, evidence=evidence or document(**fields), binding=binding.encoded)


def driven(letter, *, anchors=(ROOT,)):
    return nitro.NitroVerifier().verify(letter, endorsements=(), now_ms=NOW_MS, anchors=anchors)


def test_the_driver_reports_pcr0_and_the_manifest():
    report = driven(envelope(pcrs=PCRS | {16: nitro.configuration_pcr(bytes.fromhex(AWS_BINDING.manifest))}))
    assert report.report_data == AWS_BINDING.report_data()
    assert report.measurement == PCRS[0].hex()
    assert report.configuration == AWS_BINDING.manifest
    assert (report.environment, report.debug, report.shared, report.layers) == ("", False, False, ())
    assert report.details.nonce == AWS_BINDING.nonce


def test_the_configuration_is_the_register_itself_where_it_is_not_the_manifests():
    other = nitro.configuration_pcr(b"\x07" * 32)
    assert driven(envelope(pcrs=PCRS | {16: other})).configuration == other.hex()
    raw = bytes.fromhex(AWS_BINDING.manifest) + bytes(16)
    assert driven(envelope(pcrs=PCRS | {16: raw})).configuration == raw.hex()
    unlocked = {index: value for index, value in PCRS.items() if index != 16}
    assert driven(envelope(pcrs=unlocked)).configuration == ""


def test_the_driver_passes_debug_on():
    assert driven(envelope(pcrs=PCRS | {0: bytes(48)})).debug is True


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"nonce": b"m" * 32}, NonceError),
        ({"nonce": None}, NonceError),
        ({"user_data": None}, BindingMismatchError),
        ({"user_data": b"r" * 63}, BindingMismatchError),
        ({"user_data": b"r" * 65}, BindingMismatchError),
        ({"key": OTHER_KEY}, EvidenceSignatureError),
        ({"cabundle": [OTHER_ROOT]}, TrustAnchorError),
        ({"timestamp": NOW_MS + 31_000}, StaleEvidenceError),
    ],
)
def test_the_driver_refuses(changes, error):
    with pytest.raises(error):
        driven(envelope(**changes))


def test_the_driver_takes_no_event_log():
    with pytest.raises(EvidenceFormatError):
        driven(dataclasses.replace(envelope(), event_logs=(b"log",)))


def test_the_driver_never_falls_back_to_the_pinned_root():
    with pytest.raises(TrustAnchorError):
        driven(envelope(), anchors=(OTHER_ROOT,))


def test_a_registry_accepts_the_document_of_its_own_binding_only():
    registry = Registry((nitro.NitroVerifier(),))
    expected = ExpectedBinding(
        nonce=AWS_BINDING.nonce, audience=AWS_BINDING.audience, manifest=AWS_BINDING.manifest, role=AWS_BINDING.role,
        run=AWS_BINDING.run,
    )  # fmt: skip

    def check(letter):
        return registry.verify(letter.encode(), expected=expected, now_ms=NOW_MS, anchors={nitro.PROFILE: (ROOT,)})

    found = check(envelope())
    assert (found.evidence_class, found.hardware_rooted) == ("aws-nitro", True)
    other: Binding = dataclasses.replace(AWS_BINDING, hpke_public=b"x" * 1216)
    with pytest.raises(BindingMismatchError):
        check(envelope(user_data=other.report_data()))


def test_leaf_and_signer_are_the_enclaves_own():
    key = new_key()
    assert verify(document(key=key, certificate=leaf(key)))
    with pytest.raises(EvidenceSignatureError):
        verify(document(key=LEAF_KEY, certificate=leaf(key)))


def test_times_with_another_zone_are_the_same_moment():
    zone = datetime.timezone(datetime.timedelta(hours=9))
    assert verify(GOOD, now=(TIME + SECOND).astimezone(zone)) == verify(GOOD)
