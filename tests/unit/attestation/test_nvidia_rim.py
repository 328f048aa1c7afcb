"""Manifests: the one form of signature, the chain to the pinned root, and golden values index by index."""

import base64
import re

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given, settings
from hypothesis import strategies as st
from nvidia_world import (
    ALGORITHMS,
    ANCHORS,
    DAY,
    DEVICE_ROOT,
    DRIVER_RIM,
    DRIVER_VERSION,
    MANIFEST_ROOT,
    MEASUREMENTS,
    NOW,
    OTHER_ROOT,
    SIGNER,
    SWITCH_RIM,
    VBIOS_RIM,
    VBIOS_VERSION,
    Signer,
    golden,
    issue,
    make_manifest,
    make_signer,
    resource,
    sign_manifest,
    unsigned_manifest,
)

from confed.attestation.tee import xmldsig
from confed.attestation.tee.nvidia_rim import RimName, compare, is_rim, unverified_name, verify_rim
from confed.errors import (
    AlgorithmError,
    AttestationError,
    CertificateChainError,
    CertificateValidityError,
    EndorsementFormatError,
    ReferenceManifestError,
    TrustAnchorError,
)

ZEROS, ONES = bytes(48), b"\x11" * 48


def verify(data, *, now=NOW, anchors=(MANIFEST_ROOT.der,)):
    return verify_rim(data, anchors=anchors, now=now)


def test_a_manifest_says_what_it_is_for_and_what_is_golden():
    rim = verify(DRIVER_RIM)
    assert rim.name == RimName(device="gpu", kind="driver", architecture="HOPPER", version=DRIVER_VERSION)
    assert rim.product == "GH100"
    assert rim.golden == {index: (MEASUREMENTS[index + 1],) for index in (20, 21, 22)}
    assert unverified_name(DRIVER_RIM) == rim.name
    assert (verify(VBIOS_RIM).name.kind, verify(VBIOS_RIM).name.version) == ("vbios", VBIOS_VERSION)
    assert (verify(SWITCH_RIM).name.device, verify(SWITCH_RIM).name.architecture) == ("switch", "LS10")


def test_measurements_are_compared_index_by_index():
    data = make_manifest(
        [
            resource(1, [MEASUREMENTS[2]]),
            resource(2, [ONES, MEASUREMENTS[3]]),
            resource(3, [ONES], active="False"),
            resource(4, [ONES]),
            resource(8, [ZEROS]),
            resource(35, [ONES]),
            resource(200, [ONES]),
        ]
    )
    found = compare(verify(data), MEASUREMENTS, skip=(35,))
    assert (found.matched, found.zeros) == (3, 1)
    assert (found.mismatched, found.skipped) == ((4, 200), (35,))
    assert compare(verify(data), MEASUREMENTS).mismatched == (4, 35, 200)


def changed(pattern, replacement, data=DRIVER_RIM):
    """Return a manifest with its first match of a pattern replaced; the signature stays as it is."""
    found, count = re.subn(pattern.encode(), replacement.encode(), data, count=1)
    assert count == 1
    return found


def wrapped(data=DRIVER_RIM):
    """Return the classic attack: the signed document inside another that has other values."""
    evil = unsigned_manifest([resource(20, [ONES])])
    signature = re.search(rb"<ds:Signature.*</ds:Signature>", data)[0].decode()
    inner = data.decode().replace(signature, "")
    closing = evil.rindex("</")
    return (
        evil[:closing]
        + signature.replace("</ds:Signature>", f"<ds:Object>{inner}</ds:Object></ds:Signature>")
        + evil[closing:]
    ).encode()


def object_in_key_info(data=DRIVER_RIM):
    return data.replace(b"<ds:X509Data>", b"<ds:KeyValue/><ds:X509Data>")


