from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from confed.data.arrays import columns_of, features_of, labels_of
from confed.errors import ColumnError


def lists(values: list[Any], length: int = 2) -> pa.Array:
    return pa.array(values, pa.list_(pa.float32(), length))


def test_lists_of_one_length_are_rows_of_an_array_and_others_are_left_out():
    table = pa.table({"n": [1, 2], "v": lists([[1, 2], [3, 4]]), "w": [[1.0], []], "t": ["a", "b"]})
    found = columns_of(table)
    assert {name: array.shape for name, array in found.items()} == {"n": (2,), "v": (2, 2)}
    assert features_of(found, ["v", "n"]).tolist() == [[1, 2, 1], [3, 4, 2]]
    assert features_of(found, ["n"]).dtype == np.float32


def test_lists_in_several_chunks_and_slices_keep_their_rows():
    whole = pa.table({"v": pa.chunked_array([lists([[1, 2], [3, 4]]), lists([[5, 6]])])})
    assert columns_of(whole.slice(1))["v"].tolist() == [[3, 4], [5, 6]]


@pytest.mark.parametrize("values", [[[1, None]], [[1, 2], None]], ids=["an item", "a list"])
def test_missing_lists_and_items_are_refused(values):
    with pytest.raises(ColumnError, match="column v: expected no missing values"):
        columns_of(pa.table({"v": lists(values)}))


def test_a_list_is_no_class_number():
    arrays = columns_of(pa.table({"v": pa.array([[0, 1]], pa.list_(pa.int64(), 2))}))
    with pytest.raises(ColumnError, match="class numbers"):
        labels_of(arrays, "v", classes=2)
