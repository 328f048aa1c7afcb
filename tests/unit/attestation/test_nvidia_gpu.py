"""GPUs and switches: the chain, the report, the manifests and OCSP responses of each, and that they are distinct."""

import base64
import contextlib
import dataclasses
import json

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import ocsp as x509_ocsp
from hypothesis import given, settings
from hypothesis import strategies as st
from nvidia_world import (
    ANCHORS,
    COMPOSITE,
    DAY,
    DEVICE_ROOT,
    DRIVER_RIM,
    DRIVER_VERSION,
    FAMILY,
    FIRMWARE,
    GPU,
    MANIFEST_ROOT,
    MEASUREMENTS,
    NONCE,
    NOW,
    OTHER_ROOT,
    PROVISIONER,
    REPORT,
    SIGNER,
    STATE,
    SWITCH,
    SWITCH_RIM,
    TCB_INFO,
    VBIOS_RIM,
    VBIOS_VERSION,
    block,
    composite,
    der,
    fwid,
    golden,
    issue,
    key,
    make_device,
    make_manifest,
    make_record,
    make_report,
    make_response,
    make_signer,
    resource,
    responses,
    switch_report,
    tcb_info,
    verify_devices,
    verify_files,
)

from confed import canonical, record
from confed.attestation.tee import nvidia_gpu
from confed.attestation.tee.nvidia_evidence import NvidiaState, decode_record, encode_record
from confed.errors import (
    AlgorithmError,
    AttestationError,
    BindingMismatchError,
    CertificateChainError,
    CertificateValidityError,
    DuplicateDeviceError,
    EndorsementFormatError,
    EndorsementMismatchError,
    EvidenceFormatError,
    EvidenceSignatureError,
    EvidenceSizeError,
    EvidenceVersionError,
    KeyBindingError,
    MissingClaimError,
    MissingEndorsementError,
    NonceError,
    ReferenceManifestError,
    RevokedError,
    StaleEndorsementError,
    TrailingBytesError,
    TrustAnchorError,
)

REVOKED = x509_ocsp.OCSPCertStatus.REVOKED
HOLD = {"status": REVOKED, "reason": x509.ReasonFlags.certificate_hold}
OTHER_GPU = make_device(pdi=b"\x03" * 8)


def only(claims):
    (device,) = claims.devices
    return device


def test_a_genuine_report_is_told_in_full():
    device = only(verify_files())
    assert (device.kind, device.architecture, device.product) == ("gpu", "HOPPER", "GH100")
    assert (device.board, device.driver_version, device.vbios_version) == (
        "1010_0200_882",
        DRIVER_VERSION,
        VBIOS_VERSION,
    )
    assert (device.pdi, device.firmware_id, device.firmware_id_reported) == (b"\x01" * 8, FIRMWARE, True)
    assert (device.measurements, device.mode, device.protected_pcie, device.locked) == (40, "spt", False, None)
    assert (device.manifests, device.revocation, device.nonce, device.state) == ((), "unknown", NONCE, None)
    assert device.manifest_ids == ("NV_GPU_DRIVER_GH100_550.90.07", "NV_GPU_VBIOS_1010_0200_882_96009F0001")


def test_claims_can_be_written_as_json():
    claims = verify_files(endorsements=[DRIVER_RIM, VBIOS_RIM])
    canonical.encode(record.to_json(claims))


def test_a_switch_is_told_in_full():
    device = only(verify_files(switch_report(SWITCH), [SWITCH_RIM], device=SWITCH))
    assert (device.kind, device.architecture, device.product, device.board) == ("switch", "LS10", "LS10", "")
    assert (device.driver_version, device.vbios_version, device.locked) == ("", "96.10.55.00.01", True)
    assert device.linked == (b"\x01" * 8,)
    assert device.manifest_ids == ("NV_SWITCH_BIOS_5612_0002_890_9610550001",)
    assert device.manifests[0].matched == 3


