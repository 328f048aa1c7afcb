"""A sum in float64 that is kept on disk between the batches of a round, where only this object can read it."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from confed.errors import StorageError, TamperedError
from confed.sealing.chunks import ChunkCipher, scratch
from confed.sealing.header import TAG_BYTES

if TYPE_CHECKING:
    from pathlib import Path

Place = tuple[str, int]
"""A tensor type, and the first element in its flat array."""

_KEY_BYTES = 32
_MOST_BLOCKS = 1 << 48


class LostSumError(Exception):
    """What lies on the disk is not what was put there, or the disk fails; nobody who sent an update is to blame."""


class SpilledSum:
    """Blocks of a sum, each written once; may be read and written by several threads, each with a cipher of its own.

    Guarantees: the file holds ciphertext under a key that lives and dies with this object, and has no name; a block
    that was changed, moved, or put back from another sum is refused.

    Args:
        folder: the enclave's own.

    Raises:
        StorageError: no file can be made there.
    """

    def __init__(self, folder: Path) -> None:
        self._key = os.urandom(_KEY_BYTES)
        path = folder / f"sum-{os.urandom(8).hex()}"
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            path.unlink()
        except OSError as error:
            raise StorageError("sum of batches", expected="a working disk", got=error.strerror) from error
        self._blocks: dict[Place, tuple[int, int, int]] = {}
        self._end = 0
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"SpilledSum({len(self._blocks)} blocks)"

    @property
    def blocks(self) -> list[tuple[Place, int]]:
        """Where blocks are and how many elements each has, in the order of the model."""
        return [(place, self._blocks[place][2]) for place in sorted(self._blocks)]

    def cipher(self) -> ChunkCipher:
        """Return a cipher for one thread."""
        return ChunkCipher(self._key, chunk_count=_MOST_BLOCKS)

    def write(self, cipher: ChunkCipher, place: Place, values: NDArray[np.float64]) -> None:
        """Add a block.

        Raises:
            LostSumError: the disk is full or fails.
        """
        sealed = scratch(values.nbytes + TAG_BYTES)
        with self._lock:
            number, start = len(self._blocks), self._end
            self._blocks[place] = (number, start, values.size)
            self._end += len(sealed)
        cipher.seal_into(number, memoryview(values.data).cast("B"), sealed)
        try:
            while sealed:
                written = os.pwrite(self._file, sealed, start)
                sealed, start = sealed[written:], start + written
        except OSError as error:
            raise LostSumError from error

    def read(self, cipher: ChunkCipher, place: Place) -> NDArray[np.float64]:
        """Return a block.

        Raises:
            LostSumError: it is not there, or not as it was written.
        """
        number, start, count = self._blocks[place]
        values = np.empty(count, dtype=np.float64)
        sealed = scratch(values.nbytes + TAG_BYTES)
        try:
            filled = 0
            while filled < len(sealed):
                read = os.preadv(self._file, [sealed[filled:]], start + filled)
                if not read:
                    raise LostSumError
                filled += read
            cipher.open_into(number, sealed, memoryview(values.data).cast("B"))
        except (OSError, TamperedError) as error:
            raise LostSumError from error
        return values

    def close(self) -> None:
        """Forget it; the disk's room is free again. Closing twice is harmless."""
        with self._lock:
            file, self._file, self._key = self._file, -1, b""
        if file >= 0:
            os.close(file)

    def __del__(self) -> None:
        """Leave nothing open, whatever became of its round."""
        if getattr(self, "_file", -1) >= 0:
            self.close()
