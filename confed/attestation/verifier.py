"""Is this evidence genuine, and made for us? A pure function of its arguments: no clock, network or globals.

``Registry.verify`` goes the same way for every kind of TEE:

1. the envelope is parsed as its one allowed form;
2. the driver is chosen by profile, and trust anchors for that profile are required;
3. the driver checks chain and signature, and reads the report;
4. REPORT_DATA is compared with the binding in the envelope;
5. the binding is compared with what was expected, field by field;
6. claims are made; what class of evidence this is comes from the driver's class, never from the evidence.

Steps 4 to 6 are here and not in drivers, so that no driver can forget them. Whether genuine evidence is acceptable
is another question: ``appraisal``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from confed import canonical
from confed.attestation.evidence import Binding, Envelope, Report
from confed.attestation.tee.simulated import SimulatedVerifier
from confed.errors import BindingMismatchError, TrustAnchorError, UnknownProfileError
from confed.journey import Role


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedBinding:
    """What the relying party knows itself: its nonce, itself, the manifest, and whom it is talking to."""

    nonce: bytes
    audience: str
    manifest: str
    role: Role
    run: str


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


class Registry:
    """The kinds of TEE that a relying party can verify.

    Raises:
        UnknownProfileError: two drivers for one profile.
    """

    def __init__(self, verifiers: Iterable[Verifier]) -> None:
        self._verifiers: dict[str, Verifier] = {}
        for verifier in verifiers:
            profile = type(verifier).PROFILE
            if profile in self._verifiers:
                raise UnknownProfileError(f"profile {profile}", expected="one verifier", got="two")
            self._verifiers[profile] = verifier

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
            TrustAnchorError: no anchors, or a chain that does not end at one, or not valid now.
            EvidenceSignatureError: the evidence's signature does not verify.
            BindingMismatchError: made for something else.
        """
        # 1.
        envelope = Envelope.decode(envelope_bytes)
        binding = Binding.decode(envelope.binding)
        # 2.
        verifier = self._verifiers.get(envelope.profile)
        if verifier is None:
            raise UnknownProfileError("profile", expected=", ".join(self._verifiers), got=envelope.profile)
        roots = tuple(anchors.get(envelope.profile, ()))
        if not roots:
            raise TrustAnchorError(f"trust anchors of {envelope.profile}", expected="at least one", got="none")
        # 3.
        report = verifier.verify(envelope, endorsements=endorsements, now_ms=now_ms, anchors=roots)
        # 4.
        if report.report_data != binding.report_data(envelope.device_digest):
            raise BindingMismatchError("report_data", expected="that of the binding", got="another")
        # 5.
        _require_expected(binding, envelope.profile, expected)
        # 6.
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
            binding=binding,
            evidence_digest=canonical.digest(envelope_bytes),
            issued_at=binding.issued_at,
        )


def default_registry() -> Registry:
    """Return a registry of every kind of TEE that confed knows."""
    return Registry((SimulatedVerifier(),))


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
