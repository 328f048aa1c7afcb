"""Real reports of Hopper, Blackwell and NVSwitch, and NVIDIA's manifests: each set gets its verdict, and why."""

import base64
import json
from datetime import UTC, datetime, timedelta

import pytest
from folder import at, needs_vectors, read, sets_of

from confed.attestation.certificates import load_certificate, load_certificates
from confed.attestation.evidence import Expectation
from confed.attestation.policy.nvidia_gpu import require_defaults, require_floors
from confed.attestation.tee import nvidia_gpu, nvidia_rim
from confed.attestation.tee.nvidia_report import parse_report
from confed.errors import (
    AttestationError,
    CertificateChainError,
    CertificateValidityError,
    DuplicateDeviceError,
    EndorsementMismatchError,
    EvidenceFormatError,
    EvidenceSignatureError,
    GoldenValueError,
    NonceError,
    ReferenceManifestError,
    TrailingBytesError,
    TrustAnchorError,
)

pytestmark = needs_vectors

REPORTS, MANIFESTS = sets_of("gpu"), sets_of("rim")
# The sets have no time of their own: device certificates never expire, and two manifests are valid in turn.
NOW = at(1_795_219_200)  # 21 November 2026
EARLIER = at(1_717_200_000)  # 1 June 2024
DAY = timedelta(days=1)
REFUSED_REPORTS = {
    "gpu/sdk-hopper-badsig": EvidenceSignatureError,
    "gpu/trustee-case2": CertificateChainError,
    "gpu/trustee-case4": CertificateChainError,
}
REFUSED_MANIFESTS = {
    "rim/incorrect_cert_chain_driver_rim.xml": CertificateChainError,
    "rim/NV_GPU_DRIVER_GH100_535.86.09_measurement_mismatch.xml": ReferenceManifestError,
    "rim/NV_GPU_DRIVER_GH100_570.124.03_expired.xml": ReferenceManifestError,
    "rim/NV_SWITCH_BIOS_5612_0002_890_9610550001_measurement_mismatch.xml": ReferenceManifestError,
}
HOPPER, MULTI = "gpu/nvtrust-hopper", "gpu/sdk-multi-gpu"
HOPPER_535 = "gpu/sdk-hopper-535"
SWITCH = "gpu/sdk-switch-ls10"
PRODUCTION = "rim/1010_0200_882_96005E0001_PROD.swidtag"
SWITCH_MANIFEST = "rim/switchVBIOSRim_NV_SWITCH_BIOS_5612_0002_890_9610550001.xml"
EXPIRED = "rim/NV_GPU_DRIVER_GH100_570.124.03_expired.xml"


def manifest(name):
    return read(MANIFESTS[name]["file"])


def chain(entry):
    return [] if entry["chain"] == "(inline)" else [read(entry["chain"])]


def verify(name, *manifests, now=NOW, nonce=None, report=None, chains=None, anchors=None):
    entry = REPORTS[name]
    return nvidia_gpu.verify_files(
        read(entry["report"]) if report is None else report,
        [*(chain(entry) if chains is None else chains), *(manifest(found) for found in manifests)],
        expectation=Expectation(nonce=bytes.fromhex(entry["nonce"]) if nonce is None else nonce, report_data=None),
        now=now,
        anchors=anchors,
    )


def verify_manifest(name, now):
    roots = [root for root in nvidia_gpu.pinned_roots() if "RIM" in load_certificate(root, what="root").subject]
    return nvidia_rim.verify_rim(manifest(name), anchors=roots, now=now)


@pytest.mark.parametrize("name", REPORTS)
def test_every_report_gets_its_verdict(name):
    entry = REPORTS[name]
    if name in REFUSED_REPORTS:
        with pytest.raises(REFUSED_REPORTS[name]) as caught:
            verify(name)
        assert caught.type is REFUSED_REPORTS[name]
        return
    claims = verify(name)
    require_defaults(claims)
    device = claims.devices[0]
    assert device.driver_version == entry["driver"]
    assert device.measurements == entry["measurements"]
    assert device.nonce.hex() == entry["nonce"]
    assert device.firmware_id_reported == (entry["fwid_in_leaf"] is True)
    if device.kind == "gpu":
        assert device.board == f"{entry['project']}_{entry['project_sku']}_{entry['chip_sku']}"
    assert (device.manifests, device.revocation) == ((), "unknown")


def test_there_is_a_verdict_for_every_set():
    assert set(REFUSED_REPORTS) <= set(REPORTS)
    assert set(REFUSED_MANIFESTS) <= set(MANIFESTS)
    assert {entry["expected"].split()[0] for name, entry in REPORTS.items() if name not in REFUSED_REPORTS} <= {
        "ACCEPT",
        "ACCEPT;",
        "REJECT",  # its manifest alone: test_an_expired_manifest_is_refused
        "chain+signature",
    }


