"""Real quotes: of a software TPM, of a bare key, of a Google vTPM; each gets its verdict, and no change of it passes."""

import base64
import datetime
import json

import pytest
from cryptography.hazmat.primitives import serialization
from folder import needs_vectors, read, sets_of

from confed.attestation.certificates import load_certificate
from confed.attestation.evidence import Expectation
from confed.attestation.policy.tpm import GcpTpmPolicy, TpmPolicy, appraise, require_defaults
from confed.attestation.policy.tpm_quote import QuotePolicy
from confed.attestation.tee import gcp_tpm, tpm
from confed.attestation.tee.gcp_attestation import parse_attestation
from confed.attestation.tee.gcp_instance import INSTANCE_EXTENSION, parse_instance
from confed.attestation.tee.gcp_tpm import pinned_roots
from confed.attestation.tee.tpm import parse_public, parse_quote, require_attestation_key, verify_quote
from confed.errors import (
    AttestationError,
    CertificateChainError,
    CertificateValidityError,
    EndorsementFormatError,
    EventLogError,
    EvidenceFormatError,
    EvidenceSignatureError,
    FreshnessError,
    KeyBindingError,
    NonceError,
    PcrDigestError,
    RegisterError,
    RegisterSelectionError,
    TrailingBytesError,
    TrustAnchorError,
)
from confed.manifest import Unchecked

pytestmark = needs_vectors

SETS = sets_of("vtpm")
WHY = Unchecked(unchecked="a test leaves it out")
UNCHECKED = Expectation(nonce=None, report_data=None)
# The sets have no verify_at; these moments are inside the validity of their certificates.
SOFTWARE_TIME = datetime.datetime(2026, 12, 1, tzinfo=datetime.UTC)
GOOGLE_TIME = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)
SOFTWARE = "vtpm/swtpm-local/"
BARE = "vtpm/trustee-tpm/tpm_evidence.json"
CONFUSED = "vtpm/swtpm-local/neg-pcr-index-confusion.json"
MALICIOUS = "vtpm/swtpm-local/pcr11-malicious-full.json"
GOOGLE = "vtpm/go-tpm-tools/gce-cos-85-no-nonce.pb"


def expecting(set_id):
    return Expectation(nonce=bytes.fromhex(SETS[set_id]["quote_nonce"]), report_data=None)


def verified(data, *endorsements, expectation=UNCHECKED, now=SOFTWARE_TIME, anchors=None):
    return tpm.verify_files(data, endorsements, expectation=expectation, now=now, anchors=anchors)


def policy(selection, *, by="pinned-key", **changes):
    options = {"nonce": WHY, "banks": ("sha256",), "selection": selection, "registers": WHY, "replayed": WHY} | changes
    return TpmPolicy(
        quote=QuotePolicy(**options),
        rooted_by=(by,),
        attributes=WHY,
        attestation_keys=WHY,
        endorsement_keys=WHY,
        manufacturers=WHY,
        firmware_versions=WHY,
    )


def pinned(name):
    return base64.b64decode(json.loads(read(name))["ak_public"])


# vtpm/trustee-tpm: a bare key.


def test_a_bare_key_proves_nothing_of_a_tpm():
    with pytest.raises(TrustAnchorError):
        verified(read(BARE), expectation=expecting("vtpm/trustee-tpm"))


def test_a_bare_key_that_the_caller_names_is_believed():
    claims = verified(read(BARE), pinned(BARE), expectation=expecting("vtpm/trustee-tpm"))
    assert (claims.rooted_by, claims.attributes, claims.hardware_rooted) == ("pinned-key", (), False)
    assert [register.number for register in claims.registers] == SETS["vtpm/trustee-tpm"]["pcr_selection"]
    require_defaults(claims)
    appraise(claims, policy(tuple(range(24)), nonce=True), now=SOFTWARE_TIME)
    with pytest.raises(RegisterSelectionError):
        appraise(claims, policy(tuple(range(8))), now=SOFTWARE_TIME)
    with pytest.raises(KeyBindingError):
        verified(read(BARE), pinned(CONFUSED))
    with pytest.raises(NonceError):
        verified(read(BARE), pinned(BARE), expectation=Expectation(nonce=bytes(32), report_data=None))


