"""Brokers over gRPC, and their client, which believes only the broker that it asked."""

from __future__ import annotations

import dataclasses
import datetime
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from broker_world import METRICS, MODEL_OWNER, SITES, Enclave, World
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from confed.errors import (
    BrokerError,
    ChallengeError,
    ConfedError,
    NotApprovedError,
    SessionError,
    SignatureError,
    UnreachableError,
)
from confed.journey import Role
from confed.keybroker.client import BrokerClient
from confed.keybroker.clock import EnclaveClock
from confed.keybroker.identity import OwnerHome
from confed.keybroker.ledger import verify_ledger
from confed.keybroker.server import serve_brokers
from confed.keybroker.statements import (
    Challenge,
    Closing,
    ClosingCountersignature,
    Commit,
    CommitRecord,
    Countersignature,
    Grant,
    Head,
    Ticket,
)
from confed.statement import Signed, public_bytes, sign, unverified, word_of
from confed.stopping import Ending
from confed.wire.channel import Endpoint, RunningServer, TlsIdentity, open_channel, pack, unpack
from confed.wire.v1 import confed_pb2 as pb
from confed.wire.v1.confed_pb2_grpc import KeyBrokerStub

Ask = Callable[["Served"], Any]


@dataclasses.dataclass
class Served:
    world: World
    server: RunningServer
    channel: grpc.Channel
    client: BrokerClient


@pytest.fixture
def served(world: World, place: Path) -> Iterator[Served]:
    brokers = {world.public(name): broker for name, broker in world.brokers.items()}
    with (
        serve_brokers(brokers, listen=f"unix:{place}/b.sock", tls=None) as server,
        open_channel(server.endpoint) as channel,
    ):
        yield Served(world, server, channel, BrokerClient(channel))


def told(replies: list[Any]) -> list[Any]:
    for reply in replies:
        if isinstance(reply, ConfedError):
            raise reply
    return replies


def release_items(world: World, enclave: Enclave, client: BrokerClient, names: tuple[str, ...]) -> list[Any]:
    challenges = told(client.challenge([(world.public(name), world.manifest.digest) for name in names]))
    items = []
    for name, challenge in zip(names, challenges, strict=True):
        request = world.request(enclave, name, nonce=challenge.nonce)
        envelope = enclave.attest(world.public(name), challenge.nonce)
        items.append((sign(request, enclave.signing), envelope, b""))
    return items


def test_a_call_holds_half_of_ten_thousand_sites_and_is_bounded(served: Served) -> None:
    stub = KeyBrokerStub(served.channel)

    def ask(count: int) -> pb.ChallengeReplies:
        nobody = pb.ChallengeBatch.Item(broker=bytes(32), manifest=served.world.manifest.digest)
        return stub.Challenge(pb.ChallengeBatch(items=[nobody] * count))

    assert len(ask(5_001).items) == 5_001
    with pytest.raises(grpc.RpcError) as caught:
        ask(20_001)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]


def a_round(served: Served) -> None:
    """Everything that a round asks of brokers, to its commit."""
    world, client = served.world, served.client
    aggregator, trainer = Enclave(world, Role.AGGREGATOR), Enclave(world, Role.CLIENT)
    everyone = (MODEL_OWNER, *SITES)
    told(client.release(release_items(world, aggregator, client, everyone)))
    requests = []
    for site, reply in zip(SITES, told(client.release(release_items(world, trainer, client, SITES))), strict=True):
        assert len(trainer.hpke.unwrap(reply.wrapped_keys[0], info=reply.grant.context)) == 32
        assert reply.credential is not None
        requests.append(sign(world.ticket_request(trainer, site, aggregator, reply.credential), trainer.signing))
    tickets = told(client.ticket(requests))
    assert client.ticket(requests) == tickets
    signed = sign(world.candidate(aggregator, dict(zip(SITES, tickets, strict=True))), aggregator.signing)
    keys = [world.public(name) for name in SITES]
    signatures = told(client.countersign(keys, candidate=signed, tickets=tickets))
    commit = client.commit(world.public(MODEL_OWNER), candidate=signed, tickets=tickets, countersignatures=signatures)
    record = CommitRecord(
        candidate=signed,
        tickets=tuple(tickets),
        countersignatures=tuple(signatures),
        commit=commit,
        metrics=METRICS,
    ).to_bytes()
    heads = told(client.observe([(key, world.manifest.run, os.urandom(32), record) for key in keys]))
    assert [head.version for head in heads] == [1, 1, 1]
    (early,) = client.close(
        [world.public(MODEL_OWNER)], run="run-1", manifest=world.manifest.digest, final_record=record
    )
    assert type(early).code == "round"
    for name in everyone:
        verify_ledger(client.records(world.public(name)), broker=world.public(name))


