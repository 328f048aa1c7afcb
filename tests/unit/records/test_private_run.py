"""A private run offline: its account is computed again, and one that does not hold is named."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from records_world import RecordedRun

from confed.errors import LineageError, RefusedError
from confed.journey import Purpose
from confed.keybroker import heads, lineage, succession
from confed.privacy.accounting import epsilon
from confed.privacy.terms import FixedClip, PrivacyState, PrivacyTerms, SamplingTerms
from confed.records.report import write_report
from confed.records.run_directory import RunDirectory
from confed.records.verification import verify_run

TERMS = PrivacyTerms(
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


def recorded(home: Path, *, rounds: int = 2, **changes: Any) -> RecordedRun:
    run = RecordedRun(home, rounds=rounds, privacy=dataclasses.replace(TERMS, **changes))
    for owner in run.homes.values():
        owner.close()
    return run


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> RecordedRun:
    return recorded(tmp_path_factory.mktemp("owners"))


@pytest.fixture
def directory(private: RecordedRun, tmp_path: Path) -> RunDirectory:
    return private.write(tmp_path / "run")


def releases_of(run: RecordedRun) -> int:
    spent = run._candidate(Purpose.TRAIN, 2).privacy
    assert spent is not None
    return spent.releases


def test_verify_says_what_was_spent(private: RecordedRun, directory: RunDirectory) -> None:
    verified = verify_run(directory.path, trust=private.trust)
    (what,) = (checked.what for checked in verified.steps if checked.step == "privacy")
    assert f"epsilon {epsilon(TERMS, releases_of(private)):.4f} of 20 at delta 1e-05, computed again" in what


def test_every_round_s_line_the_summary_and_the_report_say_epsilon(
    private: RecordedRun, directory: RunDirectory
) -> None:
    spent = [private._candidate(Purpose.TRAIN, number).privacy for number in (1, 2)]
    told = [one.epsilon for one in spent if one is not None]
    assert [line["epsilon"] for line in directory.metrics()] == told
    assert directory.summary()["epsilon"] == told[-1]
    page = write_report(directory).read_text()
    for value in told:
        assert f"epsilon {value:.4f} after" in page
    assert "epsilon at most 20 at delta 1e-05" in page


def test_a_run_that_its_budget_ended_verifies_with_that_reason(tmp_path: Path) -> None:
    # The second round took its second attempt: three releases.
    run = recorded(tmp_path / "owners", rounds=3, epsilon_budget=epsilon(TERMS, 3) + 1e-3)
    directory = run.write(tmp_path / "run")
    verified = verify_run(directory.path, trust=run.trust)
    assert verified.rounds == 2
    (closing,) = (checked.what for checked in verified.steps if checked.step == "closing")
    assert "privacy: epsilon" in closing
    assert (directory.summary()["ended_by"], directory.summary()["rounds"]) == ("privacy", 2)


@pytest.fixture
def blind_brokers(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """All owners' brokers and the enclave conspire: they look at no account."""

    def blind() -> None:
        for module in (heads, succession):
            monkeypatch.setattr(module, "verify_follows", lambda *_: None)
        monkeypatch.setattr(lineage, "verify_spent", lambda *_: None)

    return blind


FORGED: list[tuple[str, Callable[[PrivacyState], PrivacyState]]] = [
    ("a smaller epsilon", lambda state: dataclasses.replace(state, epsilon=state.epsilon / 2)),
    ("attempts that are forgotten", lambda state: dataclasses.replace(state, releases=2, epsilon=epsilon(TERMS, 2))),
    ("an attempt that nobody made", lambda state: dataclasses.replace(state, releases=4, epsilon=epsilon(TERMS, 4))),
    ("another clip norm", lambda state: dataclasses.replace(state, clip=5.0)),
]


@pytest.mark.parametrize(("what", "forge"), FORGED, ids=[what for what, _ in FORGED])
def test_an_account_that_everybody_agreed_to_falsify_is_seen_offline(
    what: str,
    forge: Callable[[PrivacyState], PrivacyState],
    blind_brokers: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    blind_brokers()
    honest = RecordedRun._spent
    with monkeypatch.context() as patched:
        patched.setattr(
            RecordedRun,
            "_spent",
            lambda run, number, attempt: (forge if number == 2 else lambda state: state)(honest(run, number, attempt)),
        )
        run = recorded(tmp_path / "owners")
        directory = run.write(tmp_path / "run")
    monkeypatch.undo()
    with pytest.raises(LineageError) as refused:
        verify_run(directory.path, trust=run.trust)
    assert "version 2" in str(refused.value)


def test_a_line_that_says_another_epsilon_is_refused(private: RecordedRun, directory: RunDirectory) -> None:
    text = directory.metrics_file.read_text()
    spent = private._candidate(Purpose.TRAIN, 2).privacy
    assert spent is not None
    assert str(spent.epsilon) in text
    directory.metrics_file.write_text(text.replace(str(spent.epsilon), "0.5"))
    with pytest.raises(RefusedError):
        verify_run(directory.path, trust=private.trust)
