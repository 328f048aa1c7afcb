"""Other strategies go the whole road: the same app ends with the weights that Flower's own class gives it."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, RecordDict
from flwr.serverapp import strategy as flower

from confed.journey import Purpose
from confed.keybroker.statements import Candidate, Ticket
from confed.manifest import Manifest
from confed.records.run_directory import RunDirectory
from confed.statement import unverified
from tests.journey import runs
from tests.journey.plain import PlainGrid

GIVEN = "FedAdam(eta=0.05, "
STRATEGIES = {
    "Krum": "Krum(num_malicious_nodes=0, ",
    "FedAvgM": "FedAvgM(server_momentum=0.5, ",
    "QFedAvg": "QFedAvg(client_learning_rate=0.1, q=0.5, ",
}


def experiment(folder, name):
    """Return the ordinary app's experiment, made confidential, with another strategy and a cohort of all three."""
    config = runs.confidential_ordinary(folder, rounds=2, app=runs.LINEAR)
    server = folder / "server_app.py"
    server.write_text(server.read_text().replace(GIVEN, STRATEGIES[name]).replace("FedAdam", name))
    capped = "weight_cap = 1000.0\nloss_cap = 50.0" if name == "QFedAvg" else "weight_cap = 1000.0"
    config.write_text(config.read_text().replace("least = 2", "least = 3").replace("weight_cap = 1000.0", capped))
    return config


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_run_ends_as_in_plain_flower(name, tmp_path, monkeypatch):
    config = experiment(tmp_path / "experiment", name)
    summary = runs.run(config, home=tmp_path / "home", runs=tmp_path / "runs")
    weights, manifest = runs.final_weights(summary, home=tmp_path / "home")
    assert manifest.strategy.name == name
    changes = [(GIVEN, STRATEGIES[name]), ("FedAdam", name)]
    plain = plainly(changes, manifest, tmp_path / "plain", monkeypatch)
    assert set(plain) == set(weights)
    for tensor, array in weights.items():
        assert np.abs(array - plain[tensor]).max() <= 1e-6, tensor


FAIR = """
import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import FedAvg


class Fair(FedAvg):
    def __init__(self, pull=0.5, **others):
        super().__init__(**others)
        self.pull = pull

    def aggregate_train(self, server_round, replies):
        arrays, metrics = super().aggregate_train(server_round, replies)
        held = getattr(self, "held", None) or {name: array.numpy() for name, array in arrays.items()}
        self.held = {name: (1 - self.pull) * held[name] + self.pull * arrays[name].numpy() for name in held}
        return ArrayRecord({name: Array(np.asarray(array)) for name, array in self.held.items()}), metrics
"""


def test_a_strategy_class_beside_the_experiment_runs_in_the_enclave(tmp_path, monkeypatch):
    folder = tmp_path / "experiment"
    config = runs.confidential_ordinary(folder, rounds=2, app=runs.LINEAR)
    (folder / "fair.py").write_text(FAIR)
    changes = [(GIVEN, "Fair(pull=0.25, "), ("from flwr.serverapp.strategy import FedAdam", "from fair import Fair")]
    for old, new in changes:
        server = folder / "server_app.py"
        server.write_text(server.read_text().replace(old, new))
    config.write_text(config.read_text().replace("[app]", '[app]\nstrategy = "fair:Fair"'))
    summary = runs.run(config, home=tmp_path / "home", runs=tmp_path / "runs")
    weights, manifest = runs.final_weights(summary, home=tmp_path / "home")
    assert manifest.strategy.name == "fair:Fair"
    measured = runs.confed("measure", "strategy", "fair:Fair", "--directory", folder, home=tmp_path / "home")
    assert measured.stdout.strip() == manifest.code.strategy.digest
    plain = plainly(changes, manifest, tmp_path / "plain", monkeypatch, {"fair.py": FAIR})
    for tensor, array in weights.items():
        assert np.abs(array - plain[tensor]).max() <= 1e-6, tensor
    verified = runs.confed("verify", summary["run_dir"], home=tmp_path / "home")
    assert verified.returncode == 0, verified.stdout + verified.stderr


