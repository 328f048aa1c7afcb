"""An update as a compressed difference from its base, and the update that it stands for.

The update that a compressed one stands for is an ordinary one: base plus decoded difference, each number in its own
tensor's type. Both sides compute it alike, so norms, bounds and rules are over that, and whoever folds updates reads
it like one that was sent whole.

1. The model's packed file is cut into spans of at most 1 MiB. Chunk i of a compressed update has the numbers of span i,
   encoded, then zeros up to the chunk's size; so any span is decoded from one chunk alone.
2. All sizes follow from layout and terms: no byte that a sender writes decides how much memory is taken.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from confed.compression import CompressionTerms
from confed.errors import CompressionError, NotFiniteError, SizeError
from confed.model.bfloat16 import narrowed, widened
from confed.model.encodings import Bytes, Encoding, Numbers, encoding_of
from confed.model.weights import NUMPY_DTYPES, Layout, spans

Array = NDArray[Any]


class Flat(Protocol):
    """Stored values of one type, in the order of the data: an array, or ``Apart``."""

    def __getitem__(self, part: slice, /) -> Array:
        """Return the values from ``part.start`` to ``part.stop``."""
        ...


Flats = Mapping[str, Flat]
"""Stored values of a model, by type."""

SPAN_BYTES = 1024 * 1024
LEAST_CHUNK_BYTES = 4 * 1024
"""The smallest chunk that a container may have."""
_SPAN_STEP = 4 * 1024


class Chunks(Protocol):
    """An opened container, chunk by chunk."""

    def read_chunk_into(self, index: int, buffer: memoryview) -> None:
        """Write one authenticated chunk to a buffer of exactly its length; raise a ``SealError`` otherwise."""
        ...


@dataclass(frozen=True, kw_only=True)
class CompressedForm:
    """Where everything is in a compressed update of one layout.

    Attributes:
        layout: of the update that it stands for.
        encoding: of each chunk.
        span_bytes: how much of the packed file one chunk stands for.
        chunk_bytes: how long a chunk is, but for the last.
    """

    layout: Layout
    encoding: Encoding
    span_bytes: int
    chunk_bytes: int

    @classmethod
    def of(cls, layout: Layout, terms: CompressionTerms) -> CompressedForm:
        """Return the form of a layout: the chunk a power of two, as containers have it, the span what fits it."""
        encoding = encoding_of(terms)
        smallest = min((NUMPY_DTYPES[tensor.dtype].itemsize for tensor in layout.tensors), default=8)
        wanted = max(min(encoding.size_bytes(SPAN_BYTES // smallest), SPAN_BYTES), LEAST_CHUNK_BYTES)
        chunk_bytes = 1 << (wanted.bit_length() - 1)
        fitting = range(SPAN_BYTES, 0, -_SPAN_STEP)
        span_bytes = next(size for size in fitting if encoding.size_bytes(size // smallest) <= chunk_bytes)
        return cls(layout=layout, encoding=encoding, span_bytes=span_bytes, chunk_bytes=chunk_bytes)

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """How many numbers each chunk stands for."""
        return tuple(
            sum(
                (high - low) // NUMPY_DTYPES[dtype].itemsize for dtype, low, high in self.layout.runs(*self.span(index))
            )
            for index in range(self.span_count)
        )

    @property
    def span_count(self) -> int:
        """How many chunks there are."""
        return max(1, -(-self.layout.total_bytes // self.span_bytes))

    def span(self, index: int) -> tuple[int, int]:
        """Return where the span of a chunk begins and ends in the packed file."""
        start = index * self.span_bytes
        return start, min(start + self.span_bytes, self.layout.total_bytes)

    @property
    def total_bytes(self) -> int:
        """Length of a compressed update."""
        return (self.span_count - 1) * self.chunk_bytes + self.encoding.size_bytes(self.counts[-1])

    def chunk_length(self, index: int) -> int:
        """Return the length of a chunk."""
        return self.chunk_bytes if index + 1 < self.span_count else self.encoding.size_bytes(self.counts[-1])

    def decoded_into(self, index: int, chunk: Bytes, base: Flats, target: Bytes) -> None:
        """Write the span that a chunk stands for to ``target``, which has the span's length.

        Raises:
            CompressionError: not what the encoding writes.
            NotFiniteError: a difference that is NaN or infinite.
        """
        count = self.counts[index]
        used = self.encoding.size_bytes(count)
        if chunk[used:].any():
            raise CompressionError("compressed chunk", expected="zeros after its numbers", got="another byte")
        with np.errstate(over="ignore"):
            difference = self.encoding.decode(chunk[:used], count)
        if not np.isfinite(difference).all():
            raise NotFiniteError("compressed difference", expected="finite values", got="NaN or infinity")
        start, end = self.span(index)
        header = self.layout.header[start:end]
        target[: len(header)] = np.frombuffer(header, dtype=np.uint8)
        for piece in self.pieces(index):
            stored = _plus(piece.dtype, base[piece.dtype][piece.part], difference[piece.numbers])
            target[piece.low - start : piece.high - start] = stored.view(np.uint8)

    def pieces(self, index: int) -> Iterator[Piece]:
        """Yield the parts of a span that are of one type."""
        first = 0
        for dtype, low, high in self.layout.runs(*self.span(index)):
            size, origin = NUMPY_DTYPES[dtype].itemsize, self._origins[dtype][0]
            count = (high - low) // size
            part = slice((low - origin) // size, (high - origin) // size)
            yield Piece(dtype=dtype, low=low, high=high, part=part, numbers=slice(first, first + count))
            first += count

    @cached_property
    def _origins(self) -> dict[str, tuple[int, int]]:
        return spans(self.layout)


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Numbers of one type in a span.

    Attributes:
        low, high: where their bytes are in the packed file.
        part: where they are among the type's.
        numbers: where they are among the span's.
    """

    dtype: str
    low: int
    high: int
    part: slice
    numbers: slice


