"""Open a container while its bytes arrive, each chunk while it is in the processor's cache, into memory of one's own.

1. The front is gathered, and read as ``Container`` reads it: frame, header, signature; its length was announced.
2. The data key is held against the header's commitment.
3. Each chunk is authenticated into its place; nobody is given the memory yet.
4. The bytes have all arrived, and whoever brings them has not refused them: the plaintext is handed over.

Whatever goes wrong on the way leaves zeros in the memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from confed.errors import ConfedError, TruncatedError
from confed.sealing.chunks import ChunkCipher
from confed.sealing.container import Container, OpenContainer
from confed.sealing.header import FRAME_BYTES, SIGNATURE_BYTES, SIGNER_BYTES, TAG_BYTES, header_length
from confed.sealing.source import BufferSource

Room = Callable[[int], memoryview]
"""Lends writable memory of that many bytes."""


def open_arriving(
    parts: Iterable[tuple[int, bytes | memoryview]], *, key_of: Callable[[Container], bytes], room: Room
) -> tuple[Container, memoryview]:
    """Return a container (its front alone can be read) and its whole plaintext, in memory that ``room`` lends.

    Guarantees: no plaintext is returned unless every chunk authenticates, the length is the header's and ``parts`` ends
    without an error, so that an iterator which checks a digest at its end is obeyed; otherwise the memory holds zeros.

    Args:
        parts: (size of the whole, bytes), in order; sizes are announcements, and checked. It is read to its end, and
            what it raises there comes before anything that was wrong with the bytes.
        key_of: returns the data key of a container whose front is verified; may refuse it.
        room: asked once, for as many bytes as the header says.

    Raises:
        TruncatedError: fewer bytes than the header says, or than the front needs.
        ContainerFormatError, SizeError, SignatureError, RecipientError: as ``Container.parse``.
        WrongKeyError: another key than the header commits to.
        TamperedError: the tag of a chunk does not match.
    """
    arrival, failure = _Arrival(key_of, room), None
    try:
        for size_bytes, data in parts:
            try:
                if failure is None:
                    arrival.take(size_bytes, memoryview(data))
            except ConfedError as error:
                failure = error  # whether these are the bytes that were asked for at all shows at their end
        if failure is not None:
            raise failure
        return arrival.finish()
    except BaseException:
        arrival.wipe()
        raise


class _Arrival:
    """What has arrived of one container."""

    def __init__(self, key_of: Callable[[Container], bytes], room: Room) -> None:
        self._key_of, self._room = key_of, room
        self._front = bytearray()
        self._container: Container | None = None
        self._opened: OpenContainer
        self._cipher: ChunkCipher
        self._plaintext = memoryview(b"")
        self._chunk = memoryview(b"")
        self._index = self._filled = 0

    def take(self, size_bytes: int, data: memoryview) -> None:
        """Use the next bytes."""
        if self._container is None:
            data = self._take_front(size_bytes, data)
        while data:
            wanted = self._sealed_bytes(self._index)
            if self._filled == 0 and len(data) >= wanted:
                self._open(data[:wanted])
                data = data[wanted:]
                continue
            taken = min(wanted - self._filled, len(data))
            self._chunk[self._filled : self._filled + taken] = data[:taken]
            self._filled, data = self._filled + taken, data[taken:]
            if self._filled == wanted:
                self._filled = 0
                self._open(self._chunk[:wanted])

    def finish(self) -> tuple[Container, memoryview]:
        """Return what arrived, if it is whole."""
        if self._container is None:
            raise TruncatedError("container size in bytes", expected="a whole front", got=len(self._front))
        if self._index < self._opened.chunk_count:
            raise TruncatedError("container in chunks", expected=self._opened.chunk_count, got=self._index)
        return self._container, self._plaintext

    def wipe(self) -> None:
        """Leave zeros where plaintext was written."""
        for index in range(self._index):
            start, end = self._opened.chunk_span(index)
            self._plaintext[start:end] = bytes(end - start)

    def _take_front(self, size_bytes: int, data: memoryview) -> memoryview:
        """Gather the front; return what of ``data`` lies behind it."""
        before = len(self._front)
        self._front += data
        if len(self._front) < FRAME_BYTES:
            return memoryview(b"")
        end = FRAME_BYTES + header_length(bytes(self._front[:FRAME_BYTES])) + SIGNER_BYTES + SIGNATURE_BYTES
        if len(self._front) < end:
            return memoryview(b"")
        del self._front[end:]
        container = Container(_Front(bytes(self._front), size_bytes))
        self._opened = container.unlock(self._key_of(container))
        self._cipher = self._opened.chunk_cipher()
        self._plaintext = self._room(self._opened.plaintext_bytes)
        self._chunk = memoryview(bytearray(self._sealed_bytes(0)))
        self._container = container
        return data[end - before :]

    def _sealed_bytes(self, index: int) -> int:
        start, end = self._opened.chunk_span(index)  # refuses one beyond the last
        return end - start + TAG_BYTES

    def _open(self, sealed: memoryview) -> None:
        start, end = self._opened.chunk_span(self._index)
        self._cipher.open_into(self._index, sealed, self._plaintext[start:end])
        self._index += 1


class _Front(BufferSource):
    """The beginning of a container whose rest arrives later; how long the whole is was announced."""

    __slots__ = ()

    def __init__(self, front: bytes, size_bytes: int) -> None:
        super().__init__(front)
        self.size_bytes = size_bytes
