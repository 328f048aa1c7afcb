import dataclasses
import datetime
import json

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from tpm_world import (
    AK,
    AUTHORITY,
    DAY,
    EK,
    EK_ATTRIBUTES,
    INTERMEDIATE,
    NOW,
    NOW_MS,
    NULL,
    OTHER_AK,
    OTHER_AUTHORITY,
    OTHER_EK,
    OTHER_ROOT,
    NotThisTpmError,
    activated,
    begun,
    ec_key,
    ek_certificate,
    ek_public,
    enrolled,
    enrolment,
    public_area,
)

from confed import statement
from confed.attestation.certificates import load_certificate
from confed.attestation.tee.credential import SECRET_BYTES, make_credential, require_endorsement_key
from confed.attestation.tee.tpm_claims import key_digest
from confed.attestation.tee.tpm_enrolment import LONGEST_S, TpmEnrolment, finish_enrolment, verify_enrolment
from confed.attestation.tee.tpm_structures import parse_public
from confed.errors import (
    AttestationError,
    CertificateChainError,
    CertificateValidityError,
    EndorsementFormatError,
    EndorsementMismatchError,
    EvidenceFormatError,
    EvidenceSignatureError,
    EvidenceSizeError,
    KeyBindingError,
    StaleEndorsementError,
    TrustAnchorError,
)

NAME = parse_public(public_area(AK)).name
EK_DIGEST = key_digest(EK.public_key())
KNOWN = (statement.public_bytes(AUTHORITY),)
SECRET = b"s" * SECRET_BYTES


@pytest.mark.parametrize(
    "key", [EK, ec_key("P-256 EK"), ec_key("P-384 EK", ec.SECP384R1)], ids=["RSA", "P-256", "P-384"]
)
def test_only_the_tpm_with_both_keys_opens_a_credential(key):
    credential = make_credential(parse_public(ek_public(key)), name=NAME, secret=SECRET)
    assert activated(credential, key, NAME) == SECRET
    with pytest.raises(NotThisTpmError):
        activated(credential, key, parse_public(public_area(OTHER_AK)).name)


def test_another_endorsement_key_does_not_open_it():
    credential = make_credential(parse_public(ek_public(EK)), name=NAME, secret=SECRET)
    with pytest.raises(NotThisTpmError):
        activated(credential, OTHER_EK, NAME)


def test_a_credential_opens_for_no_other_attributes_of_the_same_key():
    exportable = parse_public(public_area(AK, attributes=0x00050052)).name
    credential = make_credential(parse_public(ek_public(EK)), name=exportable, secret=SECRET)
    with pytest.raises(NotThisTpmError):
        activated(credential, EK, NAME)


def test_no_two_credentials_are_the_same():
    public = parse_public(ek_public(EK))
    one, two = (make_credential(public, name=NAME, secret=SECRET) for _ in range(2))
    assert one.blob != two.blob
    assert one.seed != two.seed


def test_a_changed_credential_gives_no_secret():
    credential = make_credential(parse_public(ek_public(EK)), name=NAME, secret=SECRET)
    for position in range(4, len(credential.blob)):
        changed = bytearray(credential.blob)
        changed[position] ^= 1
        with pytest.raises(NotThisTpmError):
            activated(dataclasses.replace(credential, blob=bytes(changed)), EK, NAME)


ENDORSEMENT_KEYS = {
    "a key that signs": ek_public(EK, attributes=EK_ATTRIBUTES | 1 << 18),
    "a key that does not decrypt": ek_public(EK, attributes=EK_ATTRIBUTES & ~(1 << 17)),
    "a key that is not restricted": ek_public(EK, attributes=EK_ATTRIBUTES & ~(1 << 16)),
    "a key that can leave its TPM": ek_public(EK, attributes=EK_ATTRIBUTES & ~(1 << 1)),
    "a key that can leave its parent": ek_public(EK, attributes=EK_ATTRIBUTES & ~(1 << 4)),
    "a key that was born elsewhere": ek_public(EK, attributes=EK_ATTRIBUTES & ~(1 << 5)),
    "a key without a symmetric one": ek_public(EK, symmetric=NULL.to_bytes(2, "big")),
    "an attestation key": public_area(AK),
}


