import dataclasses
import datetime
import hashlib
import importlib.resources

import pytest
from attestation_world import BINDING, MANIFEST
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sev_snp_world import (
    ASK,
    ASVK,
    BASE,
    CHIP,
    CSP,
    DAY,
    END,
    FIELDS,
    HOST_DATA,
    MEASUREMENT,
    NOW,
    PROCESSOR,
    REPORT,
    REPORT_DATA,
    ROOTS,
    SMT,
    START,
    TCB,
    TURIN_CHIP,
    VCEK,
    VLEK,
    authority,
    crl,
    ec_key,
    number,
    overwritten,
    report,
    root,
    rsa_key,
    text,
    vek,
    verify,
    with_serial_0,
)

from confed import canonical, record
from confed.attestation.certificates import load_certificate, require_issued
from confed.attestation.evidence import Envelope, Expectation
from confed.attestation.tee import sev_snp
from confed.attestation.tee.sev_snp import PROFILE, SnpVerifier, verify_files
from confed.attestation.tee.sev_snp_endorsements import pinned, pinned_roots, read_endorsements
from confed.attestation.tee.sev_snp_report import GuestPolicyBit, PlatformBit
from confed.attestation.tee.sev_snp_vek import read_vek
from confed.attestation.verifier import ExpectedBinding, Registry
from confed.errors import (
    AlgorithmError,
    AttestationError,
    BindingMismatchError,
    CertificateChainError,
    CertificateValidityError,
    EndorsementFormatError,
    EndorsementMismatchError,
    EvidenceFormatError,
    EvidenceSignatureError,
    EvidenceSizeError,
    EvidenceVersionError,
    MissingEndorsementError,
    NonceError,
    RevocationUnknownError,
    RevokedError,
    TrailingBytesError,
    TrustAnchorError,
)
from confed.journey import Role

NOTHING = Expectation(nonce=None, report_data=None)
NOW_MS = int(NOW.timestamp() * 1000)


def pem(der, label="CERTIFICATE"):
    if label == "CERTIFICATE":
        return x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM)
    return x509.load_der_x509_crl(der).public_bytes(Encoding.PEM)


def files(evidence=REPORT, endorsements=(VCEK, ASK), *, expectation=NOTHING, now=NOW, anchors=ROOTS):
    return verify_files(evidence, endorsements, expectation=expectation, now=now, anchors=anchors)


@pytest.mark.parametrize("version", [2, 3, 4, 5])
@pytest.mark.parametrize("kind", ["VCEK", "VLEK"])
@pytest.mark.parametrize("product", ["Milan", "Genoa", "Turin"])
def test_a_genuine_report_of_every_product_key_and_version_is_read(product, kind, version):
    certificate = vek(product, kind=kind)
    claims = verify(report(product, kind=kind, version=version), [certificate, authority(product, kind=kind)])
    assert (claims.product, claims.signing_key, claims.report.version) == (product, kind, version)
    assert claims.report.processor == ("" if version == 2 else "-".join(f"{byte:02x}" for byte in PROCESSOR[product]))
    assert claims.csp_id == (CSP if kind == "VLEK" else "")
    assert claims.endorsement == hashlib.sha256(certificate).hexdigest()
    assert claims.revocation_checked is False
    vectors = ("0000000000000003", "0000000000000007") if version == 5 else ("", "")
    assert (claims.report.launch_mitigations, claims.report.current_mitigations) == vectors


def test_every_field_is_read_from_its_place():
    tcbs = {
        name: bytes([index, index + 1, 0, 0, 0, 0, index + 2, index + 3])
        for index, name in enumerate(("launch_tcb", "committed_tcb", "current_tcb"), start=20)
    }
    changed = report(
        policy=(1 << 26) - 1 - 0xFFFF | 0x0137,
        vmpl=3,
        platform_info=0xFF,
        key_flags=1,
        author_key_digest=b"\xa0" * 48,
        current_version=b"\x03\x02\x01",
        committed_version=b"\x06\x05\x04",
        **tcbs,
    )
    found = verify(changed).report
    assert (found.guest_svn, found.vmpl, found.abi_major, found.abi_minor) == (2, 3, 1, 0x37)
    assert set(found.guest_policy_bits) == set(GuestPolicyBit)
    assert found.platform_bits == tuple(PlatformBit)
    assert (found.report_data, found.measurement, found.host_data) == (REPORT_DATA, MEASUREMENT, HOST_DATA)
    assert (found.id_key_digest, found.author_key_digest, found.author_key_enabled) == (
        b"\x1d" * 48,
        b"\xa0" * 48,
        True,
    )
    assert (found.report_id, found.report_id_ma, found.chip_id) == (b"\x77" * 32, b"\xff" * 32, CHIP)
    assert (found.family_id[0], found.image_id[0]) == (1, 2)
    assert str(found.current_version) == "1.2.3"
    assert str(found.committed_version) == "4.5.6"
    for index, name in enumerate(("launch_tcb", "committed_tcb", "current_tcb"), start=20):
        tcb = getattr(found, name)
        assert (tcb.fmc, tcb.bootloader, tcb.tee, tcb.snp, tcb.microcode) == (0, index, index + 1, index + 2, index + 3)
    assert found.reported_tcb.snp == 25


