"""What nobody foresaw is told by its kind and place: its words may quote a model or a request."""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from confed.errors import ConfigError, EncodingError
from confed.inference import __main__ as tee
from confed.inference.edge import EXCHANGE_PATH, Edge
from confed.inference.engine import Answer
from confed.inference.messages import AnswerHead
from confed.inference.streaming import whole
from confed.serving import OutputTerms

CANARY = "canary-weights-4711"


def failing(*given: Any, **_: Any) -> Any:
    for one in given:
        if isinstance(one, socket.socket):
            one.close()
    raise ValueError(CANARY)


@pytest.fixture
def unconfined(monkeypatch: pytest.MonkeyPatch) -> None:
    """This very process is to stay as it is."""
    monkeypatch.setattr("confed.attestation.tee.confinement.confine", lambda **_: ())
    monkeypatch.setattr("confed.memory.keep_freed", lambda: None)
    monkeypatch.setattr(tempfile, "tempdir", tempfile.tempdir)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")


def started() -> int:
    """Start a replica in this process, and return its exit code."""
    read_end, write_end = os.pipe()
    os.write(write_end, b'{"child_folder":"","devices":[],"network":false,"readable":[]}')
    os.close(write_end)
    with socket.socket() as listener:
        return tee.main(["--launch-fd", str(read_end), "--listen-fd", str(os.dup(listener.fileno()))])


@pytest.mark.usefixtures("unconfined")
def test_an_engine_that_fails_at_the_start_ends_the_tee_with_no_word_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tee, "_serve", failing)
    assert started() == 2
    told = capfd.readouterr().err
    assert told.startswith("error: the replica failed: ValueError at test_failures.py:")
    assert CANARY not in told
    assert "Traceback" not in told


@pytest.mark.usefixtures("unconfined")
def test_a_refusal_at_the_start_is_told_as_any_is(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(*given: Any) -> None:
        given[1].close()
        raise ConfigError("engine", expected="one", got="none")

    monkeypatch.setattr(tee, "_serve", refuse)
    assert started() == ConfigError.exit_code
    assert capfd.readouterr().err == "error: engine: expected one, got none\n"


def test_what_fails_at_the_edge_is_logged_by_its_kind_and_frees_its_place(capfd: pytest.CaptureFixture[str]) -> None:
    serving = SimpleNamespace(output=OutputTerms.to_requester())
    replica: Any = SimpleNamespace(serving=serving, opening=failing)
    edge, sent = Edge(replica, SimpleNamespace(), most_at_once=1), list[Any]()  # type: ignore[arg-type]

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    asyncio.run(edge({"type": "http", "method": "POST", "path": EXCHANGE_PATH}, receive, send))
    told = capfd.readouterr().err
    assert "ValueError" in told
    assert CANARY not in told
    assert not sent, "the server ends what was not answered"
    assert edge._free == 1


def test_a_window_whose_requester_went_away_is_stopped_at_its_next_piece() -> None:
    gone, said = threading.Event(), list[str]()

    def pieces() -> Iterator[bytes]:
        try:
            for number in range(3):
                said.append(str(number))
                yield b"piece"
                gone.set()
        finally:
            said.append("closed")

    with pytest.raises(EncodingError):
        whole(Answer(head=AnswerHead(status=200, headers=()), body=pieces()), gone=gone)
    assert said == ["0", "1", "closed"]
