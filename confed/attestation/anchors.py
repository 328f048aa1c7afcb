"""Vendors' roots that this release pins, by evidence profile: a manifest's anchors where nothing else is said."""

from __future__ import annotations

from confed.attestation.tee import gcp_tpm, intel_dcap, nitro, nvidia_gpu, sev_snp_endorsements

AMD, INTEL = ("sev-snp/1", "azure-snp/1"), ("tdx/1", "sgx/1", "azure-tdx/1")


def pinned_anchors(profile: str) -> tuple[bytes, ...]:
    """Return the pinned roots (DER) of a profile; none where a vendor has no one root (``tpm/1``, ``arm-cca/1``)."""
    if profile in AMD:
        return tuple(root.der for root in sev_snp_endorsements.pinned_roots())
    if profile in INTEL:
        return intel_dcap.pinned_roots()
    if profile == gcp_tpm.PROFILE:
        return tuple(root.der for root in gcp_tpm.pinned_roots())
    if profile == nitro.PROFILE:
        return nitro.pinned_roots()
    return nvidia_gpu.pinned_roots() if profile == nvidia_gpu.PROFILE else ()
