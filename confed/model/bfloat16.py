"""bfloat16, which NumPy does not have: its 16 bits to float32 and back, rounded once."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from confed.model.weights import BFLOAT16

_BLOCK = 1 << 16


def widened(stored: NDArray[Any]) -> NDArray[np.float32]:
    """Return bfloat16 bits (16-bit integers, any shape) as the float32 numbers that they are: exact."""
    # NumPy widens a few thousand at a time: no other array of the whole is made.
    return np.asarray(np.left_shift(stored, np.uint32(16), dtype=np.uint32)).view(np.float32)


def narrowed(numbers: NDArray[Any]) -> NDArray[np.uint16]:
    """Return numbers as bfloat16 bits of the dtype ``BFLOAT16``: to the nearest, ties to even; C order, same shape.

    Numbers beyond the largest bfloat16 become infinity. NaN is not promised to stay NaN: refuse it first.
    """
    whole = np.asarray(numbers, dtype=np.float32, order="C")
    rounded = np.empty(whole.shape, dtype=np.uint16)
    flat, target = whole.reshape(-1).view(np.uint32), rounded.reshape(-1)
    for start in range(0, flat.size, _BLOCK):  # in the processor's cache, and without other arrays of the whole
        bits = flat[start : start + _BLOCK]
        # Add 0x7FFF and the bit that will be the last one kept.
        target[start : start + _BLOCK] = (
            bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
        ) >> np.uint32(16)
    return rounded.view(BFLOAT16)
