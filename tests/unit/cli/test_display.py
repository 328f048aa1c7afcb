"""What a person sees: the state behind the display, the lines of a log, and the summary."""

from __future__ import annotations

import io
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from confed.cli.display import RunDisplay, RunProgress, print_summary
from confed.governor.events import Event, EventName
from confed.privacy.terms import FixedClip, PrivacyTerms, SamplingTerms
from confed.scenario import Scenario
from confed.stopping import BudgetTerms, StopTerms

MANIFEST = SimpleNamespace(
    name="digits",
    environment="simulation",
    scenario=Scenario.FEDERATED,
    rounds=2,
    sites=("a", "b", "c"),
    strategy=SimpleNamespace(name="FedAvg"),
    cohort=SimpleNamespace(fraction_evaluate=1.0),
    stop=StopTerms.none(),
    adapter=None,
    privacy=None,
    serving=None,
)


PRIVATE = PrivacyTerms(
    mechanism="gaussian",
    adjacency="zero-out",
    clip=FixedClip(norm=1.0),
    noise_multiplier=3.0,
    weighting="uniform",
    denominator=3.0,
    sampling=SamplingTerms(by="manifest", rate=1.0),
    delta=1e-5,
    epsilon_budget=20.0,
)


def event(name: EventName, time: int, **fields: Any) -> Event:
    return Event(event=name, time=time, fields=fields)


def round_events(number: int, *, failed: str = "", evaluates: bool = True) -> list[Event]:
    base, clients = number * 10_000, ["a", "b", "c"]
    told = {"round": number, "purpose": "train"}
    events = [event(EventName.ROUND_STARTED, base, **told, cohort=3)]
    for at, site in enumerate(clients):
        if site == failed:
            events.append(event(EventName.CLIENT_FAILED, base + at, **told, site=site, code="not-finite"))
        else:
            events.append(event(EventName.CLIENT_DONE, base + at, **told, site=site))
    excluded = {failed: "not-finite"} if failed else {}
    size = 3 - len(excluded)
    events.append(
        event(EventName.ROUND_COMBINED, base + 400, **told, cohort=size, metrics={"loss": 1.5}, excluded=excluded)
    )
    if evaluates:
        told = {"round": number, "purpose": "evaluate"}
        events.append(event(EventName.ROUND_STARTED, base + 500, **told, cohort=3))
        metrics = {"loss": 1.0 / number, "accuracy": 0.5 + number / 10}
        events.append(event(EventName.EVALUATED, base + 800, **told, cohort=3, metrics=metrics, excluded={}))
    return events


def shown(events: Iterable[Event], *, terminal: bool = False, quiet: bool = False) -> str:
    sink = io.StringIO()
    console = Console(file=sink, force_terminal=terminal, width=100, color_system=None)
    with RunDisplay(console=console, quiet=quiet) as display:
        display.begin(MANIFEST)
        for one in events:
            display.show(one)
        display.begin(MANIFEST)
    return sink.getvalue()


def test_a_log_gets_one_line_a_round() -> None:
    lines = shown([*round_events(1), *round_events(2, failed="b")]).splitlines()
    assert lines == [
        "digits  federated training, 3 sites, FedAvg, 2 rounds  SIMULATION: its TEEs protect nothing",
        "round 1/2  3 clients  loss 1.0000  accuracy 0.6000  0.8 s",
        "round 2/2  2 clients  loss 0.5000  accuracy 0.7000  0.8 s  failed: b (not-finite)",
    ]


def test_a_terminal_gets_a_live_table() -> None:
    text = shown([*round_events(1, failed="b"), *round_events(2)[:3]], terminal=True)
    for part in ("digits", "1/2", "2/3 clients, round 2", "training", "0.6000", "round 1: b (not-finite)"):
        assert part in text


def test_quiet_shows_nothing() -> None:
    assert shown(round_events(1), quiet=True) == ""


def test_names_from_outside_are_no_markup() -> None:
    events = round_events(1, failed="b")
    marked = [
        Event(event=e.event, time=e.time, fields={k: "[red]x[/]" if k == "site" else v for k, v in e.fields.items()})
        for e in events
    ]
    assert "[red]x[/] (not-finite)" in shown(marked)


