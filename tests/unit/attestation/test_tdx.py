"""Quotes of TDs under a root of the test's own: what is genuine, and why what is not is refused."""

import dataclasses
import datetime
import functools
import hashlib
import json

import pytest
from cryptography import x509
from event_log_world import ACTION, SEPARATOR, ccel, extend
from hypothesis import given, settings
from hypothesis import strategies as st
from intel_world import (
    ANCHORS,
    ATTESTATION_KEY,
    DAY,
    DER,
    FMSPC,
    INSTANCE,
    MODULE_SVN,
    NOW,
    NOW_MS,
    OTHER_FMSPC,
    OTHER_KEY,
    OTHER_ROOT,
    PCK_CHAIN,
    PCK_NAME,
    PLATFORM,
    PLATFORM_KEY,
    PLATFORM_NAME,
    PPID,
    REPORT_DATA,
    ROOT,
    ROOT_KEY,
    ROOT_NAME,
    SECOND,
    TCB_KEY,
    TCB_NAME,
    TCB_SIGNER,
    YEAR,
    collateral,
    collateral_fields,
    crl,
    good,
    issue,
    level,
    pck_certificate,
    pem,
    qe_identity,
    raw_signature,
    sgx_quote,
    stamp,
    tcb_info,
    td_quote,
    td_report,
    tlv,
)
from intel_world import quote as make_quote

from confed import record
from confed.attestation.certificates import load_certificate
from confed.attestation.evidence import Envelope, Expectation
from confed.attestation.tee import intel_collateral, intel_dcap, intel_links, intel_quote, tdx
from confed.errors import (
    AlgorithmError,
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
    EvidenceVersionError,
    KeyBindingError,
    MissingEndorsementError,
    NonceError,
    RevocationUnknownError,
    RevokedError,
    StaleEndorsementError,
    TrailingBytesError,
    TrustAnchorError,
)

DEBUG = bytes.fromhex("0100001000000000")
# The same name and key, so every signature below it holds: only its bytes differ.
REISSUED_ROOT = issue(ROOT_NAME, ROOT_KEY, issuer=ROOT_NAME, by=ROOT_KEY, path_length=1, end=NOW + 21 * YEAR, serial=1)
OTHER_PLATFORM = issue(PLATFORM_NAME, OTHER_KEY, issuer=ROOT_NAME, by=OTHER_KEY, path_length=0, serial=2)


def verify(quote, *, using=None, now=NOW, anchors=ANCHORS, event_logs=()):
    found = (good(),) if using is None else using
    return tdx.verify_quote(quote, collateral=found, now=now, anchors=anchors, event_logs=event_logs)


def with_chain(*certificates, **options):
    return td_quote(options={"chain": pem(*certificates), **options})


def flipped(data, position, bit=1):
    return data[:position] + bytes([data[position] ^ bit]) + data[position + 1 :]


@functools.cache
def sound(version=4):
    return td_quote(version=version)


@functools.cache
def under_debug():
    return td_quote(td_attributes=DEBUG)


@pytest.mark.parametrize("version", [4, 5])
def test_a_genuine_quote_says_what_the_td_reported(version):
    fields = {
        "mr_seam": b"1", "mr_signer_seam": b"", "mr_td": b"3", "mr_config_id": b"4", "mr_owner": b"5",
        "mr_owner_config": b"6", "rtmr0": b"7", "rtmr1": b"8", "rtmr2": b"9", "rtmr3": b"10",
        "report_data": b"11",
    }  # fmt: skip
    claims = verify(td_quote(version=version, **fields))
    report = claims.report
    assert claims.quote_version == version
    assert not claims.debug
    assert [
        report.mr_seam, report.mr_signer_seam, report.mr_td, report.mr_config_id, report.mr_owner,
        report.mr_owner_config, *report.rtmr,
    ] == [value.ljust(48, b"\x00") for name, value in fields.items() if name != "report_data"]  # fmt: skip
    assert report.report_data == b"11".ljust(64, b"\x00")
    assert report.tee_tcb_svn == MODULE_SVN
    assert report.seam_attributes == bytes(8)
    assert report.td_attributes == bytes.fromhex("0000001000000000")
    assert report.xfam == bytes.fromhex("e702060000000000")
    assert (report.tee_tcb_svn2, report.mr_service_td) == ((MODULE_SVN, bytes(48)) if version == 5 else (b"", b""))


def test_a_quote_of_version_5_may_hold_a_report_of_tdx_1_0():
    claims = verify(make_quote(td_report(), version=5))
    assert (claims.quote_version, claims.report.mr_service_td) == (5, b"")


def test_claims_say_how_intel_judges_the_platform_and_which_it_is():
    claims = verify(sound())
    assert claims.platform == intel_dcap.PlatformClaims(
        fmspc=FMSPC,
        ppid=PPID,
        platform_instance_id=INSTANCE,
        pce_id=b"\x00\x00",
        pce_svn=11,
        cpu_svn=bytes([5] * 16),
        sgx_type="scalable",
    )
    assert claims.tcb == intel_dcap.TcbClaims(
        status="UpToDate",
        platform_status="UpToDate",
        qe_status="UpToDate",
        advisory_ids=(),
        tcb_date="2026-03-01T00:00:00Z",
        qe_tcb_date="2026-03-01T00:00:00Z",
        evaluation_number=18,
        collateral_begins=stamp(NOW - DAY),
        collateral_ends=stamp(NOW + 20 * DAY),
        refusal="",
    )


def test_a_platform_with_one_package_has_no_instance():
    claims = verify(with_chain(pck_certificate(instance=None, sgx_type=0), PLATFORM, ROOT))
    assert (claims.platform.platform_instance_id, claims.platform.sgx_type) == (b"", "standard")


