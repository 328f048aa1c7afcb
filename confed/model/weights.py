"""Named arrays to safetensors and back without copying, and where in the bytes each of them lies.

confed writes one form only, so that two files of the same layout have every element at the same place: tensors
by falling element size, then type, then their own order; that order under ``order`` in the metadata; the header
padded so that data starts at a multiple of 8. Every element is therefore aligned, and any range that starts at a
multiple of 8 starts with a whole one. Nothing here is pickled.

Source: the safetensors format, https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from confed import canonical
from confed.errors import EncodingError, ShapeError, SizeError
from confed.model.safetensors_header import (
    LENGTH_BYTES,
    MAX_HEADER_BYTES,
    Entry,
    encode_header,
    header_bytes,
    parse_header,
)

Array = NDArray[Any]
Buffer = bytes | bytearray | memoryview

BFLOAT16: np.dtype[np.uint16] = np.dtype("<u2", metadata={"safetensors": "BF16"})
"""What numpy has for bfloat16: its 16 bits, in a dtype that remembers what they are (``array.view(BFLOAT16)``)."""

NUMPY_DTYPES: Mapping[str, np.dtype[Any]] = MappingProxyType(
    {
        "F64": np.dtype("<f8"),
        "F32": np.dtype("<f4"),
        "F16": np.dtype("<f2"),
        "BF16": BFLOAT16,
        "I64": np.dtype("<i8"),
        "I32": np.dtype("<i4"),
        "I16": np.dtype("<i2"),
        "I8": np.dtype("|i1"),
        "U64": np.dtype("<u8"),
        "U32": np.dtype("<u4"),
        "U16": np.dtype("<u2"),
        "U8": np.dtype("|u1"),
        "BOOL": np.dtype("|b1"),
    }
)
"""Every type that a tensor may have, by its safetensors name."""

FLOATING = frozenset({"F64", "F32", "F16", "BF16"})
"""The types that are trained; all others count or choose."""

_NAMES = {dtype.str: name for name, dtype in NUMPY_DTYPES.items() if name != "BF16"}
_ALIGNMENT = 8
_MAX_DIMENSIONS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorEntry:
    """One tensor: safetensors type, shape, and where its bytes are in the whole file (``start`` to ``end``)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where every tensor lies in a packed file; no values.

    Attributes:
        tensors: in the order of the mapping that was packed, which is not the order of the data.
        data_start: where the header ends.
        total_bytes: length of the whole file.
    """

    tensors: tuple[TensorEntry, ...]
    data_start: int
    total_bytes: int

    @cached_property
    def digest(self) -> str:
        """SHA-256 of names, types and shapes in order: what two models must share to be combined."""
        value = [[tensor.name, tensor.dtype, list(tensor.shape)] for tensor in self.tensors]
        return canonical.digest(canonical.encode(["confed/v1/layout", value]))

    @cached_property
    def header(self) -> bytes:
        """The bytes before the data in the one form that confed writes: ``data_start`` bytes long if packed."""
        return _header_of([(tensor.name, tensor.dtype, tensor.shape) for tensor in self.tensors])

    @cached_property
    def data_order(self) -> tuple[TensorEntry, ...]:
        """The tensors as they follow each other in the data."""
        return tuple(sorted(self.tensors, key=lambda tensor: (tensor.start, tensor.end)))

    def require(self, expected: Layout) -> None:
        """Check that this file has every element where ``expected`` has it.

        Raises:
            ShapeError: other names, types, shapes, order or places; the first that differs is named.
        """
        for mine, other in zip(self.tensors, expected.tensors, strict=False):
            if mine != other:
                got = f"{mine.name} {mine.dtype} {list(mine.shape)} at {mine.start}"
                raise ShapeError(
                    "tensor", expected=f"{other.name} {other.dtype} {list(other.shape)} at {other.start}", got=got
                )
        if len(self.tensors) != len(expected.tensors):
            raise ShapeError("number of tensors", expected=len(expected.tensors), got=len(self.tensors))
        if (self.data_start, self.total_bytes) != (expected.data_start, expected.total_bytes):
            raise ShapeError("size in bytes", expected=expected.total_bytes, got=self.total_bytes)

    def require_packed(self) -> None:
        """Check that the file is in the one form that confed writes.

        Raises:
            EncodingError: valid, but with tensors at other places; ``pack`` makes the form of it.
        """
        packed = _layout([(tensor.name, tensor.dtype, tensor.shape) for tensor in self.tensors])
        if self != packed:
            raise EncodingError("safetensors file", expected="confed's order of tensors", got="another")

    def part(self, names: Collection[str]) -> Layout:
        """Return the packed layout of some of the tensors, in this one's order; other names are left out."""
        return _layout([(tensor.name, tensor.dtype, tensor.shape) for tensor in self.tensors if tensor.name in names])

    def runs(self, start: int, end: int) -> Iterator[tuple[str, int, int]]:
        """Yield (type, start, end) of the data in a range of the file, in order, neighbours of one type joined.

        Guarantees: every run lies within the range and within the data, and holds whole elements; together they
        cover all data in the range. A range that lies in the header yields nothing.

        Raises:
            SizeError: a range that is not within the file, or that cuts an element.
        """
        if not 0 <= start <= end <= self.total_bytes:
            raise SizeError("range", expected=f"within {self.total_bytes} bytes", got=f"{start} to {end}")
        runs, starts = self._runs
        for dtype, first, last in runs[max(0, bisect.bisect_right(starts, start) - 1) :]:
            low, high = max(first, start), min(last, end)
            if first >= end:
                return
            if low >= high:
                continue
            size = NUMPY_DTYPES[dtype].itemsize
            if (low - first) % size or (high - first) % size:
                raise SizeError("range", expected=f"whole elements of {size} bytes", got=f"{start} to {end}")
            yield dtype, low, high

    @cached_property
    def _runs(self) -> tuple[list[tuple[str, int, int]], list[int]]:
        runs: list[tuple[str, int, int]] = []
        for tensor in self.data_order:
            if tensor.start == tensor.end:
                continue
            if runs and runs[-1][0] == tensor.dtype:
                runs[-1] = (tensor.dtype, runs[-1][1], tensor.end)
            else:
                runs.append((tensor.dtype, tensor.start, tensor.end))
        return runs, [run[1] for run in runs]


