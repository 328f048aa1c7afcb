"""NVIDIA's world in small: device chains, reports, manifests and OCSP responses under roots that the test makes."""

from __future__ import annotations

import base64
import dataclasses
import datetime
import functools
import hashlib
import itertools
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509 import ocsp
from cryptography.x509.oid import NameOID
from lxml import etree

from confed.attestation.evidence import Expectation
from confed.attestation.tee import nvidia_gpu
from confed.attestation.tee.nvidia_evidence import NvidiaState, encode_record

NOW = datetime.datetime(2026, 6, 1, tzinfo=datetime.UTC)
DAY = datetime.timedelta(days=1)
NONCE = bytes(range(32))
DER = serialization.Encoding.DER
PEM = serialization.Encoding.PEM
FIRMWARE = hashlib.sha384(b"firmware").digest()
STATE = NvidiaState(confidential_compute="on", devtools="off", environment="production", multi_gpu="none")
DRIVER_VERSION, VBIOS_VERSION, SWITCH_VERSION = "550.90.07", "96.00.9F.00.01", "96.10.55.00.01"
COMPOSITE, TCB_INFO = "2.23.133.5.4.1", "2.23.133.5.4.1.1"
DS = "http://www.w3.org/2000/09/xmldsig#"


@functools.cache
def key(name):
    """Return the P-384 key of this name, the same at every call."""
    return ec.generate_private_key(ec.SECP384R1())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Authority:
    certificate: x509.Certificate
    key: Any

    @property
    def der(self):
        return self.certificate.public_bytes(DER)


def common_name(text):
    return x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "TEST"), x509.NameAttribute(NameOID.COMMON_NAME, text)]
    )


def issue(
    name,
    *,
    by=None,
    private=None,
    ca=True,
    signs=True,
    serial=None,
    start=NOW - 30 * DAY,
    end=NOW + 30 * DAY,
    extensions=(),
    algorithm=None,
    both=False,
):
    """Return an authority or, with ``ca=False``, a leaf; self-signed where nobody issues it; or ``both`` in one."""
    private = private or key(name)
    issuer_name = by.certificate.subject if by else common_name(name)
    builder = (
        x509.CertificateBuilder()
        .subject_name(common_name(name))
        .issuer_name(issuer_name)
        .public_key(private.public_key())
        .serial_number(serial or int.from_bytes(hashlib.sha256(name.encode()).digest()[:12]))
        .not_valid_before(start)
        .not_valid_after(end)
    )
    if ca:
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    usage = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "crl_sign", "encipher_only", "decipher_only"),
        False,
    )  # fmt: skip
    builder = builder.add_extension(
        x509.KeyUsage(digital_signature=both or (signs and not ca), key_cert_sign=ca, **usage), critical=True
    )
    for value, critical in extensions:
        builder = builder.add_extension(value, critical=critical)
    signer = by.key if by else private
    return Authority(certificate=builder.sign(signer, algorithm or hashes.SHA384()), key=private)


DEVICE_ROOT = issue("TEST Device Identity CA")
MANIFEST_ROOT = issue("TEST CoRIM signing Root CA")
OTHER_ROOT = issue("TEST Other Identity CA")
FAMILY = issue("TEST GH100 Identity", by=DEVICE_ROOT)
PROVISIONER = issue("TEST GH100 Provisioner", by=FAMILY)
ANCHORS = (DEVICE_ROOT.der, MANIFEST_ROOT.der)


def der(tag, content):
    size = len(content)
    length = bytes([size]) if size < 0x80 else b"\x81" + bytes([size]) if size < 0x100 else b"\x82" + size.to_bytes(2)
    return bytes([tag]) + length + content


SHA384_OID = bytes.fromhex("608648016503040202")


def fwid(digest=FIRMWARE, algorithm=SHA384_OID):
    return der(0x30, der(0x06, algorithm) + der(0x04, digest))


