"""Real evidence of Azure's confidential VMs: its verdicts, and what becomes of it when anything about it changes."""

import base64
import dataclasses
import datetime
import json

import pytest
from folder import at, needs_vectors, read, sets_of

from confed.attestation.evidence import Expectation
from confed.attestation.policy import azure as policy
from confed.attestation.policy.document import load
from confed.attestation.policy.ready import ready_policy
from confed.attestation.tee import azure, intel_dcap, sev_snp_endorsements
from confed.attestation.tee.azure_evidence import AzureEvidence, read_files
from confed.attestation.tee.azure_hcl import Isolation, parse_report
from confed.errors import (
    AttestationError,
    AttributesError,
    BindingMismatchError,
    CertificateChainError,
    CertificateValidityError,
    EndorsementMismatchError,
    EvidenceFormatError,
    EvidenceSignatureError,
    EvidenceVersionError,
    KeyBindingError,
    MissingEndorsementError,
    NonceError,
    PcrDigestError,
    ProductError,
    StaleEndorsementError,
    TrailingBytesError,
    TrustAnchorError,
)

pytestmark = needs_vectors

SETS = {name: entry for name, entry in sets_of("vtpm").items() if "/trustee-az-" in name or "/lunal-az-" in name}
SNP_SETS = {name: entry for name, entry in SETS.items() if entry["hw"] == "snp"}
TDX_SETS = {name: entry for name, entry in SETS.items() if entry["hw"] == "tdx"}
COLLATERAL = {"vtpm/trustee-az-tdx-v0": "vtpm/trustee-az-tdx", "vtpm/lunal-az-tdx-tpm": "vtpm/lunal-az-tdx"}
TDX_QUOTES = sets_of("tdx")
DAY, YEAR = datetime.timedelta(days=1), datetime.timedelta(days=365)
MILAN, GENOA, LUNAL = "vtpm/trustee-az-snp-v1", "vtpm/trustee-az-snp-genoa", "vtpm/lunal-az-snp"
LUNAL_TDX, TRUSTEE_TDX = "vtpm/lunal-az-tdx-tpm", "vtpm/trustee-az-tdx-v0"
BEFORE_EXPIRY = datetime.datetime(2027, 3, 1, tzinfo=datetime.UTC)
EXTRA = "vtpm/lunal-az-snp/milan-v3-attestation.json"


def moment(entry):
    """Return a time in the middle of the VCEK's validity, or the one that the collateral is judged at."""
    if entry["hw"] == "tdx":
        return at(TDX_QUOTES[COLLATERAL[entry["id"]]]["verify_at"])
    start, end = (datetime.datetime.fromisoformat(text) for text in entry["vcek_validity"])
    return start + (end - start) / 2


def collateral(name):
    return read(TDX_QUOTES[COLLATERAL[name]]["collateral"])


def verify(name, *, data=None, endorsements=None, now=None, anchors=None, nonce=None, report_data=None):
    entry = SETS[name]
    check = azure.verify_snp_files if entry["hw"] == "snp" else azure.verify_tdx_files
    if endorsements is None:
        endorsements = () if entry["hw"] == "snp" else (collateral(name),)
    return check(
        read(entry["evidence"]) if data is None else data,
        endorsements,
        expectation=Expectation(nonce=nonce, report_data=report_data),
        now=moment(entry) if now is None else now,
        anchors=anchors,
    )


def test_all_sets_are_here():
    assert (len(SNP_SETS), sorted(TDX_SETS)) == (4, sorted(COLLATERAL))


@pytest.mark.parametrize("name", SETS)
def test_every_set_is_genuine_and_says_what_the_index_says(name):
    entry = SETS[name]
    nonce, user_data = bytes.fromhex(entry["quote_nonce"]), bytes.fromhex(entry["user_data"])
    found = verify(name, nonce=nonce, report_data=user_data)
    assert (found.tpm.nonce, found.tpm.nonce_checked, found.tpm.bank) == (nonce, True, entry["pcr_bank"])
    assert [register.number for register in found.tpm.registers] == entry["pcr_selection"]
    assert [found.tpm.register(number).hex() for number in (0, 4, 7)] == [entry[f"pcr{number}"] for number in (0, 4, 7)]
    assert found.runtime.user_data == user_data
    assert (found.runtime.secure_boot, found.runtime.tpm_enabled, found.runtime.unknown) == (True, True, ())
    if entry["hw"] == "snp":
        report = found.hardware.report
        assert (found.hardware.product, report.version, report.vmpl) == (
            entry["product"],
            entry["snp_report_version"],
            entry["vmpl"],
        )
        assert (report.measurement.hex(), int(report.guest_policy, 16)) == (
            entry["measurement"],
            int(entry["policy"], 16),
        )
    else:
        assert found.hardware.report.report_data[:32].hex() == entry["var_data_sha256"]


