"""``confed verify`` on how a run ended: the reason in the closing is the one that the commit records show, or refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from records_world import OWNER, RecordedRun, edit

from confed.errors import ConfedError, LedgerError, LineageError, RefusedError, RoundError
from confed.journey import Purpose
from confed.keybroker.history import History
from confed.keybroker.statements import Closing
from confed.record import to_json
from confed.records.report import write_report
from confed.records.run_directory import RunDirectory
from confed.records.verification import verify_run
from confed.statement import sign, unverified
from confed.stopping import BudgetTerms, Ending, StopTerms, TargetTerms

# Evaluations of this run measure accuracies of 0.6 and 0.7, and its last round would be the third.
TARGET = TargetTerms(metric="accuracy", purpose="evaluate", mode="max", value=0.65)
REASON = Ending(rule="target", round=2, purpose="evaluate", metric="accuracy", values={"target": 0.65, "value": 0.7})


def rules(**given: Any) -> StopTerms:
    return StopTerms(**{"target": None, "patience": None, "budget": None, **given})


def recorded(home: Path, stop: StopTerms, *, rounds: int = 3) -> RecordedRun:
    run = RecordedRun(home, rounds=rounds, stop=stop)
    for owner in run.homes.values():
        owner.close()
    return run


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> RecordedRun:
    return recorded(tmp_path_factory.mktemp("owners"), rules(target=TARGET))


@pytest.fixture
def stopped_directory(stopped: RecordedRun, tmp_path: Path) -> RunDirectory:
    return stopped.write(tmp_path / "run")


def test_a_run_that_a_rule_ended_verifies_with_its_reason(
    stopped: RecordedRun, stopped_directory: RunDirectory
) -> None:
    verified = verify_run(stopped_directory.path, trust=stopped.trust)
    assert verified.rounds == 2
    (closing,) = (checked.what for checked in verified.steps if checked.step == "closing")
    assert "target: evaluate accuracy 0.7 reached 0.65 in round 2" in closing
    assert unverified(stopped.closing.closing, Closing).ending == REASON


def test_the_report_and_the_summary_say_why(stopped_directory: RunDirectory) -> None:
    page = write_report(stopped_directory).read_text()
    assert "Ended by target: evaluate accuracy 0.7 reached 0.65 in round 2" in page
    assert "2 of 3" in page
    assert "evaluate accuracy ≥ 0.65" in page
    assert "INCOMPLETE" not in page
    assert stopped_directory.summary()["ended"] == REASON.told


CLAIMS: list[tuple[str, dict[str, Any]]] = [
    ("the last round", {"rule": "rounds", "purpose": "", "metric": "", "values": {}}),
    ("another rule", {"rule": "budget"}),
    ("another round", {"round": 1}),
    ("another metric", {"metric": "loss"}),
    ("another value", {"values": {"target": 0.65, "value": 0.8}}),
]


@pytest.mark.parametrize("changes", [row[1] for row in CLAIMS], ids=[row[0] for row in CLAIMS])
def test_a_closing_that_claims_another_reason_is_refused(
    changes: dict[str, Any], stopped: RecordedRun, stopped_directory: RunDirectory
) -> None:
    said = unverified(stopped.closing.closing, Closing)
    forged = dataclasses.replace(said, ending=dataclasses.replace(REASON, **changes))
    closing = sign(forged, stopped.homes[OWNER].broker_key)
    stopped_directory.write_closing(dataclasses.replace(stopped.closing, closing=closing))
    with pytest.raises(LineageError, match="closing: reason of the end"):
        verify_run(stopped_directory.path, trust=stopped.trust)


@pytest.mark.parametrize("party", [OWNER, "north"])
def test_a_ledger_with_another_reason_is_refused(
    party: str, stopped: RecordedRun, stopped_directory: RunDirectory
) -> None:
    other = to_json(Ending(rule="rounds", round=3))
    if party == OWNER:
        stopped.forge_ledger(stopped_directory, OWNER, edit("closing", ending=other))
    else:
        stopped.forge_ledger(stopped_directory, party, lambda entries: entries, closing={"ending": other})
    with pytest.raises(LedgerError, match="ending"):
        verify_run(stopped_directory.path, trust=stopped.trust)


def test_a_summary_with_another_reason_is_refused(stopped: RecordedRun, stopped_directory: RunDirectory) -> None:
    stopped_directory.write_summary({**stopped_directory.summary(), "ended": "by itself"})
    with pytest.raises(RefusedError, match=r"summary.json: ended"):
        verify_run(stopped_directory.path, trust=stopped.trust)


def test_without_the_evaluation_that_the_rule_reads_nothing_is_verified(
    stopped: RecordedRun, stopped_directory: RunDirectory
) -> None:
    stopped_directory.commit_file(Purpose.EVALUATE, 1).unlink()
    with pytest.raises(ConfedError, match=r"evalu"):
        verify_run(stopped_directory.path, trust=stopped.trust)


@pytest.fixture
def blind_brokers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Ending], None]]:
    """Let every broker, in one plot, sign whatever reason it is given."""

    def sign_anyway(reason: Ending) -> None:
        monkeypatch.setattr("confed.keybroker.closing._ending", lambda *_: reason)

    return sign_anyway


AT_FIRST = dataclasses.replace(REASON, round=1, values={"target": 0.6, "value": 0.6})
PLOTS = [
    ("a rule that did not fire", rules(target=dataclasses.replace(TARGET, value=0.9)), REASON, RoundError),
    ("a rule that the manifest does not have", rules(budget=BudgetTerms(seconds=3600)), REASON, RoundError),
    ("an early end without any rule", rules(), Ending(rule="rounds", round=2), RoundError),
    (
        "a run that went on after its rule fired",
        rules(target=dataclasses.replace(TARGET, value=0.6)),
        AT_FIRST,
        LineageError,
    ),
]


@pytest.mark.parametrize(("stop", "reason", "error"), [row[1:] for row in PLOTS], ids=[row[0] for row in PLOTS])
def test_what_every_broker_signed_is_still_refused(
    stop: StopTerms, reason: Ending, error: type[ConfedError], blind_brokers: Callable[[Ending], None], tmp_path: Path
) -> None:
    blind_brokers(reason)
    run = recorded(tmp_path / "owners", stop)
    directory = run.write(tmp_path / "run")
    with pytest.raises(error, match="closing"):
        verify_run(directory.path, trust=run.trust)


def test_records_are_added_in_the_order_of_the_run(stopped: RecordedRun) -> None:
    history = History(stopped.manifest)
    train, evaluate = stopped.records[Purpose.TRAIN, 1], stopped.records[Purpose.EVALUATE, 1]
    with pytest.raises(RoundError):
        history.add(evaluate)
    history.add(train)
    with pytest.raises(RoundError):
        history.add(train)
    history.add(evaluate)
    with pytest.raises(RoundError):
        history.add(evaluate)
    assert history.ending() is None
