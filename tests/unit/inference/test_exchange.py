"""Exchanges: every wrong turn of a request or an answer, byte by byte, between a requester and a replica."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from confed import canonical, record
from confed.errors import (
    BusyError,
    ConfedError,
    ConfigError,
    EncodingError,
    EvidenceFormatError,
    ExchangeError,
    LeaseError,
    LineageError,
    ManifestMismatchError,
    RecipientError,
    ReplayedError,
    SignatureError,
    SizeError,
    StaleEpochError,
    TamperedError,
    TruncatedError,
    WrongKeyError,
)
from confed.inference import epochs as epochs_module
from confed.inference.epochs import EPOCH_MS, OVERLAP_MS, EpochKey, Epochs, verify_epoch
from confed.inference.exchange import (
    ANSWER_MAGIC,
    BODY,
    HEAD,
    RECEIPT,
    Answering,
    AnswerOpening,
    Sealing,
)
from confed.inference.frames import LARGEST_CONTENT_BYTES, PIECE_BYTES, FrameOpener, FrameSealer
from confed.inference.header import REQUEST_MAGIC
from confed.inference.messages import AnswerHead, Commitment, Request, RequestHead
from confed.inference.opening import Opening
from confed.inference.refusals import Reason, Refusal
from confed.sealing.derivation import exchange_answer_key
from confed.serving import Padding, PaddingTerms
from confed.statement import Signed, public_bytes, sign

MANIFEST, INSTANCE = "aa" * 32, "bb" * 32
PLAIN = PaddingTerms(kind=Padding.NONE, block_bytes=0)
POWERS = PaddingTerms(kind=Padding.POWERS, block_bytes=0)
LARGEST = 3 * 1024 * 1024
START_MS = 1_800_000_000_000
SIGNING = Ed25519PrivateKey.generate()
OUTER = 5


@dataclass
class Clock:
    now: int = START_MS

    def __call__(self) -> int:
        return self.now


@dataclass
class Replica:
    clock: Clock = field(default_factory=Clock)
    manifest: str = MANIFEST

    def __post_init__(self) -> None:
        self.epochs = Epochs(manifest=self.manifest, instance=INSTANCE, signing_key=SIGNING, now=self.clock)

    @property
    def named(self) -> tuple[str, EpochKey]:
        epoch = self.epochs.current()
        return epoch.name, epoch.key

    def opening(self, largest_bytes: int = LARGEST) -> Opening:
        return Opening(epochs=self.epochs, manifest=self.manifest, largest_bytes=largest_bytes, admit=lambda: None)

    def open(self, pieces: list[bytes], **changes: Any) -> tuple[Request, Answering]:
        opening = self.opening(**changes)
        for piece in pieces:
            opening.feed(piece)
        return opening.finish()


@dataclass(frozen=True, kw_only=True)
class Said:
    TYPE: ClassVar[str] = "confed/v1/test"
    said: str


def a_request(body: bytes = b"what only the TEE reads", path: str = "/v1/chat") -> Request:
    return Request(head=RequestHead(method="POST", path=path, headers=(("accept", "*/*"),)), body=body)


def sealing(*replicas: Replica, padding: PaddingTerms = PLAIN, manifest: str = MANIFEST) -> Sealing:
    return Sealing(manifest=manifest, replicas=[replica.named for replica in replicas], padding=padding)


RECEIPT_SIGNED = sign(Said(said="done"), SIGNING)


def an_answer(answering: Answering, *pieces: bytes, padding: PaddingTerms = PLAIN) -> list[bytes]:
    head = AnswerHead(status=200, headers=(("content-type", "text/plain"),))
    sealed = [answering.begin(head, padding=padding), *(frame for piece in pieces for frame in answering.body(piece))]
    return [*sealed, answering.end(RECEIPT_SIGNED)]


def read(opening: AnswerOpening, pieces: list[bytes]) -> list[AnswerHead | bytes]:
    return [item for piece in pieces for item in opening.feed(piece)]


def read_whole(opening: AnswerOpening, pieces: list[bytes]) -> None:
    read(opening, pieces)
    opening.close()


@pytest.mark.parametrize("begun", [False, True])
def test_an_answer_that_its_replica_ends_says_why_only_once_all_that_came_was_read(*, begun: bool) -> None:
    """A reason that came with the head is of a request that was taken: it must not look like one that was not."""
    replica = Replica()
    asked = sealing(replica)
    _, answering = replica.open(list(asked.request(a_request())))
    sealed: list[bytes] = []
    if begun:
        sealed = [answering.begin(AnswerHead(status=200, headers=()), padding=PLAIN), *answering.body(b"so far")]
    sealed.append(answering.refuse("lease", padding=PLAIN))
    opening = asked.answer()
    head, *pieces = read(opening, [b"".join(sealed)])
    assert isinstance(head, AnswerHead)
    assert (head.status, pieces) == ((200, [b"so far"]) if begun else (503, []))
    with pytest.raises(LeaseError):
        opening.close()


SIZES = [
    0,
    1,
    255,
    PIECE_BYTES,
    PIECE_BYTES + 1,
    LARGEST_CONTENT_BYTES,
    LARGEST_CONTENT_BYTES + 1,
    2 * LARGEST_CONTENT_BYTES,
]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("padding", [PLAIN, POWERS, PaddingTerms(kind=Padding.BLOCKS, block_bytes=4096)])
def test_a_request_and_its_answer_come_back_whole(size: int, padding: PaddingTerms) -> None:
    replica, body = Replica(), os.urandom(size)
    asked = sealing(replica, padding=padding)
    request, answering = replica.open(list(asked.request(a_request(body))))
    assert (bytes(request.body), request.head) == (body, a_request().head)
    opening = asked.answer()
    head, *pieces = read(opening, an_answer(answering, body, b"more", padding=padding))
    assert head == AnswerHead(status=200, headers=(("content-type", "text/plain"),))
    assert b"".join(piece for piece in pieces if isinstance(piece, bytes)) == body + b"more"
    answered = opening.close()
    assert answered.receipt == RECEIPT_SIGNED
    assert answered.commitment == answering.commitment
    assert asked.committed == answering.request_commitment


def test_a_tenant_is_told_to_the_replica_and_to_no_receipt() -> None:
    replica, tenant = Replica(), bytes(range(32))
    plain, named = a_request(), dataclasses.replace(a_request(), tenant=tenant)
    asked = sealing(replica)
    request, answering = replica.open(list(asked.request(named)))
    assert request.tenant == tenant
    assert request.cache_salt not in (None, tenant.hex())
    commitment = Commitment(asked.salt, named.head.encoded)
    commitment.add(named.body)
    assert answering.request_commitment == asked.committed == commitment.digest
    assert replica.open(list(sealing(replica).request(plain)))[0].cache_salt is None
    with pytest.raises(EncodingError):
        dataclasses.replace(plain, tenant=bytes(31))


@settings(max_examples=15, deadline=None)
@given(cuts=st.lists(st.integers(1, 400), min_size=1, max_size=30))
def test_bytes_may_come_in_any_pieces(cuts: list[int]) -> None:
    replica = Replica()
    asked = sealing(replica, padding=POWERS)
    _, answering = replica.open(cut(b"".join(asked.request(a_request())), cuts))
    opening = asked.answer()
    assert b"abc" in read(opening, cut(b"".join(an_answer(answering, b"abc", padding=POWERS)), cuts))
    opening.close()


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    pieces: list[bytes] = []
    for size in sizes:
        pieces.append(data[:size])
        data = data[size:]
    return [*pieces, data]


def test_nothing_of_a_request_or_an_answer_is_in_its_bytes() -> None:
    replica = Replica()
    asked = sealing(replica)
    sent = b"".join(asked.request(a_request(b"canary-prompt", "/v1/canary-path")))
    _, answering = replica.open([sent])
    back = b"".join(an_answer(answering, b"canary-answer"))
    assert not any(word in sent + back for word in (b"canary", b"accept", b"text/plain", b"POST"))


def refusal_of(replica: Replica, asked: Sealing, epoch: str) -> Refusal:
    """What a replica signs once it has noted a request."""
    assert replica.epochs.refuse(asked.epochs, asked.transcript) == epoch
    return Refusal(
        manifest=MANIFEST, instance=INSTANCE, epoch=epoch, request=asked.transcript.hex(), reason=Reason.BUSY
    )


def test_a_request_for_several_replicas_runs_at_one_and_at_the_next_only_once_that_has_refused() -> None:
    one, other = Replica(), Replica()
    asked = sealing(one, other)
    sent = list(asked.request(a_request()))
    with pytest.raises(TamperedError):
        other.open(sent)  # it can open the secret, and not one frame
    assert asked.handed_over
    honest = refusal_of(one, asked, one.named[0])
    for wrong in ({"epoch": other.named[0]}, {"request": "dd" * 32}):
        with pytest.raises(LineageError):
            asked.refused(dataclasses.replace(honest, **wrong))  # type: ignore[arg-type]
    asked.refused(honest)
    assert not asked.handed_over
    again = list(asked.request(a_request()))
    _, answering = other.open(again)
    opening = asked.answer()
    assert b"same" in read(opening, [b"".join(an_answer(answering, b"same"))])
    assert opening.close().epoch == other.named[0]
    for late in (sent, again):
        with pytest.raises(ReplayedError if late is sent else TamperedError):
            one.open(late)
    with pytest.raises(ReplayedError):
        other.open(again)


def test_a_request_is_sealed_once_for_each_replica() -> None:
    """A key's frames have numbers: two bodies under one key would have them twice."""
    replica = Replica()
    asked = sealing(replica)
    list(asked.request(a_request()))
    with pytest.raises(ExchangeError):
        list(asked.request(a_request()))
    asked.refused(refusal_of(replica, asked, replica.named[0]))
    with pytest.raises(ExchangeError):
        list(asked.request(a_request()))


