"""Gaussian noise from a cryptographic generator.

A generator draws its key from the operating system and expands it by AES-256 in counter mode; no seed goes in and no
key comes out. Two 53-bit uniforms make two normal numbers (Box-Muller, in float64).

What finite precision does: the real mechanism's proof does not hold for floating numbers as they come (Mironov 2012:
which numbers can come out at all tells about what went in). Two things are done about it. The sum that noise is added
to is kept in float64, and what comes out is rounded to a grid of ``2**-24`` standard deviations, which is the same
whatever the updates were: some ``2**28`` float64 values fall into each cell, so the holes between them do not show.
What remains: no number is further out than 8.57 standard deviations, where the normal law still has 1e-17 of its mass,
and this is a mitigation, not a proof; a proof needs a discrete Gaussian.

Source: Box and Muller (1958); Mironov, "On Significance of the Least Significant Bits for Differential Privacy" (2012).
"""

from __future__ import annotations

import math
import os
from typing import NoReturn

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray

_KEY_BYTES, _BLOCK_BYTES, _WORD_BYTES = 32, 16, 8
_MOST_AT_ONCE = 1 << 17
_GRID_BITS = 24


class GaussianNoise:
    """Independent normal numbers and coins, from a key of its own; one for each thread."""

    __slots__ = ("_stream",)

    def __init__(self) -> None:
        self._stream = Cipher(AES(os.urandom(_KEY_BYTES)), CTR(bytes(_BLOCK_BYTES))).encryptor()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a noise generator holds a key and is not pickled")

    def normal(self, count: int) -> NDArray[np.float64]:
        """Return ``count`` standard normal numbers."""
        found = np.empty(count, dtype=np.float64)
        for start in range(0, count, _MOST_AT_ONCE):
            part = found[start : start + _MOST_AT_ONCE]
            half = (part.size + 1) // 2
            words = self._words(2 * half) >> np.uint64(11)
            radius = np.sqrt(-2.0 * np.log((words[:half] + np.uint64(1)) * 2.0**-53))
            angle = words[half:] * (2.0 * math.pi * 2.0**-53)
            np.multiply(radius, np.cos(angle), out=part[:half])
            np.multiply(radius[: part.size - half], np.sin(angle[: part.size - half]), out=part[half:])
        return found

    def coin(self, probability: float) -> bool:
        """Return true with a probability, to within ``2**-53``."""
        return int(self._words(1)[0] >> np.uint64(11)) * 2.0**-53 < probability

    def add_to(self, values: NDArray[np.float64], *, sigma: float) -> None:
        """Add noise of standard deviation ``sigma`` to ``values`` and round them to the grid, in place."""
        values += self.normal(values.size) * sigma
        grid = math.ldexp(1.0, math.frexp(sigma)[1] - 1 - _GRID_BITS)
        values /= grid
        np.rint(values, out=values)
        values *= grid

    def _words(self, count: int) -> NDArray[np.uint64]:
        return np.frombuffer(self._stream.update(bytes(count * _WORD_BYTES)), dtype=np.uint64)
