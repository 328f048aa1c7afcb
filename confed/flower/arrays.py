"""Flower's Arrays in a process that has the numbers already: no bytes are made or parsed that nobody asked for.

Flower 1.41 serializes an Array when it is made, and parses it whenever its numbers are asked for: four copies of a
model between a TEE and its app.
"""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import Array

if TYPE_CHECKING:
    from numpy.typing import NDArray

_STYPE = "numpy.ndarray"


class OpenedArray(Array):
    """An Array over numbers that must not change: ``numpy`` copies them, as Flower's does; bytes are made on demand."""

    def __init__(self, numbers: NDArray[Any]) -> None:
        self.dtype = str(numbers.dtype)
        self.shape = tuple(numbers.shape)
        self.stype = _STYPE
        self._numbers = numbers

    @property
    def data(self) -> bytes:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What Flower would have serialized."""
        return Array.from_numpy_ndarray(self._numbers).data

    def numpy(self) -> NDArray[Any]:
        """Return a private copy."""
        return np.array(self._numbers)


def numbers_of(array: Array) -> NDArray[Any]:
    """Return an Array's numbers, not to be written: a view of its bytes where they are in the form that Flower writes.

    Raises:
        TypeError, ValueError: as ``Array.numpy``: another serialization, or not an array.
    """
    if isinstance(array, OpenedArray):
        return array._numbers  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] (the class beside this function)
    if array.stype != _STYPE:
        return array.numpy()
    stream = BytesIO(array.data)  # shares the bytes
    if np.lib.format.read_magic(stream) != (1, 0):
        return array.numpy()
    shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    count = int(np.prod(shape, dtype=np.int64))
    if is_fortran or dtype.hasobject or count * dtype.itemsize != len(array.data) - stream.tell():
        return array.numpy()
    return np.frombuffer(array.data, dtype=dtype, count=count, offset=stream.tell()).reshape(shape)
