"""OCSP responses: who may speak of a certificate, when, and what each status means."""

import contextlib

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509 import ocsp as x509_ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID
from endorsement_world import twice
from hypothesis import given, settings
from hypothesis import strategies as st
from nvidia_world import DAY, DER, FAMILY, GPU, NOW, OTHER_ROOT, PROVISIONER, issue, key, make_response

from confed.attestation.certificates import load_certificate
from confed.attestation.tee import ocsp
from confed.errors import (
    AlgorithmError,
    AttestationError,
    CertificateChainError,
    CertificateValidityError,
    EndorsementFormatError,
    EndorsementMismatchError,
    RevocationUnknownError,
    RevokedError,
    StaleEndorsementError,
)

DEVICE = GPU.authorities[1]
OCSP_USAGE = ((x509.ExtendedKeyUsage([ExtendedKeyUsageOID.OCSP_SIGNING]), False),)
REVOKED = x509_ocsp.OCSPCertStatus.REVOKED


def responder(by=PROVISIONER, extensions=OCSP_USAGE, **changes):
    return issue("TEST OCSP Responder", by=by, ca=False, extensions=extensions, **changes)


RESPONSE = make_response(DEVICE, PROVISIONER, responder=responder())


def status(data, *, subject=DEVICE, issuer=PROVISIONER, now=NOW, nonce=None):
    return ocsp.status_of(
        ocsp.load_response(data),
        load_certificate(subject.der, what="subject"),
        issuer=load_certificate(issuer.der, what="issuer"),
        now=now,
        nonce=nonce,
    )


ACCEPTED = {
    "signed by the issuer itself": {},
    "signed by a responder of the issuer": {"responder": responder()},
    "naming its responder by name": {"by_name": True},
    "with SHA-1 in the CertID, which only names": {"hashed": hashes.SHA1()},  # noqa: S303
    "with SHA-256 in the CertID": {"hashed": hashes.SHA256()},
}


@pytest.mark.parametrize("changes", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_a_good_status_is_good(changes):
    assert status(make_response(DEVICE, PROVISIONER, **changes)) is ocsp.OcspStatus.GOOD


def test_hold_and_unknown_are_told_apart():
    held = make_response(DEVICE, PROVISIONER, status=REVOKED, reason=x509.ReasonFlags.certificate_hold)
    unknown = make_response(DEVICE, PROVISIONER, status=x509_ocsp.OCSPCertStatus.UNKNOWN)
    assert status(held) is ocsp.OcspStatus.HOLD
    assert status(unknown) is ocsp.OcspStatus.UNKNOWN


REFUSED = {
    "revoked": ({"status": REVOKED}, RevokedError),
    "revoked for a reason": ({"status": REVOKED, "reason": x509.ReasonFlags.key_compromise}, RevokedError),
    "removed from hold and yet revoked": (
        {"status": REVOKED, "reason": x509.ReasonFlags.remove_from_crl},
        RevokedError,
    ),
    "a weak signature": ({"algorithm": hashes.SHA224()}, AlgorithmError),
    "a response of yesterday": ({"end": NOW - DAY / 2}, StaleEndorsementError),
    "a response of tomorrow": ({"start": NOW + DAY / 2}, StaleEndorsementError),
    "no end to its time": ({"end": None}, StaleEndorsementError),
    "a responder of another authority": ({"responder": responder(by=OTHER_ROOT)}, CertificateChainError),
    "a responder not certified for OCSP": ({"responder": responder(extensions=())}, RevocationUnknownError),
    "a responder certified for something else": (
        {"responder": responder(extensions=((x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), False),))},
        RevocationUnknownError,
    ),
    "a responder that has expired": ({"responder": responder(end=NOW - DAY / 4)}, CertificateValidityError),
    "a responder that is not valid yet": ({"responder": responder(start=NOW + DAY / 4)}, CertificateValidityError),
    "a responder that did not come along": (
        {"responder": responder(), "brought": (OTHER_ROOT.certificate,)},
        RevocationUnknownError,
    ),
    "too many certificates": ({"brought": (OTHER_ROOT.certificate,) * 5}, EndorsementFormatError),
}


@pytest.mark.parametrize(("changes", "error"), REFUSED.values(), ids=REFUSED.keys())
def test_a_response_is_refused_with(changes, error):
    with pytest.raises(error) as caught:
        status(make_response(DEVICE, PROVISIONER, **changes))
    assert caught.type is error


def test_a_response_is_refused_a_second_after_its_time_and_accepted_at_its_ends():
    data = make_response(DEVICE, PROVISIONER, end=NOW)
    second = DAY / 86400
    assert status(data, now=NOW) is ocsp.OcspStatus.GOOD
    assert status(data, now=NOW - DAY) is ocsp.OcspStatus.GOOD
    for moment in (NOW + second, NOW - DAY - second):
        with pytest.raises(StaleEndorsementError):
            status(data, now=moment)