def layout_of(arrays: Mapping[str, Array], *, like: Layout | None = None) -> Layout:
    """Return the layout that ``pack`` gives these arrays.

    ``like`` says what the arrays should be: it tells bfloat16 from plain 16-bit integers.

    Raises:
        EncodingError: an array of a type that safetensors does not have here, or a name that it cannot hold.
        ShapeError: ``like`` has other names, types, shapes or another order.
    """
    layout = _layout([(name, dtype, array.shape) for (name, dtype), array in _typed(arrays, like)])
    if like is not None:
        layout.require(like)
    return layout


def pack(arrays: Mapping[str, Array], *, like: Layout | None = None) -> list[memoryview]:
    """Return the parts of a safetensors file: its header, then each array's bytes, which are not copied.

    An array that is not contiguous or not little-endian is copied. ``like`` is explained at ``layout_of``.

    Raises:
        EncodingError: an array of a type that safetensors does not have here, or a name that it cannot hold.
        ShapeError: ``like`` has other names, types, shapes or another order.
    """
    layout = layout_of(arrays, like=like)
    parts = [memoryview(layout.header)]
    parts.extend(_bytes_of(arrays[tensor.name], tensor.dtype) for tensor in layout.data_order)
    return [part for part in parts if len(part)]


def unpack(buffer: Buffer, *, aligned: bool = True) -> dict[str, Array]:
    """Return the arrays of a safetensors file in their own order, as views of ``buffer``.

    They are writable exactly when ``buffer`` is. bfloat16 comes as 16-bit integers of the dtype ``BFLOAT16``.

    Raises:
        EncodingError, ShapeError, SizeError: as ``parse_layout``; also a boolean that is neither 0 nor 1.
    """
    view = memoryview(buffer).cast("B")
    layout = parse_layout(view[: _header_end(view)], len(view), aligned=aligned)
    return {tensor.name: _array_of(view, tensor) for tensor in layout.tensors}


