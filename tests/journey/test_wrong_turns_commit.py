"""Wrong turns of a commit: guarantees 5 to 7. No one owner's ledger is the only witness, not the model owner's either."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from road import OTHER, OWNER, SITES, Aggregator, Road, Turns

from confed.errors import (
    BrokerError,
    ChallengeError,
    CohortError,
    ConfedError,
    CredentialError,
    ForkError,
    InstanceError,
    LineageError,
    ManifestMismatchError,
    QuorumError,
    RollbackError,
    RoundError,
    SignatureError,
    TicketError,
    UnreachableError,
)
from confed.governor.enclave_client import ClosedRound
from confed.journey import Purpose
from confed.keybroker.statements import Candidate, ClearMetrics, CommitRecord, Ticket, TicketRequest
from confed.manifest import UpdateTerms
from confed.sealing.container import Container
from confed.statement import Signed, sign, unverified

MakeRoad = Callable[..., Road]
FIVE = ("east", "middle", "north", "south", "west")
SITE = "north"


@dataclasses.dataclass
class Proposed:
    """A round whose tickets are sold: what an aggregator, honest or not, may show to the brokers."""

    road: Road
    aggregator: Aggregator
    tickets: dict[str, Signed]
    attempt: int

    @classmethod
    def of(cls, road: Road, aggregator: Aggregator, sites: Sequence[str] = SITES, *, attempt: int = 0) -> Proposed:
        aggregator.open(1, attempt=attempt)
        return cls(road, aggregator, {name: road.hold(name, attempt=attempt).grants.ticket for name in sites}, attempt)

    def candidate(self, sites: Sequence[str] | None = None, **changes: Any) -> Candidate:
        named = list(sites or self.tickets)
        values: dict[str, Any] = {
            "run": self.road.manifest.run,
            "manifest": self.road.manifest.digest,
            "round": 1,
            "attempt": self.attempt,
            "purpose": "train",
            "base": self.road.manifest.model.start.digest,
            "version": 1,
            "digest": "d1" * 32,
            "state": "",
            "instance": self.aggregator.instance,
            "cohort": tuple(self.road.homes[name].party.identity for name in named),
            "tickets": tuple(self.tickets[name].digest for name in named),
            "excluded": {},
            "metrics": ClearMetrics.none().digest,
            "privacy": None,
        }
        return Candidate(**{**values, **changes})

    def signed(self, candidate: Candidate, key: Ed25519PrivateKey | None = None) -> Signed:
        return sign(candidate, key or self.aggregator.enclave.signing_key)

    def countersign(
        self, signed: Signed, *, by: Sequence[str] = SITES, tickets: Sequence[Signed] | None = None
    ) -> list[Signed | ConfedError]:
        cohort = unverified(signed, Candidate).cohort
        identities = {self.road.homes[name].party.identity: ticket for name, ticket in self.tickets.items()}
        if tickets is None:
            tickets = [identities[identity] for identity in cohort if identity in identities]
        answers: list[Signed | ConfedError] = []
        for name in by:
            answers += self.road.client_of(name).countersign(
                [self.road.homes[name].party.broker], candidate=signed, tickets=tickets
            )
        return answers

    def commit(self, signed: Signed, countersignatures: Sequence[Signed], *, by: str = OWNER) -> Signed:
        return self.road.client_of(by).commit(
            self.road.homes[by].party.broker,
            candidate=signed,
            tickets=list(self.tickets.values()),
            countersignatures=countersignatures,
        )


def codes(answers: Sequence[Any]) -> set[str]:
    return {answer.code if isinstance(answer, ConfedError) else "signed" for answer in answers}


@pytest.fixture
def proposed(road: Road) -> Proposed:
    return Proposed.of(road, road.aggregator())


def test_the_honest_candidate_is_countersigned_and_committed(proposed: Proposed) -> None:
    signed = proposed.signed(proposed.candidate())
    answers = [answer for answer in proposed.countersign(signed) if isinstance(answer, Signed)]
    assert len(answers) == len(SITES)
    commit = proposed.commit(signed, answers)
    assert proposed.commit(signed, answers) == commit


# One candidate for each base and attempt.


def with_tickets(change: Callable[[Proposed, list[Signed]], list[Signed]]) -> Callable[[Proposed], Any]:
    """Name and show other tickets."""

    def show(proposed: Proposed) -> Any:
        tickets = change(proposed, list(proposed.tickets.values()))
        candidate = proposed.candidate(tickets=tuple(ticket.digest for ticket in tickets))
        return proposed.countersign(proposed.signed(candidate), tickets=tickets)

    return show


def with_(**changes: Any) -> Callable[[Proposed], Any]:
    return lambda proposed: proposed.countersign(proposed.signed(proposed.candidate(**changes)))


def reissued(proposed: Proposed, site: str, *, by: str | None = None, **changes: Any) -> Signed:
    ticket = dataclasses.replace(unverified(proposed.tickets[site], Ticket), **changes)
    return sign(ticket, proposed.road.homes[by or site].broker_key)


def one_short(proposed: Proposed) -> Any:
    return proposed.countersign(proposed.signed(proposed.candidate([SITE])))


def one_twice(proposed: Proposed) -> Any:
    candidate = proposed.candidate([SITE, SITE])
    return proposed.countersign(proposed.signed(candidate), tickets=[proposed.tickets[SITE]] * 2)


def with_a_stranger(proposed: Proposed) -> Any:
    true = proposed.candidate(["east", "north"])
    return proposed.countersign(
        proposed.signed(dataclasses.replace(true, cohort=(true.cohort[0], b"p" * 32))),
        tickets=[proposed.tickets["east"], proposed.tickets["north"]],
    )


def by_another_enclave(proposed: Proposed) -> Any:
    other = proposed.road.aggregator()
    return proposed.countersign(proposed.signed(proposed.candidate(instance=other.instance), other.enclave.signing_key))


def by_another_key(proposed: Proposed) -> Any:
    return proposed.countersign(proposed.signed(proposed.candidate(), Ed25519PrivateKey.generate()))


def swapped(_: Proposed, tickets: list[Signed]) -> list[Signed]:
    return [tickets[1], tickets[0], *tickets[2:]]


CANDIDATES: dict[str, tuple[Callable[[Proposed], Any], set[str]]] = {
    "of one identity too few": (one_short, {"cohort"}),
    "with an identity twice": (one_twice, {"cohort"}),
    "with an identity that the manifest does not list": (with_a_stranger, {"cohort"}),
    "out of identity order": (
        lambda p: p.countersign(p.signed(p.candidate(["west", "south", "north", "east"]))),
        {"cohort"},
    ),
    "without tickets": (lambda p: p.countersign(p.signed(p.candidate()), tickets=[]), {"ticket"}),
    "with swapped tickets": (with_tickets(swapped), {"ticket"}),
    "with one ticket twice": (with_tickets(lambda _, tickets: [tickets[0], *tickets[:3]]), {"ticket"}),
    "with a ticket that another broker signed": (
        with_tickets(lambda p, tickets: [reissued(p, "east", by="west"), *tickets[1:]]),
        {"ticket"},
    ),
    "with a ticket for another aggregator": (
        with_tickets(lambda p, tickets: [reissued(p, "east", aggregator=OTHER), *tickets[1:]]),
        {"ticket"},
    ),
    "with a ticket of another attempt": (
        with_tickets(lambda p, tickets: [reissued(p, "east", attempt=1), *tickets[1:]]),
        {"ticket"},
    ),
    "with a ticket on another base": (
        with_tickets(lambda p, tickets: [reissued(p, "east", base=OTHER), *tickets[1:]]),
        {"ticket"},
    ),
    "of another run": (with_(run="run-2"), {"lineage"}),
    "under another manifest": (with_(manifest=OTHER), {"not-approved"}),
    "of the next round": (with_(round=2, version=2), {"credential", "round", "lineage", "ticket"}),
    "of another version": (with_(version=2), {"lineage"}),
    "on another base": (with_(base=OTHER), {"lineage"}),
    "that is its own base": (
        lambda p: p.countersign(p.signed(p.candidate(digest=p.road.manifest.model.start.digest))),
        {"lineage"},
    ),
    "with a digest that is none": (with_(digest="../../x"), {"lineage"}),
    "with metrics in clear": (with_(metrics='{"loss":0.5}'), {"lineage"}),
    "of an enclave that attested to nobody": (by_another_enclave, {"credential"}),
    "signed by another key": (by_another_key, {"signature"}),
}


@pytest.fixture(scope="module")
def shared_proposal(shared: Road) -> Proposed:
    return Proposed.of(shared, shared.aggregators[0])


@pytest.mark.parametrize("sentence", CANDIDATES)
def test_no_broker_countersigns_a_candidate(shared_proposal: Proposed, sentence: str) -> None:
    show, expected = CANDIDATES[sentence]
    answers = show(shared_proposal)
    assert len(answers) == len(SITES)
    assert not [answer for answer in answers if isinstance(answer, Signed)]
    assert codes(answers) <= expected
    assert not any(shared_proposal.road.events(name, "countersigned") for name in SITES)


def test_after_all_that_the_honest_candidate_is_countersigned(shared: Road) -> None:
    proposed = Proposed.of(shared, shared.aggregators[0], attempt=2)
    for show, _ in list(CANDIDATES.values())[:4]:
        show(proposed)
    assert codes(proposed.countersign(proposed.signed(proposed.candidate()))) == {"signed"}


def test_of_two_candidates_for_one_attempt_each_broker_signs_one(proposed: Proposed) -> None:
    """An enclave gone mad forks: whatever order it asks in, no second one gets a majority."""
    first, second = (proposed.signed(proposed.candidate(digest=digit * 64)) for digit in "12")
    assert codes(proposed.countersign(first, by=["east", "north"])) == {"signed"}
    assert codes(proposed.countersign(second, by=["south", "west"])) == {"signed"}
    assert codes(proposed.countersign(first, by=["south", "west"])) == {"fork"}
    assert codes(proposed.countersign(second, by=["east", "north"])) == {"fork"}
    for candidate, by in ((first, ["east", "north"]), (second, ["south", "west"])):
        half = [answer for answer in proposed.countersign(candidate, by=by) if isinstance(answer, Signed)]
        assert len(half) == 2  # asked again, the same word again
        with pytest.raises(QuorumError):
            proposed.commit(candidate, half)
    assert not proposed.road.events(OWNER, "committed")


def test_one_commit_for_a_round(proposed: Proposed) -> None:
    first = proposed.signed(proposed.candidate())
    proposed.commit(first, [answer for answer in proposed.countersign(first) if isinstance(answer, Signed)])
    second = proposed.signed(proposed.candidate(digest="d2" * 32))
    with pytest.raises(ForkError):
        proposed.commit(second, [])
    later = Proposed(proposed.road, proposed.road.aggregator(), proposed.tickets, 1)
    with pytest.raises((RollbackError, RoundError)):
        later.aggregator.open(1, attempt=1)


COUNTERSIGNED: dict[str, tuple[Callable[[Proposed, Signed, list[Signed]], Any], type[ConfedError]]] = {
    "by the model owner alone": (lambda p, signed, _: p.commit(signed, []), QuorumError),
    "with half of the sites": (lambda p, signed, given: p.commit(signed, given[:2]), QuorumError),
    "with one site many times": (lambda p, signed, given: p.commit(signed, given[:1] * 4), QuorumError),
    "with countersignatures of another candidate": (
        lambda p, _, given: p.commit(p.signed(p.candidate(digest="d2" * 32)), given),
        LineageError,
    ),
    "with a forged countersignature": (
        lambda p, signed, given: p.commit(signed, [*given[:2], dataclasses.replace(given[2], signature=bytes(64))]),
        SignatureError,
    ),
    "with its own countersignatures": (
        lambda p, signed, given: p.commit(
            signed, [dataclasses.replace(entry, signer=p.road.homes[OWNER].party.broker) for entry in given]
        ),
        LineageError,
    ),
    "by a site": (lambda p, signed, given: p.commit(signed, given, by=SITE), QuorumError),
}


@pytest.mark.parametrize("sentence", COUNTERSIGNED)
def test_nothing_is_committed(proposed: Proposed, sentence: str) -> None:
    commit, error = COUNTERSIGNED[sentence]
    signed = proposed.signed(proposed.candidate())
    given = [answer for answer in proposed.countersign(signed) if isinstance(answer, Signed)]
    with pytest.raises(error):
        commit(proposed, signed, given)
    assert not proposed.road.events(OWNER, "committed")
    proposed.commit(signed, given)


# A second aggregator, and a crash that was none.


def test_a_second_aggregator_for_one_attempt_gets_nothing(road: Road) -> None:
    first, second = road.aggregator(), road.aggregator()
    first.open(1)
    with pytest.raises(InstanceError):
        second.open(1)
    assert not road.released_to(second.instance)
    road.send(first, SITES)
    assert first.close_round().cohort_size == 4


def test_a_second_aggregator_that_comes_between_ends_the_first(road: Road) -> None:
    """A crash that was feigned: the first one lives on, but its attempt is over, and there is one version 1."""
    first, second = road.aggregator(), road.aggregator()
    first.open(1)
    road.send(first, SITES)
    second.open(1, attempt=1)
    road.send(second, SITES, attempt=1)
    with pytest.raises(QuorumError):
        first.close_round()
    assert not road.published(1)
    second.close_round()
    assert road.candidate(1).attempt == 1
    with pytest.raises(QuorumError):
        first.close_round()
    assert len(road.published(1)) == 1


def test_a_second_aggregator_after_the_commit_gets_no_key(road: Road) -> None:
    road.round(1)
    second = road.aggregator()
    with pytest.raises(ConfedError) as refused:
        second.open(1, attempt=1)
    assert type(refused.value) in (RollbackError, RoundError)
    assert not road.released_to(second.instance)
    assert second.open(2).version == 1


@dataclasses.dataclass
class Cut:
    """Brokers whose commits (or other calls) get lost on the way: everything up to there has happened."""

    aggregator: Aggregator
    call: str = "commit"

    def __enter__(self) -> None:
        def lost(*_: Any, **__: Any) -> Any:
            raise UnreachableError("key broker", expected="an answer", got="none")

        for broker in self.aggregator.enclave._brokers.values():
            setattr(broker, self.call, lost)

    def __exit__(self, *_: object) -> None:
        for broker in self.aggregator.enclave._brokers.values():
            broker.__dict__.pop(self.call, None)


def crashed(road: Road, sites: Sequence[str]) -> Aggregator:
    """A round 1 with this cohort, countersigned by all, whose commit gets lost."""
    aggregator = road.aggregator()
    aggregator.open(1)
    road.send(aggregator, sites)
    with Cut(aggregator), pytest.raises(UnreachableError):
        aggregator.close_round()
    assert all(road.events(name, "countersigned") for name in road.land.sites)
    return aggregator


REPEATS: dict[str, tuple[Sequence[str], bool]] = {
    "the same cohort": (FIVE, True),
    "one fewer": (FIVE[:4], False),
    "another one fewer": (FIVE[1:], False),
    "two fewer": (FIVE[:3], True),
    "three fewer": (FIVE[3:], True),
}


@pytest.mark.parametrize("named", ["the new one", "nobody", OTHER])
def test_a_governor_that_names_an_aggregator_that_is_gone_is_refused_by_the_brokers(road: Road, named: str) -> None:
    gone = road.aggregator()
    gone.open(1)
    session, site = road.session_of("north"), road.manifest.site_named("north")
    step: dict[str, Any] = {"round_number": 1, "purpose": Purpose.TRAIN}
    assert session.step(site, attempt=0, **step)[1].aggregator.instance == gone.instance
    fresh = road.aggregator()
    fresh.open(1, attempt=1)
    with pytest.raises(InstanceError):
        session.step(site, attempt=1, aggregator=gone.instance, **step)
    fresh.open(1, attempt=2)
    told = {"the new one": fresh.instance, "nobody": ""}.get(named, named)
    assert session.step(site, attempt=2, aggregator=told, **step)[1].aggregator.instance == fresh.instance
    fresh.governor.submit(site="north", digest=road.seal(road.hold("north", attempt=2)))


@pytest.mark.parametrize("restarted", [False, True], ids=["by the same instance", "by a new instance"])
@pytest.mark.parametrize("sentence", REPEATS)
def test_after_a_countersigned_round_it_is_repeated_with(make_road: MakeRoad, sentence: str, restarted: bool) -> None:
    """Least cohort 2: the difference of two results must not be one site's update."""
    sites, allowed = REPEATS[sentence]
    road = make_road(sites=FIVE)
    aggregator = crashed(road, FIVE)
    if restarted:
        aggregator.stop()
        aggregator = road.aggregator()
    if allowed:
        assert road.round(1, attempt=1, sites=sites, aggregator=aggregator).cohort_size == len(sites)
    else:
        with pytest.raises(QuorumError) as refused:
            road.round(1, attempt=1, sites=sites, aggregator=aggregator)
        assert refused.value
        assert not road.published(1)
        assert {body["code"] for name in FIVE for body in road.events(name, "refused")[-1:]} == {"cohort"}
        # Another site in the place of the missing one is a difference of one again; the same cohort is none.
        assert road.round(1, attempt=2, sites=FIVE, aggregator=aggregator).cohort_size == len(FIVE)