def test_two_keys_of_one_replica_do_not_let_a_request_run_twice() -> None:
    replica = Replica()
    first = replica.named
    replica.clock.now += EPOCH_MS
    asked = Sealing(manifest=MANIFEST, replicas=[first, replica.named], padding=PLAIN)
    sent = list(asked.request(a_request()))
    replica.open(sent)
    replica.clock.now += OVERLAP_MS
    with pytest.raises(TamperedError):
        replica.open(sent)  # the first key is gone, and the second one's list does not have it
    with pytest.raises(ReplayedError):
        replica.epochs.refuse(asked.epochs, asked.transcript)


def test_two_answers_to_one_secret_share_no_key() -> None:
    replica = Replica()
    asked = sealing(replica)
    _, answering = replica.open(list(asked.request(a_request())))
    again = dataclasses.replace(answering)
    first, second = (b"".join(an_answer(entry, b"same")) for entry in (answering, again))
    start = len(ANSWER_MAGIC) + 33
    assert first[start:] != second[start:]
    with pytest.raises(ExchangeError):
        answering.begin(AnswerHead(status=200, headers=()), padding=PLAIN)


# Wrong turns of a request: (what the network does to its pieces: header, head, body…; the error).


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def replaced_header(pieces: list[bytes], **changes: Any) -> list[bytes]:
    start = len(REQUEST_MAGIC) + 4
    value = {**canonical.decode(pieces[0][start:]), **changes}
    encoded = canonical.encode(value)
    return [REQUEST_MAGIC + len(encoded).to_bytes(4, "big") + encoded, *pieces[1:]]


