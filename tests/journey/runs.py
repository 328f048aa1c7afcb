"""Whole runs as a person starts them: experiment folders, the command line, and the final weights."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from confed.experiment.owners import MODEL_OWNER
from confed.keybroker.identity import OwnerHome
from confed.manifest import Manifest
from confed.model.weights import unpack
from confed.sealing.container import Container
from confed.sealing.derivation import container_key, version_key
from tests.journey import warm

ROOT = Path(__file__).resolve().parents[2]
ORDINARY = Path(__file__).parent / "apps" / "ordinary"
LINEAR = Path(__file__).parent / "apps" / "linear"

CLIENT_CHANGE = ("app = ClientApp()", "app = ClientApp(mods=[confed.client.confidential])")
SERVER_CHANGE = ("strategy = FedAdam(", "strategy = ConfidentialStrategy(FedAdam(")


def digits(folder, *, rounds=3, sites=3, least=2, **changes):
    """Copy the digits experiment with fewer sites and rounds; ``changes`` replace lines ``key = …``."""
    folder.mkdir(parents=True)
    for file in (ROOT / "experiments" / "digits").glob("*.py"):
        shutil.copy(file, folder)
    text = (ROOT / "experiments" / "digits" / "config.toml").read_text()
    values = {"rounds": rounds, "count": sites, "least": least, "sites": sites, "local-epochs": 2, **changes}
    for key, value in values.items():
        text, found = re.subn(rf"(?m)^{key} = .*$", f"{key} = {value}", text)
        assert found == 1, key
    (folder / "config.toml").write_text(text)
    return folder / "config.toml"


def confidential_ordinary(folder, *, rounds=3, app=ORDINARY):
    """Copy the ordinary app and make it confidential by the two changes, each checked to be one place."""
    folder.mkdir(parents=True)
    shutil.copy(app / "task.py", folder)
    client = (app / "client_app.py").read_text()
    server = (app / "server_app.py").read_text()
    assert client.count(CLIENT_CHANGE[0]) == 1
    client = "import confed.client\n" + client.replace(*CLIENT_CHANGE)
    line = next(entry for entry in server.splitlines() if SERVER_CHANGE[0] in entry)
    server = server.replace(line, line.replace(*SERVER_CHANGE) + ")")
    server = "from confed.governor.strategy import ConfidentialStrategy\n" + server
    (folder / "client_app.py").write_text(client)
    (folder / "server_app.py").write_text(server)
    (folder / "config.toml").write_text(f"""
name = "ordinary"
environment = "simulation"
[app]
client = "client_app:app"
server = "server_app:app"
[run]
rounds = {rounds}
seed = 3
[sites]
count = 3
[cohort]
least = 2
[data]
source = "app"
[update]
norm_bound = 100.0
weight_cap = 1000.0
[metrics]
clear = ["train_loss", "eval_loss", "eval_acc"]
[settings]
local-steps = 5
""")
    return folder / "config.toml"


def confed(*arguments, home, timeout=300, fresh=False):
    """Run the command line as a process and return it, finished; ``fresh``: by an interpreter that starts with it."""
    words, environment = [*map(str, arguments)], {**os.environ, "CONFED_HOME": str(home)}
    if not fresh:
        return warm.run(words, environment=environment, timeout_s=timeout)
    return subprocess.run(
        [sys.executable, "-m", "confed.cli.main", *words],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=ROOT,
        env=environment,
        check=False,
    )


def run(config, *, home, runs, engine="local", fresh=False):
    """Run an experiment and return its summary; fails the test with everything it printed if it does not end well."""
    done = confed("run", config, "--engine", engine, "--runs", runs, "--json", home=home, fresh=fresh)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def final_weights(summary, *, home):
    """Open the last version with the model owner's key."""
    directory = Path(summary["run_dir"])
    manifest = Manifest.decode((directory / "manifest.json").read_bytes())
    container = Container.map(directory / "versions" / f"{manifest.rounds:04d}.sealed")
    owner = OwnerHome.load(MODEL_OWNER, home=home)
    key = version_key(
        owner.key(manifest.model.start.key_id),
        run=manifest.run,
        version=manifest.rounds,
        attempt=container.header.detail["attempt"],
    )
    return unpack(container.unlock(key).read_all()), manifest


def start_weights(summary, *, home):
    """Open the version that a run started from, with the model owner's key."""
    directory = Path(summary["run_dir"])
    start = Manifest.decode((directory / "manifest.json").read_bytes()).model.start
    owner = OwnerHome.load(MODEL_OWNER, home=home)
    key = container_key(owner.key(start.key_id), container_id=start.container_id)
    return unpack(Container.map(directory / "versions" / "0000.sealed").unlock(key).read_all())
