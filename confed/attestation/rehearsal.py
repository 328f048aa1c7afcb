"""What a broker would refuse, claim by claim, and not only the first thing: for whoever sets up a machine or a policy.

The verdicts come from ``appraisal.appraise`` itself, so they cannot differ from a broker's:

1. it is asked; what it accepts is accepted;
2. what it refuses is noted with its code, and then mended on paper: the claim is replaced by one that would be
   accepted, or, in an appraisal policy, the field at fault by ``unchecked``; where a floor refuses what one kind of TEE
   or device says, or no policy for it is there, that kind is left out, and the rest of it was not reached;
3. it is asked again, until nothing is refused or something cannot be mended: then what comes after it was not reached.

Nothing here opens anything: a rehearsal's answer is a list, never a permission.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from confed.attestation.appraisal import appraise
from confed.attestation.verifier import Claims, DeviceClaims
from confed.errors import (
    ConfedError,
    ConfigurationError,
    DebugError,
    DeviceCountError,
    MeasurementError,
    PolicyMissingError,
    ProfileNotAllowedError,
    RefusedError,
    SharedInstanceError,
    SimulatedInProductionError,
    StaleEvidenceError,
)
from confed.manifest import SIMULATION, TeePolicy

UNCHECKED = {"unchecked": "confed doctor: refused already"}
_SIMULATED, _MENDED = "simulated", "rehearsed"
_MOST_REFUSALS = 64
_DEEPEST = 4

Appraise = Callable[..., None]


class Outcome(StrEnum):
    """What became of one claim."""

    OK = "ok"
    REFUSED = "refused"
    NOT_REACHED = "not reached"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One claim and what a broker would say of it; ``code``, ``expected`` and ``got`` where it is refused."""

    claim: str
    outcome: Outcome
    code: str = ""
    expected: str = ""
    got: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trial:
    """What is appraised: the claims as they were or mended, and the policy likewise."""

    claims: Claims
    policy: TeePolicy
    environment: str
    manifest_digest: str
    now_ms: int
    check: Appraise

    @property
    def kinds(self) -> frozenset[str]:
        """Profiles of what is appraised by a policy of its own kind, as far as it was not left out."""
        own = (self.claims.profile,) if self.has_own_kind else ()
        return frozenset((*own, *(device.profile for device in self.claims.devices)))

    @property
    def has_own_kind(self) -> bool:
        """Whether there is something of the TEE itself that a policy of its kind appraises."""
        return self.claims.details is not None

    def refusal(self) -> ConfedError | None:
        """Return what is refused; a simulated TEE, mended to be another, still has no policy of its own to miss."""
        error = self.asked()
        feigned = self.claims.evidence_class == _MENDED and not self.has_own_kind
        return self.without_own_kind().asked() if feigned and isinstance(error, PolicyMissingError) else error

    def without_own_kind(self) -> _Trial:
        """Return the trial without what is asked last, and of no simulated TEE: the appraisal of its own kind.

        What differs between environments was asked before it.
        """
        left_out = self.with_claims(evidence_class=_SIMULATED, environment="", details=None)
        return dataclasses.replace(left_out, environment=SIMULATION)

    def asked(self) -> ConfedError | None:
        try:
            self.check(
                self.claims,
                policy=self.policy,
                environment=self.environment,
                manifest_digest=self.manifest_digest,
                now_ms=self.now_ms,
            )
        except ConfedError as error:
            return error
        return None

    def with_claims(self, **changes: Any) -> _Trial:
        return dataclasses.replace(self, claims=dataclasses.replace(self.claims, **changes))

    def with_policy(self, **changes: Any) -> _Trial:
        return dataclasses.replace(self, policy=dataclasses.replace(self.policy, **changes))


@dataclass(frozen=True, slots=True)
class _Claim:
    """A claim that every kind of TEE makes: which refusals are of it, and what would be accepted in its place."""

    name: str
    refused_as: type[RefusedError]
    field: str
    mend: Callable[[_Trial], _Trial]


# In the order in which ``appraise`` asks for them.
_CLAIMS = (
    _Claim(
        "evidence class",
        SimulatedInProductionError,
        "evidence class",
        lambda trial: trial.with_claims(evidence_class=_MENDED, hardware_rooted=True),
    ),
    _Claim("one identity", SharedInstanceError, "instance", lambda trial: trial.with_claims(shared=False)),
    _Claim("environment", ConfigurationError, "environment", lambda trial: trial.with_claims(environment="")),
    _Claim("debug", DebugError, "debug", lambda trial: trial.with_claims(debug=False)),
    _Claim(
        "profile",
        ProfileNotAllowedError,
        "profile",
        lambda trial: trial.with_policy(profiles=(*trial.policy.profiles, trial.claims.profile)),
    ),
    _Claim(
        "configuration",
        ConfigurationError,
        "configuration",
        lambda trial: trial.with_claims(configuration=trial.manifest_digest),
    ),
    _Claim(
        "measurement",
        MeasurementError,
        "measurement",
        lambda trial: trial.with_policy(measurements=(*trial.policy.measurements, trial.claims.measurement)),
    ),
    _Claim(
        "age", StaleEvidenceError, "evidence age in seconds", lambda trial: trial.with_claims(issued_at=trial.now_ms)
    ),
    _Claim("devices", DeviceCountError, "device evidence", lambda trial: _with_devices(trial, trial.claims.devices)),
)
CLAIMS = tuple(claim.name for claim in _CLAIMS)
"""The claims that every kind of TEE makes."""


