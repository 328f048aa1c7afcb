"""Wrong turns after the keys: tickets, countersignatures, commits, closing (guarantees 5 to 8)."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from broker_world import MODEL_OWNER, SITES, Enclave, World

from confed.errors import (
    BrokerError,
    BudgetError,
    CohortError,
    ConfedError,
    CredentialError,
    ForkError,
    InstanceError,
    LineageError,
    ManifestMismatchError,
    NotApprovedError,
    PurposeError,
    QuorumError,
    RequestReplayError,
    RollbackError,
    RoundError,
    SignatureError,
    SizeError,
    TicketError,
)
from confed.journey import Purpose, Role
from confed.keybroker.ledger import verify_ledger
from confed.keybroker.statements import (
    Candidate,
    Closing,
    Commit,
    CommitRecord,
    Countersignature,
    Head,
    Ticket,
    TicketRequest,
)
from confed.manifest import Manifest
from confed.statement import Signed, sign, unverified, verify

Ask = Callable[[World], Any]
Make = Callable[..., World]


@dataclasses.dataclass
class Buying:
    """A client of north with its credential and an aggregator, about to ask for a ticket."""

    world: World
    client: Enclave
    aggregator: Enclave
    credential: Signed

    @classmethod
    def of(cls, world: World) -> Buying:
        client, aggregator = Enclave(world, Role.CLIENT), world.aggregator()
        credential = world.release(client, "north").credential
        assert credential is not None
        return cls(world, client, aggregator, credential)

    def ask(self, *, key: Any = None, to: str = "north", **changes: Any) -> Signed:
        request = self.world.ticket_request(self.client, "north", self.aggregator, self.credential, **changes)
        return self.world.brokers[to].ticket(sign(request, key or self.client.signing))


def buy(**changes: Any) -> Ask:
    return lambda world: Buying.of(world).ask(**changes)


def buy_by_another_key(world: World) -> Any:
    return Buying.of(world).ask(key=Enclave(world, Role.CLIENT).signing)


def buy_at_another_broker(world: World) -> Any:
    return Buying.of(world).ask(to="south")


def buy_for_another_site(world: World) -> Any:
    return Buying.of(world).ask(identity=world.identity("south"))


def buy_twice(world: World) -> Any:
    buying = Buying.of(world)
    buying.ask()
    return buying.ask()


def buy_twice_over_a_restart(world: World) -> Any:
    buying = Buying.of(world)
    buying.ask()
    world.restart()
    return buying.ask()


def buy_with_a_request_id_again(world: World) -> Any:
    buying, request_id = Buying.of(world), os.urandom(16)
    buying.ask(request_id=request_id)
    return buying.ask(request_id=request_id, base="77" * 32)


def buy_for_an_unknown_aggregator(world: World) -> Any:
    buying = Buying.of(world)
    buying.aggregator = Enclave(world, Role.AGGREGATOR)
    return buying.ask()


def buy_for_a_second_aggregator(world: World) -> Any:
    """Both attested, but the first one holds this attempt."""
    buying = Buying.of(world)
    buying.aggregator = world.aggregator(attempt=1)
    return buying.ask()


def buy_for_an_expired_aggregator(world: World) -> Any:
    aggregator = world.aggregator()
    world.now += 601_000
    client = Enclave(world, Role.CLIENT)
    credential = world.release(client, "north").credential
    assert credential is not None
    return Buying(world, client, aggregator, credential).ask()


def buy_late(world: World) -> Any:
    buying = Buying.of(world)
    world.now += 601_000
    return buying.ask()


def buy_late_for_an_aggregator_in_time(world: World) -> Any:
    buying = Buying.of(world)
    world.now += 601_000
    world.release(buying.aggregator, "north")
    return buying.ask()


def buy_for_an_aggregator_of_earlier_rounds(world: World) -> Any:
    first = world.run_round(1)
    world.run_round(2)
    return world.ticket(Enclave(world, Role.CLIENT), "north", first, round_number=3)


def buy_an_older_attempt(world: World) -> Any:
    aggregator = world.aggregator(attempt=1)
    client = Enclave(world, Role.CLIENT)
    old = world.release(client, "north").credential
    world.ticket(client, "north", aggregator, attempt=1)
    assert old is not None
    return Buying(world, client, aggregator, old).ask()


def buy_after_the_commit(world: World) -> Any:
    buying = Buying.of(world)
    world.run_round(1, attempt=1, sites=("south", "west"))
    world.brokers["north"].observe(world.manifest.run, nonce=b"", record=world.records[1])
    return buying.ask()


TICKETS: dict[str, tuple[Ask, type[ConfedError]]] = {
    "another key": (buy_by_another_key, SignatureError),
    "another broker": (buy_at_another_broker, BrokerError),
    "another identity": (buy_for_another_site, TicketError),
    "no credential": (buy(credential="99" * 32), CredentialError),
    "a credential of another round": (buy(round=2), CredentialError),
    "a credential of another attempt": (buy(attempt=1), CredentialError),
    "a credential of another purpose": (buy(purpose=Purpose.EVALUATE), CredentialError),
    "an aggregator's purpose": (buy(purpose=Purpose.AGGREGATE), PurposeError),
    "another run": (buy(run="run-2"), ManifestMismatchError),
    "another manifest": (buy(manifest="99" * 32), NotApprovedError),
    "another base": (buy(base="99" * 32), LineageError),
    "a short request id": (buy(request_id=b""), SizeError),
    "a second ticket": (buy_twice, TicketError),
    "a second ticket after a restart": (buy_twice_over_a_restart, TicketError),
    "a request id used before": (buy_with_a_request_id_again, RequestReplayError),
    "an aggregator that the broker never saw": (buy_for_an_unknown_aggregator, CredentialError),
    "a second aggregator of one attempt": (buy_for_a_second_aggregator, InstanceError),
    "an aggregator whose time is over": (buy_for_an_expired_aggregator, CredentialError),
    "a credential whose time is over": (buy_late, CredentialError),
    "a client's credential whose time alone is over": (buy_late_for_an_aggregator_in_time, CredentialError),
    "an aggregator whose rounds are over": (buy_for_an_aggregator_of_earlier_rounds, CredentialError),
    "an attempt older than a ticket": (buy_an_older_attempt, RoundError),
    "a round that was committed": (buy_after_the_commit, RollbackError),
}


@pytest.mark.parametrize("sentence", TICKETS)
def test_a_ticket_is_refused_for(world: World, sentence: str) -> None:
    ask, error = TICKETS[sentence]
    with pytest.raises(error):
        ask(world)
    ledger = verify_ledger(list(world.brokers["north"].records()), broker=world.public("north"))
    assert sentence in ("another broker", "another manifest", "a short request id") or ledger[-1].event == "refused"


def test_the_same_ticket_request_gets_the_same_ticket(world: World) -> None:
    buying = Buying.of(world)
    request = sign(
        world.ticket_request(buying.client, "north", buying.aggregator, buying.credential), buying.client.signing
    )
    ticket = world.brokers["north"].ticket(request)
    world.restart()
    assert world.brokers["north"].ticket(request) == ticket
    assert verify(ticket, Ticket, signer=world.public("north")).aggregator == buying.aggregator.instance
    assert unverified(request, TicketRequest).request_id


@dataclasses.dataclass
class Closed:
    """A round whose tickets are sold and whose candidate is about to be shown to the brokers."""

    world: World
    aggregator: Enclave
    tickets: dict[str, Signed]

    @classmethod
    def of(cls, world: World, sites: tuple[str, ...] = SITES, **step: Any) -> Closed:
        attempt = step.get("attempt", 0)
        aggregator = world.aggregator(round_number=step.get("round_number", 1), attempt=attempt)
        return cls(world, aggregator, world.tickets(aggregator, sites, **step))

    def candidate(self, sites: tuple[str, ...] | None = None, **changes: Any) -> Candidate:
        tickets = {name: self.tickets[name] for name in (sites or tuple(self.tickets))}
        return self.world.candidate(self.aggregator, tickets, **changes)

    def show(self, candidate: Candidate, *, by: str = "north", tickets: Any = None, key: Any = None) -> Signed:
        signed = sign(candidate, key or self.aggregator.signing)
        shown = list(self.tickets.values()) if tickets is None else tickets
        record = self.world.records.get(candidate.round - 1, b"")
        return self.world.brokers[by].countersign(signed, tickets=shown, base_record=record)


def show(**changes: Any) -> Ask:
    def ask(world: World) -> Any:
        closed = Closed.of(world)
        return closed.show(closed.candidate(**changes))

    return ask


def show_one_short(world: World) -> Any:
    closed = Closed.of(world)
    return closed.show(closed.candidate(("north",)), tickets=[closed.tickets["north"]])


def show_one_twice(world: World) -> Any:
    closed = Closed.of(world)
    one, digest = world.identity("north"), closed.tickets["north"].digest
    candidate = closed.candidate(cohort=(one, one), tickets=(digest, digest))
    return closed.show(candidate, tickets=[closed.tickets["north"]] * 2)


def show_a_ticket_twice(world: World) -> Any:
    closed = Closed.of(world)
    digest = closed.tickets["north"].digest
    candidate = closed.candidate(("north", "south"), tickets=(digest, digest))
    return closed.show(candidate, tickets=[closed.tickets["north"]] * 2)


def show_a_stranger(world: World) -> Any:
    closed = Closed.of(world)
    cohort = (world.identity("north"), os.urandom(32))
    candidate = closed.candidate(("north", "south"), cohort=cohort)
    return closed.show(candidate, tickets=[closed.tickets["north"], closed.tickets["south"]])


def show_out_of_order(world: World) -> Any:
    closed = Closed.of(world)
    names = ("south", "north")
    return closed.show(closed.candidate(names), tickets=[closed.tickets[name] for name in names])


def show_swapped_tickets(world: World) -> Any:
    closed = Closed.of(world)
    swapped = [closed.tickets[name] for name in ("south", "north", "west")]
    return closed.show(closed.candidate(tickets=tuple(t.digest for t in swapped)), tickets=swapped)


def show_a_forged_ticket(world: World) -> Any:
    closed = Closed.of(world)
    true = unverified(closed.tickets["south"], Ticket)
    forged = sign(true, world.homes["west"].broker_key)
    tickets = [closed.tickets["north"], forged, closed.tickets["west"]]
    return closed.show(closed.candidate(tickets=tuple(t.digest for t in tickets)), tickets=tickets)


def show_a_ticket_of_own_key_never_issued(world: World) -> Any:
    """Own broker's signature, but not in its store: a store that was put back does not know it."""
    closed = Closed.of(world)
    other = dataclasses.replace(unverified(closed.tickets["north"], Ticket), ticket_id=os.urandom(16))
    tickets = [sign(other, world.homes["north"].broker_key), closed.tickets["south"], closed.tickets["west"]]
    return closed.show(closed.candidate(tickets=tuple(t.digest for t in tickets)), tickets=tickets)


