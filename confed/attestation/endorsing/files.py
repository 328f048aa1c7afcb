"""What endorsements do vendors' files need? For ``confed evidence endorse``, which has files instead of an envelope."""

from __future__ import annotations

from collections.abc import Sequence

from confed.attestation.endorsements import Need
from confed.attestation.endorsing.devices import device_needs
from confed.attestation.endorsing.needs import azure_needs, needs
from confed.attestation.tee import azure_evidence, nvidia_evidence, nvidia_gpu
from confed.attestation.tee.azure_hcl import Isolation

_AZURE = {"azure-snp/1": Isolation.SNP, "azure-tdx/1": Isolation.TDX}
_HEX = frozenset(b"0123456789abcdefABCDEF")


def needs_of_files(profile: str, evidence: bytes, hints: Sequence[bytes]) -> tuple[Need, ...]:
    """Return what evidence in a vendor's file needs, each need once.

    Args:
        profile: of the kind of evidence, ``nvidia-gpu/1`` included.
        evidence: the file's bytes; reports and quotes may be hexadecimal text.
        hints: files that are there already: certificates, or a device's chain.

    Raises:
        AttestationError: files that cannot be read, by the class that says why.
    """
    if profile == nvidia_gpu.PROFILE:
        chains = [hint for hint in hints if nvidia_evidence.is_chain(hint)]
        devices = nvidia_evidence.read_files(evidence, chains)
        return tuple(dict.fromkeys(need for device in devices for need in device_needs(device)))
    isolation = _AZURE.get(profile)
    if isolation is not None:
        unverified = azure_evidence.read_files(evidence, isolation=isolation)
        return tuple(dict.fromkeys(azure_needs(unverified, isolation=isolation, hints=hints)))
    return needs(profile, _binary(evidence), hints=hints)


def _binary(evidence: bytes) -> bytes:
    """Return the bytes of a file that holds them as they are, or as hexadecimal text."""
    text = evidence.strip().removeprefix(b"0x")
    return bytes.fromhex(text.decode()) if text and len(text) % 2 == 0 and _HEX.issuperset(text) else evidence
