"""Key brokers over gRPC: one server holds one or several owners' brokers; each call is a batch of items.

The service edge: a refusal leaves as its stable code, anything unexpected as ``broker``, with a log line that holds
the exception's type and nothing of its text.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import grpc

from confed.errors import BrokerError, ConfedError, EncodingError
from confed.keybroker.broker import Broker
from confed.keybroker.store import written_together
from confed.statement import Signed, word_of
from confed.wire.channel import RunningServer, TlsIdentity, pack, refusal, serve, unpack
from confed.wire.v1 import confed_pb2 as pb
from confed.wire.v1.confed_pb2_grpc import KeyBrokerServicer, add_KeyBrokerServicer_to_server

A = TypeVar("A")
T = TypeVar("T")
_log = logging.getLogger(__name__)
_MOST_ITEMS = 20_000  # a commit record of so many sites is what a call may hold
_MOST_THREADS = 16
_FEW = 8
"""Up to how many items of a call wait each for its own disk, side by side: a file system is slower than a few files."""


class BrokerService(KeyBrokerServicer):
    """The gRPC face of several brokers, by public key."""

    def __init__(self, brokers: Mapping[bytes, Broker]) -> None:
        self._brokers = dict(brokers)
        # Brokers decide side by side: each has a store of its own, and most of a decision is the wait for its disk.
        self._pool = ThreadPoolExecutor(max_workers=min(_MOST_THREADS, max(1, len(self._brokers))))

    def Challenge(self, request: pb.ChallengeBatch, context: grpc.ServicerContext) -> pb.ChallengeReplies:
        """A nonce for each item."""
        _require_bounded(context, len(request.items))
        item = pb.ChallengeReplies.Item

        def challenge(asked: pb.ChallengeBatch.Item) -> pb.ChallengeReplies.Item:
            return item(challenge=pack(self._broker(asked.broker).challenge(asked.manifest)))

        return pb.ChallengeReplies(items=self._each(request.items, challenge, item))

    def Release(self, request: pb.ReleaseBatch, context: grpc.ServicerContext) -> pb.ReleaseReplies:
        """A decision about each request."""
        _require_bounded(context, len(request.items))
        item = pb.ReleaseReplies.Item
        records = (b"", *request.base_records)  # the same object for all, so that it is hashed and parsed once

        def release(asked: pb.ReleaseBatch.Item) -> pb.ReleaseReplies.Item:
            if asked.base_record >= len(records):
                raise EncodingError("base record", expected=f"one of {len(records) - 1}", got=asked.base_record)
            signed = unpack(asked.request)
            broker = self._broker(_addressee(signed))
            released = broker.release(signed, envelope=asked.envelope, base_record=records[asked.base_record])
            return item(released=released.to_wire())

        return pb.ReleaseReplies(items=self._each(request.items, release, item))

    def Ticket(self, request: pb.TicketBatch, context: grpc.ServicerContext) -> pb.TicketReplies:
        """A ticket for each request."""
        _require_bounded(context, len(request.items))
        item = pb.TicketReplies.Item

        def ticket(asked: pb.TicketBatch.Item) -> pb.TicketReplies.Item:
            signed = unpack(asked.request)
            return item(ticket=pack(self._broker(_addressee(signed)).ticket(signed)))

        return pb.TicketReplies(items=self._each(request.items, ticket, item))

    def Checkpoint(self, request: pb.CheckpointBatch, context: grpc.ServicerContext) -> pb.CheckpointReplies:
        """The newest checkpoint, for each note."""
        _require_bounded(context, len(request.items))
        item = pb.CheckpointReplies.Item

        def checkpoint(asked: pb.CheckpointBatch.Item) -> pb.CheckpointReplies.Item:
            signed = unpack(asked.note)
            return item(newest=pack(self._broker(_addressee(signed)).checkpoint(signed)))

        return pb.CheckpointReplies(items=self._each(request.items, checkpoint, item))

    def Countersign(self, request: pb.CountersignBatch, context: grpc.ServicerContext) -> pb.CountersignReplies:
        """A countersignature of one candidate by each broker."""
        _require_bounded(context, len(request.brokers))
        item = pb.CountersignReplies.Item
        # One object each for all brokers, so that what was checked for one need not be checked for the next.
        candidate, tickets = unpack(request.candidate), tuple(unpack(signed) for signed in request.tickets)
        base_record = request.base_record

        def countersign(broker: bytes) -> pb.CountersignReplies.Item:
            signed = self._broker(broker).countersign(candidate, tickets=tickets, base_record=base_record)
            return item(countersignature=pack(signed))

        return pb.CountersignReplies(items=self._each(request.brokers, countersign, item))

    def Commit(self, request: pb.CommitCall, context: grpc.ServicerContext) -> pb.CommitReply:
        """The model owner's commit of a candidate."""
        del context

        def commit() -> pb.CommitReply:
            signed = self._broker(request.broker).commit(
                unpack(request.candidate),
                tickets=[unpack(signed) for signed in request.tickets],
                countersignatures=[unpack(signed) for signed in request.countersignatures],
                base_record=request.base_record,
            )
            return pb.CommitReply(commit=pack(signed))

        return self._answer(commit, pb.CommitReply)

    def Observe(self, request: pb.ObserveBatch, context: grpc.ServicerContext) -> pb.ObserveReplies:
        """The head that each broker has witnessed."""
        _require_bounded(context, len(request.items))
        item = pb.ObserveReplies.Item

        def observe(asked: pb.ObserveBatch.Item) -> pb.ObserveReplies.Item:
            head = self._broker(asked.broker).observe(asked.run, nonce=asked.nonce, record=asked.record)
            return item(head=pack(head))

        return pb.ObserveReplies(items=self._each(request.items, observe, item))

    def Close(self, request: pb.CloseCall, context: grpc.ServicerContext) -> pb.CloseReply:
        """The closing of a run, or its countersignature by each broker."""
        _require_bounded(context, len(request.brokers))
        item = pb.CloseReply.Item
        closing = unpack(request.closing) if request.HasField("closing") else None
        final_record, history = request.final_record, tuple(request.history)

        def close(broker: bytes) -> pb.CloseReply.Item:
            signed = self._broker(broker).close(
                run=request.run,
                manifest=request.manifest,
                final_record=final_record,
                closing=closing,
                history=history,
            )
            return item(signed=pack(signed))

        return pb.CloseReply(items=self._each(request.brokers, close, item))

    def Records(self, request: pb.RecordsCall, context: grpc.ServicerContext) -> Iterator[pb.RecordItem]:
        """A broker's ledger from a sequence number on."""
        broker = self._brokers.get(request.broker)
        if broker is None:
            context.abort(grpc.StatusCode.NOT_FOUND, "broker")
            return
        for entry in broker.records(first=request.first):
            yield pb.RecordItem(entry=pack(entry))

    def _broker(self, public: bytes) -> Broker:
        broker = self._brokers.get(public)
        if broker is None:
            raise BrokerError("broker", expected="one of this server", got=public.hex()[:16])
        return broker

    def _each(self, asked: Iterable[A], decide: Callable[[A], T], reply: Callable[..., T]) -> list[T]:
        """Answer every item of a batch, in its order.

        Many are decided one after another and wait for the disk together, once; then they are answered.
        """
        items = list(asked)
        if len(items) <= _FEW:
            return list(self._pool.map(partial(self._decided, decide, reply), items))
        with written_together():
            return [self._decided(decide, reply, item) for item in items]

    def _decided(self, decide: Callable[[A], T], reply: Callable[..., T], item: A) -> T:
        return self._answer(partial(decide, item), reply)

    def _answer(self, decide: Callable[[], T], reply: Callable[..., T]) -> T:
        try:
            return decide()
        except ConfedError as error:
            return reply(refusal=refusal(error))
        except Exception as error:  # noqa: BLE001 (service edge: fails closed, and nothing of the text leaves or is logged)
            _log.error("key broker: unexpected %s", type(error).__name__)
            return reply(refusal=pb.Refusal(code=BrokerError.code))


def serve_brokers(brokers: Mapping[bytes, Broker], *, listen: str, tls: TlsIdentity | None) -> RunningServer:
    """Serve brokers at ``listen`` (``127.0.0.1:0`` for a free port, or ``unix:PATH``) and return, listening.

    Raises:
        PortInUseError: the address cannot be bound.
        EncodingError: a network address without TLS.
    """
    return serve(lambda server: add_KeyBrokerServicer_to_server(BrokerService(brokers), server), listen=listen, tls=tls)


def _addressee(request: Signed) -> bytes:
    """The broker that a request names: only to find it, since the broker itself parses and checks the request."""
    try:
        return bytes.fromhex(word_of(request, "broker"))
    except ValueError as error:
        raise EncodingError("request", expected="one that names its broker", got="another") from error


def _require_bounded(context: grpc.ServicerContext, count: int) -> None:
    if count > _MOST_ITEMS:
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "items")
