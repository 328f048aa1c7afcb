"""How the bytes of each tensor type become numbers that can be averaged, and numbers become that type again.

Floating types are averaged in their own type, as Flower does (bfloat16, which NumPy does not have, in float32).
Whole numbers and truth values are averaged in float64, as Flower does, and rounded to the nearest whole number
when they become their own type again: Flower hands on the float64 mean and leaves it to each framework to
truncate it, by which counters that agree can lose one. Values that agree are therefore kept exactly up to 2**53.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from confed.errors import ShapeError

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberType:
    """One tensor type: ``stored`` as it lies in the file, ``mean`` as it is averaged."""

    stored: np.dtype[Any]
    mean: np.dtype[Any]
    brain: bool = False

    @property
    def floating(self) -> bool:
        """True for the types that a norm is over."""
        return self.brain or self.stored.kind == "f"

    def numbers(self, stored: Array) -> Array:
        """Return stored values as numbers; a view wherever the type allows it.

        Raises:
            ShapeError: a truth value that is neither 0 nor 1.
        """
        if self.brain:
            return (stored.astype(np.uint32) << 16).view(np.float32)
        if self.stored == np.bool_:
            raw = stored.view(np.uint8)
            if raw.size and int(raw.max()) > 1:
                raise ShapeError("tensor values", expected="0 or 1 in a tensor of truth values", got="another byte")
            return raw
        return stored

    def restored(self, mean: Array) -> Array:
        """Return a mean in the stored type again (C order, same shape)."""
        if self.brain:
            bits = np.ascontiguousarray(mean, dtype=np.float32).view(np.uint32)
            # Round to nearest, ties to even: add 0x7FFF and the bit that will be the last one kept.
            rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
            return rounded.astype(np.uint16)
        if self.stored == np.bool_:
            return np.asarray(mean) >= 0.5
        if np.issubdtype(self.stored, np.integer):
            limits = np.iinfo(self.stored)
            highest = float(limits.max)
            if int(highest) > limits.max:  # float64 rounds the largest 64-bit values up and out of their type
                highest = float(np.nextafter(highest, 0.0))
            return np.clip(np.rint(mean), float(limits.min), highest).astype(self.stored)
        return np.asarray(mean, dtype=self.stored)


def _plain(stored: str) -> NumberType:
    kind = np.dtype(stored)
    return NumberType(stored=kind, mean=kind if kind.kind == "f" else np.dtype(np.float64))


TYPES: dict[str, NumberType] = {
    "F64": _plain("<f8"),
    "F32": _plain("<f4"),
    "F16": _plain("<f2"),
    "BF16": NumberType(stored=np.dtype("<u2"), mean=np.dtype(np.float32), brain=True),
    "I64": _plain("<i8"),
    "I32": _plain("<i4"),
    "I16": _plain("<i2"),
    "I8": _plain("|i1"),
    "U64": _plain("<u8"),
    "U32": _plain("<u4"),
    "U16": _plain("<u2"),
    "U8": _plain("|u1"),
    "BOOL": NumberType(stored=np.dtype(np.bool_), mean=np.dtype(np.float64)),
}
"""By safetensors' names of tensor types."""


def number_type(dtype: str) -> NumberType:
    """Return how tensors of a safetensors type are averaged.

    Raises:
        ShapeError: a type that cannot be averaged.
    """
    found = TYPES.get(dtype)
    if found is None:
        raise ShapeError("tensor type", expected="one of " + ", ".join(TYPES), got=dtype)
    return found
