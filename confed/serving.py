"""How a model is served: what a manifest of the scenario ``inference`` says beside its model, code and TEE.

Where the model comes from, how lengths are hidden, and how large a request may be. All of it is its owner's choice,
none of it a caller's.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from confed.errors import ConfigError

LARGEST_FRAME_BYTES = 1024 * 1024
"""What one frame of an exchange holds at most, padding and all."""

_LEAST_POWER = 256
_LARGEST_REQUEST_BYTES = 1024 * 1024 * 1024


class Padding(StrEnum):
    """What the length of a frame shows."""

    NONE = "none"
    BLOCKS = "blocks"
    POWERS = "powers-of-two"


@dataclass(frozen=True, slots=True, kw_only=True)
class PaddingTerms:
    """To which lengths frames are padded, both ways: not at all, to whole blocks, or to powers of two from 256 bytes.

    ``block_bytes`` is the block, and 0 for the two others. Not promised: that the number of frames and their times
    show nothing; a streamed answer has about a frame a token.
    """

    kind: Padding
    block_bytes: int

    def __post_init__(self) -> None:
        blocks = self.kind is Padding.BLOCKS
        if not (16 <= self.block_bytes <= LARGEST_FRAME_BYTES if blocks else self.block_bytes == 0):
            expected = f"from 16 to {LARGEST_FRAME_BYTES}" if blocks else "0"
            raise ConfigError("serving.padding.block_bytes", expected=expected, got=self.block_bytes)

    def padded(self, size_bytes: int) -> int:
        """Return the length that so many bytes (at most a frame's) are padded to."""
        if self.kind is Padding.NONE:
            return size_bytes
        if self.kind is Padding.POWERS:
            return max(_LEAST_POWER, 1 << (size_bytes - 1).bit_length())
        return min(-(-size_bytes // self.block_bytes) * self.block_bytes, LARGEST_FRAME_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """The run, version and attempt that made a model; its key derives from them (``confed.sealing.derivation``)."""

    run: str
    version: int
    attempt: int

    def __post_init__(self) -> None:
        if not self.run or self.version < 1 or self.attempt < 0:
            raise ConfigError("serving.origin", expected="a run, a version from 1 and an attempt", got="another")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingTerms:
    """How a model is served. No field is optional.

    Attributes:
        origin: which run made the manifest's ``model.start``; ``None``: its owner sealed it as a starting model.
        padding: what lengths show to those who only see ciphertext.
        largest_request_bytes: a larger request is refused before it is opened whole.
    """

    origin: Origin | None
    padding: PaddingTerms
    largest_request_bytes: int

    def __post_init__(self) -> None:
        if not 1 <= self.largest_request_bytes <= _LARGEST_REQUEST_BYTES:
            expected = f"from 1 to {_LARGEST_REQUEST_BYTES}"
            raise ConfigError("serving.largest_request_bytes", expected=expected, got=self.largest_request_bytes)
