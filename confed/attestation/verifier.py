"""Is this evidence genuine, and made for us? A pure function of its arguments: no clock, network or globals.

``Registry.verify`` goes the same way for every kind of TEE:

1. the envelope is parsed as its one allowed form;
2. the driver is chosen by profile, and trust anchors for that profile are required;
3. the driver checks chain and signature, and reads the report;
4. REPORT_DATA is compared with the binding in the envelope, to which the digest of device evidence belongs;
5. the binding is compared with what was expected, field by field;
6. device evidence is verified by its own driver, under a nonce that derives from the binding; without a driver or
   anchors for it, it is refused;
7. claims are made; what class of evidence this is comes from the driver's class, never from the evidence.

Steps 4 to 7 are here and not in drivers, so that no driver can forget them. Whether genuine evidence is acceptable
is another question: ``appraisal``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar, Protocol

from confed import canonical
from confed.attestation.evidence import Binding, Envelope, Report
from confed.errors import BindingMismatchError, SimulatedInProductionError, TrustAnchorError, UnknownProfileError
from confed.journey import Role
from confed.manifest import SIMULATION


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedBinding:
    """What the relying party knows itself: its nonce, itself, the manifest, and whom it is talking to."""

    nonce: bytes
    audience: str
    manifest: str
    role: Role
    run: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceClaims:
    """What verified device evidence says: its profile, and a record of the driver's own type."""

    profile: str
    details: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """What verified evidence says; made by ``Registry.verify`` alone.

    Attributes:
        evidence_class: ``simulated`` or a hardware class, from the verifier.
        hardware_rooted: whether a vendor's hardware vouches for the measurement, from the verifier.
        measurement, configuration: of the code that runs and of what it was started with, in hexadecimal.
        environment: what the TEE was launched for, empty where it does not say.
        debug, shared: see ``Report``.
        layers: confinement as the TEE reports it of itself; proves nothing.
        details: what this kind of TEE says beyond that (see ``Report``).
        devices: what came along of GPUs and the like; empty where nothing did.
        evidence_digest: SHA-256 of the envelope's bytes as received.
        issued_at: the enclave's time of the binding, Unix milliseconds.
    """

    profile: str
    evidence_class: str
    hardware_rooted: bool
    measurement: str
    configuration: str
    environment: str
    debug: bool
    shared: bool
    layers: tuple[str, ...]
    details: Any
    devices: tuple[DeviceClaims, ...]
    binding: Binding
    evidence_digest: str
    issued_at: int


class Verifier(Protocol):
    """A driver for one kind of TEE; what it is stands in its class."""

    PROFILE: ClassVar[str]
    EVIDENCE_CLASS: ClassVar[str]
    HARDWARE_ROOTED: ClassVar[bool]

    def verify(
        self, envelope: Envelope, *, endorsements: Sequence[bytes], now_ms: int, anchors: Sequence[bytes]
    ) -> Report:
        """Return the report of evidence whose chain and signature hold at ``now_ms``.

        Raises:
            AttestationError: anything else.
        """
        ...


class DeviceVerifier(Protocol):
    """A driver for devices whose evidence goes along with a TEE's."""

    PROFILE: ClassVar[str]

    @staticmethod
    def accepts(endorsement: bytes) -> bool:
        """Tell whether an endorsement is for this driver; the TEE's own gets the others."""
        ...

    def verify(
        self,
        device_evidence: Sequence[bytes],
        *,
        endorsements: Sequence[bytes],
        nonce: bytes,
        now_ms: int,
        anchors: Sequence[bytes],
    ) -> Any:
        """Return what devices say whose chains and signatures hold at ``now_ms`` and whose nonce is ``nonce``.

        Raises:
            AttestationError: anything else.
        """
        ...


@dataclass(frozen=True, slots=True)
class Driver:
    """A driver of confed's own, imported when evidence of its profile comes: a TEE or broker needs one kind of many."""

    profile: str
    module: str
    name: str

    def load(self) -> Any:
        """Return the driver."""
        return getattr(import_module(f"confed.attestation.tee.{self.module}"), self.name)()


