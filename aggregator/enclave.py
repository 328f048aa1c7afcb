"""The enclave towards key brokers: its two keys, its evidence, and what each broker granted it.

1. Each broker is asked for a nonce, in one batch a server, unless one came with an earlier answer.
2. Under that nonce, and for that broker as audience, the TEE makes evidence that binds the enclave's public keys.
3. A signed request goes with it: keys of the model from its owner's broker, a credential from a site's.
4. Every reply is checked against the broker key in the manifest; keys are unwrapped with the grant as context.
5. Each site's credential is posted with the evidence, for that site's client to verify both itself.
"""

from __future__ import annotations

import base64
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from confed import canonical
from confed.attestation.evidence import Binding, instance_of
from confed.errors import (
    BindingMismatchError,
    ChallengeError,
    ConfedError,
    CredentialError,
    InstanceError,
    SessionError,
    UnreachableError,
)
from confed.journey import Purpose, Role, Use
from confed.keybroker.client import Release, ReleaseItem
from confed.keybroker.clock import EnclaveClock
from confed.keybroker.committing import Committer, CommittingBrokers, Letters, each_server
from confed.keybroker.next_challenges import NextChallenges
from confed.keybroker.statements import AggregatorCredential, Challenge, KeyName, ReleaseRequest
from confed.sealing.identities import HpkeIdentity
from confed.statement import Signed, public_bytes, sign, verify
from confed.wire.addresses import evidence_topic

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from confed.attestation.attester import Attester
    from confed.manifest import Manifest, Site

T = TypeVar("T")
_NONE_KEPT = ChallengeError("nonce", expected="one of an earlier answer", got="none")


class Brokers(CommittingBrokers, Protocol):
    """The brokers behind one server; ``confed.keybroker.client.BrokerClient`` is one. Replies come verified."""

    def challenge(self, items: Sequence[tuple[bytes, str]]) -> list[Challenge | ConfedError]:
        """Return a nonce of each (broker, manifest digest)."""
        ...

    def release(self, items: Sequence[ReleaseItem]) -> list[Release | ConfedError]:
        """Return what each request's broker released."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """For which step keys or credentials are asked: the base by digest and by its commit record.

    ``purpose`` is to aggregate; to evaluate, only credentials are asked for.
    """

    purpose: Purpose = Purpose.AGGREGATE
    round: int
    attempt: int
    base: str
    base_record: bytes


@dataclass(slots=True)
class _Evidence:
    """When this broker last saw evidence, and the binding in it."""

    round: int
    time: int
    binding: str


@dataclass(frozen=True, slots=True)
class _Credentialed:
    """What a site's broker said of this enclave."""

    first_round: int
    last_round: int
    expires_at: int


@dataclass(frozen=True, slots=True)
class _Sent:
    """One request on its way."""

    request: Signed
    challenge: Challenge
    binding: Binding | None
    envelope: bytes


