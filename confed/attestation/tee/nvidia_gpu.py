"""NVIDIA GPUs and NVSwitches: are their reports genuine, fresh, and of distinct devices?

For every device:

1. its five certificates end at the pinned root for devices and are valid now (``nvidia_identity``);
2. the report is parsed to its true length, and the leaf has signed all of it (``nvidia_report``);
3. the request that it answers carries the verifier's nonce;
4. certificates and report speak of the same firmware (FWID; a GPU's driver leaves it out only if it is older than 550)
   and, for a switch, of the same device (PDI);
5. of the manifests that were given, those of its driver and VBIOS version are verified against the pinned root for
   manifests and compared, index by index (``nvidia_rim``); manifests of that kind for other versions alone are refused,
   and so are driver and VBIOS manifests that speak of the same measurement;
6. of the OCSP responses that were given, those of its certificates and of its manifests' are verified (``ocsp``): a
   revoked certificate is refused; hold and unknown are told, and a policy decides.

And over all of them:

7. there are at most 16 devices, and no two with the same key, identity or report. So a copy never counts twice.

OCSP covers the certificates that NVIDIA issued: of a device all but its leaf, which the device makes itself, and the
root; of a manifest all but the root. Whether golden values match, and what modes are accepted, is appraisal.

Nonces that NVIDIA's samples use are not treated apart: evidence is fresh if it carries the nonce that this verifier
made. In an envelope it derives from the binding; where a caller of ``verify_files`` gives none, freshness is unchecked.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import importlib.resources
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.x509.oid import NameOID

from confed.attestation.certificates import Certificate, load_certificate, load_certificates, verify_signature
from confed.attestation.evidence import Expectation
from confed.attestation.tee import nvidia_evidence, nvidia_rim, ocsp
from confed.attestation.tee.nvidia_claims import (
    GOOD,
    HOLD,
    HOLD_UNKNOWN,
    UNKNOWN,
    NvidiaClaims,
    NvidiaDevice,
    NvidiaManifest,
)
from confed.attestation.tee.nvidia_evidence import DEVICE_LIMIT, DeviceEvidence
from confed.attestation.tee.nvidia_identity import GPU, SWITCH, DeviceIdentity, verify_identity
from confed.attestation.tee.nvidia_opaque import manifest_ids
from confed.attestation.tee.nvidia_report import UnverifiedReport, parse_report
from confed.attestation.tee.nvidia_rim import DRIVER, VBIOS, Rim, RimName
from confed.errors import (
    BindingMismatchError,
    DuplicateDeviceError,
    EndorsementFormatError,
    EndorsementMismatchError,
    EvidenceFormatError,
    EvidenceSizeError,
    MissingClaimError,
    NonceError,
    ReferenceManifestError,
    TrustAnchorError,
)

PROFILE = "nvidia-gpu/1"

_ENDORSEMENT_LIMIT = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class _Context:
    """What all devices are verified against."""

    device_roots: tuple[bytes, ...]
    manifest_roots: tuple[bytes, ...]
    manifests: tuple[tuple[RimName, bytes], ...]
    responses: tuple[ocsp.OcspResponse, ...]
    nonce: bytes | None
    now: datetime.datetime


def verify_devices(
    device_evidence: Sequence[bytes],
    *,
    endorsements: Sequence[bytes],
    nonce: bytes,
    now: datetime.datetime,
    anchors: Sequence[bytes],
) -> NvidiaClaims:
    """Return what the devices of an envelope say, if all of them are genuine, fresh and distinct.

    Args:
        device_evidence: one record for each device (``nvidia_evidence.encode_record``).
        endorsements: manifests and OCSP responses; others, which may be for the CPU's TEE, are left alone.
        nonce: 32 bytes, derived from the binding.
        now: aware time to judge at.
        anchors: roots in DER: for devices, and for manifests where there are any.

    Raises:
        AttestationError: of the class that says why not; see the module.
    """
    if not 1 <= len(device_evidence) <= DEVICE_LIMIT:
        raise EvidenceSizeError("devices", expected=f"1 to {DEVICE_LIMIT}", got=len(device_evidence))
    devices = [nvidia_evidence.decode_record(data) for data in device_evidence]
    known = [data for data in endorsements if nvidia_rim.is_rim(data) or ocsp.is_response(data)]
    return _verify(devices, _context(known, anchors=anchors, nonce=nonce, now=now))


def verify_files(
    evidence: bytes,
    endorsements: Sequence[bytes],
    *,
    expectation: Expectation,
    now: datetime.datetime,
    anchors: Sequence[bytes] | None,
) -> NvidiaClaims:
    """Return what the devices in vendors' files say, if all of them are genuine and distinct.

    Args:
        evidence: a report (binary or hexadecimal), or NVIDIA's JSON list.
        endorsements: the report's chain (PEM), manifests (XML) and OCSP responses (DER), in any order.
        expectation: the nonce; ``None`` leaves freshness unchecked.
        now: aware time to judge at.
        anchors: roots in DER; ``None`` for NVIDIA's.

    Raises:
        BindingMismatchError: data was expected, which no device signs.
        EndorsementFormatError: an endorsement of another kind.
        AttestationError: of the class that says why not; see the module.
    """
    if expectation.report_data is not None:
        raise BindingMismatchError("report_data", expected="a TEE that signs a caller's data", got="a device")
    chains = [data for data in endorsements if nvidia_evidence.is_chain(data)]
    others = [data for data in endorsements if not nvidia_evidence.is_chain(data)]
    devices = nvidia_evidence.read_files(evidence, chains)
    roots = pinned_roots() if anchors is None else anchors
    return _verify(devices, _context(others, anchors=roots, nonce=expectation.nonce, now=now))


class NvidiaGpuVerifier:
    """The driver for ``nvidia-gpu/1``: devices beside a TEE, whose REPORT_DATA covers their evidence."""

    PROFILE: ClassVar[str] = PROFILE

    @staticmethod
    def accepts(endorsement: bytes) -> bool:
        """Tell whether an endorsement is for devices: a manifest or an OCSP response."""
        return nvidia_rim.is_rim(endorsement) or ocsp.is_response(endorsement)

    def verify(
        self,
        device_evidence: Sequence[bytes],
        *,
        endorsements: Sequence[bytes],
        nonce: bytes,
        now_ms: int,
        anchors: Sequence[bytes],
    ) -> NvidiaClaims:
        """Return what devices say that are genuine at ``now_ms`` and whose reports answer ``nonce``.

        Raises:
            AttestationError: see ``verify_devices``.
        """
        now = datetime.datetime.fromtimestamp(now_ms / 1000, tz=datetime.UTC)
        return verify_devices(device_evidence, endorsements=endorsements, nonce=nonce, now=now, anchors=anchors)


@functools.cache
def pinned_roots() -> tuple[bytes, ...]:
    """Return NVIDIA's published roots in DER: for devices and for manifests."""
    bundle = importlib.resources.files("confed.attestation").joinpath("roots/nvidia.pem").read_bytes()
    pem = bundle[bundle.index(b"-----BEGIN") :]
    return tuple(certificate.der for certificate in load_certificates(pem, what="NVIDIA root"))