TAMPERED = {
    "a golden value of somebody else": changed("Hash0=.[0-9a-f]{2}", 'Hash0="00'),
    "another version": changed("550.90.07", "550.90.08"),
    "another index": changed('index="20"', 'index="19"'),
    "an inactive measurement made active": changed('active="True"', 'active="False"'),
    "a measurement removed": changed("<ns0:Resource[^>]*/>", ""),
    "an attribute more": changed('name="x"', 'name="x" y="z"'),
    "a signature of zeros": changed("<ds:SignatureValue>[^<]*", f"<ds:SignatureValue>{'A' * 128}"),
    "a signature cut short": changed("<ds:SignatureValue>[^<]*", "<ds:SignatureValue>AAAA"),
    "a signature that is no base64": changed("<ds:SignatureValue>[^<]*", "<ds:SignatureValue>!"),
    "a digest cut short": changed("<ds:DigestValue>[^<]*", "<ds:DigestValue>AAAA"),
    "a digest of something else": changed(
        "<ds:DigestValue>[^<]*", f"<ds:DigestValue>{base64.b64encode(bytes(48)).decode()}"
    ),
    "no signature": changed("<ds:Signature .*</ds:Signature>", ""),
    "two signatures": changed("(<ds:Signature .*</ds:Signature>)", r"\1\1"),
    "a signature further down": changed("(<ds:Signature .*</ds:Signature>)(.*)", r"<ns0:Link>\1</ns0:Link>\2"),
    "the signed document wrapped into another": wrapped(),
    "an object in the signature": changed("</ds:KeyInfo>", "</ds:KeyInfo><ds:Object/>"),
    "a key beside the certificates": object_in_key_info(),
    "a name of a key in place of certificates": changed("<ds:X509Data>.*</ds:X509Data>", "<ds:KeyName>x</ds:KeyName>"),
    "no certificate": changed("<ds:X509Data>.*</ds:X509Data>", "<ds:X509Data/>"),
    "a certificate that is no base64": changed("<ds:X509Certificate>[^<]*", "<ds:X509Certificate>="),
    "an element in a certificate": changed("<ds:X509Certificate>", "<ds:X509Certificate><ds:x/>"),
    "an identifier on the signature": changed("<ds:Signature ", '<ds:Signature Id="x" '),
    "a type of reference": changed('<ds:Reference URI=""', '<ds:Reference Type="x" URI=""'),
    "two references": changed("(<ds:Reference .*</ds:Reference>)", r"\1\1"),
    "a third transform": changed("</ds:Transforms>", f'<ds:Transform Algorithm="{ALGORITHMS["transform"]}"/></ds:Transforms>'),
    "one transform": changed(f'<ds:Transform Algorithm="{ALGORITHMS["transform"]}"/>', ""),
    "a parameter of a transform": changed(
        f'<ds:Transform Algorithm="{ALGORITHMS["transform"]}"/>',
        f'<ds:Transform Algorithm="{ALGORITHMS["transform"]}"><ds:XPath/></ds:Transform>',
    ),
    "a document type": b"<!DOCTYPE x>" + DRIVER_RIM,
    "entities": b'<!DOCTYPE x [<!ENTITY a "b">]>' + DRIVER_RIM,
    "an entity that nobody declared": changed("TEST", "&other;"),
    "a comment": changed("</ns0:Payload>", "<!-- --></ns0:Payload>"),
    "an instruction": changed("</ns0:Payload>", "<?x y?></ns0:Payload>"),
    "an xml attribute": changed('name="x"', 'name="x" xml:base="http://x"'),
    "another encoding": b'<?xml version="1.0" encoding="UTF-16"?>' + DRIVER_RIM.decode().encode("utf-16"),
    "bytes that are not UTF-8": changed("TEST", "TEST").replace(b"TEST", b"\xff\xfe", 1),
    "a relative namespace": changed('name="x"', 'name="x" xmlns:r="relative"'),
    "text that is no XML": b"<x",
    "nothing": b"",
    "other XML": b"<x/>",
    "more than its bound": DRIVER_RIM + b" " * xmldsig.DOCUMENT_LIMIT_BYTES,
}  # fmt: skip


@pytest.mark.parametrize("data", TAMPERED.values(), ids=TAMPERED.keys())
def test_a_tampered_manifest_is_refused_with(data):
    with pytest.raises(ReferenceManifestError):
        verify(data)


def manifest(resources=None, **changes):
    return make_manifest(golden(20) if resources is None else resources, **changes)


