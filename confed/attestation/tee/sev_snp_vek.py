"""The certificate of a versioned endorsement key (VEK), which signs SEV-SNP reports: what AMD wrote into it.

There are two kinds. A VCEK belongs to one chip and names it (HWID); a VLEK is loaded by a cloud, belongs to no chip and
names the cloud (CSP_ID). Both name their product and the TCB that they were derived from. Nothing read here is to be
believed before the certificate's chain has been verified.

1. the name and the key say what kind it is;
2. the extensions are read, each in its one form;
3. ``require_endorses``: TCB and chip are those of the report.

Source: AMD 57230 (VCEK certificate and KDS interface), chapter 3, and its counterpart for VLEK.
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from confed.attestation.certificates import Certificate
from confed.attestation.tee.sev_snp_report import Product, SigningKey
from confed.errors import AlgorithmError, EndorsementFormatError, EndorsementMismatchError

_BASE = "1.3.6.1.4.1.3704.1"
_STRUCT_VERSION, _PRODUCT_NAME, _HWID, _CSP_ID = f"{_BASE}.1", f"{_BASE}.2", f"{_BASE}.4", f"{_BASE}.5"

# The extension that holds each byte of TCB_VERSION, lowest first; reserved bytes have one too.
_BEFORE_TURIN = (1, 2, 4, 5, 6, 7, 3, 8)
_TCB_EXTENSIONS = {
    Product.MILAN: _BEFORE_TURIN,
    Product.GENOA: _BEFORE_TURIN,
    Product.TURIN: (9, 1, 2, 3, 5, 6, 7, 8),
}
_HWID_BYTES = {Product.MILAN: 64, Product.GENOA: 64, Product.TURIN: 8}
_CHIP_ID_BYTES = 64
_KNOWN_STRUCT_VERSIONS = (0, 1)
_LONGEST_TEXT = 127
_INTEGER, _OCTET_STRING, _IA5_STRING = 0x02, 0x04, 0x16


@dataclass(frozen=True, slots=True, kw_only=True)
class Vek:
    """What a VEK certificate says.

    Attributes:
        kind: by the subject's name.
        product: by the product name, whose stepping (``Milan-B0``) is left out.
        tcb: the eight bytes of the TCB_VERSION that it was made for.
        chip_id: HWID as a report shows it, 64 bytes; ``None`` in a VLEK.
        csp_id: the cloud; empty in a VCEK.
    """

    certificate: Certificate
    kind: SigningKey
    product: Product
    tcb: bytes
    chip_id: bytes | None
    csp_id: str


def common_name(certificate: Certificate) -> str:
    """Return the subject's common name; empty where there is not exactly one."""
    names = certificate.parsed.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if len(names) == 1 else ""


def kind_of(certificate: Certificate) -> SigningKey | None:
    """Return which key a certificate is for by its name, or ``None`` where it is not a VEK's."""
    return {f"SEV-{kind}": kind for kind in SigningKey}.get(common_name(certificate))


def read_vek(certificate: Certificate) -> Vek:
    """Return what a VEK certificate says.

    Raises:
        EndorsementFormatError: not a VEK's name, or an extension that is missing or not of its one form.
        AlgorithmError: a key that is not on P-384.
    """
    # 1.
    kind = kind_of(certificate)
    if kind is None:
        raise EndorsementFormatError("VEK subject", expected="SEV-VCEK or SEV-VLEK", got=certificate.subject[:80])
    key = certificate.public_key
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise AlgorithmError(f"{kind} key", expected="a key on P-384", got="another")
    # 2.
    version = _number(certificate, _STRUCT_VERSION)
    if version not in _KNOWN_STRUCT_VERSIONS:
        raise EndorsementFormatError(f"{kind} structure", expected="version 0 or 1", got=version)
    product = _product(_text(certificate, _PRODUCT_NAME))
    is_chip = kind is SigningKey.VCEK
    absent = _CSP_ID if is_chip else _HWID
    if certificate.extension(absent) is not None:
        raise EndorsementFormatError(f"{kind} extensions", expected=f"no {absent}", got="one")
    return Vek(
        certificate=certificate,
        kind=kind,
        product=product,
        tcb=bytes(_number(certificate, f"{_BASE}.3.{part}") for part in _TCB_EXTENSIONS[product]),
        chip_id=_chip_id(certificate, product) if is_chip else None,
        csp_id="" if is_chip else _text(certificate, _CSP_ID),
    )


def require_endorses(vek: Vek, *, tcb: bytes, chip_id: bytes) -> None:
    """Check that a VEK was made for the TCB and chip of a report.

    A VCEK's report may mask its chip (64 zeros): the signature by that chip's own key then says which it is.

    Args:
        vek: from ``read_vek``.
        tcb: REPORTED_TCB, eight bytes.
        chip_id: CHIP_ID, 64 bytes.

    Raises:
        EndorsementMismatchError: one of them is another.
    """
    # 3.
    if vek.tcb != tcb:
        raise EndorsementMismatchError(f"{vek.kind} TCB", expected=tcb.hex(), got=vek.tcb.hex())
    if vek.chip_id is not None and any(chip_id) and vek.chip_id != chip_id:
        raise EndorsementMismatchError("VCEK chip", expected=chip_id.hex()[:16], got=vek.chip_id.hex()[:16])


def _product(name: str) -> Product:
    try:
        return Product(name.partition("-")[0])
    except ValueError as error:
        raise EndorsementFormatError("VEK product", expected=", ".join(Product), got=repr(name)[:60]) from error


def _chip_id(certificate: Certificate, product: Product) -> bytes:
    """Return HWID padded as in a report: raw bytes (as most VCEKs have it) or an OCTET STRING, told apart by length."""
    value, size = _extension(certificate, _HWID), _HWID_BYTES[product]
    if len(value) != size:
        value = _content(value, _OCTET_STRING, _HWID)
    if len(value) != size:
        raise EndorsementFormatError("VCEK HWID", expected=f"{size} bytes", got=len(value))
    return value.ljust(_CHIP_ID_BYTES, b"\0")


def _number(certificate: Certificate, oid: str) -> int:
    """Return an INTEGER from 0 to 255."""
    content = _content(_extension(certificate, oid), _INTEGER, oid)
    value = int.from_bytes(content, "big", signed=True)
    if len(content) != value.bit_length() // 8 + 1 or not 0 <= value <= 0xFF:
        raise EndorsementFormatError(f"VEK extension {oid}", expected="a number from 0 to 255", got=content.hex()[:20])
    return value


def _text(certificate: Certificate, oid: str) -> str:
    content = _content(_extension(certificate, oid), _IA5_STRING, oid)
    try:
        text = content.decode("ascii")
    except UnicodeDecodeError as error:
        raise EndorsementFormatError(f"VEK extension {oid}", expected="ASCII text", got="something else") from error
    if not text or not text.isprintable():
        raise EndorsementFormatError(f"VEK extension {oid}", expected="printable text", got="something else")
    return text


def _extension(certificate: Certificate, oid: str) -> bytes:
    value = certificate.extension(oid)
    if value is None:
        raise EndorsementFormatError("VEK extensions", expected=oid, got="none")
    return value


def _content(value: bytes, tag: int, oid: str) -> bytes:
    """Return the content of one short DER element and nothing after it."""
    if len(value) < 2 or value[0] != tag or value[1] > _LONGEST_TEXT or len(value) != 2 + value[1]:
        raise EndorsementFormatError(f"VEK extension {oid}", expected=f"an element of tag {tag:#x}", got="another")
    return value[2:]
