"""FedBuff: the mean of a buffer's differences, each from its own base and the less worth the older that base is.

With the current version ``w``, an update ``x_k`` from the version ``b_k``, which ``t_k`` versions were made after:

    w' = w + (eta / K) sum_k (x_k - b_k) / sqrt(1 + t_k)

Source: Nguyen et al., "Federated Learning with Buffered Asynchronous Aggregation" (2022), algorithm 1 (the buffer) and
section 5 (``1 / sqrt(1 + t)``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aggregator.combine.fold import weighted_mean
from aggregator.combine.passes import Updates


@dataclass(frozen=True, slots=True, kw_only=True)
class FedBuff:
    """The rule of a buffer; each contribution says which base is its own, and how stale it is."""

    learning_rate: float
    least: int = 1

    def combine(self, updates: Updates) -> dict[str, NDArray[Any]]:
        """Return the next version, as numbers.

        Raises:
            WrongSenders: a pass found somebody wrong.
        """
        entries = updates.contributions
        shares = [self.learning_rate / len(entries) / math.sqrt(1 + entry.staleness) for entry in entries]
        result = weighted_mean(updates, shares)
        by_staleness: dict[int, float] = {0: -1.0}
        bases = {0: updates.base}
        for entry, share in zip(entries, shares, strict=True):
            by_staleness[entry.staleness] = by_staleness.get(entry.staleness, 0.0) + share
            bases[entry.staleness] = entry.base or updates.base
        for dtype, flat in result.items():
            numbers = updates.kinds[dtype].numbers
            for staleness, share in sorted(by_staleness.items()):
                np.subtract(flat, share * numbers(bases[staleness].flats[dtype]), out=flat)
        return result