def test_a_slow_site_holds_nobody_up_and_counts_when_it_comes(tmp_path):
    folder = tmp_path / "experiment"
    config = runs.confidential_ordinary(folder, rounds=12, app=runs.LINEAR)
    server = folder / "server_app.py"
    text = server.read_text().replace(GIVEN, "FedBuff(buffer_size=2, max_staleness=15, fraction_evaluate=1.0, ")
    text = text.replace("from flwr.serverapp.strategy import FedAdam", "from confed.flower.fed_buff import FedBuff")
    server.write_text(text.replace("min_evaluate_nodes=3, ", ""))
    client = folder / "client_app.py"
    client.write_text(client.read_text().replace("app.train()(train_fn)", SLOW))
    settings = config.read_text().replace("count = 3", "count = 4")
    config.write_text(settings + '\n[compression]\nname = "bf16"\n')
    summary = runs.run(config, home=tmp_path / "home", runs=tmp_path / "runs")
    directory = RunDirectory.open(Path(summary["run_dir"]))
    late = []
    for number in range(1, 13):
        record = directory.commit(Purpose.TRAIN, number)
        tickets = [unverified(signed, Ticket) for signed in record.tickets]
        assert len(tickets) == 2
        late += [(number, ticket.round) for ticket in tickets if ticket.round < number]
        evaluated = unverified(directory.commit(Purpose.EVALUATE, number).candidate, Candidate)
        assert (evaluated.base, len(evaluated.cohort)) == (unverified(record.candidate, Candidate).digest, 2)
    assert late, "nobody was late"
    verified = runs.confed("verify", summary["run_dir"], home=tmp_path / "home")
    assert verified.returncode == 0, verified.stdout + verified.stderr


SLOW = """
@app.train()
def train(message, context):
    import time
    slow = context.node_config["partition-id"] == 0 and message.content["config"]["server-round"] == 1
    # Each round takes the quick ones half a second, so the slow one comes in one of the first, and not in its own.
    time.sleep(4.0 if slow else 0.3)
    return train_fn(message, context)
"""


def test_a_class_that_the_experiment_does_not_name_is_refused(tmp_path):
    folder = tmp_path / "experiment"
    config = runs.confidential_ordinary(folder, rounds=1, app=runs.LINEAR)
    (folder / "fair.py").write_text(FAIR)
    server = folder / "server_app.py"
    server.write_text(
        server.read_text().replace("from flwr.serverapp.strategy import FedAdam", "from fair import Fair")
    )
    server.write_text(server.read_text().replace(GIVEN, "Fair("))
    done = runs.confed("run", config, "--json", "--runs", tmp_path / "runs", home=tmp_path / "home")
    assert done.returncode == 2
    assert "app.strategy" in done.stderr


def plainly(changes, manifest: Manifest, folder, monkeypatch, files=None):
    """Run the same app without confed and return its last weights."""
    folder.mkdir()
    for file in ("task.py", "client_app.py", "server_app.py"):
        text = (runs.LINEAR / file).read_text()
        for old, new in changes:
            text = text.replace(old, new)
        (folder / file).write_text(text)
    for file, text in (files or {}).items():
        (folder / file).write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    captured = {}
    start = flower.Strategy.start

    def keep(self, **arguments):
        captured["result"] = start(self, **arguments)
        return captured["result"]

    monkeypatch.setattr(flower.Strategy, "start", keep)
    names = [site.owner.name for site in manifest.sites]
    settings = dict(manifest.settings)
    forget_apps()  # of tests before this one
    try:
        client = importlib.import_module("client_app").app
        grid = PlainGrid(client, names, run_config=settings, seed_of=manifest.client_seed)
        context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=settings)
        importlib.import_module("server_app").app(grid=grid, context=context)
    finally:
        forget_apps()
    return {tensor: array.numpy() for tensor, array in captured["result"].arrays.items()}


def forget_apps():
    for module in ("task", "client_app", "server_app", "fair"):
        sys.modules.pop(module, None)
