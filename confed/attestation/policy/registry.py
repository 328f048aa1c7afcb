"""Which rules hold for which kind of evidence: the floors, what holds by default, and the owner's policy.

Each kind of TEE or device has a module of its own with these; here they stand under their evidence profiles, so that a
document, the broker and the command line find them in one place. A kind that is not here cannot be appraised.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

from confed.attestation.policy import arm_cca, azure, nitro, nvidia_gpu, sev_snp, sgx, tdx, tpm
from confed.errors import PolicyMissingError


class _Appraise(Protocol):
    def __call__(self, claims: Any, policy: Any, *, now: datetime.datetime) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The rules for one kind of evidence.

    Attributes:
        policy: the class of an owner's policy.
        require_floors: refuses what no policy can accept.
        require_defaults: refuses what is not acceptable where there is no policy; the floors included.
        appraise: refuses what the floors or a policy of the class ``policy`` do not accept.
    """

    policy: type[Any]
    require_floors: Callable[[Any], None]
    require_defaults: Callable[[Any], None]
    appraise: _Appraise


def _rules(policy: type[Any], module: Any) -> Rules:
    return Rules(
        policy=policy,
        require_floors=module.require_floors,
        require_defaults=module.require_defaults,
        appraise=module.appraise,
    )


RULES: Mapping[str, Rules] = MappingProxyType(
    {
        rules.policy.PROFILE: rules
        for rules in (
            _rules(sev_snp.SnpPolicy, sev_snp),
            _rules(tdx.TdxPolicy, tdx),
            _rules(sgx.SgxPolicy, sgx),
            _rules(nitro.NitroPolicy, nitro),
            _rules(tpm.TpmPolicy, tpm),
            _rules(tpm.GcpTpmPolicy, tpm),
            _rules(azure.AzureSnpPolicy, azure),
            _rules(azure.AzureTdxPolicy, azure),
            _rules(nvidia_gpu.NvidiaGpuPolicy, nvidia_gpu),
            _rules(arm_cca.CcaPolicy, arm_cca),
        )
    }
)


def require_floors(profile: str, claims: Any, *, rules: Mapping[str, Rules] = RULES) -> None:
    """Refuse what no policy can accept: debugging, migration, a missing alias check, zeros as golden values and so on.

    Args:
        profile: of the verifier that made the claims.
        claims: of the driver's own type (``SnpClaims`` and so on).
        rules: those of every kind that confed knows, unless a caller has fewer.

    Raises:
        PolicyMissingError: a kind without rules.
        AppraisalError: of the class that says why.
    """
    _rules_for(profile, rules).require_floors(claims)


def require_defaults(profile: str, claims: Any, *, rules: Mapping[str, Rules] = RULES) -> None:
    """Refuse what is not acceptable where nobody gave a policy; the floors included. Arguments as ``require_floors``.

    Raises:
        PolicyMissingError: a kind without rules.
        AppraisalError: of the class that says why.
    """
    _rules_for(profile, rules).require_defaults(claims)


def appraise(
    profile: str, claims: Any, policy: Any, *, now: datetime.datetime, rules: Mapping[str, Rules] = RULES
) -> None:
    """Refuse what the floors or the owner's policy do not accept.

    Args:
        profile: of the verifier that made the claims.
        claims: of the driver's own type.
        policy: of the class that the profile has.
        now: when, with its time zone.
        rules: those of every kind that confed knows, unless a caller has fewer.

    Raises:
        PolicyMissingError: a kind without rules, or a policy of another class.
        AppraisalError: of the class that says why.
    """
    found = _rules_for(profile, rules)
    if type(policy) is not found.policy:
        raise PolicyMissingError(f"policy of {profile}", expected=found.policy.__name__, got=type(policy).__name__)
    found.appraise(claims, policy, now=now)


def _rules_for(profile: str, rules: Mapping[str, Rules]) -> Rules:
    found = rules.get(profile)
    if found is None:
        raise PolicyMissingError(f"appraisal rules of {profile}", expected=", ".join(rules), got="none")
    return found