def test_with_a_larger_least_cohort_a_difference_of_two_is_too_small(make_road: MakeRoad) -> None:
    road = make_road(sites=FIVE, least=3)
    aggregator = crashed(road, FIVE)
    with pytest.raises(QuorumError):
        road.round(1, attempt=1, sites=FIVE[:3], aggregator=aggregator)
    assert not road.published(1)


def test_a_swap_of_one_site_for_another_is_a_difference_of_two(make_road: MakeRoad) -> None:
    road = make_road(sites=FIVE, least=3)
    aggregator = crashed(road, FIVE[:4])
    with pytest.raises(QuorumError):
        road.round(1, attempt=1, sites=FIVE[1:], aggregator=aggregator)
    assert road.round(1, attempt=2, sites=FIVE[:4], aggregator=aggregator).cohort_size == 4


def test_an_evaluation_is_not_repeated_with_one_site_fewer(make_road: MakeRoad) -> None:
    road = make_road(sites=FIVE)
    road.round(1)
    aggregator = road.aggregators[0]
    for attempt, sites in enumerate((FIVE, FIVE[:4], FIVE[:3])):
        aggregator.open(1, purpose="evaluate", attempt=attempt)
        road.send(aggregator, sites, 1, purpose=Purpose.EVALUATE, attempt=attempt)
        if attempt == 0:
            with Cut(aggregator), pytest.raises(UnreachableError):
                aggregator.close_round()
        elif attempt == 1:
            with pytest.raises(QuorumError):
                aggregator.close_round()
        else:
            assert aggregator.close_round().cohort_size == 3