@pytest.mark.parametrize("data", ENDORSEMENT_KEYS.values(), ids=ENDORSEMENT_KEYS.keys())
def test_no_credential_is_made_for(data):
    with pytest.raises(KeyBindingError):
        require_endorsement_key(parse_public(data))
    with pytest.raises(KeyBindingError):
        make_credential(parse_public(data), name=NAME, secret=SECRET)


@pytest.mark.parametrize("size", [0, 33])
def test_a_secret_fits_a_digest(size):
    with pytest.raises(EvidenceSizeError):
        make_credential(parse_public(ek_public(EK)), name=NAME, secret=bytes(size))


def test_an_enrolment_is_of_the_two_keys_of_one_tpm():
    found = verify_enrolment(
        enrolled(), authorities=KNOWN, attestation_key=NAME, endorsement_key=EK_DIGEST, now_ms=NOW_MS
    )
    assert found == TpmEnrolment(
        attestation_key=NAME, endorsement_key=EK_DIGEST, issued_at=NOW_MS, expires_at=NOW_MS + 3_600_000
    )


def test_the_secret_of_a_pending_enrolment_does_not_show():
    _, pending = begun()
    assert pending.secret.hex() not in repr(pending)
    assert repr(pending.secret) not in repr(pending)


def certificate(**changes):
    return load_certificate(ek_certificate(EK, **changes), what="EK")


BEGINNINGS = {
    "an attestation key that is not restricted": (
        {"attestation_key": public_area(AK, attributes=0x00040072)},
        KeyBindingError,
    ),
    "an attestation key that decrypts": ({"attestation_key": public_area(AK, attributes=0x00070072)}, KeyBindingError),
    "an endorsement key that signs": (
        {"endorsement_key": ek_public(EK, attributes=EK_ATTRIBUTES | 1 << 18)},
        KeyBindingError,
    ),
    "another endorsement key than the certificate's": ({"endorsement_key": ek_public(OTHER_EK)}, KeyBindingError),
    "a certificate under another root": ({"certificate": certificate(issuer=OTHER_ROOT)}, TrustAnchorError),
    "another root": ({"anchors": (load_certificate(OTHER_ROOT.der, what="root"),)}, TrustAnchorError),
    "no intermediate": ({"intermediates": ()}, TrustAnchorError),
    "a certificate of another use": ({"certificate": certificate(use=None)}, EndorsementFormatError),
    "a certificate of a key that signs": (
        {"certificate": certificate(usage="digital_signature")},
        CertificateChainError,
    ),
    "an authority's certificate": (
        {"certificate": load_certificate(INTERMEDIATE.der, what="EK")},
        EndorsementFormatError,
    ),
    "an expired certificate": ({"now": NOW + 31 * DAY}, CertificateValidityError),
    "a certificate from the future": ({"now": NOW - 31 * DAY}, CertificateValidityError),
    "half an attestation key": ({"attestation_key": public_area(AK)[:-1]}, EvidenceFormatError),
    "half an endorsement key": ({"endorsement_key": ek_public(EK)[:-1]}, EvidenceFormatError),
}


@pytest.mark.parametrize(("changes", "error"), BEGINNINGS.values(), ids=BEGINNINGS.keys())
def test_no_enrolment_begins_with(changes, error):
    with pytest.raises(error):
        begun(**changes)


@pytest.mark.parametrize("answer", [b"", b"s" * 32, b"s" * 31])
def test_a_wrong_answer_enrols_nothing(answer):
    _, pending = begun()
    with pytest.raises(KeyBindingError):
        finish_enrolment(pending, answer, authority=AUTHORITY, now_ms=NOW_MS, lifetime_s=3600)


def test_the_answer_to_another_challenge_enrols_nothing():
    credential, first = begun()
    _, second = begun()
    answer = activated(credential, EK, NAME)
    assert finish_enrolment(first, answer, authority=AUTHORITY, now_ms=NOW_MS, lifetime_s=60)
    with pytest.raises(KeyBindingError):
        finish_enrolment(second, answer, authority=AUTHORITY, now_ms=NOW_MS, lifetime_s=60)


