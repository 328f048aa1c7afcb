"""The driver of ``tpm/1``: envelopes, and each wrong turn."""

import dataclasses
import json

import pytest
from attestation_world import BINDING, EXPECTED
from tpm_world import (
    AK,
    ANCHORS,
    AUTHORITY,
    CONFIGURED,
    EK,
    EK_CERTIFICATE,
    ENVELOPE_PCRS,
    INTERMEDIATE,
    NAMESAKE,
    NOW_MS,
    OTHER_AK,
    OTHER_AUTHORITY,
    OTHER_EK,
    OTHER_ROOT,
    ROOT,
    SHA384,
    TPM_BINDING,
    attest,
    ek_certificate,
    enrolment,
    envelope,
    event,
    event_log,
    evidence,
    extended,
    public_area,
    registers,
    signed,
    spki,
)

from confed import canonical
from confed.attestation.evidence import Binding
from confed.attestation.tee.tpm import TpmVerifier
from confed.attestation.tee.tpm_evidence import TpmEvidence, configuration_value, measurement_of, nonce_of
from confed.attestation.verifier import Registry
from confed.errors import (
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
    MissingClaimError,
    MissingEndorsementError,
    NonceError,
    PcrDigestError,
    StaleEndorsementError,
    TrailingBytesError,
    TrustAnchorError,
)

DAY_MS = 24 * 3_600_000


def verified(found=None, *, endorsements=(), now_ms=NOW_MS, anchors=ANCHORS, **changes):
    made = envelope(found, **changes)
    return TpmVerifier().verify(made, endorsements=endorsements, now_ms=now_ms, anchors=anchors)


def test_an_envelope_becomes_a_report():
    report = verified()
    assert report.report_data == TPM_BINDING.report_data()
    assert report.configuration == TPM_BINDING.manifest
    assert report.measurement == measurement_of(ENVELOPE_PCRS)
    assert (report.debug, report.shared, report.layers, report.environment) == (False, False, (), "")
    assert report.details.rooted_by == "enrolment"
    assert report.details.nonce_checked is True
    assert report.details.endorsement_key.activated is True


def test_a_registry_accepts_it_as_a_software_tpm():
    expected = dataclasses.replace(EXPECTED)
    claims = Registry((TpmVerifier(),)).verify(
        envelope().encode(), expected=expected, now_ms=NOW_MS, anchors={"tpm/1": ANCHORS}
    )
    assert (claims.evidence_class, claims.hardware_rooted) == ("software-tpm", False)
    assert claims.binding == TPM_BINDING


def test_the_measurement_is_of_the_signed_registers_by_number():
    measured = registers(0, 2, 4, 7)
    text = canonical.encode({str(number): value.hex() for number, value in measured.items()})
    assert measurement_of(ENVELOPE_PCRS) == canonical.digest(text)
    assert measurement_of(ENVELOPE_PCRS | {16: bytes(32), 23: bytes(32)}) == canonical.digest(text)
    assert measurement_of(ENVELOPE_PCRS | {8: bytes(32)}) != canonical.digest(text)
    assert measurement_of(dict(reversed(ENVELOPE_PCRS.items()))) == canonical.digest(text)
    swapped = ENVELOPE_PCRS | {0: ENVELOPE_PCRS[2], 2: ENVELOPE_PCRS[0]}
    assert measurement_of(swapped) != canonical.digest(text)


def test_the_configuration_is_the_manifests_where_register_15_says_so():
    other = configuration_value(bytes.fromhex("ff" * 32))
    report = verified(evidence(pcrs=ENVELOPE_PCRS | {15: other}))
    assert report.configuration == other.hex()
    twice = configuration_value(CONFIGURED[15])
    assert verified(evidence(pcrs=ENVELOPE_PCRS | {15: twice})).configuration == twice.hex()


