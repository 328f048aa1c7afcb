"""What leaves beside an exchange: which fields, in which form, and where the launcher puts them."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from confed.errors import ConfigError, DeliveryError
from confed.inference.clear import MOST_VALUES, Reading
from confed.inference.messages import AnswerHead
from confed.inference.outlet import Carrier, Leaving, SocketOutlet
from confed.inference.tensors import LENGTH_HEADER
from confed.sealing.identities import HpkeIdentity
from confed.serving import AnswerRecipient, ClearTerms, OutputMode, OutputTerms

PUBLIC = HpkeIdentity.generate().public
CHAT = {
    "model": "m",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "note": "x" * 65}}],
    "usage": {"total_tokens": 7},
    "outputs": [{"name": "alarm", "data": [0.5, 1.5]}, {"name": "y", "data": list(range(MOST_VALUES + 1))}],
    "many": [{"score": number} for number in range(MOST_VALUES + 1)],
    "none": None,
    "broken": float("inf"),
}

FOUND: dict[str, tuple[str, Any]] = {
    "a value": ("model", "m"),
    "a value within": ("usage.total_tokens", 7),
    "a value of a list's elements": ("choices.finish_reason", "stop"),
    "an element by its name": ("outputs.alarm.data", [0.5, 1.5]),
    "an object": ("usage", ...),
    "a list of objects": ("choices", ...),
    "an object of an element": ("choices.message", ...),
    "a long text": ("choices.message.note", ...),
    "a long list": ("outputs.y.data", ...),
    "a value of too many elements": ("many.score", ...),
    "nothing": ("none", ...),
    "what is not there": ("usage.other", ...),
    "no finite number": ("broken", ...),
    "a part of a value": ("model.m", ...),
}


def head(**headers: str) -> AnswerHead:
    return AnswerHead(status=200, headers=tuple((name.replace("_", "-"), value) for name, value in headers.items()))


@pytest.mark.parametrize(("name", "value"), FOUND.values(), ids=FOUND)
def test_only_single_values_and_short_lists_leave(name: str, value: Any) -> None:
    reading = Reading((name,), head(content_type="application/json"))
    data = json.dumps(CHAT).encode()
    for at in range(0, len(data), 50):
        reading.feed(data[at : at + 50])
    assert reading.fields() == ({} if value is ... else {name: value})


def test_a_stream_is_read_event_by_event_and_the_last_value_stands() -> None:
    reading = Reading(("usage.total_tokens", "choices.finish_reason"), head(content_type="text/event-stream"))
    for event in (
        {"choices": [{"finish_reason": None}]},
        {"choices": [{"finish_reason": "length"}]},
        {"choices": [], "usage": {"total_tokens": 3}},
    ):
        data = f"data: {json.dumps(event)}\n\n".encode()
        reading.feed(data[:9])
        reading.feed(data[9:])
    reading.feed(b"data: [DONE]\n\n")
    assert reading.fields() == {"choices.finish_reason": "length", "usage.total_tokens": 3}


def test_tensors_that_come_as_raw_bytes_are_read_by_name() -> None:
    raw = np.array([0.25, 4], dtype="<f4").tobytes()
    front = json.dumps({"outputs": [{"name": "y", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": 8}}]}).encode()  # fmt: skip
    told = AnswerHead(status=200, headers=((LENGTH_HEADER, str(len(front))),))
    for cut, expected in ((0, {"outputs.y.data": [0.25, 4.0]}), (4, {})):
        reading = Reading(("outputs.y.data",), told)
        reading.feed((front + raw)[: len(front) + len(raw) - cut])
        assert reading.fields() == expected


# The terms.


def a_recipient(name: str = "ward", public: bytes = PUBLIC) -> AnswerRecipient:
    return AnswerRecipient(name=name, public=public)


def clear(*fields: str, sink: str = "stdout") -> ClearTerms:
    return ClearTerms(fields=fields or ("model",), sink=sink)


TERMS: dict[str, Any] = {
    "recipients without any": lambda: OutputTerms(mode=OutputMode.RECIPIENTS, recipients=None, clear=None),
    "recipients, none named": lambda: OutputTerms(mode=OutputMode.RECIPIENTS, recipients=(), clear=None),
    "recipients of a requester": lambda: OutputTerms(
        mode=OutputMode.REQUESTER, recipients=(a_recipient(),), clear=None
    ),
    "one key by two names": lambda: OutputTerms(
        mode=OutputMode.RECIPIENTS, recipients=(a_recipient(), a_recipient("other")), clear=None
    ),
    "clear without fields": lambda: OutputTerms(mode=OutputMode.CLEAR, recipients=None, clear=None),
    "no field": lambda: ClearTerms(fields=(), sink="stdout"),
    "a field twice": lambda: clear("model", "model"),
    "a field that is no name": lambda: clear("choices[0]"),
    "a text": lambda: clear("choices.message.content"),
    "a text of a stream": lambda: clear("choices.delta.content.x"),
    "an embedding": lambda: clear("data.embedding"),
    "a key of another length": lambda: a_recipient(public=bytes(32)),
    "a name that is none": lambda: a_recipient("../ward"),
    "a sink elsewhere": lambda: clear(sink="file:../elsewhere"),
    "a sink over plain HTTP": lambda: clear(sink="http://example.org/x"),
    "a sink with a password": lambda: clear(sink="https://a:b@example.org/x"),
    "a sink that is none": lambda: clear(sink="https://"),
    "no sink": lambda: clear(sink=""),
}


@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS)
def test_output_terms_that_contradict_or_let_answers_out_are_refused(terms: Any) -> None:
    with pytest.raises(ConfigError):
        terms()


@pytest.mark.parametrize("sink", ["stdout", "file:a.jsonl", "https://example.org/x", "http://127.0.0.1:9/x"])
def test_three_kinds_of_sink(sink: str) -> None:
    told = OutputTerms(mode=OutputMode.REQUESTER, recipients=None, clear=clear(sink=sink))
    assert sink in told.told
    assert not told.plain


# The launcher's end.


@contextmanager
def handed_over(carrier: Carrier) -> Iterator[SocketOutlet]:
    outlet = SocketOutlet(carrier.other.dup())
    carrier.start()
    try:
        yield outlet
    finally:
        outlet.close()
        carrier._thread.join(5)


def test_a_line_goes_to_a_file_and_an_answer_to_its_folder(tmp_path: Path) -> None:
    with handed_over(Carrier(sink="file:clear.jsonl", folder=tmp_path, answers=tmp_path / "answers")) as outlet:
        for number in range(3):
            outlet.send(Leaving.CLEAR, "", b"%d\n" % number)
        outlet.send(Leaving.ANSWER, "ab" * 32, b"sealed")
        assert (tmp_path / "clear.jsonl").read_bytes() == b"0\n1\n2\n"
        assert (tmp_path / "answers" / f"{'ab' * 32}.answer").read_bytes() == b"sealed"
        for name in ("", "../x", "AB"):
            with pytest.raises(DeliveryError):
                outlet.send(Leaving.ANSWER, name, b"x")


def test_a_line_goes_to_the_output(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    with handed_over(Carrier(sink="stdout", folder=tmp_path, answers=None)) as outlet:
        outlet.send(Leaving.CLEAR, "", b"line\n")
        assert capfdbinary.readouterr().out == b"line\n"
        with pytest.raises(DeliveryError):  # there is nowhere for sealed answers
            outlet.send(Leaving.ANSWER, "ab" * 32, b"x")


class Sink(http.server.BaseHTTPRequestHandler):
    seen: list[bytes]
    status: int

    def do_GET(self) -> None:
        type(self).seen.append(b"followed")
        self.send_response(200)
        self.end_headers()

    def do_POST(self) -> None:
        type(self).seen.append(self.rfile.read(int(self.headers["content-length"])))
        if not type(self).status:
            self.wfile.write(b"this is no HTTP\r\n\r\n")
            return
        self.send_response(type(self).status)
        self.send_header("content-length", "0")
        self.send_header("location", "/elsewhere")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def sink() -> Iterator[tuple[str, type[Sink]]]:
    handler = type("Handler", (Sink,), {"seen": [], "status": 200})
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/clear", handler
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("status", [200, 302, 303, 500])
def test_a_line_goes_to_an_address_and_to_no_other(tmp_path: Path, sink: tuple[str, type[Sink]], status: int) -> None:
    address, handler = sink
    handler.status = status
    with handed_over(Carrier(sink=address, folder=tmp_path, answers=None)) as outlet:
        if status == 200:
            outlet.send(Leaving.CLEAR, "", b"line\n")
        else:
            with pytest.raises(DeliveryError):
                outlet.send(Leaving.CLEAR, "", b"line\n")
    assert handler.seen == [b"line\n"]


def test_an_address_that_answers_nonsense_once_fails_one_line_and_not_the_next(
    tmp_path: Path, sink: tuple[str, type[Sink]]
) -> None:
    address, handler = sink
    with handed_over(Carrier(sink=address, folder=tmp_path, answers=None)) as outlet:
        handler.status = 0
        with pytest.raises(DeliveryError):
            outlet.send(Leaving.CLEAR, "", b"one\n")
        handler.status = 200
        outlet.send(Leaving.CLEAR, "", b"two\n")
    assert handler.seen == [b"one\n", b"two\n"]


def test_a_launcher_that_is_gone_is_told(tmp_path: Path) -> None:
    carrier = Carrier(sink="stdout", folder=tmp_path, answers=None)
    outlet = SocketOutlet(carrier.other)
    carrier._connection.close()
    with pytest.raises(DeliveryError):
        outlet.send(Leaving.CLEAR, "", b"x")
    outlet.close()