def test_claims_are_a_record():
    told = json.loads(json.dumps(record.to_json(verify(sound(5)))))
    assert told["report"]["mr_td"] == "7d" * 48
    assert told["platform"]["fmspc"] == FMSPC.hex()
    assert told["tcb"]["status"] == "UpToDate"


def test_the_smaller_evaluation_number_counts():
    old = collateral(qe=qe_identity(tcbEvaluationDataNumber=16))
    assert verify(sound(), using=[old]).tcb.evaluation_number == 16


FORMS = {
    "nothing": (b"", EvidenceFormatError),
    "zeros": (bytes(1000), EvidenceVersionError),
    "more than the bound": (sound() + bytes(16 * 1024), EvidenceSizeError),
    "a byte after it": (sound() + b"\x01", TrailingBytesError),
    "zeros, then a byte": (sound() + bytes(100) + b"\x01", TrailingBytesError),
    "a quote of SGX": (sgx_quote(), EvidenceVersionError),
    "another TEE": (td_quote(options={"tee": 0x82}), EvidenceVersionError),
    "version 3": (make_quote(td_report(), version=3), EvidenceVersionError),
    "version 6": (make_quote(td_report(), version=6), EvidenceVersionError),
    "P-384": (td_quote(options={"algorithm": 3}), AlgorithmError),
    "another vendor's quoting enclave": (td_quote(options={"vendor": bytes(16)}), EvidenceVersionError),
    "a body of SGX in version 5": (td_quote(version=5, options={"body_type": 1}), EvidenceVersionError),
    "a body that is not known": (td_quote(version=5, options={"body_type": 4}), EvidenceVersionError),
    "a body of the other type's size": (td_quote(version=5, options={"body_type": 2}), EvidenceFormatError),
    "certification data of another type": (td_quote(options={"outer": 5}), EvidenceVersionError),
    "a PCK certificate only named": (td_quote(options={"certification": 3}), MissingEndorsementError),
    "authentication data of another size": (
        td_quote(options={"authentication": bytes(31)}),
        EvidenceFormatError,
    ),
    "no PCK certificate": (td_quote(options={"chain": b""}), EndorsementFormatError),
    "a PCK certificate that is none": (td_quote(options={"chain": b"-----BEGIN"}), EndorsementFormatError),
    "more certificates than there are": (with_chain(pck_certificate(), PLATFORM, ROOT, ROOT), EndorsementFormatError),
    "text between the certificates": (
        td_quote(options={"chain": PCK_CHAIN.replace(b"-----\n-----", b"-----\nx\n-----")}),
        EndorsementFormatError,
    ),
    "text after the certificates": (td_quote(options={"chain": PCK_CHAIN + b"x"}), EndorsementFormatError),
    "text before the certificates": (td_quote(options={"chain": b"-----BEGIN\n" + PCK_CHAIN}), EndorsementFormatError),
    "something else in PEM beside the certificates": (
        td_quote(options={"chain": PCK_CHAIN + b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"}),
        EndorsementFormatError,
    ),
    "a PCK certificate of no platform": (
        with_chain(issue(PCK_NAME, OTHER_KEY, issuer=PLATFORM_NAME, by=PLATFORM_KEY, ca=False), PLATFORM, ROOT),
        EvidenceFormatError,
    ),
    "another kind of certificate": (with_chain(TCB_SIGNER, ROOT), CertificateChainError),
    "a PCK extension that is not one": (
        with_chain(pck_certificate(extra=tlv(0x30, b"\x05\x00")), PLATFORM, ROOT),
        EvidenceFormatError,
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_what_is_not_of_the_one_form_is_refused(name):
    data, error = FORMS[name]
    with pytest.raises(error):
        verify(data)


@pytest.mark.parametrize("count", [1, 70, 3000])
def test_zeros_after_a_quote_are_padding(count):
    assert verify(sound() + bytes(count)) == verify(sound())


@pytest.mark.parametrize("version", [4, 5])
def test_a_quote_cut_anywhere_is_refused(version):
    whole = sound(version)
    for length in range(len(whole)):
        with pytest.raises(AttestationError):
            verify(whole[:length])


def inner_bytes(quote, tail):
    """Return the quote with bytes after its certification data, every length grown to hold them."""
    body, data = quote[:632], quote[636:]
    outer, inner = data[:128] + data[128:130], data[134:] + tail
    data = outer + len(inner).to_bytes(4, "little") + inner
    return body + len(data).to_bytes(4, "little") + data


def test_bytes_inside_a_quote_that_no_part_needs_are_refused():
    assert inner_bytes(sound(), b"") == sound()
    for tail in (b"\x00", b"\x01"):
        with pytest.raises(TrailingBytesError):
            verify(inner_bytes(sound(), tail))
    body, data = sound()[:632], sound()[636:] + b"\x00"
    with pytest.raises(TrailingBytesError):
        verify(body + len(data).to_bytes(4, "little") + data)


NOT_GENUINE = {
    "a quote signed by another key": (lambda: td_quote(options={"bound_key": OTHER_KEY}), KeyBindingError),
    "a QE report that another platform signed": (
        lambda: td_quote(options={"pck_key": OTHER_KEY}),
        EvidenceSignatureError,
    ),
    "a quoting enclave of another signer": (
        lambda: td_quote(options={"qe_fields": {"mr_signer": b"\x01" * 32}}),
        KeyBindingError,
    ),
    "a quoting enclave of another product": (
        lambda: td_quote(options={"qe_fields": {"isv_prod_id": b"\x01"}}),
        KeyBindingError,
    ),
    "a quoting enclave with other attributes": (
        lambda: td_quote(options={"qe_fields": {"attributes": b"\x35"}}),
        KeyBindingError,
    ),
    "a quoting enclave with something selected": (
        lambda: td_quote(options={"qe_fields": {"misc_select": b"\x01"}}),
        KeyBindingError,
    ),
    "a quoting enclave in debug mode": (
        lambda: td_quote(options={"qe_fields": {"attributes": b"\x17"}}),
        KeyBindingError,
    ),
    "a QE report that binds more than a hash": (
        lambda: td_quote(options={"qe_fields": {"report_data": b"\x01" * 64}}),
        KeyBindingError,
    ),
    "a PCK certificate that its authority did not sign": (
        lambda: with_chain(pck_certificate(by=OTHER_KEY), PLATFORM, ROOT),
        CertificateChainError,
    ),
    "a PCK certificate of another root's authority": (
        lambda: with_chain(pck_certificate(by=OTHER_KEY), OTHER_PLATFORM, OTHER_ROOT),
        TrustAnchorError,
    ),
    "a PCK certificate without its authority": (lambda: with_chain(pck_certificate()), TrustAnchorError),
    "a PCK chain without its root": (lambda: with_chain(pck_certificate(), PLATFORM), TrustAnchorError),
    "a sound chain beside another root of that name": (
        lambda: with_chain(pck_certificate(), PLATFORM, OTHER_ROOT),
        TrustAnchorError,
    ),
    "a sound chain beside the root's key in another certificate": (
        lambda: with_chain(pck_certificate(), PLATFORM, REISSUED_ROOT),
        TrustAnchorError,
    ),
    "a PCK certificate straight from the root": (
        lambda: with_chain(pck_certificate(issuer=ROOT_NAME, by=ROOT_KEY), ROOT),
        CertificateChainError,
    ),
    "a chain in another order": (lambda: with_chain(pck_certificate(), ROOT, PLATFORM), CertificateChainError),
    "a PCK certificate that has expired": (
        lambda: with_chain(pck_certificate(end=NOW - SECOND), PLATFORM, ROOT),
        CertificateValidityError,
    ),
    "a PCK certificate that is not valid yet": (
        lambda: with_chain(pck_certificate(start=NOW + SECOND), PLATFORM, ROOT),
        CertificateValidityError,
    ),
}


@pytest.mark.parametrize("name", NOT_GENUINE)
def test_what_is_not_genuine_is_refused_by_its_reason(name):
    make, error = NOT_GENUINE[name]
    with pytest.raises(error) as caught:
        verify(make())
    assert type(caught.value) is error


REVOCATION = {
    "a revoked PCK certificate": ({"pck_crl": lambda: crl(PLATFORM_NAME, PLATFORM_KEY, revoked=[9])}, RevokedError),
    "a revoked authority": ({"root_crl": lambda: crl(ROOT_NAME, ROOT_KEY, revoked=[2])}, RevokedError),
    "a revoked signer of TCB data": ({"root_crl": lambda: crl(ROOT_NAME, ROOT_KEY, revoked=[3])}, RevokedError),
    "a revoked root": ({"root_crl": lambda: crl(ROOT_NAME, ROOT_KEY, revoked=[1])}, RevokedError),
    "another authority's list": ({"pck_crl": lambda: crl(ROOT_NAME, ROOT_KEY)}, RevocationUnknownError),
    "a list that the authority did not sign": (
        {"pck_crl": lambda: crl(PLATFORM_NAME, OTHER_KEY)},
        RevocationUnknownError,
    ),
    "a list of the root that it did not sign": (
        {"root_crl": lambda: crl(ROOT_NAME, OTHER_KEY)},
        RevocationUnknownError,
    ),
    "the authority's list in the root's place": (
        {"root_crl": lambda: crl(PLATFORM_NAME, PLATFORM_KEY)},
        RevocationUnknownError,
    ),
}


@pytest.mark.parametrize("name", REVOCATION)
def test_what_is_revoked_or_not_known_to_be_unrevoked_is_refused(name):
    changes, error = REVOCATION[name]
    with pytest.raises(error):
        verify(sound(), using=[collateral(**{key: make() for key, make in changes.items()})])


FAKE_SIGNER = issue(TCB_NAME, OTHER_KEY, issuer=ROOT_NAME, by=OTHER_KEY, ca=False, serial=3)
COLLATERAL = {
    "none": (list, MissingEndorsementError),
    "of another platform family": (
        lambda: [collateral(tcb=tcb_info(fmspc=OTHER_FMSPC.hex()))],
        EndorsementMismatchError,
    ),
    "of SGX": (lambda: [good("SGX")], EndorsementMismatchError),
    "of another provisioning enclave": (
        lambda: [collateral(tcb=tcb_info(pceId="0001"))],
        EndorsementMismatchError,
    ),
    "with signed TCB info that is not of its form": (
        lambda: [collateral(tcb=tcb_info(tcbType="x"))],
        EndorsementFormatError,
    ),
    "with a signed QE identity of another version": (
        lambda: [collateral(qe=qe_identity(version=9))],
        EndorsementFormatError,
    ),
    "with signed TCB info of another version": (
        lambda: [collateral(tcb=tcb_info(version=2))],
        EndorsementFormatError,
    ),
    "signed by another key": (lambda: [collateral(key=OTHER_KEY)], EvidenceSignatureError),
    "with a signer of another root": (
        lambda: [collateral(key=OTHER_KEY, chain=(FAKE_SIGNER, OTHER_ROOT))],
        TrustAnchorError,
    ),
    "with a sound signer beside another root of that name": (
        lambda: [collateral(chain=(TCB_SIGNER, OTHER_ROOT))],
        TrustAnchorError,
    ),
    "with another root beside the signer of TCB info": (
        lambda: [collateral(tcb_info_issuer_chain=pem(TCB_SIGNER, REISSUED_ROOT).decode())],
        TrustAnchorError,
    ),
    "with a signed QE identity whose mask is short": (
        lambda: [collateral(qe=qe_identity(attributesMask="FB"))],
        EndorsementFormatError,
    ),
    "with a signed QE identity that selects nothing": (
        lambda: [collateral(qe=qe_identity(miscselect=None))],
        EndorsementFormatError,
    ),
    "with a sound authority's list beside another root of that name": (
        lambda: [collateral(crl_chain=(PLATFORM, OTHER_ROOT))],
        TrustAnchorError,
    ),
    "with another root beside the signer of the QE identity": (
        lambda: [collateral(qe_identity_issuer_chain=pem(TCB_SIGNER, REISSUED_ROOT).decode())],
        TrustAnchorError,
    ),
    "with a signer that the root did not issue": (
        lambda: [collateral(key=OTHER_KEY, chain=(FAKE_SIGNER, ROOT))],
        CertificateChainError,
    ),
    "with TCB info of which a word was changed": (
        lambda: [collateral(tcb_info=json.dumps(tcb_info(tcbEvaluationDataNumber=99)))],
        EvidenceSignatureError,
    ),
    "with a QE identity of which a word was changed": (
        lambda: [collateral(qe_identity=json.dumps(qe_identity(isvprodid=9)))],
        EvidenceSignatureError,
    ),
    "with signatures exchanged": (
        lambda: [
            json.dumps(
                (fields := collateral_fields())
                | {
                    "tcb_info_signature": fields["qe_identity_signature"],
                    "qe_identity_signature": fields["tcb_info_signature"],
                }
            ).encode()
        ],
        EvidenceSignatureError,
    ),
    "more than can be chosen from": (lambda: [good()] * 33, EndorsementFormatError),
}


@pytest.mark.parametrize("name", COLLATERAL)
def test_collateral_that_does_not_serve_is_refused_by_its_reason(name):
    make, error = COLLATERAL[name]
    with pytest.raises(error) as caught:
        verify(sound(), using=make())
    assert type(caught.value) is error


def test_the_first_collateral_of_the_platform_that_is_of_this_time_is_used():
    other = collateral(tcb=tcb_info(fmspc=OTHER_FMSPC.hex()))
    old = collateral(tcb=tcb_info(nextUpdate=stamp(NOW - SECOND)))
    newer = collateral(tcb=tcb_info(tcbEvaluationDataNumber=20), qe=qe_identity(tcbEvaluationDataNumber=20))
    assert verify(sound(), using=[other, old, newer, good()]).tcb.evaluation_number == 20
    with pytest.raises(StaleEndorsementError):
        verify(sound(), using=[other, old])


LATE, EARLY = stamp(NOW + SECOND), stamp(NOW - SECOND)
STALE = {
    "TCB info that has expired": lambda: collateral(tcb=tcb_info(nextUpdate=EARLY)),
    "TCB info of the future": lambda: collateral(tcb=tcb_info(issueDate=LATE)),
    "a QE identity that has expired": lambda: collateral(qe=qe_identity(nextUpdate=EARLY)),
    "a QE identity of the future": lambda: collateral(qe=qe_identity(issueDate=LATE)),
    "a root's list that has expired": lambda: collateral(root_crl=crl(ROOT_NAME, ROOT_KEY, end=NOW - SECOND)),
    "a root's list of the future": lambda: collateral(root_crl=crl(ROOT_NAME, ROOT_KEY, start=NOW + SECOND)),
    "an authority's list that has expired": lambda: collateral(
        pck_crl=crl(PLATFORM_NAME, PLATFORM_KEY, end=NOW - SECOND)
    ),
    "an authority's list of the future": lambda: collateral(
        pck_crl=crl(PLATFORM_NAME, PLATFORM_KEY, start=NOW + SECOND)
    ),
    "a signer whose certificate has expired": lambda: collateral(
        chain=(issue(TCB_NAME, TCB_KEY, issuer=ROOT_NAME, by=ROOT_KEY, ca=False, serial=3, end=NOW - SECOND), ROOT)
    ),
    "an authority whose certificate has expired": lambda: collateral(
        crl_chain=(
            issue(PLATFORM_NAME, PLATFORM_KEY, issuer=ROOT_NAME, by=ROOT_KEY, serial=2, end=NOW - SECOND),
            ROOT,
        )
    ),
}


@pytest.mark.parametrize("name", STALE)
def test_collateral_of_which_a_part_is_outside_its_time_is_refused(name):
    with pytest.raises(StaleEndorsementError):
        verify(sound(), using=[STALE[name]()])


@pytest.mark.parametrize("now", [NOW - DAY - SECOND, NOW + 20 * DAY, NOW - 100 * YEAR, NOW + 30 * YEAR])
def test_the_time_is_compared_also_when_the_collateral_is_known(now):
    for time in (NOW - DAY, NOW + 20 * DAY - SECOND):
        assert verify(sound(), now=time).tcb.status == "UpToDate"
    with pytest.raises(StaleEndorsementError):
        verify(sound(), now=now)


def endless(der):
    """Return a revocation list without its nextUpdate; nobody has signed it, for its form is looked at first."""
    tbs = x509.load_der_x509_crl(der).tbs_certlist_bytes
    content, rest = tbs[2 + (tbs[1] & 0x7F if tbs[1] & 0x80 else 0) :], der[der.index(tbs) + len(tbs) :]
    second = content.rindex(b"\x17\x0d")
    return tlv(0x30, tlv(0x30, content[:second] + content[second + 15 :]) + rest)


MALFORMED = {
    "not JSON": b"{",
    "a list": b"[]",
    "nested without end": b'{"a":' + b"[" * 100_000,
    "more than the bound": b'{"a":"' + b"a" * (1024 * 1024) + b'"}',
    "not UTF-8": b'{"a":"\xff"}',
    "half a character": json.dumps(collateral_fields(tcb_info="\ud800")).encode(),
    "a key twice": good()[:-1] + b',"tcb_info":' + json.dumps(collateral_fields()["tcb_info"]).encode() + b"}",
    "TCB info with a key twice": collateral(tcb_info=json.dumps(tcb_info())[:-1] + ',"id":"TDX"}'),
    "TCB info that is a list": collateral(tcb_info="[]"),
    "a sound one in more than the bound": good() + b" " * 1024 * 1024,
    "a key that is not known": json.dumps(collateral_fields() | {"more": ""}).encode(),
    "a key too few": json.dumps(
        {key: value for key, value in collateral_fields().items() if key != "pck_crl"}
    ).encode(),
    "a number for a text": json.dumps(collateral_fields(tcb_info=1)).encode(),
    "a list that is not hexadecimal": collateral(root_ca_crl="xyz"),
    "a list that is none": collateral(pck_crl=b"abc"),
    "a list without an end": collateral(pck_crl=endless(crl(PLATFORM_NAME, PLATFORM_KEY))),
    "a list in the place of another thing": collateral(pck_crl=TCB_SIGNER.public_bytes(DER)),
    "a signature of another size": collateral(tcb_info_signature="00" * 63),
    "TCB info that is not JSON": collateral(tcb_info="{"),
    "TCB info of another TEE": collateral(tcb=tcb_info("SEV")),
    "a QE identity of the other TEE": collateral(qe=qe_identity(id="QE")),
    "a platform family of another size": collateral(tcb=tcb_info(fmspc="90c06f")),
    "a provisioning enclave that is not one": collateral(tcb=tcb_info(pceId="x")),
    "a platform family that is a number": collateral(tcb=tcb_info(fmspc=90)),
    "an evaluation number that is text": collateral(tcb=tcb_info(tcbEvaluationDataNumber="18")),
    "an evaluation number that is true": collateral(tcb=tcb_info(tcbEvaluationDataNumber=True)),
    "an evaluation number below zero": collateral(qe=qe_identity(tcbEvaluationDataNumber=-1)),
    "a time that is none": collateral(tcb=tcb_info(nextUpdate="2026-13-01T00:00:00Z")),
    "a time without zone": collateral(qe=qe_identity(nextUpdate="2027-01-01T00:00:00")),
    "no time": collateral(tcb={key: value for key, value in tcb_info().items() if key != "issueDate"}),
    "a chain that is empty": collateral(tcb_info_issuer_chain=""),
    "a chain in DER": collateral(tcb_info_issuer_chain="0"),
    "a chain that is too long": collateral(chain=(TCB_SIGNER, ROOT, ROOT)),
    "a signer of another name": collateral(
        chain=(issue("Intel SGX Else", TCB_KEY, issuer=ROOT_NAME, by=ROOT_KEY, ca=False), ROOT)
    ),
    "a signer that platforms' authority issued": collateral(
        chain=(issue(TCB_NAME, TCB_KEY, issuer=PLATFORM_NAME, by=PLATFORM_KEY, ca=False), PLATFORM)
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_not_a_collateral_is_refused(name):
    with pytest.raises(EndorsementFormatError):
        verify(sound(), using=[MALFORMED[name]])
    # Without dcap-qvl's help, which looks at some of it later.
    with pytest.raises(EndorsementFormatError):
        intel_collateral.parse_collateral(MALFORMED[name])


def test_a_pck_chain_beside_the_collateral_is_not_read():
    other = pem(pck_certificate(by=OTHER_KEY, key=OTHER_KEY), OTHER_PLATFORM, OTHER_ROOT).decode()
    beside = json.dumps(collateral_fields() | {"pck_certificate_chain": other}).encode()
    assert verify(sound(), using=[beside]) == verify(sound())


def test_a_signer_may_come_without_its_root():
    assert verify(sound(), using=[collateral(chain=(TCB_SIGNER,))]).tcb.status == "UpToDate"


@pytest.mark.parametrize(
    ("anchors", "error"),
    [
        ((), TrustAnchorError),
        ((OTHER_ROOT.public_bytes(DER),), TrustAnchorError),
        (ANCHORS * 5, TrustAnchorError),
        ((b"\x30",), EndorsementFormatError),
        ((PLATFORM.public_bytes(DER),), AttestationError),
    ],
    ids=["none", "another root", "too many", "no certificate", "an authority below the root"],
)
def test_only_the_anchors_that_were_given_are_trusted(anchors, error):
    with pytest.raises(error):
        verify(sound(), anchors=anchors)


@pytest.mark.parametrize("tail", [b"\x00", b"\n\x00", b"\r\n", b""], ids=["zero", "line and zero", "CRLF", "nothing"])
def test_a_pck_chain_may_end_in_white_space_and_a_zero(tail):
    honest = verify(sound())
    assert verify(td_quote(options={"chain": PCK_CHAIN.rstrip() + tail})) == honest
    assert verify(td_quote(options={"chain": PCK_CHAIN.replace(b"\n", b"\r\n") + tail})) == honest


def test_an_authority_below_the_root_is_no_end_of_a_chain():
    with pytest.raises(TrustAnchorError, match="PCK chain"):
        verify(with_chain(pck_certificate(), PLATFORM), anchors=(PLATFORM.public_bytes(DER),))


def test_an_attestation_key_that_is_no_point_of_the_curve_is_refused():
    key, authentication = bytes(31) + b"\x01" + bytes(32), bytes(range(32))
    bound = hashlib.sha256(key + authentication).digest()
    quote = td_quote(options={"qe_fields": {"report_data": bound}})
    start = 48 + 584 + 4 + 64
    with pytest.raises(EvidenceSignatureError, match="point of P-256"):
        verify(quote[:start] + key + quote[start + 64 :])


def test_every_link_looks_at_a_whole_chain_with_a_list_for_each_issuer():
    short = intel_quote.parse_quote(with_chain(pck_certificate(issuer=ROOT_NAME, by=ROOT_KEY), ROOT))
    links = {"collateral": intel_collateral.parse_collateral(good()), "now": NOW}
    anchors = [load_certificate(anchor, what="anchor") for anchor in ANCHORS]
    with pytest.raises(CertificateChainError, match="3 certificates"):
        intel_links.require_links(short, anchors=anchors, **links)
    intel_links.require_links(intel_quote.parse_quote(sound()), anchors=anchors, **links)


def test_one_of_several_anchors_is_enough():
    assert verify(sound(), anchors=(OTHER_ROOT.public_bytes(DER), *ANCHORS)) == verify(sound())


def test_intels_root_does_not_vouch_for_the_tests_own():
    with pytest.raises(TrustAnchorError):
        verify(sound(), anchors=intel_dcap.pinned_roots())


def test_an_anchor_past_its_validity_is_refused():
    old = issue(ROOT_NAME, ROOT_KEY, issuer=ROOT_NAME, by=ROOT_KEY, path_length=1, end=NOW - SECOND, serial=1)
    with pytest.raises(CertificateValidityError):
        verify(sound(), anchors=(old.public_bytes(DER),))


UNACCEPTABLE = {
    "debugging": ({"td_attributes": DEBUG}, "NotEvaluated"),
    "profiling": ({"td_attributes": bytes.fromhex("2000001000000000")}, "NotEvaluated"),
    "migration": ({"td_attributes": bytes.fromhex("0000003000000000")}, "NotEvaluated"),
    "a service TD that others may change": ({"td_attributes": bytes.fromhex("0000021000000000")}, "NotEvaluated"),
    "an unknown attribute": ({"td_attributes": bytes.fromhex("0000001001000000")}, "NotEvaluated"),
    "no SEPT_VE_DISABLE": ({"td_attributes": bytes(8)}, "NotEvaluated"),
    "a service TD": ({"version": 5, "mr_service_td": b"\x01"}, "NotEvaluated"),
    "a TDX module below every level": ({"tee_tcb_svn": bytes([1, 1, 2]) + bytes(13)}, "NoMatchingLevel"),
    "a TDX module of an unknown version": ({"tee_tcb_svn": bytes([5, 9, 2]) + bytes(13)}, "NoMatchingLevel"),
    "a current TDX module of an unknown version": (
        {"version": 5, "tee_tcb_svn2": bytes([5, 9, 2]) + bytes(13)},
        "NoMatchingLevel",
    ),
    "a TDX module of another signer": ({"mr_signer_seam": b"\x01"}, "UnknownModule"),
    "a TDX module with attributes": ({"seam_attributes": b"\x01"}, "UnknownModule"),
    "a quoting enclave below every level": (
        {"options": {"qe_fields": {"isv_svn": b"\x01"}}},
        "NoMatchingLevel",
    ),
    "a platform below every level": (
        {"options": {"chain": pem(pck_certificate(cpu_svn=bytes(16)), PLATFORM, ROOT)}},
        "NoMatchingLevel",
    ),
    "a provisioning enclave below every level": (
        {"options": {"chain": pem(pck_certificate(pce_svn=1), PLATFORM, ROOT)}},
        "NoMatchingLevel",
    ),
}


@pytest.mark.parametrize("name", UNACCEPTABLE)
def test_what_nobody_can_accept_is_genuine_all_the_same(name):
    fields, status = UNACCEPTABLE[name]
    claims = verify(td_quote(**fields))
    assert claims.tcb.status == status
    assert status in intel_dcap.UNACCEPTABLE
    assert claims.tcb.refusal
    assert claims.debug is (name in {"debugging", "profiling"})


@pytest.mark.parametrize("name", UNACCEPTABLE)
def test_what_nobody_can_accept_is_not_genuine_without_its_signature(name):
    fields, _ = UNACCEPTABLE[name]
    quote = td_quote(**fields)
    signature = (48 + 6 + 648 if fields.get("version") == 5 else 48 + 584) + 4
    with pytest.raises(EvidenceSignatureError):
        verify(flipped(quote, signature + 5))
    with pytest.raises((EvidenceSignatureError, KeyBindingError)):
        verify(flipped(quote, 300))


def test_a_revoked_tcb_level_is_told_as_such():
    revoked = collateral(tcb=tcb_info(levels=[level(5, "Revoked", tdx=bytes(16))]))
    assert verify(sound(), using=[revoked]).tcb.status == "Revoked"


def test_debug_evidence_is_held_to_every_link():
    debug = {"td_attributes": DEBUG}
    for name, (make, error) in NOT_GENUINE.items():
        quote = make()
        with pytest.raises(error):
            verify(resigned(quote))
        assert name
    for changes, error in REVOCATION.values():
        with pytest.raises(error):
            verify(td_quote(**debug), using=[collateral(**{key: change() for key, change in changes.items()})])
    for make, error in COLLATERAL.values():
        with pytest.raises(error):
            verify(td_quote(**debug), using=make())


def resigned(quote):
    """Return the same quote of a debug TD; where the key that signed it is not at hand its signature breaks."""
    signed = bytearray(quote[:632])
    position = 48 + 16 + 48 + 48 + 8
    signed[position : position + 8] = DEBUG
    return bytes(signed) + quote[632:636] + raw_signature(ATTESTATION_KEY, bytes(signed)) + quote[700:]


STATUSES = {
    "a platform out of date": (
        {"options": {"chain": pem(pck_certificate(cpu_svn=bytes([3] * 16)), PLATFORM, ROOT)}},
        ("OutOfDate", "OutOfDate", "UpToDate", ("INTEL-SA-00960",)),
    ),
    "a TDX module out of date": (
        {"tee_tcb_svn": bytes([3, 1, 2]) + bytes(13)},
        ("OutOfDate", "OutOfDate", "UpToDate", ("INTEL-SA-01036",)),
    ),
    "a quoting enclave out of date": (
        {"options": {"qe_fields": {"isv_svn": b"\x04"}}},
        ("OutOfDate", "UpToDate", "OutOfDate", ("INTEL-SA-00615",)),
    ),
    "a TD that should be started again": (
        {"version": 5, "tee_tcb_svn": bytes([3, 1, 2]) + bytes(13)},
        ("TDRelaunchAdvised", "OutOfDate", "UpToDate", ("INTEL-SA-01036",)),
    ),
}


@pytest.mark.parametrize("name", STATUSES)
def test_the_worst_part_gives_the_status(name):
    fields, expected = STATUSES[name]
    tcb = verify(td_quote(**fields)).tcb
    assert (tcb.status, tcb.platform_status, tcb.qe_status, tcb.advisory_ids) == expected
    assert tcb.refusal == ""


@pytest.mark.parametrize(
    "status",
    ["SWHardeningNeeded", "ConfigurationNeeded", "ConfigurationAndSWHardeningNeeded", "OutOfDateConfigurationNeeded"],
)
def test_every_status_of_intels_comes_through(status):
    judged = collateral(tcb=tcb_info(levels=[level(5, status, tdx=bytes(16), advisories=["INTEL-SA-00837"])]))
    tcb = verify(sound(), using=[judged]).tcb
    assert (tcb.status, tcb.advisory_ids) == (status, ("INTEL-SA-00837",))


LOG_ENTRIES = ((1, SEPARATOR, bytes(4), None), (2, ACTION, b"booting", None), (3, 13, b"grub_cmd: linux\x00", b"linux"))
REGISTERS = {}
for _register, _, _data, _measured in LOG_ENTRIES:
    extend(REGISTERS, _register - 1, _data if _measured is None else _measured)
LOGGED = td_quote(**{f"rtmr{register}": value for register, value in REGISTERS.items()})


def test_a_log_is_read_once_it_has_replayed():
    claims = verify(LOGGED, event_logs=[ccel(*LOG_ENTRIES)])
    assert claims.event_log_replayed
    assert [(event.register, event.type) for event in claims.events] == [(0, SEPARATOR), (1, ACTION), (2, 13)]
    without = verify(LOGGED)
    assert (without.event_log_replayed, without.events) == (False, ())
    assert dataclasses.replace(claims, event_log_replayed=False, events=()) == without


@pytest.mark.parametrize(
    ("logs", "error"),
    [
        ([ccel(*LOG_ENTRIES[:2])], EventLogError),
        ([ccel(*LOG_ENTRIES, (4, ACTION, b"more", None))], EventLogError),
        ([ccel(*reversed(LOG_ENTRIES), (3, ACTION, b"", None))], EventLogError),
        ([ccel(*LOG_ENTRIES)] * 2, EvidenceSizeError),
        ([b""], EvidenceFormatError),
        ([bytes(2**20 + 1)], EvidenceSizeError),
    ],
    ids=["an event missing", "an event more", "another order", "two logs", "nothing", "too large"],
)
def test_a_log_that_does_not_fit_the_quote_is_refused(logs, error):
    with pytest.raises(error):
        verify(LOGGED, event_logs=logs)


def files(evidence, *endorsements, nonce=None, report_data=None, anchors=ANCHORS):
    expectation = Expectation(nonce=nonce, report_data=report_data)
    return tdx.verify_files(evidence, endorsements, expectation=expectation, now=NOW, anchors=anchors)


@pytest.mark.parametrize(
    "write",
    [bytes, lambda data: data.hex().encode(), lambda data: b"0x" + data.hex().upper().encode() + b"\n"],
    ids=["binary", "hexadecimal", "0x and a line's end"],
)
def test_files_hold_a_quote_in_binary_or_in_hexadecimal(write):
    assert files(write(sound()), good()) == verify(sound())


def test_files_are_told_apart_by_what_they_hold():
    expected = verify(LOGGED, event_logs=[ccel(*LOG_ENTRIES)])
    for endorsements in ([good(), ccel(*LOG_ENTRIES)], [ccel(*LOG_ENTRIES), b"\n " + good()]):
        assert files(LOGGED, *endorsements) == expected
    with pytest.raises(MissingEndorsementError):
        files(LOGGED, ccel(*LOG_ENTRIES))
    with pytest.raises(EndorsementFormatError):
        files(LOGGED, *[good()] * 33)
    with pytest.raises(EvidenceSizeError):
        files(b"00" * 17 * 1024, good())


def test_without_anchors_the_pinned_root_is_meant():
    with pytest.raises(TrustAnchorError):
        files(sound(), good(), anchors=None)


@pytest.mark.parametrize(
    ("expectation", "error"),
    [
        ({}, None),
        ({"nonce": b"n" * 32}, None),
        ({"nonce": REPORT_DATA}, None),
        ({"report_data": REPORT_DATA}, None),
        ({"nonce": b"n" * 32, "report_data": REPORT_DATA}, None),
        ({"nonce": b""}, NonceError),
        ({"nonce": b"m" * 32}, NonceError),
        ({"nonce": b"d" * 32}, NonceError),
        ({"nonce": REPORT_DATA + b"\x00"}, NonceError),
        ({"report_data": b"n" * 32}, BindingMismatchError),
        ({"report_data": REPORT_DATA + b"\x00"}, BindingMismatchError),
        ({"nonce": b"n", "report_data": b"x" * 64}, BindingMismatchError),
    ],
)
def test_what_the_td_was_asked_for_is_compared(expectation, error):
    if error is None:
        files(sound(), good(), **expectation)
    else:
        with pytest.raises(error):
            files(sound(), good(), **expectation)


def test_report_data_is_padded_with_zeros():
    short = td_quote(report_data=b"short")
    files(short, good(), report_data=b"short")
    with pytest.raises(BindingMismatchError):
        files(short, good(), report_data=b"shor")


def envelope(evidence, **parts):
    return Envelope(profile="tdx/1", evidence=evidence, binding=b"", **parts)


def drive(sealed, endorsements=(), anchors=ANCHORS):
    return tdx.TdxVerifier().verify(sealed, endorsements=endorsements, now_ms=NOW_MS, anchors=anchors)


def test_the_driver_reports_measurement_configuration_and_binding():
    digest = bytes(range(32))
    report = drive(envelope(td_quote(mr_config_id=digest), endorsements=(good(),)))
    assert report.report_data == REPORT_DATA
    assert report.measurement == "7d" * 48
    assert report.configuration == digest.hex()
    assert (report.environment, report.debug, report.shared, report.layers) == ("", False, False, ())
    assert report.details == verify(td_quote(mr_config_id=digest))


def test_a_configuration_of_another_shape_is_told_whole():
    report = drive(envelope(td_quote(mr_config_id=b"\x01" * 33), endorsements=(good(),)))
    assert report.configuration == (b"\x01" * 33).ljust(48, b"\x00").hex()


def test_the_driver_says_what_it_verifies():
    assert tdx.TdxVerifier.PROFILE == "tdx/1"
    assert tdx.TdxVerifier.EVIDENCE_CLASS == "intel-tdx"
    assert tdx.TdxVerifier.HARDWARE_ROOTED is True


def test_the_verifiers_own_collateral_goes_before_hints():
    hint = collateral(tcb=tcb_info(tcbEvaluationDataNumber=5))
    sealed = envelope(sound(), endorsements=(hint,))
    assert drive(sealed, [good()]).details.tcb.evaluation_number == 18
    assert drive(sealed).details.tcb.evaluation_number == 5
    old = collateral(tcb=tcb_info(nextUpdate=EARLY))
    assert drive(sealed, [old]).details.tcb.evaluation_number == 5


def test_the_driver_replays_the_envelopes_log():
    sealed = envelope(LOGGED, endorsements=(good(),), event_logs=(ccel(*LOG_ENTRIES),))
    assert drive(sealed).details.event_log_replayed
    with pytest.raises(EventLogError):
        drive(dataclasses.replace(sealed, event_logs=(ccel(*LOG_ENTRIES[:1]),)))


def test_the_driver_reports_debugging_and_trusts_no_anchor_of_its_own():
    assert drive(envelope(td_quote(td_attributes=DEBUG), endorsements=(good(),))).debug
    with pytest.raises(TrustAnchorError):
        drive(envelope(sound(), endorsements=(good(),)), anchors=())


def test_what_dcap_qvl_and_we_read_differently_is_refused(monkeypatch):
    real = intel_dcap._dcap_qvl

    def lie(*arguments):
        claims = real(*arguments)
        claims["report"]["TD10"]["mr_td"] = "00" * 48
        return claims

    monkeypatch.setattr(intel_dcap, "_dcap_qvl", lie)
    with pytest.raises(EvidenceFormatError, match="two"):
        verify(sound())


def test_what_dcap_qvl_refuses_for_a_reason_of_its_own_is_refused(monkeypatch):
    def refuse(*_):
        raise ValueError("Verification failed: something new")

    monkeypatch.setattr(intel_dcap, "_dcap_qvl", refuse)
    with pytest.raises(EvidenceSignatureError, match="something new"):
        verify(sound())


def test_what_is_kept_of_collateral_is_bounded():
    assert intel_collateral._kept.cache_info().maxsize == 32
    assert intel_dcap._read_chain.cache_info().maxsize == 64
    expected = verify(sound())
    before = intel_collateral._kept.cache_info().misses
    assert verify(sound(), using=[good() + b" " * 128 * 1024]) == expected
    assert intel_collateral._kept.cache_info().misses == before


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 1), st.data())
def test_no_bit_of_a_quote_can_be_changed(debug, data):
    quote = under_debug() if debug else sound()
    honest = verify(quote)
    bit = data.draw(st.integers(0, len(quote) * 8 - 1))
    try:
        found = verify(flipped(quote, bit // 8, 1 << bit % 8))
    except AttestationError:
        return
    # What is left is white space between the certificates' lines.
    assert found == honest
    assert quote[bit // 8 : bit // 8 + 1].isspace()


@settings(max_examples=150, deadline=None)
@given(st.integers(0, len(good()) * 8 - 1))
def test_no_bit_of_a_collateral_makes_anything_but_an_attestation_error(bit):
    try:
        found = verify(sound(), using=[flipped(good(), bit // 8, 1 << bit % 8)])
    except AttestationError:
        return
    assert found == verify(sound())


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=1500), st.sampled_from([b"", sound()[:48], sound()[:640], sound()[:1300]]))
def test_whatever_the_bytes_nothing_but_an_attestation_error_is_raised(tail, head):
    with pytest.raises(AttestationError):
        verify(head + tail)
    with pytest.raises(AttestationError):
        files(head + tail, tail, good())


def test_times_are_read_from_milliseconds():
    assert intel_dcap.time_of(NOW_MS) == NOW
    assert intel_dcap.time_of(0) == datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
