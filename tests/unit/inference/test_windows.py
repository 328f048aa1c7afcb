"""Windows: both ends of a long-lived exchange, byte by byte, and every wrong turn of what is said on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from confed.errors import ConfedError, EncodingError, ExchangeError, SizeError, TamperedError, TruncatedError
from confed.inference.epochs import EPOCH_MS, OVERLAP_MS, Epochs
from confed.inference.exchange import BODY, HEAD, AnswerOpening, Sealing
from confed.inference.frames import LARGEST_CONTENT_BYTES, FrameSealer
from confed.inference.messages import AnswerHead, Request, RequestHead
from confed.inference.opening import Opening
from confed.inference.windows import END, MARK, STREAM_HEAD, Message, MessageReader, What, Windows, WindowSealer
from confed.serving import Padding, PaddingTerms
from confed.statement import sign

MANIFEST, INSTANCE = "aa" * 32, "bb" * 32
PLAIN = PaddingTerms(kind=Padding.NONE, block_bytes=0)
SIGNING = Ed25519PrivateKey.generate()
LARGEST = 2 * 1024 * 1024
OUTER = 5
HEAD_OF_WINDOW = RequestHead(method="POST", path="/v2/models/m/infer", headers=())


@dataclass(frozen=True, kw_only=True)
class Said:
    TYPE: ClassVar[str] = "confed/v1/test"
    said: str


RECEIPT = sign(Said(said="done"), SIGNING)


def window(body: bytes = b"what only the TEE reads") -> Message:
    return Message(what=What.WINDOW, head=HEAD_OF_WINDOW.encoded, body=body)


@dataclass
class Ends:
    """A stream that has begun: the requester's end and the replica's."""

    request: Request = field(default_factory=lambda: Request(head=STREAM_HEAD, body=b""))
    now: int = 1_800_000_000_000

    def __post_init__(self) -> None:
        self.epochs = Epochs(manifest=MANIFEST, instance=INSTANCE, signing_key=SIGNING, now=lambda: self.now)
        epoch = self.epochs.current()
        self.sealing = Sealing(manifest=MANIFEST, replicas=[(epoch.name, epoch.key)], padding=PLAIN)
        self.sent = list(self.sealing.request(self.request))
        self.replica = self.opened()
        self.answer: AnswerOpening = self.sealing.answer()
        self.answer.feed(self.replica.begin(padding=PLAIN))
        self.requester = WindowSealer(self.answer.window_key, salt=self.sealing.salt, padding=PLAIN)
        self.raw = FrameSealer(self.answer.window_key, padding=PLAIN)

    def opened(self) -> Windows:
        opening = Opening(epochs=self.epochs, manifest=MANIFEST, largest_bytes=LARGEST, admit=lambda: None)
        for piece in self.sent:
            opening.feed(piece)
        assert opening.has_ended
        request, answering = opening.finish()
        return Windows(answering, request, largest_bytes=LARGEST)


def test_windows_are_answered_in_order_and_both_ends_commit_to_the_same() -> None:
    ends, reader = Ends(), MessageReader(largest_bytes=None)
    for body in (b"one", b"", bytes(LARGEST)):
        (message,) = ends.replica.feed(ends.requester.seal(window(body)))
        request = ends.replica.take(message)
        assert request is not None
        assert (request.head, bytes(request.body)) == (HEAD_OF_WINDOW, body)
        assert ends.replica.request_commitment == ends.requester.committed != ends.requester.committed_before
        sealed = ends.replica.answer(AnswerHead(status=200, headers=()), body[::-1])
        (answer,) = (
            found for item in ends.answer.feed(sealed) if isinstance(item, bytes) for found in reader.feed(item)
        )
        assert (answer.what, answer.body) == (What.WINDOW, body[::-1])
        assert ends.replica.commitment == ends.answer.commitment
    assert ends.replica.feed(ends.requester.end()) == []
    ends.replica.close()
    ends.answer.feed(ends.replica.end(RECEIPT))
    assert ends.answer.close().commitment == ends.replica.commitment


def test_a_mark_is_answered_by_a_receipt_and_is_no_request() -> None:
    ends = Ends()
    (message,) = ends.replica.feed(ends.requester.seal(MARK))
    assert ends.replica.take(message) is None
    assert len(ends.answer.feed(ends.replica.receipt(RECEIPT))) == 1


def test_what_has_not_been_taken_is_not_committed_to() -> None:
    ends = Ends()
    before = ends.replica.request_commitment
    ends.replica.feed(ends.requester.seal(window()))
    assert ends.replica.request_commitment == before == ends.requester.committed_before


@given(bodies=st.lists(st.binary(max_size=300), max_size=5), cuts=st.lists(st.integers(1, 400), max_size=30))
@settings(max_examples=30, deadline=None)
def test_messages_are_whole_however_their_bytes_come(bodies: list[bytes], cuts: list[int]) -> None:
    data, reader = b"".join(window(body).encoded for body in bodies), MessageReader(largest_bytes=300)
    found: list[Message] = []
    for cut in [*cuts, len(data)]:
        found += reader.feed(data[:cut])
        data = data[cut:]
    found += reader.feed(data)
    reader.close()
    assert [message.body for message in found] == bodies


def fed(ends: Ends, pieces: list[bytes]) -> None:
    for piece in pieces:
        ends.replica.feed(piece)


def flipped(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def marked_last(data: bytes) -> bytes:
    return data[: OUTER - 1] + b"\x01" + data[OUTER:]


def of_another(ends: Ends) -> list[bytes]:
    return [Ends().requester.seal(window())]


# What comes from the network in place of two windows.
WIRE: dict[str, tuple[Callable[[Ends, bytes, bytes], list[bytes]], type[ConfedError]]] = {
    "a flipped bit": (lambda _ends, one, _two: [flipped(one)], TamperedError),
    "the second first": (lambda _ends, one, two: [two, one], TamperedError),
    "the first dropped": (lambda _ends, _one, two: [two], TamperedError),
    "the first twice": (lambda _ends, one, _two: [one, one], TamperedError),
    "one of another stream": (lambda ends, _one, _two: of_another(ends), TamperedError),
    "one marked as the last": (lambda _ends, one, _two: [marked_last(one)], TamperedError),
    "the opening once more": (lambda ends, _one, _two: ends.sent, ConfedError),
    "bytes in clear": (lambda _ends, _one, _two: [b'{"inputs": []}' * 10], ConfedError),
    "something after the end": (lambda ends, one, _two: [one, ends.requester.seal(window()), b""], TamperedError),
}


@pytest.mark.parametrize(("change", "error"), WIRE.values(), ids=WIRE)
def test_what_the_network_changes_is_refused(
    change: Callable[[Ends, bytes, bytes], list[bytes]], error: type[ConfedError]
) -> None:
    ends = Ends()
    one, two = ends.requester.seal(window(b"1")), ends.requester.seal(window(b"2"))
    with pytest.raises(error):
        fed(ends, change(ends, one, two))


def test_an_end_that_does_not_come_is_an_error() -> None:
    ends = Ends()
    ends.replica.feed(ends.requester.seal(window()))
    with pytest.raises(TruncatedError):
        ends.replica.close()
    ends.replica.feed(ends.requester.end())
    ends.replica.close()
    with pytest.raises(EncodingError):
        ends.replica.feed(b"\x00" * 40)
    with pytest.raises(ExchangeError):
        ends.requester.seal(window())


# What a requester could seal.
SEALED: dict[str, tuple[Callable[[FrameSealer], list[bytes]], type[ConfedError]]] = {
    "a head": (lambda raw: [raw.seal(HEAD, window().encoded, final=False)], EncodingError),
    "an end that is not the last": (lambda raw: [raw.seal(END, b"", final=False)], EncodingError),
    "a window as the last": (lambda raw: [raw.seal(BODY, window().encoded, final=True)], EncodingError),
    "an end with something in it": (lambda raw: [raw.seal(END, b"x", final=True)], EncodingError),
    "no kind of message": (lambda raw: [raw.seal(BODY, b"\x07" + bytes(12), final=False)], EncodingError),
    "a window that is too large": (lambda raw: [raw.seal(BODY, b"\x01" + bytes(4) + b"\xff" * 8, final=False)], SizeError),
    "a head that is too large": (lambda raw: [raw.seal(BODY, b"\x01" + b"\xff" * 4 + bytes(8), final=False)], SizeError),
}  # fmt: skip


@pytest.mark.parametrize(("sealed", "error"), SEALED.values(), ids=SEALED)
def test_what_is_no_window_is_refused(sealed: Callable[[FrameSealer], list[bytes]], error: type[ConfedError]) -> None:
    ends = Ends()
    with pytest.raises(error):
        fed(ends, sealed(ends.raw))


def test_half_a_window_and_an_end_is_an_error() -> None:
    ends = Ends()
    ends.replica.feed(ends.raw.seal(BODY, window().encoded[:-1], final=False) + ends.raw.seal(END, b"", final=True))
    with pytest.raises(EncodingError):
        ends.replica.close()


@pytest.mark.parametrize(
    "request_", [Request(head=HEAD_OF_WINDOW, body=b""), Request(head=STREAM_HEAD, body=b"x")], ids=["path", "body"]
)
def test_another_request_opens_no_stream(request_: Request) -> None:
    with pytest.raises(EncodingError):
        Ends(request=request_)


def test_a_recording_opens_nothing_at_an_answer_with_another_nonce() -> None:
    ends = Ends()
    recorded = ends.requester.seal(window())
    ends.epochs.current()._taken.clear()  # as if the replica had forgotten that it took the opening
    again = ends.opened()
    again.begin(padding=PLAIN)
    with pytest.raises(TamperedError):
        again.feed(recorded)
    assert len(ends.replica.feed(recorded)) == 1


def test_an_epochs_key_is_held_for_an_hour_and_ten_minutes() -> None:
    ends = Ends()
    name = ends.epochs.current().name
    assert ends.epochs.left_ms(name) == EPOCH_MS + OVERLAP_MS
    ends.now += EPOCH_MS + OVERLAP_MS - 1
    assert ends.epochs.left_ms(name) == 1
    ends.now += 1
    assert ends.epochs.left_ms(name) == ends.epochs.left_ms("cc" * 32) == 0


def test_a_large_window_is_several_frames() -> None:
    ends: Any = Ends()
    sealed = ends.requester.seal(window(bytes(LARGEST_CONTENT_BYTES)))
    assert len(sealed) > LARGEST_CONTENT_BYTES
    assert [message.body for message in ends.replica.feed(sealed)] == [bytes(LARGEST_CONTENT_BYTES)]