def test_turin_has_another_tcb_layout_and_a_short_chip_id():
    claims = verify(report("Turin"), [vek("Turin"), authority("Turin")])
    tcb = claims.report.reported_tcb
    assert (tcb.fmc, tcb.bootloader, tcb.tee, tcb.snp, tcb.microcode) == (2, 1, 3, 4, 71)
    assert claims.chip_id == TURIN_CHIP.ljust(64, b"\0")


@pytest.mark.parametrize("model", [0x10, 0x1F, 0xA0, 0xAF])
def test_genoa_s_root_serves_bergamo_and_siena(model):
    assert verify(report(cpuid=bytes([0x19, model, 2]))).product == "Genoa"


@pytest.mark.parametrize(
    ("product", "value"),
    [
        ("Genoa", CHIP),
        ("Genoa", b"\x04\x40" + CHIP),
        ("Turin", TURIN_CHIP),
        ("Turin", b"\x04\x08" + TURIN_CHIP),
        # Raw bytes that begin like an OCTET STRING's header are still raw: their length decides.
        ("Genoa", b"\x04\x3e" + CHIP[2:]),
    ],
)
def test_a_hardware_id_is_read_in_each_of_its_encodings(product, value):
    chip = value[-8:] if product == "Turin" else value[-64:]
    claims = verify(
        report(product, chip_id=chip.ljust(64, b"\0")), [vek(product, extensions={"4": value}), authority(product)]
    )
    assert claims.chip_id == chip.ljust(64, b"\0")


def test_a_masked_chip_is_known_by_the_certificate_of_the_key_that_signed():
    claims = verify(report(chip_id=bytes(64)))
    assert (claims.chip_id, claims.report.chip_id) == (CHIP, bytes(64))


def test_a_cloud_s_key_says_nothing_of_a_masked_chip_and_leaves_an_unmasked_one():
    assert verify(report(kind="VLEK"), [VLEK, ASVK]).chip_id == bytes(64)
    assert verify(report(kind="VLEK", chip_id=CHIP), [VLEK, ASVK]).chip_id == CHIP


def test_claims_travel_as_canonical_json():
    claims = verify()
    shown = record.to_json(claims)
    assert canonical.decode(canonical.encode(shown)) == shown
    assert shown["report"]["measurement"] == MEASUREMENT.hex()
    assert record.from_json(type(claims), shown) == claims


# The report's own form. Each is signed by the VEK as it stands, so only its form speaks against it.
FORMS = {
    "version 0": (lambda: report(version=0), EvidenceVersionError),
    "version 1": (lambda: report(version=1), EvidenceVersionError),
    "version 6": (lambda: report(version=6), EvidenceVersionError),
    "a version beyond 16 bits": (lambda: report(version=5 + (1 << 16)), EvidenceVersionError),
    "no algorithm": (lambda: report(signature_algo=0), AlgorithmError),
    "another algorithm": (lambda: report(signature_algo=2), AlgorithmError),
    "a key that no specification names": (lambda: report(key_flags=2 << 2), EvidenceFormatError),
    "another key that no specification names": (lambda: report(key_flags=6 << 2), EvidenceFormatError),
    "no signing key": (lambda: report(key_flags=7 << 2), EvidenceSignatureError),
    "a masked key": (lambda: report(key_flags=2), EvidenceSignatureError),
    "a masked cloud's key": (lambda: report(key_flags=4 | 2), EvidenceSignatureError),
    "reserved bits in the key flags": (lambda: report(key_flags=1 << 5), EvidenceFormatError),
    "bit 17 of the guest policy cleared": (lambda: report(policy=SMT), EvidenceFormatError),
    "a reserved byte after the key flags": (lambda: report(reserved_4c=1 << 31), EvidenceFormatError),
    "a reserved byte after the processor": (lambda: report(reserved_18b=1 << 167), EvidenceFormatError),
    "a reserved byte after the current version": (lambda: report(reserved_1eb=1), EvidenceFormatError),
    "a reserved byte after the committed version": (lambda: report(reserved_1ef=1), EvidenceFormatError),
    "a reserved byte after the mitigations": (lambda: report(reserved_208=1), EvidenceFormatError),
    "the last reserved byte before the signature": (lambda: report(reserved_208=1 << 1215), EvidenceFormatError),
    "mitigations in version 3": (lambda: report(version=3, launch_mitigations=1), EvidenceFormatError),
    "mitigations in version 4": (lambda: report(version=4, current_mitigations=1), EvidenceFormatError),
    "mitigations in version 2": (lambda: report(version=2, launch_mitigations=1), EvidenceFormatError),
    "a processor in version 2": (lambda: report(version=2, cpuid=PROCESSOR["Genoa"]), EvidenceFormatError),
    "r above 384 bits": (lambda: overwritten(REPORT, "r_upper", 1), EvidenceFormatError),
    "s above 384 bits": (lambda: overwritten(REPORT, "s_upper", 1 << 191), EvidenceFormatError),
    "a byte after the signature": (lambda: overwritten(REPORT, "reserved_330", 1), EvidenceFormatError),
    "the last byte set": (lambda: REPORT[:-1] + b"\x01", EvidenceFormatError),
    "a reserved byte of CURRENT_TCB": (lambda: report(current_tcb=b"\x0a\1\1\0\0\0\x19\x54"), EvidenceFormatError),
    "a reserved byte of COMMITTED_TCB": (lambda: report(committed_tcb=b"\x0a\1\0\0\0\1\x19\x54"), EvidenceFormatError),
    "a reserved byte of LAUNCH_TCB": (lambda: report(launch_tcb=b"\x0a\1\0\1\0\0\x19\x54"), EvidenceFormatError),
    "an unknown family": (lambda: report(cpuid=b"\x17\x31\x00"), TrustAnchorError),
    "an unknown model of a known family": (lambda: report(cpuid=b"\x19\x21\x02"), TrustAnchorError),
    "a model between two products": (lambda: report(cpuid=b"\x19\x9f\x02"), TrustAnchorError),
    "the generation after Turin": (lambda: report(cpuid=b"\x1a\x50\x00"), TrustAnchorError),
    "a trailing byte": (lambda: REPORT + b"\0", TrailingBytesError),
    "another report behind it": (lambda: REPORT + REPORT, TrailingBytesError),
    "nothing": (lambda: b"", EvidenceFormatError),
    "r of zero": (lambda: overwritten(REPORT, "r", 0), EvidenceSignatureError),
    "s of zero": (lambda: overwritten(REPORT, "s", 0), EvidenceSignatureError),
    "r beyond the curve's order": (lambda: overwritten(REPORT, "r", b"\xff" * 48), EvidenceSignatureError),
}


