"""Rules that need every update, for cohorts in which some may be faulty: order statistics, selection by distance.

They read the same chunk of all sealed updates (``passes``), never a whole update. The coordinate-wise rules need one
pass. The others first sum the squared distances between all pairs, in float64; from these alone Krum's scores follow,
and the geometric median's weights (the distance of a weighted mean from each update is a function of the distances
between the updates); then the selected updates are folded. Results are Flower's on the same inputs, but for the last
bits of sums that are added in another order, and for ties: here the update first in identity order goes first.

Sources: Yin et al., "Byzantine-Robust Distributed Learning" (2018): median, trimmed mean. Blanchard et al., "Machine
Learning with Adversaries" (2017): Krum. El Mhamdi et al., "The Hidden Vulnerability of Distributed Learning in
Byzantium" (2018): Bulyan, algorithm 2. Pillutla et al., "Robust Aggregation for Federated Learning" (2022): the
smoothed Weiszfeld algorithm. flwr 1.41, ``serverapp/strategy``: the rest of each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aggregator.combine.blocks import Scratch, Segment
from aggregator.combine.fold import factors, weighted_mean
from aggregator.combine.order import middle, nearest_mean, ordered_rows
from aggregator.combine.passes import Updates

Array = NDArray[Any]
Reduce = Callable[[Sequence[Array]], Array]

COLUMNS_BYTES = 2560 * 1024
"""How much of all updates is sorted at a time: in cache, and large enough that calls cost little beside it."""
_FEWEST_COLUMNS = 2 * 1024
_DISTANCE_BLOCK = 4 * 1024
_DISTANCE_PARTS = 64
"""Ranges whose distances are summed apart, then in order: so the sums are the same bits for any number of threads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Median:
    """FedMedian: each coordinate's median, weights not used."""

    least: int = 1

    def combine(self, updates: Updates) -> dict[str, Array]:
        """Return the medians, as numbers.

        Raises:
            WrongSenders: a pass found somebody wrong.
        """
        count = len(updates.contributions)
        return _by_column(updates, lambda rows: middle(ordered_rows(rows, (count - 1) // 2, count // 2 + 1)))


@dataclass(frozen=True, slots=True, kw_only=True)
class TrimmedMean:
    """FedTrimmedAvg: each coordinate's mean without the ``cut`` (0 <= cut < 0.5) lowest and highest; no weights."""

    cut: float
    least: int = 1

    def combine(self, updates: Updates) -> dict[str, Array]:
        """Return the trimmed means, as numbers.

        Raises:
            WrongSenders: a pass found somebody wrong.
        """
        count = len(updates.contributions)
        lowest = int(self.cut * count)
        return _by_column(updates, lambda rows: middle(ordered_rows(rows, lowest, count - lowest)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Krum:
    """Krum and MultiKrum: the weighted mean of the ``select`` updates that lie nearest to their neighbours."""

    faulty: int
    select: int

    @property
    def least(self) -> int:
        """``2 f + 3``, and as many as are selected."""
        return max(2 * self.faulty + 3, self.select)

    def combine(self, updates: Updates) -> dict[str, Array]:
        """Return the mean of the selected, best first as Flower adds them, as numbers.

        Raises:
            WrongSenders: a pass found somebody wrong.
        """
        nearest = by_score(squared_distances(updates), faulty=self.faulty)
        chosen = updates.chosen(nearest[: self.select])
        return weighted_mean(chosen, factors([entry.weight for entry in chosen.contributions]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Bulyan:
    """Bulyan: of the ``n - 2 f`` updates that MultiKrum selects, the mean of each coordinate's ``n - 4 f`` nearest.

    Nearest to the coordinate's median, that is; weights are not used.
    """

    faulty: int

    @property
    def least(self) -> int:
        """``4 f + 3``."""
        return 4 * self.faulty + 3

    def combine(self, updates: Updates) -> dict[str, Array]:
        """Return the means of the nearest, as numbers.

        Raises:
            WrongSenders: a pass found somebody wrong.
        """
        select = len(updates.contributions) - 2 * self.faulty
        nearest = by_score(squared_distances(updates), faulty=self.faulty)
        kept = select - 2 * self.faulty
        return _by_column(
            updates.chosen(nearest[:select]), lambda rows: nearest_mean(ordered_rows(rows, 0, select), kept)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class GeometricMedian:
    """RFA: the point whose distances from all updates, each times its weight, have the least sum.

    Attributes:
        smoothing: distances below it count as it (L2, in the model's own units).
        tolerance: the iteration ends when the sum changes by no more than this part of it.
        max_iterations: it ends then in any case.
    """

    smoothing: float
    tolerance: float
    max_iterations: int
    least: int = 1

    def combine(self, updates: Updates) -> dict[str, Array]:
        """Return the weighted mean with Weiszfeld's weights, as numbers.

        Raises:
            WrongSenders: a pass found somebody wrong.
        """
        return weighted_mean(
            updates, self.shares(squared_distances(updates), [e.weight for e in updates.contributions])
        )

    def shares(self, squares: Array, weights: Sequence[float]) -> list[float]:
        """Return each update's share in the median, from the squared distances between all pairs.

        For a mean ``v`` of the updates with shares ``w`` that sum to 1, and squared distances ``D`` between them:
        ``|v - x_k|² = (D w)_k - w D w / 2``. So nothing of the updates themselves is needed to iterate.

        Source: Pillutla et al. (2022), algorithm 2 (smoothed Weiszfeld), started from the weighted mean.
        """
        alphas = np.asarray(weights, dtype=np.float64)
        shares, before = alphas / alphas.sum(), np.inf
        for _ in range(self.max_iterations):
            products = squares @ shares
            distances = np.sqrt(np.maximum(products - shares @ products / 2, 0.0))
            objective = float(alphas @ distances)
            if abs(before - objective) <= self.tolerance * objective:
                break
            before = objective
            pulls = alphas / np.maximum(distances, self.smoothing)
            shares = pulls / pulls.sum()
        return shares.tolist()


def squared_distances(updates: Updates) -> Array:
    """Return the squared L2 distances between all pairs of updates, over all tensors: float64, ``(n, n)``.

    Guarantees: the same bits for any number of threads; equal updates are 0 apart.

    Raises:
        WrongSenders: a pass found somebody wrong.
    """
    count = len(updates.contributions)
    total = np.zeros((count, count))
    for part in updates.run(lambda: _Distances(count), parts=_DISTANCE_PARTS):
        total += part.squares
    return total + total.T


def by_score(squares: Array, *, faulty: int) -> list[int]:
    """Return the positions of all updates by Krum's score: the sum of squares to the ``n - f - 2`` nearest others."""
    neighbours = max(1, len(squares) - faulty - 2)
    scores = np.sort(squares, axis=1)[:, 1 : neighbours + 1].sum(axis=1)
    return np.argsort(scores, kind="stable").tolist()


def _by_column(updates: Updates, reduce: Reduce) -> dict[str, Array]:
    """Return one number for each coordinate, made of that coordinate's numbers in all updates.

    ``reduce`` may change the rows that it is given.
    """
    result = updates.room()
    updates.run(lambda: _Columns(result, reduce))
    return result


class _Columns:
    """Reduces each column of a segment of all updates to one number."""

    holds = True

    def __init__(self, result: Mapping[str, Array], reduce: Reduce) -> None:
        self._result = result
        self._reduce = reduce

    def take(self, segment: Segment, rows: Sequence[Array], *, first: int, scratch: Scratch) -> None:
        del first, scratch
        result = self._result[segment.dtype][segment.part]
        columns = max(COLUMNS_BYTES // (len(rows) * rows[0].itemsize), _FEWEST_COLUMNS)
        for start in range(0, result.size, columns):
            block = slice(start, start + columns)
            result[block] = self._reduce([row[block] for row in rows])


class _Distances:
    """Sums the squared distances of all pairs over a range of chunks, above the diagonal."""

    holds = True

    def __init__(self, count: int) -> None:
        self.squares = np.zeros((count, count))

    def take(self, segment: Segment, rows: Sequence[Array], *, first: int, scratch: Scratch) -> None:
        del first, scratch
        size = segment.part.stop - segment.part.start
        for start in range(0, size, _DISTANCE_BLOCK):
            block = np.stack([row[start : start + _DISTANCE_BLOCK] for row in rows]).astype(np.float64, copy=False)
            with np.errstate(over="ignore"):  # beyond every norm bound: the pass ends in a refusal
                for at in range(len(rows) - 1):
                    differences = block[at + 1 :] - block[at]
                    self.squares[at, at + 1 :] += np.einsum("ij,ij->i", differences, differences)
