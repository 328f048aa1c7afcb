"""Every owner's broker is a witness of what is spent: nothing resets a privacy budget, and nothing is above it."""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Callable
from typing import Any

import pytest
from broker_world import MODEL_OWNER, SITES, Enclave, World

from confed.errors import ConfedError, ForkError, LineageError, PrivacyBudgetError, RoundError
from confed.journey import Purpose, Role
from confed.keybroker import release
from confed.keybroker.ledger import verify_ledger
from confed.keybroker.statements import Candidate, Closing, CommitRecord
from confed.manifest import Manifest, MetricTerms
from confed.privacy.accounting import epsilon
from confed.privacy.terms import FixedClip, PrivacyState, PrivacyTerms, SamplingTerms
from confed.statement import Signed, sign, unverified, verify

TERMS = PrivacyTerms(
    mechanism="gaussian",
    adjacency="zero-out",
    clip=FixedClip(norm=1.0),
    noise_multiplier=2.0,
    weighting="uniform",
    denominator=3.0,
    sampling=SamplingTerms(by="manifest", rate=1.0),
    delta=1e-5,
    epsilon_budget=1.0,
)


def private(releases: float, **changes: Any) -> Callable[[Manifest], Manifest]:
    """A contract whose budget has room for so many releases."""
    budget = epsilon(TERMS, int(releases)) + 1e-3
    terms = dataclasses.replace(TERMS, epsilon_budget=budget, **changes)

    def change(manifest: Manifest) -> Manifest:
        return dataclasses.replace(manifest, privacy=terms, metrics=MetricTerms(clear=(), decimals=4))

    return change


@pytest.fixture
def spent(make_world: Callable[..., World]) -> World:
    """A run of three rounds after its second, with a budget for two."""
    world = make_world(change=private(2))
    for number in (1, 2):
        world.run_round(number)
    return world


def state_of(world: World, number: int) -> PrivacyState:
    found = unverified(CommitRecord.from_bytes(world.records[number]).candidate, Candidate).privacy
    assert found is not None
    return found


def test_what_is_spent_stands_in_every_commit_and_every_ledger(spent: World) -> None:
    assert [state_of(spent, number).releases for number in (1, 2)] == [1, 2]
    assert state_of(spent, 2).epsilon == epsilon(TERMS, 2)
    for name, event in ((MODEL_OWNER, "committed"), *((site, "countersigned") for site in SITES)):
        entries = verify_ledger(list(spent.brokers[name].records()), broker=spent.public(name))
        told = [entry.body["privacy"] for entry in entries if entry.event == event]
        assert [one["releases"] for one in told] == [1, 2]


def another_round(world: World) -> object:
    return world.aggregator(round_number=3)


def a_client_of_another_round(world: World) -> object:
    return world.release(Enclave(world, Role.CLIENT), SITES[0], round_number=3)


@pytest.mark.parametrize("act", [another_round, a_client_of_another_round])
@pytest.mark.parametrize("restarted", [False, True])
def test_no_broker_releases_a_key_for_a_round_above_the_budget(
    act: Callable[[World], object], restarted: bool, spent: World
) -> None:
    if restarted:
        spent.restart()
    with pytest.raises(PrivacyBudgetError):
        act(spent)


def test_no_ticket_is_issued_above_the_budget_either(spent: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release, "require_budget", lambda *_, **__: None)  # a broker whose releases look away
    aggregator = spent.aggregator(round_number=3)
    with pytest.raises(PrivacyBudgetError):
        spent.tickets(aggregator, round_number=3)


def test_the_run_may_be_closed_where_its_budget_ends_it(spent: World) -> None:
    def close(name: str, final: int, closing: Signed | None = None) -> Signed:
        return spent.brokers[name].close(
            run="run-1", manifest=spent.digest, final_record=spent.records[final], closing=closing, history=()
        )

    closing = close(MODEL_OWNER, 2)
    said = verify(closing, Closing, signer=spent.public(MODEL_OWNER))
    assert (said.ending.rule, said.ending.round, said.rounds) == ("privacy", 2, 2)
    assert said.ending.values["epsilon"] == pytest.approx(epsilon(TERMS, 2), abs=1e-6)
    for site in SITES:
        close(site, 2, closing)


def test_a_run_with_budget_left_is_not_closed(make_world: Callable[..., World]) -> None:
    world = make_world(change=private(3))
    world.run_round(1)
    with pytest.raises(RoundError):
        world.brokers[MODEL_OWNER].close(
            run="run-1", manifest=world.digest, final_record=world.records[1], closing=None, history=()
        )


