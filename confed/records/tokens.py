"""Attestation results of a run as signed tokens (EAR): what an owner's broker made of the evidence that it was shown.

Made from records, with the broker's key: for relying parties that trust this broker and cannot verify evidence
themselves. A token is of the time of its evidence, and lasts a day from then: older results are not made new.
"""

from __future__ import annotations

from collections.abc import Iterator

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from confed import canonical
from confed.attestation import ear
from confed.attestation.appraisal import appraise
from confed.attestation.evidence import Binding, Envelope
from confed.attestation.policy import document
from confed.attestation.verifier import Claims, ExpectedBinding, default_registry
from confed.errors import RefusedError
from confed.journey import Role
from confed.keybroker.statements import policy_digest
from confed.manifest import Manifest, TeePolicy
from confed.records.noted import noted_endorsements
from confed.records.run_directory import RunDirectory
from confed.statement import public_bytes


def tokens(directory: RunDirectory, *, broker_key: Ed25519PrivateKey, audience: str) -> Iterator[tuple[str, str]]:
    """Yield, for each genuine evidence that was made for this broker, its digest and the token of its appraisal.

    Evidence that is not genuine has no claims and so no token; what was refused has one that says so.

    Args:
        directory: the run's records.
        broker_key: the broker's own; it signs, and names the evidence that was made for it.
        audience: whom the tokens are for.

    Raises:
        AttestationError: evidence for this broker that is not genuine, of the class that says why.
        EncodingError: records that are not in their one form.
    """
    manifest = directory.manifest()
    endorsements = noted_endorsements(directory, manifest)
    addressed = canonical.digest(public_bytes(broker_key))
    for digest in directory.evidence():
        data = directory.read_evidence(digest)
        binding = Binding.decode(Envelope.decode(data).binding)
        if binding.audience != addressed:
            continue
        claims = default_registry().verify(
            data,
            endorsements=endorsements,
            expected=ExpectedBinding(
                nonce=binding.nonce,
                audience=addressed,
                manifest=manifest.digest,
                role=binding.role,
                run=manifest.run,
            ),
            now_ms=binding.issued_at,
            anchors=manifest.trust.anchors,
        )
        token = ear.issue(
            claims,
            outcomes=_outcomes(claims, manifest),
            signing_key=broker_key,
            audience=audience,
            now_ms=binding.issued_at,
            lifetime_s=ear.LIFETIME_LIMIT_S,
        )
        yield digest, token


def _outcomes(claims: Claims, manifest: Manifest) -> dict[str, ear.Outcome]:
    """Return what appraisal says to the whole, which no part's result is better than."""
    policy = manifest.client_tee if claims.binding.role is Role.CLIENT else manifest.aggregator_tee
    refusal: RefusedError | None = None
    try:
        appraise(
            claims,
            policy=policy,
            environment=manifest.environment,
            manifest_digest=manifest.digest,
            now_ms=claims.issued_at,
        )
    except RefusedError as error:
        refusal = error
    profiles = (claims.profile, *(device.profile for device in claims.devices))
    return {profile: ear.Outcome(refusal=refusal, policy=_policy(profile, policy)) for profile in profiles}


def _policy(profile: str, policy: TeePolicy) -> str:
    """Return the digest of the policy that appraised a profile: the manifest's own where it has no document."""
    table = policy.appraisal.get(profile)
    return document.from_table(profile, table).digest if table is not None else policy_digest(policy)