def show_a_ticket_for_another_aggregator(world: World) -> Any:
    closed = Closed.of(world)
    other = dataclasses.replace(unverified(closed.tickets["south"], Ticket), aggregator="99" * 32)
    tickets = [closed.tickets["north"], sign(other, world.homes["south"].broker_key), closed.tickets["west"]]
    return closed.show(closed.candidate(tickets=tuple(t.digest for t in tickets)), tickets=tickets)


def show_without_tickets(world: World) -> Any:
    closed = Closed.of(world)
    return closed.show(closed.candidate(), tickets=[])


def show_by_another_key(world: World) -> Any:
    closed = Closed.of(world)
    return closed.show(closed.candidate(), key=Enclave(world, Role.AGGREGATOR).signing)


def show_by_an_unknown_aggregator(world: World) -> Any:
    closed = Closed.of(world)
    closed.aggregator = Enclave(world, Role.AGGREGATOR)
    return closed.show(closed.candidate())


def show_twice(world: World) -> Any:
    closed = Closed.of(world)
    closed.show(closed.candidate())
    return closed.show(closed.candidate(digest="99" * 32))


def show_twice_over_a_restart(world: World) -> Any:
    closed = Closed.of(world)
    closed.show(closed.candidate())
    world.restart()
    return closed.show(closed.candidate(digest="99" * 32))


