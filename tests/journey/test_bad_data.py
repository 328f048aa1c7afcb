"""Models and data that cannot be used, where one TEE tunes or trains: one clear line each, and nothing of a value."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_no_plaintext as seen
from road import Land, Road
from runs import ROOT
from test_training import SITE, TERMS, training

from clients.tasks import central
from clients.tasks.digits import Network
from confed.cli import main
from confed.client import current
from confed.errors import error_for

sys.path.insert(0, str(ROOT / "tests" / "unit" / "clients"))

import language_world

CANARY = "canary-4711"
SERVER = """
from pathlib import Path
from flwr.app import Array, ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from confed.governor.strategy import ConfidentialStrategy
from confed.model.hub import read_directory

app = ServerApp()


@app.main()
def main(grid, context):
    rounds = int(context.run_config["num-server-rounds"])

    def base():
        found = read_directory(Path(__file__).parent / "model")
        return ArrayRecord({name: Array(array) for name, array in found.items()})

    ConfidentialStrategy(FedAvg(min_available_nodes=1)).start(grid=grid, initial_arrays=base, num_rounds=rounds)
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return language_world.hub_directory(tmp_path_factory.mktemp("hub") / "model")


@pytest.fixture
def experiment(tmp_path: Path, hub: Path) -> Path:
    """The help desk with one site, on a model's directory and a file of JSON lines, as somebody would bring them."""
    folder = tmp_path / "experiment"
    shutil.copytree(ROOT / "experiments" / "help-desk", folder, ignore=shutil.ignore_patterns("__pycache__", "runs"))
    shutil.copytree(hub, folder / "model")
    (folder / "server_app.py").write_text(SERVER)
    rewrite(folder, 'shards = "data:tables"', 'files = "{site}.jsonl"')
    lines(folder, *({"prompt": f"{at}?", "answer": " yes"} for at in range(12)))
    return folder


def rewrite(folder: Path, before: str, after: str) -> None:
    text = (folder / "one-site.toml").read_text()
    assert text.count(before) == 1, before
    (folder / "one-site.toml").write_text(text.replace(before, after))


def lines(folder: Path, *rows: dict[str, Any]) -> None:
    (folder / "service-desk.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def changed(folder: Path, **changes: Any) -> None:
    lines(folder, *({"prompt": f"{at}?", "answer": " yes", **changes} for at in range(12)))


Turn = Callable[[Path], object]
BAD: dict[str, tuple[Turn, list[str]]] = {
    "pickled weights": (
        lambda folder: (folder / "model" / "pytorch_model.bin").write_bytes(b"\x80\x04" + CANARY.encode()),
        ["pytorch_model.bin", "may hold code"],
    ),
    "no tokenizer": (lambda folder: (folder / "model" / "tokenizer.json").unlink(), ["tokenizer.json"]),
    "a model that brings code": (
        lambda folder: language_world.changed_json(folder / "model" / "config.json", auto_map={"A": "x.Y"}),
        ["config.json", "auto_map"],
    ),
    "no weights": (lambda folder: (folder / "model" / "model.safetensors").unlink(), ["safetensors"]),
    "an adapter for modules that are not there": (
        lambda folder: rewrite(folder, '"q_proj"', '"c_attn"'), ["c_attn"]
    ),
    "a table that breaks its contract": (
        lambda folder: changed(folder, answer=CANARY * 1000), ["service-desk", "column answer: longest, 12 times"]
    ),
    "too few rows": (lambda folder: lines(folder, {"prompt": CANARY, "answer": "x"}), ["service-desk", "rows"]),
    "an empty shard": (lines, ["service-desk.jsonl", "at least one row"]),
    "a column of the wrong type": (lambda folder: changed(folder, prompt=[CANARY]), ["service-desk", "column prompt"]),
    "a column that is missing": (
        lambda folder: lines(folder, *[{"prompt": CANARY}] * 12), ["service-desk", "column answer"]
    ),
    "a setting that tuning does not take": (
        lambda folder: rewrite(folder, "learning-rate = 0.005", "learning-rate = -1"), ["settings.learning-rate"]
    ),
    "an adapter where one TEE trains the model's tensors": (
        lambda folder: rewrite(folder, 'scenario = "tuning"', 'scenario = "training"'), ["scenario", "tuning"]
    ),
    "tuning for two sites in one TEE": (
        lambda folder: rewrite(folder, 'count = 1\nnames = ["service-desk"]', "count = 2"), ["sites.count"]
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_used_is_told_in_one_line(
    what: str, experiment: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    turn, told = BAD[what]
    turn(experiment)
    arguments = ["confed", "manifest", "show", str(experiment / "one-site.toml"), "--home", str(experiment / "home")]
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit) as ended:
        main.run()
    captured = capsys.readouterr()
    (line,) = captured.err.strip().splitlines()
    assert ended.value.code == 2
    assert line.startswith("error: ")
    for part in told:
        assert part in line
    assert CANARY not in captured.out + captured.err


def test_more_classes_than_the_model_has_are_told_by_a_code(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen.be_a_server_app_process(monkeypatch)
    model = {name: tensor.numpy() for name, tensor in Network().state_dict().items()}
    pixels, labels = np.zeros((4, 64), np.float32), np.array([0, 9, 10, 3])
    shard = {"train_pixels": pixels, "train_labels": labels, "test_pixels": pixels, "test_labels": labels}
    settings = {"epochs": 1, "num-server-rounds": 3, "batch-size": 2, "learning-rate": 0.1}

    def change(manifest: Any) -> Any:
        return dataclasses.replace(training(manifest), settings=settings)

    land = Land(folder=place / "land", **{**TERMS, "change": change}, model=model, data=lambda _: shard)
    with Road(land, place / "road") as road:
        monkeypatch.setattr(current, "_session", road.session(SITE))
        reply = central.client_app(seen.told("train", 1), seen.context_of(SITE))
    assert reply.error.reason == "class-count"
    assert "more classes than the model has" in str(error_for(reply.error.reason, "the training TEE"))
