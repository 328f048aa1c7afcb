"""What a manifest says about central differential privacy, and what an accountant knows after a round.

The protected unit is an identity: everything that one data owner's data did to a version. The mechanism of one round:

1. every update's difference from the base is scaled down to an L2 norm of at most C, the round's clip norm;
2. each is multiplied by its share: 1, or its examples over ``update.weight_cap``, so at most 1;
3. the sum gets Gaussian noise of standard deviation ``noise_multiplier * C`` in every coordinate;
4. what stands is divided by ``denominator``, which the manifest fixes, and added to the base.

So one identity moves the sum by at most C, whatever weights the others declare: a denominator that is summed from the
weights would depend on data itself, and on every other share with it. What is not trained stays as in the base.

Adjacency: who takes part in a round is public (the commit names the cohort), so "add or remove one identity" means
here that its contribution is zero or not (``zero-out``); ``replace-one`` lets it be any other, at twice the distance.

Source: McMahan et al., "Learning Differentially Private Recurrent Language Models" (2018), algorithm 1 (fixed
denominator); Andrew et al., "Differentially Private Learning with Adaptive Clipping" (2021), algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from confed.errors import ConfigError

GAUSSIAN = "gaussian"
ZERO_OUT, REPLACE_ONE = "zero-out", "replace-one"
UNIFORM, EXAMPLES = "uniform", "examples"
BY_MANIFEST, BY_ENCLAVE = "manifest", "enclave"
STRATEGIES: tuple[str, ...] = ("FedAvg", "FedProx", "FedAvgM", "FedAdam", "FedYogi", "FedAdagrad")
"""Strategies of the mean: what they do after it is post-processing. Of the others no sensitivity is known here."""

_LARGEST = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedClip:
    """One clip norm for the whole run."""

    norm: float

    def __post_init__(self) -> None:
        _require_positive("clip.norm", self.norm)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptiveClip:
    """A clip norm that follows a quantile of the updates' norms.

    Attributes:
        initial: the first round's clip norm.
        quantile: the share of updates that shall be within it.
        learning_rate: how fast it moves; by the factor ``exp(-learning_rate * (share within - quantile))``.
        count_noise: standard deviation of the noise on the number of updates within it; charged too.
    """

    initial: float
    quantile: float
    learning_rate: float
    count_noise: float

    def __post_init__(self) -> None:
        _require_positive("clip.initial", self.initial)
        _require(0 < self.quantile < 1, "clip.quantile", "between 0 and 1", self.quantile)
        _require(0 < self.learning_rate <= 1, "clip.learning_rate", "above 0 and at most 1", self.learning_rate)
        _require_positive("clip.count_noise", self.count_noise)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingTerms:
    """Whose draw decides who is in a result.

    ``manifest``: the public draw of the manifest's seed, which amplifies nothing; the rate is 1. ``enclave``: on top of
    that draw the enclave takes each update with probability ``rate``, by a secret coin of its own, and tells nobody
    which; only this is counted as amplification.
    """

    by: str
    rate: float

    def __post_init__(self) -> None:
        _require(self.by in (BY_MANIFEST, BY_ENCLAVE), "sampling.by", f"{BY_MANIFEST} or {BY_ENCLAVE}", self.by)
        _require(0 < self.rate <= 1, "sampling.rate", "above 0 and at most 1", self.rate)
        _require(self.by == BY_ENCLAVE or self.rate == 1, "sampling.rate", "1 where the draw is public", self.rate)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyTerms:
    """Central differential privacy of a run; ``null`` in a manifest that has none. No field is optional.

    Attributes:
        mechanism: ``gaussian``.
        adjacency: ``zero-out`` or ``replace-one``.
        clip: the clip norm C, fixed or adaptive.
        noise_multiplier: standard deviation of the noise on the sum of clipped updates, in units of C.
        weighting: ``uniform`` (recommended) or ``examples``.
        denominator: what the noised sum is divided by.
        sampling: whose draw decides who is in a result.
        delta: of (epsilon, delta).
        epsilon_budget: largest epsilon, at delta, that the run may spend.
    """

    mechanism: str
    adjacency: str
    clip: FixedClip | AdaptiveClip
    noise_multiplier: float
    weighting: str
    denominator: float
    sampling: SamplingTerms
    delta: float
    epsilon_budget: float

    def __post_init__(self) -> None:
        _require(self.mechanism == GAUSSIAN, "mechanism", GAUSSIAN, self.mechanism)
        adjacencies = (ZERO_OUT, REPLACE_ONE)
        _require(self.adjacency in adjacencies, "adjacency", " or ".join(adjacencies), self.adjacency)
        _require(self.weighting in (UNIFORM, EXAMPLES), "weighting", f"{UNIFORM} or {EXAMPLES}", self.weighting)
        for name in ("noise_multiplier", "denominator", "epsilon_budget"):
            _require_positive(name, getattr(self, name))
        _require(0 < self.delta < 1, "delta", "between 0 and 1", self.delta)
        _require(
            self.adjacency == ZERO_OUT or self.sampling.by == BY_MANIFEST,
            "adjacency",
            f"{ZERO_OUT} where the enclave samples",
            self.adjacency,
        )

    @property
    def first_clip(self) -> float:
        """The first round's clip norm."""
        return self.clip.norm if isinstance(self.clip, FixedClip) else self.clip.initial

    @property
    def multiplier(self) -> float:
        """The noise of one release in units of its sensitivity under the terms' own adjacency."""
        return self.noise / (2 if self.adjacency == REPLACE_ONE else 1)

    @property
    def noise(self) -> float:
        """The noise of one release in units of what one contribution moves, everything in it taken together.

        An adaptive clip releases a count beside the sum; each update counts as plus or minus one half in it, so its
        noise is ``2 * count_noise`` sensitivities. Of two Gaussian releases from the same updates the precisions add.

        Source: Andrew et al. (2021), theorem 1.
        """
        precision = self.noise_multiplier**-2
        if isinstance(self.clip, AdaptiveClip):
            precision += (2 * self.clip.count_noise) ** -2
        return precision**-0.5

    @property
    def told(self) -> str:
        """The terms in words."""
        clip = self.clip
        norm = f"{clip.norm:g}" if isinstance(clip, FixedClip) else f"from {clip.initial:g}, quantile {clip.quantile:g}"
        sampled = f", secret sampling at {self.sampling.rate:g}" if self.sampling.by == BY_ENCLAVE else ""
        return (
            f"epsilon at most {self.epsilon_budget:g} at delta {self.delta:g} (one identity, {self.adjacency}): "
            f"clip norm {norm}, noise {self.noise_multiplier:g}{sampled}"
        )

    def require(self, *, strategy: str, clear: Sequence[str], norm_bound: float, sites: int) -> None:
        """Check the terms against the rest of a contract.

        Raises:
            ConfigError: a strategy of unknown sensitivity, metrics in clear (nothing noises them), a clip norm above
                the bound of norms, or a delta that would let one of the identities be shown as it is.
        """
        # How long a site trains decides which buffer it is in, and how stale: its data do, and the commit shows both.
        reason = "its buffers tell who was quick" if strategy == "FedBuff" else "no sensitivity is known of others"
        expected = "one of the mean (" + ", ".join(STRATEGIES) + f"): {reason}"
        _require(strategy in STRATEGIES, "strategy", expected, strategy)
        _require(not clear, "metrics", "none in clear: they are not noised", ", ".join(clear))
        _require(self.first_clip <= norm_bound, "clip", f"at most update.norm_bound ({norm_bound:g})", self.first_clip)
        _require(self.delta * sites < 1, "delta", f"below 1 / {sites}, one of the identities", self.delta)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyState:
    """The accountant after a round, in its commit.

    Attributes:
        releases: noised results that left or may have left an enclave so far: every attempt that was possible counts.
        epsilon: what they spend together, at the manifest's delta.
        clip: the clip norm of this round.
        next_clip: that of the next round.
    """

    releases: int
    epsilon: float
    clip: float
    next_clip: float

    @classmethod
    def start(cls, terms: PrivacyTerms) -> PrivacyState:
        """Return the state before the first round."""
        return cls(releases=0, epsilon=0.0, clip=terms.first_clip, next_clip=terms.first_clip)


def _require_positive(name: str, value: float) -> None:
    _require(math.isfinite(value) and 0 < value <= _LARGEST, name, f"above 0 and at most {_LARGEST:g}", value)


def _require(holds: bool, name: str, expected: object, got: object) -> None:  # noqa: FBT001
    if not holds:
        raise ConfigError(f"privacy.{name}", expected=expected, got=got)
