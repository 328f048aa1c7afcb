"""The rules of a round at one broker: tickets, countersignatures, commits and the end of the run (DESIGN §4).

- A ticket: by the credentialed client of exactly this step, for an aggregator that this broker credentialed; one for
  each step, none for an attempt older than one already ticketed; charged when issued, never refunded.
- A countersignature: one successor for each attempt, none for an attempt older than a ticket that this broker issued
  or a candidate that it countersigned; a repeated round has the same cohort or differs by at least k.
- A commit: one for each round, with countersignatures of more than half of the sites, and the head moves with it.
- A closing: when the head is the last round; each owner agrees by its own head.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from confed.errors import (
    BudgetError,
    CohortError,
    CredentialError,
    ForkError,
    LineageError,
    PurposeError,
    QuorumError,
    RequestReplayError,
    RoundError,
    TicketError,
)
from confed.journey import Purpose
from confed.keybroker.credentials import aggregator_key
from confed.keybroker.decision import Decision, Issued
from confed.keybroker.floors import charge_round, require_counted_cohort
from confed.keybroker.heads import HeadVersion, advance, head_of, require_base, witness
from confed.keybroker.lineage import verified
from confed.keybroker.statements import (
    Candidate,
    ClientCredential,
    Closing,
    ClosingCountersignature,
    Commit,
    Countersignature,
    Ticket,
    TicketRequest,
)
from confed.statement import Signed, unverified, verify

_IDENTITY_BYTES = 32
_RESULTS = (Purpose.TRAIN, Purpose.EVALUATE)


def ticket(decision: Decision, request: TicketRequest, signed: Signed) -> Signed:
    """Return the one ticket of this step, charging it; the same request again gets the same bytes.

    Raises:
        CredentialError: a client or aggregator that this broker did not credential for this step.
        TicketError: a second one for this step.
        RequestReplayError: a request id used before for something else.
        RoundError, BudgetError, RollbackError, LineageError, CohortError, InstanceError: as the names say.
    """
    terms = decision.terms
    if terms.site is None or request.identity != decision.party.identity:
        raise TicketError("ticket identity", expected="this broker's owner", got=request.identity.hex()[:16])
    if request.purpose not in _RESULTS:
        raise PurposeError("ticket purpose", expected="train or evaluate", got=request.purpose)
    credential = _credential_of(decision, request, signed)
    repeated = _repeated_ticket(decision, request, signed.digest)
    if repeated is not None:
        return repeated
    decision.require_open()
    if not 0 <= request.attempt < terms.manifest.max_attempts:
        raise BudgetError("attempt", expected=f"below {terms.manifest.max_attempts}", got=request.attempt)
    if decision.now > credential.expires_at:
        raise CredentialError("client credential time", expected="now within its validity", got="expired")
    require_base(decision, head_of(decision), purpose=request.purpose, round_number=request.round, base=request.base)
    aggregator_key(decision, instance=request.aggregator, round_number=request.round)
    decision.take_seat(
        purpose=request.purpose, round_number=request.round, attempt=request.attempt, instance=request.aggregator
    )
    own = decision.data_floors()
    if request.purpose is Purpose.TRAIN and own is not None:
        charge_round(decision, own[0], own[1], request.round, spend=True)
    return _new_ticket(decision, request, signed, credential)


def _credential_of(decision: Decision, request: TicketRequest, signed: Signed) -> ClientCredential:
    found = decision.issued_for("client-credential", request.purpose, request.round, request.attempt)
    if found is None or found.signed.digest != request.credential:
        raise CredentialError("client credential", expected="the one of this step", got=request.credential[:16])
    verify(signed, TicketRequest, signer=found.detail)
    return unverified(found.signed, ClientCredential)


def _repeated_ticket(decision: Decision, request: TicketRequest, digest: str) -> Signed | None:
    row = decision.tx.one("SELECT request FROM ticket_requests WHERE request_id = ?", (request.request_id,))
    if row is not None and row[0] != digest:
        raise RequestReplayError("request id", expected="a new one", got="one used for something else")
    tickets = decision.issued("ticket", request.purpose, request.round)
    for issued in tickets:
        if issued.attempt == request.attempt:
            if issued.about == digest:
                return issued.signed
            raise TicketError("ticket", expected="one for each step", got="a second")
        if issued.attempt > request.attempt:
            raise RoundError("attempt", expected=f"at least {issued.attempt}", got=request.attempt)
    return None


def _new_ticket(decision: Decision, request: TicketRequest, signed: Signed, credential: ClientCredential) -> Signed:
    issued = decision.sign(
        Ticket(
            ticket_id=os.urandom(16),
            broker=decision.party.broker,
            identity=decision.party.identity,
            manifest=decision.terms.digest,
            run=decision.terms.run,
            round=request.round,
            attempt=request.attempt,
            purpose=request.purpose,
            base=request.base,
            aggregator=request.aggregator,
            credential=request.credential,
            signing_public=credential.signing_public,
            issued_at=decision.now,
            expires_at=credential.expires_at,
        )
    )
    decision.tx.execute("INSERT INTO ticket_requests VALUES (?, ?)", (request.request_id, signed.digest))
    decision.record(
        "ticketed",
        ticket=issued.digest,
        request=signed.digest,
        credential=request.credential,
        identity=request.identity.hex(),
        round=request.round,
        attempt=request.attempt,
        purpose=request.purpose,
        base=request.base,
        aggregator=request.aggregator,
    )
    return decision.issue(
        issued,
        kind="ticket",
        purpose=request.purpose,
        round_number=request.round,
        attempt=request.attempt,
        about=signed.digest,
    )


def countersign(
    decision: Decision, candidate: Candidate, signed: Signed, *, tickets: Sequence[Signed], base_record: bytes
) -> Signed:
    """Return the countersignature of the only successor that this broker will ever sign for this attempt.

    Raises:
        CredentialError: an aggregator that this broker did not credential for this round.
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
    _require_own_ticket(decision, candidate)
    require_counted_cohort(decision, candidate.cohort)
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
    return decision.issue(
        issued,
        kind="countersigned",
        purpose=candidate.purpose,
        round_number=candidate.round,
        attempt=candidate.attempt,
        about=signed.digest,
        detail=b"".join(candidate.cohort),
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
) -> HeadVersion:
    decision.require_open()
    key = aggregator_key(decision, instance=candidate.instance, round_number=candidate.round)
    verified(signed, Candidate, key)
    head = witness(decision, base_record)
    require_base(decision, head, purpose=candidate.purpose, round_number=candidate.round, base=candidate.base)
    decision.terms.lineage.verify_candidate(candidate, tickets)
    decision.take_seat(
        purpose=candidate.purpose,
        round_number=candidate.round,
        attempt=candidate.attempt,
        instance=candidate.instance,
    )
    return head