class Registry:
    """The kinds of TEE, and of devices beside them, that a relying party can verify.

    Args:
        verifiers: drivers, or where confed has them.
        devices: the driver for device evidence.
        only_rooted: refuse what hardware does not root before a byte of it is parsed.

    Raises:
        UnknownProfileError: two drivers for one profile.
    """

    def __init__(
        self,
        verifiers: Iterable[Verifier | Driver],
        *,
        devices: DeviceVerifier | Driver | None = None,
        only_rooted: bool = False,
    ) -> None:
        self._devices = devices
        self._only_rooted = only_rooted
        self._verifiers: dict[str, Verifier | Driver] = {}
        for verifier in verifiers:
            profile = _profile_of(verifier)
            if profile in self._verifiers:
                raise UnknownProfileError(f"profile {profile}", expected="one verifier", got="two")
            self._verifiers[profile] = verifier

    @property
    def profiles(self) -> tuple[str, ...]:
        """The profiles of TEEs that there are drivers for."""
        return tuple(self._verifiers)

    @property
    def device_profiles(self) -> tuple[str, ...]:
        """The profiles of devices that there are drivers for."""
        return () if self._devices is None else (_profile_of(self._devices),)

    def for_environment(self, environment: str) -> Registry:
        """Return the registry for manifests of an environment: outside simulation only what hardware roots."""
        if environment == SIMULATION:
            return self
        return Registry(self._verifiers.values(), devices=self._devices, only_rooted=True)

    def verify(
        self,
        envelope_bytes: bytes,
        *,
        endorsements: Sequence[bytes] = (),
        expected: ExpectedBinding,
        now_ms: int,
        anchors: Mapping[str, Sequence[bytes]],
    ) -> Claims:
        """Return the claims of evidence that is genuine and was made for ``expected``.

        Guarantees: the same arguments give the same answer; evidence for another nonce, audience, manifest, role,
        run or key is refused; so are an unknown profile and one without trust anchors.

        Raises:
            EvidenceFormatError: not the one allowed form.
            UnknownProfileError: no driver for the profile.
            SimulatedInProductionError: a kind that hardware does not root, in a registry of those that it does.
            TrustAnchorError: no anchors, or a chain that does not end at one, or not valid now.
            EvidenceSignatureError: the evidence's signature does not verify.
            BindingMismatchError: made for something else.
            AttestationError: of the class that the driver gives for what else does not hold.
        """
        # 1.
        envelope = Envelope.decode(envelope_bytes)
        binding = Binding.decode(envelope.binding)
        # 2.
        known = self._verifiers.get(envelope.profile)
        if known is None:
            raise UnknownProfileError("profile", expected=", ".join(self._verifiers), got=envelope.profile)
        verifier: Verifier = known.load() if isinstance(known, Driver) else known
        if self._only_rooted and not type(verifier).HARDWARE_ROOTED:
            raise SimulatedInProductionError("profile", expected="one rooted in hardware", got=envelope.profile)
        roots = tuple(anchors.get(envelope.profile, ()))
        if not roots:
            raise TrustAnchorError(f"trust anchors of {envelope.profile}", expected="at least one", got="none")
        devices = self._device_driver() if envelope.device_evidence else None
        for_devices, for_tee, envelope_of_tee = _parted(envelope, endorsements, devices)
        # 3.
        report = verifier.verify(envelope_of_tee, endorsements=for_tee, now_ms=now_ms, anchors=roots)
        # 4.
        if report.report_data != binding.report_data(envelope.device_digest):
            raise BindingMismatchError("report_data", expected="that of the binding", got="another")
        # 5.
        _require_expected(binding, envelope.profile, expected)
        # 6.
        found = _device_claims(envelope, binding, devices, endorsements=for_devices, now_ms=now_ms, anchors=anchors)
        # 7.
        return Claims(
            profile=envelope.profile,
            evidence_class=type(verifier).EVIDENCE_CLASS,
            hardware_rooted=type(verifier).HARDWARE_ROOTED,
            measurement=report.measurement,
            configuration=report.configuration,
            environment=report.environment,
            debug=report.debug,
            shared=report.shared,
            layers=report.layers,
            details=report.details,
            devices=found,
            binding=binding,
            evidence_digest=canonical.digest(envelope_bytes),
            issued_at=binding.issued_at,
        )

    def _device_driver(self) -> DeviceVerifier | None:
        return self._devices.load() if isinstance(self._devices, Driver) else self._devices


