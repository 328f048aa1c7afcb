"""What all releases over all manifests together may tell of one key's data: a floor that the key itself carries.

Every ticket to train is one possible release with this data in it, and is charged as that: who holds no ticket is in no
version. Releases under different manifests may differ in noise and sampling; each is an event of its own, and all are
composed at the floor's delta, under the floor's adjacency, whatever the manifests say of theirs.

Source: as ``confed.privacy.accounting``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from confed.errors import ConfigError
from confed.privacy.terms import BY_ENCLAVE, REPLACE_ONE, ZERO_OUT, PrivacyTerms

_LARGEST = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """One noised result: its noise in units of sensitivity, and the chance that one identity is in it."""

    multiplier: float
    rate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyFloor:
    """A key's own budget, fixed when the key is made. No field is optional.

    Attributes:
        epsilon: largest that all releases together may spend, at ``delta``.
        delta: of (epsilon, delta).
        adjacency: ``zero-out`` or ``replace-one``.
    """

    epsilon: float
    delta: float
    adjacency: str

    def __post_init__(self) -> None:
        if not (math.isfinite(self.epsilon) and 0 < self.epsilon <= _LARGEST):
            raise ConfigError("floors.privacy.epsilon", expected=f"above 0, at most {_LARGEST:g}", got=self.epsilon)
        if not 0 < self.delta < 1:
            raise ConfigError("floors.privacy.delta", expected="between 0 and 1", got=self.delta)
        if self.adjacency not in (ZERO_OUT, REPLACE_ONE):
            expected = f"{ZERO_OUT} or {REPLACE_ONE}"
            raise ConfigError("floors.privacy.adjacency", expected=expected, got=self.adjacency)

    def release(self, terms: PrivacyTerms) -> Release:
        """Return what one release under a manifest's terms is to this floor.

        Sampling amplifies for ``zero-out`` alone: of ``replace-one`` no bound of the sampled mechanism is used here.
        """
        sampled = terms.sampling.by == BY_ENCLAVE and self.adjacency == ZERO_OUT
        return Release(
            multiplier=terms.noise / (2 if self.adjacency == REPLACE_ONE else 1),
            rate=terms.sampling.rate if sampled else 1.0,
        )

    @property
    def told(self) -> str:
        """The floor in words."""
        return f"epsilon at most {self.epsilon:g} at delta {self.delta:g} ({self.adjacency}) over all manifests"