@pytest.mark.parametrize(("make", "error"), FORMS.values(), ids=FORMS.keys())
def test_a_report_is_refused_with(make, error):
    with pytest.raises(AttestationError) as raised:
        verify(make())
    assert type(raised.value) is error


FLIPPED = {
    "version": EvidenceVersionError,
    "signature_algo": AlgorithmError,
    "key_flags": EndorsementMismatchError,
    "reserved_4c": EvidenceFormatError,
    "reported_tcb": EndorsementMismatchError,
    "cpuid": TrustAnchorError,
    "reserved_18b": EvidenceFormatError,
    "chip_id": EndorsementMismatchError,
    "reserved_1eb": EvidenceFormatError,
    "reserved_1ef": EvidenceFormatError,
    "reserved_208": EvidenceFormatError,
    "r_upper": EvidenceFormatError,
    "s_upper": EvidenceFormatError,
    "reserved_330": EvidenceFormatError,
}


@pytest.mark.parametrize("field", FIELDS)
def test_a_bit_flipped_in_any_field_is_refused_by_the_right_class(field):
    start = FIELDS[field][0]
    flip = 4 if field in {"version", "key_flags"} else 1
    flipped = REPORT[:start] + bytes([REPORT[start] ^ flip]) + REPORT[start + 1 :]
    assert flipped != REPORT
    with pytest.raises(AttestationError) as raised:
        verify(flipped)
    expected = FLIPPED.get(field, EvidenceSignatureError)
    assert isinstance(raised.value, expected)
    assert type(raised.value) is expected


def test_every_byte_of_a_report_counts():
    for position in range(0, len(REPORT), 7):
        with pytest.raises(AttestationError):
            verify(REPORT[:position] + bytes([REPORT[position] ^ 0x80]) + REPORT[position + 1 :])


def test_a_report_cut_anywhere_is_refused():
    for size in range(len(REPORT)):
        with pytest.raises(EvidenceFormatError):
            verify(REPORT[:size], [])


def without(*extensions):
    return [vek(extensions=dict.fromkeys(extensions)), ASK]


def changed(**extensions):
    return [vek(extensions={key.replace("_", "."): value for key, value in extensions.items()}), ASK]


OLD_LIST = crl(start=NOW - 3 * DAY, end=NOW - DAY)
OTHER_ROOTS = tuple(root(product, owner="Mallory") for product in ("Milan", "Genoa", "Turin"))
OTHER_ASK = authority(owner="Mallory", signed_by="Mallory")
GENOA = "Genoa"

