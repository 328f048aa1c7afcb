"""Evidence made to be looked at: for keys that nobody holds, judged as a broker would, and thrown away."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from confed import canonical
from confed.attestation import rehearsal
from confed.attestation.attester import Attester
from confed.attestation.attesters.choose import GOOGLE_TPM, SIMULATED, SNP, TPM, DevicePaths, TpmOptions, attester_for
from confed.attestation.attesters.draft import DeviceEvidence
from confed.attestation.attesters.nvml import NvmlAttester
from confed.attestation.evidence import HPKE_PUBLIC_BYTES, Binding, Envelope
from confed.attestation.measurement import aggregator_image, client_image
from confed.attestation.rehearsal import Outcome, Verdict, verdict_of
from confed.attestation.tee.simulated import SimulatedAttester, SimulatedPlatform
from confed.attestation.verifier import Claims, ExpectedBinding, Registry
from confed.errors import BindingMismatchError, EvidenceUnavailableError, MissingFileError, RefusedError
from confed.journey import Role
from confed.manifest import Manifest, TeePolicy

GPU, GPU_PROFILE = "nvidia-gpu", "nvidia-gpu/1"

CHAIN, BINDING = "signature and chain", "binding to the challenge"
"""The claims that make evidence genuine; the others are ``rehearsal``'s."""

UNPINNED = ("profile", "configuration", "measurement")
"""What nobody has said where there is no manifest, so that a verdict on it says nothing."""

_MADE_UP = canonical.digest(b"confed doctor")
_SECONDS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What evidence is made for, and what it is judged by.

    Attributes:
        role, environment, run, audience, manifest_digest: what the evidence is bound to.
        lock: digest of the lock file, for the simulated TEE's measurement.
        anchors: trust anchors by profile; none where no manifest was given.
        policy: the manifest's for the role; ``None`` where none was given, so that nothing is pinned.
        appraisal: appraisal policies by profile, in addition to the manifest's or in place of them.
        now_ms: when, in Unix milliseconds.
    """

    role: Role
    environment: str
    run: str
    audience: str
    manifest_digest: str
    lock: str
    anchors: Mapping[str, tuple[bytes, ...]]
    policy: TeePolicy | None
    appraisal: Mapping[str, Mapping[str, Any]]
    now_ms: int

    @classmethod
    def of_manifest(cls, manifest: Manifest, *, role: Role, environment: str | None, now_ms: int) -> Case:
        """Return the case of a run; ``environment`` in place of the manifest's where it is given."""
        return cls(
            role=role,
            environment=environment or manifest.environment,
            run=manifest.run,
            audience=canonical.digest(manifest.model.owner.broker),
            manifest_digest=manifest.digest,
            lock=manifest.code.lock,
            anchors=manifest.trust.anchors,
            policy=manifest.client_tee if role is Role.CLIENT else manifest.aggregator_tee,
            appraisal={},
            now_ms=now_ms,
        )

    @classmethod
    def made_up(cls, *, role: Role, environment: str, now_ms: int) -> Case:
        """Return a case for a machine that no manifest was written for yet: nothing is pinned."""
        return cls(
            role=role,
            environment=environment,
            run="doctor",
            audience=_MADE_UP,
            manifest_digest=_MADE_UP,
            lock=canonical.digest(b""),
            anchors={},
            policy=None,
            appraisal={},
            now_ms=now_ms,
        )

    @property
    def assumed(self) -> tuple[str, ...]:
        """Claims on which a verdict says nothing."""
        return UNPINNED if self.policy is None else ()

    def binding(self, profile: str) -> Binding:
        """Return a fresh binding for keys that nobody holds: a grant for it would open nothing."""
        return Binding(
            profile=profile,
            nonce=secrets.token_bytes(32),
            audience=self.audience,
            manifest=self.manifest_digest,
            role=self.role,
            run=self.run,
            hpke_public=secrets.token_bytes(HPKE_PUBLIC_BYTES),
            signing_public=secrets.token_bytes(32),
            issued_at=self.now_ms,
        )

    def policy_for(self, claims: Claims) -> TeePolicy:
        """Return the policy; without a manifest one that pins exactly what attested.

        Raises:
            ConfigError: an appraisal policy for a TEE or device that the policy does not name.
        """
        policy = self.policy or TeePolicy(
            profiles=(claims.profile,),
            measurements=(claims.measurement,),
            devices=tuple(device.profile for device in claims.devices),
            appraisal={},
            max_age_s=_SECONDS,
            reattest_rounds=1,
            reattest_s=_SECONDS,
        )
        return dataclasses.replace(policy, appraisal={**policy.appraisal, **self.appraisal})


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """Whether a kind of TEE gives evidence here; ``code`` and ``reason`` where it does not."""

    kind: str
    attests: bool
    code: str
    reason: str