class Enclave:
    """One instance of the aggregator. Its HPKE and signing keys are born here and end with the process.

    Args:
        brokers: who answers for each broker key of the manifest; several keys may share one.
        letters: the courier's letters.
    """

    def __init__(
        self, *, manifest: Manifest, attester: Attester, brokers: Mapping[bytes, Brokers], letters: Letters
    ) -> None:
        for party in (manifest.model.owner, *(site.owner for site in manifest.sites)):
            if party.broker not in brokers:
                raise SessionError(f"broker of {party.name}", expected="a server", got="none")
        self.manifest = manifest
        self.manifest_digest = manifest.digest
        self.hpke = HpkeIdentity.generate()
        self.signing_key = Ed25519PrivateKey.generate()
        self._signing_public = public_bytes(self.signing_key)
        self.instance = instance_of(self.hpke.public, self._signing_public)
        self.committer = Committer(manifest, digest=self.manifest_digest, brokers=brokers, letters=letters)
        self._attester = attester
        self._brokers = brokers
        self._letters = letters
        self._clocks = {broker: EnclaveClock() for broker in brokers}
        self._challenges = NextChallenges(self.now)
        self._evidence: dict[bytes, _Evidence] = {}
        self._credentials: dict[str, _Credentialed] = {}

    def __repr__(self) -> str:
        return f"Enclave({self.instance[:16]})"

    def now(self, broker: bytes) -> int:
        """Return the time (Unix ms) as this broker last signed it, gone on by the enclave's own clock.

        Each broker's statements are timed by its own clock, so that none can expire another's.

        Raises:
            SessionError: it never said a time.
        """
        return self._clocks[broker].now()

    def covered(self, site: Site, round_number: int, *, for_ms: int = 0) -> bool:
        """Return whether the site's broker has credentialed this enclave for the round, and does ``for_ms`` more."""
        known = self._credentials.get(site.owner.name)
        return (
            known is not None
            and known.first_round <= round_number <= known.last_round
            and self.now(site.owner.broker) + for_ms < known.expires_at
        )

    def credential_by(self, sites: Sequence[Site], asked: Asked) -> dict[str, ConfedError]:
        """Attest to these sites' brokers; return why each that did not credential this enclave did not, by name.

        Raises:
            UnreachableError: the courier is down.
        """
        asks = {site.owner.broker: () for site in sites}
        replies = self._ask(asks, asked, evidence=True)
        refused: dict[str, ConfedError] = {}
        for site in sites:
            name, reply = site.owner.name, replies[site.owner.broker]
            try:
                if isinstance(reply, ConfedError):
                    raise reply
                sent, released = reply
                self._take_credential(site, sent, released, asked)
            except UnreachableError as error:
                if not isinstance(reply, ConfedError):
                    raise
                refused[name] = error
            except ConfedError as error:
                refused[name] = error
        return refused

    def model_keys(self, names: Sequence[KeyName], asked: Asked) -> list[bytes]:
        """Return keys of the model from its owner's broker, in the order of their names.

        New evidence goes along only if the last is too old for the manifest, or the broker asks for it.

        Raises:
            ConfedError: the broker refused, of the class that says why.
        """
        broker = self.manifest.model.owner.broker
        asks = {broker: tuple(names)}
        fresh = self._needs_evidence(broker, asked.round)
        reply = self._ask(asks, asked, evidence=fresh)[broker]
        if isinstance(reply, InstanceError) and not fresh:
            reply = self._ask(asks, asked, evidence=True)[broker]
        if isinstance(reply, ConfedError):
            raise reply
        _, released = reply
        if len(released.wrapped_keys) != len(names):
            raise InstanceError("released keys", expected=len(names), got=len(released.wrapped_keys))
        return [self.hpke.unwrap(wrapped, info=released.grant.context) for wrapped in released.wrapped_keys]

    def each_server(
        self, brokers: Sequence[bytes], call: Callable[[Brokers, list[bytes]], list[T | ConfedError]]
    ) -> dict[bytes, T | ConfedError]:
        """Call every server once with its brokers among these, side by side; a server that is down refuses for all."""
        return each_server(self._brokers, brokers, call)

    def _ask(
        self, asks: Mapping[bytes, tuple[KeyName, ...]], asked: Asked, *, evidence: bool
    ) -> dict[bytes, tuple[_Sent, Release] | ConfedError]:
        """Take steps 1 to 4 with these brokers and the keys asked of each."""

        def call(server: Brokers, brokers: list[bytes]) -> list[tuple[_Sent, Release] | ConfedError]:
            # 1.
            kept = {broker: found for broker in brokers if (found := self._challenges.take(broker)) is not None}
            results = self._released(server, kept, asks, asked, evidence=evidence)
            late = [broker for broker in brokers if isinstance(results.get(broker, _NONE_KEPT), ChallengeError)]
            if late:
                fresh = server.challenge([(broker, self.manifest_digest) for broker in late])
                results |= self._released(server, dict(zip(late, fresh, strict=True)), asks, asked, evidence=evidence)
            return [results[broker] for broker in brokers]

        results = self.each_server(list(asks), call)
        for result in results.values():
            if not isinstance(result, ConfedError) and result[0].envelope:
                # The evidence stays readable, so that the run can be verified offline from its records.
                self._letters.post(evidence_topic(self.manifest.run, result[0].envelope), result[0].envelope)
        return results

    def _released(
        self,
        server: Brokers,
        challenges: Mapping[bytes, Challenge | ConfedError],
        asks: Mapping[bytes, tuple[KeyName, ...]],
        asked: Asked,
        *,
        evidence: bool,
    ) -> dict[bytes, tuple[_Sent, Release] | ConfedError]:
        """Take steps 2 to 4 with the brokers of one server, under these nonces."""
        results: dict[bytes, tuple[_Sent, Release] | ConfedError] = {}
        sent: dict[bytes, _Sent] = {}
        for broker, challenge in challenges.items():
            if isinstance(challenge, ConfedError):
                results[broker] = challenge
            else:
                # 2. and 3.
                sent[broker] = self._request(challenge, asks[broker], asked, evidence=evidence)
        items = [(entry.request, entry.envelope, asked.base_record) for entry in sent.values()]
        replies = server.release(items) if items else []
        # 4.
        for (broker, entry), reply in zip(sent.items(), replies, strict=True):
            try:
                results[broker] = reply if isinstance(reply, ConfedError) else self._checked(entry, reply, asked)
            except ConfedError as error:
                results[broker] = error
        return results

    def _request(self, challenge: Challenge, keys: tuple[KeyName, ...], asked: Asked, *, evidence: bool) -> _Sent:
        broker = challenge.broker
        self._clocks[broker].advance(challenge.issued_at)
        binding, envelope = None, b""
        if evidence:
            binding = Binding(
                profile=self._attester.profile,
                nonce=challenge.nonce,
                audience=canonical.digest(broker),
                manifest=self.manifest_digest,
                role=Role.AGGREGATOR,
                run=self.manifest.run,
                hpke_public=self.hpke.public,
                signing_public=self._signing_public,
                issued_at=self.now(broker),
            )
            envelope = self._attester.attest(binding).encode()
        request = ReleaseRequest(
            request_id=os.urandom(16),
            broker=broker,
            nonce=challenge.nonce,
            manifest=self.manifest_digest,
            run=self.manifest.run,
            instance=self.instance,
            role=Role.AGGREGATOR,
            purpose=asked.purpose,
            identity=b"",
            round=asked.round,
            attempt=asked.attempt,
            base=asked.base,
            keys=keys,
            ticket_for="",
        )
        return _Sent(sign(request, self.signing_key), challenge, binding, envelope)

    def _checked(self, sent: _Sent, released: Release, asked: Asked) -> tuple[_Sent, Release]:
        broker, grant = sent.challenge.broker, released.grant
        binding = sent.binding.digest if sent.binding else self._evidence[broker].binding
        for name, expected, got in (
            ("broker", broker.hex(), grant.broker.hex()),
            ("request", sent.request.digest, grant.request),
            ("binding", binding, grant.binding),
        ):
            if expected != got:
                raise BindingMismatchError(f"grant {name}", expected=expected[:16], got=got[:16])
        self._clocks[broker].advance(grant.time)
        self._challenges.keep(released)
        if sent.binding:
            self._evidence[broker] = _Evidence(asked.round, grant.time, binding)
        return sent, released

    def _take_credential(self, site: Site, sent: _Sent, released: Release, asked: Asked) -> None:
        """Check a site's credential and post it with the evidence (step 5)."""
        if released.credential is None:
            raise CredentialError("aggregator credential", expected=f"one of {site.owner.name}", got="none")
        credential = verify(released.credential, AggregatorCredential, signer=site.owner.broker)
        for name, expected in (
            ("broker", site.owner.broker),
            ("identity", site.owner.identity),
            ("manifest", self.manifest_digest),
            ("run", self.manifest.run),
            ("instance", self.instance),
            ("signing_public", self._signing_public),
            ("hpke_public", self.hpke.public),
            ("nonce", sent.challenge.nonce),
        ):
            if getattr(credential, name) != expected:
                raise CredentialError(f"aggregator credential {name}", expected="this enclave's", got="another")
        if not credential.first_round <= asked.round <= credential.last_round:
            raise CredentialError("aggregator credential rounds", expected=f"to cover {asked.round}", got="others")
        mail = {"credential": released.credential.to_json(), "envelope": base64.b64encode(sent.envelope).decode()}
        self._letters.post(f"{self.manifest.run}/aggregator/{site.owner.name}", canonical.encode(mail))
        self._credentials[site.owner.name] = _Credentialed(
            credential.first_round, credential.last_round, credential.expires_at
        )

    def _needs_evidence(self, broker: bytes, round_number: int) -> bool:
        last = self._evidence.get(broker)
        terms = self.manifest.aggregator_tee
        return (
            last is None
            or round_number - last.round >= terms.reattest_rounds
            or self.now(broker) - last.time >= terms.reattest_s * 1000 // 2
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundKeys:
    """The keys of one attempt at one round; an absent one was not needed."""

    base: bytes | None = field(default=None, repr=False)
    following: bytes = field(repr=False)
    base_state: bytes | None = field(default=None, repr=False)
    following_state: bytes | None = field(default=None, repr=False)


def round_keys(
    enclave: Enclave, asked: Asked, *, base_attempt: int, with_base: bool, with_base_state: bool, with_state: bool
) -> RoundKeys:
    """Ask for exactly the keys that an attempt needs: the base's only while it is not open yet.

    Raises:
        ConfedError: the model owner's broker refused, of the class that says why.
    """
    start = enclave.manifest.model.start
    version = asked.round - 1

    def key(use: Use, number: int, attempt: int) -> KeyName:
        return KeyName(key_id=start.key_id, use=use, container="", version=number, attempt=attempt)

    wanted: dict[str, KeyName] = {"following": key(Use.VERSION, asked.round, asked.attempt)}
    if with_base:
        wanted["base"] = (
            key(Use.VERSION, version, base_attempt)
            if version
            else KeyName(key_id=start.key_id, use=Use.START, container=start.container_id, version=0, attempt=0)
        )
    if with_base_state:
        wanted["base_state"] = key(Use.STATE, version, base_attempt)
    if with_state:
        wanted["following_state"] = key(Use.STATE, asked.round, asked.attempt)
    keys = enclave.model_keys(list(wanted.values()), asked)
    return RoundKeys(**dict(zip(wanted, keys, strict=True)))