@pytest.mark.parametrize("name", SNP_SETS)
def test_every_set_of_snp_is_acceptable_without_a_policy(name):
    policy.require_defaults(verify(name))


def test_lunals_set_of_tdx_is_acceptable_and_trustees_lacks_sept_ve_disable():
    found = verify(LUNAL_TDX)
    assert found.hardware.tcb.status == "UpToDate"
    policy.require_defaults(found)
    for data in (None, read("vtpm/trustee-az-tdx/evidence-v1.json")):
        with pytest.raises(AttributesError):
            policy.require_defaults(verify(TRUSTEE_TDX, data=data))


def test_the_file_beside_the_sets_is_genuine_too():
    found = verify(LUNAL, data=read(EXTRA))
    assert (found.tpm.nonce, found.tpm.nonce_checked) == (b"", False)
    policy.require_defaults(found)


def test_the_ready_policy_demands_a_newer_product_than_milan():
    document = load(ready_policy("azure-snp"))
    nonce = bytes.fromhex(SETS[MILAN]["quote_nonce"])
    with pytest.raises(ProductError):
        document.appraise(verify(MILAN, nonce=nonce), profile=azure.SNP_PROFILE, now=BEFORE_EXPIRY)


@pytest.mark.parametrize("name", SETS)
def test_another_nonce_or_other_data_is_refused(name):
    with pytest.raises(NonceError):
        verify(name, nonce=b"another")
    with pytest.raises(BindingMismatchError):
        verify(name, report_data=b"other data")


@pytest.mark.parametrize("name", SNP_SETS)
def test_outside_its_validity_a_set_of_snp_is_refused(name):
    start, end = (datetime.datetime.fromisoformat(text) for text in SETS[name]["vcek_validity"])
    for now in (start - DAY, end + DAY):
        with pytest.raises(CertificateValidityError):
            verify(name, now=now)


@pytest.mark.parametrize("name", TDX_SETS)
def test_outside_its_collaterals_time_a_set_of_tdx_is_refused(name):
    for now in (moment(SETS[name]) - YEAR, moment(SETS[name]) + YEAR):
        with pytest.raises(StaleEndorsementError):
            verify(name, now=now)


def test_without_or_with_others_endorsements_evidence_is_refused():
    with pytest.raises(MissingEndorsementError):
        verify(LUNAL_TDX, endorsements=())
    with pytest.raises(EndorsementMismatchError):
        verify(LUNAL_TDX, endorsements=(collateral(TRUSTEE_TDX),))
    roots = {root.subject: root.der for root in sev_snp_endorsements.pinned_roots()}
    genoa = [der for subject, der in roots.items() if "Genoa" in subject]
    for anchors in ((), genoa, intel_dcap.pinned_roots()):
        with pytest.raises(TrustAnchorError):
            verify(MILAN, anchors=anchors)


def parts(name):
    isolation = Isolation.SNP if SETS[name]["hw"] == "snp" else Isolation.TDX
    return read_files(read(SETS[name]["evidence"]), isolation=isolation)


def check(evidence, name):
    entry = SETS[name]
    now = moment(entry)
    if entry["hw"] == "tdx":
        return azure.verify_tdx(
            evidence,
            endorsements=(collateral(name),),
            event_logs=(),
            nonce=None,
            now=now,
            anchors=intel_dcap.pinned_roots(),
        )
    return azure.verify_snp(
        evidence,
        endorsements=(parts(name).vcek,),
        event_logs=(),
        nonce=None,
        now=now,
        anchors=[root.der for root in sev_snp_endorsements.pinned_roots()],
    )


def refused(error, evidence, name):
    with pytest.raises(AttestationError) as caught:
        check(evidence, name)
    assert type(caught.value) is error


def spliced(evidence, position, data):
    report = evidence.hcl_report
    return dataclasses.replace(evidence, hcl_report=report[:position] + data + report[position + len(data) :])


