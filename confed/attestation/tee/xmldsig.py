"""XML signatures in the one form that NVIDIA's manifests have, and in no other.

XML signatures allow so much that verifiers are attacked through it: another element than the signed one is read,
transforms run, keys and references are fetched. Here exactly one form is accepted:

1. The text is bounded UTF-8 without a document type, hence without entities; nothing is loaded from anywhere, and there
   is no ``xml:`` attribute (with none, C14N 1.1 and 1.0 give the same bytes, and lxml has the latter).
2. There is exactly one ``Signature``, a child of the root, with ``SignedInfo``, ``SignatureValue`` and ``KeyInfo``.
3. ``SignedInfo`` holds exactly one reference, to the whole document (``URI=""``), with the transforms enveloped
   signature and C14N 1.1; the algorithms are SHA-384 and ECDSA with SHA-384.
4. ``KeyInfo`` holds certificates and nothing else. Which of them is believed is the caller's decision.
5. The canonical bytes of the document without its signature are made, and those of ``SignedInfo``.
6. ``verified_content`` compares the digest, checks the signature with the key that the caller trusts, and returns the
   canonical bytes: whatever is read afterwards is read from exactly what was signed.

Why not signxml: it is one more dependency that accepts many forms, to be narrowed again; this form is one page long.

Source: W3C, XML Signature Syntax and Processing 1.1, sections 3.2, 4 and 6; Canonical XML 1.1, section 2; RFC 6931,
sections 2.1.3 and 2.3.6 for the algorithms.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from lxml import etree  # pyright: ignore[reportAttributeAccessIssue]  # lxml ships no types

from confed.attestation.certificates import CERTIFICATE_LIMIT_BYTES, verify_signature
from confed.errors import AlgorithmError, EvidenceSignatureError, ReferenceManifestError

DOCUMENT_LIMIT_BYTES = 256 * 1024
"""Largest document."""

_CERTIFICATES_LIMIT = 8
_XML = "{http://www.w3.org/XML/1998/namespace}"
_DS = "{http://www.w3.org/2000/09/xmldsig#}"
_ENVELOPED = "http://www.w3.org/2000/09/xmldsig#enveloped-signature"
_C14N_1_1 = "http://www.w3.org/2006/12/xml-c14n11"
_ECDSA_SHA384 = "http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha384"
_SHA384 = "http://www.w3.org/2001/04/xmldsig-more#sha384"
_DIGEST_BYTES, _SIGNATURE_BYTES = 48, 96


@dataclass(frozen=True, slots=True, kw_only=True)
class UnverifiedDocument:
    """A document of the one form, whose digest and signature nobody has checked yet.

    Attributes:
        unverified_content: the document without its signature, as canonical bytes.
        digest: what ``SignedInfo`` says that their digest is.
        signed_info: ``SignedInfo`` as canonical bytes, which the signature is over.
        signature: r and s, 48 bytes each.
        certificates: those of ``KeyInfo`` in DER, in their order.
    """

    unverified_content: bytes
    digest: bytes
    signed_info: bytes
    signature: bytes
    certificates: tuple[bytes, ...]


def read_document(data: bytes, *, what: str) -> UnverifiedDocument:
    """Return the parts of a signed document of the one form.

    Raises:
        ReferenceManifestError: any other form.
        AlgorithmError: other algorithms.
    """
    # 1.
    root = parse_xml(data, what=what)
    # 2.
    signature = _only_signature(root, what)
    signed_info, value, key_info = _children(signature, ("SignedInfo", "SignatureValue", "KeyInfo"), what)
    _require_attributes(signature, {}, what)
    # 3.
    digest = _read_signed_info(signed_info, what)
    # 4.
    certificates = _read_certificates(key_info, what)
    # 5.
    canonical_info = _canonical(signed_info, what)
    _detach(signature)
    return UnverifiedDocument(
        unverified_content=_canonical(root.getroottree(), what),
        digest=digest,
        signed_info=canonical_info,
        signature=_base64(value, what, limit=_SIGNATURE_BYTES),
        certificates=certificates,
    )


def verified_content(document: UnverifiedDocument, key: PublicKeyTypes, *, what: str) -> bytes:
    """Return the canonical bytes that ``key`` has signed.

    Raises:
        ReferenceManifestError: another digest, or a signature that does not hold.
        AlgorithmError: a key that is not P-384.
    """
    # 6.
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise AlgorithmError(f"{what} key", expected="P-384", got="another")
    content = document.unverified_content
    found = hashlib.sha384(content).digest()
    if found != document.digest:
        raise ReferenceManifestError(f"{what} digest", expected=document.digest.hex()[:32], got=found.hex()[:32])
    if len(document.signature) != _SIGNATURE_BYTES:
        raise ReferenceManifestError(f"{what} signature in bytes", expected=96, got=len(document.signature))
    half = _SIGNATURE_BYTES // 2
    r, s = (int.from_bytes(part) for part in (document.signature[:half], document.signature[half:]))
    try:
        verify_signature(key, encode_dss_signature(r, s), document.signed_info, algorithm=hashes.SHA384(), what=what)
    except EvidenceSignatureError as error:
        raise ReferenceManifestError(f"{what} signature", expected="its signer's", got="another") from error
    return content


def parse_xml(data: bytes, *, what: str) -> etree._Element:
    """Return the root of bounded XML without a document type, entities or ``xml:`` attributes.

    Raises:
        ReferenceManifestError: anything else.
    """
    if len(data) > DOCUMENT_LIMIT_BYTES:
        raise ReferenceManifestError(f"{what} in bytes", expected=f"at most {DOCUMENT_LIMIT_BYTES}", got=len(data))
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        raise ReferenceManifestError(what, expected="XML without a document type", got="one")
    parser = etree.XMLParser(
        encoding="utf-8",
        resolve_entities=False,
        no_network=True,
        load_dtd=False,
        dtd_validation=False,
        huge_tree=False,
    )
    try:
        data.decode("utf-8")
        root = etree.fromstring(data, parser)
    except (etree.LxmlError, ValueError) as error:
        raise ReferenceManifestError(what, expected="XML in UTF-8", got="something else") from error
    if root.getroottree().docinfo.doctype or any(_is_foreign(node) for node in root.iter()):
        raise ReferenceManifestError(what, expected="elements and attributes alone", got="something else")
    return root


def _is_foreign(node: etree._Element) -> bool:
    """Tell whether a node is no element (a comment, an instruction, an entity), or has an ``xml:`` attribute."""
    if not isinstance(node.tag, str):
        return True
    return any(str(name).startswith(_XML) for name in node.attrib)


def _only_signature(root: etree._Element, what: str) -> etree._Element:
    found = list(root.iter(f"{_DS}Signature"))
    if len(found) != 1 or found[0].getparent() is not root:
        raise ReferenceManifestError(f"{what} signature", expected="one, below the root", got=len(found))
    return found[0]


def _children(parent: etree._Element, names: tuple[str, ...], what: str) -> list[etree._Element]:
    children = list(parent)
    if [child.tag for child in children] != [f"{_DS}{name}" for name in names]:
        raise ReferenceManifestError(f"{what} signature", expected=", ".join(names), got="other elements")
    return children


def _require_attributes(element: etree._Element, expected: dict[str, str], what: str) -> None:
    found = {str(name): str(value) for name, value in element.attrib.items()}
    if set(found) != set(expected):
        raise ReferenceManifestError(f"{what} signature", expected="known attributes", got=", ".join(found)[:80])
    for name, value in expected.items():
        if found[name] != value:
            error = AlgorithmError if name == "Algorithm" else ReferenceManifestError
            raise error(f"{what} signature {name}", expected=value, got=found[name][:80])


def _read_signed_info(signed_info: etree._Element, what: str) -> bytes:
    method, algorithm, reference = _children(
        signed_info, ("CanonicalizationMethod", "SignatureMethod", "Reference"), what
    )
    transforms, digest_method, digest = _children(reference, ("Transforms", "DigestMethod", "DigestValue"), what)
    enveloped, canonical = _children(transforms, ("Transform", "Transform"), what)
    for element, expected in (
        (signed_info, {}),
        (method, {"Algorithm": _C14N_1_1}),
        (algorithm, {"Algorithm": _ECDSA_SHA384}),
        (reference, {"URI": ""}),
        (transforms, {}),
        (enveloped, {"Algorithm": _ENVELOPED}),
        (canonical, {"Algorithm": _C14N_1_1}),
        (digest_method, {"Algorithm": _SHA384}),
        (digest, {}),
    ):
        _require_attributes(element, expected, what)
    for leaf in (method, algorithm, enveloped, canonical, digest_method):
        _children(leaf, (), what)
    return _base64(digest, what, limit=_DIGEST_BYTES)


def _read_certificates(key_info: etree._Element, what: str) -> tuple[bytes, ...]:
    (data,) = _children(key_info, ("X509Data",), what)
    count = len(data)
    if not 1 <= count <= _CERTIFICATES_LIMIT:
        raise ReferenceManifestError(f"{what} certificates", expected=f"1 to {_CERTIFICATES_LIMIT}", got=count)
    found = _children(data, ("X509Certificate",) * count, what)
    return tuple(_base64(element, what, limit=CERTIFICATE_LIMIT_BYTES) for element in found)


def _base64(element: etree._Element, what: str, *, limit: int) -> bytes:
    text = "".join((element.text or "").split())
    if len(element) or len(text) > 2 * limit:
        raise ReferenceManifestError(f"{what} signature", expected="base64 text", got="something else")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ReferenceManifestError(f"{what} signature", expected="base64 text", got="something else") from error


def _detach(element: etree._Element) -> None:
    """Remove an element and leave the text that follows it, as the enveloped-signature transform does."""
    parent, before, tail = element.getparent(), element.getprevious(), element.tail or ""
    if parent is None:
        return
    if before is not None:
        before.tail = (before.tail or "") + tail
    else:
        parent.text = (parent.text or "") + tail
    parent.remove(element)


def _canonical(node: etree._Element | etree._ElementTree, what: str) -> bytes:
    try:
        return etree.tostring(node, method="c14n", with_comments=False)
    except (etree.LxmlError, ValueError) as error:
        raise ReferenceManifestError(what, expected="XML with a canonical form", got="none") from error
