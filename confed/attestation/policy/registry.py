"""Which rules hold for which kind of evidence: the floors, what holds by default, and the owner's policy.

Each kind of TEE or device has a module of its own with these; here they stand under their evidence profiles, so that a
document, the broker and the command line find them in one place. A kind that is not here cannot be appraised. A kind's
module is imported when its rules are first asked for: a process that knows one kind of TEE pays for one.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, Protocol

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
        decided_in_production: fields that a policy may not leave unchecked in production, since the measurement that a
            manifest pins does not cover them.
    """

    policy: type[Any]
    require_floors: Callable[[Any], None]
    require_defaults: Callable[[Any], None]
    appraise: _Appraise
    decided_in_production: tuple[str, ...] = ()


class _Rulebook(Mapping[str, Rules]):
    """Rules by profile; nothing can be added."""

    def __getitem__(self, profile: str) -> Rules:
        return _imported(*_PLACES[profile])

    def __iter__(self) -> Iterator[str]:
        return iter(_PLACES)

    def __len__(self) -> int:
        return len(_PLACES)


@cache
def _imported(module: str, policy: str) -> Rules:
    found = import_module(f"confed.attestation.policy.{module}")
    return Rules(
        policy=getattr(found, policy),
        require_floors=found.require_floors,
        require_defaults=found.require_defaults,
        appraise=found.appraise,
        decided_in_production=getattr(found, "DECIDED_IN_PRODUCTION", ()),
    )


_PLACES = {
    "sev-snp/1": ("sev_snp", "SnpPolicy"),
    "tdx/1": ("tdx", "TdxPolicy"),
    "sgx/1": ("sgx", "SgxPolicy"),
    "aws-nitro/1": ("nitro", "NitroPolicy"),
    "tpm/1": ("tpm", "TpmPolicy"),
    "gcp-tpm/1": ("tpm", "GcpTpmPolicy"),
    "azure-snp/1": ("azure", "AzureSnpPolicy"),
    "azure-tdx/1": ("azure", "AzureTdxPolicy"),
    "nvidia-gpu/1": ("nvidia_gpu", "NvidiaGpuPolicy"),
    "arm-cca/1": ("arm_cca", "CcaPolicy"),
}

RULES: Mapping[str, Rules] = _Rulebook()
"""The rules of every kind that confed knows."""


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
