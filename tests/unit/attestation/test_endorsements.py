"""Which endorsements evidence needs, and whether what a provider gives is what verifiers take."""

import base64
import dataclasses
import datetime as dt
import itertools
import json
import struct

import intel_world as intel
import nvidia_world as nvidia
import pytest
import sev_snp_world as amd
from cryptography import x509
from cryptography.x509 import ocsp
from endorsement_world import (
    CHAIN,
    COLLATERAL,
    NOW,
    NOW_MS,
    RIM,
    STATUS,
    TURIN,
    VCEK,
    Reply,
    Service,
    certificate,
    der,
    fetcher,
    pem,
    rim,
    rim_answer,
    rim_chain,
    status_need,
    tells_intel,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from confed.attestation.endorsement_cache import EndorsementCache
from confed.attestation.endorsement_provider import CachedProvider
from confed.attestation.endorsements import (
    AmdChain,
    AmdCrl,
    AmdVcek,
    Endorsement,
    IntelCollateral,
    NvidiaOcsp,
    NvidiaRim,
)
from confed.attestation.endorsing.devices import device_needs
from confed.attestation.endorsing.files import needs_of_files
from confed.attestation.endorsing.needs import further_needs, needs, needs_of
from confed.attestation.endorsing.plausibility import examined
from confed.attestation.endorsing.vendors import VENDOR_HOSTS, Sources, vendor_fetcher, vendor_sources
from confed.attestation.evidence import Binding, Envelope
from confed.attestation.tee.azure_evidence import AzureEvidence
from confed.attestation.tee.nvidia_evidence import DeviceEvidence
from confed.attestation.tee.nvidia_gpu import NvidiaGpuVerifier
from confed.attestation.tee.sev_snp import SnpVerifier
from confed.attestation.tee.sgx import SgxVerifier
from confed.attestation.tee.tdx import TdxVerifier
from confed.attestation.verifier import ExpectedBinding, Registry
from confed.errors import (
    AttestationError,
    ConfigError,
    EndorsementFetchError,
    EndorsementFormatError,
    EvidenceFormatError,
    EvidenceSizeError,
    EvidenceVersionError,
    MissingClaimError,
    MissingEndorsementError,
    TrailingBytesError,
    TrustAnchorError,
    UnknownProfileError,
)
from confed.journey import Role

SNP = "sev-snp/1"
ROOT_OF = dict(zip(("Milan", "Genoa", "Turin"), amd.ROOTS, strict=True))


def record_of(product, **changes):
    device = nvidia.make_device(product)
    return nvidia.make_record(device, nvidia.make_report(device, **changes))


SWITCH_RECORD = nvidia.make_record(nvidia.SWITCH, nvidia.switch_report(nvidia.SWITCH), kind="switch")


def envelope(profile, evidence, **changes):
    return Envelope(profile=profile, evidence=evidence, binding=b"", **changes)


# Needs have one form

MALFORMED = {
    "another product": (VCEK, {"product": "Rome"}),
    "a product in other letters": (VCEK, {"product": "milan"}),
    "a path for a product": (CHAIN, {"product": "../vlek/v1/Milan"}),
    "a chip id that is short": (VCEK, {"hwid": "ab" * 63}),
    "a chip id that is long": (VCEK, {"hwid": "ab" * 64 + "a"}),
    "a chip id of another product": (VCEK, {"hwid": "ab" * 8}),
    "a chip id in capitals": (VCEK, {"hwid": "AB" * 64}),
    "a chip id that is none": (VCEK, {"hwid": "x?" * 64}),
    "a chip id with a line's end": (TURIN, {"hwid": "ab" * 7 + "a\n"}),
    "a masked chip id": (VCEK, {"hwid": "00" * 64}),
    "a level beyond a byte": (VCEK, {"snp": 256}),
    "a level below zero": (TURIN, {"fmc": -1}),
    "Turin without its level": (TURIN, {"fmc": None}),
    "Milan with Turin's level": (VCEK, {"fmc": 0}),
    "another kind of key": (CHAIN, {"key": "vcek/../.."}),
    "a list for another kind of key": (AmdCrl(product="Milan", key="vcek"), {"key": ""}),
    "another TEE": (COLLATERAL, {"tee": "sev"}),
    "another authority": (COLLATERAL, {"ca": "root"}),
    "a platform in small letters": (COLLATERAL, {"fmspc": "90c06f000000"}),
    "a platform that is long": (COLLATERAL, {"fmspc": "90C06F0000000"}),
    "a platform with a line's end": (COLLATERAL, {"fmspc": "90C06F000000\n"}),
    "a manifest of somebody else": (RIM, {"id": "AMD_DRIVER"}),
    "a manifest with a path": (RIM, {"id": "NV_GPU/../ids"}),
    "a manifest with a query": (RIM, {"id": "NV_GPU?x=1"}),
    "a manifest with a long id": (RIM, {"id": "NV_" + "G" * 126}),
    "a manifest with a line's end": (RIM, {"id": "NV_GPU_1\n"}),
    "a short digest": (STATUS, {"issuer_name": "ab" * 47}),
    "a digest in capitals": (STATUS, {"issuer_key": "AB" * 48}),
    "a serial number of zero": (STATUS, {"serial": "0"}),
    "a serial number with a leading zero": (STATUS, {"serial": "0abc"}),
    "a serial number beyond 20 bytes": (STATUS, {"serial": "1" * 41}),
    "no serial number": (STATUS, {"serial": ""}),
}


@pytest.mark.parametrize("sentence", MALFORMED)
def test_a_need_has_one_form(sentence):
    need, changes = MALFORMED[sentence]
    with pytest.raises(EndorsementFormatError):
        dataclasses.replace(need, **changes)


# What evidence needs


@pytest.mark.parametrize("product", ["Milan", "Genoa", "Turin"])
def test_a_report_needs_the_certificate_of_its_chip_at_its_tcb_and_what_stands_above(product):
    tcb = amd.TCB[product]
    chip = amd.hwid(product).hex()
    levels = (
        {"bootloader": tcb[1], "tee": tcb[2], "snp": tcb[3], "fmc": tcb[0]}
        if product == "Turin"
        else {"bootloader": tcb[0], "tee": tcb[1], "snp": tcb[6], "fmc": None}
    )
    assert needs(SNP, amd.report(product)) == (
        AmdVcek(product=product, hwid=chip, microcode=tcb[7], **levels),
        AmdChain(product=product, key="vcek"),
        AmdCrl(product=product, key="vcek"),
    )


def test_a_loaded_key_has_no_address():
    expected = (AmdChain(product="Genoa", key="vlek"), AmdCrl(product="Genoa", key="vlek"))
    assert needs(SNP, amd.report(kind="VLEK")) == expected
    assert needs(SNP, amd.report(kind="VLEK"), hints=(amd.VLEK,)) == expected


def test_a_hint_spares_only_the_chips_certificate_and_only_if_it_is_the_right_one():
    above = needs(SNP, amd.REPORT)[1:]
    assert needs(SNP, amd.REPORT, hints=(amd.VCEK,)) == above
    assert needs(SNP, amd.REPORT, hints=(amd.crl(), amd.ASK, pem_of(amd.VCEK))) == above
    for other in (
        amd.vek(tcb=bytes([9]) + amd.TCB["Genoa"][1:]),
        amd.vek("Milan", tcb=amd.TCB["Genoa"]),
        amd.vek(extensions={"4": b"\x07" * 64}),
        amd.VLEK,
        amd.ASK,
        amd.crl(),
        b"something else",
        amd.vek(extensions={"2": None}),
    ):
        assert len(needs(SNP, amd.REPORT, hints=(other,))) == 3


def pem_of(certificate_der):
    return pem(x509.load_der_x509_certificate(certificate_der))


def test_a_report_of_version_2_takes_its_product_from_the_certificate_beside_it():
    old = amd.report("Milan", version=2)
    with pytest.raises(MissingEndorsementError):
        needs(SNP, old)
    with pytest.raises(MissingEndorsementError):
        needs(SNP, old, hints=(amd.VLEK, amd.ROOTS[0]))
    hint = amd.vek("Milan")
    assert needs(SNP, old, hints=(hint,)) == (
        AmdChain(product="Milan", key="vcek"),
        AmdCrl(product="Milan", key="vcek"),
    )
    stale = amd.vek("Milan", tcb=bytes(8))
    assert needs(SNP, old, hints=(stale,))[0].snp == amd.TCB["Milan"][6]


def test_a_masked_chip_cannot_be_asked_for():
    masked = amd.report(chip_id=bytes(64))
    with pytest.raises(MissingEndorsementError):
        needs(SNP, masked)
    assert len(needs(SNP, masked, hints=(amd.VCEK,))) == 2


@pytest.mark.parametrize(
    ("profile", "quote", "expected"),
    [
        ("tdx/1", intel.td_quote(), IntelCollateral(tee="tdx", fmspc="90C06F000000", ca="platform")),
        ("tdx/1", intel.td_quote(version=5), IntelCollateral(tee="tdx", fmspc="90C06F000000", ca="platform")),
        ("sgx/1", intel.sgx_quote(), IntelCollateral(tee="sgx", fmspc="90C06F000000", ca="platform")),
        (
            "sgx/1",
            intel.sgx_quote(
                options={
                    "chain": intel.pem(
                        intel.pck_certificate(fmspc=intel.OTHER_FMSPC, issuer="Intel SGX PCK Processor CA"), intel.ROOT
                    )
                }
            ),
            IntelCollateral(tee="sgx", fmspc="00806F050000", ca="processor"),
        ),
    ],
)
def test_a_quote_needs_the_collateral_of_its_platform(profile, quote, expected):
    assert needs(profile, quote) == (expected,)
    assert needs(profile, quote, hints=(intel.good(),)) == (expected,), "an attester does not choose its collateral"


def azure(hardware_report=bytes(1184), *, td_quote=b"", vcek=b""):
    """Return Azure's evidence around a hardware report: a paravisor's report of its form, and a TPM's parts."""
    key = {"kid": "HCLAkPub", "kty": "RSA", "key_ops": ["sign"], "e": "AQAB", "n": MODULUS}
    settings = {"secure-boot": True, "tpm-enabled": True}
    runtime = json.dumps({"keys": [key], "vm-configuration": settings}).encode()
    size, kind = 32 + 1184 + 20 + len(runtime), 4 if td_quote else 2
    header = struct.pack("<4sIIII12s", b"HCLA", 2, size, 2, 0, bytes(12))
    request = struct.pack("<IIIII", 20 + len(runtime), 1, kind, 1, len(runtime))
    return AzureEvidence(
        hcl_report=header + hardware_report + request + runtime,
        quote=b"q",
        signature=b"s",
        pcrs={},
        td_quote=td_quote,
        vcek=vcek,
    )


MODULUS = base64.urlsafe_b64encode(b"\xff" * 256).decode().rstrip("=")


def test_a_confidential_vm_of_azure_needs_what_its_hardware_does():
    assert needs("azure-snp/1", azure(amd.REPORT).encode()) == needs(SNP, amd.REPORT)
    assert needs("azure-snp/1", azure(amd.REPORT).encode(), hints=(amd.VCEK,)) == needs(SNP, amd.REPORT)[1:]
    quote = intel.td_quote()
    assert needs("azure-tdx/1", azure(td_quote=quote).encode()) == needs("tdx/1", quote)
    for profile in ("azure-snp/1", "azure-tdx/1"):
        with pytest.raises(EvidenceFormatError):
            needs(profile, b"{}")
    with pytest.raises(EvidenceFormatError):
        needs("azure-tdx/1", azure(amd.REPORT).encode())


def test_files_may_be_hexadecimal_and_bring_a_chips_certificate_along():
    expected = needs(SNP, amd.REPORT)
    for data in (amd.REPORT, amd.REPORT.hex().encode(), b"0x" + amd.REPORT.hex().upper().encode() + b"\n"):
        assert needs_of_files(SNP, data, ()) == expected
        assert needs_of_files(SNP, data, (amd.VCEK,)) == expected[1:]
    assert needs_of_files("azure-snp/1", azure(amd.REPORT).encode(), ()) == expected
    assert needs_of_files("azure-tdx/1", azure(td_quote=intel.td_quote()).encode(), ()) == needs(
        "tdx/1", intel.td_quote()
    )
    file = {"quote": {"message": [1], "pcrs": [], "signature": [1]}, "vcek": pem_of(amd.VCEK).decode()}
    written = json.dumps(file | {"report": list(azure(amd.REPORT).hcl_report)}).encode()
    assert needs_of_files("azure-snp/1", written, ()) == expected[1:]
    with pytest.raises(EvidenceFormatError):
        needs_of_files(SNP, b"abc", ())
    assert needs_of_files("aws-nitro/1", b"\x84", ()) == ()


@pytest.mark.parametrize("profile", ["simulated/1", "aws-nitro/1", "tpm/1", "gcp-tpm/1", "arm-cca/1"])
def test_evidence_without_endorsements_needs_nothing_whatever_it_is(profile):
    assert needs(profile, b"anything") == ()


UNREADABLE = {
    "a profile that is not known": ("sev-snp/2", amd.REPORT, UnknownProfileError),
    "a device's evidence as a TEE's": ("nvidia-gpu/1", b"", UnknownProfileError),
    "nothing": (SNP, b"", EvidenceFormatError),
    "a report that is cut short": (SNP, amd.REPORT[:-1], EvidenceFormatError),
    "a report with a byte after it": (SNP, amd.REPORT + b"\0", TrailingBytesError),
    "a report of a processor that is not known": (SNP, amd.report(cpuid=b"\x17\x31\x00"), TrustAnchorError),
    "no quote": ("tdx/1", b"", EvidenceFormatError),
    "a quote that is cut short": ("tdx/1", intel.td_quote()[:-1], EvidenceFormatError),
    "a quote that is large": ("tdx/1", bytes(20_000), EvidenceSizeError),
    "a quote whose certificates are none": (
        "tdx/1",
        intel.td_quote(options={"chain": b"-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n"}),
        EndorsementFormatError,
    ),
    "a quote whose certificate is of no platform": (
        "tdx/1",
        intel.td_quote(options={"chain": intel.pem(intel.PLATFORM, intel.ROOT)}),
        EndorsementFormatError,
    ),
    "a quote whose platform is certified by nobody known": (
        "tdx/1",
        intel.td_quote(options={"chain": intel.pem(intel.pck_certificate(issuer="Intel"), intel.ROOT)}),
        EndorsementFormatError,
    ),
}


@pytest.mark.parametrize("sentence", UNREADABLE)
def test_evidence_that_cannot_be_read_is_refused_and_nobody_is_asked(sentence):
    profile, evidence, error = UNREADABLE[sentence]
    with pytest.raises(error):
        needs(profile, evidence)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_whatever_comes_in_needs_have_their_form_or_it_is_refused(data):
    profile, evidence = data.draw(
        st.sampled_from([(SNP, amd.REPORT), ("tdx/1", intel.td_quote()), ("sgx/1", intel.sgx_quote())])
    )
    changed = bytearray(evidence)
    for at in data.draw(st.lists(st.integers(0, len(evidence) - 1), max_size=6)):
        changed[at] = data.draw(st.integers(0, 255))
    changed = bytes(changed[: data.draw(st.sampled_from([len(evidence), len(evidence) - 1, 40]))])
    hint = data.draw(st.one_of(st.binary(max_size=80), st.just(amd.VCEK), st.just(amd.VCEK[:-9])))
    try:
        found = needs(profile, changed, hints=(hint,))
    except AttestationError:
        return
    assert found
    assert all(isinstance(need, AmdVcek | AmdChain | AmdCrl | IntelCollateral) for need in found)


def test_an_envelope_needs_what_its_evidence_does_with_its_hints():
    assert needs_of(envelope(SNP, amd.REPORT)) == needs(SNP, amd.REPORT)
    assert needs_of(envelope(SNP, amd.REPORT, endorsements=(amd.VCEK,))) == needs(SNP, amd.REPORT)[1:]


# Manifests need the status of their signers


def test_a_manifest_needs_the_status_of_its_signer_and_of_those_above_but_the_root():
    signer, middle, root = rim_chain()
    found = further_needs(examined(RIM, rim(RIM, signers=(signer, middle, root)), fetched_at=NOW_MS))
    assert found == (status_need(signer, middle), status_need(middle, root))
    assert [need.serial for need in found] == ["5000", "5001"]


@pytest.mark.parametrize("need", [VCEK, CHAIN, STATUS])
def test_other_endorsements_need_nothing(need):
    assert further_needs(Endorsement(need=need, data=b"x", fetched_at=0, expires_at=0)) == ()


# What a provider gives is what verifiers take


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    service = Service().start(tmp_path_factory.mktemp("service"))
    yield service
    service.stop()


def provider_of(service, tmp_path):
    return CachedProvider(EndorsementCache(tmp_path / "endorsements"), vendor_sources(fetcher(service)))


@pytest.mark.parametrize("product", ["Milan", "Genoa", "Turin"])
def test_a_report_is_verified_with_what_amd_gives(running, tmp_path, product):
    report = amd.report(product)
    tcb, chip = amd.TCB[product], amd.hwid(product).hex()
    order = (("fmc", 0), ("bl", 1), ("tee", 2), ("snp", 3), ("ucode", 7))
    order = order if product == "Turin" else (("bl", 0), ("tee", 1), ("snp", 6), ("ucode", 7))
    query = "&".join(f"{name}SPL={tcb[at]}" for name, at in order)
    base = f"kdsintf.amd.com/vcek/v1/{product}"
    running.tells(f"{base}/{chip}?{query}", amd.vek(product))
    running.tells(f"{base}/cert_chain", pem_of(amd.authority(product)) + pem_of(ROOT_OF[product]))
    running.tells(f"{base}/crl", amd.crl(product))
    now_ms = int(amd.NOW.timestamp() * 1000)
    given_endorsements = provider_of(running, tmp_path).endorsements_for(envelope(SNP, report), now_ms=now_ms)
    assert len(given_endorsements) == 4
    verified = SnpVerifier().verify(
        envelope(SNP, report), endorsements=given_endorsements, now_ms=now_ms, anchors=amd.ROOTS
    )
    assert verified.details.revocation_checked
    assert verified.report_data == amd.REPORT_DATA


@pytest.mark.parametrize(
    ("verifier", "quote", "tee"),
    [(TdxVerifier, intel.td_quote(), "TDX"), (SgxVerifier, intel.sgx_quote(), "SGX")],
)
def test_a_quote_is_verified_with_what_intel_gives(running, tmp_path, verifier, quote, tee):
    evidence = envelope(verifier.PROFILE, quote)
    tells_intel(running, needs_of(evidence)[0], intel.collateral_fields(tee))
    given_endorsements = provider_of(running, tmp_path).endorsements_for(evidence, now_ms=intel.NOW_MS)
    verified = verifier().verify(evidence, endorsements=given_endorsements, now_ms=intel.NOW_MS, anchors=intel.ANCHORS)
    assert verified.report_data == intel.REPORT_DATA


MANIFESTS = {
    "NV_GPU_DRIVER_GH100_550.90.07": nvidia.DRIVER_RIM,
    "NV_GPU_VBIOS_1010_0200_882_96009F0001": nvidia.VBIOS_RIM,
    "NV_SWITCH_BIOS_5612_0002_890_9610550001": nvidia.SWITCH_RIM,
}


def tells_nvidia(service):
    """Let NVIDIA's services know the world's manifests and certificates; return how many of the latter."""
    for name, manifest in MANIFESTS.items():
        service.tells(f"rim.attestation.nvidia.com/v1/rim/{name}", rim_answer(NvidiaRim(id=name), manifest))
    paths = (nvidia.GPU.authorities[1:], nvidia.SWITCH.authorities[1:], nvidia.SIGNER.path)
    links = {link[0].certificate.serial_number: link for path in paths for link in itertools.pairwise(path)}

    def status(request):
        return nvidia.make_response(*links[ocsp.load_der_ocsp_request(request).serial_number])

    service.tells("ocsp.ndis.nvidia.com/", Reply(of=status))
    return len(links)


def test_devices_are_verified_with_what_nvidia_gives(running, tmp_path):
    evidence = envelope("simulated/1", b"", device_evidence=(nvidia.make_record(), SWITCH_RECORD))
    assert {need.id for need in needs_of(evidence) if isinstance(need, NvidiaRim)} == set(MANIFESTS)
    statuses = tells_nvidia(running)
    now_ms = int(nvidia.NOW.timestamp() * 1000)
    given_endorsements = provider_of(running, tmp_path).endorsements_for(evidence, now_ms=now_ms)
    assert len(given_endorsements) == len(MANIFESTS) + statuses
    found = nvidia.verify_devices(evidence.device_evidence, endorsements=given_endorsements)
    assert [device.revocation for device in found.devices] == ["good", "good"]
    compared = [manifest for device in found.devices for manifest in device.manifests]
    assert [(manifest.revocation, manifest.mismatched) for manifest in compared] == [("good", ())] * 3


def test_a_processor_and_its_gpu_are_verified_as_one_with_what_a_provider_gives(running, tmp_path):
    nonce = b"n" * 32
    binding = Binding(
        profile=SNP,
        nonce=nonce,
        audience="3c" * 32,
        manifest="2b" * 32,
        role=Role.CLIENT,
        run="digits-1",
        hpke_public=b"h" * 1216,
        signing_public=b"s" * 32,
        issued_at=NOW_MS,
    )
    record = nvidia.make_record(report=nvidia.make_report(nvidia.GPU, nonce=binding.device_nonce))
    draft = envelope(SNP, b"", device_evidence=(record,))
    evidence = dataclasses.replace(
        draft,
        evidence=amd.report(report_data=binding.report_data(draft.device_digest)),
        binding=binding.encoded,
        endorsements=(amd.VCEK,),
    )
    tells_nvidia(running)
    base = "kdsintf.amd.com/vcek/v1/Genoa"
    running.tells(f"{base}/cert_chain", pem_of(amd.ASK) + pem_of(ROOT_OF["Genoa"]))
    running.tells(f"{base}/crl", amd.crl())
    now_ms = int(amd.NOW.timestamp() * 1000)
    claims = Registry((SnpVerifier(),), devices=NvidiaGpuVerifier()).verify(
        evidence.encode(),
        endorsements=provider_of(running, tmp_path).endorsements_for(evidence, now_ms=now_ms),
        expected=ExpectedBinding(
            nonce=nonce, audience=binding.audience, manifest=binding.manifest, role=Role.CLIENT, run=binding.run
        ),
        now_ms=now_ms,
        anchors={SNP: amd.ROOTS, "nvidia-gpu/1": nvidia.ANCHORS},
    )
    assert claims.details.revocation_checked
    assert claims.devices[0].details.devices[0].revocation == "good"


def test_a_blackwell_gpu_needs_the_manifest_of_its_chip():
    device = nvidia.make_device("GB100")
    for chip, name in ((b"GB102\0", "GB102"), (None, "GB100")):
        record = nvidia.make_record(device, nvidia.make_report(device, fields={35: chip}))
        found = needs("simulated/1", b"", device_evidence=(record,))
        assert found[0] == NvidiaRim(id=f"NV_GPU_CC_DRIVER_{name}_550.90.07")


DEVICES = {
    "a record that is none": ((b"{}",), EvidenceFormatError),
    "a report that is cut short": ((nvidia.make_record(report=nvidia.REPORT[:-1]),), EvidenceFormatError),
    "a device that is not known": (
        (nvidia.make_record(nvidia.make_device("AD102")),),
        EvidenceVersionError,
    ),
    "a chip with a path": (
        (record_of("GB100", fields={35: b"/../../ids"}),),
        EvidenceFormatError,
    ),
    "a report without a driver": ((record_of("GH100", fields={3: None}),), MissingClaimError),
    "seventeen devices": ((nvidia.make_record(),) * 17, EvidenceSizeError),
}


@pytest.mark.parametrize("sentence", DEVICES)
def test_devices_that_cannot_be_read_are_refused(sentence):
    records, error = DEVICES[sentence]
    with pytest.raises(error):
        needs("simulated/1", b"", device_evidence=records)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_whatever_a_device_says_its_needs_have_their_form_or_it_is_refused(data):
    changed = bytearray(nvidia.REPORT)
    for at in data.draw(st.lists(st.integers(0, len(changed) - 1), max_size=6)):
        changed[at] = data.draw(st.integers(0, 255))
    device = DeviceEvidence(report=bytes(changed), chain=nvidia.GPU.chain)
    try:
        found = device_needs(device)
    except AttestationError:
        return
    assert all(isinstance(need, NvidiaRim | NvidiaOcsp) for need in found)


def test_devices_of_one_kind_share_their_needs():
    other = nvidia.make_device(pdi=b"\x03" * 8)
    one = needs("simulated/1", b"", device_evidence=(nvidia.make_record(),))
    both = needs("simulated/1", b"", device_evidence=(nvidia.make_record(), nvidia.make_record(other)))
    assert len(one) == 5
    assert set(one) < set(both)
    assert len(both) == 6


def test_one_need_that_cannot_be_met_fails_closed(running, tmp_path):
    running.replies.clear()
    base = "kdsintf.amd.com/vcek/v1/Genoa"
    running.tells(f"{base}/cert_chain", pem_of(amd.ASK) + pem_of(ROOT_OF["Genoa"]))
    running.tells(f"{base}/crl", amd.crl())
    evidence = envelope(SNP, amd.REPORT)
    now_ms = int(amd.NOW.timestamp() * 1000)
    with pytest.raises(EndorsementFetchError, match="404"):
        provider_of(running, tmp_path).endorsements_for(evidence, now_ms=now_ms)
    spared = envelope(SNP, amd.REPORT, endorsements=(amd.VCEK,))
    assert len(provider_of(running, tmp_path).endorsements_for(spared, now_ms=now_ms)) == 3


def test_evidence_without_needs_asks_nobody(running, tmp_path):
    running.asked.clear()
    provider = provider_of(running, tmp_path)
    assert provider.endorsements_for(envelope("simulated/1", b"x"), now_ms=NOW_MS) == ()
    assert running.asked == []


# Vendors


def test_by_default_only_vendors_hosts_are_asked_and_a_pccs_only_where_it_is_named():
    assert set(VENDOR_HOSTS) == vendor_fetcher()._hosts
    assert vendor_fetcher(pccs="pccs.clinic.example:8443")._hosts == {*VENDOR_HOSTS, "pccs.clinic.example:8443"}
    assert vendor_fetcher(hosts=("kdsintf.amd.com",))._hosts == {"kdsintf.amd.com"}


@pytest.mark.parametrize(
    "host",
    [
        "", "https://pccs", "pccs/sgx", "pccs:", "pccs:0", "pccs:65536", "PCCS", "a b", "a@b", "-a", "a-", "a..b", "a\n",
        "a" * 64, f"a.{'b' * 64}:443", ".".join(["a" * 63] * 4), "kdsintf.amd.com.", "[::1]",
    ],
)  # fmt: skip
def test_a_host_that_is_no_name_of_one_is_a_mistake_of_the_user(host):
    with pytest.raises(ConfigError):
        vendor_fetcher(pccs=host)
    with pytest.raises(ConfigError):
        vendor_fetcher(hosts=(host,))


def test_a_host_s_longest_name_and_last_port_are_good():
    host = f"{'.'.join(['a' * 61] * 4)}.abcde:65535"
    assert len(host) == 253 + len(":65535")
    assert vendor_fetcher(hosts=(host,))._hosts == {host}


def test_a_pccs_may_have_authorities_of_its_own(running):
    given = vendor_fetcher(pccs="pccs.clinic.example", pccs_authorities=running.authorities)
    assert set(given._tls) == {"pccs.clinic.example"}


def test_every_need_has_a_vendor():
    known = Sources(vendor_sources(vendor_fetcher()))
    assert set(known._sources) == {AmdVcek, AmdChain, AmdCrl, IntelCollateral, NvidiaRim, NvidiaOcsp}


def test_the_world_is_at_one_time():
    assert dt.datetime.fromtimestamp(NOW_MS / 1000, dt.UTC) == NOW
    assert json.loads(intel.good())
    assert der(certificate("a", "b"))
