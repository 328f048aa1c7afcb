"""A run with a privacy budget in the enclave: charged before release, halted before it is exceeded, never reset."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from aggregator_world import Changes, World
from test_private import TERMS

from confed.errors import LineageError, PrivacyBudgetError, QuorumError
from confed.keybroker.statements import Candidate, CommitRecord
from confed.manifest import MetricTerms, StrategyTerms
from confed.privacy.accounting import epsilon
from confed.privacy.terms import AdaptiveClip, PrivacyState, SamplingTerms
from confed.statement import sign, unverified

if TYPE_CHECKING:
    from pathlib import Path

    from aggregator.run import Run

BUDGET_FOR_TWO = epsilon(TERMS, 2) + 1e-3


def make(tmp_path: Path, *, strategy: StrategyTerms | None = None, **changes: Any) -> World:
    terms = dataclasses.replace(TERMS, **{"epsilon_budget": BUDGET_FOR_TWO, **changes})
    return World(
        tmp_path / "enclave", privacy=terms, metrics=MetricTerms(clear=(), decimals=4), rounds=5, strategy=strategy
    )


def begun(world: World, *, at: int = 1, attempt: int = 0) -> Run:
    run = world.run()
    run.attest(first_round=at, attempt=attempt)
    return run


def committed(world: World, number: int) -> Candidate:
    (body,) = world.courier.letters[f"run-1/commit/train/{number}"]
    return unverified(CommitRecord.from_bytes(body).candidate, Candidate)


def sent(world: World, run: Run, number: int, *, attempt: int = 0, changes: Changes | None = None) -> None:
    opened = run.open_round(round_number=number, attempt=attempt, purpose="train")
    base = world.model
    if number > 1:
        said = committed(world, number - 1)
        base = world.open_version(said.digest, version=number - 1, attempt=said.attempt)
    step: dict[str, Any] = {"round_number": number, "attempt": attempt, "base_digest": opened.base}
    for site in range(4):
        own = changes if site == 3 else None
        run.submit(
            site=f"site-{site}", digest=world.send(site, world.trained(site, base), base=base, changes=own, **step)
        )


def train(world: World, run: Run, number: int, *, attempt: int = 0) -> PrivacyState:
    sent(world, run, number, attempt=attempt)
    run.close_round(absent={})
    found = committed(world, number).privacy
    assert found is not None
    return found


def test_every_commit_says_what_is_spent_and_the_run_halts_at_the_budget(tmp_path: Path) -> None:
    world = make(tmp_path)
    run = begun(world)
    for number in (1, 2):
        state = train(world, run, number)
        assert (state.releases, state.epsilon) == (number, epsilon(TERMS, number))
    for attempt in (0, 1, 2):
        with pytest.raises(PrivacyBudgetError):
            run.open_round(round_number=3, attempt=attempt, purpose="train")
    assert run.close_run()


def test_a_run_with_budget_left_goes_on(tmp_path: Path) -> None:
    world = make(tmp_path, epsilon_budget=100.0)
    run = begun(world)
    assert [train(world, run, number).releases for number in (1, 2, 3)] == [1, 2, 3]


def test_a_budget_that_holds_no_round_opens_none(tmp_path: Path) -> None:
    world = make(tmp_path, epsilon_budget=epsilon(TERMS, 1) - 1e-3)
    run = begun(world)
    with pytest.raises(PrivacyBudgetError):
        run.open_round(round_number=1, attempt=0, purpose="train")


def test_a_new_instance_takes_up_what_was_spent(tmp_path: Path) -> None:
    world = make(tmp_path, epsilon_budget=epsilon(TERMS, 3) + 1e-3)
    train(world, begun(world), 1)
    second = begun(world, at=2, attempt=1)
    with pytest.raises(PrivacyBudgetError):
        second.open_round(round_number=2, attempt=2, purpose="train")
    assert train(world, second, 2, attempt=1).releases == 3
    third = begun(world, at=3)
    with pytest.raises(PrivacyBudgetError):
        third.open_round(round_number=3, attempt=0, purpose="train")


def test_an_attempt_that_failed_is_charged_to_the_next(tmp_path: Path) -> None:
    world = make(tmp_path)
    run = begun(world)
    sent(world, run, 1)
    for site in range(4):
        world.brokers.refuse["countersign", f"site-{site}"] = QuorumError("x", expected="y", got="z")
    with pytest.raises(QuorumError):
        run.close_round(absent={})
    world.brokers.refuse.clear()
    assert train(world, run, 1, attempt=1).releases == 2
    with pytest.raises(PrivacyBudgetError):
        run.open_round(round_number=2, attempt=0, purpose="train")


def test_a_tampered_account_in_a_commit_record_is_no_base(tmp_path: Path) -> None:
    world = make(tmp_path)
    train(world, begun(world), 1)
    topic = "run-1/commit/train/1"
    record = CommitRecord.from_bytes(world.courier.letters[topic][0])
    said = unverified(record.candidate, Candidate)
    none_spent = dataclasses.replace(said, privacy=PrivacyState(releases=0, epsilon=0.0, clip=1.0, next_clip=1.0))
    forged = dataclasses.replace(record, candidate=sign(none_spent, world.owner.broker))
    world.courier.letters[topic] = [forged.to_bytes()]
    with pytest.raises(LineageError):
        begun(world, at=2)


def test_what_is_released_is_noised_and_counters_stay(tmp_path: Path) -> None:
    versions = []
    for number in (1, 2):
        world = make(tmp_path, epsilon_budget=5.0 + number)
        train(world, begun(world), 1)
        versions.append(world.open_version(committed(world, 1).digest, version=1))
    one, other = versions
    assert not np.allclose(one["weight"], other["weight"], atol=0.05), "two runs on the same updates"
    assert np.std(one["weight"] - other["weight"]) == pytest.approx(2**0.5 / 4, rel=0.6)
    assert one["counter"] == world.model["counter"]
    assert np.array_equal(one["flag"], world.model["flag"])


@pytest.mark.parametrize("name", ["FedAvg", "FedAvgM", "FedAdam", "FedYogi", "FedAdagrad", "FedProx"])
def test_a_server_optimizer_works_on_the_noised_mean(name: str, tmp_path: Path) -> None:
    parameters = {"server_momentum": 0.9} if name == "FedAvgM" else {"proximal_mu": 0.1} if name == "FedProx" else {}
    world = make(tmp_path, strategy=StrategyTerms(name=name, parameters=parameters))
    run = begun(world)
    assert [train(world, run, number).releases for number in (1, 2)] == [1, 2]


def test_an_adaptive_clip_norm_goes_on_from_round_to_round_and_instance_to_instance(tmp_path: Path) -> None:
    clip = AdaptiveClip(initial=1.0, quantile=0.5, learning_rate=0.5, count_noise=1.0)
    world = make(tmp_path, clip=clip, epsilon_budget=1000.0)
    first = train(world, begun(world), 1)
    assert first.clip == 1.0 != first.next_clip
    second = train(world, begun(world, at=2), 2)
    assert second.clip == first.next_clip
    assert second.epsilon > epsilon(TERMS, 2), "the noised count is charged too"


def test_secret_sampling_is_the_only_amplification(tmp_path: Path) -> None:
    world = make(tmp_path, sampling=SamplingTerms(by="enclave", rate=0.5), noise_multiplier=2.0)
    state = train(world, begun(world), 1)
    assert state.epsilon < epsilon(dataclasses.replace(TERMS, noise_multiplier=2.0), 1)
    assert len(committed(world, 1).cohort) == 4, "who was taken stays secret"


def test_a_false_norm_is_refused_by_name_under_clipping_too(tmp_path: Path) -> None:
    world = make(tmp_path)
    run = begun(world)
    sent(world, run, 1, changes=Changes(declared={"norm": 1e-3}))
    closed = run.close_round(absent={})
    assert closed.excluded == {"site-3": "norm"}
    assert len(committed(world, 1).cohort) == 3