def test_a_commit_that_got_lost_is_made_by_asking_again(road: Road) -> None:
    aggregator = crashed(road, SITES)
    assert aggregator.close_round().cohort_size == 4
    assert len(road.published(1)) == 1


def test_an_older_attempt_after_a_newer_ticket_is_refused(road: Road) -> None:
    aggregator = road.aggregator()
    aggregator.open(1)
    road.send(aggregator, SITES)
    for name in ("east", SITE):
        road.hold(name, attempt=1)
    with pytest.raises(QuorumError):
        aggregator.close_round()
    assert not road.published(1)
    assert {body["code"] for name in ("east", SITE) for body in road.events(name, "refused")} == {"fork"}
    assert not any(road.events(name, "refused") for name in ("south", "west"))


def test_an_older_attempt_after_a_newer_ticket_gets_none_itself(road: Road) -> None:
    road.aggregator().open(1)
    road.hold(SITE, attempt=1)
    with pytest.raises(RoundError):
        road.hold(SITE, attempt=0)
    assert len(road.events(SITE, "ticketed")) == 1
    road.hold(SITE, attempt=2)


def test_fewer_than_a_majority_publish_nothing(make_road: MakeRoad) -> None:
    road = make_road(apart=True)
    aggregator = road.aggregator()
    aggregator.open(1)
    road.send(aggregator, SITES)
    for name in ("east", "west"):
        road.servers[name].stop()
    with pytest.raises(QuorumError):
        aggregator.close_round()
    assert not road.published(1)
    assert not road.events(OWNER, "committed")
    with pytest.raises(LineageError):
        road.hold(SITE, 2)


