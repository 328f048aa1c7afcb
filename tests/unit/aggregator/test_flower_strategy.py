"""The enclave's server optimizers are Flower's own, fed with one folded mean."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from aggregator_world import weights_of
from flwr.app import Array, ArrayRecord, Message, MessageType, Metadata, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import FedAdam, FedAvg
from test_fold import contribution

from aggregator.combine.flower_strategy import PERMITTED, ServerOptimizer
from aggregator.combine.fold import combine
from aggregator.combine.weights import Weights
from confed.errors import ManifestMismatchError, NotFiniteError, RefusedError, ShapeError
from confed.experiment.resolution import AGGREGATED_BY
from confed.flower.geometric_median import GeometricMedian
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
    if isinstance(strategy, flower.FedAvgM):  # it keeps its own results from then on
        strategy.current_arrays = ArrayRecord({name: Array(array) for name, array in current.items()})
    for number in range(1, rounds + 1):
        base: Arrays = {name: array.astype(np.float32) for name, array in current.items()}
        if not isinstance(strategy, flower.FedAvgM):
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


YOGI = {"eta": 0.05, "eta_l": 0.1, "beta_1": 0.9, "beta_2": 0.99, "tau": 1e-3}
MEANS: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("FedAvg", {}, ()),
    ("FedProx", {"proximal_mu": 0.1}, ()),
    ("FedAvgM", {}, ()),
    ("FedAvgM", {"server_learning_rate": 0.5}, ()),
    ("FedAvgM", {"server_momentum": 0.9}, ("momentum_vector",)),
    ("FedAvgM", {"server_learning_rate": 0.5, "server_momentum": 0.9}, ("momentum_vector",)),
    ("FedAdam", YOGI, ("m_t", "v_t")),
    ("FedYogi", {}, ("m_t", "v_t")),
    ("FedYogi", YOGI, ("m_t", "v_t")),
    ("FedAdagrad", {}, ("v_t",)),
    ("FedAdagrad", {"eta": 0.05, "eta_l": 0.2, "tau": 1e-2}, ("v_t",)),
]


@pytest.mark.parametrize(("name", "parameters", "state"), MEANS, ids=[f"{row[0]} {row[1]}" for row in MEANS])
def test_a_strategy_of_the_mean_is_flowers_over_rounds(
    name: str, parameters: dict[str, Any], state: tuple[str, ...]
) -> None:
    terms = StrategyTerms(name=name, parameters=parameters)
    theirs = plain_flower(getattr(flower, name)(**parameters), 5)
    for ours, other in zip(enclave(terms, 5), theirs, strict=True):
        assert list(ours) == list(other)
        for tensor, array in ours.items():
            assert array.dtype == np.float32
            np.testing.assert_allclose(array, other[tensor], rtol=1e-6, atol=1e-6)
    base, optimizer = start(), ServerOptimizer(terms)
    kept = optimizer.apply(round_number=1, base=base, mean=trained(base, 1, 1), state={}).state
    assert optimizer.stateful is bool(state)
    assert list(kept) == [f"{attribute}/{tensor}" for attribute in state for tensor in base]


@pytest.mark.parametrize(("name", "parameters", "state"), [row for row in MEANS if row[2]])
def test_a_lost_state_would_show(name: str, parameters: dict[str, Any], state: tuple[str, ...]) -> None:
    optimizer, base = ServerOptimizer(StrategyTerms(name=name, parameters=parameters)), start()
    first = optimizer.apply(round_number=1, base=base, mean=trained(base, 1, 1), state={})
    assert len(first.state) == len(state) * len(base)
    mean = trained(base, 2, 1)
    kept = optimizer.apply(round_number=2, base=base, mean=mean, state=first.state)
    lost = optimizer.apply(round_number=2, base=base, mean=mean, state={})
    assert not np.allclose(kept.arrays["first"], lost.arrays["first"], atol=1e-6)


@pytest.mark.parametrize(
    ("name", "parameters", "field"),
    [
        ("FedXgbBagging", {}, "strategy.name"),
        ("QFedAvg", {}, "strategy.parameters"),
        ("QFedAvg", {"client_learning_rate": "0.1"}, "strategy.client_learning_rate"),
        ("QFedAvg", {"client_learning_rate": 0.0}, "strategy.parameters"),
        ("QFedAvg", {"client_learning_rate": 0.1, "q": -0.1}, "strategy.parameters"),
        ("QFedAvg", {"client_learning_rate": 0.1, "q": 15.5}, "strategy.parameters"),
        ("DifferentialPrivacyServerSideFixedClipping", {}, "strategy.name"),
        ("FedAvg", {"eta": 0.1}, "strategy.eta"),
        ("FedAdagrad", {"beta_1": 0.9}, "strategy.beta_1"),
        ("FedYogi", {"server_momentum": 0.9}, "strategy.server_momentum"),
        ("FedMedian", {"beta": 0.2}, "strategy.beta"),
        ("Krum", {"num_nodes_to_select": 2}, "strategy.num_nodes_to_select"),
        ("Krum", {"num_malicious_nodes": 1.0}, "strategy.num_malicious_nodes"),
        ("MultiKrum", {"num_nodes_to_select": "2"}, "strategy.num_nodes_to_select"),
        ("MultiKrum", {"num_malicious_nodes": True}, "strategy.num_malicious_nodes"),
        ("Bulyan", {"selection_rule": "mine"}, "strategy.selection_rule"),
        ("FedAvg", {"train_metrics_aggr_fn": "mine"}, "strategy.train_metrics_aggr_fn"),
        ("FedTrimmedAvg", {"beta": 0.5}, "strategy.parameters"),
        ("FedTrimmedAvg", {"beta": -0.1}, "strategy.parameters"),
        ("FedAvgM", {"server_momentum": "0.9"}, "strategy.server_momentum"),
        ("GeometricMedian", {"smoothing": 0.0}, "strategy.parameters"),
        ("GeometricMedian", {"tolerance": 1.0}, "strategy.parameters"),
        ("GeometricMedian", {"max_iterations": 0}, "strategy.parameters"),
        ("GeometricMedian", {"max_iterations": 1.5}, "strategy.max_iterations"),
    ],
)
def test_what_the_enclave_does_not_run_is_refused_by_name(name: str, parameters: dict[str, Any], field: str) -> None:
    with pytest.raises(ManifestMismatchError) as refused:
        ServerOptimizer(StrategyTerms(name=name, parameters=parameters))
    assert refused.value.field == field


def test_what_an_experiment_may_name_is_what_the_enclave_permits() -> None:
    assert set(AGGREGATED_BY) == set(PERMITTED)


def test_the_geometric_median_is_not_aggregated_outside_the_enclave() -> None:
    with pytest.raises(RefusedError):
        GeometricMedian().aggregate_train(1, [reply(start(), 1.0)])


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
        StrategyTerms(name="FedXgbBagging", parameters={}),
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


@pytest.mark.parametrize(
    "terms", [StrategyTerms(name=row[0], parameters=row[1]) for row in MEANS], ids=lambda terms: terms.name
)
def test_a_result_that_is_not_finite_is_refused(terms: StrategyTerms) -> None:
    base = start()
    mean = {**base, "scale": np.array(np.inf, dtype=np.float32)}
    with pytest.raises(NotFiniteError), np.errstate(invalid="ignore"):
        ServerOptimizer(terms).apply(round_number=1, base=base, mean=mean, state={})