def spans(layout: Layout) -> dict[str, tuple[int, int]]:
    """Return where the tensors of each type lie in the packed file: types lie together, one after the other."""
    found: dict[str, tuple[int, int]] = {}
    for tensor in layout.data_order:
        start, _ = found.get(tensor.dtype, (tensor.start, 0))
        found[tensor.dtype] = (start, tensor.end)
    return found


def flats_of(arrays: Mapping[str, Array], layout: Layout) -> dict[str, Array]:
    """Return arrays as one flat array a type, in the order of the data; copied only where they lie apart."""
    groups: dict[str, list[Array]] = {}
    for tensor in layout.data_order:
        groups.setdefault(tensor.dtype, []).append(arrays[tensor.name].reshape(-1))
    return {dtype: parts[0] if len(parts) == 1 else np.concatenate(parts) for dtype, parts in groups.items()}


def header_size(start: Buffer) -> int:
    """Return how many bytes ``parse_layout`` needs of a file, from its first 8 bytes.

    Raises:
        EncodingError: fewer than 8 bytes.
        SizeError: a header above 16 MiB.
    """
    return header_bytes(start)


def parse_layout(prefix: Buffer, total_bytes: int, *, aligned: bool = True) -> Layout:
    """Return the layout of a safetensors file of ``total_bytes`` from its beginning (at least ``header_size``).

    Strict: every key known and there once; tensors follow each other without gap or overlap up to the last byte;
    every size is that of type and shape. ``aligned=False`` takes files of other programs, whose elements may lie
    anywhere. Tensors come in the order that the metadata tells, else in the order of the data.

    Raises:
        EncodingError: not a safetensors header, an unknown type or key, a gap, an overlap, or not aligned.
        ShapeError: a tensor whose bytes are not those of its type and shape.
        SizeError: a header above 16 MiB, too many dimensions, or data that does not end where the file does.
    """
    length = header_bytes(prefix)
    if len(prefix) < length or total_bytes < length:
        raise EncodingError("safetensors header", expected=f"{length} bytes", got=min(len(prefix), total_bytes))
    entries, order = parse_header(bytes(prefix[LENGTH_BYTES:length]))
    tensors = {name: _tensor(name, entry, data_start=length) for name, entry in entries.items()}
    in_data = sorted(tensors.values(), key=lambda tensor: (tensor.start, tensor.end))
    at = length
    for tensor in in_data:
        if tensor.start != at:
            found = "an overlap" if tensor.start < at else "a gap"
            raise EncodingError(
                f"tensor {tensor.name}", expected=f"data from byte {at}", got=f"{found}: {tensor.start}"
            )
        if aligned and tensor.start % NUMPY_DTYPES[tensor.dtype].itemsize:
            raise EncodingError(f"tensor {tensor.name}", expected="aligned elements", got=f"byte {tensor.start}")
        at = tensor.end
    if at != total_bytes:
        raise SizeError("safetensors file in bytes", expected=at, got=total_bytes)
    if aligned and length % _ALIGNMENT:
        raise EncodingError("safetensors header", expected=f"a multiple of {_ALIGNMENT} bytes", got=length)
    names = order if order is not None else [tensor.name for tensor in in_data]
    return Layout(tensors=tuple(tensors[name] for name in names), data_start=length, total_bytes=total_bytes)


