"""Descriptive statistics that may leave a client TEE: which, of which column, and what each costs.

They are of the table as it was sealed, before any cleaning, so that one row changes nothing but itself. Two tables are
neighbours if one has one row more; each query is pure epsilon-differentially private by itself, and their
epsilons add up. Somebody who has several rows is protected less, by as many times.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from confed.errors import ConfigError
from confed.preparation.contract import FLOATING, WHOLE, Contract

COUNT, SUM, MEAN, HISTOGRAM, QUANTILE = "count", "sum", "mean", "histogram", "quantile"
KINDS = (COUNT, SUM, MEAN, HISTOGRAM, QUANTILE)
LARGEST_EPSILON = 10.0
_MOST_QUERIES = 1_000
_MOST_EDGES = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One statistic. No field is optional; what a kind does not use is ``None``.

    Attributes:
        name: of the result.
        kind: ``count`` (values that are there), ``sum``, ``mean``, ``histogram`` or ``quantile``.
        column: one of the contract's; of numbers, but for ``count``.
        least, most: of ``sum`` and ``mean``: values are brought into these bounds.
        edges: of ``histogram``, n + 1 edges of n bins (the last includes its end; values outside are not counted); of
            ``quantile`` the candidates, one of which is the answer.
        share: of ``quantile``: which, such as 0.5 for the median.
        epsilon: what it costs.
    """

    name: str
    kind: str
    column: str
    least: float | None
    most: float | None
    edges: tuple[float, ...] | None
    share: float | None
    epsilon: float

    def __post_init__(self) -> None:
        at = f"statistics.{self.name}"
        _require(bool(self.name) and self.name.isprintable(), "statistics.name", "printable text", self.name[:40])
        _require(self.kind in KINDS, f"{at}.kind", f"one of {', '.join(KINDS)}", self.kind)
        _require(0 < self.epsilon <= LARGEST_EPSILON, f"{at}.epsilon", f"above 0, to {LARGEST_EPSILON}", self.epsilon)
        bounded, edged = self.kind in (SUM, MEAN), self.kind in (HISTOGRAM, QUANTILE)
        for name, needed in (("least", bounded), ("most", bounded), ("edges", edged), ("share", self.kind == QUANTILE)):
            there = getattr(self, name) is not None
            _require(there == needed, f"{at}.{name}", "a value" if needed else "none", "none" if needed else "one")
        if self.least is not None and self.most is not None:
            fits = math.isfinite(self.least) and math.isfinite(self.most) and self.least < self.most
            _require(fits, f"{at}.most", f"finite, above {self.least}", self.most)
        if self.edges is not None:
            rising = all(low < high for low, high in itertools.pairwise(self.edges)) and all(
                map(math.isfinite, self.edges)
            )
            fits = 2 <= len(self.edges) <= _MOST_EDGES and rising
            _require(fits, f"{at}.edges", f"2 to {_MOST_EDGES} numbers, each above the one before", len(self.edges))
        if self.share is not None:
            _require(0 < self.share < 1, f"{at}.share", "between 0 and 1", self.share)


@dataclass(frozen=True, slots=True, kw_only=True)
class StatisticsTerms:
    """What leaves each site's TEE, once in a run. No field is optional.

    Attributes:
        queries: at least one.
    """

    queries: tuple[Query, ...]

    def __post_init__(self) -> None:
        names = [query.name for query in self.queries]
        _require(1 <= len(names) <= _MOST_QUERIES, "statistics.queries", f"1 to {_MOST_QUERIES}", len(names))
        _require(len(set(names)) == len(names), "statistics.queries", "each name once", "one twice")

    @property
    def epsilon(self) -> float:
        """What all of them cost together, for each row of a site's table."""
        return math.fsum(query.epsilon for query in self.queries)

    def require(self, contract: Contract) -> None:
        """Check that every column is in the contract and of a type that its query fits.

        Raises:
            ConfigError: one that is not.
        """
        for query in self.queries:
            terms = contract.columns.get(query.column)
            at = f"statistics.{query.name}.column"
            if terms is None:
                raise ConfigError(at, expected="one of the contract's columns", got=query.column)
            fits = query.kind == COUNT or terms.type in (*WHOLE, *FLOATING)
            _require(fits, at, "a column of numbers", f"{query.column} of type {terms.type}")


def _require(holds: bool, field: str, expected: object, got: object) -> None:  # noqa: FBT001
    if not holds:
        raise ConfigError(field, expected=expected, got=got)
