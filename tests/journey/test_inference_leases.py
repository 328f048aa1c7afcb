"""A lease: how long a replica serves without its owner's broker, when it stops, and every lease that is not its own."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from inference_road import Deployment, Linear, with_serving

from confed.errors import (
    ConfedError,
    ConfigError,
    FloorError,
    LeaseError,
    SignatureError,
    UnreachableError,
    WrongKeyError,
)
from confed.inference.apis import Door
from confed.inference.edge import EPOCH_PATH, EVIDENCE_PATH, Edge
from confed.inference.engine import Answer, stream_answer
from confed.inference.lease import HeldLease, since_boot
from confed.inference.leased import Leased
from confed.inference.listening import Serving, bound_socket
from confed.inference.messages import Request, RequestHead
from confed.inference.replica import Replica
from confed.keybroker.client import BrokerClient
from confed.keybroker.lease import Lease
from confed.keybroker.vault import KeyFloors
from confed.manifest import Manifest
from confed.sealing.container import Container
from confed.serving import LeaseTerms
from confed.statement import Signed, sign, unverified
from confed.wire.channel import pack, unpack

X = np.arange(8, dtype=np.float32).reshape(2, 4)
SECONDS = 600
TERMS = LeaseTerms(seconds=SECONDS)
STRANGER = Ed25519PrivateKey.generate()


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Away:
    """A broker's stub that can be out of reach, and whose replies somebody changes on the way."""

    stub: Any
    away: bool = False
    change: Callable[[Any], None] = lambda _reply: None

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(message: Any, timeout: float) -> Any:
            if self.away:
                raise UnreachableError("key broker", expected="an answer", got="none")
            reply = getattr(self.stub, name)(message, timeout=timeout)
            if name == "Release":
                self.change(reply)
            return reply

        return call


@dataclass
class Site:
    """A replica at the edge: its clock, its broker as it reaches it, its model while it has one."""

    deployment: Deployment
    replica: Replica
    clock: Clock
    broker: Away
    leased: Leased
    engine: Linear
    url: str


def leasing(manifest: Manifest) -> Manifest:
    return with_serving(manifest, lease=TERMS)


@pytest.fixture(scope="module")
def deployment(quick_disk: Path) -> Iterator[Deployment]:
    folder = quick_disk / "leases"
    folder.mkdir()
    with Deployment(folder=folder, change=leasing, floors={"lease_s": SECONDS}) as deployment:
        yield deployment


def a_replica(deployment: Deployment, clock: Callable[[], float]) -> tuple[Replica, Away]:
    broker = BrokerClient.__new__(BrokerClient)
    broker._timeout_s = 5.0
    broker._stub = away = Away(deployment.client_of_broker._stub)  # type: ignore[assignment]
    return Replica(manifest=deployment.manifest, attester=deployment.attester(), broker=broker, clock=clock), away


@contextmanager
def at_the_edge(deployment: Deployment) -> Iterator[Site]:
    clock = Clock()
    replica, away = a_replica(deployment, clock)
    engines: list[Linear] = []

    def open_door() -> Door:
        engines.append(Linear(replica.open_model(Container.parse(deployment.sealed)), {}))
        return Door(engines[-1], name="linear")

    leased = Leased(replica, terms=TERMS, open_door=open_door)
    with Serving(Edge(replica, leased, most_at_once=4), bound_socket("127.0.0.1:0", loopback_only=True)) as serving:
        yield Site(deployment, replica, clock, away, leased, engines[0], serving.url)


@pytest.fixture
def site(deployment: Deployment) -> Iterator[Site]:
    with at_the_edge(deployment) as site:
        yield site


def refusals(url: str) -> list[tuple[int, str]]:
    asked = (("POST", EVIDENCE_PATH, bytes(32)), ("GET", EPOCH_PATH, b""))
    found = [httpx.request(method, url + path, content=body) for method, path, body in asked]
    return [(entry.status_code, entry.json().get("code", "")) for entry in found]


