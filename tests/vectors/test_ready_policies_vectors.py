"""What the ready policies say to real evidence: what is acceptable and what not, and for the right reason.

Vendors' minimum levels of 2026 refuse most evidence of 2025, as they should; the policies for what platforms reported
then (``…-2025``) accept it. Real evidence here has no revocation lists with it: tests that are not about revocation
take claims as if AMD's list had come along.
"""

import dataclasses
import datetime

import pytest
from folder import at, needs_vectors, read, sets_of

from confed.attestation.evidence import Expectation
from confed.attestation.policy import document as documents
from confed.attestation.policy.ready import ready_policy
from confed.attestation.tee import azure, gcp_tpm, nitro, nvidia_gpu, sev_snp, sgx, tdx
from confed.errors import (
    AttributesError,
    DebugError,
    DeviceModeError,
    EvaluationNumberError,
    FirmwareError,
    FreshnessError,
    GoldenValueError,
    MeasurementError,
    PlatformError,
    PlatformInfoError,
    ProductError,
    ReportVersionError,
    RevocationStatusError,
    SignerError,
    TcbError,
    TcbStatusError,
)
from confed.manifest import Unchecked

pytestmark = [needs_vectors, pytest.mark.filterwarnings("ignore:Attribute's length:UserWarning")]

UNEXPECTED = Expectation(nonce=None, report_data=None)
NO = Unchecked(unchecked="a test of something else")
SETS = sets_of("snp", "tdx", "sgx", "nitro", "gpu", "vtpm")
SNP_TIME = datetime.datetime(2026, 3, 1, tzinfo=datetime.UTC)
VLEK_TIME = datetime.datetime(2025, 6, 1, tzinfo=datetime.UTC)


def document(name, **changes):
    """A ready policy, with fields of its policy (or ``tcb`` within it) changed."""
    found = documents.load(ready_policy(name))
    return dataclasses.replace(found, policy=dataclasses.replace(found.policy, **changes))


def outcome(found, claims, now, error):
    if error is None:
        found.appraise(claims, profile=found.profile, now=now)
        return
    with pytest.raises(error) as caught:
        found.appraise(claims, profile=found.profile, now=now)
    assert type(caught.value) is error


def snp_claims(name, now=SNP_TIME):
    entry = SETS[name]
    claims = sev_snp.verify_files(
        read(entry["report"]), [read(entry["vek"]), read(entry["roots"])], expectation=UNEXPECTED, now=now, anchors=None
    )
    return dataclasses.replace(claims, revocation_checked=True)


SNP = {
    ("sev-snp-2025", "snp/oak-genoa-oc"): None,
    ("sev-snp-2025", "snp/ms-genoa"): None,
    ("sev-snp-2025", "snp/oak-turin-oc"): None,
    ("sev-snp-2025", "snp/ms-milan"): ProductError,
    ("sev-snp-2025", "snp/oak-milan-oc-release"): ProductError,
    ("sev-snp", "snp/oak-genoa-oc"): TcbError,
    ("sev-snp", "snp/oak-turin-oc"): TcbError,
    ("sev-snp", "snp/ms-genoa"): ReportVersionError,
    ("sev-snp", "snp/ms-milan"): ReportVersionError,
    ("sev-snp", "snp/go-sev-guest-milan"): DebugError,
    ("sev-snp-milan-2025", "snp/ms-milan"): None,
    ("sev-snp-milan-2025", "snp/oak-milan-oc-release"): None,
    ("sev-snp-milan-2025", "snp/oak-genoa-oc"): ProductError,
    ("sev-snp-milan-2025", "snp/go-sev-guest-milan"): DebugError,
    ("sev-snp-milan", "snp/ms-milan"): ReportVersionError,
    ("gcp-snp-milan", "snp/oak-milan-oc-release"): ReportVersionError,
}


@pytest.mark.parametrize(("pair", "error"), SNP.items(), ids=map(" ".join, SNP))
def test_sev_snp(pair, error):
    name, entry = pair
    outcome(document(name), snp_claims(entry), SNP_TIME, error)


def test_a_guest_of_the_measurement_that_its_owner_names_is_accepted_and_another_is_not():
    claims = snp_claims("snp/oak-genoa-oc")
    measured = SETS["snp/oak-genoa-oc"]["measurement"]
    outcome(document("sev-snp-2025", measurements=(measured,)), claims, SNP_TIME, None)
    outcome(document("sev-snp-2025", measurements=("ab" * 48,)), claims, SNP_TIME, MeasurementError)


def test_a_guest_whose_authority_nobody_looked_up_is_refused():
    claims = dataclasses.replace(snp_claims("snp/oak-genoa-oc"), revocation_checked=False)
    outcome(document("sev-snp-2025"), claims, SNP_TIME, RevocationStatusError)


