"""Boxes of messages: who may write where and read what, how much they hold, and how long somebody waits."""

from __future__ import annotations

import datetime
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from confed.errors import ConfedError, EncodingError, RefusedError, SizeError, UnreachableError
from confed.governor import switchboard
from confed.governor.callers import Caller, Callers
from confed.governor.courier import serve_courier
from confed.governor.switchboard import Switchboard
from confed.wire.addresses import GOVERNOR_BOX, MESSAGE_BYTES
from confed.wire.boxes import Boxes
from confed.wire.channel import TlsIdentity

NOW = datetime.datetime.now(datetime.UTC)


def left(board: Switchboard, box: str, *, after: int = 1) -> list[tuple[str, bytes]]:
    return [(found.name, found.body) for found in board.wait(box, after=after, wait_ms=0, reader="")[0]]


def test_messages_come_in_their_order_and_a_name_again_takes_its_place_anew() -> None:
    board = Switchboard()
    for name, body in (("a", b"1"), ("b", b"2"), ("a", b"3")):
        board.leave("site", name=name, body=body, sender="")
    assert left(board, "site") == [("b", b"2"), ("a", b"3")]
    found, place = board.wait("site", after=1, wait_ms=0, reader="")
    assert place == found[-1].place
    assert left(board, "site", after=found[0].place) == [("a", b"3")]
    assert left(board, "site", after=place) == []
    assert left(board, "nobody's") == []


def test_asking_from_the_beginning_tells_the_place_alone_and_a_later_process_goes_on_from_it() -> None:
    board = Switchboard(clock=lambda: 1000)
    board.leave("site", name="a", body=b"1", sender="")
    assert board.wait("site", after=0, wait_ms=60_000, reader="") == ([], 1001)
    later = Switchboard(clock=lambda: 2000)
    later.leave("site", name="b", body=b"2", sender="")
    assert left(later, "site", after=1001) == [("b", b"2")]


@pytest.mark.parametrize(
    ("sentence", "sender", "box", "refused"),
    [
        ("the governor writes to a site", GOVERNOR_BOX, "site-01", False),
        ("a site writes to the governor", "site-01", GOVERNOR_BOX, False),
        ("a site writes to another", "site-01", "site-02", True),
        ("a site writes to itself", "site-01", "site-01", True),
        ("the aggregator writes to a site", "the aggregator", "site-01", True),
        ("somebody where nobody is asked", "", "site-01", False),
    ],
)
def test_only_the_governor_writes_to_everybody(sentence: str, sender: str, box: str, refused: bool) -> None:
    board = Switchboard()
    if refused:
        with pytest.raises(RefusedError):
            board.leave(box, name="a", body=b"", sender=sender)
    else:
        board.leave(box, name="a", body=b"", sender=sender)
    assert bool(left(board, box)) != refused


def test_nobody_reads_anothers_box() -> None:
    board = Switchboard()
    board.leave("site-01", name="a", body=b"1", sender=GOVERNOR_BOX)
    for reader in ("site-02", GOVERNOR_BOX):
        with pytest.raises(RefusedError):
            board.wait("site-01", after=1, wait_ms=0, reader=reader)
    assert board.wait("site-01", after=1, wait_ms=0, reader="site-01")[0][0].sender == GOVERNOR_BOX


@pytest.mark.parametrize(
    ("sentence", "box", "name", "body", "error"),
    [
        ("no box", "", "a", b"", EncodingError),
        ("no name", "site", "", b"", EncodingError),
        ("a name too long", "site", "a" * 129, b"", EncodingError),
        ("a box that cannot be printed", "si\nte", "a", b"", EncodingError),
        ("a message too large", "site", "a", bytes(MESSAGE_BYTES + 1), SizeError),
    ],
)
def test_what_is_no_message_is_refused(
    sentence: str, box: str, name: str, body: bytes, error: type[ConfedError]
) -> None:
    with pytest.raises(error):
        Switchboard().leave(box, name=name, body=body, sender="")


def test_a_box_keeps_its_newest_messages_and_there_is_an_end_to_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(switchboard, "_MESSAGES", 3)
    monkeypatch.setattr(switchboard, "_BOX_BYTES", 10)
    monkeypatch.setattr(switchboard, "_BOXES", 2)
    board = Switchboard()
    for number in range(5):
        board.leave("site", name=str(number), body=b"x", sender="")
    assert [name for name, _ in left(board, "site")] == ["2", "3", "4"]
    board.leave("site", name="large", body=b"x" * 9, sender="")
    assert [name for name, _ in left(board, "site")] == ["4", "large"]
    board.leave("other", name="a", body=b"", sender="")
    with pytest.raises(SizeError):
        board.leave("third", name="a", body=b"", sender="")


def test_who_waits_gets_a_message_when_it_comes_and_others_are_answered_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(switchboard, "_WAITING", 1)
    board = Switchboard()
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(board.wait, "site", after=1, wait_ms=10_000, reader="")
        while board._waiting._value:  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
            threading.Event().wait(0.001)
        assert board.wait("site", after=1, wait_ms=10_000, reader="")[0] == []  # no thread is left to wait
        board.leave("site", name="a", body=b"1", sender="")
        assert [found.name for found in waiting.result(5)[0]] == ["a"]


def test_over_tls_a_message_has_the_name_of_whose_key_has_left_it(tmp_path: Path) -> None:
    identities = {name: TlsIdentity.generate(now=NOW) for name in ("site-01", "site-02", GOVERNOR_BOX)}
    callers = Callers(
        callers=tuple(Caller(name=name, certificate=key.certificate, share_bytes=0) for name, key in identities.items())
    )
    with serve_courier(tmp_path, listen="127.0.0.1:0", tls=TlsIdentity.generate(now=NOW), callers=callers) as server:

        def boxes(name: str, *, own: str = "") -> Boxes:
            return Boxes(replace(server.endpoint, identity=identities[name]), own=own or name)

        with boxes("site-01") as site, boxes(GOVERNOR_BOX) as governor, boxes("site-02") as other:
            governor.leave("site-01", name="early", body=b"")
            site.begin()
            assert site.wait(0.0) == []
            governor.leave("site-01", name="call", body=b"train")
            (call,) = site.wait(5.0)
            assert (call.name, call.body, call.sender) == ("call", b"train", GOVERNOR_BOX)
            assert site.wait(0.0) == []
            site.leave(GOVERNOR_BOX, name="call", body=b"done")
            assert [(found.body, found.sender) for found in governor.wait(5.0)] == [(b"done", "site-01")]
            with pytest.raises(RefusedError):
                other.leave("site-01", name="call", body=b"forged")
            with boxes("site-02", own="site-01") as curious, pytest.raises(RefusedError):
                curious.wait(0.0)


def test_a_courier_that_is_down_is_unreachable(tmp_path: Path) -> None:
    with serve_courier(tmp_path / "store", listen=f"unix:{tmp_path}/socket", tls=None) as server:
        boxes = Boxes(server.endpoint, own="site")
    with boxes:
        for call in (boxes.begin, lambda: boxes.wait(0.1), lambda: boxes.leave("site", name="a", body=b"")):
            with pytest.raises(UnreachableError):
                call()
