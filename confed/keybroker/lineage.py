"""What makes a sealed file a version of the model: a commit, a majority of countersignatures, and their cohort.

The public half: clients, the aggregator, the governor, brokers and ``confed verify`` all check with these functions.
The rules for one record:

1. the commit is signed by the model owner's broker and is over this candidate, with equal fields;
2. countersignatures are by distinct sites' own brokers over this candidate, more than half of all sites;
3. the cohort is made of distinct identities, drawn by the manifest for this round, at least ``cohort.least``;
4. each of them has one ticket, signed by its own broker, for exactly this step and this aggregator, and enough
   identities that count for the ticket's owner beside it; with FedBuff a ticket may be for an earlier step of this
   aggregator, at most ``max_staleness`` rounds ago;
5. a trained version's number is its round; an evaluation's version is its own base;
6. with central privacy, what a trained version says is spent is what its releases spend, within the budget.

The aggregator's own signature counts for nothing alone: its key is accepted only because the countersigning
brokers, each of which attested and credentialed it, sign the candidate's digest.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import lru_cache
from typing import TypeVar

from confed.errors import CohortError, LineageError, ManifestMismatchError, QuorumError, TicketError
from confed.journey import Purpose, base_version
from confed.keybroker.spending import verify_spent
from confed.keybroker.statements import Candidate, ClearMetrics, Commit, CommitRecord, Countersignature, Ticket
from confed.manifest import Manifest
from confed.statement import Signed, unverified, verify

T = TypeVar("T")
_HEX = frozenset("0123456789abcdef")
_KEPT = 64
_KEPT_RECORDS = 512
_KEPT_LARGE = 4
_KEPT_IDENTITIES = 65_536
_SMALL_BYTES = 64 * 1024


class Lineage:
    """The rules for versions of one manifest; remembers what it has verified, since records do not change."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.digest = manifest.digest
        self._names = {site.owner.name: site.owner.identity for site in manifest.sites}
        self._brokers = {site.owner.identity: site.owner.broker for site in manifest.sites}
        self._drawn: dict[tuple[str, int], tuple[bytes, ...]] = {}
        self._everybody: tuple[tuple[str, int], frozenset[bytes]] | None = None
        self._members: tuple[Candidate, bytes] | None = None
        self._places: tuple[Candidate, Mapping[bytes, int]] | None = None
        self._checked: tuple[Candidate, tuple[Signed, ...]] | None = None
        self._verified: OrderedDict[tuple[object, ...], Candidate] = OrderedDict()
        self._newest: tuple[CommitRecord, tuple[object, ...], Candidate] | None = None
        self._lock = threading.Lock()

    def drawn(self, purpose: Purpose, round_number: int) -> tuple[bytes, ...]:
        """Return the identities of a round's cohort in identity order."""
        key = (str(purpose), round_number)
        found = self._drawn.get(key)
        if found is None:
            sites = self.manifest.draw(purpose=purpose, round_number=round_number)
            found = self._drawn[key] = tuple(site.owner.identity for site in sites)
        return found

    def is_drawn(self, identity: bytes, purpose: Purpose, round_number: int) -> bool:
        """Return whether an identity is in a round's cohort."""
        key, known = (str(purpose), round_number), self._everybody
        if known is None or known[0] != key:
            known = self._everybody = (key, frozenset(self.drawn(purpose, round_number)))
        return identity in known[1]

    def places(self, candidate: Candidate) -> Mapping[bytes, int]:
        """Return where each identity of a candidate's cohort stands in it; worked out once for all of one call."""
        known = self._places
        if known is None or known[0] is not candidate:
            known = self._places = (candidate, {identity: at for at, identity in enumerate(candidate.cohort)})
        return known[1]

    def members(self, candidate: Candidate) -> bytes:
        """Return which of the drawn identities are in a candidate's cohort: a bit for each, in identity order.

        The first identity is the highest bit; what is left of the last byte is zero. This is how ledgers name a
        cohort: a thousand brokers each note it in every round.
        """
        known = self._members
        if known is not None and known[0] is candidate:
            return known[1]
        cohort = frozenset(candidate.cohort)
        drawn = self.drawn(candidate.purpose, candidate.round)
        size = -(-len(drawn) // 8)
        bits = "".join("1" if identity in cohort else "0" for identity in drawn).ljust(size * 8, "0")
        found = int(bits or "0", 2).to_bytes(size, "big")
        self._members = (candidate, found)
        return found

    def verify(
        self,
        record: CommitRecord,
        *,
        round_number: int,
        purpose: Purpose = Purpose.TRAIN,
        attempt: int | None = None,
        base: str | None = None,
    ) -> Candidate:
        """Return the candidate that a record makes a version (rules 1 to 6 of this module).

        Raises:
            LineageError, SignatureError, EncodingError: the commit, a countersignature or a field does not hold.
            QuorumError: too few countersignatures.
            CohortError: too few identities, one twice, or one that was not drawn.
            TicketError: a ticket that is absent or for something else.
        """
        step, newest = (round_number, purpose, attempt, base), self._newest
        # The same object again: the brokers of one server are asked about one record in one call.
        if newest is not None and newest[0] is record and newest[1] == step:
            return newest[2]
        signed = (record.candidate, *record.tickets, record.commit, *record.countersignatures)
        key = (_digest_of(signed), record.metrics.digest, *step)
        known = self._verified.get(key)
        if known is not None:
            self._newest = (record, step, known)
            return known
        candidate = verified(record.candidate, Candidate, record.candidate.signer)
        _equal("candidate round", round_number, candidate.round)
        _equal("candidate purpose", purpose, candidate.purpose)
        if attempt is not None:
            _equal("candidate attempt", attempt, candidate.attempt)
        if base is not None:
            _equal("candidate base", base, candidate.base)
        self.verify_candidate(candidate, record.tickets)
        digests = self.verify_countersignatures(record.candidate.digest, candidate, record.countersignatures)
        _equal("commit countersignatures", digests, self._verify_commit(record, candidate).countersignatures)
        self._verify_metrics(record.metrics, candidate)
        self._newest = (record, step, candidate)
        with self._lock:
            self._verified[key] = candidate
            # A record of many sites is large, so fewer of those are remembered.
            while len(self._verified) > max(_KEPT_LARGE, min(_KEPT_RECORDS, _KEPT_IDENTITIES // len(self._brokers))):
                self._verified.popitem(last=False)
        return candidate

    def verify_abridged(self, record: CommitRecord, *, base: str) -> Candidate:
        """Return the candidate of a record without tickets and countersignatures (rules 1, 3, 5 and 6 of this module).

        Not promised: that any broker countersigned it. The model owner's broker says so by naming enough of them.

        Raises:
            LineageError, SignatureError, EncodingError: the commit or a field does not hold.
            QuorumError: the commit names too few countersignatures.
            CohortError: too few identities, one twice, or one that was not drawn.
            ManifestMismatchError: a metric in clear that the manifest does not allow.
        """
        candidate = verified(record.candidate, Candidate, record.candidate.signer)
        _equal("candidate base", base, candidate.base)
        self._verify_fields(candidate)
        self._verify_cohort(candidate)
        named = len(set(self._verify_commit(record, candidate).countersignatures))
        if named < self.manifest.quorum:
            raise QuorumError("countersignatures named", expected=f"{self.manifest.quorum} identities", got=named)
        self._verify_metrics(record.metrics, candidate)
        return candidate

    def verify_candidate(self, candidate: Candidate, tickets: Sequence[Signed]) -> None:
        """Check what a candidate proposes and the tickets of its cohort (rules 3, 4 and 5).

        Raises:
            LineageError: another manifest, run, round or version, or a digest that is none.
            CohortError: too few identities, one twice, one that was not drawn, or not in identity order.
            TicketError: a ticket that is absent, used twice or for something else.
            ManifestMismatchError: a metric in clear that the manifest does not allow.
        """
        # The very objects that were checked last: they cannot change, so one call's brokers check them once.
        checked = self._checked
        if checked is not None and checked[0] is candidate and checked[1] is tickets:
            return
        self._verify_fields(candidate)
        self._verify_cohort(candidate)
        if len(tickets) != len(candidate.cohort) or tuple(ticket.digest for ticket in tickets) != candidate.tickets:
            raise TicketError("tickets", expected="those that the candidate names, in its order", got="others")
        if len({*candidate.tickets}) != len(candidate.tickets):
            raise TicketError("tickets", expected="each once", got="one twice")
        cohort = frozenset(candidate.cohort)
        for identity, signed in zip(candidate.cohort, tickets, strict=True):
            self._verify_ticket(candidate, cohort, identity, signed)
        bases: dict[int, tuple[int, str]] = {}
        for ticket in (parsed(signed, Ticket) for signed in tickets):
            if bases.setdefault(ticket.round, (ticket.attempt, ticket.base)) != (ticket.attempt, ticket.base):
                raise TicketError("tickets of one round", expected="one attempt and base", got="two")
        if isinstance(tickets, tuple):
            self._checked = (candidate, tickets)

    def verify_countersignatures(
        self, digest: str, candidate: Candidate, countersignatures: Sequence[Signed]
    ) -> tuple[str, ...]:
        """Return the digests of the countersignatures of a candidate with this digest (rule 2).

        Raises:
            LineageError, SignatureError: one that is not by a site's own broker over this candidate.
            QuorumError: fewer distinct identities than more than half of the sites.
        """
        seen: set[bytes] = set()
        by_broker = {broker: identity for identity, broker in self._brokers.items()}
        for signed in countersignatures:
            identity = by_broker.get(signed.signer)
            if identity is None:
                raise LineageError("countersignature signer", expected="a site's broker", got=signed.signer.hex()[:16])
            found = verified(signed, Countersignature, signed.signer)
            _equal("countersignature broker", signed.signer, found.broker)
            _equal("countersignature identity", identity, found.identity)
            _equal("countersignature candidate", digest, found.candidate)
            for name in ("run", "round", "attempt", "purpose", "base", "digest"):
                _equal(f"countersignature {name}", getattr(candidate, name), getattr(found, name))
            seen.add(identity)
        if len(seen) < self.manifest.quorum:
            raise QuorumError("countersignatures", expected=f"{self.manifest.quorum} identities", got=len(seen))
        return tuple(signed.digest for signed in countersignatures)

    def _verify_commit(self, record: CommitRecord, candidate: Candidate) -> Commit:
        owner = self.manifest.model.owner.broker
        if record.commit.signer != owner:
            raise LineageError(
                "commit signer", expected="the model owner's broker", got=record.commit.signer.hex()[:16]
            )
        commit = verified(record.commit, Commit, owner)
        _equal("commit broker", owner, commit.broker)
        _equal("commit candidate", record.candidate.digest, commit.candidate)
        for name in ("run", "round", "attempt", "purpose", "version", "digest"):
            _equal(f"commit {name}", getattr(candidate, name), getattr(commit, name))
        return commit

    def _verify_fields(self, candidate: Candidate) -> None:
        manifest = self.manifest
        _equal("candidate run", manifest.run, candidate.run)
        _equal("candidate manifest", self.digest, candidate.manifest)
        if not 1 <= candidate.round <= manifest.rounds:
            raise LineageError("candidate round", expected=f"from 1 to {manifest.rounds}", got=candidate.round)
        if not 0 <= candidate.attempt < manifest.max_attempts:
            raise LineageError("candidate attempt", expected=f"below {manifest.max_attempts}", got=candidate.attempt)
        if candidate.purpose not in (Purpose.TRAIN, Purpose.EVALUATE):
            raise LineageError("candidate purpose", expected="train or evaluate", got=candidate.purpose)
        _equal("candidate version", candidate.round, candidate.version)
        for name in ("base", "digest", "instance"):
            _digest(f"candidate {name}", getattr(candidate, name))
        if candidate.purpose is Purpose.EVALUATE:
            _equal("evaluated digest", candidate.base, candidate.digest)
            _equal("evaluated state", "", candidate.state)
        elif candidate.digest == candidate.base:
            raise LineageError("candidate digest", expected="a new version", got="its own base")
        if candidate.state:
            _digest("candidate state", candidate.state)
        if (
            candidate.purpose is Purpose.TRAIN
            and base_version(purpose=candidate.purpose, round_number=candidate.round) == 0
        ):
            _equal("candidate base", manifest.model.start.digest, candidate.base)
        _digest("candidate metrics", candidate.metrics)
        verify_spent(manifest, candidate)

    def _verify_metrics(self, metrics: ClearMetrics, candidate: Candidate) -> None:
        terms = self.manifest.metrics
        _equal("metrics", candidate.metrics, metrics.digest)
        for name, value in metrics.values.items():
            if name not in terms.clear:
                raise ManifestMismatchError("clear metric", expected="one that the manifest allows", got=name[:40])
            if round(value, terms.decimals) != value:
                raise ManifestMismatchError(f"clear metric {name}", expected=f"{terms.decimals} decimals", got="more")

    def _verify_cohort(self, candidate: Candidate) -> None:
        cohort = candidate.cohort
        if len(set(cohort)) != len(cohort):
            raise CohortError("cohort", expected="distinct identities", got="one twice")
        drawn = self.drawn(candidate.purpose, candidate.round)
        members, everybody = frozenset(cohort), frozenset(drawn)
        if not members <= everybody:
            raise CohortError("cohort", expected="identities drawn for this round", got="another")
        if len(cohort) < self.manifest.cohort.least:
            raise CohortError("cohort", expected=f"at least {self.manifest.cohort.least}", got=len(cohort))
        if cohort != tuple(identity for identity in drawn if identity in members):
            raise CohortError("cohort", expected="identity order", got="another order")
        for name in candidate.excluded:
            if self._names.get(name) not in everybody or self._names[name] in members:
                raise CohortError("excluded", expected="drawn sites outside the cohort", got=name[:40])

    def _verify_ticket(self, candidate: Candidate, cohort: frozenset[bytes], identity: bytes, signed: Signed) -> None:
        broker = self._brokers[identity]
        if signed.signer != broker:
            raise TicketError("ticket signer", expected="the identity's own broker", got="another")
        ticket = verified(signed, Ticket, broker)
        late = self.manifest.strategy.staleness if candidate.purpose is Purpose.TRAIN else 0
        step = (candidate.round, candidate.attempt, candidate.base)
        if candidate.round - late <= ticket.round < candidate.round:
            # An update that comes late is of a step of its own; that its base was committed, its own broker says by
            # this ticket, which it gives for its head alone, and its ledger shows (``records.witnesses``).
            step = (ticket.round, ticket.attempt, ticket.base)
        expected = (
            broker, identity, self.digest, candidate.run, step[0],
            step[1], candidate.purpose, step[2], candidate.instance,
        )  # fmt: skip
        got = (
            ticket.broker, ticket.identity, ticket.manifest, ticket.run, ticket.round,
            ticket.attempt, ticket.purpose, ticket.base, ticket.aggregator,
        )  # fmt: skip
        if expected != got:
            raise TicketError("ticket", expected="for this step, base and aggregator", got="for another")
        require_counted(cohort, ticket)


def members_apart(one: bytes, other: bytes) -> int:
    """Return in how many identities two cohorts differ, given as ``Lineage.members`` of the same round and purpose.

    What is not of one length cannot be compared and counts as the smallest difference there is, which refuses.
    """
    if len(one) != len(other):
        return 1
    return (int.from_bytes(one, "big") ^ int.from_bytes(other, "big")).bit_count()


def require_counted(cohort: AbstractSet[bytes], ticket: Ticket) -> None:
    """Check that a cohort has as many identities that count as the owner behind a ticket in it asks for.

    Raises:
        CohortError: fewer.
    """
    counted = cohort & set(ticket.counted) if ticket.counted else cohort
    if len(counted) < ticket.least_cohort:
        raise CohortError("identities that count", expected=f"at least {ticket.least_cohort}", got=len(counted))


def verify_commit_record(
    record: CommitRecord,
    *,
    manifest: Manifest,
    round_number: int,
    purpose: Purpose = Purpose.TRAIN,
    attempt: int | None = None,
    base: str | None = None,
) -> Candidate:
    """Return the candidate that a commit record makes a version of ``manifest``'s run, all signatures checked.

    ``attempt`` and ``base`` are checked where they are given. Not promised: that ``base`` itself was committed; the
    caller knows that from the record before.

    Raises:
        LineageError, SignatureError, EncodingError: a part is not what its place in the record needs.
        QuorumError, CohortError, TicketError: as the names say.
    """
    lineage = lineage_of(manifest)
    return lineage.verify(record, round_number=round_number, purpose=purpose, attempt=attempt, base=base)


def lineage_of(manifest: Manifest) -> Lineage:
    """Return the one ``Lineage`` of this process for a manifest (a digest is computed once an object)."""
    with _lock:
        entry = _by_object.get(id(manifest))
        if entry is not None and entry[0] is manifest:
            return entry[1]
    fresh = Lineage(manifest)
    with _lock:
        lineage = _by_digest.setdefault(fresh.digest, fresh)
        # The entry holds the manifest itself, so its id cannot be given to another object meanwhile.
        _by_object[id(manifest)] = (manifest, lineage)
        for kept in (_by_digest, _by_object):
            while len(kept) > _KEPT:
                kept.popitem(last=False)
    return lineage


def read_record(data: bytes) -> CommitRecord:
    """Return the commit record of canonical JSON, unverified; equal bytes are parsed once.

    Raises:
        EncodingError: anything else.
    """
    return _read_small(data) if len(data) <= _SMALL_BYTES else _read_large(data)


@lru_cache(maxsize=_KEPT_RECORDS)
def _read_small(data: bytes) -> CommitRecord:
    return CommitRecord.from_bytes(data)


@lru_cache(maxsize=_KEPT_LARGE)
def _read_large(data: bytes) -> CommitRecord:
    return CommitRecord.from_bytes(data)


def parsed(signed: Signed, kind: type[T]) -> T:
    """Return a statement as ``statement.unverified`` does, remembering it: nothing about it is believed yet."""
    read = _parsed if len(signed.payload) <= _SMALL_BYTES else _parsed_large
    return read(signed.payload, kind)  # pyright: ignore[reportReturnType]


def verified(signed: Signed, kind: type[T], signer: bytes) -> T:
    """Return a statement as ``statement.verify`` does, remembering it, so that shared processes parse it once."""
    check = _verified if len(signed.payload) <= _SMALL_BYTES else _verified_large
    return check(signed, kind, signer)  # pyright: ignore[reportReturnType]


# Apart from the small ones: the tickets of a large cohort would push out the one candidate that names them all, which
# each of a process' brokers would then parse, and check with all its tickets, anew.
@lru_cache(maxsize=_KEPT_LARGE)
def _verified_large(signed: Signed, kind: type[object], signer: bytes) -> object:
    return verify(signed, kind, signer=signer)


@lru_cache(maxsize=_KEPT_LARGE)
def _parsed_large(payload: bytes, kind: type[object]) -> object:
    return unverified(Signed(payload=payload, signer=b"", signature=b""), kind)


@lru_cache(maxsize=8192)
def _verified(signed: Signed, kind: type[object], signer: bytes) -> object:
    return verify(signed, kind, signer=signer)


@lru_cache(maxsize=8192)
def _parsed(payload: bytes, kind: type[object]) -> object:
    return unverified(Signed(payload=payload, signer=b"", signature=b""), kind)


_lock = threading.Lock()
_by_digest: OrderedDict[str, Lineage] = OrderedDict()
_by_object: OrderedDict[int, tuple[Manifest, Lineage]] = OrderedDict()


def _equal(field: str, expected: object, got: object) -> None:
    if expected != got:
        raise LineageError(field, expected=_short(expected), got=_short(got))


def _digest_of(statements: Iterable[Signed]) -> bytes:
    found = hashlib.sha256()
    for signed in statements:
        for part in (signed.payload, signed.signer, signed.signature):
            found.update(len(part).to_bytes(8, "big") + part)
    return found.digest()


def _short(value: object) -> object:
    return value.hex()[:16] if isinstance(value, bytes) else str(value)[:64]


def _digest(field: str, value: str) -> None:
    if len(value) != 64 or not _HEX.issuperset(value):
        raise LineageError(field, expected="a SHA-256 digest", got=value[:64])
