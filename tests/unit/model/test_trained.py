"""What of a model travels, under which names, and what is refused by its tensor's name."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as any_array

from confed.errors import ConfigError, ShapeError
from confed.model.bfloat16 import narrowed, widened
from confed.model.trained import Trained, names_of
from confed.model.weights import BFLOAT16, layout_of

MODEL = {
    "embed.weight": np.ones((4, 3), np.float32),
    "body.weight": np.ones((3, 3), np.float16),
    "body.steps": np.array(7),
    "head.weight": np.ones((4, 3), np.float32),
    "head.bias": np.zeros(4, np.float32),
    "head.mask": np.array([True, False]),
}
LAYOUT = layout_of(MODEL)
TIED = (("embed.weight", "head.weight"),)


@pytest.mark.parametrize(
    ("patterns", "groups", "names", "tied"),
    [
        (("*",), (), ("embed.weight", "body.weight", "head.weight", "head.bias"), {}),
        (("head.*",), (), ("head.weight", "head.bias"), {}),
        (("head.bias", "head.*"), (), ("head.weight", "head.bias"), {}),
        (("*",), TIED, ("embed.weight", "body.weight", "head.bias"), {"head.weight": "embed.weight"}),
        (("head.*",), TIED, ("embed.weight", "head.bias"), {"head.weight": "embed.weight"}),
        (("body.*",), TIED, ("body.weight",), {"head.weight": "embed.weight"}),
    ],
)
def test_patterns_become_the_names_of_floating_tensors_in_the_model_s_order(patterns, groups, names, tied):
    assert names_of(LAYOUT, patterns=patterns, groups=groups) == (names, tied)


@pytest.mark.parametrize(
    ("sentence", "patterns", "groups", "field"),
    [
        ("a pattern that nothing has", ("hat.*",), (), "model.trained"),
        ("a pattern that only a counter has", ("body.steps",), (), "model.trained"),
        ("a group of one", ("*",), (("head.bias",),), "model.tied"),
        ("a group that names one twice", ("*",), (("head.bias", "head.bias"),), "model.tied"),
        ("a group of a stranger", ("*",), (("head.bias", "hat"),), "model.tied"),
        ("a name in two groups", ("*",), (*TIED, ("head.weight", "head.bias")), "model.tied"),
    ],
)
def test_is_refused_by_the_name_of_its_key(sentence, patterns, groups, field):
    with pytest.raises(ConfigError) as refused:
        names_of(LAYOUT, patterns=patterns, groups=groups)
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("sentence", "names", "tied", "named"),
    [
        ("a name that the model does not have", ("hat",), {}, "hat"),
        ("a counter that is trained", ("body.steps",), {}, "body.steps"),
        ("a flag that is trained", ("head.mask",), {}, "head.mask"),
        ("tied to a stranger", ("head.bias",), {"head.bias": "hat"}, "hat"),
        ("tied to one of another shape", ("head.bias",), {"head.weight": "head.bias"}, "head.weight"),
        ("tied to one of another type", ("body.weight",), {"head.weight": "body.weight"}, "head.weight"),
    ],
)
def test_a_model_that_the_manifest_does_not_fit_is_refused(sentence, names, tied, named):
    with pytest.raises(ShapeError) as refused:
        Trained.of(LAYOUT, names=names, tied=tied)
    assert refused.value.field == f"tensor {named}"


def test_what_is_tied_travels_once_and_must_be_equal():
    names, tied = names_of(LAYOUT, patterns=("head.*",), groups=TIED)
    trained = Trained.of(LAYOUT, names=names, tied=tied)
    assert list(trained.taken(MODEL)) == ["embed.weight", "head.bias"]
    assert trained.part.total_bytes < LAYOUT.total_bytes
    apart = {**MODEL, "head.weight": np.zeros((4, 3), np.float32)}
    for check in (trained.taken, trained.require_tied):
        check(MODEL)
        with pytest.raises(ShapeError) as refused:
            check(apart)
        assert refused.value.field == "tensor head.weight"


def test_a_part_of_everything_is_the_model_s_own_layout():
    floats = {name: array for name, array in MODEL.items() if array.dtype.kind == "f"}
    layout = layout_of(floats)
    assert Trained.of(layout, names=tuple(reversed(floats)), tied={}).part == layout


@given(any_array(np.float32, st.integers(0, 20), elements=st.floats(-(2.0**127), 2.0**127, width=32)))
def test_bfloat16_is_the_nearest(numbers):
    bits = narrowed(numbers)
    assert bits.dtype == BFLOAT16
    assert (narrowed(widened(bits)) == bits).all()
    ulp = np.maximum(np.abs(numbers), 2.0**-126) * 2.0**-8
    finite = np.abs(numbers) < 3.3e38
    assert (np.abs(widened(bits).astype(np.float64) - numbers)[finite] <= ulp.astype(np.float64)[finite]).all()


def test_bfloat16_ties_go_to_even_and_the_too_large_to_infinity():
    found = widened(narrowed(np.array([1.00390625, 1.01171875, 3.4e38, -0.0], np.float32)))
    assert found.tolist() == [1.0, 1.015625, np.inf, 0.0]
    assert np.signbit(found[3])
    assert narrowed(np.array(1.5, np.float32)).shape == ()