def _require_own_ticket(decision: Decision, candidate: Candidate) -> None:
    issued = decision.issued("ticket", candidate.purpose, candidate.round)
    newest = max((entry.attempt for entry in issued), default=0)
    if newest > candidate.attempt:
        raise ForkError("candidate attempt", expected=f"at least {newest}, which was ticketed", got=candidate.attempt)
    if decision.party.identity not in candidate.cohort:
        return
    named = candidate.tickets[candidate.cohort.index(decision.party.identity)]
    if named not in {entry.signed.digest for entry in issued if entry.attempt == candidate.attempt}:
        raise TicketError("own ticket", expected="the one that this broker issued", got="another")


def _require_no_difference(decision: Decision, candidate: Candidate, earlier: Sequence[Issued]) -> None:
    least = decision.terms.manifest.cohort.least
    cohort = set(candidate.cohort)
    for issued in earlier:
        starts = range(0, len(issued.detail), _IDENTITY_BYTES)
        before = {issued.detail[start : start + _IDENTITY_BYTES] for start in starts}
        if before != cohort and len(before ^ cohort) < least:
            raise CohortError(
                "cohort of a repeated round", expected=f"the same, or {least} apart", got=len(before ^ cohort)
            )


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
        cohort=[identity.hex() for identity in candidate.cohort],
        tickets=list(candidate.tickets),
        **more,
    )


def close(decision: Decision, *, final_record: bytes, closing: Signed | None) -> Signed:
    """Sign that the run ended (the model owner's broker), or agree with that by one's own head (the others).

    Raises:
        RoundError: the head is not the last round.
        QuorumError: no closing from the model owner's broker, or not a data owner's broker.
        LineageError: a closing that is not equal to this broker's head.
    """
    kind = "closing" if closing is None else "closing-countersigned"
    about = "" if closing is None else closing.digest
    rounds = decision.terms.manifest.rounds
    for issued in decision.issued(kind, Purpose.TRAIN, rounds):
        if issued.about == about:
            return issued.signed
        raise ForkError("closing", expected="the one that was countersigned", got="another")
    head = witness(decision, final_record)
    if head.version != rounds:
        raise RoundError("closing", expected=f"version {rounds}", got=head.version)
    signed = _closing(decision, head) if closing is None else _countersigned_closing(decision, head, closing)
    decision.record(
        kind, closing=about or signed.digest, statement=signed.digest, version=head.version, digest=head.digest
    )
    return decision.issue(signed, kind=kind, purpose=Purpose.TRAIN, round_number=rounds, attempt=0, about=about)


def _closing(decision: Decision, head: HeadVersion) -> Signed:
    if not decision.terms.is_model_owner:
        raise QuorumError("closing", expected="the model owner's broker", got="another")
    return decision.sign(
        Closing(
            broker=decision.party.broker,
            run=decision.terms.run,
            manifest=decision.terms.digest,
            rounds=decision.terms.manifest.rounds,
            version=head.version,
            digest=head.digest,
            time=decision.now,
        )
    )


def _countersigned_closing(decision: Decision, head: HeadVersion, closing: Signed) -> Signed:
    terms = decision.terms
    if terms.site is None:
        raise QuorumError("closing countersignature", expected="a data owner's broker", got="another")
    owner = terms.manifest.model.owner.broker
    found = verified(closing, Closing, owner)
    expected = (owner, terms.run, terms.digest, terms.manifest.rounds, head.version, head.digest)
    got = (found.broker, found.run, found.manifest, found.rounds, found.version, found.digest)
    if expected != got:
        raise LineageError("closing", expected=f"version {head.version} as witnessed", got="another end")
    return decision.sign(
        ClosingCountersignature(
            broker=decision.party.broker,
            identity=decision.party.identity,
            closing=closing.digest,
            run=terms.run,
            version=head.version,
            digest=head.digest,
            head=decision.ledger_tip(),
            time=decision.now,
        )
    )
