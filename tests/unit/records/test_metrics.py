"""Rounds' lines and the summary: from the commits what is true, from the events how long it took."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from records_world import RecordedRun

from confed.records import metrics
from confed.records.run_directory import RunDirectory


def test_a_round_has_one_line(directory: RunDirectory, run: RecordedRun) -> None:
    first, second = metrics.collect(directory)
    assert (first["round"], first["version"], first["cohort"], first["evaluate_cohort"]) == (1, 1, 3, 3)
    assert (second["cohort"], second["excluded"], second["digest"]) == (2, {"west": "no-answer"}, run.base(2))
    assert first["train"] == {"loss": 0.75}
    assert first["evaluate"] == {"accuracy": 0.6, "loss": 1.0}
    # Three clients trained and three evaluated.
    assert first["seconds"]["train"] == pytest.approx(3.0)
    assert first["seconds"]["commit"] == pytest.approx(0.2)


def test_a_summary_says_what_the_last_round_came_to(directory: RunDirectory) -> None:
    summary = metrics.summarize(directory, engine="local", total_s=1.23456, model="m")
    assert (summary["accuracy"], summary["loss"], summary["rounds"]) == (0.7, 0.5, 2)
    assert summary["dropped"] == [{"round": 2, "purpose": "train", "site": "west", "code": "no-answer"}]
    assert set(summary) == {
        "run", "engine", "environment", "rounds", "accuracy", "loss", "seconds", "total_s", "confidentiality_share",
        "model", "run_dir", "dropped", "ended", "ended_by", "epsilon",
    }  # fmt: skip
    assert list(summary["seconds"]) == ["fetch", "open", "train", "seal", "send", "combine", "commit"]


def test_a_run_without_rounds_has_a_summary(directory: RunDirectory) -> None:
    for path in (directory.path / "commits").iterdir():
        path.unlink()
    directory.events_file.unlink()
    summary = metrics.summarize(directory, engine="local", total_s=0, model="")
    assert (summary["rounds"], summary["accuracy"], summary["seconds"], summary["confidentiality_share"]) == (
        0,
        None,
        {},
        0,
    )


@pytest.mark.parametrize(
    ("told", "accuracy", "loss"),
    [
        ({"accuracy": 0.5, "loss": 2.0}, 0.5, 2.0),
        ({"eval_acc": 0.5, "eval_loss": 2.0}, 0.5, 2.0),
        ({"acc_b": 0.2, "acc_a": 0.1}, 0.1, None),
        ({}, None, None),
    ],
)
def test_accuracy_and_loss_are_found_by_name(told: dict, accuracy: float | None, loss: float | None) -> None:
    assert metrics.accuracy_of(told) == accuracy
    assert metrics.loss_of(told) == loss


@given(st.dictionaries(st.sampled_from(metrics.STAGES), st.floats(0, 1e6)))
def test_the_share_of_confidentiality_is_a_share(seconds: dict[str, float]) -> None:
    assert 0 <= metrics.confidentiality_share(seconds) <= 1


def test_events_that_are_not_numbers_are_left_out() -> None:
    events = [
        {
            "event": "client-done",
            "round": 1,
            "seconds": {"train": 1.0, "open": "x", "seal": float("nan"), "send": True},
        },
        {"event": "client-done", "round": 1, "seconds": [1]},
        {"event": "attested", "seconds": {"attest": 2.0}},
        {"event": "run-finished", "seconds": {"train": 100.0}},
    ]
    assert metrics.seconds_by_stage(events) == {"attest": 2.0, "train": 1.0}
    assert metrics.seconds_by_round(events) == {1: {"train": 1.0}}
