"""What owners' ledgers say of a run, held against its commit records and against each other.

For each owner's broker, entry by entry:

1. released: its evidence (``instances``); a step that the journey permits, within rounds and attempts, from the
   version that the commits make the base, and for an identity that was drawn;
2. credentialed: evidence that this broker accepted before, of the same instance and role;
3. ticketed: one for each step, for the owner's own identity, under a credential that this broker gave for this step,
   for an aggregator that it credentialed for this round;
4. countersigned: one successor for each attempt, none for an attempt older than one ticketed or countersigned before,
   by an aggregator that it credentialed; a repeated round's cohort is the same or differs by at least ``cohort.least``;
5. witnessed and committed: the versions of the commit records and no others;
6. checkpointed, where one TEE trains: by an instance that attested to this broker, from the committed base, and each
   newer than the one before, in no earlier attempt;
7. nothing after the owner agreed that the run ended;
8. statistics permitted: once, to a client of its own that it credentialed, at the cost that the manifest names.

And for each commit record: its tickets, countersignatures and commit are in the ledgers of those who signed them, its
aggregator attested to every one of them with the key that signed the candidate, and each ticket's client to its own
site's broker with the key that the ticket names.

Last, over all ledgers together: no two brokers countersigned different successors of one base and attempt.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from confed.attestation.verifier import Registry
from confed.errors import (
    BudgetError,
    CohortError,
    CredentialError,
    ForkError,
    InstanceError,
    LedgerError,
    LineageError,
    PurposeError,
    RollbackError,
    TicketError,
)
from confed.journey import STEPS, Purpose, Role, Step, Use, base_version
from confed.keybroker.lineage import Lineage, members_apart
from confed.keybroker.statements import Candidate, CommitRecord, Ticket
from confed.manifest import Manifest
from confed.records.entries import Entry, Witness, choice, members, number, text
from confed.records.instances import Attested, Instances
from confed.records.places import at
from confed.records.run_directory import RunDirectory
from confed.scenario import Scenario
from confed.statement import unverified

_Attempt = tuple[Purpose, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """A commit record whose own parts hold."""

    record: CommitRecord
    candidate: Candidate

    @property
    def place(self) -> str:
        """What it is called in a message."""
        what = "version" if self.candidate.purpose is Purpose.TRAIN else "evaluation"
        return f"{what} {self.candidate.round}"


@dataclass(slots=True)
class Book:
    """What one ledger holds of a run, as far as later checks need it."""

    witness: Witness
    instances: Instances
    credentials: dict[str, Entry] = field(default_factory=dict[str, Entry])
    aggregators: list[Entry] = field(default_factory=list[Entry])
    tickets: dict[str, Entry] = field(default_factory=dict[str, Entry])
    countersigned: dict[_Attempt, Entry] = field(default_factory=dict[_Attempt, Entry])
    committed: dict[tuple[Purpose, int], Entry] = field(default_factory=dict[tuple[Purpose, int], Entry])
    permit: Entry | None = None

    def aggregator(self, instance: str, *, round_number: int, before: int) -> Entry | None:
        """Return this broker's credential of an aggregator for a round, given before an entry."""
        for entry in self.aggregators:
            spans = number(entry, "first_round") <= round_number <= number(entry, "last_round")
            if entry.sequence < before and text(entry, "instance") == instance and spans:
                return entry
        return None


class Chain:
    """The versions that the commit records make: the start's digest, then each version's."""

    def __init__(self, manifest: Manifest, trained: Iterable[Committed]) -> None:
        self.digests = [manifest.model.start.digest, *(committed.candidate.digest for committed in trained)]

    def base(self, *, purpose: Purpose, round_number: int) -> str:
        """Return the digest that a step of this purpose and round starts from.

        Raises:
            LineageError: no such version in the records.
        """
        version = base_version(purpose=purpose, round_number=round_number)
        if not 0 <= version < len(self.digests):
            raise LineageError(f"version {version}", expected="its commit record", got="none")
        return self.digests[version]


def read_books(
    witnesses: Iterable[Witness], *, lineage: Lineage, chain: Chain, directory: RunDirectory, registry: Registry
) -> dict[bytes, Book]:
    """Check each owner's ledger by itself (1 to 8) and return what it holds, by broker key.

    Raises:
        RefusedError: the class of the first rule that an entry breaks; its message names owner and entry.
    """
    books: dict[bytes, Book] = {}
    for witness in witnesses:
        instances = Instances(lineage.manifest, broker=witness.party.broker, directory=directory, registry=registry)
        book = Book(witness=witness, instances=instances)
        reader = _Reader(book, lineage, chain)
        for entry in witness.entries:
            with witness.at(entry):
                reader.read(entry)
        books[witness.party.broker] = book
    return books


