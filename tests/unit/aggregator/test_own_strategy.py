"""A strategy class of somebody's own in the enclave: what it gets, what it gives, what it keeps, and what stays inside."""

from __future__ import annotations

import io
import logging
import traceback
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from aggregator_world import Changes, World, small_model
from flwr.app import Array, ArrayRecord, Message, MessageType, Metadata, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from test_run import candidate_of, one_round, opened, submit

from aggregator.combine.kept_state import kept, restore
from confed import canonical
from confed.errors import (
    CohortError,
    ConfedError,
    ConfigError,
    ManifestMismatchError,
    NotFiniteError,
    ShapeError,
    SizeError,
    StrategyError,
)
from confed.manifest import CodeTerms, StrategyTerms
from confed.model.weights import unpack
from confed.sealing.container import Container
from confed.sealing.derivation import state_key
from confed.strategy import StrategyCode, StrategySource

if TYPE_CHECKING:
    from pathlib import Path

HEAD = """
import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import FedAvg, FedAdam

class Fair(FedAvg):
    def __init__(self, power=1.0, **others):
        super().__init__(**others)
        self.power = power

"""
MEDIAN_OF_MEANS = (
    HEAD
    + """
    def aggregate_train(self, server_round, replies):
        arrays, metrics = super().aggregate_train(server_round, replies)
        self.before = [array.numpy() for array in arrays.values()]
        self.calls = getattr(self, "calls", 0) + 1
        return ArrayRecord({k: Array(np.asarray(a.numpy() * self.power)) for k, a in arrays.items()}), metrics
"""
)


def body(text: str) -> str:
    lines = "\n".join("        " + line for line in text.strip().splitlines())
    return f"{HEAD}\n    def aggregate_train(self, server_round, replies):\n{lines}\n"


def world_of(
    tmp_path: Path, text: str, *, name: str = "fair:Fair", parameters: Any = None, memory: int = 10**6, **terms: Any
) -> World:
    source = StrategySource(files={"fair.py": text})
    code = CodeTerms(
        client_app="app:app",
        client_image="0" * 64,
        aggregator_image="0" * 64,
        lock="0" * 64,
        strategy=StrategyCode(digest=source.digest, memory_bytes=memory),
    )
    world = World(tmp_path, strategy=StrategyTerms(name=name, parameters=parameters or {}), **{"code": code, **terms})
    world.code_files = dict(source.files)
    return world


def flowers(world: World, kind: Any, numbers: Any, base: Any, *, round_number: int = 1, strategy: Any = None) -> Any:
    made = strategy or kind()
    replies = []
    for number in sorted(numbers):
        content = RecordDict(
            {
                "arrays": ArrayRecord({k: Array(a.copy()) for k, a in world.trained(number, base).items()}),
                "metrics": MetricRecord({"num-examples": 10 * (number + 1)}),
            }
        )
        metadata = Metadata(0, "", 0, 0, "", "", 0.0, 1.0, MessageType.TRAIN)
        replies.append(Message(content, metadata=metadata))
    if hasattr(made, "current_arrays"):
        made.current_arrays = {k: np.array(a) for k, a in base.items()}
    arrays, _ = made.aggregate_train(round_number, replies)
    return {name: array.numpy() for name, array in arrays.items()}


def test_a_class_that_is_flowers_fedavg_gives_what_fedavg_gives_to_the_bit(tmp_path: Path) -> None:
    world = world_of(tmp_path / "own", HEAD)
    run = opened(world)
    submit(world, run, (3, 1, 0, 2))
    version = world.open_version(candidate_of(run.close_round(absent={})).digest, version=1)
    plain = World(tmp_path / "plain")
    other = opened(plain)
    submit(plain, other)
    theirs = plain.open_version(candidate_of(other.close_round(absent={})).digest, version=1)
    assert list(version) == list(theirs)
    assert all(version[name].tobytes() == theirs[name].tobytes() for name in version)


