"""An ordinary Flower app becomes confidential by two changes, and learns the same."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, RecordDict

from tests.journey import runs
from tests.journey.plain import PlainGrid


@pytest.fixture(scope="module")
def confidential(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adoption")
    config = runs.confidential_ordinary(folder / "experiment")
    summary = runs.run(config, home=folder / "home", runs=folder / "runs")
    return summary, *runs.final_weights(summary, home=folder / "home")


@pytest.fixture
def ordinary(monkeypatch):
    monkeypatch.syspath_prepend(str(runs.ORDINARY))
    names = ("task", "client_app", "server_app")
    yield {name: importlib.import_module(name) for name in names}
    for name in names:
        sys.modules.pop(name, None)


def test_the_two_changes_are_all_there_is(tmp_path):
    runs.confidential_ordinary(tmp_path / "changed")
    changed = 0
    for name in ("task.py", "client_app.py", "server_app.py"):
        before = (runs.ORDINARY / name).read_text().splitlines()
        after = (tmp_path / "changed" / name).read_text().splitlines()
        changed += sum(1 for line in after if line not in before and "import" not in line)
    assert changed == 2


def test_the_same_apps_in_plain_flower_end_with_the_same_weights(confidential, ordinary, monkeypatch):
    summary, weights, manifest = confidential
    captured = {}
    strategy = importlib.import_module("flwr.serverapp.strategy").FedAdam
    start = strategy.start

    def keep(self, **arguments):
        captured["result"] = start(self, **arguments)
        return captured["result"]

    monkeypatch.setattr(strategy, "start", keep)
    names = [site.owner.name for site in manifest.sites]
    grid = PlainGrid(ordinary["client_app"].app, names, run_config=manifest.settings, seed_of=manifest.client_seed)
    context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=dict(manifest.settings))
    ordinary["server_app"].app(grid=grid, context=context)
    plain = {name: array.numpy() for name, array in captured["result"].arrays.items()}
    assert set(plain) == set(weights)
    for name, array in weights.items():
        assert np.abs(array - plain[name]).max() <= 1e-6, name
    metrics = captured["result"].evaluate_metrics_clientapp[manifest.rounds]
    lines = [json.loads(line) for line in (Path(summary["run_dir"]) / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["evaluate"]["eval_loss"] == pytest.approx(metrics["eval_loss"], abs=1e-5)
    assert lines[-1]["evaluate"]["eval_acc"] == pytest.approx(metrics["eval_acc"], abs=1e-5)
