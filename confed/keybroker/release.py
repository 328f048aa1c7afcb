"""The rules of a key release, after the nonce has been burnt (DESIGN §4).

1. the request is for this manifest's run, a known role and purpose, within rounds and attempts;
2. evidence: verified and appraised, or an earlier session of this instance that is recent enough; the request is
   signed by the attested key;
3. the base is the head, after the commit record that came along has been witnessed;
4. the identity is one that this broker may serve, and drawn for this round;
5. every key is a step of the journey that the manifest's scenario permits, and one that it names as this owner's;
   a version that another run made is one that this broker committed (``origins``);
6. every key's own floors hold, its budget of rounds, and the run's privacy budget;
7. the ledger has the entry; only then are keys derived and wrapped;
8. a data owner's broker adds the credential: one client instance for each step, one aggregator for each attempt;
   the model owner's a lease, to an inference TEE whose manifest has terms of one;
9. and the ticket, where the client asks for it in the same breath, by the rules of ``tickets``.
"""

from __future__ import annotations

from confed.attestation.verifier import Registry
from confed.errors import (
    BudgetError,
    CohortError,
    CredentialError,
    ManifestMismatchError,
    PurposeError,
    RoundError,
    SizeError,
    UnknownKeyError,
)
from confed.journey import STEPS, Purpose, Role, Step, Use, base_version, permitted
from confed.keybroker.credentials import credential_for
from confed.keybroker.decision import Decision
from confed.keybroker.floors import require_key_floors
from confed.keybroker.heads import HeadVersion, require_base, witness
from confed.keybroker.nonces import issue_spare
from confed.keybroker.origins import require_committed
from confed.keybroker.replies import Released
from confed.keybroker.sessions import Evidence, Session, session_for
from confed.keybroker.spending import require_budget
from confed.keybroker.statements import Grant, KeyName, ReleaseRequest
from confed.keybroker.tickets import ticket_beside
from confed.sealing.derivation import checkpoint_key, container_key, state_key, version_key
from confed.sealing.recipients import HpkeRecipient
from confed.statement import Signed, verify

_MAX_KEYS = 8


def release(
    decision: Decision,
    request: ReleaseRequest,
    signed: Signed,
    *,
    fresh: Evidence,
    base_record: bytes,
    registry: Registry,
) -> Released:
    """Decide about a request whose nonce has been burnt, and wrap what it may have.

    Raises:
        ConfedError: the class of the rule that refuses; see the module's docstring.
    """
    # 1.
    _require_step(decision, request)
    # 2.
    session = session_for(decision, request, fresh=fresh, registry=registry)
    verify(signed, ReleaseRequest, signer=session.signing_public)
    # 3.
    head = witness(decision, base_record)
    require_base(decision, head, purpose=request.purpose, round_number=request.round, base=request.base)
    # 4.
    _require_identity(decision, request)
    # 5.
    for name in request.keys:
        _require_key(decision, request, head, name)
    if decision.terms.origin is not None:
        require_committed(decision.tx, decision.terms.origin, digest=decision.terms.manifest.model.start.digest)
    # 6.
    require_key_floors(decision, request, measurement=session.measurement)
    require_budget(decision.terms.manifest, head.privacy, purpose=request.purpose, attempt=request.attempt)
    if request.purpose is Purpose.AGGREGATE or (request.purpose is Purpose.TRAIN and not _combines(decision)):
        decision.take_seat(
            purpose=Purpose.TRAIN, round_number=request.round, attempt=request.attempt, instance=request.instance
        )
    # 7.
    grant = _grant(decision, request, signed.digest, session)
    wrapped: tuple[bytes, ...] = ()
    if request.keys:  # who has its data open asks for a credential alone
        recipient = HpkeRecipient(session.hpke_public)
        wrapped = tuple(recipient.wrap(_derived(decision, name), info=grant.context) for name in request.keys)
    # 8.
    credential = credential_for(decision, request, session, signed=signed)
    # 9.
    ticket = ticket_beside(decision, request, signed, credential) if request.ticket_for else None
    return Released(grant=decision.sign(grant), wrapped_keys=wrapped, credential=credential, ticket=ticket)


def _require_step(decision: Decision, request: ReleaseRequest) -> None:
    manifest = decision.terms.manifest
    decision.require_open()
    if request.run != manifest.run:
        raise ManifestMismatchError("run", expected=manifest.run, got=request.run[:64])
    if not permitted(manifest.scenario, request.role, request.purpose):
        raise PurposeError("purpose", expected=f"one that a {request.role} has", got=request.purpose)
    if not 1 <= request.round <= manifest.rounds or request.attempt < 0:
        raise RoundError("round", expected=f"from 1 to {manifest.rounds}", got=f"{request.round}/{request.attempt}")
    if request.attempt >= manifest.max_attempts:
        raise BudgetError("attempt", expected=f"below {manifest.max_attempts}", got=request.attempt)
    if len(request.keys) > _MAX_KEYS:
        raise SizeError("keys in a request", expected=f"at most {_MAX_KEYS}", got=len(request.keys))