def test_a_majority_without_one_site_publishes(make_road: MakeRoad) -> None:
    road = make_road(apart=True)
    aggregator = road.aggregator()
    aggregator.open(1)
    road.send(aggregator, SITES)
    road.servers["east"].stop()
    closed: ClosedRound = aggregator.close_round()
    assert len(CommitRecord.from_bytes(closed.record).countersignatures) == 3


def test_without_the_model_owners_broker_nothing_is_published(make_road: MakeRoad) -> None:
    road = make_road(apart=True)
    aggregator = road.aggregator()
    aggregator.open(1)
    road.send(aggregator, SITES)
    road.servers[OWNER].stop()
    with pytest.raises(UnreachableError):
        aggregator.close_round()
    assert not road.published(1)


# Puppets that an owner's policy does not count (guarantee 5).


def counting(*names: str, least: int) -> Callable[[str, Any], dict[str, Any]]:
    """The floors of north's key: only these sites count, and so many of them must be in a result."""
    return lambda name, homes: (
        {"least_cohort": least, "counted_identities": tuple(homes[one].party.identity for one in names)}
        if name == SITE
        else {}
    )


def test_no_broker_signs_a_result_in_which_an_owners_data_meets_puppets_alone(make_road: MakeRoad) -> None:
    """East and south count for north; middle and west are somebody's puppets. North's ticket says so to everybody."""
    road = make_road(sites=FIVE, floors=counting("east", SITE, "south", least=2))
    aggregator = road.aggregator()
    aggregator.open(1)
    proposed = Proposed(road, aggregator, {name: road.hold(name).grants.ticket for name in ("middle", SITE, "west")}, 0)
    answers = proposed.countersign(proposed.signed(proposed.candidate()), by=FIVE)
    assert codes(answers) == {"cohort"}
    again = Proposed(
        road, aggregator, {name: road.hold(name, attempt=1).grants.ticket for name in ("east", SITE, "west")}, 1
    )
    assert codes(again.countersign(again.signed(again.candidate()), by=FIVE)) == {"signed"}


