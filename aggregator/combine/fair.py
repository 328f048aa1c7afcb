"""QFedAvg: the larger a site's training loss, the more its update counts.

With the base ``w``, ``L`` = 1 / the clients' learning rate, an update ``w_k`` and its loss ``F_k``:

    delta_k = F_k^q L (w - w_k)        h_k = q F_k^(q-1) |L (w - w_k)|^2 + L F_k^q        w' = w - sum delta_k / sum h_k

so the next version is ``w`` and the updates, each times a number that norms and losses give. The norms are those that
senders declare and every pass verifies; the losses are declared too, and nobody can verify them: they are capped.

Source: Li et al., "Fair Resource Allocation in Federated Learning" (2020), algorithm 2; flwr 1.41,
``serverapp/strategy/qfedavg.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aggregator.combine.fold import weighted_mean
from aggregator.combine.passes import Updates
from confed.errors import NotFiniteError

_SMALLEST = 1e-10
"""Added to every loss, as Flower does: 0 has no power below 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QFedAvg:
    """The rule of one round.

    Attributes:
        q: 0 gives every update the same weight; the larger, the more the largest loss decides.
        learning_rate: the clients'.
        losses: by site name; each from 0 to the manifest's cap.
    """

    q: float
    learning_rate: float
    losses: Mapping[str, float] = field(repr=False)
    least: int = 1

    def combine(self, updates: Updates) -> dict[str, NDArray[Any]]:
        """Return the next version, as numbers.

        Raises:
            WrongSenders: a pass found somebody wrong.
            NotFiniteError: powers that no number can hold.
        """
        entries = updates.contributions
        shares = self.shares([entry.norm for entry in entries], [self.losses[entry.site] for entry in entries])
        result = weighted_mean(updates, shares)
        kept = 1.0 - math.fsum(shares)
        for dtype, flat in result.items():
            np.add(flat, kept * updates.kinds[dtype].numbers(updates.base.flats[dtype]), out=flat)
        return result

    def shares(self, norms: Sequence[float], losses: Sequence[float]) -> list[float]:
        """Return the number that each update is multiplied with; what they lack to 1 is the base's.

        Raises:
            NotFiniteError: powers that no number can hold.
        """
        steepest = 1.0 / self.learning_rate
        with np.errstate(all="ignore"):
            raised = np.asarray(losses, dtype=np.float64) + _SMALLEST
            powers = np.float_power(raised, self.q)
            squares = np.square(steepest * np.asarray(norms, dtype=np.float64))
            total = np.sum(self.q * np.float_power(raised, self.q - 1) * squares + steepest * powers)
            shares = steepest * powers / total
        if not np.isfinite(shares).all():
            raise NotFiniteError("weights of QFedAvg", expected="finite numbers", got="NaN or infinity")
        return shares.tolist()
