"""Which version is the newest that this owner has witnessed; nothing older is ever a base again."""

from __future__ import annotations

from dataclasses import dataclass

from confed import canonical
from confed.errors import ForkError, LineageError, RollbackError, RoundError
from confed.journey import Purpose, base_version
from confed.keybroker.decision import Decision
from confed.keybroker.lineage import parsed, read_record
from confed.keybroker.statements import Candidate


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadVersion:
    """The newest witnessed version, its file digest, and the attempt that made it (0 for the start)."""

    version: int
    digest: str
    attempt: int


def head_of(decision: Decision) -> HeadVersion:
    """Return the head; before any commit it is the manifest's start."""
    row = decision.tx.one(
        "SELECT version, digest, attempt FROM versions WHERE manifest = ? ORDER BY version DESC LIMIT 1",
        (decision.terms.digest,),
    )
    if row is None:
        return HeadVersion(version=0, digest=decision.terms.manifest.model.start.digest, attempt=0)
    return HeadVersion(version=row[0], digest=row[1], attempt=row[2])


def witness(decision: Decision, data: bytes) -> HeadVersion:
    """Verify a commit record, take it over as the head if it is newer, and return the head.

    A record may skip versions that this broker never saw: the majority that countersigned them is what vouches for
    those, as it does for every base that this broker did not see made.

    Raises:
        ForkError: another version of the same number was witnessed.
        LineageError: the next version, but not made from the head.
        LineageError, QuorumError, CohortError, TicketError, SignatureError, EncodingError: a record that does not hold.
    """
    head = head_of(decision)
    if not data:
        return head
    record = read_record(data)
    version = parsed(record.candidate, Candidate).version
    if version < head.version:
        return head
    candidate = decision.terms.lineage.verify(record, round_number=version)
    if version == head.version:
        if candidate.digest != head.digest:
            raise ForkError("version", expected=head.digest, got=candidate.digest)
        return head
    if version == head.version + 1 and candidate.base != head.digest:
        raise LineageError("base of the next version", expected=head.digest, got=candidate.base)
    decision.record(
        "witnessed",
        record=canonical.digest(data),
        commit=record.commit.digest,
        candidate=record.candidate.digest,
        version=version,
        digest=candidate.digest,
        base=candidate.base,
        round=candidate.round,
        attempt=candidate.attempt,
    )
    return advance(decision, candidate)


def advance(decision: Decision, candidate: Candidate) -> HeadVersion:
    """Make a committed candidate the head."""
    decision.tx.execute(
        "INSERT INTO versions VALUES (?, ?, ?, ?)",
        (decision.terms.digest, candidate.version, candidate.digest, candidate.attempt),
    )
    return HeadVersion(version=candidate.version, digest=candidate.digest, attempt=candidate.attempt)


def require_base(decision: Decision, head: HeadVersion, *, purpose: Purpose, round_number: int, base: str) -> None:
    """Refuse a step that does not start from the head.

    Raises:
        RoundError: a round outside the manifest, or not the head's (evaluate) or the one after it (train, aggregate).
        RollbackError: a base that this broker has seen replaced.
        LineageError: a base that nothing it has seen makes a version.
    """
    rounds = decision.terms.manifest.rounds
    if not 1 <= round_number <= rounds:
        raise RoundError("round", expected=f"from 1 to {rounds}", got=round_number)
    if base != head.digest:
        known = decision.tx.one(
            "SELECT version FROM versions WHERE manifest = ? AND digest = ?", (decision.terms.digest, base)
        )
        if known is not None or base == decision.terms.manifest.model.start.digest:
            raise RollbackError("base", expected=f"version {head.version}", got="an older one")
        raise LineageError("base", expected=head.digest, got=base[:64])
    expected = base_version(purpose=purpose, round_number=round_number)
    if expected != head.version:
        raise RoundError("round", expected=f"one that starts from version {head.version}", got=round_number)
