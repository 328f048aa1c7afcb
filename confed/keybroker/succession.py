"""Which candidate becomes the next version: countersignatures and commits (DESIGN §4).

- A countersignature: one successor for each attempt, none for an attempt older than a ticket that this broker issued
  or a candidate that it countersigned; a repeated round has the same cohort or differs by at least k.
- A commit: one for each round, with countersignatures of more than half of the sites, and the head moves with it.
"""

from __future__ import annotations

from collections.abc import Sequence

from confed.errors import CohortError, ForkError, QuorumError, TicketError
from confed.journey import Purpose
from confed.keybroker.credentials import maker_key
from confed.keybroker.decision import Decision, Issued
from confed.keybroker.floors import require_counted_cohort
from confed.keybroker.heads import advance, require_base, witness
from confed.keybroker.lineage import members_apart, parsed, verified
from confed.keybroker.spending import verify_follows
from confed.keybroker.statements import Candidate, Commit, Countersignature, Ticket
from confed.record import to_json
from confed.statement import Signed


def countersign(
    decision: Decision, candidate: Candidate, signed: Signed, *, tickets: Sequence[Signed], base_record: bytes
) -> Signed:
    """Return the countersignature of the only successor that this broker will ever sign for this attempt.

    Raises:
        CredentialError: a maker that did not attest to this broker for this round.
        ForkError: another successor, or an attempt older than what this broker ticketed or countersigned.
        CohortError: the cohort's rules, the organisations that count, or a difference that would single somebody out.
        TicketError, LineageError, RollbackError, RoundError, ManifestMismatchError: as the names say.
    """
    site = decision.terms.site
    if site is None:
        raise QuorumError("countersignature", expected="a data owner's broker", got="another")
    earlier = decision.issued("countersigned", candidate.purpose, candidate.round)
    same = _only_successor(candidate, signed.digest, earlier)
    if same is not None:
        return same
    _require_candidate(decision, candidate, signed, tickets=tickets, base_record=base_record)
    _require_own_ticket(decision, candidate, tickets)
    _require_counted_once(decision, candidate)
    require_counted_cohort(decision, candidate)
    _require_no_difference(decision, candidate, earlier)
    issued = decision.sign(
        Countersignature(
            broker=decision.party.broker,
            identity=decision.party.identity,
            candidate=signed.digest,
            run=candidate.run,
            round=candidate.round,
            attempt=candidate.attempt,
            purpose=candidate.purpose,
            base=candidate.base,
            digest=candidate.digest,
            time=decision.now,
        )
    )
    _record_candidate(decision, "countersigned", candidate, signed.digest, countersignature=issued.digest)
    _note_counted(decision, candidate, issued)
    return decision.issue(
        issued,
        kind="countersigned",
        purpose=candidate.purpose,
        round_number=candidate.round,
        attempt=candidate.attempt,
        about=signed.digest,
        detail=decision.terms.lineage.members(candidate),
    )


def _only_successor(candidate: Candidate, digest: str, earlier: Sequence[Issued]) -> Signed | None:
    for issued in earlier:
        if issued.attempt == candidate.attempt:
            if issued.about == digest:
                return issued.signed
            raise ForkError("candidate", expected="the one successor of this attempt", got="a second")
        if issued.attempt > candidate.attempt:
            raise ForkError("candidate attempt", expected=f"at least {issued.attempt}", got=candidate.attempt)
    return None


def _require_candidate(
    decision: Decision, candidate: Candidate, signed: Signed, *, tickets: Sequence[Signed], base_record: bytes
) -> None:
    decision.require_open()
    key = maker_key(decision, instance=candidate.instance, round_number=candidate.round)
    verified(signed, Candidate, key)
    head = witness(decision, base_record)
    require_base(decision, head, purpose=candidate.purpose, round_number=candidate.round, base=candidate.base)
    decision.terms.lineage.verify_candidate(candidate, tickets)
    if candidate.purpose is Purpose.TRAIN:
        verify_follows(head.privacy, candidate)
    decision.take_seat(
        purpose=candidate.purpose,
        round_number=candidate.round,
        attempt=candidate.attempt,
        instance=candidate.instance,
    )


