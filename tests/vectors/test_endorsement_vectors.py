"""Recorded answers of AMD, Intel and NVIDIA, replayed: what is fetched is what was recorded, and verifies evidence."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest
from folder import at, needs_vectors, read, sets_of

from confed.attestation.certificates import load_certificate
from confed.attestation.endorsement_provider import BundleProvider, gathered
from confed.attestation.endorsements import AmdChain, AmdVcek, IntelCollateral, NvidiaRim, encode_bundle
from confed.attestation.endorsing.devices import device_needs
from confed.attestation.endorsing.files import needs_of_files
from confed.attestation.endorsing.needs import further_needs, needs
from confed.attestation.endorsing.plausibility import examined
from confed.attestation.endorsing.vendors import Sources, vendor_sources
from confed.attestation.evidence import Envelope, Expectation
from confed.attestation.tee.nvidia_evidence import read_files
from confed.attestation.vendor_files import kind_of, verify_vendor_files
from confed.errors import EndorsementFetchError, EndorsementMismatchError

sys.path.append(str(Path(__file__).parents[1] / "unit" / "attestation"))

from endorsement_world import AMD, RIMS, Service, fetcher, rim_answer, tells_intel

pytestmark = needs_vectors
UNCHECKED = Expectation(nonce=None, report_data=None)
# Within the validity of every recorded certificate of AMD's.
AMD_TIME_MS = 1_750_000_000_000
# A quote with text after its end, which verifiers refuse.
TRAILING = "tdx/go-tdx-guest-spr"
INTEL = {name: entry for name, entry in sets_of("tdx", "sgx").items() if entry.get("collateral") and name != TRAILING}
SNP = sets_of("snp")
GPU = sets_of("gpu")
RIM_FILES = {
    "NV_GPU_DRIVER_GH100_550.144.03": "gpu/nv-attestation-sdk/NV_GPU_DRIVER_GH100_550.144.03.xml",
    "NV_SWITCH_BIOS_5612_0002_890_9610550001": (
        "gpu/nv-attestation-sdk/switchVBIOSRim_NV_SWITCH_BIOS_5612_0002_890_9610550001.xml"
    ),
    "NV_GPU_VBIOS_1010_0200_882_96005E0001": "gpu/nvtrust-local-gpu-verifier/1010_0200_882_96005E0001_PROD.swidtag",
}


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    running = Service().start(tmp_path_factory.mktemp("service"))
    yield running
    running.stop()


def milliseconds(entry):
    return entry["verify_at"] * 1000


def report_of(entry):
    data = read(entry["report"])
    return bytes.fromhex(data.decode().strip()) if entry["report"].endswith(".hex") else data


def sources(service):
    return Sources(vendor_sources(fetcher(service)))


@pytest.mark.parametrize("name", INTEL)
def test_intels_recorded_answers_make_the_recorded_collateral_which_verifies_the_quote(service, name):
    entry = INTEL[name]
    fields = json.loads(read(entry["collateral"]))
    fields.pop("pck_certificate_chain", None)
    quote = read(entry["quote"])
    (need,) = needs_of_files(kind_of(entry["kind"]).profile, quote, ())
    tells_intel(service, need, fields)
    fetched = sources(service).fetch(need, now_ms=milliseconds(entry))
    assert json.loads(fetched.data) == fields
    bundle = encode_bundle([fetched])
    arguments = {"expectation": UNCHECKED, "now": at(entry["verify_at"])}
    with_bundle = verify_vendor_files(kind_of(entry["kind"]), quote, [bundle], **arguments)
    assert with_bundle == verify_vendor_files(kind_of(entry["kind"]), quote, [read(entry["collateral"])], **arguments)


@pytest.mark.parametrize("name", INTEL)
def test_a_recorded_collateral_is_not_taken_for_another_platform(name):
    entry = INTEL[name]
    (need,) = needs_of_files(kind_of(entry["kind"]).profile, read(entry["quote"]), ())
    data = read(entry["collateral"])
    assert examined(need, data, fetched_at=0).need == need
    for changes in (
        {"fmspc": "000000000000"},
        {"tee": {"tdx": "sgx", "sgx": "tdx"}[need.tee]},
        {"ca": {"platform": "processor", "processor": "platform"}[need.ca]},
    ):
        with pytest.raises(EndorsementMismatchError):
            examined(dataclasses.replace(need, **changes), data, fetched_at=0)


@pytest.mark.parametrize("name", [name for name, entry in SNP.items() if entry.get("signing_key") == "VCEK"])
def test_amds_recorded_certificate_is_the_answer_to_the_need_of_its_report_alone(service, name):
    entry = SNP[name]
    vek = load_certificate(read(entry["vek"]), what="VEK").der
    right = "another chip" not in entry["expected"] and "as above" not in entry["expected"]
    asked = AmdVcek(
        product=entry["product"],
        hwid=report_of(entry)[0x1A0 : 0x1A0 + (8 if entry["product"] == "Turin" else 64)].hex(),
        bootloader=entry["tcb_reported"]["bl"],
        tee=entry["tcb_reported"]["tee"],
        snp=entry["tcb_reported"]["snp"],
        microcode=entry["tcb_reported"]["ucode"],
        fmc=entry["tcb_reported"].get("fmc"),
    )
    found = needs("sev-snp/1", report_of(entry), hints=() if entry["report_version"] > 2 else (vek,))
    assert (asked in found) is (entry["report_version"] > 2 or not right)
    levels = {"blSPL": asked.bootloader, "teeSPL": asked.tee, "snpSPL": asked.snp, "ucodeSPL": asked.microcode}
    levels = levels if asked.fmc is None else {"fmcSPL": asked.fmc, **levels}
    query = "&".join(f"{level}={value}" for level, value in levels.items())
    service.tells(f"{AMD}/vcek/v1/{asked.product}/{asked.hwid}?{query}", vek)
    if not right:
        with pytest.raises(EndorsementFetchError):
            sources(service).fetch(asked, now_ms=AMD_TIME_MS)
        return
    assert sources(service).fetch(asked, now_ms=AMD_TIME_MS).data == vek


@pytest.mark.parametrize(
    ("need", "file"),
    [
        (AmdChain(product="Milan", key="vcek"), "snp/roots/ask_ark_milan.pem"),
        (AmdChain(product="Genoa", key="vcek"), "snp/roots/ask_ark_genoa.pem"),
        (AmdChain(product="Turin", key="vcek"), "snp/roots/ask_ark_turin_vcek.pem"),
        (AmdChain(product="Milan", key="vlek"), "snp/roots/ask_ark_milan_vlek.pem"),
    ],
)
def test_amds_recorded_chain_is_the_answer_for_its_product_and_key_alone(service, need, file):
    service.replies.clear()
    for product in ("Milan", "Genoa", "Turin"):
        for key in ("vcek", "vlek"):
            service.tells(f"{AMD}/{key}/v1/{product}/cert_chain", read(file))
            other = AmdChain(product=product, key=key)
            if other == need:
                assert len(sources(service).fetch(other, now_ms=AMD_TIME_MS).parts) == 2
            else:
                with pytest.raises(EndorsementFetchError):
                    sources(service).fetch(other, now_ms=AMD_TIME_MS)


@pytest.mark.parametrize("name", RIM_FILES)
def test_nvidias_recorded_manifest_is_the_answer_to_its_id_and_needs_the_status_of_its_signers(service, name):
    need, manifest = NvidiaRim(id=name), read(RIM_FILES[name])
    ends = examined(need, manifest, fetched_at=0).expires_at
    service.tells(f"{RIMS}/v1/rim/{name}", rim_answer(need, manifest))
    fetched = sources(service).fetch(need, now_ms=ends)
    assert fetched.data == manifest
    assert len(further_needs(fetched)) == 3
    with pytest.raises(EndorsementFetchError):
        sources(service).fetch(need, now_ms=ends + 1)
    for other in RIM_FILES:
        if other != name:
            with pytest.raises(EndorsementMismatchError):
                examined(NvidiaRim(id=other), manifest, fetched_at=0)


@pytest.mark.parametrize("name", [name for name, entry in GPU.items() if entry["chain_len"] == 5])
def test_every_recorded_device_needs_its_manifests_and_the_status_of_three_certificates(name):
    entry = GPU[name]
    chains = [] if entry["chain"] == "(inline)" else [read(entry["chain"])]
    for device in read_files(read(entry["report"]), chains):
        found = device_needs(device)
        manifests = [need.id for need in found if isinstance(need, NvidiaRim)]
        assert len(found) == len(manifests) + 3
        if entry["driver"]:
            assert manifests[0].endswith(f"_{entry['driver']}")
            assert manifests[1].startswith("NV_GPU_VBIOS_")
        else:
            assert manifests == [
                f"NV_SWITCH_BIOS_5612_0002_890_{bytes.fromhex(entry['vbios']).decode().replace('.', '')}"
            ]


def test_a_bundle_of_all_recorded_collaterals_serves_every_quote():
    held = {}
    for entry in INTEL.values():
        (need,) = needs_of_files(kind_of(entry["kind"]).profile, read(entry["quote"]), ())
        assert isinstance(need, IntelCollateral)
        held[need] = (read(entry["collateral"]), entry)
    bundle = encode_bundle(
        gathered(held, lambda need: examined(need, held[need][0], fetched_at=milliseconds(held[need][1])))
    )
    provider = BundleProvider(bundle)
    for data, entry in held.values():
        quote = read(entry["quote"])
        quote = bytes.fromhex(quote.decode().strip()) if entry["quote"].endswith(".hex") else quote
        evidence = Envelope(profile=kind_of(entry["kind"]).profile, evidence=quote, binding=b"")
        assert provider.endorsements_for(evidence, now_ms=milliseconds(entry)) == (data,)


@pytest.mark.parametrize("name", [name for name in sets_of("vtpm") if "-az-" in name])
def test_every_recorded_confidential_vm_of_azure_needs_what_its_hardware_does(name):
    entry = sets_of("vtpm")[name]
    tdx = "tdx" in name
    found = needs_of_files(kind_of("azure-tdx" if tdx else "azure-snp").profile, read(entry["evidence"]), ())
    if tdx:
        assert [need.KIND for need in found] == ["intel-collateral"]
    else:
        assert {(need.KIND, need.product) for need in found} == {
            ("amd-chain", entry["product"]),
            ("amd-crl", entry["product"]),
        }
