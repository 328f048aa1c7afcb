"""Rounds of the strategies through the enclave: Flower's own result, sealed, and the wrong turns of each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from aggregator_world import Changes, World
from test_own_strategy import HEAD
from test_own_strategy import world_of as own_world
from test_robust import RULES, flowers_own
from test_run import OPENINGS, candidate_of, opened, plain, submit

from aggregator.combine.flower_strategy import PERMITTED
from confed.errors import (
    CohortError,
    ConfigError,
    DuplicateUpdateError,
    RoundError,
    SizeError,
    StaleUpdateError,
    TicketError,
)
from confed.manifest import CohortTerms, StrategyTerms, UpdateTerms

if TYPE_CHECKING:
    from pathlib import Path

STRATEGIES: dict[str, StrategyTerms] = {
    **RULES,
    "FedProx": StrategyTerms(name="FedProx", parameters={"proximal_mu": 0.1}),
    "FedAvgM": StrategyTerms(name="FedAvgM", parameters={"server_momentum": 0.9}),
    "FedYogi": StrategyTerms(name="FedYogi", parameters={}),
    "FedAdagrad": StrategyTerms(name="FedAdagrad", parameters={}),
    "FedAvg": StrategyTerms(name="FedAvg", parameters={}),
    "FedAdam": StrategyTerms(name="FedAdam", parameters={}),
    "QFedAvg": StrategyTerms(name="QFedAvg", parameters={"client_learning_rate": 0.5, "q": 0.5}),
    "FedBuff": StrategyTerms(name="FedBuff", parameters={"buffer_size": 8, "max_staleness": 1}),
    "a class of one's own": StrategyTerms(name="fair:Fair", parameters={}),
}
LOSS = {"train_loss": 0.7}
WRONG = (
    "NaN",
    "a norm that is false",
    "a weight above the cap",
    "another header of tensors",
    "a chunk that was changed",
    "another type of numbers",
)
ROWS = {
    **{row[0]: row[1:] for row in OPENINGS},
    "another type of numbers": (plain, Changes(plaintext=lambda p: p.replace(b'"F32"', b'"I32"', 1)), "shape"),
}


def world_of(name: str, tmp_path: Path, *, folder: str = "enclave") -> World:
    terms: dict[str, Any] = {"sites": 8, "least": 7}
    if name == "FedBuff":
        terms["cohort"] = CohortTerms(least=7, fraction_train=1.0, fraction_evaluate=0.0, extra=0)
    if STRATEGIES[name].own:
        return own_world(tmp_path / folder, HEAD, **terms)
    cap = 2.0 if name == "QFedAvg" else None
    update = UpdateTerms(norm_bound=100.0, weight_cap=1000.0, loss_cap=cap)
    return World(tmp_path / folder, strategy=STRATEGIES[name], update=update, **terms)


def test_every_strategy_goes_through_every_wrong_turn() -> None:
    assert {name for name, terms in STRATEGIES.items() if not terms.own} == set(PERMITTED)
    assert sum(terms.own for terms in STRATEGIES.values()) == 1


def version_after(world: World, numbers: Any, *, threads: int = 1) -> dict[str, np.ndarray]:
    run = world.run(threads=threads)
    run.attest(first_round=1, attempt=0)
    run.open_round(round_number=1, attempt=0, purpose="train")
    submit(world, run, numbers, metrics=LOSS)
    return world.open_version(candidate_of(run.close_round(absent={})).digest, version=1)


@pytest.mark.parametrize("name", [name for name in RULES if name != "GeometricMedian"])
def test_a_sealed_round_is_flowers_own(name: str, tmp_path: Path) -> None:
    world = world_of(name, tmp_path)
    found = version_after(world, (3, 0, 7, 1, 2, 6, 5, 4), threads=2)
    updates = [world.trained(number, world.model) for number in range(8)]
    theirs = flowers_own(name, updates, [10.0 * (number + 1) for number in range(8)])
    assert list(found) == list(theirs)
    for tensor in ("weight", "bias", "scale"):
        assert found[tensor].dtype == world.model[tensor].dtype
        np.testing.assert_allclose(found[tensor], theirs[tensor], rtol=1e-5, atol=1e-6)
    assert found["counter"] == world.model["counter"]
    assert found["flag"].tolist() == [True, False]


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_order_of_arrival_does_not_matter(name: str, tmp_path: Path) -> None:
    one = version_after(world_of(name, tmp_path), range(8))
    other = version_after(world_of(name, tmp_path, folder="other"), reversed(range(8)), threads=3)
    assert all(one[tensor].tobytes() == other[tensor].tobytes() for tensor in one)


@pytest.mark.parametrize("sentence", WRONG)
@pytest.mark.parametrize("name", STRATEGIES)
def test_a_wrong_update_is_excluded_by_name_and_leaves_no_trace(name: str, sentence: str, tmp_path: Path) -> None:
    arrays, changes, code = ROWS[sentence]
    world = world_of(name, tmp_path)
    run = opened(world)
    others = (0, 2, 3, 4, 5, 6, 7)
    submit(world, run, others, metrics=LOSS)
    run.submit(site="site-1", digest=world.send(1, arrays(world), changes=changes, metrics=LOSS))
    closed = run.close_round(absent={})
    assert closed.excluded == {"site-1": code}
    assert closed.cohort_size == 7
    found = world.open_version(candidate_of(closed).digest, version=1)
    without = version_after(world_of(name, tmp_path, folder="other"), others)
    assert all(found[tensor].tobytes() == without[tensor].tobytes() for tensor in found)


@pytest.mark.parametrize("name", STRATEGIES)
def test_what_is_sent_twice_or_too_large_is_refused_and_one_too_few_is_no_round(name: str, tmp_path: Path) -> None:
    world = world_of(name, tmp_path)
    run = opened(world)
    submit(world, run, range(6), metrics=LOSS)
    with pytest.raises(DuplicateUpdateError):
        submit(world, run, [5])
    larger = Changes(plaintext=lambda plaintext: plaintext + bytes(64))
    with pytest.raises(SizeError):
        run.submit(site="site-6", digest=world.send(6, world.trained(6, world.model), changes=larger))
    arrays, changes, _ = ROWS["NaN"]
    wrong = world.send(7, arrays(world), changes=Changes(declared=changes.declared), metrics=LOSS)
    run.submit(site="site-7", digest=wrong)
    with pytest.raises(CohortError):
        run.close_round(absent={})
    assert run.excluded == {"site-6": SizeError.code, "site-7": "not-finite"}
    assert not world.brokers.commits


@pytest.mark.parametrize("name", STRATEGIES)
def test_what_is_late_or_sent_into_another_round_or_run_is_refused(name: str, tmp_path: Path) -> None:
    world = world_of(name, tmp_path)
    run = opened(world)
    submit(world, run, range(1, 8), metrics=LOSS)
    ticket = {"ticket_id": b"t" * 16}
    once = world.send(0, plain(world), changes=Changes(ticket=ticket), metrics=LOSS)
    run.submit(site="site-0", digest=once)
    first = candidate_of(run.close_round(absent={}))
    with pytest.raises(RoundError):  # late
        run.submit(site="site-0", digest=once)
    base = world.open_version(first.digest, version=1)
    run.open_round(round_number=2, attempt=0, purpose="train")
    again: dict[str, Any] = {"base": base, "base_digest": first.digest, "round_number": 2, "metrics": LOSS}
    for changes, error in (
        (None, (StaleUpdateError, TicketError, DuplicateUpdateError)),
        (Changes(ticket=ticket), DuplicateUpdateError),
        (Changes(detail={"run": "run-2"}), StaleUpdateError),
        (Changes(ticket={"run": "run-2"}), TicketError),
        (Changes(detail={"base": world.manifest.model.start.digest}), StaleUpdateError),
    ):
        digest = once if changes is None else world.send(0, world.trained(0, base), changes=changes, **again)
        with pytest.raises(error):
            run.submit(site="site-0", digest=digest)
    submit(world, run, range(8), **again)
    assert run.close_round(absent={}).cohort_size == 8


@pytest.mark.parametrize("metrics", [{}, {"loss": 0.1}, {"train_loss": 2.01}, {"train_loss": -0.1}], ids=str)
def test_a_loss_that_counts_is_declared_and_capped(metrics: dict[str, float], tmp_path: Path) -> None:
    world = world_of("QFedAvg", tmp_path)
    run = opened(world)
    submit(world, run, range(1, 8), metrics={"train_loss": 2.0})
    run.submit(site="site-0", digest=world.send(0, plain(world), metrics=metrics))
    closed = run.close_round(absent={})
    assert closed.excluded == {"site-0": "loss"}
    assert closed.cohort_size == 7


@pytest.mark.parametrize(
    ("name", "parameters", "least"),
    [
        ("Krum", {"num_malicious_nodes": 1}, 4),
        ("MultiKrum", {"num_malicious_nodes": 2, "num_nodes_to_select": 3}, 6),
        ("MultiKrum", {"num_malicious_nodes": 0, "num_nodes_to_select": 6}, 5),
        ("Bulyan", {"num_malicious_nodes": 1}, 6),
    ],
)
def test_a_cohort_too_small_for_the_strategy_is_no_manifest(
    name: str, parameters: dict[str, Any], least: int, tmp_path: Path
) -> None:
    strategy = StrategyTerms(name=name, parameters=parameters)
    with pytest.raises(ConfigError) as refused:
        World(tmp_path / "enclave", sites=8, least=least, strategy=strategy)
    assert refused.value.field == "cohort.least"
    World(tmp_path / "enclave", sites=8, least=least + 1, strategy=strategy)
