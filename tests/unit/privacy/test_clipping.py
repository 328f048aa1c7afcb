"""What is left of an update, and where the clip norm goes."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confed.privacy.clipping import factor, next_clip
from confed.privacy.terms import AdaptiveClip, FixedClip

ADAPTIVE = AdaptiveClip(initial=1.0, quantile=0.5, learning_rate=0.2, count_noise=1.0)


def test_a_small_update_counts_whole_and_a_large_one_in_part() -> None:
    assert factor(0.5, 1.0) == 1.0
    assert factor(0.0, 1.0) == 1.0
    assert factor(4.0, 1.0) == pytest.approx(0.25, rel=3e-3)


@given(st.floats(0, 1e6), st.floats(1e-6, 1e3), st.floats(-1, 1))
def test_a_false_norm_within_the_tolerance_gains_nothing(true: float, clip: float, lie: float) -> None:
    declared = max(0.0, true * (1 + 1e-3 * lie) + 1e-6 * lie)  # what the pass over an update lets through
    assert factor(declared, clip) * true <= clip * (1 + 1e-12)


def test_a_fixed_clip_norm_stays() -> None:
    assert next_clip(FixedClip(norm=2.0), 2.0, noised_within=-3.0, expected=10.0, norm_bound=9.0) == 2.0


def test_an_adaptive_clip_norm_follows_the_quantile() -> None:
    def following(within: int, of: int = 10) -> float:
        return next_clip(ADAPTIVE, 1.0, noised_within=within - of / 2, expected=of, norm_bound=1.05)

    assert following(10) == pytest.approx(math.exp(-0.2 * 0.5))
    assert following(5) == pytest.approx(1.0)
    assert following(0) == 1.05, "never above the bound of norms"


def test_a_clip_norm_is_never_nothing() -> None:
    assert next_clip(ADAPTIVE, 1e-9, noised_within=1000.0, expected=1.0, norm_bound=1.0) == 1e-9
