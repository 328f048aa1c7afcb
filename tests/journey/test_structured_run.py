"""An ordinary app whose head alone is trained, in bfloat16 and compressed: a whole run, verified; the body stays."""

import json

import numpy as np

from confed.manifest import Manifest
from confed.model.weights import BFLOAT16
from tests.journey import runs

TABLES = """
[model]
trained = ["2.*"]
bfloat16 = ["2.weight"]

[compression]
name = "int8"
feedback = true
"""


def test_a_run_trains_the_head_and_keeps_the_body(tmp_path):
    config = runs.confidential_ordinary(tmp_path / "experiment", rounds=2)
    config.write_text(config.read_text() + TABLES)
    home = tmp_path / "home"
    summary = runs.run(config, home=home, runs=tmp_path / "runs")
    weights, manifest = runs.final_weights(summary, home=home)
    assert manifest.model.trained == ("2.weight", "2.bias")
    assert Manifest.decode(manifest.encoded).compression == manifest.compression
    assert {name: array.dtype for name, array in weights.items()} == {
        "0.weight": np.float32,
        "0.bias": np.float32,
        "2.weight": BFLOAT16,
        "2.bias": np.float32,
    }
    start = runs.start_weights(summary, home=home)
    for name in ("0.weight", "0.bias"):
        assert weights[name].tobytes() == start[name].tobytes()
    for name in ("2.weight", "2.bias"):
        assert weights[name].tobytes() != start[name].tobytes()
    verified = runs.confed("verify", summary["run_dir"], "--json", home=home)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert json.loads(verified.stdout)["rounds"] == 2


def test_ray_is_refused_what_it_could_not_carry_over(tmp_path):
    config = runs.confidential_ordinary(tmp_path / "experiment", rounds=2)
    config.write_text(config.read_text() + TABLES)
    done = runs.confed("run", config, "--engine", "ray", "--runs", tmp_path / "runs", home=tmp_path / "home")
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].count("compression.feedback") == 1
