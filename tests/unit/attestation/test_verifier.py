import base64
import dataclasses
import datetime as dt
import json

import pytest
from attestation_world import (
    BINDING,
    CLAIMS,
    DAY,
    EXPECTED,
    INSTANCE,
    LAYERS,
    MANIFEST,
    MEASUREMENT,
    NOW,
    OTHER_ROOT,
    ROOT,
    attest,
    issue,
    verify,
)
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from confed import canonical
from confed.attestation.evidence import Envelope
from confed.attestation.tee.simulated import PROFILE, SimulatedInstance, SimulatedVerifier
from confed.attestation.verifier import Registry
from confed.errors import (
    AttestationError,
    BindingMismatchError,
    EvidenceFormatError,
    EvidenceSignatureError,
    TrustAnchorError,
    UnknownProfileError,
)
from confed.journey import Role
from confed.wire.channel import TlsIdentity

ENVELOPE = attest()
ENCODED = ENVELOPE.encode()
ROOT_ALONE = {PROFILE: (ROOT.anchor,)}


def test_genuine_evidence_gives_its_claims():
    assert CLAIMS.measurement == MEASUREMENT
    assert CLAIMS.configuration == MANIFEST
    assert CLAIMS.environment == "simulation"
    assert (CLAIMS.debug, CLAIMS.shared) == (False, False)
    assert CLAIMS.binding == BINDING
    assert CLAIMS.layers == LAYERS
    assert CLAIMS.issued_at == NOW
    assert CLAIMS.evidence_digest == canonical.digest(ENCODED)
    assert verify(ENCODED) == CLAIMS


def test_evidence_class_and_hardware_come_from_the_verifier():
    class Pretender(SimulatedVerifier):
        EVIDENCE_CLASS = "pretended"
        HARDWARE_ROOTED = True

    claims = Registry((Pretender(),)).verify(
        ENCODED, endorsements=(), expected=EXPECTED, now_ms=NOW, anchors=ROOT_ALONE
    )
    assert (claims.evidence_class, claims.hardware_rooted) == ("pretended", True)
    assert (CLAIMS.evidence_class, CLAIMS.hardware_rooted) == ("simulated", False)


def test_no_driver_is_asked_without_anchors():
    class Credulous(SimulatedVerifier):
        def verify(self, envelope, *, endorsements, now_ms, anchors):
            return super().verify(envelope, endorsements=endorsements, now_ms=now_ms, anchors=(ROOT.anchor,))

    for anchors in ({}, {PROFILE: ()}):
        with pytest.raises(TrustAnchorError):
            Registry((Credulous(),)).verify(ENCODED, endorsements=(), expected=EXPECTED, now_ms=NOW, anchors=anchors)


def test_the_root_may_be_any_of_the_anchors():
    assert verify(ENCODED, anchors={PROFILE: (OTHER_ROOT.anchor, ROOT.anchor)}) == CLAIMS


def evidence(payload_changes=None, *, signer=INSTANCE, tail=b"", **envelope_changes) -> Envelope:
    """Return the envelope with the signed payload edited and signed anew by ``signer``."""
    payload = json.loads(ENVELOPE.evidence[:-64])
    payload = canonical.encode({**payload, **(payload_changes or {})})
    changes = {"evidence": payload + signer.sign(payload) + tail, **envelope_changes}
    return dataclasses.replace(ENVELOPE, **changes)


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def with_an_unused_bit() -> bytes:
    """The instance's certificate in a second encoding: its signature with the last bit, a zero, called unused."""
    certificate = INSTANCE.certificate
    return certificate[:-65] + b"\x01" + certificate[-64:]


def relaxed_extension(**how) -> SimulatedInstance:
    """An instance that the true root certified in a form of its own."""
    key = Ed25519PrivateKey.generate()
    template = x509.load_der_x509_certificate(INSTANCE.certificate)
    builder = (
        x509.CertificateBuilder()
        .subject_name(template.subject)
        .issuer_name(template.issuer)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(template.not_valid_before_utc)
        .not_valid_after(template.not_valid_after_utc)
    )
    for extension in template.extensions:
        value = extension.value
        if isinstance(value, x509.UnrecognizedExtension):
            if how.get("absent"):
                continue
            content = json.loads(value.value)
            content.update(how.get("content", {}))
            value = x509.UnrecognizedExtension(value.oid, canonical.encode(content) + how.get("tail", b""))
            builder = builder.add_extension(value, critical=how.get("critical", True))
        else:
            builder = builder.add_extension(
                x509.BasicConstraints(ca=how.get("ca", False), path_length=None), critical=True
            )
    for extra in how.get("extra", ()):
        builder = builder.add_extension(extra, critical=True)
    certificate = builder.sign(ROOT._key, None).public_bytes(serialization.Encoding.DER)
    return SimulatedInstance(key=key, certificate=certificate)


