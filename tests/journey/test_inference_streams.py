"""Live data over long-lived exchanges: windows answered one by one, epochs that change meanwhile, and wrong turns."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from inference_road import Cutter, Deployment, Linear, Served
from typer.testing import CliRunner

from confed.cli.infer import app as infer_app
from confed.errors import (
    AnswerError,
    BusyError,
    ConfedError,
    EncodingError,
    LineageError,
    SizeError,
    TruncatedError,
    UnreachableError,
)
from confed.inference import duplex
from confed.inference.client import ConfidentialClient, wall_clock
from confed.inference.edge import EXCHANGE_PATH
from confed.inference.epochs import EPOCH_MS, OVERLAP_MS
from confed.inference.exchange import Sealing
from confed.inference.messages import Request, RequestHead
from confed.inference.requester import Proof
from confed.inference.windows import ANSWER_HEAD, STREAM_HEAD, STREAM_PATH, Windows
from confed.statement import Signed

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments" / "chat"))
from relay import Relay

X = np.arange(8, dtype=np.float32).reshape(2, 4)


@pytest.fixture(scope="module")
def shared(deployment: Deployment) -> Iterator[Served]:
    with deployment.served() as served:
        yield served


@pytest.fixture
def client(deployment: Deployment, shared: Served) -> Iterator[ConfidentialClient]:
    with deployment.client(shared.url) as client:
        yield client


def plain(deployment: Deployment, x: np.ndarray) -> bytes:
    return Linear(deployment.arrays, {}).predict({"x": x})["y"].tobytes()


def wait_for(found: Callable[[], Any]) -> Any:
    pause = threading.Event()
    for _ in range(3000):
        if value := found():
            return value
        pause.wait(0.01)
    raise AssertionError("nothing came")


def test_each_window_has_the_plain_models_answer_and_one_receipt_is_over_all(
    deployment: Deployment, shared: Served, client: ConfidentialClient
) -> None:
    runs = shared.engine.runs
    with client.stream() as stream:
        assert stream.receipt() is None
        for step in range(20):
            assert stream.predict({"x": X + step})["y"].tobytes() == plain(deployment, X + step)
        between = stream.receipt()
        assert stream.predict({"x": X})["y"].tobytes() == plain(deployment, X)
    assert shared.engine.runs == runs + 21
    (proof,) = stream.proofs
    receipt, _ = Proof.from_json(proof.to_json()).verify(policy=deployment.policy)
    assert between is not None
    assert receipt.epoch == between.epoch
    assert len({receipt.request, between.request, receipt.answer, between.answer}) == 4


def test_a_window_may_be_as_large_as_a_request(deployment: Deployment, client: ConfidentialClient) -> None:
    large = np.random.default_rng(2).normal(size=(100_000, 4)).astype(np.float32)
    with client.stream() as stream:
        assert stream.predict({"x": large})["y"].tobytes() == plain(deployment, large)
        with pytest.raises(SizeError):
            stream.predict({"x": np.zeros((200_000, 4), dtype=np.float32)})
        assert stream.predict({"x": X})


def test_a_bad_window_is_refused_in_the_interfaces_form_and_the_stream_goes_on(client: ConfidentialClient) -> None:
    with client.stream() as stream:
        with pytest.raises(AnswerError):
            stream.predict({"x": X.astype(np.float64)})
        found = stream.ask("POST", "/v2/models/other/infer", body=b"{}")
        assert (found.head.status, list(json.loads(found.body))) == (404, ["error"])
        failed = stream.ask("POST", "/v2/models/linear/infer", body=b'{"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [NaN, 2, 3, 4]}]}')  # fmt: skip
        assert (failed.head.status, json.loads(failed.body)) == (500, {"error": "the engine failed"})
        assert stream.predict({"x": X})
    assert len(stream.proofs) == 1


@pytest.mark.parametrize("name", ["request_commitment", "commitment", "epoch"])
@pytest.mark.parametrize("marked", [True, False], ids=["in between", "at the end"])
def test_a_receipt_over_anything_else_is_refused(
    deployment: Deployment, shared: Served, monkeypatch: pytest.MonkeyPatch, name: str, *, marked: bool
) -> None:
    signed = shared.replica.receipt

    def over_another(answering: Any) -> Signed:
        told = {key: getattr(answering, key) for key in ("request_commitment", "commitment", "epoch")}
        return signed(SimpleNamespace(**{**told, name: "00" * 32}))  # type: ignore[arg-type]

    monkeypatch.setattr(shared.replica, "receipt", over_another)
    with deployment.client(shared.url) as client:
        stream = client.stream()
        stream.predict({"x": X})
        with pytest.raises(LineageError):
            stream.receipt() if marked else stream.close()
        assert stream.proofs == []


def test_an_answer_of_another_kind_or_two_of_them_are_none(
    deployment: Deployment, shared: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Windows.answer
    monkeypatch.setattr(Windows, "receipt", lambda self, _signed: honest(self, ANSWER_HEAD, b""))
    with deployment.client(shared.url) as client:
        stream = client.stream()
        stream.predict({"x": X})
        with pytest.raises(EncodingError):
            stream.receipt()
        monkeypatch.setattr(Windows, "answer", lambda self, *parts: honest(self, *parts) + honest(self, *parts))
        stream = client.stream()
        with pytest.raises(EncodingError):  # the second one may come a moment later
            _ = [stream.predict({"x": X}) for _ in range(2)]


def test_no_word_of_a_stream_is_on_the_wire(deployment: Deployment, shared: Served) -> None:
    with Relay.before(shared.url) as relay, deployment.client(relay.url) as client, client.stream() as stream:
        found = stream.ask("GET", "/v2/models/linear?canary-of-a-window")
        assert found.head.status == 200
        assert len(relay.epochs) == 1
        assert not any(relay.saw(word) for word in ("canary", "models", "FP32"))
        assert relay.saw(STREAM_PATH)


# Epochs.


class Clocks:
    """The requester's clock and the replica's, put forward together."""

    def __init__(self, served: Served) -> None:
        self.replica = served.replica
        self.ahead = 0

    def now(self) -> int:
        return wall_clock() + self.ahead

    def forward(self, milliseconds: int) -> None:
        self.ahead += milliseconds
        self.replica._clock.advance(self.replica._clock.now() + milliseconds)


def test_a_stream_goes_on_over_the_next_epochs_key_and_no_window_is_lost_or_run_twice(deployment: Deployment) -> None:
    with deployment.served() as served:
        clocks = Clocks(served)
        with deployment.client(served.url, now=clocks.now) as client, client.stream() as stream:
            for step in range(6):
                assert stream.predict({"x": X + step})["y"].tobytes() == plain(deployment, X + step)
                if step % 2:
                    clocks.forward(EPOCH_MS)
        assert served.engine.runs == 6
        assert len(stream.proofs) == 3
        assert len({proof.receipt.digest for proof in stream.proofs}) == 3


@pytest.mark.parametrize("seen", [True, False], ids=["seen before the window", "while the window is on its way"])
def test_the_replica_ends_a_stream_before_its_key_is_gone(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch, *, seen: bool
) -> None:
    with deployment.served() as served:
        clocks = Clocks(served)
        with deployment.client(served.url, now=clocks.now) as client, client.stream() as stream:
            stream.predict({"x": X})
            ended = stream._exchange
            assert ended is not None
            served.engine.held = threading.Event()
            with ThreadPoolExecutor(1) as pool:
                waiting = pool.submit(stream.predict, {"x": X})
                wait_for(lambda: served.engine.runs == 2)
                clocks.replica._clock.advance(clocks.replica._clock.now() + EPOCH_MS + OVERLAP_MS)
                served.engine.held.set()
                assert waiting.result()
            wait_for(lambda: ended._connection.is_readable)
            clocks.ahead = EPOCH_MS + OVERLAP_MS
            stream._is_current = lambda _exchange: True  # the requester's clock is behind
            if not seen:
                monkeypatch.setattr(duplex.Duplex, "is_readable", property(lambda _self: False))
            assert stream.predict({"x": X})["y"].tobytes() == plain(deployment, X)
            assert stream._exchange is not ended
        assert (served.engine.runs, len(stream.proofs)) == (3, 2)


def test_an_idle_stream_is_ended_with_a_receipt_and_the_next_window_goes_on(deployment: Deployment) -> None:
    with deployment.served(idle_s=0.5, most_at_once=1) as served, deployment.client(served.url) as client:
        with client.stream() as stream:
            stream.predict({"x": X})
            wait_for(lambda: served.edge._free == 1)
            assert stream.predict({"x": X})["y"].tobytes() == plain(deployment, X)
        assert (served.engine.runs, len(stream.proofs)) == (2, 2)


# The network, and those who go away.


def test_a_window_whose_answer_was_cut_off_is_not_sent_again_by_itself(deployment: Deployment) -> None:
    with deployment.served() as served, Cutter.before(served.url) as relay, deployment.client(relay.url) as client:
        stream = client.stream()
        stream.predict({"x": X})
        served.engine.held = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(stream.predict, {"x": X})
            wait_for(lambda: served.engine.runs == 2)
            relay.cut()
            with pytest.raises(TruncatedError):
                waiting.result()
        served.engine.held.set()
        served.engine.held = None
        wait_for(lambda: served.edge._free == 8)
        assert served.engine.runs == 2
        assert stream.predict({"x": X})["y"].tobytes() == plain(deployment, X)
        relay.cut()
        wait_for(lambda: stream._exchange is not None and stream._exchange._connection.is_readable)
        with pytest.raises(UnreachableError):
            stream.predict({"x": X})
        assert served.engine.runs == 3
        stream.close()
        assert stream.proofs == []


def test_a_recorded_stream_is_refused_and_runs_nothing(deployment: Deployment, shared: Served) -> None:
    with Relay.before(shared.url) as relay, deployment.client(relay.url) as client, client.stream() as stream:
        stream.predict({"x": X})
        runs = shared.engine.runs
        body = b"".join(piece.data for piece in relay.pieces if piece.upward and piece.connection == 1)
    start = body.index(b"confed-exchange/1\n")
    opening = body[start : start + int(body[:start].split(b"\r\n")[-2], 16)]  # HTTP's first chunk
    refused = httpx.post(shared.url + STREAM_PATH, content=opening)
    assert (refused.status_code, refused.json()) == (409, {"code": "replayed"})
    assert shared.engine.runs == runs


@pytest.mark.parametrize(
    ("path", "head", "status"),
    [
        (STREAM_PATH, RequestHead(method="GET", path="/v2/models/linear", headers=()), 400),
        (EXCHANGE_PATH, STREAM_HEAD, 200),  # inside: there is no such path
        (STREAM_PATH, None, 400),
    ],
    ids=["a request at the stream's path", "an opening at the exchange's", "bytes in clear"],
)
def test_an_exchange_is_no_stream(
    deployment: Deployment, shared: Served, path: str, head: RequestHead | None, status: int
) -> None:
    epoch, runs = shared.replica.epochs.current(), shared.engine.runs
    sealing = Sealing(
        manifest=deployment.manifest.digest,
        replicas=[(epoch.name, epoch.key)],
        padding=shared.replica.serving.padding,
    )
    content = b"{}" if head is None else b"".join(sealing.request(Request(head=head, body=b"")))
    found = httpx.post(shared.url + path, content=content)
    assert found.status_code == status
    assert shared.engine.runs == runs
    wait_for(lambda: shared.edge._free == 8)  # what is refused holds no place either
    if head is STREAM_HEAD:
        assert "404" in repr(sealing.answer().feed(found.content)[0])


def test_a_stream_holds_a_place_and_frees_it_when_it_ends_or_its_requester_goes_away(deployment: Deployment) -> None:
    with deployment.served(most_at_once=1) as served, deployment.client(served.url) as client:
        with client.stream() as stream:
            stream.predict({"x": X})
            with pytest.raises(BusyError):
                client.predict({"x": X})
        wait_for(lambda: served.edge._free == 1)
        assert client.predict({"x": X})
        for held in (False, True):
            gone = client.stream()
            gone.predict({"x": X})
            if held:  # it goes away while its window runs
                served.engine.held, runs = threading.Event(), served.engine.runs
                with ThreadPoolExecutor(1) as pool:
                    waiting = pool.submit(gone.predict, {"x": X})
                    wait_for(lambda runs=runs: served.engine.runs > runs)
                    assert gone._exchange is not None
                    gone._exchange.close()
                    with pytest.raises(ConfedError):
                        waiting.result()
                served.engine.held.set()
                served.engine.held = None
            elif gone._exchange is not None:
                gone._exchange.close()
            wait_for(lambda: served.edge._free == 1)
            assert client.predict({"x": X})


def test_a_stream_finds_the_replica_that_is_there(deployment: Deployment, shared: Served) -> None:
    with deployment.client("http://127.0.0.1:9", shared.url) as client, client.stream() as stream:
        assert stream.predict({"x": X})
    with deployment.client(shared.url) as client:
        client.verify()
        client._places[0].url = "http://127.0.0.1:9"
        with pytest.raises(UnreachableError), client.stream() as stream:
            stream.predict({"x": X})


def test_the_command_answers_json_lines(deployment: Deployment, shared: Served, tmp_path: Path) -> None:
    (tmp_path / "policy.json").write_bytes(deployment.policy.encode())
    lines = [
        {"id": str(step), "inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [step, 2, 3, 4]}]}
        for step in range(3)
    ]
    words = ["stream", shared.url, "--policy", str(tmp_path / "policy.json"), "--receipts", str(tmp_path / "receipts")]
    good = CliRunner().invoke(infer_app, words, input="\n".join(map(json.dumps, lines)))
    assert good.exit_code == 0, good.stderr
    assert [json.loads(line)["id"] for line in good.stdout.splitlines()] == ["0", "1", "2"]
    (proof,) = (tmp_path / "receipts").glob("*.json")
    verified = CliRunner().invoke(infer_app, ["verify-receipt", str(proof), "--policy", str(tmp_path / "policy.json")])
    assert verified.exit_code == 0
    bad = CliRunner().invoke(infer_app, words, input="{}\n" + json.dumps(lines[0]))
    assert bad.exit_code == 3
    assert ["error" in json.loads(line) for line in bad.stdout.splitlines()] == [True, False]
    # A window that cannot be sent ends the command; those before it have their receipt.
    kept = len(list((tmp_path / "receipts").iterdir()))
    ended = CliRunner().invoke(infer_app, words, input=json.dumps(lines[0]) + "\n" + "x" * (2 * 1024 * 1024 + 1))
    assert isinstance(ended.exception, SizeError)
    assert len(ended.stdout.splitlines()) == 1
    assert len(list((tmp_path / "receipts").iterdir())) == kept + 1
