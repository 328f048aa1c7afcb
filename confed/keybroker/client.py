"""Asks key brokers, in batches, and believes only what the broker that was asked has signed.

Nothing is unwrapped here: the enclave that owns the HPKE key does that. One identity's refusal does not fail a
batch: every item gives its value or the error that the broker's refusal names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc

from confed.errors import BrokerError, ConfedError, CredentialError, EncodingError
from confed.journey import Role
from confed.keybroker.lease import verify_lease
from confed.keybroker.statements import (
    AggregatorCredential,
    Candidate,
    Challenge,
    CheckpointNote,
    ClientCredential,
    Closing,
    ClosingCountersignature,
    Commit,
    Countersignature,
    Grant,
    Head,
    NewestCheckpoint,
    ReleaseRequest,
    Ticket,
    TicketRequest,
)
from confed.keybroker.statistics import StatisticsPermit, StatisticsRequest
from confed.statement import Signed, unverified, verify
from confed.wire.channel import Endpoint, open_channel, pack, raise_if_refused, reaching, unpack
from confed.wire.v1 import confed_pb2 as pb
from confed.wire.v1.confed_pb2_grpc import KeyBrokerStub

T = TypeVar("T")
_EACH_S = 0.05
"""How much longer a call may take for each broker or item in it."""
ReleaseItem = tuple[Signed, bytes, bytes]
"""A signed ``ReleaseRequest``, the evidence envelope (or nothing) and the base's commit record (or nothing)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """What a broker released: the verified grant, its signed form, the wrapped keys in the request's order.

    ``credential``, from a data owner's broker only or an inference TEE's lease, and ``ticket``, where the request asks
    for one, have been checked. ``next_challenge``, for a later request, is of the grant.
    """

    grant: Grant
    signed_grant: Signed
    wrapped_keys: tuple[bytes, ...]
    credential: Signed | None
    ticket: Signed | None = None
    next_challenge: Challenge | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerServer:
    """One server that holds the brokers of one or several owners, by their public keys."""

    target: str
    certificate: str
    brokers: tuple[bytes, ...]

    @property
    def endpoint(self) -> Endpoint:
        """Where it listens."""
        return Endpoint(target=self.target, certificate=self.certificate)


def connect_brokers(servers: Iterable[BrokerServer]) -> dict[bytes, BrokerClient]:
    """Return the client of each broker by its public key; brokers behind one server share a channel."""
    clients: dict[bytes, BrokerClient] = {}
    for server in servers:
        clients |= dict.fromkeys(server.brokers, BrokerClient(open_channel(server.endpoint)))
    return clients


class BrokerClient:
    """Calls the brokers behind one channel; one server may hold the brokers of several owners."""

    def __init__(self, channel: grpc.Channel, *, timeout_s: float = 60.0) -> None:
        self._stub = KeyBrokerStub(channel)
        self._timeout_s = timeout_s

    def challenge(self, items: Sequence[tuple[bytes, str]]) -> list[Challenge | ConfedError]:
        """Return a verified challenge for each (broker key, manifest digest), or why there is none.

        Raises:
            UnreachableError: the server did not answer.
        """
        batch = pb.ChallengeBatch(items=[pb.ChallengeBatch.Item(broker=item[0], manifest=item[1]) for item in items])
        replies = self._items(self._stub.Challenge, batch, len(items))

        def read(at: int) -> Challenge:
            return _read_challenge(unpack(replies[at].challenge), *items[at])

        return _outcomes(replies, read)

    def release(self, items: Sequence[ReleaseItem]) -> list[Release | ConfedError]:
        """Return what each request's broker released, its grant and credential verified, or why it did not.

        Raises:
            UnreachableError: the server did not answer.
        """
        places = {record: at for at, record in enumerate(dict.fromkeys(item[2] for item in items if item[2]), 1)}
        batch = pb.ReleaseBatch(
            items=[
                pb.ReleaseBatch.Item(request=pack(request), envelope=envelope, base_record=places.get(record, 0))
                for request, envelope, record in items
            ],
            base_records=places,
        )
        replies = self._items(self._stub.Release, batch, len(items))
        return _outcomes(replies, lambda at: _read_release(items[at][0], replies[at].released))

    def ticket(self, requests: Sequence[Signed]) -> list[Signed | ConfedError]:
        """Return a verified ticket for each signed ``TicketRequest``, or why there is none.

        Raises:
            UnreachableError: the server did not answer.
        """
        batch = pb.TicketBatch(items=[pb.TicketBatch.Item(request=pack(request)) for request in requests])
        replies = self._items(self._stub.Ticket, batch, len(requests))

        def read(at: int) -> Signed:
            asked = unverified(requests[at], TicketRequest)
            signed = unpack(replies[at].ticket)
            _check_ticket(
                signed, asked, signer=requests[at].signer, aggregator=asked.aggregator, credential=asked.credential
            )
            return signed

        return _outcomes(replies, read)

    def checkpoint(self, notes: Sequence[Signed]) -> list[Signed | ConfedError]:
        """Return each broker's verified ``NewestCheckpoint`` in answer to a signed ``CheckpointNote``.

        Raises:
            UnreachableError: the server did not answer.
        """
        batch = pb.CheckpointBatch(items=[pb.CheckpointBatch.Item(note=pack(note)) for note in notes])
        replies = self._items(self._stub.Checkpoint, batch, len(notes))

        def read(at: int) -> Signed:
            asked = unverified(notes[at], CheckpointNote)
            signed = unpack(replies[at].newest)
            newest = verify(signed, NewestCheckpoint, signer=asked.broker)
            _expect(
                "checkpoint",
                (asked.broker, asked.manifest, asked.run, asked.round, notes[at].digest),
                (newest.broker, newest.manifest, newest.run, newest.round, newest.note),
            )
            return signed

        return _outcomes(replies, read)

    def permit_statistics(self, request: Signed, *, epsilon: float) -> Signed:
        """Return the verified permit for a signed ``StatisticsRequest`` that charges this much.

        Raises:
            BrokerError: the broker refuses, for the reason of its class.
            UnreachableError: the server did not answer.
        """
        batch = pb.TicketBatch(items=[pb.TicketBatch.Item(request=pack(request))])
        replies = self._items(self._stub.Ticket, batch, 1)

        def read(at: int) -> Signed:
            asked = unverified(request, StatisticsRequest)
            signed = unpack(replies[at].ticket)
            permit = verify(signed, StatisticsPermit, signer=asked.broker)
            names = ("broker", "identity", "manifest", "run", "credential")
            _expect("permit", [getattr(asked, name) for name in names], [getattr(permit, name) for name in names])
            _expect("permit key and cost", (request.signer, epsilon), (permit.signing_public, permit.epsilon))
            return signed

        (outcome,) = _outcomes(replies, read)
        if isinstance(outcome, ConfedError):
            raise outcome
        return outcome

    def countersign(
        self, brokers: Sequence[bytes], *, candidate: Signed, tickets: Sequence[Signed], base_record: bytes = b""
    ) -> list[Signed | ConfedError]:
        """Return each broker's verified countersignature of a candidate, or why it gave none.

        Raises:
            UnreachableError: the server did not answer.
        """
        batch = pb.CountersignBatch(
            brokers=brokers,
            candidate=pack(candidate),
            tickets=[pack(ticket) for ticket in tickets],
            base_record=base_record,
        )
        replies = self._items(self._stub.Countersign, batch, len(brokers))

        def read(at: int) -> Signed:
            signed = unpack(replies[at].countersignature)
            statement = verify(signed, Countersignature, signer=brokers[at])
            _expect("countersignature", (brokers[at], candidate.digest), (statement.broker, statement.candidate))
            return signed

        return _outcomes(replies, read)

    def commit(
        self,
        broker: bytes,
        *,
        candidate: Signed,
        tickets: Sequence[Signed],
        countersignatures: Sequence[Signed],
        base_record: bytes = b"",
    ) -> Signed:
        """Return the model owner's broker's verified commit of a candidate.

        Raises:
            ConfedError: the broker refused, of the class that says why.
            UnreachableError: the server did not answer.
        """
        call = pb.CommitCall(
            broker=broker,
            candidate=pack(candidate),
            tickets=[pack(ticket) for ticket in tickets],
            countersignatures=[pack(signed) for signed in countersignatures],
            base_record=base_record,
        )
        with reaching("key broker"):
            reply = self._stub.Commit(call, timeout=self._timeout_s)
        raise_if_refused(reply, who="commit")
        signed = unpack(reply.commit)
        commit = verify(signed, Commit, signer=broker)
        asked = unverified(candidate, Candidate)
        _expect("commit", (broker, candidate.digest, asked.digest), (commit.broker, commit.candidate, commit.digest))
        return signed

    def observe(self, items: Sequence[tuple[bytes, str, bytes, bytes]]) -> list[Head | ConfedError]:
        """Return each broker's verified head for (broker key, run, nonce, commit record to witness or nothing).

        Raises:
            UnreachableError: the server did not answer.
        """
        batch = pb.ObserveBatch(
            items=[
                pb.ObserveBatch.Item(broker=broker, run=run, nonce=nonce, record=record)
                for broker, run, nonce, record in items
            ]
        )
        replies = self._items(self._stub.Observe, batch, len(items))

        def read(at: int) -> Head:
            head = verify(unpack(replies[at].head), Head, signer=items[at][0])
            _expect("head", items[at][:3], (head.broker, head.run, head.nonce))
            return head

        return _outcomes(replies, read)

    def close(
        self,
        brokers: Sequence[bytes],
        *,
        run: str,
        manifest: str,
        final_record: bytes,
        closing: Signed | None = None,
        history: Sequence[bytes] = (),
    ) -> list[Signed | ConfedError]:
        """Return the model owner's broker's ``Closing`` (without ``closing``) or the others' countersignatures of it.

        Raises:
            UnreachableError: the server did not answer.
        """
        call = pb.CloseCall(brokers=brokers, run=run, manifest=manifest, final_record=final_record, history=history)
        if closing is not None:
            call.closing.CopyFrom(pack(closing))
        replies = self._items(self._stub.Close, call, len(brokers))

        def read(at: int) -> Signed:
            signed = unpack(replies[at].signed)
            if closing is None:
                own = verify(signed, Closing, signer=brokers[at])
                _expect("closing", (brokers[at], run, manifest), (own.broker, own.run, own.manifest))
            else:
                agreed = verify(signed, ClosingCountersignature, signer=brokers[at])
                _expect("closing", (brokers[at], closing.digest), (agreed.broker, agreed.closing))
            return signed

        return _outcomes(replies, read)

    def records(self, broker: bytes, *, first: int = 0) -> tuple[Signed, ...]:
        """Return a broker's ledger entries from sequence number ``first`` on; check them with ``verify_ledger``.

        Raises:
            UnreachableError: the server did not answer, or holds no such broker.
        """
        with reaching("key broker"):
            call = pb.RecordsCall(broker=broker, first=first)
            return tuple(unpack(item.entry) for item in self._stub.Records(call, timeout=self._timeout_s))

    def _items(self, method: Callable[..., Any], batch: Any, count: int) -> Sequence[Any]:
        with reaching("key broker"):
            replies = method(batch, timeout=self._timeout_s + count * _EACH_S).items
        if len(replies) != count:
            raise EncodingError("key broker replies", expected=count, got=len(replies))
        return replies


def _outcomes(replies: Sequence[Any], read: Callable[[int], T]) -> list[T | ConfedError]:
    results: list[T | ConfedError] = []
    for at, reply in enumerate(replies):
        try:
            if reply.WhichOneof("outcome") is None:
                raise EncodingError("key broker reply", expected="an outcome", got="none")
            raise_if_refused(reply, who="key broker")
            results.append(read(at))
        except ConfedError as error:
            results.append(error)
    return results


def _read_challenge(signed: Signed, broker: bytes, manifest: str) -> Challenge:
    challenge = verify(signed, Challenge, signer=broker)
    _expect("challenge", (broker, manifest), (challenge.broker, challenge.manifest))
    return challenge


def _read_release(request: Signed, released: pb.ReleaseReplies.Released) -> Release:
    asked = unverified(request, ReleaseRequest)
    signed = unpack(released.grant)
    grant = verify(signed, Grant, signer=asked.broker)
    _expect("grant", (asked.broker, request.digest), (grant.broker, grant.request))
    _expect("wrapped keys", len(asked.keys), len(released.wrapped_keys))
    credential = unpack(released.credential) if released.HasField("credential") else None
    if credential is not None:
        _check_credential(credential, asked, request)
    _expect("ticket", bool(asked.ticket_for), released.HasField("ticket"))
    ticket = unpack(released.ticket) if asked.ticket_for else None
    if ticket is not None:
        named = "" if credential is None else credential.digest
        _check_ticket(ticket, asked, signer=request.signer, aggregator=asked.ticket_for, credential=named)
    return Release(
        grant=grant,
        signed_grant=signed,
        wrapped_keys=tuple(released.wrapped_keys),
        credential=credential,
        ticket=ticket,
        next_challenge=_next_challenge(grant, asked.manifest),
    )


def _next_challenge(grant: Grant, manifest: str) -> Challenge | None:
    if not grant.next_nonce:
        return None
    return Challenge(
        broker=grant.broker,
        nonce=grant.next_nonce,
        manifest=manifest,
        issued_at=grant.time,
        expires_at=grant.next_expires_at,
    )


def _check_ticket(
    signed: Signed, asked: TicketRequest | ReleaseRequest, *, signer: bytes, aggregator: str, credential: str
) -> None:
    ticket = verify(signed, Ticket, signer=asked.broker)
    names = ("broker", "identity", "manifest", "run", "round", "attempt", "purpose", "base")
    _expect("ticket", [getattr(asked, name) for name in names], [getattr(ticket, name) for name in names])
    got = (ticket.aggregator, ticket.credential, ticket.signing_public)
    _expect("ticket maker and key", (aggregator, credential, signer), got)


def _check_credential(signed: Signed, asked: ReleaseRequest, request: Signed) -> None:
    if asked.role is Role.INFERENCE:
        verify_lease(signed, asked=asked, request=request)
        return
    signing_public = request.signer
    if asked.role is Role.CLIENT:
        own = verify(signed, ClientCredential, signer=asked.broker)
        got = (own.broker, own.identity, own.manifest, own.run, own.instance, own.signing_public)
        expected = (asked.broker, asked.identity, asked.manifest, asked.run, asked.instance, signing_public)
        step = (own.round, own.attempt, own.purpose) == (asked.round, asked.attempt, asked.purpose)
    else:
        other = verify(signed, AggregatorCredential, signer=asked.broker)
        got = (other.broker, other.manifest, other.run, other.instance, other.signing_public)
        expected = (asked.broker, asked.manifest, asked.run, asked.instance, signing_public)
        step = other.first_round <= asked.round <= other.last_round
    if got != expected or not step:
        raise CredentialError("credential", expected="for this request", got="for another")


def _expect(what: str, expected: object, got: object) -> None:
    if expected != got:
        raise BrokerError(what, expected="an answer to what was asked", got="an answer to something else")