def _tensor(name: str, entry: Entry, *, data_start: int) -> TensorEntry:
    dtype = NUMPY_DTYPES.get(entry.dtype)
    if dtype is None:
        raise EncodingError(f"tensor {name}", expected="one of " + ", ".join(NUMPY_DTYPES), got=entry.dtype[:20])
    if len(entry.shape) > _MAX_DIMENSIONS:
        raise SizeError(f"dimensions of tensor {name}", expected=f"at most {_MAX_DIMENSIONS}", got=len(entry.shape))
    size = math.prod(entry.shape) * dtype.itemsize
    if size != entry.end - entry.start:
        raise ShapeError(f"tensor {name} in bytes", expected=size, got=entry.end - entry.start)
    return TensorEntry(
        name=name,
        dtype=entry.dtype,
        shape=entry.shape,
        start=data_start + entry.start,
        end=data_start + entry.end,
    )


def _layout(tensors: list[tuple[str, str, tuple[int, ...]]]) -> Layout:
    return _laid_out(tuple(tensors))


@lru_cache(maxsize=8)
def _laid_out(tensors: tuple[tuple[str, str, tuple[int, ...]], ...]) -> Layout:
    """A TEE that hosts many sites asks for the same layouts very often; they do not change."""
    data_start = len(_header_of(list(tensors)))
    placed = {
        name: TensorEntry(name=name, dtype=dtype, shape=shape, start=data_start + start, end=data_start + end)
        for name, dtype, shape, start, end in _places(list(tensors))
    }
    total_bytes = max((tensor.end for tensor in placed.values()), default=data_start)
    in_order = tuple(placed[name] for name, _, _ in tensors)
    return Layout(tensors=in_order, data_start=data_start, total_bytes=total_bytes)


def _places(tensors: list[tuple[str, str, tuple[int, ...]]]) -> Iterator[tuple[str, str, tuple[int, ...], int, int]]:
    at = 0
    for name, dtype, shape in sorted(tensors, key=lambda tensor: (-NUMPY_DTYPES[tensor[1]].itemsize, tensor[1])):
        end = at + math.prod(shape) * NUMPY_DTYPES[dtype].itemsize
        yield name, dtype, shape, at, end
        at = end


def _header_of(tensors: list[tuple[str, str, tuple[int, ...]]]) -> bytes:
    entries = {
        name: Entry(dtype=dtype, shape=shape, start=start, end=end)
        for name, dtype, shape, start, end in _places(tensors)
    }
    return encode_header(entries, order=[name for name, _, _ in tensors], alignment=_ALIGNMENT)


def _typed(arrays: Mapping[str, Array], like: Layout | None) -> Iterator[tuple[tuple[str, str], Array]]:
    expected = {tensor.name: tensor.dtype for tensor in like.tensors} if like is not None else {}
    for name, array in arrays.items():
        yield (name, _dtype_name(name, array.dtype, expected.get(name, ""))), array


def _dtype_name(name: str, dtype: np.dtype[Any], expected: str) -> str:
    little = dtype.newbyteorder("<")
    if little.str == BFLOAT16.str and "BF16" in (expected, (dtype.metadata or {}).get("safetensors")):
        return "BF16"
    found = _NAMES.get(little.str)
    if found is None:
        raise EncodingError(f"tensor {name}", expected="one of " + ", ".join(NUMPY_DTYPES), got=str(dtype))
    return found


def _bytes_of(array: Array, dtype: str) -> memoryview:
    stored = np.ascontiguousarray(array, dtype=NUMPY_DTYPES[dtype])
    return stored.reshape(-1).view(np.uint8).data


def _array_of(view: memoryview, tensor: TensorEntry) -> Array:
    dtype = NUMPY_DTYPES[tensor.dtype]
    if tensor.start == tensor.end:
        return np.empty(tensor.shape, dtype=dtype)
    flat: Array = np.frombuffer(view[tensor.start : tensor.end], dtype=dtype)
    if tensor.dtype == "BOOL" and flat.view(np.uint8).max() > 1:
        raise EncodingError(f"tensor {tensor.name}", expected="booleans that are 0 or 1", got="another byte")
    return flat.reshape(tensor.shape)


def _header_end(view: memoryview) -> int:
    return min(header_bytes(view), len(view), LENGTH_BYTES + MAX_HEADER_BYTES)
