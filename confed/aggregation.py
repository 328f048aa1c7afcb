"""How a round's updates are brought together: all at once, or in batches of a cohort that is too large for the disk.

With ``batch`` the drawn cohort, in identity order, is cut into batches of that many sites before anything arrives. The
sites of a batch are asked when the batch before is folded and its ciphertext gone; so who is in which batch is nobody's
choice, arrival changes no bit, and the courier holds one batch at a time. What is judged of a cohort is judged once,
over all batches, before anything is released.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from confed.errors import ConfigError

T = TypeVar("T")

SUMMED = ("FedAvg", "FedProx", "FedAvgM", "FedAdam", "FedYogi", "FedAdagrad")
"""Strategies whose updates are only added up. The others need all of them at once, or some numbers of all before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregationTerms:
    """How many sites a batch has; ``None``: there are no batches."""

    batch: int | None

    def __post_init__(self) -> None:
        if self.batch is not None and self.batch < 1:
            raise ConfigError("aggregation.batch", expected="1 or more", got=self.batch)

    @classmethod
    def at_once(cls) -> AggregationTerms:
        """No batches."""
        return cls(batch=None)

    def require(self, *, strategy: str, extra: int) -> None:
        """Check the terms against the rest of a contract.

        Raises:
            ConfigError: batches for a strategy that cannot add up, or where more sites are drawn than taken: which of
                them count would be for arrival to say.
        """
        if self.batch is None:
            return
        if strategy not in SUMMED:
            expected = f"none for {strategy}: only {', '.join(SUMMED)} add up batch by batch"
            raise ConfigError("aggregation.batch", expected=expected, got=self.batch)
        if extra:
            raise ConfigError("cohort.extra", expected="0 where there are batches", got=extra)

    def cut(self, cohort: Sequence[T]) -> tuple[tuple[T, ...], ...]:
        """Return a cohort in identity order as its batches: one, where there are none."""
        size = self.batch or max(1, len(cohort))
        return tuple(tuple(cohort[first : first + size]) for first in range(0, len(cohort), size))
