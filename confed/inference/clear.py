"""What leaves of an answer in clear: the fields that the manifest lists, as a signed record; nothing else of it.

1. The answer is read as it passes: JSON, the events of a stream, or the tensors of the Open Inference Protocol.
2. Of each listed field only single values leave, and lists of at most ``MOST_VALUES`` of them; text up to
   ``LONGEST_TEXT`` characters. An object never leaves, whatever name leads to it.
3. The record is signed by the replica, and numbered: what the host changes or leaves out on the way shows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from confed import canonical
from confed.errors import EncodingError, SizeError
from confed.inference.messages import AnswerHead
from confed.inference.tensors import LENGTH_HEADER, read_tensors
from confed.statement import Signed, verify

MOST_VALUES = 64
LONGEST_TEXT = 64
_LARGEST_BYTES = 64 * 1024 * 1024
_LARGEST_INTEGER = 2**53 - 1
_EVENTS = "text/event-stream"
_DATA = b"data:"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClearRecord:
    """What an attested replica lets out of one answer in clear; signed with the key that its evidence vouches for.

    Attributes:
        manifest, model, instance: who answered, with what.
        number: counts the records of this instance from 1 on.
        time: Unix milliseconds of the enclave's clock.
        status: of the answer.
        whole: false where the reader went away before the answer's end.
        fields: by their names in the manifest; a field that the answer does not have is not here.
    """

    TYPE: ClassVar[str] = "confed/v1/inference-clear"
    manifest: str
    model: str
    instance: str
    number: int
    time: int
    status: int
    whole: bool
    fields: Mapping[str, Any]


def line_of(signed: Signed) -> bytes:
    """Return a signed record as one line of JSON that people and tools can read."""
    value = {
        "record": canonical.decode(signed.payload),
        "signature": signed.signature.hex(),
        "signer": signed.signer.hex(),
    }
    return canonical.encode(value) + b"\n"


def verify_line(line: bytes, *, signing_public: bytes) -> ClearRecord:
    """Return the record of a line that the replica with this signing key wrote.

    Raises:
        EncodingError: not such a line, or changed.
        SignatureError: signed by another, or changed.
    """
    value = canonical.decode(line.removesuffix(b"\n"))
    if not isinstance(value, dict) or sorted(value) != ["record", "signature", "signer"]:  # pyright: ignore[reportUnknownArgumentType]
        raise EncodingError("clear record", expected="record, signature, signer", got="something else")
    parts: dict[str, Any] = value  # pyright: ignore[reportUnknownVariableType]
    try:
        # The line is canonical as a whole, so the record's own bytes are the ones that were signed.
        signed = Signed(
            payload=canonical.encode(parts["record"]),
            signer=bytes.fromhex(parts["signer"]),
            signature=bytes.fromhex(parts["signature"]),
        )
    except (TypeError, ValueError) as error:
        raise EncodingError("clear record", expected="hexadecimal", got="something else") from error
    return verify(signed, ClearRecord, signer=signing_public)


class Reading:
    """Reads one answer as it passes, and keeps what may leave of it.

    Args:
        names: the listed fields.
        head: of the answer.
    """

    def __init__(self, names: Sequence[str], head: AnswerHead) -> None:
        self._names = names
        self._head = head
        told = dict(head.headers)
        self._streamed = told.get("content-type", "").startswith(_EVENTS)
        self._framed = LENGTH_HEADER in told
        self._waiting = bytearray()
        self._found: dict[str, Any] = {}

    def feed(self, piece: bytes | memoryview) -> None:
        """Go on with a piece of the body.

        Raises:
            SizeError: an answer that is too large to be read.
        """
        self._waiting += piece
        if len(self._waiting) > _LARGEST_BYTES:
            raise SizeError("answer size in bytes", expected=f"at most {_LARGEST_BYTES}", got="more")
        if self._streamed:
            *lines, rest = bytes(self._waiting).split(b"\n")
            for line in lines:
                if line.startswith(_DATA):
                    self._read(_json(line.removeprefix(_DATA)))
            self._waiting[:] = rest

    def fields(self) -> dict[str, Any]:
        """Return what may leave, once the answer has ended, or as far as it got."""
        if not self._streamed:
            self._read(self._tensors() if self._framed else _json(bytes(self._waiting)))
            self._waiting.clear()
        return dict(self._found)

    def _tensors(self) -> Any:
        """An answer with raw bytes, as if it had come as JSON; longer tensors would not leave anyway."""
        try:
            found = read_tensors(self._head, bytes(self._waiting))
        except EncodingError:
            return None  # Cut off by a reader that went away.
        outputs = [
            {"name": name, "data": array.reshape(-1).tolist() if array.size <= MOST_VALUES else None}
            for name, array in found.items()
        ]
        return {"outputs": outputs}

    def _read(self, document: Any) -> None:
        for name in self._names:
            values = list(_values(document, name.split(".")))
            if len(values) == 1:
                self._found[name] = values[0]
            elif 1 < len(values) <= MOST_VALUES and not any(isinstance(value, list) for value in values):
                self._found[name] = values


def _values(value: Any, path: Sequence[str]) -> Iterator[Any]:
    """Yield what a dotted name leads to in a document, single values or short lists of them."""
    if isinstance(value, list) and path:
        listed: list[Any] = value  # pyright: ignore[reportUnknownVariableType]
        named = [entry for entry in listed if isinstance(entry, dict) and entry.get("name") == path[0]]
        for entry in named or listed:
            if isinstance(entry, dict):
                yield from _values(entry, path[1:] if named else path)
    elif isinstance(value, dict) and path:
        yield from _values(value.get(path[0]), path[1:])  # pyright: ignore[reportUnknownMemberType]
    elif not path:
        yield from _leaf(value)


def _leaf(value: Any) -> Iterator[Any]:
    if isinstance(value, list):
        listed: list[Any] = value  # pyright: ignore[reportUnknownVariableType]
        if len(listed) <= MOST_VALUES and all(_is_single(entry) for entry in listed):
            yield listed
    elif value is not None and _is_single(value):
        yield value


def _is_single(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= LONGEST_TEXT and value.isprintable()
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and abs(value) <= _LARGEST_INTEGER


def _json(data: bytes) -> Any:
    """The value of JSON; nothing where it is none (the last event of a stream, an answer that was cut off)."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None
