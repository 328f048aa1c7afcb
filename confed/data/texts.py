"""Columns of text as what a language model is tuned on: a prompt and its answer a row.

Rows are in the order of the prepared table. Every ``test_every``-th of them, from the first on, is kept for evaluation.
"""

from __future__ import annotations

import pyarrow as pa

from confed.data.column_types import type_name
from confed.errors import ColumnError, EmptyDatasetError

TRAIN, TEST = "train", "test"


def texts_of(table: pa.Table, name: str) -> list[str]:
    """Return a column of text.

    Raises:
        ColumnError: a column that is not there, is not text, or has missing values.
    """
    if name not in table.column_names:
        raise ColumnError(f"column {name}", expected="in the contract, and kept by the pipeline", got="none")
    column = table[name]
    if type_name(column.type) != "text":
        raise ColumnError(f"column {name}", expected="text", got=type_name(column.type) or "another type")
    if column.null_count:
        raise ColumnError(f"column {name}", expected="no missing values (fill or drop them)", got=column.null_count)
    return column.to_pylist()


def pairs_of(table: pa.Table, *, prompt: str, answer: str, part: str, test_every: int) -> list[tuple[str, str]]:
    """Return the prompts and answers of a part, ``train`` or ``test``, from the two columns of these names.

    Raises:
        ColumnError: see ``texts_of``.
        EmptyDatasetError: no row in this part.
    """
    rows = zip(texts_of(table, prompt), texts_of(table, answer), strict=True)
    pairs = [pair for at, pair in enumerate(rows) if (at % test_every == 0) == (part == TEST)]
    if not pairs:
        raise EmptyDatasetError(f"{part} examples", expected="at least one", got="none")
    return pairs
