"""Arrays that cost no copy are what Flower's own are, to an app and to Flower."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord

from confed.flower.arrays import OpenedArray, numbers_of

TENSORS = [
    np.arange(12, dtype=np.float32).reshape(3, 4),
    np.array(3.5, dtype=np.float64),
    np.empty((0, 5), dtype=np.float16),
    np.asfortranarray(np.arange(6, dtype=np.int64).reshape(2, 3)),
    np.array([True, False]),
]


@pytest.mark.parametrize("tensor", TENSORS)
def test_an_opened_array_is_what_flower_would_have_made(tensor: np.ndarray) -> None:
    opened, flowers = OpenedArray(tensor), Array(tensor)
    assert (opened.dtype, opened.shape, opened.stype) == (flowers.dtype, flowers.shape, flowers.stype)
    assert opened.data == flowers.data
    assert np.array_equal(opened.numpy(), flowers.numpy())


def test_an_app_gets_memory_of_its_own() -> None:
    pytest.importorskip("torch")
    base = np.zeros(4, dtype=np.float32)
    record = ArrayRecord({"a": OpenedArray(base)})
    record["a"].numpy()[:] = 7.0
    record.to_torch_state_dict()["a"].fill_(7.0)
    record.to_numpy_ndarrays()[0][:] = 7.0
    assert not base.any()


@pytest.mark.parametrize("tensor", TENSORS)
def test_numbers_are_read_without_a_copy_and_without_a_difference(tensor: np.ndarray) -> None:
    array = Array(tensor)
    numbers = numbers_of(array)
    assert numbers.dtype == tensor.dtype
    assert np.array_equal(numbers, tensor)
    assert numbers.shape == tensor.shape


def test_a_view_of_bytes_is_a_view_and_cannot_be_written() -> None:
    array = Array(np.arange(1000, dtype=np.float32))
    numbers = numbers_of(array)
    assert np.shares_memory(numbers, np.frombuffer(array.data, dtype=np.uint8))
    with pytest.raises(ValueError, match="read-only"):
        numbers[0] = 1.0


@pytest.mark.parametrize(
    "array",
    [
        Array(dtype="float32", shape=(4,), stype="numpy.ndarray", data=b"no header"),
        Array(dtype="float32", shape=(4,), stype="numpy.ndarray", data=Array(np.zeros(4)).data[:-1]),
        Array(dtype="float32", shape=(4,), stype="numpy.ndarray", data=Array(np.zeros(4)).data[:40]),
    ],
)
def test_what_is_no_array_is_refused(array: Array) -> None:
    with pytest.raises(ValueError, match=r"."):
        numbers_of(array)


def test_another_serialization_is_refused() -> None:
    with pytest.raises(TypeError):
        numbers_of(Array(dtype="float32", shape=(4,), stype="another", data=b"0000"))
