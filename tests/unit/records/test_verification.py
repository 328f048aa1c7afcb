"""A complete run verifies; change one thing anywhere and the first broken link is named."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from records_world import OWNER, SITES, START_MS, Enclave, RecordedRun, edit, leave_out, repeat

from confed import canonical
from confed.attestation.appraisal import claims_digest
from confed.attestation.evidence import Binding, Envelope
from confed.attestation.tee.simulated import SimulatedAttester, SimulatedPlatform
from confed.attestation.verifier import ExpectedBinding, default_registry
from confed.errors import (
    AttestationError,
    BindingMismatchError,
    BudgetError,
    ChallengeError,
    CohortError,
    ConfedError,
    ContainerFormatError,
    CredentialError,
    EncodingError,
    ForkError,
    InstanceError,
    LedgerError,
    LineageError,
    ManifestMismatchError,
    MeasurementError,
    MissingFileError,
    NotApprovedError,
    PurposeError,
    QuorumError,
    RefusedError,
    SignatureError,
    StaleEvidenceError,
    TicketError,
    TrustAnchorError,
)
from confed.journey import Kind, Purpose, Role
from confed.keybroker.statements import (
    Approval,
    Candidate,
    Closing,
    ClosingCountersignature,
    Commit,
    CommitRecord,
    Countersignature,
    LedgerEntry,
)
from confed.records.run_directory import ClosingRecord, RunDirectory
from confed.records.trust import Trust
from confed.records.verification import verify_run
from confed.sealing.container import Draft, seal_to_bytes
from confed.statement import Signed, sign, unverified

Change = Callable[[RunDirectory, RecordedRun], None]


def test_a_complete_run_verifies_and_says_what_was_counted(directory: RunDirectory, run: RecordedRun) -> None:
    verified = verify_run(directory.path, trust=run.trust)
    assert not verified.self_consistent_only
    counts = (verified.versions, verified.rounds, verified.evaluations, verified.tickets, verified.countersignatures)
    assert counts == (3, 2, 2, 14, 12)
    assert verified.evidence == len(run.evidence)
    assert verified.ledger_entries == sum(len(ledger) for ledger in run.ledgers.values())
    assert [step.step for step in verified.steps] == [
        "manifest", "trust", "approvals", "versions", "evaluations", "ledgers", "evidence", "links", "closing", "tables",
    ]  # fmt: skip


def test_without_trust_it_is_self_consistent_only(directory: RunDirectory) -> None:
    assert verify_run(directory.path, trust=None).self_consistent_only


def test_verifying_changes_nothing_in_the_run_directory(directory: RunDirectory, run: RecordedRun) -> None:
    before = {path: path.read_bytes() for path in directory.path.rglob("*") if path.is_file()}
    verify_run(directory.path, trust=run.trust)
    assert {path: path.read_bytes() for path in directory.path.rglob("*") if path.is_file()} == before


def test_a_directory_without_a_run_is_a_users_mistake(tmp_path: Path, run: RecordedRun) -> None:
    with pytest.raises(MissingFileError):
        verify_run(tmp_path, trust=run.trust)


# Changes of the files, by somebody without any key.


def _commit(purpose: Purpose, number: int, change: Callable[[CommitRecord], CommitRecord]) -> Change:
    def apply(directory: RunDirectory, run: RecordedRun) -> None:
        directory.write_commit(purpose, number, change(run.records[purpose, number]).to_bytes())

    return apply


def _remove(name: str) -> Change:
    return lambda directory, run: (directory.path / name).unlink()


def _swap(first: str, second: str) -> Change:
    def apply(directory: RunDirectory, run: RecordedRun) -> None:
        one, other = directory.path / first, directory.path / second
        a, b = one.read_bytes(), other.read_bytes()
        one.write_bytes(b)
        other.write_bytes(a)

    return apply


def _cut_ledger(name: str, lines: slice) -> Change:
    def apply(directory: RunDirectory, run: RecordedRun) -> None:
        path = directory.ledger_file(name)
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[lines]))

    return apply


def _drop_ledger_line(name: str, number: int) -> Change:
    def apply(directory: RunDirectory, run: RecordedRun) -> None:
        path = directory.ledger_file(name)
        lines = path.read_bytes().splitlines(keepends=True)
        del lines[number]
        path.write_bytes(b"".join(lines))

    return apply


def _closing(change: Callable[[ClosingRecord, RecordedRun], ClosingRecord]) -> Change:
    return lambda directory, run: directory.write_closing(change(run.closing, run))


def _manifest_edited(directory: RunDirectory, run: RecordedRun) -> None:
    directory.write_manifest(dataclasses.replace(run.manifest, seed=8))


def _manifest_respelled(directory: RunDirectory, run: RecordedRun) -> None:
    directory.manifest_file.write_text(json.dumps(json.loads(run.manifest.encoded), indent=1))


def _manifest_with_a_stranger_key(directory: RunDirectory, run: RecordedRun) -> None:
    directory.manifest_file.write_bytes(canonical.encode({**json.loads(run.manifest.encoded), "extra": 1}))


def _approval_missing(directory: RunDirectory, run: RecordedRun) -> None:
    directory.write_approvals(run.approvals[:-1])


def _approval_forged(directory: RunDirectory, run: RecordedRun) -> None:
    last = run.approvals[-1]
    directory.write_approvals([*run.approvals[:-1], dataclasses.replace(last, signature=bytes(64))])


def _last_round_left_out(directory: RunDirectory, run: RecordedRun) -> None:
    for path in (
        directory.version_file(2),
        directory.commit_file(Purpose.TRAIN, 2),
        directory.commit_file(Purpose.EVALUATE, 2),
    ):
        path.unlink()


def _other_evidence(directory: RunDirectory, run: RecordedRun) -> None:
    first, second = (directory.evidence_file(canonical.digest(item)) for item in run.evidence[:2])
    first.write_bytes(second.read_bytes())


def _metrics_edited(directory: RunDirectory, run: RecordedRun) -> None:
    lines = list(directory.metrics())
    lines[1]["evaluate"]["accuracy"] = 0.99
    directory.write_metrics(lines)


def _summary_edited(directory: RunDirectory, run: RecordedRun) -> None:
    directory.write_summary({**directory.summary(), "accuracy": 0.99})


def _stranger_ledger(directory: RunDirectory, run: RecordedRun) -> None:
    shutil.copy(directory.ledger_file("west"), directory.ledger_file("east"))


FILES: list[tuple[str, Change, type[ConfedError], str]] = [
    ("the manifest has another value", _manifest_edited, NotApprovedError, "approval of owner"),
    ("the manifest is spelled differently", _manifest_respelled, EncodingError, "manifest.json"),
    ("the manifest has a key that is unknown", _manifest_with_a_stranger_key, EncodingError, "manifest.json"),
    ("an approval is missing", _approval_missing, NotApprovedError, "approval of west"),
    ("an approval is not signed by its owner", _approval_forged, SignatureError, "approval of west"),
    ("all approvals are missing", _remove("approvals.json"), NotApprovedError, "approvals"),
    ("the start is missing", _remove("versions/0000.sealed"), LineageError, "version 0"),
    ("a version's file is missing", _remove("versions/0001.sealed"), LineageError, "version 1"),
    ("two versions are swapped", _swap("versions/0001.sealed", "versions/0002.sealed"), LineageError, "version 1"),
    ("a version has no commit record", _remove("commits/train-0002.json"), LineageError, "version 2"),
    ("the last round is left out", _last_round_left_out, LineageError, "ledger of "),
    ("an evaluation's record is missing", _remove("commits/evaluate-0001.json"), LineageError, "ledger of owner"),
    (
        "two evaluations are swapped",
        _swap("commits/evaluate-0001.json", "commits/evaluate-0002.json"),
        LineageError,
        "evaluation 1",
    ),
    (
        "a commit has too few countersignatures",
        _commit(Purpose.TRAIN, 2, lambda r: dataclasses.replace(r, countersignatures=r.countersignatures[:1])),
        QuorumError,
        "version 2: countersignatures",
    ),
    (
        "a commit has one countersignature three times",
        _commit(Purpose.TRAIN, 1, lambda r: dataclasses.replace(r, countersignatures=r.countersignatures[:1] * 3)),
        QuorumError,
        "version 1: countersignatures",
    ),
    (
        "a commit has a countersignature less than it says",
        _commit(Purpose.TRAIN, 1, lambda r: dataclasses.replace(r, countersignatures=r.countersignatures[:2])),
        LineageError,
        "version 1: commit countersignatures",
    ),
    (
        "a commit has one ticket twice",
        _commit(Purpose.TRAIN, 1, lambda r: dataclasses.replace(r, tickets=(r.tickets[0], *r.tickets[:2]))),
        TicketError,
        "version 1: tickets",
    ),
    (
        "a commit's ticket is another round's",
        lambda d, run: d.write_commit(
            Purpose.TRAIN,
            2,
            dataclasses.replace(
                run.records[Purpose.TRAIN, 2], tickets=run.records[Purpose.TRAIN, 1].tickets[:2]
            ).to_bytes(),
        ),
        TicketError,
        "version 2: tickets",
    ),
    (
        "a commit is signed by nobody",
        _commit(
            Purpose.TRAIN,
            1,
            lambda r: dataclasses.replace(r, commit=dataclasses.replace(r.commit, signature=bytes(64))),
        ),
        SignatureError,
        "version 1",
    ),
    (
        "evidence is missing",
        lambda d, run: d.evidence_file(canonical.digest(run.evidence[0])).unlink(),
        LedgerError,
        "entry",
    ),
    ("evidence has another's bytes", _other_evidence, EncodingError, "evidence"),
    ("a ledger is missing", _remove("ledger/south.jsonl"), LedgerError, "ledger of south"),
    ("there is a stranger's ledger", _stranger_ledger, LedgerError, "east"),
    ("two ledgers are swapped", _swap("ledger/north.jsonl", "ledger/south.jsonl"), LedgerError, "ledger of north"),
    (
        "a ledger's first two lines, the approval with them, are missing",
        _cut_ledger("north", slice(2, None)),
        LedgerError,
        "entry 2",
    ),
    ("a ledger's middle line is missing", _drop_ledger_line("north", 9), LedgerError, "entry 9"),
    ("a site's ledger lost its last line", _cut_ledger("west", slice(0, -1)), LedgerError, "ledger of west"),
    ("a site's ledger lost its last two lines", _cut_ledger("west", slice(0, -2)), LedgerError, "ledger of west"),
    ("the model owner's ledger lost its last line", _cut_ledger(OWNER, slice(0, -1)), LedgerError, "ledger of owner"),
    ("a ledger is empty", _cut_ledger("west", slice(0, 0)), LedgerError, "ledger of west"),
    ("the closing is missing", _remove("closing.json"), LedgerError, "closing"),
    (
        "the closing is not signed by the model owner's broker",
        _closing(lambda c, run: dataclasses.replace(c, closing=run.approvals[0])),
        SignatureError,
        "closing",
    ),
    (
        "the closing has too few countersignatures",
        _closing(lambda c, run: dataclasses.replace(c, countersignatures=c.countersignatures[:1])),
        QuorumError,
        "closing: countersignatures",
    ),
    (
        "the closing has one countersignature twice",
        _closing(lambda c, run: dataclasses.replace(c, countersignatures=c.countersignatures[:1] * 2)),
        QuorumError,
        "closing: countersignatures",
    ),
    (
        "the closing is countersigned by a stranger",
        _closing(lambda c, run: dataclasses.replace(c, countersignatures=(_stranger(c), *c.countersignatures))),
        QuorumError,
        "closing: countersignature",
    ),
    ("the metrics are edited", _metrics_edited, RefusedError, "metrics.jsonl: round 2: evaluate"),
    (
        "a line of the metrics is missing",
        lambda d, run: d.write_metrics(d.metrics()[:1]),
        LineageError,
        "metrics.jsonl",
    ),
    ("the summary is edited", _summary_edited, RefusedError, "summary.json: accuracy"),
]


def _stranger(closing: ClosingRecord) -> Signed:

    return sign(unverified(closing.countersignatures[0], ClosingCountersignature), Ed25519PrivateKey.generate())


@pytest.mark.parametrize(("change", "error", "link"), [row[1:] for row in FILES], ids=[row[0] for row in FILES])
def test_a_changed_file_is_refused(
    change: Change, error: type[ConfedError], link: str, directory: RunDirectory, run: RecordedRun
) -> None:
    change(directory, run)
    with pytest.raises(error) as refused:
        verify_run(directory.path, trust=run.trust)
    assert type(refused.value) is error
    assert link in str(refused.value)
    assert refused.value.exit_code == 3


SIGNED_FILES = (
    "manifest.json", "approvals.json", "closing.json", "versions/0000.sealed", "versions/0001.sealed",
    "commits/train-0001.json", "commits/evaluate-0002.json", "ledger/owner.jsonl", "ledger/south.jsonl", "evidence",
)  # fmt: skip


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(SIGNED_FILES), where=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_no_byte_of_a_signed_file_can_change(
    name: str, where: float, flip: int, directory: RunDirectory, run: RecordedRun
) -> None:
    path = directory.path / name
    if path.is_dir():
        path = sorted(path.iterdir())[int(where * 1000) % len(run.evidence)]
    honest = path.read_bytes()
    changed = bytearray(honest)
    changed[int(where * len(honest))] ^= flip
    path.write_bytes(changed)
    try:
        with pytest.raises(RefusedError):
            verify_run(directory.path, trust=run.trust)
    finally:
        path.write_bytes(honest)


# What owners with keys could do: a whole ledger rewritten and signed again, its closing countersignature with it.


def _forged(name: str, change: Callable) -> Change:
    return lambda directory, run: run.forge_ledger(directory, name, change)


def _evidence_of(run: RecordedRun, name: str, *, event: str = "credentialed-aggregator", at: int = 0) -> str:

    entries = [unverified(signed, LedgerEntry) for signed in run.ledgers[name]]
    return str([entry for entry in entries if entry.event == event][at].body["evidence"])


def _evidence_for_another_broker(directory: RunDirectory, run: RecordedRun) -> None:
    run.forge_ledger(directory, "north", edit("released", evidence=_evidence_of(run, "south")))


def _evidence_of_another_instance(directory: RunDirectory, run: RecordedRun) -> None:
    second = _evidence_of(run, "north", at=2)
    run.forge_ledger(directory, "north", edit("released", evidence=second))


def _an_hour_later_from(release: int) -> Callable:
    def change(entries):
        place = [at for at, entry in enumerate(entries) if entry.event == "released"][release]
        late = [dataclasses.replace(entry, time=entry.time + 3_600_000) for entry in entries[place:]]
        return [*entries[:place], *late]

    return change


def _moved_to_the_end(event: str) -> Callable:
    def change(entries):
        moved = [entry for entry in entries if entry.event == event]
        return [entry for entry in entries if entry.event != event] + moved

    return change


LEDGERS: list[tuple[str, Change, type[ConfedError], str]] = [
    (
        "a ledger without the approval",
        _forged("north", leave_out("approved")),
        LedgerError,
        "ledger of north: approved",
    ),
    (
        "a ledger with another approval",
        _forged("north", edit("approved", approval="00" * 32)),
        LedgerError,
        "ledger of north: approved",
    ),
    (
        "a ticket that its ledger does not hold",
        _forged("north", leave_out("ticketed")),
        TicketError,
        "version 1: ticket of north",
    ),
    ("a ticket noted twice", _forged("north", repeat("ticketed")), TicketError, "ledger of north"),
    (
        "a second ticket for one step",
        _forged("north", repeat("ticketed", ticket="ab" * 32)),
        TicketError,
        "ledger of north",
    ),
    ("a ticket beyond the attempts", _forged("north", edit("ticketed", attempt=2)), BudgetError, "ledger of north"),
    ("a ticket beyond the rounds", _forged("north", edit("ticketed", round=3)), BudgetError, "ledger of north"),
    (
        "a ticket under no credential",
        _forged("north", edit("ticketed", credential="00" * 32)),
        CredentialError,
        "ledger of north",
    ),
    (
        "a ticket under another step's credential",
        _forged("north", edit("credentialed-client", purpose="evaluate")),
        CredentialError,
        "(ticketed)",
    ),
    (
        "a ticket for an aggregator without a credential",
        _forged("north", edit("ticketed", aggregator="00" * 32)),
        CredentialError,
        "aggregator",
    ),
    (
        "a ticket for another identity",
        lambda d, run: run.forge_ledger(d, "north", edit("ticketed", identity=run.homes["south"].party.identity.hex())),
        CredentialError,
        "ledger of north",
    ),
    (
        "a credential for another identity",
        lambda d, run: run.forge_ledger(
            d, "north", edit("credentialed-client", identity=run.homes["south"].party.identity.hex())
        ),
        CredentialError,
        "(credentialed-client)",
    ),
    (
        "an aggregator that did not attest to the model owner",
        _forged(OWNER, lambda entries: [e for e in entries if e.body.get("role") != "aggregator"]),
        InstanceError,
        "version 1: aggregator at owner",
    ),
    ("a ticket on another base", _forged("north", edit("ticketed", base="00" * 32)), LineageError, "ledger of north"),
    (
        "a countersignature that its ledger does not hold",
        _forged("south", leave_out("countersigned")),
        LedgerError,
        "version 1: countersignature of south",
    ),
    (
        "a second successor of an attempt",
        _forged("south", repeat("countersigned", candidate="ab" * 32)),
        ForkError,
        "ledger of south",
    ),
    (
        "a successor that no other broker signed",
        _forged("west", edit("countersigned", candidate="ab" * 32)),
        LedgerError,
        "version 1: countersignature of west",
    ),
    (
        "a countersignature for an attempt older than a ticket",
        _forged("north", edit("countersigned", at=2, attempt=0)),
        ForkError,
        "attempt",
    ),
    (
        "a countersignature before the aggregator's credential",
        _forged("north", _moved_to_the_end("credentialed-aggregator")),
        CredentialError,
        "aggregator",
    ),
    (
        "a repeated round's cohort that singles somebody out",
        lambda d, run: run.forge_ledger(
            d,
            "west",
            repeat("countersigned", at=0, attempt=1, cohort="c0"),
        ),
        CohortError,
        "ledger of west",
    ),
    (
        "a commit that its ledger does not hold",
        _forged(OWNER, leave_out("committed")),
        LedgerError,
        "version 1: commit",
    ),
    ("a second commit of a round", _forged(OWNER, repeat("committed")), ForkError, "ledger of owner"),
    ("another version witnessed", _forged("north", edit("witnessed", digest="00" * 32)), ForkError, "version 1"),
    ("a release on another base", _forged("north", edit("released", base="00" * 32)), LineageError, "ledger of north"),
    (
        "a release of a key two versions ahead",
        _forged(OWNER, edit("released", keys=[{"use": "version", "version": 2}])),
        PurposeError,
        "ledger of owner",
    ),
    ("a release of keys without a list", _forged(OWNER, edit("released", keys=None)), LedgerError, "keys"),
    ("a release of a nameless key", _forged(OWNER, edit("released", keys=[{"use": "any"}])), LedgerError, "key"),
    (
        "a countersignature for an aggregator without a credential",
        _forged("north", edit("countersigned", instance="00" * 32)),
        CredentialError,
        "(countersigned)",
    ),
    (
        "a countersignature noted on another base",
        _forged("north", edit("countersigned", base="00" * 32)),
        LedgerError,
        "version 1: countersignature of north: base",
    ),
    (
        "a release to an identity that was not drawn",
        _forged("north", edit("released", at=1, identity="00" * 32)),
        CohortError,
        "ledger of north",
    ),
    (
        "a release on evidence that nobody has",
        _forged("north", edit("released", evidence="00" * 32)),
        LedgerError,
        "evidence/0000",
    ),
    ("a release on another broker's evidence", _evidence_for_another_broker, BindingMismatchError, "audience"),
    ("a release on another instance's evidence", _evidence_of_another_instance, InstanceError, "ledger of north"),
    ("a release for another role", _forged("north", edit("released", role="client")), BindingMismatchError, "role"),
    (
        "a release that misreports its claims",
        _forged("north", edit("released", claims="00" * 32)),
        LedgerError,
        "claims",
    ),
    ("a release under another policy", _forged("north", edit("released", policy="00" * 32)), LedgerError, "policy"),
    (
        "a release that misreports its binding",
        _forged("north", edit("released", binding="00" * 32)),
        BindingMismatchError,
        "binding",
    ),
    ("evidence appraised an hour late", _forged("north", _an_hour_later_from(0)), StaleEvidenceError, "evidence age"),
    (
        "evidence used an hour later",
        _forged("north", _an_hour_later_from(2)),
        StaleEvidenceError,
        "evidence used again",
    ),
    (
        "a credential of another instance",
        _forged("north", edit("credentialed-client", instance="00" * 32)),
        InstanceError,
        "ledger of north",
    ),
    (
        "a credential on an aggregator's evidence",
        lambda d, run: run.forge_ledger(d, "north", edit("credentialed-client", evidence=_evidence_of(run, "north"))),
        CredentialError,
        "ledger of north",
    ),
    ("an entry without a field", _forged("north", edit("ticketed", ticket=None)), LedgerError, "ticket"),
    (
        "an entry for this run under another manifest",
        _forged("north", repeat("approved", manifest="00" * 32)),
        ManifestMismatchError,
        "ledger of north",
    ),
    (
        "a ticket after the closing",
        _forged(OWNER, _moved_to_the_end("committed")),
        LedgerError,
        "nothing after the closing",
    ),
    (
        "a model owner's ledger without the closing",
        _forged(OWNER, leave_out("closing")),
        LedgerError,
        "ledger of owner: closing",
    ),
]


@pytest.mark.parametrize(("change", "error", "link"), [row[1:] for row in LEDGERS], ids=[row[0] for row in LEDGERS])
def test_a_rewritten_ledger_is_refused(
    change: Change, error: type[ConfedError], link: str, directory: RunDirectory, run: RecordedRun
) -> None:
    change(directory, run)
    with pytest.raises(error) as refused:
        verify_run(directory.path, trust=run.trust)
    assert type(refused.value) is error
    assert link in str(refused.value)


def test_a_ledger_rewritten_without_a_change_verifies(directory: RunDirectory, run: RecordedRun) -> None:
    for name in (OWNER, *SITES):
        run.forge_ledger(directory, name, lambda entries: entries)
    verify_run(directory.path, trust=run.trust)


def test_entries_of_other_runs_of_the_same_owner_are_left_alone(directory: RunDirectory, run: RecordedRun) -> None:
    run.forge_ledger(directory, "north", repeat("ticketed", manifest="00" * 32, run="an earlier one"))
    verify_run(directory.path, trust=run.trust)


def test_two_brokers_of_different_successors_are_a_fork(directory: RunDirectory, run: RecordedRun) -> None:
    # South countersigned nothing of the record; it signed another candidate of the same base and attempt.
    record = run.records[Purpose.TRAIN, 1]
    south = run.homes["south"].party.broker
    kept = tuple(signed for signed in record.countersignatures if signed.signer != south)
    owner = run.homes[OWNER].broker_key

    commit = unverified(record.commit, Commit)
    signed = sign(dataclasses.replace(commit, countersignatures=tuple(c.digest for c in kept)), owner)
    directory.write_commit(
        Purpose.TRAIN, 1, dataclasses.replace(record, countersignatures=kept, commit=signed).to_bytes()
    )
    run.forge_ledger(directory, OWNER, edit("committed", commit=signed.digest))
    run.forge_ledger(directory, "south", edit("countersigned", candidate="ab" * 32))
    with pytest.raises(ForkError, match="ledger of "):
        verify_run(directory.path, trust=run.trust)


def test_a_candidate_by_a_key_that_did_not_attest_is_refused(directory: RunDirectory, run: RecordedRun) -> None:
    # Every owner colludes and signs what an unattested key proposes: only the evidence shows it.

    record = run.records[Purpose.EVALUATE, 2]
    candidate = sign(unverified(record.candidate, Candidate), Ed25519PrivateKey.generate())
    # The payload, and so its digest, is the same: countersignatures still fit.
    forged = dataclasses.replace(record, candidate=candidate)
    directory.write_commit(Purpose.EVALUATE, 2, forged.to_bytes())
    with pytest.raises(InstanceError, match="evaluation 2: aggregator at north"):
        verify_run(directory.path, trust=run.trust)


def test_a_countersignature_over_another_candidate_is_refused(directory: RunDirectory, run: RecordedRun) -> None:
    record = run.records[Purpose.TRAIN, 1]
    first = unverified(record.countersignatures[0], Countersignature)
    other = sign(dataclasses.replace(first, candidate="00" * 32), run.homes["north"].broker_key)
    forged = dataclasses.replace(record, countersignatures=(other, *record.countersignatures[1:]))
    directory.write_commit(Purpose.TRAIN, 1, forged.to_bytes())
    with pytest.raises(LineageError, match="version 1: countersignature candidate"):
        verify_run(directory.path, trust=run.trust)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"rounds": 1}, LineageError),
        ({"version": 1}, LineageError),
        ({"digest": "00" * 32}, LineageError),
        ({"run": "other"}, LineageError),
        ({"manifest": "00" * 32}, LineageError),
    ],
)
def test_a_closing_that_says_something_else_is_refused(
    changes: dict, error: type[ConfedError], directory: RunDirectory, run: RecordedRun
) -> None:
    closing = sign(
        dataclasses.replace(unverified(run.closing.closing, Closing), **changes), run.homes[OWNER].broker_key
    )
    directory.write_closing(dataclasses.replace(run.closing, closing=closing))
    with pytest.raises(error, match="closing"):
        verify_run(directory.path, trust=run.trust)


STARTS = [
    ("of another kind", {"kind": Kind.DATASET}, "owner", ContainerFormatError, "kind"),
    ("of another id", {"container_id": "other"}, "owner", ContainerFormatError, "container id"),
    ("with a later version's number", {"version": 1}, "owner", LineageError, "version"),
    ("of another owner", {"owner": b"\x01" * 32}, "owner", LineageError, "owner"),
    ("signed by another owner", {}, "west", SignatureError, "signer"),
]


@pytest.mark.parametrize(
    ("changes", "signer", "error", "link"), [row[1:] for row in STARTS], ids=[row[0] for row in STARTS]
)
def test_a_start_that_is_not_the_model_owners_is_refused(
    *, changes: dict, signer: str, error: type[ConfedError], link: str, directory: RunDirectory, run: RecordedRun
) -> None:
    # Everybody approved a manifest that names this file's digest: what the file itself says is still checked.
    draft = Draft(kind=Kind.MODEL, container_id="start", owner=run.homes[OWNER].party.identity)
    data, sealed = seal_to_bytes(
        [b"x"],
        dataclasses.replace(draft, **changes),
        data_key=bytes(32),
        signing_key=run.homes[signer].identity_key,
    )
    directory.write_version(0, data)
    _approve_start(directory, run, digest=sealed.digest, size_bytes=sealed.size_bytes)
    with pytest.raises(error, match=f"version 0: .*{link}"):
        verify_run(directory.path, trust=run.trust)


def test_a_start_of_another_size_is_refused(directory: RunDirectory, run: RecordedRun) -> None:
    _approve_start(directory, run, digest=run.manifest.model.start.digest, size_bytes=1)
    with pytest.raises(LineageError, match="version 0: size"):
        verify_run(directory.path, trust=run.trust)


def _approve_start(directory: RunDirectory, run: RecordedRun, *, digest: str, size_bytes: int) -> None:
    start = dataclasses.replace(run.manifest.model.start, digest=digest, size_bytes=size_bytes)
    manifest = dataclasses.replace(run.manifest, model=dataclasses.replace(run.manifest.model, start=start))
    directory.write_manifest(manifest)
    keys = {home.party.identity: home.identity_key for home in run.homes.values()}
    approvals = [dataclasses.replace(_approval(signed), manifest=manifest.digest) for signed in run.approvals]
    directory.write_approvals([sign(approval, keys[approval.owner]) for approval in approvals])


VERSIONS = [
    ("of another kind", {"kind": Kind.STRATEGY_STATE}, ContainerFormatError, "kind"),
    ("with another number", {"version": 7}, LineageError, "version"),
    ("without parents", {"parents": ()}, LineageError, "parents"),
    ("of another parent", {"parents": ("00" * 32,)}, LineageError, "parents"),
    ("of another manifest", {"manifest": "00" * 32}, LineageError, "manifest"),
    ("of another owner", {"owner": b"\x01" * 32}, LineageError, "owner"),
]


@pytest.mark.parametrize(("changes", "error", "link"), [row[1:] for row in VERSIONS], ids=[row[0] for row in VERSIONS])
def test_a_version_whose_file_says_something_else_is_refused(
    changes: dict, error: type[ConfedError], link: str, tmp_path: Path
) -> None:
    forged = RecordedRun(tmp_path / "owners", draft=changes)
    directory = forged.write(tmp_path / "run")
    with pytest.raises(error, match=f"version 1: {link}"):
        verify_run(directory.path, trust=forged.trust)


def test_a_version_signed_by_another_key_than_its_candidate_is_refused(tmp_path: Path) -> None:
    forged = RecordedRun(tmp_path / "owners", version_key=Ed25519PrivateKey.generate())
    directory = forged.write(tmp_path / "run")
    with pytest.raises(SignatureError, match="version 1: container signer"):
        verify_run(directory.path, trust=forged.trust)


def _approval(signed: Signed) -> Approval:

    return unverified(signed, Approval)


# Trust from outside.


def _trust(run: RecordedRun, **changes) -> Trust:
    return dataclasses.replace(run.trust, **changes)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda run: _trust(run, owners={**run.trust.owners, "west": bytes(32)}), ManifestMismatchError),
        (lambda run: _trust(run, owners={OWNER: run.trust.owners[OWNER]}), ManifestMismatchError),
        (lambda run: _trust(run, owners={**run.trust.owners, OWNER: run.trust.owners["west"]}), ManifestMismatchError),
        (lambda run: _trust(run, anchors={}), TrustAnchorError),
        (lambda run: _trust(run, anchors={"simulated/1": (b"another",)}), TrustAnchorError),
    ],
    ids=["another site's key", "owners missing", "another model owner's key", "no anchors", "another anchor"],
)
def test_another_trust_is_refused(
    change: Callable, error: type[ConfedError], directory: RunDirectory, run: RecordedRun
) -> None:
    with pytest.raises(error):
        verify_run(directory.path, trust=change(run))


def test_a_trust_that_knows_more_is_enough(directory: RunDirectory, run: RecordedRun) -> None:
    trust = Trust(
        owners={**run.trust.owners, "east": b"\x01" * 32},
        anchors={**run.trust.anchors, "other/1": (b"x",), "simulated/1": (b"y", *run.trust.anchors["simulated/1"])},
    )
    verify_run(directory.path, trust=trust)


def _first_release(directory: RunDirectory, run: RecordedRun) -> tuple[LedgerEntry, Binding]:
    entries = [unverified(signed, LedgerEntry) for signed in run.ledgers["north"]]
    entry = next(entry for entry in entries if entry.event == "released")
    return entry, Binding.decode(Envelope.decode(directory.read_evidence(entry.body["evidence"])).binding)


def test_evidence_under_another_root_is_refused(directory: RunDirectory, run: RecordedRun) -> None:
    # The run's own manifest vouches for a root; verification rests on that root, so a fake envelope does not pass.

    class Elsewhere:
        platform, manifest, now = SimulatedPlatform.create(START_MS), run.manifest, START_MS + 1000

    _, honest = _first_release(directory, run)
    envelope = Enclave(Elsewhere, Role.AGGREGATOR)._attester.attest(honest).encode()
    digest = directory.write_evidence(envelope)
    run.forge_ledger(directory, "north", edit("released", evidence=digest))
    with pytest.raises(AttestationError) as refused:
        verify_run(directory.path, trust=run.trust)
    assert type(refused.value) is TrustAnchorError


def test_evidence_of_other_code_is_refused(directory: RunDirectory, run: RecordedRun) -> None:

    entry, honest = _first_release(directory, run)
    launched = run.platform.launch(
        measurement="ee" * 32,
        configuration=run.manifest.digest,
        environment="simulation",
        shared=True,
        now_ms=entry.time,
    )
    digest = directory.write_evidence(SimulatedAttester(launched).attest(honest).encode())
    run.forge_ledger(directory, "north", edit("released", evidence=digest))
    with pytest.raises(MeasurementError, match="ledger of north"):
        verify_run(directory.path, trust=run.trust)


def test_a_nonce_in_two_evidences_is_refused(directory: RunDirectory, run: RecordedRun) -> None:

    entry, honest = _first_release(directory, run)
    launched = run.platform.launch(
        measurement="a9" * 32,
        configuration=run.manifest.digest,
        environment="simulation",
        shared=True,
        now_ms=entry.time,
    )
    envelope = SimulatedAttester(launched, ("another",)).attest(honest).encode()
    digest = directory.write_evidence(envelope)
    expected = ExpectedBinding(
        nonce=honest.nonce, audience=honest.audience, manifest=honest.manifest, role=honest.role, run=honest.run
    )
    claims = default_registry().verify(
        envelope, expected=expected, now_ms=entry.time, anchors=run.manifest.trust.anchors
    )
    run.forge_ledger(directory, "north", repeat("released", evidence=digest, claims=claims_digest(claims)))
    with pytest.raises(ChallengeError, match="ledger of north"):
        verify_run(directory.path, trust=run.trust)


def test_evidence_that_nobody_names_must_still_be_what_it_is_called(directory: RunDirectory, run: RecordedRun) -> None:
    directory.evidence_file("00" * 32).write_bytes(run.evidence[0])
    with pytest.raises(EncodingError, match="evidence 0000"):
        verify_run(directory.path, trust=run.trust)


def test_two_parties_of_one_name_are_refused(directory: RunDirectory, run: RecordedRun) -> None:
    owner = dataclasses.replace(run.manifest.model.owner, name="north")
    directory.write_manifest(
        dataclasses.replace(run.manifest, model=dataclasses.replace(run.manifest.model, owner=owner))
    )
    with pytest.raises(ManifestMismatchError, match="parties' name"):
        verify_run(directory.path, trust=None)
