"""Guarantee 10: no plaintext anywhere outside the enclaves, and nothing of a client but what the manifest lets out.

One round to train and one to evaluate, through Flower's ClientApp and the mod, on a model that is large enough to go
through files. Everything that touches a disk, a wire, a log or Flower is then searched for canaries.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import io
import json
import logging
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import context_to_proto
from flwr.supercore.task_identity import TaskIdentity
from road import OTHER, SITES, Aggregator, Land, Road

from confed.client import confidential, current, site_data
from confed.client.mod import RECORD
from confed.flower.messages import encode_message
from confed.manifest import UpdateTerms
from confed.model.weights import pack

MakeRoad = Callable[..., Road]

MODEL = np.float32(1234.5677)
DATA = np.float32(7777.771)
TRAINED = np.float32(4321.123)
STATE = 0.5432109876
TEXT = "canary-patient-4711"
LOSSES = {name: 0.9182736451 + index / 64 for index, name in enumerate(SITES)}
WEIGHTS = {name: 736451.28125 + index for index, name in enumerate(SITES)}
SECRETS = {name: 0.1357924681 + index / 64 for index, name in enumerate(SITES)}
FAILING = "west"
TRAINING = tuple(name for name in SITES if name != FAILING)
ELEMENTS = 1_300_000


def encodings(data: bytes) -> list[bytes]:
    """The ways in which bytes might have been written down; in base64 at each of its three alignments.

    Of base64 every character is kept that the data alone decides: fewer would be found in ciphertexts by chance.
    """
    spans = ((pad, -(-pad * 8 // 6), (pad + len(data)) * 8 // 6) for pad in (0, 1, 2))
    shifted = [base64.b64encode(bytes(pad) + data)[start:end] for pad, start, end in spans]
    return [data, data.hex().encode(), *shifted]


def of_float(value: float) -> list[bytes]:
    return [repr(value).encode(), *encodings(struct.pack("<d", value)), struct.pack(">d", value)]


def of_array(value: np.float32) -> list[bytes]:
    return [*encodings(value.tobytes() * 6), str(value).encode(), str(float(value)).encode()]


CANARIES: dict[str, list[bytes]] = {
    "model": of_array(MODEL),
    "data": of_array(DATA),
    "trained": of_array(TRAINED),
    "state": of_float(STATE),
    "exception": encodings(TEXT.encode()),
    **{f"loss of {name}": of_float(value) for name, value in LOSSES.items()},
    **{f"examples of {name}": of_float(value) for name, value in WEIGHTS.items()},
    **{f"metric that is not in clear of {name}": of_float(value) for name, value in SECRETS.items()},
}


def found(where: Mapping[str, bytes], needles: Mapping[str, list[bytes]]) -> list[str]:
    """Return which needles lie where; what is the same in several places is searched once."""
    places = {hashlib.sha256(content).digest(): place for place, content in reversed(where.items())}
    unlike = {place: where[place] for place in places.values()}
    return [
        f"{what} in {place}" for place, content in unlike.items() for what in needles if _in(content, needles[what])
    ]


def _in(content: bytes, needles: Iterable[bytes]) -> bool:
    return any(needle in content for needle in needles)


def test_the_search_finds_what_it_is_for() -> None:
    plain = b"".join(bytes(part) for part in pack({"w": np.full(100, MODEL, dtype=np.float32)}))
    for content in (plain, b"x" + plain, base64.b64encode(b"ab" + plain), plain.hex().encode(), str(MODEL).encode()):
        assert found({"there": content}, CANARIES) == ["model in there"]
    told = json.dumps({"loss": LOSSES["east"], "num-examples": WEIGHTS["north"]}).encode()
    assert found({"there": told}, CANARIES) == ["loss of east in there", "examples of north in there"]
    assert found({"there": b"ValueError: " + TEXT.encode()}, CANARIES) == ["exception in there"]
    assert not found({"there": b""}, CANARIES)


class RecordingChannel:
    """A channel that keeps every message of every call, as it is on the wire."""

    def __init__(self, inner: grpc.Channel, messages: list[bytes]) -> None:
        self._inner = inner
        self._messages = messages

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._inner, name)
        if name not in ("unary_unary", "unary_stream", "stream_unary", "stream_stream"):
            return attribute

        def call(
            method: str, *, request_serializer: Any = bytes, response_deserializer: Any = bytes, **rest: Any
        ) -> Any:
            def write(message: Any) -> bytes:
                self._messages.append(request_serializer(message))
                return self._messages[-1]

            def read(data: bytes) -> Any:
                self._messages.append(data)
                return response_deserializer(data)

            return attribute(method, request_serializer=write, response_deserializer=read, **rest)

        return call


@contextlib.contextmanager
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    messages: list[bytes] = []
    connect = grpc.insecure_channel

    def insecure_channel(*args: Any, **kwargs: Any) -> Any:
        return RecordingChannel(connect(*args, **kwargs), messages)

    with monkeypatch.context() as patch:
        patch.setattr(grpc, "insecure_channel", insecure_channel)
        yield messages


app = ClientApp(mods=[confidential])
seen: dict[str, Any] = {}


def metrics_of(context: Context) -> dict[str, float]:
    name = SITES[int(context.node_config["partition-id"])]
    return {"loss": LOSSES[name], "secret": SECRETS[name], "num-examples": WEIGHTS[name]}


@app.train()
def train(message: Message, context: Context) -> Message:
    name = SITES[int(context.node_config["partition-id"])]
    data, arrays = site_data(context), message.content["arrays"]
    assert isinstance(arrays, ArrayRecord)
    config = message.content["config"]
    assert isinstance(config, ConfigRecord)
    seen[name] = {"config": dict(config), "settings": dict(context.run_config), "records": sorted(message.content)}
    seen[name]["base"] = {key: array.numpy() for key, array in arrays.items()}
    if name == FAILING:
        raise ValueError(f"{TEXT}: {data['x'][0, 0]} {arrays['weight'].numpy()[0]}")
    context.state["remembered"] = MetricRecord({"secret": STATE})
    trained = ArrayRecord({"weight": Array(arrays["weight"].numpy() * 0 + TRAINED)})
    content = RecordDict({"arrays": trained, "metrics": MetricRecord(metrics_of(context))})
    return Message(content=content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    if SITES[int(context.node_config["partition-id"])] == FAILING:
        raise ValueError(TEXT)
    assert context.state["remembered"]["secret"] == STATE  # pyright: ignore[reportIndexIssue]
    return Message(content=RecordDict({"metrics": MetricRecord(metrics_of(context))}), reply_to=message)


def be_a_server_app_process(patch: pytest.MonkeyPatch) -> None:
    """Be the process of a run's ServerApp: Flower keeps that in a global, without which no message can be made."""
    for name, value in {"_run_id": 11, "_node_id": 1, "_task_id": 5}.items():
        patch.setattr(TaskIdentity, name, value)
    seen.clear()


