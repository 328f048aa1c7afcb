"""Sites that listen are called at their boxes; what is lost, forged or nobody's is found."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, MessageType, RecordDict

from confed.errors import UnreachableError
from confed.flower.messages import decode_message, encode_message, set_message_id, use_local_task_identity
from confed.governor import calling
from confed.governor.calling import GONE, LISTENS, CallingGrid
from confed.governor.courier import serve_courier
from confed.wire.addresses import GOVERNOR_BOX
from confed.wire.boxes import Boxes as RealBoxes
from confed.wire.boxes import Received

RECORD = "confed"
LISTENING, OTHER = 11, 12
NAPS: list[float] = []


class Boxes:
    """Remembers what was left, and has what a test puts there; while ``away`` it can do neither."""

    def __init__(self) -> None:
        self.left: list[tuple[str, str, Message]] = []
        self.come: list[Received] = []
        self.away = False
        self.asked = 0

    def leave(self, box: str, *, name: str, body: bytes) -> None:
        self._require_there()
        self.left.append((box, name, decode_message(body)))

    def _require_there(self) -> None:
        self.asked += 1
        if self.away:
            raise UnreachableError("courier", expected="an answer", got="UNAVAILABLE")

    def wait(self, seconds: float) -> list[Received]:
        self._require_there()
        come, self.come = self.come, []
        return come


class Inner:
    """Flower's Grid, in which every message is answered with what a test says."""

    def __init__(self) -> None:
        self.online = [LISTENING, OTHER]
        self.pushed: list[Message] = []
        self.replies: list[Message] = []

    def get_node_ids(self) -> list[int]:
        return self.online

    def push_messages(self, messages: Any) -> list[str]:
        names: list[str] = []
        for message in messages:
            set_message_id(message, f"flower-{len(self.pushed)}")
            self.pushed.append(message)
            names.append(message.metadata.message_id)
        return names

    def pull_messages(self, message_ids: Any) -> list[Message]:
        found, self.replies = self.replies, []
        return found


def ask(node: int, **fields: Any) -> Message:
    return Message(RecordDict({RECORD: ConfigRecord(fields)}), node, MessageType.TRAIN)


def answer(message: Message, **fields: Any) -> Message:
    return Message(RecordDict({RECORD: ConfigRecord(fields)}), reply_to=message)


def arrived(boxes: Boxes, at: int, *, sender: str = "site-01", body: bytes | None = None, name: str = "") -> None:
    _, called, message = boxes.left[at]
    boxes.come.append(
        Received(
            name=name or called, body=encode_message(answer(message, ok=1)) if body is None else body, sender=sender
        )
    )


@pytest.fixture
def world() -> tuple[CallingGrid, Inner, Boxes]:
    """A grid that has learnt that one of two nodes listens."""
    use_local_task_identity(run_id=1, node_id=1)
    inner, boxes = Inner(), Boxes()
    grid = CallingGrid(inner, boxes, record=RECORD, patience_s=60, sleep=NAPS.append)  # pyright: ignore[reportArgumentType]
    NAPS.clear()
    names = list(grid.push_messages([ask(LISTENING, ask="site"), ask(OTHER, ask="site")]))
    inner.replies = [
        answer(inner.pushed[0], site="site-01", **{LISTENS: 1}),
        answer(inner.pushed[1], site="site-02", **{LISTENS: 0}),
    ]
    assert len(list(grid.pull_messages(names))) == 2
    assert not boxes.left
    return grid, inner, boxes


def test_a_site_that_listens_is_called_at_its_box_and_the_other_through_flower(
    world: tuple[CallingGrid, Inner, Boxes],
) -> None:
    grid, inner, boxes = world
    names = list(grid.push_messages([ask(OTHER, round=1), ask(LISTENING, round=1), ask(OTHER, round=2)]))
    assert [names[0], names[2]] == [message.metadata.message_id for message in inner.pushed[2:]]
    ((box, name, message),) = boxes.left
    assert (box, name) == ("site-01", names[1])
    assert message.content.config_records[RECORD] == ConfigRecord({"round": 1})
    arrived(boxes, 0)
    inner.replies = [answer(inner.pushed[2], ok=1)]
    replies = list(grid.pull_messages(names))
    assert {reply.metadata.reply_to_message_id for reply in replies} == set(names[:2])
    assert {reply.metadata.src_node_id for reply in replies} == {LISTENING, OTHER}


