"""Where the real evidence lies, and its index."""

import json
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

FOLDER = Path(os.environ.get("CONFED_VECTORS") or Path(__file__).parents[3] / "shared" / "vectors")

needs_vectors = pytest.mark.skipif(
    not (FOLDER / "MANIFEST.json").is_file(), reason=f"no real evidence in {FOLDER} (set CONFED_VECTORS)"
)


def read(name):
    """Return the bytes of a file in the folder, by its path in the index."""
    return (FOLDER / name).read_bytes()


def sets_of(*kinds):
    """Return the index entries of these kinds by id; none where the folder is absent."""
    index = FOLDER / "MANIFEST.json"
    if not index.is_file():
        return {}
    return {entry["id"]: entry for entry in json.loads(index.read_text())["sets"] if entry["kind"] in kinds}


def at(unix_time):
    """Return the aware time of a Unix time in seconds."""
    return datetime.fromtimestamp(unix_time, UTC)
