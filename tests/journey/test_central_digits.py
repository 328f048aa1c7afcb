"""The whole of confidential training as a person starts it: killed in the middle, and plain torch to the bit at the end."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import re
import runpy
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clients.tasks.digits import Network
from confed.errors import RefusedError
from confed.experiment.owners import MODEL_OWNER
from confed.keybroker.identity import OwnerHome
from confed.keybroker.ledger import verify_ledger
from confed.keybroker.statements import LedgerEntry
from confed.keybroker.topics import checkpoint_topic
from confed.manifest import Manifest
from confed.records.run_directory import RunDirectory
from confed.records.verification import verify_run
from confed.statement import sign, unverified
from tests.journey import runs
from tests.journey.test_dropouts import children_of
from tests.journey.test_killed import Started

ROUNDS, EPOCHS, BATCH, EVERY, RATE = 2, 3, 8, 60, 0.05


def experiment(folder: Path) -> Path:
    """Copy the experiment, with fewer rounds and a checkpoint every few hundred examples."""
    shutil.copytree(runs.ROOT / "experiments" / "central-digits", folder)
    text = (folder / "config.toml").read_text()
    settings = {
        "rounds": ROUNDS, "epochs": EPOCHS, "batch-size": BATCH, "learning-rate": RATE, "lr-schedule": '"cosine"',
        "checkpoint-every-steps": EVERY, "checkpoint-every-s": 0,
    }  # fmt: skip
    for key, value in settings.items():
        text, found = re.subn(rf"(?m)^{key} = .*$", f"{key} = {value}", text)
        assert found == 1, key
    (folder / "config.toml").write_text(text)
    return folder / "config.toml"


def sealed_checkpoints(folder: Path | None) -> int:
    objects = folder / "courier" / "objects" if folder else None
    found = 0
    for path in objects.glob("*/*") if objects and objects.is_dir() else ():
        try:
            with path.open("rb") as file:
                found += b'"kind":"checkpoint"' in file.read(4096)
        except FileNotFoundError:
            continue  # it expired
    return found


def is_noted(folder: Path | None) -> bool:
    """Whether a broker's word about a checkpoint of round 1 is posted: that is once both owners' have noted it."""
    if folder is None:
        return False
    topic = hashlib.sha256(checkpoint_topic(folder.name, 1).encode()).hexdigest()
    return (folder / "courier" / "letters" / topic).is_dir()


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, Any], Path, Started]]:
    """A run whose training TEE is killed once a checkpoint of its is noted."""
    folder = tmp_path_factory.mktemp("central")
    run = Started(experiment(folder / "experiment"), folder)
    try:
        run.wait(lambda: run.seen("round-started", round=1))
        tee = next(pid for parent, words in children_of(run.process.pid) if "clients" in words for pid in [parent])
        run.wait(lambda: is_noted(run.directory), pause_s=0.0005)
        os.kill(tee, signal.SIGKILL)
        yield run.finished(), folder, run
    finally:
        run.stop()


def plain(manifest: Manifest, shard: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Train as anybody would with the same seed: no rounds, no checkpoints, nothing of confed."""
    torch.manual_seed(int(manifest.settings["model-seed"]))
    start = Network().state_dict()
    torch.manual_seed(manifest.client_seed(site="site-01", round_number=1))
    network = Network()
    network.load_state_dict(start)
    pixels, labels = torch.from_numpy(shard["train_pixels"]), torch.from_numpy(shard["train_labels"])
    optimizer = torch.optim.SGD(network.parameters(), lr=RATE, momentum=0.9)
    for epoch in range(ROUNDS * EPOCHS):
        for group in optimizer.param_groups:
            group["lr"] = RATE * (0.5 * (1 + math.cos(math.pi * epoch / (ROUNDS * EPOCHS))))
        for batch in torch.randperm(len(labels)).split(BATCH):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(pixels[batch]), labels[batch]).backward()
            optimizer.step()
    return {name: tensor.detach().numpy() for name, tensor in network.state_dict().items()}


