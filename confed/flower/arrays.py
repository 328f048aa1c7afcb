"""Flower's Arrays in a process that has the numbers already: no bytes are made or parsed that nobody asked for.

Flower 1.41 serializes an Array when it is made, and parses it whenever its numbers are asked for: four copies of a
model between a TEE and its app.
"""

from __future__ import annotations

import gc
import math
import weakref
from dataclasses import dataclass
from functools import lru_cache, partial
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import Array, ArrayRecord, RecordDict
from flwr.app.message.recorddict import _SyncedDict as _View  # pyright: ignore[reportPrivateUsage]

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

_STYPE = "numpy.ndarray"
_LARGE_ELEMENTS = 4_000_000
_KEPT = "_confed_numbers"
"""Where an Array remembers the bytes that were made of numbers, and a view of them as numbers."""


def _same(numbers: NDArray[Any]) -> NDArray[Any]:
    return numbers


class OpenedArray(Array):
    """An Array over numbers that must not change: ``numpy`` copies them, as Flower's does; bytes are made on demand.

    ``shown`` makes of them what an app sees, a new array or the same one; only when it asks.
    """

    def __init__(self, numbers: NDArray[Any], shown: Callable[[NDArray[Any]], NDArray[Any]] = _same) -> None:
        self.dtype = str(shown(numbers.reshape(-1)[:0]).dtype)
        self.shape = tuple(numbers.shape)
        self.stype = _STYPE
        self._numbers, self._shown = numbers, shown

    @property
    def data(self) -> bytes:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What Flower would have serialized."""
        return Array.from_numpy_ndarray(self._shown(self._numbers)).data

    def numpy(self) -> NDArray[Any]:
        """Return a private copy."""
        found = self._shown(self._numbers)
        return np.array(found) if found is self._numbers else found


def record_of(
    arrays: Mapping[str, NDArray[Any]], *, shown: Callable[[NDArray[Any]], NDArray[Any]] = _same
) -> ArrayRecord:
    """Return a record of Arrays over these numbers; of a dictionary, Flower would make Arrays of its own.

    ``shown`` is explained at ``OpenedArray``.

    Raises:
        Nothing.
    """
    record = ArrayRecord()
    for name, numbers in arrays.items():
        record[name] = OpenedArray(numbers, shown)
    return record


def let_go(content: RecordDict) -> None:
    """Let a message's records go now, those too that wait for the collector, if they are large.

    A record that an app has kept, in its state say, stays as it is.

    Raises:
        Nothing.
    """
    large = [
        weakref.ref(record)
        for record in content.array_records.values()
        if sum(math.prod(array.shape) for array in record.values()) >= _LARGE_ELEMENTS
    ]
    for name in list(content):
        del content[name]
    if any(record() is not None for record in large):
        gc.collect()  # it looks through everything there is: a tenth of a second and more


def numbers_of(array: Array) -> NDArray[Any]:
    """Return an Array's numbers, not to be written: a view of its bytes where they are in the form that Flower writes.

    Of an Array that ``record_of`` made, those that it was made over.

    Raises:
        TypeError, ValueError: as ``Array.numpy``: another serialization, or not an array.
    """
    if isinstance(array, OpenedArray):
        return array._numbers  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] (the class beside this function)
    if array.stype != _STYPE:
        return array.numpy()
    kept = array.__dict__.get(_KEPT)
    if kept is not None and kept[0] is array.data:
        return kept[1]
    stream = BytesIO(array.data)  # shares the bytes
    if np.lib.format.read_magic(stream) != (1, 0):
        return array.numpy()
    shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    count = int(np.prod(shape, dtype=np.int64))
    if is_fortran or dtype.hasobject or count * dtype.itemsize != len(array.data) - stream.tell():
        return array.numpy()
    return np.frombuffer(array.data, dtype=dtype, count=count, offset=stream.tell()).reshape(shape)


def serialize_in_one_copy() -> None:
    """Let Flower make an Array of numbers in one copy, in this process, with the bytes that ``np.save`` gives.

    Flower's own takes three, two of them temporary, for which it needs twice a tensor's memory; in a client TEE every
    reply of an app passes here.

    Raises:
        Nothing.
    """
    Array.from_numpy_ndarray = classmethod(_from_numpy)  # pyright: ignore[reportAttributeAccessIssue]


def free_views_at_once() -> None:
    """Let Flower's views of a message's records go when nobody refers to them any more, in this process.

    ``array_records`` and its kin make one whenever they are asked, with references to all records. Each refers to
    itself by its own check of types, so that a model that an app has looked at would wait for the collector.

    Raises:
        Nothing.
    """
    _View.__init__ = _without_itself  # pyright: ignore[reportAttributeAccessIssue]


def _without_itself(view: _View[Any], ref_recorddict: RecordDict, allowed_type: type[Any]) -> None:
    _flowers_view(view, ref_recorddict, allowed_type)
    view.__dict__["_check_value_fn"] = partial(_checked_by_view, _Allowed(allowed_type))


@dataclass(frozen=True, slots=True)
class _Allowed:
    """What a view's check looks at of the view."""

    allowed_type: type[Any]


_flowers_view = _View.__init__
_checked_by_view: Callable[[Any, Any], None] = _View.check_value
_flowers_own = Array.from_numpy_ndarray


def _from_numpy(_: type[Array], ndarray: NDArray[Any]) -> Array:
    simple = isinstance(ndarray, np.ndarray) and ndarray.flags.c_contiguous and ndarray.size  # pyright: ignore[reportUnnecessaryIsInstance]
    if not simple or ndarray.dtype.hasobject or ndarray.dtype.metadata:
        return _flowers_own(ndarray)
    header = _header(ndarray.dtype, ndarray.shape)
    content = np.asarray(ndarray).reshape(-1).view(np.uint8).data
    data = b"".join((header, content))
    made = Array(dtype=str(ndarray.dtype), shape=tuple(ndarray.shape), stype=_STYPE, data=data)
    numbers = np.frombuffer(data, dtype=ndarray.dtype, offset=len(header)).reshape(ndarray.shape)
    made.__dict__[_KEPT] = (data, numbers)  # what was written need not be parsed again
    return made


@lru_cache(maxsize=256)
def _header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """What ``np.save`` writes before the numbers of a contiguous array; a model's are the same at every site."""
    header = BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, described)
    return header.getvalue()
