"""How far numbers are from others, a block in the processor's cache at a time: what norms are made of."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_LOST_IN_FLOAT32 = 1e-20
"""Below this, squares of single differences vanish in float32."""


def square_of_difference(numbers: Array, reference: Array, *, memory: NDArray[np.uint8]) -> float:
    """Return the sum of squares of ``numbers - reference``, which are of one type and length, a block of a model.

    Float32 is subtracted in float32, where a difference is exact but for its last bit, and its squares are added there
    too: BLAS adds in groups, so the sum of a block of 65,536 is within 1e-4, far inside the tolerance of norms. What
    overflows or vanishes there is summed again in float64, as every other type is.

    The caller has NumPy's warnings of overflow and of invalid values off: what comes of them is looked at.

    Args:
        numbers: one block.
        reference: the numbers that they are held against.
        memory: 8 bytes for each number, to be written over.
    """
    if numbers.dtype == np.float32 and reference.dtype == np.float32:
        out = memory[: 4 * numbers.size].view(np.float32)
        difference = np.subtract(numbers, reference, out=out)
        square = float(np.dot(difference, difference))
        if math.isfinite(square) and square > _LOST_IN_FLOAT32:
            return square
    wide = memory[: 8 * numbers.size].view(np.float64)
    np.subtract(numbers, reference, out=wide, dtype=np.float64, casting="unsafe")
    return float(np.dot(wide, wide))
