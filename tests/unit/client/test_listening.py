"""A host that listens: calls come from the box or from Flower, are answered the way they came, and once."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict

from confed.client.listening import Listening
from confed.errors import UnreachableError
from confed.flower.assignment import Assignment
from confed.flower.messages import decode_message, encode_message, set_message_id, use_local_task_identity
from confed.wire.addresses import GOVERNOR_BOX
from confed.wire.boxes import Received


class Boxes:
    """A box that a test fills."""

    def __init__(self) -> None:
        self.come: list[Received] = []
        self.left: list[tuple[str, str, Message]] = []
        self.waited: list[float] = []
        self.down = False

    def begin(self) -> None:
        if self.down:
            raise UnreachableError("courier")

    def leave(self, box: str, *, name: str, body: bytes) -> None:
        if self.down:
            raise UnreachableError("courier")
        self.left.append((box, name, decode_message(body)))

    def wait(self, seconds: float) -> list[Received]:
        self.begin()
        self.waited.append(seconds)
        come, self.come = self.come, []
        return come


class Flower:
    """The way to Flower, with the assignments that a test puts there."""

    def __init__(self) -> None:
        self.waiting: list[Assignment] = []
        self.pushed: list[Message] = []

    def pull(self) -> Assignment | None:
        return self.waiting.pop(0) if self.waiting else None

    def push(self, assignment: Assignment, reply: Message) -> None:
        self.pushed.append(reply)


def call(name: str, **fields: Any) -> Message:
    message = Message(RecordDict({"confed": ConfigRecord(fields)}), 7, MessageType.TRAIN)
    set_message_id(message, name)
    return message


def received(name: str, *, sender: str = GOVERNOR_BOX, body: bytes | None = None) -> Received:
    return Received(name=name, body=encode_message(call(name, round=1)) if body is None else body, sender=sender)


def answered(assignment: Assignment) -> Message:
    return Message(RecordDict({"confed": ConfigRecord({"ok": 1})}), reply_to=assignment.message)


@pytest.fixture
def world() -> tuple[Listening, Boxes, Flower]:
    use_local_task_identity(run_id=1, node_id=1)
    boxes, flower = Boxes(), Flower()
    stop = threading.Event()
    stop.set()  # no pause lasts
    listening = Listening(flower, boxes, stop, node_config={"partition-id": 3}, poll_interval_s=0.05)
    return listening, boxes, flower


def test_a_call_from_the_box_is_answered_in_the_governors(world: tuple[Listening, Boxes, Flower]) -> None:
    listening, boxes, flower = world
    boxes.come = [received("a"), received("b", sender="")]
    for name in ("a", "b"):
        assignment = listening.pull()
        assert assignment is not None
        assert assignment.message.content.config_records["confed"] == ConfigRecord({"round": 1})
        assert (assignment.context.node_config, assignment.context.node_id) == ({"partition-id": 3}, 7)
        listening.push(assignment, answered(assignment))
        box, left_as, reply = boxes.left[-1]
        assert (box, left_as, reply.metadata.reply_to_message_id) == (GOVERNOR_BOX, name, name)
    assert not flower.pushed
    assert listening.pull() is None


def test_a_call_that_comes_again_is_answered_again_and_not_worked_on_again(
    world: tuple[Listening, Boxes, Flower],
) -> None:
    listening, boxes, _ = world
    boxes.come = [received("a")]
    assignment = listening.pull()
    assert assignment is not None
    boxes.down = True
    listening.push(assignment, answered(assignment))
    boxes.down = False
    assert not boxes.left
    boxes.come = [received("a")]
    assert listening.pull() is None
    assert [name for _, name, _ in boxes.left] == ["a"]


@pytest.mark.parametrize("wrong", [{"sender": "site-02"}, {"body": b"\xff\xff"}], ids=["another site's", "no message"])
def test_what_is_no_call_of_the_governor_is_passed_over(
    world: tuple[Listening, Boxes, Flower], wrong: dict[str, Any]
) -> None:
    listening, boxes, _ = world
    boxes.come = [received("a", **wrong)]
    assert listening.pull() is None
    assert not boxes.left


def test_flower_is_asked_too_often_until_the_host_has_told_that_it_listens_and_when_the_courier_is_down(
    world: tuple[Listening, Boxes, Flower],
) -> None:
    listening, boxes, flower = world
    context = Context(run_id=1, node_id=7, node_config={}, state=RecordDict(), run_config={})
    asked = Assignment(message=call("flower", ask="site"), context=context, started_at=0.0)
    flower.waiting = [asked]
    assert listening.pull() is asked
    assert boxes.waited[-1] == pytest.approx(0.05, abs=0.04)
    listening.push(asked, answered(asked))
    assert (len(flower.pushed), boxes.left) == (1, [])
    assert listening.pull() is None
    assert boxes.waited[-1] == 1.0
    boxes.down = True
    flower.waiting = [asked]
    assert listening.pull() is asked