@pytest.fixture(autouse=True)
def _a_server_app_process(monkeypatch: pytest.MonkeyPatch) -> None:
    be_a_server_app_process(monkeypatch)


def told(kind: str, number: int, **more: Any) -> Message:
    """The governor's message."""
    content = RecordDict({RECORD: ConfigRecord({"round": number, "attempt": 0, **more})})
    message = Message(content, dst_node_id=7, message_type=kind, group_id="3")
    message.metadata.__dict__["_message_id"] = message.object_id
    return message


def context_of(site: str, **run_config: Any) -> Context:
    place: Any = {"partition-id": SITES.index(site), "num-partitions": len(SITES)}
    return Context(run_id=11, node_id=7, node_config=place, state=RecordDict(), run_config=run_config)


def files_under(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@dataclasses.dataclass
class Walked:
    """A round to train and one to evaluate, and everything that could be seen of them from outside."""

    road: Road
    messages: list[bytes]
    flower: dict[str, bytes]
    files: dict[str, bytes]
    contexts: list[Context]
    replies: list[Message]
    metrics: list[Mapping[str, float]]
    excluded: list[Mapping[str, str]]
    log: str
    secrets: dict[str, list[bytes]]

    @property
    def everything(self) -> dict[str, bytes]:
        wires = {f"gRPC message {number}": message for number, message in enumerate(self.messages)}
        return {**wires, **self.flower, **self.files, "log": self.log.encode()}


@contextlib.contextmanager
def everything_said() -> Iterator[io.StringIO]:
    """Keep all that is logged, at every level, with tracebacks, and all that is printed."""
    said = io.StringIO()
    handler, root = logging.StreamHandler(said), logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            yield said
    finally:
        root.setLevel(level)
        root.removeHandler(handler)


@pytest.fixture(scope="module")
def walked(quick_disk: Path) -> Iterator[Walked]:
    folder = Path(tempfile.mkdtemp(dir=quick_disk))
    land = Land(
        folder=folder / "land",
        model={"weight": np.full(ELEMENTS, MODEL, dtype=np.float32)},
        data=lambda _: {"x": np.full((64, 8), DATA, dtype=np.float32)},
        change=lambda m: dataclasses.replace(m, update=UpdateTerms(norm_bound=1e9, weight_cap=1e9, loss_cap=None)),
    )
    with pytest.MonkeyPatch.context() as patch, everything_said() as said, recorded(patch) as messages:
        be_a_server_app_process(patch)
        patch.setattr(tempfile, "tempdir", str(folder))
        with Road(land, folder / "road") as road:
            walked = Walked(road, messages, {}, {}, [], [], [], [], "", {})
            session, aggregator = road.session(*SITES), road.aggregator()
            patch.setattr(current, "_session", session)
            for kind in ("train", "evaluate"):
                walk(walked, aggregator, kind, folder)
            walked.files |= files_under(folder)
            walked.log = said.getvalue()
            keys = {
                **{f"{name}'s key": key for name, key in land.keys.items()},
                "version 1's key": road.version_key(1),
                "the client's opening key": session._hpke.to_private_bytes(),
                "the client's signing key": session._signing.private_bytes_raw(),
                "the aggregator's opening key": aggregator.enclave.hpke.to_private_bytes(),
                "the aggregator's signing key": aggregator.enclave.signing_key.private_bytes_raw(),
                **{
                    f"{name}'s identity key": home.identity_key.private_bytes_raw() for name, home in road.homes.items()
                },
                **{f"{name}'s broker key": home.broker_key.private_bytes_raw() for name, home in road.homes.items()},
            }
            walked.secrets = {what: encodings(key) for what, key in keys.items()}
            yield walked


def walk(walked: Walked, aggregator: Aggregator, kind: str, folder: Path) -> None:
    """One round through Flower's ClientApp, watched."""
    aggregator.open(1, purpose=kind)
    for site in SITES:
        message, context = told(kind, 1), context_of(site)
        walked.flower[f"the {kind} message to {site}"] = encode_message(message)
        reply = app(message, context)
        walked.flower[f"the {kind} reply of {site}"] = encode_message(reply)
        walked.flower[f"the {kind} context of {site}"] = context_to_proto(context).SerializeToString()
        walked.contexts.append(context)
        walked.replies.append(reply)
        if not reply.has_error():
            digest = str(reply.content[RECORD]["digest"])  # pyright: ignore[reportIndexIssue, reportArgumentType]
            aggregator.governor.submit(site=site, digest=digest)
    if kind == "train":  # while the updates lie in the enclave's folder
        walked.files |= {f"{name} during the round": data for name, data in files_under(folder).items()}
    closed = aggregator.close_round({FAILING: "client-app-failed"})
    walked.metrics.append(closed.metrics)
    walked.excluded.append(closed.excluded)


def test_no_canary_is_anywhere_outside_the_enclaves(walked: Walked) -> None:
    everything = walked.everything
    assert len(walked.messages) > 40
    assert sum("during the round" in name and "/aggregator-0/" in name for name in walked.files) == len(TRAINING)
    assert any("/courier/objects/" in name for name in walked.files)
    assert any(name.endswith("broker.sqlite") for name in walked.files)
    assert found(everything, CANARIES) == []
    assert found(everything, walked.secrets) == []
    # Whoever may open the version finds the canary: it did go this road.
    opened = walked.road.open_version(1)["weight"]
    assert np.all(opened == TRAINED)
    assert found({"the opened version": opened.tobytes()}, CANARIES) == ["trained in the opened version"]


def test_only_the_cohorts_mean_leaves_as_the_manifest_allows(walked: Walked) -> None:
    total = sum(WEIGHTS[name] for name in TRAINING)
    mean = round(sum(LOSSES[name] * WEIGHTS[name] for name in TRAINING) / total, 4)
    assert [dict(metrics) for metrics in walked.metrics] == [{"loss": mean}] * 2
    assert [dict(excluded) for excluded in walked.excluded] == [{FAILING: "client-app-failed"}] * 2
    assert any(str(mean).encode() in message for message in walked.messages)
    assert not any(b"secret" in message for message in walked.messages)


def test_flower_carries_a_reference_or_a_code(walked: Walked) -> None:
    for site, reply in zip(SITES * 2, walked.replies, strict=True):
        if site == FAILING:
            assert (reply.error.code, reply.error.reason) == (0, "client-app-failed")
            assert not reply.has_content()
            continue
        assert list(reply.content) == [RECORD]
        record = reply.content[RECORD]
        assert isinstance(record, ConfigRecord)
        told_of = {name for name in record if not name.startswith("seconds-")}
        assert told_of == {"site", "digest"}
        assert record["site"] == site
        assert len(str(record["digest"])) == 64


def test_flowers_context_comes_back_empty(walked: Walked) -> None:
    for context in walked.contexts:
        assert len(context.state) == 0
        assert context.run_config == {}


def test_an_exception_is_logged_by_its_place_alone(walked: Walked) -> None:
    assert "client app failed: ValueError" in walked.log
    assert "test_no_plaintext.py" in walked.log
    assert TEXT not in walked.log
    assert "Traceback" not in walked.log


def test_a_kek_is_the_one_secret_on_an_owners_disk(walked: Walked) -> None:
    """It is what an HSM would hold; nothing else of an owner's lies in the clear."""
    keks = {f"{name}'s kek": encodings(home.kek) for name, home in walked.road.homes.items()}
    places = found(walked.everything, keks)
    assert places
    assert all(place.endswith(("/kek", "/kek during the round")) for place in places)


# What the governor says through Flower does not reach the app (guarantee 4).


def test_the_app_sees_the_manifests_words_and_not_the_governors(
    make_road: MakeRoad, monkeypatch: pytest.MonkeyPatch
) -> None:
    road = make_road(
        model={"weight": np.full(8, MODEL, dtype=np.float32)},
        change=lambda m: dataclasses.replace(
            m,
            train_config={"lr": 0.1},
            settings={"epochs": 2},
            update=UpdateTerms(norm_bound=1e9, weight_cap=1e9, loss_cap=None),
        ),
    )
    monkeypatch.setattr(current, "_session", road.session(*SITES))
    road.aggregator().open(1)
    lie = told("train", 1, base=OTHER, lr=99.0, server_round=7, manifest=OTHER)
    lie.content["arrays"] = ArrayRecord({"weight": Array(np.zeros(8, dtype=np.float32))})
    lie.content["config"] = ConfigRecord({"lr": 99.0, "server-round": 7})
    lie.content["orders"] = ConfigRecord({"send": "the data"})
    reply = app(lie, context_of("north", epochs=1000, lr=99.0))
    assert not reply.has_error()
    assert seen["north"]["config"] == {"lr": 0.1, "server-round": 1}
    assert seen["north"]["settings"] == {"epochs": 2}
    assert seen["north"]["records"] == ["arrays", "config"]
    assert seen["north"]["base"]["weight"].tolist() == [float(MODEL)] * 8


ORDERS: dict[str, tuple[Callable[[], Message], str]] = {
    "a round that is text": (lambda: told("train", "1"), "session"),  # pyright: ignore[reportArgumentType]
    "a round that is true": (lambda: told("train", True), "session"),
    "an attempt that is a fraction": (lambda: told("train", 1, attempt=0.5), "session"),
    "a later round": (lambda: told("train", 2), "lineage"),
    "an attempt after the last": (lambda: told("train", 1, attempt=100), "budget"),
    "an evaluation of what is not there": (lambda: told("evaluate", 1), "lineage"),
    "another kind of message": (lambda: told("query", 1), "purpose"),
}


@pytest.mark.parametrize("sentence", ORDERS)
def test_an_order_is_answered_by_a_code_and_the_app_is_not_called(
    shared: Road, monkeypatch: pytest.MonkeyPatch, sentence: str
) -> None:
    message, code = ORDERS[sentence]
    monkeypatch.setattr(current, "_session", shared.session("north"))

    def never(*_: Any) -> Message:
        raise AssertionError("called")

    reply = confidential(message(), context_of("north"), never)
    assert reply.error.reason == code
    assert not reply.has_content()