def middle(entry):
    start, end = (datetime.fromisoformat(entry[name]).astimezone(UTC) for name in ("valid_from", "valid_to"))
    return start, start + (end - start) / 2, end


@pytest.mark.parametrize("name", MANIFESTS)
def test_every_manifest_gets_its_verdict_within_its_validity(name):
    entry = MANIFESTS[name]
    _, now, _ = middle(entry)
    if name in REFUSED_MANIFESTS:
        with pytest.raises(REFUSED_MANIFESTS[name]) as caught:
            verify_manifest(name, now)
        assert caught.type is REFUSED_MANIFESTS[name]
        return
    rim = verify_manifest(name, now)
    assert rim.name.version == entry["colloquial_version"].upper()
    assert len(rim.golden) == entry["active_measurements"]


@pytest.mark.parametrize("name", MANIFESTS)
def test_every_manifest_is_refused_before_and_after_its_validity(name):
    start, _, end = middle(MANIFESTS[name])
    for now in (start - timedelta(seconds=1), end + DAY):
        with pytest.raises(CertificateValidityError):
            verify_manifest(name, now)


def test_manifests_match_the_devices_that_they_are_for():
    (vbios,) = verify(HOPPER_535, PRODUCTION, now=EARLIER).devices[0].manifests
    assert (vbios.golden, vbios.matched, vbios.zeros, vbios.mismatched) == (12, 12, 4, ())
    (bios,) = verify(SWITCH, SWITCH_MANIFEST).devices[0].manifests
    assert (bios.golden, bios.matched, bios.zeros, bios.mismatched) == (31, 31, 7, ())
    require_floors(verify(HOPPER_535, PRODUCTION, now=EARLIER))
    require_floors(verify(SWITCH, SWITCH_MANIFEST))


@pytest.mark.parametrize(
    ("name", "indices"),
    [
        ("rim/NV_GPU_VBIOS_1010_0200_882_96005E0001_measurement_mismatch.xml", (9,)),
        ("rim/1010_0200_882_96005E0001_test_no_gpu.swidtag", (1, 2, 3, 9)),
    ],
)
def test_a_genuine_device_with_other_measurements_is_genuine_and_refused(name, indices):
    claims = verify(HOPPER_535, name, now=EARLIER)
    assert claims.devices[0].manifests[0].mismatched == indices
    for appraisal in (require_floors, require_defaults):
        with pytest.raises(GoldenValueError):
            appraisal(claims)


def test_a_manifest_is_compared_by_index_alone_where_the_version_is_another():
    rim = verify_manifest("rim/1010_0200_882_96005E0001_test_no_gpu.swidtag", EARLIER)
    measurements = parse_report(bytes.fromhex(read(REPORTS[HOPPER]["report"]).decode())).measurements
    assert nvidia_rim.compare(rim, measurements).mismatched == (1, 2, 3, 9, 11)


def test_of_two_manifests_for_one_version_the_one_that_fits_counts():
    other = "rim/1010_0200_882_96005E0001_test_no_gpu.swidtag"
    require_floors(verify(HOPPER_535, other, PRODUCTION, now=EARLIER))


@pytest.mark.parametrize(
    ("name", "found"),
    [
        (HOPPER, "rim/NV_GPU_DRIVER_GH100_550.144.03.xml"),
        (HOPPER, PRODUCTION),
        (HOPPER_535, "rim/Driver_RIM_test_no_gpu.swidtag"),
        ("gpu/ppcie-switches", SWITCH_MANIFEST),
    ],
)
def test_a_manifest_of_another_version_is_refused(name, found):
    with pytest.raises(EndorsementMismatchError):
        verify(name, found)


def test_an_expired_manifest_is_refused():
    for now in (NOW, EARLIER):
        with pytest.raises(CertificateValidityError):
            verify("gpu/sdk-hopper-expired", EXPIRED, now=now)


def test_a_manifest_that_was_tampered_with_is_refused():
    data = manifest(PRODUCTION)
    for old, new in ((b'active="True"', b'active="False"'), (b'Hash0="c3', b'Hash0="c4'), (b"96.00.5E", b"96.00.9F")):
        name = HOPPER if new == b"96.00.9F" else HOPPER_535
        with pytest.raises(ReferenceManifestError):
            verify(name, chains=[*chain(REPORTS[name]), data.replace(old, new, 1)], now=EARLIER)


