"""Real SEV-SNP evidence: every set gets its verdict, and nothing that was changed in it passes."""

import base64
import dataclasses
import datetime
import json

import pytest
from cryptography import x509
from folder import needs_vectors, read, sets_of

from confed.attestation.certificates import load_certificates
from confed.attestation.evidence import Expectation
from confed.attestation.policy.sev_snp import appraise, require_defaults, require_floors
from confed.attestation.policy.sev_snp_terms import Committed, MinimumTcb, SnpPolicy
from confed.attestation.tee import sev_snp_endorsements
from confed.attestation.tee.sev_snp import verify_files, verify_report
from confed.attestation.tee.sev_snp_endorsements import pinned, pinned_roots
from confed.attestation.tee.sev_snp_report import Product, SigningKey, Tcb
from confed.attestation.tee.sev_snp_vek import common_name
from confed.errors import (
    AlgorithmError,
    AliasCheckError,
    AppraisalError,
    AttestationError,
    BindingMismatchError,
    CertificateChainError,
    CertificateValidityError,
    DebugError,
    EndorsementMismatchError,
    EvidenceFormatError,
    EvidenceSignatureError,
    EvidenceVersionError,
    MissingEndorsementError,
    NonceError,
    PrivilegeLevelError,
    TcbError,
    TrailingBytesError,
    TrustAnchorError,
)
from confed.manifest import Unchecked

# A changed name may be one that pyca/cryptography warns of while it reads it.
pytestmark = [needs_vectors, pytest.mark.filterwarnings("ignore:Attribute's length:UserWarning")]

SETS = sets_of("snp")
GENUINE = {name: entry for name, entry in SETS.items() if entry["crypto_verdict"] == "valid"}
FORGED = sorted(set(SETS) - set(GENUINE))
NO = Unchecked(unchecked="a test of something else")
DAY = datetime.timedelta(days=1)

# What each set gets without a policy; None is acceptable.
DEFAULTS = {
    "snp/ms-milan": None,
    "snp/ms-genoa": None,
    "snp/oak-milan-oc-release": None,
    "snp/oak-genoa-oc": None,
    "snp/oak-turin-oc": None,
    "snp/virtee-milan": AliasCheckError,
    "snp/trustee-milan": AliasCheckError,
    "snp/trustee-milan-vlek": PrivilegeLevelError,
    "snp/go-sev-guest-milan": DebugError,
}

# Where each field begins, and what its change is refused as where that is not the signature.
FIELDS = {
    0x00: EvidenceVersionError, 0x04: None, 0x08: None, 0x10: None, 0x20: None, 0x30: None, 0x34: AlgorithmError,
    0x38: None, 0x40: None, 0x48: AttestationError, 0x4C: EvidenceFormatError, 0x50: None, 0x8F: None, 0x90: None,
    0xC0: None, 0xE0: None, 0x110: None, 0x140: None, 0x160: None, 0x180: EndorsementMismatchError,
    0x18B: EvidenceFormatError, 0x19F: EvidenceFormatError, 0x1A0: AttestationError, 0x1E0: None, 0x1E8: None,
    0x1EB: EvidenceFormatError, 0x1EC: None, 0x1EF: EvidenceFormatError, 0x1F0: None, 0x208: EvidenceFormatError,
    0x29F: EvidenceFormatError, 0x2A0: None, 0x2CF: None, 0x2D0: EvidenceFormatError, 0x2E8: None,
    0x318: EvidenceFormatError, 0x330: EvidenceFormatError, 0x49F: EvidenceFormatError,
}  # fmt: skip


def moment(entry):
    start, end = (datetime.datetime.fromisoformat(text) for text in entry["vek_validity"])
    return start + (end - start) / 2


def report_of(entry):
    data = read(entry["report"])
    return bytes.fromhex(data.decode()) if entry["report"].endswith(".hex") else data