def test_a_replica_serves_while_its_lease_lasts_and_drops_model_and_keys_when_it_ends(
    site: Site, capfd: pytest.CaptureFixture[str]
) -> None:
    (leased,) = [body for body in site.deployment.events("leased") if body["instance"] == site.replica.instance]
    assert leased["expires_at"] > 0
    site.broker.away = True
    ended = list[str]()
    site.engine.close = lambda: ended.append("the engine")  # type: ignore[attr-defined]
    with site.deployment.client(site.url) as client:
        site.clock.now += SECONDS - 1
        assert client.predict({"x": X})["y"].shape == (2, 3)
        assert not site.leased.drop_if_over()
        site.clock.now += 1
        with pytest.raises(LeaseError):
            client.predict({"x": X})
        assert refusals(site.url) == [(503, "lease")] * 2
        assert not ended
        assert site.leased.drop_if_over()
        assert not site.leased.is_open
        assert not site.replica.epochs._held
        assert ended == ["the engine"]
        with pytest.raises(UnreachableError):
            site.leased.renew()
        with pytest.raises(LeaseError):
            client.predict({"x": X})
        # The broker is back: a new lease, the model opened again, and the requester verifies anew.
        site.broker.away = False
        site.leased.renew()
        assert client.predict({"x": X})["y"].shape == (2, 3)
    assert "the lease is over" in capfd.readouterr().err


def test_a_lease_is_renewed_with_fresh_evidence(site: Site) -> None:
    site.clock.now += SECONDS / 2
    site.leased.renew()
    site.clock.now += SECONDS - 1
    site.replica.lease.require()
    mine = [body for body in site.deployment.events("released") if body["instance"] == site.replica.instance]
    assert len({body["evidence"] for body in mine}) == len(mine) == 2


