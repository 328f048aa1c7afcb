"""A real TPM, in software: enrolled, configured, quoted, verified; and refused wherever something is not its own."""

import dataclasses
import datetime
import importlib
import shutil
import sys
from types import SimpleNamespace

import pytest
from attestation_world import BINDING, EXPECTED
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from gcp_world import ak_certificate
from swtpm_world import manufacture, missing, needs_swtpm, running
from tpm_world import Authority, spki

from confed.attestation.attesters.tpm import TpmAttester, activate_credential, enrolment_request
from confed.attestation.attesters.tpm_device import TpmDevice, _endorsement_session, _primary, certificate_in
from confed.attestation.certificates import load_certificate
from confed.attestation.evidence import Expectation
from confed.attestation.tee.credential import make_credential
from confed.attestation.tee.gcp_tpm import GcpTpmVerifier
from confed.attestation.tee.tpm import TpmVerifier, verify_files
from confed.attestation.tee.tpm_enrolment import begin_enrolment, finish_enrolment
from confed.attestation.tee.tpm_evidence import TpmEvidence, configuration_value, measurement_of
from confed.attestation.tee.tpm_structures import parse_public, parse_quote
from confed.attestation.verifier import Registry
from confed.errors import (
    AttestationError,
    ConfigError,
    EndorsementMismatchError,
    EvidenceFormatError,
    EvidenceSignatureError,
    EvidenceUnavailableError,
    KeyBindingError,
    NonceError,
    PcrDigestError,
    SessionError,
    TrustAnchorError,
)

MANIFEST = BINDING.manifest
SELECTION = (0, 4, 7, 11, 15)
TPM_BINDING = dataclasses.replace(BINDING, profile="tpm/1")
AUTHORITY = Ed25519PrivateKey.generate()


@pytest.mark.parametrize(
    "tcti", ["", "swtpm", "device", "device:", "cmd:tpm2_send", "/dev/tpmrm0", "device:/dev/tpm rm0", "swtpm:\n"]
)
def test_a_tpm_is_named_in_full(tcti):
    with pytest.raises(ConfigError):
        TpmDevice(tcti)
    with pytest.raises(ConfigError):
        enrolment_request(tcti)


@pytest.mark.parametrize("selection", [(), (0, 7), (15, 15), (15, 24), (-1, 15)])
def test_a_selection_has_the_configuration_and_no_register_twice(selection):
    with pytest.raises(ConfigError):
        TpmAttester(TpmDevice("device:/dev/none"), profile="tpm/1", selection=selection, certificates={})


def test_google_has_two_keys():
    with pytest.raises(ConfigError):
        TpmAttester.google("device:/dev/none", algorithm="dsa", selection=SELECTION)


@pytest.mark.parametrize("stored", [b"", b"\x30\x82", b"\x30\x82\x01\x00", b"\xff" * 100, b"\x30\x81\x05aaaaa"])
def test_a_certificate_is_found_in_its_area_or_not_at_all(stored):
    with pytest.raises(EvidenceUnavailableError):
        certificate_in(stored)


def test_an_area_may_be_larger_than_its_certificate():
    assert certificate_in(b"\x30\x82\x00\x02ab" + b"\xff" * 10) == b"\x30\x82\x00\x02ab"


def test_a_tpm_that_is_not_there_gives_no_evidence():
    pytest.importorskip("tpm2_pytss", reason="tpm2-pytss is not installed")
    with pytest.raises(EvidenceUnavailableError):
        enrolment_request("device:/dev/no-such-tpm")


def test_without_its_library_there_is_no_tpm(monkeypatch):
    monkeypatch.setitem(sys.modules, "tpm2_pytss", None)
    with pytest.raises(EvidenceUnavailableError):
        TpmDevice("device:/dev/tpmrm0").attestation_key()


# With two TPMs of one authority.


@pytest.fixture(scope="module")
def tpms(tmp_path_factory):
    pytest.importorskip("tpm2_pytss", reason="tpm2-pytss is not installed: no software TPM can be asked")
    if missing():
        pytest.skip(f"no software TPM here: {missing()} not installed")
    folder = tmp_path_factory.mktemp("swtpm")
    states = [manufacture(folder, name) for name in ("one", "two")]
    authority = folder / "authority"
    with running(states[0]) as one, running(states[1]) as two:
        yield SimpleNamespace(
            one=one,
            two=two,
            state=states[0],
            issuer=(authority / "issuercert.pem").read_bytes(),
            root=(authority / "swtpm-localca-rootca-cert.pem").read_bytes(),
        )