# vtpm/swtpm-local: a software TPM with an EK certificate, and no activation.


def software():
    names = ("q.sig", "q.pcrs", "ak.pub", "ekcert.der", "issuercert.pem", "swtpm-localca-rootca-cert.pem")
    return {name: read(SOFTWARE + name) for name in names}


def test_a_software_tpm_is_accepted_as_one():
    claims = verified(read(SOFTWARE + "q.msg"), *software().values(), expectation=expecting("vtpm/swtpm-local"))
    assert (claims.evidence_class, claims.hardware_rooted, claims.nonce_checked) == ("software-tpm", False, True)
    assert claims.nonce == bytes.fromhex(read(SOFTWARE + "nonce.hex").decode().strip())
    assert claims.endorsement_key is not None
    assert (claims.endorsement_key.manufacturer, claims.endorsement_key.model) == ("id:00001014", "swtpm")
    # Nothing shows that the quote's key is in the TPM of that certificate.
    assert (claims.rooted_by, claims.endorsement_key.activated) == ("pinned-key", False)
    assert [register.number for register in claims.registers] == [0, 1, 2, 3, 4, 5, 6, 7, 11, 16]
    require_defaults(claims)


def test_a_software_tpm_never_chains_to_a_vendor():
    files = software()
    del files["swtpm-localca-rootca-cert.pem"]
    with pytest.raises(TrustAnchorError):
        verified(read(SOFTWARE + "q.msg"), *files.values())
    for root in pinned_roots():
        with pytest.raises(TrustAnchorError):
            verified(read(SOFTWARE + "q.msg"), *software().values(), anchors=(root.der,))
    with pytest.raises(EndorsementFormatError):
        verified(read(SOFTWARE + "q.msg"), *files.values(), read("vtpm/roots/tpm_ek_root_1.cer")[:-1])


def test_a_software_tpms_certificate_roots_no_key():
    files = software()
    del files["ak.pub"], files["q.sig"], files["q.pcrs"]
    with pytest.raises(TrustAnchorError):
        verified(read(CONFUSED.replace("neg-pcr-index-confusion", "pcr11-malicious-full")), *files.values())


@pytest.mark.parametrize("name", ["q.msg", "q.sig", "ekcert.der", "issuercert.pem", "ak.pub"])
def test_no_byte_of_a_software_tpms_files_can_change(name):
    files = {"q.msg": read(SOFTWARE + "q.msg")} | software()
    original = files[name]
    if name == "ak.pub":
        key = serialization.load_pem_public_key(original)
        original = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    if name == "issuercert.pem":
        original = load_certificate(original, what="issuer").der
    for position in range(0, len(original), 5 if len(original) > 900 else 1):
        changed = bytearray(original)
        changed[position] ^= 1
        message, *others = (files | {name: bytes(changed)}).values()
        with pytest.raises(AttestationError):
            verified(message, *others)


@pytest.mark.parametrize("name", ["q.msg", "q.sig", "q.pcrs", "ekcert.der"])
def test_a_software_tpms_files_end_nowhere_else(name):
    files = {"q.msg": read(SOFTWARE + "q.msg")} | software()
    original = files[name]
    for cut in [*(original[:size] for size in range(0, len(original), 9)), original[:-1], original + b"\x00"]:
        message, *others = (files | {name: cut}).values()
        with pytest.raises(AttestationError):
            verified(message, *others)


def test_each_value_of_a_register_file_is_the_signed_one():
    files = software()
    original = files["q.pcrs"]
    # Where the ten values stand: after 136 bytes, and after 532 more for those beyond the eighth.
    starts = [140 + 2 + 66 * index for index in range(8)] + [140 + 532 + 2 + 66 * index for index in range(2)]
    for start in starts:
        changed = bytearray(original)
        changed[start] ^= 1
        with pytest.raises(PcrDigestError):
            verified(read(SOFTWARE + "q.msg"), *(files | {"q.pcrs": bytes(changed)}).values())
    moved = bytearray(original)
    moved[8] ^= 0x18  # PCR11 is said to be PCR12
    with pytest.raises(PcrDigestError):
        verified(read(SOFTWARE + "q.msg"), *(files | {"q.pcrs": bytes(moved)}).values())