class _Reader:
    """Goes through one ledger in order."""

    def __init__(self, book: Book, lineage: Lineage, chain: Chain) -> None:
        self._book = book
        self._lineage = lineage
        self._manifest = lineage.manifest
        self._chain = chain
        self._newest: dict[tuple[Purpose, int], int] = {}
        self._checkpoints: dict[int, tuple[int, int]] = {}
        self._ended = False

    def read(self, entry: Entry) -> None:
        if self._ended and entry.event not in ("refused", "closing", "closing-countersigned"):
            # 7.
            raise LedgerError("entry", expected="nothing after the closing", got=entry.event)
        rules = {
            "endorsed": self._book.instances.endorsed,
            "released": self._released,
            "credentialed-client": self._credentialed,
            "credentialed-aggregator": self._credentialed,
            "ticketed": self._ticketed,
            "countersigned": self._countersigned,
            "committed": self._committed,
            "witnessed": self._witnessed,
            "checkpointed": self._checkpointed,
            "statistics-permitted": self._permitted,
        }
        rule = rules.get(entry.event)
        if rule is not None:
            rule(entry)
        self._ended = self._ended or entry.event in ("closing", "closing-countersigned")

    def _released(self, entry: Entry) -> None:
        # 1.
        attested = self._book.instances.released(entry)
        purpose, round_number = choice(entry, "purpose", Purpose), self._round(entry)
        if text(entry, "base") != self._chain.base(purpose=purpose, round_number=round_number):
            raise LineageError("base", expected="the committed version", got=text(entry, "base")[:16])
        if attested.role is Role.CLIENT:
            drawn = [identity.hex() for identity in self._lineage.drawn(purpose, round_number)]
            if text(entry, "identity") not in drawn:
                raise CohortError("identity", expected="one drawn for this round", got=text(entry, "identity")[:16])
        keys = entry.body.get("keys")
        if not isinstance(keys, list):
            raise LedgerError("keys", expected="a list", got=type(keys).__name__)
        for key in keys:
            _require_step(key, attested.role, purpose, round_number, scenario=self._manifest.scenario)

    def _credentialed(self, entry: Entry) -> None:
        # 2.
        role = Role.CLIENT if entry.event == "credentialed-client" else Role.AGGREGATOR
        self._require_own(entry)
        attested = self._book.instances.found.get(text(entry, "evidence"))
        if attested is None or attested.role is not role:
            raise CredentialError("evidence", expected=f"a {role}'s that was accepted", got="another")
        instance = attested.claims.binding.instance
        if instance != text(entry, "instance"):
            raise InstanceError("instance", expected=instance[:16], got=text(entry, "instance")[:16])
        if role is Role.AGGREGATOR:
            self._book.aggregators.append(entry)
        else:
            self._book.credentials[text(entry, "credential")] = entry

    def _ticketed(self, entry: Entry) -> None:
        # 3.
        self._require_own(entry)
        step = self._attempt(entry)
        if any(self._attempt(other) == step for other in self._book.tickets.values()):
            raise TicketError("ticket", expected="one for each step", got="a second")
        credential = self._book.credentials.get(text(entry, "credential"))
        if credential is None or self._attempt(credential) != step:
            raise CredentialError("credential", expected="one given for this step", got="none")
        self._require_maker(entry, text(entry, "aggregator"))
        if text(entry, "base") != self._chain.base(purpose=step[0], round_number=step[1]):
            raise LineageError("base", expected="the committed version", got=text(entry, "base")[:16])
        self._book.tickets[text(entry, "ticket")] = entry
        self._newest[step[:2]] = max(self._newest.get(step[:2], 0), step[2])

    def _countersigned(self, entry: Entry) -> None:
        # 4.
        step = self._attempt(entry)
        if step in self._book.countersigned:
            raise ForkError("successor", expected="one for each attempt", got="a second")
        if step[2] < self._newest.get(step[:2], 0):
            raise ForkError("attempt", expected=f"at least {self._newest[step[:2]]}", got=step[2])
        self._require_maker(entry, text(entry, "instance"))
        cohort, least = members(entry, "cohort"), self._manifest.cohort.least
        for other in self._book.countersigned.values():
            if self._attempt(other)[:2] != step[:2]:
                continue
            apart = members_apart(cohort, members(other, "cohort"))
            if 0 < apart < least:
                raise CohortError("cohort of a repeated round", expected=f"the same, or {least} apart", got=apart)
        self._book.countersigned[step] = entry
        self._newest[step[:2]] = step[2]

    def _committed(self, entry: Entry) -> None:
        # 5.
        purpose, round_number, _ = self._attempt(entry)
        if not self._book.witness.is_model_owner:
            raise LedgerError("committed", expected="in the model owner's ledger alone", got="here")
        if (purpose, round_number) in self._book.committed:
            raise ForkError("commit", expected="one for each round", got="a second")
        self._book.committed[purpose, round_number] = entry

    def _witnessed(self, entry: Entry) -> None:
        # 5.
        version = number(entry, "version")
        known = self._chain.digests[version] if 0 < version < len(self._chain.digests) else None
        if text(entry, "digest") != known:
            raise ForkError(f"version {version}", expected=str(known)[:16], got=text(entry, "digest")[:16])

    def _checkpointed(self, entry: Entry) -> None:
        # 6.
        step, counter = self._attempt(entry), number(entry, "counter")
        if text(entry, "base") != self._chain.base(purpose=step[0], round_number=step[1]):
            raise LineageError("base", expected="the committed version", got=text(entry, "base")[:16])
        attested = self._book.instances.of(text(entry, "instance"), role=Role.CLIENT, before=entry.sequence)
        if self._manifest.scenario.combines or attested is None:
            raise InstanceError("checkpoint", expected="of a TEE that attested here", got=text(entry, "instance")[:16])
        before = self._checkpoints.get(step[1], (-1, 0))
        if step[2] < before[0] or counter <= before[1]:
            raise RollbackError("checkpoint", expected=f"one after {before[1]}", got=counter)
        self._checkpoints[step[1]] = (step[2], counter)

    def _permitted(self, entry: Entry) -> None:
        # 8.
        self._require_own(entry)
        preparation = self._manifest.preparation
        terms = None if preparation is None else preparation.statistics
        if terms is None or entry.body.get("epsilon") != terms.epsilon:
            raise BudgetError("epsilon of statistics", expected=terms and terms.epsilon, got=entry.body.get("epsilon"))
        if self._book.permit is not None:
            raise TicketError("statistics", expected="one permit in a run", got="a second")
        if text(entry, "credential") not in self._book.credentials:
            raise CredentialError("credential", expected="one given before", got="none")
        self._book.permit = entry

    def _require_own(self, entry: Entry) -> None:
        if not self._book.witness.is_site or text(entry, "identity") != self._book.witness.party.identity.hex():
            raise CredentialError("identity", expected="this broker's owner", got=text(entry, "identity")[:16])

    def _require_maker(self, entry: Entry, instance: str) -> None:
        """The version is made by an aggregator; or by the very client of this step, where the scenario has none."""
        if not self._manifest.scenario.combines:
            step = self._attempt(entry)
            known = [self._attempt(other) for other in self._book.credentials.values() if _names(other, instance)]
            if step not in known:
                raise CredentialError("maker", expected="the client credentialed for this step", got=instance[:16])
            return
        if self._book.aggregator(instance, round_number=self._round(entry), before=entry.sequence) is None:
            raise CredentialError("aggregator", expected="one credentialed for this round", got=instance[:16])

    def _attempt(self, entry: Entry) -> _Attempt:
        return choice(entry, "purpose", Purpose), self._round(entry), number(entry, "attempt")

    def _round(self, entry: Entry) -> int:
        round_number, attempt, manifest = number(entry, "round"), number(entry, "attempt"), self._manifest
        if not (1 <= round_number <= manifest.rounds and 0 <= attempt < manifest.max_attempts):
            within = f"{manifest.rounds} rounds of {manifest.max_attempts} attempts"
            raise BudgetError("round and attempt", expected=within, got=f"{round_number}/{attempt}")
        return round_number


