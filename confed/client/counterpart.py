"""Whom a client seals to: the aggregator that its own owner's broker credentialed, its evidence verified here too."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

from confed import canonical
from confed.attestation.appraisal import appraise
from confed.attestation.evidence import instance_of
from confed.attestation.verifier import ExpectedBinding, default_registry
from confed.errors import ConfedError, CredentialError
from confed.journey import Role
from confed.keybroker.statements import AggregatorCredential
from confed.manifest import Manifest, Site
from confed.statement import Signed, verify
from confed.wire.courier_client import CourierClient

_CLOCK_STEP_MS = 1000


class AggregatorCheck:
    """Finds and verifies a site's aggregator; evidence that was verified once is not verified again.

    Args:
        now: the enclave's clock, Unix milliseconds.
    """

    def __init__(self, manifest: Manifest, *, courier: CourierClient, now: Callable[[], int]) -> None:
        self._manifest = manifest
        self._digest = manifest.digest
        self._courier = courier
        self._now = now
        self._appraised: set[tuple[str, bytes]] = set()
        self._newest: dict[str, AggregatorCredential] = {}

    def aggregator_of(self, site: Site, *, round_number: int, named: str = "") -> AggregatorCredential:
        """Return the aggregator that the site's own broker credentialed for this round.

        ``named`` is the instance that the governor says the round is of. Where that is the one that was newest before,
        and its credential still holds, the courier, which is the governor's as well, is not asked again.

        Raises:
            CredentialError: none, or none that is for this run, manifest, site, round and time.
            AttestationError, AppraisalError, SignatureError: the newest one does not hold, as the class says.
        """
        newest = self._newest.get(site.owner.name)
        if newest is not None and newest.instance == named and self._covers(newest, round_number):
            return newest
        failure: ConfedError = CredentialError(
            "aggregator credential", expected=f"one for {site.owner.name}", got="none"
        )
        # The newest letter first: an aggregator that started anew attested anew.
        for body in reversed(self._courier.collect(f"{self._manifest.run}/aggregator/{site.owner.name}")):
            try:
                newest = self._checked(body, site, round_number)
            except ConfedError as error:
                failure = error
            else:
                self._newest[site.owner.name] = newest
                return newest
        raise failure

    def _checked(self, body: bytes, site: Site, round_number: int) -> AggregatorCredential:
        mail = canonical.decode(body)
        if not isinstance(mail, dict) or sorted(mail) != ["credential", "envelope"]:  # pyright: ignore[reportUnknownArgumentType]
            raise CredentialError("aggregator mail", expected="credential and envelope", got="something else")
        signed = Signed.from_json(mail["credential"])
        credential = verify(signed, AggregatorCredential, signer=site.owner.broker)
        self._require_for_this(credential, site, round_number)
        if (signed.digest, site.owner.broker) not in self._appraised:
            self._appraise(mail["envelope"], credential, site)
            self._appraised.add((signed.digest, site.owner.broker))
        return credential

    def _require_for_this(self, credential: AggregatorCredential, site: Site, round_number: int) -> None:
        for name, expected, got in (
            ("broker", site.owner.broker, credential.broker),
            ("identity", site.owner.identity, credential.identity),
            ("manifest", self._digest, credential.manifest),
            ("run", self._manifest.run, credential.run),
            ("instance", instance_of(credential.hpke_public, credential.signing_public), credential.instance),
        ):
            if expected != got:
                raise CredentialError(f"aggregator credential {name}", expected="this run's", got="another")
        if not self._covers(credential, round_number):
            covered = f"rounds {credential.first_round} to {credential.last_round}, for a time"
            raise CredentialError("aggregator credential", expected=f"to cover {round_number}, now", got=covered)

    def _covers(self, credential: AggregatorCredential, round_number: int) -> bool:
        """Whether a credential is for a round, and for now."""
        now = self._now()
        in_time = credential.issued_at <= now + _CLOCK_STEP_MS and now <= credential.expires_at
        return in_time and credential.first_round <= round_number <= credential.last_round

    def _appraise(self, envelope: Any, credential: AggregatorCredential, site: Site) -> None:
        try:
            evidence = base64.b64decode(envelope, validate=True)
        except (ValueError, TypeError) as error:
            raise CredentialError("aggregator evidence", expected="base64", got="something else") from error
        manifest = self._manifest
        claims = (
            default_registry()
            .for_environment(manifest.environment)
            .verify(
                evidence,
                endorsements=(),
                expected=ExpectedBinding(
                    nonce=credential.nonce,
                    audience=canonical.digest(site.owner.broker),
                    manifest=self._digest,
                    role=Role.AGGREGATOR,
                    run=manifest.run,
                ),
                now_ms=credential.issued_at,
                anchors=manifest.trust.anchors,
            )
        )
        appraise(
            claims,
            policy=manifest.aggregator_tee,
            environment=manifest.environment,
            manifest_digest=self._digest,
            now_ms=credential.issued_at,
        )
        if claims.binding.instance != credential.instance:
            raise CredentialError("aggregator evidence", expected="for the credentialed keys", got="for other keys")