def test_blackwell_has_its_firmware_id_in_another_extension():
    device = make_device("GB100", dice=lambda _: {TCB_INFO: tcb_info(flags=b"\x00\x90\x00\x00\x01")})
    found = only(verify_files(make_report(device), device=device))
    assert (found.architecture, found.firmware_id) == ("BLACKWELL", FIRMWARE)
    assert found.operational_flags == ("not-configured", "debug")
    assert found.manifest_ids[0] == "NV_GPU_CC_DRIVER_GB100_550.90.07"
    named = only(verify_files(make_report(device, fields={35: b"GB20X\x00"}), device=device))
    assert named.manifest_ids == ("NV_GPU_CC_DRIVER_GB20X_550.90.07", "NV_GPU_VBIOS_1010_0200_882_96009F0001")


def test_older_drivers_do_not_report_the_firmware_id():
    device = only(verify_files(make_report(GPU, fields={20: None, 21: None, 34: None, 36: None})))
    assert (device.firmware_id, device.firmware_id_reported) == (FIRMWARE, False)


@pytest.mark.parametrize("later", [21, 34, 36, 250])
def test_a_driver_that_tells_later_fields_tells_the_firmware_id_too(later):
    fields = {20: None, 21: None, 34: None, 36: None} | {later: {21: b"\x55", 34: b"\x01\x00"}.get(later, b"\x01\x00")}
    with pytest.raises(MissingClaimError):
        verify_files(make_report(GPU, fields=fields))


def test_the_nonce_is_unchecked_only_where_there_is_none():
    assert verify_files(nonce=None) == verify_files(nonce=NONCE)
    with pytest.raises(NonceError):
        verify_files(nonce=b"\x00" * 32)
    with pytest.raises(NonceError):
        verify_files(nonce=NONCE[:16])


def test_no_device_signs_a_callers_data():
    with pytest.raises(BindingMismatchError):
        verify_files(report_data=bytes(64))


FORMS = {
    "binary": REPORT,
    "hexadecimal": REPORT.hex().encode(),
    "hexadecimal with a line break": REPORT.hex().upper().encode() + b"\n",
    "with the one zero byte that a driver adds": REPORT + b"\x00",
}


@pytest.mark.parametrize("evidence", FORMS.values(), ids=FORMS.keys())
def test_a_report_is_read(evidence):
    assert verify_files(evidence) == verify_files(REPORT)


def entry(device=GPU, report=None, **changes):
    fields = {
        "arch": "HOPPER",
        "nonce": NONCE.hex(),
        "evidence": base64.b64encode(make_report(device) if report is None else report).decode(),
        "certificate": base64.b64encode(device.pem).decode(),
        "driver_version": "told by the tool and not believed",
    } | changes
    return {name: value for name, value in fields.items() if value is not None}


def listed(*entries):
    return json.dumps(list(entries)).encode()


def test_a_list_of_devices_is_read_with_its_chains():
    switch = entry(SWITCH, switch_report(SWITCH), arch="LS10")
    claims = verify_files(listed(entry(), entry(OTHER_GPU), switch), device=None)
    assert [device.pdi[0] for device in claims.devices] == [1, 3, 2]
    assert (len(claims.gpus), len(claims.switches)) == (2, 1)
    wrapped = json.dumps({"evidences": [entry()], "result_code": 0}).encode()
    assert only(verify_files(b"\n" + wrapped, device=None)).pdi == b"\x01" * 8


