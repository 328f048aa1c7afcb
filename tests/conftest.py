"""What every test needs: a confed home of its own, and no telemetry."""

import gc
import itertools
import os
from pathlib import Path

import pytest

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


@pytest.fixture(autouse=True, scope="module")
def _what_was_imported_stays():
    # Flower's strategies collect garbage in every round, which takes half a second with every library imported.
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def _homes(tmp_path_factory):
    # Not ``tmp_path``: before pytest makes one it looks through all that are there, which takes longer with each test.
    folder = tmp_path_factory.mktemp("homes")
    return (folder / str(number) for number in itertools.count(1))


@pytest.fixture(autouse=True)
def own_home(_homes, monkeypatch) -> Path:
    """Name a home that is not there yet: no test may see or change the owners of whoever runs it."""
    home = next(_homes)
    monkeypatch.setenv("CONFED_HOME", str(home))
    return home