def header_of(pieces: list[bytes]) -> dict[str, Any]:
    return canonical.decode(pieces[0][len(REQUEST_MAGIC) + 4 :])


REQUESTS: dict[str, tuple[Callable[[list[bytes]], list[bytes]], type[ConfedError]]] = {
    "a flipped bit in the head": (lambda p: [p[0], flipped(p[1], 20), *p[2:]], TamperedError),
    "a flipped bit in the body": (lambda p: [*p[:2], flipped(p[2], 20), *p[3:]], TamperedError),
    "a flipped bit in a tag": (lambda p: [*p[:-1], flipped(p[-1], len(p[-1]) - 1)], TamperedError),
    "frames in another order": (lambda p: [p[0], p[1], p[3], p[2], *p[4:]], TamperedError),
    "a frame twice": (lambda p: [*p[:3], p[2], *p[3:]], TamperedError),
    "a frame left out": (lambda p: [*p[:2], *p[3:]], TamperedError),
    "the last frame left out": (lambda p: p[:-1], TruncatedError),
    "cut inside a frame": (lambda p: [*p[:-1], p[-1][:-1]], TruncatedError),
    "an earlier frame called the last": (lambda p: [*p[:2], flipped(p[2], 4)], TamperedError),
    "the last frame called an earlier one": (lambda p: [*p[:-1], flipped(p[-1], 4)], TamperedError),
    "an unknown flag": (lambda p: [*p[:2], p[2][:4] + b"\x02" + p[2][5:], *p[3:]], SizeError),
    "a frame that claims gigabytes": (lambda p: [*p[:2], b"\xff\xff\xff\xff" + p[2][4:]], SizeError),
    "a frame too short for anything": (lambda p: [*p[:2], b"\x00\x00\x00\x03" + p[2][4:]], SizeError),
    "bytes after the end": (lambda p: [*p, b"x" * 8], EncodingError),
    "a byte after the end": (lambda p: [*p, b"x"], EncodingError),
    "another request id": (lambda p: replaced_header(p, request_id="00" * 16), WrongKeyError),
    "another manifest": (lambda p: replaced_header(p, manifest="cc" * 32), ManifestMismatchError),
    "an unknown epoch": (lambda p: replaced_header(p, replicas=[{**header_of(p)["replicas"][0], "epoch": "dd" * 32}]), StaleEpochError),
    "no replica": (lambda p: replaced_header(p, replicas=[]), EncodingError),
    "an unknown field": (lambda p: replaced_header(p, more=1), EncodingError),
    "a replica twice": (lambda p: replaced_header(p, replicas=header_of(p)["replicas"] * 2), EncodingError),
    "a short secret": (lambda p: replaced_header(p, replicas=[{**header_of(p)["replicas"][0], "wrapped": "00"}]), EncodingError),
    "zeros as a secret": (lambda p: replaced_header(p, replicas=[{**header_of(p)["replicas"][0], "wrapped": "00" * 1168}]), (WrongKeyError, RecipientError)),  # type: ignore[dict-item]
    "a header that is not canonical": (lambda p: [p[0][:-1] + b" }", *p[1:]], EncodingError),
    "a header of a gigabyte": (lambda p: [REQUEST_MAGIC + b"\x40\x00\x00\x00"], SizeError),
    "something else": (lambda p: [b"GET / HTTP/1.1\r\n\r\n"], EncodingError),
    "nothing": (lambda p: [], EncodingError),
    "no frames": (lambda p: [p[0]], TruncatedError),
}  # fmt: skip