def test_a_stock_class_that_asks_for_the_base_gets_it_and_keeps_its_moments(tmp_path: Path) -> None:
    text = "from flwr.serverapp.strategy import FedAdam\nclass Mine(FedAdam):\n    pass\n"
    floats = {name: array for name, array in small_model().items() if array.dtype.kind == "f"}
    world = world_of(tmp_path / "own", text, name="fair:Mine", parameters={"eta": 0.05}, model=floats)
    strategy = flower.FedAdam(eta=0.05)
    run, base, digest = opened(world), world.model, ""
    for number in (1, 2, 3):
        closed = candidate_of(one_round(world, run, number, base=base, base_digest=digest))
        theirs = flowers(world, None, range(4), base, round_number=number, strategy=strategy)
        base, digest = world.open_version(closed.digest, version=number), closed.digest
        for name, array in base.items():
            assert array.dtype == floats[name].dtype
            np.testing.assert_allclose(array, theirs[name], rtol=1e-5, atol=1e-6)


def test_what_it_keeps_on_itself_survives_a_new_instance_and_travels_sealed(tmp_path: Path) -> None:
    text = body(
        """
arrays, metrics = super().aggregate_train(server_round, replies)
self.seen = getattr(self, "seen", [])
self.seen.append({"round": server_round, "scale": float(arrays["scale"].numpy()), "bias": arrays["bias"].numpy()})
self.pair = (1, None, "text", np.float32(0.5), arrays)
grown = {k: Array(np.asarray(a.numpy() + len(self.seen)).astype(a.numpy().dtype)) for k, a in arrays.items()}
return ArrayRecord(grown), metrics
"""
    )
    world = world_of(tmp_path / "own", text)
    run = opened(world)
    first = candidate_of(one_round(world, run))
    base = world.open_version(first.digest, version=1)
    results: list[bytes] = []
    for instance, attempt in ((run, 0), (world.run(), 1)):
        if instance is not run:
            instance.attest(first_round=2, attempt=1)
        instance.open_round(round_number=2, attempt=attempt, purpose="train")
        world.enclave = instance._enclave
        submit(world, instance, base=base, base_digest=first.digest, round_number=2, attempt=attempt)
        closed = candidate_of(instance.close_round(absent={}))
        version = world.open_version(closed.digest, version=2, attempt=attempt)
        results.append(b"".join(array.tobytes() for array in version.values()))
        mean = flowers(world, flower.FedAvg, range(4), base)
        np.testing.assert_allclose(version["bias"], mean["bias"] + 2, rtol=1e-6)  # two rounds are in what it kept
        key = state_key(b"".join([bytes(range(32))]), run="run-1", version=2, attempt=attempt)
        state = unpack(Container.parse(world.courier.get(closed.state)).unlock(key).read_all())
        assert b'"round"' in state["structure"].tobytes()
    assert results[0] == results[1]


def test_what_it_keeps_elsewhere_is_forgotten_after_every_round(tmp_path: Path) -> None:
    text = "SEEN = []\n" + body(
        """
SEEN.append(server_round)
type(self).count = getattr(type(self), "count", 0) + 1
assert len(SEEN) == 1 and type(self).count == 1
return super().aggregate_train(server_round, replies)
"""
    )
    world = world_of(tmp_path / "own", text)
    run = opened(world)
    first = candidate_of(one_round(world, run))
    base = world.open_version(first.digest, version=1)
    one_round(world, run, 2, base=base, base_digest=first.digest)


def test_it_sees_numbers_for_sites_in_identity_order_and_nothing_else_of_them(tmp_path: Path) -> None:
    text = body(
        """
replies = list(replies)
self.told = [
    [m.metadata.src_node_id, sorted(m.content), dict(m.content["metrics"]), m.metadata.message_type, m.has_error()]
    for m in replies
]
return super().aggregate_train(server_round, replies)
"""
    )
    world = world_of(tmp_path / "own", text)
    run = opened(world)
    for number in (3, 0, 2):
        submit(world, run, [number], metrics={"loss": 1.0 + number})
    closed = candidate_of(run.close_round(absent={}))
    key = state_key(bytes(range(32)), run="run-1", version=1, attempt=0)
    state = unpack(Container.parse(world.courier.get(closed.state)).unlock(key).read_all())
    found = type("Found", (), {})()
    restore(found, state)
    assert found.told == [
        [n + 1, ["arrays", "metrics"], {"loss": 1.0 + n, "num-examples": 10 * (n + 1)}, "train", False]
        for n in (0, 2, 3)
    ]
    assert b"site-" not in state["structure"].tobytes()


