"""What every test needs: a confed home of its own, and no telemetry."""

import gc
import os

import pytest

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


@pytest.fixture(autouse=True, scope="module")
def _what_was_imported_stays():
    # Flower's strategies collect garbage in every round, which takes half a second with every library imported.
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _own_home(tmp_path, monkeypatch):
    # No test may see or change the owners of whoever runs it.
    monkeypatch.setenv("CONFED_HOME", str(tmp_path / "confed-home"))
