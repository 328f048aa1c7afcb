"""Any network of torch as a served model: its settings, its tensors, and rows that go through it together."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from clients.engines.joining import Joined
from clients.engines.tensors import TorchModule
from clients.tasks.digits import Network
from confed.errors import ConfedError, ConfigError, ShapeError

SETTINGS = {
    "network": "clients.tasks.digits:Network",
    "inputs": "pixels: float32[-1, 64]",
    "outputs": "scores: float32[-1, 10]",
}
PIXELS = np.random.default_rng(3).random((5, 64), dtype=np.float32)


class Twins(torch.nn.Module):
    """Two inputs, two outputs by name, and an argument."""

    def __init__(self, *, wide_by: int = 2) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(wide_by))

    def forward(self, one: torch.Tensor, other: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"sum": one + other.float() * self.weight, "count": other.sum(1)}


TWINS = {
    "network": "test_torch_module:Twins",
    "argument-wide-by": 3,
    "inputs": "one: float32[-1, 3]; other: int64[-1, 3]",
    "outputs": "count: int64[-1]; sum: float32[-1, 3]",
}


def digits() -> tuple[Network, dict[str, np.ndarray]]:
    torch.manual_seed(5)
    network = Network().eval()
    return network, {name: tensor.numpy().copy() for name, tensor in network.state_dict().items()}


def test_a_network_answers_as_in_plain_torch_to_the_last_bit() -> None:
    network, arrays = digits()
    served = TorchModule(arrays, SETTINGS)
    with torch.inference_mode():
        plain = network(torch.from_numpy(PIXELS)).numpy()
    assert served.predict({"pixels": PIXELS})["scores"].tobytes() == plain.tobytes()
    assert served.inputs() == {"pixels": ("float32", (-1, 64))}
    assert served.outputs() == {"scores": ("float32", (-1, 10))}


def test_inputs_go_in_order_and_outputs_come_by_name() -> None:
    served = TorchModule({"weight": np.full(3, 2, dtype=np.float32)}, TWINS)
    frozen = np.frombuffer(np.ones(3, dtype=np.float32).tobytes(), dtype=np.float32).reshape(1, 3)
    made = served.predict({"other": np.arange(3).reshape(1, 3), "one": frozen})
    assert {name: array.tolist() for name, array in made.items()} == {"count": [3], "sum": [[1.0, 3.0, 5.0]]}


BAD_SETTINGS: dict[str, dict[str, Any]] = {
    "no network": {"network": ""},
    "a network that is not there": {"network": "clients.tasks.digits:Nothing"},
    "a module that is not there": {"network": "clients.nowhere:Network"},
    "something else": {"network": "json:loads"},
    "an argument that it does not take": {"argument-depth": 3},
    "no inputs": {"inputs": ""},
    "inputs of no shape": {"inputs": "pixels: float32"},
    "inputs of no type": {"inputs": "pixels: float[-1, 64]"},
    "inputs of another length": {"inputs": "pixels: float32[-2, 64]"},
    "an input twice": {"inputs": "a: float32[-1]; a: float32[-1]"},
    "no rows": {"batch": 0},
    "rows as text": {"batch": "8"},
    "a batch without rows": {"batch": 8, "inputs": "pixels: float32[1, 64]"},
}


@pytest.mark.parametrize("changes", BAD_SETTINGS.values(), ids=BAD_SETTINGS)
def test_settings_that_name_no_network_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        TorchModule(digits()[1], {**SETTINGS, **changes})


def without(arrays: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    return {key: array for key, array in arrays.items() if key != name}


BAD_TENSORS: dict[str, Any] = {
    "one missing": lambda arrays: without(arrays, "output.bias"),
    "one too many": lambda arrays: {**arrays, "extra": arrays["output.bias"]},
    "another shape": lambda arrays: {**arrays, "output.bias": np.zeros(11, dtype=np.float32)},
    "another type": lambda arrays: {**arrays, "output.bias": np.zeros(10, dtype=np.float64)},
}


@pytest.mark.parametrize("change", BAD_TENSORS.values(), ids=BAD_TENSORS)
def test_tensors_that_are_not_the_networks_are_refused(change: Any) -> None:
    with pytest.raises(ShapeError):
        TorchModule(change(digits()[1]), SETTINGS)


@pytest.mark.parametrize(
    "outputs", ["scores: float32[-1, 11]", "scores: float64[-1, 10]", "a: float32[-1]; b: float32[-1]"]
)
def test_outputs_that_are_not_those_of_the_settings_are_refused(outputs: str) -> None:
    with pytest.raises(ShapeError):
        TorchModule(digits()[1], {**SETTINGS, "outputs": outputs}).predict({"pixels": PIXELS})


# Rows together.


def test_rows_of_several_requests_go_through_the_network_together() -> None:
    network, arrays = digits()
    served = TorchModule(arrays, {**SETTINGS, "batch": 64})
    assert isinstance(served._run, Joined)
    running, free = threading.Event(), threading.Event()
    forward = served._run._run

    def held(given: Any) -> Any:
        if not running.is_set():
            running.set()
            free.wait(10)
        return forward(given)

    served._run._run = held
    requests = [PIXELS[: count + 1] for count in range(5)]
    with ThreadPoolExecutor(5) as pool:
        first = pool.submit(served.predict, {"pixels": requests[0]})
        running.wait(10)
        rest = [pool.submit(served.predict, {"pixels": pixels}) for pixels in requests[1:]]
        while len(served._run._waiting) < 4:
            pass
        free.set()
        made = [future.result(20)["scores"] for future in (first, *rest)]
    assert served._run.largest == 4
    with torch.inference_mode():
        for pixels, scores in zip(requests, made, strict=True):
            np.testing.assert_allclose(scores, network(torch.from_numpy(pixels)).numpy(), rtol=1e-5, atol=1e-6)
    assert not served._run._busy


def joined_while_held(calls: list[np.ndarray], *, most_rows: int) -> tuple[list[int], list[Any]]:
    """Rows of each run, and what each call was answered, where all but the first wait for it."""
    running, free, rows = threading.Event(), threading.Event(), list[int]()

    def run(given: Any) -> list[np.ndarray]:
        if not running.is_set():
            running.set()
            free.wait(10)
        rows.append(len(given[0]))
        if (given[0] < 0).any():
            raise ConfedError("negative")
        return [given[0] * 2]

    joined = Joined(run, most_rows=most_rows)
    with ThreadPoolExecutor(len(calls)) as pool:
        futures = [pool.submit(joined, [calls[0]])]
        running.wait(10)
        for number, call in enumerate(calls[1:], 1):
            futures.append(pool.submit(joined, [call]))
            while len(joined._waiting) < number:
                pass
        free.set()
        answers = [future.exception(20) or future.result()[0].tolist() for future in futures]
    return rows, answers


def test_no_more_rows_than_may_be_and_no_rows_of_another_shape_go_together() -> None:
    narrow, wide = np.ones((2, 3)), np.ones((2, 4))
    rows, answers = joined_while_held([narrow, narrow, wide, narrow, narrow], most_rows=4)
    assert rows == [2, 4, 2, 2]
    assert [len(answer[0]) for answer in answers] == [3, 3, 4, 3, 3]


def test_rows_that_fail_fail_nobody_elses() -> None:
    good, bad = np.ones((1, 2)), -np.ones((1, 2))
    _, answers = joined_while_held([good, good, bad, good], most_rows=8)
    assert [isinstance(answer, ConfedError) for answer in answers] == [False, False, True, False]