WRONG: list[tuple[str, str, type[ConfedError]]] = [
    ("raises", "raise ValueError(str(list(replies)[0].content))", StrategyError),
    ("ends the process", "import sys; sys.exit(0)", StrategyError),
    ("raises an error of confed with a code of its own", "from confed.errors import ConfedError\nclass Leak(ConfedError):\n    code = 'the-weights'\nraise Leak('x')", StrategyError),
    ("returns nothing", "return None, None", StrategyError),
    ("returns no pair", "return 1", StrategyError),
    ("returns no arrays", "return {}, None", StrategyError),
    ("returns a tensor too few", "a, m = super().aggregate_train(server_round, replies)\ndel a['bias']\nreturn a, m", StrategyError),
    ("returns a tensor too many", "a, m = super().aggregate_train(server_round, replies)\na['more'] = a['bias']\nreturn a, m", StrategyError),
    ("returns another shape", "a, m = super().aggregate_train(server_round, replies)\na['bias'] = Array(np.zeros(4, 'f4'))\nreturn a, m", ShapeError),
    ("returns whole numbers for weights", "a, m = super().aggregate_train(server_round, replies)\na['bias'] = Array(np.zeros(5, 'i4'))\nreturn a, m", ShapeError),
    ("returns complex numbers", "a, m = super().aggregate_train(server_round, replies)\na['bias'] = Array(np.zeros(5, 'c8'))\nreturn a, m", ShapeError),
    ("returns NaN", "a, m = super().aggregate_train(server_round, replies)\na['bias'] = Array(np.full(5, np.nan, 'f4'))\nreturn a, m", NotFiniteError),
    ("returns what float32 cannot hold", "a, m = super().aggregate_train(server_round, replies)\na['bias'] = Array(np.full(5, 1e300))\nreturn a, m", NotFiniteError),
    ("keeps a generator", "self.random = np.random.default_rng()\nreturn super().aggregate_train(server_round, replies)", StrategyError),
    ("keeps a function", "self.later = lambda: 1\nreturn super().aggregate_train(server_round, replies)", StrategyError),
    ("keeps a set", "self.ids = {1}\nreturn super().aggregate_train(server_round, replies)", StrategyError),
    ("keeps text for arrays", "self.words = np.array(['a'])\nreturn super().aggregate_train(server_round, replies)", StrategyError),
    ("keeps more than it may", "self.much = np.zeros(200_000)\nreturn super().aggregate_train(server_round, replies)", SizeError),
    ("keeps itself", "self.loop = [1]\nself.loop.append(self.loop)\nreturn super().aggregate_train(server_round, replies)", StrategyError),
]  # fmt: skip


