"""NVIDIA's reference integrity manifests (RIM): which measurements a driver, VBIOS or switch BIOS may have.

A manifest is a SWID tag (ISO/IEC 19770-2) with a signature inside it. ``verify_rim`` goes this way:

1. the document is of the one form that ``xmldsig`` reads;
2. every certificate of its chain is valid now;
3. the chain, which includes its root, holds and ends at a pinned root for manifests; its leaf signs;
4. the leaf has signed the document;
5. what it says is read, from the signed bytes alone: version, product, and for each index of a measurement whether it
   is active and which values it may have. Anything that is not known is refused.

A manifest names a product and a version. It does not name the board (project and SKUs), which NVIDIA's service has in
its names for VBIOS manifests only: that a manifest is the board's own shows in its values, which are compared.

Index n of a manifest is SPDM's measurement n + 1. A golden value of zeros stands for firmware or hardware that is not
there; NVIDIA's manifests have such values, and reports of genuine devices match them. A match of zeros says nothing;
``Comparison`` counts it apart, and a floor refuses a manifest that has no other (``policy.nvidia_gpu``).

Manifests that hold are kept (bounded, by their bytes and roots); validity is compared at every call.

Source: TCG Reference Integrity Manifest (RIM) Information Model 1.01; NVIDIA attestation-sdk (github.com/NVIDIA), rim
and gpu/verify, for index, alternatives and measurement 35, which counts only where NVDEC0 is on.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from confed.attestation.certificates import Certificate, load_certificate, require_valid
from confed.attestation.tee import xmldsig
from confed.attestation.tee.nvidia_identity import GPU, SWITCH, architecture_of, require_holding, require_signer
from confed.attestation.tee.nvidia_opaque import DRIVER_VERSION, MEASUREMENT_BYTES, VBIOS_VERSION
from confed.errors import ReferenceManifestError

DRIVER, VBIOS = "driver", "vbios"
VIDEO_DECODER_INDEX = 35
"""The manifest's index of NVDEC0's firmware."""

_KEPT = 64
_INDEX_LIMIT = 254
_ALTERNATIVES_LIMIT = 32
_SWID = "{http://standards.iso.org/iso/19770/-2/2015/schema.xsd}"
_TCG = "{https://trustedcomputinggroup.org/resource/tcg-reference-integrity-manifest-rim-information-model/}"
_HASH = "{http://www.w3.org/2001/04/xmlenc#sha384}Hash"
# NVIDIA's private enterprise number (IANA).
_NVIDIA = "5703"
_EDITIONS = {"GPU": GPU, "SWITCH": SWITCH}
_NUMBER = re.compile(r"(0|[1-9][0-9]{0,2})\Z")
_DIGEST = re.compile(r"[0-9a-f]{96}\Z")
_PRODUCT = re.compile(r"[A-Z0-9]{3,16}\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class RimName:
    """What a manifest is for.

    Attributes:
        device: ``gpu`` or ``switch``.
        kind: ``driver``, or ``vbios`` (of switches: their BIOS).
        architecture: ``HOPPER``, ``BLACKWELL`` or ``LS10``; empty for a product that is not known.
        version: as reports have it, such as ``550.90.07`` or ``96.00.9F.00.01``.
    """

    device: str
    kind: str
    architecture: str
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rim:
    """A manifest whose signature and chain hold.

    Attributes:
        name: what it is for.
        product: the chip, as the manifest writes it.
        golden: by the manifest's index, the values that a measurement may have; active ones only.
        digest: SHA-256 of the manifest's bytes as received.
        certificates: of its signer, leaf first, with the root.
    """

    name: RimName
    product: str
    golden: Mapping[int, tuple[bytes, ...]]
    digest: bytes
    certificates: tuple[Certificate, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How a device's measurements compare with a manifest, by the manifest's index.

    Attributes:
        matched: how many have one of their golden values.
        zeros: how many of those are zeros.
        mismatched: which have another value, or none.
        skipped: which do not count on this device.
    """

    matched: int
    zeros: int
    mismatched: tuple[int, ...]
    skipped: tuple[int, ...]


def is_rim(data: bytes) -> bool:
    """Tell a manifest from other endorsements: it is XML."""
    return data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<")


def unverified_name(data: bytes) -> RimName:
    """Return what a manifest claims to be for: good for choosing which one to verify, and for nothing else.

    Raises:
        ReferenceManifestError, AlgorithmError: not of the one form.
    """
    return _unverified(data)[1].name


def verify_rim(data: bytes, *, anchors: Sequence[bytes], now: datetime.datetime) -> Rim:
    """Return a manifest that a chain to one of ``anchors`` vouches for now.

    Args:
        data: the manifest, XML.
        anchors: pinned roots for manifests, DER.
        now: aware time to judge at.

    Raises:
        ReferenceManifestError: another form, digest or signature.
        AlgorithmError: other algorithms.
        CertificateValidityError: a certificate of the chain before or after its time.
        CertificateChainError, TrustAnchorError, EndorsementFormatError: a chain that does not hold.
    """
    # 1.
    _, unverified = _unverified(data)
    # 2.
    for certificate in unverified.certificates:
        require_valid(certificate, now=now, what="manifest")
    # 3. to 5.
    return _verified(data, tuple(anchors))


