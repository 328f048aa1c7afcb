"""Figures are told with the interval that they lie in: it has to hold what it says."""

from __future__ import annotations

import random

import pytest

from benchmarks.paired import difference, in_turns, of, ratio


def test_noise_that_meets_both_of_a_pair_leaves_their_ratio():
    noise = [1.0, 9.0, 2.0, 5.0, 30.0, 1.0, 4.0]
    found = ratio([1.5 * each for each in noise], noise)
    assert (found.median, found.low, found.high) == (1.5, 1.5, 1.5)
    assert difference([each + 1 for each in noise], noise).median == 1.0
    assert found.told() == "1.500 (1.500 to 1.500, 7 pairs)"


@pytest.mark.parametrize(("count", "place"), [(3, 0), (6, 0), (9, 1), (15, 3), (25, 7)])
def test_the_interval_lies_between_the_values_that_tables_of_the_sign_test_name(count, place):
    found = of([float(value) for value in range(count)])
    assert (found.low, found.high) == (place, count - 1 - place)


def test_the_interval_holds_the_median_nineteen_times_of_twenty():
    generator = random.Random(1)
    drawn = [of([generator.expovariate(1.0) for _ in range(15)]) for _ in range(2000)]
    held = sum(found.low <= 0.6931 <= found.high for found in drawn) / len(drawn)
    assert held >= 0.95


def test_ways_take_turns_and_each_begins_as_often():
    called: list[str] = []
    found = in_turns([lambda: called.append("a"), lambda: called.append("b")], turns=4, warm=1)
    assert called == ["a", "b", "b", "a"] * 2 + ["a", "b"]
    assert [len(way) for way in found] == [4, 4]
