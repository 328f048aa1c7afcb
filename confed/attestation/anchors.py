"""Vendors' roots that this release pins, by evidence profile: a manifest's anchors where nothing else is said."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

# Where each kind keeps them; imported when they are asked for, since a run needs one kind of many.
_PLACES = {
    "sev-snp/1": "sev_snp_endorsements",
    "azure-snp/1": "sev_snp_endorsements",
    "tdx/1": "intel_dcap",
    "sgx/1": "intel_dcap",
    "azure-tdx/1": "intel_dcap",
    "gcp-tpm/1": "gcp_tpm",
    "aws-nitro/1": "nitro",
    "nvidia-gpu/1": "nvidia_gpu",
}


def pinned_anchors(profile: str) -> tuple[bytes, ...]:
    """Return the pinned roots (DER) of a profile; none where a vendor has no one root (``tpm/1``, ``arm-cca/1``)."""
    place = _PLACES.get(profile)
    if place is None:
        return ()
    roots: Sequence[Any] = import_module(f"confed.attestation.tee.{place}").pinned_roots()
    return tuple(root if isinstance(root, bytes) else root.der for root in roots)