def _combines(decision: Decision) -> bool:
    return decision.terms.manifest.scenario.combines


def _require_identity(decision: Decision, request: ReleaseRequest) -> None:
    terms = decision.terms
    if request.role is not Role.CLIENT:
        if request.identity:
            expected = f"none for the role {request.role}"
            raise CredentialError("identity", expected=expected, got=request.identity.hex()[:16])
        return
    if not terms.is_model_owner and request.identity != decision.party.identity:
        raise CredentialError("identity", expected="this broker's owner", got=request.identity.hex()[:16])
    terms.manifest.site_of(request.identity)
    if not terms.lineage.is_drawn(request.identity, request.purpose, request.round):
        raise CohortError("identity", expected="one drawn for this round", got=request.identity.hex()[:16])


def _require_key(decision: Decision, request: ReleaseRequest, head: HeadVersion, name: KeyName) -> None:
    manifest = decision.terms.manifest
    base = _base_version(decision, request)
    ahead = None if name.use is Use.DATA else name.version - base
    if Step(role=request.role, purpose=request.purpose, use=name.use, ahead=ahead) not in STEPS[manifest.scenario]:
        raise PurposeError(
            "step", expected="a permitted one", got=f"{request.role} {request.purpose} {name.use} {ahead}"
        )
    if name.use is Use.DATA:
        site = decision.terms.site
        # Only the site's own client, at the site's own broker.
        reference = site.dataset if site is not None and request.identity == site.owner.identity else None
    else:
        reference = manifest.model.start if decision.terms.is_model_owner else None
    if reference is None or name.key_id != reference.key_id:
        raise UnknownKeyError("key id", expected=f"this owner's {name.use} key of the manifest", got=name.key_id[:40])
    if name.container != (reference.container_id if name.use in (Use.DATA, Use.START) else ""):
        raise UnknownKeyError("container", expected="the manifest's", got=name.container[:40])
    _require_version(decision, request, head, name)


def _base_version(decision: Decision, request: ReleaseRequest) -> int:
    if request.purpose is Purpose.INFER:
        return decision.terms.origin.version if decision.terms.origin is not None else 0
    return base_version(purpose=request.purpose, round_number=request.round)


def _require_version(decision: Decision, request: ReleaseRequest, head: HeadVersion, name: KeyName) -> None:
    if name.use in (Use.DATA, Use.START):
        if (name.version, name.attempt) != (0, 0):
            raise PurposeError("key version", expected="0", got=f"{name.version}/{name.attempt}")
        return
    if name.version < 1:
        # Version 0 is the start: it has the start's key, and no strategy state.
        raise PurposeError("key version", expected="at least 1", got=name.version)
    attempt = head.attempt if name.version == head.version else request.attempt
    if decision.terms.origin is not None:  # made by another run, in the attempt that this manifest names
        attempt = decision.terms.origin.attempt
    if name.use is Use.CHECKPOINT:  # the next attempt goes on from what this one leaves
        attempt = 0
    if name.attempt != attempt:
        raise RoundError("key attempt", expected=attempt, got=name.attempt)


def _grant(decision: Decision, request: ReleaseRequest, digest: str, session: Session) -> Grant:
    policy = decision.terms.policies[request.role][1]
    entry = decision.record(
        "released",
        request=digest,
        binding=session.binding,
        evidence=session.evidence,
        endorsements=list(session.endorsements),
        policy=policy,
        claims=session.claims,
        role=request.role,
        purpose=request.purpose,
        identity=request.identity.hex(),
        round=request.round,
        attempt=request.attempt,
        base=request.base,
        keys=[
            {
                "key_id": name.key_id,
                "use": name.use,
                "container": name.container,
                "version": name.version,
                "attempt": name.attempt,
            }
            for name in request.keys
        ],
        instance=request.instance,
    )
    next_nonce, next_expires_at = issue_spare(decision)
    return Grant(
        broker=decision.party.broker,
        binding=session.binding,
        request=digest,
        policy=policy,
        claims=session.claims,
        entry=entry,
        time=decision.now,
        next_nonce=next_nonce,
        next_expires_at=next_expires_at,
    )


def _derived(decision: Decision, name: KeyName) -> bytes:
    key = decision.vault.key(decision.tx, name.key_id)
    if name.use in (Use.DATA, Use.START):
        return container_key(key, container_id=name.container)
    if name.use is Use.CHECKPOINT:
        return checkpoint_key(key, run=decision.terms.run, version=name.version)
    derive = version_key if name.use is Use.VERSION else state_key
    run = decision.terms.run if decision.terms.origin is None else decision.terms.origin.run
    return derive(key, run=run, version=name.version, attempt=name.attempt)
