"""Where the enclave lets a run go on, and where it ends: by its commit records, whatever the governor wants."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from aggregator_world import World

from confed.errors import LineageError, RoundError, RunEndedError, UnreachableError
from confed.keybroker.history import History
from confed.keybroker.lineage import Lineage
from confed.keybroker.statements import Candidate, CommitRecord
from confed.statement import unverified
from confed.stopping import BudgetTerms, PatienceTerms, StopTerms, TargetTerms

if TYPE_CHECKING:
    from pathlib import Path

    from aggregator.run import Run

PATIENCE = PatienceTerms(metric="loss", purpose="train", mode="min", rounds=2, min_delta=0.01)
TARGET = TargetTerms(metric="accuracy", purpose="evaluate", mode="max", value=0.9)
BUDGET = BudgetTerms(seconds=60)


def make(tmp_path: Path, **rules: Any) -> World:
    none: dict[str, Any] = {"target": None, "patience": None, "budget": None}
    return World(tmp_path / "enclave", rounds=5, stop=StopTerms(**{**none, **rules}))


def begun(world: World, *, at: int = 1) -> Run:
    run = world.run()
    run.attest(first_round=at, attempt=0 if at == 1 else 1)
    return run


def train(world: World, run: Run, number: int, *, loss: float, attempt: int = 0) -> None:
    opened = run.open_round(round_number=number, attempt=attempt, purpose="train")
    base = world.model
    if number > 1:
        (body,) = world.courier.letters[f"run-1/commit/train/{number - 1}"]
        said = unverified(CommitRecord.from_bytes(body).candidate, Candidate)
        base = world.open_version(said.digest, version=number - 1, attempt=said.attempt)
    step: dict[str, Any] = {"round_number": number, "attempt": attempt, "base_digest": opened.base}
    for site in range(4):
        digest = world.send(site, world.trained(site, base), base=base, metrics={"loss": loss}, **step)
        run.submit(site=f"site-{site}", digest=digest)
    run.close_round(absent={})


def evaluate(world: World, run: Run, number: int, *, accuracy: float, attempt: int = 0) -> None:
    opened = run.open_round(round_number=number, attempt=attempt, purpose="evaluate")
    step: dict[str, Any] = {"round_number": number, "attempt": attempt, "base_digest": opened.base}
    for site in range(4):
        run.submit(site=f"site-{site}", digest=world.send(site, None, metrics={"accuracy": accuracy}, **step))
    run.close_round(absent={})


def refuses_another_round(run: Run, number: int) -> None:
    for attempt in (0, 1, 2):
        with pytest.raises(RunEndedError):
            run.open_round(round_number=number, attempt=attempt, purpose="train")


def test_no_round_is_opened_after_patience_ran_out(tmp_path: Path) -> None:
    world = make(tmp_path, patience=PATIENCE)
    run = begun(world)
    for number in (1, 2, 3):
        with pytest.raises(RoundError):
            run.close_run()
        train(world, run, number, loss=0.5)
    refuses_another_round(run, 4)
    run.close_run()
    # Both calls of brokers came with every record, from which each sees the same end.
    (history,) = set(world.brokers.histories)
    found = History.verified(Lineage(world.manifest), history).require_ended()
    assert (found.rule, found.round, found.values["best_round"]) == ("patience", 3, 1.0)


def test_a_run_that_still_improves_goes_on_and_is_not_closed(tmp_path: Path) -> None:
    world = make(tmp_path, patience=PATIENCE)
    run = begun(world)
    for number in (1, 2, 3, 4):
        train(world, run, number, loss=0.5 - 0.1 * number)
        with pytest.raises(RoundError):
            run.close_run()
    assert world.brokers.histories == []
    train(world, run, 5, loss=0.0)
    run.close_run()


def test_without_a_rule_a_run_is_closed_after_its_last_round_only(tmp_path: Path) -> None:
    world = make(tmp_path)
    run = begun(world)
    for number in (1, 2, 3, 4, 5):
        train(world, run, number, loss=0.5)
        if number < 5:
            with pytest.raises(RoundError):
                run.close_run()
    run.close_run()
    assert set(world.brokers.histories) == {()}


def test_an_evaluation_that_a_rule_reads_cannot_be_left_out(tmp_path: Path) -> None:
    world = make(tmp_path, target=TARGET)
    run = begun(world)
    train(world, run, 1, loss=0.5)
    for act in (lambda: run.open_round(round_number=2, attempt=0, purpose="train"), run.close_run):
        with pytest.raises(RoundError) as refused:
            act()
        assert not isinstance(refused.value, RunEndedError)
    evaluate(world, run, 1, accuracy=0.5)
    train(world, run, 2, loss=0.5)
    evaluate(world, run, 2, accuracy=0.9)
    refuses_another_round(run, 3)
    run.close_run()


def test_the_last_version_may_be_evaluated_after_the_rule_fired(tmp_path: Path) -> None:
    world = make(tmp_path, patience=PATIENCE)
    run = begun(world)
    for number in (1, 2, 3):
        train(world, run, number, loss=0.5)
    evaluate(world, run, 3, accuracy=0.9)
    refuses_another_round(run, 4)
    run.close_run()


def test_a_budget_is_spent_by_the_model_owners_clock(tmp_path: Path) -> None:
    world = make(tmp_path, budget=BUDGET)
    run = begun(world)
    train(world, run, 1, loss=0.5)
    world.brokers.time += 59_999
    train(world, run, 2, loss=0.5)
    world.brokers.time += 1
    train(world, run, 3, loss=0.5)
    refuses_another_round(run, 4)
    run.close_run()


def test_a_new_instance_comes_to_the_same_end(tmp_path: Path) -> None:
    world = make(tmp_path, patience=PATIENCE, target=TARGET)
    run = begun(world)
    for number in (1, 2):
        train(world, run, number, loss=0.5)
        evaluate(world, run, number, accuracy=0.5)
    second = begun(world, at=3)
    train(world, second, 3, loss=0.5, attempt=1)
    evaluate(world, second, 3, accuracy=0.5)
    refuses_another_round(second, 4)
    third = begun(world, at=4)
    refuses_another_round(third, 4)
    third.close_run()


def test_a_new_instance_between_a_version_and_its_evaluation_waits_for_that(tmp_path: Path) -> None:
    world = make(tmp_path, target=TARGET)
    train(world, begun(world), 1, loss=0.5)
    second = begun(world, at=2)
    with pytest.raises(RoundError):
        second.open_round(round_number=2, attempt=1, purpose="train")
    evaluate(world, second, 1, accuracy=0.95, attempt=1)
    refuses_another_round(second, 2)


def test_a_record_kept_from_a_new_instance_changes_nothing_but_that_it_stands_still(tmp_path: Path) -> None:
    world = make(tmp_path, target=TARGET)
    run = begun(world)
    for number in (1, 2):
        train(world, run, number, loss=0.5)
        evaluate(world, run, number, accuracy=0.5 + 0.2 * number)
    refuses_another_round(run, 3)
    letters = world.courier.letters
    for topic in ("run-1/commit/train/1", "run-1/commit/evaluate/1"):
        kept = letters.pop(topic)
        with pytest.raises(LineageError):
            begun(world, at=3)
        letters[topic] = kept
    letters.pop("run-1/commit/evaluate/2")
    with pytest.raises(RoundError):  # not decided, so not to be trained on either
        begun(world, at=3).open_round(round_number=3, attempt=1, purpose="train")


def test_another_rounds_record_does_not_pass_for_one(tmp_path: Path) -> None:
    world = make(tmp_path, target=TARGET)
    run = begun(world)
    for number in (1, 2):
        train(world, run, number, loss=0.5)
        evaluate(world, run, number, accuracy=0.3 * number)
    letters = world.courier.letters
    letters["run-1/commit/evaluate/1"] = letters["run-1/commit/evaluate/2"]
    with pytest.raises(LineageError):
        begun(world, at=3)


def test_an_evaluation_of_another_version_does_not_pass_for_one(tmp_path: Path) -> None:
    world = make(tmp_path, target=TARGET)
    run = begun(world)
    train(world, run, 1, loss=0.5)
    evaluate(world, run, 1, accuracy=0.5)
    # A fork, which real brokers would not sign: another first version, and the evaluation of the first one.
    world.courier.letters.pop("run-1/commit/train/1")
    train(world, begun(world), 1, loss=0.5)
    with pytest.raises(RoundError):
        begun(world, at=2).open_round(round_number=2, attempt=1, purpose="train")


def test_a_courier_that_is_down_is_no_missing_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = make(tmp_path, target=TARGET)
    run = begun(world)
    train(world, run, 1, loss=0.5)
    evaluate(world, run, 1, accuracy=0.95)
    collect = world.courier.collect

    def breaks(topic: str) -> list[bytes]:
        if "/evaluate/" in topic:
            raise UnreachableError("courier", expected="an answer", got="none")
        return collect(topic)

    monkeypatch.setattr(world.courier, "collect", breaks)
    with pytest.raises(UnreachableError):
        begun(world, at=2)


def test_asking_to_attest_for_an_earlier_round_does_not_forget_later_ones(tmp_path: Path) -> None:
    world = make(tmp_path, patience=PATIENCE)
    run = begun(world)
    for number in (1, 2, 3):
        train(world, run, number, loss=0.5)
    with pytest.raises(RoundError):
        run.attest(first_round=2, attempt=1)
    refuses_another_round(run, 4)
    run.close_run()