def pem_to_der(pem: str) -> bytes:
    return x509.load_pem_x509_certificate(pem.encode()).public_bytes(serialization.Encoding.DER)


TLS = pem_to_der(TlsIdentity.generate(now=dt.datetime.fromtimestamp(NOW / 1000, tz=dt.UTC)).certificate)
B64_TLS = base64.b64encode(TLS).decode()
TDX_BINDING = dataclasses.replace(BINDING, profile="tdx/4")
OTHER_BINDING = dataclasses.replace(BINDING, hpke_public=b"x" * 1216)

REFUSALS = {
    "another nonce": (ENVELOPE, {"expected": dataclasses.replace(EXPECTED, nonce=b"m" * 32)}, BindingMismatchError),
    "another audience": (ENVELOPE, {"expected": dataclasses.replace(EXPECTED, audience="9" * 64)}, BindingMismatchError),
    "another manifest": (ENVELOPE, {"expected": dataclasses.replace(EXPECTED, manifest="9" * 64)}, BindingMismatchError),
    "another role": (ENVELOPE, {"expected": dataclasses.replace(EXPECTED, role=Role.AGGREGATOR)}, BindingMismatchError),
    "another run": (ENVELOPE, {"expected": dataclasses.replace(EXPECTED, run="digits-2")}, BindingMismatchError),
    "a binding for other keys": (
        dataclasses.replace(ENVELOPE, binding=OTHER_BINDING.encoded), {}, BindingMismatchError,
    ),
    "report data of another binding": (
        evidence({"report_data": OTHER_BINDING.report_data().hex()}), {}, BindingMismatchError,
    ),
    "report data cut short": (
        evidence({"report_data": BINDING.report_data()[:63].hex()}), {}, BindingMismatchError,
    ),
    "a profile in the binding that is not the envelope's": (
        evidence({"report_data": TDX_BINDING.report_data().hex()}, binding=TDX_BINDING.encoded), {}, BindingMismatchError,
    ),
    "a binding that is not canonical": (
        dataclasses.replace(ENVELOPE, binding=BINDING.encoded + b"\n"), {}, EvidenceFormatError,
    ),
    "a profile that nobody knows": (dataclasses.replace(ENVELOPE, profile="simulated/2"), {}, UnknownProfileError),
    "no anchors at all": (ENVELOPE, {"anchors": {}}, TrustAnchorError),
    "no anchors for the profile": (ENVELOPE, {"anchors": {PROFILE: (), "tdx/4": (ROOT.anchor,)}}, TrustAnchorError),
    "another root": (ENVELOPE, {"anchors": {PROFILE: (OTHER_ROOT.anchor,)}}, TrustAnchorError),
    "an anchor that is no certificate": (ENVELOPE, {"anchors": {PROFILE: (b"root",)}}, TrustAnchorError),
    "an anchor that is no simulated root": (ENVELOPE, {"anchors": {PROFILE: (TLS, ROOT.anchor)}}, TrustAnchorError),
    "an instance as its own anchor": (ENVELOPE, {"anchors": {PROFILE: (INSTANCE.certificate,)}}, TrustAnchorError),
    "an anchor that was tampered with": (
        ENVELOPE, {"anchors": {PROFILE: (flipped(ROOT.anchor, len(ROOT.anchor) - 5),)}}, TrustAnchorError,
    ),
    "a certificate that has expired": (ENVELOPE, {"now_ms": NOW + DAY}, TrustAnchorError),
    "a certificate that is not valid yet": (ENVELOPE, {"now_ms": NOW - 31_000}, TrustAnchorError),
    "a certificate beyond its root": (
        attest(instance=issue(now_ms=NOW + 4000 * DAY)), {"now_ms": NOW + 4000 * DAY}, TrustAnchorError,
    ),
    "a certificate for more than a day": (attest(instance=issue(lifetime_s=24 * 3600 + 1)), {}, TrustAnchorError),
    "a certificate of another root": (attest(instance=issue(OTHER_ROOT)), {}, TrustAnchorError),
    "a certificate of a P-256 key": (evidence({"certificate": B64_TLS}), {}, EvidenceFormatError),
    "the root's certificate as the instance's": (
        evidence({"certificate": base64.b64encode(ROOT.anchor).decode()}), {}, TrustAnchorError,
    ),
    "a certificate without an extension": (attest(instance=relaxed_extension(absent=True)), {}, EvidenceFormatError),
    "an extension that is not critical": (
        attest(instance=relaxed_extension(critical=False)), {}, EvidenceFormatError,
    ),
    "an extension with an unknown key": (
        attest(instance=relaxed_extension(content={"trusted": True})), {}, EvidenceFormatError,
    ),
    "an extension with a value of another type": (
        attest(instance=relaxed_extension(content={"debug": 0})), {}, EvidenceFormatError,
    ),
    "an extension with a trailing byte": (attest(instance=relaxed_extension(tail=b" ")), {}, EvidenceFormatError),
    "a certificate that could issue others": (attest(instance=relaxed_extension(ca=True)), {}, EvidenceFormatError),
    "a certificate with one more extension": (
        attest(instance=relaxed_extension(extra=[x509.SubjectKeyIdentifier(b"k")])), {}, EvidenceFormatError,
    ),
    "a certificate with trailing bytes": (
        evidence({"certificate": base64.b64encode(INSTANCE.certificate + b"\0").decode()}), {}, EvidenceFormatError,
    ),
    "a certificate whose signature claims an unused bit": (
        evidence({"certificate": base64.b64encode(with_an_unused_bit()).decode()}), {}, EvidenceFormatError,
    ),
    "a certificate that is none": (evidence({"certificate": "QQ=="}), {}, EvidenceFormatError),
    "a signature of another instance": (evidence(signer=issue()), {}, EvidenceSignatureError),
    "a signature with a bit flipped": (
        dataclasses.replace(ENVELOPE, evidence=flipped(ENVELOPE.evidence, -1 % len(ENVELOPE.evidence))),
        {}, EvidenceSignatureError,
    ),
    "layers that were not signed": (
        dataclasses.replace(
            ENVELOPE, evidence=ENVELOPE.evidence.replace(b"landlock-7", b"landlock-9")
        ), {}, EvidenceSignatureError,
    ),
    "evidence with a trailing byte": (evidence(tail=b"\0"), {}, EvidenceFormatError),
    "evidence of another format": (evidence({"format": "confed-simulated-evidence/2"}), {}, EvidenceFormatError),
    "evidence with an unknown key": (evidence({"hardware_rooted": True}), {}, EvidenceFormatError),
    "too many layers": (evidence({"self_reported_layers": ["x"] * 33}), {}, EvidenceFormatError),
    "empty evidence": (dataclasses.replace(ENVELOPE, evidence=b""), {}, EvidenceFormatError),
    "endorsements": (dataclasses.replace(ENVELOPE, endorsements=(b"trust me",)), {}, EvidenceFormatError),
    "event logs": (dataclasses.replace(ENVELOPE, event_logs=(b"log",)), {}, EvidenceFormatError),
    "device evidence": (dataclasses.replace(ENVELOPE, device_evidence=(b"gpu",)), {}, EvidenceFormatError),
}  # fmt: skip


