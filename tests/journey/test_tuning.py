"""Confidential tuning: a language model and its adapter go the whole road; and every wrong turn of an app beside it."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import test_no_plaintext as seen
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from road import Aggregator, Land, Road
from runs import ROOT, confed, final_weights, run

from confed.adapter import AdapterTerms, module_of
from confed.cli.data import seal
from confed.client import confidential, current, opened_model, site_adapter
from confed.client.current import SiteAdapter
from confed.client.mod import RECORD
from confed.data.texts import pairs_of
from confed.keybroker.identity import OwnerHome
from confed.manifest import SIMULATION, Manifest, MetricTerms, UpdateTerms
from confed.model.adapter import with_adapter

sys.path.insert(0, str(ROOT / "tests" / "unit" / "clients"))

import language_world

from clients.tasks.causal_lm import client_app, evaluate, open_model
from clients.tasks.instructions import pack_texts, sequences

pytestmark = [
    pytest.mark.filterwarnings("ignore:Full backward hook is firing"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),
]
MakeRoad = Callable[..., Road]
Arrays = dict[str, np.ndarray]

SITES = ("east", "north")
DEPARTMENTS = ("accounts", "laboratory")
DATA = """source = "files"
files = "{site}.jsonl.sealed"
contract = "contract.toml"
pipeline = "pipeline.toml\""""
PROMPT, ANSWER = "canary-prompt-0815: the door?", " canary-answer-4711, push it"
SETTINGS = {"local-epochs": 2, "learning-rate": 0.05, "batch-size": 4, "max-tokens": 96}


def data(index: int) -> Arrays:
    pairs = [(PROMPT, ANSWER), ("no paper", " open the tray"), ("black screen", " press the button")]
    return pack_texts(pairs[index:], part="train") | pack_texts(pairs[:1], part="test")


def tuning(manifest: Manifest) -> Manifest:
    update = UpdateTerms(norm_bound=100.0, weight_cap=100.0, loss_cap=None)
    return dataclasses.replace(manifest, settings={**SETTINGS, **manifest.settings}, update=update)


def land_of(folder: Path, adapter: AdapterTerms, **terms: Any) -> Land:
    """Return owners, and a tiny Llama with an adapter that their manifest names."""
    arrays = language_world.read_directory(language_world.hub_directory(folder / "model"))
    model, trained = with_adapter(arrays, adapter, rounds=3, updates=len(SITES), seed=7)
    values: dict[str, Any] = {"sites": SITES, "model": model, "data": data, "trained": trained, "adapter": adapter}
    first = terms.pop("change", None)
    change = tuning if first is None else lambda manifest: tuning(first(manifest))
    return Land(folder=folder / "land", change=change, **{**values, **terms})


def context_of(site: str, sites: tuple[str, ...] = SITES) -> Context:
    place: Any = {"partition-id": sites.index(site), "num-partitions": len(sites)}
    return Context(run_id=11, node_id=7, node_config=place, state=RecordDict(), run_config={})


def walk(aggregator: Aggregator, kind: str, number: int, app: Any = client_app) -> Any:
    """One round through Flower's ClientApp at each site."""
    aggregator.open(number, purpose=kind)
    for site in SITES:
        reply = app(seen.told(kind, number), context_of(site))
        assert not reply.has_error(), reply.error
        aggregator.governor.submit(site=site, digest=str(reply.content[RECORD]["digest"]))
    return aggregator.close_round({})


@dataclasses.dataclass
class Tuned:
    """Two rounds, and all that could be seen of them from outside."""

    road: Road
    start: Arrays
    losses: list[float]
    everything: dict[str, bytes]


@pytest.fixture(scope="module")
def tuned(quick_disk: Path) -> Iterator[Tuned]:
    folder = Path(tempfile.mkdtemp(dir=quick_disk))
    land = land_of(folder, language_world.terms("product", ranks={"east": 2, "north": 4}))
    with pytest.MonkeyPatch.context() as patch, seen.everything_said() as said, seen.recorded(patch) as messages:
        seen.be_a_server_app_process(patch)
        with Road(land, folder / "road") as road:
            aggregator = road.aggregator()
            patch.setattr(current, "_session", road.session(*SITES))
            losses: list[float] = []
            for number in (1, 2):
                assert not walk(aggregator, "train", number).excluded
                losses.append(walk(aggregator, "evaluate", number).metrics["loss"])
            wires = {f"gRPC message {at}": message for at, message in enumerate(messages)}
            files = seen.files_under(folder / "road")
            everything = {**wires, **files, "log": said.getvalue().encode()}
            yield Tuned(road, dict(land.model), losses, everything)