# What speaks against the endorsements of a report that is well formed: certificates, then what else differs.
ENDORSEMENTS = {
    "no certificate at all": ([], {}, MissingEndorsementError),
    "only an authority": ([ASK], {}, MissingEndorsementError),
    "a cloud's key for a chip's report": ([VLEK, ASVK], {}, EndorsementMismatchError),
    "a chip's key for a cloud's report": ([VCEK, ASK], {"data": report(kind="VLEK")}, EndorsementMismatchError),
    "the key of another product": ([vek("Milan"), authority("Milan")], {}, EndorsementMismatchError),
    "the key of another product whose report says this one": (
        [VCEK, ASK], {"data": report(cpuid=PROCESSOR["Milan"])}, EndorsementMismatchError),
    "the key of Turin whose report says Genoa": (
        [vek("Turin"), authority("Turin")],
        {"data": report("Turin", cpuid=PROCESSOR["Genoa"])}, EndorsementMismatchError),
    "five authorities of one name": (
        [VCEK, *(authority(serial=serial) for serial in range(20, 25))], {}, EndorsementFormatError),
    "the key of another chip": ([vek(extensions={"4": CHIP[::-1]}), ASK], {}, EndorsementMismatchError),
    "the key of a newer TCB": ([vek(tcb=b"\x0a\1\0\0\0\0\x1a\x54"), ASK], {}, EndorsementMismatchError),
    "a reserved level that the report does not have": (changed(**{"3_4": number(1)}), {}, EndorsementMismatchError),
    "another key of the same chip": ([vek(key=ec_key("other")), ASK], {}, EvidenceSignatureError),
    "a key on another curve": ([vek(key=ec_key("short", ec.SECP256R1)), ASK], {}, AlgorithmError),
    "an RSA key": ([vek(key=rsa_key("vek")), ASK], {}, AlgorithmError),
    "five keys of chips": ([*(vek(key=ec_key(n)) for n in range(5)), ASK], {}, EndorsementFormatError),
    "no structure version": (without("1"), {}, EndorsementFormatError),
    "a structure version of the future": (changed(**{"1": number(2)}), {}, EndorsementFormatError),
    "no product name": (without("2"), {}, EndorsementFormatError),
    "an unknown product": (changed(**{"2": text("Venice-A0")}), {}, EndorsementFormatError),
    "an empty product name": (changed(**{"2": text("")}), {}, EndorsementFormatError),
    "a product name that is no ASCII": (changed(**{"2": b"\x16\x01\xe9"}), {}, EndorsementFormatError),
    "a product name that does not print": (changed(**{"2": text("Genoa\n")}), {}, EndorsementFormatError),
    "a product name of another type": (changed(**{"2": b"\x0c\x05Genoa"}), {}, EndorsementFormatError),
    "a product name with a trailing byte": (changed(**{"2": text("Genoa") + b"\0"}), {}, EndorsementFormatError),
    "no boot loader level": (without("3.1"), {}, EndorsementFormatError),
    "no microcode level": (without("3.8"), {}, EndorsementFormatError),
    "no reserved level": (without("3.7"), {}, EndorsementFormatError),
    "a level that is negative": (changed(**{"3_1": b"\x02\x01\x8a"}), {}, EndorsementFormatError),
    "a level above 255": (changed(**{"3_1": b"\x02\x02\x01\x0a"}), {}, EndorsementFormatError),
    "a level with a zero too many": (changed(**{"3_1": b"\x02\x02\x00\x0a"}), {}, EndorsementFormatError),
    "a level without a number": (changed(**{"3_1": b"\x02\x00"}), {}, EndorsementFormatError),
    "an empty level": (changed(**{"3_1": b""}), {}, EndorsementFormatError),
    "a level in long form": (changed(**{"3_1": b"\x02\x81\x01\x0a"}), {}, EndorsementFormatError),
    "no hardware id": (without("4"), {}, EndorsementFormatError),
    "a hardware id of 63 bytes": (changed(**{"4": CHIP[1:]}), {}, EndorsementFormatError),
    "a wrapped hardware id of 63 bytes": (changed(**{"4": b"\x04\x3f" + CHIP[1:]}), {}, EndorsementFormatError),
    "Turin's hardware id on another product": (changed(**{"4": TURIN_CHIP}), {}, EndorsementFormatError),
    "a cloud's name in a chip's certificate": (changed(**{"5": text(CSP)}), {}, EndorsementFormatError),
    "a hardware id in a cloud's certificate": (
        [vek(kind="VLEK", extensions={"4": CHIP}), ASVK], {"data": report(kind="VLEK")}, EndorsementFormatError),
    "a cloud's certificate without its name": (
        [vek(kind="VLEK", extensions={"5": None}), ASVK], {"data": report(kind="VLEK")}, EndorsementFormatError),
    "a cloud without a name": (
        [vek(kind="VLEK", extensions={"5": text("")}), ASVK], {"data": report(kind="VLEK")}, EndorsementFormatError),
    "a cloud whose name does not print": (
        [vek(kind="VLEK", extensions={"5": text("CN=a\x1b[2J")}), ASVK],
        {"data": report(kind="VLEK")}, EndorsementFormatError),
    "a cloud whose name is in long form": (
        [vek(kind="VLEK", extensions={"5": b"\x16\x81\x80" + b"a" * 128}), ASVK],
        {"data": report(kind="VLEK")}, EndorsementFormatError),
    "an authority with a short key": (
        [vek(owner="weak"), authority(owner="weak")], {}, AlgorithmError),
    "an unknown critical extension": ([vek(critical=True), ASK], {}, CertificateChainError),
    "a chip's key below the authority of clouds": (
        [vek(issuer="SEV-VLEK-Genoa"), ASVK, ASK], {}, CertificateChainError),
    "a chip's key with only the authority of clouds": ([VCEK, ASVK], {}, CertificateChainError),
    "a cloud's key below the authority of chips": (
        [vek(kind="VLEK", issuer="SEV-Genoa"), ASVK, ASK], {"data": report(kind="VLEK")}, CertificateChainError),
    "the authority of another product": ([VCEK, authority("Milan")], {}, CertificateChainError),
    "the authority of another owner": ([VCEK, OTHER_ASK], {}, CertificateChainError),
    "a whole chain of another owner": ([vek(owner="Mallory"), OTHER_ASK], {}, CertificateChainError),
    "a whole chain of another owner with its root": (
        [vek(owner="Mallory"), OTHER_ASK, OTHER_ROOTS[1]], {}, TrustAnchorError),
    "another root of the same name beside the right chain": ([VCEK, ASK, OTHER_ROOTS[1]], {}, TrustAnchorError),
    "no authority, and none that is pinned": ([VCEK], {}, CertificateChainError),
    "an authority that may not sign certificates": ([VCEK, authority(ca=None)], {}, CertificateChainError),
    "a key signed by the root itself": (
        [vek(issuer="ARK-Genoa"), ASK, ROOTS[1]], {}, CertificateChainError),
    "a key signed by another key of a chip": (
        [vek(issuer="SEV-VCEK"), ASK], {}, CertificateChainError),
    "another owner's roots": ([VCEK, ASK], {"anchors": OTHER_ROOTS}, CertificateChainError),
    "only other products' roots": ([VCEK, ASK], {"anchors": (ROOTS[0], ROOTS[2])}, TrustAnchorError),
    "an authority in place of a root": ([VCEK, ASK], {"anchors": (ASK,)}, TrustAnchorError),
    "no root": ([VCEK, ASK], {"anchors": ()}, TrustAnchorError),
    "two roots of one name": ([VCEK, ASK], {"anchors": (*ROOTS, OTHER_ROOTS[1])}, TrustAnchorError),
    "a key before its validity": (
        [vek(start=NOW + DAY, end=END), ASK], {}, CertificateValidityError),
    "a key a day past its validity": (
        [vek(start=START, end=NOW - DAY), ASK], {}, CertificateValidityError),
    "an authority before its validity": ([VCEK, authority(start=NOW + DAY)], {}, CertificateValidityError),
    "an authority a day past its validity": ([VCEK, authority(end=NOW - DAY)], {}, CertificateValidityError),
    "a root past its validity": (
        [VCEK, ASK], {"anchors": (root(end=NOW - DAY),)}, CertificateValidityError),
    "a day past every validity": ([VCEK, ASK], {"now": END + DAY}, CertificateValidityError),
    "a day before every validity": ([VCEK, ASK], {"now": START - DAY}, CertificateValidityError),
    "a revoked authority": ([VCEK, ASK], {"crls": [crl(revoked=[11])]}, RevokedError),
    "a revoked authority of clouds": (
        [VLEK, ASVK], {"data": report(kind="VLEK"), "crls": [crl(revoked=[12])]}, RevokedError),
    "a second list that revokes": ([VCEK, ASK], {"crls": [crl(), crl(revoked=[11])]}, RevokedError),
    "another product's list": ([VCEK, ASK], {"crls": [crl("Milan")]}, RevocationUnknownError),
    "another owner's list": ([VCEK, ASK], {"crls": [crl(owner="Mallory")]}, RevocationUnknownError),
    "a list of the authority itself": ([VCEK, ASK], {"crls": [crl(issuer="SEV-Genoa")]}, RevocationUnknownError),
    "a list that is over": (
        [VCEK, ASK], {"crls": [crl(start=NOW - 3 * DAY, end=NOW - DAY)]}, RevocationUnknownError),
    "a list of the future": (
        [VCEK, ASK], {"crls": [crl(start=NOW + DAY, end=NOW + 3 * DAY)]}, RevocationUnknownError),
    "an older list beside one that revokes": (
        [VCEK, ASK], {"crls": [OLD_LIST, crl(revoked=[11])]}, RevokedError),
    "an older list beside another owner's": (
        [VCEK, ASK], {"crls": [OLD_LIST, crl(owner="Mallory")]}, RevocationUnknownError),
    "several lists that are over": ([VCEK, ASK], {"crls": [OLD_LIST, OLD_LIST]}, RevocationUnknownError),
    "version 2 with the key of another product": (
        [vek("Milan"), authority("Milan")], {"data": report(version=2)}, EndorsementMismatchError),
    "version 2 with a key that claims another product": (
        [vek(extensions={"2": text("Milan-B0")}), ASK], {"data": report(version=2)}, CertificateChainError),
}  # fmt: skip