def test_four_gpus_are_four_devices_and_a_copy_is_none():
    claims = verify(MULTI)
    assert len({device.leaf_key for device in claims.devices}) == len({device.pdi for device in claims.devices}) == 4
    entries = json.loads(read(REPORTS[MULTI]["report"]))
    for copies in ([entries[0]] * 4, [*entries, entries[1]]):
        with pytest.raises(DuplicateDeviceError):
            verify(MULTI, report=json.dumps(copies).encode())


def test_switches_name_the_identities_that_their_chains_have():
    switches = verify("gpu/ppcie-switches").devices
    assert len({device.pdi for device in switches}) == 4
    assert all(device.locked and len(device.linked) == 8 for device in switches)
    # The same machine's GPUs, attested at another time, are among those that its switches are linked to.
    gpus = verify(MULTI).devices
    assert {device.pdi for device in gpus} <= {pdi for device in switches for pdi in device.linked}
    assert {pdi for device in gpus for pdi in device.linked} == {device.pdi for device in switches}


def test_the_byte_beyond_the_signature_is_a_zero_and_no_other_is_accepted():
    name = "gpu/trustee-coco1"
    report = bytes.fromhex(read(REPORTS[name]["report"]).decode())
    assert report[-1] == 0
    assert verify(name, report=report) == verify(name, report=report[:-1])
    for changed in (report + b"\x00", report[:-1] + b"\x01", report[:-1] + b"\n"):
        with pytest.raises(TrailingBytesError):
            verify(name, report=changed)


def test_another_nonce_is_refused():
    for name in (HOPPER, MULTI, SWITCH):
        with pytest.raises(NonceError):
            verify(name, nonce=b"\x00" * 32)


@pytest.mark.parametrize("name", [HOPPER, "gpu/sdk-blackwell", SWITCH])
def test_every_field_of_a_report_counts(name):
    report = bytes.fromhex(read(REPORTS[name]["report"]).decode().strip())
    opaque = len(report) - 96 - 300
    for position in {*range(50), *range(50, opaque, 29), *range(opaque, len(report), 3)}:
        changed = bytearray(report)
        changed[position] ^= 1
        with pytest.raises((EvidenceSignatureError, EvidenceFormatError)):
            verify(name, report=bytes(changed))


@pytest.mark.parametrize("name", [HOPPER, SWITCH])
def test_a_report_that_is_cut_is_refused(name):
    report = bytes.fromhex(read(REPORTS[name]["report"]).decode().strip())
    for size in range(0, len(report), 7):
        with pytest.raises(EvidenceFormatError):
            verify(name, report=report[:size])


def test_a_report_with_another_devices_chain_is_refused():
    for name, other in ((HOPPER, HOPPER_535), (HOPPER, SWITCH), (SWITCH, "gpu/sdk-blackwell")):
        with pytest.raises(EvidenceSignatureError):
            verify(name, chains=chain(REPORTS[other]))


def pem(certificates):
    lines = (
        f"-----BEGIN CERTIFICATE-----\n{base64.encodebytes(found.der).decode()}-----END CERTIFICATE-----\n"
        for found in certificates
    )
    return "".join(lines).encode()


def test_chains_in_another_order_or_of_two_devices_are_refused():
    one = load_certificates(chain(REPORTS[HOPPER])[0], what="x")
    two = load_certificates(chain(REPORTS["gpu/sdk-blackwell"])[0], what="x")
    for mixed in (
        (one[0], two[1], *one[2:]),
        (one[0], *two[1:]),
        (one[0], one[2], one[1], *one[3:]),
        tuple(reversed(one)),
        (*one[:3], two[3], one[4]),
    ):
        with pytest.raises(CertificateChainError):
            verify(HOPPER, chains=[pem(mixed)])


def test_roots_of_another_product_are_no_roots_of_these():
    device_root, manifest_root = nvidia_gpu.pinned_roots()
    for roots in ((manifest_root,), ()):
        with pytest.raises(TrustAnchorError):
            verify(HOPPER, anchors=roots)
    with pytest.raises(TrustAnchorError):
        verify(HOPPER_535, PRODUCTION, now=EARLIER, anchors=(device_root,))


def test_before_its_certificates_were_made_no_device_was_genuine():
    # Certificates of devices end on the last day that there is: a day past it cannot be written.
    for name in (HOPPER, "gpu/sdk-blackwell", SWITCH):
        with pytest.raises(CertificateValidityError):
            verify(name, now=datetime(2020, 1, 1, tzinfo=UTC))


def test_a_list_that_contradicts_itself_is_refused():
    entries = json.loads(read(REPORTS["gpu/sdk-cert-hold"]["report"]))
    for changes in ({"nonce": "00" * 32}, {"arch": "BLACKWELL"}, {"evidence": entries[0]["evidence"][4:]}):
        with pytest.raises(AttestationError):
            verify("gpu/sdk-cert-hold", report=json.dumps([entries[0] | changes]).encode())