def _context(
    endorsements: Sequence[bytes], *, anchors: Sequence[bytes], nonce: bytes | None, now: datetime.datetime
) -> _Context:
    if len(endorsements) > _ENDORSEMENT_LIMIT:
        raise EndorsementFormatError("endorsements", expected=f"at most {_ENDORSEMENT_LIMIT}", got=len(endorsements))
    manifests, responses = list[tuple[RimName, bytes]](), list[ocsp.OcspResponse]()
    for data in dict.fromkeys(endorsements):
        if nvidia_rim.is_rim(data):
            manifests.append((nvidia_rim.unverified_name(data), data))
        elif ocsp.is_response(data):
            responses.append(ocsp.load_response(data))
        else:
            raise EndorsementFormatError(
                "endorsement", expected="a chain, manifest or OCSP response", got=data[:4].hex()
            )
    roots = tuple(anchors)
    if not roots:
        raise TrustAnchorError("trust anchors of devices", expected="at least one", got="none")
    return _Context(
        device_roots=tuple(root for root in roots if not _is_manifest_root(root)),
        manifest_roots=tuple(root for root in roots if _is_manifest_root(root)),
        manifests=tuple(manifests),
        responses=tuple(responses),
        nonce=nonce,
        now=now,
    )


@functools.lru_cache(maxsize=16)
def _is_manifest_root(root: bytes) -> bool:
    """Tell NVIDIA's two kinds of roots apart by name, so that a device's key can never vouch for a manifest."""
    subject = load_certificate(root, what="NVIDIA root").parsed.subject
    names = (str(name.value) for name in subject.get_attributes_for_oid(NameOID.COMMON_NAME))
    return any(word.endswith("RIM") for name in names for word in name.split())


