"""Uploads in progress: each a locked file of its own, and the hash of what is in it."""

from __future__ import annotations

import hashlib
import io
import threading
import time
from collections.abc import Callable
from pathlib import Path

from confed.errors import EncodingError, SizeError, TamperedError
from confed.files import begin_writing
from confed.wire.addresses import PART_BYTES

IDLE_S = 1.0
"""An upload that has had no part for so long may be taken over by whoever goes on with the same bytes."""

_AHEAD_BYTES = 8 * 1024 * 1024
"""After how many bytes the disk is given what came: fsync then waits for the last of them only (measured: 4 to 12 ms
for a file of 200 MB that came at 250 MB/s, in place of 80 to 180)."""


class TakenOverError(Exception):
    """Somebody has gone on with an upload that had stopped moving; ends the connection that comes back to it."""


class Upload:
    """One upload in progress; its connection may be gone long before anybody knows.

    Guarantees: once it is taken over, nothing that its old connection still brings is written.

    ``durable`` says that it will be waited for until it is on the disk, where it is brought to as it arrives then.
    """

    def __init__(
        self, path: Path, file: io.FileIO, *, digest: str, size_bytes: int, stored_bytes: int, durable: bool
    ) -> None:
        self.path, self.file, self.digest, self.size_bytes = path, file, digest, size_bytes
        self._durable, self._begun = durable, 0
        self.written = 0
        self.worthless = False
        self.taken_over = False
        self._moved_at = time.monotonic()
        self._lock = threading.Lock()
        self._hash = hashlib.sha256()
        while self.written < stored_bytes:
            self._count(file.read(min(PART_BYTES, stored_bytes - self.written)))

    @property
    def idle(self) -> bool:
        """Whether it has had no part for a while."""
        return time.monotonic() - self._moved_at > IDLE_S

    def append(self, offset: int, data: bytes | memoryview) -> None:
        """Write one part.

        Raises:
            EncodingError: it does not start where the last one ended.
            SizeError: it is too large, or goes beyond the end that was announced.
            TakenOverError: somebody else has gone on with it.
        """
        with self._lock:
            if self.taken_over:
                raise TakenOverError
            if offset != self.written:
                raise EncodingError("part offset", expected=self.written, got=offset)
            if len(data) > min(PART_BYTES, self.size_bytes - self.written):
                raise SizeError("part size in bytes", expected=f"at most {PART_BYTES}, up to the end", got=len(data))
            view = memoryview(data)
            while view:
                view = view[self.file.write(view) :]
            self._count(data)
            if self._durable and self.written - self._begun >= _AHEAD_BYTES:
                begin_writing(self.file, offset=self._begun, size_bytes=self.written - self._begun)
                self._begun = self.written

    def successor(self, path: Path, *, size_bytes: int, offset: int) -> Upload | None:
        """Hand file and hash to an upload that goes on at ``offset``; nothing if this one moves or is elsewhere."""
        with self._lock:
            if self.taken_over or not self.idle or self.written != offset or self.size_bytes != size_bytes:
                return None
            self.taken_over = True
            self.file.truncate(self.written)
            self.path.rename(path)
            found = Upload(
                path, self.file, digest=self.digest, size_bytes=size_bytes, stored_bytes=0, durable=self._durable
            )
            found.written, found._hash, found._begun = self.written, self._hash, self._begun
            return found

    def check_digest_of_bytes(self) -> None:
        """Refuse bytes that are not those of the address; the upload is then worthless.

        Raises:
            TamperedError: another digest.
        """
        found = self._hash.hexdigest()
        if found != self.digest:
            self.worthless = True
            raise TamperedError("object digest", expected=self.digest, got=found)

    def _count(self, data: bytes | memoryview) -> None:
        if not data:
            raise EncodingError("partial upload", expected="the bytes that were there", got="fewer")
        self._hash.update(data)
        self.written += len(data)
        self._moved_at = time.monotonic()


class Running:
    """The uploads in progress of one store, by digest; safe between threads."""

    def __init__(self) -> None:
        self._uploads: dict[str, list[Upload]] = {}
        self._changed = threading.Condition()

    def add(self, upload: Upload) -> None:
        """Count an upload in."""
        with self._changed:
            self._uploads.setdefault(upload.digest, []).append(upload)

    def remove(self, upload: Upload) -> None:
        """Count an upload out."""
        with self._changed:
            entries = self._uploads[upload.digest]
            entries.remove(upload)
            if not entries:
                del self._uploads[upload.digest]
            self._changed.notify_all()

    def idle_bytes(self, digest: str) -> int:
        """Return how far the furthest idle upload of a digest is; 0 without one."""
        with self._changed:
            return max((entry.written for entry in self._uploads.get(digest, ()) if entry.idle), default=0)

    def wait(self, digest: str) -> None:
        """Wait until every upload of a digest has ended or is idle, but no longer than that takes to show."""
        with self._changed:
            self._changed.wait_for(lambda: all(entry.idle for entry in self._uploads.get(digest, ())), IDLE_S * 1.1)

    def taken_over(self, digest: str, make: Callable[[Upload], Upload | None]) -> Upload | None:
        """Return what ``make`` gives for the first upload of a digest for which it gives anything."""
        with self._changed:
            entries = list(self._uploads.get(digest, ()))
        return next((found for entry in entries if (found := make(entry)) is not None), None)