FILES = {
    "no chain": (lambda: verify_files(device=None), MissingEndorsementError),
    "two chains": (lambda: verify_files(endorsements=[GPU.pem]), EndorsementFormatError),
    "a chain beside a list": (lambda: verify_files(listed(entry())), EndorsementFormatError),
    "an endorsement of another kind": (lambda: verify_files(endorsements=[b"{}"]), EndorsementFormatError),
    "a certificate in DER": (lambda: verify_files(endorsements=[GPU.chain[0]]), EndorsementFormatError),
    "too many endorsements": (
        lambda: verify_files(endorsements=[b"<%d" % n for n in range(300)]),
        EndorsementFormatError,
    ),
    "a manifest that is none": (lambda: verify_files(endorsements=[b"<x/>"]), ReferenceManifestError),
    "a report that is neither": (lambda: verify_files(b"\x12" + REPORT[1:]), EvidenceFormatError),
    "an odd digit": (lambda: verify_files(REPORT.hex().encode()[:-1]), EvidenceFormatError),
    "hexadecimal text above its bound": (lambda: verify_files(b"00" * 20_000), EvidenceFormatError),
    "a file above its bound": (lambda: verify_files(b" " * 2_000_000), EvidenceSizeError),
    "bytes after the report": (lambda: verify_files(REPORT + b"\x00\x00"), TrailingBytesError),
    "nothing": (lambda: verify_files(b""), EvidenceFormatError),
    "no roots": (lambda: verify_files(anchors=()), TrustAnchorError),
    "a root that is no certificate": (lambda: verify_files(anchors=(b"x",)), EndorsementFormatError),
}


@pytest.mark.parametrize(("attempt", "error"), FILES.values(), ids=FILES.keys())
def test_files_are_refused_with(attempt, error):
    with pytest.raises(error) as caught:
        attempt()
    assert caught.type is error


LISTS = {
    "something that is no JSON": (b"[", EvidenceFormatError),
    "JSON that is too deep": (b"[" * 100_000, EvidenceFormatError),
    "an empty list": (b"[]", EvidenceFormatError),
    "another object": (b"{}", EvidenceFormatError),
    "an entry that is none": (b"[1]", EvidenceFormatError),
    "too many devices": (listed(*[entry()] * 17), EvidenceSizeError),
    "a key twice": (b'[{"arch":"HOPPER","arch":"HOPPER"}]', EvidenceFormatError),
    "no architecture": (listed(entry(arch=None)), EvidenceFormatError),
    "an architecture of another type": (listed(entry(arch=1)), EvidenceFormatError),
    "another architecture": (listed(entry(arch="BLACKWELL")), EvidenceFormatError),
    "no nonce": (listed(entry(nonce=None)), EvidenceFormatError),
    "a nonce that is none": (listed(entry(nonce="x")), EvidenceFormatError),
    "another nonce than the report's": (listed(entry(nonce="00" * 32)), NonceError),
    "a report that is no base64": (listed(entry(evidence="!")), EvidenceFormatError),
    "no report": (listed(entry(evidence=None)), EvidenceFormatError),
    "no chain": (listed(entry(certificate=None)), EvidenceFormatError),
    "a chain that is no PEM": (listed(entry(certificate="AAAA")), EndorsementFormatError),
    "a device twice": (listed(entry(), entry()), DuplicateDeviceError),
}


@pytest.mark.parametrize(("evidence", "error"), LISTS.values(), ids=LISTS.keys())
def test_a_list_is_refused_with(evidence, error):
    with pytest.raises(error) as caught:
        verify_files(evidence, device=None)
    assert caught.type is error


def with_chain(*positions):
    return dataclasses.replace(GPU, chain=tuple(GPU.chain[position] for position in positions))


def dice(extensions):
    return make_device(dice=extensions)


def composite_with(value):
    return dice(lambda device_key: {COMPOSITE: value(device_key)})


def tcb_with(value):
    return dice(lambda _: {TCB_INFO: value})