@pytest.mark.parametrize(("turn", "error"), REQUESTS.values(), ids=REQUESTS)
def test_a_request_that_is_not_the_one_that_was_sent_is_refused(
    turn: Callable[[list[bytes]], list[bytes]], error: type[ConfedError]
) -> None:
    replica = Replica()
    pieces = list(sealing(replica).request(a_request(b"x" * (2 * PIECE_BYTES + 5))))
    assert len(pieces) == 5
    with pytest.raises(error):
        replica.open(turn(pieces))
    replica.open(pieces)  # and what was refused has used nothing up


def test_frames_of_another_request_are_refused() -> None:
    replica = Replica()
    one, other = (list(sealing(replica).request(a_request(b"x"))) for _ in range(2))
    with pytest.raises(TamperedError):
        replica.open([*one[:-1], other[-1]])


def test_a_request_runs_once() -> None:
    replica = Replica()
    pieces = list(sealing(replica).request(a_request()))
    both = [replica.opening(), replica.opening()]
    for opening in both:
        for piece in pieces:
            opening.feed(piece)
    both[0].finish()
    with pytest.raises(ReplayedError):
        both[1].finish()
    with pytest.raises(ReplayedError):
        replica.open(pieces)


def test_a_request_sealed_to_another_replica_is_refused() -> None:
    with pytest.raises(StaleEpochError):
        Replica().open(list(sealing(Replica()).request(a_request())))