@pytest.mark.parametrize(("envelope", "how", "error"), REFUSALS.values(), ids=REFUSALS.keys())
def test_evidence_is_refused_for(envelope, how, error):
    with pytest.raises(error) as caught:
        verify(envelope, **how)
    assert type(caught.value) is error


def test_evidence_is_good_from_launch_to_the_last_second_of_its_certificate():
    for now_ms in (NOW - 30_000, NOW, NOW + DAY - 30_000):
        verify(ENCODED, now_ms=now_ms)


def test_two_verifiers_for_one_profile_are_refused():
    with pytest.raises(UnknownProfileError):
        Registry((SimulatedVerifier(), SimulatedVerifier()))


@settings(max_examples=400, deadline=None)
@given(st.integers(0, len(ENCODED) - 1), st.integers(1, 255))
def test_no_changed_byte_is_accepted(at, mask):
    mutated = ENCODED[:at] + bytes([ENCODED[at] ^ mask]) + ENCODED[at + 1 :]
    with pytest.raises(AttestationError):
        verify(mutated)


INNER = ENVELOPE.evidence


@settings(max_examples=400, deadline=None)
@given(st.integers(0, len(INNER) - 1), st.integers(1, 255))
def test_no_changed_byte_inside_the_evidence_is_accepted(at, mask):
    mutated = INNER[:at] + bytes([INNER[at] ^ mask]) + INNER[at + 1 :]
    with pytest.raises(AttestationError):
        verify(dataclasses.replace(ENVELOPE, evidence=mutated))


@settings(max_examples=400, deadline=None)
@given(st.integers(0, len(INSTANCE.certificate) - 1), st.integers(1, 255))
def test_no_changed_byte_inside_the_certificate_is_accepted_even_when_signed_anew(at, mask):
    certificate = INSTANCE.certificate
    mutated = certificate[:at] + bytes([certificate[at] ^ mask]) + certificate[at + 1 :]
    with pytest.raises(AttestationError):
        verify(evidence({"certificate": base64.b64encode(mutated).decode()}))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(ENCODED)), st.integers(0, 40), st.binary(max_size=40))
def test_no_splice_is_accepted(at, removed, inserted):
    mutated = ENCODED[:at] + inserted + ENCODED[at + removed :]
    if mutated == ENCODED:
        assert verify(mutated) == CLAIMS
        return
    with pytest.raises(AttestationError):
        verify(mutated)
