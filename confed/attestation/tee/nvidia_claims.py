"""What genuine evidence of NVIDIA's devices says; made by ``nvidia_gpu`` alone, appraised by ``policy.nvidia_gpu``."""

from __future__ import annotations

from dataclasses import dataclass

from confed.attestation.tee.nvidia_evidence import NvidiaState
from confed.attestation.tee.nvidia_identity import GPU, SWITCH

GOOD, HOLD, UNKNOWN, HOLD_UNKNOWN = "good", "hold", "unknown", "hold-unknown"
"""What issuers say of a chain: of all good; of one at least on hold; of one nothing, or unknown; both of these."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NvidiaManifest:
    """A manifest of NVIDIA's that was verified, and how a device compares with it, by the manifest's index.

    Attributes:
        kind: ``driver`` or ``vbios``.
        version: the version that it is for.
        digest: SHA-256 of its bytes.
        golden: how many measurements have golden values.
        matched, zeros: how many match, and how many of those match zeros.
        mismatched: which do not.
        skipped: which do not count on this device.
        revocation: of its signer's chain: ``good``, ``hold``, ``unknown`` or ``hold-unknown``.
    """

    kind: str
    version: str
    digest: bytes
    golden: int
    matched: int
    zeros: int
    mismatched: tuple[int, ...]
    skipped: tuple[int, ...]
    revocation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NvidiaDevice:
    """What a genuine report of one device says, and what NVIDIA says of that.

    Attributes:
        kind: ``gpu`` or ``switch``.
        architecture, product: ``HOPPER`` and ``GH100``, for instance.
        board: project, project SKU and chip SKU, such as ``1010_0200_882``; empty for a switch, which does not say.
        driver_version: empty for a switch.
        vbios_version: of a switch, its BIOS's.
        pdi: the device's identity, 8 bytes.
        leaf_key: SHA-256 of the key that signed (SubjectPublicKeyInfo).
        firmware_id: what the key was made for; ``firmware_id_reported`` says whether the report names it too.
        measurements: how many it reports.
        mode: ``mpt``, ``spt``, ``ppcie``, or ``unreported``.
        protected_pcie, locked: as the report says; ``None`` where it does not.
        operational_flags: of the leaf's DICE extension.
        linked: identities of the switches, or GPUs, that it says it is linked to.
        manifests: those that were given and fit.
        manifest_ids: how NVIDIA's service names those that it needs.
        revocation: of its certificates: ``good``, ``hold``, ``unknown`` or ``hold-unknown``.
        nonce: what the report answers.
        state: what NVML told; ``None`` for switches, and for files.
    """

    kind: str
    architecture: str
    product: str
    board: str
    driver_version: str
    vbios_version: str
    pdi: bytes
    leaf_key: bytes
    firmware_id: bytes
    firmware_id_reported: bool
    measurements: int
    mode: str
    protected_pcie: bool | None
    locked: bool | None
    operational_flags: tuple[str, ...]
    linked: tuple[bytes, ...]
    manifests: tuple[NvidiaManifest, ...]
    manifest_ids: tuple[str, ...]
    revocation: str
    nonce: bytes
    state: NvidiaState | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NvidiaClaims:
    """What genuine evidence of distinct devices says, in the order in which it was given."""

    devices: tuple[NvidiaDevice, ...]

    @property
    def gpus(self) -> tuple[NvidiaDevice, ...]:
        """The GPUs among the devices."""
        return tuple(device for device in self.devices if device.kind == GPU)

    @property
    def switches(self) -> tuple[NvidiaDevice, ...]:
        """The switches among the devices."""
        return tuple(device for device in self.devices if device.kind == SWITCH)