def test_a_cloud_s_own_key_is_accepted_only_where_it_is_named():
    claims = snp_claims("snp/trustee-milan-vlek", VLEK_TIME)
    outcome(document("sev-snp-milan-2025"), claims, VLEK_TIME, PlatformError)


def intel_claims(module, name):
    entry = SETS[name]
    endorsements = [read(entry["collateral"])]
    now = at(entry["verify_at"])
    return module.verify_files(read(entry["quote"]), endorsements, expectation=UNEXPECTED, now=now, anchors=None), now


def of_its_time(name, number):
    """A ready policy that asks for TCB data of the evidence's own time."""
    found = documents.load(ready_policy(name))
    tcb = dataclasses.replace(found.policy.tcb, minimum_evaluation_number=number)
    return dataclasses.replace(found, policy=dataclasses.replace(found.policy, tcb=tcb))


TDX = {
    "tdx/dcap-qvl": None,
    "tdx/oak": None,
    "tdx/go-tdx-guest-cos113": None,
    "tdx/dstack-quote-report": None,
    "vtpm/lunal-az-tdx": None,
    "tdx/automata-solana": TcbStatusError,
    "tdx/trustee-quote-4": DebugError,
    "tdx/dcap-qvl-outdated": TcbStatusError,
}


@pytest.mark.parametrize(("entry", "error"), TDX.items(), ids=TDX.keys())
def test_tdx(entry, error):
    claims, now = intel_claims(tdx, entry)
    outcome(of_its_time("tdx", 17), claims, now, error)
    outcome(of_its_time("gcp-tdx", 17), claims, now, error)


def test_tcb_data_of_2025_is_too_old_for_what_is_asked_today():
    claims, now = intel_claims(tdx, "tdx/dstack-quote-report")
    outcome(document("tdx"), claims, now, EvaluationNumberError)
    claims, now = intel_claims(sgx, "sgx/dcap-qvl")
    outcome(document("sgx"), claims, now, EvaluationNumberError)


def test_sgx():
    claims, now = intel_claims(sgx, "sgx/dcap-qvl")
    outcome(of_its_time("sgx", 17), claims, now, TcbStatusError)
    debugged, now = intel_claims(sgx, "sgx/trustee-occlum")
    outcome(of_its_time("sgx", 17), debugged, now, DebugError)


NITRO = [name for name, entry in SETS.items() if entry["kind"] == "nitro"]


@pytest.mark.parametrize("name", NITRO)
def test_nitro(name):
    entry = SETS[name]
    now = at(entry["verify_at"])
    claims = nitro.verify_files(read(entry["doc"]), [], expectation=UNEXPECTED, now=now, anchors=None)
    debug = "debug" in entry["expected"]
    outcome(document("nitro"), claims, now, DebugError if debug else None)
    if not debug:
        measured = claims.pcr(0).hex()
        outcome(document("nitro", pcr0=(measured,)), claims, now, None)
        outcome(document("nitro", pcr0=("ab" * 48,)), claims, now, MeasurementError)
        outcome(document("nitro"), claims, now + datetime.timedelta(seconds=301), FreshnessError)


GPU_TIME = datetime.datetime(2025, 9, 1, tzinfo=datetime.UTC)
# Reports in files have neither NVML's word nor manifests nor revocation with them; each is asked for in its turn.
FILES = {"nvml_state": NO}
NO_MANIFESTS = {**FILES, "drivers": NO, "manifests": NO}
GPU = {
    "a file, which tells no modes": ("nvidia-h100", "gpu/trustee-coco1", {}, DeviceModeError),
    "a driver before the bulletin's": ("nvidia-h100", "gpu/trustee-coco1", FILES, FirmwareError),
    "no manifests": ("nvidia-h100", "gpu/trustee-coco1", {**FILES, "drivers": NO}, GoldenValueError),
    "nobody's word on revocation": ("nvidia-h100", "gpu/trustee-coco1", NO_MANIFESTS, RevocationStatusError),
    "none of these": ("nvidia-h100", "gpu/trustee-coco1", {**NO_MANIFESTS, "revocation": NO}, None),
    "an H100 for an H200": ("nvidia-h200", "gpu/trustee-coco1", {}, ProductError),
    "an H100 for a Blackwell": ("nvidia-blackwell", "gpu/trustee-coco1", {}, ProductError),
    "a Blackwell for an H100": ("nvidia-h100", "gpu/sdk-blackwell", {}, ProductError),
    "a board that is not named": ("nvidia-h100", "gpu/sdk-hopper-580", {}, ProductError),
    "protected PCIe": ("nvidia-h100", "gpu/sdk-multi-gpu", FILES, DeviceModeError),
    "a driver that does not report its mode": ("nvidia-blackwell", "gpu/sdk-blackwell", FILES, DeviceModeError),
}  # fmt: skip


