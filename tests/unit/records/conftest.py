from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from records_world import RecordedRun

from confed.records.run_directory import RunDirectory


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> RecordedRun:
    recorded = RecordedRun(tmp_path_factory.mktemp("owners"))
    for home in recorded.homes.values():
        home.close()
    return recorded


@pytest.fixture(scope="session")
def written(run: RecordedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run.write(tmp_path_factory.mktemp("written") / "run").path


@pytest.fixture
def directory(written: Path, tmp_path: Path) -> RunDirectory:
    return RunDirectory.open(Path(shutil.copytree(written, tmp_path / "run")))