def composite(device_key, digest=FIRMWARE, version=b"\x01"):
    spki = device_key.public_key().public_bytes(DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return der(0x30, der(0x02, version) + spki + fwid(digest))


def tcb_info(digest=FIRMWARE, flags=b"\x00\x00\x00\x00\x01"):
    return der(0x30, der(0x80, b"NVIDIA") + der(0xA6, fwid(digest) + fwid(bytes(48))) + der(0x87, flags))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Device:
    """A device: its chain, leaf first, and the key that signs its reports."""

    chain: tuple[bytes, ...]
    key: Any
    authorities: tuple[Authority, ...]

    @property
    def pem(self):
        return b"".join(x509.load_der_x509_certificate(der).public_bytes(PEM) for der in self.chain)


def make_device(
    product="GH100",
    *,
    pdi=b"\x01" * 8,
    dice=None,
    provisioner=PROVISIONER,
    family=FAMILY,
    root=DEVICE_ROOT,
    leaf_name=None,
    **leaf_changes,
):
    """Return a device; ``dice`` is the leaf's extensions by identifier, CompositeDeviceID where it is not given."""
    name = f"{product} A01 BROM"
    prefix = b"\x50" if product.startswith("LS") else b"\x41"
    brom = issue(name, by=provisioner, private=key(name + pdi.hex()), serial=int.from_bytes(prefix + pdi))
    found = {COMPOSITE: composite(brom.key)} if dice is None else dice(brom.key)
    extensions = [
        (x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value), False) for oid, value in found.items()
    ]
    leaf_name = leaf_name or f"{product} A01 FMC"
    changes = {"ca": False, "private": key(leaf_name + pdi.hex())} | leaf_changes
    leaf = issue(leaf_name, by=brom, extensions=extensions, **changes)
    path = (leaf, brom, provisioner, family, root)
    return Device(chain=tuple(authority.der for authority in path), key=leaf.key, authorities=path)


def field(number, value):
    return number.to_bytes(2, "little") + len(value).to_bytes(2, "little") + value


GPU_FIELDS = {
    6: bytes.fromhex("009f009601000000"),
    15: b"882\x00\x00",
    17: b"1010\x00",
    18: b"0200\x00",
    3: b"550.90.07\x00",
    11: b"\x55",
    20: FIRMWARE,
    21: b"\x55",
    34: b"\x01\x00",
    36: b"\x01\x00",
}
SWITCH_FIELDS = {6: b"96.10.55.00.01", 22: b"\x02" * 8, 25: b"\x01\x00", 26: b"\x01" * 8 + bytes(120)}


def measurement(index):
    return hashlib.sha384(bytes([index])).digest()


MEASUREMENTS = {index: measurement(index) for index in range(1, 41)} | {9: bytes(48)}


def block(index, value, *, specification=1, kind=1):
    inner = bytes([kind]) + len(value).to_bytes(2, "little") + value
    return bytes([index, specification]) + len(inner).to_bytes(2, "little") + inner


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """The fields of a report, each of which a test can replace."""

    request: bytes = b"\x11\xe0\x01\xff"
    nonce: bytes = NONCE
    slot: bytes = b"\x00"
    response: bytes = b"\x11\x60\x00\x00"
    count: int | None = None
    blocks: tuple[bytes, ...] = tuple(block(index, value) for index, value in sorted(MEASUREMENTS.items()))
    responder: bytes = b"\x77" * 32
    opaque: bytes = b"".join(field(number, value) for number, value in GPU_FIELDS.items())
    trailing: bytes = b""

    @property
    def signed(self):
        record = b"".join(self.blocks)
        count = len(self.blocks) if self.count is None else self.count
        return (
            self.request + self.nonce + self.slot + self.response + bytes([count]) + len(record).to_bytes(3, "little")
            + record + self.responder + len(self.opaque).to_bytes(2, "little") + self.opaque
        )  # fmt: skip


def raw_signature(private, data):
    r, s = decode_dss_signature(private.sign(data, ec.ECDSA(hashes.SHA384())))
    return r.to_bytes(48) + s.to_bytes(48)