@pytest.mark.parametrize("name", [MILAN, GENOA, LUNAL_TDX])
def test_a_flipped_bit_anywhere_that_is_signed_is_refused(name):
    evidence = parts(name)
    hcl = parse_report(evidence.hcl_report)
    first = 32 if hcl.isolation is Isolation.SNP else 1216
    for index in [*range(32), *range(first, 1236 + len(hcl.runtime_data), 13)]:
        mutated = bytes([evidence.hcl_report[index] ^ 1 << index % 8])
        with pytest.raises(AttestationError):
            check(spliced(evidence, index, mutated), name)
    for part in ("quote", "signature"):
        data = getattr(evidence, part)
        for index in range(0, len(data), 9):
            mutated = data[:index] + bytes([data[index] ^ 1]) + data[index + 1 :]
            refused(KeyBindingError, dataclasses.replace(evidence, **{part: mutated}), name)
    for number in evidence.pcrs:
        refused(PcrDigestError, dataclasses.replace(evidence, pcrs={**evidence.pcrs, number: b"\x01" * 32}), name)


def test_a_flipped_bit_in_a_td_quote_is_refused():
    evidence = parts(LUNAL_TDX)
    # The last certificate is a copy of Intel's root, in whose place the pinned one is used.
    for index in range(0, evidence.td_quote.rindex(b"-----BEGIN"), 23):
        mutated = evidence.td_quote[:index] + bytes([evidence.td_quote[index] ^ 1]) + evidence.td_quote[index + 1 :]
        with pytest.raises(AttestationError):
            check(dataclasses.replace(evidence, td_quote=mutated), LUNAL_TDX)


FIELDS = {
    "report data": (32 + 0x50, EvidenceSignatureError),
    "measurement": (32 + 0x90, EvidenceSignatureError),
    "host data": (32 + 0xC0, EvidenceSignatureError),
    "chip": (32 + 0x1A0, EndorsementMismatchError),
    "runtime data": (1236 + 20, None),
    "request": (12, EvidenceFormatError),
    "version": (4, EvidenceVersionError),
    "report type": (1216 + 8, EvidenceVersionError),
    "data size": (1216, EvidenceFormatError),
}


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("name", [MILAN, GENOA])
def test_a_field_of_a_report_that_is_changed_is_refused(name, field):
    position, error = FIELDS[field]
    evidence = spliced(parts(name), position, b"\x7f")
    if error is None:
        with pytest.raises(AttestationError):
            check(evidence, name)
    else:
        refused(error, evidence, name)


def runtime_of(name):
    return parse_report(parts(name).hcl_report).runtime_data


@pytest.mark.parametrize("name", [MILAN, GENOA, LUNAL_TDX])
def test_runtime_data_that_says_something_else_is_refused(name):
    evidence = parts(name)
    for old, new in (
        (b'"secure-boot":true', b'"secure-boot":null'),
        (b'"console-enabled":true', b'"console-enabled":null'),
        (b'"vmUniqueId":"', b'"vmUniqueId": '),
        (b'"user-data":"', b'"user-datA":"'),
        (b'"kid":"HCLAkPub"', b'"kid":"HCLAkPuc"'),
    ):
        position = evidence.hcl_report.index(old)
        with pytest.raises(AttestationError):
            check(spliced(evidence, position, new), name)
    position = evidence.hcl_report.index(b'"vmUniqueId":"') + 14
    refused(KeyBindingError, spliced(evidence, position, b"0000"), name)
    position = evidence.hcl_report.index(b'"n":"') + 25
    refused(KeyBindingError, spliced(evidence, position, b"AAAA"), name)


def test_parts_of_two_machines_do_not_go_together():
    milan, lunal, genoa, tdx = (parts(name) for name in (MILAN, LUNAL, GENOA, LUNAL_TDX))
    for name, mine, other in (
        (MILAN, milan, lunal),
        (LUNAL, lunal, milan),
        (GENOA, genoa, milan),
        (LUNAL_TDX, tdx, milan),
    ):
        quoted = dataclasses.replace(mine, quote=other.quote, signature=other.signature, pcrs=other.pcrs)
        refused(KeyBindingError, quoted, name)
    mixed = lunal.hcl_report[:1216] + milan.hcl_report[1216:]
    with pytest.raises(KeyBindingError):
        verify(LUNAL, data=dataclasses.replace(lunal, hcl_report=mixed).encode(), endorsements=(lunal.vcek,))
    refused(KeyBindingError, dataclasses.replace(tdx, hcl_report=parts(TRUSTEE_TDX).hcl_report), LUNAL_TDX)
    refused(EvidenceVersionError, dataclasses.replace(tdx, hcl_report=milan.hcl_report), LUNAL_TDX)
    refused(EvidenceVersionError, dataclasses.replace(milan, hcl_report=tdx.hcl_report), MILAN)