def test_the_files_of_two_quotes_do_not_mix():
    files = software()
    message = base64.b64decode(json.loads(read(MALICIOUS))["tpm_quote"]["message"])
    with pytest.raises(EvidenceSignatureError):
        verified(message, *files.values())


def test_a_software_tpms_certificate_has_its_time():
    for moment in (
        datetime.datetime(2026, 11, 20, tzinfo=datetime.UTC),
        datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC),
    ):
        with pytest.raises(CertificateValidityError):
            verified(read(SOFTWARE + "q.msg"), *software().values(), now=moment)


# vtpm/neg-pcr-index-confusion: PCR16 presented as PCR11.


@pytest.mark.parametrize("endorsed", [False, True])
def test_register_16_is_not_register_11(endorsed):
    named = (pinned(CONFUSED),) if endorsed else ()
    with pytest.raises(PcrDigestError):
        verified(read(CONFUSED), *named)


def test_the_quote_behind_the_confusion_is_genuine_under_its_own_numbers():
    value = json.loads(read(CONFUSED))
    message, signature = (base64.b64decode(value["tpm_quote"][name]) for name in ("message", "signature"))
    public = parse_public(base64.b64decode(value["ak_tpm2b_public"]))
    require_attestation_key(public)
    values = [bytes.fromhex(entry) for entry in value["tpm_quote"]["pcrs"]]
    signed = parse_quote(message).selections[0].registers
    assert signed == (*range(11), 16)
    pcrs = dict(zip(signed, values, strict=True))
    verify_quote(message, signature, public.key, pcrs=pcrs, bank="sha256", nonce=bytes.fromhex(value["nonce"]))
    # The confusion: the twelfth value is the good one of PCR11, but it is PCR16's.
    assert values[11].hex() == value["expected_pcr11_good"]
    honest = json.dumps(value | {"claimed_selection_by_position": list(signed)}).encode()
    claims = verified(honest, pinned(CONFUSED))
    assert claims.register(11) is None
    with pytest.raises(RegisterSelectionError):
        appraise(claims, policy(tuple(range(12))), now=SOFTWARE_TIME)


def test_a_malicious_register_11_is_refused_by_policy():
    claims = verified(read(MALICIOUS), pinned(MALICIOUS))
    require_defaults(claims)
    good = json.loads(read(MALICIOUS))["expected_pcr11_good"]
    with pytest.raises(RegisterError):
        appraise(claims, policy(tuple(range(24)), registers={"11": (good,)}), now=SOFTWARE_TIME)


@pytest.mark.parametrize("name", [BARE, MALICIOUS])
def test_no_part_of_a_json_file_can_change(name):
    original = json.loads(read(name))
    quote = original["tpm_quote"]
    for field in ("message", "signature"):
        data = base64.b64decode(quote[field])
        for position in range(len(data)):
            changed = bytearray(data)
            changed[position] ^= 1
            text = json.dumps(original | {"tpm_quote": quote | {field: base64.b64encode(changed).decode()}}).encode()
            with pytest.raises(AttestationError):
                verified(text, pinned(name))
    for number in range(24):
        values = [*quote["pcrs"]]
        values[number] = "ab" * 32
        with pytest.raises(PcrDigestError):
            verified(json.dumps(original | {"tpm_quote": quote | {"pcrs": values}}).encode(), pinned(name))
    longer = base64.b64encode(base64.b64decode(quote["message"]) + b"\x00").decode()
    with pytest.raises(EvidenceSignatureError):
        verified(json.dumps(original | {"tpm_quote": quote | {"message": longer}}).encode(), pinned(name))
    with pytest.raises(EvidenceFormatError):
        verified(read(name)[:-3], pinned(name))


