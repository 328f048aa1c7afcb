"""Confidential tuning: one TEE, two owners, an adapter, and tickets that their owner sealed as a table.

The road in this process first, with canaries in every ticket and every wrong turn; then all of it as a person starts it.
"""

from __future__ import annotations

import dataclasses
import io
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pyarrow as pa
import pytest
import test_no_plaintext as seen
import test_tables as tables
from flwr.app import Context, RecordDict
from rich.console import Console
from road import Road
from runs import ROOT, run
from transformers import AutoModelForCausalLM

from confed.adapter import factor_name
from confed.cli import main
from confed.cli.display import RunDisplay
from confed.client import confidential, current
from confed.client.mod import RECORD
from confed.data.findings import topic
from confed.experiment.owners import MODEL_OWNER
from confed.manifest import Manifest, UpdateTerms
from confed.model.adapter import module_of, with_adapter
from confed.model.weights import unpack
from confed.preparation.contract import Contract
from confed.preparation.pipeline import Pipeline
from confed.scenario import Scenario

sys.path.insert(0, str(ROOT / "tests" / "unit" / "clients"))

import language_world
import test_tuning as tuning
from test_bad_data import SERVER

from clients.tasks.causal_lm import client_app

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")

SITE, HELP_DESK = "east", ROOT / "experiments" / "help-desk"
MODULE = "model.layers.0.self_attn.q_proj"
PROMPT, ANSWER, WARD = "canary-prompt-0816: the door?", " canary-answer-4712, push it", "canary-ward-2301"
CONTRACT = Contract.from_document(
    {
        "name": "tickets",
        "rows": {"least": 2, "most": 100},
        "others": "ignore",
        "columns": {"prompt": {"type": "text", "longest": 60}, "answer": {"type": "text", "longest": 60}},
    }
)
PIPELINE = Pipeline.from_document({"name": "once", "steps": [{"step": "deduplicate", "columns": ["prompt", "answer"]}]})
PAIRS = [(PROMPT, ANSWER), *((f"the door {at // 2}?", " push it") for at in range(12))]


def tickets(_site: str) -> pa.Table:
    prompts, answers = zip(*PAIRS, strict=True)
    return pa.table({"prompt": list(prompts), "answer": list(answers), "ward": [WARD] * len(PAIRS)})


def floors(scenario: Scenario) -> Callable[[str, Any], Mapping[str, Any]]:
    return lambda _name, _homes: {"scenarios": (scenario,), "discloses_to_model_owner": True}


def change(manifest: Manifest, **settings: Any) -> Manifest:
    update = UpdateTerms(norm_bound=100.0, weight_cap=100.0, loss_cap=None)
    values = {**tuning.SETTINGS, "test-every": 2, **settings}
    return dataclasses.replace(manifest, scenario=Scenario.TUNING, settings=values, update=update)


def land_of(folder: Path, **terms: Any) -> tables.TableLand:
    """Two owners, a tiny Llama with an adapter, and a sealed table of tickets."""
    adapter = language_world.terms("single")
    arrays = language_world.read_directory(language_world.hub_directory(folder / "model"))
    model, trained = with_adapter(arrays, adapter, rounds=3, updates=1, seed=7)
    values: dict[str, Any] = {
        "sites": (SITE,), "least": 1, "model": model, "trained": trained, "adapter": adapter, "change": change,
        "floors": floors(Scenario.TUNING), "table": tickets, "contract": CONTRACT, "pipeline": PIPELINE,
    }  # fmt: skip
    return tables.TableLand(folder=folder / "land", **{**values, **terms})


def context() -> Context:
    place: Any = {"partition-id": 0, "num-partitions": 1}
    return Context(run_id=11, node_id=7, node_config=place, state=RecordDict(), run_config={})


def ask(kind: str, number: int = 1) -> Any:
    return client_app(seen.told(kind, number), context())


@dataclasses.dataclass
class Tuned:
    road: Road
    start: dict[str, np.ndarray]
    everything: dict[str, bytes]


@pytest.fixture(scope="module")
def tuned(quick_disk: Path) -> Iterator[Tuned]:
    """Two rounds and their evaluations, and all that could be seen of them from outside."""
    folder = Path(tempfile.mkdtemp(dir=quick_disk))
    land = land_of(folder)
    with pytest.MonkeyPatch.context() as patch, seen.everything_said() as said, seen.recorded(patch) as messages:
        seen.be_a_server_app_process(patch)
        (folder / "road").mkdir()
        patch.setattr(tempfile, "tempdir", str(folder / "road"))
        with Road(land, folder / "road") as road:
            patch.setattr(current, "_session", road.session(SITE))
            for number in (1, 2):
                for kind in ("train", "evaluate"):
                    reply = ask(kind, number)
                    assert not reply.has_error(), reply.error
                    named = {name for name in reply.content[RECORD] if not name.startswith("seconds-")}
                    assert named == {"site", "digest"}
            wires = {f"gRPC message {at}": message for at, message in enumerate(messages)}
            everything = {**wires, **seen.files_under(folder / "road"), "log": said.getvalue().encode()}
            yield Tuned(road, dict(land.model), everything)


