"""Tickets: the right to send one result, by the credentialed client of exactly one step (DESIGN §4).

One for each step, for an aggregator that this broker credentialed (for the client itself, where it makes the version);
none for an attempt older than one already
ticketed; charged when issued, never refunded. It is asked for once the client has its credential, or beside it.
"""

from __future__ import annotations

import os

from confed.errors import BudgetError, CredentialError, PurposeError, RequestReplayError, RoundError, TicketError
from confed.journey import Purpose
from confed.keybroker.credentials import maker_key
from confed.keybroker.decision import Decision
from confed.keybroker.floors import charge_round
from confed.keybroker.heads import head_of, require_base
from confed.keybroker.key_budget import charge_release
from confed.keybroker.spending import require_budget
from confed.keybroker.statements import ClientCredential, ReleaseRequest, Ticket, TicketRequest
from confed.manifest import Unchecked
from confed.statement import Signed, unverified, verify

_RESULTS = (Purpose.TRAIN, Purpose.EVALUATE)


def ticket(decision: Decision, request: TicketRequest, signed: Signed) -> Signed:
    """Return the one ticket of this step, charging it; the same request again gets the same bytes.

    Raises:
        CredentialError: a client or aggregator that this broker did not credential for this step.
        TicketError: a second one for this step.
        RequestReplayError: a request id used before for something else.
        PrivacyBudgetError: this attempt's release would spend more than the run's privacy budget, or the data key's.
        RoundError, BudgetError, RollbackError, LineageError, CohortError, InstanceError: as the names say.
    """
    terms = decision.terms
    if terms.site is None or request.identity != decision.party.identity:
        raise TicketError("ticket identity", expected="this broker's owner", got=request.identity.hex()[:16])
    _require_result(request)
    credential = _credential_of(decision, request, signed)
    repeated = _repeated_ticket(decision, request, signed.digest)
    if repeated is not None:
        return repeated
    decision.require_open()
    if not 0 <= request.attempt < terms.manifest.max_attempts:
        raise BudgetError("attempt", expected=f"below {terms.manifest.max_attempts}", got=request.attempt)
    head = head_of(decision)
    require_base(decision, head, purpose=request.purpose, round_number=request.round, base=request.base)
    require_budget(terms.manifest, head.privacy, purpose=request.purpose, attempt=request.attempt)
    return _charged(decision, request, signed, credential)


def ticket_beside(decision: Decision, asked: ReleaseRequest, signed: Signed, credential: Signed | None) -> Signed:
    """Return the one ticket of the step of a release that was just decided, charging it.

    What the release's own rules have checked is not checked again: the signer, that the run goes on, attempt, base and
    the run's privacy budget.

    Raises:
        TicketError: nobody that a ticket can be for, or a second one for this step.
        CredentialError, PurposeError, RoundError, BudgetError, PrivacyBudgetError, InstanceError: as ``ticket``.
    """
    if credential is None or asked.identity != decision.party.identity:
        raise TicketError("ticket identity", expected="this broker's owner", got=asked.identity.hex()[:16])
    request = TicketRequest(
        request_id=asked.request_id,
        broker=asked.broker,
        identity=asked.identity,
        manifest=asked.manifest,
        run=asked.run,
        round=asked.round,
        attempt=asked.attempt,
        purpose=asked.purpose,
        base=asked.base,
        aggregator=asked.ticket_for,
        credential=credential.digest,
    )
    _require_result(request)
    if _earlier_ticket(decision, request, signed.digest) is not None:
        raise TicketError("ticket", expected="one for each step", got="a second")
    return _charged(decision, request, signed, unverified(credential, ClientCredential))


def _require_result(request: TicketRequest) -> None:
    if request.purpose not in _RESULTS:
        raise PurposeError("ticket purpose", expected="train or evaluate", got=request.purpose)


def _charged(decision: Decision, request: TicketRequest, signed: Signed, credential: ClientCredential) -> Signed:
    terms = decision.terms
    if decision.now > credential.expires_at:
        raise CredentialError("client credential time", expected="now within its validity", got="expired")
    maker_key(decision, instance=request.aggregator, round_number=request.round)
    if not terms.manifest.scenario.combines and request.aggregator != credential.instance:
        raise TicketError("ticket", expected="for the client itself: nobody combines", got=request.aggregator[:16])
    decision.take_seat(
        purpose=request.purpose, round_number=request.round, attempt=request.attempt, instance=request.aggregator
    )
    own = decision.data_floors()
    if request.purpose is Purpose.TRAIN and own is not None:
        charge_round(decision, own[0], own[1], request.round, spend=True)
        charge_release(decision, *own, round_number=request.round, attempt=request.attempt, spend=True)
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
    return _earlier_ticket(decision, request, digest)


def _earlier_ticket(decision: Decision, request: TicketRequest, digest: str) -> Signed | None:
    """Return the ticket that this very request got before, and refuse a second and an older one."""
    for issued in decision.issued("ticket", request.purpose, request.round):
        if issued.attempt == request.attempt:
            if issued.about == digest:
                return issued.signed
            raise TicketError("ticket", expected="one for each step", got="a second")
        if issued.attempt > request.attempt:
            raise RoundError("attempt", expected=f"at least {issued.attempt}", got=request.attempt)
    return None


def _new_ticket(decision: Decision, request: TicketRequest, signed: Signed, credential: ClientCredential) -> Signed:
    own = decision.data_floors()
    least = own[1].least_cohort if own else 1
    counted = own[1].counted_identities if own and not isinstance(own[1].counted_identities, Unchecked) else ()
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
            least_cohort=least,
            counted=counted,
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