def test_it_ends_with_the_weights_of_plain_torch(killed: tuple[dict[str, Any], Path, Started]) -> None:
    summary, folder, _ = killed
    found, manifest = runs.final_weights(summary, home=folder / "home")
    shards = runpy.run_path(str(folder / "experiment" / "data.py"))["shards"]
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        expected = plain(manifest, shards(["site-01"], manifest.seed, manifest.settings)["site-01"])
    finally:
        torch.set_num_threads(before)
    assert {name: array.tobytes() for name, array in found.items()} == {
        name: array.tobytes() for name, array in expected.items()
    }


def test_it_went_on_from_its_newest_checkpoint(killed: tuple[dict[str, Any], Path, Started]) -> None:
    summary, _, run = killed
    assert run.seen("round-abandoned", round=1)
    directory = RunDirectory.open(Path(summary["run_dir"]))
    manifest = directory.manifest()
    steps = EPOCHS * math.ceil(1438 / BATCH)
    noted: dict[tuple[int, int], str] = {}
    for party in (manifest.model.owner, manifest.sites[0].owner):
        entries = verify_ledger(directory.ledger(party.name), broker=party.broker, part_from=manifest.digest)
        bodies = [entry.body for entry in entries if entry.event == "checkpointed" and entry.body["round"] == 1]
        # The TEE may have died between two brokers' notes.
        noted |= {(body["counter"], body["attempt"]): body["instance"] for body in bodies}
    assert {attempt for _, attempt in noted} == {0, 1}
    assert len(set(noted.values())) == 2
    # Each counter once, and no more of them than steps: it did not start over.
    assert [counter for counter, _ in sorted(noted)] == list(range(1, len(noted) + 1))
    assert len(noted) == steps // EVERY


def test_its_records_verify_and_say_which_scenario_ran(killed: tuple[dict[str, Any], Path, Started]) -> None:
    summary, folder, _ = killed
    verified = runs.confed("verify", summary["run_dir"], home=folder / "home")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    directory = Path(summary["run_dir"])
    assert "confidential training in one TEE" in (directory / "report.html").read_text()
    assert json.loads((directory / "manifest.json").read_bytes())["scenario"] == "training"
    assert not (directory / "logs" / "aggregator.log").exists()
    assert sealed_checkpoints(directory) == 0


def rewritten(folder: Path, run_dir: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Path:
    """Copy a run's records with the model owner's ledger signed anew by its own broker: an owner that lies."""
    copy = folder / "tampered"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(run_dir, copy, ignore=shutil.ignore_patterns("courier", "sealed", "logs"))
    directory = RunDirectory.open(copy)
    owner = OwnerHome.load(MODEL_OWNER, home=folder / "home")
    before, entries = None, []
    for signed in directory.ledger(MODEL_OWNER):
        entry = unverified(signed, LedgerEntry)
        if entry.event == "checkpointed":
            entry = dataclasses.replace(entry, body=change(dict(entry.body)))
        entry = dataclasses.replace(entry, previous=entry.previous if before is None else before)
        entries.append(sign(entry, owner.broker_key))
        before = entries[-1].digest
    directory.write_ledger(MODEL_OWNER, entries)
    return copy


LIES: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], str]] = {
    "nothing": (lambda body: body, ""),
    "a counter that stands still": (lambda body: {**body, "counter": 1}, "checkpoint"),
    "an earlier attempt after a later one": (
        lambda body: {**body, "attempt": 2 if body["counter"] == 1 else body["attempt"]}, "checkpoint"
    ),
    "an instance that nobody attested": (lambda body: {**body, "instance": "0e" * 32}, "attested"),
    "a base that nobody committed": (lambda body: {**body, "base": "0e" * 32}, "base"),
}  # fmt: skip


@pytest.mark.parametrize("sentence", LIES)
def test_a_ledger_that_lies_about_checkpoints_does_not_verify(
    killed: tuple[dict[str, Any], Path, Started], sentence: str
) -> None:
    summary, folder, _ = killed
    change, named = LIES[sentence]
    copy = rewritten(folder, Path(summary["run_dir"]), change)
    if not named:
        verify_run(copy, trust=None)
        return
    with pytest.raises(RefusedError, match=named):
        verify_run(copy, trust=None)
