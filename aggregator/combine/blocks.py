"""The memory of one worker of a pass: what chunks are opened into, and the blocks that their values are worked on in.

A block fits a core's own cache together with the base and the result there, so that each value is brought from memory
once and then checked and used. A work that needs the same place of every update at once has a row for each: a whole
chunk of few updates, a part of a chunk of many, so that a worker holds no more than ``WORKER_BYTES``. Chunks are then
opened, and their tags checked, once for each part; every value is looked at and used once. Part and block depend on
the number of updates only: how many threads there are changes no bit of a result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from aggregator.combine.tensor_types import NumberType, number_type
from aggregator.combine.weights import Weights, spans
from confed.model.differences import square_of_difference

if TYPE_CHECKING:
    from collections.abc import Iterator

Array = NDArray[Any]

WORKER_BYTES = 21 * 1024**2
"""How much of the updates one worker holds at most where a work needs all of them at once."""
BLOCK_BYTES = 256 * 1024
"""How much of one update is worked on at a time."""

_PART_ALIGNMENT = 64


class Chunks(Protocol):
    """An opened update, chunk by chunk; ``confed.sealing.container.OpenContainer`` is one."""

    @property
    def chunk_count(self) -> int:
        """How many chunks there are."""
        ...

    def chunk_span(self, index: int) -> tuple[int, int]:
        """Return where the chunk's plaintext begins and ends."""
        ...

    def read_chunk_into(self, index: int, buffer: memoryview) -> None:
        """Decrypt one authenticated chunk into ``buffer``; raise a ``SealError`` otherwise."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Elements of one type that lie together, at most a block of them.

    Attributes:
        part: where they are in the flat array of that type.
        place: where their bytes are in what was opened.
        reference: the base's numbers there.
    """

    dtype: str
    kind: NumberType
    part: slice
    place: slice
    reference: Array


class Model:
    """A base version as a pass needs it: where its blocks lie, and its numbers there."""

    def __init__(self, base: Weights) -> None:
        self.base = base
        self.header = base.layout.header
        self.spans = spans(base.layout)
        self.kinds = {dtype: number_type(dtype) for dtype in base.flats}

    def segments(self, low: int, high: int) -> Iterator[Segment]:
        """Yield what lies in a range of the packed file, block by block."""
        for dtype, start, end in self.base.layout.runs(low, high):
            kind, origin = self.kinds[dtype], self.spans[dtype][0]
            size = kind.stored.itemsize
            for first in range(start, end, BLOCK_BYTES):
                last = min(first + BLOCK_BYTES, end)
                part = slice((first - origin) // size, (last - origin) // size)
                yield Segment(
                    dtype=dtype,
                    kind=kind,
                    part=part,
                    place=slice(first - low, last - low),
                    reference=kind.numbers(self.base.flats[dtype][part]),
                )


class Opening:
    """What one worker opens chunks into.

    Args:
        chunk_bytes: of the largest chunk.
        rows: how many updates are held at once; 0 where each is used for itself.
    """

    def __init__(self, *, chunk_bytes: int, rows: int) -> None:
        self.part_bytes = part_bytes(chunk_bytes, rows=rows)
        whole = self.part_bytes >= chunk_bytes
        self._chunk = None if whole else np.zeros(chunk_bytes, dtype=np.uint8)
        self._rows = [np.zeros(min(self.part_bytes, chunk_bytes), dtype=np.uint8) for _ in range(max(1, rows))]

    def open(self, chunks: Chunks, index: int, *, row: int, low: int, high: int) -> Array:
        """Return the plaintext from ``low`` to ``high``, in one chunk: the caller's until it asks for the row again.

        Raises:
            SealError: of the class that says what is wrong with the chunk.
        """
        start, end = chunks.chunk_span(index)
        held = self._rows[row % len(self._rows)]
        if self._chunk is None:
            chunks.read_chunk_into(index, memoryview(held[: end - start].data))
            return held[: end - start]
        chunks.read_chunk_into(index, memoryview(self._chunk[: end - start].data))
        held[: high - low] = self._chunk[low - start : high - start]
        return held[: high - low]


def part_bytes(chunk_bytes: int, *, rows: int) -> int:
    """Return how much of a chunk is held of each update: equal parts of it, few enough for ``WORKER_BYTES``."""
    most = max(WORKER_BYTES // max(1, rows) - _PART_ALIGNMENT, _PART_ALIGNMENT)
    parts = -(-chunk_bytes // most)
    return -(-chunk_bytes // (parts * _PART_ALIGNMENT)) * _PART_ALIGNMENT


def held_bytes(chunk_bytes: int, *, rows: int) -> int:
    """Return how much opened memory an ``Opening`` has."""
    part = part_bytes(chunk_bytes, rows=rows)
    return max(1, rows) * min(part, chunk_bytes) + (0 if part >= chunk_bytes else chunk_bytes)


class Scratch:
    """Memory of one worker for a block's products and differences, used again for each."""

    def __init__(self) -> None:
        # The worst case is one byte in, one float64 out.
        self._memory = np.empty(8 * BLOCK_BYTES, dtype=np.uint8)

    def take(self, dtype: np.dtype[Any], count: int) -> Array:
        """Return room for ``count`` elements; what was there before is overwritten."""
        return self._memory[: count * dtype.itemsize].view(dtype)

    def square_of_difference(self, numbers: Array, reference: Array) -> float:
        """Return the sum of squares of ``numbers - reference``: see ``confed.model.differences``."""
        return square_of_difference(numbers, reference, memory=self._memory)
