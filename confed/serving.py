"""How a model is served: what a manifest of the scenario ``inference`` says beside its model, code and TEE.

Where the model comes from, who may read its answers, how lengths are hidden, and how large a request may be. All of it
is its owner's choice, none of it a caller's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from urllib.parse import urlsplit

from confed import canonical, record
from confed.errors import ConfigError

LARGEST_FRAME_BYTES = 1024 * 1024
"""What one frame of an exchange holds at most, padding and all."""

_LEAST_POWER = 256
_LONGEST_LEASE_S = 30 * 24 * 3600
_MOST_RECIPIENTS = 64
_MOST_FIELDS = 64
_HPKE_PUBLIC_BYTES = 1216
"""Of a recipient's key (``confed.sealing.recipients``)."""
_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_FIELD = re.compile(r"[A-Za-z0-9_-]{1,64}(\.[A-Za-z0-9_-]{1,64}){0,7}\Z")
_TEXTS = frozenset({"content", "text", "refusal", "embedding", "reasoning", "reasoning_content", "arguments"})
"""Names of fields that are an answer, not something about it: they are never in clear."""
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
STDOUT, FILE = "stdout", "file:"
"""Two of the three kinds of sink; the third is an address of HTTP."""
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

    def padded_whole(self, size_bytes: int) -> int:
        """Return the length that an answer of any size is padded to where it is sealed as a whole."""
        if self.kind is Padding.BLOCKS:
            return -(-size_bytes // self.block_bytes) * self.block_bytes
        return self.padded(size_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """The run, version and attempt that made a model; its key derives from them (``confed.sealing.derivation``).

    ``manifest`` is the digest of that run's manifest: by it the run's records are known, and who countersigned.
    """

    run: str
    manifest: str
    version: int
    attempt: int

    def __post_init__(self) -> None:
        if not self.run or not _DIGEST.match(self.manifest) or self.version < 1 or self.attempt < 0:
            expected = "a run, its manifest's digest, a version from 1 and an attempt"
            raise ConfigError("serving.origin", expected=expected, got="another")


class OutputMode(StrEnum):
    """Who may read an answer: who asked, named recipients, or nobody but for fields that are in clear."""

    REQUESTER = "requester"
    RECIPIENTS = "recipients"
    CLEAR = "clear"


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerRecipient:
    """Somebody whom answers are sealed to: a name, and an HPKE public key (ML-KEM-768 ‖ X25519, 1216 bytes)."""

    name: str
    public: bytes

    def __post_init__(self) -> None:
        if not _NAME.match(self.name):
            raise ConfigError("output.recipients", expected="names of letters and digits", got=repr(self.name)[:80])
        if len(self.public) != _HPKE_PUBLIC_BYTES:
            raise ConfigError(
                f"output.recipients.{self.name}", expected=f"{_HPKE_PUBLIC_BYTES} bytes", got=len(self.public)
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ClearTerms:
    """What leaves in clear, and where to. Whoever runs the replica's machine sees it too.

    Attributes:
        fields: dotted names in an answer's JSON, such as ``usage.total_tokens``; a part of a list goes by its elements'
            ``name`` (``outputs.alarm.data``), or means each of them. Only single values and short lists of them leave,
            and nothing by a name that is the answer itself (a text, an embedding).
        sink: ``stdout``, ``file:NAME`` (beside the serving file), or an address: https, or http on loopback.
    """

    fields: tuple[str, ...]
    sink: str

    def __post_init__(self) -> None:
        if not 1 <= len(set(self.fields)) == len(self.fields) <= _MOST_FIELDS:
            raise ConfigError("output.clear.fields", expected=f"1 to {_MOST_FIELDS}, each once", got=len(self.fields))
        for name in self.fields:
            if not _FIELD.match(name):
                raise ConfigError("output.clear.fields", expected="dotted names", got=repr(name)[:80])
            if _TEXTS & set(name.split(".")):
                raise ConfigError("output.clear.fields", expected="fields about an answer, not the answer", got=name)
        if not _is_sink(self.sink):
            expected = "stdout, file:NAME, https://HOST/PATH, or http:// on loopback"
            raise ConfigError("output.clear.sink", expected=expected, got=self.sink[:200])


# Not with slots: its digest is kept with it.
@dataclass(frozen=True, kw_only=True)
class OutputTerms:
    """Who may read what a model answers: its owner's policy, which no request changes. No field is optional.

    Attributes:
        mode: ``requester``: the answer goes back, sealed; ``recipients``: it is sealed to those named, and who asked
            gets an acknowledgement; ``clear``: nobody gets it, and only the fields named leave.
        recipients: with the mode ``recipients`` alone; ``None`` else.
        clear: with the mode ``clear``, or beside another one; ``None``: nothing leaves in clear.
    """

    mode: OutputMode
    recipients: tuple[AnswerRecipient, ...] | None
    clear: ClearTerms | None

    def __post_init__(self) -> None:
        named = self.recipients or ()
        if (self.recipients is None) == (self.mode is OutputMode.RECIPIENTS) or len(named) > _MOST_RECIPIENTS:
            expected = f"1 to {_MOST_RECIPIENTS} with the mode recipients, none with another"
            raise ConfigError("output.recipients", expected=expected, got=len(named))
        if self.recipients == () or any(len(set(values)) != len(named) for values in _columns(named)):
            raise ConfigError("output.recipients", expected="at least one, each name and key once", got="others")
        if self.mode is OutputMode.CLEAR and self.clear is None:
            raise ConfigError("output.clear", expected="fields and a sink with the mode clear", got="none")

    @classmethod
    def to_requester(cls) -> OutputTerms:
        """Return the terms by which answers go to who asked, and nothing leaves in clear."""
        return cls(mode=OutputMode.REQUESTER, recipients=None, clear=None)

    @property
    def plain(self) -> bool:
        """Whether answers go to who asked and nowhere else."""
        return self.mode is OutputMode.REQUESTER and self.clear is None

    @cached_property
    def digest(self) -> str:
        """SHA-256 of its canonical JSON: what a receipt names."""
        return canonical.digest(canonical.encode(record.to_json(self)))

    @property
    def told(self) -> str:
        """The terms in words."""
        said = {
            OutputMode.REQUESTER: "answers go to who asked",
            OutputMode.RECIPIENTS: "answers go to " + ", ".join(entry.name for entry in self.recipients or ()),
            OutputMode.CLEAR: "answers go to nobody",
        }[self.mode]
        if self.clear is None:
            return f"{said}; nothing leaves in clear"
        return f"{said}; {', '.join(self.clear.fields)} leave in clear to {self.clear.sink}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseTerms:
    """For how long a replica may serve without its owner's broker; then it drops model and keys.

    A key's own floors bound it (``KeyFloors.lease_s``). Each renewal takes fresh evidence.
    """

    seconds: int

    def __post_init__(self) -> None:
        if not 1 <= self.seconds <= _LONGEST_LEASE_S:
            raise ConfigError("serving.lease.seconds", expected=f"from 1 to {_LONGEST_LEASE_S}", got=self.seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingTerms:
    """How a model is served. No field is optional.

    Attributes:
        origin: which run made the manifest's ``model.start``; ``None``: its owner sealed it as a starting model.
        output: who may read the answers.
        lease: how long a replica may serve without its owner's broker; ``None``: there are no leases, and an instance
            that got the key serves for as long as it lives.
        padding: what lengths show to those who only see ciphertext.
        largest_request_bytes: a larger request is refused before it is opened whole.
    """

    origin: Origin | None
    output: OutputTerms
    lease: LeaseTerms | None
    padding: PaddingTerms
    largest_request_bytes: int

    def __post_init__(self) -> None:
        if not 1 <= self.largest_request_bytes <= _LARGEST_REQUEST_BYTES:
            expected = f"from 1 to {_LARGEST_REQUEST_BYTES}"
            raise ConfigError("serving.largest_request_bytes", expected=expected, got=self.largest_request_bytes)


def _columns(recipients: Sequence[AnswerRecipient]) -> tuple[list[str], list[bytes]]:
    return [entry.name for entry in recipients], [entry.public for entry in recipients]


def _is_sink(sink: str) -> bool:
    if sink == STDOUT:
        return True
    if sink.startswith(FILE):
        return bool(_NAME.match(sink.removeprefix(FILE)))
    try:
        address = urlsplit(sink)
        host, _ = address.hostname, address.port
    except ValueError:
        return False
    secure = address.scheme == "https" or (address.scheme == "http" and host in _LOOPBACK)
    return secure and bool(host) and address.username is None and address.password is None and not address.fragment