def default_registry() -> Registry:
    """Return a registry of every kind of TEE that confed knows."""
    return Registry(_DRIVERS, devices=Driver("nvidia-gpu/1", "nvidia_gpu", "NvidiaGpuVerifier"))


def _parted(
    envelope: Envelope, endorsements: Sequence[bytes], devices: DeviceVerifier | None
) -> tuple[tuple[bytes, ...], tuple[bytes, ...], Envelope]:
    """Return endorsements for devices, those for the TEE, and the envelope with the TEE's hints alone.

    The relying party's own come first: an attester's hints for devices count only where it has none.
    """
    if devices is None:
        return (), tuple(endorsements), envelope
    hints = tuple(hint for hint in envelope.endorsements if not devices.accepts(hint))
    own = tuple(item for item in endorsements if devices.accepts(item))
    return (
        own or tuple(hint for hint in envelope.endorsements if devices.accepts(hint)),
        tuple(item for item in endorsements if not devices.accepts(item)),
        dataclasses.replace(envelope, endorsements=hints),
    )


def _device_claims(
    envelope: Envelope,
    binding: Binding,
    devices: DeviceVerifier | None,
    *,
    endorsements: Sequence[bytes],
    now_ms: int,
    anchors: Mapping[str, Sequence[bytes]],
) -> tuple[DeviceClaims, ...]:
    if not envelope.device_evidence:
        return ()
    if devices is None:
        raise UnknownProfileError("device evidence", expected="a driver for it", got="none")
    profile = type(devices).PROFILE
    roots = tuple(anchors.get(profile, ()))
    if not roots:
        raise TrustAnchorError(f"trust anchors of {profile}", expected="at least one", got="none")
    details = devices.verify(
        envelope.device_evidence,
        endorsements=endorsements,
        nonce=binding.device_nonce,
        now_ms=now_ms,
        anchors=roots,
    )
    return (DeviceClaims(profile=profile, details=details),)


def _profile_of(verifier: Verifier | DeviceVerifier | Driver) -> str:
    return verifier.profile if isinstance(verifier, Driver) else type(verifier).PROFILE


_DRIVERS = (
    Driver("simulated/1", "simulated", "SimulatedVerifier"),
    Driver("sev-snp/1", "sev_snp", "SnpVerifier"),
    Driver("tdx/1", "tdx", "TdxVerifier"),
    Driver("sgx/1", "sgx", "SgxVerifier"),
    Driver("aws-nitro/1", "nitro", "NitroVerifier"),
    Driver("tpm/1", "tpm", "TpmVerifier"),
    Driver("azure-snp/1", "azure", "AzureSnpVerifier"),
    Driver("azure-tdx/1", "azure", "AzureTdxVerifier"),
    Driver("gcp-tpm/1", "gcp_tpm", "GcpTpmVerifier"),
    Driver("arm-cca/1", "arm_cca", "CcaVerifier"),
)


def _require_expected(binding: Binding, profile: str, expected: ExpectedBinding) -> None:
    for name, wanted, found in (
        ("profile", profile, binding.profile),
        ("nonce", expected.nonce, binding.nonce),
        ("audience", expected.audience, binding.audience),
        ("manifest", expected.manifest, binding.manifest),
        ("role", expected.role, binding.role),
        ("run", expected.run, binding.run),
    ):
        if wanted != found:
            raise BindingMismatchError(f"binding.{name}", expected=_shown(wanted), got=_shown(found))


def _shown(value: str | bytes) -> str:
    return value.hex()[:16] if isinstance(value, bytes) else str(value)[:80]
