"""Is genuine evidence acceptable? Floors in code first, then the owner's choices.

Floors hold whatever a policy says, the ones that a policy cannot even express included:

- a policy that lists no profile or no measurement, or zeros as one, accepts nothing (so zeros never match);
- outside simulation evidence must be rooted in hardware, even where the policy names ``simulated/1``;
- nothing that can be debugged, nothing that hosts several identities outside simulation;
- the measured configuration is the manifest's digest and not zeros; a TEE of another environment is refused;
- evidence is at most a day old, and not from the future by more than 30 seconds;
- every kind of TEE but the simulated one, and every device, is appraised by an owner's policy for exactly that kind;
  where there is none, or nothing that it could appraise, it is refused; device evidence that the policy does not ask
  for is refused, and so is its absence where it does.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from confed import canonical, record
from confed.attestation.policy import document
from confed.attestation.verifier import Claims
from confed.errors import (
    ConfigurationError,
    DebugError,
    DeviceCountError,
    EmptyAllowListError,
    MeasurementError,
    PolicyMissingError,
    ProfileNotAllowedError,
    SharedInstanceError,
    SimulatedInProductionError,
    StaleEvidenceError,
)
from confed.manifest import OLDEST_S, SIMULATION, TeePolicy

SKEW_MS = 30_000
"""How far ahead of ours an enclave's clock may be."""

_SIMULATED = "simulated"


def appraise(claims: Claims, *, policy: TeePolicy, environment: str, manifest_digest: str, now_ms: int) -> None:
    """Accept claims, or refuse with the class that says why.

    Args:
        claims: from ``Registry.verify``.
        policy: the manifest's policy for the role that the claims' binding names; the caller picks it by role.
        environment: the manifest's; whatever is not ``simulation`` is treated as production.
        manifest_digest: what the TEE must have been started with.
        now_ms: when, in Unix milliseconds.

    Raises:
        EmptyAllowListError, SimulatedInProductionError, DebugError, SharedInstanceError, ProfileNotAllowedError,
        ConfigurationError, MeasurementError, StaleEvidenceError, PolicyMissingError, DeviceCountError: see above.
        AppraisalError: of the class that the policy of a kind gives.
        PolicyFormatError: a policy in the manifest that is none.
    """
    _require_policy(policy)
    _require_environment(claims, environment)
    if claims.debug:
        raise DebugError("debug", expected="a TEE that nobody can look into", got="debugging enabled")
    if claims.profile not in policy.profiles:
        raise ProfileNotAllowedError("profile", expected=", ".join(policy.profiles), got=claims.profile)
    if _is_zero(claims.configuration) or claims.configuration != manifest_digest:
        raise ConfigurationError("configuration", expected=manifest_digest[:16], got=claims.configuration[:16])
    if claims.measurement not in policy.measurements:
        allowed = ", ".join(entry[:16] for entry in policy.measurements)
        raise MeasurementError("measurement", expected=allowed, got=claims.measurement[:16])
    _require_fresh(claims, policy, now_ms)
    _require_kinds(claims, policy, environment, datetime.fromtimestamp(now_ms / 1000, UTC))


def claims_digest(claims: Claims) -> str:
    """Return the digest of claims, as it stands in a Grant and in ledgers."""
    return canonical.digest(canonical.encode(record.to_json(claims)))


def _require_policy(policy: TeePolicy) -> None:
    # TeePolicy refuses empty lists when it is made; this holds for a record that came about in another way.
    for name, entries in (("profiles", policy.profiles), ("measurements", policy.measurements)):
        if not entries:
            raise EmptyAllowListError(f"tee.{name}", expected="at least one", got="none")
    if any(_is_zero(entry) for entry in policy.measurements):
        raise EmptyAllowListError("tee.measurements", expected="digests of code", got="zeros")


def _require_environment(claims: Claims, environment: str) -> None:
    if environment != SIMULATION:
        if claims.evidence_class == _SIMULATED or not claims.hardware_rooted:
            raise SimulatedInProductionError("evidence class", expected="rooted in hardware", got=claims.evidence_class)
        if claims.shared:
            raise SharedInstanceError("instance", expected="one identity in a TEE", got="shared by several")
    if claims.environment and claims.environment != environment:
        raise ConfigurationError("environment", expected=environment, got=claims.environment)


def _require_fresh(claims: Claims, policy: TeePolicy, now_ms: int) -> None:
    age_ms = now_ms - claims.issued_at
    limit_s = min(policy.max_age_s, OLDEST_S)
    if not -SKEW_MS <= age_ms <= limit_s * 1000:
        raise StaleEvidenceError(
            "evidence age in seconds", expected=f"from {-SKEW_MS // 1000} to {limit_s}", got=age_ms / 1000
        )


def _require_kinds(claims: Claims, policy: TeePolicy, environment: str, now: datetime) -> None:
    """Appraise the TEE and each device by the owner's policy for its kind: the whole is acceptable if every part is."""
    if claims.evidence_class != _SIMULATED or claims.details is not None:
        _require_kind(claims.profile, claims.details, policy, environment, now)
    found = tuple(device.profile for device in claims.devices)
    if sorted(found) != sorted(policy.devices):
        raise DeviceCountError(
            "device evidence", expected=", ".join(policy.devices) or "none", got=", ".join(found) or "none"
        )
    for device in claims.devices:
        _require_kind(device.profile, device.details, policy, environment, now)


def _require_kind(profile: str, details: Any, policy: TeePolicy, environment: str, now: datetime) -> None:
    table = policy.appraisal.get(profile)
    if table is None:
        raise PolicyMissingError(f"tee.appraisal.{profile}", expected="an appraisal policy", got="none")
    if details is None:
        raise PolicyMissingError(f"claims of {profile}", expected="some that a policy can appraise", got="none")
    found = document.from_table(profile, table)
    if environment != SIMULATION:
        found.require_decided()
    found.appraise(details, profile=profile, now=now)


def _is_zero(value: str) -> bool:
    return not value.strip("0")
