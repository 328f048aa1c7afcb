"""Descriptive statistics with differential privacy: counts, sums, means, histograms and quantiles, by OpenDP.

Everything is counted in whole numbers: values are brought into their bounds and onto a grid of 2^20 steps first, so
neither the order of adding nor a float's last bits tell anything. Noise is OpenDP's own, from the operating system's
generator; the scale is the least for which OpenDP's own privacy map holds the query's epsilon.

Source: OpenDP, https://docs.opendp.org (measurements ``laplace`` and ``noisy_max``); Mironov, "On Significance of the
    Least Significant Bits for Differential Privacy" (2012); Smith, "Privacy-preserving Statistical Estimation" (2011)
    for quantiles.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from opendp import domains, measurements, measures, metrics, transformations
from opendp.mod import binary_search_chain, enable_features

from confed.errors import PrivacyBudgetError
from confed.preparation.statistics import COUNT, HISTOGRAM, MEAN, QUANTILE, SUM, Query, StatisticsTerms

enable_features("contrib")

Answer = int | float | list[int]

_STEPS = 2**20
_ONE_ROW = 1
"""Neighbouring tables: one has one row more (OpenDP's symmetric distance)."""


def answer(frame: pl.DataFrame, terms: StatisticsTerms) -> dict[str, Answer]:
    """Return a noisy answer to each query; what is missing in a column is left out of it.

    Every call costs ``terms.epsilon`` once more: who calls has to have a permit that nobody else uses.

    Raises:
        PrivacyBudgetError: a mechanism that would cost more than its query says; nothing was released.
    """
    return {query.name: _ANSWERS[query.kind](frame[query.column], query) for query in terms.queries}


def _count(column: pl.Series, query: Query) -> int:
    return _noisy_count(column.drop_nulls().len(), query.epsilon)


def _sum(column: pl.Series, query: Query) -> float:
    bound = max(abs(_of(query.least)), abs(_of(query.most)))
    clipped = _numbers(column).clip(_of(query.least), _of(query.most))
    return _noisy_sum(np.rint(clipped / bound * _STEPS), query.epsilon) * bound / _STEPS


def _mean(column: pl.Series, query: Query) -> float:
    """Half of epsilon for the sum of differences from the middle of the bounds, half for how many there are."""
    least, most = _of(query.least), _of(query.most)
    middle, half = (least + most) / 2, (most - least) / 2
    values = _numbers(column)
    moved = np.rint((values.clip(least, most) - middle) / half * _STEPS)
    total = _noisy_sum(moved, query.epsilon / 2) * half / _STEPS
    count = max(1, _noisy_count(len(values), query.epsilon / 2))
    return float(np.clip(middle + total / count, least, most))


def _histogram(column: pl.Series, query: Query) -> list[int]:
    edges = np.asarray(query.edges, dtype=np.float64)
    values = _numbers(column)
    inside = values[(values >= edges[0]) & (values <= edges[-1])]
    bins = np.minimum(np.searchsorted(edges, inside, side="right") - 1, len(edges) - 2)
    counting = transformations.make_count_by_categories(
        *_space(), categories=list(range(len(edges) - 1)), null_category=False
    )
    return list(_released(lambda scale: counting >> measurements.then_laplace(scale), query.epsilon, bins))


def _quantile(column: pl.Series, query: Query) -> float:
    edges = np.asarray(query.edges, dtype=np.float64)
    values = _numbers(column).clip(edges[0], edges[-1])
    # Candidates by their places, values by the place below or at which they lie; twice, so that both are whole.
    below = np.searchsorted(edges, values, side="left")
    places = np.where(edges[below] == values, 2 * below, 2 * below - 1)
    candidates = [2 * place for place in range(len(edges))]
    scoring = transformations.make_quantile_score_candidates(*_space(), candidates=candidates, alpha=_of(query.share))
    chosen = _released(
        lambda scale: scoring >> measurements.then_noisy_max(measures.max_divergence(), scale, negate=True),
        query.epsilon,
        places,
    )
    return float(edges[int(chosen)])


def _noisy_count(rows: int, epsilon: float) -> int:
    counting = transformations.make_count(*_space())
    return _released(lambda scale: counting >> measurements.then_laplace(scale), epsilon, [0] * rows)


def _noisy_sum(steps: NDArray[np.float64], epsilon: float) -> int:
    domain = domains.vector_domain(domains.atom_domain(bounds=(-_STEPS, _STEPS), T="i64"))
    summing = transformations.make_sum(domain, metrics.symmetric_distance())
    return _released(lambda scale: summing >> measurements.then_laplace(scale), epsilon, steps)


def _space() -> tuple[Any, Any]:
    return domains.vector_domain(domains.atom_domain(T="i64")), metrics.symmetric_distance()


def _released(make: Callable[[float], Any], epsilon: float, values: Sequence[int] | NDArray[Any]) -> Any:
    """Release a mechanism's answer at the least noise that costs no more than ``epsilon``, by OpenDP's account."""
    mechanism = binary_search_chain(make, d_in=_ONE_ROW, d_out=epsilon)
    cost = mechanism.map(_ONE_ROW)
    if cost > epsilon:
        raise PrivacyBudgetError("cost of a query", expected=f"at most {epsilon}", got=cost)
    return mechanism([int(value) for value in values])


def _numbers(column: pl.Series) -> NDArray[np.float64]:
    values = column.drop_nulls().cast(pl.Float64).to_numpy()
    return values[np.isfinite(values)]


def _of(value: float | None) -> float:
    assert value is not None  # noqa: S101 (the record has checked it)
    return value


_ANSWERS: Mapping[str, Callable[[pl.Series, Query], Answer]] = {
    COUNT: _count,
    SUM: _sum,
    MEAN: _mean,
    HISTOGRAM: _histogram,
    QUANTILE: _quantile,
}
