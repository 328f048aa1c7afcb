"""No request runs twice unasked: a network that answers in a replica's name, and what only the replica itself can say."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import httpx
import httpx2
import numpy as np
import openai
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from inference_road import Deployment, Linear, Served

from confed import canonical
from confed.errors import BusyError, MayHaveRunError, SizeError, StaleEpochError, TruncatedError, UnreachableError
from confed.inference.client import ConfidentialClient
from confed.inference.edge import EVIDENCE_PATH, EXCHANGE_PATH
from confed.inference.header import HeaderReader
from confed.inference.listening import Serving, bound_socket
from confed.inference.proxy import Proxy
from confed.inference.refusals import REFUSAL_LIMIT_BYTES, Reason, Refusal, told
from confed.inference.transport import confidential_transport
from confed.statement import sign

X = np.arange(8, dtype=np.float32).reshape(2, 4)
STRANGER = Ed25519PrivateKey.generate()
Answer = tuple[int, bytes]
Lie = Callable[["Road", Refusal], Answer | None]


class Engine(Linear):
    """A model that is asked in either interface."""

    def embed(self, texts: Sequence[str]) -> tuple[np.ndarray, int]:
        self.runs += 1
        if texts == ["break"]:
            raise ValueError("the engine fails")
        return np.ones((len(texts), 2), dtype=np.float32), len(texts)


def as_it_came(_request: bytes, answer: Answer) -> Answer:
    return answer


@dataclass
class Network:
    """Delivers requests, and answers sealed ones by itself where a test says so; an ASGI application."""

    target: str
    instead: Callable[[bytes, Answer], Answer | None] = as_it_came
    requests: list[bytes] = field(default_factory=list)
    refusals: list[Answer] = field(default_factory=list)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = bytearray(), True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(None, self.deliver, scope["method"], scope["path"], bytes(body))
        if scope["path"] == EXCHANGE_PATH:
            self.requests.append(bytes(body))
            if found[0] != 200:
                self.refusals.append(found)
            told = self.instead(bytes(body), found)
            if told is None:
                return  # uvicorn closes the connection
            found = told
        await send({"type": "http.response.start", "status": found[0], "headers": []})
        await send({"type": "http.response.body", "body": found[1]})

    def deliver(self, method: str, path: str, body: bytes) -> Answer:
        found = httpx.request(method, self.target + path, content=body, timeout=30)
        return found.status_code, found.content


@dataclass
class Road:
    """Two replicas, the first one behind a network that nobody trusts, and a client that knows both."""

    deployment: Deployment
    first: Served
    second: Served
    network: Network
    client: ConfidentialClient
    url: str

    def runs(self) -> tuple[int, int]:
        return self.first.engine.runs, self.second.engine.runs


@pytest.fixture(scope="module")
def roads(quick_disk: Path) -> Iterator[Road]:
    folder = quick_disk / "refusals"
    folder.mkdir()
    with (
        Deployment(folder=folder) as deployment,
        deployment.served(engine=Engine) as first,
        deployment.served(engine=Engine) as second,
        Serving(network := Network(first.url), bound_socket("127.0.0.1:0", loopback_only=True)) as serving,
        deployment.client(serving.url, second.url) as client,
    ):
        yield Road(deployment, first, second, network, client, serving.url)


@pytest.fixture
def road(roads: Road) -> Iterator[Road]:
    yield roads
    network, place = roads.network, roads.client._places[0]
    network.target, network.instead = roads.first.url, as_it_came
    place.url, place.replica = roads.url, None
    network.requests.clear()
    network.refusals.clear()


def honest_of(road: Road, request: bytes) -> Refusal:
    """What the first replica would sign if it refused this request."""
    found = HeaderReader().feed(request)
    assert found is not None
    header = found[0]
    return Refusal(
        manifest=road.deployment.manifest.digest,
        instance=road.first.replica.instance,
        epoch=header.header.epochs[0],
        request=header.transcript.hex(),
        reason=Reason.BUSY,
    )


def signed(road: Road, refusal: Any, *, by: Any = None) -> Answer:
    return 503, canonical.encode(told(sign(refusal, by or road.first.replica.signing_key), Reason.BUSY))


def changed(**changes: Any) -> Lie:
    return lambda road, honest: signed(road, dataclasses.replace(honest, **changes))


def of_the_second(road: Road, honest: Refusal) -> Answer:
    """The second replica never had the request: it would say so truly, and it is not the one that was asked."""
    theirs = dataclasses.replace(honest, instance=road.second.replica.instance)
    return signed(road, theirs, by=road.second.replica.signing_key)


@dataclass(frozen=True, kw_only=True)
class Odd:
    """A refusal for a reason that there is not."""

    TYPE: ClassVar[str] = Refusal.TYPE
    manifest: str
    instance: str
    epoch: str
    request: str
    reason: str


def for_an_unknown_reason(road: Road, honest: Refusal) -> Answer:
    values = {name: getattr(honest, name) for name in ("manifest", "instance", "epoch", "request")}
    return signed(road, Odd(**values, reason="because"))


def an_oversized_one(road: Road, honest: Refusal) -> Answer:
    status, data = signed(road, honest)
    return status, canonical.encode({**json.loads(data), "code": "b" * REFUSAL_LIMIT_BYTES})


LIES: dict[str, Lie] = {
    "422, that the key is gone": lambda _road, _honest: (422, b'{"code":"stale-epoch"}'),
    "503, that it is busy": lambda _road, _honest: (503, b'{"code":"busy"}'),
    "503, that its lease is over": lambda _road, _honest: (503, b'{"code":"lease"}'),
    "413, that it is too large": lambda _road, _honest: (413, b'{"code":"size"}'),
    "a proxy's page": lambda _road, _honest: (503, b"<html>Service Unavailable</html>"),
    "another way": lambda _road, _honest: (307, b""),
    "nothing at all": lambda _road, _honest: None,
    "a stranger's refusal": lambda road, honest: signed(road, honest, by=STRANGER),
    "the other replica's": of_the_second,
    "the other replica's in this one's name": lambda road, honest: signed(
        road, honest, by=road.second.replica.signing_key
    ),
    "the refusal of another request": changed(request="dd" * 32),
    "of another epoch": changed(epoch="dd" * 32),
    "of another manifest": changed(manifest="dd" * 32),
    "for an unknown reason": for_an_unknown_reason,
    "an oversized one": an_oversized_one,
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_a_request_that_ran_is_not_sent_again_whatever_the_network_answers(road: Road, lie: Lie) -> None:
    first, second = road.runs()
    road.network.instead = lambda request, _answer: lie(road, honest_of(road, request))
    with pytest.raises(MayHaveRunError):
        road.client.predict({"x": X})
    assert road.runs() == (first + 1, second)
    assert len(road.network.requests) == 1


def test_the_true_refusal_of_an_earlier_request_is_none_of_this_one(road: Road) -> None:
    road.first.edge._free = 0
    road.client.predict({"x": X})  # at the second
    road.first.edge._free = 8
    first, second = road.runs()
    (earlier,) = road.network.refusals
    road.network.instead = lambda _request, _answer: earlier
    with pytest.raises(MayHaveRunError):
        road.client.predict({"x": X})
    assert road.runs() == (first + 1, second)


def test_what_a_busy_replica_has_refused_runs_elsewhere_and_never_there(road: Road) -> None:
    first, second = road.runs()
    road.first.edge._free = 0
    assert road.client.predict({"x": X})["y"].shape == (2, 3)
    road.first.edge._free = 8
    assert road.runs() == (first, second + 1)
    ((status, data),) = road.network.refusals
    assert (status, list(json.loads(data))) == (503, ["code", "refusal"])
    # The original comes late: there would be a place now.
    late = road.network.deliver("POST", EXCHANGE_PATH, road.network.requests[0])
    assert late == (409, b'{"code":"replayed"}')
    assert road.runs() == (first, second + 1)


def test_what_was_sealed_to_a_key_that_is_gone_is_sealed_anew_and_runs_once(road: Road) -> None:
    road.client.verify()
    first, second = road.runs()
    road.first.replica.epochs.drop_all()
    assert road.client.predict({"x": X})["y"].shape == (2, 3)
    assert road.runs() == (first + 1, second)
    assert [status for status, _ in road.network.refusals] == [422]
    status, _ = road.network.deliver("POST", EXCHANGE_PATH, road.network.requests[0])
    assert status == 422
    assert road.runs() == (first + 1, second)


def test_a_replica_whose_keys_are_always_gone_is_asked_twice_and_then_the_next_one(
    road: Road, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready, runs = road.client._ready, road.runs()

    def then_gone(place: Any) -> Any:
        found = ready(place)
        road.first.replica.epochs.drop_all()
        return found

    monkeypatch.setattr(road.client, "_ready", then_gone)
    road.client.predict({"x": X})
    assert [status for status, _ in road.network.refusals] == [422, 422]
    assert road.runs() == (runs[0], runs[1] + 1)
    with road.deployment.client(road.url) as alone:
        ready = alone._ready
        monkeypatch.setattr(alone, "_ready", then_gone)
        with pytest.raises(StaleEpochError):
            alone.predict({"x": X})


def test_a_request_that_ran_before_its_key_was_gone_is_not_refused_by_signature_after_it(road: Road) -> None:
    """The network lets it run, keeps the answer until the key is gone, and delivers the request once more."""
    first, second = road.runs()

    def again(request: bytes, answer: Answer) -> Answer:
        assert answer[0] == 200
        road.first.replica.epochs.drop_all()
        return road.network.deliver("POST", EXCHANGE_PATH, request)

    road.network.instead = again
    with pytest.raises(MayHaveRunError):
        road.client.predict({"x": X})
    assert road.runs() == (first + 1, second)


def test_another_instance_at_the_same_address_cannot_say_that_nothing_ran(road: Road) -> None:
    road.client.verify()
    runs = road.runs()
    road.network.target = road.second.url
    with pytest.raises(MayHaveRunError):
        road.client.predict({"x": X})
    assert road.runs() == runs
    # Who is there now is verified, and then asked.
    assert road.client.predict({"x": X})["y"].shape == (2, 3)
    assert road.runs() == (runs[0], runs[1] + 1)


def test_an_instance_that_was_started_again_while_nobody_asked_is_verified_before_anything_is_sent(road: Road) -> None:
    road.client.verify()
    runs = road.runs()
    road.network.target = road.second.url
    road.client._places[0].heard_at -= 30_000
    assert road.client.predict({"x": X})["y"].shape == (2, 3)
    assert road.runs() == (runs[0], runs[1] + 1)
    assert len(road.network.requests) == 1


def test_a_replica_whose_answer_broke_off_is_verified_anew(road: Road) -> None:
    road.network.instead = lambda _request, answer: (answer[0], answer[1][:-40])
    with pytest.raises(TruncatedError):
        road.client.predict({"x": X})
    road.network.instead, road.network.target = as_it_came, road.second.url  # it fell, and another was started
    assert road.client.predict({"x": X})["y"].shape == (2, 3)


def test_a_replica_that_was_reached_and_is_gone_is_verified_anew(road: Road) -> None:
    road.client.verify()
    place = road.client._places[0]
    url, place.url = place.url, "http://127.0.0.1:9"
    runs = road.runs()
    road.client.predict({"x": X})
    assert road.runs() == (runs[0], runs[1] + 1)
    place.url, road.network.target = url, road.second.url
    road.client.predict({"x": X})  # nothing was kept of who was there before
    assert road.runs() == (runs[0], runs[1] + 2)


def test_what_is_too_large_is_refused_by_signature(road: Road) -> None:
    with pytest.raises(SizeError):
        road.client.request("POST", "/v2/models/linear/infer", body=bytes(2 * 1024 * 1024))
    ((status, data),) = road.network.refusals
    assert (status, json.loads(data)["code"]) == (413, "size")


# Clients that repeat by themselves.


@pytest.mark.parametrize("way", ["proxy", "transport"])
def test_openais_client_repeats_nothing_that_may_have_run(road: Road, way: str) -> None:
    road.network.instead = lambda _request, _answer: (503, b'{"code":"busy"}')
    with (
        Serving(Proxy(road.client), bound_socket("127.0.0.1:0", loopback_only=True)) as serving,
        httpx2.Client(transport=confidential_transport(road.client, library=httpx2)) as http,
        openai.OpenAI(
            base_url=f"{serving.url}/v1" if way == "proxy" else "http://confed.invalid/v1",
            api_key="none",
            max_retries=2,
            http_client=None if way == "proxy" else http,
        ) as asked,
    ):
        runs = road.runs()
        with pytest.raises(openai.InternalServerError) as failed:
            asked.embeddings.create(model="linear", input="a")
        assert (failed.value.status_code, failed.value.code) == (502, "may-have-run")
        assert failed.value.response.headers["x-should-retry"] == "false"
        assert len(road.network.requests) == 1
        road.network.instead = lambda _request, answer: (answer[0], answer[1][:-40])
        with pytest.raises(openai.InternalServerError if way == "transport" else openai.APIConnectionError):
            asked.with_options(max_retries=2 if way == "transport" else 0).embeddings.create(model="linear", input="a")
        assert len(road.network.requests) == 2
        assert road.runs() == (runs[0] + 2, runs[1])
        road.network.instead = as_it_came
        assert len(asked.embeddings.create(model="linear", input="a").data) == 1
        with pytest.raises(openai.InternalServerError):  # nor what ran, and failed
            asked.embeddings.create(model="linear", input="break")
        assert road.runs() == (runs[0] + 4, runs[1])


def test_a_transport_raises_what_has_not_run_and_what_nobody_repeats(road: Road) -> None:
    asked = {"x-stainless-retry-count": "0"}
    with httpx.Client(transport=confidential_transport(road.client, library=httpx)) as http:
        road.first.edge._free = road.second.edge._free = 0
        with pytest.raises(BusyError):
            http.get("http://confed.invalid/v2", headers=asked)
        road.first.edge._free = road.second.edge._free = 8
        road.network.instead = lambda _request, _answer: None
        with pytest.raises(MayHaveRunError):
            http.get("http://confed.invalid/v2")
        told = http.get("http://confed.invalid/v2", headers=asked)
        assert (told.status_code, told.headers["x-should-retry"]) == (502, "false")
    with (
        road.deployment.client("http://127.0.0.1:9") as nobody,
        httpx.Client(transport=confidential_transport(nobody, library=httpx)) as http,
        pytest.raises(UnreachableError),
    ):
        http.get("http://confed.invalid/v2", headers=asked)


def test_a_replica_that_says_it_does_not_serve_before_anything_was_sent_is_passed_over(
    road: Road, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing has been sent by then, so anybody may say so."""
    honest = road.network.deliver

    def refusing(method: str, path: str, body: bytes) -> Answer:
        return (503, b'{"code":"lease"}') if path == EVIDENCE_PATH else honest(method, path, body)

    monkeypatch.setattr(road.network, "deliver", refusing)
    runs = road.runs()
    road.client.predict({"x": X})
    assert road.runs() == (runs[0], runs[1] + 1)
