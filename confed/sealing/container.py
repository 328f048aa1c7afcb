"""Read a sealed container: anybody its header, whoever has the data key its chunks, any of them alone.

1. ``Container.parse`` or ``.map``: frame, header and signature; the length must be exactly what the header says.
2. ``verify_signer``: the caller says who must have made it.
3. ``unlock``: the data key against the header's commitment, before anything is decrypted.
4. ``OpenContainer``: each chunk is authenticated before a byte of it is used.

The signature covers the header, not the chunks: whoever holds the data key could put other chunks under it. So a
run names containers by the digest of the whole file (``file_digest``), which the manifest and commits pin.
"""

from __future__ import annotations

import hmac
import itertools
import mmap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from cryptography.exceptions import InvalidTag

from confed import canonical
from confed.errors import (
    ContainerFormatError,
    RecipientError,
    SignatureError,
    SizeError,
    TamperedError,
    TruncatedError,
    WrongKeyError,
)
from confed.memory import room_for
from confed.sealing import derivation
from confed.sealing.chunks import ChunkCipher, sealed_offset
from confed.sealing.header import (
    CHUNK_BYTES,
    FRAME_BYTES,
    SIGNATURE_BYTES,
    SIGNER_BYTES,
    TAG_BYTES,
    Header,
    header_length,
    verify_signature,
)
from confed.sealing.recipients import Method, RecipientEntry, recipient_info
from confed.sealing.sealer import (
    Buffer,
    Draft,
    Sealed,
    open_declaration,
    seal,
    seal_to_bytes,
    seal_to_file,
    seal_to_memory,
)
from confed.sealing.source import BufferSource, FileSource, Source

__all__ = [
    "CHUNK_BYTES",
    "Container",
    "Draft",
    "Header",
    "OpenContainer",
    "RecipientEntry",
    "Sealed",
    "seal",
    "seal_to_bytes",
    "seal_to_file",
    "seal_to_memory",
]


class Identity(Protocol):
    """Whoever can unwrap a key that was wrapped for ``key_id``."""

    @property
    def key_id(self) -> str: ...

    def unwrap(self, wrapped: bytes, *, info: bytes) -> bytes: ...