def test_a_third_attempt_costs_three(make_world: Callable[..., World]) -> None:
    world = make_world(change=private(4))
    world.run_round(1, attempt=2)
    assert state_of(world, 1).releases == 3
    world.run_round(2)
    with pytest.raises(PrivacyBudgetError):
        world.aggregator(round_number=3)


def test_a_second_aggregator_s_attempt_is_refused_where_only_the_first_fits(make_world: Callable[..., World]) -> None:
    world = make_world(change=private(1))
    world.aggregator()
    with pytest.raises(PrivacyBudgetError):
        world.aggregator(attempt=1)


def test_an_evaluation_costs_nothing(spent: World) -> None:
    aggregator = Enclave(spent, Role.AGGREGATOR)
    for name in SITES:
        spent.release(aggregator, name, round_number=2, purpose=Purpose.EVALUATE)
    assert spent.tickets(aggregator, round_number=2, purpose=Purpose.EVALUATE)


TAMPERED: list[tuple[str, dict[str, Any] | None, type[ConfedError]]] = [
    ("nothing said", None, LineageError),
    ("less than one release", {"releases": 0, "epsilon": 0.0}, LineageError),
    ("the first round's again", {"releases": 1, "epsilon": epsilon(TERMS, 1)}, LineageError),
    ("a smaller epsilon", {"epsilon": epsilon(TERMS, 1)}, LineageError),
    ("an epsilon without end", {"epsilon": float("inf")}, ConfedError),
    ("more than the budget", {"releases": 5, "epsilon": epsilon(TERMS, 5)}, PrivacyBudgetError),
    ("another clip norm", {"clip": 2.0}, LineageError),
    ("another clip norm for the next round", {"next_clip": 2.0}, LineageError),
]


@pytest.mark.parametrize(("what", "changes", "error"), TAMPERED, ids=[what for what, _, _ in TAMPERED])
def test_no_broker_countersigns_a_tampered_account(
    what: str, changes: dict[str, Any] | None, error: type[ConfedError], make_world: Callable[..., World]
) -> None:
    world = make_world(change=private(4))
    world.run_round(1)
    aggregator = world.aggregator(round_number=2)
    tickets = world.tickets(aggregator, round_number=2)
    honest = world.candidate(aggregator, tickets)
    assert honest.privacy is not None
    said = None if changes is None else dataclasses.replace(honest.privacy, **changes)
    tampered = dataclasses.replace(honest, privacy=said)
    for name in SITES:
        with pytest.raises(error):
            world.countersign(aggregator, tampered, list(tickets.values()), by=[name])
    world.countersign(aggregator, honest, list(tickets.values()))


def test_the_model_owner_s_broker_commits_no_account_that_forgets(make_world: Callable[..., World]) -> None:
    world = make_world(change=private(4))
    world.run_round(1, attempt=1)
    aggregator = world.aggregator(round_number=2)
    tickets = world.tickets(aggregator, round_number=2)
    honest = world.candidate(aggregator, tickets)
    forgets = PrivacyState(releases=2, epsilon=epsilon(TERMS, 2), clip=1.0, next_clip=1.0)
    signed = sign(dataclasses.replace(honest, privacy=forgets), aggregator.signing)
    with pytest.raises(LineageError):
        world.brokers[MODEL_OWNER].commit(signed, tickets=list(tickets.values()), countersignatures=())


def test_a_run_without_privacy_has_no_account(trained: World) -> None:
    aggregator = trained.aggregator(round_number=2)
    tickets = trained.tickets(aggregator, round_number=2)
    state = PrivacyState(releases=2, epsilon=1.0, clip=1.0, next_clip=1.0)
    candidate = trained.candidate(aggregator, tickets, privacy=state)
    with pytest.raises(LineageError):
        trained.countersign(aggregator, candidate, list(tickets.values()))


def test_an_old_record_gives_nothing_back(spent: World) -> None:
    """An instance that shows only the first version's record gets no second round on it."""
    aggregator = Enclave(spent, Role.AGGREGATOR)
    for name in (MODEL_OWNER, *SITES):
        with pytest.raises(ConfedError) as refused:
            spent.release(aggregator, name, round_number=2, attempt=1, record=spent.records[1])
        assert not isinstance(refused.value, ForkError)


def test_the_store_of_an_earlier_release_of_confed_is_brought_up(trained: World) -> None:
    paths = [path for path in trained.home.rglob("*") if path.is_file() and path.read_bytes()[:6] == b"SQLite"]
    assert len(paths) == len(trained.homes)
    trained.close()
    for path in paths:
        connection = sqlite3.connect(path)
        later = "DROP TABLE checkpoints; DROP TABLE releases; DROP TABLE statistics;"
        connection.executescript(f"ALTER TABLE versions DROP COLUMN privacy; {later} PRAGMA user_version=2;")
        connection.close()
    trained._open()
    trained.run_round(2)
