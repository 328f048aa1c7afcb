"""How the bytes of each tensor type become numbers that can be averaged, and numbers become that type again.

float32 and float64 are averaged in their own type, as Flower does. float16 and bfloat16 (which NumPy does not have) are
summed in float32 and rounded once, to nearest, when they become their own type again; Flower sums float16 in itself.
Whole numbers and truth values are not averaged: they do not travel (``confed.model.trained``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from confed.errors import ShapeError
from confed.model.bfloat16 import narrowed, widened

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberType:
    """One tensor type: ``stored`` as it lies in the file, ``mean`` as it is averaged."""

    stored: np.dtype[Any]
    mean: np.dtype[Any]
    brain: bool = False

    def numbers(self, stored: Array) -> Array:
        """Return stored values as numbers; a view where they are averaged in their own type."""
        if self.brain:
            return widened(stored)
        return stored if self.stored == self.mean else stored.astype(self.mean)

    def restored(self, mean: Array) -> Array:
        """Return a mean in the stored type again (C order, same shape); what is beyond it becomes infinity."""
        if self.brain:
            return narrowed(mean)
        with np.errstate(over="ignore"):
            return np.asarray(mean, dtype=self.stored)


TYPES: dict[str, NumberType] = {
    "F64": NumberType(stored=np.dtype("<f8"), mean=np.dtype(np.float64)),
    "F32": NumberType(stored=np.dtype("<f4"), mean=np.dtype(np.float32)),
    "F16": NumberType(stored=np.dtype("<f2"), mean=np.dtype(np.float32)),
    "BF16": NumberType(stored=np.dtype("<u2"), mean=np.dtype(np.float32), brain=True),
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
