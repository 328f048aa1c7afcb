"""The courier: sealed objects and public letters, kept on disk and moved over gRPC by one that can read none of it.

It is hostile in the threat model: whoever gets something from it checks the digest or the signatures. What it
promises to an honest operator is that it never serves an upload that is not whole, and never fills the disk past its
quota.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import grpc

from confed.errors import ConfedError, DiskFullError, EncodingError, QuotaError, RefusedError, StorageError
from confed.governor.callers import Callers, Shares
from confed.governor.expiry import Expiry, Terms
from confed.governor.incoming import TakenOverError
from confed.governor.letter_box import LetterBox
from confed.governor.object_store import DISK_FULL, ObjectStore, Progress
from confed.governor.quota import Quota
from confed.governor.switchboard import Switchboard
from confed.wire.channel import RunningServer, TlsIdentity, refusal, serve
from confed.wire.parts import Part, encode_get, register_courier
from confed.wire.upload import Buffer
from confed.wire.v1 import confed_pb2 as pb
from confed.wire.v1 import confed_pb2_grpc as services

T = TypeVar("T")

_logger = logging.getLogger(__name__)
_MORE = pb.GetPart()


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a courier holds at most.

    Attributes:
        object_bytes: one object.
        store_bytes: everything together, uploads in progress included.
        topics: topics that letters may be posted under.
        topic_bytes: all letters under one topic; what ``Collect`` returns in one message.
    """

    object_bytes: int = 64 * 1024**3
    store_bytes: int = 1024**4
    topics: int = 200_000
    topic_bytes: int = 48 * 1024**2


class Courier:
    """A ciphertext store and letter box in one directory, for use in the process; ``serve_courier`` serves it.

    ``durable=False`` leaves out fsync: a power cut may then lose what was stored last (never more than that: readers
    check digests), while kill -9 of the courier still loses nothing. With ``expiry`` it removes what
    a run needs no more.
    """

    def __init__(
        self, directory: Path, *, limits: Limits | None = None, durable: bool = True, expiry: Terms | None = None
    ) -> None:
        limits = limits or Limits()
        self._quota = Quota(limits.store_bytes)
        self.objects = ObjectStore(directory, object_bytes=limits.object_bytes, quota=self._quota, durable=durable)
        self.letters = LetterBox(
            directory, topics=limits.topics, topic_bytes=limits.topic_bytes, quota=self._quota, durable=durable
        )
        self.switchboard = Switchboard()
        self.shares = Shares(directory / "callers", lambda digest: self.objects.progress(digest).stored_bytes)
        self.expiry = Expiry(expiry, self.objects, self.letters) if expiry is not None else None
        if self.expiry is not None:
            self.expiry.catch_up()

    @property
    def used_bytes(self) -> int:
        """Bytes held, and promised to uploads in progress."""
        return self._quota.used_bytes

    def put(self, data: Buffer | Path) -> str:
        """Store a buffer or file and return its digest.

        Raises:
            MissingFileError: no such file.
            SizeError: larger than an object or the whole store may be.
            StorageError: the disk is full or fails.
        """
        return _on_disk(lambda: self.objects.put(data))

    def take(self, digest: str) -> int:
        """Take over the file of this name in ``handed``; return its size.

        Raises:
            EncodingError, MissingObjectError: see ``ObjectStore.take``.
            SizeError: larger than an object or the whole store may be.
            StorageError: the disk is full or fails.
        """
        return _on_disk(lambda: self.objects.take(digest))

    def path(self, digest: str) -> Path:
        """Return where a complete object lies; its bytes are not verified again.

        Raises:
            EncodingError: not a digest.
            MissingObjectError: no complete object of this digest.
        """
        return self.objects.path(digest)

    def progress(self, digest: str) -> Progress:
        """Return how much of an object is stored.

        Raises:
            EncodingError: not a digest.
        """
        return self.objects.progress(digest)

    def remove(self, digest: str) -> None:
        """Delete an object, if it is there.

        Raises:
            EncodingError: not a digest.
        """
        self.objects.remove(digest)

    def post(self, topic: str, body: bytes) -> None:
        """Add a letter under a topic; the same body again changes nothing.

        Raises:
            EncodingError: not a topic.
            SizeError: the letter, the topic, the number of topics or the whole store would be too large.
            StorageError: the disk is full or fails.
        """
        _on_disk(lambda: self.letters.post(topic, body))
        if self.expiry is not None:
            self.expiry.notice(topic, body)

    def collect(self, topic: str) -> list[bytes]:
        """Return the letters under a topic, oldest first.

        Raises:
            EncodingError: not a topic.
            StorageError: the disk fails.
        """
        return _on_disk(lambda: self.letters.collect(topic))


def serve_courier(
    directory: Path | Courier,
    *,
    listen: str,
    tls: TlsIdentity | None,
    limits: Limits | None = None,
    threads: int = 256,
    callers: Callers | None = None,
) -> RunningServer:
    """Serve the courier of a directory, or one that this process uses too, and return the running server.

    Every transfer holds one of ``threads`` threads while it runs; further ones wait. With ``callers`` nobody else gets
    a connection, and each may have its share of the disk; without, whoever reaches the address may use all of it.

    Raises:
        PortInUseError: the address cannot be bound.
        EncodingError: a network address without TLS.
    """
    courier = directory if isinstance(directory, Courier) else Courier(directory, limits=limits)
    if callers is not None and tls is None:
        raise EncodingError("callers", expected="TLS, which tells who calls", got="none")
    service = _CourierService(courier, callers)
    return serve(
        lambda server: register_courier(service, server),
        listen=listen,
        tls=tls,
        threads=threads,
        callers=callers.certificates if callers is not None else (),
    )


