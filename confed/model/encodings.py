"""Numbers in fewer bytes and back: each encoding has one size for so many numbers, and one form that is accepted.

Sizes follow from the number of values alone, so nothing that a sender writes decides how much memory is taken. All
integers and floats are little-endian.

| encoding | bytes of n numbers |
| --- | --- |
| ``bf16`` | n x bfloat16 |
| ``int8`` | a float32 scale for each 1024 numbers, then n x int8 from -127 to 127 |
| ``top-k`` | k = ceil(fraction n) indices (uint32, rising), then k x float32 |
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from confed.compression import BF16, INT8, CompressionTerms
from confed.errors import CompressionError
from confed.model.bfloat16 import narrowed, widened

Numbers = NDArray[np.float32]
Bytes = NDArray[np.uint8]

INT8_BLOCK = 1024
_LARGEST_STEP = 127


class Encoding(Protocol):
    """A way to write numbers."""

    def size_bytes(self, count: int) -> int:
        """Return how many bytes so many numbers take; never fewer for more."""
        ...

    def encode(self, numbers: Numbers, generator: np.random.Generator) -> Bytes:
        """Return finite numbers in ``size_bytes`` bytes."""
        ...

    def decode(self, encoded: Bytes, count: int) -> Numbers:
        """Return the ``count`` numbers of exactly ``size_bytes`` bytes; they may be infinite or NaN.

        Raises:
            CompressionError: not what ``encode`` could have written.
        """
        ...


def encoding_of(terms: CompressionTerms) -> Encoding:
    """Return a manifest's encoding."""
    if terms.name == BF16:
        return BrainFloats()
    if terms.name == INT8:
        return StochasticBytes()
    return Largest(fraction=terms.fraction or 0.0)


@dataclass(frozen=True, slots=True)
class BrainFloats:
    """Each number rounded to the nearest bfloat16."""

    def size_bytes(self, count: int) -> int:
        """Two bytes each."""
        return 2 * count

    def encode(self, numbers: Numbers, generator: np.random.Generator) -> Bytes:
        """Return the rounded numbers; ``generator`` is not used."""
        del generator
        return _as_bytes(narrowed(numbers))

    def decode(self, encoded: Bytes, count: int) -> Numbers:
        """Return the numbers."""
        return widened(encoded.view("<u2")[:count])


@dataclass(frozen=True, slots=True)
class StochasticBytes:
    """Each number rounded by chance to a neighbouring multiple of its block's scale: right in the mean."""

    def size_bytes(self, count: int) -> int:
        """One byte each, and four for each block."""
        return count + 4 * -(-count // INT8_BLOCK)

    def encode(self, numbers: Numbers, generator: np.random.Generator) -> Bytes:
        """Return scales and steps."""
        count = numbers.size
        blocks = np.zeros((-(-count // INT8_BLOCK), INT8_BLOCK), dtype=np.float32)
        blocks.reshape(-1)[:count] = numbers
        scales = np.abs(blocks).max(axis=1) / np.float32(_LARGEST_STEP)
        divisors = np.where(scales > 0, scales, np.float32(1))
        blocks /= divisors[:, None]
        blocks += generator.random(blocks.shape, dtype=np.float32)
        steps = np.clip(np.floor(blocks), -_LARGEST_STEP, _LARGEST_STEP).astype(np.int8)
        steps[scales == 0] = 0
        return np.concatenate([_as_bytes(scales.astype("<f4")), _as_bytes(steps)[:count]])

    def decode(self, encoded: Bytes, count: int) -> Numbers:
        """Return scale times steps.

        Raises:
            CompressionError: a scale that is NaN, infinite or below 0, or a step of -128.
        """
        at = 4 * -(-count // INT8_BLOCK)
        scales, steps = encoded[:at].view("<f4"), encoded[at:].view(np.int8)
        if not (np.isfinite(scales) & (scales >= 0)).all():
            raise CompressionError("int8 scale", expected="finite, 0 or more", got="another")
        if steps.size and int(steps.min()) < -_LARGEST_STEP:
            raise CompressionError("int8 step", expected=f"from {-_LARGEST_STEP} to {_LARGEST_STEP}", got="-128")
        return steps.astype(np.float32) * np.repeat(scales, INT8_BLOCK)[:count]


@dataclass(frozen=True, slots=True, kw_only=True)
class Largest:
    """The numbers of largest magnitude, and where they are; all others are 0."""

    fraction: float

    def count_of(self, count: int) -> int:
        """Return how many of so many numbers are sent: exactly so many, also where they are 0."""
        return min(count, math.ceil(self.fraction * count))

    def size_bytes(self, count: int) -> int:
        """Eight bytes for each that is sent."""
        return 8 * self.count_of(count)

    def encode(self, numbers: Numbers, generator: np.random.Generator) -> Bytes:
        """Return rising indices and their numbers; ``generator`` is not used."""
        del generator
        chosen = self.count_of(numbers.size)
        order = np.argpartition(np.abs(numbers), numbers.size - chosen) if chosen else np.empty(0, dtype=np.intp)
        indices = np.sort(order[numbers.size - chosen :])
        return np.concatenate([_as_bytes(indices.astype("<u4")), _as_bytes(numbers[indices].astype("<f4"))])

    def decode(self, encoded: Bytes, count: int) -> Numbers:
        """Return all numbers.

        Raises:
            CompressionError: an index that is not above the one before it, or not below ``count``.
        """
        at = 4 * self.count_of(count)
        indices, numbers = encoded[:at].view("<u4"), encoded[at:].view("<f4")
        if indices.size and int(indices[-1]) >= count:
            raise CompressionError("top-k index", expected=f"below {count}", got=int(indices[-1]))
        if not (indices[1:] > indices[:-1]).all():
            raise CompressionError("top-k indices", expected="each above the one before", got="another order")
        result = np.zeros(count, dtype=np.float32)
        result[indices] = numbers
        return result


def _as_bytes(array: NDArray[Any]) -> Bytes:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