class Container:
    """A container whose frame, header, signature and length hold; nothing in it is decrypted.

    Attributes:
        header: the parsed header.
        header_digest: SHA-256 of the header's bytes, as they were received, in hexadecimal.
        signer: who signed it (raw Ed25519): the signature holds, but whether this signer may is not checked yet.
        size_bytes: of the whole file.
    """

    __slots__ = ("_source", "_start", "header", "header_digest", "signer", "size_bytes")

    def __init__(self, source: Source) -> None:
        length = header_length(bytes(source.read(0, min(FRAME_BYTES, source.size_bytes))))
        self._start = FRAME_BYTES + length + SIGNER_BYTES + SIGNATURE_BYTES
        if source.size_bytes < self._start:
            raise TruncatedError("container size in bytes", expected=f"at least {self._start}", got=source.size_bytes)
        # A private copy: what is verified is what is used, whatever happens to the file meanwhile.
        front = bytes(source.read(FRAME_BYTES, self._start))
        encoded, signer, signature = front[:length], front[length : length + SIGNER_BYTES], front[-SIGNATURE_BYTES:]
        verify_signature(encoded, signer=signer, signature=signature)
        self.header = Header.decode(encoded)
        self.header_digest = canonical.digest(encoded)
        self.signer = signer
        self.size_bytes = source.size_bytes
        self._source = source
        expected = self._start + self.header.sealed_bytes
        if source.size_bytes < expected:
            raise TruncatedError("container size in bytes", expected=expected, got=source.size_bytes)
        if source.size_bytes > expected:
            raise ContainerFormatError("container size in bytes", expected=expected, got=source.size_bytes)

    def __repr__(self) -> str:
        return f"Container({self.header.kind}, {self.header.container_id!r}, {self.size_bytes} bytes)"

    @classmethod
    def parse(cls, source: Buffer | mmap.mmap) -> Container:
        """Return the container in a buffer, which must outlive it; chunks are read from it without copying.

        Memory that others can write (a mapping, shared memory) is recognised and copied chunk by chunk.

        Raises:
            TruncatedError: it ends before its header says.
            ContainerFormatError: not a container, an unknown or ill-typed field, or trailing bytes.
            SizeError: a header above 1 MiB.
            SignatureError: the header's signature does not hold.
            RecipientError: a malformed recipient entry.
        """
        return cls(BufferSource(source))

    @classmethod
    def map(cls, path: Path) -> Container:
        """Return the container in a file, whose chunks are read when they are asked for.

        Guarantees: no descriptor stays open (thousands of containers may be); a chunk is copied to private memory
        before it is authenticated, so somebody who rewrites the file meanwhile gains nothing.

        Raises:
            MissingFileError: no such file.
            TruncatedError, ContainerFormatError, SizeError, SignatureError, RecipientError: as ``parse``.
        """
        return cls(FileSource(path))

    def verify_signer(self, signer: bytes) -> None:
        """Check that this signer (raw Ed25519) made the header.

        Raises:
            SignatureError: another one did.
        """
        if self.signer != signer:
            raise SignatureError("container signer", expected=signer.hex()[:16], got=self.signer.hex()[:16])

    def file_digest(self) -> str:
        """Return SHA-256 of the whole file in hexadecimal, read now."""
        return self._source.digest()

    def data_key_for(self, identity: Identity) -> bytes:
        """Return the data key that was wrapped for an identity.

        Raises:
            RecipientError: the header names no recipient with this identity's key.
            WrongKeyError: the wrapped key is not for this identity and this container.
        """
        for entry in self.header.recipients:
            if entry.method is Method.HPKE and entry.key_id == identity.key_id:
                info = recipient_info(kind=self.header.kind, container_id=self.header.container_id)
                return identity.unwrap(entry.wrapped, info=info)
        raise RecipientError("recipient", expected=f"an entry for {identity.key_id[:16]}", got="none")

    def unlock(self, data_key: bytes) -> OpenContainer:
        """Return the container opened with its data key, which is checked against the commitment first.

        Does NOT check who made it: call ``verify_signer``.

        Raises:
            WrongKeyError: another key.
        """
        if len(data_key) != derivation.KEY_BYTES:
            raise WrongKeyError("data key size in bytes", expected=derivation.KEY_BYTES, got=len(data_key))
        commitment = derivation.key_commitment(data_key, salt=self.header.salt)
        if not hmac.compare_digest(commitment, self.header.key_commitment):
            raise WrongKeyError("data key", expected="the one that the header commits to", got="another")
        return OpenContainer(self, data_key)

    def sealed_chunk(self, index: int) -> memoryview:
        """Return chunk ``index`` as it is in the file with its tag: valid until this thread asks for another.

        Raises:
            SizeError: no such chunk.
            TruncatedError: the file was cut meanwhile.
        """
        start, end = self.header.chunk_span(index)
        offset = self._start + sealed_offset(index, chunk_bytes=self.header.chunk_bytes)
        return self._source.read(offset, offset + end - start + TAG_BYTES)