def test_a_secret_moved_to_another_replicas_epoch_is_refused() -> None:
    meant, other = Replica(), Replica()
    pieces = list(sealing(meant).request(a_request()))
    entry = header_of(pieces)["replicas"][0]
    moved = replaced_header(pieces, replicas=[{**entry, "epoch": other.named[0]}])
    with pytest.raises((WrongKeyError, RecipientError)):
        other.open(moved)


def test_a_request_beyond_its_bound_is_refused_before_it_is_whole() -> None:
    replica = Replica()
    opening = replica.opening(largest_bytes=PIECE_BYTES + 1024)
    pieces = iter(sealing(replica).request(a_request(b"x" * (3 * PIECE_BYTES))))
    for piece in (next(pieces), next(pieces), next(pieces)):
        opening.feed(piece)
    with pytest.raises(SizeError):
        opening.feed(next(pieces))


# Wrong turns of an answer.

ANSWERS: dict[str, tuple[Callable[[list[bytes]], list[bytes]], type[ConfedError]]] = {
    "a flipped bit": (lambda p: [p[0], flipped(p[1], 9), *p[2:]], TamperedError),
    "a flipped bit in the nonce": (lambda p: [flipped(p[0], 20), *p[1:]], TamperedError),
    "pieces in another order": (lambda p: [p[0], p[2], p[1], p[3]], TamperedError),
    "a piece twice": (lambda p: [p[0], p[1], p[1], *p[2:]], TamperedError),
    "a piece left out": (lambda p: [p[0], *p[2:]], TamperedError),
    "the last frame left out": (lambda p: p[:-1], TruncatedError),
    "cut inside the last frame": (lambda p: [*p[:-1], p[-1][:-4]], TruncatedError),
    "a piece called the last": (lambda p: [p[0], flipped(p[1], 4)], TamperedError),
    "bytes after the end": (lambda p: [*p, b"more than a frame's start"], EncodingError),
    "a replica that was not asked": (lambda p: [flipped(p[0], len(ANSWER_MAGIC)), *p[1:]], EncodingError),
    "something else": (lambda p: [b"HTTP/1.1 200 OK\r\n" * 10], EncodingError),
    "nothing": (lambda p: [], EncodingError),
}


@pytest.mark.parametrize(("turn", "error"), ANSWERS.values(), ids=ANSWERS)
def test_an_answer_that_is_not_the_whole_of_what_was_sealed_is_an_error(
    turn: Callable[[list[bytes]], list[bytes]], error: type[ConfedError]
) -> None:
    replica = Replica()
    asked = sealing(replica)
    _, answering = replica.open(list(asked.request(a_request())))
    opening = asked.answer()
    with pytest.raises(error):
        read_whole(opening, turn(an_answer(answering, b"one", b"two")))


def test_the_answer_to_another_request_is_refused() -> None:
    replica = Replica()
    one, other = sealing(replica), sealing(replica)
    replica.open(list(one.request(a_request())))
    _, answering = replica.open(list(other.request(a_request())))
    with pytest.raises(TamperedError):
        read(one.answer(), an_answer(answering, b"to the other"))


FRAMES: dict[str, list[tuple[int, bytes, bool]]] = {
    "no head": [(BODY, b"x", False)],
    "two heads": [(HEAD, AnswerHead(status=200, headers=()).encoded, False)] * 2,
    "an end without a receipt": [(HEAD, AnswerHead(status=200, headers=()).encoded, False), (BODY, b"x", True)],
    "a receipt that is not the end": [(HEAD, AnswerHead(status=200, headers=()).encoded, False), (RECEIPT, b"{}", False)],
    "a head that is the end": [(HEAD, AnswerHead(status=200, headers=()).encoded, True)],
    "no receipt in a receipt": [(HEAD, AnswerHead(status=200, headers=()).encoded, False), (RECEIPT, b"{}", True)],
    "a head that is none": [(HEAD, b"{}", False)],
    "a status that is none": [(HEAD, canonical.encode({"status": 99, "headers": []}), False)],
}  # fmt: skip