@pytest.mark.parametrize(("text", "error"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_class_that_goes_wrong_makes_no_version(text: str, error: type[ConfedError], tmp_path: Path) -> None:
    world = world_of(tmp_path / "own", body(text))
    run = opened(world)
    submit(world, run)
    with pytest.raises(error) as refused:
        run.close_round(absent={})
    assert type(refused.value) is error
    assert refused.value.__cause__ is None
    assert not world.brokers.commits
    run.open_round(round_number=1, attempt=1, purpose="train")  # the run goes on: it may be tried again


LOADS: list[tuple[str, str, dict[str, Any], type[ConfedError]]] = [
    ("does not parse", "class", {}, StrategyError),
    ("fails when it is imported", "raise ValueError", {}, StrategyError),
    ("imports what is not there", "import tasks_of_the_app", {}, StrategyError),
    ("has another name", "class Other: pass", {}, StrategyError),
    ("is no strategy", "class Fair: pass", {}, StrategyError),
    ("is a function", "def Fair(): pass", {}, StrategyError),
    ("takes other parameters", HEAD, {"parameters": {"force": 1.0}}, StrategyError),
    ("weighs by another key than clients", HEAD + "        self.weighted_by_key = 'w'", {}, StrategyError),
    ("starts with what cannot be kept", HEAD + "        self.random = np.random.default_rng()", {}, StrategyError),
    ("aggregates evaluations itself", HEAD + "    def aggregate_evaluate(self, r, replies): return None", {}, StrategyError),
    ("configures evaluations itself", HEAD + "    def configure_evaluate(self, r, a, c, g): return []", {}, StrategyError),
    ("starts itself", HEAD + "    def start(self, **kwargs): return None", {}, StrategyError),
]  # fmt: skip


@pytest.mark.parametrize(("text", "terms", "error"), [row[1:] for row in LOADS], ids=[row[0] for row in LOADS])
def test_a_class_that_cannot_run_is_refused_before_anything_is_attested(
    text: str, terms: dict[str, Any], error: type[ConfedError], tmp_path: Path
) -> None:
    world = world_of(tmp_path / "own", text, **terms)
    with pytest.raises(error):
        world.run()
    assert not world.brokers.requests


@pytest.mark.parametrize("top", ["numpy", "confed", "json", "flwr"])
def test_a_module_of_the_enclaves_own_name_is_refused(top: str, tmp_path: Path) -> None:
    source = StrategySource(files={f"{top}.py": HEAD})
    world = world_of(tmp_path / "own", HEAD, name=f"{top}:Fair")
    terms = replace(world.manifest.code, strategy=StrategyCode(digest=source.digest, memory_bytes=10**6))
    world = World(tmp_path / "own", strategy=StrategyTerms(name=f"{top}:Fair", parameters={}), code=terms)
    world.code_files = dict(source.files)
    with pytest.raises(StrategyError):
        world.run()


@pytest.mark.parametrize(
    "files", [{}, {"fair.py": HEAD + " "}, {"fair.py": HEAD, "more.py": ""}, {"other.py": HEAD}], ids=str
)
def test_other_code_than_the_manifests_is_not_imported(files: dict[str, str], tmp_path: Path) -> None:
    world = world_of(tmp_path / "own", HEAD)
    world.code_files = {path: "raise SystemExit\n" + text for path, text in files.items()}
    with pytest.raises(ManifestMismatchError):
        world.run()
    world.code_files = files
    with pytest.raises(ManifestMismatchError):
        world.run()


@pytest.mark.parametrize(
    "text",
    [
        "config['lr'] = 0.5\n        return super().configure_train(server_round, arrays, config, grid)",
        "arrays['bias'] = Array(np.zeros(5, 'f4'))\n        return super().configure_train(server_round, arrays, config, grid)",
        "return []",
        "grid.push_messages([])",
        "grid.send_and_receive([])",
    ],
)
def test_clients_cannot_be_told_anything_but_the_manifests_words(text: str, tmp_path: Path) -> None:
    source = f"{HEAD}\n    def configure_train(self, server_round, arrays, config, grid):\n        {text}\n"
    world = world_of(tmp_path / "own", source)
    run = opened(world)
    submit(world, run)
    with pytest.raises(StrategyError):
        run.close_round(absent={})
    assert not world.brokers.commits


def test_a_class_that_waits_for_more_sites_than_there_are_is_told_so(tmp_path: Path) -> None:
    world = world_of(tmp_path / "own", HEAD, parameters={"min_available_nodes": 5})
    run = opened(world)
    submit(world, run)
    with pytest.raises(StrategyError, match="min_available_nodes"):
        run.close_round(absent={})


@pytest.mark.filterwarnings("ignore")
def test_nothing_that_it_prints_logs_or_raises_gets_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    secret = "the-weights-of-site-2"
    text = body(
        f"""
import logging, sys, warnings
print({secret!r}); print({secret!r}, file=sys.stderr)
logging.getLogger("mine").error({secret!r}); logging.getLogger("confed.aggregator").error({secret!r})
warnings.warn({secret!r}, stacklevel=1)
raise ValueError({secret!r})
"""
    )
    world = world_of(tmp_path / "own", text)
    run = opened(world)
    submit(world, run)
    out, err = io.StringIO(), io.StringIO()
    with (
        caplog.at_level(logging.DEBUG),
        redirect_stdout(out),
        redirect_stderr(err),
        pytest.raises(StrategyError) as refused,
    ):
        run.close_round(absent={})
    traces = "".join(traceback.format_exception(refused.value))
    told = [out.getvalue(), err.getvalue(), caplog.text, str(refused.value), traces]
    assert not any(secret in text for text in told)
    assert "fair.py" in caplog.text  # where, for its author


def test_too_little_memory_for_a_cohort_is_no_manifest_and_the_bound_holds_in_the_enclave(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        world_of(tmp_path / "own", HEAD, memory=1000)
    assert refused.value.field == "code.strategy.memory_bytes"
    world = world_of(tmp_path / "own", HEAD)
    run = opened(world)
    run._optimizer._code = replace(
        run._optimizer._code, memory_bytes=1000
    )  # as if the start's file were smaller than it is
    submit(world, run)
    with pytest.raises(SizeError):
        run.close_round(absent={})


def test_a_class_of_ones_own_needs_code_and_flowers_needs_none(tmp_path: Path) -> None:
    code = world_of(tmp_path / "own", HEAD).manifest.code
    for terms in ({"code": code}, {"strategy": StrategyTerms(name="fair:Fair", parameters={})}):
        with pytest.raises(ConfigError) as refused:
            World(tmp_path / "own", **terms)
        assert refused.value.field == "code.strategy"


def test_what_cannot_be_put_back_is_no_state() -> None:
    class Thing:
        pass

    thing, found = Thing(), Thing()
    thing.a, thing.b = {"x": [1, 2.5, np.arange(3)], "y": (None, True)}, np.float64(0.1)  # type: ignore[attr-defined]
    restore(found, kept(thing, Thing()))
    assert found.b == 0.1  # type: ignore[attr-defined]
    assert found.a["y"] == (None, True)  # type: ignore[attr-defined]
    assert found.a["x"][2].tolist() == [0, 1, 2]  # type: ignore[attr-defined]
    for wrong in (b"[]x", b'[["a",{"array":7}]]', b'[["a",{"odd":7}]]', b'[["a",7]]'):
        with pytest.raises(ShapeError):
            restore(Thing(), {"structure": np.frombuffer(wrong, dtype=np.uint8)})
    with pytest.raises(ShapeError):
        restore(Thing(), {"t0": np.zeros(1)})


def test_the_source_is_one_module_or_its_package_and_its_digest_says_all_of_it(tmp_path: Path) -> None:
    (tmp_path / "fair.py").write_text("a = 1\n")
    (tmp_path / "task.py").write_text("b = 1\n")
    (tmp_path / "pkg").mkdir()
    for name in ("__init__.py", "mean.py"):
        (tmp_path / "pkg" / name).write_text("")
    assert set(StrategySource.read(tmp_path, "fair:Fair").files) == {"fair.py"}
    assert set(StrategySource.read(tmp_path, "pkg.mean:Fair").files) == {"pkg/__init__.py", "pkg/mean.py"}
    digests = {
        StrategySource(files=files).digest
        for files in ({"a.py": ""}, {"b.py": ""}, {"a.py": " "}, {"a.py": "", "b.py": ""})
    }
    assert len(digests) == 4
    for entry in ("fair", "fair:", "../fair:Fair", "gone:Fair"):
        with pytest.raises(ConfedError):
            StrategySource.read(tmp_path, entry)
    (tmp_path / "linked.py").symlink_to(tmp_path / "fair.py")
    with pytest.raises(ConfigError):
        StrategySource.read(tmp_path, "linked:Fair")
    with pytest.raises(ConfigError):
        StrategySource(files={"a.py": "x" * (1 << 20 | 1)})


def test_a_package_of_several_modules_runs(tmp_path: Path) -> None:
    files = {
        "pkg/__init__.py": "",
        "pkg/mean.py": HEAD,
        "pkg/own.py": "from pkg.mean import Fair\nclass Own(Fair):\n    pass\n",
    }
    source = StrategySource(files=files)
    code = replace(
        world_of(tmp_path / "x", HEAD).manifest.code, strategy=StrategyCode(digest=source.digest, memory_bytes=10**6)
    )
    world = World(tmp_path / "own", strategy=StrategyTerms(name="pkg.own:Own", parameters={"power": 2.0}), code=code)
    world.code_files = files
    run = opened(world)
    submit(world, run)
    assert run.close_round(absent={}).cohort_size == 4


def test_a_wrong_update_is_left_out_before_the_class_sees_it(tmp_path: Path) -> None:
    world = world_of(tmp_path / "own", HEAD)
    run = opened(world)
    submit(world, run, (0, 2, 3))
    wrong = world.trained(1, world.model)
    wrong["weight"][0, 0] = np.nan
    honest = {"weight": 20.0, "norm": 1.0, "metrics": {}, "dataset": canonical.digest(b"site-1")}
    run.submit(site="site-1", digest=world.send(1, wrong, changes=Changes(declared=honest)))
    closed = run.close_round(absent={})
    assert closed.excluded == {"site-1": "not-finite"}
    version = world.open_version(candidate_of(closed).digest, version=1)
    mean = flowers(world, flower.FedAvg, (0, 2, 3), world.model)
    assert version["weight"].tobytes() == mean["weight"].tobytes()
    run.open_round(round_number=2, attempt=0, purpose="train")
    with pytest.raises(CohortError):
        run.close_round(absent={})
