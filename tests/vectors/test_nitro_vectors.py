"""Real Nitro documents: their verdicts, and what becomes of them when anything about them changes."""

import datetime

import cbor2
import pytest
from folder import at, needs_vectors, read, sets_of

from confed.attestation.evidence import Expectation
from confed.attestation.policy import nitro as policy
from confed.attestation.tee import nitro
from confed.errors import (
    AlgorithmError,
    AttestationError,
    BindingMismatchError,
    CertificateChainError,
    CertificateValidityError,
    DebugError,
    EndorsementFormatError,
    EvidenceFormatError,
    EvidenceSignatureError,
    MissingClaimError,
    NonceError,
    StaleEvidenceError,
    TrailingBytesError,
    TrustAnchorError,
)

pytestmark = needs_vectors

SETS = sets_of("nitro")
VALID, CERTIFIED, DSTACK = "nitro/evervault-valid", "nitro/evervault-cert-nondebug", "nitro/dstack-attest"
DAY = datetime.timedelta(days=1)


def verify(name, *, data=None, later=datetime.timedelta(), nonce=None, report_data=None):
    return nitro.verify_files(
        read(SETS[name]["doc"]) if data is None else data,
        (),
        expectation=Expectation(nonce=nonce, report_data=report_data),
        now=at(SETS[name]["verify_at"]) + later,
        anchors=None,
    )


def test_all_sets_are_here():
    assert len(SETS) == 6


@pytest.mark.parametrize("name", SETS)
def test_every_document_is_genuine_and_says_what_the_index_says(name):
    entry = SETS[name]
    found = verify(
        name, nonce=bytes.fromhex(entry["nonce"]) or None, report_data=bytes.fromhex(entry["user_data"]) or None
    )
    assert found.module_id == entry["module_id"]
    assert found.timestamp_ms == round(datetime.datetime.fromisoformat(entry["timestamp"]).timestamp() * 1000)
    assert [found.pcr(index).hex() for index in (0, 1, 2, 8)] == [entry[f"pcr{index}"] for index in (0, 1, 2, 8)]
    assert [(found.nonce or b"").hex(), (found.user_data or b"").hex()] == [entry["nonce"], entry["user_data"]]
    assert (found.public_key or b"").hex() == entry["public_key"]
    assert found.debug is entry["debug"]
    assert found.expires_ms / 1000 == datetime.datetime.fromisoformat(entry["chain_valid"][1]).timestamp()


@pytest.mark.parametrize("name", SETS)
def test_debug_is_what_makes_a_document_unacceptable(name):
    assert SETS[name]["expected"].startswith("REJECT by policy: debug") is SETS[name]["debug"]
    if SETS[name]["debug"]:
        with pytest.raises(DebugError):
            policy.require_defaults(verify(name))
    else:
        policy.require_defaults(verify(name))


@pytest.mark.parametrize("name", SETS)
def test_another_nonce_or_user_data_is_refused(name):
    with pytest.raises(NonceError):
        verify(name, nonce=b"\x01" * 32)
    with pytest.raises(BindingMismatchError):
        verify(name, report_data=b"\x01" * 64)


@pytest.mark.parametrize("name", SETS)
def test_outside_its_hours_a_document_is_refused(name):
    with pytest.raises(CertificateValidityError):
        verify(name, later=DAY)
    with pytest.raises(StaleEvidenceError):
        verify(name, later=-DAY)


def test_dstacks_digest_is_padded_to_64_bytes():
    assert verify(DSTACK, report_data=bytes.fromhex(SETS[DSTACK]["user_data"])[:32])


def parts(name):
    header, unprotected, payload, signature = cbor2.loads(read(SETS[name]["doc"]))
    return header, unprotected, cbor2.loads(payload), signature


def rebuilt(name, *, header=None, signature=None, **changes):
    """Return a document with fields of its payload changed and the signature left as it was."""
    old_header, unprotected, fields, old_signature = parts(name)
    payload = {key: value for key, value in (fields | changes).items() if value is not REMOVED}
    return cbor2.dumps([header or old_header, unprotected, cbor2.dumps(payload), signature or old_signature])


