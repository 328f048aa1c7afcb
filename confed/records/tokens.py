"""Attestation results of a run as signed tokens (EAR): what an owner's broker made of the evidence that it accepted.

Made from records, with the broker's key: for relying parties that trust this broker and cannot verify evidence
themselves. What it was shown, and when, is read from its own ledger under its own key, never from evidence: a file that
somebody put beside the others gets no token, and no evidence chooses the time at which it is judged. A token is of the
time of its release, and lasts a day from then: older results are not made new.
"""

from __future__ import annotations

from collections.abc import Iterator

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from confed.attestation import ear
from confed.attestation.policy import document
from confed.attestation.verifier import default_registry
from confed.journey import Role
from confed.keybroker.ledger import verify_ledger
from confed.keybroker.statements import policy_digest
from confed.manifest import TeePolicy
from confed.records.entries import entries_of_run, text
from confed.records.instances import Attested, Instances
from confed.records.places import at
from confed.records.run_directory import RunDirectory
from confed.statement import public_bytes


def tokens(directory: RunDirectory, *, broker_key: Ed25519PrivateKey, audience: str) -> Iterator[tuple[str, str]]:
    """Yield, for each evidence that this broker released keys for, its digest and the token of its appraisal.

    What it refused has no token: a ledger tells of a refusal that it was one, and not of which evidence.

    Args:
        directory: the run's records.
        broker_key: the broker's own; it signs, and signed the ledger.
        audience: whom the tokens are for.

    Raises:
        ManifestMismatchError: a key of nobody in the run.
        LedgerError: a ledger that does not hold, or names evidence that is not there.
        AttestationError, AppraisalError: evidence that this broker cannot have accepted.
        EncodingError: records that are not in their one form.
    """
    manifest, broker = directory.manifest(), public_bytes(broker_key)
    party = manifest.broker_key(broker)
    policies = {Role.CLIENT: manifest.client_tee, Role.AGGREGATOR: manifest.aggregator_tee}
    signed = verify_ledger(directory.ledger(party.name), broker=broker, part_from=manifest.digest)
    instances = Instances(manifest, broker=broker, directory=directory, registry=default_registry())
    for entry in entries_of_run(signed, manifest=manifest, digest=manifest.digest, party=party.name):
        with at(f"ledger of {party.name}, entry {entry.sequence} ({entry.event})"):
            if entry.event == "endorsed":
                instances.endorsed(entry)
            if entry.event != "released" or text(entry, "evidence") in instances.found:
                continue
            attested = instances.released(entry)
        token = ear.issue(
            attested.claims,
            outcomes=_outcomes(attested, policies[attested.role]),
            signing_key=broker_key,
            audience=audience,
            now_ms=entry.time,
            lifetime_s=ear.LIFETIME_LIMIT_S,
        )
        yield attested.claims.evidence_digest, token


def _outcomes(attested: Attested, policy: TeePolicy) -> dict[str, ear.Outcome]:
    profiles = (attested.claims.profile, *(device.profile for device in attested.claims.devices))
    return {profile: ear.Outcome(refusal=None, policy=_policy(profile, policy)) for profile in profiles}


def _policy(profile: str, policy: TeePolicy) -> str:
    """Return the digest of the policy that appraised a profile: the manifest's own where it has no document."""
    table = policy.appraisal.get(profile)
    return document.from_table(profile, table).digest if table is not None else policy_digest(policy)