OTHER_FAMILY = issue("TEST GH100 Identity", by=OTHER_ROOT, private=key("another family"))
OTHER_PROVISIONER = issue("TEST GH100 Provisioner", by=OTHER_FAMILY)
BELOW_ROOT = issue("TEST Extra Identity", by=DEVICE_ROOT)
FAMILY_BELOW = issue("TEST GH100 Identity", by=BELOW_ROOT, private=key("a family one level down"))
LONG = der(0x80, b"N" * 200) + der(0xA6, fwid())
CHAINS = {
    "only the root": (with_chain(4), CertificateChainError),
    "the leaf left out": (with_chain(1, 2, 3, 4), CertificateChainError),
    "the root left out": (with_chain(0, 1, 2, 3), CertificateChainError),
    "five certificates below the root": (
        make_device(root=BELOW_ROOT, family=FAMILY_BELOW, provisioner=issue("TEST GH100 Provisioner", by=FAMILY_BELOW)),
        TrustAnchorError,
    ),
    "a certificate more": (with_chain(0, 0, 1, 2, 3, 4), CertificateChainError),
    "another order": (with_chain(0, 1, 3, 2, 4), CertificateChainError),
    "the leaf at the end": (with_chain(4, 3, 2, 1, 0), CertificateChainError),
    "another root, the rest as it is": (
        dataclasses.replace(GPU, chain=(*GPU.chain[:4], OTHER_ROOT.der)),
        CertificateChainError,
    ),
    "a root that is not pinned": (
        make_device(root=OTHER_ROOT, family=OTHER_FAMILY, provisioner=OTHER_PROVISIONER),
        TrustAnchorError,
    ),
    "an authority that nobody issued": (
        make_device(provisioner=issue("TEST GH100 Provisioner", by=OTHER_FAMILY, private=key("stranger"))),
        CertificateChainError,
    ),
    "the root for manifests": (
        make_device(root=MANIFEST_ROOT, family=(f := issue("F", by=MANIFEST_ROOT)), provisioner=issue("P", by=f)),
        TrustAnchorError,
    ),
    "a leaf that is an authority": (make_device(ca=True), CertificateChainError),
    "a leaf that does not sign": (make_device(signs=False), CertificateChainError),
    "a leaf on another curve": (make_device(private=ec.generate_private_key(ec.SECP256R1())), AlgorithmError),
    "a leaf that is an authority and signs": (make_device(ca=True, both=True), CertificateChainError),
    "a leaf of another product": (make_device(leaf_name="GB100 A01 FMC"), CertificateChainError),
    "a leaf whose name is blank": (make_device(leaf_name=" "), CertificateChainError),
    "a product that is not known": (make_device("GR100"), EvidenceVersionError),
    "a leaf that has expired": (make_device(end=NOW - DAY), CertificateValidityError),
    "a leaf that is not valid yet": (make_device(start=NOW + DAY), CertificateValidityError),
    "an authority that has expired": (
        make_device(provisioner=issue("TEST GH100 Provisioner", by=FAMILY, end=NOW - DAY)),
        CertificateValidityError,
    ),
    "no DICE extension": (dice(lambda _: {}), MissingClaimError),
    "two DICE extensions": (
        dice(lambda device_key: {COMPOSITE: composite(device_key), TCB_INFO: tcb_info()}),
        MissingClaimError,
    ),
    "a firmware id for another device": (composite_with(lambda _: composite(key("stranger"))), KeyBindingError),
    "another firmware id than the report's": (
        composite_with(lambda device_key: composite(device_key, digest=bytes(48))),
        EndorsementMismatchError,
    ),
    "another version of CompositeDeviceID": (
        composite_with(lambda device_key: composite(device_key, version=b"\x02")),
        EndorsementFormatError,
    ),
    "a version of CompositeDeviceID that is no number": (
        composite_with(lambda device_key: composite(device_key).replace(b"\x02\x01\x01", b"\x04\x01\x01", 1)),
        EndorsementFormatError,
    ),
    "a set where there is a sequence": (tcb_with(b"\x31" + tcb_info()[1:]), EndorsementFormatError),
    "a firmware id of another hash": (
        tcb_with(der(0x30, der(0xA6, fwid(algorithm=b"\x2b\x01")))),
        EndorsementFormatError,
    ),
    "a firmware id of another size": (tcb_with(der(0x30, der(0xA6, fwid(bytes(32))))), EndorsementFormatError),
    "a firmware id that is no sequence": (tcb_with(der(0x30, der(0xA6, der(0x04, FIRMWARE)))), EndorsementFormatError),
    "no firmware ids": (tcb_with(der(0x30, der(0x80, b"N"))), MissingClaimError),
    "an empty list of firmware ids": (tcb_with(der(0x30, der(0xA6, b""))), MissingClaimError),
    "flags that are no bit string": (tcb_with(tcb_info(flags=b"\x00")), EndorsementFormatError),
    "flags with nine unused bits": (tcb_with(tcb_info(flags=b"\x09\x00")), EndorsementFormatError),
    "a field of DiceTcbInfo twice": (
        tcb_with(der(0x30, der(0xA6, fwid()) + der(0xA6, fwid(bytes(48))))),
        EndorsementFormatError,
    ),
    "bytes after DiceTcbInfo": (tcb_with(tcb_info() + b"\x00\x00"), EndorsementFormatError),
    "DiceTcbInfo cut short": (tcb_with(tcb_info()[:-1]), EndorsementFormatError),
    "a length in another form than DER's": (
        tcb_with(b"\x30\x81\x05" + der(0x80, b"NVI")),
        EndorsementFormatError,
    ),
    "a length of no definite size": (tcb_with(b"\x30\x80\x00\x00"), EndorsementFormatError),
    "a length of three bytes": (
        tcb_with(b"\x30\x83" + len(LONG).to_bytes(2) + b"\x00" + LONG),
        EndorsementFormatError,
    ),
    "half a head": (tcb_with(b"\x30"), EndorsementFormatError),
    "something else than a sequence": (tcb_with(der(0x04, b"x")), EndorsementFormatError),
}