def _verify(devices: Sequence[DeviceEvidence], context: _Context) -> NvidiaClaims:
    found = tuple(_verify_device(device, context) for device in devices)
    # 7.
    _require_distinct("report", [hashlib.sha256(device.report).digest() for device in devices])
    _require_distinct("key", [device.leaf_key for device in found])
    _require_distinct("identity (PDI)", [device.pdi for device in found])
    return NvidiaClaims(devices=found)


def _require_distinct(what: str, values: Sequence[bytes]) -> None:
    if len(set(values)) != len(values):
        raise DuplicateDeviceError(f"device {what}", expected=f"{len(values)} distinct ones", got=len(set(values)))


def _verify_device(device: DeviceEvidence, context: _Context) -> NvidiaDevice:
    # 1.
    identity = verify_identity(device.chain, anchors=context.device_roots, now=context.now)
    # 2.
    report = parse_report(device.report)
    r, s = (int.from_bytes(part) for part in (report.signature[:48], report.signature[48:]))
    verify_signature(
        identity.leaf.public_key, encode_dss_signature(r, s), report.signed, algorithm=hashes.SHA384(), what="report"
    )
    # 3.
    for expected in (context.nonce, device.nonce):
        if expected is not None and report.nonce != expected:
            raise NonceError("report nonce", expected=expected.hex()[:64], got=report.nonce.hex())
    # 4.
    _require_same_device(device, identity, report)
    # 5. and 6.
    return _claims(device, identity, report, context)


def _require_same_device(device: DeviceEvidence, identity: DeviceIdentity, report: UnverifiedReport) -> None:
    for what, told, found in (
        ("kind", device.kind, identity.kind),
        ("architecture", device.architecture, identity.architecture),
    ):
        if told is not None and told != found:
            raise EvidenceFormatError(f"device {what}", expected=found, got=told[:40])
    reported = report.opaque.firmware_id
    if reported is None and identity.kind == GPU and report.opaque.follows_firmware_id:
        raise MissingClaimError("opaque FWID", expected="one, as all drivers since 550 tell", got="none")
    if reported is not None and reported != identity.firmware_id:
        raise EndorsementMismatchError(
            "firmware id of the leaf", expected=reported.hex()[:32], got=identity.firmware_id.hex()[:32]
        )
    if identity.kind == SWITCH and report.opaque.switch_pdi != identity.pdi:
        raise EndorsementMismatchError(
            "device of the chain", expected=report.opaque.switch_pdi.hex(), got=identity.pdi.hex()
        )


