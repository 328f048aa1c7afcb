"""Google's vTPMs: attestations, instances, chains, and each wrong turn."""

import contextlib
import dataclasses
import warnings

import pytest
from cryptography.hazmat.primitives import hashes
from gcp_world import (
    CERTIFICATE,
    FIRMWARE,
    GCP_INTERMEDIATE,
    GCP_PCRS,
    GCP_ROOT,
    LOG,
    NONHOST,
    NONHOST_TYPE,
    OTHER_GCP_ROOT,
    POST_CODE_TYPE,
    SEPARATOR,
    SEPARATOR_TYPE,
    SHA1_PCRS,
    SHA384_PCRS,
    THREE_QUOTES,
    VERSION_TYPE,
    ak_certificate,
    attestation,
    der,
    entry,
    flag,
    instance,
    item,
    measured,
    number,
    quote,
    revocation_list,
    security,
    text,
    varint,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from tpm_world import (
    AK,
    DAY,
    ENVELOPE_PCRS,
    NONCE,
    NOW,
    NOW_MS,
    OTHER_AK,
    SHA1,
    SHA256,
    SHA384,
    TPM_BINDING,
    Authority,
    attest,
    envelope,
    event,
    event_log,
    evidence,
    extended,
    public_area,
    registers,
    rsa_key,
    signed,
)

from confed import record
from confed.attestation.certificates import load_certificate
from confed.attestation.evidence import Expectation
from confed.attestation.tee import gcp_tpm
from confed.attestation.tee.gcp_attestation import parse_attestation
from confed.attestation.tee.gcp_instance import GcpInstance, GcpSecurity, parse_instance
from confed.attestation.tee.gcp_tpm import GcpTpmVerifier, pinned_roots, verify_files
from confed.attestation.tee.tpm_evidence import nonce_of
from confed.errors import (
    AlgorithmError,
    AttestationError,
    BindingMismatchError,
    CertificateChainError,
    CertificateValidityError,
    EndorsementFormatError,
    EventLogError,
    EvidenceFormatError,
    EvidenceSignatureError,
    EvidenceSizeError,
    KeyBindingError,
    MissingClaimError,
    MissingEndorsementError,
    NonceError,
    PcrDigestError,
    RevocationUnknownError,
    RevokedError,
    TrailingBytesError,
    TrustAnchorError,
)

ANCHORS = (GCP_ROOT.der,)
EXPECTED = Expectation(nonce=NONCE, report_data=None)
UNCHECKED = Expectation(nonce=None, report_data=None)


def verified(data, *endorsements, expectation=EXPECTED, now=NOW, anchors=ANCHORS):
    return verify_files(data, endorsements, expectation=expectation, now=now, anchors=anchors)


def test_an_attestation_says_which_instance_and_how_its_memory_is_protected():
    claims = verified(attestation())
    assert (claims.tpm.evidence_class, claims.tpm.hardware_rooted) == ("gcp-vtpm", False)
    assert (claims.tpm.rooted_by, claims.tpm.endorsement_key) == ("ak-certificate", None)
    assert claims.instance == GcpInstance(
        zone="europe-west4-a",
        project_number=str(2**40),
        project_id="hospital",
        instance_id=str(2**63 + 1),
        instance_name="trainer-1",
        security=GcpSecurity(
            security_version=3,
            is_production=True,
            tpm_data_always_encrypted=True,
            suspend_resume_always_disabled=False,
            vmtd_always_disabled=False,
            always_in_yarn=False,
        ),
    )
    assert (claims.technology, claims.firmware) == ("amd-sev-snp", "7")
    assert claims.tpm.replayed == (0,)
    assert (claims.revocation_checked, claims.unread) == (False, ())
    record.to_json(claims)


def test_the_best_known_bank_is_told_and_sha1_is_not_looked_at():
    assert verified(attestation(*THREE_QUOTES)).tpm.bank == "sha256"
    log, pcrs = measured(bank=SHA384)
    claims = verified(attestation(THREE_QUOTES[0], quote(pcrs, bank=SHA384), event_log=item(3, log)))
    assert (claims.tpm.bank, claims.technology) == ("sha384", "amd-sev-snp")
    broken = quote(SHA1_PCRS, bank=SHA1, signature=item(2, b"nothing"))
    assert verified(attestation(broken, THREE_QUOTES[1])).tpm.bank == "sha256"


@pytest.mark.parametrize("place", [1, 2])
def test_every_quote_of_a_strong_bank_has_to_hold(place):
    pcrs, bank = ((GCP_PCRS, SHA256), (SHA384_PCRS, SHA384))[place - 1]
    quotes = list(THREE_QUOTES)
    quotes[place] = quote(pcrs, bank=bank, key=OTHER_AK)
    with pytest.raises(EvidenceSignatureError):
        verified(attestation(*quotes))
    quotes[place] = quote(pcrs, bank=bank, nonce=b"another")
    with pytest.raises(NonceError):
        verified(attestation(*quotes))
    with pytest.raises(NonceError):
        verified(attestation(*quotes), expectation=UNCHECKED)


def test_an_intermediate_may_come_as_an_endorsement():
    bare = attestation(intermediates=b"")
    assert verified(bare, GCP_INTERMEDIATE.pem).instance.zone == "europe-west4-a"
    with pytest.raises(TrustAnchorError):
        verified(bare)


def test_nothing_but_googles_roots_is_an_anchor():
    for endorsements in ((), (GCP_ROOT.der,), (GCP_INTERMEDIATE.der, GCP_ROOT.der)):
        with pytest.raises(TrustAnchorError):
            verified(attestation(), *endorsements, anchors=None)
    with pytest.raises(TrustAnchorError):
        verified(attestation(), anchors=(OTHER_GCP_ROOT.der,))
    with pytest.raises(TrustAnchorError):
        verified(attestation(), anchors=())


def test_googles_roots_are_pinned():
    subjects = [root.subject for root in pinned_roots()]
    assert len(subjects) == 2
    assert "EK/AK CA Root" in subjects[1]
    assert "tpm_ek_v1_cloud_host_root-signer" in subjects[0]


def serial(certificate):
    return load_certificate(certificate, what="certificate").serial


def test_revocation_is_checked_where_lists_came_along():
    lists = (revocation_list(GCP_INTERMEDIATE), revocation_list(GCP_ROOT))
    assert verified(attestation(), *lists).revocation_checked is True
    assert verified(attestation(), lists[0]).revocation_checked is False
    assert verified(attestation(), lists[1]).revocation_checked is False
    assert verified(attestation(), revocation_list(OTHER_GCP_ROOT)).revocation_checked is False
    with pytest.raises(RevokedError):
        verified(attestation(), revocation_list(GCP_INTERMEDIATE, serial(CERTIFICATE)))
    with pytest.raises(RevokedError):
        verified(attestation(), revocation_list(GCP_ROOT, serial(GCP_INTERMEDIATE.der)))
    with pytest.raises(RevocationUnknownError):
        verified(attestation(), revocation_list(GCP_INTERMEDIATE, since=NOW - 3 * DAY, until=NOW - DAY))


def test_a_list_that_has_grown_old_says_nothing_beside_one_of_this_time():
    old = revocation_list(GCP_INTERMEDIATE, since=NOW - 3 * DAY, until=NOW - DAY)
    fresh = (revocation_list(GCP_INTERMEDIATE), revocation_list(GCP_ROOT))
    assert verified(attestation(), old, *fresh).revocation_checked is True
    with pytest.raises(RevokedError):
        verified(attestation(), old, *fresh, revocation_list(GCP_INTERMEDIATE, serial(CERTIFICATE)))


def test_names_as_long_as_googles_are_read_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        root = Authority("a Google root with a name of more than sixty-four letters, as it happens to be", long=True)
    made = attestation(ak_cert=item(6, ak_certificate(AK, root)))
    lists = (revocation_list(root), revocation_list(GCP_ROOT))
    assert verified(made, *lists, anchors=(root.der,)).revocation_checked is True


def test_an_issuer_that_names_no_list_revokes_nothing():
    made = attestation(ak_cert=item(6, ak_certificate(AK, lists=False)))
    assert verified(made, revocation_list(GCP_ROOT)).revocation_checked is True
    assert verified(made).revocation_checked is False
    assert verified(made, revocation_list(GCP_INTERMEDIATE)).revocation_checked is False
    alone = attestation(ak_cert=item(6, ak_certificate(AK, GCP_ROOT, lists=False)))
    assert verified(alone).revocation_checked is False


def test_freshness_is_claimed_only_where_a_nonce_was_compared():
    assert verified(attestation()).tpm.nonce_checked is True
    assert verified(attestation(), expectation=UNCHECKED).tpm.nonce_checked is False
    empty = attestation(quote(GCP_PCRS, nonce=b""))
    assert verified(empty, expectation=Expectation(nonce=b"", report_data=None)).tpm.nonce_checked is False
    with pytest.raises(NonceError):
        verified(empty)


def test_the_callers_data_is_compared():
    verified(attestation(), expectation=Expectation(nonce=None, report_data=NONCE))
    with pytest.raises(BindingMismatchError):
        verified(attestation(), expectation=Expectation(nonce=None, report_data=b"m" * 32))


def test_what_is_there_and_not_verified_is_named():
    extra = item(4, b"anything") + item(5, b"log") + item(8, b"report") + item(9, b"quote")
    claims = verified(attestation(extra=extra))
    assert claims.unread == ("instance_info", "canonical_event_log", "sev_snp_attestation", "tdx_attestation")
    assert claims.instance.project_id == "hospital"


def test_an_attestation_without_a_log_shows_no_protection():
    claims = verified(attestation(event_log=b""))
    assert (claims.technology, claims.firmware, claims.tpm.events) == ("", "", ())


SHOWN = {
    "no protection": (measured(nonhost=NONHOST[:16] + bytes(16)), ("none", "7")),
    "AMD SEV": (measured(nonhost=NONHOST[:16] + b"\x01" + bytes(15)), ("amd-sev", "7")),
    "AMD SEV-ES": (measured(nonhost=NONHOST[:16] + b"\x02" + bytes(15)), ("amd-sev-es", "7")),
    "Intel TDX": (measured(nonhost=NONHOST[:16] + b"\x03" + bytes(15)), ("intel-tdx", "7")),
    "a protection that is not known": (measured(nonhost=NONHOST[:16] + b"\x05" + bytes(15)), ("", "7")),
    "words of another form": (measured(nonhost=NONHOST[:-1]), ("", "7")),
    "words of another maker": (measured(nonhost=b"XCE" + NONHOST[3:]), ("", "7")),
    "another firmware": (measured(firmware="EDK II 7\x00".encode("utf-16-le")), ("amd-sev-snp", "")),
    "a firmware without a number": (measured(firmware=FIRMWARE[:-4]), ("amd-sev-snp", "")),
    "a firmware with a long number": (
        measured(firmware=("GCE Virtual Firmware v" + "9" * 5000).encode("utf-16-le")), ("amd-sev-snp", ""),
    ),
    "a firmware with other digits": (
        measured(firmware="GCE Virtual Firmware v\u0667\x00".encode("utf-16-le")), ("amd-sev-snp", ""),
    ),
    "a firmware in odd bytes": (measured(firmware=FIRMWARE + b"\xd8"), ("amd-sev-snp", "")),
}  # fmt: skip


@pytest.mark.parametrize(("made", "expected"), SHOWN.values(), ids=SHOWN.keys())
def test_a_log_shows(made, expected):
    log, pcrs = made
    claims = verified(attestation(quote(pcrs), event_log=item(3, log)))
    assert (claims.technology, claims.firmware) == expected


# What a machine's own software extends into PCR0 after its firmware, and how it rewrites the words of the log.
BARE = NONHOST[:16] + bytes(16)
FORGED = (NONHOST_TYPE, NONHOST)
NEWER = (VERSION_TYPE, "GCE Virtual Firmware v99\x00".encode("utf-16-le"))
HIDDEN = {0: (POST_CODE_TYPE, b"code"), 1: (POST_CODE_TYPE, b"data")}
LATER = {
    "a second word after the separator": (measured(nonhost=BARE, end=(SEPARATOR, FORGED, NEWER)), ("none", "7")),
    "a word after the separator in the place of a hidden one": (
        measured(nonhost=BARE, end=(SEPARATOR, FORGED, NEWER), told=HIDDEN), ("", ""),
    ),
    "a separator that is called something else": (
        measured(nonhost=BARE, end=(SEPARATOR, FORGED, NEWER), told=HIDDEN | {2: (POST_CODE_TYPE, b"post")}), ("", ""),
    ),
    "the separator of ones": (measured(end=((SEPARATOR_TYPE, b"\xff" * 4), NEWER)), ("amd-sev-snp", "7")),
    "the separator of a failure": (measured(end=((SEPARATOR_TYPE, b"\x01\x00\x00\x00"), NEWER)), ("amd-sev-snp", "7")),
    "two separators": (measured(end=(SEPARATOR, FORGED, SEPARATOR)), ("amd-sev-snp", "7")),
    "no separator": (measured(end=()), ("", "")),
    "a separator of another size": (measured(end=((SEPARATOR_TYPE, bytes(8)),)), ("", "")),
}  # fmt: skip


@pytest.mark.parametrize(("made", "expected"), LATER.values(), ids=LATER.keys())
def test_firmware_s_word_is_what_stands_before_its_separator(made, expected):
    log, pcrs = made
    claims = verified(attestation(quote(pcrs), event_log=item(3, log)))
    assert (claims.tpm.replayed, claims.technology, claims.firmware) == ((0,), *expected)


def test_a_separator_is_of_the_bank_that_was_signed():
    log, pcrs = measured(nonhost=BARE, end=(SEPARATOR, FORGED), told=HIDDEN, bank=SHA384)
    assert verified(attestation(quote(pcrs, bank=SHA384), event_log=item(3, log))).technology == ""


def test_two_words_on_protection_are_none():
    twice = (event(0, 0x11, NONHOST), event(0, 0x11, NONHOST[:16] + bytes(16)))
    pcrs = GCP_PCRS | {0: extended(NONHOST, NONHOST[:16] + bytes(16))}
    assert verified(attestation(quote(pcrs), event_log=item(3, event_log(*twice)))).technology == ""


def test_words_that_were_not_hashed_are_not_read():
    other = NONHOST[:16] + bytes(16)
    digest = hashes.Hash(hashes.SHA256())
    digest.update(other)
    lie = event(0, 0x11, NONHOST, digest=digest.finalize())
    pcrs = GCP_PCRS | {0: extended(other)}
    assert verified(attestation(quote(pcrs), event_log=item(3, event_log(lie)))).technology == ""


RSA_AK = rsa_key("Google's AK")
WRONG = {
    "another key": (attestation(ak_pub=item(1, public_area(OTHER_AK))), EvidenceSignatureError),
    "a certificate of another key": (attestation(ak_cert=item(6, ak_certificate(OTHER_AK))), KeyBindingError),
    "no certificate": (attestation(ak_cert=b""), MissingEndorsementError),
    "half a certificate": (attestation(ak_cert=item(6, CERTIFICATE[:-1])), EndorsementFormatError),
    "a certificate with a trailing byte": (attestation(ak_cert=item(6, CERTIFICATE + b"\x00")), EndorsementFormatError),
    "a certificate under another root": (attestation(ak_cert=item(6, ak_certificate(AK, OTHER_GCP_ROOT))), TrustAnchorError),
    "an authority's certificate": (attestation(ak_cert=item(6, GCP_INTERMEDIATE.der)), CertificateChainError),
    "a certificate of a key that decrypts": (
        attestation(ak_cert=item(6, ak_certificate(AK, usage="key_encipherment"))), CertificateChainError,
    ),
    "an authority's certificate of this key": (
        attestation(ak_cert=item(6, ak_certificate(AK, authority=True))), CertificateChainError,
    ),
    "a certificate without an instance": (attestation(ak_cert=item(6, ak_certificate(AK, extension=b""))), MissingClaimError),
    "an instance that cannot be read": (
        attestation(ak_cert=item(6, ak_certificate(AK, extension=b"\x30\x00"))), EndorsementFormatError,
    ),
    "an intermediate that is none": (attestation(intermediates=item(7, b"0")), EndorsementFormatError),
    "a key that is not restricted": (attestation(ak_pub=item(1, public_area(AK, attributes=0x00040072))), KeyBindingError),
    "half a key": (attestation(ak_pub=item(1, public_area(AK)[:-1])), EvidenceFormatError),
    "no key": (attestation(ak_pub=b""), MissingClaimError),
    "no quotes": (attestation(quotes=b""), MissingClaimError),
    "nothing but SHA-1": (attestation(THREE_QUOTES[0]), AlgorithmError),
    "a bank twice": (attestation(quote(GCP_PCRS), quote(GCP_PCRS)), EvidenceFormatError),
    "a bank that is not known": (attestation(quote(GCP_PCRS, bank=0x12, message=attest(GCP_PCRS))), AlgorithmError),
    "another bank than the signed one": (attestation(quote(SHA384_PCRS, bank=SHA384, message=attest(SHA384_PCRS))), PcrDigestError),
    "SHA-1's quote under another bank's name": (
        attestation(quote(SHA1_PCRS, bank=SHA256, message=attest(SHA1_PCRS, bank=SHA1))), PcrDigestError,
    ),
    "another value": (
        attestation(quote(GCP_PCRS | {4: bytes(32)}, message=attest(GCP_PCRS))), PcrDigestError,
    ),
    "a value under another number": (
        attestation(quote({**{n: v for n, v in GCP_PCRS.items() if n != 23}, 22: GCP_PCRS[23]}, message=attest(GCP_PCRS))),
        PcrDigestError,
    ),
    "another signature": (attestation(quote(GCP_PCRS, key=OTHER_AK)), EvidenceSignatureError),
    "a signature by another scheme": (
        attestation(quote(GCP_PCRS, signature=item(2, signed(attest(GCP_PCRS), RSA_AK)))), AlgorithmError,
    ),
    "another nonce": (attestation(quote(GCP_PCRS, nonce=b"m" * 32)), NonceError),
    "a trailing byte in the quote": (attestation(quote(GCP_PCRS, message=attest(GCP_PCRS, trailing=b"x"))), TrailingBytesError),
    "an event less": (attestation(event_log=item(3, event_log(event(0, 0x08, FIRMWARE)))), EventLogError),
    "an event more": (attestation(event_log=item(3, LOG + event(4, 0x0D, b"more"))), EventLogError),
    "a log that cannot be read": (attestation(event_log=item(3, LOG[:-1])), EvidenceFormatError),
}  # fmt: skip


@pytest.mark.parametrize(("data", "error"), WRONG.values(), ids=WRONG.keys())
def test_an_attestation_is_refused_with(data, error):
    with pytest.raises(error) as refused:
        verified(data)
    assert isinstance(refused.value, AttestationError)


@pytest.mark.parametrize("moment", [NOW + 31 * DAY, NOW - 31 * DAY])
def test_certificates_have_their_time(moment):
    with pytest.raises(CertificateValidityError):
        verified(attestation(), now=moment)


ENDORSEMENTS = {
    "a file of no kind": (b"hello",),
    "half a certificate": (GCP_INTERMEDIATE.der[:-1],),
    "half a revocation list": (revocation_list(GCP_ROOT)[:-1],),
    "half a revocation list in PEM": (b"-----BEGIN X509 CRL-----\nAA==\n-----END X509 CRL-----\n",),
    "an event log beside the attestation's": (LOG,),
}


@pytest.mark.parametrize("files", ENDORSEMENTS.values(), ids=ENDORSEMENTS.keys())
def test_an_endorsement_is_refused_that_is(files):
    with pytest.raises(EndorsementFormatError):
        verified(attestation(), *files)


def test_endorsements_have_their_bound():
    with pytest.raises(EvidenceSizeError):
        verified(attestation(), *[GCP_ROOT.der] * 33)


# Protobuf.


GOOD = attestation()
PROTOBUFS = {
    "a field that is not known": (GOOD + item(10, b""), EvidenceFormatError),
    "a field with the number zero": (GOOD + item(0, b""), EvidenceFormatError),
    "a fixed number": (GOOD + varint(4 << 3 | 5) + bytes(4), EvidenceFormatError),
    "a group": (GOOD + varint(4 << 3 | 3), EvidenceFormatError),
    "a key twice": (GOOD + item(1, public_area(AK)), EvidenceFormatError),
    "a certificate twice": (GOOD + item(6, CERTIFICATE), EvidenceFormatError),
    "a key that is a number": (attestation(ak_pub=item(1, 5)), EvidenceFormatError),
    "a quote that is a number": (attestation(quotes=item(2, 5)), EvidenceFormatError),
    "an intermediate that is a number": (GOOD + item(7, 5), EvidenceFormatError),
    "too many quotes": (attestation(*[quote(GCP_PCRS)] * 9), EvidenceSizeError),
    "too many intermediates": (GOOD + item(7, b"x") * 8, EvidenceSizeError),
    "a number in a longer spelling": (GOOD + b"\xa2\x00" + varint(0), EvidenceFormatError),
    "a number without end": (GOOD + b"\xff" * 11, EvidenceFormatError),
    "a number of more than 64 bits": (GOOD + b"\xff" * 9 + b"\x02", EvidenceFormatError),
    "a length beyond the end": (GOOD + varint(5 << 3 | 2) + varint(2**40), EvidenceFormatError),
    "half a number": (GOOD + b"\x80", EvidenceFormatError),
    "a tag alone": (GOOD + b"\x2a", EvidenceFormatError),
    "a quote's field that is not known": (attestation(quote(GCP_PCRS, more=item(4, b""))), EvidenceFormatError),
    "a quote without a message": (attestation(quote(GCP_PCRS, message=b"")), MissingClaimError),
    "a quote without a signature": (attestation(quote(GCP_PCRS, signature=b"")), MissingClaimError),
    "a quote without registers": (attestation(quote(GCP_PCRS, values=b"")), MissingClaimError),
    "registers without a bank": (attestation(quote(GCP_PCRS, values=item(3, item(2, entry(0, bytes(32)))))), AlgorithmError),
    "a bank twice among registers": (
        attestation(quote(GCP_PCRS, values=item(3, item(1, 11) * 2 + item(2, entry(7, bytes(32)))))), EvidenceFormatError,
    ),
    "a bank of more than 64 bits": (
        attestation(quote(GCP_PCRS, values=item(3, b"\x08" + b"\xff" * 9 + b"\x02"))), EvidenceFormatError,
    ),
    "a bank that is text": (attestation(quote(GCP_PCRS, values=item(3, item(1, b"sha256")))), EvidenceFormatError),
    "a register twice": (attestation(quote(GCP_PCRS, values=item(3, item(1, 11) + item(2, entry(7, bytes(32))) * 2))), EvidenceFormatError),
    "a register that there is not": (attestation(quote(GCP_PCRS, values=item(3, item(1, 11) + item(2, entry(24, bytes(32)))))), EvidenceFormatError),
    "a register without a value": (attestation(quote(GCP_PCRS, values=item(3, item(1, 11) + item(2, item(1, 7))))), MissingClaimError),
    "too many registers": (attestation(quote(GCP_PCRS, values=item(3, item(1, 11) + item(2, entry(7, b"x")) * 25))), EvidenceSizeError),
    "nothing": (b"", MissingClaimError),
    "too many bytes": (bytes(1024 * 1024 + 1), EvidenceSizeError),
    "something else": (b"hello", EvidenceFormatError),
}  # fmt: skip


@pytest.mark.parametrize(("data", "error"), PROTOBUFS.values(), ids=PROTOBUFS.keys())
def test_an_attestation_is_not_read_with(data, error):
    with pytest.raises(error):
        parse_attestation(data)
    with pytest.raises(error):
        verified(data)


def test_an_attestation_ends_nowhere_else():
    data = attestation(quote({0: bytes(32)}), event_log=b"", intermediates=b"")
    whole = parse_attestation(data)
    for size in range(len(data)):
        try:
            assert parse_attestation(data[:size]) != whole
        except AttestationError:
            continue


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_change_of_an_attestation_raises_anything_but_attestation_errors(data):
    changed = bytearray(attestation(*THREE_QUOTES))
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(AttestationError):
        verified(bytes(changed))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_attestation_errors(data):
    for found in (data, b"{" + data, item(1, public_area(AK)) + data, item(2, data), item(2, item(3, data))):
        with contextlib.suppress(AttestationError):
            verified(found)
    for found in (data, der(0x30, data)):
        with contextlib.suppress(AttestationError):
            parse_instance(found)


# Instances.


def test_an_instance_may_lack_what_older_certificates_lack():
    assert parse_instance(instance(properties=b"")).security is None
    empty = parse_instance(instance(properties=der(0xA0, der(0x30)))).security
    assert empty == GcpSecurity(**dict.fromkeys(GcpSecurity.__slots__))
    found = parse_instance(instance(properties=security(None, None, True))).security
    assert found is not None
    assert (found.security_version, found.is_production, found.tpm_data_always_encrypted) == (None, None, True)


def test_a_long_instance_is_read_too():
    found = parse_instance(instance(project="p" * 140, name="n" * 200))
    assert (found.project_id, found.instance_name) == ("p" * 140, "n" * 200)


ZONE, PROJECT, NAME = text("zone"), text("project"), text("name")
INSTANCES = {
    "nothing": b"",
    "a trailing byte": instance() + b"\x00",
    "a trailing element": der(0x30, ZONE, number(1), PROJECT, number(2), NAME, security(), flag(True)),
    "no name": der(0x30, ZONE, number(1), PROJECT, number(2)),
    "numbers and words in each other's place": der(0x30, number(1), ZONE, number(2), PROJECT, NAME),
    "a number below zero": der(0x30, ZONE, der(2, b"\xff"), PROJECT, number(2), NAME),
    "a number in a longer spelling": der(0x30, ZONE, der(2, b"\x00\x01"), PROJECT, number(2), NAME),
    "a number without bytes": der(0x30, ZONE, der(2), PROJECT, number(2), NAME),
    "a number that is too long": der(0x30, ZONE, der(2, b"\x01" * 10), PROJECT, number(2), NAME),
    "text that is none": der(0x30, der(0x0C, b"\xff"), number(1), PROJECT, number(2), NAME),
    "no text": der(0x30, text(""), number(1), PROJECT, number(2), NAME),
    "text with a control character": der(0x30, text("zo\nne"), number(1), PROJECT, number(2), NAME),
    "text that is too long": instance(name="n" * 256),
    "another kind of text": der(0x30, der(0x13, b"zone"), number(1), PROJECT, number(2), NAME),
    "a flag that is neither": instance(properties=der(0xA0, der(0x30, der(0xA1, der(1, b"\x01"))))),
    "a flag that is a number": instance(properties=der(0xA0, der(0x30, der(0xA1, number(1))))),
    "flags out of order": instance(properties=der(0xA0, der(0x30, der(0xA2, flag(True)), der(0xA1, flag(True))))),
    "a flag twice": instance(properties=der(0xA0, der(0x30, der(0xA1, flag(True)), der(0xA1, flag(False))))),
    "a flag too many": instance(properties=der(0xA0, der(0x30, der(0xA6, flag(True))))),
    "two elements in a tag": instance(properties=der(0xA0, der(0x30), der(0x30))),
    "two flags in a tag": instance(properties=der(0xA0, der(0x30, der(0xA1, flag(True), flag(True))))),
    "a length in a longer spelling": b"\x30\x81" + instance()[1:] if len(instance()) < 130 else b"\x30\x81\x05",
    "a length of two bytes that fits one": b"\x30\x82\x00" + bytes([len(instance()) - 2]) + instance()[2:],
    "a length of three bytes": b"\x30\x83\x00\x00\x05hello",
    "an indefinite length": b"\x30\x80" + instance()[2:] + b"\x00\x00",
    "too many bytes": bytes(2000),
}


@pytest.mark.parametrize("data", INSTANCES.values(), ids=INSTANCES.keys())
def test_an_instance_is_not_read_with(data):
    with pytest.raises(EndorsementFormatError):
        parse_instance(data)


def test_an_instance_ends_nowhere_else():
    data = instance()
    for size in range(len(data)):
        with pytest.raises(EndorsementFormatError):
            parse_instance(data[:size])


# The driver.


BINDING = dataclasses.replace(TPM_BINDING, profile="gcp-tpm/1")


def google(**changes):
    options = {"ak_certificate": CERTIFICATE, "ek_certificate": None, "enrolment": None} | changes
    return evidence(binding=BINDING, **options)


def reported(found=None, *, now_ms=NOW_MS, anchors=ANCHORS, endorsements=(), **changes):
    options = {"binding": BINDING, "endorsements": (GCP_INTERMEDIATE.der,)} | changes
    made = envelope(google() if found is None else found, **options)
    return GcpTpmVerifier().verify(made, endorsements=endorsements, now_ms=now_ms, anchors=anchors)


def test_an_envelope_becomes_a_report():
    report = reported()
    assert report.report_data == BINDING.report_data()
    assert report.configuration == BINDING.manifest
    assert report.details.instance.project_id == "hospital"
    assert report.details.tpm.nonce_checked is True
    assert (GcpTpmVerifier.EVIDENCE_CLASS, GcpTpmVerifier.HARDWARE_ROOTED) == ("gcp-vtpm", False)


def test_revocation_lists_may_come_with_an_envelope():
    lists = (revocation_list(GCP_INTERMEDIATE), revocation_list(GCP_ROOT))
    assert reported().details.revocation_checked is False
    assert reported(endorsements=(GCP_INTERMEDIATE.der, *lists)).details.revocation_checked is True
    made = envelope(google(), binding=BINDING, endorsements=(GCP_INTERMEDIATE.der, b"<RIM/>"))
    found = GcpTpmVerifier().verify(made, endorsements=lists, now_ms=NOW_MS, anchors=ANCHORS)
    assert found.details.revocation_checked is True
    with pytest.raises(RevokedError):
        reported(endorsements=(GCP_INTERMEDIATE.der, revocation_list(GCP_INTERMEDIATE, serial(CERTIFICATE))))


def test_an_envelopes_log_is_replayed():
    pcrs = ENVELOPE_PCRS | {0: GCP_PCRS[0]}
    assert reported(google(pcrs=pcrs), event_logs=(LOG,)).details.technology == "amd-sev-snp"
    with pytest.raises(EventLogError):
        reported(google(), event_logs=(LOG,))


REPORTS = {
    "no certificate": (google(ak_certificate=None), MissingEndorsementError),
    "a certificate of another key": (google(ak_certificate=ak_certificate(OTHER_AK)), KeyBindingError),
    "a certificate under another root": (google(ak_certificate=ak_certificate(AK, OTHER_GCP_ROOT)), TrustAnchorError),
    "another key": (google(ak_public=public_area(OTHER_AK)), EvidenceSignatureError),
    "another key's quote": (google(key=OTHER_AK), KeyBindingError),
    "a key that is not restricted": (google(ak_public=public_area(AK, attributes=0x00040072)), KeyBindingError),
    "another nonce": (google(message=attest(ENVELOPE_PCRS, nonce=b"m" * 32)), NonceError),
    "a certificate without an instance": (google(ak_certificate=ak_certificate(AK, extension=b"")), MissingClaimError),
    "no configuration": (google(pcrs=registers(0, 7)), MissingClaimError),
    "an EK certificate, which nobody would read": (google(ek_certificate=CERTIFICATE), EvidenceFormatError),
    "an enrolment, which nobody would read": (google(enrolment=b"{}"), EvidenceFormatError),
}


@pytest.mark.parametrize(("found", "error"), REPORTS.values(), ids=REPORTS.keys())
def test_an_envelope_is_refused_with(found, error):
    with pytest.raises(error):
        reported(found)


def test_an_envelope_has_its_time_and_its_anchors():
    with pytest.raises(CertificateValidityError):
        reported(now_ms=NOW_MS + 31 * 24 * 3_600_000)
    with pytest.raises(TrustAnchorError):
        reported(anchors=(OTHER_GCP_ROOT.der,))
    with pytest.raises(TrustAnchorError):
        reported(endorsements=(OTHER_GCP_ROOT.der,), anchors=(pinned_roots()[0].der,))
    with pytest.raises(EndorsementFormatError):
        reported(anchors=(b"anchor",))


def test_the_evidence_of_an_envelope_is_read_from_a_file_too():
    pcrs = ENVELOPE_PCRS | {0: GCP_PCRS[0]}
    data = google(pcrs=pcrs).encode()
    nonce = Expectation(nonce=nonce_of(BINDING.report_data()), report_data=None)
    claims = verified(data, GCP_INTERMEDIATE.der, LOG, expectation=nonce)
    assert (claims.technology, claims.tpm.nonce_checked) == ("amd-sev-snp", True)
    with pytest.raises(EvidenceFormatError):
        verified(data, GCP_INTERMEDIATE.der, LOG, LOG, expectation=nonce)
    with pytest.raises(EvidenceFormatError):
        verified(b"{}", expectation=nonce)
    with pytest.raises(EvidenceFormatError):
        verified(google(pcrs=pcrs, enrolment=b"{}").encode(), GCP_INTERMEDIATE.der, LOG, expectation=nonce)


def test_the_profile_is_its_own():
    assert gcp_tpm.PROFILE == GcpTpmVerifier.PROFILE == "gcp-tpm/1"
