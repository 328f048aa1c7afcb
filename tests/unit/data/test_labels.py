from __future__ import annotations

import traceback
from typing import Any

import numpy as np
import polars as pl
import pytest
from tables import CANARY

from confed.data.labels import label
from confed.errors import ColumnError, DatasetError, EmptyDatasetError
from confed.preparation.pipeline import Pipeline

READERS = [{"name": "first", "column": "a"}, {"name": "second", "column": "b"}]


def terms(**changes: Any) -> Any:
    labels = {"column": "label", "classes": ["no", "yes"], "functions": READERS, "vote": "majority", **changes}
    return Pipeline.from_document({"name": "labels", "labels": labels}).labels


def test_votes_are_put_together_and_rows_without_any_are_left_out():
    frame = pl.DataFrame({"a": ["yes", "no", None, None], "b": ["yes", None, None, "no"], "n": [1, 2, 3, 4]})
    found = label(frame, terms())
    assert found["label"].to_list() == [1, 0, 0]
    assert found["n"].to_list() == [1, 2, 4]
    assert found["label_confidence"].to_list() == [1.0, 1.0, 1.0]


def test_a_rule_votes_where_it_holds_and_abstains_elsewhere():
    rule = {"name": "large", "when": {"column": "n", "operator": ">", "value": 2}, "label": "yes"}
    frame = pl.DataFrame(
        {"a": [None, "no", None], "b": [None, None, None], "n": [1, 2, 3]}, schema_overrides={"b": pl.String}
    )
    assert label(frame, terms(functions=[*READERS, rule]))["label"].to_list() == [0, 1]


def noisy(rows: int = 300) -> tuple[pl.DataFrame, np.ndarray]:
    generator = np.random.default_rng(3)
    truth = generator.integers(0, 2, rows)
    wrong = generator.random(rows) < 0.08
    said = np.where(wrong, 1 - truth, truth)
    frame = pl.DataFrame({"x": truth * 4.0 + generator.normal(size=rows), "a": [("no", "yes")[one] for one in said]})
    return frame, wrong


@pytest.mark.parametrize("action", ["mark", "drop"])
def test_labels_that_are_probably_wrong_are_marked_or_left_out(action):
    frame, wrong = noisy()
    errors = {"features": ["x"], "folds": 3, "seed": 1, "action": action}
    found = label(frame, terms(functions=READERS[:1], errors=errors))
    if action == "mark":
        doubted = found["label_doubted"].to_numpy()
        assert doubted[wrong].mean() > 0.7
        assert doubted[~wrong].mean() < 0.05
    else:
        assert len(frame) - wrong.sum() - 15 < len(found) < len(frame) - 0.7 * wrong.sum()


REFUSED: list[tuple[str, dict[str, Any], dict[str, Any], type[Exception]]] = [
    ("a class that is not named", {"a": ["yes", CANARY], "b": ["no", "no"]}, {}, ColumnError),
    ("a column that is no text", {"a": [1, 2], "b": ["no", "no"]}, {}, ColumnError),
    ("no vote at all", {"a": [None, None], "b": [None, None]}, {}, EmptyDatasetError),
    (
        "fewer rows of a class than folds",
        {"a": ["no", "yes"], "b": ["no", "yes"], "x": [1.0, 2.0]},
        {"errors": {"features": ["x"], "folds": 2, "seed": 1, "action": "mark"}},
        DatasetError,
    ),
    (
        "a feature that is missing",
        {"a": ["no", "yes"], "b": ["no", "yes"], "x": [1.0, None]},
        {"errors": {"features": ["x"], "folds": 2, "seed": 1, "action": "mark"}},
        ColumnError,
    ),
]


@pytest.mark.parametrize(("what", "columns", "changes", "kind"), REFUSED, ids=[entry[0] for entry in REFUSED])
def test_labels_that_cannot_be_made_are_refused_without_a_value(what, columns, changes, kind):
    schema = {name: pl.String for name in ("a", "b") if not any(isinstance(value, int) for value in columns[name])}
    with pytest.raises(kind) as refused:
        label(pl.DataFrame(columns, schema_overrides=schema), terms(**changes))
    assert CANARY not in "".join(traceback.format_exception(refused.value))
