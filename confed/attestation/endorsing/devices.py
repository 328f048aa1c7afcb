"""What endorsements do NVIDIA's devices need? Read from reports and chains that nobody has verified yet.

A GPU needs the manifests of its driver and of its VBIOS, a switch that of its BIOS; both the status of the certificates
that NVIDIA issued: of a device all but its leaf, which the device makes itself, and the root; of a manifest all but the
root.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from cryptography.hazmat.primitives import hashes
from cryptography.x509 import ocsp

from confed.attestation.certificates import Certificate, load_certificate
from confed.attestation.endorsements import Need, NvidiaOcsp, NvidiaRim
from confed.attestation.tee.nvidia_evidence import DeviceEvidence
from confed.attestation.tee.nvidia_identity import architecture_of, product_of
from confed.attestation.tee.nvidia_opaque import manifest_ids
from confed.attestation.tee.nvidia_report import parse_report
from confed.errors import MissingEndorsementError


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
    architecture = architecture_of(product_of(unverified_chain[0]))
    manifests = tuple(NvidiaRim(id=name) for name in manifest_ids(unverified, architecture=architecture))
    return (*manifests, *signer_needs(unverified_chain[1:]))


def signer_needs(chain: Sequence[Certificate]) -> tuple[Need, ...]:
    """Return the needs of a chain's statuses, leaf first; its last certificate is a root and has none."""
    return tuple(_status(subject, issuer) for subject, issuer in itertools.pairwise(chain))


def _status(subject: Certificate, issuer: Certificate) -> NvidiaOcsp:
    request = ocsp.OCSPRequestBuilder().add_certificate(subject.parsed, issuer.parsed, hashes.SHA384()).build()
    return NvidiaOcsp(
        issuer_name=request.issuer_name_hash.hex(),
        issuer_key=request.issuer_key_hash.hex(),
        serial=f"{subject.serial:x}",
    )