@pytest.mark.parametrize(("certificates", "arguments", "error"), ENDORSEMENTS.values(), ids=ENDORSEMENTS.keys())
def test_endorsements_are_refused_that_are(certificates, arguments, error):
    with pytest.raises(AttestationError) as raised:
        verify(arguments.get("data", REPORT), certificates, **{k: v for k, v in arguments.items() if k != "data"})
    assert type(raised.value) is error


def test_the_last_moment_of_validity_still_counts():
    assert verify(now=END)
    assert verify(now=START)


def test_a_list_that_does_not_name_the_authority_is_said_to_have_been_checked():
    assert verify(crls=[crl(revoked=[99])]).revocation_checked is True
    assert verify().revocation_checked is False


def test_a_hint_that_has_grown_old_does_not_speak_against_a_list_of_this_time():
    for crls in ([OLD_LIST, crl()], [crl(), OLD_LIST]):
        assert verify(crls=crls).revocation_checked is True


@pytest.mark.parametrize("kind", ["VCEK", "VLEK"])
def test_a_key_s_certificate_with_serial_0_is_read_where_the_parser_refuses_it(monkeypatch, kind):
    certificate = with_serial_0(vek(kind=kind, serial=7))
    parse = x509.load_der_x509_certificate

    def strict(data, *rest):
        if b"\x02\x01\x00" in data[:20]:
            raise ValueError("serial number 0")
        return parse(data, *rest)

    monkeypatch.setattr(x509, "load_der_x509_certificate", strict)
    with pytest.raises(ValueError, match="serial number 0"):
        x509.load_der_x509_certificate(certificate)
    claims = verify(report(kind=kind), [certificate, authority(kind=kind)], crls=[crl()])
    assert claims.endorsement == hashlib.sha256(certificate).hexdigest()
    with pytest.raises(CertificateChainError):
        verify(report(kind=kind), [certificate[:-1] + bytes([certificate[-1] ^ 1]), authority(kind=kind)])


