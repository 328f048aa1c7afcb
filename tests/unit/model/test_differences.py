"""Sums of squares of differences: as exact as norms need, in float32 where that is enough."""

from __future__ import annotations

import numpy as np
import pytest

from confed.model.differences import square_of_difference

SIZE = 1 << 16
MEMORY = np.empty(8 * SIZE, dtype=np.uint8)
DRAWN = np.random.default_rng(3)


def square(numbers: np.ndarray, reference: np.ndarray) -> float:
    with np.errstate(over="ignore", invalid="ignore"):
        return square_of_difference(numbers, reference, memory=MEMORY)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scale", [1e-30, 1e-9, 1.0, 1e18, 1e25])
@pytest.mark.parametrize("size", [0, 1, 1000, SIZE])
def test_it_is_that_of_float64(dtype: type, scale: float, size: int) -> None:
    numbers, reference = (DRAWN.normal(size=size).astype(dtype) * dtype(scale) for _ in range(2))
    exact = np.sum((numbers.astype(np.float64) - reference.astype(np.float64)) ** 2)
    assert square(numbers, reference) == pytest.approx(exact, rel=1e-4, abs=0.0)


def test_a_small_change_of_large_numbers_is_seen() -> None:
    reference = np.full(SIZE, 1.0, np.float32)
    assert square(reference + np.float32(2**-20), reference) == pytest.approx(SIZE * 2.0**-40, rel=1e-4)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_shows(value: float) -> None:
    numbers = np.zeros(SIZE, np.float32)
    numbers[SIZE - 1] = value
    assert not np.isfinite(square(numbers, np.zeros(SIZE, np.float32)))


def test_a_base_of_another_type_is_held_against_in_float64() -> None:
    assert square(np.ones(3, np.float32), np.full(3, 3.0, np.float64)) == 12.0