class Apart:
    """Tensors of one type that lie apart, read like one flat array: a slice within one tensor is a view.

    Args:
        tensors: in their order, C-contiguous.
    """

    def __init__(self, tensors: Sequence[Array]) -> None:
        self._tensors = [tensor.reshape(-1) for tensor in tensors]
        self._ends = list(itertools.accumulate(tensor.size for tensor in self._tensors))

    def __getitem__(self, part: slice, /) -> Array:
        """Return the values from ``part.start`` to ``part.stop``, which are within."""
        at = bisect.bisect_right(self._ends, part.start)
        found: list[Array] = []
        low = part.start
        while low < part.stop:
            begin = self._ends[at] - self._tensors[at].size
            high = min(part.stop, self._ends[at])
            found.append(self._tensors[at][low - begin : high - begin])
            low, at = high, at + 1
        return found[0] if len(found) == 1 else np.concatenate(found)


def apart(arrays: Mapping[str, Array], layout: Layout) -> dict[str, Apart]:
    """Return arrays of a layout by type; nothing is copied."""
    groups: dict[str, list[Array]] = {}
    for tensor in layout.data_order:
        groups.setdefault(tensor.dtype, []).append(arrays[tensor.name])
    return {dtype: Apart(tensors) for dtype, tensors in groups.items()}


class Decoded:
    """A compressed update, read like the one that it stands for; may be read by several threads at a time.

    Args:
        chunks: the opened container, whose length and chunk size are the form's.
        base: the version that it started from.
    """

    def __init__(self, chunks: Chunks, form: CompressedForm, base: Flats) -> None:
        self._chunks = chunks
        self._form = form
        self._base = base

    @property
    def chunk_count(self) -> int:
        """How many spans there are."""
        return self._form.span_count

    def chunk_span(self, index: int) -> tuple[int, int]:
        """Return where a span begins and ends."""
        return self._form.span(index)

    def read_chunk_into(self, index: int, buffer: memoryview) -> None:
        """Write one span of the update that this one stands for.

        Raises:
            SealError: the chunk does not open.
            CompressionError, NotFiniteError: as ``CompressedForm.decoded_into``.
        """
        chunk = np.empty(self._form.chunk_length(index), dtype=np.uint8)
        self._chunks.read_chunk_into(index, memoryview(chunk.data))
        self._form.decoded_into(index, chunk, self._base, np.frombuffer(buffer, dtype=np.uint8))


