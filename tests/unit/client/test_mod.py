"""What leaves the mod when something fails: confed's own codes, and nothing of the app's."""

from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedProx

from confed.client import mod
from confed.client.settings import Settings
from confed.client.step import no_seconds
from confed.errors import ConfedError, ShapeError
from confed.flower.messages import use_local_task_identity
from confed.journey import Purpose
from confed.manifest import StrategyTerms
from tests.unit.test_manifest import make


class LeakingError(ConfedError):
    code = "patient-4711"


def leak(*_):
    raise LeakingError("patient 4711")


def fail(*_):
    raise ValueError("patient 4711")


def misuse(*_):
    raise ShapeError("patient 4711")


def choose(*_):
    Settings({"lr-schedule": "patient 4711"}).choice("lr-schedule", ("cosine",))


def choose_another(*_):
    Settings({}).choice("patient-4711", ("cosine",))


def refuse(*_):
    mod._purpose(Message(RecordDict(), dst_node_id=1, message_type="query"))
    return Purpose.TRAIN


@pytest.mark.parametrize(
    ("name", "parameters", "purpose", "told"),
    [
        ("FedProx", {"proximal_mu": 0.3}, Purpose.TRAIN, 0.3),
        ("FedProx", {}, Purpose.TRAIN, 0.0),
        ("FedProx", {"proximal_mu": 0.3}, Purpose.EVALUATE, None),
        ("FedAvg", {"proximal_mu": 0.3}, Purpose.TRAIN, None),
    ],
)
def test_a_client_is_told_fedproxs_mu_as_flower_tells_it(name, parameters, purpose, told):
    use_local_task_identity(run_id=1, node_id=1)
    manifest = make(strategy=StrategyTerms(name=name, parameters=parameters), train_config={"lr": 0.1})
    session = SimpleNamespace(manifest=manifest, states={})
    step = SimpleNamespace(purpose=purpose, arrays={}, round_number=2)
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    message = Message(RecordDict(), dst_node_id=1, message_type="train")
    mod._for_the_app(session, step, manifest.sites[0], message, context)
    config = dict(message.content["config"])
    expected = {"server-round": 2} | ({"lr": 0.1} if purpose is Purpose.TRAIN else {})
    if told is not None:
        plain = ConfigRecord({"lr": 0.1})
        FedProx(fraction_train=0.0, **parameters).configure_train(2, ArrayRecord(), plain, None)
        assert config == {**plain, "server-round": 2}
    assert config == expected | ({} if told is None else {"proximal-mu": told})
    assert "proximal-mu" not in manifest.train_config


@pytest.mark.parametrize(
    ("sentence", "raising", "reason"),
    [
        ("an exception of the app leaves as one code", fail, "client-app-failed"),
        ("a code that the app made up does not leave", leak, "client-app-failed"),
        ("nor does one of confed's that the app raised", misuse, "client-app-failed"),
        ("what confed refuses leaves as its code", refuse, "purpose"),
        ("a setting that does not fit leaves as its name", choose, "setting-lr-schedule"),
        ("but for a name that the manifest does not have", choose_another, "setting"),
    ],
)
def test_an_error_leaves_as_a_stable_code(sentence, raising, reason, monkeypatch, caplog):
    use_local_task_identity(run_id=1, node_id=1)
    settings = {"lr-schedule": "warm"}
    monkeypatch.setattr(mod, "installed", lambda: SimpleNamespace(manifest=SimpleNamespace(settings=settings)))
    monkeypatch.setattr(mod, "_handle", raising)
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    message = Message(RecordDict(), dst_node_id=1, message_type="train")
    reply = mod.confidential(message, context, lambda *_: message)
    assert reply.error.reason == reason
    assert "4711" not in caplog.text


class OneStep:
    """A session with one open step, which notes what would be sealed."""

    follows_flower = False

    def __init__(self) -> None:
        self.manifest = make()
        self.states = {}
        self.sealed = {}

    def site_for(self, _):
        return self.manifest.sites[0]

    def step(self, _, **__):
        base = {"w": np.arange(4, dtype=np.float32)}
        return SimpleNamespace(
            purpose=Purpose.TRAIN, arrays=base, round_number=1, attempt=0, seconds=no_seconds(), frozen=""
        ), object()

    def seal_result(self, *_, arrays, **__):
        self.sealed = {name: np.array(array) for name, array in arrays.items()}
        return "0" * 64


def in_place(message, context):
    """Change the message that came, and send its content back."""
    record = message.content.array_records["arrays"]
    record["w"] = Array(record["w"].numpy() + 1)
    message.content["metrics"] = MetricRecord({"num-examples": 1})
    return Message(message.content, reply_to=message)


def unchanged(message, context):
    """Send the record that came back in a content of its own, and keep it."""
    context.state["seen"] = message.content.array_records["arrays"]
    content = {"arrays": message.content["arrays"], "metrics": MetricRecord({"num-examples": 1})}
    return Message(RecordDict(content), reply_to=message)


@pytest.mark.parametrize(("app", "sealed"), [(in_place, [1, 2, 3, 4]), (unchanged, [0, 1, 2, 3])])
def test_what_an_app_sends_back_or_keeps_is_not_lost_when_the_base_is_let_go_of(app, sealed, monkeypatch):
    use_local_task_identity(run_id=1, node_id=1)
    session = OneStep()
    monkeypatch.setattr(mod, "installed", lambda: session)
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    told = RecordDict({"confed": ConfigRecord({"round": 1, "attempt": 0})})
    message = Message(told, dst_node_id=1, message_type="train")
    message.metadata.__dict__["_message_id"] = "a message"
    reply = mod.confidential(message, context, app)
    assert not reply.has_error()
    assert session.sealed["w"].tolist() == sealed
    for kept in session.states[session.manifest.sites[0].owner.name].array_records.values():
        assert kept["w"].numpy().tolist() == [0, 1, 2, 3]
