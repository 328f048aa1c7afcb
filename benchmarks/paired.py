"""What was measured in turns, compared pair by pair: the median, and between what it lies however noisy the machine is.

Two things that take turns within a second meet the same neighbours, so each pair's ratio (or difference) is freer of
them than either's time. The interval holds the median with a probability of 95 % or more, whatever is the distribution
of the noise: it lies between two of the sorted values, by how often a fair coin would fall.

Source: the sign test's confidence interval, as in Hollander, Wolfe, Chicken, "Nonparametric Statistical Methods".
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

_MISSED = 0.025


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """A median of pairs, and the interval that it lies in."""

    median: float
    low: float
    high: float
    pairs: int

    def told(self, digits: int = 3, scale: float = 1.0) -> str:
        """Return it as text, times ``scale``."""
        low, middle, high = (f"{value * scale:.{digits}f}" for value in (self.low, self.median, self.high))
        return f"{middle} ({low} to {high}, {self.pairs} pairs)"

    def json(self) -> dict[str, float]:
        """Return it as a JSON object."""
        return asdict(self)


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Paired:
    """Return how many times as much ours takes as theirs."""
    return of([own / other for own, other in zip(ours, theirs, strict=True)])


def difference(ours: Sequence[float], theirs: Sequence[float]) -> Paired:
    """Return how much more ours takes than theirs."""
    return of([own - other for own, other in zip(ours, theirs, strict=True)])


def of(values: Sequence[float]) -> Paired:
    """Return the median of values, and its interval."""
    ordered, count = sorted(values), len(values)
    beyond, place = 0.0, 0
    while place < count:
        beyond += math.comb(count, place) / 2**count
        if beyond > _MISSED:
            break
        place += 1
    place = max(0, place - 1)
    return Paired(median=statistics.median(ordered), low=ordered[place], high=ordered[count - 1 - place], pairs=count)


def in_turns(ways: Sequence[Callable[[], object]], *, turns: int, warm: int = 1) -> list[list[tuple[float, float]]]:
    """Call ways in turns, each turn beginning with another; return each way's seconds (wall, processor) by turn."""
    found: list[list[tuple[float, float]]] = [[] for _ in ways]
    for turn in range(turns + warm):
        for step in range(len(ways)):
            at = (turn + step) % len(ways)
            wall, busy = time.perf_counter(), time.process_time()
            ways[at]()
            taken = time.perf_counter() - wall, time.process_time() - busy
            if turn >= warm:
                found[at].append(taken)
    return found