def test_an_enrolment_may_come_with_the_endorsements():
    bare = evidence(enrolment=None)
    assert verified(bare, endorsements=(enrolment(),)).details.rooted_by == "enrolment"
    hints = (INTERMEDIATE.der, enrolment(key=OTHER_AK), enrolment())
    made = envelope(bare, endorsements=hints)
    assert TpmVerifier().verify(made, endorsements=(), now_ms=NOW_MS, anchors=ANCHORS)


def test_endorsements_of_other_devices_are_passed_over():
    hints = (NAMESAKE.pem, INTERMEDIATE.der, b"<RIM/>", b"", ROOT.pem, OTHER_ROOT.pem, spki(OTHER_AK))
    made = envelope(endorsements=hints)
    assert TpmVerifier().verify(made, endorsements=(b"\x00" * 40,), now_ms=NOW_MS, anchors=ANCHORS)


def test_a_key_among_the_endorsements_roots_nothing():
    made = envelope(evidence(key=OTHER_AK, enrolment=None), endorsements=(INTERMEDIATE.der, spki(OTHER_AK)))
    with pytest.raises(MissingEndorsementError):
        TpmVerifier().verify(made, endorsements=(), now_ms=NOW_MS, anchors=ANCHORS)


def test_a_root_or_an_authority_among_the_endorsements_anchors_nothing():
    made = envelope(evidence(), endorsements=(INTERMEDIATE.der, ROOT.der, spki(AUTHORITY)))
    with pytest.raises(TrustAnchorError):
        TpmVerifier().verify(made, endorsements=(), now_ms=NOW_MS, anchors=(OTHER_ROOT.der, spki(AUTHORITY)))
    with pytest.raises(TrustAnchorError):
        TpmVerifier().verify(made, endorsements=(), now_ms=NOW_MS, anchors=(ROOT.der,))


def test_the_events_of_a_log_that_replays_are_told():
    pcrs = ENVELOPE_PCRS | {0: extended(b"firmware 1")}
    log = event_log(event(0, 0x08, b"firmware 1"))
    report = verified(evidence(pcrs=pcrs), event_logs=(log,))
    assert report.details.replayed == (0,)
    with pytest.raises(EventLogError):
        verified(evidence(pcrs=pcrs), event_logs=(event_log(event(0, 0x08, b"firmware 2")),))
    with pytest.raises(EvidenceFormatError):
        verified(evidence(pcrs=pcrs), event_logs=(log, log))


OTHER_BINDINGS = {
    "another nonce": {"nonce": b"m" * 32},
    "another audience": {"audience": "4d" * 32},
    "another manifest": {"manifest": "4d" * 32},
    "another role": {"role": "aggregator"},
    "another run": {"run": "digits-2"},
    "another encryption key": {"hpke_public": b"g" * 1216},
    "another signing key": {"signing_public": b"t" * 32},
    "another time": {"issued_at": 1},
}


@pytest.mark.parametrize("changes", OTHER_BINDINGS.values(), ids=OTHER_BINDINGS.keys())
def test_a_quote_answers_its_own_binding_only(changes):
    other = dataclasses.replace(TPM_BINDING, **changes)
    with pytest.raises(NonceError):
        verified(evidence(), binding=other)


def test_a_quote_covers_the_devices_that_go_along():
    with pytest.raises(NonceError):
        verified(device_evidence=(b"GPU",))
    made = envelope(device_evidence=(b"GPU",))
    bound = evidence(device_digest=made.device_digest)
    assert verified(bound, device_evidence=(b"GPU",)).report_data == TPM_BINDING.report_data(made.device_digest)
    with pytest.raises(NonceError):
        verified(bound, device_evidence=(b"another GPU",))


def test_a_verifier_compares_what_was_expected_too():
    expected = dataclasses.replace(EXPECTED, nonce=b"m" * 32)
    with pytest.raises(BindingMismatchError):
        Registry((TpmVerifier(),)).verify(
            envelope().encode(), expected=expected, now_ms=NOW_MS, anchors={"tpm/1": ANCHORS}
        )