def show_an_attempt_older_than_a_ticket(world: World) -> Any:
    closed = Closed.of(world)
    world.tickets(world.aggregator(attempt=1), attempt=1)
    return closed.show(closed.candidate())


def show_an_attempt_older_than_a_candidate(world: World) -> Any:
    closed = Closed.of(world)
    later = Closed.of(world, ("south", "west"), attempt=1)
    later.show(later.candidate())
    return closed.show(closed.candidate())


def show_one_less_in_the_next_attempt(world: World) -> Any:
    closed = Closed.of(world)
    closed.show(closed.candidate())
    again = Closed.of(world, ("north", "south"), attempt=1)
    return again.show(again.candidate())


def show_to_the_model_owner(world: World) -> Any:
    closed = Closed.of(world)
    return closed.show(closed.candidate(), by=MODEL_OWNER)


def show_an_old_round(world: World) -> Any:
    """The old aggregator comes back with another version of a committed round."""
    closed = Closed.of(world)
    world.run_round(1, attempt=1)
    world.brokers["north"].observe(world.manifest.run, nonce=b"", record=world.records[1])
    return closed.show(closed.candidate(attempt=2))


CANDIDATES: dict[str, tuple[Ask, type[ConfedError]]] = {
    "one identity fewer than k": (show_one_short, CohortError),
    "one identity twice": (show_one_twice, CohortError),
    "one ticket twice": (show_a_ticket_twice, TicketError),
    "an identity that was not drawn": (show_a_stranger, CohortError),
    "a cohort out of order": (show_out_of_order, CohortError),
    "excluded sites that are in the cohort": (show(excluded={"north": "norm"}), CohortError),
    "excluded sites that nobody knows": (show(excluded={"east": "norm"}), CohortError),
    "tickets of each other": (show_swapped_tickets, TicketError),
    "a ticket signed by another broker": (show_a_forged_ticket, TicketError),
    "an own ticket that was never issued": (show_a_ticket_of_own_key_never_issued, TicketError),
    "a ticket for another aggregator": (show_a_ticket_for_another_aggregator, TicketError),
    "no tickets": (show_without_tickets, TicketError),
    "a signature of another key": (show_by_another_key, SignatureError),
    "an aggregator that nobody credentialed": (show_by_an_unknown_aggregator, CredentialError),
    "another base": (show(base="99" * 32), LineageError),
    "its own base as the new version": (show(digest="__base__"), LineageError),
    "another run": (show(run="run-2"), LineageError),
    "another version number": (show(version=2), LineageError),
    "a digest that is none": (show(digest="zz"), LineageError),
    "metrics in clear": (show(metrics='{"loss":0.5}'), LineageError),
    "a second candidate": (show_twice, ForkError),
    "a second candidate after a restart": (show_twice_over_a_restart, ForkError),
    "an attempt older than a ticket": (show_an_attempt_older_than_a_ticket, ForkError),
    "an attempt older than a candidate": (show_an_attempt_older_than_a_candidate, ForkError),
    "one identity less in the next attempt": (show_one_less_in_the_next_attempt, CohortError),
    "no data owner's broker": (show_to_the_model_owner, QuorumError),
    "a round that was committed": (show_an_old_round, RollbackError),
}