def verify(entry, evidence=None, endorsements=None, *, nonce=None, report_data=None, now=None, anchors=None):
    return verify_files(
        read(entry["report"]) if evidence is None else evidence,
        [read(entry["vek"]), read(entry["roots"])] if endorsements is None else endorsements,
        expectation=Expectation(nonce=nonce, report_data=report_data),
        now=now or moment(entry),
        anchors=anchors,
    )


def refused(error, *arguments, **keywords):
    with pytest.raises(AttestationError) as raised:
        verify(*arguments, **keywords)
    assert isinstance(raised.value, error)
    assert error is AttestationError or type(raised.value) is error


def test_every_set_is_known_here():
    assert sorted(DEFAULTS) == sorted(GENUINE)
    assert FORGED == ["snp/trustee-milan-wrong-vcek-legacy", "snp/trustee-milan-wrong-vcek-new"]


@pytest.mark.parametrize("name", GENUINE)
def test_a_genuine_set_says_what_its_index_says(name):
    entry = GENUINE[name]
    claims = verify(entry, report_data=bytes.fromhex(entry["report_data"]))
    report = claims.report
    assert (claims.product, claims.signing_key, report.version) == (
        entry["product"], entry["signing_key"], entry["report_version"])  # fmt: skip
    assert (report.vmpl, int(report.guest_policy, 16)) == (entry["vmpl"], int(entry["policy"], 16))
    assert int(report.platform_info, 16) == int(entry["platform_info"], 16)
    assert ("DEBUG" in report.guest_policy_bits, "MIGRATE_MA" in report.guest_policy_bits) == (
        entry["debug"], entry["migrate_ma"])  # fmt: skip
    assert ("ALIAS_CHECK_COMPLETE" in report.platform_bits) == entry["alias_check_complete"]
    for tcb, expected in (
        (report.reported_tcb, entry["tcb_reported"]),
        (report.committed_tcb, entry["tcb_committed"]),
    ):
        found = {"bl": tcb.bootloader, "tee": tcb.tee, "snp": tcb.snp, "ucode": tcb.microcode, "fmc": tcb.fmc}
        assert found == {"fmc": 0} | expected
    assert (report.measurement.hex(), report.host_data.hex()) == (entry["measurement"], entry["host_data"])
    assert report.chip_id.hex() == entry["chip_id"]
    vectors = [int(text or "0", 16) for text in (report.launch_mitigations, report.current_mitigations)]
    assert vectors == [int(text, 16) for text in entry["mit_vector"]]


@pytest.mark.parametrize("name", GENUINE)
def test_a_report_and_its_key_s_certificate_are_enough(name):
    entry = GENUINE[name]
    assert verify(entry, endorsements=[read(entry["vek"])]) == verify(entry)


@pytest.mark.parametrize("name", GENUINE)
def test_the_serial_number_0_that_amd_gives_stands_in_nobody_s_way(name, monkeypatch):
    entry, parse, seen = GENUINE[name], x509.load_der_x509_certificate, []
    assert load_certificates(read(entry["vek"]), what="VEK")[0].serial == 0

    def strict(data, *rest):
        seen.append(data)
        if b"\x02\x01\x00" in data[:20]:
            raise ValueError("serial number 0")
        return parse(data, *rest)

    expected = verify(entry)
    monkeypatch.setattr(x509, "load_der_x509_certificate", strict)
    sev_snp_endorsements._read_again.cache_clear()
    assert verify(entry) == expected
    assert seen


@pytest.mark.parametrize("name", GENUINE)
def test_every_genuine_set_gets_its_verdict_without_a_policy(name):
    claims, error = verify(GENUINE[name]), DEFAULTS[name]
    if error is None:
        require_defaults(claims)
        return
    with pytest.raises(AppraisalError) as raised:
        require_defaults(claims)
    assert type(raised.value) is error


@pytest.mark.parametrize("name", FORGED)
def test_a_certificate_of_another_chip_is_not_genuine(name):
    refused(CertificateChainError, SETS[name])