def test_only_the_adapter_of_a_version_is_another(tuned: Tuned) -> None:
    for number in (1, 2):
        version = tuned.road.open_version(number)
        assert list(version) == list(tuned.start)
        for name, array in tuned.start.items():
            assert (version[name].tobytes() != array.tobytes()) == (module_of(name) is not None), name


def test_the_display_says_which_scenario_runs(tuned: Tuned) -> None:
    shown = io.StringIO()
    RunDisplay(console=Console(file=shown)).begin(tuned.road.manifest)
    assert "confidential tuning in one TEE, 3 rounds, low-rank adapter, rank 4" in shown.getvalue()


def test_the_loss_falls_on_rows_that_were_kept_for_evaluation(tuned: Tuned) -> None:
    losses = [tuned.road.record(number, "evaluate").metrics.values["loss"] for number in (1, 2)]
    assert losses[1] < losses[0] - 0.02


def test_nothing_of_tickets_or_weights_is_anywhere(tuned: Tuned) -> None:
    version = tuned.road.open_version(2)
    factor = next(array for name, array in version.items() if module_of(name) is not None)
    canaries = {
        "prompt": seen.encodings(PROMPT.encode()),
        "answer": seen.encodings(ANSWER.encode()),
        "a column that nobody opens": seen.encodings(WARD.encode()),
        "tokenizer": seen.encodings(b'"type":"ByteLevel"'),
        "base": seen.encodings(tuned.start["model.layers.0.self_attn.q_proj.weight"][0, :8].tobytes()),
        "adapter": seen.encodings(factor[0, :8].tobytes()),
    }
    assert len(tuned.everything) > 40
    assert any(name.startswith("courier/objects/") for name in tuned.everything)
    assert seen.found(tuned.everything, canaries) == []
    opened = {name: array.tobytes() for name, array in version.items()}
    assert {entry.split()[0] for entry in seen.found(opened, canaries)} >= {"base", "adapter"}


