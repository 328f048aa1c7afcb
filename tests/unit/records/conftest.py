from __future__ import annotations

from pathlib import Path

import pytest
from confed.records.run_directory import RunDirectory
from records_world import RecordedRun


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> RecordedRun:
    recorded = RecordedRun(tmp_path_factory.mktemp("owners"))
    for home in recorded.homes.values():
        home.close()
    return recorded


@pytest.fixture
def directory(run: RecordedRun, tmp_path: Path) -> RunDirectory:
    return run.write(tmp_path / "run")
