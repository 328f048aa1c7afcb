"""Whose report it is: a device's certificates, from the key that signs reports up to NVIDIA's pinned root.

Five certificates, leaf first, and no other number:

    NVIDIA Device Identity CA          pinned, byte for byte
    └── NVIDIA <family> Identity
        └── NVIDIA <product> Provisioner ICA
            └── <product> … BROM       the device: made in the factory, its serial number ends in the device's PDI
                └── <product> … FMC    the firmware that runs: made by the device itself at start, signs reports

1. The certificates are read within bounds, stand in this order, and are valid now.
2. Every link holds and the last one is a pinned root.
3. The leaf is a P-384 key that signs and is no authority; leaf and device name the same product, and a known one.
4. The leaf says for which firmware the device made it: its DICE extension, read as ASN.1 and never by position. It is
   CompositeDeviceID (2.23.133.5.4.1), whose DeviceID must be the key of the certificate above, or DiceTcbInfo
   (2.23.133.5.4.1.1), whose operational flags are read too.

Chains that hold are kept (bounded, by their bytes and roots); validity is compared at every call.

That a PDI is the serial number's last eight bytes is not in a document of NVIDIA's; it holds for all evidence known to
us: switches say theirs in signed reports, and name the GPUs that they are linked to.

Source: TCG DICE Attestation Architecture 1.1 (TcbInfo, OperationalFlags); Microsoft RIoT (CompositeDeviceID); NVIDIA
attestation-sdk (github.com/NVIDIA), dice_tcb_info, for which device has which of the two.
"""

from __future__ import annotations

import datetime
import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from confed.attestation.certificates import Certificate, load_certificate, require_chain, require_valid
from confed.errors import (
    AlgorithmError,
    CertificateChainError,
    EndorsementFormatError,
    EvidenceVersionError,
    KeyBindingError,
    MissingClaimError,
)

GPU, SWITCH = "gpu", "switch"
CHAIN_LENGTH = 5
"""Leaf, device, provisioner, family, root."""

_PDI_BYTES = 8
_CHAINS_KEPT = 64
# The beginning of a product's name, and what kind of device and which architecture it is.
_PRODUCTS = (("GH", GPU, "HOPPER"), ("GB", GPU, "BLACKWELL"), ("LS10", SWITCH, "LS10"))

_COMPOSITE_DEVICE_ID = "2.23.133.5.4.1"
_DICE_TCB_INFO = "2.23.133.5.4.1.1"
# 2.16.840.1.101.3.4.2.2, SHA-384.
_SHA384 = bytes.fromhex("608648016503040202")
_SHA384_BYTES = 48
_INTEGER, _OCTETS, _OID, _SEQUENCE, _FWIDS, _FLAGS = 0x02, 0x04, 0x06, 0x30, 0xA6, 0x87
# DICE Attestation Architecture 1.1, OperationalFlags, by bit from the most significant.
_OPERATIONAL_FLAGS = ("not-configured", "not-secure", "recovery", "debug")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceIdentity:
    """What a chain that holds says of a device.

    Attributes:
        certificates: leaf first.
        kind: ``gpu`` or ``switch``.
        architecture: ``HOPPER``, ``BLACKWELL`` or ``LS10``.
        product: the chip, such as ``GH100``.
        pdi: the device's identity, 8 bytes.
        firmware_id: SHA-384 of the firmware that the leaf was made for.
        operational_flags: of DiceTcbInfo, by name; none where the leaf has no such field.
    """

    certificates: tuple[Certificate, ...]
    kind: str
    architecture: str
    product: str
    pdi: bytes
    firmware_id: bytes
    operational_flags: tuple[str, ...]

    @property
    def leaf(self) -> Certificate:
        """The certificate of the key that signs reports."""
        return self.certificates[0]


