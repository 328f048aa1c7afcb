"""A host outlives the SuperLink's absence, with pauses that double, and ends clearly when it stays away."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import pytest
from flwr.app import Context, Message, RecordDict

from confed.errors import DeploymentError, UnreachableError
from confed.flower.assignment import Assignment
from confed.flower.reconnecting import Reconnecting


def away():
    """Return what a peer that does not answer looks like."""
    return UnreachableError("SuperLink", expected="an answer", got="none")


@dataclass
class Peer:
    """A SuperLink that is away for some calls; ``calls`` names every one, answered or not."""

    away: int = 0
    refuses: bool = False
    calls: list[str] = field(default_factory=list)

    def answer(self, what: str) -> None:
        self.calls.append(what)
        if self.refuses:
            raise DeploymentError("node", expected="a registered one", got="another")
        if self.away > 0:
            self.away -= 1
            raise away()

    def connect(self) -> Connection:
        self.answer("connect")
        return Connection(self)


@dataclass
class Connection:
    """A connection to the peer, good until the peer was away once."""

    peer: Peer

    def pull(self) -> Assignment | None:
        self.peer.answer("pull")
        return None

    def push(self, assignment: Assignment, reply: Message) -> None:
        self.peer.answer("push")

    def close(self) -> None:
        self.peer.calls.append("close")


class Clock:
    """Time that passes by waiting only."""

    def __init__(self) -> None:
        self.now, self.pauses = 0.0, list[float]()

    def __call__(self) -> float:
        return self.now

    def wait(self, pause_s: float) -> None:
        self.pauses.append(pause_s)
        self.now += pause_s


def reconnecting(peer: Peer, clock: Clock, stop: threading.Event | None = None) -> Reconnecting:
    return Reconnecting(peer.connect, stop or threading.Event(), away_s=600.0, wait=clock.wait, clock=clock)


def test_a_peer_that_comes_back_is_connected_to_anew() -> None:
    peer, clock = Peer(), Clock()
    with reconnecting(peer, clock) as connection:
        connection.pull()
        peer.away = 3
        connection.pull()
    assert peer.calls == ["connect", "pull", "pull", "close", "connect", "connect", "connect", "pull", "close"]


def test_pauses_double_up_to_half_a_minute_and_are_cut_by_chance() -> None:
    peer, clock = Peer(away=9), Clock()
    reconnecting(peer, clock).pull()
    longest = [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    assert len(clock.pauses) == len(longest)
    assert all(limit / 2 <= pause <= limit for pause, limit in zip(clock.pauses, longest, strict=True))
    assert clock.pauses != longest


def test_a_peer_that_stays_away_ends_the_host_and_patience_begins_anew_with_every_answer() -> None:
    peer, clock = Peer(away=20), Clock()
    connection = reconnecting(peer, clock)
    connection.pull()
    first = clock.now
    assert first > 200
    peer.away = 10_000
    with pytest.raises(UnreachableError, match="within 600 s"):
        connection.pull()
    assert 600 <= clock.now - first <= 630


def test_a_peer_that_refuses_is_not_asked_again() -> None:
    peer, clock = Peer(refuses=True), Clock()
    with pytest.raises(DeploymentError):
        reconnecting(peer, clock).pull()
    assert peer.calls == ["connect"]
    assert not clock.pauses


def test_a_reply_is_brought_on_the_next_connection() -> None:
    peer, clock = Peer(), Clock()
    connection = reconnecting(peer, clock)
    connection.pull()
    peer.away = 2
    message = Message.__new__(Message)
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    connection.push(Assignment(message=message, context=context, started_at=0.0), message)
    assert peer.calls == ["connect", "pull", "push", "close", "connect", "connect", "push"]


def test_a_host_that_shall_stop_does_not_wait_for_its_peer() -> None:
    peer, clock, stop = Peer(away=10_000), Clock(), threading.Event()
    stop.set()
    assert reconnecting(peer, clock, stop).pull() is None
    assert not clock.pauses