@pytest.mark.parametrize(("device", "error"), CHAINS.values(), ids=CHAINS.keys())
def test_a_device_is_refused_because_of(device, error):
    # A chain of another length is refused before its leaf is looked at; the signature fits every other one.
    signed = REPORT if device.key.curve.key_size != 384 else make_report(device)
    with pytest.raises(error) as caught:
        verify_files(signed, device=device)
    assert caught.type is error


def test_time_is_compared_also_where_the_chain_is_known():
    assert verify_files()
    for now in (NOW + 30 * DAY + DAY, NOW - 31 * DAY):
        with pytest.raises(CertificateValidityError):
            verify_files(now=now)
    assert verify_files(now=NOW + 30 * DAY)


def test_a_report_of_another_device_is_refused():
    with pytest.raises(EvidenceSignatureError):
        verify_files(make_report(OTHER_GPU))


def test_a_switchs_chain_must_be_of_the_switch_that_reports():
    other = make_device("LS_10", pdi=b"\x05" * 8)
    assert verify_files(switch_report(other, fields={22: b"\x05" * 8}), device=other)
    with pytest.raises(EndorsementMismatchError):
        verify_files(switch_report(other), device=other)


def test_every_byte_of_a_report_counts():
    signed = len(REPORT) - 96
    # All of the head; of the many measurements each is met; all fields of the opaque data; the signature.
    met = {*range(60), *range(60, signed, 11), *range(signed - 160, signed, 2), *range(signed, len(REPORT), 5)}
    for position in sorted(met):
        changed = bytearray(REPORT)
        changed[position] ^= 1
        with pytest.raises(AttestationError) as caught:
            verify_files(bytes(changed))
        if position >= signed or 4 <= position < 36:
            assert caught.type is EvidenceSignatureError


MISSING = {
    "the driver's version": (3, MissingClaimError),
    "the VBIOS's version": (6, MissingClaimError),
    "the project": (17, MissingClaimError),
}


@pytest.mark.parametrize(("number", "error"), MISSING.values(), ids=MISSING.keys())
def test_a_gpu_that_does_not_say(number, error):
    with pytest.raises(error):
        verify_files(make_report(GPU, fields={number: None}))


def manifests(*endorsements, evidence=REPORT, **changes):
    return only(verify_files(evidence, endorsements, **changes)).manifests


def test_manifests_are_compared_with_the_report():
    driver, vbios = manifests(VBIOS_RIM, DRIVER_RIM)
    assert (driver.kind, driver.version, driver.golden, driver.matched, driver.zeros) == (
        "driver",
        DRIVER_VERSION,
        3,
        3,
        0,
    )
    assert (vbios.kind, vbios.version, vbios.golden, vbios.matched, vbios.zeros) == ("vbios", VBIOS_VERSION, 4, 4, 1)
    assert driver.mismatched == vbios.mismatched == ()