def verify_identity(chain: Sequence[bytes], *, anchors: Sequence[bytes], now: datetime.datetime) -> DeviceIdentity:
    """Return what a chain in DER says, if it holds now and ends at one of ``anchors``.

    Raises:
        CertificateChainError: another number or order, a link that does not hold, or a leaf of another use.
        CertificateValidityError, TrustAnchorError, AlgorithmError, EndorsementFormatError: see ``certificates``.
        EvidenceVersionError: a product that is not known.
        MissingClaimError, KeyBindingError: no firmware id, or one that is about another device's key.
    """
    # 1.
    if len(chain) != CHAIN_LENGTH:
        raise CertificateChainError("device chain", expected=f"{CHAIN_LENGTH} certificates", got=len(chain))
    identity = _identity(tuple(chain), tuple(anchors))
    for certificate in identity.certificates:
        require_valid(certificate, now=now, what="device")
    return identity


def architecture_of(product: str) -> str:
    """Return the architecture of a product's name, empty for one that is not known."""
    return next((entry[2] for entry in _PRODUCTS if product.startswith(entry[0])), "")


def product_of(certificate: Certificate) -> str:
    """Return the first word of a certificate's common name without underscores: ``GH100``, ``LS10``.

    Raises:
        CertificateChainError: no common name, or several.
    """
    names = certificate.parsed.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    words = str(names[0].value).split() if len(names) == 1 else []
    if not words:
        raise CertificateChainError("device certificate", expected="a common name", got="none")
    return words[0].replace("_", "")[:16]


def require_order(path: Sequence[Certificate], *, what: str) -> None:
    """Refuse a chain in which a certificate does not name the next one as its issuer.

    Raises:
        CertificateChainError: such a certificate.
    """
    for subject, issuer in itertools.pairwise(path):
        if subject.parsed.issuer != issuer.parsed.subject:
            raise CertificateChainError(
                f"{what} chain after {subject.subject[:60]}", expected="its issuer", got="another"
            )


def require_holding(path: Sequence[Certificate], *, anchors: Sequence[bytes], what: str) -> None:
    """Check a chain that includes its root, apart from the time: at a moment at which all of it is valid.

    The caller compares the validity of every certificate with its own time.

    Raises:
        CertificateChainError, TrustAnchorError, AlgorithmError, EndorsementFormatError: see ``certificates``.
        CertificateValidityError: there is no such moment.
    """
    require_order(path, what=what)
    moment = max(certificate.parsed.not_valid_before_utc for certificate in path)
    roots = [load_certificate(anchor, what=f"{what} root") for anchor in anchors]
    require_chain(path, anchors=[root for root in roots if root.der == path[-1].der], now=moment, what=what)


def require_signer(leaf: Certificate, *, what: str) -> None:
    """Refuse a leaf that is an authority, that does not sign, or whose key is not P-384.

    Raises:
        CertificateChainError, AlgorithmError: such a leaf.
    """
    extensions = leaf.parsed.extensions
    try:
        authority = extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        authority = False  # RFC 5280, section 4.2.1.9: without the extension it is none
    try:
        signs = extensions.get_extension_for_class(x509.KeyUsage).value.digital_signature
    except x509.ExtensionNotFound:
        signs = False
    if authority or not signs:
        raise CertificateChainError(f"{what} leaf", expected="a key that signs and no authority", got="another use")
    key = leaf.public_key
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise AlgorithmError(f"{what} leaf key", expected="P-384", got="another")


@functools.lru_cache(maxsize=_CHAINS_KEPT)
def _identity(chain: tuple[bytes, ...], anchors: tuple[bytes, ...]) -> DeviceIdentity:
    """Read and check a chain, apart from the time; it depends on nothing but its arguments."""
    path = tuple(load_certificate(der, what="device certificate") for der in chain)
    # 2.
    require_holding(path, anchors=anchors, what="device")
    # 3.
    require_signer(path[0], what="device")
    product = product_of(path[0])
    if product_of(path[1]) != product:
        raise CertificateChainError("device product", expected=product, got=product_of(path[1]))
    known = next((entry for entry in _PRODUCTS if product.startswith(entry[0])), None)
    if known is None:
        raise EvidenceVersionError("device product", expected=", ".join(entry[0] for entry in _PRODUCTS), got=product)
    # 4.
    firmware_id, flags = _firmware(path[0], path[1])
    return DeviceIdentity(
        certificates=path,
        kind=known[1],
        architecture=known[2],
        product=product,
        pdi=(path[1].serial % (1 << 8 * _PDI_BYTES)).to_bytes(_PDI_BYTES),
        firmware_id=firmware_id,
        operational_flags=flags,
    )