def test_a_certificate_of_another_chip_is_refused_even_by_its_own_words():
    # Both are genuine and of Milan: only the chip and the TCB differ.
    mine, other = SETS["snp/ms-milan"], SETS["snp/oak-milan-oc-release"]
    refused(EndorsementMismatchError, mine, endorsements=[read(other["vek"])])


def test_a_cloud_s_fleet_reports_less_than_its_hosts_run():
    claims = verify(SETS["snp/trustee-milan-vlek"])
    assert (claims.csp_id, claims.chip_id) == ("CN=cc-us-east-2.amazonaws.com", bytes(64))
    report = claims.report
    levels = [
        tcb.microcode for tcb in (report.reported_tcb, report.committed_tcb, report.launch_tcb, report.current_tcb)
    ]
    assert levels == [217, 219, 219, 220]
    require_floors(claims)
    now = moment(SETS["snp/trustee-milan-vlek"])
    policy = milan_policy(signing_keys=(SigningKey.VLEK,), privilege_levels=(1,))
    appraise(claims, policy, now=now)
    with pytest.raises(TcbError):
        appraise(claims, milan_policy(signing_keys=(SigningKey.VLEK,), privilege_levels=(1,), committed=True), now=now)
    with pytest.raises(TcbError):
        appraise(claims, milan_policy(signing_keys=(SigningKey.VLEK,), privilege_levels=(1,), microcode=219), now=now)


def milan_policy(*, signing_keys=(SigningKey.VCEK,), privilege_levels=(0,), committed=False, microcode=217):
    checked = {"products", "minimum_report_version", "signing_keys", "privilege_levels", "committed", "minimum_tcb"}
    unchecked = {field.name: NO for field in dataclasses.fields(SnpPolicy) if field.name not in checked}
    minimum = Tcb(fmc=0, bootloader=4, tee=0, snp=24, microcode=microcode)
    return SnpPolicy(
        products=(Product.MILAN,),
        minimum_report_version=3,
        signing_keys=signing_keys,
        privilege_levels=privilege_levels,
        committed=Committed.CURRENT if committed else NO,
        minimum_tcb=MinimumTcb(issued="2025-01-01", expires="2039-01-01", processors={"19-01-01": minimum}),
        **unchecked,
    )


def test_a_loaded_key_s_certificate_expires_within_a_year():
    entry = SETS["snp/trustee-milan-vlek"]
    assert verify(entry, now=datetime.datetime(2025, 6, 1, tzinfo=datetime.UTC))
    refused(CertificateValidityError, entry, now=datetime.datetime(2026, 11, 21, tzinfo=datetime.UTC))


@pytest.mark.parametrize("name", GENUINE)
def test_a_change_in_any_field_is_refused_by_the_right_class(name):
    report = report_of(GENUINE[name])
    for position, error in FIELDS.items():
        changed = report[:position] + bytes([report[position] ^ 0x08]) + report[position + 1 :]
        refused(error or EvidenceSignatureError, GENUINE[name], changed)


@pytest.mark.parametrize("name", GENUINE)
def test_a_report_of_another_length_is_refused(name):
    report = report_of(GENUINE[name])
    for size in (*range(0, 0x4A0, 16), 0x29F, 0x2A0, 0x49F):
        refused(EvidenceFormatError, GENUINE[name], report[:size], [])
    refused(TrailingBytesError, GENUINE[name], report + b"\0")


@pytest.mark.parametrize("name", GENUINE)
def test_other_report_data_is_refused(name):
    entry = GENUINE[name]
    data = bytes.fromhex(entry["report_data"])
    other = data[:-1] + bytes([data[-1] ^ 1])
    refused(BindingMismatchError, entry, report_data=other)
    refused(NonceError, entry, nonce=other)
    assert verify(entry, nonce=data.rstrip(b"\0"))


