"""A nonce that comes with an answer is a nonce like any other: the broker's, for once, and in time."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
from broker_world import Enclave, World

from confed.errors import ChallengeError
from confed.journey import Role
from confed.keybroker.next_challenges import NextChallenges
from confed.keybroker.replies import Released
from confed.keybroker.statements import Challenge, Grant
from confed.statement import Signed, sign, verify

SITE = "north"


def next_of(world: World, released: Released) -> Grant:
    grant = verify(released.grant, Grant, signer=world.public(SITE))
    assert grant.next_nonce
    assert grant.next_expires_at > grant.time
    return grant


def request_of(world: World, client: Enclave, nonce: bytes, **changes: Any) -> Signed:
    return sign(world.request(client, SITE, nonce=nonce, **changes), client.signing)


def test_it_serves_one_later_request_and_no_second(world: World) -> None:
    client = Enclave(world, Role.CLIENT)
    challenge = next_of(world, world.release(client, SITE))
    released = world.brokers[SITE].release(request_of(world, client, challenge.next_nonce))
    assert len(world.unwrap(client, SITE, released)) == 1
    with pytest.raises(ChallengeError):
        world.brokers[SITE].release(request_of(world, client, challenge.next_nonce))
    assert next_of(world, released).next_nonce != challenge.next_nonce


def test_a_refusal_burns_it_too_and_gives_none(world: World) -> None:
    client = Enclave(world, Role.CLIENT)
    nonce = next_of(world, world.release(client, SITE)).next_nonce
    with pytest.raises(Exception, match="round"):
        world.brokers[SITE].release(request_of(world, client, nonce, round=2))
    with pytest.raises(ChallengeError):
        world.brokers[SITE].release(request_of(world, client, nonce))


def test_it_ends_with_its_time(world: World) -> None:
    client = Enclave(world, Role.CLIENT)
    nonce = next_of(world, world.release(client, SITE)).next_nonce
    world.now += 121_000
    with pytest.raises(ChallengeError):
        world.brokers[SITE].release(request_of(world, client, nonce))


def test_the_half_of_what_may_be_outstanding_is_for_whoever_asks(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("confed.keybroker.nonces.MOST_NONCES", 4)
    client = Enclave(world, Role.CLIENT)
    next_of(world, world.release(client, SITE))
    world.nonce(SITE)
    grant = verify(world.release(client, SITE, evidence=False).grant, Grant, signer=world.public(SITE))
    assert (grant.next_nonce, grant.next_expires_at) == (b"", 0)
    world.nonce(SITE)
    world.nonce(SITE)


def release_with(challenge: Challenge | None) -> Any:
    return SimpleNamespace(next_challenge=challenge)


def test_an_enclave_takes_each_once_and_none_that_is_about_to_end() -> None:
    now = 1_000_000
    challenges = NextChallenges(lambda _: now)
    first = Challenge(broker=b"1" * 32, nonce=b"n" * 32, manifest="a" * 64, issued_at=now, expires_at=now + 120_000)
    newer = dataclasses.replace(first, nonce=b"m" * 32)
    other = dataclasses.replace(first, broker=b"2" * 32)
    for challenge in (first, newer, None, other):
        challenges.keep(release_with(challenge))
    assert challenges.take(b"1" * 32) == newer
    assert challenges.take(b"1" * 32) is None
    now += 110_000
    assert challenges.take(b"2" * 32) is None
    assert challenges.take(b"3" * 32) is None