def test_only_the_adapter_of_a_version_is_another(tuned: Tuned) -> None:
    version = tuned.road.open_version(2)
    assert list(version) == list(tuned.start)
    for name, array in tuned.start.items():
        assert (version[name].tobytes() != array.tobytes()) == (module_of(name) is not None), name


def test_the_loss_falls(tuned: Tuned) -> None:
    assert tuned.losses[1] < tuned.losses[0] - 0.02


def test_nothing_of_prompts_or_weights_is_anywhere(tuned: Tuned) -> None:
    weights = tuned.start["model.layers.0.self_attn.q_proj.weight"]
    factor = next(array for name, array in tuned.road.open_version(2).items() if module_of(name) is not None)
    canaries = {
        "prompt": seen.encodings(PROMPT.encode()),
        "answer": seen.encodings(ANSWER.encode()),
        "tokenizer": seen.encodings(b'"type":"ByteLevel"'),
        "base": seen.encodings(weights[0, :8].tobytes()),
        "adapter": seen.encodings(factor[0, :8].tobytes()),
    }
    assert len(tuned.everything) > 60
    assert seen.found(tuned.everything, canaries) == []
    opened = {name: array.tobytes() for name, array in tuned.road.open_version(2).items()}
    assert {entry.split()[0] for entry in seen.found(opened, canaries)} >= {"base", "adapter"}


# Wrong turns of an app: what it gives back, and what it does to the memory that it was given.


def reply_of(message: Message, arrays: Arrays) -> Message:
    record = ArrayRecord({name: Array(array) for name, array in arrays.items()})
    metrics = MetricRecord({"num-examples": 2, "loss": 1.0})
    return Message(RecordDict({"arrays": record, "metrics": metrics}), reply_to=message)


def given(message: Message) -> Arrays:
    return {name: array.numpy() for name, array in message.content.array_records["arrays"].items()}


def that_writes_into_the_base(message: Message, context: Context) -> Message:
    opened_model(context)["model.norm.weight"][0] += 1
    return reply_of(message, given(message))


def that_gives_back_another_base(message: Message, context: Context) -> Message:
    whole = {name: np.array(array) for name, array in opened_model(context).items()}
    whole["model.norm.weight"][0] += 1
    return reply_of(message, whole)


def that_gives_back_a_tensor_more(message: Message, context: Context) -> Message:
    return reply_of(message, {**given(message), "model.norm.weight": opened_model(context)["model.norm.weight"]})


def that_gives_back_a_factor_less(message: Message, context: Context) -> Message:
    assert site_adapter(context) is not None
    return reply_of(message, dict(list(given(message).items())[1:]))


APPS = {
    "writes into the base": (that_writes_into_the_base, "adapter"),
    "gives back another base": (that_gives_back_another_base, "adapter"),
    "gives back a tensor more": (that_gives_back_a_tensor_more, "shape"),
    "gives back a factor less": (that_gives_back_a_factor_less, "shape"),
}


