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

    A column of lists that all have one length by the contract has the shape (rows, length).

    Raises:
        ColumnError: one of them has missing values.
    """
    found: dict[str, NDArray[Any]] = {}
    for name in table.column_names:
        kind = table.schema.field(name).type
        listed = pa.types.is_fixed_size_list(kind)
        if not _is_number(kind.value_type if listed else kind):
            continue
        values = _items(table[name]) if listed else table[name]
        missing = table[name].null_count + (values.null_count if listed else 0)
        if missing:
            raise ColumnError(f"column {name}", expected="no missing values (fill or drop them)", got=missing)
        found[name] = values.to_numpy().reshape((-1, kind.list_size) if listed else -1)
    return found


def _items(lists: pa.ChunkedArray) -> pa.ChunkedArray:
    return pa.chunked_array([chunk.flatten() for chunk in lists.chunks], lists.type.value_type)


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)


def features_of(arrays: Mapping[str, NDArray[Any]], names: Sequence[str]) -> NDArray[np.float32]:
    """Return columns side by side as float32, shape (rows, columns); a list is as many columns as it has items.

    Raises:
        ColumnError: one that is not there.
    """
    for name in names:
        if name not in arrays:
            raise ColumnError("column", expected="one of the table's columns of numbers", got=name)
    return np.column_stack([arrays[name].astype(np.float32) for name in names])


def labels_of(arrays: Mapping[str, NDArray[Any]], name: str, *, classes: int) -> NDArray[np.int64]:
    """Return a column of class numbers as int64, shape (rows,), for a model with so many classes.

    Raises:
        ColumnError: a column that is not there, or not of whole numbers.
        ClassCountError: a class that the model does not have.
    """
    column = arrays.get(name)
    if column is None or column.dtype.kind not in "iu" or column.ndim != 1:
        raise ColumnError(f"column {name}", expected="class numbers", got="none" if column is None else column.dtype)
    require_classes(column, classes=classes, what=f"column {name}")
    return column.astype(np.int64)