def test_an_answer_on_its_way_ends_with_the_reason_and_does_not_run_elsewhere(site: Site) -> None:
    site.engine.held = threading.Event()
    with (
        at_the_edge(site.deployment) as other,
        site.deployment.client(site.url, other.url) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        client.verify()
        asked = pool.submit(client.predict, {"x": X})
        while site.engine.runs == 0:
            time.sleep(0.001)
        site.clock.now += SECONDS
        site.engine.held.set()
        with pytest.raises(LeaseError):
            asked.result(20)
        assert (site.engine.runs, other.engine.runs) == (1, 0)
        # The next request is not taken there, so it may go to the other.
        assert client.predict({"x": X})["y"].shape == (2, 3)
        assert (site.engine.runs, other.engine.runs) == (1, 1)


def test_no_piece_of_a_streamed_answer_goes_out_once_the_lease_is_over(site: Site) -> None:
    class Streams:
        paths = ()

        def answer(self, _request: Request) -> Answer:
            return stream_answer(iter([b"one", b"two", b"three"]))

    site.leased._door = Streams()  # type: ignore[assignment]
    head = RequestHead(method="POST", path="/v1/completions", headers=())
    pieces = iter(site.leased.answer(Request(head=head, body=b"{}")).body)
    assert next(pieces) == b"one"
    site.clock.now += SECONDS
    with pytest.raises(LeaseError):
        next(pieces)


def test_live_data_ends_with_the_lease(site: Site) -> None:
    with site.deployment.client(site.url) as client, client.stream() as windows:
        windows.predict({"x": X})
        site.clock.now += SECONDS
        with pytest.raises(LeaseError):
            windows.predict({"x": X})
    assert site.engine.runs == 1


def test_a_clock_that_is_set_back_ends_the_lease(site: Site) -> None:
    site.clock.now += 100
    site.replica.lease.require()
    site.clock.now -= 1
    for _ in range(2):
        with pytest.raises(LeaseError):
            site.replica.lease.require()
    with pytest.raises(LeaseError):
        site.leased.renew()
    site.clock.now += SECONDS
    with pytest.raises(LeaseError):  # what was is unknown for good: only the broker gives a new lease
        site.replica.lease.require()
    site.leased.renew()
    site.replica.lease.require()


def test_who_holds_the_brokers_answer_back_shortens_the_lease(deployment: Deployment) -> None:
    clock = Clock()
    replica, away = a_replica(deployment, clock)

    def late(_reply: Any) -> None:
        clock.now += 100

    away.change = late
    replica.open_model(Container.parse(deployment.sealed))
    assert replica.lease.left_s() == SECONDS - 100


# Leases that are not this replica's.


def a_lease(deployment: Deployment) -> Signed:
    """A genuine one, of another instance."""
    kept: list[Signed] = []
    replica, away = a_replica(deployment, Clock())
    away.change = lambda reply: kept.append(unpack(reply.items[0].released.credential))
    replica.open_model(Container.parse(deployment.sealed))
    return kept[0]


def changed(signed: Signed, **changes: Any) -> Signed:
    lease = dataclasses.replace(unverified(signed, Lease), **changes)
    payload = sign(lease, STRANGER).payload
    return dataclasses.replace(signed, payload=payload)


OTHERS: dict[str, tuple[Callable[[Deployment, Signed], Signed | None], type[ConfedError]]] = {
    "another instance's": (lambda deployment, _own: a_lease(deployment), LeaseError),
    "one that was lengthened": (
        lambda _deployment, own: changed(own, expires_at=unverified(own, Lease).expires_at + 10**9), SignatureError,
    ),
    "one with a signature of somebody else": (
        lambda _deployment, own: sign(unverified(own, Lease), STRANGER), SignatureError,
    ),
    "another statement of the broker": (
        lambda deployment, own: sign(dataclasses.replace(unverified(own, Lease), manifest="dd" * 32), deployment.home.broker_key),
        LeaseError,
    ),
    "one for another model": (
        lambda deployment, own: sign(dataclasses.replace(unverified(own, Lease), model="dd" * 32), deployment.home.broker_key),
        LeaseError,
    ),
    "an earlier one of its own": (
        lambda deployment, own: sign(dataclasses.replace(unverified(own, Lease), request="dd" * 32), deployment.home.broker_key),
        LeaseError,
    ),
    "one longer than the manifest's": (
        lambda deployment, own: sign(
            dataclasses.replace(unverified(own, Lease), expires_at=unverified(own, Lease).issued_at + SECONDS * 1000 + 1),
            deployment.home.broker_key,
        ),
        LeaseError,
    ),
    "one that ends before it begins": (
        lambda deployment, own: sign(dataclasses.replace(unverified(own, Lease), expires_at=1), deployment.home.broker_key),
        LeaseError,
    ),
    "none": (lambda _deployment, _own: None, LeaseError),
}  # fmt: skip


@pytest.mark.parametrize(("swap", "error"), OTHERS.values(), ids=OTHERS)
def test_a_lease_that_is_not_its_own_opens_nothing(
    deployment: Deployment, swap: Callable[[Deployment, Signed], Signed | None], error: type[ConfedError]
) -> None:
    replica, away = a_replica(deployment, Clock())

    def change(reply: Any) -> None:
        released = reply.items[0].released
        other = swap(deployment, unpack(released.credential))
        if other is None:
            released.ClearField("credential")
        else:
            released.credential.CopyFrom(pack(other))

    away.change = change
    with pytest.raises(error):
        replica.open_model(Container.parse(deployment.sealed))
    with pytest.raises(ConfedError):
        replica.attest(bytes(32))
    with pytest.raises(LeaseError):
        replica.lease.require()


def test_the_lease_of_another_manifest_opens_nothing(deployment: Deployment, quick_disk: Path) -> None:
    folder = quick_disk / "other-leases"
    folder.mkdir()
    with Deployment(folder=folder, change=leasing, floors={"lease_s": SECONDS}) as other:
        theirs = a_lease(other)
    replica, away = a_replica(deployment, Clock())
    away.change = lambda reply: reply.items[0].released.credential.CopyFrom(pack(theirs))
    with pytest.raises(SignatureError):
        replica.open_model(Container.parse(deployment.sealed))


def test_a_restarted_instance_has_no_use_for_what_the_last_one_was_given(deployment: Deployment) -> None:
    kept: list[Any] = []
    replica, away = a_replica(deployment, Clock())
    away.change = lambda reply: kept.append(
        (reply.items[0].released.wrapped_keys[0], unpack(reply.items[0].released.grant))
    )
    replica.open_model(Container.parse(deployment.sealed))
    again, away = a_replica(deployment, Clock())
    away.away = True
    with pytest.raises(UnreachableError):
        again.open_model(Container.parse(deployment.sealed))
    with pytest.raises(WrongKeyError):
        again._hpke.unwrap(kept[0][0], info=bytes(32))


# Owners permit leases, or there are none.


@pytest.mark.parametrize("floors", [{}, {"lease_s": SECONDS - 1}], ids=["none", "a shorter one"])
def test_a_key_that_permits_no_such_lease_is_not_released(quick_disk: Path, floors: dict[str, Any]) -> None:
    folder = quick_disk / f"no-lease-{len(floors)}"
    folder.mkdir()
    with Deployment(folder=folder, change=leasing, floors=floors) as deployment:
        with pytest.raises(FloorError):
            deployment.replica().open_model(Container.parse(deployment.sealed))
        assert not deployment.events("released")
        assert not deployment.events("leased")


def test_without_terms_there_is_no_lease_and_none_is_taken(deployment: Deployment) -> None:
    held = HeldLease(None, clock=Clock())
    held.take(None, asked_at=0)
    held.require()
    with pytest.raises(LeaseError):
        held.take(unverified(a_lease(deployment), Lease), asked_at=0)


@pytest.mark.parametrize("seconds", [0, -1, 31 * 24 * 3600])
def test_a_lease_is_of_a_second_to_thirty_days(seconds: int) -> None:
    with pytest.raises(ConfigError):
        LeaseTerms(seconds=seconds)


def test_floors_of_a_key_from_before_there_were_leases_permit_none() -> None:
    assert {entry.name: entry.default for entry in dataclasses.fields(KeyFloors)}["lease_s"] == 0


def test_the_clock_counts_suspension() -> None:
    assert since_boot() >= time.monotonic() - 1


# As it runs by itself.


def test_leases_are_renewed_in_the_background_and_end_in_time(
    quick_disk: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, told = quick_disk / "background", ""
    folder.mkdir()

    def said(words: str) -> bool:
        nonlocal told
        told += capfd.readouterr().err
        return words in told

    change = lambda manifest: with_serving(manifest, lease=LeaseTerms(seconds=1))  # noqa: E731
    with Deployment(folder=folder, change=change, floors={"lease_s": 1}) as deployment:
        replica, away = a_replica(deployment, since_boot)
        fails = iter([False, True])  # the engine, at the second opening

        def opened() -> Door:
            arrays = replica.open_model(Container.parse(deployment.sealed))
            if next(fails, False):
                raise RuntimeError("canary-engine")
            return Door(Linear(arrays, {}), name="linear")

        with Leased(replica, terms=LeaseTerms(seconds=1), open_door=opened) as leased:
            waiting(lambda: len(deployment.events("leased")) >= 2)
            away.away = True
            waiting(lambda: said("the lease was not renewed: unreachable"))
            waiting(lambda: not leased.is_open)
            assert replica.lease.left_s() == 0
            away.away = False
            waiting(lambda: leased.is_open)
    assert said("the lease is over")
    assert said("the model was not opened: RuntimeError")
    assert "canary-engine" not in told


def waiting(holds: Callable[[], bool]) -> None:
    for _ in range(3000):
        if holds():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come")