def simulated_attester(
    case: Case, *, app_directory: Path | None, root_file: Path
) -> tuple[Attester, Mapping[str, tuple[bytes, ...]]]:
    """Return the attester of a simulated instance of the code installed here, and the anchor that it chains to.

    Args:
        case: what it is launched for.
        app_directory: absolute path of the app's code; ``None`` for none.
        root_file: the root of the simulated TEEs on this machine; without it one is made that ends with this process.

    Raises:
        MissingFileError, MeasurementError, ConfigError: code that cannot be measured.
        EncodingError: a root file that is none.
    """
    client = case.role is Role.CLIENT
    measurement = client_image(app_directory, case.lock) if client else aggregator_image(case.lock)
    try:
        platform = SimulatedPlatform.load(root_file)
    except MissingFileError:
        platform = SimulatedPlatform.create(case.now_ms)
    instance = platform.launch(
        measurement=measurement,
        configuration=case.manifest_digest,
        environment=case.environment,
        shared=False,
        now_ms=case.now_ms,
    )
    attester = SimulatedAttester(instance)
    return attester, {attester.profile: (platform.anchor,)}


def attempt(
    kind: str,
    case: Case,
    *,
    simulated: Attester,
    privilege_level: int,
    tpm: TpmOptions | None = None,
    devices: DeviceEvidence | None = None,
    paths: DevicePaths | None = None,
) -> tuple[Attempt, Envelope | None]:
    """Make evidence with one driver, and no other in its place.

    Args:
        kind: one of ``choose.KINDS``.
        case: what the evidence is for.
        simulated: the attester of the kind ``simulated``.
        privilege_level: of SEV-SNP.
        tpm: what a TPM's attester has to be told; without it no TPM is asked.
        devices: evidence of devices that goes along; not with a simulated TEE's.
        paths: where the interfaces are.

    Raises:
        ConfigError: a kind or a privilege level that there is not, or devices beside a simulated TEE.
    """
    options: dict[str, Any] = {"devices": devices, "paths": paths}
    if kind == SIMULATED:
        options["simulated"] = simulated
    elif kind == SNP:
        options["privilege_level"] = privilege_level
    elif kind in {TPM, GOOGLE_TPM}:
        if tpm is None:
            reason = "not asked: give --tcti, and --enrolment (`confed evidence enrol`) or --google-key"
            return Attempt(kind=kind, attests=False, code=EvidenceUnavailableError.code, reason=reason), None
        options["tpm"] = tpm
    try:
        attester = attester_for(kind, **options)
        envelope = attester.attest(case.binding(attester.profile))
    except RefusedError as error:
        return Attempt(kind=kind, attests=False, code=error.code, reason=str(error)), None
    reason = "SIMULATED: proves nothing about hardware" if kind == SIMULATED else ""
    return Attempt(kind=kind, attests=True, code="", reason=reason), envelope


def attempt_gpus(count: int, case: Case, *, nvml: Any = None) -> Attempt:
    """Ask the first ``count`` GPUs for evidence, which a TEE's goes with: alone it is for nothing.

    Args:
        count: how many there are.
        case: what the evidence is for.
        nvml: NVML's Python module; ``pynvml`` where none is given.
    """
    try:
        if not count:
            raise EvidenceUnavailableError("GPUs", expected="at least one", got="none")
        NvmlAttester(range(count), nvml=nvml).collect(case.binding(GPU_PROFILE).device_nonce)
    except RefusedError as error:
        return Attempt(kind=GPU, attests=False, code=error.code, reason=str(error))
    return Attempt(kind=GPU, attests=True, code="", reason="beside a TEE's evidence")


def judge(
    envelope: Envelope,
    case: Case,
    *,
    registry: Registry,
    anchors: Mapping[str, Sequence[bytes]],
    endorsements: Sequence[bytes],
) -> tuple[Verdict, ...]:
    """Return what a broker would say: is it genuine, and then claim by claim whether it is acceptable.

    Raises:
        ConfigError: an appraisal policy for a TEE or device that the case's policy does not name.
    """
    binding = Binding.decode(envelope.binding)
    expected = ExpectedBinding(
        nonce=binding.nonce, audience=case.audience, manifest=case.manifest_digest, role=case.role, run=case.run
    )
    try:
        claims = registry.verify(
            envelope.encode(), endorsements=endorsements, expected=expected, now_ms=case.now_ms, anchors=anchors
        )
    except RefusedError as error:
        return _not_genuine(error)
    genuine = (Verdict(claim=name, outcome=Outcome.OK) for name in (CHAIN, BINDING))
    judged = rehearsal.rehearse(
        claims,
        policy=case.policy_for(claims),
        environment=case.environment,
        manifest_digest=case.manifest_digest,
        now_ms=case.now_ms,
    )
    return (*genuine, *judged)


def _not_genuine(error: RefusedError) -> tuple[Verdict, ...]:
    """Return the verdicts where evidence is refused before it is appraised: what comes after was not reached."""
    bound = isinstance(error, BindingMismatchError)
    verdicts = [verdict_of(BINDING if bound else CHAIN, error)]
    if bound:
        verdicts.insert(0, Verdict(claim=CHAIN, outcome=Outcome.OK))
    seen = {verdict.claim for verdict in verdicts}
    rest = (claim for claim in (CHAIN, BINDING, *rehearsal.CLAIMS) if claim not in seen)
    return (*verdicts, *(Verdict(claim=claim, outcome=Outcome.NOT_REACHED) for claim in rest))
