"""Evidence as vendors' tools write it, outside any run: which verifier reads which kind of files.

A run's evidence comes in an ``Envelope`` bound to a nonce, a manifest and keys (``verifier.Registry``). Here it is only
what a vendor's own file says: genuine or not, bound to the caller's nonce and data where the caller gives them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import import_module
from typing import Any

from confed.attestation.endorsements import decode_bundle
from confed.attestation.evidence import Expectation
from confed.errors import ConfigError, EndorsementFormatError


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of evidence: the module and function that verify its files, and the profile of its policies."""

    module: str
    function: str
    profile: str


KINDS: Mapping[str, Kind] = {
    "snp": Kind(module="sev_snp", function="verify_files", profile="sev-snp/1"),
    "tdx": Kind(module="tdx", function="verify_files", profile="tdx/1"),
    "sgx": Kind(module="sgx", function="verify_files", profile="sgx/1"),
    "nitro": Kind(module="nitro", function="verify_files", profile="aws-nitro/1"),
    "tpm": Kind(module="tpm", function="verify_files", profile="tpm/1"),
    "azure-snp": Kind(module="azure", function="verify_snp_files", profile="azure-snp/1"),
    "azure-tdx": Kind(module="azure", function="verify_tdx_files", profile="azure-tdx/1"),
    "gcp-tpm": Kind(module="gcp_tpm", function="verify_files", profile="gcp-tpm/1"),
    "nvidia-gpu": Kind(module="nvidia_gpu", function="verify_files", profile="nvidia-gpu/1"),
    "cca": Kind(module="arm_cca", function="verify_files", profile="arm-cca/1"),
}
"""Kinds by the name that a user gives them."""

_BUNDLE_START = b'{"entries":'


def kind_of(name: str) -> Kind:
    """Return the kind of this name.

    Raises:
        ConfigError: no such kind.
    """
    kind = KINDS.get(name)
    if kind is None:
        raise ConfigError("--tee", expected=", ".join(KINDS), got=name[:40])
    return kind


def verify_vendor_files(
    kind: Kind,
    evidence: bytes,
    endorsements: Sequence[bytes],
    *,
    expectation: Expectation,
    now: datetime,
    anchors: Sequence[bytes] | None = None,
) -> Any:
    """Return the claims of genuine evidence, of the verifier's own type.

    Args:
        kind: from ``kind_of``.
        evidence: the contents of its file.
        endorsements: the contents of theirs; one may be a bundle (``confed evidence endorse``).
        expectation: the caller's nonce and data.
        now: when to judge, with its time zone.
        anchors: DER roots; ``None`` for the vendor's, which are pinned.

    Raises:
        AttestationError: of the class that says why it is not genuine.
    """
    verify = getattr(import_module(f"confed.attestation.tee.{kind.module}"), kind.function)
    flat = [part for endorsement in endorsements for part in parts_of(endorsement)]
    return verify(evidence, flat, expectation=expectation, now=now, anchors=anchors)


def parts_of(endorsement: bytes) -> Sequence[bytes]:
    """Return what a bundle holds, and anything else as it is.

    Raises:
        EndorsementFormatError: nothing at all, or a bundle that is not of its one form.
    """
    if not endorsement:
        raise EndorsementFormatError("endorsement", expected="a file with something in it", got="an empty one")
    if not endorsement.startswith(_BUNDLE_START):
        return (endorsement,)
    return tuple(part for entry in decode_bundle(endorsement) for part in entry.parts)
