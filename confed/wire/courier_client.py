"""The courier as its users see it: put and get by digest, post and collect by topic.

The courier may lie, so nothing of it is believed: what ``get`` and ``get_to_file`` return has the digest that was
asked for. Letters and ``read_unverified`` are not checked here: their readers verify signatures or chunk tags.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from io import FileIO
from pathlib import Path
from typing import Any, Self

import grpc

from confed.errors import MissingFileError, SizeError, TamperedError, TruncatedError
from confed.files import sync_folder
from confed.memory import room_for
from confed.wire.addresses import LETTERS_PER_TOPIC, PART_BYTES, check_digest, check_letter, check_topic
from confed.wire.channel import Endpoint, open_channel, raise_if_refused
from confed.wire.parts import Part, get_method, put_method
from confed.wire.patience import Patience, Progress, Stalls, spread_sleep
from confed.wire.upload import Buffer, BufferSource, FileSource, PutParts, Source
from confed.wire.v1 import confed_pb2 as pb
from confed.wire.v1 import confed_pb2_grpc as services

_SERVICE = "courier"
_NO_LIMIT = 2**63
_FILE_BYTES = 64 * 1024**3
STALL_S = 120.0
"""Time for one part at 0.1 Mbit/s."""


class CourierClient:
    """A client of one courier; safe between threads, not across a fork: make it in the process that uses it.

    Guarantees: a transfer that is cut goes on where it stopped, after pauses that double, until several in a row
    brought nothing; it has no deadline while it moves. A courier that is down, or that lets a call stand still for
    ``stall_s`` twice in a row, is ``UnreachableError``.

    Args:
        endpoint: where the courier listens.
        limit_bytes: largest object that ``get`` takes into memory.
        stall_s: how long a call may move nothing: no part (1 MiB) of a transfer, no answer to anything smaller.
        sleep: waits between attempts; injectable for tests.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        limit_bytes: int = 16 * 1024**3,
        stall_s: float = STALL_S,
        sleep: Callable[[float], None] = spread_sleep,
    ) -> None:
        self._channel = open_channel(endpoint)
        self._stub = services.CourierStub(self._channel)
        self._put_parts, self._get_parts = put_method(self._channel), get_method(self._channel)
        self._limit_bytes, self._stall_s, self._sleep = limit_bytes, stall_s, sleep
        self._stalls = Stalls(stall_s)

    def close(self) -> None:
        """Close the channel; running calls end."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def put(self, data: Buffer | Path, *, digest: str | None = None) -> str:
        """Store a buffer or a file and return its digest.

        Guarantees: what the courier holds already is not sent again; up to 1 MiB costs one call. A ``digest`` that
        the caller knows (from sealing) saves hashing; the courier refuses a wrong one.

        Raises:
            MissingFileError: no such file.
            TruncatedError: a file that grew shorter while it was sent.
            TamperedError: the bytes are not those of ``digest``.
            SizeError: too large for the courier, or its quota is spent.
            StorageError: the courier's disk is full or fails.
            UnreachableError: the courier is down.
        """
        with closing(FileSource(data) if isinstance(data, Path) else BufferSource(data)) as source:
            address = source.digest() if digest is None else digest
            check_digest(address)
            self._send(source, address)
        return address

    def hand_over(self, digest: str) -> None:
        """Have the courier take over the file of this name in its folder for that, as it lies there.

        Guarantees: asking again does no harm; what the courier holds already stays as it is.

        Raises:
            EncodingError: not a digest.
            MissingObjectError: there is no such file, and no such object.
            SizeError, StorageError, UnreachableError: as ``put``.
        """
        check_digest(digest)
        reply: pb.PutReply = self._again(self._stub.HandOver, pb.HandOverCall(digest=digest), timeout_s=None)
        raise_if_refused(reply, who=_SERVICE)

    def get(self, digest: str, *, limit_bytes: int | None = None) -> memoryview:
        """Return an object, its digest checked; memory is taken for what has arrived, never for what was announced.

        Raises:
            EncodingError: not a digest.
            MissingObjectError: the courier does not hold it.
            SizeError: larger than ``limit_bytes`` (the client's by default).
            TamperedError: other bytes than those of this digest.
            TruncatedError: fewer than announced.
            UnreachableError: the courier is down.
        """
        room, filled, found = memoryview(b""), 0, hashlib.sha256()
        for size, data in self._receive(digest, limit_bytes=self._limit_bytes if limit_bytes is None else limit_bytes):
            # The size is the courier's word: it costs nothing but addresses until that much has arrived.
            room = room if filled else _room_for(size)
            room[filled : filled + len(data)] = data
            filled += len(data)
            found.update(data)
        _check_bytes(found.hexdigest(), digest)
        return room

    def stream(self, digest: str, *, limit_bytes: int | None = None) -> Generator[tuple[int, memoryview], None, None]:
        """Yield (size of the whole, bytes) of an object as they arrive, from the start to the end, cuts or not.

        Guarantees: when it ends without an error, what it yielded had the digest. Until then NOTHING of it is verified,
        the size least of all: whoever uses the bytes before must be ready to throw away what they made.

        Raises:
            EncodingError, MissingObjectError, SizeError, TamperedError, TruncatedError, UnreachableError: as ``get``.
        """
        found = hashlib.sha256()
        for size, data in self._receive(digest, limit_bytes=self._limit_bytes if limit_bytes is None else limit_bytes):
            found.update(data)
            yield size, data
        _check_bytes(found.hexdigest(), digest)

    def get_to_file(self, digest: str, path: Path, *, limit_bytes: int = _FILE_BYTES) -> None:
        """Write an object to a file, its digest checked before the file gets its name.

        Guarantees: ``path`` is the whole verified object or untouched; what a cut download left beside it is
        verified and continued by the next one; memory stays at a few parts.

        Raises:
            MissingFileError: the folder is not there.
            SizeError: larger than ``limit_bytes``.
            EncodingError, MissingObjectError, TamperedError, TruncatedError, UnreachableError: as ``get``.
        """
        check_digest(digest)
        partial = path.with_name(f".{path.name}.{digest}.partial")
        with _own_file(partial) as file:
            if not self._continue_file(digest, file, limit_bytes):
                # What an earlier download left was not part of this object: once more from the start.
                file.truncate(0)
                self._continue_file(digest, file, limit_bytes)
            os.fsync(file.fileno())
            Path(str(file.name)).replace(path)
        sync_folder(path.parent)

    def read_unverified(self, digest: str, *, offset: int, size_bytes: int) -> bytes:
        """Return a range of an object WITHOUT checking it, for readers of containers: their chunks carry tags.

        Raises:
            EncodingError, MissingObjectError, UnreachableError: as ``get``.
            TruncatedError: the object ends before the range.
        """
        wanted = bytearray()
        with closing(self._receive(digest, offset=offset, limit_bytes=_NO_LIMIT)) as parts:
            for _, data in parts:
                wanted += data[: size_bytes - len(wanted)]
                if len(wanted) == size_bytes:
                    return bytes(wanted)
        raise TruncatedError("object range in bytes", expected=size_bytes, got=len(wanted))

    def post(self, topic: str, body: bytes) -> None:
        """Add a letter under a topic; posting the same body again changes nothing.

        Raises:
            EncodingError: not a topic.
            SizeError: the letter or the topic is full, or the courier's quota is spent.
            StorageError: the courier's disk is full or fails.
            UnreachableError: the courier is down.
        """
        check_topic(topic)
        check_letter(body)
        call = pb.Letter(topic=topic, body=body)
        reply: pb.PostReply = self._again(self._stub.Post, call, timeout_s=self._stall_s)
        raise_if_refused(reply, who=_SERVICE)

    def collect(self, topic: str) -> list[bytes]:
        """Return the letters under a topic, oldest first; the courier may leave some out or add its own.

        Raises:
            EncodingError: not a topic.
            SizeError: more or larger letters than there can be.
            UnreachableError: the courier is down.
        """
        check_topic(topic)
        call = pb.CollectCall(topic=topic)
        reply: pb.CollectReply = self._again(self._stub.Collect, call, timeout_s=self._stall_s)
        bodies = list(reply.bodies)
        if len(bodies) > LETTERS_PER_TOPIC:
            raise SizeError("letters under a topic", expected=f"at most {LETTERS_PER_TOPIC}", got=len(bodies))
        for body in bodies:
            check_letter(body)
        return bodies

    def _send(self, source: Source, digest: str) -> None:
        patience, start_over = Patience(_SERVICE, self._sleep), False
        while True:
            progress = Progress()
            try:
                offset = 0 if start_over else self._stored(source, digest, patience)
                if offset is None:
                    return
                reply = self._put(PutParts(source, digest, offset, moved=progress.note), progress)
                if reply.HasField("refusal") and reply.refusal.code == TamperedError.code and offset:
                    # What somebody had left there was not part of this object: once more from the start.
                    start_over = True
                    continue
                raise_if_refused(reply, who=_SERVICE)
                if reply.stored_bytes == source.size_bytes:
                    return
                start_over = False
                patience.pause(None)
            except grpc.RpcError as error:
                start_over = False
                patience.pause(error, stalled=progress.stalled)

    def _stored(self, source: Source, digest: str, patience: Patience) -> int | None:
        """Return where an upload goes on, or nothing where it is complete."""
        # A small object is sent at once; for a large one it pays to ask what is there.
        if source.size_bytes <= PART_BYTES:
            return 0
        found = self._stub.Progress(pb.ProgressCall(digest=digest), timeout=self._stall_s)
        if found.complete:
            return None
        patience.note(found.stored_bytes)
        return found.stored_bytes if found.stored_bytes <= source.size_bytes else 0

    def _put(self, parts: PutParts, progress: Progress) -> pb.PutReply:
        call = self._put_parts.future(iter(parts))
        with self._stalls.watching(call, progress):
            try:
                reply = call.result()
            except grpc.FutureCancelledError:
                raise call from None  # One that stood still, as the error that every other end is.
        parts.raise_if_failed()
        return reply

    def _receive(
        self, digest: str, *, limit_bytes: int, offset: int = 0
    ) -> Generator[tuple[int, memoryview], None, None]:
        """Yield (size of the whole, data) from an offset on, going on after cuts; sizes are checked, bytes are not."""
        check_digest(digest)
        patience, size = Patience(_SERVICE, self._sleep), None
        while True:
            call, progress = self._get_parts(pb.GetCall(digest=digest, offset=offset)), Progress()
            try:
                first = True
                for part in self._watched(call, progress):
                    raise_if_refused(part.front, who=_SERVICE)
                    if first:
                        size, first = _agreed_size(part.front.size_bytes, size, limit_bytes), False
                    offset += len(part.data)
                    if size is None or offset > size:
                        raise TamperedError("object size in bytes", expected=size, got=offset)
                    yield size, part.data
                if size is None or offset < size:
                    raise TruncatedError("object size in bytes", expected=size, got=offset)
                return  # noqa: TRY300 (an else would stand after the retry it belongs before)
            except grpc.RpcError as error:
                patience.note(offset)
                patience.pause(error, stalled=progress.stalled)
            finally:
                call.cancel()

    def _watched(self, call: Any, progress: Progress) -> Generator[Part[pb.GetPart], None, None]:
        """Yield the parts of a download; only the wait for one counts as standing still, not its use."""
        parts = iter(call)
        while True:
            with self._stalls.watching(call, progress):
                part = next(parts, None)
            if part is None:
                return
            yield part

    def _continue_file(self, digest: str, file: FileIO, limit_bytes: int) -> bool:
        """Download the rest of a file; False if it had a beginning and does not match in the end.

        Raises:
            TamperedError: there was no earlier beginning to blame.
        """
        file.seek(0)
        found, started = hashlib.sha256(), 0
        while data := file.read(PART_BYTES):
            found.update(data)
            started += len(data)
        if started and found.hexdigest() == digest:
            return True
        try:
            for _, data in self._receive(digest, offset=started, limit_bytes=limit_bytes):
                _write_all(file, data)
                found.update(data)
            _check_bytes(found.hexdigest(), digest)
        except (TamperedError, SizeError):
            if started:
                return False
            file.truncate(0)
            raise
        return True

    def _again(self, method: Callable[..., Any], call: object, *, timeout_s: float | None) -> Any:
        patience = Patience(_SERVICE, self._sleep)
        while True:
            try:
                return method(call, timeout=timeout_s)
            except grpc.RpcError as error:
                patience.pause(error)


def _agreed_size(announced: int, before: int | None, limit_bytes: int) -> int:
    if announced > limit_bytes:
        raise SizeError("object size in bytes", expected=f"at most {limit_bytes}", got=announced)
    if before is not None and announced != before:
        raise TamperedError("object size in bytes", expected=before, got=announced)
    return announced


def _room_for(announced: int) -> memoryview:
    try:
        return room_for(announced)
    except MemoryError as error:
        raise SizeError("object size in bytes", expected="what memory can hold", got=announced) from error


def _check_bytes(found: str, digest: str) -> None:
    if found != digest:
        raise TamperedError("object digest", expected=digest, got=found)


@contextmanager
def _own_file(partial: Path) -> Generator[FileIO, None, None]:
    """Open what an earlier download left, or a new file; one of its own where another download works on that.

    Raises:
        MissingFileError: the folder is not there.
    """
    file = _open_private(partial)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # It may have been given its final name by whoever held the lock until now.
        shared = partial.stat().st_ino != os.fstat(file.fileno()).st_ino
    except (BlockingIOError, FileNotFoundError):
        shared = True
    if not shared:
        with file:
            yield file
        return
    file.close()
    partial = partial.with_suffix(f".{secrets.token_hex(8)}")
    with _open_private(partial) as file:
        try:
            yield file
        finally:
            partial.unlink(missing_ok=True)


def _open_private(path: Path) -> FileIO:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return FileIO(path, "r+", opener=lambda name, _: os.open(name, flags, 0o600))
    except FileNotFoundError as error:
        raise MissingFileError("folder", expected="one that exists", got=path.parent) from error


def _write_all(file: FileIO, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]