def enrolled(tpms, tcti):
    """Go the whole way: what the TPM says of itself, the verifier's challenge, the answer, the enrolment."""
    request = enrolment_request(tcti)
    credential, pending = begun(tpms, request)
    answer = activate_credential(tcti, credential)
    return finish_enrolment(pending, answer, authority=AUTHORITY, now_ms=now_ms(), lifetime_s=3600)


def begun(tpms, request, **changes):
    options = {
        "attestation_key": request.attestation_key,
        "endorsement_key": request.endorsement_key,
        "certificate": load_certificate(request.certificate, what="EK"),
        "intermediates": (load_certificate(tpms.issuer, what="issuer"),),
        "anchors": (load_certificate(tpms.root, what="root"),),
        "now": now(),
    } | changes
    return begin_enrolment(**options)


def now():
    """The time by which swtpm's authority dates its certificates: this machine's."""
    return datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=1)


def now_ms():
    return int(now().timestamp() * 1000)


def anchors(tpms):
    return (load_certificate(tpms.root, what="root").der, spki(AUTHORITY))


@pytest.fixture(scope="module")
def attester(tpms):
    issuer = load_certificate(tpms.issuer, what="issuer").der
    found = TpmAttester.own(tpms.one, enrolment=enrolled(tpms, tpms.one), selection=SELECTION, intermediates=(issuer,))
    found.configure(MANIFEST)
    return found


def verified(tpms, envelope):
    return TpmVerifier().verify(envelope, endorsements=(), now_ms=now_ms(), anchors=anchors(tpms))


@needs_swtpm
def test_a_tpm_is_enrolled_quoted_and_verified(tpms, attester):
    envelope = attester.attest(TPM_BINDING)
    claims = Registry((TpmVerifier(),)).verify(
        envelope.encode(), expected=EXPECTED, now_ms=now_ms(), anchors={attester.profile: anchors(tpms)}
    )
    assert (claims.evidence_class, claims.hardware_rooted) == ("software-tpm", False)
    assert claims.configuration == MANIFEST
    assert claims.measurement == measurement_of(TpmEvidence.decode(envelope.evidence).pcrs)
    assert claims.details.rooted_by == "enrolment"
    assert claims.details.endorsement_key.manufacturer == "id:00001014"
    assert [register.number for register in claims.details.registers] == list(SELECTION)


@needs_swtpm
def test_the_evidence_is_read_from_a_file_too(tpms, attester):
    envelope = attester.attest(TPM_BINDING)
    authority = AUTHORITY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    claims = verify_files(
        envelope.evidence,
        (authority, tpms.issuer, tpms.root),
        expectation=Expectation(nonce=None, report_data=None),
        now=now(),
        anchors=None,
    )
    assert claims.endorsement_key is not None
    assert claims.endorsement_key.activated is True


@needs_swtpm
def test_an_attestation_key_is_the_same_after_a_restart(tpms, attester, tmp_path):
    before = enrolment_request(tpms.one)
    copy = tmp_path / "copy"
    shutil.copytree(tpms.state, copy, ignore=shutil.ignore_patterns(".lock"))
    with running(copy) as again:
        assert enrolment_request(again) == before
        assert TpmDevice(again).registers((15,)) == {15: bytes(32)}


@needs_swtpm
def test_the_manifest_is_configured_once(tpms, attester):
    device = TpmDevice(tpms.one)
    attester.configure(MANIFEST)
    assert device.registers((15,))[15] == configuration_value(bytes.fromhex(MANIFEST))
    with pytest.raises(EvidenceUnavailableError):
        attester.configure("4d" * 32)
    with pytest.raises(EvidenceFormatError):
        attester.configure("manifest")
    with pytest.raises(SessionError):
        attester.attest(dataclasses.replace(TPM_BINDING, manifest="4d" * 32))
    with pytest.raises(EvidenceFormatError):
        attester.attest(BINDING)


def tampered(envelope, **changes):
    found = TpmEvidence.decode(envelope.evidence)
    return dataclasses.replace(envelope, evidence=dataclasses.replace(found, **changes).encode())