def test_a_mismatch_is_told_and_left_to_appraisal():
    blocks = tuple(
        block(index, bytes(48) if index in {21, 22} else value) for index, value in sorted(MEASUREMENTS.items())
    )
    (driver,) = manifests(DRIVER_RIM, evidence=make_report(GPU, blocks=blocks))
    assert (driver.matched, driver.mismatched) == (1, (20, 21))


@pytest.mark.parametrize(("status", "skipped"), [(b"\x55", (35,)), (b"\xaa", ()), (None, ())])
def test_measurement_35_counts_unless_its_decoder_is_off(status, skipped):
    rim = make_manifest([*golden(20), resource(35, [b"\x11" * 48])])
    (driver,) = manifests(rim, evidence=make_report(GPU, fields={11: status}))
    assert driver.skipped == skipped
    assert driver.mismatched == (() if skipped else (35,))


def test_a_switch_has_no_decoder_that_could_be_off():
    rim = make_manifest([resource(35, [b"\x11" * 48])], version="96.10.55.00.01", edition="SWITCH", product="LS10")
    report = switch_report(SWITCH, fields={11: b"\x55"})
    assert manifests(rim, evidence=report, device=SWITCH)[0].mismatched == (35,)


def test_of_several_manifests_for_a_version_the_one_that_fits_counts():
    other = make_manifest([resource(20, [b"\x11" * 48]), *golden(21)])
    (driver,) = manifests(other, DRIVER_RIM)
    assert driver.mismatched == ()
    assert driver == manifests(DRIVER_RIM, DRIVER_RIM, other)[0]


ENDORSEMENTS = {
    "a driver manifest of another version": (
        [make_manifest(version="550.90.08")],
        EndorsementMismatchError,
    ),
    "a VBIOS manifest of another version": (
        [make_manifest(version="96.00.9F.00.02")],
        EndorsementMismatchError,
    ),
    "a driver manifest of another product": ([make_manifest(product="GB100")], EndorsementMismatchError),
    "a manifest of a product that is not known": ([make_manifest(product="XX100")], EndorsementMismatchError),
    "a driver and a VBIOS manifest about one measurement": (
        [DRIVER_RIM, make_manifest(golden(1, 20), version=VBIOS_VERSION)],
        ReferenceManifestError,
    ),
    "a manifest that has expired": (
        [make_manifest(signer=make_signer(end=NOW - DAY))],
        CertificateValidityError,
    ),
    "a manifest of another root": ([make_manifest(signer=make_signer(root=OTHER_ROOT))], TrustAnchorError),
    "a manifest under the root for devices": ([make_manifest(signer=make_signer(root=DEVICE_ROOT))], TrustAnchorError),
    "a manifest that was tampered with": ([DRIVER_RIM.replace(b'"True"', b'"False"', 1)], ReferenceManifestError),
    "a device's certificate that is revoked": (responses(GPU.authorities[1:], status=REVOKED), RevokedError),
    "an authority that is revoked": ([make_response(FAMILY, DEVICE_ROOT, status=REVOKED)], RevokedError),
    "a manifest's signer that is revoked": (
        [DRIVER_RIM, *responses(SIGNER.path[:2], status=REVOKED)],
        RevokedError,
    ),
    "a response past its time": (responses(GPU.authorities[1:], end=NOW - DAY / 2), StaleEndorsementError),
    "a good response beside one that says revoked": (
        [*responses(GPU.authorities[1:]), *responses(GPU.authorities[1:], status=REVOKED)],
        RevokedError,
    ),
    "a response that is none": ([b"\x30\x03\x0a\x01\x00"], EndorsementFormatError),
}


