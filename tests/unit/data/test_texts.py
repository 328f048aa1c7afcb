"""Columns of text as prompts and answers: what is missing is refused by column, and parts share no row."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from confed.data.texts import pairs_of
from confed.errors import ColumnError, EmptyDatasetError

CANARY = "canary-4711"
TABLE = pa.table({"q": [f"q{at}" for at in range(7)], "a": [f"a{at}" for at in range(7)], "n": list(range(7))})
HOLES = pa.table({"q": [CANARY, None], "a": ["x", "y"]})


def taken(table: pa.Table = TABLE, **changes: Any) -> list[tuple[str, str]]:
    return pairs_of(table, **{"prompt": "q", "answer": "a", "part": "train", "test_every": 3, **changes})


def test_parts_share_no_row_and_keep_the_order() -> None:
    assert taken(part="test") == [("q0", "a0"), ("q3", "a3"), ("q6", "a6")]
    assert taken() == [("q1", "a1"), ("q2", "a2"), ("q4", "a4"), ("q5", "a5")]


REFUSED: dict[str, tuple[pa.Table, dict[str, Any], type[Exception], str]] = {
    "a column that is not there": (TABLE, {"answer": "reply"}, ColumnError, "column reply"),
    "a column of numbers": (TABLE, {"answer": "n"}, ColumnError, "expected text, got int64"),
    "missing values": (HOLES, {}, ColumnError, "no missing values"),
    "no row to train on": (TABLE.slice(0, 1), {}, EmptyDatasetError, "train examples"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_taken_is_refused_without_a_value(what: str) -> None:
    table, changes, error, named = REFUSED[what]
    with pytest.raises(error, match=named) as refused:
        taken(table, **changes)
    assert CANARY not in str(refused.value)
