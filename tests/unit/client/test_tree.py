"""What a training loop keeps, taken apart and put together again, to the bit."""

from __future__ import annotations

import math
import random
from collections import OrderedDict

import numpy as np
import pytest
import torch

from confed import canonical
from confed.client.tree import Tree
from confed.errors import ConfedError, EncodingError
from confed.model.weights import pack


def again(state):
    return Tree.parse(bytearray(b"".join(Tree.of(state).parts)))


def test_numbers_and_text_keep_their_types():
    state = {
        "none": None, "true": True, "int": -(2**70), "one": 1.0, "small": 5e-324, "inf": math.inf, 3: "a key that is a number",
        "nested": [1, (2.5, [False])], "text": 'ä"\\\n', "empty": {},
    }  # fmt: skip
    found = again(state)
    assert found == state
    assert [type(value) for value in found.values()] == [type(value) for value in state.values()]
    assert type(found["nested"][1]) is tuple
    assert math.isnan(again({"nan": math.nan})["nan"])


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
)
def test_tensors_keep_their_bits(dtype):
    for tensor in (torch.randn(3, 4).to(dtype), torch.zeros((), dtype=dtype), torch.randn(4, 6).t().to(dtype)[:2]):
        found = again({"t": [tensor]})["t"][0]
        assert (found.dtype, found.shape) == (dtype, tensor.shape)
        assert torch.equal(found, tensor)


def test_arrays_keep_their_bits_and_the_generators_their_states():
    state = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}  # noqa: NPY002
    drawn = random.random(), np.random.rand(), torch.rand(2)  # noqa: NPY002
    found = again(state)
    random.setstate(found["python"])
    np.random.set_state(found["numpy"])  # noqa: NPY002
    torch.set_rng_state(found["torch"])
    assert (random.random(), np.random.rand()) == drawn[:2]  # noqa: NPY002
    assert torch.equal(torch.rand(2), drawn[2])


def test_an_optimizer_goes_on_where_it_was():
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.5)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    found = again(OrderedDict(model=model.state_dict(), optimizer=optimizer.state_dict()))
    other = torch.nn.Linear(3, 2)
    other.load_state_dict(found["model"])
    second = torch.optim.SGD(other.parameters(), lr=0.5)
    second.load_state_dict(found["optimizer"])
    for one, its in ((model, optimizer), (other, second)):
        its.zero_grad()
        one(torch.ones(1, 3)).sum().backward()
        its.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_a_copy_is_apart_from_what_goes_on_changing_and_costs_no_new_memory():
    tensor, room = torch.ones(4), {}
    first = Tree.of({"t": tensor}).copied(room)
    tensor.add_(1)
    assert Tree.parse(bytearray(b"".join(first.parts)))["t"].tolist() == [1.0] * 4
    second = Tree.of({"t": tensor}).copied(room)
    assert second.tensors["0"] is first.tensors["0"]
    assert Tree.parse(bytearray(b"".join(second.parts)))["t"].tolist() == [2.0] * 4


REFUSED = {
    "an object": object(),
    "a function": {"f": len},
    "bytes": [b"secret"],
    "a set": {1, 2},
    "a complex tensor": torch.zeros(1, dtype=torch.complex64),
}


@pytest.mark.parametrize("state", REFUSED.values(), ids=REFUSED)
def test_what_is_no_data_is_refused_by_its_type_alone(state):
    with pytest.raises(EncodingError) as refused:
        Tree.of(state).parts  # noqa: B018
    assert "secret" not in str(refused.value)


def test_what_is_too_deep_is_refused():
    state = []
    for _ in range(100):
        state = [state]
    with pytest.raises(EncodingError):
        Tree.of(state)


WRITTEN = {
    "another kind": {"pickle": "x"},
    "two kinds": {"int": "1", "float": "0x1p0"},
    "a bare number": 3,
    "no number": {"int": "x"},
    "a tensor that is not there": {"torch": "9"},
    "a map of no pairs": {"map": [["a"]]},
    "a list for a key": {"map": [[{"list": []}, None]]},
}


@pytest.mark.parametrize("node", WRITTEN.values(), ids=WRITTEN)
def test_bytes_of_anything_else_are_refused(node):
    data = b"".join(pack({"structure": np.frombuffer(canonical.encode(node), dtype=np.uint8)}))
    with pytest.raises(EncodingError):
        Tree.parse(bytearray(data))


def test_a_file_without_structure_is_refused():
    for arrays in ({"w": np.ones(2)}, {"structure": np.ones(2)}):
        with pytest.raises(ConfedError):
            Tree.parse(bytearray(b"".join(pack(arrays))))
