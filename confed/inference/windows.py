"""Windows: many requests over one exchange, each answered before the next, for live data.

A stream is an exchange (``confed.inference.exchange``) whose answer begins before its request has ended:

1. The requester sends an ordinary sealed request for ``STREAM_HEAD``. It is taken once, as any is; nothing runs.
2. The replica begins its answer: its fresh nonce, and a head.
3. Now windows come, under a key that takes in that nonce: HKDF(secret, transcript ‖ epoch ‖ nonce). So a recording of a
   stream opens nothing, at this replica or another. Each window is a whole inner request, each answer a whole inner
   answer, with errors in the interface's own form; they follow one another in the answer's body, in order.
4. A mark in place of a window is answered by a receipt over everything before it.
5. The requester ends with its last frame, or the replica ends first (idle too long, or the epoch's key is about to go).
   Either way the answer's last frame is a receipt; it commits to every window that was taken and every answer.

A message on either way: kind (1 byte), length of its head (4 bytes) and of its body (8), big-endian, head, body. A
small one is one frame. Frames' numbers keep the order; one that is dropped, moved or repeated is an error, and so is an
end without the last frame.
"""

from __future__ import annotations

import dataclasses
import struct
from dataclasses import dataclass, field
from enum import IntEnum

from confed import canonical
from confed.errors import EncodingError, SizeError
from confed.inference.exchange import BODY, Answering
from confed.inference.frames import LARGEST_CONTENT_BYTES, FrameOpener, FrameSealer
from confed.inference.messages import HEAD_LIMIT_BYTES, AnswerHead, Commitment, Request, RequestHead
from confed.serving import PaddingTerms
from confed.statement import Signed

STREAM_PATH = "/confed/v1/stream"
STREAM_HEAD = RequestHead(method="POST", path=STREAM_PATH, headers=())
"""What opens a stream; no interface answers it, so an opening that the network sends elsewhere is nothing there."""
ANSWER_HEAD = AnswerHead(status=200, headers=())
END = 5
"""Kind of the frame that ends the requester's side."""
_PREFIX = struct.Struct(">BIQ")


class What(IntEnum):
    """What a message is: a window and its answer, or a mark and its receipt."""

    WINDOW = 1
    MARK = 2


_KINDS = frozenset(int(kind) for kind in What)


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message of either way."""

    what: What
    head: bytes = field(repr=False)
    body: bytes = field(repr=False)

    @property
    def encoded(self) -> bytes:
        """The message as it goes into frames."""
        return _PREFIX.pack(self.what, len(self.head), len(self.body)) + self.head + self.body


MARK = Message(what=What.MARK, head=b"", body=b"")


class MessageReader:
    """Puts messages together from the contents of frames.

    Args:
        largest_bytes: of a message's body; ``None``: whoever reads bounds nothing.
    """

    __slots__ = ("_buffer", "_largest")

    def __init__(self, *, largest_bytes: int | None) -> None:
        self._buffer = bytearray()
        self._largest = largest_bytes

    def feed(self, content: bytes) -> list[Message]:
        """Return the messages that this further content completes.

        Raises:
            SizeError: one beyond its bound.
            EncodingError: no message.
        """
        self._buffer += content
        found: list[Message] = []
        while len(self._buffer) >= _PREFIX.size:
            kind, head, body = _PREFIX.unpack_from(self._buffer)
            if head > HEAD_LIMIT_BYTES or (self._largest is not None and body > self._largest):
                raise SizeError("window size in bytes", expected=f"at most {self._largest}", got="more")
            if kind not in _KINDS:
                raise EncodingError("window", expected="a window or a mark", got="something else")
            end = _PREFIX.size + head + body
            if len(self._buffer) < end:
                break
            middle = _PREFIX.size + head
            found.append(
                Message(
                    what=What(kind),
                    head=bytes(self._buffer[_PREFIX.size : middle]),
                    body=bytes(self._buffer[middle:end]),
                )
            )
            del self._buffer[:end]
        return found

    def close(self) -> None:
        """Check that no message is unfinished.

        Raises:
            EncodingError: one is.
        """
        if self._buffer:
            raise EncodingError("window", expected="a whole one", got="its end before that")


class WindowSealer:
    """The requester's side: seals windows, and commits to them. Use it in one thread at a time."""

    def __init__(self, key: bytes, *, salt: bytes, padding: PaddingTerms) -> None:
        self._sealer = FrameSealer(key, padding=padding)
        self._commitment = Commitment(salt, STREAM_HEAD.encoded)
        self.committed = self._commitment.digest
        """The commitment of all messages so far."""
        self.committed_before = self.committed
        """The same without the last message."""

    def seal(self, message: Message) -> bytes:
        """Return a message's frames."""
        encoded = memoryview(message.encoded)
        self.committed_before = self.committed
        self._commitment.add(encoded)
        self.committed = self._commitment.digest
        pieces = range(0, len(encoded), LARGEST_CONTENT_BYTES)
        return b"".join(self._sealer.seal(BODY, encoded[at : at + LARGEST_CONTENT_BYTES], final=False) for at in pieces)

    def end(self) -> bytes:
        """Return the last frame."""
        return self._sealer.seal(END, b"", final=True)


