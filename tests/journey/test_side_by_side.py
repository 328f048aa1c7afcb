"""What a client does side by side: brokers are asked, and the base is opened, while others are still at work."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from road import OWNER, Road

from confed.errors import LineageError, TicketError, UnreachableError
from confed.journey import Purpose

SITE = "north"


@pytest.fixture
def road(make_road: Callable[..., Road]) -> Road:
    """Each broker has a server of its own."""
    road = make_road(apart=True)
    road.aggregator().open(1)
    return road


def before(called: Callable[..., Any], do: Callable[[], object]) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        do()
        return called(*arguments, **named)

    return call


def test_both_brokers_are_asked_at_once(road: Road) -> None:
    together = threading.Barrier(2, timeout=20)
    for name in (OWNER, SITE):
        road.doors[name].release = before(road.doors[name].broker.release, together.wait)  # pyright: ignore[reportAttributeAccessIssue]
    held = road.hold(SITE)
    assert not together.broken
    assert held.step.arrays


@pytest.mark.parametrize("call", ["release", "ticket"])
def test_the_base_is_fetched_while_the_own_broker_decides(call: str, road: Road, monkeypatch: Any) -> None:
    session, fetched = road.session_of(SITE), threading.Event()
    stream = session.courier.stream

    def watched(digest: str, **terms: Any) -> Any:
        yield from stream(digest, **terms)
        fetched.set()

    monkeypatch.setattr(session.courier, "stream", watched)
    waited: list[bool] = []
    broker = road.doors[SITE].broker
    setattr(road.doors[SITE], call, before(getattr(broker, call), lambda: waited.append(fetched.wait(20))))
    road.hold(SITE)
    assert waited == [True]


def test_a_base_that_was_opened_beside_a_refusal_is_not_kept(road: Road) -> None:
    def refuse() -> None:
        raise LineageError("base", expected="the head", got="another")

    road.doors[SITE].ticket = before(road.doors[SITE].broker.ticket, refuse)  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(LineageError):
        road.hold(SITE)


@pytest.mark.parametrize("name", [OWNER, SITE])
def test_a_broker_that_is_down_stands_for_itself_and_no_ticket_is_bought(name: str, road: Road) -> None:
    road.servers[name].stop(0)
    with pytest.raises(UnreachableError):
        road.hold(SITE)
    if name == OWNER:
        assert road.events(SITE, "released")
        assert not road.events(SITE, "ticketed")


def test_what_takes_part_in_one_step_is_not_kept_for_the_next_if_it_failed(road: Road) -> None:
    session = road.session_of(SITE)
    start = road.manifest.model.start.digest
    content = road.courier.path(start).read_bytes()
    road.courier.serve_instead(start, content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(Exception, match="digest"):
        road.hold(SITE)
    assert session._bases == {}
    road.courier.serve_instead(start, content)
    # The ticket of this attempt is spent, as DESIGN says: never refunded.
    with pytest.raises(TicketError):
        road.hold(SITE)
    held = road.hold(SITE, attempt=1, purpose=Purpose.TRAIN)
    assert held.step.arrays


def calls_of(road: Road, call: str, monkeypatch: Any) -> list[str]:
    """Note which owner's broker has this call made from now on."""
    found: list[str] = []
    for name, door in road.doors.items():
        monkeypatch.setattr(door, call, before(getattr(door.broker, call), lambda name=name: found.append(name)), False)
    return found


def test_a_later_round_needs_no_call_for_a_nonce(road: Road, monkeypatch: Any) -> None:
    road.send(road.aggregators[0], road.land.sites)
    road.aggregators[0].close_round()
    asked = calls_of(road, "challenge", monkeypatch)
    road.aggregators[0].open(2)
    road.send(road.aggregators[0], road.land.sites, 2)
    road.aggregators[0].close_round()
    assert asked == []


def test_a_nonce_that_the_broker_does_not_know_any_more_is_asked_for_anew(road: Road, monkeypatch: Any) -> None:
    road.send(road.aggregators[0], road.land.sites)
    road.aggregators[0].close_round()
    for name in (OWNER, SITE):
        with road.homes[name].store.transaction() as tx:
            tx.execute("DELETE FROM nonces")
    asked = calls_of(road, "challenge", monkeypatch)
    road.aggregators[0].open(2)
    held = road.hold(SITE, 2)
    assert held.step.arrays
    assert sorted(asked) == sorted([OWNER, OWNER, SITE])  # the enclave asks its owner's broker, the client both


# A TEE of many sites: one request at each site's broker, after the model owner's has agreed.


def one_tee(road: Road, number: int, session: Any, **step: Any) -> None:
    road.aggregators[0].open(number, **step)
    for name in road.land.sites:
        digest = road.seal(road.hold(name, number, session=session, **step))
        road.aggregators[0].governor.submit(site=name, digest=digest)


def test_a_tee_of_many_sites_asks_for_credential_and_ticket_at_once(road: Road, monkeypatch: Any) -> None:
    session = road.session(*road.land.sites)
    asked = calls_of(road, "ticket", monkeypatch)
    one_tee(road, 1, session)
    road.aggregators[0].close_round()
    assert sorted(asked) == sorted(road.land.sites)  # in the first round their data are opened in between
    one_tee(road, 1, session, purpose=Purpose.EVALUATE)
    assert road.aggregators[0].close_round().cohort_size == len(road.land.sites)
    one_tee(road, 2, session)
    assert road.aggregators[0].close_round().cohort_size == len(road.land.sites)
    assert sorted(asked) == sorted(road.land.sites)
    assert [body["purpose"] for body in road.events(SITE, "ticketed")] == ["train", "evaluate", "train"]


def test_no_site_is_charged_where_the_model_owner_s_broker_does_not_agree(road: Road) -> None:
    session = road.session(*road.land.sites)
    one_tee(road, 1, session)
    road.aggregators[0].close_round()
    road.aggregators[0].open(2)
    road.servers[OWNER].stop(0)
    with pytest.raises(UnreachableError):
        road.hold(SITE, 2, session=session)
    for name in road.land.sites:
        assert [body["round"] for body in road.events(name, "ticketed")] == [1]


def test_one_site_s_refusal_is_its_own(road: Road) -> None:
    session = road.session(*road.land.sites)
    one_tee(road, 1, session)
    road.aggregators[0].close_round()
    road.aggregators[0].open(2)

    def refuse() -> None:
        raise LineageError("base", expected="the head", got="another")

    road.doors[SITE].release = before(road.doors[SITE].broker.release, refuse)  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(LineageError):
        road.hold(SITE, 2, session=session)
    assert all(road.hold(name, 2, session=session).grants for name in road.land.sites if name != SITE)