def test_wrong_turns_make_no_version(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen.be_a_server_app_process(monkeypatch)
    land = land_of(place)
    with Road(land, place / "road") as road:
        for attempt, (app, code) in enumerate(tuning.APPS.values()):
            monkeypatch.setattr(current, "_session", road.session(SITE))
            reply = confidential(seen.told("train", 1, attempt=attempt), context(), app)
            assert reply.error.reason == code
        assert not road.published(1)


SETTINGS = {
    "a column that is not in the table": ({"answer-column": "reply"}, "column"),
    "nothing kept for evaluation": ({"test-every": 1}, "setting-test-every"),
    "a quantization that there is not": ({"quantize": "int3"}, "setting-quantize"),
    "more tokens than it may have": ({"max-tokens": 9}, "sequence-length"),
}


@pytest.mark.parametrize("what", SETTINGS)
def test_a_setting_that_does_not_fit_is_told_by_its_name(
    what: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, code = SETTINGS[what]
    seen.be_a_server_app_process(monkeypatch)
    with Road(land_of(place, change=lambda manifest: change(manifest, **settings)), place / "road") as road:
        monkeypatch.setattr(current, "_session", road.session(SITE))
        assert ask("train").error.reason == code


# Tables where one TEE trains tensors of the model, not an adapter.


def training(manifest: Manifest) -> Manifest:
    return dataclasses.replace(manifest, scenario=Scenario.TRAINING)


@pytest.mark.parametrize("site", ["east", "west"])
def test_one_tee_trains_on_a_table_and_tells_its_owner_alone_what_breaks_the_contract(
    site: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen.be_a_server_app_process(monkeypatch)
    terms: dict[str, Any] = {"sites": (site,), "least": 1, "change": training}
    land = tables.TableLand(
        folder=place / "land", statistics=tables.STATISTICS, **terms,
        floors=lambda name, homes: {
            **floors(Scenario.TRAINING)(name, homes), **tables.permitting(0.5)(name, homes),
        },
    )  # fmt: skip
    with Road(land, place / "road") as road:
        monkeypatch.setattr(current, "_session", road.session(site))
        reply = tables.app(seen.told("train", 1), seen.context_of(site))
        if site == "west":
            assert reply.error.reason == "contract"
            assert len(road.courier.collect(topic(run="run-1", site=site))) == 1
            assert not road.published(1)
            return
        assert not reply.has_error(), reply.error
        assert tables.seen["east"]["labels"] == [1, 0]
        assert road.published(1)
        assert len(tables.released(road)) == 1


# As a person starts it.


Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run the command line in this process: exit code, output, errors."""

    def run_it(*arguments: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["confed", *map(str, arguments)])
        path, code = list(sys.path), 0
        try:
            main.run()
        except SystemExit as ended:
            code = int(ended.code or 0)
        finally:
            sys.path[:] = path
        told = capsys.readouterr()
        return code, told.out, told.err

    return run_it


def one_site(folder: Path, **changes: str) -> Path:
    """Copy the experiment, for a tiny model's directory and what ``confed data seal`` makes."""
    shutil.copytree(HELP_DESK, folder, ignore=shutil.ignore_patterns("__pycache__", "runs"))
    language_world.hub_directory(folder / "model")
    (folder / "server_app.py").write_text(SERVER)
    text = (folder / "one-site.toml").read_text()
    values = {"rounds": "2", "max-tokens": "96", "shards": 'files = "{site}.jsonl.sealed"', **changes}
    for key, value in values.items():
        line = value if key == "shards" else f"{key} = {value}"
        text, found = re.subn(rf"(?m)^{key} = .*$", line, text)
        assert found == 1, key
    (folder / "one-site.toml").write_text(text)
    return folder / "one-site.toml"


def written(folder: Path) -> Path:
    """Write a department's conversations as JSON lines; a column more than the contract has."""
    pairs = [(f"Accounts: printer {at % 7} is out of paper\nAnswer:", f" Fill tray {at % 7}.") for at in range(40)]
    lines = [json.dumps({"prompt": prompt, "answer": answer, "ward": WARD}) + "\n" for prompt, answer in pairs]
    (folder / "service-desk.jsonl").write_text("".join(lines))
    return folder / "service-desk.jsonl"


def test_sealed_conversations_are_tuned_on_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("CONFED_HOME", str(home))
    config = one_site(tmp_path / "help-desk")
    file = written(config.parent)
    contract = config.parent / "contract.toml"
    assert call("broker", "create", "--owner", "service-desk", "--environment", "simulation")[0] == 0
    sealed = call("data", "seal", file, "--contract", contract, "--owner", "service-desk", "--least-cohort", "1",
                  "--discloses-to-model-owner")  # fmt: skip
    assert sealed[0] == 0, sealed
    file.unlink()  # nobody needs it any more
    summary = run(config, home=home, runs=tmp_path / "runs")
    directory = Path(summary["run_dir"])
    manifest = Manifest.decode((directory / "manifest.json").read_bytes())
    assert manifest.scenario is Scenario.TUNING
    assert manifest.sites[0].dataset is not None
    assert manifest.sites[0].dataset.digest == sealed[1].strip()
    assert "confidential tuning in one TEE" in (directory / "report.html").read_text()
    verified = call("verify", directory)
    assert verified[0] == 0, verified
    assert not [name for name, data in seen.files_under(directory).items() if WARD.encode() in data]
    owner_gets_the_base_and_the_adapter(directory, config, call)


def owner_gets_the_base_and_the_adapter(directory: Path, config: Path, call: Call) -> None:
    """What comes of it opens as the base that was sealed and the adapter that PEFT reads; and is sealed anew."""
    out, start, last = directory.parent, directory / "versions" / "0000.sealed", directory / "versions" / "0002.sealed"
    ours = ("--owner", MODEL_OWNER)
    assert call("model", "open", start, *ours, "--out", out / "start.safetensors")[0] == 0
    assert call("model", "open", last, *ours, "--directory", "--out", out / "tuned")[0] == 0
    before = unpack(bytearray((out / "start.safetensors").read_bytes()))
    base = unpack(bytearray((out / "tuned" / "model.safetensors").read_bytes()))
    assert {name: array.tobytes() for name, array in base.items()} == {name: before[name].tobytes() for name in base}
    model = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(out / "tuned"), out / "tuned" / "adapter"
    )
    factor = model.state_dict()[f"base_model.model.{MODULE}.lora_B.default.weight"]
    assert factor.abs().max() > 0
    again = ("--adapter", config, "--scenario", "tuning", "--least-cohort", "1", "--out", out / "again.sealed")
    sealed = call("model", "seal", out / "tuned", *ours, *again)
    assert sealed[0] == 0, sealed
    assert call("model", "open", out / "again.sealed", *ours, "--out", out / "again.safetensors")[0] == 0
    after = unpack(bytearray((out / "again.safetensors").read_bytes()))
    assert set(after) == set(before)
    assert np.array_equal(after[factor_name(MODULE, "B")], factor.numpy())
