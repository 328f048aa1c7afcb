"""Noise is normal, of the spread that was asked for, fresh every time, and on a grid."""

from __future__ import annotations

import math
import os
import pickle

import numpy as np
import pytest
from scipy import stats

from confed.privacy import noise
from confed.privacy.noise import GaussianNoise


def fixed(monkeypatch: pytest.MonkeyPatch) -> GaussianNoise:
    """A generator with a known key, so that tests of a law do not fail by chance."""
    monkeypatch.setattr(noise.os, "urandom", lambda count: bytes(range(count)))
    return GaussianNoise()


def test_numbers_follow_the_normal_law(monkeypatch: pytest.MonkeyPatch) -> None:
    found = fixed(monkeypatch).normal(400_001)
    assert found.shape == (400_001,)
    assert stats.kstest(found, "norm").pvalue > 0.01
    assert abs(found.mean()) < 0.01
    assert found.std() == pytest.approx(1.0, abs=0.01)
    assert stats.kurtosis(found) == pytest.approx(0.0, abs=0.05)
    # The two halves that one pair of uniforms gives do not go together.
    assert abs(np.corrcoef(found[:200_000], found[200_000:400_000])[0, 1]) < 0.01
    assert np.abs(found).max() < 8.58


def test_no_two_generators_agree_and_no_draw_repeats() -> None:
    one, other = GaussianNoise(), GaussianNoise()
    first = one.normal(100)
    assert not np.array_equal(first, other.normal(100))
    assert not np.array_equal(first, one.normal(100))


def test_numpy_s_global_seed_changes_nothing() -> None:
    draws = []
    for _ in range(2):
        np.random.seed(1)  # noqa: NPY002
        draws.append(GaussianNoise().normal(10))
    assert not np.array_equal(*draws)


@pytest.mark.parametrize("sigma", [1e-6, 0.3, 1.0, 1000.0])
def test_what_comes_out_lies_on_a_grid_that_is_the_same_for_all_inputs(sigma: float) -> None:
    grid = 2.0 ** (math.floor(math.log2(sigma)) - 24)
    for start in (0.0, 1 / 3 * sigma, -12.345 * sigma):
        values = np.full(1000, start)
        GaussianNoise().add_to(values, sigma=sigma)
        assert np.array_equal(values / grid, np.rint(values / grid))


def test_the_spread_is_what_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.full(200_000, 5.0)
    fixed(monkeypatch).add_to(values, sigma=0.25)
    assert values.mean() == pytest.approx(5.0, abs=0.005)
    assert values.std() == pytest.approx(0.25, rel=0.01)


def test_a_coin_falls_as_often_as_it_should(monkeypatch: pytest.MonkeyPatch) -> None:
    coins = fixed(monkeypatch)
    assert sum(coins.coin(0.3) for _ in range(5000)) == pytest.approx(1500, abs=130)
    assert all(coins.coin(1.0) for _ in range(100))


def test_its_key_is_the_operating_system_s_and_does_not_travel(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(noise.os, "urandom", lambda count: asked.append(count) or bytes(count))
    generator = GaussianNoise()
    assert asked == [32]
    with pytest.raises(TypeError):
        pickle.dumps(generator)
    assert os is noise.os