# vtpm/gce-cos-85-no-nonce: a Google vTPM.


def google(data=None, *endorsements, expectation=UNCHECKED, now=GOOGLE_TIME, anchors=None):
    return gcp_tpm.verify_files(
        read(GOOGLE) if data is None else data, endorsements, expectation=expectation, now=now, anchors=anchors
    )


def google_policy(**changes):
    options = {"nonce": WHY, "banks": ("sha256",), "selection": tuple(range(24)), "registers": WHY, "replayed": WHY}
    options |= changes
    return GcpTpmPolicy(
        quote=QuotePolicy(**options),
        projects=("google.com:wuale-gcp-testing",),
        zones=("us-central1-a",),
        instances=("6797026933021542085",),
        technologies=("amd-sev",),
        least_firmware=1,
        least_security_version=0,
        production=True,
        revocation=WHY,
    )


def test_a_google_vtpm_is_genuine_without_a_nonce():
    claims = google()
    assert (claims.instance.project_id, claims.instance.instance_name) == ("google.com:wuale-gcp-testing", "cos-test")
    assert (claims.tpm.bank, claims.tpm.nonce, claims.tpm.nonce_checked) == ("sha256", b"", False)
    assert (claims.technology, claims.firmware) == ("amd-sev", "1")
    assert set(claims.tpm.replayed) == set(range(24)) - {10, 16, 23}
    assert (claims.tpm.evidence_class, claims.tpm.hardware_rooted) == ("gcp-vtpm", False)
    require_defaults(claims)
    appraise(claims, google_policy(), now=GOOGLE_TIME)
    with pytest.raises(RegisterError):
        appraise(claims, google_policy(replayed=(0, 10)), now=GOOGLE_TIME)


def test_a_google_vtpm_chains_through_files_too():
    roots = (read("vtpm/roots/tpm_ek_root_1.cer"),)
    files = (*roots, read("vtpm/roots/tpm_ek_intermediate_2.crt"))
    assert google(None, *files, anchors=roots).root == google().root
    assert roots[0] in {root.der for root in pinned_roots()}


def test_a_google_vtpm_without_a_nonce_answers_none():
    with pytest.raises(NonceError):
        google(expectation=Expectation(nonce=b"n" * 32, report_data=None))
    assert google(expectation=Expectation(nonce=b"", report_data=None)).tpm.nonce_checked is False
    with pytest.raises(FreshnessError):
        appraise(google(), google_policy(nonce=True), now=GOOGLE_TIME)


def test_a_google_vtpm_chains_to_no_other_root():
    software_root = load_certificate(read(SOFTWARE + "swtpm-localca-rootca-cert.pem"), what="root").der
    for anchors in ((software_root,), (pinned_roots()[1].der,), ()):
        with pytest.raises(TrustAnchorError):
            google(anchors=anchors)
    with pytest.raises(TrustAnchorError):
        google(None, read("vtpm/roots/tpm_ek_root_1.cer"), anchors=(software_root,))


@pytest.mark.parametrize(
    "moment", [datetime.datetime(2051, 8, 26, tzinfo=datetime.UTC), datetime.datetime(2021, 8, 30, tzinfo=datetime.UTC)]
)
def test_a_google_vtpms_certificate_has_its_time(moment):
    with pytest.raises(CertificateValidityError):
        google(now=moment)


def parts():
    """Where in the file each part stands that has to hold."""
    data, found = read(GOOGLE), parse_attestation(read(GOOGLE))
    strong = [quote for quote in found.quotes if quote.bank != "sha1"]
    named = {"key": found.ak_public, "certificate": found.ak_certificate}
    for quote in strong:
        named |= {f"{quote.bank} message": quote.message, f"{quote.bank} signature": quote.signature}
    return data, {name: (data.index(part), len(part)) for name, part in named.items()}


