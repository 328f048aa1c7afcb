"""Quotes of enclaves under a root of the test's own; what SGX shares with TDX is tested with TDX."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from intel_world import (
    ANCHORS,
    NOW,
    NOW_MS,
    OTHER_KEY,
    PLATFORM,
    REPORT_DATA,
    ROOT,
    SECOND,
    collateral,
    enclave_report,
    good,
    level,
    pck_certificate,
    pem,
    sgx_quote,
    stamp,
    tcb_info,
    td_quote,
)
from intel_world import quote as make_quote

from confed import record
from confed.attestation.evidence import Envelope, Expectation
from confed.attestation.tee import sgx
from confed.errors import (
    AlgorithmError,
    AttestationError,
    BindingMismatchError,
    CertificateChainError,
    EndorsementFormatError,
    EndorsementMismatchError,
    EvidenceFormatError,
    EvidenceSignatureError,
    EvidenceSizeError,
    EvidenceVersionError,
    KeyBindingError,
    MissingEndorsementError,
    NonceError,
    StaleEndorsementError,
    TrailingBytesError,
    TrustAnchorError,
)

DEBUG = b"\x07"
SIGNATURE = 48 + 384 + 4


def verify(quote, *, using=None, now=NOW, anchors=ANCHORS):
    return sgx.verify_quote(quote, collateral=(good("SGX"),) if using is None else using, now=now, anchors=anchors)


def flipped(data, position, bit=1):
    return data[:position] + bytes([data[position] ^ bit]) + data[position + 1 :]


SOUND = sgx_quote()


def test_a_genuine_quote_says_what_the_enclave_reported():
    claims = verify(
        sgx_quote(
            cpu_svn=b"1", misc_select=b"\x01", isv_ext_prod_id=b"2", attributes=b"\x85", xfrm=b"\xe7\x02",
            mr_enclave=b"3", mr_signer=b"4", config_id=b"5", isv_prod_id=b"\x01\x02", isv_svn=b"\x03\x04",
            config_svn=b"\x05\x06", isv_family_id=b"6", report_data=b"7",
        )
    )  # fmt: skip
    report = claims.report
    assert (claims.quote_version, claims.debug) == (3, False)
    assert report.cpu_svn == b"1".ljust(16, b"\x00")
    assert report.misc_select == b"\x01\x00\x00\x00"
    assert report.isv_ext_prod_id == b"2".ljust(16, b"\x00")
    assert report.attributes == b"\x85".ljust(8, b"\x00")
    assert report.xfrm == b"\xe7\x02".ljust(8, b"\x00")
    assert (report.mr_enclave, report.mr_signer) == (b"3".ljust(32, b"\x00"), b"4".ljust(32, b"\x00"))
    assert report.config_id == b"5".ljust(64, b"\x00")
    assert (report.isv_prod_id, report.isv_svn, report.config_svn) == (0x0201, 0x0403, 0x0605)
    assert report.isv_family_id == b"6".ljust(16, b"\x00")
    assert report.report_data == b"7".ljust(64, b"\x00")
    assert (claims.tcb.status, claims.tcb.evaluation_number) == ("UpToDate", 18)
    assert json.loads(json.dumps(record.to_json(claims)))["report"]["isv_svn"] == 0x0403


REFUSED = {
    "nothing": (lambda: b"", EvidenceFormatError),
    "more than the bound": (lambda: SOUND + bytes(16 * 1024), EvidenceSizeError),
    "a byte after it": (lambda: SOUND + b"\x01", TrailingBytesError),
    "a quote of TDX": (td_quote, EvidenceVersionError),
    "an enclave in version 4": (
        lambda: make_quote(enclave_report(), version=4, tee=0),
        EvidenceVersionError,
    ),
    "P-384": (lambda: sgx_quote(options={"algorithm": 3}), AlgorithmError),
    "another vendor's quoting enclave": (lambda: sgx_quote(options={"vendor": bytes(16)}), EvidenceVersionError),
    "a PCK certificate only named": (lambda: sgx_quote(options={"certification": 2}), MissingEndorsementError),
    "a changed report": (lambda: flipped(SOUND, 48 + 64), EvidenceSignatureError),
    "a changed signature": (lambda: flipped(SOUND, SIGNATURE + 9), EvidenceSignatureError),
    "another attestation key": (lambda: sgx_quote(options={"bound_key": OTHER_KEY}), KeyBindingError),
    "another platform's QE report": (lambda: sgx_quote(options={"pck_key": OTHER_KEY}), EvidenceSignatureError),
    "the quoting enclave of TDs": (
        lambda: sgx_quote(options={"qe_fields": {"isv_prod_id": b"\x02"}}),
        KeyBindingError,
    ),
    "a chain that is not one": (
        lambda: sgx_quote(options={"chain": pem(pck_certificate(by=OTHER_KEY), PLATFORM, ROOT)}),
        CertificateChainError,
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_genuine_is_refused_by_its_reason(name):
    make, error = REFUSED[name]
    with pytest.raises(error):
        verify(make())


@pytest.mark.parametrize(
    ("using", "error"),
    [
        ([], MissingEndorsementError),
        ([good("TDX")], EndorsementMismatchError),
        ([collateral("SGX", tcb=tcb_info("SGX", nextUpdate=stamp(NOW - SECOND)))], StaleEndorsementError),
        ([collateral("SGX", key=OTHER_KEY)], EvidenceSignatureError),
        ([b"\x30\x00"], EndorsementFormatError),
    ],
    ids=["none", "of TDX", "stale", "of another key", "no collateral"],
)
def test_collateral_that_does_not_serve_is_refused_by_its_reason(using, error):
    with pytest.raises(error):
        verify(SOUND, using=using)


def test_zeros_after_a_quote_are_padding():
    assert verify(SOUND + bytes(70)) == verify(SOUND)


def test_a_quote_cut_anywhere_is_refused():
    for length in range(len(SOUND)):
        with pytest.raises(AttestationError):
            verify(SOUND[:length])


def test_debug_evidence_is_genuine_with_its_signature_and_only_then():
    debug = sgx_quote(attributes=DEBUG)
    claims = verify(debug)
    assert claims.debug
    assert claims.tcb.status == "NotEvaluated"
    for position in (50, 200, SIGNATURE, SIGNATURE + 70, SIGNATURE + 128, SIGNATURE + 128 + 384):
        with pytest.raises((EvidenceSignatureError, KeyBindingError)):
            verify(flipped(debug, position))


def test_every_status_of_intels_comes_through():
    for status in ("SWHardeningNeeded", "ConfigurationAndSWHardeningNeeded", "OutOfDate", "Revoked"):
        judged = collateral("SGX", tcb=tcb_info("SGX", levels=[level(5, status, advisories=["INTEL-SA-00289"])]))
        assert verify(SOUND, using=[judged]).tcb.status == status
    none = collateral("SGX", tcb=tcb_info("SGX", levels=[level(6, "UpToDate")]))
    assert verify(SOUND, using=[none]).tcb.status == "NoMatchingLevel"


def files(evidence, *endorsements, anchors=ANCHORS, **expected):
    expectation = Expectation(**({"nonce": None, "report_data": None} | expected))
    return sgx.verify_files(evidence, endorsements, expectation=expectation, now=NOW, anchors=anchors)


def test_files_hold_a_quote_in_binary_or_in_hexadecimal():
    assert files(SOUND, good("SGX")) == files(SOUND.hex().encode() + b"\n", good("SGX")) == verify(SOUND)
    with pytest.raises(TrustAnchorError):
        files(SOUND, good("SGX"), anchors=None)
    with pytest.raises(EndorsementFormatError):
        files(SOUND, b"an event log", good("SGX"))


def test_what_the_enclave_was_asked_for_is_compared():
    files(SOUND, good("SGX"), nonce=b"n" * 32, report_data=REPORT_DATA)
    with pytest.raises(NonceError):
        files(SOUND, good("SGX"), nonce=b"other")
    with pytest.raises(BindingMismatchError):
        files(SOUND, good("SGX"), report_data=b"other")


def drive(quote, **parts):
    sealed = Envelope(profile="sgx/1", evidence=quote, binding=b"", **parts)
    return sgx.SgxVerifier().verify(sealed, endorsements=(good("SGX"),), now_ms=NOW_MS, anchors=ANCHORS)


def test_the_driver_reports_measurement_configuration_and_binding():
    digest = bytes(range(32))
    report = drive(sgx_quote(config_id=digest, attributes=b"\x85"))
    assert report.report_data == REPORT_DATA
    assert report.measurement == "e1" * 32
    assert report.configuration == digest.hex()
    assert (report.environment, report.debug, report.shared, report.layers) == ("", False, False, ())
    assert isinstance(report.details, sgx.SgxClaims)
    assert drive(sgx_quote(config_id=digest + b"\x01")).configuration == (digest + b"\x01").ljust(64, b"\x00").hex()
    assert drive(sgx_quote(attributes=DEBUG)).debug


def test_an_enclave_has_no_event_log():
    with pytest.raises(EvidenceFormatError):
        drive(SOUND, event_logs=(b"log",))


def test_the_driver_says_what_it_verifies():
    assert (sgx.SgxVerifier.PROFILE, sgx.SgxVerifier.EVIDENCE_CLASS) == ("sgx/1", "intel-sgx")
    assert sgx.SgxVerifier.HARDWARE_ROOTED is True


@settings(max_examples=150, deadline=None)
@given(st.integers(0, len(SOUND) * 8 - 1))
def test_no_bit_of_a_quote_can_be_changed(bit):
    try:
        found = verify(flipped(SOUND, bit // 8, 1 << bit % 8))
    except AttestationError:
        return
    assert found == verify(SOUND)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=1200), st.sampled_from([b"", SOUND[:48], SOUND[: SIGNATURE - 4], SOUND[:1000]]))
def test_whatever_the_bytes_nothing_but_an_attestation_error_is_raised(tail, head):
    with pytest.raises(AttestationError):
        files(head + tail, good("SGX"))