def test_a_round_goes_over_the_wire(served: Served) -> None:
    a_round(served)


STATEMENTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "a nonce for another manifest": (Challenge, {"manifest": "34" * 32}),
    "a grant for another request": (Grant, {"request": "34" * 32}),
    "a ticket for another round": (Ticket, {"round": 2}),
    "a ticket for another base": (Ticket, {"base": "34" * 32}),
    "a ticket to another aggregator": (Ticket, {"aggregator": "34" * 32}),
    "a ticket of another credential": (Ticket, {"credential": "34" * 32}),
    "a countersignature of another candidate": (Countersignature, {"candidate": "34" * 32}),
    "a commit of another candidate": (Commit, {"candidate": "34" * 32}),
    "a commit of another version": (Commit, {"digest": "34" * 32}),
    "a head of an earlier question": (Head, {"nonce": bytes(32)}),
    "a head of another run": (Head, {"run": "run-2"}),
}


@pytest.mark.parametrize(("kind", "changes"), STATEMENTS.values(), ids=STATEMENTS)
def test_what_the_right_broker_signed_for_something_else_is_not_believed(
    served: Served, monkeypatch: pytest.MonkeyPatch, kind: Any, changes: dict[str, Any]
) -> None:
    """The network may play again whatever it has seen."""
    keys = {broker.public: broker._key for broker in served.world.brokers.values()}

    def another(message: pb.Signed) -> Signed:
        signed = unpack(message)
        if word_of(signed, "type") != kind.TYPE:
            return signed
        return sign(dataclasses.replace(unverified(signed, kind), **changes), keys[signed.signer])

    monkeypatch.setattr("confed.keybroker.client.unpack", another)
    with pytest.raises(BrokerError, match="an answer to something else"):
        a_round(served)


BROKER = Ed25519PrivateKey.generate()
ENDING = Ending(rule="rounds", round=1)
CLOSING = Closing(
    broker=public_bytes(BROKER),
    run="run-1",
    manifest="12" * 32,
    rounds=1,
    version=1,
    digest="34" * 32,
    ending=ENDING,
    time=1,
)
AGREED = ClosingCountersignature(
    broker=CLOSING.broker,
    identity=bytes(32),
    closing="56" * 32,
    run="run-1",
    version=1,
    digest="34" * 32,
    head="",
    time=1,
)


@pytest.mark.parametrize(
    "statement", [dataclasses.replace(CLOSING, run="run-2"), dataclasses.replace(CLOSING, manifest="34" * 32), AGREED]
)
def test_a_closing_of_something_else_is_not_believed(statement: Any) -> None:
    def answered(_call: Any, timeout: float) -> pb.CloseReply:
        del timeout
        return pb.CloseReply(items=[pb.CloseReply.Item(signed=pack(sign(statement, BROKER)))])

    client = BrokerClient.__new__(BrokerClient)
    client._timeout_s, client._stub = 5.0, SimpleNamespace(Close=answered)  # type: ignore[assignment]
    own = sign(CLOSING, BROKER) if statement is AGREED else None
    (reply,) = client.close([CLOSING.broker], run="run-1", manifest="12" * 32, final_record=b"", closing=own)
    assert type(reply) is BrokerError


