"""bfloat16, which NumPy does not have: its 16 bits to float32 and back, rounded once."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from confed.model.weights import BFLOAT16


def widened(stored: NDArray[Any]) -> NDArray[np.float32]:
    """Return bfloat16 bits (16-bit integers, any shape) as the float32 numbers that they are: exact."""
    return np.asarray(stored.astype(np.uint32) << np.uint32(16)).view(np.float32)


def narrowed(numbers: NDArray[Any]) -> NDArray[np.uint16]:
    """Return numbers as bfloat16 bits of the dtype ``BFLOAT16``: to the nearest, ties to even; C order, same shape.

    Numbers beyond the largest bfloat16 become infinity. NaN is not promised to stay NaN: refuse it first.
    """
    bits = np.asarray(numbers, dtype=np.float32, order="C").view(np.uint32)
    # Add 0x7FFF and the bit that will be the last one kept.
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.asarray(rounded, dtype=np.uint16).view(BFLOAT16)
