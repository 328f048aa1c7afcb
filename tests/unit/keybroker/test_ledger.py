"""A ledger shows every change that is made to it afterwards (guarantees 7, 14)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
from broker_world import World

from confed.errors import LedgerError, NotApprovedError
from confed.keybroker.ledger import verify_ledger
from confed.keybroker.statements import LedgerEntry
from confed.statement import Signed, sign, unverified

Change = Callable[[World, list[Signed]], list[Signed]]


def edited(at: int, *, resign: str | None = None, **changes: object) -> Change:
    """Change an entry, and sign it again with somebody's broker key (by default its own broker's)."""

    def change(world: World, entries: list[Signed]) -> list[Signed]:
        entry = dataclasses.replace(unverified(entries[at], LedgerEntry), **changes)
        return [*entries[:at], sign(entry, world.homes[resign or "north"].broker_key), *entries[at + 1 :]]

    return change


def flipped(world: World, entries: list[Signed]) -> list[Signed]:
    del world
    payload = entries[2].payload.replace(b'"round":1', b'"round":2')
    assert payload != entries[2].payload
    return [*entries[:2], dataclasses.replace(entries[2], payload=payload), *entries[3:]]


def forked(world: World, entries: list[Signed]) -> list[Signed]:
    """The broker itself writes another history from entry 2 on, correctly chained to entry 1, then goes on."""
    entry = dataclasses.replace(unverified(entries[2], LedgerEntry), body={"other": "history"})
    return [*entries[:2], sign(entry, world.homes["north"].broker_key), *entries[3:]]


BROKEN: dict[str, tuple[Change, int]] = {
    "a flipped byte": (flipped, 2),
    "an entry left out": (lambda w, e: [*e[:2], *e[3:]], 2),
    "the first entry left out": (lambda w, e: e[1:], 0),
    "two entries swapped": (lambda w, e: [*e[:2], e[3], e[2], *e[4:]], 2),
    "an entry twice": (lambda w, e: [*e[:3], e[2], *e[3:]], 3),
    "another history": (forked, 3),
    "an edited body, signed again": (edited(2, body={}), 3),
    "an entry signed by another broker": (edited(2, resign="south"), 2),
    "another broker's name": (edited(2, broker=b"\0" * 32), 2),
    "another sequence": (edited(2, sequence=7), 2),
    "a time before the one before": (edited(2, time=5), 2),
    "an unknown event": (edited(2, event="blessed"), 2),
    "a second beginning": (edited(2, event="created"), 2),
    "another beginning": (edited(0, event="approved"), 0),
}


@pytest.mark.parametrize("sentence", BROKEN)
def test_a_ledger_is_refused_with(trained: World, sentence: str) -> None:
    change, where = BROKEN[sentence]
    world = trained
    entries = list(world.brokers["north"].records())
    assert len(verify_ledger(entries, broker=world.public("north"))) == len(entries) > 5
    with pytest.raises(LedgerError, match=f"ledger entry {where}"):
        verify_ledger(change(world, entries), broker=world.public("north"))


def test_a_truncated_ledger_shows_against_what_was_countersigned(trained: World) -> None:
    world = trained
    entries = list(world.brokers["north"].records())
    head = entries[-1].digest
    verify_ledger(entries, broker=world.public("north"), through=head)
    verify_ledger(entries[:-1], broker=world.public("north"))
    with pytest.raises(LedgerError):
        verify_ledger(entries[:-1], broker=world.public("north"), through=head)


def test_another_brokers_ledger_is_refused(world: World) -> None:
    with pytest.raises(LedgerError):
        verify_ledger(list(world.brokers["north"].records()), broker=world.public("south"))


def test_records_go_on_from_a_sequence_number(trained: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world = trained
    monkeypatch.setattr("confed.keybroker.ledger._PAGE", 2)
    everything = list(world.brokers["north"].records())
    assert list(world.brokers["north"].records(first=3)) == everything[3:]
    assert list(world.brokers["north"].records(first=99)) == []


def test_entries_link_to_the_statements_that_they_record(world: World) -> None:
    aggregator = world.aggregator()
    tickets = world.tickets(aggregator)
    candidate = world.candidate(aggregator, tickets)
    (signature,) = world.countersign(aggregator, candidate, list(tickets.values()), by=("north",))
    entries = [unverified(entry, LedgerEntry) for entry in world.brokers["north"].records()]
    by_event = {entry.event: entry.body for entry in entries}
    assert by_event["ticketed"]["ticket"] == tickets["north"].digest
    assert by_event["countersigned"]["countersignature"] == signature.digest
    # All three, one bit each from the highest on.
    assert by_event["countersigned"]["cohort"] == "e0"
    released = [entry.body for entry in entries if entry.event == "released"]
    assert {body["role"] for body in released} == {"client", "aggregator"}
    assert all(set(body) >= {"request", "binding", "evidence", "policy", "claims", "keys"} for body in released)


def test_a_run_s_part_begins_with_its_approval(trained: World) -> None:
    world = trained
    entries, manifest = list(world.brokers["north"].records()), world.manifest
    first = world.homes["north"].approved_at(manifest)
    part = verify_ledger(entries[first:], broker=world.public("north"), part_from=manifest.digest)
    assert first > 0
    assert [entry.sequence for entry in part] == list(range(first, len(entries)))
    for change, where in ((entries[first + 1 :], first + 1), (entries[first + 2 :], first + 2)):
        with pytest.raises(LedgerError, match=f"ledger entry {where}"):
            verify_ledger(change, broker=world.public("north"), part_from=manifest.digest)
    with pytest.raises(LedgerError, match=f"ledger entry {first}"):
        verify_ledger(entries[first:], broker=world.public("north"), part_from="0" * 64)
    with pytest.raises(LedgerError):
        verify_ledger(entries[first:], broker=world.public("north"))


def test_what_was_not_approved_has_no_place_in_a_ledger(trained: World) -> None:
    with pytest.raises(NotApprovedError):
        trained.homes["north"].approved_at(dataclasses.replace(trained.manifest, seed=trained.manifest.seed + 1))