@pytest.mark.parametrize(("name", "entry", "changes", "error"), GPU.values(), ids=GPU.keys())
def test_nvidia_gpu(name, entry, changes, error):
    found = SETS[entry]
    endorsements = [] if found["chain"] == "(inline)" else [read(found["chain"])]
    claims = nvidia_gpu.verify_files(
        read(found["report"]), endorsements, expectation=UNEXPECTED, now=GPU_TIME, anchors=None
    )
    outcome(document(name, **changes), claims, GPU_TIME, error)


def test_gcp_tpm():
    entry = SETS["vtpm/gce-cos-85-no-nonce"]
    now = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)
    claims = gcp_tpm.verify_files(
        read(entry["evidence"]), [read(entry["intermediate"])], expectation=UNEXPECTED, now=now, anchors=None
    )
    outcome(document("gcp-tpm"), claims, now, FreshnessError)
    quote = dataclasses.replace(document("gcp-tpm").policy.quote, nonce=NO)
    # A shielded VM of 2020, not a confidential one.
    outcome(document("gcp-tpm", quote=quote), claims, now, PlatformInfoError)


AZURE_SNP = {
    ("azure-snp", "vtpm/trustee-az-snp-genoa"): None,
    ("azure-snp", "vtpm/trustee-az-snp-v1"): ProductError,
    ("azure-snp", "vtpm/lunal-az-snp"): ProductError,
    ("azure-snp-milan", "vtpm/trustee-az-snp-v1"): None,
    ("azure-snp-milan", "vtpm/lunal-az-snp"): None,
    ("azure-snp-milan", "vtpm/trustee-az-snp-genoa"): ProductError,
}


@pytest.mark.parametrize(("pair", "error"), AZURE_SNP.items(), ids=map(" ".join, AZURE_SNP))
def test_azure_snp(pair, error):
    name, entry = pair
    vek = ["vtpm/lunal-az-snp/imds-vcek.der"] if "lunal" in entry else []
    nonce = bytes.fromhex(SETS[entry]["quote_nonce"])
    claims = azure.verify_snp_files(
        read(SETS[entry]["evidence"]),
        [read(path) for path in vek],
        expectation=Expectation(nonce=nonce, report_data=None),
        now=SNP_TIME,
        anchors=None,
    )
    checked = dataclasses.replace(claims.hardware, revocation_checked=True)
    outcome(document(name), dataclasses.replace(claims, hardware=checked), SNP_TIME, error)
    stranger = dataclasses.replace(document(name).policy.hardware, id_keys=("ab" * 48,))
    changed = document(name, hardware=stranger)
    outcome(changed, dataclasses.replace(claims, hardware=checked), SNP_TIME, error or SignerError)


def azure_tdx(evidence, collateral, unix_time, nonce=None):
    expectation = Expectation(nonce=nonce, report_data=None)
    now = at(unix_time)
    return azure.verify_tdx_files(
        read(evidence), [read(collateral)], expectation=expectation, now=now, anchors=None
    ), now


def test_azure_tdx():
    entry = SETS["vtpm/lunal-az-tdx-tpm"]
    nonce = bytes.fromhex(entry["quote_nonce"])
    claims, now = azure_tdx(entry["evidence"], "vtpm/lunal-az-tdx/collateral.json", 1776290768, nonce)
    outcome(document("azure-tdx"), claims, now, EvaluationNumberError)
    hardware = document("azure-tdx").policy.hardware
    of_then = dataclasses.replace(hardware, tcb=dataclasses.replace(hardware.tcb, minimum_evaluation_number=18))
    outcome(document("azure-tdx", hardware=of_then), claims, now, None)
    other = dataclasses.replace(of_then, mr_td=("ab" * 48,))
    outcome(document("azure-tdx", hardware=other), claims, now, MeasurementError)
    unasked, now = azure_tdx(entry["evidence"], "vtpm/lunal-az-tdx/collateral.json", 1776290768)
    outcome(document("azure-tdx", hardware=of_then), unasked, now, FreshnessError)


def test_an_azure_machine_whose_host_can_take_pages_away_is_refused():
    entry = SETS["vtpm/trustee-az-tdx-v0"]
    claims, now = azure_tdx(entry["evidence"], "vtpm/trustee-az-tdx/collateral.json", 1754471202)
    outcome(document("azure-tdx"), claims, now, AttributesError)
