"""What leaves the mod when something fails: confed's own codes, and nothing of the app's."""

import pytest
from flwr.app import Context, Message, RecordDict

from confed.client import mod
from confed.errors import ConfedError, ShapeError
from confed.flower.messages import use_local_task_identity
from confed.journey import Purpose


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