def _require_step(key: object, role: Role, purpose: Purpose, round_number: int, *, scenario: Scenario) -> None:
    fields: Mapping[str, object] = key if isinstance(key, Mapping) else {}  # pyright: ignore[reportUnknownVariableType]
    use, version = fields.get("use"), fields.get("version")
    if use not in [str(known) for known in Use] or not isinstance(version, int):
        raise LedgerError("key", expected="a use and a version", got="something else")
    ahead = None if use == Use.DATA else version - base_version(purpose=purpose, round_number=round_number)
    if Step(role=role, purpose=purpose, use=Use(use), ahead=ahead) not in STEPS[scenario]:
        raise PurposeError("key", expected="a permitted step", got=f"{role} {purpose} {use} {ahead}")


def cross_check(books: Mapping[bytes, Book], records: Iterable[Committed], *, manifest: Manifest) -> None:
    """Hold the commit records against the ledgers of those who signed them, and the ledgers against each other.

    Raises:
        TicketError, CredentialError, LedgerError, InstanceError, ForkError, LineageError: names record and owner.
    """
    owner = books[manifest.model.owner.broker]
    role = Role.AGGREGATOR if manifest.scenario.combines else Role.CLIENT
    committed: set[tuple[Purpose, int]] = set()
    counted: set[str] = set()
    for one in records:
        with at(one.place):
            _check_tickets(books, one, counted)
            _check_countersignatures(books, one, role=role)
            _check_commit(owner, one, role=role)
        committed.add((one.candidate.purpose, one.candidate.round))
    for (purpose, round_number), entry in owner.committed.items():
        if (purpose, round_number) not in committed:
            with owner.witness.at(entry):
                raise LineageError(f"{purpose} of round {round_number}", expected="its commit record", got="none")
    _check_forks(books.values())


