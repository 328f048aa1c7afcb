"""``confed verify`` as it is called: what it prints, and its exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from records_world import RecordedRun
from typer.testing import CliRunner

from confed.cli.verify import app
from confed.errors import LedgerError, MissingFileError, RefusedError
from confed.records.run_directory import RunDirectory


@pytest.fixture
def home(tmp_path: Path, run: RecordedRun) -> Path:
    owners = {name: key.hex() for name, key in run.trust.owners.items()}
    anchors = {profile: [item.hex() for item in items] for profile, items in run.trust.anchors.items()}
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "trust.json").write_text(json.dumps({"owners": owners, "anchors": anchors}))
    return tmp_path / "home"


def call(*arguments: object, home: Path | None = None):
    environment = {"CONFED_HOME": str(home or "/nowhere")}
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env=environment)


@pytest.mark.parametrize("how", ["--trust", "--home", "CONFED_HOME"])
def test_a_run_verifies_against_trust_from_outside(how: str, directory: RunDirectory, home: Path) -> None:
    options = {"--trust": ("--trust", home / "trust.json"), "--home": ("--home", home), "CONFED_HOME": ()}[how]
    result = call(directory.path, *options, home=home if how == "CONFED_HOME" else None)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert len(lines) == 11
    assert all(line.startswith("ok") for line in lines[:10])
    assert lines[-1].startswith("verified  digits-1 (SIMULATION): 3 versions")


def test_the_result_as_json(directory: RunDirectory, home: Path) -> None:
    result = call(directory.path, "--home", home, "--json")
    told = json.loads(result.stdout)
    assert (told["run"], told["rounds"], told["self_consistent_only"], len(told["steps"])) == ("digits-1", 2, False, 10)


def test_without_trust_it_says_self_consistent_only_and_refuses(directory: RunDirectory) -> None:
    result = call(directory.path)
    assert isinstance(result.exception, RefusedError)
    assert "self-consistent only" in str(result.exception)
    assert result.exception.exit_code == 3
    assert "ok  closing" in result.stdout


def test_a_broken_link_is_named(directory: RunDirectory, home: Path) -> None:
    directory.closing_file.unlink()
    result = call(directory.path, "--home", home)
    assert isinstance(result.exception, LedgerError)
    assert "closing: expected a countersigned closing entry" in str(result.exception)


@pytest.mark.parametrize("options", [("--trust", "nowhere.json"), ("--home", "nowhere")])
def test_a_trust_that_was_named_must_be_there(options: tuple[str, str], directory: RunDirectory) -> None:
    result = call(directory.path, *options)
    assert isinstance(result.exception, MissingFileError)
    assert result.exception.exit_code == 2


def test_verifying_imports_neither_flower_nor_torch_nor_a_plotting_library() -> None:
    code = (
        "import sys, confed.cli.verify; "
        "sys.exit(bool({'flwr', 'torch', 'matplotlib', 'grpc._never'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
