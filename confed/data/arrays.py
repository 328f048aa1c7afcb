"""A prepared table as arrays, and labels as a model can take them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from confed.errors import ColumnError
from confed.model.classes import require_classes


def columns_of(table: pa.Table) -> dict[str, NDArray[Any]]:
    """Return a table's columns of numbers and truth values by name, each of shape (rows,); others are left out.

    Raises:
        ColumnError: one of them has missing values.
    """
    found: dict[str, NDArray[Any]] = {}
    for name in table.column_names:
        kind = table.schema.field(name).type
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
            continue
        column = table[name]
        if column.null_count:
            raise ColumnError(f"column {name}", expected="no missing values (fill or drop them)", got=column.null_count)
        found[name] = column.to_numpy()
    return found


def features_of(arrays: Mapping[str, NDArray[Any]], names: Sequence[str]) -> NDArray[np.float32]:
    """Return columns side by side as float32, shape (rows, columns).

    Raises:
        ColumnError: one that is not there.
    """
    for name in names:
        if name not in arrays:
            raise ColumnError("column", expected="one of the table's columns of numbers", got=name)
    return np.stack([arrays[name].astype(np.float32) for name in names], axis=1)


def labels_of(arrays: Mapping[str, NDArray[Any]], name: str, *, classes: int) -> NDArray[np.int64]:
    """Return a column of class numbers as int64, shape (rows,), for a model with so many classes.

    Raises:
        ColumnError: a column that is not there, or not of whole numbers.
        ClassCountError: a class that the model does not have.
    """
    column = arrays.get(name)
    if column is None or column.dtype.kind not in "iu":
        raise ColumnError(f"column {name}", expected="class numbers", got="none" if column is None else column.dtype)
    require_classes(column, classes=classes, what=f"column {name}")
    return column.astype(np.int64)
