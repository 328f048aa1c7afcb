"""The enclave's server optimizers are Flower's own, fed with one folded mean."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from aggregator_world import weights_of
from flwr.app import Array, ArrayRecord, Message, MessageType, Metadata, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdam, FedAvg
from test_fold import contribution

from aggregator.combine.flower_strategy import ServerOptimizer
from aggregator.combine.fold import Weights, combine
from confed.errors import ManifestMismatchError, NotFiniteError, ShapeError
from confed.manifest import StrategyTerms
from confed.model.weights import layout_of, pack, unpack

Arrays = dict[str, np.ndarray]
ADAM = StrategyTerms(name="FedAdam", parameters={"eta": 0.05, "eta_l": 0.1, "beta_1": 0.9, "beta_2": 0.99, "tau": 1e-3})


def start() -> Arrays:
    generator = np.random.default_rng(0)
    return {
        "second": generator.normal(size=(4, 3)).astype(np.float32),
        "first": generator.normal(size=6).astype(np.float32),
        "scale": np.array(1.5, dtype=np.float32),
    }


def trained(base: Arrays, round_number: int, site: int) -> Arrays:
    generator = np.random.default_rng(1000 * round_number + site)
    return {
        name: np.asarray(array + generator.normal(size=array.shape) * 0.1, dtype=np.float32)
        for name, array in base.items()
    }


def reply(arrays: Arrays, weight: float) -> Message:
    content = RecordDict(
        {
            "arrays": ArrayRecord({name: Array(array) for name, array in arrays.items()}),
            "metrics": MetricRecord({"num-examples": weight}),
        }
    )
    return Message(content, metadata=Metadata(0, "", 0, 0, "", "", 0.0, 1.0, MessageType.TRAIN))


def plain_flower(strategy: FedAvg, rounds: int) -> list[Arrays]:
    """Run Flower's own strategy; its clients are given the model's own types, as torch would."""
    versions, current = [start()], start()
    for number in range(1, rounds + 1):
        base: Arrays = {name: array.astype(np.float32) for name, array in current.items()}
        strategy.current_arrays = current  # type: ignore[attr-defined]
        replies = [reply(trained(base, number, site), float(site + 1)) for site in range(3)]
        arrays, _ = strategy.aggregate_train(number, replies)
        assert arrays is not None
        current = {name: array.numpy() for name, array in arrays.items()}
        versions.append(current)
    return versions


def enclave(terms: StrategyTerms, rounds: int) -> list[Arrays]:
    """Do the same through fold, optimizer, and a state that is packed and unpacked between rounds."""
    versions, current, state = [start()], start(), dict[str, Any]()
    for number in range(1, rounds + 1):
        base = weights_of(current)
        contributions = [
            contribution(f"site-{site}", trained(current, number, site), current, weight=float(site + 1))
            for site in range(3)
        ]
        combined = combine(contributions, base=base, least=3, norm_bound=100.0)
        applied = ServerOptimizer(terms).apply(
            round_number=number, base=base.numbers().arrays(), mean=combined.mean.arrays(), state=state
        )
        packed = b"".join(bytes(part) for part in pack(applied.state))
        state = unpack(packed) if applied.state else {}
        current = Weights.of(applied.arrays, layout_of(current)).restored().arrays()
        versions.append(current)
    return versions


def test_fedavg_is_flowers_to_the_bit_over_rounds() -> None:
    for ours, theirs in zip(
        enclave(StrategyTerms(name="FedAvg", parameters={}), 4), plain_flower(FedAvg(), 4), strict=True
    ):
        assert list(ours) == list(theirs)
        assert all(ours[name].tobytes() == theirs[name].tobytes() for name in ours)


def test_fedadam_is_flowers_over_rounds_with_its_state_sealed_between_them() -> None:
    theirs = plain_flower(FedAdam(eta=0.05, eta_l=0.1, beta_1=0.9, beta_2=0.99, tau=1e-3), 5)
    for ours, other in zip(enclave(ADAM, 5), theirs, strict=True):
        assert list(ours) == list(other)
        for name, array in ours.items():
            assert array.dtype == np.float32
            np.testing.assert_allclose(array, other[name], rtol=0, atol=1e-6)


def test_fedadam_without_its_state_is_another_optimizer() -> None:
    optimizer, base = ServerOptimizer(ADAM), start()
    mean = trained(base, 1, 1)
    first = optimizer.apply(round_number=1, base=base, mean=mean, state={})
    kept = optimizer.apply(round_number=2, base=base, mean=mean, state=first.state)
    lost = optimizer.apply(round_number=2, base=base, mean=mean, state={})
    assert not np.allclose(kept.arrays["first"], lost.arrays["first"], atol=1e-6)


@pytest.mark.parametrize(
    "terms",
    [
        StrategyTerms(name="FedMedian", parameters={}),
        StrategyTerms(name="Strategy", parameters={}),
        StrategyTerms(name="", parameters={}),
        StrategyTerms(name="FedAvg", parameters={"eta": 0.1}),
        StrategyTerms(name="FedAdam", parameters={"momentum": 0.1}),
    ],
    ids=lambda terms: f"{terms.name} {dict(terms.parameters)}",
)
def test_an_unknown_strategy_or_parameter_is_refused(terms: StrategyTerms) -> None:
    with pytest.raises(ManifestMismatchError):
        ServerOptimizer(terms)


def test_a_state_that_does_not_fit_is_refused() -> None:
    optimizer, base = ServerOptimizer(ADAM), start()
    state = dict(optimizer.apply(round_number=1, base=base, mean=base, state={}).state)
    for wrong in (
        dict(list(state.items())[:-1]),
        dict(reversed(state.items())),
        {**state, "m_t/first": np.zeros(5, dtype=np.float32)},
    ):
        with pytest.raises(ShapeError):
            optimizer.apply(round_number=2, base=base, mean=base, state=wrong)


@pytest.mark.parametrize("terms", [ADAM, StrategyTerms(name="FedAvg", parameters={})], ids=lambda terms: terms.name)
def test_a_result_that_is_not_finite_is_refused(terms: StrategyTerms) -> None:
    base = start()
    mean = {**base, "scale": np.array(np.inf, dtype=np.float32)}
    with pytest.raises(NotFiniteError), np.errstate(invalid="ignore"):
        ServerOptimizer(terms).apply(round_number=1, base=base, mean=mean, state={})