@pytest.mark.parametrize(("endorsements", "error"), ENDORSEMENTS.values(), ids=ENDORSEMENTS.keys())
def test_a_device_is_refused_with(endorsements, error):
    with pytest.raises(error) as caught:
        verify_files(endorsements=endorsements)
    assert caught.type is error


def test_a_manifest_is_needed_by_nobody_but_its_own_kind():
    found = manifests(DRIVER_RIM, SWITCH_RIM)
    assert [manifest.kind for manifest in found] == ["driver"]


def revocation(*endorsements):
    return only(verify_files(endorsements=endorsements)).revocation


def test_revocation_is_good_only_where_every_issuer_says_so():
    path = GPU.authorities[1:]
    assert revocation(*responses(path)) == "good"
    assert revocation(*responses(path)[1:]) == "unknown"
    assert revocation(*responses(path)[:-1]) == "unknown"
    assert revocation(*responses(path)[:2], make_response(FAMILY, DEVICE_ROOT, status=x509_ocsp.OCSPCertStatus.UNKNOWN)) == "unknown"  # fmt: skip
    # Nobody speaks of the leaf, which the device makes itself; what somebody says of it is not asked.
    assert revocation(*responses(path), make_response(GPU.authorities[0], path[0], status=REVOKED)) == "good"


def test_a_hold_outweighs_what_is_good_and_does_not_hide_what_is_not_known():
    held = make_response(PROVISIONER, FAMILY, **HOLD)
    assert revocation(held, *responses(GPU.authorities[1:])) == "hold"
    assert revocation(held) == "hold-unknown"


def test_a_root_for_manifests_is_told_by_a_word_of_its_name():
    primary = issue("TEST PRIMARY Identity CA")
    family = issue("TEST GH100 Identity", by=primary, private=key("a family under the primary root"))
    device = make_device(root=primary, family=family, provisioner=issue("TEST GH100 Provisioner", by=family))
    assert verify_files(make_report(device), device=device, anchors=(primary.der,))


def test_the_revocation_of_a_manifests_signer_is_told_with_the_manifest():
    assert manifests(DRIVER_RIM)[0].revocation == "unknown"
    assert manifests(DRIVER_RIM, *responses(SIGNER.path))[0].revocation == "good"
    assert manifests(DRIVER_RIM, *responses(SIGNER.path, **HOLD))[0].revocation == "hold"


def test_pinned_roots_are_nvidias_two():
    subjects = [x509.load_der_x509_certificate(root).subject.rfc4514_string() for root in nvidia_gpu.pinned_roots()]
    assert subjects == ["O=NVIDIA,CN=NVIDIA Device Identity CA", "CN=NVIDIA CoRIM signing Root CA,O=NVIDIA,C=US"]
    with pytest.raises(TrustAnchorError):
        verify_files(anchors=None)


def test_an_envelopes_devices_are_verified_together():
    records = [make_record(), make_record(OTHER_GPU), make_record(SWITCH, switch_report(SWITCH), kind="switch")]
    claims = verify_devices(records, endorsements=[SWITCH_RIM, DRIVER_RIM, b"{}", OTHER_ROOT.der, b"for the CPU's TEE"])
    assert [device.kind for device in claims.devices] == ["gpu", "gpu", "switch"]
    assert [device.state for device in claims.devices] == [STATE, STATE, None]
    assert [len(device.manifests) for device in claims.devices] == [1, 1, 1]
    driver = nvidia_gpu.NvidiaGpuVerifier()
    assert driver.PROFILE == "nvidia-gpu/1"
    now_ms = int(NOW.timestamp() * 1000)
    same = driver.verify(records, endorsements=[SWITCH_RIM, DRIVER_RIM], nonce=NONCE, now_ms=now_ms, anchors=ANCHORS)
    assert same == claims