def test_a_response_about_another_certificate_says_nothing_of_this_one():
    data = make_response(PROVISIONER, FAMILY)
    response = ocsp.load_response(data)
    subject, issuer = (load_certificate(part.der, what="x") for part in (DEVICE, PROVISIONER))
    assert not ocsp.speaks_of(response, subject, issuer=issuer)
    with pytest.raises(EndorsementMismatchError):
        status(data)


def test_two_statuses_of_one_certificate_are_none():
    with pytest.raises(EndorsementMismatchError):
        status(twice(make_response(DEVICE, PROVISIONER)))


@pytest.mark.parametrize("critical", [False, True])
def test_an_extension_that_is_not_known_may_be_there_unless_it_is_critical(critical):
    extension = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"\x05\x00")
    data = make_response(DEVICE, PROVISIONER, extensions=((extension, critical),))
    if not critical:
        assert status(data) is ocsp.OcspStatus.GOOD
        return
    with pytest.raises(EndorsementFormatError):
        status(data)


def test_a_serial_number_of_another_issuer_is_another_certificate():
    twin = issue("TEST twin", by=OTHER_ROOT, serial=DEVICE.certificate.serial_number)
    with pytest.raises(EndorsementMismatchError):
        status(make_response(twin, OTHER_ROOT))


def test_an_issuers_name_with_another_key_is_another_issuer():
    false = issue("TEST GH100 Provisioner", private=key("false"))
    with pytest.raises(EndorsementMismatchError):
        status(make_response(DEVICE, false))


def test_a_signature_of_another_key_is_refused():
    data = make_response(DEVICE, PROVISIONER)
    with pytest.raises(RevocationUnknownError):
        status(data[:-1] + bytes([data[-1] ^ 1]))


def test_what_is_signed_cannot_be_changed():
    data = make_response(DEVICE, PROVISIONER)
    parsed = x509_ocsp.load_der_ocsp_response(data)
    position = data.index(parsed.tbs_response_bytes)
    refused = 0
    for offset in range(position, position + len(parsed.tbs_response_bytes), 3):
        changed = bytearray(data)
        changed[offset] ^= 1
        with pytest.raises(AttestationError):
            status(bytes(changed))
        refused += 1
    assert refused > 50


def test_a_nonce_is_compared_where_the_caller_sent_one():
    data = make_response(DEVICE, PROVISIONER, nonce=b"n" * 16)
    assert status(data, nonce=b"n" * 16) is ocsp.OcspStatus.GOOD
    assert status(data) is ocsp.OcspStatus.GOOD
    for response, nonce in ((data, b"m" * 16), (make_response(DEVICE, PROVISIONER), b"n" * 16)):
        with pytest.raises(RevocationUnknownError):
            status(response, nonce=nonce)


def test_an_rsa_issuer_is_known_too():
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    authority = issue("TEST RSA", private=private, algorithm=hashes.SHA256())
    subject = issue("TEST subject", by=authority, ca=False, algorithm=hashes.SHA256())
    data = make_response(subject, authority, algorithm=hashes.SHA256())
    assert status(data, subject=subject, issuer=authority) is ocsp.OcspStatus.GOOD


def test_an_answer_without_a_status_is_refused():
    data = x509_ocsp.OCSPResponseBuilder.build_unsuccessful(x509_ocsp.OCSPResponseStatus.TRY_LATER)
    with pytest.raises(EndorsementFormatError):
        ocsp.load_response(data.public_bytes(serialization.Encoding.DER))


@pytest.mark.parametrize("data", [b"", b"0", DEVICE.certificate.public_bytes(DER), bytes(70_000)])
def test_other_bytes_are_no_response(data):
    assert not ocsp.is_response(data)
    with pytest.raises(EndorsementFormatError):
        ocsp.load_response(data)


def test_a_response_is_told_by_its_beginning():
    assert ocsp.is_response(make_response(DEVICE, PROVISIONER))
    assert not ocsp.is_response(b"\x30\xff\x0a")


def test_nothing_may_follow_or_be_missing():
    data = make_response(DEVICE, PROVISIONER)
    for changed in (data + b"\x00", *(data[:size] for size in range(0, len(data), 7))):
        with pytest.raises(EndorsementFormatError):
            ocsp.load_response(changed)


@given(st.integers(0, 5000), st.integers(1, 255))
@settings(max_examples=200)
def test_whatever_is_changed_nothing_but_an_attestation_error_is_raised(position, change):
    data = bytearray(RESPONSE)
    data[position % len(data)] ^= change
    with contextlib.suppress(AttestationError):
        status(bytes(data))
