"""The tabular experiment as a person starts it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from runs import ROOT, confed, run

TABULAR = ROOT / "experiments" / "tabular"


def copy(folder: Path, **changes: str) -> Path:
    """Copy the experiment; ``changes`` replace lines ``key = …`` of its file."""
    shutil.copytree(TABULAR, folder, ignore=shutil.ignore_patterns("__pycache__", "runs"))
    text = (folder / "config.toml").read_text()
    for key, value in changes.items():
        text, found = re.subn(rf"(?m)^{key} = .*$", value, text)
        assert found == 1, key
    (folder / "config.toml").write_text(text)
    return folder / "config.toml"


def test_hospitals_learn_from_tables_that_only_their_tees_open(tmp_path: Path) -> None:
    config = copy(tmp_path / "tabular", rounds="rounds = 2")
    summary = run(config, home=tmp_path / "home", runs=tmp_path / "runs")
    assert summary["dropped"] == []
    assert summary["accuracy"] > 0.85
    directory = Path(summary["run_dir"])
    checked = confed("verify", directory, home=tmp_path / "home")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    for path in directory.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert b"ward 3" not in content, path  # a value of a column that nobody opens
            assert b"PAR1" not in content or path.suffix == ".sealed", path