def compare(rim: Rim, measurements: Mapping[int, bytes], *, skip: Collection[int] = ()) -> Comparison:
    """Compare measurements (by SPDM's index) with a manifest's, index by index.

    Args:
        rim: what the manifest allows.
        measurements: what the device reports.
        skip: indices of the manifest that do not count on this device.
    """
    counted = {index: values for index, values in rim.golden.items() if index not in skip}
    matched = [index for index, values in counted.items() if measurements.get(index + 1) in values]
    return Comparison(
        matched=len(matched),
        zeros=sum(not any(measurements[index + 1]) for index in matched),
        mismatched=tuple(sorted(set(counted) - set(matched))),
        skipped=tuple(sorted(set(rim.golden) - set(counted))),
    )


@functools.lru_cache(maxsize=_KEPT)
def _unverified(data: bytes) -> tuple[xmldsig.UnverifiedDocument, Rim]:
    document = xmldsig.read_document(data, what="manifest")
    path = tuple(load_certificate(der, what="manifest certificate") for der in document.certificates)
    return document, _read(document.unverified_content, path, digest=hashlib.sha256(data).digest())


@functools.lru_cache(maxsize=_KEPT)
def _verified(data: bytes, anchors: tuple[bytes, ...]) -> Rim:
    """Check chain and signature, apart from the time; it depends on nothing but its arguments."""
    document, unverified = _unverified(data)
    # 3.
    require_holding(unverified.certificates, anchors=anchors, what="manifest")
    leaf = unverified.certificates[0]
    require_signer(leaf, what="manifest")
    # 4.
    content = xmldsig.verified_content(document, leaf.public_key, what="manifest")
    # 5.
    return _read(content, unverified.certificates, digest=unverified.digest)


def _read(content: bytes, certificates: tuple[Certificate, ...], *, digest: bytes) -> Rim:
    root = xmldsig.parse_xml(content, what="manifest")
    parts: dict[str, list[Any]] = {f"{_SWID}{name}": [] for name in ("Entity", "Meta", "Payload")}
    for child in root:
        _require(child.tag in parts, "element", "Entity, Meta or Payload", child.tag)
        parts[child.tag].append(child)
    meta, payload = parts[f"{_SWID}Meta"], parts[f"{_SWID}Payload"]
    _require(root.tag == f"{_SWID}SoftwareIdentity", "root", "SoftwareIdentity", root.tag)
    _require(len(meta) == len(payload) == 1, "elements", "one Meta and one Payload", len(meta) + len(payload))
    product = str(meta[0].get("product"))
    _require(bool(_PRODUCT.match(product)), "product", "a chip's name", product)
    return Rim(
        name=_read_name(meta[0], product),
        product=product,
        golden=_read_golden(payload[0]),
        digest=digest,
        certificates=certificates,
    )


def _read_name(meta: Any, product: str) -> RimName:
    version, edition = str(meta.get("colloquialVersion")).upper(), str(meta.get("edition"))
    maker = meta.get(f"{_TCG}PlatformManufacturerId")
    _require(maker == _NVIDIA, "PlatformManufacturerId", _NVIDIA, maker)
    _require(edition in _EDITIONS, "edition", "GPU or SWITCH", edition)
    kind = VBIOS if VBIOS_VERSION.match(version) else DRIVER if DRIVER_VERSION.match(version) else None
    if kind is None:
        raise ReferenceManifestError("manifest version", expected="a driver's or a VBIOS's", got=version[:40])
    return RimName(device=_EDITIONS[edition], kind=kind, architecture=architecture_of(product), version=version)


def _read_golden(payload: Any) -> dict[int, tuple[bytes, ...]]:
    golden = dict[int, tuple[bytes, ...]]()
    seen = set[int]()
    for resource in payload:
        _require(resource.tag == f"{_SWID}Resource" and not len(resource), "payload", "resources", resource.tag)
        attributes = {str(name): str(value) for name, value in resource.attrib.items()}
        index = _number(attributes, "index", _INDEX_LIMIT)
        values = _read_values(attributes, index)
        _require(index not in seen, "index", "each once", index)
        seen.add(index)
        if attributes["active"] == "True":
            golden[index] = values
    return golden


def _read_values(attributes: Mapping[str, str], index: int) -> tuple[bytes, ...]:
    """Return the alternatives of a measurement, after its attributes are all known and of their one form."""
    count = _number(attributes, "alternatives", _ALTERNATIVES_LIMIT)
    names = [f"{_HASH}{alternative}" for alternative in range(count)]
    known = {"type", "index", "active", "alternatives", "name", "size", *names}
    _require(set(attributes) == known and count > 0, f"attributes of index {index}", "the known ones", "others")
    _require(attributes["type"] == "Measurement", "type", "Measurement", attributes["type"])
    _require(attributes["active"] in ("True", "False"), "active", "True or False", attributes["active"])
    _require(attributes["size"] == str(MEASUREMENT_BYTES), "size", MEASUREMENT_BYTES, attributes["size"])
    values = [attributes[name].lower() for name in names]
    _require(all(_DIGEST.match(value) for value in values), f"values of index {index}", "SHA-384", "something else")
    return tuple(bytes.fromhex(value) for value in values)


def _number(attributes: Mapping[str, str], name: str, limit: int) -> int:
    text = attributes.get(name, "")
    _require(bool(_NUMBER.match(text)) and int(text) <= limit, name, f"a number up to {limit}", text)
    return int(text)


def _require(holds: bool, field: str, expected: object, got: object) -> None:  # noqa: FBT001
    if not holds:
        raise ReferenceManifestError(f"manifest {field}", expected=expected, got=str(got)[:80])
