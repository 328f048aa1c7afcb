"""What a client may give back, and what its update says in clear."""

import numpy as np
import pytest

from confed.client.result import _in_base_order, _norm
from confed.errors import ShapeError

BASE = {"w": np.zeros((2, 3), np.float32), "scale": np.float32(1).reshape(()), "count": np.array(3)}


def changed(**arrays):
    return {**BASE, **arrays}


def test_tensors_come_back_in_the_base_s_order_with_their_shapes():
    trained = {"count": np.array(4), "scale": np.float32(2).reshape(()), "w": np.ones((2, 3), np.float32).T.copy().T}
    ordered = _in_base_order(trained, BASE)
    assert list(ordered) == ["w", "scale", "count"]
    assert ordered["scale"].shape == ()
    assert ordered["w"].flags["C_CONTIGUOUS"]


@pytest.mark.parametrize(
    ("sentence", "arrays"),
    [
        ("a missing tensor is refused", {"w": BASE["w"]}),
        ("a further tensor is refused", changed(more=np.zeros(1))),
        ("another shape is refused", changed(w=np.zeros((3, 2), np.float32))),
        ("another type is refused", changed(w=np.zeros((2, 3), np.float64))),
        ("a dimension more is refused", changed(scale=np.ones(1, np.float32))),
    ],
)
def test_other_tensors_are_refused(sentence, arrays):
    with pytest.raises(ShapeError):
        _in_base_order(arrays, BASE)


def test_the_norm_is_that_of_the_difference_over_floating_tensors():
    trained = changed(w=np.full((2, 3), 2, np.float32), scale=np.float32(2).reshape(()), count=np.array(100))
    assert _norm(trained, BASE) == pytest.approx((6 * 4 + 1) ** 0.5)
