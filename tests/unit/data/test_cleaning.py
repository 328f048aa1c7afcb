from __future__ import annotations

import traceback
from typing import Any

import polars as pl
import pytest
from tables import CANARY

from confed.data.cleaning import clean
from confed.errors import ColumnError, EmptyDatasetError
from confed.preparation.steps import parse_step

FRAME = pl.DataFrame({"n": [3, None, 1, 3], "t": ["b", "a", None, "b"], "f": [0.5, 2.5, -1.0, 0.5]})


def cleaned(*steps: dict[str, Any], frame: pl.DataFrame = FRAME) -> pl.DataFrame:
    return clean(frame, [parse_step(step, at="step") for step in steps])


DOES: list[tuple[dict[str, Any], dict[str, list[Any]]]] = [
    ({"step": "select", "columns": ["f", "n"]}, {"f": [0.5, 2.5, -1.0, 0.5], "n": [3, None, 1, 3]}),
    ({"step": "rename", "names": {"n": "m"}}, {"m": [3, None, 1, 3]}),
    ({"step": "cast", "columns": ["n"], "type": "text"}, {"n": ["3", None, "1", "3"]}),
    ({"step": "fill", "column": "n", "value": 7}, {"n": [3, 7, 1, 3]}),
    ({"step": "drop_nulls", "columns": ["n", "t"]}, {"n": [3, 3], "t": ["b", "b"]}),
    ({"step": "deduplicate", "columns": ["n", "t", "f"]}, {"n": [3, None, 1]}),
    ({"step": "clip", "column": "f", "least": 0.0, "most": 1.0}, {"f": [0.5, 1.0, 0.0, 0.5]}),
    ({"step": "filter", "where": {"column": "n", "operator": ">=", "value": 2}}, {"n": [3, 3]}),
    ({"step": "filter", "where": {"column": "t", "operator": "!=", "value": "a"}}, {"t": ["b", "b"]}),
    ({"step": "standardise", "columns": {"f": [0.5, 2.0]}}, {"f": [0.0, 1.0, -0.75, 0.0]}),
    ({"step": "one_hot", "column": "t", "categories": ["a", "b"]}, {"t=a": [0, 1, 0, 0], "t=b": [1, 0, 0, 1]}),
    ({"step": "encode", "column": "t", "categories": ["b", "a"]}, {"t": [0, 1, None, 0]}),
]


LISTS = pl.DataFrame({"v": [[1.0, 2.0], None], "a": pl.Series([[1, 2], [3, 4]], dtype=pl.Array(pl.Int8, 2))})


def test_numbers_in_lists_are_standardised_and_brought_into_bounds():
    steps = (
        {"step": "standardise", "columns": {"v": [1.0, 2.0], "a": [1.0, 2.0]}},
        {"step": "clip", "column": "v", "least": 0.25, "most": 9.0},
        {"step": "clip", "column": "a", "least": 0.0, "most": 1.0},
    )
    result = cleaned(*steps, frame=LISTS)
    assert result["v"].to_list() == [[0.25, 0.5], None]
    assert result["a"].to_list() == [[0.0, 0.5], [1.0, 1.0]]
    assert result.schema == {"v": pl.List(pl.Float32), "a": pl.Array(pl.Float32, 2)}


@pytest.mark.parametrize(
    "step",
    [
        {"step": "clip", "column": "t", "least": 0.0, "most": 1.0},
        {"step": "filter", "where": {"column": "t", "operator": "==", "value": "a"}},
        {"step": "fill", "column": "t", "value": "a"},
        {"step": "encode", "column": "t", "categories": ["a"]},
        {"step": "cast", "columns": ["t"], "type": "int8"},
    ],
    ids=lambda step: step["step"],
)
def test_a_step_that_lists_do_not_fit_is_refused(step):
    with pytest.raises(ColumnError, match=r"steps\[0\]"):
        cleaned(step, frame=pl.DataFrame({"t": [["a", "b"]]}))


@pytest.mark.parametrize(("step", "columns"), DOES, ids=[str(entry[0]["step"]) for entry in DOES])
def test_each_step_does_what_it_says(step, columns):
    result = cleaned(step)
    assert {name: result[name].to_list() for name in columns} == columns


def test_steps_are_applied_in_their_order():
    fill, drop = {"step": "fill", "column": "n", "value": 0}, {"step": "drop_nulls", "columns": ["n"]}
    assert cleaned(fill, drop).height == 4
    assert cleaned(drop, fill).height == 3


REFUSED: list[tuple[str, dict[str, Any], type[Exception]]] = [
    ("text that is no number", {"step": "cast", "columns": ["t"], "type": "float64"}, ColumnError),
    ("a value that is no category", {"step": "encode", "column": "t", "categories": ["x"]}, ColumnError),
    ("text clipped", {"step": "clip", "column": "t", "least": 0.0, "most": 1.0}, ColumnError),
    ("text standardised", {"step": "standardise", "columns": {"t": [0.0, 1.0]}}, ColumnError),
    (
        "text compared with a number",
        {"step": "filter", "where": {"column": "t", "operator": "<", "value": 1}},
        ColumnError,
    ),
    ("a number filled with text", {"step": "fill", "column": "n", "value": "x"}, ColumnError),
    ("a column that is not there", {"step": "fill", "column": "gone", "value": 1}, ColumnError),
    ("nothing left", {"step": "filter", "where": {"column": "n", "operator": ">", "value": 99}}, EmptyDatasetError),
]


@pytest.mark.parametrize(("what", "step", "kind"), REFUSED, ids=[entry[0] for entry in REFUSED])
def test_a_step_that_does_not_fit_is_refused_without_a_value(what, step, kind):
    frame = FRAME.with_columns(t=pl.Series([CANARY, "a", None, CANARY]))
    with pytest.raises(kind) as refused:
        cleaned(step, frame=frame)
    assert CANARY not in "".join(traceback.format_exception(refused.value))
    context = refused.value.__context__
    assert context is None or CANARY not in str(context)
