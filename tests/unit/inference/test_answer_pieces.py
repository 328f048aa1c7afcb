"""In how many pieces requests and answers are carried, which is for speed alone: what is in them stays the same."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from confed.errors import DeliveryError, EncodingError, TamperedError, TruncatedError
from confed.inference.edge import Edge, Pump
from confed.inference.engine import Answer
from confed.inference.epochs import Epochs
from confed.inference.exchange import Answering, AnswerOpening, Sealing
from confed.inference.frames import PIECE_BYTES, Frame, FrameOpener, FrameSealer
from confed.inference.messages import AnswerHead, Request, RequestHead
from confed.inference.opening import Opening
from confed.serving import OutputTerms, Padding, PaddingTerms
from confed.statement import sign

MANIFEST = "aa" * 32
SIGNING = Ed25519PrivateKey.generate()
PLAIN = PaddingTerms(kind=Padding.NONE, block_bytes=0)
PADDINGS = [
    PLAIN,
    PaddingTerms(kind=Padding.POWERS, block_bytes=0),
    PaddingTerms(kind=Padding.BLOCKS, block_bytes=1000),
]
HEAD = AnswerHead(status=200, headers=(("content-type", "text/plain"),))


@dataclass(frozen=True, kw_only=True)
class Said:
    TYPE: ClassVar[str] = "confed/v1/test"
    said: str


def sealed(body: bytes = b"asked", padding: PaddingTerms = PLAIN) -> tuple[Sealing, Request, Opening]:
    epochs = Epochs(manifest=MANIFEST, instance="bb" * 32, signing_key=SIGNING, now=lambda: 1_800_000_000_000)
    epoch = epochs.current()
    sealing = Sealing(manifest=MANIFEST, replicas=[(epoch.name, epoch.key)], padding=padding)
    request = Request(head=RequestHead(method="POST", path="/v1/x", headers=()), body=body)
    return sealing, request, Opening(epochs=epochs, manifest=MANIFEST, largest_bytes=1024**2, admit=lambda: None)


def answered(body: Any) -> tuple[Iterator[bytes], AnswerOpening]:
    """The pieces that an edge carries of an answer with this body, and what opens them."""
    sealing, request, opening = sealed()
    opening.feed(b"".join(sealing.request(request)))
    opened, answering = opening.finish()
    serving = SimpleNamespace(output=OutputTerms.to_requester(), padding=PLAIN)

    def receipt(_answering: Answering, *, delivered: str | None) -> Any:
        return sign(Said(said=str(delivered)), SIGNING)

    door = SimpleNamespace(answer=lambda _request: Answer(head=HEAD, body=body))
    replica: Any = SimpleNamespace(serving=serving, receipt=receipt)
    edge = Edge(replica, door, most_at_once=1)
    return edge._sealed(opened, answering), sealing.answer()


@pytest.mark.parametrize("padding", PADDINGS, ids=lambda padding: padding.kind)
@pytest.mark.parametrize("size", [0, 1, 251, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES])
def test_a_sealed_request_is_as_long_as_it_says_before_it_is_sealed(size: int, padding: PaddingTerms) -> None:
    sealing, request, _ = sealed(bytes(size), padding)
    longer = dataclasses.replace(request, tenant=bytes(32))
    assert sealing.request_bytes(longer) == sum(map(len, sealing.request(longer)))


def test_a_short_answer_that_is_there_is_one_piece() -> None:
    pieces, opening = answered((b"front", memoryview(b"tensor")))
    (piece,) = pieces
    assert opening.feed(piece) == [HEAD, b"front", b"tensor"]
    opening.close()


def test_a_long_answer_goes_piece_by_piece() -> None:
    pieces, opening = answered((bytes(PIECE_BYTES), bytes(PIECE_BYTES)))
    assert [len(opening.feed(piece)) for piece in pieces] == [2, 1, 0]
    opening.close()


def test_the_head_of_a_streamed_answer_goes_with_its_first_piece_and_no_piece_waits_for_the_next() -> None:
    made: list[bytes] = []

    def words() -> Iterator[bytes]:
        for word in (b"one", b"two"):
            made.append(word)
            yield word

    pieces, opening = answered(words())
    assert (opening.feed(next(pieces)), made) == ([HEAD, b"one"], [b"one"])
    assert (opening.feed(next(pieces)), made) == ([b"two"], [b"one", b"two"])
    assert opening.feed(next(pieces)) == []
    opening.close()


def test_an_answer_without_a_body_is_its_head_and_receipt() -> None:
    pieces, opening = answered(iter(()))
    assert [opening.feed(piece) for piece in pieces] == [[HEAD]]
    opening.close()


@pytest.mark.parametrize("first", [(), (b"so far",)], ids=["before", "after"])
def test_what_the_replica_ends_says_why_before_and_after_its_first_piece(first: tuple[bytes, ...]) -> None:
    def words() -> Iterator[bytes]:
        yield from first
        raise DeliveryError("outlet", expected="one", got="none")

    pieces, opening = answered(words())
    assert [item for piece in pieces for item in opening.feed(piece)] == [HEAD, *first]
    with pytest.raises(DeliveryError):
        opening.close()


@pytest.mark.parametrize("first", [(), (b"so far",)], ids=["before", "after"])
def test_an_engine_that_fails_leaves_an_answer_that_was_begun_and_has_no_end(first: tuple[bytes, ...]) -> None:
    def words() -> Iterator[bytes]:
        yield from first
        raise ZeroDivisionError

    pieces, opening = answered(words())
    found: list[Any] = []
    with pytest.raises(ZeroDivisionError):
        found.extend(item for piece in pieces for item in opening.feed(piece))
    assert found == [HEAD, *first]
    with pytest.raises(TruncatedError):
        opening.close()


@pytest.mark.parametrize("cut", [1, 2, 4, 5, 6, 25, 26, 27, 31, 300, 1000])
def test_frames_open_however_their_bytes_are_cut(cut: int) -> None:
    contents = [b"", b"x", bytes(5), b"y" * 300, b"z" * 700, b""]
    sealer = FrameSealer(bytes(32), padding=PLAIN)
    opener = FrameOpener(bytes(32), what="answer", largest_bytes=None)
    data = b"".join(
        sealer.seal(number, content, final=number == len(contents) - 1) for number, content in enumerate(contents)
    )
    opened = [frame for at in range(0, len(data), cut) for frame in opener.feed(data[at : at + cut])]
    assert [(frame.kind, frame.content) for frame in opened] == list(enumerate(contents))
    assert [frame.final for frame in opened] == [False] * (len(contents) - 1) + [True]
    opener.close()
    with pytest.raises(EncodingError):
        opener.feed(b"\x00" * cut)


@pytest.mark.parametrize("cut", [1, 4, 5, 26, 1000])
def test_a_changed_frame_is_refused_however_its_bytes_are_cut(cut: int) -> None:
    sealer = FrameSealer(bytes(32), padding=PLAIN)
    opener = FrameOpener(bytes(32), what="answer", largest_bytes=None)
    data = bytearray(sealer.seal(1, b"first", final=False) + sealer.seal(2, b"second", final=True))
    data[40] ^= 1
    opened: list[Frame] = []

    def feed(data: bytes) -> None:
        for at in range(0, len(data), cut):
            opened.extend(opener.feed(data[at : at + cut]))

    with pytest.raises(TamperedError):
        feed(bytes(data))
    assert [frame.content for frame in opened] in ([b"first"], [])
    with pytest.raises(TruncatedError):
        opener.close()


def test_a_frame_shows_no_content_where_it_is_printed() -> None:
    assert "secret" not in repr(Frame(1, b"secret", False))


@pytest.mark.parametrize(
    ("sizes", "carried"),
    [
        ([300] * 1000, [65400, 65400, 65400, 65400, 38400]),
        ([300], [300]),
        ([65536, 1], [65536, 1]),
        ([1, 65535, 65535, 2], [65536, 65535, 2]),
        ([100_000, 100_000], [100_000, 100_000]),
        ([], []),
    ],
)
def test_small_pieces_that_wait_go_out_together_in_their_order(sizes: list[int], carried: list[int]) -> None:
    made = [bytes([number % 251]) * size for number, size in enumerate(sizes)]

    async def carry() -> tuple[list[bytes], bool]:
        pump = Pump(asyncio.get_running_loop())
        pump.run(lambda: iter(made))
        return [piece async for piece in pump.pieces()], pump.whole

    found, whole = asyncio.run(carry())
    assert ([len(piece) for piece in found], whole) == (carried, True)
    assert b"".join(found) == b"".join(made)
