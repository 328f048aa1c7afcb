"""Which enclave speaks for a site, and who makes versions of what it sends: said by the site's own broker.

An aggregator that this broker credentialed; or, where the scenario has none, the client that attested for the step.
"""

from __future__ import annotations

from confed.errors import CredentialError
from confed.journey import Role
from confed.keybroker.decision import Decision
from confed.keybroker.lease import Lease
from confed.keybroker.sessions import Session
from confed.keybroker.statements import AggregatorCredential, ClientCredential, ReleaseRequest
from confed.statement import Signed


def credential_for(decision: Decision, request: ReleaseRequest, session: Session, *, signed: Signed) -> Signed | None:
    """Return the credential that goes with a release, from a data owner's broker; ``None`` from any other.

    An inference TEE gets a lease from the model owner's broker, where the manifest has terms of one.

    Args:
        decision: the broker's.
        request: what was asked.
        session: of the instance that asked.
        signed: the request as it was signed.

    Raises:
        CredentialError: a second instance for one step of one identity.
    """
    if request.role is Role.AGGREGATOR:
        return _aggregator_credential(decision, request, session)
    if request.role is Role.INFERENCE:
        return _lease(decision, request, session, signed)
    if decision.terms.site is None or request.identity != decision.party.identity:
        return None
    earlier = decision.issued_for("client-credential", request.purpose, request.round, request.attempt)
    if earlier is not None:
        if earlier.about != request.instance:
            raise CredentialError("client credential", expected="one instance for each step", got="a second")
        return earlier.signed
    signed = decision.sign(
        ClientCredential(
            broker=decision.party.broker,
            identity=decision.party.identity,
            manifest=decision.terms.digest,
            run=decision.terms.run,
            round=request.round,
            attempt=request.attempt,
            purpose=request.purpose,
            instance=request.instance,
            signing_public=session.signing_public,
            evidence=session.evidence,
            issued_at=decision.now,
            expires_at=session.expires_at(decision, request.role),
        )
    )
    decision.record(
        "credentialed-client",
        credential=signed.digest,
        identity=request.identity.hex(),
        instance=request.instance,
        evidence=session.evidence,
        round=request.round,
        attempt=request.attempt,
        purpose=request.purpose,
    )
    return decision.issue(
        signed,
        kind="client-credential",
        purpose=request.purpose,
        round_number=request.round,
        attempt=request.attempt,
        about=request.instance,
        detail=session.signing_public,
    )


def _lease(decision: Decision, request: ReleaseRequest, session: Session, asked: Signed) -> Signed | None:
    serving = decision.terms.manifest.serving
    if serving is None or serving.lease is None:
        return None
    expires_at = decision.now + serving.lease.seconds * 1000
    signed = decision.sign(
        Lease(
            broker=decision.party.broker,
            manifest=decision.terms.digest,
            run=decision.terms.run,
            model=request.base,
            instance=request.instance,
            signing_public=session.signing_public,
            evidence=session.evidence,
            request=asked.digest,
            issued_at=decision.now,
            expires_at=expires_at,
        )
    )
    decision.record(
        "leased",
        lease=signed.digest,
        instance=request.instance,
        evidence=session.evidence,
        request=asked.digest,
        expires_at=expires_at,
    )
    return signed


def _aggregator_credential(decision: Decision, request: ReleaseRequest, session: Session) -> Signed | None:
    policy = decision.terms.policies[Role.AGGREGATOR][0]
    last_round = min(session.first_round + policy.reattest_rounds - 1, decision.terms.manifest.rounds)
    expires_at = session.expires_at(decision, Role.AGGREGATOR)
    decision.tx.execute(
        "INSERT OR REPLACE INTO aggregators VALUES (?, ?, ?, ?, ?, ?)",
        (decision.terms.digest, request.instance, request.round, last_round, session.signing_public, expires_at),
    )
    if decision.terms.site is None:
        return None
    signed = decision.sign(
        AggregatorCredential(
            broker=decision.party.broker,
            identity=decision.party.identity,
            manifest=decision.terms.digest,
            run=decision.terms.run,
            instance=request.instance,
            signing_public=session.signing_public,
            hpke_public=session.hpke_public,
            first_round=request.round,
            last_round=last_round,
            evidence=session.evidence,
            nonce=session.nonce,
            issued_at=decision.now,
            expires_at=expires_at,
        )
    )
    decision.record(
        "credentialed-aggregator",
        credential=signed.digest,
        identity=decision.party.identity.hex(),
        instance=request.instance,
        evidence=session.evidence,
        first_round=request.round,
        last_round=last_round,
    )
    return signed


def maker_key(decision: Decision, *, instance: str, round_number: int) -> bytes:
    """Return the signing key of the instance that makes a round's version: one that attested to this broker for it.

    Raises:
        CredentialError: none such, or its time is over.
    """
    if not decision.terms.manifest.scenario.combines:
        return _client_key(decision, instance=instance, round_number=round_number)
    row = decision.tx.one(
        "SELECT signing_public, MAX(expires_at) FROM aggregators"
        " WHERE manifest = ? AND instance = ? AND first_round <= ? AND last_round >= ?",
        (decision.terms.digest, instance, round_number, round_number),
    )
    if row is None or row[0] is None:
        raise CredentialError("aggregator", expected="an instance credentialed for this round", got=instance[:16])
    if decision.now > row[1]:
        raise CredentialError("aggregator credential time", expected="now within its validity", got="expired")
    return row[0]


def _client_key(decision: Decision, *, instance: str, round_number: int) -> bytes:
    policy = decision.terms.policies[Role.CLIENT][0]
    row = decision.tx.one(
        "SELECT signing_public, appraised_at FROM sessions WHERE manifest = ? AND role = ? AND instance = ?"
        " AND first_round <= ? AND first_round > ?",
        (decision.terms.digest, Role.CLIENT, instance, round_number, round_number - policy.reattest_rounds),
    )
    if row is None:
        raise CredentialError("client", expected="an instance that attested for this round", got=instance[:16])
    if decision.now > row[1] + policy.reattest_s * 1000:
        raise CredentialError("client evidence time", expected="now within its validity", got="expired")
    return row[0]
