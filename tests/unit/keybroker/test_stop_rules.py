"""Brokers at the end of a run that a stop rule ends: each sees the reason in the commit records itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from broker_world import MODEL_OWNER, SITES, World

from confed.errors import ConfedError, ForkError, LineageError, QuorumError, RoundError, SignatureError
from confed.keybroker.ledger import verify_ledger
from confed.keybroker.lineage import lineage_of
from confed.keybroker.statements import Candidate, ClearMetrics, Closing, Commit, CommitRecord
from confed.manifest import Manifest
from confed.record import to_json
from confed.statement import Signed, sign, unverified
from confed.stopping import Ending, PatienceTerms, StopTerms, TargetTerms

# Every honest cohort of this world measures a loss of 0.5: patience of one round runs out in the second.
PATIENCE = PatienceTerms(metric="loss", purpose="train", mode="min", rounds=1, min_delta=0.0)


def patient(manifest: Manifest) -> Manifest:
    return dataclasses.replace(manifest, stop=StopTerms(target=None, patience=PATIENCE, budget=None))


@pytest.fixture
def ended(make_world: Callable[..., World]) -> World:
    world = make_world(change=patient)
    for number in (1, 2):
        world.run_round(number)
    return world


def close(
    world: World, name: str, *, final: int = 2, history: Sequence[int] = (1, 2), closing: Signed | None = None
) -> Signed:
    return world.brokers[name].close(
        run=world.manifest.run,
        manifest=world.manifest.digest,
        final_record=world.records[final],
        closing=closing,
        history=[CommitRecord.from_bytes(world.records[number]).abridged().to_bytes() for number in history],
    )


def test_brokers_agree_on_the_reason_and_write_it_down(ended: World) -> None:
    closing = close(ended, MODEL_OWNER)
    said = unverified(closing, Closing)
    assert (said.rounds, said.version, said.ending.rule, said.ending.round) == (2, 2, "patience", 2)
    for name in SITES:
        agreed = close(ended, name, closing=closing)
        assert close(ended, name, closing=closing) == agreed
    for name in (MODEL_OWNER, *SITES):
        last = verify_ledger(list(ended.brokers[name].records()), broker=ended.public(name))[-1]
        assert last.event.startswith("closing")
        assert last.body["ending"] == to_json(said.ending)


def too_early(world: World) -> Signed:
    return close(world, MODEL_OWNER, final=1, history=(1,))


def without_records(world: World) -> Signed:
    return close(world, MODEL_OWNER, history=())


def without_the_first(world: World) -> Signed:
    return close(world, MODEL_OWNER, history=(2,))


def without_the_last(world: World) -> Signed:
    return close(world, MODEL_OWNER, history=(1,))


def one_twice(world: World) -> Signed:
    return close(world, MODEL_OWNER, history=(1, 1))


def other_metrics(world: World) -> Signed:
    record = CommitRecord.from_bytes(world.records[1])
    better = dataclasses.replace(record, metrics=dataclasses.replace(record.metrics, values={"loss": 0.1}))
    world.records[1] = better.to_bytes()
    return close(world, MODEL_OWNER)


def another_signature(world: World) -> Signed:
    record = CommitRecord.from_bytes(world.records[1])
    commit = dataclasses.replace(record.commit, signature=bytes(64))
    world.records[1] = dataclasses.replace(record, commit=commit).to_bytes()
    return close(world, MODEL_OWNER)


def a_plot_of_the_model_owner(world: World) -> Signed:
    """Its broker commits, and shows, another candidate of its own making in place of the one that was countersigned."""
    closing, key = close(world, MODEL_OWNER), world.homes[MODEL_OWNER].broker_key
    metrics = ClearMetrics(salt=bytes(32), values={"loss": 0.4})
    record = CommitRecord.from_bytes(world.records[1])
    true = unverified(record.candidate, Candidate)
    candidate = sign(dataclasses.replace(true, metrics=metrics.digest), key)
    commit = sign(dataclasses.replace(unverified(record.commit, Commit), candidate=candidate.digest), key)
    forged = dataclasses.replace(record, candidate=candidate, commit=commit, metrics=metrics)
    lineage_of(world.manifest).verify_abridged(forged.abridged(), base=true.base)  # by itself it would do
    world.records[1] = forged.to_bytes()
    return close(world, "north", closing=closing)


def a_commit_by_another(world: World) -> Signed:
    record = CommitRecord.from_bytes(world.records[1])
    commit = sign(unverified(record.commit, Commit), world.homes["south"].broker_key)
    world.records[1] = dataclasses.replace(record, commit=commit).to_bytes()
    return close(world, MODEL_OWNER)


def too_few_named(world: World) -> Signed:
    record = CommitRecord.from_bytes(world.records[1])
    said = unverified(record.commit, Commit)
    once = dataclasses.replace(said, countersignatures=said.countersignatures[:1] * 3)
    commit = sign(once, world.homes[MODEL_OWNER].broker_key)
    world.records[1] = dataclasses.replace(record, commit=commit).to_bytes()
    return close(world, MODEL_OWNER)


def another_reason(world: World) -> Signed:
    return _countersign(world, ending=Ending(rule="rounds", round=2))


def another_value(world: World) -> Signed:
    said = unverified(close(world, MODEL_OWNER), Closing).ending
    return _countersign(world, ending=dataclasses.replace(said, values={**said.values, "value": 0.7}))


def gone_on(world: World) -> Signed:
    world.run_round(3)  # as a dishonest enclave could: brokers do not see metrics before the end
    return close(world, MODEL_OWNER, final=3, history=(1, 2, 3))


def _countersign(world: World, **changes: Any) -> Signed:
    said = unverified(close(world, MODEL_OWNER), Closing)
    return close(
        world, "north", closing=sign(dataclasses.replace(said, **changes), world.homes[MODEL_OWNER].broker_key)
    )


REFUSED: dict[str, tuple[Callable[[World], Signed], type[ConfedError]]] = {
    "a history without records": (without_records, LineageError),
    "a history that begins later": (without_the_first, LineageError),
    "a history that ends before": (without_the_last, LineageError),
    "a round twice": (one_twice, LineageError),
    "metrics that were not committed": (other_metrics, LineageError),
    "a record that does not hold": (another_signature, SignatureError),
    "a candidate that this broker did not countersign": (a_plot_of_the_model_owner, ForkError),
    "a commit by another broker": (a_commit_by_another, LineageError),
    "a commit that names one countersignature thrice": (too_few_named, QuorumError),
    "another reason than the records show": (another_reason, LineageError),
    "another value than the records show": (another_value, LineageError),
    "a run that went on after its rule fired": (gone_on, LineageError),
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_a_closing_is_refused_for(ended: World, sentence: str) -> None:
    ask, error = REFUSED[sentence]
    with pytest.raises(error):
        ask(ended)


def test_no_broker_closes_before_a_rule_fired(make_world: Callable[..., World]) -> None:
    world = make_world(change=patient)
    world.run_round(1)
    with pytest.raises(RoundError):
        too_early(world)


def test_a_run_has_one_end(ended: World) -> None:
    closing = close(ended, MODEL_OWNER)
    close(ended, "north", closing=closing)
    said = unverified(closing, Closing)
    second = sign(dataclasses.replace(said, time=said.time + 1), ended.homes[MODEL_OWNER].broker_key)
    with pytest.raises(ForkError):
        close(ended, "north", closing=second)


def test_a_rule_that_reads_evaluations_needs_them(make_world: Callable[..., World]) -> None:
    target = TargetTerms(metric="loss", purpose="evaluate", mode="min", value=0.9)
    stop = StopTerms(target=target, patience=None, budget=None)
    world = make_world(change=lambda manifest: dataclasses.replace(manifest, stop=stop))
    world.run_round(1)
    with pytest.raises(RoundError):
        too_early(world)
