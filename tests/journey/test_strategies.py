"""Other strategies go the whole road: the same app ends with the weights that Flower's own class gives it."""

import importlib
import sys

import numpy as np
import pytest
from flwr.app import Context, RecordDict
from flwr.serverapp import strategy as flower

from confed.manifest import Manifest
from tests.journey import runs
from tests.journey.plain import PlainGrid

GIVEN = "FedAdam(eta=0.05, "
STRATEGIES = {
    "Krum": "Krum(num_malicious_nodes=0, ",
    "FedAvgM": "FedAvgM(server_momentum=0.5, ",
}


def experiment(folder, name):
    """Return the ordinary app's experiment, made confidential, with another strategy and a cohort of all three."""
    config = runs.confidential_ordinary(folder, rounds=2)
    server = folder / "server_app.py"
    server.write_text(server.read_text().replace(GIVEN, STRATEGIES[name]).replace("FedAdam", name))
    config.write_text(config.read_text().replace("least = 2", "least = 3"))
    return config


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_run_ends_as_in_plain_flower(name, tmp_path, monkeypatch):
    config = experiment(tmp_path / "experiment", name)
    summary = runs.run(config, home=tmp_path / "home", runs=tmp_path / "runs")
    weights, manifest = runs.final_weights(summary, home=tmp_path / "home")
    assert manifest.strategy.name == name
    plain = plainly(name, manifest, tmp_path / "plain", monkeypatch)
    assert set(plain) == set(weights)
    for tensor, array in weights.items():
        assert np.abs(array - plain[tensor]).max() <= 1e-6, tensor


def plainly(name: str, manifest: Manifest, folder, monkeypatch):
    """Run the same app without confed and return its last weights."""
    folder.mkdir()
    for file in ("task.py", "client_app.py", "server_app.py"):
        text = (runs.ORDINARY / file).read_text().replace(GIVEN, STRATEGIES[name]).replace("FedAdam", name)
        (folder / file).write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    captured = {}
    made = getattr(flower, name)
    start = made.start

    def keep(self, **arguments):
        captured["result"] = start(self, **arguments)
        return captured["result"]

    monkeypatch.setattr(made, "start", keep)
    names = [site.owner.name for site in manifest.sites]
    settings = dict(manifest.settings)
    try:
        client = importlib.import_module("client_app").app
        grid = PlainGrid(client, names, run_config=settings, seed_of=manifest.client_seed)
        context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=settings)
        importlib.import_module("server_app").app(grid=grid, context=context)
    finally:
        for module in ("task", "client_app", "server_app"):
            sys.modules.pop(module, None)
    return {tensor: array.numpy() for tensor, array in captured["result"].arrays.items()}
