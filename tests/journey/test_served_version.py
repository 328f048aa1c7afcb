"""A version that a run made, all the way to an answer: run, serve, ask, receipt, and everybody's records verified."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton

from confed.experiment.owners import MODEL_OWNER
from confed.journey import Purpose
from confed.keybroker.identity import OwnerHome
from confed.manifest import Manifest
from confed.scenario import Scenario
from tests.journey import runs, warm

ENGINE = """
class Linear:
    def __init__(self, arrays, settings):
        self._arrays = arrays

    def inputs(self):
        return {"x": ("float32", (-1, 6))}

    def predict(self, tensors):
        return {"y": tensors["x"] @ self._arrays["weight"] + self._arrays["bias"]}
"""
SERVING = f"""
name = "reader"
environment = "simulation"
engine = "engine:Linear"
[model]
owner = "{MODEL_OWNER}"
file = "version.sealed"
"""
X = np.random.default_rng(4).random((30, 6), dtype=np.float32)


@dataclass(frozen=True, kw_only=True)
class Road:
    """A federation of three sites that has ended, and its last version at its owner's, to be served."""

    folder: Path
    summary: Mapping[str, Any]

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def confed(self, *words: Any) -> str:
        done = runs.confed(*words, home=self.home)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self, name: str, *words: Any) -> warm.Started:
        environment = {**os.environ, "CONFED_HOME": str(self.home)}
        return warm.Started([*map(str, words)], environment=environment, log=self.folder / f"{name}.log")


@pytest.fixture(scope="module")
def road(quick_disk: Path) -> Road:
    folder = quick_disk / "served-version"
    config = runs.confidential_ordinary(folder / "experiment", rounds=1, app=runs.LINEAR)
    summary = runs.run(config, home=folder / "home", runs=folder / "runs")
    (folder / "serving").mkdir()
    (folder / "serving" / "engine.py").write_text(ENGINE)
    (folder / "serving" / "serving.toml").write_text(SERVING)
    version = Path(summary["run_dir"]) / "versions" / "0001.sealed"
    (folder / "serving" / "version.sealed").write_bytes(version.read_bytes())
    return Road(folder=folder, summary=summary)


@dataclass(frozen=True, kw_only=True)
class Asked:
    proxy: str
    manifest: Manifest


@pytest.fixture(scope="module")
def asked(road: Road) -> Iterator[Asked]:
    """Broker, replica and proxy, each as a person starts it; the requester looks at the run's records first."""
    folder, config = road.folder, road.folder / "serving" / "serving.toml"
    origin = ("--run", road.summary["run_dir"], "--trust", road.home / "trust.json")
    manifest, policy, endpoint = (folder / name for name in ("manifest.json", "policy.json", "broker.json"))
    manifest.write_text(road.confed("infer", "manifest", config))
    road.confed("manifest", "approve", manifest, "--owner", MODEL_OWNER)
    policy.write_text(road.confed("infer", "policy", manifest, *origin))
    own = ("--owner", MODEL_OWNER, "--listen", f"unix:{folder}/b.sock")
    with ExitStack() as stack:
        broker = stack.enter_context(road.start("broker", "broker", "serve", *own)).said
        endpoint.write_text(json.dumps(broker))
        served = ("--config", config, "--broker", endpoint, "--listen", "127.0.0.1:0", "--records", folder / "records")
        replica = stack.enter_context(road.start("replica", "infer", "serve", manifest, *served)).said
        accepted = ("--policy", policy, "--listen", "127.0.0.1:0", "--receipts", folder / "receipts")
        proxy = stack.enter_context(road.start("proxy", "infer", "proxy", replica["url"], *accepted)).said
        yield Asked(proxy=proxy["url"], manifest=Manifest.decode(manifest.read_bytes()))


def test_a_client_that_nobody_here_wrote_gets_the_versions_own_answer(road: Road, asked: Asked) -> None:
    assert asked.manifest.serving is not None
    origin = asked.manifest.serving.origin
    assert origin is not None
    assert (origin.run, origin.version) == (road.summary["run"], 1)
    client = triton.InferenceServerClient(url=asked.proxy.removeprefix("http://"))
    given = triton.InferInput("x", list(X.shape), "FP32")
    given.set_data_from_numpy(X)
    found = client.infer("reader", [given]).as_numpy("y")
    client.close()
    weights, _ = runs.final_weights(road.summary, home=road.home)  # as its owner opens it
    assert found.tobytes() == (X @ weights["weight"] + weights["bias"]).tobytes()


def test_the_receipt_names_the_version_and_holds_for_these_texts(road: Road, asked: Asked) -> None:
    texts = {name: road.folder / name for name in ("request", "answer")}
    texts["request"].write_text(json.dumps({"inputs": [
        {"name": "x", "shape": [1, 6], "datatype": "FP32", "data": X[0].tolist()}
    ]}))  # fmt: skip
    before = set((road.folder / "receipts").glob("*.json"))
    words = ("--data-binary", f"@{texts['request']}", "--output", str(texts["answer"]))
    subprocess.run(
        ["curl", "--silent", "--fail", "--max-time", "60", f"{asked.proxy}/v2/models/reader/infer", *words], check=True
    )
    (proof,) = kept_since(before, road.folder / "receipts")
    command = ("infer", "verify-receipt", proof, "--policy", road.folder / "policy.json")
    receipt = json.loads(road.confed(*command, "--request", texts["request"], "--answer", texts["answer"]))
    assert receipt["model"] == asked.manifest.model.start.digest


def kept_since(before: set[Path], folder: Path) -> set[Path]:
    pause = threading.Event()
    for _ in range(3000):
        if found := set(folder.glob("*.json")) - before:
            return found
        pause.wait(0.01)
    raise AssertionError("no receipt was kept")


def test_the_records_of_the_run_and_of_the_serving_hold(road: Road, asked: Asked) -> None:
    owner, records = ("--owner", MODEL_OWNER), road.folder / "records"
    road.confed("infer", "records", records, *owner, "--broker", road.folder / "broker.json")
    trust = ("--trust", road.home / "trust.json", "--json")
    run = json.loads(road.confed("verify", road.summary["run_dir"], *trust))
    serving = json.loads(road.confed("verify", records, *trust))
    assert (run["manifest"], serving["manifest"]) == (asked.manifest.serving.origin.manifest, asked.manifest.digest)  # type: ignore[union-attr]
    assert (run["rounds"], serving["rounds"], serving["evidence"]) == (1, 0, 1)


def test_the_key_of_a_simulated_run_serves_what_the_run_made(road: Road) -> None:
    run = Manifest.decode((Path(road.summary["run_dir"]) / "manifest.json").read_bytes())
    with closing(OwnerHome.load(MODEL_OWNER, home=road.home)) as owner:
        floors = owner.floors(run.model.start.key_id)
    assert floors.scenarios == (Scenario.FEDERATED, Scenario.INFERENCE)
    assert Purpose.INFER in floors.purposes
