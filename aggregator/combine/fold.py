"""Sealed updates become one model: a rule is folded over them, without those who are not what they declared.

One pass reads chunk 0 of every update in identity order, then chunk 1, and so on (``passes``); so the result does not
depend on the order of arrival, and memory holds the base, the result and a few chunks, however many updates there are.
A sender that any pass finds wrong is excluded by name, and the rule starts over without it, if the cohort rule still
holds.

The weighted mean is the rule of FedAvg and of every server optimizer; those that need every update at once stand in
``robust``. The arithmetic is that of Flower's ``aggregate_arrayrecords``: ``mean += x * (w / W)`` in each tensor's own
floating type, so the result is Flower's to the bit; but float16 is summed in float32 (see ``tensor_types``). Only
floating tensors are folded: nothing else travels.

Source: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data" (2017),
algorithm 1; DESIGN §6.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from aggregator.combine.blocks import Scratch, Segment
from aggregator.combine.passes import Contribution, Updates, WrongSenders
from aggregator.combine.weights import Weights
from confed.errors import ConfedError, DuplicateUpdateError, ShortCohortError
from confed.memory import room_for

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

Array = NDArray[Any]


class Rule(Protocol):
    """How updates become one model; ``least`` is how many it needs to mean anything."""

    @property
    def least(self) -> int:
        """Fewest updates that it works on."""
        ...

    def combine(self, updates: Updates) -> dict[str, Array]:
        """Return the result as numbers, one flat array a type.

        Raises:
            WrongSenders: a pass found somebody wrong.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Combined:
    """The result of a rule, who was looked at for it (in identity order), and why the others were not."""

    mean: Weights
    sites: tuple[str, ...]
    excluded: Mapping[str, ConfedError]


def factors(weights: Sequence[float]) -> list[float]:
    """Return each weight's share, computed as Flower does.

    Source: flwr 1.41, ``serverapp/strategy/strategy_utils.py``, ``aggregate_arrayrecords``.
    """
    total = sum(weights)
    return [weight / total for weight in weights]


def weighted_mean(updates: Updates, shares: Sequence[float]) -> dict[str, Array]:
    """Return the sum of all updates, each times its share, added in their order.

    Raises:
        WrongSenders: somebody is not what it declared.
    """
    mean = updates.room()
    updates.run(lambda: _Sum(mean, shares))
    return mean


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightedMean:
    """The mean by declared weights: FedAvg's aggregation."""

    least: int = 1

    def combine(self, updates: Updates) -> dict[str, Array]:
        """Return the weighted mean, as numbers.

        Raises:
            WrongSenders: a pass found somebody wrong.
        """
        return weighted_mean(updates, factors([entry.weight for entry in updates.contributions]))


def combine(
    contributions: Sequence[Contribution],
    *,
    base: Weights,
    least: int,
    norm_bound: float,
    rule: Rule | None = None,
    excluded: dict[str, ConfedError] | None = None,
    threads: int = 1,
    room: Callable[[int], memoryview] = room_for,
) -> Combined:
    """Return what a rule makes of the contributions that are what they declare.

    Guarantees: the same contributions give the same bits, whatever ``threads`` is and whoever else was excluded;
    no excluded sender's value is in the result; at least ``least`` were looked at, and as many as the rule needs.

    Args:
        contributions: at most one a site; they are folded in the order of the sites' names.
        base: the version that they started from.
        least: how many must remain.
        norm_bound: largest L2 norm of a difference from the base.
        rule: the weighted mean where none is given.
        excluded: filled with why each excluded sender is, also when too few remain.
        threads: how many fold, each a range of chunks.
        room: lends memory for the result.

    Raises:
        DuplicateUpdateError: two contributions of one site.
        CohortError: fewer than ``least`` remain, or than the rule needs.
    """
    rule = WeightedMean() if rule is None else rule
    least = max(least, rule.least, 1)
    kept = sorted(contributions, key=lambda contribution: contribution.site)
    _require_distinct(kept)
    excluded = {} if excluded is None else excluded
    while True:
        if len(kept) < least:
            raise ShortCohortError("cohort", expected=f"at least {least}", got=f"{len(kept)} ({_reasons(excluded)})")
        try:
            flats = rule.combine(Updates(kept, base=base, norm_bound=norm_bound, threads=threads, room=room))
        except WrongSenders as found:
            excluded.update(found.failed)
            kept = [entry for entry in kept if entry.site not in excluded]
            continue
        mean = Weights(layout=base.layout, flats=flats)
        return Combined(mean=mean, sites=tuple(entry.site for entry in kept), excluded=excluded)


def _require_distinct(ordered: Sequence[Contribution]) -> None:
    for site, count in Counter(entry.site for entry in ordered).items():
        if count > 1:
            raise DuplicateUpdateError("contributions", expected="one a site", got=f"{count} of {site}")


def _reasons(excluded: Mapping[str, ConfedError]) -> str:
    return ", ".join(f"{site}: {error.code}" for site, error in sorted(excluded.items())) or "none excluded"


class _Sum:
    """Adds ``values * share`` to the mean, each update as it is opened."""

    holds = False

    def __init__(self, mean: Mapping[str, Array], shares: Sequence[float]) -> None:
        self._mean = mean
        self._shares = shares

    def take(self, segment: Segment, rows: Sequence[Array], *, first: int, scratch: Scratch) -> None:
        mean = self._mean[segment.dtype][segment.part]
        for at, numbers in enumerate(rows, first):
            if at == 0:  # as Flower begins: 0.0 + x would turn -0.0 into 0.0
                np.multiply(numbers, self._shares[at], out=mean)
            else:
                product = scratch.take(mean.dtype, mean.size)
                np.multiply(numbers, self._shares[at], out=product)
                mean += product
