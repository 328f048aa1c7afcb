"""Instances that attested to a broker, and for how long that serves later requests.

Within the policy's ``reattest_rounds`` and ``reattest_s`` a later release needs a fresh nonce signed by the attested
key, but no new evidence.

What the broker's own endorsement provider gave for verifying evidence goes into the ledger, once for each manifest, so
that the verdict can be reached again offline from the records.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass

from confed import canonical
from confed.attestation.appraisal import appraise, claims_digest
from confed.attestation.verifier import ExpectedBinding, Registry
from confed.errors import ConfedError, InstanceError
from confed.journey import Role
from confed.keybroker.decision import Decision
from confed.keybroker.statements import ReleaseRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """An encoded envelope (empty: none now), and endorsements from the broker's own provider, or why there are none."""

    envelope: bytes
    endorsements: tuple[bytes, ...] = ()
    failure: ConfedError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """An instance that attested to this broker: its keys, and digests of what it attested with."""

    signing_public: bytes
    hpke_public: bytes
    nonce: bytes
    binding: str
    evidence: str
    claims: str
    measurement: str
    appraised_at: int
    first_round: int
    endorsements: tuple[str, ...] = ()

    def expires_at(self, decision: Decision, role: Role) -> int:
        """Return until when this evidence serves later releases, and what they credential."""
        return self.appraised_at + decision.terms.policies[role][0].reattest_s * 1000


def session_for(decision: Decision, request: ReleaseRequest, *, fresh: Evidence, registry: Registry) -> Session:
    """Return the session of the instance that asks: by fresh evidence, or by recent earlier evidence.

    Raises:
        AttestationError, AppraisalError: evidence that is not genuine or not acceptable.
        EndorsementFetchError: what is needed to verify it could not be fetched.
        InstanceError: no evidence now and none before, too old, or evidence of another instance.
    """
    if fresh.envelope:
        session = _appraised(decision, request, fresh, registry)
        decision.tx.execute(
            "INSERT OR REPLACE INTO sessions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                decision.terms.digest, request.role, request.instance, session.signing_public, session.hpke_public,
                session.nonce, session.binding, session.evidence, session.claims, session.measurement,
                session.appraised_at, session.first_round,
            ),
        )  # fmt: skip
        return session
    row = decision.tx.one(
        "SELECT signing_public, hpke_public, nonce, binding, evidence, claims, measurement, appraised_at, first_round"
        " FROM sessions WHERE manifest = ? AND role = ? AND instance = ?",
        (decision.terms.digest, request.role, request.instance),
    )
    if row is None:
        raise InstanceError("instance", expected="one that attested to this broker", got=request.instance[:16])
    names = tuple(Session.__dataclass_fields__)[: len(row)]
    session = Session(**dict(zip(names, row, strict=True)))
    policy = decision.terms.policies[request.role][0]
    if not session.first_round <= request.round < session.first_round + policy.reattest_rounds:
        raise InstanceError(
            "evidence rounds", expected=f"{policy.reattest_rounds} from {session.first_round}", got=request.round
        )
    if decision.now > session.expires_at(decision, request.role):
        raise InstanceError("evidence age", expected=f"at most {policy.reattest_s} s", got="older")
    return session


def _appraised(decision: Decision, request: ReleaseRequest, fresh: Evidence, registry: Registry) -> Session:
    if fresh.failure is not None:
        raise fresh.failure
    terms = decision.terms
    expected = ExpectedBinding(
        nonce=request.nonce,
        audience=canonical.digest(decision.party.broker),
        manifest=terms.digest,
        role=request.role,
        run=terms.run,
    )
    claims = registry.for_environment(terms.manifest.environment).verify(
        fresh.envelope,
        endorsements=fresh.endorsements,
        expected=expected,
        now_ms=decision.now,
        anchors=terms.manifest.trust.anchors,
    )
    appraise(
        claims,
        policy=terms.policies[request.role][0],
        environment=terms.manifest.environment,
        manifest_digest=terms.digest,
        now_ms=decision.now,
    )
    binding = claims.binding
    if binding.instance != request.instance:
        raise InstanceError("instance", expected=binding.instance[:16], got=request.instance[:16])
    return Session(
        signing_public=binding.signing_public,
        hpke_public=binding.hpke_public,
        nonce=binding.nonce,
        binding=binding.digest,
        evidence=claims.evidence_digest,
        claims=claims_digest(claims),
        measurement=claims.measurement,
        appraised_at=decision.now,
        first_round=request.round,
        endorsements=tuple(_recorded(decision, endorsement) for endorsement in fresh.endorsements),
    )


def _recorded(decision: Decision, endorsement: bytes) -> str:
    """Put an endorsement into the ledger unless it is there, and return its digest."""
    digest = canonical.digest(endorsement)
    added = decision.tx.execute("INSERT OR IGNORE INTO endorsed VALUES (?, ?)", (decision.terms.digest, digest))
    if added:
        decision.record("endorsed", digest=digest, endorsement=base64.b64encode(endorsement).decode())
    return digest