# Guarantee 7: what brokers remember.


def restarted(road: Road) -> None:
    for name in road.homes:
        road.restart_broker(name)


def test_brokers_remember_used_nonces(road: Road) -> None:
    turns = Turns()
    road.aggregator().open(1)
    road.hold(SITE, session=road.session(SITE, turns=turns))
    restarted(road)
    for request, envelope, record in turns.released:
        name = next(n for n, h in road.homes.items() if h.party.broker == _addressee(request))
        (again,) = road.client_of(name).release([(request, envelope, record)])
        assert not isinstance(again, ConfedError)  # the stored bytes, for the same enclave's key alone
        other = sign(dataclasses.replace(_asked(request), request_id=b"r" * 16), Ed25519PrivateKey.generate())
        (refused,) = road.client_of(name).release([(other, envelope, record)])
        assert isinstance(refused, ChallengeError)
    assert len(road.events(SITE, "credentialed-client")) == 1


def _asked(request: Signed) -> Any:
    from confed.keybroker.statements import ReleaseRequest  # noqa: PLC0415

    return unverified(request, ReleaseRequest)


def _addressee(request: Signed) -> bytes:
    return _asked(request).broker


def test_brokers_remember_tickets(road: Road) -> None:
    road.aggregator().open(1)
    held = road.hold(SITE)
    restarted(road)
    ticket = unverified(held.grants.ticket, Ticket)
    fields = {
        entry.name: getattr(ticket, entry.name)
        for entry in dataclasses.fields(TicketRequest)
        if entry.name != "request_id"
    }
    request = sign(TicketRequest(**fields, request_id=b"r" * 16), held.session._signing)
    (refused,) = road.client_of(SITE).ticket([request])
    assert isinstance(refused, TicketError)
    with pytest.raises(CredentialError):
        road.hold(SITE, session=road.session(SITE))


