"""A run that ends by a rule of its manifest: the governor can neither prolong it nor cut it short."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from road import Aggregator, Road

from confed import canonical
from confed.errors import LineageError, RoundError, RunEndedError
from confed.journey import Purpose
from confed.keybroker.statements import Closing
from confed.manifest import Manifest
from confed.statement import Signed, unverified
from confed.stopping import PatienceTerms, StopTerms
from tests.journey import runs

# Every honest site of the road measures a loss of 0.5, so patience of one round runs out in the second.
PATIENCE = PatienceTerms(metric="loss", purpose="evaluate", mode="min", rounds=1, min_delta=0.001)


def patient(manifest: Manifest) -> Manifest:
    return dataclasses.replace(manifest, stop=StopTerms(target=None, patience=PATIENCE, budget=None))


@pytest.fixture
def stopping(make_road: Callable[..., Road]) -> Road:
    return make_road(change=patient)


def evaluate(road: Road, aggregator: Aggregator, number: int, *, attempt: int = 0) -> None:
    aggregator.governor.open_round(round_number=number, attempt=attempt, purpose="evaluate")
    for site in road.land.sites:
        held = road.hold(site, number, attempt=attempt, purpose=Purpose.EVALUATE)
        aggregator.governor.submit(site=site, digest=road.seal(held))
    aggregator.close_round()


def ending_of(closing: bytes) -> str:
    return unverified(Signed.from_json(canonical.decode(closing)["closing"]), Closing).ending.rule


def test_a_governor_that_closes_early_or_asks_for_more_is_refused(stopping: Road) -> None:
    road, aggregator = stopping, stopping.aggregator()
    road.round(1)
    for ask in (
        aggregator.governor.close_run,  # before the rule could fire
        lambda: aggregator.governor.open_round(round_number=2, attempt=0, purpose="train"),  # without its evaluation
    ):
        with pytest.raises(RoundError):
            ask()
    evaluate(road, aggregator, 1)
    with pytest.raises(RoundError):
        aggregator.governor.close_run()
    road.round(2)
    evaluate(road, aggregator, 2)
    for attempt in (0, 1):
        with pytest.raises(RunEndedError):
            aggregator.governor.open_round(round_number=3, attempt=attempt, purpose="train")
    # Nor does an instance that knows nothing of the run help.
    second = road.aggregator()
    second.governor.attest(first_round=3, attempt=2)
    with pytest.raises(RunEndedError):
        second.governor.open_round(round_number=3, attempt=2, purpose="train")
    assert ending_of(second.governor.close_run()) == "patience"
    for name in road.homes:
        (entry,) = [entry for entry in road.ledger(name) if entry.event.startswith("closing")]
        assert (entry.body["ending"]["rule"], entry.body["ending"]["round"]) == ("patience", 2)


def test_a_governor_that_goes_to_the_brokers_itself_closes_nothing_early(stopping: Road) -> None:
    road, aggregator = stopping, stopping.aggregator()
    road.round(1)
    evaluate(road, aggregator, 1)
    history = [road.record(1).to_bytes(), road.record(1, "evaluate").to_bytes()]
    owner = road.manifest.model.owner.broker
    terms = {"run": road.manifest.run, "manifest": road.manifest.digest, "final_record": history[0]}
    (refused,) = road.client_of("model-owner").close([owner], **terms, history=history)
    assert isinstance(refused, RoundError)


def test_brokers_do_not_close_by_records_of_another_order(make_road: Callable[..., Road]) -> None:
    road = make_road(change=patient, rounds=2)
    aggregator = road.aggregator()
    for number in (1, 2):
        road.round(number)
        evaluate(road, aggregator, number)
    course = aggregator.run._course
    course.history._records[1], course.history._records[3] = course.history._records[3], course.history._records[1]
    with pytest.raises(LineageError):
        aggregator.governor.close_run()


@pytest.fixture(scope="module")
def stopped_early(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    folder = tmp_path_factory.mktemp("stopping")
    config = runs.digits(folder / "experiment", rounds=8)
    with config.open("a") as file:
        file.write('\n[stop]\ntarget = { metric = "accuracy", purpose = "evaluate", mode = "max", value = 0.3 }\n')
    return runs.run(config, home=folder / "home", runs=folder / "runs"), folder


def test_a_whole_run_stops_early_and_says_why(stopped_early: tuple[dict, Path]) -> None:
    summary, folder = stopped_early
    directory = Path(summary["run_dir"])
    assert 1 <= summary["rounds"] < 8
    assert summary["accuracy"] >= 0.3
    assert summary["ended"].startswith("target: evaluate accuracy")
    assert f"Ended by {summary['ended']}" in (directory / "report.html").read_text()
    lines = [json.loads(line) for line in (directory / "events.jsonl").read_text().splitlines()]
    assert lines[-1]["event"] == "run-finished"
    assert (lines[-1]["rounds"], lines[-1]["reason"]) == (summary["rounds"], summary["ended"])
    done = runs.confed("verify", directory, home=folder / "home")
    assert done.returncode == 0, done.stdout + done.stderr
    assert summary["ended"] in done.stdout


def test_without_the_record_that_shows_why_nothing_is_verified(
    stopped_early: tuple[dict, Path], tmp_path: Path
) -> None:
    summary, folder = stopped_early
    copy = tmp_path / "run"
    shutil.copytree(summary["run_dir"], copy, ignore=shutil.ignore_patterns("courier", "sealed", "logs"))
    (copy / "commits" / f"evaluate-{summary['rounds']:04d}.json").unlink()
    done = runs.confed("verify", copy, home=folder / "home")
    assert done.returncode == 3, done.stdout
    assert "evaluat" in done.stderr
