"""Make a sealed container: header signed, chunks sealed, the whole hashed as it is written.

1. Fresh salt; key commitment and chunk key from the data key.
2. The header with its sealed declaration, signed.
3. Chunks in order; one thread seals while, with ``threads=2``, another hashes. SHA-256 over the whole file takes
   about twice as long as AES-256-GCM and runs in one sequence, so it is the limit and more threads bring nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from confed import canonical
from confed.errors import SizeError
from confed.files import replacing
from confed.journey import Kind
from confed.memory import room_for
from confed.sealing import derivation
from confed.sealing.chunks import ChunkCipher
from confed.sealing.header import CHUNK_BYTES, FORMAT, MAX_DECLARATION_BYTES, TAG_BYTES, Header, frame
from confed.sealing.recipients import RecipientEntry

Buffer = bytes | bytearray | memoryview

_SLOTS = 4
"""Sealed chunks that may wait for the hashing thread."""

# One key seals one declaration (the salt in it is fresh), so its nonce is constant.
_DECLARATION_NONCE = bytes(12)


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """What a maker says about a container before it is sealed; ``Header`` explains the fields."""

    kind: Kind
    container_id: str
    version: int = 0
    parents: tuple[str, ...] = ()
    owner: bytes = b""
    manifest: str = ""
    detail: Mapping[str, Any] = field(default_factory=dict[str, Any])
    recipients: tuple[RecipientEntry, ...] = ()
    declaration_plaintext: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealed:
    """A container that was written: SHA-256 of the whole file in hexadecimal, its name everywhere, and its length."""

    digest: str
    size_bytes: int


class Sink(Protocol):
    """Where a container is written, in order: a binary file, a pipe, memory."""

    def write(self, data: memoryview, /) -> int | None:
        """Write some or all of ``data`` and return how much."""
        ...


class _Place(Protocol):
    """Where sealed chunks go: ``slot`` lends room for one, ``keep`` takes it once it is full, in order."""

    def slot(self, index: int, size_bytes: int) -> memoryview: ...

    def keep(self, sealed: memoryview) -> None: ...


def seal(
    parts: Sequence[Buffer],
    draft: Draft,
    *,
    data_key: bytes,
    signing_key: Ed25519PrivateKey,
    sink: Sink,
    threads: int = 1,
    chunk_bytes: int = CHUNK_BYTES,
) -> Sealed:
    """Seal the concatenation of ``parts`` to ``sink``, in constant memory.

    Guarantees: a fresh salt from the operating system every time, so the same ``data_key`` may seal any number of
    containers; no plaintext is written. ``parts`` must not change meanwhile. A failure leaves ``sink`` half-written:
    ``seal_to_file`` does not.

    Raises:
        SizeError: a data key that is not 32 bytes, a header above 1 MiB, a declaration above 64 KiB.
        ContainerFormatError: a field of ``draft`` out of its range.
        EncodingError: a detail that JSON cannot hold.
    """
    job = _Job.prepare(parts, draft, data_key=data_key, signing_key=signing_key, chunk_bytes=chunk_bytes)
    _write_all(sink, memoryview(job.front))
    return job.run(_SinkPlace(sink, chunk_bytes + TAG_BYTES), threads=threads)


def seal_to_bytes(
    parts: Sequence[Buffer],
    draft: Draft,
    *,
    data_key: bytes,
    signing_key: Ed25519PrivateKey,
    threads: int = 1,
    chunk_bytes: int = CHUNK_BYTES,
) -> tuple[bytes, Sealed]:
    """Seal the concatenation of ``parts`` to bytes, which costs a copy: ``seal_to_memory`` does without.

    Raises:
        SizeError, ContainerFormatError, EncodingError: as ``seal``.
    """
    whole, sealed = seal_to_memory(
        parts, draft, data_key=data_key, signing_key=signing_key, threads=threads, chunk_bytes=chunk_bytes
    )
    return bytes(whole), sealed


def seal_to_memory(
    parts: Sequence[Buffer],
    draft: Draft,
    *,
    data_key: bytes,
    signing_key: Ed25519PrivateKey,
    threads: int = 1,
    chunk_bytes: int = CHUNK_BYTES,
    room: Callable[[int], memoryview] = room_for,
) -> tuple[memoryview, Sealed]:
    """Seal the concatenation of ``parts`` to memory, straight into the memory returned.

    ``room`` lends that memory, for a number of bytes; it must not be what ``parts`` lie in.

    Raises:
        SizeError, ContainerFormatError, EncodingError: as ``seal``.
    """
    job = _Job.prepare(parts, draft, data_key=data_key, signing_key=signing_key, chunk_bytes=chunk_bytes)
    whole = room(len(job.front) + job.header.sealed_bytes)
    whole[: len(job.front)] = job.front
    sealed = job.run(_MemoryPlace(whole[len(job.front) :], chunk_bytes + TAG_BYTES), threads=threads)
    return whole.toreadonly(), sealed


def seal_to_file(
    parts: Sequence[Buffer],
    draft: Draft,
    *,
    data_key: bytes,
    signing_key: Ed25519PrivateKey,
    path: Path,
    threads: int = 1,
    chunk_bytes: int = CHUNK_BYTES,
) -> Sealed:
    """Seal the concatenation of ``parts`` to a file, which appears whole and durable or not at all.

    Guarantees: temporary name beside it, fsync, rename; an existing file is replaced only by a finished one.

    Raises:
        SizeError, ContainerFormatError, EncodingError: as ``seal``.
        OSError: the file system refuses.
    """
    with replacing(path) as sink:
        return seal(
            parts,
            draft,
            data_key=data_key,
            signing_key=signing_key,
            sink=sink,
            threads=threads,
            chunk_bytes=chunk_bytes,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """A container about to be written; run once."""

    header: Header
    front: bytes
    parts: tuple[memoryview, ...] = field(repr=False)
    cipher: ChunkCipher = field(repr=False)

    @classmethod
    def prepare(
        cls,
        parts: Sequence[Buffer],
        draft: Draft,
        *,
        data_key: bytes,
        signing_key: Ed25519PrivateKey,
        chunk_bytes: int,
    ) -> _Job:
        views = tuple(memoryview(part).cast("B") for part in parts if memoryview(part).nbytes)
        salt = derivation.new_salt()
        header = Header(
            format=FORMAT,
            kind=draft.kind,
            container_id=draft.container_id,
            version=draft.version,
            parents=draft.parents,
            owner=draft.owner,
            manifest=draft.manifest,
            chunk_bytes=chunk_bytes,
            plaintext_bytes=sum(len(view) for view in views),
            salt=salt,
            key_commitment=derivation.key_commitment(data_key, salt=salt),
            recipients=draft.recipients,
            detail=draft.detail,
            declaration=seal_declaration(draft.declaration_plaintext, data_key=data_key, salt=salt),
        )
        encoded = header.encode()
        key = derivation.chunk_key(data_key, salt=salt, header_digest=canonical.digest(encoded))
        return cls(
            header=header,
            front=frame(encoded, signing_key=signing_key),
            parts=views,
            cipher=ChunkCipher(key, chunk_count=header.chunk_count),
        )

    def run(self, place: _Place, *, threads: int) -> Sealed:
        digest = hashlib.sha256(self.front)
        if threads > 1 and self.header.chunk_count > 1:
            with ThreadPoolExecutor(max_workers=1, thread_name_prefix="seal-hash") as hasher:
                self._run_hashing_beside(place, digest.update, hasher)
        else:
            for sealed in self._sealed(place):
                digest.update(sealed)
                place.keep(sealed)
        return Sealed(digest=digest.hexdigest(), size_bytes=len(self.front) + self.header.sealed_bytes)

    def _run_hashing_beside(self, place: _Place, update: Any, hasher: ThreadPoolExecutor) -> None:
        hashed: list[Future[None]] = []
        for index, sealed in enumerate(self._sealed(place)):
            hashed.append(hasher.submit(update, sealed))
            place.keep(sealed)
            # The next chunk may get the oldest slot, which must have been hashed by then.
            if index + 1 >= _SLOTS:
                hashed[index + 1 - _SLOTS].result()
        for future in hashed[-_SLOTS:]:
            future.result()

    def _sealed(self, place: _Place) -> Iterator[memoryview]:
        for index, plaintext in enumerate(_chunked(self.parts, self.header)):
            sealed = place.slot(index, len(plaintext) + TAG_BYTES)
            self.cipher.seal_into(index, plaintext, sealed)
            yield sealed


class _SinkPlace:
    """A few slots in turn; each chunk is written as soon as it is sealed."""

    def __init__(self, sink: Sink, slot_bytes: int) -> None:
        self._sink = sink
        self._slot_bytes = slot_bytes
        self._slots: list[memoryview] = []

    def slot(self, index: int, size_bytes: int) -> memoryview:
        if index < _SLOTS:
            self._slots.append(memoryview(bytearray(size_bytes)))
        return self._slots[index % _SLOTS][:size_bytes]

    def keep(self, sealed: memoryview) -> None:
        _write_all(self._sink, sealed)


class _MemoryPlace:
    """One buffer for all chunks, already in their places."""

    def __init__(self, whole: memoryview, slot_bytes: int) -> None:
        self._whole = whole
        self._slot_bytes = slot_bytes

    def slot(self, index: int, size_bytes: int) -> memoryview:
        start = index * self._slot_bytes
        return self._whole[start : start + size_bytes]

    def keep(self, sealed: memoryview) -> None:
        """Nothing to do: it is in its place."""


def seal_declaration(plaintext: bytes, *, data_key: bytes, salt: bytes) -> bytes:
    """Return the declaration under its own key, or nothing for none.

    Raises:
        SizeError: more than 64 KiB.
    """
    if not plaintext:
        return b""
    if len(plaintext) > MAX_DECLARATION_BYTES:
        raise SizeError("declaration size in bytes", expected=f"at most {MAX_DECLARATION_BYTES}", got=len(plaintext))
    key = derivation.declaration_key(data_key, salt=salt)
    return AESGCM(key).encrypt(_DECLARATION_NONCE, plaintext, None)


def open_declaration(sealed: bytes, *, data_key: bytes, salt: bytes) -> bytes:
    """Return what ``seal_declaration`` sealed.

    Raises:
        InvalidTag: it was changed; the caller names it.
    """
    if not sealed:
        return b""
    key = derivation.declaration_key(data_key, salt=salt)
    return AESGCM(key).decrypt(_DECLARATION_NONCE, sealed, None)


def _chunked(parts: tuple[memoryview, ...], header: Header) -> Iterator[memoryview]:
    """Cut the concatenation of parts into chunks: views where one part holds a chunk, else gathered in a buffer."""
    gathered = memoryview(b"")
    part, at = 0, 0
    for index in range(header.chunk_count):
        start, end = header.chunk_span(index)
        size = end - start
        if not parts or len(parts[part]) - at >= size:
            yield parts[part][at : at + size] if parts else gathered
            at += size
            continue
        gathered = gathered if len(gathered) >= size else memoryview(bytearray(size))
        filled = 0
        while filled < size:
            if at == len(parts[part]):
                part, at = part + 1, 0
            take = min(len(parts[part]) - at, size - filled)
            gathered[filled : filled + take] = parts[part][at : at + take]
            filled, at = filled + take, at + take
        yield gathered[:size]


def _write_all(sink: Sink, data: memoryview) -> None:
    written = 0
    while written < len(data):
        # A raw sink may take less than it was given; a buffered one takes all.
        count = sink.write(data[written:])
        written += len(data) - written if count is None else count
