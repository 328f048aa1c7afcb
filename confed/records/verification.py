"""``verify_run``: the whole run again, offline, from its records, against trust from outside them.

1. manifest       canonical, and its digest
2. trust          parties' identity keys and trust anchors are those given from outside
3. approvals      every owner's identity key signed this digest
4. versions       the start is the model owner's; each version has a commit record that makes it the successor of the
                  one before, a countersigning majority, a cohort, tickets; its file has that digest and says the same;
                  where the manifest has privacy, its account is computed again and follows from the one before
5. evaluations    the same for the clear metrics of each version
6. ledgers        every owner's ledger: chain, signatures, order, and nothing cut off before the closing
7. evidence       behind every release; instances, credentials, tickets, countersignatures, commits (``witnesses``)
8. links          commit records and ledgers name each other; no fork anywhere; what left as statistics was permitted
                  and charged by the site's own broker (``statistics``)
9. closing        signed, countersigned by a majority, naming the last version, in the ledgers of all who signed it;
                  the run ended where its stop rules end it, for the reason that the commit records show
10. tables        ``metrics.jsonl`` and ``summary.json`` say what the commits say

The first broken link is named in the error. Reading only; no clock, no network, no key.

A manifest of the scenario ``inference`` has steps 1 to 3 and 6, and of the ledger what ``serving`` says: nothing is
made there, so there are no versions, tickets or closing.

Not promised: that what was never signed is true (seconds, the governor's events, logs, the report); that an owner who
did not countersign the closing cut nothing off the end of its own ledger; anything about the sealed strategy state,
of which only the digest is in the records.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from confed.attestation.verifier import Registry, default_registry
from confed.errors import (
    LedgerError,
    LineageError,
    ManifestMismatchError,
    NotApprovedError,
)
from confed.journey import Kind, Purpose
from confed.keybroker.ledger import verify_ledger
from confed.keybroker.lineage import Lineage
from confed.keybroker.spending import base_state, verify_follows
from confed.keybroker.statements import Approval, ClosingCountersignature
from confed.manifest import Manifest, Party
from confed.records.closing import verify_closing
from confed.records.comparison import equal, same
from confed.records.entries import Witness, entries_of_run, text
from confed.records.metrics import line_of, results_of
from confed.records.places import at
from confed.records.run_directory import ClosingRecord, RunDirectory
from confed.records.serving import verify_releases
from confed.records.statistics import verify_statistics
from confed.records.trust import Trust
from confed.records.witnesses import Book, Chain, Committed, cross_check, read_books
from confed.sealing.container import Container
from confed.statement import Signed, unverified, verify
from confed.stopping import Ending


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """One step that held, and what was looked at."""

    step: str
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """A run whose records hold. ``self_consistent_only``: they fit each other, but nobody said who may be trusted."""

    run: str
    manifest: str
    environment: str
    self_consistent_only: bool
    versions: int
    rounds: int
    evaluations: int
    evidence: int
    tickets: int
    countersignatures: int
    ledger_entries: int
    steps: tuple[Checked, ...]


def verify_run(run_directory: Path, *, trust: Trust | None, registry: Registry | None = None) -> Verified:
    """Verify a run's records and return what was counted.

    ``trust`` holds owners' identity keys and trust anchors from outside the run directory; ``None`` checks that the
    records fit each other and says ``self_consistent_only``. ``registry`` knows the kinds of TEE.

    Raises:
        MissingFileError: no run directory.
        RefusedError: of the class that says why; the message names the first broken link.
    """
    directory = RunDirectory.open(run_directory)
    return _Verification(directory, trust, registry or default_registry()).run()


class _Verification:
    """One pass; each step adds what later steps need."""

    def __init__(self, directory: RunDirectory, trust: Trust | None, registry: Registry) -> None:
        self._directory = directory
        self._trust = trust
        self._registry = registry
        self._steps: list[Checked] = []
        # 1.
        with at("manifest.json"):
            self._manifest = directory.manifest()
        self._lineage = Lineage(self._manifest)
        self._digest = self._lineage.digest
        self._note("manifest", f"{self._manifest.name}, digest {self._digest}")

    def run(self) -> Verified:
        manifest = self._manifest
        # 2.
        if self._trust is not None:
            with at("manifest.json"):
                self._trust.require(manifest)
            self._note("trust", f"{len(_parties(manifest))} owners and their anchors are those trusted")
        # 3.
        approvals = self._approvals()
        if not manifest.scenario.trains:
            return self._served(approvals)
        # 4. and 5.
        trained = self._trained()
        evaluated = self._evaluated(trained)
        # 6.
        with at("closing.json"):
            closing = self._directory.closing()
        witnesses, entries = self._witnesses(closing)
        self._approved_in(witnesses, approvals)
        # 7.
        books = read_books(
            witnesses,
            lineage=self._lineage,
            chain=Chain(manifest, trained),
            directory=self._directory,
            registry=self._registry,
        )
        evidence = self._evidence(books)
        # 8.
        cross_check(books, [*trained, *evaluated], manifest=manifest)
        tickets = sum(len(book.tickets) for book in books.values())
        countersignatures = sum(len(book.countersigned) for book in books.values())
        commits = len(trained) + len(evaluated)
        self._note("links", f"{tickets} tickets, {countersignatures} countersignatures, {commits} commits; no fork")
        released = verify_statistics(self._directory, manifest, books)
        if released:
            self._note("statistics", f"of {released} sites, each permitted once and charged")
        # 9.
        by_broker = {witness.party.broker: witness for witness in witnesses}
        ended = verify_closing(
            closing, lineage=self._lineage, trained=trained, evaluated=evaluated, witnesses=by_broker
        )
        self._note("closing", f"{ended.told}; {ended.countersigned} countersigned")
        # 10.
        self._tables(trained, evaluated, ended.ending)
        return Verified(
            run=manifest.run,
            manifest=self._digest,
            environment=manifest.environment,
            self_consistent_only=self._trust is None,
            versions=len(trained) + 1,
            rounds=len(trained),
            evaluations=len(evaluated),
            evidence=evidence,
            tickets=tickets,
            countersignatures=countersignatures,
            ledger_entries=entries,
            steps=tuple(self._steps),
        )

    def _served(self, approvals: Mapping[bytes, Signed]) -> Verified:
        manifest = self._manifest
        if self._directory.versions():
            with at("version 0"):
                self._model()
            self._note("model", f"file digest {manifest.model.start.digest}")
        witnesses, entries = self._witnesses(None)
        self._approved_in(witnesses, approvals)
        (witness,) = witnesses
        found = verify_releases(witness, manifest=manifest, directory=self._directory, registry=self._registry)
        self._evidence_files()
        told = f"{found.evidence} genuine, of {found.instances} replicas, acceptable when it was used"
        self._note("evidence", told)
        self._note("leases", f"{found.leases}, each to a replica that had just attested")
        return Verified(
            run=manifest.run,
            manifest=self._digest,
            environment=manifest.environment,
            self_consistent_only=self._trust is None,
            versions=1,
            rounds=0,
            evaluations=0,
            evidence=found.evidence,
            tickets=0,
            countersignatures=0,
            ledger_entries=entries,
            steps=tuple(self._steps),
        )

    def _model(self) -> None:
        """A served model may be any version; its digest is what the owner signed."""
        container = Container.map(self._directory.version_file(0))
        equal("file digest", self._manifest.model.start.digest, container.file_digest())
        equal("kind", Kind.MODEL, container.header.kind)

    def _note(self, step: str, what: str) -> None:
        self._steps.append(Checked(step=step, what=what))

    def _approvals(self) -> Mapping[bytes, Signed]:
        with at("approvals", missing=NotApprovedError):
            approvals = {signed.signer: signed for signed in self._directory.approvals()}
        for party in _parties(self._manifest):
            with at(f"approval of {party.name}"):
                signed = approvals.get(party.identity)
                if signed is None:
                    raise NotApprovedError("approval", expected="the owner's signature", got="none")
                approval = verify(signed, Approval, signer=party.identity)
                if (approval.manifest, approval.owner) != (self._digest, party.identity):
                    raise NotApprovedError("manifest", expected=self._digest[:16], got=approval.manifest[:16])
        strangers = set(approvals) - {party.identity for party in _parties(self._manifest)}
        if strangers:
            raise NotApprovedError("approvals", expected="the parties' alone", got=min(strangers).hex()[:16])
        self._note("approvals", f"all {len(approvals)} owners signed it")
        return approvals

    def _trained(self) -> list[Committed]:
        with at("version 0"):
            self._start()
        versions, rounds = self._directory.versions(), self._directory.rounds(Purpose.TRAIN)
        trained: list[Committed] = []
        base, spent = self._manifest.model.start.digest, base_state(self._manifest, None)
        for number in range(1, max((*versions, *rounds), default=0) + 1):
            with at(f"version {number}"):
                one = self._committed(Purpose.TRAIN, number, base)
                self._version(number, one)
                verify_follows(spent, one.candidate)
            trained.append(one)
            base, spent = one.candidate.digest, one.candidate.privacy
        least = min((len(one.candidate.cohort) for one in trained), default=0)
        self._note("versions", f"{len(trained)} after the start, each the one successor; least cohort {least}")
        terms = self._manifest.privacy
        if terms is not None and spent is not None:
            what = f"epsilon {spent.epsilon:.4f} of {terms.epsilon_budget:g} at delta {terms.delta:g}, computed again"
            self._note("privacy", f"{what} from {spent.releases} releases")
        return trained

    def _start(self) -> None:
        owner, start = self._manifest.model.owner, self._manifest.model.start
        container = Container.map(self._directory.version_file(0))
        equal("file digest", start.digest, container.file_digest())
        container.verify_signer(owner.identity)
        header = container.header
        equal("kind", Kind.MODEL, header.kind)
        equal("version", 0, header.version)
        equal("container id", start.container_id, header.container_id)
        equal("size in bytes", start.size_bytes, container.size_bytes)
        equal("owner", owner.identity, header.owner)

    def _committed(self, purpose: Purpose, number: int, base: str) -> Committed:
        record = self._directory.commit(purpose, number)
        candidate = self._lineage.verify(record, round_number=number, purpose=purpose, base=base)
        return Committed(record=record, candidate=candidate)

    def _version(self, number: int, one: Committed) -> None:
        container = Container.map(self._directory.version_file(number))
        equal("file digest", one.candidate.digest, container.file_digest())
        container.verify_signer(one.record.candidate.signer)
        header = container.header
        for what, expected, got in (
            ("kind", Kind.MODEL, header.kind),
            ("version", number, header.version),
            ("parents", (one.candidate.base,), header.parents),
            ("manifest", self._digest, header.manifest),
            ("owner", self._manifest.model.owner.identity, header.owner),
        ):
            equal(what, expected, got)

    def _evaluated(self, trained: list[Committed]) -> list[Committed]:
        evaluated: list[Committed] = []
        for number in self._directory.rounds(Purpose.EVALUATE):
            with at(f"evaluation {number}"):
                if not 1 <= number <= len(trained):
                    raise LineageError("version", expected=f"from 1 to {len(trained)}", got=number)
                evaluated.append(self._committed(Purpose.EVALUATE, number, trained[number - 1].candidate.digest))
        self._note("evaluations", f"{len(evaluated)} of {len(trained)} versions")
        return evaluated

    def _witnesses(self, closing: ClosingRecord | None) -> tuple[list[Witness], int]:
        manifest = self._manifest
        heads = _heads(closing)
        sites = {site.owner.broker for site in manifest.sites}
        witnesses: list[Witness] = []
        count = 0
        for party in _parties(manifest):
            with at(f"ledger of {party.name}", missing=LedgerError):
                entries = verify_ledger(
                    self._directory.ledger(party.name),
                    broker=party.broker,
                    through=heads.get(party.broker),
                    part_from=self._digest,
                )
            count += len(entries)
            witnesses.append(
                Witness(
                    party=party,
                    is_site=party.broker in sites,
                    is_model_owner=party.broker == manifest.model.owner.broker,
                    entries=entries_of_run(entries, manifest=manifest, digest=self._digest, party=party.name),
                )
            )
        strangers = set(self._directory.ledgers()) - {party.name for party in _parties(manifest)}
        if strangers:
            raise LedgerError("ledgers", expected="the parties' alone", got=min(strangers)[:40])
        self._note("ledgers", f"{len(witnesses)} chains, {count} signed entries")
        return witnesses, count

    def _approved_in(self, witnesses: list[Witness], approvals: Mapping[bytes, Signed]) -> None:
        for witness in witnesses:
            known = [text(entry, "approval") for entry in witness.of("approved")]
            if known != [approvals[witness.party.identity].digest]:
                got = "none" if not known else "another"
                raise LedgerError(f"ledger of {witness.party.name}: approved", expected="this approval, once", got=got)

    def _evidence(self, books: Mapping[bytes, Book]) -> int:
        used = {digest for book in books.values() for digest in book.instances.found}
        self._evidence_files()
        self._note("evidence", f"{len(used)} genuine, each for its own broker, and acceptable when it was used")
        return len(used)

    def _evidence_files(self) -> None:
        for digest in self._directory.evidence():
            with at(f"evidence {digest[:16]}"):
                self._directory.read_evidence(digest)

    def _tables(self, trained: list[Committed], evaluated: list[Committed], ending: Ending) -> None:
        looked = {one.candidate.round: one.record for one in evaluated}
        expected = [line_of(one.record, looked.get(one.candidate.round)) for one in trained]
        if self._directory.metrics_file.exists():
            with at("metrics.jsonl"):
                lines = self._directory.metrics()
                equal("lines", len(expected), len(lines))
                for wanted, line in zip(expected, lines, strict=True):
                    with at(f"round {wanted['round']}"):
                        same(wanted, line)
        if self._directory.summary_file.exists():
            with at("summary.json"):
                said = {**results_of(expected), "run": self._manifest.run, "ended": ending.told}
                same(said, self._directory.summary())
        self._note("tables", "metrics and summary say what the commits say")


def _heads(closing: ClosingRecord | None) -> Mapping[bytes, str]:
    """Return up to which entry each broker's ledger must reach; the closing itself is verified later."""
    if closing is None:
        return {}
    with at("closing"):
        return {signed.signer: unverified(signed, ClosingCountersignature).head for signed in closing.countersignatures}


def _parties(manifest: Manifest) -> tuple[Party, ...]:
    """Return the model owner and the sites' owners, one that is both only once.

    Raises:
        ManifestMismatchError: two parties with one name or one broker, whose ledgers could not be told apart.
    """
    parties = tuple(dict.fromkeys((manifest.model.owner, *(site.owner for site in manifest.sites))))
    for what in ("name", "broker"):
        if len({getattr(party, what) for party in parties}) != len(parties):
            raise ManifestMismatchError(f"parties' {what}", expected="distinct values", got="the same one twice")
    return parties
