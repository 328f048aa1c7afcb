"""Brokers and a ticket that counts in a later round (FedBuff): once, within the limit, for the same aggregator."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from broker_world import MODEL_OWNER, SITES, Enclave, World

from confed.errors import CohortError, TicketError
from confed.journey import Purpose
from confed.keybroker.lineage import verify_commit_record
from confed.keybroker.statements import Candidate, CommitRecord
from confed.manifest import CohortTerms, Manifest, StrategyTerms
from confed.statement import Signed

Make = Callable[..., World]


def buffered(late: int, *, evaluated: float = 0.0) -> Callable[[Manifest], Manifest]:
    terms = StrategyTerms(name="FedBuff", parameters={"buffer_size": 2, "max_staleness": late})
    cohort = CohortTerms(least=2, fraction_train=1.0, fraction_evaluate=evaluated, extra=0)
    return lambda manifest: dataclasses.replace(manifest, strategy=terms, cohort=cohort)


def begun(world: World) -> tuple[Enclave, dict[str, Signed]]:
    """Round 1 with north and south in it; west has a ticket, and is slow."""
    aggregator = world.aggregator(round_number=1)
    tickets = world.tickets(aggregator, SITES, round_number=1)
    commit(world, aggregator, 1, {name: tickets[name] for name in ("north", "south")})
    return aggregator, tickets


def proposed(world: World, aggregator: Enclave, number: int, tickets: dict[str, Signed]) -> Candidate:
    changes: dict[str, Any] = {"round": number, "version": number, "attempt": 0, "base": world.base(number - 1)}
    return world.candidate(aggregator, tickets, digest=f"{number:064x}", **changes)


def commit(world: World, aggregator: Enclave, number: int, tickets: dict[str, Signed]) -> CommitRecord:
    candidate, listed = proposed(world, aggregator, number, tickets), list(tickets.values())
    record = world.commit(aggregator, candidate, listed, world.countersign(aggregator, candidate, listed))
    world.records[number] = record.to_bytes()
    return record


def opened(world: World, aggregator: Enclave, number: int, sites: tuple[str, ...]) -> dict[str, Signed]:
    for name in (MODEL_OWNER, *SITES):
        world.release(aggregator, name, round_number=number)
    return world.tickets(aggregator, sites, round_number=number)


def test_a_ticket_counts_in_a_later_round(make_world: Make) -> None:
    world = make_world(change=buffered(2))
    aggregator, first = begun(world)
    second = opened(world, aggregator, 2, ("north",))
    record = commit(world, aggregator, 2, {**second, "west": first["west"]})
    found = verify_commit_record(record, manifest=world.manifest, round_number=2)
    assert list(found.cohort) == [world.identity("north"), world.identity("west")]


@pytest.mark.parametrize("by", SITES)
def test_no_broker_countersigns_a_ticket_in_two_versions(by: str, make_world: Make) -> None:
    world = make_world(change=buffered(2))
    aggregator, first = begun(world)
    second = opened(world, aggregator, 2, ("south",))
    tickets = {"north": first["north"], **second}
    with pytest.raises(TicketError):
        world.countersign(aggregator, proposed(world, aggregator, 2, tickets), list(tickets.values()), by=[by])


@pytest.mark.parametrize(("late", "refused"), [(1, True), (2, False)])
def test_a_ticket_is_too_old_beyond_the_limit(late: int, refused: bool, make_world: Make) -> None:
    world = make_world(change=buffered(late))
    aggregator, first = begun(world)
    second = opened(world, aggregator, 2, ("north", "south"))
    commit(world, aggregator, 2, second)
    third = opened(world, aggregator, 3, ("north",))
    tickets = {**third, "west": first["west"]}
    candidate = proposed(world, aggregator, 3, tickets)
    if refused:
        with pytest.raises(TicketError):
            world.countersign(aggregator, candidate, list(tickets.values()))
    else:
        assert len(world.countersign(aggregator, candidate, list(tickets.values()))) == len(SITES)


def test_a_ticket_for_an_aggregator_that_is_gone_counts_nowhere(make_world: Make) -> None:
    world = make_world(change=buffered(2))
    _, first = begun(world)
    other = world.aggregator(round_number=2)
    tickets = {**world.tickets(other, ("north",), round_number=2), "west": first["west"]}
    with pytest.raises(TicketError):
        world.countersign(other, proposed(world, other, 2, tickets), list(tickets.values()))


def test_without_a_buffer_no_ticket_is_late(make_world: Make) -> None:
    world = make_world()
    aggregator, first = begun(world)
    tickets = {**opened(world, aggregator, 2, ("north",)), "west": first["west"]}
    with pytest.raises(TicketError):
        world.countersign(aggregator, proposed(world, aggregator, 2, tickets), list(tickets.values()))


def test_an_evaluation_by_who_has_time_has_no_late_ticket_and_no_second_cohort_that_differs_by_one(
    make_world: Make,
) -> None:
    world = make_world(change=buffered(2, evaluated=1.0))
    aggregator, late = begun(world)
    tickets = world.tickets(aggregator, round_number=1, purpose=Purpose.EVALUATE)
    trained = {"north": tickets["north"], "west": late["west"]}
    with pytest.raises(TicketError):
        world.countersign(aggregator, world.candidate(aggregator, trained), list(trained.values()))
    world.countersign(aggregator, world.candidate(aggregator, tickets), list(tickets.values()))
    again = world.tickets(aggregator, ("north", "south"), round_number=1, purpose=Purpose.EVALUATE, attempt=1)
    with pytest.raises(CohortError):
        world.countersign(aggregator, world.candidate(aggregator, again), list(again.values()))