CONTENTS = {
    "another manufacturer": manifest(maker="1"),
    "another edition": manifest(edition="DPU"),
    "a product that is no name": manifest(product="gh 100"),
    "a version that is neither a driver's nor a VBIOS's": manifest(version="1"),
    "another root": manifest(root="Software"),
    "an element that is not known": manifest(extra="<ns0:Link/>"),
    "a second payload": manifest(extra="<ns0:Payload/>"),
    "a second meta": manifest(extra="<ns0:Meta/>"),
    "something else in the payload": manifest(["<ns0:File/>"]),
    "something inside a resource": manifest([resource(1, [ONES]).replace("/>", "><ns0:x/></ns0:Resource>")]),
    "another type": manifest([resource(1, [ONES], type="OpaqueData")]),
    "an index twice": manifest(golden(20, 20)),
    "an index twice, inactive": manifest([resource(20, [ONES], active="False"), *golden(20)]),
    "an index above the bound": manifest([resource(255, [ONES])]),
    "an index that is no number": manifest([resource("01", [ONES])]),
    "a negative index": manifest([resource(-1, [ONES])]),
    "no index": manifest([resource(1, [ONES]).replace(' index="1"', "")]),
    "fewer values than alternatives": manifest([resource(1, [ONES], alternatives=2)]),
    "more values than alternatives": manifest([resource(1, [ONES, ONES], alternatives=1)]),
    "no alternative": manifest([resource(1, [])]),
    "too many alternatives": manifest([resource(1, [ONES] * 33)]),
    "an activity that is neither": manifest([resource(1, [ONES], active="true")]),
    "another size": manifest([resource(1, [ONES], size=32)]),
    "a value of another size": manifest([resource(1, [ONES[:-1]])]),
    "an attribute that is not known": manifest([resource(1, [ONES], other="x")]),
}


@pytest.mark.parametrize("data", CONTENTS.values(), ids=CONTENTS.keys())
def test_a_signed_manifest_is_refused_with(data):
    with pytest.raises(ReferenceManifestError):
        verify(data)


TEXT = unsigned_manifest(golden(20))


@pytest.mark.parametrize(
    "changes",
    [
        {"canonical": "http://www.w3.org/2001/10/xml-exc-c14n#"},
        {"canonical": ALGORITHMS["canonical"] + "#WithComments"},
        {"signature": "http://www.w3.org/2000/09/xmldsig#hmac-sha1"},
        {"signature": "http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha1"},
        {"digest": "http://www.w3.org/2000/09/xmldsig#sha1"},
        {"enveloped": "http://www.w3.org/TR/1999/REC-xslt-19991116"},
        {"transform": "http://www.w3.org/TR/1999/REC-xpath-19991116"},
    ],
    ids=str,
)
def test_another_algorithm_is_refused_by_name(changes):
    with pytest.raises(AlgorithmError):
        verify(sign_manifest(TEXT, **changes))


@pytest.mark.parametrize("uri", ["#x", "http://example.org/", "file:///etc/passwd"])
def test_a_reference_to_anything_but_the_document_is_refused(uri):
    with pytest.raises(ReferenceManifestError):
        verify(sign_manifest(TEXT, uri=uri))


def leaf(**changes):
    return make_signer(**changes)


def path_of(*positions):
    return [SIGNER.path[position].der for position in positions]


LEVEL = SIGNER.path[1]
CHAINS = {
    "a root that is not pinned": (make_manifest(signer=make_signer(root=OTHER_ROOT)), TrustAnchorError),
    "the root left out": (sign_manifest(TEXT, certificates=path_of(0, 1, 2)), TrustAnchorError),
    "an authority left out": (sign_manifest(TEXT, certificates=path_of(0, 2, 3)), CertificateChainError),
    "authorities in another order": (sign_manifest(TEXT, certificates=path_of(0, 2, 1, 3)), CertificateChainError),
    "a leaf of another key and the right name": (
        sign_manifest(
            TEXT,
            Signer(
                path=(
                    issue("TEST RIM Signer", by=issue("TEST Reference Value L3", private=ec.generate_private_key(ec.SECP384R1())), ca=False),
                    *SIGNER.path[1:],
                )
            ),
        ),
        CertificateChainError,
    ),
    "a leaf that is an authority": (make_manifest(signer=leaf(ca=True)), CertificateChainError),
    "a leaf that is an authority and signs": (make_manifest(signer=leaf(ca=True, both=True)), CertificateChainError),
    "a leaf that does not sign": (make_manifest(signer=leaf(signs=False)), CertificateChainError),
    "a leaf that has expired": (make_manifest(signer=leaf(end=NOW - DAY)), CertificateValidityError),
    "a leaf that is not valid yet": (make_manifest(signer=leaf(start=NOW + DAY)), CertificateValidityError),
    "something that is no certificate": (sign_manifest(TEXT, certificates=[b"0"]), EndorsementFormatError),
}  # fmt: skip