def _firmware(leaf: Certificate, device: Certificate) -> tuple[bytes, tuple[str, ...]]:
    composite, tcb_info = leaf.extension(_COMPOSITE_DEVICE_ID), leaf.extension(_DICE_TCB_INFO)
    if (composite is None) == (tcb_info is None):
        raise MissingClaimError("firmware id of the leaf", expected="one DICE extension", got="none or two")
    if composite is not None:
        return _composite_device_id(composite, device), ()
    return _tcb_info(tcb_info or b"")


def _composite_device_id(value: bytes, device: Certificate) -> bytes:
    """Read CompositeDeviceID ::= SEQUENCE { version, deviceID SubjectPublicKeyInfo, fwid FWID }."""
    parts = _sequence(value)
    if [tag for tag, _ in parts] != [_INTEGER, _SEQUENCE, _SEQUENCE] or parts[0][1] != b"\x01":
        raise EndorsementFormatError("CompositeDeviceID", expected="version 1, key and FWID", got="something else")
    if _encoded(*parts[1]) != device.spki:
        raise KeyBindingError("DeviceID of the leaf", expected="the key of the device above it", got="another")
    return _fwid(parts[2])


def _tcb_info(value: bytes) -> tuple[bytes, tuple[str, ...]]:
    """Read the first FWID and the flags of DiceTcbInfo."""
    elements = _sequence(value)
    fields = dict(elements)
    if len(fields) != len(elements):
        raise EndorsementFormatError("DiceTcbInfo", expected="each field once", got="one twice")
    firmware_ids = list(_elements(fields.get(_FWIDS, b"")))
    if not firmware_ids:
        raise MissingClaimError("DiceTcbInfo", expected="FWIDs", got="none")
    bits = fields.get(_FLAGS, b"\x00\x00")
    if len(bits) < 2 or bits[0] > 7:
        raise EndorsementFormatError("DiceTcbInfo flags", expected="a bit string", got=bits.hex()[:20])
    flags = tuple(name for bit, name in enumerate(_OPERATIONAL_FLAGS) if bits[1] & (0x80 >> bit))
    return _fwid(firmware_ids[0]), flags


def _fwid(element: tuple[int, bytes]) -> bytes:
    """Read FWID ::= SEQUENCE { hashAlg, digest }, with SHA-384."""
    tag, content = element
    parts = list(_elements(content)) if tag == _SEQUENCE else []
    if [part[0] for part in parts] != [_OID, _OCTETS] or parts[0][1] != _SHA384 or len(parts[1][1]) != _SHA384_BYTES:
        raise EndorsementFormatError("FWID", expected="a SHA-384 digest", got="something else")
    return parts[1][1]


def _sequence(value: bytes) -> list[tuple[int, bytes]]:
    outer = list(_elements(value))
    if len(outer) != 1 or outer[0][0] != _SEQUENCE:
        raise EndorsementFormatError("DICE extension", expected="one sequence", got="something else")
    return list(_elements(outer[0][1]))


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield tag and content of DER elements of at most 64 KiB, one after the other, to the last byte."""
    position = 0
    while position < len(data):
        header = data[position : position + 4]
        length, start = (header[1], 2) if len(header) > 1 else (0x80, 2)
        if length & 0x80:
            size = length & 0x7F
            length, start = int.from_bytes(header[2 : 2 + size]), 2 + size
            # A header of four bytes has room for two of length; DER has no longer form than needed.
            if len(header) < start or length < 1 << (7 if size == 1 else 8):
                raise EndorsementFormatError("DICE extension", expected="DER", got="something else")
        end = position + start + length
        if end > len(data):
            raise EndorsementFormatError("DICE extension", expected="DER", got="cut short")
        yield header[0], data[position + start : end]
        position = end


def _encoded(tag: int, content: bytes) -> bytes:
    """Return the DER of an element of at most 64 KiB."""
    size = len(content)
    length = bytes([size]) if size < 0x80 else b"\x81" + bytes([size]) if size < 0x100 else b"\x82" + size.to_bytes(2)
    return bytes([tag]) + length + content
