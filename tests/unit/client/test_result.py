"""What a client may give back, and what its update says in clear."""

import numpy as np
import pytest

from confed.client.result import norm_of
from confed.errors import ShapeError
from confed.model.bfloat16 import narrowed
from confed.model.trained import Trained
from confed.model.weights import layout_of

BASE = {"w": np.zeros((2, 3), np.float32), "scale": np.float32(1).reshape(()), "count": np.array(3)}
TRAINED = Trained.of(layout_of(BASE), names=("w", "scale"), tied={})


def changed(**arrays):
    return {**BASE, **arrays}


def test_what_travels_comes_in_the_base_s_order_with_its_shapes():
    given = {"count": np.array(4), "scale": np.float32(2).reshape(()), "w": np.ones((2, 3), np.float32).T.copy().T}
    taken = TRAINED.taken(given)
    assert list(taken) == ["w", "scale"]
    assert taken["scale"].shape == ()
    assert taken["w"].flags["C_CONTIGUOUS"]
    given.pop("count")
    assert list(TRAINED.taken(given)) == ["w", "scale"]


@pytest.mark.parametrize(
    ("sentence", "arrays", "named"),
    [
        ("a missing tensor is refused", {"w": BASE["w"]}, "scale"),
        (
            "a missing tensor beside one that does not travel is refused",
            {"w": BASE["w"], "count": np.array(3)},
            "count",
        ),
        ("a further tensor is refused", changed(more=np.zeros(1)), "more"),
        ("another shape is refused", changed(w=np.zeros((3, 2), np.float32)), "w"),
        ("another type is refused", changed(w=np.zeros((2, 3), np.float64)), "w"),
        ("a dimension more is refused", changed(scale=np.ones(1, np.float32)), "scale"),
    ],
)
def test_other_tensors_are_refused(sentence, arrays, named):
    with pytest.raises(ShapeError) as refused:
        TRAINED.taken(arrays)
    assert refused.value.field == f"tensor {named}"


def test_the_norm_is_that_of_the_difference_over_what_travels():
    given = changed(w=np.full((2, 3), 2, np.float32), scale=np.float32(2).reshape(()), count=np.array(100))
    assert norm_of(TRAINED, TRAINED.taken(given), BASE) == pytest.approx((6 * 4 + 1) ** 0.5)


def test_the_norm_of_bfloat16_is_that_of_its_numbers():
    base = {"w": narrowed(np.array([1.0, -2.0], np.float32)), "frozen": np.zeros(2, np.float16)}
    trained = Trained.of(layout_of(base), names=("w",), tied={})
    assert norm_of(trained, trained.taken({"w": np.array([4.0, 2.0], np.float32)}), base) == 5.0
