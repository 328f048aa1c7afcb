"""The fuzzer of the benchmarks over every case, briefly; the README says how many inputs were run at length."""

import json
import os
import subprocess
import sys
from pathlib import Path

from folder import FOLDER, needs_vectors

pytestmark = needs_vectors

ROOT = Path(__file__).parents[2]
INPUTS = 4000


def test_broken_inputs_raise_nothing_but_attestation_errors():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.fuzzing", "--inputs", str(INPUTS), "--seed", "3"],
        cwd=ROOT, env={**os.environ, "CONFED_VECTORS": str(FOLDER)}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["inputs"] == INPUTS == sum(kind["inputs"] for kind in told["kinds"].values())
    assert len(told["kinds"]) == 10
    for name, kind in told["kinds"].items():
        assert kind["accepted"] < kind["inputs"] / 4, name