def test_brokers_remember_who_aggregates_and_what_they_countersigned(road: Road) -> None:
    proposed = Proposed.of(road, road.aggregator())
    proposed.countersign(proposed.signed(proposed.candidate()))
    restarted(road)
    assert codes(proposed.countersign(proposed.signed(proposed.candidate(digest="d2" * 32)))) == {"fork"}
    with pytest.raises(InstanceError):
        road.aggregator().open(1)


def test_brokers_remember_the_head(road: Road) -> None:
    road.round(1)
    restarted(road)
    with pytest.raises(RollbackError):
        road.hold("east", 1, attempt=1, session=road.session("east"))
    with pytest.raises(ConfedError):
        road.aggregator().open(1, attempt=1)
    assert road.round(2, aggregator=road.aggregators[0]).cohort_size == 4


def test_a_run_goes_on_to_its_end_over_restarts(road: Road) -> None:
    for number in (1, 2, 3):
        road.round(number)
        restarted(road)
    assert road.aggregators[0].governor.close_run()
    with pytest.raises(RoundError):
        road.hold(SITE, 3, attempt=1, session=road.session(SITE))


@pytest.mark.parametrize(
    "rolled_back", [(OWNER,), (OWNER, "east")], ids=["the model owner's", "the model owner's and east's"]
)
def test_a_store_that_was_put_back_meets_the_other_owners_brokers(road: Road, rolled_back: tuple[str, ...]) -> None:
    """Old state gives its owner's word on an old step; the word of the others it does not give."""
    copies = {name: road.copy_of_home(name) for name in rolled_back}
    road.round(1)
    for name in SITES:  # as they do in the next round, the sites see the commit
        road.client_of(name).observe([(road.homes[name].party.broker, "run-1", b"", road.record_body(1))])
    for name, copy in copies.items():
        road.restart_broker(name, store=copy)
    aggregator = road.aggregator()
    # The data owners' brokers refuse to credential an aggregator for round 1: their head is version 1.
    with pytest.raises(QuorumError):
        aggregator.open(1, attempt=1)
    assert road.released_to(aggregator.instance) == [name for name in road.homes if name in rolled_back]
    for name in ("north", "south", "west"):
        assert road.events(name, "refused")[-1]["code"] == "rollback"
        with pytest.raises(ConfedError):
            road.hold(name, 1, attempt=1, session=road.session(name))
    assert len(road.published(1)) == 1