@pytest.mark.parametrize(("data", "error"), CHAINS.values(), ids=CHAINS.keys())
def test_a_manifest_is_refused_because_of(data, error):
    with pytest.raises(error) as caught:
        verify(data)
    assert caught.type is error


def test_a_leaf_key_of_another_kind_is_refused():
    small = ec.generate_private_key(ec.SECP256R1())
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    for private in (small, other):
        certificate = issue("TEST RIM Signer", by=LEVEL, private=private, ca=False)
        data = sign_manifest(TEXT, certificates=[certificate.der, *path_of(1, 2, 3)])
        with pytest.raises(AlgorithmError):
            verify(data)
        with pytest.raises(AlgorithmError):
            xmldsig.verified_content(xmldsig.read_document(DRIVER_RIM, what="x"), private.public_key(), what="x")


def test_a_signature_of_another_key_under_the_same_chain_is_refused():
    other = Signer(
        path=(issue("TEST RIM Signer", by=LEVEL, private=ec.generate_private_key(ec.SECP384R1()), ca=False),)
    )
    data = sign_manifest(TEXT, other, certificates=path_of(0, 1, 2, 3))
    with pytest.raises(ReferenceManifestError):
        verify(data)


def test_a_root_for_devices_does_not_vouch_for_manifests():
    with pytest.raises(TrustAnchorError):
        verify(DRIVER_RIM, anchors=(DEVICE_ROOT.der,))
    with pytest.raises(TrustAnchorError):
        verify(DRIVER_RIM, anchors=())
    assert verify(DRIVER_RIM, anchors=ANCHORS)


def test_time_is_compared_also_where_the_manifest_is_known():
    assert verify(DRIVER_RIM)
    for now in (NOW + 31 * DAY, NOW - 31 * DAY):
        with pytest.raises(CertificateValidityError):
            verify(DRIVER_RIM, now=now)
    assert verify(DRIVER_RIM)


def test_text_after_the_signature_stays_signed():
    data = DRIVER_RIM.replace(b"</ds:Signature>", b"</ds:Signature>\n")
    with pytest.raises(ReferenceManifestError):
        verify(data)
    before_first = sign_manifest(TEXT)
    moved = re.sub(rb"(<ds:Signature .*</ds:Signature>)", b"", before_first)
    signature = re.search(rb"<ds:Signature .*</ds:Signature>", before_first)[0]
    first = moved.index(b"\n")
    # The signature may stand anywhere below the root: what is signed is everything else.
    assert verify(moved[:first] + signature + moved[first:])
    assert verify(moved[: first + 1] + signature + moved[first + 1 :])


def test_a_manifest_is_told_by_its_beginning():
    assert is_rim(DRIVER_RIM)
    assert is_rim(b"\xef\xbb\xbf\n <x/>")
    assert not is_rim(b"-----BEGIN CERTIFICATE")
    assert not is_rim(b"\x30\x82")


@given(st.integers(0, len(DRIVER_RIM) - 1), st.integers(1, 255))
@settings(max_examples=300)
def test_a_byte_changed_is_refused_or_changes_nothing(position, change):
    data = bytearray(DRIVER_RIM)
    data[position] ^= change
    try:
        rim = verify(bytes(data))
    except AttestationError:
        return
    # White space inside base64, the case of a prefix: the canonical bytes are the same.
    assert rim.golden == verify(DRIVER_RIM).golden
    assert rim.name == verify(DRIVER_RIM).name


@given(st.binary(max_size=400))
@settings(max_examples=200)
def test_whatever_bytes_come_nothing_but_an_attestation_error_is_raised(data):
    for candidate in (data, b"<" + data, DRIVER_RIM[: len(DRIVER_RIM) - len(data)] + data):
        with pytest.raises(AttestationError):
            verify(candidate + b"\x00")