@pytest.mark.parametrize("sentence", CANDIDATES)
def test_a_countersignature_is_refused_for(world: World, sentence: str) -> None:
    ask, error = CANDIDATES[sentence]
    if sentence.startswith("its own base"):
        ask = show(digest=world.base(0))
    with pytest.raises(error):
        ask(world)
    for name, broker in world.brokers.items():
        verify_ledger(list(broker.records()), broker=world.public(name))


def test_the_same_candidate_gets_the_same_countersignature(world: World) -> None:
    closed = Closed.of(world)
    first = closed.show(closed.candidate())
    world.restart()
    assert closed.show(closed.candidate()) == first


def test_a_repeated_round_may_have_the_same_cohort(world: World) -> None:
    closed = Closed.of(world)
    closed.show(closed.candidate())
    again = Closed.of(world, attempt=1)
    again.show(again.candidate())


def test_puppets_do_not_count(make_world: Make) -> None:
    world = make_world(counted=lambda homes: tuple(homes[name].party.identity for name in ("north", "south")))
    closed = Closed.of(world)
    names = ("north", "west")
    with pytest.raises(CohortError):
        closed.show(closed.candidate(names), tickets=[closed.tickets[name] for name in names])
    closed.show(closed.candidate())


def _committed(world: World, **changes: Any) -> tuple[Closed, Candidate, list[Signed]]:
    closed = Closed.of(world)
    candidate = closed.candidate(**changes)
    return closed, candidate, [closed.show(candidate, by=name) for name in SITES]