def rehearse(
    claims: Claims,
    *,
    policy: TeePolicy,
    environment: str,
    manifest_digest: str,
    now_ms: int,
    check: Appraise = appraise,
) -> tuple[Verdict, ...]:
    """Return a verdict for each claim, and for each field of the policy's appraisal policies.

    Args:
        claims: of genuine evidence.
        policy: the manifest's policy for the role.
        environment: the manifest's.
        manifest_digest: what the TEE must have been started with.
        now_ms: when, in Unix milliseconds.
        check: what is asked; it takes the same arguments.
    """
    trial = _Trial(
        claims=claims,
        policy=policy,
        environment=environment,
        manifest_digest=manifest_digest,
        now_ms=now_ms,
        check=check,
    )
    refused: dict[str, Verdict] = {}
    left: ConfedError | None = None
    for _ in range(_MOST_REFUSALS):
        # 1.
        left = trial.refusal()
        if left is None:
            break
        # 2.
        name, mended = _mended(trial, left)
        refused[name] = verdict_of(name, left)
        if mended is None:
            break
        # 3.
        trial = mended
    kinds = trial.kinds

    def outcome(name: str) -> Outcome:
        reached = left is None and (name in CLAIMS or name.partition(":")[0] in kinds)
        return Outcome.OK if reached else Outcome.NOT_REACHED

    names = dict.fromkeys((*CLAIMS, *_fields(policy), *refused))
    return tuple(refused.get(name) or Verdict(claim=name, outcome=outcome(name)) for name in names)


def verdict_of(claim: str, error: ConfedError) -> Verdict:
    """Return the verdict that an error is for a claim."""
    return Verdict(
        claim=claim,
        outcome=Outcome.REFUSED,
        code=error.code,
        expected="" if error.expected is None else str(error.expected),
        got="" if error.got is None else str(error.got),
    )


def _mended(trial: _Trial, error: ConfedError) -> tuple[str, _Trial | None]:
    """Return what was refused, and the trial with it mended; ``None`` where that is beyond a policy."""
    for claim in _CLAIMS:
        if type(error) is claim.refused_as and error.field == claim.field:
            mended = claim.mend(trial)
            return claim.name, mended if _is_another(mended.refusal(), error) else None
    for (profile, *path), policy in _loosened(trial.policy):
        mended = dataclasses.replace(trial, policy=policy)
        if _is_another(mended.refusal(), error):
            return _field_name(profile, path), mended
    for profile, mended in _without_one_kind(trial):
        if _is_another(mended.refusal(), error):
            return _field_name(profile, [error.field]), mended
    return error.field, None


def _without_one_kind(trial: _Trial) -> Iterator[tuple[str, _Trial]]:
    if trial.claims.evidence_class != _SIMULATED or trial.has_own_kind:
        yield trial.claims.profile, trial.without_own_kind()
    for device in trial.claims.devices:
        left = tuple(one for one in trial.claims.devices if one is not device)
        yield device.profile, _with_devices(trial.with_claims(devices=left), left)


def _with_devices(trial: _Trial, devices: Sequence[DeviceClaims]) -> _Trial:
    """Return the trial with a policy that asks for exactly these devices."""
    profiles = tuple(device.profile for device in devices)
    named = (*trial.policy.profiles, *profiles)
    appraisal = {profile: table for profile, table in trial.policy.appraisal.items() if profile in named}
    return trial.with_policy(devices=profiles, appraisal=appraisal)


def _field_name(profile: str, path: Sequence[str]) -> str:
    return f"{profile}: {'.'.join(path)}"


def _is_another(found: ConfedError | None, error: ConfedError) -> bool:
    """Whether a mended trial got past what was refused; a policy that cannot be read so did not."""
    if found is None:
        return True
    return isinstance(found, RefusedError) and _parts(found) != _parts(error)


def _parts(error: ConfedError) -> tuple[object, ...]:
    return type(error), error.field, str(error.expected), str(error.got)


def _fields(policy: TeePolicy) -> Iterator[str]:
    """Yield the fields of every appraisal policy that a manifest's policy holds, innermost last."""
    for profile, document in policy.appraisal.items():
        for path in _paths(document.get("policy", {})):
            yield _field_name(profile, path)


def _loosened(policy: TeePolicy) -> Iterator[tuple[tuple[str, ...], TeePolicy]]:
    """Yield the policy with one field left unchecked, for each field: single values before the tables around them."""
    for profile, document in policy.appraisal.items():
        table = document.get("policy", {})
        for path in _paths(table):
            changed = {**document, "policy": _unchecked(table, path)}
            yield (profile, *path), dataclasses.replace(policy, appraisal={**policy.appraisal, profile: changed})


def _paths(table: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for name, value in table.items():
        if _is_table(value):
            yield from ((name, *path) for path in _paths(value) if len(path) < _DEEPEST)
        yield (name,)


def _unchecked(table: Mapping[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    name, *rest = path
    return {**table, name: _unchecked(table[name], tuple(rest)) if rest else dict(UNCHECKED)}


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping) and "unchecked" not in value
