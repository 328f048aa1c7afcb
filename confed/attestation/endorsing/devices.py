"""What endorsements do NVIDIA's devices need? Read from reports and chains that nobody has verified yet.

A GPU needs the manifests of its driver and of its VBIOS, a switch that of its BIOS; both the status of the certificates
that NVIDIA issued: of a device all but its leaf, which the device makes itself, and the root; of a manifest all but the
root.

Source: NVIDIA attestation-sdk (github.com/NVIDIA), get_driver_rim_id and get_vbios_rim_id, for the names of manifests.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from cryptography.hazmat.primitives import hashes
from cryptography.x509 import ocsp
from cryptography.x509.oid import NameOID

from confed.attestation.certificates import Certificate, load_certificate
from confed.attestation.endorsements import Need, NvidiaOcsp, NvidiaRim
from confed.attestation.tee.nvidia_evidence import DeviceEvidence
from confed.attestation.tee.nvidia_identity import architecture_of
from confed.attestation.tee.nvidia_opaque import OpaqueData
from confed.attestation.tee.nvidia_report import parse_report
from confed.errors import EvidenceVersionError, MissingEndorsementError

# OPAQUE_FIELD_ID_CHIP_INFO of attestation-sdk: the chip that a Blackwell driver's manifest is named by, GB100 without.
_CHIP_INFO, _CHIP = 35, "GB100"
# The one board that NVIDIA has manifests of switches for: nvtrust, switch settings.
_SWITCH_BOARD = "5612_0002_890"


def device_needs(device: DeviceEvidence) -> tuple[Need, ...]:
    """Return what one device needs.

    Raises:
        EvidenceVersionError: a device of no architecture that is known.
        MissingEndorsementError: no chain.
        AttestationError: a report or chain that cannot be read.
    """
    unverified_chain = [load_certificate(der, what="device certificate") for der in device.chain]
    if not unverified_chain:
        raise MissingEndorsementError("device chain", expected="certificates", got="none")
    unverified = parse_report(device.report).opaque
    architecture = architecture_of(_product(unverified_chain[0]))
    manifests = tuple(NvidiaRim(id=name) for name in _manifests(unverified, architecture))
    return (*manifests, *signer_needs(unverified_chain[1:]))


def signer_needs(chain: Sequence[Certificate]) -> tuple[Need, ...]:
    """Return the needs of a chain's statuses, leaf first; its last certificate is a root and has none."""
    return tuple(_status(subject, issuer) for subject, issuer in itertools.pairwise(chain))


def _manifests(unverified: OpaqueData, architecture: str) -> tuple[str, ...]:
    match architecture:
        case "HOPPER":
            driver = f"NV_GPU_DRIVER_GH100_{unverified.driver_version}"
        case "BLACKWELL":
            chip = unverified.fields.get(_CHIP_INFO, _CHIP.encode()).rstrip(b"\0").decode("latin-1")
            driver = f"NV_GPU_CC_DRIVER_{chip}_{unverified.driver_version}"
        case "LS10":
            return (f"NV_SWITCH_BIOS_{_SWITCH_BOARD}_{unverified.switch_bios_version.replace('.', '')}",)
        case _:
            raise EvidenceVersionError("device architecture", expected="HOPPER, BLACKWELL or LS10", got="another")
    version = unverified.gpu_vbios_version.replace(".", "")
    return driver, f"NV_GPU_VBIOS_{unverified.board}_{version}".upper()


def _status(subject: Certificate, issuer: Certificate) -> NvidiaOcsp:
    request = ocsp.OCSPRequestBuilder().add_certificate(subject.parsed, issuer.parsed, hashes.SHA384()).build()
    return NvidiaOcsp(
        issuer_name=request.issuer_name_hash.hex(),
        issuer_key=request.issuer_key_hash.hex(),
        serial=f"{subject.serial:x}",
    )


def _product(certificate: Certificate) -> str:
    """Return the first word of a certificate's common name without underscores."""
    names = certificate.parsed.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value).partition(" ")[0].replace("_", "") if len(names) == 1 else ""
