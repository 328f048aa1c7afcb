"""Key brokers over gRPC: one server holds one or several owners' brokers; each call is a batch of items.

The service edge: a refusal leaves as its stable code, anything unexpected as ``broker``, with a log line that holds
the exception's type and nothing of its text.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

import grpc

from confed.errors import BrokerError, ConfedError, EncodingError
from confed.keybroker.broker import Broker
from confed.statement import Signed
from confed.wire.channel import RunningServer, TlsIdentity, pack, refusal, serve, unpack
from confed.wire.v1 import confed_pb2 as pb
from confed.wire.v1.confed_pb2_grpc import KeyBrokerServicer, add_KeyBrokerServicer_to_server

T = TypeVar("T")
_log = logging.getLogger(__name__)
_MOST_ITEMS = 4096


class BrokerService(KeyBrokerServicer):
    """The gRPC face of several brokers, by public key."""

    def __init__(self, brokers: Mapping[bytes, Broker]) -> None:
        self._brokers = dict(brokers)

    def Challenge(self, request: pb.ChallengeBatch, context: grpc.ServicerContext) -> pb.ChallengeReplies:
        """A nonce for each item."""
        _require_bounded(context, len(request.items))
        item = pb.ChallengeReplies.Item
        return pb.ChallengeReplies(
            items=[
                self._answer(
                    lambda asked=asked: item(challenge=pack(self._broker(asked.broker).challenge(asked.manifest))),
                    item,
                )
                for asked in request.items
            ]
        )

    def Release(self, request: pb.ReleaseBatch, context: grpc.ServicerContext) -> pb.ReleaseReplies:
        """A decision about each request."""
        _require_bounded(context, len(request.items))
        item = pb.ReleaseReplies.Item

        def release(asked: pb.ReleaseBatch.Item) -> pb.ReleaseReplies.Item:
            signed = unpack(asked.request)
            broker = self._broker(_addressee(signed))
            released = broker.release(signed, envelope=asked.envelope, base_record=asked.base_record)
            return item(released=released.to_wire())

        return pb.ReleaseReplies(
            items=[self._answer(lambda asked=asked: release(asked), item) for asked in request.items]
        )

    def Ticket(self, request: pb.TicketBatch, context: grpc.ServicerContext) -> pb.TicketReplies:
        """A ticket for each request."""
        _require_bounded(context, len(request.items))
        item = pb.TicketReplies.Item

        def ticket(asked: pb.TicketBatch.Item) -> pb.TicketReplies.Item:
            signed = unpack(asked.request)
            return item(ticket=pack(self._broker(_addressee(signed)).ticket(signed)))

        return pb.TicketReplies(
            items=[self._answer(lambda asked=asked: ticket(asked), item) for asked in request.items]
        )

    def Countersign(self, request: pb.CountersignBatch, context: grpc.ServicerContext) -> pb.CountersignReplies:
        """A countersignature of one candidate by each broker."""
        _require_bounded(context, len(request.brokers))
        item = pb.CountersignReplies.Item
        candidate, tickets = unpack(request.candidate), [unpack(signed) for signed in request.tickets]

        def countersign(broker: bytes) -> pb.CountersignReplies.Item:
            signed = self._broker(broker).countersign(candidate, tickets=tickets, base_record=request.base_record)
            return item(countersignature=pack(signed))

        return pb.CountersignReplies(
            items=[self._answer(lambda broker=broker: countersign(broker), item) for broker in request.brokers]
        )

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

        return pb.ObserveReplies(
            items=[self._answer(lambda asked=asked: observe(asked), item) for asked in request.items]
        )

    def Close(self, request: pb.CloseCall, context: grpc.ServicerContext) -> pb.CloseReply:
        """The closing of a run, or its countersignature by each broker."""
        _require_bounded(context, len(request.brokers))
        item = pb.CloseReply.Item
        closing = unpack(request.closing) if request.HasField("closing") else None

        def close(broker: bytes) -> pb.CloseReply.Item:
            signed = self._broker(broker).close(
                run=request.run, manifest=request.manifest, final_record=request.final_record, closing=closing
            )
            return item(signed=pack(signed))

        return pb.CloseReply(
            items=[self._answer(lambda broker=broker: close(broker), item) for broker in request.brokers]
        )

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
        return bytes.fromhex(json.loads(request.payload)["broker"])
    except (TypeError, KeyError, ValueError, RecursionError) as error:
        raise EncodingError("request", expected="one that names its broker", got="another") from error


def _require_bounded(context: grpc.ServicerContext, count: int) -> None:
    if count > _MOST_ITEMS:
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "items")