@pytest.mark.parametrize(
    ("sentence", "forged"),
    [
        ("left by another site", {"sender": "site-02"}),
        ("no message", {"body": b"\xff\xff"}),
        ("under a name that nobody asked under", {"name": "another"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_answer_of_the_site_is_passed_over_and_the_answer_is_taken(
    world: tuple[CallingGrid, Inner, Boxes], sentence: str, forged: dict[str, Any]
) -> None:
    grid, _, boxes = world
    names = list(grid.push_messages([ask(LISTENING, round=1)]))
    arrived(boxes, 0, **forged)
    assert list(grid.pull_messages(names)) == []
    arrived(boxes, 0, sender="")
    arrived(boxes, 0)
    assert len(list(grid.pull_messages(names))) == 1  # once, though it came twice


def test_an_answer_in_another_nodes_name_is_passed_over(world: tuple[CallingGrid, Inner, Boxes]) -> None:
    grid, _, boxes = world
    names = list(grid.push_messages([ask(LISTENING, round=1)]))
    other = ask(OTHER, round=1)
    set_message_id(other, names[0])
    arrived(boxes, 0, body=encode_message(answer(other, ok=1)))
    assert list(grid.pull_messages(names)) == []


def test_a_call_is_left_again_until_it_is_answered(
    world: tuple[CallingGrid, Inner, Boxes], monkeypatch: pytest.MonkeyPatch
) -> None:
    grid, _, boxes = world
    names = list(grid.push_messages([ask(LISTENING, round=1)]))
    grid.pull_messages(names)
    assert len(boxes.left) == 1
    monkeypatch.setattr(calling, "_AGAIN_S", 0.0)
    grid.pull_messages(names)
    assert [name for _, name, _ in boxes.left] == names * 2
    arrived(boxes, 1)
    assert len(list(grid.pull_messages(names))) == 1


def test_a_node_that_is_gone_is_answered_for(
    world: tuple[CallingGrid, Inner, Boxes], monkeypatch: pytest.MonkeyPatch
) -> None:
    grid, inner, _ = world
    monkeypatch.setattr(calling, "_LOOK_S", 0.0)
    names = list(grid.push_messages([ask(LISTENING, round=1)]))
    assert list(grid.pull_messages(names)) == []
    inner.online = [OTHER]
    (reply,) = grid.pull_messages(names)
    assert (reply.error.reason, reply.metadata.reply_to_message_id) == (GONE, names[0])
    assert reply.metadata.src_node_id == LISTENING


def test_a_call_waits_for_a_courier_that_is_away_and_is_left_once_it_is_back(
    world: tuple[CallingGrid, Inner, Boxes],
) -> None:
    grid, _, boxes = world
    boxes.away = True
    names = list(grid.push_messages([ask(LISTENING, round=1), ask(LISTENING, round=2)]))
    assert boxes.asked == 1  # the second is not tried: a courier that hangs would cost the time of each
    for _ in range(7):
        assert list(grid.pull_messages(names)) == []
    assert NAPS == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]
    boxes.away = False
    assert list(grid.pull_messages(names)) == []
    assert {name for _, name, _ in boxes.left} == set(names)
    arrived(boxes, 0)
    arrived(boxes, 1)
    assert len(list(grid.pull_messages(names))) == 2


def test_a_call_that_a_courier_took_is_left_again_at_once_when_it_was_away(
    world: tuple[CallingGrid, Inner, Boxes],
) -> None:
    grid, _, boxes = world
    names = list(grid.push_messages([ask(LISTENING, round=1)]))
    boxes.away = True
    grid.pull_messages(names)
    boxes.away = False
    grid.pull_messages(names)
    assert [name for _, name, _ in boxes.left] == names * 2
    boxes.away = True
    grid.pull_messages(names)
    assert NAPS == [0.1, 0.1]  # it had been back


def test_a_courier_that_stays_away_is_unreachable(world: tuple[CallingGrid, Inner, Boxes]) -> None:
    grid, _, boxes = world
    grid._away._patience_s = 0.0
    names = list(grid.push_messages([ask(LISTENING, round=1)]))
    boxes.away = True
    grid.pull_messages(names)
    with pytest.raises(UnreachableError):
        grid.pull_messages(names)


def test_a_courier_that_is_started_again_during_a_call_brings_call_and_answer(tmp_path: Path) -> None:
    use_local_task_identity(run_id=1, node_id=1)
    socket, inner = f"unix:{tmp_path}/courier", Inner()
    server = serve_courier(tmp_path / "store", listen=socket, tls=None)
    with RealBoxes(server.endpoint, own=GOVERNOR_BOX) as own, RealBoxes(server.endpoint, own="site-01") as site:
        grid = CallingGrid(inner, own, record=RECORD, patience_s=60, sleep=lambda _: None)  # pyright: ignore[reportArgumentType]
        grid._sites[LISTENING] = "site-01"
        site.begin()
        server.stop(0)
        names = list(grid.push_messages([ask(LISTENING, round=1)]))
        assert list(grid.pull_messages(names)) == []
        with serve_courier(tmp_path / "store", listen=socket, tls=None):
            replies: list[Message] = []
            deadline = time.monotonic() + 30
            while not replies:
                assert time.monotonic() < deadline
                replies = list(grid.pull_messages(names))
                with contextlib.suppress(UnreachableError):
                    for received in site.wait(0.05):
                        body = encode_message(answer(decode_message(received.body), ok=1))
                        site.leave(GOVERNOR_BOX, name=received.name, body=body)
    assert replies[0].metadata.reply_to_message_id == names[0]