def _claims(
    device: DeviceEvidence, identity: DeviceIdentity, report: UnverifiedReport, context: _Context
) -> NvidiaDevice:
    opaque, gpu = report.opaque, identity.kind == GPU
    versions = (
        {DRIVER: opaque.driver_version, VBIOS: opaque.gpu_vbios_version} if gpu else {VBIOS: opaque.switch_bios_version}
    )
    return NvidiaDevice(
        kind=identity.kind,
        architecture=identity.architecture,
        product=identity.product,
        board=opaque.board if gpu else "",
        driver_version=versions.get(DRIVER, ""),
        vbios_version=versions[VBIOS],
        pdi=identity.pdi,
        leaf_key=hashlib.sha256(identity.leaf.spki).digest(),
        firmware_id=identity.firmware_id,
        firmware_id_reported=opaque.firmware_id is not None,
        measurements=len(report.measurements),
        mode=opaque.mode,
        protected_pcie=opaque.protected_pcie,
        locked=None if gpu else opaque.locked,
        operational_flags=identity.operational_flags,
        linked=opaque.switch_pdis if gpu else opaque.gpu_pdis,
        manifests=_manifests(identity, report, versions, context),
        manifest_ids=manifest_ids(opaque, architecture=identity.architecture),
        revocation=_revocation(identity.certificates[1:], context),
        nonce=report.nonce,
        state=device.state,
    )


def _manifests(
    identity: DeviceIdentity, report: UnverifiedReport, versions: dict[str, str], context: _Context
) -> tuple[NvidiaManifest, ...]:
    skip = (nvidia_rim.VIDEO_DECODER_INDEX,) if identity.kind == GPU and report.opaque.video_decoder is False else ()
    found = list[tuple[Rim, nvidia_rim.Comparison]]()
    for kind, version in versions.items():
        wanted = RimName(device=identity.kind, kind=kind, architecture=identity.architecture, version=version)
        of_kind = [entry for entry in context.manifests if (entry[0].device, entry[0].kind) == (identity.kind, kind)]
        fitting = [data for name, data in of_kind if name == wanted]
        if of_kind and not fitting:
            raise EndorsementMismatchError(f"{kind} manifest", expected=version, got=of_kind[0][0].version)
        rims = [nvidia_rim.verify_rim(data, anchors=context.manifest_roots, now=context.now) for data in fitting]
        # NVIDIA signs one for each board, and anew when a signer expires: all are genuine, the one that fits counts.
        compared = [(rim, nvidia_rim.compare(rim, report.measurements, skip=skip)) for rim in rims]
        found.extend(sorted(compared, key=lambda pair: len(pair[1].mismatched))[:1])
    for (one, _), (other, _) in itertools.combinations(found, 2):
        common = sorted(set(one.golden) & set(other.golden))
        if common:
            raise ReferenceManifestError("driver and VBIOS manifests", expected="no index in both", got=common[0])
    return tuple(_manifest(rim, comparison, context) for rim, comparison in found)


def _manifest(rim: Rim, comparison: nvidia_rim.Comparison, context: _Context) -> NvidiaManifest:
    return NvidiaManifest(
        kind=rim.name.kind,
        version=rim.name.version,
        digest=rim.digest,
        golden=len(rim.golden),
        matched=comparison.matched,
        zeros=comparison.zeros,
        mismatched=comparison.mismatched,
        skipped=comparison.skipped,
        revocation=_revocation(rim.certificates, context),
    )


def _revocation(path: Sequence[Certificate], context: _Context) -> str:
    """Return what the issuers of a path say of it now, the root left out; unknown where one says nothing.

    A hold of one certificate must not hide that nobody speaks of another, which may be revoked; so both are told.
    """
    statuses = set[ocsp.OcspStatus]()
    for certificate, issuer in itertools.pairwise(path):
        statuses.update(_statuses(certificate, issuer, context) or (ocsp.OcspStatus.UNKNOWN,))
    match ocsp.OcspStatus.HOLD in statuses, ocsp.OcspStatus.UNKNOWN in statuses:
        case True, True:
            return HOLD_UNKNOWN
        case True, False:
            return HOLD
        case False, True:
            return UNKNOWN
        case _:
            return GOOD


def _statuses(certificate: Certificate, issuer: Certificate, context: _Context) -> Iterable[ocsp.OcspStatus]:
    return [
        ocsp.status_of(response, certificate, issuer=issuer, now=context.now)
        for response in context.responses
        if ocsp.speaks_of(response, certificate, issuer=issuer)
    ]