def commit_with(change: Callable[[World, Candidate, list[Signed]], list[Signed]]) -> Ask:
    def ask(world: World) -> Any:
        closed, candidate, signatures = _committed(world)
        shown = change(world, candidate, signatures)
        return world.commit(closed.aggregator, candidate, list(closed.tickets.values()), shown)

    return ask


def commit_again(world: World) -> Any:
    closed, candidate, signatures = _committed(world)
    tickets = list(closed.tickets.values())
    world.commit(closed.aggregator, candidate, tickets, signatures)
    other = dataclasses.replace(candidate, digest="99" * 32)
    return world.commit(closed.aggregator, other, tickets, signatures)


def commit_something_else(world: World) -> Any:
    closed, candidate, signatures = _committed(world)
    other = dataclasses.replace(candidate, digest="99" * 32)
    return world.commit(closed.aggregator, other, list(closed.tickets.values()), signatures)


def commit_at_a_data_owner(world: World) -> Any:
    closed, candidate, signatures = _committed(world)
    signed = sign(candidate, closed.aggregator.signing)
    return world.brokers["north"].commit(signed, tickets=list(closed.tickets.values()), countersignatures=signatures)


def commit_by_a_second_aggregator(world: World) -> Any:
    """All sites credentialed it, but the model owner gave this attempt's keys to another."""
    closed, candidate, signatures = _committed(world)
    stranger = Enclave(world, Role.AGGREGATOR)
    other = dataclasses.replace(candidate, instance=stranger.instance)
    return world.commit(stranger, other, list(closed.tickets.values()), signatures)


def _forged(world: World, candidate: Candidate, signatures: list[Signed]) -> list[Signed]:
    own = unverified(signatures[0], Countersignature)
    return [
        *signatures[:1],
        sign(dataclasses.replace(own, identity=world.identity("west")), world.homes["north"].broker_key),
    ]


def _by_the_model_owner(world: World, candidate: Candidate, signatures: list[Signed]) -> list[Signed]:
    own = unverified(signatures[0], Countersignature)
    key = world.homes[MODEL_OWNER].broker_key
    return [*signatures[:1], sign(dataclasses.replace(own, broker=world.public(MODEL_OWNER)), key)]


COMMITS: dict[str, tuple[Ask, type[ConfedError]]] = {
    "no countersignature": (commit_with(lambda w, c, s: []), QuorumError),
    "half of the sites": (commit_with(lambda w, c, s: s[:1]), QuorumError),
    "one countersignature twice": (commit_with(lambda w, c, s: [s[0], s[0]]), QuorumError),
    "a countersignature in another's name": (commit_with(_forged), LineageError),
    "the model owner's own countersignature": (commit_with(_by_the_model_owner), LineageError),
    "a second candidate": (commit_again, ForkError),
    "another candidate than the countersigned": (commit_something_else, LineageError),
    "a data owner's broker": (commit_at_a_data_owner, QuorumError),
    "a second aggregator": (commit_by_a_second_aggregator, CredentialError),
}


