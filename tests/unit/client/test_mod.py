"""What leaves the mod when something fails: confed's own codes, and nothing of the app's."""

from types import SimpleNamespace

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp.strategy import FedProx

from confed.client import mod
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
    ],
)
def test_an_error_leaves_as_a_stable_code(sentence, raising, reason, monkeypatch, caplog):
    use_local_task_identity(run_id=1, node_id=1)
    monkeypatch.setattr(mod, "installed", object)
    monkeypatch.setattr(mod, "_handle", raising)
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    message = Message(RecordDict(), dst_node_id=1, message_type="train")
    reply = mod.confidential(message, context, lambda *_: message)
    assert reply.error.reason == reason
    assert "4711" not in caplog.text