@dataclass(frozen=True, slots=True, kw_only=True)
class Compressed:
    """A compressed update: its parts, the norm of the difference that it stands for, and what it leaves out.

    ``residual`` is in the order of the data, float32.
    """

    parts: Sequence[memoryview] = field(repr=False)
    norm: float
    residual: Numbers = field(repr=False)


def compress(
    form: CompressedForm,
    trained: Flats,
    base: Flats,
    *,
    carried: Numbers | None,
    generator: np.random.Generator,
) -> Compressed:
    """Return a compressed update.

    Args:
        form: of the update.
        trained: its stored values.
        base: those of the version that it started from.
        carried: what earlier updates left out, to be added to the difference.
        generator: rounds by chance.

    Raises:
        NotFiniteError: a difference that is NaN, infinite or beyond float32, or that does not come back finite.
        SizeError: ``carried`` is of another layout.
    """
    residual = np.empty(sum(form.counts), dtype=np.float32)
    if carried is not None and carried.size != residual.size:
        raise SizeError("carried difference", expected=f"{residual.size} numbers", got=carried.size)
    parts: list[memoryview] = []
    square, first = 0.0, 0
    for index, count in enumerate(form.counts):
        place = slice(first, first + count)
        wanted = _difference(form, index, trained, base)
        if carried is not None:
            wanted += carried[place]
        if not np.isfinite(wanted).all():
            raise NotFiniteError("trained difference", expected="finite values", got="NaN or infinity")
        chunk = np.zeros(form.chunk_length(index), dtype=np.uint8)
        encoded = form.encoding.encode(wanted, generator)
        chunk[: encoded.size] = encoded
        sent = _sent(form, index, chunk, base)
        residual[place] = wanted - sent
        # Not by BLAS, whose threads wait for each other on so few numbers.
        square += float(np.einsum("i,i->", sent, sent, dtype=np.float64))
        parts.append(memoryview(chunk.data))
        first += count
    return Compressed(parts=parts, norm=math.sqrt(square), residual=residual)


def _difference(form: CompressedForm, index: int, trained: Flats, base: Flats) -> Numbers:
    found = np.empty(form.counts[index], dtype=np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for piece in form.pieces(index):
            there, here = trained[piece.dtype][piece.part], base[piece.dtype][piece.part]
            found[piece.numbers] = _numbers(piece.dtype, there) - _numbers(piece.dtype, here)
    return found


def _sent(form: CompressedForm, index: int, chunk: Bytes, base: Flats) -> Numbers:
    """Return the difference that a receiver finds."""
    start, end = form.span(index)
    span = np.empty(end - start, dtype=np.uint8)
    form.decoded_into(index, chunk, base, span)
    found = np.empty(form.counts[index], dtype=np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for piece in form.pieces(index):
            stored = span[piece.low - start : piece.high - start].view(NUMPY_DTYPES[piece.dtype])
            here = base[piece.dtype][piece.part]
            found[piece.numbers] = _numbers(piece.dtype, stored) - _numbers(piece.dtype, here)
    if not np.isfinite(found).all():
        raise NotFiniteError("compressed update", expected="finite values", got="NaN or infinity")
    return found


def _numbers(dtype: str, stored: Array) -> Array:
    if dtype == "BF16":
        return widened(stored)
    return stored.astype(np.float32) if dtype == "F16" else stored


def _plus(dtype: str, base: Array, difference: Numbers) -> Array:
    with np.errstate(over="ignore"):
        total = _numbers(dtype, base) + difference
        return narrowed(total) if dtype == "BF16" else np.asarray(total, dtype=NUMPY_DTYPES[dtype])
