"""Whoever stands between requester and replica: a proxy that strips, cuts, changes, repeats, or answers by itself."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from inference_road import Deployment, Served

from confed.errors import (
    ConfedError,
    EncodingError,
    LineageError,
    ManifestMismatchError,
    MayHaveRunError,
    RefusedError,
    SignatureError,
    StaleEpochError,
    TamperedError,
    TruncatedError,
    UnreachableError,
)
from confed.inference.client import ConfidentialClient
from confed.inference.edge import EPOCH_PATH, EVIDENCE_PATH, EXCHANGE_PATH
from confed.inference.epochs import EPOCH_MS, OVERLAP_MS, EpochKey
from confed.inference.exchange import Answering
from confed.inference.listening import Serving, bound_socket
from confed.inference.proxy import Proxy
from confed.inference.receipts import Receipt
from confed.inference.replica import Replica
from confed.inference.requester import Proof
from confed.sealing.identities import HpkeIdentity
from confed.statement import Signed, sign, unverified

X = np.arange(8, dtype=np.float32).reshape(2, 4)
CANARY = "canary-of-relays-51d7"
BODY = json.dumps({"id": CANARY, "inputs": [{"name": "x", "shape": [2, 4], "datatype": "FP32", "data": X.tolist()}]}).encode()  # fmt: skip
STRANGER = Ed25519PrivateKey.generate()
Reply = tuple[int, bytes]


@dataclass
class Relay:
    """Passes on what it is given, changed as a test says; an ASGI application."""

    target: str
    asked: Callable[[str, bytes], bytes] = lambda _path, body: body
    answered: Callable[[str, Reply], Reply] = lambda _path, reply: reply
    instead: Callable[[str, bytes], Reply | None] = lambda _path, _body: None
    seen: list[tuple[str, bytes]] = field(default_factory=list)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = bytearray(), True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        path = scope["path"]
        self.seen.append((path, bytes(body)))
        loop = asyncio.get_running_loop()
        reply = self.instead(path, bytes(body)) or await loop.run_in_executor(
            None, self._passed_on, scope["method"], path, bytes(body)
        )
        status, data = self.answered(path, reply)
        self.seen.append((path, data))
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"x/y")]})
        await send({"type": "http.response.body", "body": data})

    def _passed_on(self, method: str, path: str, body: bytes) -> Reply:
        found = httpx.request(method, self.target + path, content=self.asked(path, body), timeout=30)
        return found.status_code, found.content


@dataclass
class Road:
    deployment: Deployment
    served: Served
    relay: Relay
    client: ConfidentialClient
    url: str


@pytest.fixture
def road(deployment: Deployment, served: Served) -> Iterator[Road]:
    relay = Relay(served.url)
    with (
        Serving(relay, bound_socket("127.0.0.1:0", loopback_only=True)) as serving,
        deployment.client(serving.url) as client,
    ):
        yield Road(deployment, served, relay, client, serving.url)


def ask(road: Road) -> Any:
    reply = road.client.request("POST", "/v2/models/linear/infer", body=BODY)
    reply.read()
    return reply


def test_an_honest_relay_sees_no_word(road: Road) -> None:
    assert ask(road).receipt is not None
    assert {path for path, _ in road.relay.seen} == {EVIDENCE_PATH, EXCHANGE_PATH}
    assert all(CANARY.encode() not in data and b"infer" not in data for _, data in road.relay.seen)


# On the way back.


def on(path: str, change: Callable[[bytes], bytes]) -> Callable[[str, Reply], Reply]:
    return lambda at, reply: (reply[0], change(reply[1])) if at == path else reply


def flipped(data: bytes) -> bytes:
    at = len(data) // 2
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def without_last_frame(data: bytes) -> bytes:
    """An answer up to its receipt: frames are walked by their lengths, which stand in clear."""
    at = start = len(b"confed-answer/1\n") + 1 + 32
    while at < len(data):
        start, at = at, at + 5 + int.from_bytes(data[at : at + 4], "big")
    return data[:start]


ANSWERS: dict[str, tuple[Callable[[bytes], bytes], type[ConfedError]]] = {
    "a bit that was flipped": (flipped, TamperedError),
    "the last frame dropped": (without_last_frame, TruncatedError),
    "cut in the middle": (lambda data: data[: len(data) // 2], TruncatedError),
    "nothing": (lambda _data: b"", EncodingError),
    "more after its end": (lambda data: data + data[-64:], EncodingError),
    "an answer in clear": (lambda _data: b'{"outputs": []}' * 10, EncodingError),
}


@pytest.mark.parametrize(("change", "error"), ANSWERS.values(), ids=ANSWERS)
def test_an_answer_that_was_changed_on_its_way_is_none(
    road: Road, change: Callable[[bytes], bytes], error: type[ConfedError]
) -> None:
    road.relay.answered = on(EXCHANGE_PATH, change)
    with pytest.raises(error):
        ask(road)


def test_the_answer_of_another_request_is_none(road: Road) -> None:
    ask(road)
    earlier = road.relay.seen[-1][1]
    road.relay.answered = on(EXCHANGE_PATH, lambda _data: earlier)
    with pytest.raises(TamperedError):
        ask(road)


def test_a_relay_that_answers_in_clear_in_a_replicas_name_hears_nothing(road: Road) -> None:
    """One that strips what is sealed: no evidence, or a page; the requester sends no byte of the request."""
    pages: tuple[Reply, ...] = ((200, b'{"ok":true}'), (200, b"hello"), (404, b"{}"), (426, b'{"code":"plain"}'))
    for page in pages:
        road.relay.instead = lambda _path, _body, page=page: page
        with pytest.raises(RefusedError):
            ask(road)
        road.client._places[0].replica = None
    assert {path for path, _ in road.relay.seen} == {EVIDENCE_PATH}
    assert all(CANARY.encode() not in data for _, data in road.relay.seen)


# On the way there.


def test_a_request_that_was_changed_does_not_run(road: Road) -> None:
    runs = road.served.engine.runs
    road.relay.asked = lambda path, body: flipped(body) if path == EXCHANGE_PATH else body
    with pytest.raises(ConfedError):
        ask(road)
    assert road.served.engine.runs == runs


def test_a_request_that_is_sent_on_twice_runs_once(road: Road) -> None:
    runs = road.served.engine.runs

    def twice(path: str, body: bytes) -> bytes:
        if path == EXCHANGE_PATH:
            httpx.post(road.served.url + path, content=body)
        return body

    road.relay.asked = twice
    with pytest.raises(MayHaveRunError):
        ask(road)
    assert road.served.engine.runs == runs + 1


# Keys that are not the replica's.


def key_of(road: Road, *, signer: Any, **changes: Any) -> bytes:
    """A relay's own key, in an epoch that says it is the replica's."""
    epoch = road.served.replica.epochs.current()
    mine = dataclasses.replace(epoch.key, hpke_public=HpkeIdentity.generate().public, **changes)
    return json.dumps(sign(mine, signer).to_json(), sort_keys=True, separators=(",", ":")).encode()


def swapped(road: Road, epoch: bytes) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        value = json.loads(data)
        return json.dumps({**value, "epoch": json.loads(epoch)}, sort_keys=True, separators=(",", ":")).encode()

    return change


EPOCHS: dict[str, tuple[Callable[[Road], bytes], type[ConfedError]]] = {
    "a relay's own": (lambda road: key_of(road, signer=STRANGER), SignatureError),
    "one that is over": (
        lambda road: key_of(
            road, signer=road.served.replica.signing_key,
            not_before=road.served.replica.now() - EPOCH_MS - OVERLAP_MS - 1, not_after=road.served.replica.now() - 1,
        ), StaleEpochError,
    ),
    "one of another instance": (
        lambda road: key_of(road, signer=road.served.replica.signing_key, instance="dd" * 32), ConfedError,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "error"), EPOCHS.values(), ids=EPOCHS)
def test_a_request_is_sealed_to_no_key_but_the_replicas(
    road: Road, make: Callable[[Road], bytes], error: type[ConfedError]
) -> None:
    road.relay.answered = on(EVIDENCE_PATH, swapped(road, make(road)))
    with pytest.raises(error):
        ask(road)
    assert {path for path, _ in road.relay.seen} == {EVIDENCE_PATH}


def test_a_later_key_is_the_replicas_too(road: Road) -> None:
    ask(road)
    place = road.client._places[0]
    assert place.epoch is not None
    name, key = place.epoch
    stale = dataclasses.replace(key, not_before=key.not_before - EPOCH_MS)
    place.epoch = (name, stale)  # it is time to ask for the next one
    road.relay.answered = on(EPOCH_PATH, lambda _data: b'{"epoch":' + key_of(road, signer=STRANGER) + b"}")
    assert ask(road).receipt is not None  # who did not sign that is verified, and it is the replica that is asked
    assert place.epoch is not None
    assert place.epoch[0] == road.served.replica.epochs.current().name
    assert isinstance(stale, EpochKey)


def test_the_evidence_of_another_replica_of_another_manifest_is_refused(road: Road, quick_disk: Path) -> None:
    folder = quick_disk / "other-relays"
    folder.mkdir()
    with Deployment(folder=folder) as other, other.served() as theirs:
        road.relay.target = theirs.url
        with pytest.raises(ManifestMismatchError):
            ask(road)


def test_evidence_that_was_asked_for_with_another_nonce_is_refused(road: Road) -> None:
    road.relay.asked = lambda path, body: bytes(32) if path == EVIDENCE_PATH else body
    with pytest.raises(ConfedError) as caught:
        ask(road)
    assert caught.value.code == "binding"


# A replica whose receipts are wrong.


def other_answer(replica: Replica, answering: Answering) -> Signed:
    honest = unverified(Replica.receipt(replica, answering), Receipt)
    return replica.sign(dataclasses.replace(honest, answer="dd" * 32))


def changing(**changes: Any) -> Callable[[Replica, Answering], Signed]:
    def receipt(replica: Replica, answering: Answering) -> Signed:
        honest = unverified(Replica.receipt(replica, answering), Receipt)
        return replica.sign(dataclasses.replace(honest, **changes))

    return receipt


def by_a_stranger(replica: Replica, answering: Answering) -> Signed:
    return sign(unverified(Replica.receipt(replica, answering), Receipt), STRANGER)


def in_its_name(replica: Replica, answering: Answering) -> Signed:
    return dataclasses.replace(by_a_stranger(replica, answering), signer=replica._signing_public)


RECEIPTS: dict[str, tuple[Callable[[Replica, Answering], Signed], type[ConfedError]]] = {
    "signed by a stranger": (by_a_stranger, SignatureError),
    "signed by a stranger in its name": (in_its_name, SignatureError),
    "for another request": (changing(request="dd" * 32), LineageError),
    "for another answer": (changing(answer="dd" * 32), LineageError),
    "for another model": (changing(model="dd" * 32), LineageError),
    "for another manifest": (changing(manifest="dd" * 32), LineageError),
    "of another instance": (changing(instance="dd" * 32), LineageError),
    "of another key": (changing(epoch="dd" * 32), LineageError),
    "of another policy of outputs": (changing(output="dd" * 32), LineageError),
    "that is another statement": (
        lambda replica, _answering: replica.epochs.current().signed, EncodingError,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("receipt", "error"), RECEIPTS.values(), ids=RECEIPTS)
def test_an_answer_with_a_wrong_receipt_does_not_count(
    road: Road,
    monkeypatch: pytest.MonkeyPatch,
    receipt: Callable[[Replica, Answering], Signed],
    error: type[ConfedError],
) -> None:
    replica = road.served.replica
    monkeypatch.setattr(replica, "receipt", lambda answering, **_more: receipt(replica, answering))
    with pytest.raises(error):
        ask(road)


def test_the_receipt_of_an_earlier_request_does_not_count(road: Road, monkeypatch: pytest.MonkeyPatch) -> None:
    earlier = ask(road).proof.receipt
    monkeypatch.setattr(road.served.replica, "receipt", lambda _answering, **_more: earlier)
    with pytest.raises(LineageError):
        ask(road)


def test_the_proxy_ends_an_answer_with_a_wrong_receipt_short_and_keeps_no_proof(
    road: Road, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    kept: list[Proof] = []
    replica = road.served.replica
    proxy = Proxy(road.client, keep=kept.append)
    with Serving(proxy, bound_socket("127.0.0.1:0", loopback_only=True)) as serving:
        address = f"{serving.url}/v2/models/linear/infer"
        assert httpx.post(address, content=BODY).status_code == 200
        monkeypatch.setattr(replica, "receipt", lambda answering, **_more: by_a_stranger(replica, answering))
        with pytest.raises(httpx.HTTPError):
            httpx.post(address, content=BODY)
        # And where it cannot send sealed it sends nothing: the error is its own.
        road.relay.instead = lambda _path, _body: (200, b'{"outputs": []}')
        road.client._places[0].replica = None
        told = httpx.post(address, content=BODY)
        assert (told.status_code, list(told.json())) == (502, ["error"])
    assert len(kept) == 1
    assert CANARY not in "".join(capfd.readouterr())
    assert base64.b64encode(CANARY.encode()) not in b"".join(data for _, data in road.relay.seen)


def test_a_proxy_whose_relay_is_gone_fails_closed(deployment: Deployment) -> None:
    with deployment.client("http://127.0.0.1:9") as client, pytest.raises(UnreachableError):
        client.predict({"x": X})