def make_report(device, parts=None, *, fields=None, **changes):
    """Return a signed report; ``fields`` replaces opaque fields by number, ``None`` removes one."""
    base = parts or Parts()
    if fields is not None:
        merged = {number: value for number, value in (GPU_FIELDS | fields).items() if value is not None}
        changes["opaque"] = b"".join(field(number, value) for number, value in merged.items())
    found = dataclasses.replace(base, **changes)
    return found.signed + raw_signature(device.key, found.signed) + found.trailing


def switch_report(device, *, fields=None, **changes):
    merged = {number: value for number, value in (SWITCH_FIELDS | (fields or {})).items() if value is not None}
    opaque = b"".join(field(number, value) for number, value in merged.items())
    return make_report(device, opaque=opaque, **changes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Signer:
    """Who signs manifests: the chain, leaf first, and the leaf's key."""

    path: tuple[Authority, ...]

    @property
    def key(self):
        return self.path[0].key


def make_signer(*, root=MANIFEST_ROOT, **leaf_changes):
    family = issue("TEST Reference Value GH100 CA", by=root)
    level = issue("TEST Reference Value L3", by=family)
    leaf = issue("TEST RIM Signer", by=level, **({"ca": False} | leaf_changes))
    return Signer(path=(leaf, level, family, root))


SIGNER = make_signer()

_SWID = "http://standards.iso.org/iso/19770/-2/2015/schema.xsd"
_TCG = "https://trustedcomputinggroup.org/resource/tcg-reference-integrity-manifest-rim-information-model/"


def resource(index, values, *, active="True", **changes):
    hashed = "".join(f' ns2:Hash{n}="{value.hex()}"' for n, value in enumerate(values))
    attributes = {
        "type": "Measurement",
        "index": index,
        "active": active,
        "alternatives": len(values),
        "name": f"Measurement_{index}",
        "size": 48,
    } | changes
    plain = "".join(f' {name}="{value}"' for name, value in attributes.items() if value is not None)
    return f"<ns0:Resource{plain}{hashed}/>"


def unsigned_manifest(
    resources,
    *,
    version=DRIVER_VERSION,
    edition="GPU",
    product="GH100",
    maker="5703",
    extra="",
    root="SoftwareIdentity",
):
    return (
        f'<{root} xmlns="{_SWID}" xmlns:ns0="{_SWID}" xmlns:ns2="http://www.w3.org/2001/04/xmlenc#sha384" name="x">\n'
        f'  <ns0:Entity name="TEST" role="tagCreator"/>\n'
        f'  <ns0:Meta xmlns:ns1="{_TCG}" colloquialVersion="{version}" edition="{edition}" product="{product}" '
        f'ns1:PlatformManufacturerId="{maker}"/>\n'
        f"  <ns0:Payload>{''.join(resources)}</ns0:Payload>{extra}\n"
        f"</{root}>"
    )


ALGORITHMS = {
    "canonical": "http://www.w3.org/2006/12/xml-c14n11",
    "signature": "http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha384",
    "digest": "http://www.w3.org/2001/04/xmldsig-more#sha384",
    "enveloped": f"{DS}enveloped-signature",
    "transform": "http://www.w3.org/2006/12/xml-c14n11",
    "uri": "",
}


def sign_manifest(text, signer=SIGNER, *, certificates=None, **changes):
    """Return a manifest with an enveloped signature of the form that NVIDIA's have; algorithms can be replaced."""
    names = ALGORITHMS | changes
    digest = hashlib.sha384(etree.tostring(etree.fromstring(text), method="c14n", with_comments=False)).digest()
    ders = [authority.der for authority in signer.path] if certificates is None else certificates
    chain = "".join(f"<ds:X509Certificate>{base64.b64encode(data).decode()}</ds:X509Certificate>" for data in ders)
    signature = (
        f'<ds:Signature xmlns:ds="{DS}"><ds:SignedInfo>'
        f'<ds:CanonicalizationMethod Algorithm="{names["canonical"]}"/>'
        f'<ds:SignatureMethod Algorithm="{names["signature"]}"/>'
        f'<ds:Reference URI="{names["uri"]}"><ds:Transforms><ds:Transform Algorithm="{names["enveloped"]}"/>'
        f'<ds:Transform Algorithm="{names["transform"]}"/></ds:Transforms>'
        f'<ds:DigestMethod Algorithm="{names["digest"]}"/>'
        f"<ds:DigestValue>{base64.b64encode(digest).decode()}</ds:DigestValue></ds:Reference></ds:SignedInfo>"
        f"<ds:SignatureValue>SIGNATURE</ds:SignatureValue><ds:KeyInfo><ds:X509Data>{chain}</ds:X509Data></ds:KeyInfo>"
        f"</ds:Signature>"
    )
    closing = text.rindex("</")
    whole = text[:closing] + signature + text[closing:]
    info = etree.fromstring(whole).find(f"{{{DS}}}Signature/{{{DS}}}SignedInfo")
    value = raw_signature(signer.key, etree.tostring(info, method="c14n"))
    return whole.replace("SIGNATURE", base64.b64encode(value).decode()).encode()


def golden(*indices):
    """Return resources whose golden values are those of ``MEASUREMENTS``, by the manifest's index."""
    return [resource(index, [MEASUREMENTS[index + 1]]) for index in indices]


def make_manifest(resources=None, signer=SIGNER, **changes):
    return sign_manifest(unsigned_manifest(golden(20, 21, 22) if resources is None else resources, **changes), signer)


DRIVER_RIM = make_manifest()
VBIOS_RIM = make_manifest(golden(1, 2, 3, 8), version=VBIOS_VERSION)
SWITCH_RIM = make_manifest(golden(0, 1, 2), version=SWITCH_VERSION, edition="SWITCH", product="LS10")

GPU = make_device()
SWITCH = make_device("LS_10", pdi=b"\x02" * 8)
REPORT = make_report(GPU)


def make_response(
    subject,
    issuer,
    *,
    status=ocsp.OCSPCertStatus.GOOD,
    reason=None,
    start=NOW - DAY,
    end=NOW + DAY,
    responder=None,
    algorithm=None,
    hashed=None,
    by_name=False,
    nonce=None,
    brought=(),
    extensions=(),
):
    """Return an OCSP response about ``subject``, signed by its issuer or by a responder."""
    signer = responder or issuer
    builder = (
        ocsp.OCSPResponseBuilder()
        .add_response(
            cert=subject.certificate,
            issuer=issuer.certificate,
            algorithm=hashed or hashes.SHA384(),
            cert_status=status,
            this_update=start,
            next_update=end,
            revocation_time=start if status is ocsp.OCSPCertStatus.REVOKED else None,
            revocation_reason=reason,
        )
        .responder_id(
            ocsp.OCSPResponderEncoding.NAME if by_name else ocsp.OCSPResponderEncoding.HASH, signer.certificate
        )
    )
    if responder or brought:
        builder = builder.certificates([*brought] or [responder.certificate])
    if nonce is not None:
        builder = builder.add_extension(x509.OCSPNonce(nonce), critical=False)
    for value, critical in extensions:
        builder = builder.add_extension(value, critical=critical)
    return builder.sign(signer.key, algorithm or hashes.SHA384()).public_bytes(DER)


def responses(path, **changes):
    """Return responses for every certificate of a path but its root."""
    return [make_response(subject, issuer, **changes) for subject, issuer in itertools.pairwise(path)]


def verify_files(
    evidence=REPORT, endorsements=(), *, device=GPU, nonce=NONCE, report_data=None, now=NOW, anchors=ANCHORS
):
    chain = [] if device is None else [device.pem]
    return nvidia_gpu.verify_files(
        evidence,
        [*chain, *endorsements],
        expectation=Expectation(nonce=nonce, report_data=report_data),
        now=now,
        anchors=anchors,
    )


def make_record(device=GPU, report=None, *, kind="gpu", state=STATE):
    return encode_record(
        kind=kind,
        report=make_report(device) if report is None else report,
        chain=device.chain,
        state=state if kind == "gpu" else None,
    )


def verify_devices(records, *, endorsements=(), nonce=NONCE, now=NOW, anchors=ANCHORS):
    return nvidia_gpu.verify_devices(records, endorsements=endorsements, nonce=nonce, now=now, anchors=anchors)