def test_a_sites_store_that_was_put_back_sells_no_ticket_that_counts(road: Road) -> None:
    """North's broker forgets the round and would sell its ticket again; the model owner's gives the base no more."""
    copy = road.copy_of_home(SITE)
    road.round(1)
    road.restart_broker(SITE, store=copy)
    session = road.session(SITE)
    with pytest.raises(RollbackError):
        road.hold(SITE, 1, attempt=1, session=session)
    assert OWNER not in road.released_to(session.instance)
    # The next round's commit record shows it what it forgot; a client has to attest to it anew.
    road.sessions[SITE] = road.session(SITE)
    assert road.round(2, aggregator=road.aggregator()).cohort_size == 4
    assert [body["version"] for body in road.events(SITE, "witnessed")] == [1]


def test_tickets_and_candidates_put_back_still_meet_the_others(road: Road) -> None:
    """The stores of two of four forget a countersigned attempt; a second candidate has no majority with them."""
    proposed = Proposed.of(road, road.aggregator())
    copies = {name: road.copy_of_home(name) for name in ("east", "west")}
    proposed.countersign(proposed.signed(proposed.candidate()))
    for name, copy in copies.items():
        road.restart_broker(name, store=copy)
    second = proposed.signed(proposed.candidate(digest="d2" * 32))
    answers = proposed.countersign(second)
    assert [codes([answer]) for answer in answers] == [{"signed"}, {"fork"}, {"fork"}, {"signed"}]
    with pytest.raises(QuorumError):
        proposed.commit(second, [answer for answer in answers if isinstance(answer, Signed)])