class Windows:
    """The replica's side of one stream: opens windows, seals their answers.

    Args:
        answering: of the request that opened it.
        request: that request.
        largest_bytes: of a window.

    Raises:
        EncodingError: a request that opens no stream.
    """

    def __init__(self, answering: Answering, request: Request, *, largest_bytes: int) -> None:
        if request.head != STREAM_HEAD or request.body:
            raise EncodingError("request", expected="the opening of a stream", got="another")
        self._answering = answering
        self._opened_by = request
        self._reader = MessageReader(largest_bytes=largest_bytes)
        self._frames: FrameOpener | None = None
        self._commitment = Commitment(answering.salt, STREAM_HEAD.encoded)

    @property
    def epoch(self) -> str:
        """The epoch that the stream was opened under."""
        return self._answering.epoch

    @property
    def request_commitment(self) -> str:
        """The commitment of all windows that were taken."""
        return self._commitment.digest

    @property
    def commitment(self) -> str:
        """The commitment of the answers so far."""
        return self._answering.commitment

    @property
    def ended(self) -> bool:
        """Whether the requester's last frame has come."""
        return self._frames is not None and self._frames.ended

    def begin(self, *, padding: PaddingTerms) -> bytes:
        """Return the answer's start and head, sealed."""
        started = self._answering.begin(ANSWER_HEAD, padding=padding)
        self._frames = FrameOpener(self._answering.window_key, what="windows", largest_bytes=None)
        return started

    def feed(self, data: bytes) -> list[Message]:
        """Return the messages that these further bytes complete; none has been taken yet.

        Raises:
            TamperedError, SizeError, EncodingError: something else than this requester's windows.
        """
        if self._frames is None:
            raise EncodingError("windows", expected="after the answer's head", got="before it")
        found: list[Message] = []
        for frame in self._frames.feed(data):
            if frame.kind != (END if frame.final else BODY) or (frame.final and frame.content):
                raise EncodingError("window frame", expected="windows, and an end", got="another")
            found += self._reader.feed(frame.content)
        return found

    def close(self) -> None:
        """Check that the requester's side ended as it must.

        Raises:
            TruncatedError: without its last frame.
            EncodingError: within a message.
        """
        if self._frames is not None:
            self._frames.close()
        self._reader.close()

    def take(self, message: Message) -> Request | None:
        """Note that a message is about to be answered; return the window's request, ``None`` for a mark.

        Raises:
            EncodingError, SizeError: a window that is no request.
        """
        self._commitment.add(message.encoded)
        if message.what is What.MARK:
            return None
        return dataclasses.replace(self._opened_by, head=RequestHead.decode(message.head), body=message.body)

    def answer(self, head: AnswerHead, body: bytes) -> bytes:
        """Return a window's answer, sealed."""
        return self._sealed(Message(what=What.WINDOW, head=head.encoded, body=body))

    def receipt(self, signed: Signed) -> bytes:
        """Return a mark's receipt, sealed."""
        return self._sealed(Message(what=What.MARK, head=b"", body=canonical.encode(signed.to_json())))

    def end(self, signed: Signed) -> bytes:
        """Return the last frame: the receipt over everything."""
        return self._answering.end(signed)

    def refuse(self, code: str, *, padding: PaddingTerms) -> bytes:
        """Return the last frame of a stream that must not go on: a stable code."""
        return self._answering.refuse(code, padding=padding)

    def _sealed(self, message: Message) -> bytes:
        return b"".join(self._answering.body(message.encoded))