class OpenContainer:
    """A container with its key: reads plaintext, each chunk authenticated before a byte of it is used.

    May be read by several threads at a time.
    """

    __slots__ = ("_chunk_key", "_data_key", "container", "header")

    def __init__(self, container: Container, data_key: bytes) -> None:
        self.container = container
        self.header = container.header
        self._data_key = data_key
        self._chunk_key = derivation.chunk_key(data_key, salt=self.header.salt, header_digest=container.header_digest)

    def __repr__(self) -> str:
        return f"OpenContainer({self.container!r})"

    @property
    def chunk_count(self) -> int:
        """How many chunks there are, at least one."""
        return self.header.chunk_count

    @property
    def plaintext_bytes(self) -> int:
        """Length of the whole plaintext."""
        return self.header.plaintext_bytes

    def chunk_span(self, index: int) -> tuple[int, int]:
        """Return where chunk ``index`` starts and ends in the plaintext.

        Raises:
            SizeError: no such chunk.
        """
        return self.header.chunk_span(index)

    def declaration(self) -> bytes:
        """Return what the maker declared under the data key, empty if nothing.

        Raises:
            TamperedError: its tag does not match.
        """
        try:
            return open_declaration(self.header.declaration, data_key=self._data_key, salt=self.header.salt)
        except InvalidTag as error:
            raise TamperedError("declaration", expected="a matching tag", got="another") from error

    def read_chunk_into(self, index: int, buffer: bytearray | memoryview) -> None:
        """Write the plaintext of chunk ``index`` to a buffer of exactly its length.

        Guarantees: when it raises ``TamperedError``, the buffer holds zeros only.

        Raises:
            SizeError: no such chunk, or a buffer of another length.
            TamperedError: its tag does not match.
            TruncatedError: the file was cut meanwhile.
        """
        self._open_into(self.chunk_cipher(), index, memoryview(buffer).cast("B"))

    def read(self, start: int, size: int) -> bytearray:
        """Return ``size`` bytes of plaintext from ``start``; only the chunks that hold them are opened.

        Raises:
            SizeError: a range that is not within the plaintext.
            TamperedError: the tag of a chunk that holds some of them does not match.
            TruncatedError: the file was cut meanwhile.
        """
        self._require_range(start, size)
        result = bytearray(size)
        self.read_into(start, result, size)
        return result

    def read_into(self, start: int, buffer: bytearray | memoryview, size: int) -> None:
        """Write ``size`` bytes of plaintext from ``start`` to the front of a buffer.

        Guarantees: when it raises ``TamperedError``, bytes of chunks that do not authenticate are not in it.

        Raises:
            SizeError: a range that is not within the plaintext, or a buffer that is smaller.
            TamperedError: the tag of a chunk that holds some of them does not match.
            TruncatedError: the file was cut meanwhile.
        """
        self._require_range(start, size)
        target = memoryview(buffer).cast("B")
        if len(target) < size:
            raise SizeError("buffer", expected=f"at least {size} bytes", got=len(target))
        if size:
            chunk_bytes = self.header.chunk_bytes
            first, last = start // chunk_bytes, (start + size - 1) // chunk_bytes
            self._read_chunks(range(first, last + 1), target[:size], start)

    def read_all(self, threads: int = 1) -> memoryview:
        """Return the whole plaintext; with several threads each opens a range of chunks of its own.

        Raises:
            TamperedError: the tag of a chunk does not match; nothing is returned.
            TruncatedError: the file was cut meanwhile.
        """
        result = room_for(self.plaintext_bytes)
        self.read_all_into(result, threads=threads)
        return result

    def read_all_into(self, buffer: bytearray | memoryview, *, threads: int = 1) -> None:
        """Write the whole plaintext to a buffer of exactly its length: one that is used again costs no new memory.

        Guarantees: when it raises ``TamperedError``, bytes of chunks that do not authenticate are zeros.

        Raises:
            SizeError: a buffer of another length.
            TamperedError: the tag of a chunk does not match; the rest of the buffer is not the plaintext either.
            TruncatedError: the file was cut meanwhile.
        """
        whole = memoryview(buffer).cast("B")
        if len(whole) != self.plaintext_bytes:
            raise SizeError("buffer", expected=f"{self.plaintext_bytes} bytes", got=len(whole))
        threads = max(1, min(threads, self.chunk_count))
        if threads == 1:
            self._read_chunks(range(self.chunk_count), whole, 0)
            return
        bounds = [self.chunk_count * number // threads for number in range(threads + 1)]
        with ThreadPoolExecutor(max_workers=threads - 1, thread_name_prefix="open") as pool:
            others = [
                pool.submit(self._read_chunks, range(first, last), whole, 0)
                for first, last in itertools.pairwise(bounds)
            ]
            self._read_chunks(range(bounds[1]), whole, 0)
            for other in others:
                other.result()

    def _read_chunks(self, indices: range, target: memoryview, origin: int) -> None:
        """Open chunks into ``target``, which starts at plaintext offset ``origin`` and may cut the outer two."""
        cipher = self.chunk_cipher()
        for index in indices:
            start, end = self.chunk_span(index)
            if start >= origin and end <= origin + len(target):
                self._open_into(cipher, index, target[start - origin : end - origin])
                continue
            plaintext = memoryview(bytearray(end - start))
            self._open_into(cipher, index, plaintext)
            low, high = max(start, origin), min(end, origin + len(target))
            target[low - origin : high - origin] = plaintext[low - start : high - start]

    def _open_into(self, cipher: ChunkCipher, index: int, plaintext: memoryview) -> None:
        start, end = self.chunk_span(index)
        if len(plaintext) != end - start:
            raise SizeError(f"buffer for chunk {index}", expected=f"{end - start} bytes", got=len(plaintext))
        cipher.open_into(index, self.container.sealed_chunk(index), plaintext)

    def _require_range(self, start: int, size: int) -> None:
        if start < 0 or size < 0 or start + size > self.plaintext_bytes:
            raise SizeError("range", expected=f"within {self.plaintext_bytes} bytes", got=f"{start} + {size}")

    def chunk_cipher(self) -> ChunkCipher:
        """Return what opens the chunks, for one thread at a time."""
        return ChunkCipher(self._chunk_key, chunk_count=self.chunk_count)
