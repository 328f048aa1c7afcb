"""Ciphertexts on disk, each under the SHA-256 of its bytes.

Layout: ``objects/<first 2 digits>/<digest>`` complete and verified; ``partial/<digest>`` what an upload that was cut
left behind; ``partial/<digest>.<token>`` an upload in progress; ``spare/<token>`` a large file that was removed. An
upload writes to a file of its own, which it holds locked, and takes over what an earlier one left, or has stopped
writing, by renaming it: two uploads of one digest never share a file.

A large upload writes over a spare file if there is one (``partial/<digest>.<token>.over``, of which a crash leaves
nothing): the page cache has its pages already, and new ones cost up to 2 s a gigabyte on a virtual machine.

``handed/<digest>`` is a file that somebody else on this machine has made here, to be taken over without a copy.
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
import secrets
import threading
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from confed.errors import MissingObjectError, SizeError
from confed.files import sync_folder
from confed.governor.incoming import Running, Upload
from confed.governor.private_files import open_private, open_to_read, size_of, take_over
from confed.governor.quota import Quota
from confed.wire.addresses import PART_BYTES, check_digest, handed_folder
from confed.wire.upload import Buffer, BufferSource, FileSource

DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_NAME_DIGITS = 64
_OVER = ".over"
_SPARE_BYTES, _MOST_SPARES = 16 * 1024 * 1024, 4
"""A removed file of so many bytes may be written over, and how many wait for that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How much of an object is stored: where an upload may go on, or that it is complete."""

    stored_bytes: int
    complete: bool


class ObjectStore:
    """A content-addressed store of ciphertexts.

    Guarantees: no path from a caller is used; an object becomes visible only whole, verified against its digest (unless
    it was handed over: see ``take``) and (with ``durable``) on the disk; an upload that is cut, also by kill -9, leaves
    a part that the next one goes on from, and one with a wrong digest leaves nothing. Safe between threads, and between
    processes but for the quota.
    """

    def __init__(self, directory: Path, *, object_bytes: int, quota: Quota, durable: bool) -> None:
        self._objects, self._partial = directory / "objects", directory / "partial"
        self._spare, self._handed = directory / "spare", handed_folder(directory)
        self._object_bytes, self._quota, self._durable = object_bytes, quota, durable
        self._lock, self._taking = threading.Lock(), threading.Lock()
        self._running = Running()
        for folder in (self._objects, self._partial, self._spare, self._handed):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._keep_what_a_crash_left()
        quota.count(sum(size_of(path) for path in self._objects.glob("*/*")))
        quota.count(sum(size_of(path) for path in self._partial.iterdir()))

    def progress(self, digest: str) -> Progress:
        """Return how much of an object is stored; what an upload that moves has written does not count.

        Raises:
            EncodingError: not a digest.
        """
        check_digest(digest)
        path = self._path(digest)
        if path.exists():
            return Progress(stored_bytes=size_of(path), complete=True)
        stored = max(size_of(self._partial / digest), self._running.idle_bytes(digest))
        return Progress(stored_bytes=stored, complete=False)

    def settled_progress(self, digest: str) -> Progress:
        """Return ``progress``, waiting about a second for an upload whose connection may just have been cut.

        Raises:
            EncodingError: not a digest.
        """
        check_digest(digest)
        self._running.wait(digest)
        return self.progress(digest)

    def receive(
        self, digest: str, *, size_bytes: int, offset: int, parts: Iterable[tuple[int, bytes | memoryview]]
    ) -> int:
        """Store the parts ``(offset, data)`` of an object and return how many bytes of it are stored afterwards.

        Guarantees: starting at 0 starts over; any other start must be where the stored part ends, or nothing is
        read and the answer says where that is. Whatever interrupts ``parts`` leaves what has arrived. An object that
        is complete stays as it is, its parts unread.

        Raises:
            EncodingError: not a digest, or parts that do not follow each other.
            SizeError: larger than an object or the whole store may be, or than announced.
            TamperedError: the bytes have another digest; they are deleted.
            OSError: the disk is full or fails; what was stored before stays.
        """
        if size_bytes > self._object_bytes:
            raise SizeError("object size in bytes", expected=f"at most {self._object_bytes}", got=size_bytes)
        stored = self.progress(digest)
        if stored.complete or (offset and offset != stored.stored_bytes):
            return stored.stored_bytes
        if offset > size_bytes:
            raise SizeError("object size in bytes", expected=f"at least the {offset} stored", got=size_bytes)
        with self._upload(digest, size_bytes=size_bytes, offset=offset) as upload:
            if upload is None:
                return self.progress(digest).stored_bytes
            for part_offset, data in parts:
                if data:
                    upload.append(part_offset, data)
            if upload.written == size_bytes:
                self._publish(upload)
            return upload.written

    def put(self, data: Buffer | Path) -> str:
        """Store the bytes of a buffer or file and return their digest.

        Raises:
            MissingFileError: no such file.
            SizeError: see ``receive``.
            OSError: see ``receive``.
        """
        with closing(FileSource(data) if isinstance(data, Path) else BufferSource(data)) as source:
            digest = source.digest()
            size = source.size_bytes
            parts = ((offset, source.read(offset)) for offset in range(0, size, PART_BYTES))
            self.receive(digest, size_bytes=size, offset=0, parts=parts)
        return digest

    def take(self, digest: str) -> int:
        """Make the file of this name in ``handed`` an object, neither copied nor hashed; return its size.

        Whoever can put a file there has its name from the bytes, and gives it the name last; readers check the digest.

        Guarantees: the file stays until it is the object, so that after a crash this may be done again.

        Raises:
            EncodingError: not a digest.
            MissingObjectError: no such file, and no such object.
            SizeError: larger than an object or the whole store may be.
            OSError: the disk fails.
        """
        handed = self._handed / digest
        with self._taking:
            if not self.progress(digest).complete:
                self._take(digest, handed)
            handed.unlink(missing_ok=True)
            return self.progress(digest).stored_bytes

    def path(self, digest: str) -> Path:
        """Return where a complete object lies, for those on the same machine; its bytes are not verified again.

        Raises:
            EncodingError: not a digest.
            MissingObjectError: no complete object of this digest.
        """
        check_digest(digest)
        path = self._path(digest)
        if not path.exists():
            raise MissingObjectError("object", expected="one that is stored", got=digest)
        return path

    def parts(self, digest: str, *, offset: int = 0) -> Generator[tuple[int, bytes], None, None]:
        """Yield ``(size of the whole, bytes)`` from an offset on, at least once; not verified again.

        Raises:
            EncodingError: not a digest.
            MissingObjectError: no complete object of this digest.
            SizeError: an offset beyond the end.
        """
        try:
            file = io.FileIO(self.path(digest), opener=open_to_read)
        except FileNotFoundError as error:
            raise MissingObjectError("object", expected="one that is stored", got=digest) from error
        with file:
            size = os.fstat(file.fileno()).st_size
            if offset > size:
                raise SizeError("offset", expected=f"at most {size}", got=offset)
            os.posix_fadvise(file.fileno(), offset, 0, os.POSIX_FADV_SEQUENTIAL)
            yield size, os.pread(file.fileno(), PART_BYTES, offset)
            for start in range(offset + PART_BYTES, size, PART_BYTES):
                yield size, os.pread(file.fileno(), PART_BYTES, start)

    def remove(self, digest: str, *, reuse: bool = False) -> None:
        """Delete an object, if it is there; for the operator only, nobody can ask for it over the network.

        ``reuse`` says that nobody reads it any more, so that its file may be written over.

        Raises:
            EncodingError: not a digest.
        """
        check_digest(digest)
        with self._lock:
            path = self._path(digest)
            if reuse and size_of(path) >= _SPARE_BYTES and len(list(self._spare.iterdir())) < _MOST_SPARES:
                path.rename(self._spare / secrets.token_hex(8))
            else:
                self._unlink(path)

    def stored(self) -> Iterator[tuple[str, Path]]:
        """Yield the digest and the file of each complete object."""
        for path in self._objects.glob("*/*"):
            yield path.name, path

    @contextmanager
    def _upload(self, digest: str, *, size_bytes: int, offset: int) -> Generator[Upload | None, None, None]:
        self._make_room(size_bytes - offset, sparing=digest if offset else "")
        try:
            upload = self._begin(digest, size_bytes=size_bytes, offset=offset)
        except BaseException:
            self._quota.count(offset - size_bytes)
            raise
        if upload is None:
            self._quota.count(offset - size_bytes)
            yield None
            return
        self._running.add(upload)
        try:
            yield upload
        except OSError as error:
            if error.errno in DISK_FULL:
                # Its sender is refused and does not come back: nobody is served by what it filled the disk with.
                upload.worthless = True
                self._drop_idle()
            raise
        finally:
            self._settle(upload)
            self._running.remove(upload)

    def _take(self, digest: str, handed: Path) -> None:
        """Give a handed file its place among the objects, once it is on the disk."""
        size_bytes = size_of(handed)
        if not handed.is_file() or handed.is_symlink():
            raise MissingObjectError("handed file", expected="one that is there", got=digest)
        if size_bytes > self._object_bytes:
            raise SizeError("object size in bytes", expected=f"at most {self._object_bytes}", got=size_bytes)
        self._make_room(size_bytes, sparing="")
        try:
            with io.FileIO(handed, opener=open_to_read) as file:
                self._make_visible(file, handed, digest)
        finally:
            if handed.exists():  # it did not become the object
                self._quota.count(-size_bytes)

    def _begin(self, digest: str, *, size_bytes: int, offset: int) -> Upload | None:
        path = self._partial / f"{digest}.{secrets.token_hex(8)}"
        if not offset:
            path, file = self._begin_over(path, size_bytes) if size_bytes >= _SPARE_BYTES else (path, None)
            file = file or io.FileIO(path, "x+", opener=open_private)
            fcntl.flock(file, fcntl.LOCK_EX)
        else:
            with self._lock:
                file = take_over(self._partial / digest, path, size_bytes=offset)
            if file is None:
                return self._going_on(digest, path, size_bytes=size_bytes, offset=offset)
        return self._opened(path, file, digest, size_bytes=size_bytes, stored_bytes=offset)

    def _opened(self, path: Path, file: io.FileIO, digest: str, *, size_bytes: int, stored_bytes: int) -> Upload:
        return Upload(
            path, file, digest=digest, size_bytes=size_bytes, stored_bytes=stored_bytes, durable=self._durable
        )

    def _begin_over(self, path: Path, size_bytes: int) -> tuple[Path, io.FileIO | None]:
        """Take a spare file to write over, the largest, if there is one; its bytes are no longer counted."""
        with self._lock:
            spares = sorted(self._spare.iterdir(), key=size_of)
            if not spares:
                return path, None
            over = path.with_name(path.name + _OVER)
            spares[-1].rename(over)
        self._quota.count(-size_of(over))
        file = io.FileIO(over, "r+", opener=open_private)
        file.truncate(min(size_bytes, size_of(over)))
        return over, file

    def _going_on(self, digest: str, path: Path, *, size_bytes: int, offset: int) -> Upload | None:
        """Go on with an upload in progress that has stopped moving, if one is just there."""
        found = self._running.taken_over(
            digest, lambda entry: entry.successor(path, size_bytes=size_bytes, offset=offset)
        )
        if found is not None:
            self._quota.count(offset - size_bytes)  # What the old one was promised and did not get.
        return found

    def _publish(self, upload: Upload) -> None:
        upload.check_digest_of_bytes()
        self._make_visible(upload.file, upload.path, upload.digest)  # if it was not the first, _settle drops it

    def _make_visible(self, file: io.FileIO, path: Path, digest: str) -> None:
        """Put a file on the disk and give it an object's name, unless it is not the first with these bytes."""
        if self._durable:
            os.fsync(file.fileno())
        target = self._path(digest)
        target.parent.mkdir(exist_ok=True, mode=0o700)
        with self._lock:
            if target.exists():
                return
            path.rename(target)
            self._unlink(self._partial / digest)
        if self._durable:
            sync_folder(target.parent)
            sync_folder(self._objects)

    def _settle(self, upload: Upload) -> None:
        """Close an upload's file and keep it for the next one, unless it is published, worthless or not the longest."""
        kept = self._partial / upload.digest
        if upload.taken_over:
            return
        with upload.file, self._lock:
            if not upload.path.exists():
                return
            useless = upload.worthless or not upload.written or self._path(upload.digest).exists()
            if useless or upload.written <= size_of(kept):
                upload.path.unlink()
                self._quota.count(-upload.size_bytes)
                return
            upload.file.truncate(upload.written)  # A write that failed half-way may have left more than was counted.
            self._unlink(kept)
            upload.path.rename(kept)
            self._quota.count(upload.written - upload.size_bytes)

    def _make_room(self, size_bytes: int, *, sparing: str) -> None:
        """Take ``size_bytes`` from the quota; uploads that nobody continues give way, oldest first."""
        try:
            self._quota.take(size_bytes)
        except SizeError:
            with self._lock:
                for path in self._idle():
                    if path.name != sparing:
                        self._unlink(path)
                    with suppress(SizeError):
                        self._quota.take(size_bytes)
                        return
            raise

    def _drop_idle(self) -> None:
        with self._lock:
            for path in self._idle():
                self._unlink(path)

    def _idle(self) -> list[Path]:
        """Return spare files, then what cut uploads left, oldest first."""
        idle = [path for path in self._partial.iterdir() if len(path.name) == _NAME_DIGITS]
        return [*self._spare.iterdir(), *sorted(idle, key=lambda path: path.stat().st_mtime_ns)]

    def _keep_what_a_crash_left(self) -> None:
        for path in self._spare.iterdir():
            path.unlink()
        for path in list(self._partial.iterdir()):
            digest, dot, _ = path.name.partition(".")
            if not dot:
                continue
            with io.FileIO(path, opener=open_to_read) as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue  # Another process is still writing it.
                if path.name.endswith(_OVER):
                    path.unlink()  # How much of it is new nobody knows.
                elif size_of(path) > size_of(self._partial / digest):
                    path.rename(self._partial / digest)
                else:
                    path.unlink()

    def _path(self, digest: str) -> Path:
        return self._objects / digest[:2] / digest

    def _unlink(self, path: Path) -> None:
        size = size_of(path)
        with suppress(FileNotFoundError):
            path.unlink()
            self._quota.count(-size)
