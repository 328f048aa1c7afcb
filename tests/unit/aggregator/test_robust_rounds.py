"""Rounds of the strategies through the enclave: Flower's own result, sealed, and the wrong turns of each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from aggregator_world import Changes, World
from test_robust import RULES, flowers_own
from test_run import OPENINGS, candidate_of, opened, submit

from confed.errors import CohortError, ConfigError, DuplicateUpdateError, SizeError
from confed.manifest import StrategyTerms

if TYPE_CHECKING:
    from pathlib import Path

STRATEGIES: dict[str, StrategyTerms] = {
    **RULES,
    "FedProx": StrategyTerms(name="FedProx", parameters={"proximal_mu": 0.1}),
    "FedAvgM": StrategyTerms(name="FedAvgM", parameters={"server_momentum": 0.9}),
    "FedYogi": StrategyTerms(name="FedYogi", parameters={}),
    "FedAdagrad": StrategyTerms(name="FedAdagrad", parameters={}),
}
WRONG = (
    "NaN",
    "a norm that is false",
    "a weight above the cap",
    "another header of tensors",
    "a chunk that was changed",
)


def world_of(name: str, tmp_path: Path, *, folder: str = "enclave") -> World:
    return World(tmp_path / folder, sites=8, least=7, strategy=STRATEGIES[name])


def version_after(world: World, numbers: Any, *, threads: int = 1) -> dict[str, np.ndarray]:
    run = world.run(threads=threads)
    run.attest(first_round=1, attempt=0)
    run.open_round(round_number=1, attempt=0, purpose="train")
    submit(world, run, numbers)
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
    _, arrays, changes, code = next(row for row in OPENINGS if row[0] == sentence)
    world = world_of(name, tmp_path)
    run = opened(world)
    others = (0, 2, 3, 4, 5, 6, 7)
    submit(world, run, others)
    run.submit(site="site-1", digest=world.send(1, arrays(world), changes=changes))
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
    submit(world, run, range(6))
    with pytest.raises(DuplicateUpdateError):
        submit(world, run, [5])
    larger = Changes(plaintext=lambda plaintext: plaintext + bytes(64))
    with pytest.raises(SizeError):
        run.submit(site="site-6", digest=world.send(6, world.trained(6, world.model), changes=larger))
    _, arrays, changes, _ = next(row for row in OPENINGS if row[0] == "NaN")
    run.submit(site="site-7", digest=world.send(7, arrays(world), changes=Changes(declared=changes.declared)))
    with pytest.raises(CohortError):
        run.close_round(absent={})
    assert run.excluded == {"site-6": SizeError.code, "site-7": "not-finite"}
    assert not world.brokers.commits


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
