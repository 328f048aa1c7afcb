"""Evidence behind each release in a broker's ledger: is it there, genuine, for this broker, and acceptable then?

For every ``released`` entry of the run, the first that names an evidence digest is checked like this:

1. the envelope is in ``evidence/`` and has that digest;
2. it verifies under the manifest's anchors and with the endorsements that the ledger holds, at the entry's time, bound
   to this broker's key, the manifest, the run and the entry's role; its binding, claims and instance are those that
   the entry names;
3. it is acceptable to the manifest's policy of that role at that time, under which the entry says it was appraised;
4. its nonce is in no other evidence of this ledger: nonces are single-use.

A later entry that names it again must be within the policy's ``reattest_rounds`` and ``reattest_s``.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass

from confed import canonical
from confed.attestation.appraisal import appraise, claims_digest
from confed.attestation.evidence import Binding, Envelope
from confed.attestation.verifier import Claims, ExpectedBinding, Registry
from confed.errors import BindingMismatchError, ChallengeError, InstanceError, LedgerError, StaleEvidenceError
from confed.journey import Role
from confed.keybroker.statements import policy_digest
from confed.manifest import Manifest, TeePolicy
from confed.records.entries import Entry, choice, number, text, texts
from confed.records.places import at
from confed.records.run_directory import RunDirectory


@dataclass(frozen=True, slots=True, kw_only=True)
class Attested:
    """Evidence that a broker accepted: its claims, for which role, and where in the ledger it came first."""

    claims: Claims
    role: Role
    first: Entry
    first_round: int


class Instances:
    """The instances that attested to one broker in one run, by evidence digest."""

    def __init__(self, manifest: Manifest, *, broker: bytes, directory: RunDirectory, registry: Registry) -> None:
        self.found: dict[str, Attested] = {}
        self._manifest = manifest
        self._digest = manifest.digest
        self._audience = canonical.digest(broker)
        self._directory = directory
        self._registry = registry.for_environment(manifest.environment)
        self._nonces: dict[bytes, str] = {}
        self._endorsements: dict[str, bytes] = {}
        self._policies: Mapping[Role, tuple[TeePolicy, str]] = {
            role: (policy, policy_digest(policy))
            for role, policy in (
                (Role.CLIENT, manifest.client_tee),
                (Role.AGGREGATOR, manifest.aggregator_tee),
                (Role.INFERENCE, manifest.client_tee),
            )
        }

    def released(self, entry: Entry) -> Attested:
        """Check the evidence behind a ``released`` entry and return it.

        Raises:
            AttestationError, AppraisalError: evidence that is not genuine, not for this, or not acceptable.
            InstanceError: evidence of another instance.
            ChallengeError: a nonce used twice.
            LedgerError: no such file, or an entry whose fields do not fit it.
        """
        digest, role = text(entry, "evidence"), choice(entry, "role", Role)
        known = self.found.get(digest)
        if known is None:
            known = self._first(entry, digest, role)
            self.found[digest] = known
        self._require_same(entry, known, role)
        return known

    def endorsed(self, entry: Entry) -> None:
        """Keep the endorsement of an ``endorsed`` entry for the releases after it.

        Raises:
            LedgerError: bytes that are not base64, or of another digest than the entry names.
        """
        digest = text(entry, "digest")
        try:
            endorsement = base64.b64decode(text(entry, "endorsement"), validate=True)
        except ValueError as error:
            raise LedgerError("endorsement", expected="base64", got="something else") from error
        if canonical.digest(endorsement) != digest:
            raise LedgerError("endorsement", expected=digest[:16], got=canonical.digest(endorsement)[:16])
        self._endorsements[digest] = endorsement

    def _endorsements_of(self, entry: Entry) -> tuple[bytes, ...]:
        found = [self._endorsements.get(digest) for digest in texts(entry, "endorsements")]
        known = tuple(endorsement for endorsement in found if endorsement is not None)
        if len(known) != len(found):
            raise LedgerError("endorsements", expected="those that earlier entries hold", got="others")
        return known

    def of(self, instance: str, *, role: Role, before: int) -> Attested | None:
        """Return an instance's newest evidence accepted before a sequence number, if there is any."""
        fitting = [
            attested
            for attested in self.found.values()
            if attested.claims.binding.instance == instance
            and attested.role is role
            and attested.first.sequence < before
        ]
        return max(fitting, key=lambda attested: attested.first.sequence, default=None)

    def _first(self, entry: Entry, digest: str, role: Role) -> Attested:
        # 1.
        with at("evidence", missing=LedgerError):
            envelope = self._directory.read_evidence(digest)
        # 2.
        binding = Binding.decode(Envelope.decode(envelope).binding)
        expected = ExpectedBinding(
            # Challenges are not in ledgers: that the nonce is this broker's own rests on its signed entry, which
            # names this binding; that it was used once is checked below.
            nonce=binding.nonce,
            audience=self._audience,
            manifest=self._digest,
            role=role,
            run=self._manifest.run,
        )
        claims = self._registry.verify(
            envelope,
            endorsements=self._endorsements_of(entry),
            expected=expected,
            now_ms=entry.time,
            anchors=self._manifest.trust.anchors,
        )
        # 3.
        appraise(
            claims,
            policy=self._policies[role][0],
            environment=self._manifest.environment,
            manifest_digest=self._digest,
            now_ms=entry.time,
        )
        # 4.
        if self._nonces.setdefault(binding.nonce, digest) != digest:
            raise ChallengeError("nonce", expected="one evidence for each", got="a second")
        return Attested(claims=claims, role=role, first=entry, first_round=number(entry, "round"))

    def _require_same(self, entry: Entry, attested: Attested, role: Role) -> None:
        claims, binding = attested.claims, attested.claims.binding
        if text(entry, "instance") != binding.instance or role is not attested.role:
            raise InstanceError("instance", expected=f"{attested.role} {binding.instance[:16]}", got="another")
        if text(entry, "binding") != binding.digest:
            raise BindingMismatchError("binding", expected=binding.digest[:16], got=text(entry, "binding")[:16])
        policy, digest = self._policies[role]
        for name, expected in (("claims", claims_digest(claims)), ("policy", digest)):
            if text(entry, name) != expected:
                raise LedgerError(name, expected=expected[:16], got=text(entry, name)[:16])
        age_ms, first = entry.time - attested.first.time, attested.first_round
        used = number(entry, "round")
        if not first <= used < first + policy.reattest_rounds or age_ms > policy.reattest_s * 1000:
            limit = f"rounds {first} to {first + policy.reattest_rounds - 1}, {policy.reattest_s} s"
            raise StaleEvidenceError("evidence used again", expected=limit, got=f"round {used}, {age_ms} ms")