def test_of_several_keys_and_authorities_those_that_hold_are_enough():
    others = [vek(extensions={"4": CHIP[::-1]}), vek(key=ec_key("other")), vek(tcb=bytes(8))]
    again = [authority(serial=serial) for serial in (20, 21)]
    claims = verify(certificates=[*others, VCEK, OTHER_ASK, ASK, *again])
    assert claims.endorsement == hashlib.sha256(VCEK).hexdigest()


def test_the_error_told_is_that_of_the_first_key():
    with pytest.raises(EndorsementMismatchError):
        verify(certificates=[vek(extensions={"4": CHIP[::-1]}), vek(key=ec_key("other")), ASK])
    with pytest.raises(EvidenceSignatureError):
        verify(certificates=[vek(key=ec_key("other")), vek(extensions={"4": CHIP[::-1]}), ASK])


def test_a_report_of_version_2_takes_its_product_and_layout_from_the_certificate():
    assert verify(report("Turin", version=2), [vek("Turin"), authority("Turin")]).report.reported_tcb.fmc == 2
    with pytest.raises(EndorsementMismatchError):
        verify(report("Milan", version=2), [vek("Turin"), authority("Turin")])


# Files as a person has them.


@pytest.mark.parametrize(
    "evidence",
    [REPORT, REPORT.hex().encode(), REPORT.hex().upper().encode() + b"\n", b"\n".join([REPORT.hex().encode()[:64], REPORT.hex().encode()[64:]])],
    ids=["bytes", "hexadecimal", "upper case", "in lines"],
)  # fmt: skip
def test_a_report_is_read_as_bytes_and_as_hexadecimal_text(evidence):
    assert files(evidence).report.report_data == REPORT_DATA


FILES = {
    "an odd number of digits": (REPORT.hex().encode() + b"0", EvidenceFormatError),
    "one byte too many in hexadecimal": (REPORT.hex().encode() + b"00", TrailingBytesError),
    "one byte too few in hexadecimal": (REPORT.hex().encode()[2:], EvidenceFormatError),
    "a trailing byte": (REPORT + b"\n", TrailingBytesError),
    "nothing": (b"", EvidenceFormatError),
    "white space": (b" \n", EvidenceFormatError),
    "far too much": (b"0" * 16385, EvidenceSizeError),
}


@pytest.mark.parametrize(("evidence", "error"), FILES.values(), ids=FILES.keys())
def test_a_file_is_refused_with(evidence, error):
    with pytest.raises(AttestationError) as raised:
        files(evidence)
    assert type(raised.value) is error


LIST = crl()
ORDERS = {
    "as they come": [VCEK, ASK, ROOTS[1], LIST],
    "backwards": [LIST, ROOTS[1], ASK, VCEK],
    "PEM": [pem(VCEK), pem(ASK) + pem(ROOTS[1]), pem(LIST, "CRL")],
    "one file": [pem(VCEK) + pem(ASK) + pem(LIST, "CRL")],
    "text before the first block": [b"Bag Attributes\n  friendlyName: x\n" + pem(VCEK), b"# chain\n" + pem(ASK), LIST],
    "twice": [VCEK, VCEK, pem(VCEK), ASK, ASK, LIST, LIST],
}


@pytest.mark.parametrize("endorsements", ORDERS.values(), ids=ORDERS.keys())
def test_endorsement_files_are_told_apart_by_content(endorsements):
    assert files(endorsements=endorsements).revocation_checked is True


BAD_FILES = {
    "nonsense": b"nonsense",
    "nothing": b"",
    "a certificate with a trailing byte": VCEK + b"\0",
    "a truncated certificate": VCEK[:-1],
    "another kind of PEM": b"-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----\n",
    "PEM without an end": b"-----BEGIN CERTIFICATE-----\nAAAA\n",
    "two lists in a file": pem(LIST, "CRL") + pem(LIST, "CRL"),
    "a list that is too large": crl(revoked=range(1, 4000)),
    "a truncated list": LIST[:-1],
}


@pytest.mark.parametrize("data", BAD_FILES.values(), ids=BAD_FILES.keys())
def test_an_endorsement_file_is_refused_that_is(data):
    with pytest.raises(EndorsementFormatError):
        files(endorsements=[VCEK, ASK, data])


def test_endorsements_are_bounded_in_number():
    assert len(read_endorsements([VCEK] * 32).certificates) == 1
    with pytest.raises(EndorsementFormatError):
        read_endorsements([VCEK] * 33)
    many = [pem(vek(serial=serial)) for serial in range(1, 34)]
    with pytest.raises(EndorsementFormatError):
        read_endorsements([b"".join(many[:16]), b"".join(many[16:32]), many[32]])
    assert len(read_endorsements([b"".join(many[:16]), b"".join(many[16:32])]).certificates) == 32