@pytest.mark.parametrize("lifetime_s", [0, -1, LONGEST_S + 1])
def test_an_enrolment_has_a_lifetime(lifetime_s):
    credential, pending = begun()
    answer = activated(credential, EK, NAME)
    with pytest.raises(StaleEndorsementError):
        finish_enrolment(pending, answer, authority=AUTHORITY, now_ms=NOW_MS, lifetime_s=lifetime_s)


def tampered(name: str) -> bytes:
    value = json.loads(enrolment())
    value[name] = ("0" if value[name][0] != "0" else "1") + value[name][1:]
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def spelled(name: str) -> bytes:
    """Return an enrolment with the same bytes in a field of capitals."""
    value = json.loads(enrolment())
    return json.dumps(value | {name: value[name].upper()}, sort_keys=True, separators=(",", ":")).encode()


ENROLMENTS = {
    "a signer in capitals": (spelled("signer"), {}, EndorsementFormatError),
    "a signature in capitals": (spelled("signature"), {}, EndorsementFormatError),
    "another authority": (enrolment(authority=OTHER_AUTHORITY), {}, TrustAnchorError),
    "an authority that is not named": (enrolment(), {"authorities": ()}, TrustAnchorError),
    "another attestation key": (enrolment(key=OTHER_AK), {}, KeyBindingError),
    "another endorsement key": (enrolment(endorsement_key=OTHER_EK), {}, EndorsementMismatchError),
    "a time before it": (enrolment(), {"now_ms": NOW_MS - 1}, StaleEndorsementError),
    "a time after it": (enrolment(), {"now_ms": NOW_MS + 3_600_001}, StaleEndorsementError),
    "too long a life": (enrolment(expires_at=NOW_MS + LONGEST_S * 1000 + 1), {}, StaleEndorsementError),
    "a changed signature": (tampered("signature"), {}, EvidenceSignatureError),
    "a changed signer": (tampered("signer"), {}, TrustAnchorError),
    "a changed payload": (tampered("payload"), {}, EvidenceSignatureError),
    "something else": (b"{}", {}, EndorsementFormatError),
    "a trailing byte": (enrolment() + b" ", {}, EndorsementFormatError),
    "half of it": (enrolment()[:100], {}, EndorsementFormatError),
    "too many bytes": (b'{"payload":"' + b"A" * 5000 + b'"}', {}, EndorsementFormatError),
}


@pytest.mark.parametrize(("data", "changes", "error"), ENROLMENTS.values(), ids=ENROLMENTS.keys())
def test_an_enrolment_is_refused_with(data, changes, error):
    options = {"authorities": KNOWN, "attestation_key": NAME, "endorsement_key": EK_DIGEST, "now_ms": NOW_MS} | changes
    with pytest.raises(error) as refused:
        verify_enrolment(data, **options)
    assert isinstance(refused.value, AttestationError)


@pytest.mark.parametrize("moment", [NOW_MS, NOW_MS + 3_600_000])
def test_an_enrolment_holds_at_both_ends_of_its_time(moment):
    verify_enrolment(enrolment(), authorities=KNOWN, attestation_key=NAME, endorsement_key=EK_DIGEST, now_ms=moment)


def test_another_statement_of_the_same_authority_enrols_nothing():
    @dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
    class Other:
        TYPE = "confed/v1/other"
        attestation_key: bytes = NAME
        endorsement_key: bytes = EK_DIGEST
        issued_at: int = NOW_MS
        expires_at: int = NOW_MS + 1000

    data = json.dumps(statement.sign(Other(), AUTHORITY).to_json(), sort_keys=True, separators=(",", ":")).encode()
    with pytest.raises(EndorsementFormatError):
        verify_enrolment(data, authorities=KNOWN, attestation_key=NAME, endorsement_key=EK_DIGEST, now_ms=NOW_MS)


def test_the_world_is_aware_of_its_time():
    assert datetime.datetime.fromtimestamp(NOW_MS / 1000, datetime.UTC) == NOW