ANOTHER_LEAF = make_device(pdi=b"\x01" * 8, private=key("another leaf of the first device"))
DEVICES = {
    "no device": ([], EvidenceSizeError),
    "seventeen devices": ([make_record()] * 17, EvidenceSizeError),
    "one record twice": ([make_record()] * 2, DuplicateDeviceError),
    "one device with two reports": ([make_record(), make_record()], DuplicateDeviceError),
    "one device with two keys": ([make_record(), make_record(ANOTHER_LEAF)], DuplicateDeviceError),
    "a device with another nonce among others": (
        [make_record(), make_record(OTHER_GPU, make_report(OTHER_GPU, nonce=bytes(32)))],
        NonceError,
    ),
    "a GPU that says it is a switch": ([make_record(kind="switch")], EvidenceFormatError),
    "a switch that says it is a GPU": ([make_record(SWITCH, switch_report(SWITCH))], EvidenceFormatError),
}


@pytest.mark.parametrize(("records", "error"), DEVICES.values(), ids=DEVICES.keys())
def test_devices_are_refused_with(records, error):
    with pytest.raises(error) as caught:
        verify_devices(records)
    assert caught.type is error


COPIES = {
    "device report": [make_record()] * 2,
    "device key": [make_record(), make_record(make_device(pdi=b"\x09" * 8, private=GPU.key))],
    "device identity (PDI)": [make_record(), make_record(ANOTHER_LEAF)],
}


@pytest.mark.parametrize(("field", "records"), COPIES.items(), ids=COPIES.keys())
def test_two_records_with_one_name_are_one_device(field, records):
    with pytest.raises(DuplicateDeviceError) as caught:
        verify_devices(records)
    assert caught.value.field == field


def test_a_record_has_one_spelling():
    data = make_record()
    found = decode_record(data)
    assert encode_record(kind="gpu", report=found.report, chain=found.chain, state=STATE) == data


def edited(**changes):
    value = json.loads(make_record()) | changes
    return canonical.encode({name: field for name, field in value.items() if field is not Ellipsis})


RECORDS = {
    "another kind": (edited(kind="amd-gpu"), EvidenceFormatError),
    "a GPU without NVML's modes": (edited(state=None), EvidenceFormatError),
    "a switch with NVML's modes": (edited(kind="nvidia-switch"), EvidenceFormatError),
    "a mode that is no word of ours": (
        edited(state=record.to_json(STATE) | {"devtools": "maybe"}),
        EvidenceFormatError,
    ),
    "a mode missing": (edited(state={"devtools": "off"}), EvidenceFormatError),
    "four certificates": (edited(chain=json.loads(make_record())["chain"][:4]), CertificateChainError),
    "a certificate that is no base64": (edited(chain=["!"] * 5), EvidenceFormatError),
    "a report that is no base64": (edited(report="!"), EvidenceFormatError),
    "a field missing": (edited(report=...), EvidenceFormatError),
    "a field more": (edited(more=1), EvidenceFormatError),
    "another spelling": (make_record() + b"\n", EvidenceFormatError),
    "another type": (b"[]", EvidenceFormatError),
    "more than its bound": (edited(report="A" * 100_000), EvidenceFormatError),
}


@pytest.mark.parametrize(("data", "error"), RECORDS.values(), ids=RECORDS.keys())
def test_a_record_is_refused_with(data, error):
    with pytest.raises(error) as caught:
        verify_devices([data])
    assert caught.type is error


@pytest.mark.parametrize("name", ["confidential_compute", "devtools", "environment", "multi_gpu"])
def test_a_state_has_known_words_only(name):
    with pytest.raises(EvidenceFormatError):
        NvidiaState(**(record.to_json(STATE) | {name: "other"}))


GOOD = responses(GPU.authorities[1:])


@given(st.data())
@settings(max_examples=300)
def test_whatever_is_changed_nothing_but_an_attestation_error_is_raised(data):
    parts = [REPORT, GPU.pem, DRIVER_RIM, GOOD[0]]
    chosen = data.draw(st.integers(0, 3))
    changed = bytearray(parts[chosen])
    position = data.draw(st.integers(0, len(changed) - 1))
    changed[position : position + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
    parts[chosen] = bytes(changed)
    with contextlib.suppress(AttestationError):
        verify_files(parts[0], parts[1:], device=None)
