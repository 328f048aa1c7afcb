"""The road as it should be: three rounds, evaluation, a closing, and ledgers that verify."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable

import pytest
from broker_world import MODEL_OWNER, SITES, Enclave, World

from confed.journey import Purpose, Role, Use
from confed.keybroker.ledger import verify_ledger
from confed.keybroker.lineage import verify_commit_record
from confed.keybroker.statements import (
    AggregatorCredential,
    ClientCredential,
    Closing,
    ClosingCountersignature,
    CommitRecord,
    Head,
)
from confed.manifest import Manifest
from confed.sealing.derivation import container_key, state_key, version_key
from confed.statement import verify


def evaluate_round(world: World, aggregator: Enclave, round_number: int) -> CommitRecord:
    tickets = world.tickets(aggregator, round_number=round_number, purpose=Purpose.EVALUATE)
    candidate = world.candidate(aggregator, tickets)
    signatures = world.countersign(aggregator, candidate, list(tickets.values()))
    return world.commit(aggregator, candidate, list(tickets.values()), signatures)


def test_a_run_goes_from_start_to_closing(world: World) -> None:
    for number in (1, 2, 3):
        aggregator = world.run_round(number)
        record = CommitRecord.from_bytes(world.records[number])
        found = verify_commit_record(record, manifest=world.manifest, round_number=number, base=world.base(number - 1))
        assert found.version == number
        looked = evaluate_round(world, aggregator, number)
        verify_commit_record(looked, manifest=world.manifest, round_number=number, purpose=Purpose.EVALUATE)
    terms = {"run": world.manifest.run, "manifest": world.manifest.digest, "final_record": world.records[3]}
    closing = world.brokers[MODEL_OWNER].close(**terms)
    assert verify(closing, Closing, signer=world.public(MODEL_OWNER)).digest == world.base(3)
    assert world.brokers[MODEL_OWNER].close(**terms) == closing
    for name in SITES:
        agreed = world.brokers[name].close(**terms, closing=closing)
        assert world.brokers[name].close(**terms, closing=closing) == agreed
        statement = verify(agreed, ClosingCountersignature, signer=world.public(name))
        entries = list(world.brokers[name].records())
        events = [e.event for e in verify_ledger(entries, broker=world.public(name), through=statement.head)]
        assert events[0] == "created"
        assert events[-1] == "closing-countersigned"
        assert events.count("ticketed") == 6
        assert events.count("countersigned") == 6
        assert "refused" not in events
    owner = verify_ledger(list(world.brokers[MODEL_OWNER].records()), broker=world.public(MODEL_OWNER))
    assert [entry.event for entry in owner].count("committed") == 6


def test_released_keys_are_the_derived_ones(world: World) -> None:
    client, run = Enclave(world, Role.CLIENT), world.manifest.run
    data = world.unwrap(client, "north", world.release(client, "north"))
    assert data == [container_key(world.keys["north"][1], container_id="container-north")]
    start = world.unwrap(client, MODEL_OWNER, world.release(client, MODEL_OWNER))
    model = world.keys[MODEL_OWNER][1]
    assert start == [container_key(model, container_id=f"container-{MODEL_OWNER}")]
    aggregator = Enclave(world, Role.AGGREGATOR)
    released = world.release(aggregator, MODEL_OWNER, attempt=1)
    keys = world.unwrap(aggregator, MODEL_OWNER, released)
    assert keys[1:] == [derive(model, run=run, version=1, attempt=1) for derive in (version_key, state_key)]
    assert model not in keys


def test_the_next_round_opens_the_base_with_the_attempt_that_was_committed(world: World) -> None:
    world.run_round(1, attempt=1)
    client = Enclave(world, Role.CLIENT)
    keys = world.unwrap(client, MODEL_OWNER, world.release(client, MODEL_OWNER, round_number=2))
    assert keys == [version_key(world.keys[MODEL_OWNER][1], run=world.manifest.run, version=1, attempt=1)]
    assert world.model_key(1).use is Use.VERSION


def test_credentials_say_for_whom_and_for_which_rounds(world: World) -> None:
    client, aggregator = Enclave(world, Role.CLIENT), Enclave(world, Role.AGGREGATOR)
    signed = world.release(client, "south").credential
    assert signed is not None
    own = verify(signed, ClientCredential, signer=world.public("south"))
    assert (own.identity, own.signing_public, own.round) == (world.identity("south"), client.signing_public, 1)
    signed = world.release(aggregator, "south").credential
    assert signed is not None
    other = verify(signed, AggregatorCredential, signer=world.public("south"))
    assert (other.hpke_public, other.first_round, other.last_round) == (aggregator.hpke.public, 1, 2)
    assert world.release(client, MODEL_OWNER).credential is None


def test_a_later_request_needs_a_nonce_but_no_evidence(world: World) -> None:
    client = Enclave(world, Role.CLIENT)
    world.release(client, "north")
    again = world.release(client, "north", evidence=False)
    assert len(world.unwrap(client, "north", again)) == 1
    assert again.credential == world.release(client, "north", evidence=False).credential


def test_a_data_owner_without_a_dataset_still_credentials(make_world: Callable[..., World]) -> None:
    def app_data(manifest: Manifest) -> Manifest:
        sites = tuple(dataclasses.replace(site, dataset=None) for site in manifest.sites)
        return dataclasses.replace(manifest, data_source="app", sites=sites)

    world = make_world(change=app_data)
    released = world.release(Enclave(world, Role.CLIENT), "north", keys=())
    assert released.credential is not None
    assert released.wrapped_keys == ()


def test_observe_answers_under_the_askers_nonce(world: World) -> None:
    world.run_round(1)
    nonce = os.urandom(32)
    for name in SITES:
        head = verify(
            world.brokers[name].observe(world.manifest.run, nonce=nonce, record=world.records[1]),
            Head,
            signer=world.public(name),
        )
        assert (head.version, head.digest, head.nonce) == (1, world.base(1), nonce)


def test_a_witness_may_have_missed_a_version(world: World) -> None:
    world.run_round(1)
    before = world.brokers.pop("west")
    aggregator = world.aggregator(round_number=2, sites=("north", "south"))
    tickets = world.tickets(aggregator, ("north", "south"), round_number=2)
    candidate = world.candidate(aggregator, tickets)
    listed = list(tickets.values())
    signatures = world.countersign(aggregator, candidate, listed, by=("north", "south"))
    record = world.commit(aggregator, candidate, listed, signatures)
    head = verify(before.observe(world.manifest.run, nonce=b"", record=record.to_bytes()), Head, signer=before.public)
    assert head.version == 2


@pytest.mark.parametrize("name", [MODEL_OWNER, *SITES])
def test_a_kill_between_two_steps_loses_nothing(world: World, name: str) -> None:
    world.run_round(1)
    before = list(world.brokers[name].records())
    world.restart()
    assert list(world.brokers[name].records()) == before
    world.run_round(2)