REMOVED = object()
PCRS = parts(VALID)[2]["pcrs"] if SETS else {}
OTHERS = parts(CERTIFIED)[2] if SETS else {}
BUNDLE = parts(VALID)[2]["cabundle"] if SETS else []
CHANGES = {
    "nothing": ({}, None),
    "another module": ({"module_id": "i-0"}, EvidenceSignatureError),
    "a digest that is weaker": ({"digest": "SHA256"}, AlgorithmError),
    "a second later": ({"timestamp": 1665651483136}, EvidenceSignatureError),
    "a year later": ({"timestamp": 1697187482136}, EvidenceSignatureError),
    **{f"another PCR{index}": ({"pcrs": PCRS | {index: b"\x01" * 48}}, EvidenceSignatureError) for index in range(16)},
    "a further register": ({"pcrs": PCRS | {16: bytes(48)}}, EvidenceSignatureError),
    "no PCR0": ({"pcrs": {index: PCRS[index] for index in PCRS if index}}, MissingClaimError),
    "a nonce": ({"nonce": b"n"}, EvidenceSignatureError),
    "no nonce": ({"nonce": None}, EvidenceSignatureError),
    "user data": ({"user_data": b"u"}, EvidenceSignatureError),
    "a public key": ({"public_key": b"k"}, EvidenceSignatureError),
    "an unknown field": ({"extra": b""}, EvidenceFormatError),
    "no certificate": ({"certificate": REMOVED}, MissingClaimError),
    "a certificate of another year": ({"certificate": OTHERS.get("certificate")}, CertificateValidityError),
    "a chain of another year": ({"cabundle": OTHERS.get("cabundle")}, CertificateValidityError),
    "chain and certificate of another enclave": (
        {"cabundle": OTHERS.get("cabundle"), "certificate": OTHERS.get("certificate")}, EvidenceSignatureError,
    ),
    "the authority as the leaf": ({"certificate": BUNDLE[-1:] and BUNDLE[-1]}, CertificateChainError),
    "no root": ({"cabundle": BUNDLE[1:]}, TrustAnchorError),
    "an authority left out": ({"cabundle": BUNDLE[:2] + BUNDLE[3:]}, CertificateChainError),
    "the bundle turned around": ({"cabundle": BUNDLE[::-1]}, TrustAnchorError),
    "another's signature": ({"signature": b"\x01" * 96}, EvidenceSignatureError),
    "another algorithm": ({"header": cbor2.dumps({1: -7})}, AlgorithmError),
}  # fmt: skip


@pytest.mark.parametrize("sentence", CHANGES)
def test_a_changed_document_is_refused(sentence):
    changes, error = CHANGES[sentence]
    data = rebuilt(VALID, **changes)
    if error is None:
        assert verify(VALID, data=data) == verify(VALID)
        return
    with pytest.raises(AttestationError) as caught:
        verify(VALID, data=data)
    assert type(caught.value) is error


def test_the_chain_of_another_enclave_of_the_same_day_is_refused():
    other = parts("nitro/dstack-attest-dbg")[2]
    with pytest.raises(CertificateChainError):
        verify(DSTACK, data=rebuilt(DSTACK, cabundle=other["cabundle"]))


def test_a_flipped_bit_anywhere_is_refused():
    data = read(SETS[DSTACK]["doc"])
    for index in range(0, len(data), 7):
        with pytest.raises(AttestationError):
            verify(DSTACK, data=data[:index] + bytes([data[index] ^ 1 << index % 8]) + data[index + 1 :])


def test_truncated_and_extended_documents_are_refused():
    data = read(SETS[DSTACK]["doc"])
    for end in range(0, len(data), 3):
        with pytest.raises(EvidenceFormatError):
            verify(DSTACK, data=data[:end])
    with pytest.raises(TrailingBytesError):
        verify(DSTACK, data=data + b"\x00")


def test_a_document_inside_another_format_is_refused():
    for name in ("nitro_attestation.scale.bin", "nitro_attestation_dbg.scale.bin"):
        with pytest.raises(EvidenceFormatError):
            verify(DSTACK, data=read(f"nitro/dstack-attest/{name}"))


def test_another_products_root_is_refused():
    amd = b"".join(nitro.pinned_roots())[:-1] + b"\x00"
    for anchors in ((), (amd,), (BUNDLE[1],)):
        with pytest.raises(TrustAnchorError):
            nitro.verify_document(read(SETS[VALID]["doc"]), anchors=anchors, now=at(SETS[VALID]["verify_at"]))


def test_an_endorsement_is_refused():
    with pytest.raises(EndorsementFormatError):
        nitro.verify_files(
            read(SETS[VALID]["doc"]),
            (BUNDLE[0],),
            expectation=Expectation(nonce=None, report_data=None),
            now=at(SETS[VALID]["verify_at"]),
            anchors=None,
        )
