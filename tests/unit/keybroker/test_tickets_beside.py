"""Credential and ticket in one answer: the same rules, the same charge, one request."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from broker_world import MODEL_OWNER, Enclave, World

from confed.errors import (
    BrokerError,
    ConfedError,
    CredentialError,
    InstanceError,
    RoundError,
    SignatureError,
    TicketError,
)
from confed.journey import Role
from confed.keybroker.client import _read_release  # pyright: ignore[reportPrivateUsage]
from confed.keybroker.ledger import verify_ledger
from confed.keybroker.replies import Released
from confed.keybroker.statements import ClientCredential, ReleaseRequest, Ticket
from confed.statement import Signed, sign, unverified, verify

SITE = "north"


@dataclasses.dataclass
class Asking:
    """A client of north that attested in an earlier request, and an aggregator."""

    world: World
    client: Enclave
    aggregator: Enclave

    @classmethod
    def of(cls, world: World) -> Asking:
        return cls(world, Enclave(world, Role.CLIENT), world.aggregator())

    def ask(self, name: str = SITE, **changes: Any) -> Released:
        values = {"ticket_for": self.aggregator.instance, **changes}
        return self.world.release(values.pop("by", self.client), name, **values)

    def events(self, event: str) -> list[Any]:
        entries = verify_ledger(list(self.world.brokers[SITE].records()), broker=self.world.public(SITE))
        return [entry.body for entry in entries if entry.event == event]


def test_both_come_in_one_answer_and_are_what_two_requests_would_have_brought(world: World) -> None:
    asking = Asking.of(world)
    released = asking.ask()
    assert released.credential is not None
    assert released.ticket is not None
    ticket = verify(released.ticket, Ticket, signer=world.public(SITE))
    credential = verify(released.credential, ClientCredential, signer=world.public(SITE))
    assert (ticket.credential, ticket.aggregator) == (released.credential.digest, asking.aggregator.instance)
    assert (ticket.signing_public, ticket.expires_at) == (credential.signing_public, credential.expires_at)
    (noted,) = asking.events("ticketed")
    assert (noted["ticket"], noted["credential"]) == (released.ticket.digest, released.credential.digest)
    # A broker that is asked in two requests says the same but for time and the ticket's own number.
    other = unverified(world.ticket(Enclave(world, Role.CLIENT), "south", asking.aggregator), Ticket)
    own = {"ticket_id", "broker", "identity", "base", "credential", "signing_public", "issued_at", "expires_at"}
    for field in {entry.name for entry in dataclasses.fields(Ticket)} - own:
        assert getattr(ticket, field) == getattr(other, field), field


def test_a_candidate_with_such_tickets_is_countersigned_and_committed(world: World) -> None:
    asking = Asking.of(world)
    released = asking.ask()
    assert released.ticket is not None
    others = {name: world.ticket(Enclave(world, Role.CLIENT), name, asking.aggregator) for name in ("south", "west")}
    tickets = {SITE: released.ticket, **others}
    candidate = world.candidate(asking.aggregator, tickets)
    signatures = world.countersign(asking.aggregator, candidate, list(tickets.values()))
    assert world.commit(asking.aggregator, candidate, list(tickets.values()), signatures)


def test_the_same_request_gets_the_same_bytes_and_charges_once(world: World) -> None:
    asking = Asking.of(world)
    nonce = world.nonce(SITE)
    values = {"nonce": nonce, "ticket_for": asking.aggregator.instance}
    signed = sign(world.request(asking.client, SITE, **values), asking.client.signing)
    envelope = asking.client.attest(world.public(SITE), nonce)
    first = world.brokers[SITE].release(signed, envelope=envelope)
    assert world.brokers[SITE].release(signed, envelope=envelope) == first
    assert len(asking.events("ticketed")) == 1


def asks_twice(asking: Asking) -> Any:
    asking.ask()
    return asking.ask(evidence=False)


def asks_after_a_ticket_of_its_own(asking: Asking) -> Any:
    asking.world.ticket(asking.client, SITE, asking.aggregator)
    return asking.ask(evidence=False)


def asks_an_older_attempt(asking: Asking) -> Any:
    newer = asking.world.aggregator(attempt=1)
    asking.ask(attempt=1, ticket_for=newer.instance)
    return asking.ask(evidence=False)


WRONG_TURNS: dict[str, tuple[Callable[[Asking], Any], type[ConfedError]]] = {
    "an aggregator that never attested": (lambda asking: asking.ask(ticket_for="ab" * 32), CredentialError),
    "a ticket of the model owner's broker": (lambda asking: asking.ask(MODEL_OWNER), TicketError),
    "a ticket for an aggregator itself": (
        lambda asking: asking.ask(by=Enclave(asking.world, Role.AGGREGATOR)),
        InstanceError,
    ),
    "a second ticket": (asks_twice, TicketError),
    "a second ticket after one bought apart": (asks_after_a_ticket_of_its_own, TicketError),
    "an attempt older than a ticket": (asks_an_older_attempt, RoundError),
    "another site's identity": (
        lambda asking: asking.ask(identity=asking.world.identity("south"), keys=()),
        CredentialError,
    ),
}


@pytest.mark.parametrize("sentence", WRONG_TURNS)
def test_there_is_none_for(world: World, sentence: str) -> None:
    turn, error = WRONG_TURNS[sentence]
    asking = Asking.of(world)
    with pytest.raises(error):
        turn(asking)
    assert asking.events("refused") or sentence == "a ticket of the model owner's broker"


def test_a_refused_ticket_leaves_no_credential_behind(world: World) -> None:
    asking = Asking.of(world)
    with pytest.raises(CredentialError):
        asking.ask(ticket_for="ab" * 32)
    assert not asking.events("credentialed-client")
    assert not asking.events("ticketed")


@dataclasses.dataclass
class Answered:
    """A request and its answer, as a client reads it."""

    world: World
    client: Enclave
    request: Signed
    released: Released

    @classmethod
    def of(cls, world: World) -> Answered:
        asking = Asking.of(world)
        nonce = world.nonce(SITE)
        asked = world.request(asking.client, SITE, nonce=nonce, ticket_for=asking.aggregator.instance)
        request = sign(asked, asking.client.signing)
        envelope = asking.client.attest(world.public(SITE), nonce)
        return cls(world, asking.client, request, world.brokers[SITE].release(request, envelope=envelope))

    def reissued(self, **changes: Any) -> Signed:
        assert self.released.ticket is not None
        said = dataclasses.replace(unverified(self.released.ticket, Ticket), **changes)
        return sign(said, self.world.homes[SITE].broker_key)

    def read(self, **changes: Any) -> Any:
        return _read_release(self.request, dataclasses.replace(self.released, **changes).to_wire())


def test_a_client_takes_the_ticket_that_it_asked_for(world: World) -> None:
    answered = Answered.of(world)
    assert answered.read().ticket == answered.released.ticket


@pytest.mark.parametrize(
    "changes",
    [
        {"aggregator": "ab" * 32},
        {"credential": "ab" * 32},
        {"signing_public": b"k" * 32},
        {"identity": b"i" * 32},
        {"round": 2},
        {"attempt": 1},
        {"base": "ab" * 32},
        {"manifest": "ab" * 32},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_client_takes_no_ticket_for_another(world: World, changes: dict[str, Any]) -> None:
    answered = Answered.of(world)
    with pytest.raises(BrokerError):
        answered.read(ticket=answered.reissued(**changes))


def test_a_client_takes_no_ticket_that_its_broker_did_not_sign(world: World) -> None:
    answered = Answered.of(world)
    assert answered.released.ticket is not None
    forged = sign(unverified(answered.released.ticket, Ticket), answered.world.homes["south"].broker_key)
    with pytest.raises(SignatureError):
        answered.read(ticket=forged)


def test_a_client_takes_no_answer_without_the_ticket_or_with_one_it_did_not_ask_for(world: World) -> None:
    answered = Answered.of(world)
    with pytest.raises(BrokerError):
        answered.read(ticket=None)
    asked = dataclasses.replace(unverified(answered.request, ReleaseRequest), ticket_for="")
    answered.request = sign(asked, answered.client.signing)
    with pytest.raises(BrokerError):
        answered.read()