class _CourierService(services.CourierServicer):
    """The edge: messages in, messages out, and every failure as a code."""

    def __init__(self, courier: Courier, callers: Callers | None) -> None:
        self._courier = courier
        self._callers = callers

    def Put(self, request_iterator: Iterator[Part[pb.PutPart]], context: grpc.ServicerContext) -> pb.PutReply:
        """Store one object, or one part more of it."""
        try:
            return pb.PutReply(stored_bytes=_at_edge(lambda: self._receive(request_iterator, context)))
        except ConfedError as error:
            return pb.PutReply(refusal=refusal(error))
        except TakenOverError:
            # As a cut: who comes back asks how far it is now.
            context.abort(grpc.StatusCode.UNAVAILABLE, "taken-over")

    def Progress(self, request: pb.ProgressCall, context: grpc.ServicerContext) -> pb.ProgressReply:
        """Say where an upload may go on."""
        try:
            found = _at_edge(lambda: self._courier.objects.settled_progress(request.digest))
        except ConfedError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, error.code)
        return pb.ProgressReply(stored_bytes=found.stored_bytes, complete=found.complete)

    def HandOver(self, request: pb.HandOverCall, context: grpc.ServicerContext) -> pb.PutReply:
        """Take over a file that lies here already."""
        del context
        try:
            return pb.PutReply(stored_bytes=_at_edge(lambda: self._courier.take(request.digest)))
        except ConfedError as error:
            return pb.PutReply(refusal=refusal(error))

    def Get(self, request: pb.GetCall, context: grpc.ServicerContext) -> Iterator[bytes]:
        """Stream an object from an offset on."""
        del context
        parts = self._courier.objects.parts(request.digest, offset=request.offset)
        try:
            size, data = _at_edge(lambda: next(parts))
            yield encode_get(pb.GetPart(size_bytes=size), data)
            while (part := _at_edge(lambda: next(parts, None))) is not None:
                yield encode_get(_MORE, part[1])
        except ConfedError as error:
            yield pb.GetPart(refusal=refusal(error)).SerializeToString()
        finally:
            parts.close()

    def Post(self, request: pb.Letter, context: grpc.ServicerContext) -> pb.PostReply:
        """Add a letter."""
        try:
            _at_edge(lambda: self._post(request, context))
        except ConfedError as error:
            return pb.PostReply(refusal=refusal(error))
        return pb.PostReply()

    def Collect(self, request: pb.CollectCall, context: grpc.ServicerContext) -> pb.CollectReply:
        """Return the letters under a topic."""
        try:
            return pb.CollectReply(bodies=_at_edge(lambda: self._courier.collect(request.topic)))
        except ConfedError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, error.code)

    def Leave(self, request: pb.LeaveCall, context: grpc.ServicerContext) -> pb.LeaveReply:
        """Put a message into a box."""
        board, sender = self._courier.switchboard, self._name(context)
        try:
            _at_edge(lambda: board.leave(request.box, name=request.name, body=request.body, sender=sender()))
        except ConfedError as error:
            return pb.LeaveReply(refusal=refusal(error))
        return pb.LeaveReply()

    def Await(self, request: pb.AwaitCall, context: grpc.ServicerContext) -> pb.AwaitReply:
        """Return what comes into a box."""
        board, reader = self._courier.switchboard, self._name(context)
        try:
            found, place = _at_edge(
                lambda: board.wait(request.box, after=request.after, wait_ms=request.wait_ms, reader=reader())
            )
        except ConfedError as error:
            return pb.AwaitReply(refusal=refusal(error))
        items = [pb.AwaitReply.Item(name=left.name, body=left.body, sender=left.sender) for left in found]
        return pb.AwaitReply(items=items, place=place)

    def _name(self, context: grpc.ServicerContext) -> Callable[[], str]:
        return lambda: "" if self._callers is None else self._callers.calling(context).name

    def _post(self, request: pb.Letter, context: grpc.ServicerContext) -> None:
        if self._callers is not None:
            self._courier.shares.post(self._callers.calling(context), len(request.body))
        self._courier.post(request.topic, request.body)

    def _receive(self, messages: Iterator[Part[pb.PutPart]], context: grpc.ServicerContext) -> int:
        first = next(messages, None)
        if first is None:
            raise EncodingError("upload", expected="at least one part", got="none")

        told = first.front

        def parts() -> Iterator[tuple[int, memoryview]]:
            yield told.offset, first.data
            for message in messages:
                yield message.front.offset, message.data

        with self._counted(told, context):
            return self._courier.objects.receive(
                told.digest, size_bytes=told.size_bytes, offset=told.offset, parts=parts()
            )

    def _counted(self, first: pb.PutPart, context: grpc.ServicerContext) -> AbstractContextManager[None]:
        # What is there already is counted for whoever brought it.
        if self._callers is None or self._courier.progress(first.digest).complete:
            return nullcontext()
        return self._courier.shares.uploading(self._callers.calling(context), first.digest, first.size_bytes)


def _on_disk(work: Callable[[], T]) -> T:
    try:
        return work()
    except OSError as error:
        if error.errno in DISK_FULL:
            raise DiskFullError("courier storage", expected="room on the disk", got=error.strerror) from error
        raise StorageError("courier storage", expected="a working disk", got=error.strerror) from error


def _at_edge(work: Callable[[], T]) -> T:
    """Do the work of a call, every failure but a cut connection turned into an error with a code."""
    try:
        return _on_disk(work)
    except (ConfedError, grpc.RpcError, TakenOverError) as error:
        if isinstance(error, StorageError | QuotaError):
            _logger.warning("%s", error)
        raise
    except Exception as error:  # The service's edge: what is not foreseen must not end the service or travel in clear.
        _logger.exception("courier call failed")
        raise RefusedError("courier") from error
