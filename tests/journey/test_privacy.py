"""A whole private run as a person starts it: charged, shown, halted at its budget and verified offline."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import runs

from confed.privacy.accounting import epsilon
from confed.records.run_directory import RunDirectory

PRIVATE = runs.ROOT / "experiments" / "private"
ROUNDS, FIT = 4, 2


@pytest.fixture(scope="module")
def halted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, RunDirectory, Path]:
    """A run of four rounds whose budget has room for two."""
    folder = tmp_path_factory.mktemp("private")
    shutil.copytree(PRIVATE, folder / "experiment", ignore=shutil.ignore_patterns("__pycache__"))
    config = folder / "experiment" / "config.toml"
    text = config.read_text()
    budget = 1.2  # two releases with noise 5 at delta 1e-4 spend 0.99, three 1.24
    for key, value in {"rounds": ROUNDS, "count": 4, "least": 3, "sites": 4, "epsilon_budget": budget}.items():
        text, found = re.subn(rf"(?m)^{key} = .*$", f"{key} = {value}", text)
        assert found == 1, key
    config.write_text(text)
    done = runs.confed("run", config, "--runs", folder / "runs", home=folder / "home")
    (path,) = (folder / "runs").iterdir()
    return done, RunDirectory.open(path), folder / "home"


def test_it_halts_at_its_budget_loudly(halted: tuple[Any, RunDirectory, Path]) -> None:
    done, directory, _ = halted
    assert done.returncode == 3, done.stdout + done.stderr
    assert "privacy: epsilon" in done.stderr
    assert "another one would make it" in done.stderr
    summary = directory.summary()
    assert (summary["rounds"], summary["ended_by"]) == (FIT, "privacy")


def test_every_round_shows_what_is_spent(halted: tuple[Any, RunDirectory, Path]) -> None:
    done, directory, _ = halted
    terms = directory.manifest().privacy
    assert terms is not None
    shown = [float(found) for found in re.findall(r"round \d/4 .* epsilon ([\d.]+)", done.stdout)]
    assert shown == pytest.approx([epsilon(terms, 1), epsilon(terms, 2)], rel=1e-3)
    lines = [json.loads(line) for line in (directory.path / "metrics.jsonl").read_text().splitlines()]
    assert [line["epsilon"] for line in lines] == [epsilon(terms, 1), epsilon(terms, 2)]
    assert "epsilon spent" in (directory.path / "report.html").read_text()


def test_it_is_closed_and_verifies_offline(halted: tuple[Any, RunDirectory, Path]) -> None:
    _, directory, home = halted
    done = runs.confed("verify", directory.path, home=home)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "computed again from 2 releases" in done.stdout
    assert "privacy: epsilon" in done.stdout


def test_no_metric_leaves(halted: tuple[Any, RunDirectory, Path]) -> None:
    _, directory, _ = halted
    for line in directory.metrics():
        assert line["train"] == line["evaluate"] == {}