@pytest.mark.parametrize("frames", FRAMES.values(), ids=FRAMES)
def test_an_answer_that_a_tee_sealed_wrongly_is_refused(frames: list[tuple[int, bytes, bool]]) -> None:
    replica = Replica()
    asked = sealing(replica)
    _, answering = replica.open(list(asked.request(a_request())))
    start = answering.begin(AnswerHead(status=200, headers=()), padding=PLAIN)[: len(ANSWER_MAGIC) + 33]
    key = exchange_answer_key(
        answering.secret, transcript=answering.transcript, epoch=answering.epoch, nonce=start[-32:]
    )
    sealer = FrameSealer(key, padding=PLAIN)
    opening = asked.answer()
    with pytest.raises(EncodingError):
        read_whole(opening, [start, *(sealer.seal(kind, content, final=final) for kind, content, final in frames)])


# Epochs.


def test_a_key_is_renewed_every_hour_and_gone_ten_minutes_later() -> None:
    replica = Replica()
    first = replica.epochs.current()
    replica.clock.now += EPOCH_MS - 1
    assert replica.epochs.current() is first
    replica.clock.now += 1
    second = replica.epochs.current()
    assert second.name != first.name
    assert second.key.hpke_public != first.key.hpke_public
    assert replica.epochs.named(first.name) is first
    replica.clock.now = first.key.not_before + EPOCH_MS + OVERLAP_MS
    assert replica.epochs.named(first.name) is None
    assert replica.epochs.current() is second


def test_a_request_to_an_epoch_that_is_over_is_stale() -> None:
    replica = Replica()
    pieces = list(sealing(replica).request(a_request()))
    replica.clock.now += EPOCH_MS + OVERLAP_MS
    with pytest.raises(StaleEpochError):
        replica.open(pieces)


def test_a_full_epoch_is_followed_by_another_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(epochs_module, "MOST_REQUESTS", 2)
    replica = Replica()
    full = replica.epochs.current()
    for number in range(2):
        full.take(bytes([number]))
    with pytest.raises(BusyError):
        full.take(b"one more")
    with pytest.raises(ReplayedError):
        full.take(bytes([0]))
    assert replica.epochs.current() is not full


EPOCHS: dict[str, tuple[dict[str, Any], dict[str, Any], type[ConfedError]]] = {
    "of another manifest": ({"manifest": "cc" * 32}, {}, EvidenceFormatError),
    "of another instance": ({"instance": "cc" * 32}, {}, EvidenceFormatError),
    "for a day": ({"not_after": START_MS + 24 * EPOCH_MS}, {}, EvidenceFormatError),
    "that ends before it begins": ({"not_after": START_MS - 1}, {}, EvidenceFormatError),
    "that is over": ({}, {"now_ms": START_MS + EPOCH_MS + OVERLAP_MS}, StaleEpochError),
    "that has not come": ({}, {"now_ms": START_MS - 30_001}, StaleEpochError),
    "signed by somebody else": ({}, {"signing_public": bytes(32)}, SignatureError),
}


@pytest.mark.parametrize(("changes", "arguments", "error"), EPOCHS.values(), ids=EPOCHS)
def test_an_epoch_key_is_refused(changes: dict[str, Any], arguments: dict[str, Any], error: type[ConfedError]) -> None:
    key = Replica().epochs.current().key
    known: dict[str, Any] = {
        "manifest": MANIFEST, "instance": INSTANCE, "signing_public": public_bytes(SIGNING), "now_ms": START_MS,
    }  # fmt: skip
    assert verify_epoch(sign(key, SIGNING), **known) == key
    with pytest.raises(error):
        verify_epoch(sign(dataclasses.replace(key, **changes), SIGNING), **{**known, **arguments})


def test_a_statement_of_another_kind_is_no_epoch_key() -> None:
    with pytest.raises(EncodingError):
        verify_epoch(
            RECEIPT_SIGNED, manifest=MANIFEST, instance=INSTANCE, signing_public=public_bytes(SIGNING), now_ms=START_MS
        )


