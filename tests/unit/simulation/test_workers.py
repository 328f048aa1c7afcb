"""Client TEEs that are started before the run is known."""

import signal
from pathlib import Path

import pytest

from confed.simulation import workers


def test_a_pool_that_is_told_nothing_does_not_wait_for_its_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_STOP_S", 120.0)
    with workers.WorkerPool(2, log=tmp_path / "log") as pool:
        process = pool._process
    assert process.returncode == -signal.SIGKILL