@pytest.mark.parametrize("what", APPS)
def test_an_app_that(what: str, make_road: MakeRoad, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app, code = APPS[what]
    land = land_of(place, language_world.terms())
    seen.be_a_server_app_process(monkeypatch)
    with Road(land, place / "road") as road:
        monkeypatch.setattr(current, "_session", road.session(*SITES))
        road.aggregator().open(1)
        reply = confidential(seen.told("train", 1), context_of("east"), app)
        assert reply.error.reason == code


def test_with_privacy_nothing_but_the_count_of_examples_is_declared(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private = {"noise-multiplier": 1.0, "clip-norm": 1.0, "sampling-rate": 0.5, "local-steps": 2, "delta": 1e-3}
    clear = MetricTerms(clear=(), decimals=4)
    land = land_of(
        place,
        language_world.terms(),
        change=lambda manifest: dataclasses.replace(manifest, settings=private, metrics=clear),
    )
    declared: list[dict[str, float]] = []
    seen.be_a_server_app_process(monkeypatch)
    with Road(land, place / "road") as road:
        session = road.session(*SITES)
        monkeypatch.setattr(current, "_session", session)
        sealed = session.seal_result
        monkeypatch.setattr(
            session,
            "seal_result",
            lambda *args, metrics, **rest: declared.append(metrics) or sealed(*args, metrics=metrics, **rest),
        )
        aggregator = road.aggregator()
        for kind in ("train", "evaluate"):
            assert not walk(aggregator, kind, 1).excluded
        assert declared == [{}] * 4
        version = road.open_version(1)
        assert any(version[name].tobytes() != array.tobytes() for name, array in land.model.items())


def test_the_help_desk_is_tuned_on_what_departments_sealed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = shortened(tmp_path / "help-desk")
    home = tmp_path / "home"
    monkeypatch.setenv("CONFED_HOME", str(home))
    sealed_by_departments(config.parent, home)
    summary = run(config, home=home, runs=tmp_path / "runs")
    arrays, manifest = final_weights(summary, home=home)
    assert set(manifest.model.trained) < set(arrays)
    untuned = {name: array * (0 if "lora_B" in name else 1) for name, array in arrays.items() if "hub/" not in name}
    documents = {name: array for name, array in arrays.items() if "hub/" in name}
    losses = [loss_of(which | documents, manifest) for which in (untuned, arrays)]
    assert losses[1] < losses[0] - 0.4
    assert summary["loss"] == pytest.approx(losses[1], rel=0.05)
    done = confed("verify", summary["run_dir"], home=home)
    assert done.returncode == 0, done.stdout + done.stderr


def loss_of(arrays: Arrays, manifest: Manifest) -> float:
    """Return a version's mean loss over what the sites kept for evaluation, as its owner could not."""
    assert manifest.adapter is not None
    tuning = open_model(arrays, SiteAdapter(terms=manifest.adapter, rank=manifest.adapter.rank))
    found: list[float] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "experiments" / "help-desk")
        tables = importlib.import_module("data").tables(DEPARTMENTS, manifest.seed, manifest.settings)
        for name in ("data", "texts"):
            del sys.modules[name]
    for table in tables.values():
        once = pl.DataFrame(table).unique(keep="first", maintain_order=True).to_arrow()
        pairs = pairs_of(once, prompt="prompt", answer="answer", part="test", test_every=5)
        examples = sequences(pairs, tuning.tokenizer, config=tuning.config, longest=128)
        found.append(evaluate(tuning, examples, batch_size=16))
    return float(np.mean(found))


def shortened(folder: Path) -> Path:
    """Copy the help desk with less of everything."""
    folder.mkdir()
    source = ROOT / "experiments" / "help-desk"
    for file in source.glob("*.py"):
        (folder / file.name).write_text(file.read_text())
    text = (source / "config.toml").read_text()
    names = f"2\nnames = {json.dumps(DEPARTMENTS)}"
    for key, value in {"rounds": 2, "count": names, "sites": 2, "base-steps": 20, "examples": 40}.items():
        head = f"\n{key} = "
        before, _, after = text.partition(head)
        text = before + head + str(value) + "\n" + after.partition("\n")[2]
    for file in ("contract.toml", "pipeline.toml"):
        (folder / file).write_text((source / file).read_text())
    for before, after in (
        ('source = "sealed"\nshards = "data:shards"', DATA),
        ("max-tokens = 128", "max-tokens = 128\ntest-every = 5"),
    ):
        assert text.count(before) == 1, before
        text = text.replace(before, after)
    (folder / "config.toml").write_text(text)
    return folder / "config.toml"


def sealed_by_departments(folder: Path, home: Path) -> None:
    """Let each owner seal its department's conversations as JSON lines, before there is any run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        data = importlib.import_module("data")
        tables = data.tables(DEPARTMENTS, 7, {"examples": 40})
        for name in ("data", "texts"):
            del sys.modules[name]
    for name, table in tables.items():
        file = folder / f"{name}.jsonl"
        rows = table.to_pylist()
        file.write_text(data.lines_of([(row["prompt"], row["answer"]) for row in rows]))
        OwnerHome.create(name, home=home, environment=SIMULATION, now_ms=1).close()
        seal(file, name, folder / "contract.toml", description="tickets", licence="none", derived_from=["templates"])
        file.unlink()
