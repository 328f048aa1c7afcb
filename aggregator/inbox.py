"""Fetches sealed updates from the courier, bounded, and keeps them, still sealed, until their round is over.

Small ones stay in memory while there are few; the others lie as ciphertext in the enclave's folder, which its host may
read and change: a container's header is signed and each chunk carries a tag, so a change is refused, not believed.
"""

from __future__ import annotations

import itertools
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from confed.errors import MissingFileError, SizeError
from confed.sealing.container import Container
from confed.sealing.header import (
    CHUNK_BYTES,
    FRAME_BYTES,
    MAX_HEADER_BYTES,
    SIGNATURE_BYTES,
    SIGNER_BYTES,
    TAG_BYTES,
    Header,
    header_length,
)
from confed.wire.addresses import check_digest, object_path

if TYPE_CHECKING:
    from pathlib import Path

Buffer = bytes | bytearray | memoryview

SMALL_BYTES = 4 * 1024 * 1024
MEMORY_BYTES = 16 * 1024 * 1024
"""How much of one round is kept in memory: with what the fold holds it stays below 64 MiB."""
_PART_BYTES = 16 * 1024 * 1024


class Store(Protocol):
    """Ciphertext by digest; ``CourierClient`` is one."""

    def get(self, digest: str, *, limit_bytes: int | None = None) -> Buffer:
        """Return an object, its digest checked."""
        ...

    def get_to_file(self, digest: str, path: Path) -> None:
        """Write an object to a file, its digest checked before the file gets its name."""
        ...

    def read_unverified(self, digest: str, *, offset: int, size_bytes: int) -> bytes:
        """Return a range of an object without checking it."""
        ...

    def put(self, data: Buffer | Path, *, digest: str | None = None) -> str:
        """Store an object and return its digest."""
        ...

    def hand_over(self, digest: str) -> None:
        """Have a file that lies with the courier taken over."""
        ...


@dataclass(frozen=True, slots=True)
class Parcel:
    """A fetched container, and the enclave's file it lies in: none for a small one, or one that lies in the courier."""

    container: Container
    path: Path | None
    in_memory: bool = False


class Inbox:
    """The updates of one round at a time; may be used by several threads.

    Args:
        folder: where large ones are kept; emptied of them by ``clear``.
        beside: the courier's directory, where it is on the same machine and may be read: large ones are then read from
            there, chunk by chunk, and not fetched at all.
        memory_bytes: how much is kept in memory at most.
    """

    def __init__(
        self, store: Store, *, folder: Path, beside: Path | None = None, memory_bytes: int = MEMORY_BYTES
    ) -> None:
        self._store = store
        self._beside = beside
        self._folder = folder
        self._memory_bytes = memory_bytes
        self._held_bytes = 0
        self._kept: dict[str, Parcel] = {}
        self._lock = threading.Lock()
        self._next = itertools.count()

    def fetch(self, digest: str, *, plaintext_bytes: int, chunk_bytes: int = CHUNK_BYTES) -> Parcel:
        """Return the container of this digest, its header's signature checked; nothing else is.

        Args:
            digest: names it in the courier.
            plaintext_bytes: most that may be in it.
            chunk_bytes: how long its chunks must be.

        Raises:
            SizeError: larger, by its own header or by what the courier sends.
            SealError, SignatureError: not a whole container, or its header is not its signer's.
            EncodingError, MissingObjectError, TamperedError, UnreachableError: as the courier's client.
        """
        check_digest(digest)
        limit = _sealed_limit(plaintext_bytes, chunk_bytes)
        if limit <= SMALL_BYTES and self._held_bytes + limit <= self._memory_bytes:
            return Parcel(Container.parse(self._store.get(digest, limit_bytes=limit)), None, in_memory=True)
        if self._beside is not None and (stored := object_path(self._beside, digest)).is_file():
            return Parcel(_mapped(stored, limit), None)
        sealed = self._store.get(digest, limit_bytes=limit) if limit <= SMALL_BYTES else None
        path = self._folder / f"{next(self._next)}.{digest[:16]}"
        try:
            if sealed is None:
                self._download(digest, path, limit)
            else:
                path.write_bytes(sealed)
            return Parcel(Container.map(path), path)
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    def enclosed(self, sealed: bytes, *, plaintext_bytes: int, chunk_bytes: int = CHUNK_BYTES) -> Parcel:
        """Return a container that came inside a bundle, its header's signature checked; nothing else is.

        Raises:
            SizeError: larger than an update can be.
            SealError, SignatureError: not a whole container, or its header is not its signer's.
        """
        limit = _sealed_limit(plaintext_bytes, chunk_bytes)
        if len(sealed) > limit:
            raise SizeError("update size in bytes", expected=f"at most {limit}", got=len(sealed))
        if self._held_bytes + len(sealed) <= self._memory_bytes:
            return Parcel(Container.parse(sealed), None, in_memory=True)
        path = self._folder / f"{next(self._next)}.enclosed"
        try:
            path.write_bytes(sealed)
            return Parcel(Container.map(path), path)
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    def keep(self, site: str, parcel: Parcel) -> None:
        """Remember the accepted container of a site."""
        with self._lock:
            self._kept[site] = parcel
            if parcel.in_memory:
                self._held_bytes += parcel.container.size_bytes

    def discard(self, parcel: Parcel) -> None:
        """Forget a container that was not accepted."""
        if parcel.path is not None:
            parcel.path.unlink(missing_ok=True)

    def container(self, site: str) -> Container:
        """Return the accepted container of a site.

        Raises:
            MissingFileError: none was kept.
        """
        if site not in self._kept:
            raise MissingFileError(f"update of {site}", expected="an accepted one", got="none")
        return self._kept[site].container

    def clear(self) -> None:
        """Forget everything, and delete what lies in the folder."""
        with self._lock:
            kept, self._kept, self._held_bytes = self._kept, {}, 0
        for parcel in kept.values():
            self.discard(parcel)

    def _download(self, digest: str, path: Path, limit: int) -> None:
        front = self._store.read_unverified(digest, offset=0, size_bytes=FRAME_BYTES)
        length = header_length(front)
        header = Header.decode(self._store.read_unverified(digest, offset=FRAME_BYTES, size_bytes=length))
        size = FRAME_BYTES + length + SIGNER_BYTES + SIGNATURE_BYTES + header.sealed_bytes
        if size > limit:
            raise SizeError("update size in bytes", expected=f"at most {limit}", got=size)
        with path.open("xb") as file:
            for offset in range(0, size, _PART_BYTES):
                part = min(_PART_BYTES, size - offset)
                file.write(self._store.read_unverified(digest, offset=offset, size_bytes=part))


def _mapped(path: Path, limit: int) -> Container:
    container = Container.map(path)
    if container.size_bytes > limit:
        raise SizeError("update size in bytes", expected=f"at most {limit}", got=container.size_bytes)
    return container


def _sealed_limit(plaintext_bytes: int, chunk_bytes: int) -> int:
    """Return the largest file that a container with this much in it can be."""
    chunks = max(1, -(-plaintext_bytes // chunk_bytes))
    front = FRAME_BYTES + MAX_HEADER_BYTES + SIGNER_BYTES + SIGNATURE_BYTES
    return front + plaintext_bytes + chunks * TAG_BYTES