@pytest.mark.parametrize("sentence", COMMITS)
def test_a_commit_is_refused_for(world: World, sentence: str) -> None:
    ask, error = COMMITS[sentence]
    with pytest.raises(error):
        ask(world)


def test_a_majority_is_enough_and_a_repeated_commit_is_the_same(world: World) -> None:
    closed, candidate, signatures = _committed(world)
    tickets = list(closed.tickets.values())
    first = world.commit(closed.aggregator, candidate, tickets, signatures[:2])
    world.restart()
    assert world.commit(closed.aggregator, candidate, tickets, signatures).commit == first.commit
    head = world.brokers[MODEL_OWNER].observe(world.manifest.run, nonce=b"")
    assert unverified(head, Head).version == 1


def test_an_evaluation_that_shows_one_less_is_refused(world: World) -> None:
    aggregator = world.run_round(1)
    tickets = world.tickets(aggregator, round_number=1, purpose=Purpose.EVALUATE)
    world.countersign(aggregator, world.candidate(aggregator, tickets), list(tickets.values()))
    again = world.tickets(aggregator, ("north", "south"), round_number=1, purpose=Purpose.EVALUATE, attempt=1)
    with pytest.raises(CohortError):
        world.countersign(aggregator, world.candidate(aggregator, again), list(again.values()))


def close_early(world: World) -> Any:
    world.run_round(1)
    return _close(world, MODEL_OWNER, 1)


def close_at_a_data_owner(world: World) -> Any:
    _all_rounds(world)
    return _close(world, "north", 3)


def close_otherwise(world: World) -> Any:
    _all_rounds(world)
    true = unverified(_close(world, MODEL_OWNER, 3), Closing)
    false = sign(dataclasses.replace(true, digest="99" * 32), world.homes[MODEL_OWNER].broker_key)
    return _close(world, "north", 3, closing=false)


def close_by_a_stranger(world: World) -> Any:
    _all_rounds(world)
    true = unverified(_close(world, MODEL_OWNER, 3), Closing)
    return _close(world, "north", 3, closing=sign(true, world.homes["south"].broker_key))


def close_without_the_last_record(world: World) -> Any:
    _all_rounds(world)
    closing = _close(world, MODEL_OWNER, 3)
    return world.brokers["north"].close(run="run-1", manifest=world.manifest.digest, final_record=b"", closing=closing)


def ask_after_the_end(world: World) -> Any:
    _all_rounds(world)
    _close(world, MODEL_OWNER, 3)
    return world.release(Enclave(world, Role.CLIENT), MODEL_OWNER, round_number=3, purpose=Purpose.EVALUATE)


def _all_rounds(world: World) -> None:
    for number in (1, 2, 3):
        world.run_round(number)


def _close(world: World, name: str, number: int, closing: Signed | None = None) -> Signed:
    terms = {"run": world.manifest.run, "manifest": world.manifest.digest, "final_record": world.records[number]}
    return world.brokers[name].close(**terms, closing=closing)


CLOSINGS: dict[str, tuple[Ask, type[ConfedError]]] = {
    "a run that is not over": (close_early, RoundError),
    "a data owner that closes": (close_at_a_data_owner, QuorumError),
    "another end than the head": (close_otherwise, LineageError),
    "somebody else's signature": (close_by_a_stranger, SignatureError),
    "a witness that lacks the last version": (close_without_the_last_record, RoundError),
    "a request after the end": (ask_after_the_end, RoundError),
}


@pytest.mark.parametrize("sentence", CLOSINGS)
def test_closing_refuses(world: World, sentence: str) -> None:
    ask, error = CLOSINGS[sentence]
    with pytest.raises(error):
        ask(world)


