"""What a client TEE asks key brokers for in a step: keys and credentials, of all servers side by side.

1. Each broker's nonce, asked for now or come with an earlier answer, is signed by the TEE's key with what is asked for;
   evidence goes along where it is due. Who is refused for a nonce that came earlier asks for another.
2. Every reply is checked against the broker that was asked; keys are unwrapped with the grant as context.

Who is down stands for itself alone.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from confed import canonical
from confed.attestation.attester import Attester
from confed.attestation.evidence import Binding, instance_of
from confed.client.step import no_seconds, timed
from confed.errors import ChallengeError, ConfedError, SessionError, UnreachableError
from confed.journey import Purpose, Role
from confed.keybroker.client import BrokerClient, Release, ReleaseItem
from confed.keybroker.clock import EnclaveClock
from confed.keybroker.next_challenges import NextChallenges
from confed.keybroker.statements import Challenge, KeyName, ReleaseRequest
from confed.manifest import Manifest
from confed.sealing.identities import HpkeIdentity
from confed.statement import Signed, public_bytes, sign
from confed.wire.addresses import evidence_topic
from confed.wire.courier_client import CourierClient


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A broker, the identity that is acted for, the keys that are asked for, and for which aggregator a ticket.

    ``ticket_for`` is empty where no ticket is asked for.
    """

    broker: bytes
    identity: bytes
    keys: tuple[KeyName, ...]
    ticket_for: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """What a broker released, unwrapped."""

    keys: tuple[bytes, ...]
    credential: Signed | None
    ticket: Signed | None

    def __repr__(self) -> str:
        return "Opened(…)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """The step that is asked for: its base by digest and by its commit record, empty for the start."""

    round_number: int
    attempt: int
    purpose: Purpose
    base: str
    record: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Born:
    """The keys that a TEE instance was born with."""

    hpke: HpkeIdentity
    signing: Ed25519PrivateKey

    def __repr__(self) -> str:
        return "Born(…)"


class Asked:
    """Calls on their way, one a server."""

    def __init__(self, calls: Sequence[tuple[Sequence[int], Future[_Answers]]]) -> None:
        self._calls = calls

    def first(self) -> Opened | ConfedError:
        """Return what the first ask came to, waiting for no other server than its own."""
        return next(self._answers(positions, call) for positions, call in self._calls if 0 in positions)[0][0]

    def all(self, seconds: dict[str, float]) -> list[Opened | ConfedError]:
        """Return what each ask came to, in their order; ``seconds`` grow by those of the slowest server."""
        results: dict[int, Opened | ConfedError] = {}
        longest = no_seconds()
        for positions, call in self._calls:
            answers, spent = self._answers(positions, call)
            results |= answers
            longest = max(longest, spent, key=lambda stages: sum(stages.values()))
        for stage, value in longest.items():
            seconds[stage] += value
        return [results[at] for at in sorted(results)]

    @staticmethod
    def _answers(positions: Sequence[int], call: Future[_Answers]) -> _Answers:
        try:
            return call.result()
        except UnreachableError as error:
            return dict.fromkeys(positions, error), no_seconds()


_Answers = tuple[dict[int, Opened | ConfedError], dict[str, float]]


class Releases:
    """Asks brokers for one TEE; safe between threads.

    Args:
        digest: the manifest's, computed once.
        brokers: who answers for each broker key of the manifest; several keys may share one.
        pool: runs the calls.
    """

    def __init__(
        self,
        manifest: Manifest,
        *,
        digest: str,
        attester: Attester,
        born: Born,
        clock: EnclaveClock,
        brokers: Mapping[bytes, BrokerClient],
        courier: CourierClient,
        pool: ThreadPoolExecutor,
    ) -> None:
        self._manifest, self._digest = manifest, digest
        self._attester, self._clock = attester, clock
        self._hpke, self._signing = born.hpke, born.signing
        self._signing_public = public_bytes(born.signing)
        self._instance = instance_of(born.hpke.public, self._signing_public)
        self._brokers, self._courier, self._pool = brokers, courier, pool
        self._attested: dict[bytes, tuple[int, int]] = {}
        self._challenges = NextChallenges(lambda _: clock.now())

    def begin(self, asks: Sequence[Ask], terms: Terms) -> Asked:
        """Attest to every broker and ask it, each server in a call of its own.

        Raises:
            SessionError: a broker that nobody answers for.
        """
        groups = by_server(self._brokers, [ask.broker for ask in asks])
        return Asked(
            [(positions, self._pool.submit(self._release_at, client, positions, asks, terms))
             for client, positions in groups]
        )  # fmt: skip

    def _release_at(
        self, client: BrokerClient, positions: Sequence[int], asks: Sequence[Ask], terms: Terms
    ) -> _Answers:
        """Ask the brokers of one server."""
        seconds = no_seconds()
        kept = {at: challenge for at in positions if (challenge := self._challenges.take(asks[at].broker)) is not None}
        results = self._asked(client, kept, asks, terms, seconds)
        late = [at for at in positions if at not in kept or isinstance(results[at], ChallengeError)]
        if late:
            with timed(seconds, "release"):
                fresh = dict(zip(late, client.challenge([(asks[at].broker, self._digest) for at in late]), strict=True))
            results |= self._asked(client, fresh, asks, terms, seconds)
        return results, seconds

    def _asked(
        self,
        client: BrokerClient,
        challenges: Mapping[int, Challenge | ConfedError],
        asks: Sequence[Ask],
        terms: Terms,
        seconds: dict[str, float],
    ) -> dict[int, Opened | ConfedError]:
        """Make the requests under these nonces, and return what each came to."""
        results: dict[int, Opened | ConfedError] = {}
        items: dict[int, ReleaseItem] = {}
        with timed(seconds, "attest"):
            for at, challenge in challenges.items():
                if isinstance(challenge, ConfedError):
                    results[at] = challenge
                    continue
                self._clock.advance(challenge.issued_at)
                items[at] = self.request(asks[at], terms, nonce=challenge.nonce)
        with timed(seconds, "release"):
            replies = client.release(list(items.values())) if items else []
        for (at, item), reply in zip(items.items(), replies, strict=True):
            results[at] = reply if isinstance(reply, ConfedError) else self._opened(asks[at], item, reply, terms)
        return results

    def _opened(self, ask: Ask, item: ReleaseItem, reply: Release, terms: Terms) -> Opened:
        self._clock.advance(reply.grant.time)
        self._challenges.keep(reply)
        if item[1]:
            self._attested[ask.broker] = (terms.round_number, reply.grant.time)
        keys = tuple(self._hpke.unwrap(wrapped, info=reply.grant.context) for wrapped in reply.wrapped_keys)
        return Opened(keys=keys, credential=reply.credential, ticket=reply.ticket)

    def request(self, ask: Ask, terms: Terms, *, nonce: bytes) -> ReleaseItem:
        """Return the signed request under a broker's nonce, with evidence where it is due, and the base's record."""
        request = ReleaseRequest(
            request_id=os.urandom(16),
            broker=ask.broker,
            nonce=nonce,
            manifest=self._digest,
            run=self._manifest.run,
            instance=self._instance,
            role=Role.CLIENT,
            purpose=terms.purpose,
            identity=ask.identity,
            round=terms.round_number,
            attempt=terms.attempt,
            base=terms.base,
            keys=ask.keys,
            ticket_for=ask.ticket_for,
        )
        envelope = b""
        if self._needs_evidence(ask.broker, terms.round_number):
            binding = Binding(
                profile=self._attester.profile,
                nonce=nonce,
                audience=canonical.digest(ask.broker),
                manifest=self._digest,
                role=Role.CLIENT,
                run=self._manifest.run,
                hpke_public=self._hpke.public,
                signing_public=self._signing_public,
                issued_at=self._clock.now(),
            )
            envelope = self._attester.attest(binding).encode()
            # The evidence stays readable, so that the run can be verified offline from its records.
            self._courier.post(evidence_topic(self._manifest.run, envelope), envelope)
        return sign(request, self._signing), envelope, terms.record

    def _needs_evidence(self, broker: bytes, round_number: int) -> bool:
        attested = self._attested.get(broker)
        if attested is None:
            return True
        policy = self._manifest.client_tee
        # Half of the time that it serves, so that it does not end, and the ticket with it, while the round runs.
        aged = self._clock.now() - attested[1] >= policy.reattest_s * 1000 // 2
        return aged or round_number - attested[0] >= policy.reattest_rounds


def by_server(clients: Mapping[bytes, BrokerClient], brokers: Sequence[bytes]) -> list[tuple[BrokerClient, list[int]]]:
    """Return each server with the positions of its brokers among these.

    Raises:
        SessionError: a broker that nobody answers for.
    """
    groups: dict[int, tuple[BrokerClient, list[int]]] = {}
    for at, broker in enumerate(brokers):
        client = clients.get(broker)
        if client is None:
            raise SessionError("broker endpoint", expected="one for every broker of the manifest", got="none")
        groups.setdefault(id(client), (client, []))[1].append(at)
    return list(groups.values())