@needs_swtpm
def test_a_real_quote_is_refused_when_anything_is_tampered_with(tpms, attester):
    envelope = attester.attest(TPM_BINDING)
    found = TpmEvidence.decode(envelope.evidence)
    verified(tpms, envelope)
    for name in ("quote", "signature", "ak_public", "ek_certificate", "enrolment"):
        original = getattr(found, name)
        for position in range(0, len(original), 7):
            changed = bytearray(original)
            changed[position] ^= 1
            with pytest.raises(AttestationError):
                verified(tpms, tampered(envelope, **{name: bytes(changed)}))
        for cut in (original[:-1], original + b"\x00"):
            with pytest.raises(AttestationError):
                verified(tpms, tampered(envelope, **{name: cut}))
    for number in SELECTION:
        with pytest.raises(PcrDigestError):
            verified(tpms, tampered(envelope, pcrs=found.pcrs | {number: b"x" * 32}))


@needs_swtpm
def test_a_quote_answers_no_other_binding(tpms, attester):
    envelope = attester.attest(TPM_BINDING)
    other = dataclasses.replace(TPM_BINDING, nonce=b"m" * 32)
    with pytest.raises(NonceError):
        verified(tpms, dataclasses.replace(envelope, binding=other.encoded))


@needs_swtpm
def test_register_16_cannot_stand_for_another(tpms, attester):
    device = TpmDevice(tpms.one)
    device.extend(16, b"good image".ljust(32))
    numbers = (0, 7, 15, 16)
    pcrs = device.registers(numbers)
    message, signature = device.quote(numbers, b"n" * 32)
    evidence = TpmEvidence.decode(attester.attest(TPM_BINDING).evidence)
    confused = {0: pcrs[0], 7: pcrs[7], 11: pcrs[16], 15: pcrs[15]}
    data = dataclasses.replace(evidence, quote=message, signature=signature, pcrs=confused).encode()
    with pytest.raises(PcrDigestError):
        verify_files(data, (), expectation=Expectation(nonce=None, report_data=None), now=now(), anchors=anchors(tpms))


@needs_swtpm
def test_another_tpms_key_certificate_or_enrolment_does_not_fit(tpms, attester):
    envelope = attester.attest(TPM_BINDING)
    theirs = enrolment_request(tpms.two)
    with pytest.raises(EndorsementMismatchError):
        verified(tpms, tampered(envelope, ek_certificate=theirs.certificate))
    with pytest.raises(KeyBindingError):
        verified(tpms, tampered(envelope, enrolment=enrolled(tpms, tpms.two)))
    with pytest.raises(EvidenceSignatureError):
        verified(tpms, tampered(envelope, ak_public=theirs.attestation_key))
    other = TpmAttester.own(tpms.two, enrolment=enrolled(tpms, tpms.one), selection=SELECTION)
    relayed = dataclasses.replace(other.attest(TPM_BINDING), endorsements=envelope.endorsements)
    with pytest.raises(KeyBindingError):
        verified(tpms, relayed)


@needs_swtpm
def test_only_the_tpm_that_was_asked_activates_a_credential(tpms):
    one, two = enrolment_request(tpms.one), enrolment_request(tpms.two)
    credential, _ = begun(tpms, one)
    with pytest.raises(EvidenceUnavailableError):
        activate_credential(tpms.two, credential)
    mixed, _ = begun(tpms, one, attestation_key=two.attestation_key)
    for tcti in (tpms.one, tpms.two):
        with pytest.raises(EvidenceUnavailableError):
            activate_credential(tcti, mixed)
    changed = dataclasses.replace(credential, blob=credential.blob[:-1] + bytes([credential.blob[-1] ^ 1]))
    with pytest.raises(EvidenceUnavailableError):
        activate_credential(tpms.one, changed)
    assert len(activate_credential(tpms.one, credential)) == 32


@needs_swtpm
def test_an_enrolment_needs_the_certificate_of_this_key_under_a_root_that_is_named(tpms):
    one, two = enrolment_request(tpms.one), enrolment_request(tpms.two)
    with pytest.raises(KeyBindingError):
        begun(tpms, one, certificate=load_certificate(two.certificate, what="EK"))
    with pytest.raises(KeyBindingError):
        begun(tpms, one, attestation_key=one.endorsement_key)
    with pytest.raises(TrustAnchorError):
        begun(tpms, one, anchors=())


@needs_swtpm
def test_many_refused_credentials_leave_nothing_loaded(tpms):
    credential, _ = begun(tpms, enrolment_request(tpms.one))
    for _ in range(5):  # a TPM holds three objects and as many sessions
        with pytest.raises(EvidenceUnavailableError):
            activate_credential(tpms.two, credential)
    assert enrolment_request(tpms.two)


