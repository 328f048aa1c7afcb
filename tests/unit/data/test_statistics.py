from __future__ import annotations

import statistics
from typing import Any

import numpy as np
import polars as pl
import pytest
from tables import contract_of

from confed import record
from confed.data.statistics import answer
from confed.errors import ConfigError
from confed.preparation.statistics import Query, StatisticsTerms

CONTRACT = contract_of({"x": {"type": "float64"}, "n": {"type": "int16"}, "t": {"type": "text"}})


def query(kind: str, *, epsilon: float = 10.0, column: str = "x", **values: Any) -> Query:
    unsaid: dict[str, Any] = {"least": None, "most": None, "edges": None, "share": None}
    return Query(**{**unsaid, "name": kind, "kind": kind, "column": column, "epsilon": epsilon, **values})


EDGES = tuple(float(edge) for edge in range(0, 101, 10))
EVERY = (
    query("count"),
    query("sum", least=0.0, most=100.0),
    query("mean", least=0.0, most=100.0),
    query("histogram", edges=EDGES),
    query("quantile", edges=EDGES, share=0.5),
)


def answers(frame: pl.DataFrame, *queries: Query) -> dict[str, Any]:
    return answer(frame, StatisticsTerms(queries=queries))


def test_with_little_noise_answers_are_near_the_truth():
    values = [*np.linspace(0, 99.9, 5000).tolist(), None, None, 1e9, -1e9]
    frame = pl.DataFrame({"x": values})
    found = answers(frame, *EVERY)
    assert abs(found["count"] - 5002) < 20
    assert abs(found["sum"] - 49.95 * 5000 - 100) < 500  # what is above counts as the bound
    assert abs(found["mean"] - 49.95) < 0.5
    assert len(found["histogram"]) == 10
    assert all(abs(count - 500) < 20 for count in found["histogram"])
    assert found["quantile"] == 50.0
    assert answers(frame, query("quantile", edges=EDGES, share=0.25))["quantile"] in (20.0, 30.0)


def test_the_last_bin_includes_its_end_and_nothing_outside_is_counted():
    frame = pl.DataFrame({"x": [0.0] * 300 + [100.0] * 200 + [100.1] * 400 + [-0.1] * 400})
    found = answers(frame, query("histogram", edges=(0.0, 50.0, 100.0)))["histogram"]
    assert abs(found[0] - 300) < 20
    assert abs(found[1] - 200) < 20


def test_the_noise_of_counts_is_as_large_as_epsilon_says():
    asked = query("histogram", epsilon=0.5, edges=tuple(float(edge) for edge in range(801)))
    noise = answers(pl.DataFrame({"x": [-1.0]}), asked)["histogram"]
    # The mean size of Laplace noise is its scale: sensitivity over epsilon.
    assert 0.8 * 2 < statistics.mean(map(abs, noise)) < 1.2 * 2


def test_the_noise_of_sums_is_as_large_as_bounds_and_epsilon_say():
    asked = query("sum", epsilon=0.5, least=-2.0, most=8.0)
    found = [answers(pl.DataFrame({"x": [4.0]}), asked)["sum"] - 4.0 for _ in range(30)]
    assert 0.35 * 16 < statistics.mean(map(abs, found)) < 2 * 16


def test_an_empty_column_has_answers_too():
    found = answers(pl.DataFrame({"x": [None, None]}, schema={"x": pl.Float64}), *EVERY)
    assert set(found) == {entry.name for entry in EVERY}
    assert 0.0 <= found["mean"] <= 100.0


MISTAKES: list[tuple[str, dict[str, Any], str]] = [
    ("a kind that is not known", {"kind": "variance"}, "kind"),
    ("a mean without bounds", {"kind": "mean"}, "least"),
    ("bounds the wrong way round", {"kind": "sum", "least": 1.0, "most": 0.0}, "most"),
    ("bounds of a count", {"kind": "count", "least": 1.0}, "least"),
    ("edges that fall", {"kind": "histogram", "edges": (1.0, 0.0)}, "edges"),
    ("a quantile without share", {"kind": "quantile", "edges": (0.0, 1.0)}, "share"),
    ("a share of everything", {"kind": "quantile", "edges": (0.0, 1.0), "share": 1.0}, "share"),
    ("no cost", {"kind": "count", "epsilon": 0.0}, "epsilon"),
    ("an endless cost", {"kind": "count", "epsilon": float("inf")}, "epsilon"),
    ("a column that is not there", {"kind": "count", "column": "gone"}, "column"),
    ("text summed", {"kind": "sum", "column": "t", "least": 0.0, "most": 1.0}, "column"),
]


@pytest.mark.parametrize(("what", "values", "field"), MISTAKES, ids=[entry[0] for entry in MISTAKES])
def test_a_query_that_makes_no_sense_is_refused_by_its_key(what, values, field):
    with pytest.raises(ConfigError, match=f"statistics.*{field}"):
        StatisticsTerms(queries=(query(**values),)).require(CONTRACT)


def test_costs_add_up_and_names_are_distinct():
    assert StatisticsTerms(queries=EVERY).epsilon == 50.0
    assert record.from_json(StatisticsTerms, record.to_json(StatisticsTerms(queries=EVERY))).queries == EVERY
    with pytest.raises(ConfigError, match="each name once"):
        StatisticsTerms(queries=(EVERY[0], EVERY[0]))
