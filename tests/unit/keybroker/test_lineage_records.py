"""A commit record is believed only whole: each wrong turn changes one part of a good one (guarantee 8)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from broker_world import MODEL_OWNER, SITES, World

from confed.errors import (
    CohortError,
    ConfedError,
    EncodingError,
    LineageError,
    ManifestMismatchError,
    QuorumError,
    SignatureError,
    TicketError,
)
from confed.journey import Purpose
from confed.keybroker.lineage import lineage_of, verify_commit_record
from confed.keybroker.statements import Candidate, ClearMetrics, Commit, CommitRecord, Countersignature, Ticket
from confed.statement import Signed, sign, unverified

Change = Callable[[World, CommitRecord], CommitRecord]


def rebuilt(
    world: World,
    record: CommitRecord,
    *,
    shown: tuple[Signed, ...] | None = None,
    metrics: ClearMetrics | None = None,
    **changes: Any,
) -> CommitRecord:
    """All owners collude: they sign a changed candidate. What is left are the rules that anybody can check."""
    if metrics is not None:
        changes["metrics"] = metrics.digest
    candidate = dataclasses.replace(unverified(record.candidate, Candidate), **changes)
    signed = sign(candidate, world.homes["north"].broker_key)
    fields = {name: getattr(candidate, name) for name in ("run", "round", "attempt", "purpose", "base", "digest")}
    signatures = tuple(
        sign(
            dataclasses.replace(unverified(old, Countersignature), candidate=signed.digest, **fields),
            world.homes[name].broker_key,
        )
        for old, name in zip(record.countersignatures, SITES, strict=True)
    )
    del fields["base"]
    commit = dataclasses.replace(
        unverified(record.commit, Commit),
        candidate=signed.digest,
        version=candidate.version,
        countersignatures=tuple(s.digest for s in signatures),
        **fields,
    )
    return CommitRecord(
        candidate=signed,
        tickets=record.tickets if shown is None else shown,
        countersignatures=signatures,
        commit=sign(commit, world.homes[MODEL_OWNER].broker_key),
        metrics=record.metrics if metrics is None else metrics,
    )


def changed(**changes: Any) -> Change:
    return lambda world, record: rebuilt(world, record, **changes)


def told(**values: float) -> Change:
    metrics = ClearMetrics(salt=bytes(32), values=values)
    return lambda world, record: rebuilt(world, record, metrics=metrics)


def with_commit(**changes: Any) -> Change:
    def change(world: World, record: CommitRecord) -> CommitRecord:
        commit = dataclasses.replace(unverified(record.commit, Commit), **changes)
        return dataclasses.replace(record, commit=sign(commit, world.homes[MODEL_OWNER].broker_key))

    return change


def flipped(part: str) -> Change:
    def change(world: World, record: CommitRecord) -> CommitRecord:
        del world
        found: Any = getattr(record, part)
        one = found[0] if isinstance(found, tuple) else found
        bad = dataclasses.replace(one, signature=bytes([one.signature[0] ^ 1]) + one.signature[1:])
        return dataclasses.replace(record, **{part: (bad, *found[1:]) if isinstance(found, tuple) else bad})

    return change


def other_ticket(**changes: Any) -> Change:
    def change(world: World, record: CommitRecord) -> CommitRecord:
        ticket = dataclasses.replace(unverified(record.tickets[0], Ticket), **changes)
        tickets = (sign(ticket, world.homes["north"].broker_key), *record.tickets[1:])
        return rebuilt(world, record, shown=tickets, tickets=tuple(ticket.digest for ticket in tickets))

    return change


def countersigned(**changes: Any) -> Change:
    """Every site countersigned something else, and the model owner committed it all the same."""

    def change(world: World, record: CommitRecord) -> CommitRecord:
        signatures = tuple(
            sign(dataclasses.replace(unverified(old, Countersignature), **changes), world.homes[name].broker_key)
            for old, name in zip(record.countersignatures, SITES, strict=True)
        )
        moved = dataclasses.replace(record, countersignatures=signatures)
        return with_commit(countersignatures=tuple(s.digest for s in signatures))(world, moved)

    return change


def signed_by_a_site(world: World, record: CommitRecord) -> CommitRecord:
    commit = unverified(record.commit, Commit)
    return dataclasses.replace(record, commit=sign(commit, world.homes["north"].broker_key))


def fewer(count: int) -> Change:
    def change(world: World, record: CommitRecord) -> CommitRecord:
        kept = record.countersignatures[:count]
        cut = dataclasses.replace(record, countersignatures=kept)
        return with_commit(countersignatures=tuple(s.digest for s in kept))(world, cut)

    return change


WRONG: dict[str, tuple[Change, type[ConfedError]]] = {
    "a flipped candidate signature": (flipped("candidate"), SignatureError),
    "a flipped ticket signature": (flipped("tickets"), SignatureError),
    "a flipped countersignature": (flipped("countersignatures"), SignatureError),
    "a flipped commit signature": (flipped("commit"), SignatureError),
    "a commit by somebody else": (signed_by_a_site, LineageError),
    "a commit of another version": (with_commit(version=2), LineageError),
    "a commit of another digest": (with_commit(digest="99" * 32), LineageError),
    "a commit of another candidate": (with_commit(candidate="99" * 32), LineageError),
    "a commit of other countersignatures": (with_commit(countersignatures=()), LineageError),
    "countersignatures of another candidate": (countersigned(candidate="99" * 32), LineageError),
    "countersignatures of another digest": (countersigned(digest="99" * 32), LineageError),
    "countersignatures of another base": (countersigned(base="99" * 32), LineageError),
    "countersignatures of another round": (countersigned(round=2), LineageError),
    "countersignatures of another attempt": (countersigned(attempt=1), LineageError),
    "countersignatures of another run": (countersigned(run="run-2"), LineageError),
    "countersignatures for another purpose": (countersigned(purpose=Purpose.EVALUATE), LineageError),
    "too few countersignatures": (fewer(1), QuorumError),
    "no countersignatures": (fewer(0), QuorumError),
    "another run": (changed(run="run-2"), LineageError),
    "another manifest": (changed(manifest="99" * 32), LineageError),
    "another round": (changed(round=2, version=2), LineageError),
    "another version number": (changed(version=2), LineageError),
    "another purpose": (changed(purpose=Purpose.EVALUATE), LineageError),
    "an attempt beyond the budget": (changed(attempt=7), LineageError),
    "a first version from another start": (changed(base="99" * 32), LineageError),
    "one identity": (lambda w, r: rebuilt(w, r, cohort=(w.identity("north"),)), CohortError),
    "a metric that the manifest keeps": (told(secret=1.0), ManifestMismatchError),
    "a metric of too many digits": (told(loss=0.123456), ManifestMismatchError),
    "metrics other than the candidate's": (
        lambda world, record: dataclasses.replace(record, metrics=ClearMetrics(salt=bytes(32), values={"loss": 0.25})),
        LineageError,
    ),
    "the same metrics under another salt": (
        lambda world, record: dataclasses.replace(record, metrics=dataclasses.replace(record.metrics, salt=bytes(32))),
        LineageError,
    ),
    "fewer tickets": (lambda w, r: rebuilt(w, r, shown=r.tickets[:2]), TicketError),
    "a ticket for another base": (other_ticket(base="99" * 32), TicketError),
    "a ticket for another attempt": (other_ticket(attempt=1), TicketError),
    "a ticket for another round": (other_ticket(round=2), TicketError),
    "a ticket for another purpose": (other_ticket(purpose=Purpose.EVALUATE), TicketError),
    "a ticket for another aggregator": (other_ticket(aggregator="99" * 32), TicketError),
    "a ticket of another run": (other_ticket(run="run-2"), TicketError),
    "a ticket of another identity": (lambda w, r: other_ticket(identity=w.identity("south"))(w, r), TicketError),
}


@pytest.mark.parametrize("sentence", WRONG)
def test_a_record_is_refused_with(trained: World, sentence: str) -> None:
    change, error = WRONG[sentence]
    good = CommitRecord.from_bytes(trained.records[1])
    verify_commit_record(good, manifest=trained.manifest, round_number=1)
    bad = change(trained, good)
    for _ in range(2):
        with pytest.raises(error):
            verify_commit_record(bad, manifest=trained.manifest, round_number=1)


def test_a_rebuilt_record_without_a_change_holds(trained: World) -> None:
    good = CommitRecord.from_bytes(trained.records[1])
    verify_commit_record(rebuilt(trained, good), manifest=trained.manifest, round_number=1)
    verify_commit_record(other_ticket()(trained, good), manifest=trained.manifest, round_number=1)


EXPECTATIONS: dict[str, dict[str, Any]] = {
    "another round": {"round_number": 2},
    "another attempt": {"attempt": 1},
    "another base": {"base": "99" * 32},
    "another purpose": {"purpose": Purpose.EVALUATE},
}


@pytest.mark.parametrize("sentence", EXPECTATIONS)
def test_a_good_record_is_refused_for(trained: World, sentence: str) -> None:
    record = CommitRecord.from_bytes(trained.records[1])
    arguments = {"round_number": 1, "attempt": 0, "base": trained.base(0), **EXPECTATIONS[sentence]}
    verify_commit_record(record, manifest=trained.manifest, round_number=1, attempt=0, base=trained.base(0))
    with pytest.raises(LineageError):
        verify_commit_record(record, manifest=trained.manifest, **arguments)


def test_what_is_remembered_belongs_to_one_manifest(trained: World) -> None:
    record = CommitRecord.from_bytes(trained.records[1])
    verify_commit_record(record, manifest=trained.manifest, round_number=1)
    other = dataclasses.replace(trained.manifest, seed=8)
    assert lineage_of(other) is not lineage_of(trained.manifest)
    with pytest.raises(LineageError):
        verify_commit_record(record, manifest=other, round_number=1)


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"candidate":1,"commit":1,"countersignatures":1,"tickets":1}'])
def test_bytes_that_are_no_record_are_refused(trained: World, data: bytes) -> None:
    with pytest.raises(EncodingError):
        CommitRecord.from_bytes(data)
    if data:
        with pytest.raises(EncodingError):
            trained.brokers["north"].observe(trained.manifest.run, nonce=b"", record=data)