def _check_tickets(books: Mapping[bytes, Book], one: Committed, counted: set[str]) -> None:
    for signed in one.record.tickets:
        book, ticket = books[signed.signer], unverified(signed, Ticket)
        name = book.witness.party.name
        entry = book.tickets.get(signed.digest)
        if entry is None:
            raise TicketError(f"ticket of {name}", expected="one in its owner's ledger", got=signed.digest[:16])
        # The ledger's entry was held against the committed versions: so is what the ticket itself says.
        if ticket.round != number(entry, "round") or ticket.base != text(entry, "base"):
            raise TicketError(f"ticket of {name}", expected="the step and base in its owner's ledger", got="others")
        if signed.digest in counted:
            raise TicketError(f"ticket of {name}", expected="one in a single version", got="one in two")
        counted.add(signed.digest)
        credential = book.credentials[text(entry, "credential")]
        client = book.instances.found[text(credential, "evidence")].claims.binding.signing_public
        if (ticket.credential, ticket.signing_public) != (text(entry, "credential"), client):
            raise CredentialError(f"ticket of {name}", expected="the key of the client that attested", got="another")


def _check_countersignatures(books: Mapping[bytes, Book], one: Committed, *, role: Role) -> None:
    candidate = one.candidate
    step = (candidate.purpose, candidate.round, candidate.attempt)
    for signed in one.record.countersignatures:
        book = books[signed.signer]
        entry = book.countersigned.get(step)
        known = (text(entry, "countersignature"), text(entry, "candidate")) if entry is not None else None
        if entry is None or known != (signed.digest, one.record.candidate.digest):
            whose = f"countersignature of {book.witness.party.name}"
            raise LedgerError(whose, expected="one in its owner's ledger", got=signed.digest[:16])
        for name in ("base", "digest", "instance"):
            if text(entry, name) != getattr(candidate, name):
                field = f"countersignature of {book.witness.party.name}: {name} in its ledger"
                raise LedgerError(field, expected=getattr(candidate, name)[:16], got=text(entry, name)[:16])
        _require_maker_key(book, one, role=role, before=entry.sequence)


def _check_commit(owner: Book, one: Committed, *, role: Role) -> None:
    entry = owner.committed.get((one.candidate.purpose, one.candidate.round))
    known = (text(entry, "commit"), text(entry, "candidate")) if entry is not None else None
    if entry is None or known != (one.record.commit.digest, one.record.candidate.digest):
        raise LedgerError("commit", expected="one in the model owner's ledger", got=one.record.commit.digest[:16])
    _require_maker_key(owner, one, role=role, before=entry.sequence)


def _names(entry: Entry, instance: str) -> bool:
    return text(entry, "instance") == instance


def _require_maker_key(book: Book, one: Committed, *, role: Role, before: int) -> None:
    attested: Attested | None = book.instances.of(one.candidate.instance, role=role, before=before)
    if attested is None or attested.claims.binding.signing_public != one.record.candidate.signer:
        where = f"{role} at {book.witness.party.name}"
        raise InstanceError(where, expected="one that attested there", got=one.candidate.instance[:16])


def _check_forks(books: Iterable[Book]) -> None:
    successors: dict[tuple[_Attempt, str], tuple[str, str]] = {}
    for book in books:
        name = book.witness.party.name
        for step, entry in book.countersigned.items():
            candidate = text(entry, "candidate")
            digest, other = successors.setdefault((step, text(entry, "base")), (candidate, name))
            if digest != candidate:
                with book.witness.at(entry):
                    raise ForkError(f"successor beside {other}'s", expected=digest[:16], got=candidate[:16])