GOOD = attest(ENVELOPE_PCRS, nonce=nonce_of(TPM_BINDING.report_data()))
LESS = {number: ENVELOPE_PCRS[number] for number in (0, 2, 4, 7)}
WRONG = {
    "another signature": (evidence(signature=signed(GOOD, OTHER_AK)), EvidenceSignatureError),
    "another key": (evidence(ak_public=public_area(OTHER_AK)), EvidenceSignatureError),
    "another TPM's key": (evidence(key=OTHER_AK), KeyBindingError),
    "a key that is not restricted": (evidence(ak_public=public_area(AK, attributes=0x00040072)), KeyBindingError),
    "other attributes than were enrolled": (evidence(ak_public=public_area(AK, attributes=0x00050072)), KeyBindingError),
    "another TPM's certificate": (evidence(ek_certificate=ek_certificate(OTHER_EK)), EndorsementMismatchError),
    "a certificate by another intermediate of that name": (
        evidence(ek_certificate=ek_certificate(EK, NAMESAKE)), CertificateChainError,
    ),
    "a certificate under another root": (evidence(ek_certificate=ek_certificate(EK, OTHER_ROOT)), TrustAnchorError),
    "an authority's certificate": (evidence(ek_certificate=INTERMEDIATE.der), EndorsementFormatError),
    "no certificate": (evidence(ek_certificate=None), MissingEndorsementError),
    "half a certificate": (evidence(ek_certificate=EK_CERTIFICATE[:-1]), EndorsementFormatError),
    "no enrolment": (evidence(enrolment=None), MissingEndorsementError),
    "a certificate of its own, which nobody would read": (evidence(ak_certificate=EK_CERTIFICATE), EvidenceFormatError),
    "an enrolment of another key": (evidence(enrolment=enrolment(key=OTHER_AK)), KeyBindingError),
    "an enrolment of another TPM": (evidence(enrolment=enrolment(endorsement_key=OTHER_EK)), EndorsementMismatchError),
    "an enrolment by another authority": (evidence(enrolment=enrolment(authority=OTHER_AUTHORITY)), TrustAnchorError),
    "an enrolment that is none": (evidence(enrolment=b"{}"), EndorsementFormatError),
    "an enrolment that has ended": (evidence(enrolment=enrolment(expires_at=NOW_MS - 1)), StaleEndorsementError),
    "another value": (evidence(message=GOOD, pcrs=ENVELOPE_PCRS | {7: bytes(32)}), PcrDigestError),
    "another register": (evidence(message=GOOD, pcrs=LESS | {14: CONFIGURED[15]}), PcrDigestError),
    "another bank": (
        evidence(message=attest(ENVELOPE_PCRS, nonce=nonce_of(TPM_BINDING.report_data()), bank=SHA384)), PcrDigestError,
    ),
    "no nonce": (evidence(message=attest(ENVELOPE_PCRS, nonce=b"")), NonceError),
    "the report data itself as its nonce": (
        evidence(message=attest(ENVELOPE_PCRS, nonce=TPM_BINDING.report_data())), NonceError,
    ),
    "no configuration": (evidence(pcrs=LESS), MissingClaimError),
    "nothing but the configuration": (evidence(pcrs=CONFIGURED), MissingClaimError),
    "nothing but what anybody can reset": (evidence(pcrs=CONFIGURED | registers(16, 23)), MissingClaimError),
    "a trailing byte in the quote": (
        evidence(message=attest(ENVELOPE_PCRS, nonce=nonce_of(TPM_BINDING.report_data()), trailing=b"\x00")), TrailingBytesError,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("found", "error"), WRONG.values(), ids=WRONG.keys())
def test_an_envelope_is_refused_with(found, error):
    with pytest.raises(error) as refused:
        verified(found)
    assert isinstance(refused.value, AttestationError)


@pytest.mark.parametrize("name", ["quote", "signature", "ak_public", "ek_certificate", "enrolment"])
def test_no_byte_of_the_evidence_can_change(name):
    found = evidence()
    original = getattr(found, name)
    for position in range(0, len(original), 3 if len(original) > 200 else 1):
        changed = bytearray(original)
        changed[position] ^= 1
        with pytest.raises(AttestationError):
            verified(dataclasses.replace(found, **{name: bytes(changed)}))


@pytest.mark.parametrize("number", ENVELOPE_PCRS)
def test_no_register_of_the_evidence_can_change(number):
    found = evidence()
    with pytest.raises(PcrDigestError):
        verified(dataclasses.replace(found, pcrs=found.pcrs | {number: bytes(32)}))
    left = {other: value for other, value in found.pcrs.items() if other != number}
    with pytest.raises(PcrDigestError):
        verified(dataclasses.replace(found, pcrs=left))


def test_certificates_and_enrolments_have_their_time():
    with pytest.raises(CertificateValidityError):
        verified(now_ms=NOW_MS + 31 * DAY_MS)
    with pytest.raises(StaleEndorsementError):
        verified(now_ms=NOW_MS + DAY_MS)
    with pytest.raises(CertificateValidityError):
        verified(now_ms=NOW_MS - 31 * DAY_MS)


@pytest.mark.parametrize(
    "anchors", [(ROOT.der,), (spki(AUTHORITY),), (OTHER_ROOT.der, spki(AUTHORITY)), (ROOT.der, spki(OTHER_AUTHORITY))]
)
def test_both_kinds_of_anchor_are_needed(anchors):
    with pytest.raises(TrustAnchorError):
        verified(anchors=anchors)


def test_an_anchor_is_a_certificate_or_a_key():
    with pytest.raises(EndorsementFormatError):
        verified(anchors=(b"anchor",))


# The form of the evidence.


def test_evidence_has_one_form():
    found = evidence()
    assert TpmEvidence.decode(found.encode()) == found
    bare = evidence(ek_certificate=None, enrolment=None)
    assert TpmEvidence.decode(bare.encode()) == bare


def fields(**changes):
    value = json.loads(evidence().encode())
    for name, entry in changes.items():
        if entry is None:
            del value[name]
        else:
            value[name] = entry
    return canonical.encode(value)


FORMS = {
    "a field that is not known": fields(trusted="AA=="),
    "no quote": fields(quote=None),
    "no signature": fields(signature=None),
    "no key": fields(ak_public=None),
    "no registers": fields(pcrs=None),
    "a quote that is not base64": fields(quote="?"),
    "a quote that is a number": fields(quote=1),
    "registers in a list": fields(pcrs=["AA=="]),
    "a register that there is not": fields(pcrs={"24": "AA=="}),
    "a number in another spelling": fields(pcrs={"07": "AA=="}),
    "a number with a sign": fields(pcrs={"+7": "AA=="}),
    "a number in other digits": fields(pcrs={"\u0667": "AA=="}),
    "a register that is not base64": fields(pcrs={"7": "?"}),
    "a trailing byte": evidence().encode() + b" ",
    "another spelling": json.dumps(json.loads(evidence().encode())).encode(),
    "half of it": evidence().encode()[:-1],
    "nothing": b"",
    "a list": b"[]",
}


@pytest.mark.parametrize("data", FORMS.values(), ids=FORMS.keys())
def test_evidence_is_not_read_with(data):
    with pytest.raises(EvidenceFormatError):
        TpmEvidence.decode(data)
    with pytest.raises(AttestationError):
        TpmVerifier().verify(
            dataclasses.replace(envelope(), evidence=data), endorsements=(), now_ms=NOW_MS, anchors=ANCHORS
        )


def test_evidence_has_its_bounds():
    with pytest.raises(EvidenceFormatError):
        TpmEvidence.decode(b'"' + b"A" * 70_000 + b'"')
    with pytest.raises(EvidenceSizeError):
        TpmEvidence.decode(fields(pcrs={str(number): "AA==" for number in range(25)}))


def test_a_binding_of_another_profile_is_another_binding():
    assert isinstance(TPM_BINDING, Binding)
    assert TPM_BINDING.report_data() != BINDING.report_data()