# Padding, frames and heads.


def test_lengths_show_what_the_owner_lets_them_show() -> None:
    def length(size: int, padding: PaddingTerms) -> int:
        return len(FrameSealer(bytes(32), padding=padding).seal(BODY, bytes(size), final=True))

    around = OUTER + 16
    assert [length(size, POWERS) - around for size in (0, 1, 251, 252, 1000)] == [256, 256, 256, 512, 1024]
    assert length(LARGEST_CONTENT_BYTES, POWERS) - around == 1024 * 1024
    blocks = PaddingTerms(kind=Padding.BLOCKS, block_bytes=1000)
    assert [length(size, blocks) - around for size in (0, 995, 996)] == [1000, 1000, 2000]
    assert length(LARGEST_CONTENT_BYTES, blocks) - around == 1024 * 1024
    assert length(10, PLAIN) - around == 15
    with pytest.raises(SizeError):
        length(LARGEST_CONTENT_BYTES + 1, PLAIN)


@pytest.mark.parametrize(("kind", "block"), [(Padding.NONE, 16), (Padding.POWERS, 1), (Padding.BLOCKS, 0), (Padding.BLOCKS, 2**21)])  # fmt: skip
def test_padding_that_contradicts_itself_is_refused(kind: Padding, block: int) -> None:
    with pytest.raises(ConfigError):
        PaddingTerms(kind=kind, block_bytes=block)


def test_padding_that_hides_something_is_refused() -> None:
    sealer = FrameSealer(bytes(32), padding=POWERS)
    plaintext = bytearray(256)
    plaintext[0], plaintext[-1] = BODY, 1
    outer = (256 + 16).to_bytes(4, "big") + b"\x01"
    sealed = sealer._aead.encrypt(bytes(11) + b"\x01", bytes(plaintext), outer)
    with pytest.raises(EncodingError):
        FrameOpener(bytes(32), what="request", largest_bytes=None).feed(outer + sealed)


def test_nothing_follows_a_last_frame() -> None:
    sealer = FrameSealer(bytes(32), padding=PLAIN)
    sealer.seal(BODY, b"", final=True)
    with pytest.raises(ExchangeError):
        sealer.seal(BODY, b"", final=True)


HEADS: dict[str, dict[str, Any]] = {
    "another method": {"method": "DELETE"},
    "a path that is none": {"path": "v1"},
    "a path with a line in it": {"path": "/v1\r\nx: y"},
    "a path with a space": {"path": "/v1 HTTP/1.1"},
    "a long path": {"path": "/" + "x" * 2048},
    "a header in capitals": {"headers": (("Accept", "x"),)},
    "a header with a line in it": {"headers": (("accept", "x\r\ny: z"),)},
    "too many headers": {"headers": (("accept", "x"),) * 65},
}


@pytest.mark.parametrize("changes", HEADS.values(), ids=HEADS)
def test_a_request_head_that_is_no_clean_one_is_refused(changes: dict[str, Any]) -> None:
    good = RequestHead(method="GET", path="/", headers=())
    with pytest.raises(EncodingError):
        dataclasses.replace(good, **changes)
    with pytest.raises(EncodingError):
        RequestHead.decode(canonical.encode({**record.to_json(good), **record.to_json(changes)}))


def test_a_commitment_tells_head_and_body_apart() -> None:
    def digest(head: bytes, body: bytes) -> str:
        commitment = Commitment(bytes(32), head)
        commitment.add(body)
        return commitment.digest

    assert digest(b"ab", b"c") != digest(b"a", b"bc")
    assert digest(b"a", b"b") != Commitment(bytes([1]) * 32, b"a").digest


def test_secrets_are_in_no_repr() -> None:
    replica = Replica()
    request, answering = replica.open(list(sealing(replica).request(a_request(b"canary"))))
    assert "canary" not in repr(request) + repr(answering)
    assert answering.secret.hex() not in repr(answering) + repr(replica.epochs.current())
    assert repr(answering.secret) not in repr(answering)
    assert isinstance(RECEIPT_SIGNED, Signed)
