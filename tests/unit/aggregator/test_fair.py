"""QFedAvg in the enclave gives what Flower's own class gives from the same updates and losses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from aggregator_world import World, weights_of
from flwr.app import Array, ArrayRecord, Message, MessageType, Metadata, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from hypothesis import given, settings
from hypothesis import strategies as st
from test_fold import contribution
from test_run import candidate_of

from aggregator.combine.flower_strategy import Given, ServerOptimizer
from aggregator.combine.fold import combine
from aggregator.combine.weights import Weights
from confed.errors import NotFiniteError
from confed.manifest import StrategyTerms, UpdateTerms
from confed.model.weights import layout_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

Arrays = dict[str, np.ndarray]


def start() -> Arrays:
    generator = np.random.default_rng(0)
    return {
        "second": generator.normal(size=(4, 3)).astype(np.float32),
        "first": generator.normal(size=6).astype(np.float64),
        "scale": np.array(1.5, dtype=np.float32),
    }


def trained(base: Mapping[str, np.ndarray], seed: int) -> Arrays:
    generator = np.random.default_rng(seed)
    return {
        name: np.asarray(array + generator.normal(size=array.shape) * 0.1, dtype=array.dtype)
        for name, array in base.items()
    }


def flowers(base: Arrays, updates: list[Arrays], losses: list[float], **parameters: Any) -> Arrays:
    """Return what Flower's QFedAvg makes of these, as it is: float64."""
    strategy = flower.QFedAvg(**parameters)
    strategy.current_arrays = ArrayRecord({name: Array(array) for name, array in base.items()})
    replies = []
    for arrays, loss in zip(updates, losses, strict=True):
        content = RecordDict(
            {
                "arrays": ArrayRecord({name: Array(array.copy()) for name, array in arrays.items()}),
                "metrics": MetricRecord({"num-examples": 1, strategy.train_loss_key: loss}),
            }
        )
        replies.append(Message(content, metadata=Metadata(0, "", 0, 0, "", "", 0.0, 1.0, MessageType.TRAIN)))
    arrays, _ = strategy.aggregate_train(1, replies)
    assert arrays is not None
    return {name: array.numpy() for name, array in arrays.items()}


def enclaves(
    base: Arrays, updates: list[Arrays], losses: list[float], *, threads: int = 1, **parameters: Any
) -> Arrays:
    optimizer = ServerOptimizer(StrategyTerms(name="QFedAvg", parameters=parameters))
    key = parameters.get("train_loss_key", "train_loss")
    given_now = Given(round_number=1, state={}, metrics={f"site-{at}": {key: loss} for at, loss in enumerate(losses)})
    contributions = [
        contribution(f"site-{at}", arrays, base, weight=float(at + 1)) for at, arrays in enumerate(updates)
    ]
    combined = combine(
        contributions,
        base=weights_of(base),
        least=1,
        norm_bound=1e6,
        rule=optimizer.rule_for(given_now),
        threads=threads,
    )
    applied = optimizer.apply(round_number=1, base={}, mean=combined.mean.arrays(), state={})
    assert not applied.state
    return Weights.of(applied.arrays, layout_of(base)).restored().arrays()


@settings(max_examples=40, deadline=None)
@given(
    losses=st.lists(st.floats(0.0, 50.0), min_size=1, max_size=8),
    q=st.sampled_from([0.0, 0.1, 0.5, 1.0, 2.0, 5.0]),
    rate=st.floats(1e-3, 10.0),
    threads=st.integers(1, 3),
)
def test_the_result_is_flowers_own_in_the_models_types(
    losses: list[float], q: float, rate: float, threads: int
) -> None:
    base = start()
    updates = [trained(base, seed) for seed in range(len(losses))]
    parameters = {"client_learning_rate": rate, "q": q}
    ours = enclaves(base, updates, losses, threads=threads, **parameters)
    theirs = flowers(base, updates, losses, **parameters)
    assert list(ours) == list(theirs)
    for name, array in ours.items():
        assert array.dtype == base[name].dtype
        np.testing.assert_allclose(array, theirs[name], rtol=2e-6, atol=2e-6)


def test_without_q_it_is_the_mean_without_weights() -> None:
    base = start()
    updates = [trained(base, seed) for seed in range(4)]
    found = enclaves(base, updates, [0.1, 5.0, 0.0, 3.0], client_learning_rate=0.1, q=0.0)
    for name, array in found.items():
        mean = np.mean([update[name] for update in updates], axis=0)
        np.testing.assert_allclose(array, mean, rtol=1e-6, atol=1e-6)


def test_over_rounds_with_a_key_of_the_apps_own() -> None:
    ours, theirs = start(), start()
    parameters = {"client_learning_rate": 0.3, "q": 1.0, "train_loss_key": "mine"}
    for number in range(5):
        losses = [0.5 + site / (number + 1) for site in range(3)]
        ours = enclaves(ours, [trained(ours, 10 * number + site) for site in range(3)], losses, **parameters)
        given_back = {name: array.astype(start()[name].dtype) for name, array in theirs.items()}
        theirs = flowers(
            given_back, [trained(given_back, 10 * number + site) for site in range(3)], losses, **parameters
        )
        for name, array in ours.items():
            np.testing.assert_allclose(array, theirs[name], rtol=1e-5, atol=1e-5)


def test_the_larger_loss_pulls_more() -> None:
    base = start()
    updates = [trained(base, seed) for seed in range(2)]
    first = enclaves(base, updates, [4.0, 1.0], client_learning_rate=1.0, q=2.0)
    second = enclaves(base, updates, [1.0, 4.0], client_learning_rate=1.0, q=2.0)
    to_first = {name: [np.linalg.norm(v[name] - updates[0][name]) for v in (first, second)] for name in base}
    assert to_first["second"][0] < to_first["second"][1]


def test_powers_that_no_number_can_hold_make_no_version() -> None:
    base = start()
    with pytest.raises(NotFiniteError):
        enclaves(base, [trained(base, 1)], [1e300], client_learning_rate=1e-300, q=5.0)


def test_a_sealed_round_reads_the_sealed_losses(tmp_path: Path) -> None:
    terms = StrategyTerms(name="QFedAvg", parameters={"client_learning_rate": 0.5, "q": 1.0})
    cap = UpdateTerms(norm_bound=100.0, weight_cap=1000.0, loss_cap=10.0)
    floats = {name: array for name, array in World(tmp_path / "x").model.items() if array.dtype.kind == "f"}
    world = World(tmp_path / "enclave", strategy=terms, update=cap, model=floats)
    run = world.run()
    run.attest(first_round=1, attempt=0)
    run.open_round(round_number=1, attempt=0, purpose="train")
    for number in (2, 0, 3, 1):
        metrics = {"train_loss": 1.0 + number}
        run.submit(site=f"site-{number}", digest=world.send(number, world.trained(number, floats), metrics=metrics))
    version = world.open_version(candidate_of(run.close_round(absent={})).digest, version=1)
    updates = [world.trained(number, floats) for number in range(4)]
    theirs = flowers(floats, updates, [1.0, 2.0, 3.0, 4.0], client_learning_rate=0.5, q=1.0)
    for name, array in version.items():
        assert array.dtype == floats[name].dtype
        np.testing.assert_allclose(array, theirs[name], rtol=2e-6, atol=2e-6)