def test_a_google_certificate_covers_the_key_and_not_what_is_said_of_it():
    data, places = parts()
    start, size = places["key"]
    original, found = google(), set()
    for position in range(start, start + size, 3):
        changed = bytearray(data)
        changed[position] ^= 1
        try:
            claims = google(bytes(changed))
        except AttestationError:
            continue
        found.add(position - start)
        assert claims.tpm.attestation_key == original.tpm.attestation_key
        assert claims.tpm.attestation_key_name != original.tpm.attestation_key_name
        assert {"restricted", "sign", "fixedTPM"} <= set(claims.tpm.attributes)
    # What may change is a name's hash, other attributes and a policy; never the key (from byte 24 on).
    assert max(found, default=0) < 24


PARTS = ("certificate", "sha256 message", "sha256 signature", "sha384 message", "sha384 signature")


@pytest.mark.parametrize("name", PARTS)
def test_no_byte_of_a_google_vtpms_parts_can_change(name):
    data, places = parts()
    start, size = places[name]
    for position in range(start, start + size, 11 if size > 600 else 3):
        changed = bytearray(data)
        changed[position] ^= 1
        with pytest.raises(AttestationError):
            google(bytes(changed))


def test_each_register_of_a_google_vtpm_is_the_signed_one():
    data = read(GOOGLE)
    quote = next(found for found in parse_attestation(data).quotes if found.bank == "sha256")
    start = data.index(quote.message)
    for number, value in quote.pcrs.items():
        entry = (b"\x08" + bytes([number]) if number else b"\x08\x00") + b"\x12\x20" + value
        place = data.index(entry, start)
        changed = bytearray(data)
        changed[place + len(entry) - 1] ^= 1
        with pytest.raises(PcrDigestError):
            google(bytes(changed))
        changed = bytearray(data)
        changed[place + 1] = 24
        with pytest.raises(EvidenceFormatError):
            google(bytes(changed))


def test_the_digests_of_a_google_vtpms_log_are_the_measured_ones():
    data = read(GOOGLE)
    log = parse_attestation(data).event_log
    start = data.index(log)
    refused = 0
    for position in range(start + 100, start + len(log), 997):
        changed = bytearray(data)
        changed[position] ^= 1
        try:
            google(bytes(changed))
        except (EventLogError, EvidenceFormatError):
            refused += 1
    # Digests of other banks, and words that no digest covers, are not read.
    assert refused
    with pytest.raises((EventLogError, EvidenceFormatError)):
        google(data[: start + 60] + data[start + 61 :])


def test_a_google_vtpms_file_ends_nowhere_else():
    data = read(GOOGLE)
    for size in range(0, len(data), 1801):
        with pytest.raises(AttestationError):
            google(data[:size])
    for tail in (b"\x00", b"\x0a\x00", b"x"):
        with pytest.raises(EvidenceFormatError):
            google(data + tail)


def test_a_real_instance_has_one_form():
    certificate = load_certificate(parse_attestation(read(GOOGLE)).ak_certificate, what="AK")
    extension = certificate.extension(INSTANCE_EXTENSION)
    assert extension is not None
    found = parse_instance(extension)
    assert found.security is not None
    assert (found.security.security_version, found.security.is_production) == (0, True)
    for size in range(len(extension)):
        with pytest.raises(EndorsementFormatError):
            parse_instance(extension[:size])
    with pytest.raises(EndorsementFormatError):
        parse_instance(extension + b"\x00")


def test_a_google_certificate_of_another_kind_is_no_attestation_keys():
    data = read(GOOGLE)
    certificate = parse_attestation(data).ak_certificate
    other = read("vtpm/roots/tpm_ek_intermediate_2.crt")
    start = data.index(certificate) - 3
    swapped = (
        data[:start]
        + b"\x32"
        + bytes([len(other) & 0x7F | 0x80, len(other) >> 7])
        + other
        + data[start + 3 + len(certificate) :]
    )
    with pytest.raises(CertificateChainError):
        google(swapped)


def test_every_json_set_here_is_read():
    for name in (BARE, MALICIOUS):
        assert verified(read(name), pinned(name)).rooted_by == "pinned-key"
    with pytest.raises(TrailingBytesError):
        parse_quote(base64.b64decode(json.loads(read(BARE))["tpm_quote"]["message"]) + b"\x00")