def test_the_certificate_of_another_chip_is_refused():
    document = json.loads(read(SETS[LUNAL]["evidence"]))
    document["evidence"]["vcek"] = json.loads(read(SETS[MILAN]["evidence"]))["vcek"]
    with pytest.raises(EndorsementMismatchError):
        verify(LUNAL, data=json.dumps(document).encode())
    pem = parts(GENOA).vcek
    with pytest.raises(AttestationError):
        verify(MILAN, data=dataclasses.replace(parts(MILAN), vcek=b"").encode(), endorsements=(pem,))


def test_a_chip_certificate_that_was_tampered_with_is_refused():
    vcek = parts(MILAN).vcek
    tampered = vcek[:-1] + bytes([vcek[-1] ^ 1])
    with pytest.raises(CertificateChainError):
        verify(MILAN, data=parts(MILAN).encode(), endorsements=(tampered,))


@pytest.mark.parametrize("name", SETS)
def test_truncated_and_extended_files_and_reports_are_refused(name):
    data = read(SETS[name]["evidence"])
    for end in range(0, len(data.rstrip()), 997):
        with pytest.raises(EvidenceFormatError):
            verify(name, data=data[:end])
    with pytest.raises(EvidenceFormatError):
        verify(name, data=data + b"x")
    evidence = parts(name)
    for end in range(0, 1236 + len(runtime_of(name)), 101):
        with pytest.raises(AttestationError):
            check(dataclasses.replace(evidence, hcl_report=evidence.hcl_report[:end]), name)
    refused(TrailingBytesError, dataclasses.replace(evidence, hcl_report=evidence.hcl_report + b"x"), name)


@pytest.mark.parametrize("name", [MILAN, LUNAL_TDX])
def test_truncated_and_extended_quotes_are_refused(name):
    evidence = parts(name)
    for part in ("quote", "signature", "td_quote"):
        # Zeros after a TD quote are no part of it (DECISIONS.md, D30).
        data = getattr(evidence, part).rstrip(b"\x00")
        for end in range(0, len(data), max(1, len(data) // 40)):
            with pytest.raises(AttestationError):
                check(dataclasses.replace(evidence, **{part: data[:end]}), name)
    for longer in ({"quote": evidence.quote + b"\x00"}, {"signature": evidence.signature + b"\x00"}):
        with pytest.raises(AttestationError):
            check(dataclasses.replace(evidence, **longer), name)


@pytest.mark.parametrize("name", SETS)
def test_no_register_of_a_set_can_change_its_number_or_be_left_out(name):
    evidence = parts(name)
    for number in evidence.pcrs:
        less = {other: value for other, value in evidence.pcrs.items() if other != number}
        refused(PcrDigestError, dataclasses.replace(evidence, pcrs=less), name)
    first, second = evidence.pcrs[0], evidence.pcrs[7]
    refused(PcrDigestError, dataclasses.replace(evidence, pcrs={**evidence.pcrs, 0: second, 7: first}), name)


def test_evidence_in_confeds_own_form_is_the_same():
    for name, isolation in ((MILAN, Isolation.SNP), (LUNAL_TDX, Isolation.TDX)):
        encoded = parts(name).encode()
        assert AzureEvidence.decode(encoded, isolation=isolation).hcl_report == parts(name).hcl_report
        hints = [parts(name).vcek] if isolation is Isolation.SNP else [collateral(name)]
        assert verify(name, data=encoded, endorsements=hints) == verify(name)


def test_trustees_parts_are_those_of_its_evidence():
    evidence = read_files(read("vtpm/trustee-az-tdx/evidence-v1.json"), isolation=Isolation.TDX)
    assert read("vtpm/trustee-az-tdx/hcl-report.bin").startswith(evidence.hcl_report[: 1236 + 1201])
    assert base64.b64encode(read("vtpm/trustee-az-tdx/evidence-v1.td-quote.bin")) == base64.b64encode(evidence.td_quote)
