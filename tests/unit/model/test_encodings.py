"""Each encoding has one size and one accepted form, and loses no more than it says."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from confed.compression import CompressionTerms
from confed.errors import CompressionError
from confed.model.encodings import INT8_BLOCK, encoding_of


def of(name, fraction=None):
    return encoding_of(CompressionTerms(name=name, fraction=fraction, feedback=False))


ALL = {"bf16": of("bf16"), "int8": of("int8"), "top-k": of("top-k", 0.1), "top half": of("top-k", 0.5)}
NUMBERS = arrays(np.float32, st.integers(0, 3000), elements=st.floats(-(2.0**100), 2.0**100, width=32))


def there_and_back(name, numbers, seed=1):
    encoded = ALL[name].encode(numbers, np.random.default_rng(seed))
    assert encoded.size == ALL[name].size_bytes(numbers.size)
    return ALL[name].decode(encoded, numbers.size)


@given(NUMBERS)
def test_bf16_is_within_a_256th(numbers):
    found = there_and_back("bf16", numbers)
    assert (np.abs(found - numbers) <= np.maximum(np.abs(numbers), 2.0**-118) / 256).all()


@given(NUMBERS)
def test_int8_is_within_a_step_of_its_block(numbers):
    found = there_and_back("int8", numbers)
    for start in range(0, numbers.size, INT8_BLOCK):
        block = slice(start, start + INT8_BLOCK)
        step = np.abs(numbers[block]).max() / 127
        assert (np.abs(found[block] - numbers[block]) <= step * 1.0001 + 2.0**-140).all()


def test_int8_is_right_in_the_mean():
    numbers = np.random.default_rng(0).normal(size=2000).astype(np.float32)
    mean = np.mean([there_and_back("int8", numbers, seed) for seed in range(400)], axis=0)
    step = np.abs(numbers).max() / 127
    nearest = np.round(numbers / step) * step
    assert np.abs(mean - numbers).max() < step / 8
    assert np.abs(mean - numbers).mean() < np.abs(nearest - numbers).mean() / 5


@given(NUMBERS)
def test_top_k_keeps_the_largest_exactly(numbers):
    found = there_and_back("top-k", numbers)
    chosen = math.ceil(0.1 * numbers.size)
    assert (found != 0).sum() <= chosen
    kept = np.flatnonzero(found)
    assert (found[kept] == numbers[kept]).all()
    left = np.abs(numbers[found == 0])
    if kept.size and left.size:
        assert left.max() <= np.abs(numbers[kept]).min()
    assert math.isclose(np.sort(np.abs(found))[-chosen:].sum(), np.sort(np.abs(numbers))[-chosen:].sum(), rel_tol=1e-5)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("count", [0, 1, 9, 1023, 1024, 1025, 4000])
def test_zeros_come_back_as_zeros_in_their_size(name, count):
    assert not there_and_back(name, np.zeros(count, np.float32)).any()


@pytest.mark.parametrize("name", ALL)
def test_more_numbers_never_take_fewer_bytes(name):
    sizes = [ALL[name].size_bytes(count) for count in range(5000)]
    assert sizes == sorted(sizes)


def with_scale(value):
    def change(encoded):
        encoded[4:8] = np.frombuffer(np.float32(value).tobytes(), np.uint8)

    return "int8", change


def with_indices(*indices):
    def change(encoded):
        encoded[: 4 * len(indices)] = np.frombuffer(np.array(indices, "<u4").tobytes(), np.uint8)

    return "top-k", change


def with_step(encoded):
    encoded[-1] = 0x80


@pytest.mark.parametrize(
    ("sentence", "change"),
    [
        ("a scale that is NaN", with_scale(np.nan)),
        ("a scale that is infinite", with_scale(np.inf)),
        ("a scale below 0", with_scale(-1.0)),
        ("a step that no encoder writes", ("int8", with_step)),
        ("an index twice", with_indices(3, 3)),
        ("indices that fall", with_indices(3, 2)),
        ("an index beyond all numbers", with_indices(*range(149), 1500)),
        ("an index far beyond", with_indices(*range(149), 2**32 - 1)),
        ("an index far beyond in the middle", with_indices(2**31)),
    ],
)
def test_is_refused(sentence, change):
    name, change = change
    numbers = np.random.default_rng(1).normal(size=1500).astype(np.float32)
    encoded = ALL[name].encode(numbers, np.random.default_rng(2))
    ALL[name].decode(encoded, 1500)
    change(encoded)
    with pytest.raises(CompressionError):
        ALL[name].decode(encoded, 1500)
