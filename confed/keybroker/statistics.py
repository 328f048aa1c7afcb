"""Statistics that leave a site: permitted once in a run by the data's own broker, and charged to the data key.

1. The client that this broker credentialed for a step asks; the manifest says what leaves and what it costs.
2. The data key's floors bound what all runs together may spend; the charge is made here, in the same transaction as the
   permit and its ledger entry, before anything can leave, and is never given back.
3. A run has one permit a site. The same request again gets the same bytes; a new TEE of the same run gets none, since
   nobody knows what the former one released.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from confed.errors import CredentialError, PrivacyBudgetError, PurposeError, RequestReplayError, TicketError
from confed.journey import Purpose
from confed.keybroker.decision import Decision
from confed.keybroker.statements import ClientCredential
from confed.preparation.statistics import StatisticsTerms
from confed.statement import Signed, unverified, verify

_KIND = "statistics-permit"
_ONE = (Purpose.TRAIN, 0)
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class StatisticsRequest:
    """A client asks its own owner's broker to let the manifest's statistics leave; signed by its credentialed key."""

    TYPE: ClassVar[str] = "confed/v1/statistics-request"

    request_id: bytes
    broker: bytes
    identity: bytes
    manifest: str
    run: str
    round: int
    attempt: int
    purpose: Purpose
    credential: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StatisticsPermit:
    """A site's own broker permits its statistics of a run, once; charged when issued, never refunded.

    Attributes:
        epsilon: what was charged.
        spent: what the data key has spent on statistics in all runs, this one included.
        signing_public: the key that signs what leaves.
    """

    TYPE: ClassVar[str] = "confed/v1/statistics-permit"

    permit_id: bytes
    broker: bytes
    identity: bytes
    manifest: str
    run: str
    credential: str
    signing_public: bytes
    epsilon: float
    spent: float
    issued_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StatisticsRelease:
    """What left a site: the manifest's queries answered with noise; signed by the client that the permit names.

    Attributes:
        permit: digest of the permit.
        answers: a number for each query by name; of a histogram, one for each bin.
    """

    TYPE: ClassVar[str] = "confed/v1/statistics-release"

    run: str
    manifest: str
    identity: bytes
    permit: str
    answers: Mapping[str, Any]


def permit(decision: Decision, request: StatisticsRequest, signed: Signed) -> Signed:
    """Return this site's one permit of this run, charging its data key.

    Raises:
        TicketError: another owner's, or a second one in this run.
        PurposeError: the manifest lets no statistics out, or the site has no dataset.
        CredentialError: a client that this broker did not credential for this step, or no longer.
        RequestReplayError: a request id used before for something else.
        PrivacyBudgetError: more than the data key's floors permit over all runs.
        RoundError: the run was closed.
    """
    site, terms = decision.terms.site, terms_of(decision)
    if site is None or request.identity != decision.party.identity:
        raise TicketError("statistics identity", expected="this broker's owner", got=request.identity.hex()[:16])
    # 1.
    credential = _credential_of(decision, request, signed)
    known = decision.issued(_KIND, *_ONE)
    if known and known[0].about == signed.digest:
        return known[0].signed
    row = decision.tx.one("SELECT 1 FROM ticket_requests WHERE request_id = ?", (request.request_id,))
    if row is not None:
        raise RequestReplayError("request id", expected="a new one", got="one used for something else")
    # 3.
    if known:
        raise TicketError("statistics", expected="one permit in a run", got="a second")
    decision.require_open()
    if decision.now > credential.expires_at:
        raise CredentialError("client credential time", expected="now within its validity", got="expired")
    # 2.
    spent = _charge(decision, terms.epsilon)
    issued = decision.sign(
        StatisticsPermit(
            permit_id=os.urandom(16),
            broker=decision.party.broker,
            identity=decision.party.identity,
            manifest=decision.terms.digest,
            run=decision.terms.run,
            credential=request.credential,
            signing_public=credential.signing_public,
            epsilon=terms.epsilon,
            spent=spent,
            issued_at=decision.now,
        )
    )
    decision.tx.execute("INSERT INTO ticket_requests VALUES (?, ?)", (request.request_id, signed.digest))
    decision.record(
        "statistics-permitted",
        permit=issued.digest,
        request=signed.digest,
        credential=request.credential,
        identity=request.identity.hex(),
        epsilon=terms.epsilon,
        spent=spent,
    )
    purpose, round_number = _ONE
    return decision.issue(
        issued, kind=_KIND, purpose=purpose, round_number=round_number, attempt=0, about=signed.digest
    )


def terms_of(decision: Decision) -> StatisticsTerms:
    """Return what the manifest lets out.

    Raises:
        PurposeError: nothing.
    """
    preparation = decision.terms.manifest.preparation
    if preparation is None or preparation.statistics is None:
        raise PurposeError("statistics", expected="a manifest that lets some out", got="none")
    return preparation.statistics


def _charge(decision: Decision, epsilon: float) -> float:
    own = decision.data_floors()
    if own is None:
        raise PurposeError("statistics", expected="a site with a dataset", got="none")
    key_id, floors = own
    before = [row[0] for row in decision.tx.rows("SELECT epsilon FROM statistics WHERE key_id = ?", (key_id,))]
    spent = math.fsum([*before, epsilon])
    if spent > floors.statistics_epsilon * (1 + _ROUNDING):
        raise PrivacyBudgetError("epsilon of the data key's statistics", expected=floors.statistics_epsilon, got=spent)
    decision.tx.execute("INSERT INTO statistics VALUES (?, ?, ?)", (key_id, decision.terms.run, epsilon))
    return spent


def _credential_of(decision: Decision, request: StatisticsRequest, signed: Signed) -> ClientCredential:
    found = decision.issued_for("client-credential", request.purpose, request.round, request.attempt)
    if found is None or found.signed.digest != request.credential:
        raise CredentialError("client credential", expected="the one of this step", got=request.credential[:16])
    verify(signed, StatisticsRequest, signer=found.detail)
    return unverified(found.signed, ClientCredential)