def _require_own_ticket(decision: Decision, candidate: Candidate, tickets: Sequence[Signed]) -> None:
    issued = decision.issued("ticket", candidate.purpose, candidate.round)
    newest = max((entry.attempt for entry in issued), default=0)
    if newest > candidate.attempt:
        raise ForkError("candidate attempt", expected=f"at least {newest}, which was ticketed", got=candidate.attempt)
    place = decision.terms.lineage.places(candidate).get(decision.party.identity)
    if place is None:
        return
    named = tickets[place]
    ticket = parsed(named, Ticket)
    if ticket.round != candidate.round:  # an update that came late; the lineage's rules say how late
        issued = decision.issued("ticket", candidate.purpose, ticket.round)
    if named.digest not in {entry.signed.digest for entry in issued if entry.attempt == ticket.attempt}:
        raise TicketError("own ticket", expected="the one that this broker issued", got="another")


def _require_counted_once(decision: Decision, candidate: Candidate) -> None:
    """Refuse a ticket that this broker has countersigned in an earlier round: one that comes late could be in two.

    More than half of the brokers countersigned that round, so no majority is left for the ticket's second.
    """
    late = decision.terms.manifest.strategy.staleness
    for number in range(max(1, candidate.round - late), candidate.round if late else 0):
        newest = decision.issued("counted", candidate.purpose, number)[-1:]
        for issued in newest:
            if {*candidate.tickets} & {*issued.about.split(",")}:
                raise TicketError("tickets", expected="none of an earlier version's", got=f"one of round {number}")


def _note_counted(decision: Decision, candidate: Candidate, issued: Signed) -> None:
    """Remember the tickets of a round, where one could be shown again."""
    if decision.terms.manifest.strategy.staleness:
        decision.issue(
            issued,
            kind="counted",
            purpose=candidate.purpose,
            round_number=candidate.round,
            attempt=candidate.attempt,
            about=",".join(candidate.tickets),
        )


def _require_no_difference(decision: Decision, candidate: Candidate, earlier: Sequence[Issued]) -> None:
    least = decision.terms.manifest.cohort.least
    cohort = decision.terms.lineage.members(candidate)
    for issued in earlier:
        apart = members_apart(cohort, issued.detail)
        if 0 < apart < least:
            raise CohortError("cohort of a repeated round", expected=f"the same, or {least} apart", got=apart)


def commit(
    decision: Decision,
    candidate: Candidate,
    signed: Signed,
    *,
    tickets: Sequence[Signed],
    countersignatures: Sequence[Signed],
    base_record: bytes,
) -> Signed:
    """Make a candidate the version: the model owner's broker's word, with a quorum of countersignatures.

    Raises:
        QuorumError: too few countersignatures, or not the model owner's broker.
        ForkError: another candidate was committed for this round.
        CredentialError, CohortError, TicketError, LineageError, RollbackError, RoundError: as the names say.
    """
    if not decision.terms.is_model_owner:
        raise QuorumError("commit", expected="the model owner's broker", got="another")
    for issued in decision.issued("committed", candidate.purpose, candidate.round):
        if issued.about == signed.digest:
            return issued.signed
        raise ForkError("commit", expected="one for each round", got="a second")
    _require_candidate(decision, candidate, signed, tickets=tickets, base_record=base_record)
    digests = decision.terms.lineage.verify_countersignatures(signed.digest, candidate, countersignatures)
    issued = decision.sign(
        Commit(
            broker=decision.party.broker,
            candidate=signed.digest,
            run=candidate.run,
            round=candidate.round,
            attempt=candidate.attempt,
            purpose=candidate.purpose,
            version=candidate.version,
            digest=candidate.digest,
            countersignatures=digests,
            time=decision.now,
        )
    )
    _record_candidate(
        decision, "committed", candidate, signed.digest, commit=issued.digest, countersignatures=list(digests)
    )
    if candidate.purpose is Purpose.TRAIN:
        advance(decision, candidate)
    return decision.issue(
        issued,
        kind="committed",
        purpose=candidate.purpose,
        round_number=candidate.round,
        attempt=candidate.attempt,
        about=signed.digest,
    )


def _record_candidate(decision: Decision, event: str, candidate: Candidate, digest: str, **more: object) -> None:
    decision.record(
        event,
        candidate=digest,
        round=candidate.round,
        attempt=candidate.attempt,
        purpose=candidate.purpose,
        base=candidate.base,
        version=candidate.version,
        digest=candidate.digest,
        state=candidate.state,
        instance=candidate.instance,
        cohort=decision.terms.lineage.members(candidate).hex(),
        privacy=to_json(candidate.privacy),
        **more,
    )