@needs_swtpm
def test_an_ecc_endorsement_key_opens_a_credential_too(tpms):
    pytss = importlib.import_module("tpm2_pytss")
    utils = importlib.import_module("tpm2_pytss.utils")
    template = utils.ek_template.lookup("EK-ECC256").template
    device = TpmDevice(tpms.one)
    with (
        device._context() as tpm,
        device._attestation_key(tpm) as (attestation_key, area),
        _primary(tpm, template) as (endorsement_key, public),
        _endorsement_session(tpm) as session,
    ):
        name = parse_public(area.marshal()).name
        made = make_credential(parse_public(public.marshal()), name=name, secret=b"s" * 32)
        blob, _ = pytss.TPM2B_ID_OBJECT.unmarshal(made.blob)
        seed, _ = pytss.TPM2B_ENCRYPTED_SECRET.unmarshal(made.seed)
        opened = tpm.activate_credential(attestation_key, endorsement_key, blob, seed, session2=session)
    assert bytes(opened) == b"s" * 32


def define(tpm, pytss, index, data):
    attributes = pytss.TPMA_NV.OWNERWRITE | pytss.TPMA_NV.OWNERREAD | pytss.TPMA_NV.AUTHREAD | pytss.TPMA_NV.AUTHWRITE
    area = pytss.TPMS_NV_PUBLIC(nvIndex=index, nameAlg=pytss.TPM2_ALG.SHA256, attributes=attributes, dataSize=len(data))
    handle = tpm.nv_define_space(b"", pytss.TPM2B_NV_PUBLIC(nvPublic=area))
    for start in range(0, len(data), 512):
        tpm.nv_write(handle, data[start : start + 512], start)
    tpm.tr_close(handle)


@needs_swtpm
def test_a_key_that_a_cloud_has_certified_attests_as_googles_do(tpms, attester):
    pytss = importlib.import_module("tpm2_pytss")
    public = parse_public(enrolment_request(tpms.two).attestation_key)
    area, _ = pytss.TPMT_PUBLIC.unmarshal(public.encoded)
    area.unique.ecc.x, area.unique.ecc.y = b"", b""
    times = {"since": now() - datetime.timedelta(days=1), "until": now() + datetime.timedelta(days=1)}
    root = Authority("Google root", **times)
    intermediate = Authority("Google intermediate", root, **times)
    certificate = ak_certificate(public.key, intermediate, **times)
    with pytss.ESAPI(tpms.two) as tpm:
        define(tpm, pytss, 0x01C10002, certificate + b"\xff" * 64)
        define(tpm, pytss, 0x01C10003, area.marshal())
    found = TpmAttester.google(tpms.two, algorithm="ecc", selection=SELECTION, intermediates=(intermediate.der,))
    found.configure(MANIFEST)
    envelope = found.attest(dataclasses.replace(BINDING, profile="gcp-tpm/1"))
    claims = Registry((GcpTpmVerifier(),)).verify(
        envelope.encode(), expected=EXPECTED, now_ms=now_ms(), anchors={found.profile: (root.der,)}
    )
    assert claims.configuration == MANIFEST
    assert claims.details.instance.project_id == "hospital"
    with pytest.raises(EvidenceUnavailableError):
        TpmAttester.google(tpms.two, algorithm="rsa", selection=SELECTION)


@needs_swtpm
def test_a_log_that_is_not_there_or_too_long_is_no_evidence(tpms, attester, tmp_path):
    enrolment = enrolled(tpms, tpms.one)
    long = tmp_path / "long"
    long.write_bytes(bytes(1024 * 1024 + 1))
    for path in (tmp_path / "none", long):
        found = TpmAttester.own(tpms.one, enrolment=enrolment, selection=SELECTION, event_log=path)
        with pytest.raises(EvidenceUnavailableError):
            found.attest(TPM_BINDING)


@needs_swtpm
def test_registers_that_change_while_they_are_quoted_are_read_again(tpms, attester):
    class Restless(TpmDevice):
        left = 2

        def quote(self, numbers, nonce):
            if self.left:
                self.left -= 1
                self.extend(11, b"x" * 32)
            return super().quote(numbers, nonce)

    evidence = TpmEvidence.decode(attester.attest(TPM_BINDING).evidence)
    fields = {"ek_certificate": evidence.ek_certificate, "enrolment": evidence.enrolment}
    device = Restless(tpms.one)
    found = TpmAttester(device, profile="tpm/1", selection=SELECTION, certificates=fields)
    again = TpmEvidence.decode(found.attest(TPM_BINDING).evidence)
    assert parse_quote(again.quote).pcr_digest != parse_quote(evidence.quote).pcr_digest
    device.left = 10**6
    with pytest.raises(EvidenceUnavailableError):
        found.attest(TPM_BINDING)
