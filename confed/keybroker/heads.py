"""Which version is the newest that this owner has witnessed; nothing older is ever a base again."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from confed import canonical, record
from confed.errors import ForkError, LineageError, RollbackError, RoundError
from confed.journey import Purpose, base_version
from confed.keybroker.decision import Decision
from confed.keybroker.lineage import parsed, read_record
from confed.keybroker.spending import base_state, verify_follows
from confed.keybroker.statements import Candidate
from confed.privacy.terms import PrivacyState


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadVersion:
    """The newest witnessed version, its file digest, the attempt that made it (0 for the start), and what is spent."""

    version: int
    digest: str
    attempt: int
    privacy: PrivacyState | None


@lru_cache(maxsize=4)
def _digest(data: bytes) -> str:
    """The digest of a record, of which one call shows the same bytes to every broker of a server."""
    return canonical.digest(data)


def head_of(decision: Decision) -> HeadVersion:
    """Return the head; before any commit it is the manifest's start."""
    row = decision.tx.one(
        "SELECT version, digest, attempt, privacy FROM versions WHERE manifest = ? ORDER BY version DESC LIMIT 1",
        (decision.terms.digest,),
    )
    if row is None:
        manifest = decision.terms.manifest
        return HeadVersion(version=0, digest=manifest.model.start.digest, attempt=0, privacy=base_state(manifest, None))
    spent = record.from_json(PrivacyState, canonical.decode(row[3].encode())) if row[3] else None
    return HeadVersion(version=row[0], digest=row[1], attempt=row[2], privacy=spent)


def witness(decision: Decision, data: bytes) -> HeadVersion:
    """Verify a commit record, take it over as the head if it is newer, and return the head.

    A record may skip versions that this broker never saw: the majority that countersigned them is what vouches for
    those, as it does for every base that this broker did not see made.

    Raises:
        ForkError: another version of the same number was witnessed.
        LineageError: the next version, but not made from the head, or with another account of what is spent.
        LineageError, QuorumError, CohortError, TicketError, SignatureError, EncodingError: a record that does not hold.
    """
    head = head_of(decision)
    if not data:
        return head
    found = read_record(data)
    version = parsed(found.candidate, Candidate).version
    if version < head.version:
        return head
    candidate = decision.terms.lineage.verify(found, round_number=version)
    if version == head.version:
        if candidate.digest != head.digest:
            raise ForkError("version", expected=head.digest, got=candidate.digest)
        return head
    if version == head.version + 1:
        if candidate.base != head.digest:
            raise LineageError("base of the next version", expected=head.digest, got=candidate.base)
        verify_follows(head.privacy, candidate)
    decision.record(
        "witnessed",
        record=_digest(data),
        commit=found.commit.digest,
        candidate=found.candidate.digest,
        version=version,
        digest=candidate.digest,
        base=candidate.base,
        round=candidate.round,
        attempt=candidate.attempt,
    )
    return advance(decision, candidate)


def advance(decision: Decision, candidate: Candidate) -> HeadVersion:
    """Make a committed candidate the head."""
    spent = "" if candidate.privacy is None else canonical.encode(record.to_json(candidate.privacy)).decode()
    decision.tx.execute(
        "INSERT INTO versions VALUES (?, ?, ?, ?, ?)",
        (decision.terms.digest, candidate.version, candidate.digest, candidate.attempt, spent),
    )
    return HeadVersion(
        version=candidate.version, digest=candidate.digest, attempt=candidate.attempt, privacy=candidate.privacy
    )


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