def test_a_broker_that_is_not_a_party_is_none(make_road: MakeRoad) -> None:
    """A home of another land has no part in this run, whatever its broker would sign."""
    road, other = make_road(), make_road(sites=("stranger", *SITES))
    with pytest.raises(ManifestMismatchError):
        other.homes["stranger"].approve(road.manifest)
    proposed = Proposed.of(road, road.aggregator())
    (refused,) = other.client_of("stranger").countersign(
        [other.homes["stranger"].party.broker],
        candidate=proposed.signed(proposed.candidate()),
        tickets=list(proposed.tickets.values()),
    )
    assert isinstance(refused, BrokerError | CohortError)


def test_puppets_do_not_outvote_the_owner_whose_data_is_in_the_result(make_road: MakeRoad) -> None:
    """The same through the whole road: four brokers sign, north's does not, and north's update is in it."""
    road = make_road(sites=FIVE, floors=counting("east", SITE, "south", least=2))
    with pytest.raises((QuorumError, CohortError)):
        road.round(1, sites=["middle", SITE, "west"])
    assert not road.published(1)
    assert road.round(1, attempt=1, sites=["east", SITE, "west"]).cohort_size == 3


# Nothing leaves the enclave before it is countersigned: the model owner has the key of every version (guarantee 7).


def large_model() -> dict[str, np.ndarray]:
    return {"weight": np.zeros(1_200_000, dtype=np.float32)}


def readable(road: Road, keys: Sequence[bytes]) -> set[str]:
    """Return digests of what a model owner who works with governor and enclave's host can open with these keys."""
    found: set[str] = set()
    for path in road.folder.rglob("*"):
        if not path.is_file() or "home" in path.parts:
            continue
        for key in keys:
            try:
                container = Container.map(path)
                container.unlock(key).read_all()
            except ConfedError:
                continue
            found.add(container.file_digest())
    return found


@pytest.mark.parametrize("size", ["small", "large"])
def test_a_result_that_nobody_countersigned_is_open_to_nobody(make_road: MakeRoad, size: str) -> None:
    """A crash feigned before the countersignatures, so that no broker knows of the first result; and then the second.

    Otherwise the model owner has n and n-1 sites' means, and so one site's update.
    """
    terms: dict[str, Any] = {"model": large_model()} if size == "large" else {}
    wide = UpdateTerms(norm_bound=1e6, weight_cap=1e3, loss_cap=None)
    road = make_road(**terms, change=lambda m: dataclasses.replace(m, update=wide))
    keys = [road.version_key(1, attempt) for attempt in (0, 1)]
    aggregator = road.aggregator()
    aggregator.open(1)
    road.send(aggregator, SITES)
    with Cut(aggregator, "countersign"), pytest.raises(QuorumError):
        aggregator.close_round()
    assert readable(road, keys) == set()
    assert road.round(1, attempt=1, sites=SITES[:3], aggregator=aggregator).cohort_size == 3
    assert readable(road, keys) == {road.candidate(1).digest}
    # The next version is sealed over the file of the last one, which is published and has its front.
    aggregator.open(2)
    road.send(aggregator, SITES, round_number=2)
    with Cut(aggregator, "countersign"), pytest.raises(QuorumError):
        aggregator.close_round()
    assert readable(road, [road.version_key(2, 0)]) == set()