EXPECTATIONS = {
    "the right report data": (None, REPORT_DATA, None),
    "the right nonce": (REPORT_DATA, None, None),
    "both the same": (REPORT_DATA, REPORT_DATA, None),
    "other report data": (None, REPORT_DATA[::-1], BindingMismatchError),
    "a prefix only": (None, REPORT_DATA[:63], BindingMismatchError),
    "more than there is": (None, REPORT_DATA + b"\0", BindingMismatchError),
    "no data at all": (None, b"", BindingMismatchError),
    "another nonce": (REPORT_DATA[::-1], None, NonceError),
    "a nonce that is only a prefix": (REPORT_DATA[:32], None, NonceError),
    "a nonce and report data that differ": (REPORT_DATA[:32], REPORT_DATA, BindingMismatchError),
}


@pytest.mark.parametrize(("nonce", "data", "error"), EXPECTATIONS.values(), ids=EXPECTATIONS.keys())
def test_all_64_bytes_of_report_data_are_compared(nonce, data, error):
    expectation = Expectation(nonce=nonce, report_data=data)
    if error is None:
        assert files(expectation=expectation)
        return
    with pytest.raises(AttestationError) as raised:
        files(expectation=expectation)
    assert type(raised.value) is error


def test_expected_data_is_padded_with_zeros():
    short = report(report_data=b"nonce".ljust(64, b"\0"))
    assert files(short, expectation=Expectation(nonce=b"nonce", report_data=b"nonce"))
    with pytest.raises(BindingMismatchError):
        files(short, expectation=Expectation(nonce=None, report_data=b"nonc"))


def test_what_is_expected_is_compared_only_once_the_report_is_genuine():
    with pytest.raises(EvidenceSignatureError):
        files(overwritten(REPORT, "guest_svn", 9), expectation=Expectation(nonce=b"x", report_data=None))


# The pinned certificates.


def test_amd_s_certificates_are_pinned_and_chain_to_their_roots():
    now = datetime.datetime(2026, 11, 21, tzinfo=datetime.UTC)
    assert len(pinned()) == 9
    roots = {certificate.subject.partition(",")[0]: certificate for certificate in pinned_roots()}
    assert sorted(roots) == ["CN=ARK-Genoa", "CN=ARK-Milan", "CN=ARK-Turin"]
    for certificate in pinned():
        assert certificate.parsed.not_valid_before_utc < now < certificate.parsed.not_valid_after_utc
        product = certificate.subject.partition(",")[0].rpartition("-")[2]
        require_issued(certificate, roots[f"CN=ARK-{product}"], depth=1, what="pinned")


def test_the_digests_beside_the_pinned_certificates_are_theirs():
    bundle = importlib.resources.files("confed.attestation.roots").joinpath("amd.pem").read_text()
    digests = [line.removeprefix("# SHA-256: ") for line in bundle.splitlines() if line.startswith("# SHA-256: ")]
    assert digests == [hashlib.sha256(certificate.der).hexdigest() for certificate in pinned()]
    assert digests[0] == "69d063b45344d26a2e94e1f4210de49ef555308287d4c174445c95639a540bcd"
    assert digests[3] == "4c6598d19c18719c5dfd4a7d335f674e5bfe1d8f800cea2cf270c10d103db2f1"
    assert digests[6] == "1f084161a44bb6d93778a904877d4819cafa5d05ef4193b2ded9dd9c73dd3f6a"


def test_where_no_authority_came_along_the_pinned_one_is_used(monkeypatch):
    with pytest.raises(CertificateChainError):
        verify(certificates=[VCEK])
    known = tuple(load_certificate(item, what="authority") for item in (authority("Milan"), ASVK, ASK))
    monkeypatch.setattr(sev_snp, "pinned", lambda: known)
    assert verify(certificates=[VCEK]).product == "Genoa"
    with pytest.raises(CertificateChainError):
        verify(certificates=[VCEK, OTHER_ASK])


def test_only_a_vek_s_certificate_is_read_as_one():
    with pytest.raises(EndorsementFormatError):
        read_vek(load_certificate(ASK, what="ASK"))


def test_without_roots_of_its_own_a_caller_gets_amd_s():
    with pytest.raises(TrustAnchorError):
        files(anchors=None)


# The driver.

SNP_BINDING = dataclasses.replace(BINDING, profile=PROFILE)
EXPECTED = ExpectedBinding(
    nonce=BINDING.nonce, audience=BINDING.audience, manifest=MANIFEST, role=Role.CLIENT, run=BINDING.run
)


def envelope(**changes):
    evidence = report(
        report_data=SNP_BINDING.report_data(), host_data=bytes.fromhex(MANIFEST), **changes.pop("fields", {})
    )
    arguments = {"profile": PROFILE, "evidence": evidence, "binding": SNP_BINDING.encoded, "endorsements": (VCEK, ASK)}
    return Envelope(**arguments | changes)


def register(sent, *, endorsements=(), now_ms=NOW_MS, anchors=ROOTS):
    return Registry((SnpVerifier(),)).verify(
        sent.encode(), endorsements=endorsements, expected=EXPECTED, now_ms=now_ms, anchors={PROFILE: anchors}
    )