@pytest.mark.parametrize("name", GENUINE)
def test_the_key_s_certificate_is_needed_and_no_bit_of_it_may_change(name):
    entry = GENUINE[name]
    refused(MissingEndorsementError, entry, endorsements=[read(entry["roots"])])
    der = load_certificates(read(entry["vek"]), what="VEK")[0].der
    for position in range(0, len(der), 5):
        changed = der[:position] + bytes([der[position] ^ 1]) + der[position + 1 :]
        refused(AttestationError, entry, endorsements=[changed])


@pytest.mark.parametrize("name", GENUINE)
def test_a_day_before_or_past_the_validity_of_the_key_is_refused(name):
    start, end = (datetime.datetime.fromisoformat(text) for text in GENUINE[name]["vek_validity"])
    assert verify(GENUINE[name], now=start)
    assert verify(GENUINE[name], now=end)
    refused(CertificateValidityError, GENUINE[name], now=start - DAY)
    refused(CertificateValidityError, GENUINE[name], now=end + DAY)


def der_of(entry):
    return [certificate.der for certificate in load_certificates(read(entry["roots"]), what="chain")]


SWAPPED = [
    (mine, other)
    for mine in ("snp/ms-milan", "snp/ms-genoa", "snp/oak-turin-oc", "snp/trustee-milan-vlek")
    for other in ("snp/ms-milan", "snp/ms-genoa", "snp/oak-turin-oc", "snp/trustee-milan-vlek")
    if mine != other
]


@pytest.mark.parametrize(("mine", "other"), SWAPPED)
def test_another_chain_is_refused(mine, other):
    entry, another = SETS[mine], SETS[other]
    refused(CertificateChainError, entry, endorsements=[read(entry["vek"]), read(another["roots"])])
    refused(AttestationError, entry, endorsements=[read(another["vek"]), read(another["roots"])])


@pytest.mark.parametrize("name", GENUINE)
def test_only_the_root_of_the_product_is_trusted(name):
    entry = GENUINE[name]
    roots = {common_name(root).removeprefix("ARK-"): root.der for root in pinned_roots()}
    assert verify(entry, anchors=[roots[entry["product"]]])
    others = [root for product, root in roots.items() if product != entry["product"]]
    refused(TrustAnchorError, entry, anchors=others)
    refused(TrustAnchorError, entry, anchors=[])
    refused(TrustAnchorError, entry, anchors=[der for der in der_of(entry) if der not in roots.values()])


@pytest.mark.parametrize("name", SETS)
def test_the_chains_that_came_along_are_the_pinned_ones(name):
    known = {certificate.der for certificate in pinned()}
    assert set(der_of(SETS[name])) <= known


AZURE = {name: entry for name, entry in sets_of("vtpm").items() if entry.get("hw") == "snp" and "evidence" in entry}


@pytest.mark.parametrize("name", AZURE)
def test_a_report_out_of_azure_s_virtual_tpm_is_genuine(name):
    entry = AZURE[name]
    document = json.loads(read(entry["evidence"]))
    document = document.get("evidence", document)
    encoded = document.get("hcl_report")
    blob = (
        bytes(document["report"]) if encoded is None else base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
    )
    vcek = document["vcek"].encode()
    if not vcek.startswith(b"-----BEGIN"):
        vcek = base64.urlsafe_b64decode(vcek + b"===")
    start, end = (datetime.datetime.fromisoformat(text) for text in entry["vcek_validity"])
    claims = verify_report(
        blob[32 : 32 + 1184],
        certificates=load_certificates(vcek, what="VCEK"),
        anchors=pinned_roots(),
        now=start + (end - start) / 2,
    )
    assert (claims.product, claims.report.version) == (entry["product"], entry["snp_report_version"])
    assert claims.report.measurement.hex() == entry["measurement"]
    assert int(claims.report.platform_info, 16) == int(entry["platform_info"], 16)
    require_defaults(claims)
