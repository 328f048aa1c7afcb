"""What the governor checks before it starts: that its app asks for what the manifest says, parameter by parameter."""

from dataclasses import replace

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord, RecordDict
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import (
    Bulyan,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedYogi,
    Krum,
    MultiKrum,
    QFedAvg,
)
from flwr.serverapp.strategy.multikrum import compute_distances

from aggregator.combine.flower_strategy import ServerOptimizer
from confed.errors import ConfigError, ManifestMismatchError, MissingFileError
from confed.flower.fed_buff import FedBuff
from confed.flower.geometric_median import GeometricMedian
from confed.governor.agreement import catch_start, require_same, strategy_parameters
from confed.governor.strategy import ConfidentialStrategy, _reference, sealed_digest
from confed.manifest import StrategyTerms
from tests.unit.test_manifest import make


def caught(strategy=None, **arguments):
    app = ServerApp()

    @app.main()
    def main(grid, context):
        ConfidentialStrategy(strategy or FedAvg()).start(grid=grid, initial_arrays=ArrayRecord(), **arguments)

    context = Context(run_id=0, node_id=0, node_config={}, state=RecordDict(), run_config={})
    return catch_start(lambda: app(grid=None, context=context))


def agreed(**changes):
    start = caught(FedAdam(eta=0.2), num_rounds=3, train_config=ConfigRecord({"lr": 0.1}))
    manifest = make(
        rounds=3,
        strategy=StrategyTerms(name=start.name, parameters=start.parameters),
        train_config=start.train_config,
        evaluate_config=start.evaluate_config,
    )
    return replace(start, **changes), manifest


def test_what_an_app_asks_for_is_caught_before_anything_runs():
    start, manifest = agreed()
    assert (start.name, start.rounds, dict(start.train_config)) == ("FedAdam", 3, {"lr": 0.1})
    assert start.parameters["eta"] == 0.2
    assert "train_metrics_aggr_fn" not in start.parameters
    require_same(start, manifest)


def test_every_parameter_of_the_strategy_is_compared_by_name():
    start, manifest = agreed()
    for name, value in start.parameters.items():
        other = {**start.parameters, name: "other" if isinstance(value, str) else (value or 0) + 1}
        with pytest.raises(ManifestMismatchError) as refused:
            require_same(replace(start, parameters=other), manifest)
        assert refused.value.field == f"strategy.{name}"


@pytest.mark.parametrize(
    ("sentence", "changes", "field"),
    [
        ("another strategy is refused", {"name": "FedAvg"}, "strategy"),
        ("other rounds are refused", {"rounds": 4}, "num_rounds"),
        ("another train config is refused", {"train_config": {"lr": 0.2}}, "train_config"),
        ("a further train config is refused", {"train_config": {"lr": 0.1, "x": 1}}, "train_config"),
        ("another evaluate config is refused", {"evaluate_config": {"x": 1}}, "evaluate_config"),
        ("a missing parameter is refused", {"parameters": {}}, "strategy.arrayrecord_key"),
    ],
)
def test_a_difference_from_the_manifest_is_refused_by_its_name(sentence, changes, field):
    start, manifest = agreed(**changes)
    with pytest.raises(ManifestMismatchError) as refused:
        require_same(start, manifest)
    assert refused.value.field == field


def test_a_function_of_the_app_s_own_cannot_run_in_the_enclave():
    with pytest.raises(ConfigError) as refused:
        strategy_parameters(FedAvg(evaluate_metrics_aggr_fn=lambda records, key: MetricRecord()))
    assert refused.value.field == "strategy.evaluate_metrics_aggr_fn"


def test_bulyans_own_selection_is_named_by_nothing_and_another_cannot_run_in_the_enclave():
    parameters = strategy_parameters(Bulyan(num_malicious_nodes=1))
    assert parameters["num_malicious_nodes"] == 1
    assert "selection_rule" not in parameters
    for other in (lambda contents, faulty, select: contents, compute_distances):
        with pytest.raises(ConfigError) as refused:
            strategy_parameters(Bulyan(selection_rule=other))
        assert refused.value.field == "strategy.selection_rule"


@pytest.mark.parametrize(
    "strategy", [FedAvgM(), FedProx(), QFedAvg(client_learning_rate=0.1), FedBuff(buffer_size=2, max_staleness=1), FedYogi(), FedAdagrad(), FedMedian(), FedTrimmedAvg(), Krum(), MultiKrum(),
                 Bulyan(), GeometricMedian()], ids=lambda strategy: type(strategy).__name__
)  # fmt: skip
def test_every_strategy_s_parameters_can_be_named(strategy):
    start = caught(strategy, num_rounds=3)
    assert start.name == type(strategy).__name__
    assert ServerOptimizer(StrategyTerms(name=start.name, parameters=start.parameters))


class Own(FedAvg):
    def __init__(self, power=1.0, **others):
        super().__init__(**others)
        self.power = power


class OwnAverage(FedAvg):
    def __init__(self, power):
        super().__init__(fraction_train=0.5)
        self.power = power


class Nameless(FedAvg):
    def __init__(self, power):
        super().__init__()
        self._power = power


def test_a_class_of_one_s_own_is_named_by_its_module_and_all_its_parameters_by_name():
    start = caught(Own(power=2.0, min_train_nodes=3), num_rounds=3)
    assert start.name == f"{__name__}:Own"
    assert start.parameters["power"] == 2.0
    assert start.parameters["min_train_nodes"] == 3
    assert start.parameters["fraction_train"] == 1.0
    manifest = make(rounds=3, strategy=StrategyTerms(name="FedAvg", parameters=start.parameters))
    with pytest.raises(ManifestMismatchError) as refused:
        require_same(start, manifest)
    assert refused.value.field == "strategy"


def test_a_class_of_one_s_own_is_not_taken_for_flowers_of_the_same_name():
    mine = type("FedAvg", (FedAvg,), {"__module__": __name__})
    assert caught(mine(), num_rounds=3).name == f"{__name__}:FedAvg"


@pytest.mark.parametrize(
    ("strategy", "field"), [(OwnAverage(1.0), "strategy.fraction_train"), (Nameless(1.0), "strategy.power")]
)
def test_a_class_of_one_s_own_whose_settings_cannot_be_named_is_refused(strategy, field):
    with pytest.raises(ConfigError) as refused:
        strategy_parameters(strategy)
    assert refused.value.field == field


def test_an_app_that_starts_nothing_confidential_is_refused():
    with pytest.raises(ConfigError):
        catch_start(lambda: None)


def test_a_server_side_evaluation_is_refused():
    with pytest.raises(ConfigError) as refused:
        caught(evaluate_fn=lambda number, arrays: None)
    assert refused.value.field == "evaluate_fn"


def test_without_a_launch_document_nothing_starts(monkeypatch):
    monkeypatch.delenv("CONFED_GOVERNOR", raising=False)
    with pytest.raises(MissingFileError):
        ConfidentialStrategy(FedAvg()).start(grid=None, initial_arrays=ArrayRecord())


def test_what_start_returns_refers_to_a_sealed_version():
    assert sealed_digest(_reference("ab" * 32)) == "ab" * 32