def test_the_driver_s_report_is_rooted_in_hardware_and_says_what_was_launched():
    claims = register(envelope())
    assert (claims.hardware_rooted, claims.evidence_class, claims.debug) == (True, "amd-sev-snp", False)
    assert (claims.measurement, claims.configuration) == (MEASUREMENT.hex(), MANIFEST)
    assert (claims.environment, claims.shared, claims.layers) == ("", False, ())
    assert claims.details.product == "Genoa"


def test_debugging_is_told_and_left_to_appraisal():
    assert register(envelope(fields={"policy": 1 << 17 | 1 << 19})).debug is True


def test_endorsements_may_come_from_either_side():
    assert register(envelope(endorsements=()), endorsements=(VCEK, ASK))
    assert register(envelope(endorsements=(VCEK,)), endorsements=(ASK, LIST)).details.revocation_checked is True


DRIVER = {
    "an event log": (envelope(event_logs=(b"log",)), {}, EvidenceFormatError),
    "hexadecimal text": (envelope(evidence=REPORT.hex().encode()), {}, TrailingBytesError),
    "evidence for another binding": (envelope(evidence=REPORT), {}, BindingMismatchError),
    "roots of another": (envelope(), {"anchors": OTHER_ROOTS}, CertificateChainError),
    "AMD's roots where others are pinned": (
        envelope(),
        {"anchors": tuple(r.der for r in pinned_roots())},
        TrustAnchorError,
    ),
    "no roots": (envelope(), {"anchors": ()}, TrustAnchorError),
    "another time": (envelope(), {"now_ms": NOW_MS + 200 * 86_400_000}, CertificateValidityError),
    "no endorsements": (envelope(endorsements=()), {}, MissingEndorsementError),
}


@pytest.mark.parametrize(("sent", "arguments", "error"), DRIVER.values(), ids=DRIVER.keys())
def test_the_driver_refuses(sent, arguments, error):
    with pytest.raises(AttestationError) as raised:
        register(sent, **arguments)
    assert type(raised.value) is error


# Whatever bytes come in.

# A changed name may be one that pyca/cryptography warns of while it reads it.
QUIET = pytest.mark.filterwarnings("ignore:Attribute's length:UserWarning")
ANYTHING = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def refused_or_genuine(evidence, endorsements):
    try:
        claims = files(evidence, endorsements)
    except AttestationError:
        return None
    return claims


@QUIET
@ANYTHING
@given(st.binary(max_size=1300), st.lists(st.binary(max_size=200), max_size=3))
def test_no_bytes_raise_anything_but_attestation_errors(evidence, endorsements):
    assert refused_or_genuine(evidence, endorsements) is None
    assert refused_or_genuine(REPORT, [*endorsements]) is None


@QUIET
@ANYTHING
@given(st.data())
def test_no_mutated_certificate_raises_anything_else_or_is_taken(data):
    original = data.draw(st.sampled_from([VCEK, ASK, LIST]))
    position = data.draw(st.integers(0, len(original) - 1))
    mutated = bytearray(original)
    mutated[position] ^= data.draw(st.integers(1, 255))
    if data.draw(st.booleans()):
        del mutated[data.draw(st.integers(0, len(original) - 1)) :]
    if bytes(mutated) == original:
        return
    items = [bytes(mutated) if item == original else item for item in (VCEK, ASK, LIST)]
    claims = refused_or_genuine(REPORT, items)
    # The parser lets unused bits of a list's signature pass; what it says is still the root's.
    assert claims is None or (original == LIST and claims.revocation_checked)


@ANYTHING
@given(st.data())
def test_no_mutated_report_is_taken(data):
    mutated = bytearray(REPORT)
    for _ in range(data.draw(st.integers(1, 3))):
        mutated[data.draw(st.integers(0, len(REPORT) - 1))] = data.draw(st.integers(0, 255))
    if bytes(mutated) != REPORT:
        assert refused_or_genuine(bytes(mutated), [VCEK, ASK]) is None


@ANYTHING
@given(
    guest_svn=st.integers(0, 2**32 - 1),
    vmpl=st.integers(0, 2**32 - 1),
    platform_info=st.integers(0, 2**64 - 1),
    policy=st.integers(0, 2**64 - 1).map(lambda value: value | 1 << 17),
    report_data=st.binary(min_size=64, max_size=64),
)
def test_what_the_firmware_signed_is_what_is_read(guest_svn, vmpl, platform_info, policy, report_data):
    found = verify(
        report(guest_svn=guest_svn, vmpl=vmpl, platform_info=platform_info, policy=policy, report_data=report_data)
    ).report
    assert (found.guest_svn, found.vmpl, found.report_data) == (guest_svn, vmpl, report_data)
    assert (int(found.platform_info, 16), int(found.guest_policy, 16)) == (platform_info, policy)
    assert (found.abi_major, found.abi_minor) == (policy >> 8 & 0xFF, policy & 0xFF)


def test_the_base_of_amd_s_extensions_is_amd_s():
    assert load_certificate(VCEK, what="VCEK").extension(f"{BASE}.3.8") == number(84)
    assert TCB[GENOA][7] == 84