def test_a_store_put_back_does_not_reset_what_others_witnessed(world: World) -> None:
    """The model owner restores an old store and makes another first version: the sites' brokers refuse it."""
    backup = world.homes[MODEL_OWNER].path.with_name("backup")
    world.close()
    shutil.copytree(world.homes[MODEL_OWNER].path, backup)
    world.restart()
    world.run_round(1)
    world.close()
    shutil.rmtree(world.homes[MODEL_OWNER].path)
    backup.rename(world.homes[MODEL_OWNER].path)
    world.restart()
    aggregator = Enclave(world, Role.AGGREGATOR)
    world.release(aggregator, MODEL_OWNER, round_number=1, record=b"")
    for name in SITES:
        world.brokers[name].observe(world.manifest.run, nonce=b"", record=world.records[1])
        with pytest.raises((RollbackError, RoundError)):
            world.release(aggregator, name, round_number=1, record=b"")


def test_a_forked_version_is_refused_by_its_witness(world: World) -> None:
    """Even if every other owner colluded: two versions of one number do not both become the head."""
    world.run_round(1)
    honest = world.brokers["north"]
    honest.observe(world.manifest.run, nonce=b"", record=world.records[1])
    forked = _forge_record(world)
    with pytest.raises(ForkError):
        honest.observe(world.manifest.run, nonce=b"", record=forked.to_bytes())


def test_a_next_version_that_was_not_made_from_the_head_is_refused(world: World) -> None:
    world.run_round(1)
    world.run_round(2)
    witness = world.brokers["north"]
    witness.observe(world.manifest.run, nonce=b"", record=world.records[1])
    tickets = []
    for old, name in zip(CommitRecord.from_bytes(world.records[2]).tickets, SITES, strict=True):
        moved = dataclasses.replace(unverified(old, Ticket), base="99" * 32)
        tickets.append(sign(moved, world.homes[name].broker_key))
    forged = _forge_record(world, 2, tickets=tickets, base="99" * 32)
    with pytest.raises(LineageError):
        witness.observe(world.manifest.run, nonce=b"", record=forged.to_bytes())
    witness.observe(world.manifest.run, nonce=b"", record=world.records[2])


def _forge_record(world: World, version: int = 1, *, tickets: Sequence[Signed] = (), **changes: Any) -> CommitRecord:
    record = CommitRecord.from_bytes(world.records[version])
    shown = tuple(tickets) or record.tickets
    changes = {"digest": "98" * 32, "tickets": tuple(ticket.digest for ticket in shown), **changes}
    candidate = dataclasses.replace(unverified(record.candidate, Candidate), **changes)
    signed = sign(candidate, Enclave(world, Role.AGGREGATOR).signing)
    signatures = []
    for old, name in zip(record.countersignatures, SITES, strict=True):
        statement = unverified(old, Countersignature)
        fields = {"candidate": signed.digest, "digest": candidate.digest, "base": candidate.base}
        changed = dataclasses.replace(statement, **fields)
        signatures.append(sign(changed, world.homes[name].broker_key))
    commit = dataclasses.replace(
        unverified(record.commit, Commit),
        candidate=signed.digest,
        digest=candidate.digest,
        countersignatures=tuple(s.digest for s in signatures),
    )
    return CommitRecord(
        candidate=signed,
        tickets=shown,
        countersignatures=tuple(signatures),
        commit=sign(commit, world.homes[MODEL_OWNER].broker_key),
        metrics=record.metrics,
    )


def test_attempts_are_a_budget_for_tickets_too(make_world: Make) -> None:
    def once(manifest: Manifest) -> Manifest:
        return dataclasses.replace(manifest, max_attempts=1)

    world = make_world(change=once)
    aggregator = world.aggregator()
    with pytest.raises(BudgetError):
        world.ticket(Enclave(world, Role.CLIENT), "north", aggregator, attempt=1)