def test_one_refusal_does_not_fail_a_batch(served: Served) -> None:
    world, client = served.world, served.client
    good, bad, unknown = client.challenge(
        [(world.public("north"), world.manifest.digest), (world.public("north"), "34" * 32), (b"\0" * 32, "34" * 32)]
    )
    assert not isinstance(good, ConfedError)
    assert isinstance(bad, NotApprovedError)
    assert isinstance(unknown, BrokerError)
    enclave = Enclave(world, Role.CLIENT)
    items = release_items(world, enclave, client, ("north", "south"))
    spoiled = world.request(enclave, "north", nonce=os.urandom(32))
    replies = client.release([(sign(spoiled, enclave.signing), items[0][1], b""), items[1]])
    assert isinstance(replies[0], ChallengeError)
    assert not isinstance(replies[1], ConfedError)


def test_a_refusal_carries_its_code_and_nothing_else(served: Served) -> None:
    batch = pb.ChallengeBatch(
        items=[pb.ChallengeBatch.Item(broker=served.world.public("north"), manifest="secret-name")]
    )
    reply = KeyBrokerStub(served.channel).Challenge(batch).items[0]
    assert reply.refusal == pb.Refusal(code="not-approved")
    assert b"secret-name" not in reply.SerializeToString()


def test_what_is_unexpected_leaves_as_a_refusal_and_a_line_without_its_text(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("key material")

    monkeypatch.setattr(served.world.brokers["north"], "challenge", fail)
    with caplog.at_level(logging.DEBUG):
        (reply,) = served.client.challenge([(served.world.public("north"), served.world.manifest.digest)])
    assert type(reply) is BrokerError
    assert "RuntimeError" in caplog.text
    assert "key material" not in caplog.text


@pytest.mark.parametrize("payload", [b"", b"{}", b'{"broker":7}', b'{"broker":"zz"}', b"\xff"])
def test_a_request_that_is_none_is_refused(served: Served, payload: bytes) -> None:
    stub = KeyBrokerStub(served.channel)
    signed = pb.Signed(payload=payload, signer=b"", signature=b"")
    assert (
        stub.Release(pb.ReleaseBatch(items=[pb.ReleaseBatch.Item(request=signed)])).items[0].refusal.code == "encoding"
    )
    assert stub.Ticket(pb.TicketBatch(items=[pb.TicketBatch.Item(request=signed)])).items[0].refusal.code == "encoding"


def test_a_server_with_other_keys_is_not_believed(served: Served, place: Path) -> None:
    """The governor answers in a broker's place: with its own broker, under the name of the right one."""
    world = served.world
    brokers = {world.public("north"): world.brokers["south"]}
    with (
        serve_brokers(brokers, listen=f"unix:{place}/lies.sock", tls=None) as server,
        open_channel(server.endpoint) as channel,
    ):
        (reply,) = BrokerClient(channel).challenge([(world.public("north"), world.manifest.digest)])
    assert isinstance(reply, SignatureError)


def test_an_answer_to_something_else_is_not_believed(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    world, client = served.world, served.client
    enclave = Enclave(world, Role.CLIENT)
    (item,) = release_items(world, enclave, client, ("north",))
    (other,) = release_items(world, enclave, client, ("north",))
    honest = world.brokers["north"].release
    monkeypatch.setattr(
        world.brokers["north"], "release", lambda request, **more: honest(other[0], envelope=other[1], base_record=b"")
    )
    (reply,) = client.release([item])
    assert type(reply) is BrokerError


def test_a_server_that_is_down_is_unreachable(place: Path, world: World) -> None:
    with open_channel(Endpoint(target=f"unix:{place}/nobody.sock", certificate="")) as channel:
        client = BrokerClient(channel, timeout_s=5)
        with pytest.raises(UnreachableError):
            client.challenge([(world.public("north"), world.manifest.digest)])
        with pytest.raises(UnreachableError):
            client.records(world.public("north"))


def test_the_same_over_tls_with_a_pinned_certificate(world: World) -> None:
    brokers = {world.public("north"): world.brokers["north"]}
    # Real time: TLS certificates are checked against the machine's own clock.
    own, another = (TlsIdentity.generate(now=datetime.datetime.now(datetime.UTC)) for _ in range(2))
    with serve_brokers(brokers, listen="127.0.0.1:0", tls=own) as server:
        with open_channel(server.endpoint) as channel:
            (reply,) = BrokerClient(channel).challenge([(world.public("north"), world.manifest.digest)])
            assert not isinstance(reply, ConfedError)
        other = Endpoint(target=server.endpoint.target, certificate=another.certificate)
        with open_channel(other) as channel, pytest.raises(UnreachableError):
            BrokerClient(channel, timeout_s=5).challenge([(world.public("north"), world.manifest.digest)])


def test_an_enclaves_clock_is_the_brokers() -> None:
    seconds = [100.0]
    clock = EnclaveClock(monotonic=lambda: seconds[0])
    with pytest.raises(SessionError):
        clock.now()
    clock.advance(5_000)
    seconds[0] += 2
    assert clock.now() == 7_000
    clock.advance(1_000)
    assert clock.now() == 7_000
    clock.advance(9_000)
    assert clock.now() == 9_000


@given(times=st.lists(st.tuples(st.integers(0, 10**12), st.floats(0, 1000)), min_size=1))
def test_an_enclaves_clock_never_goes_back(times: list[tuple[int, float]]) -> None:
    seconds = [0.0]
    clock = EnclaveClock(monotonic=lambda: seconds[0])
    last = 0
    for told, passed in times:
        clock.advance(told)
        seconds[0] += passed
        assert clock.now() >= max(last, told) - 1
        last = clock.now()


def test_a_broker_needs_neither_torch_nor_flower() -> None:
    code = (
        "import sys, confed.keybroker.server, confed.keybroker.client, confed.cli.broker;"
        "sys.exit(any(name in sys.modules for name in ('torch', 'flwr', 'numpy', 'ray')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def serve_command(world: World, *words: str) -> list[str]:
    start = "from confed.cli.main import run; run()"
    return [sys.executable, "-c", start, "broker", "serve", "--home", str(world.home), *words]


def test_the_command_serves_until_it_is_told_to_end(world: World, place: Path) -> None:
    now = time.time_ns() // 1_000_000
    for name in ("alice", "bob"):
        OwnerHome.create(name, home=world.home, environment="simulation", now_ms=now).close()
    file = place / "endpoint.json"
    words = ["--owner", "alice", "--owner", "bob", "--endpoint-file", str(file)]
    process = subprocess.Popen(serve_command(world, *words))
    try:
        while not file.exists():
            assert process.poll() is None
        told = json.loads(file.read_text())
        endpoint = Endpoint(target=told["target"], certificate=told["certificate"])
        with open_channel(endpoint) as channel:
            for broker in map(bytes.fromhex, told["brokers"]):
                (first,) = verify_ledger(BrokerClient(channel).records(broker), broker=broker)
                assert first.event == "created"
    finally:
        process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0


def mistakes(busy: str) -> list[list[str]]:
    north = ["--owner", "north"]
    return [
        [*north, "--listen", busy],
        [*north, "--listen", "nowhere"],
        ["--owner", "nobody"],
        [*north, *north],
        [*north, "--endpoint-file", "/nowhere/at/all.json"],
    ]


def test_the_command_names_a_users_mistake_in_one_line(world: World) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        busy = f"127.0.0.1:{taken.getsockname()[1]}"
        for words in mistakes(busy):
            done = subprocess.run(serve_command(world, *words), capture_output=True, text=True, check=False)
            assert done.returncode == 2, done.stderr
            assert len(done.stderr.splitlines()) == 1, done.stderr
