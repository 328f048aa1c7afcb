"""The private mean: every update's difference from the base clipped, their sum noised, then divided and added back.

Nothing before the noise leaves a worker: of a chunk it keeps the sum of clipped differences in float64, and what it
writes into the result has noise on it already. Norms are those that senders declared and the pass verifies: a sender
whose norm is false is excluded, and the fold starts over, with new noise.

Source: ``confed.privacy.terms``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from confed.privacy.clipping import factor, next_clip
from confed.privacy.noise import GaussianNoise
from confed.privacy.terms import BY_ENCLAVE, EXAMPLES, AdaptiveClip

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aggregator.combine.passes import Contribution, Scratch, Segment, Updates
    from confed.privacy.terms import PrivacyTerms

Array = NDArray[Any]


@dataclass(slots=True, kw_only=True)
class PrivateMean:
    """One round's rule. ``next_clip`` is the next round's clip norm, once updates were combined.

    Args:
        terms: the manifest's.
        clip: this round's clip norm.
        expected: how many updates a round has, as the manifest fixes it.
        norm_bound, weight_cap: the manifest's bounds of an update.
    """

    terms: PrivacyTerms
    clip: float
    expected: float
    norm_bound: float
    weight_cap: float
    next_clip: float = 0.0
    least: int = 1

    def combine(self, updates: Updates) -> dict[str, Array]:
        """Return the private mean, as numbers.

        Raises:
            WrongSenders: a pass found somebody wrong.
        """
        factors, norms = self.drawn(updates.contributions)
        self.count(norms)
        mean, sigma = updates.room(), self.sigma
        updates.run(lambda: _NoisedSum(updates, mean, factors, sigma=sigma, denominator=self.terms.denominator))
        return mean

    def drawn(self, contributions: Sequence[Contribution]) -> tuple[list[float], list[float]]:
        """Return what each update's difference is multiplied with (0: the enclave's coin left it out).

        A fold that starts over draws again.

        Returns:
            The factors, and the norms of those who count.
        """
        noise = GaussianNoise()
        counts = [self._takes(noise) for _ in contributions]
        drawn = list(zip(contributions, counts, strict=True))
        return [self._factor(entry) if own else 0.0 for entry, own in drawn], [
            entry.norm for entry, own in drawn if own
        ]

    def count(self, norms: Sequence[float]) -> None:
        """Work out ``next_clip``, once the norms of everybody who counts are known."""
        self.next_clip = self._following(norms, GaussianNoise())

    @property
    def sigma(self) -> float:
        """Standard deviation of the noise on the sum."""
        return self.terms.noise_multiplier * self.clip

    def _takes(self, noise: GaussianNoise) -> bool:
        sampling = self.terms.sampling
        return sampling.by != BY_ENCLAVE or noise.coin(sampling.rate)

    def _factor(self, entry: Contribution) -> float:
        share = min(1.0, entry.weight / self.weight_cap) if self.terms.weighting == EXAMPLES else 1.0
        return share * factor(entry.norm, self.clip)

    def _following(self, norms: Sequence[float], noise: GaussianNoise) -> float:
        within = np.array([sum(0.5 if norm <= self.clip else -0.5 for norm in norms)])
        if isinstance(self.terms.clip, AdaptiveClip):
            noise.add_to(within, sigma=self.terms.clip.count_noise)
        return next_clip(
            self.terms.clip,
            self.clip,
            noised_within=float(within[0]),
            expected=self.expected,
            norm_bound=self.norm_bound,
        )


class _NoisedSum:
    """Adds up one chunk's clipped differences; with the last update it noises them and writes the result."""

    holds = False

    def __init__(
        self, updates: Updates, mean: Mapping[str, Array], factors: Sequence[float], *, sigma: float, denominator: float
    ) -> None:
        self._updates = updates
        self._mean = mean
        self._factors = factors
        self._sigma = sigma
        self._denominator = denominator
        self._noise = GaussianNoise()
        self._sums: dict[tuple[str, int], NDArray[np.float64]] = {}

    def take(self, segment: Segment, rows: Sequence[Array], *, first: int, scratch: Scratch) -> None:
        """Take a segment of one update: they come in their order, all of a chunk before the next chunk."""
        base = segment.kind.numbers(self._updates.base.flats[segment.dtype][segment.part])
        where = (segment.dtype, segment.part.start)
        if first == 0:
            self._sums[where] = np.zeros(base.size, dtype=np.float64)
        total = self._sums[where]
        (numbers,) = rows
        difference = scratch.take(np.dtype(np.float64), base.size)
        np.subtract(numbers, base, out=difference, dtype=np.float64, casting="unsafe")
        difference *= self._factors[first]
        total += difference
        if first == len(self._factors) - 1:
            self._noise.add_to(total, sigma=self._sigma)
            total /= self._denominator
            total += base
            self._mean[segment.dtype][segment.part] = total
            del self._sums[where]