def test_progress_counts_a_client_once() -> None:
    progress = RunProgress(rounds=2, evaluates=True)
    for one in [*round_events(1)[:2], round_events(1)[1]]:
        progress.apply(one)
    assert (progress.done, progress.expected, progress.purpose) == (1, 3, "train")


def test_a_round_without_evaluation_is_complete_when_it_is_combined() -> None:
    progress = RunProgress(rounds=2, evaluates=False)
    completed = [progress.apply(one) for one in round_events(1, evaluates=False)]
    assert [view.number for view in completed if view] == [1]
    assert progress.current is None


def test_a_failed_run_says_so() -> None:
    progress = RunProgress(rounds=2, evaluates=True)
    progress.apply(event(EventName.ATTESTED, 1, role="aggregator"))
    progress.apply(event(EventName.RUN_FAILED, 2, code="cohort"))
    assert (progress.attested, progress.ended) == (1, "cohort")


@given(st.lists(st.sampled_from([*round_events(1, failed="b"), *round_events(2)]), max_size=30))
def test_events_in_any_order_never_break_the_display(events: list[Event]) -> None:
    progress = RunProgress(rounds=2, evaluates=True)
    for one in events:
        progress.apply(one)
    assert len(progress.complete) <= len(events)


SUMMARY = {
    "run": "digits-1", "engine": "local", "environment": "simulation", "rounds": 15, "accuracy": 0.9612, "loss": 0.14,
    "seconds": {"attest": 0.5, "train": 4.0, "commit": 0.5}, "total_s": 9.87, "confidentiality_share": 0.2,
    "model": "runs/digits-1/versions/0015.sealed", "run_dir": "runs/digits-1",
    "dropped": [{"round": 3, "purpose": "train", "site": "hospital-c", "code": "no-answer"}],
}  # fmt: skip


def printed(summary: dict[str, Any]) -> str:
    sink = io.StringIO()
    print_summary(summary, Console(file=sink, width=100, color_system=None))
    return sink.getvalue()


def test_a_summary_says_everything() -> None:
    text = printed(SUMMARY)
    for part in (
        "0.9612", "15 rounds on local", "9.9 s", "SIMULATION", SUMMARY["model"], "attest", "4.00", "20%",
        "round 3: hospital-c left out (no-answer)", "confed verify runs/digits-1",
    ):  # fmt: skip
        assert part in text


@pytest.mark.parametrize("left_out", sorted(SUMMARY))
def test_a_summary_without_a_part_is_still_printed(left_out: str) -> None:
    assert printed({key: value for key, value in SUMMARY.items() if key != left_out})
    assert printed({**SUMMARY, "accuracy": None, "loss": None, "seconds": {}, "dropped": []})


def test_a_stop_rule_and_why_it_fired_are_shown() -> None:
    MANIFEST.stop = StopTerms(target=None, patience=None, budget=BudgetTerms(seconds=60))
    reason = "budget: 61 s of 60 s were spent by round 1"
    events = [*round_events(1), event(EventName.RUN_FINISHED, 20_000, rounds=1, reason=reason)]
    try:
        assert shown(events).startswith(
            "digits  federated training, 3 sites, FedAvg, 2 rounds, fewer if 60 s since the first version"
        )
        assert reason in shown(events, terminal=True)
    finally:
        MANIFEST.stop = StopTerms.none()
    sink = io.StringIO()
    print_summary({"run": "r", "rounds": 1, "ended": reason}, Console(file=sink, width=100, color_system=None))
    assert f"ended by  {reason}" in sink.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_every_round_of_a_private_run_shows_what_is_spent(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MANIFEST, "privacy", PRIVATE)
    events = round_events(1)
    for at, one in enumerate(events):
        if one.event is EventName.ROUND_COMBINED:
            events[at] = event(one.event, one.time, **{**one.fields, "epsilon": 1.23456})
    text = shown(events, terminal=terminal)
    assert "1.235" in text or "1.2346" in text
    assert "epsilon at most 20" in text.replace("\n", " ")
