"""One exchange: a request that only attested replicas can open, and an answer that only its requester can.

1. The requester draws a secret and wraps it (HPKE, MLKEM768-X25519) to the epoch key of one or several replicas.
   Header: manifest, a fresh request id, for each replica its epoch and the wrapped secret. Transcript: its digest.
2. Request frames go under HKDF(secret, transcript ‖ epoch) of the one replica whose turn it is: the caller's tenant
   (``messages.Request``) with the head, then the body; the last one is marked. Its frames open at no other replica, and
   the next one gets some only once this one has signed that it will never run the request (``refusals``).
3. The replica unwraps, opens, and, once the last frame is authentic, takes the transcript as used: a second time is a
   replay. Only then does anything run.
4. Its answer starts with which wrapped secret it used and a fresh nonce; answer frames go under HKDF(secret, transcript
   ‖ epoch ‖ nonce): head, body, and a receipt as the last one. So two replicas, or two answers, never share a key.
5. An answer that ends before its last frame is an error, never a short answer. Where the replica itself must not go on
   (its lease ended, an output did not get where it must), the last frame is a stable code in the receipt's place.

Not promised: who the requester is; HPKE's base mode does not say. Sizes (as padded), times and the epoch are seen.

Sources: RFC 9180 (HPKE); RFC 9458 §4 (an answer's key from the request's secret and a fresh nonce); RFC 5869.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from confed import canonical
from confed.errors import (
    ConfedError,
    EncodingError,
    ExchangeError,
    LineageError,
    SizeError,
    error_for,
)
from confed.inference.epochs import EpochKey
from confed.inference.frames import PIECE_BYTES, Frame, FrameOpener, FrameSealer, sealed_bytes
from confed.inference.header import ExchangeHeader, SealedHeader, Wrapped, wrapping_info
from confed.inference.messages import HEAD_LIMIT_BYTES, TENANT_BYTES, AnswerHead, Commitment, Request
from confed.inference.refusals import Refusal
from confed.sealing.derivation import (
    exchange_answer_key,
    exchange_request_key,
    exchange_window_key,
    receipt_salt,
)
from confed.sealing.recipients import HpkeRecipient
from confed.serving import PaddingTerms
from confed.statement import Signed

ANSWER_MAGIC = b"confed-answer/1\n"
SECRET_BYTES = 32
_NONCE_BYTES = 32
_ANSWER_START = len(ANSWER_MAGIC) + 1 + _NONCE_BYTES
HEAD, BODY, RECEIPT, REFUSED = 1, 2, 3, 4
"""Kinds of frames."""


class Sealing:
    """The requester's end of one exchange; use it for one request.

    Args:
        manifest: digest of the manifest that the replicas were verified against.
        replicas: verified epoch keys with their signed statements' digests. Whoever holds one of them can open the
            secret; the request goes to one after the other, and to the next only where the one before has refused it.
        padding: the manifest's.
    """

    def __init__(self, *, manifest: str, replicas: Sequence[tuple[str, EpochKey]], padding: PaddingTerms) -> None:
        request_id, self._secret = os.urandom(16), os.urandom(SECRET_BYTES)
        self.epochs = tuple(name for name, _ in replicas)
        wrapped = [
            _recipient(key.hpke_public).wrap(self._secret, info=wrapping_info(manifest, request_id, name))
            for name, key in replicas
        ]
        self._header = SealedHeader.of(
            ExchangeHeader(
                manifest=manifest,
                request_id=request_id,
                replicas=tuple(
                    Wrapped(epoch=name, wrapped=secret) for name, secret in zip(self.epochs, wrapped, strict=True)
                ),
            )
        )
        self.transcript = self._header.transcript
        self.salt = receipt_salt(self._secret, transcript=self.transcript)
        self._padding = padding
        self._turn = 0
        self._begun = False
        self.handed_over = False
        """Whether the last frame for the replica whose turn it is has been given out: from then on it may run there."""
        self.committed = ""
        """The request's commitment, once ``request`` has been read."""

    @property
    def epoch(self) -> str:
        """The name of the epoch of the replica whose turn it is.

        Raises:
            ExchangeError: all have refused.
        """
        if self._turn >= len(self.epochs):
            raise ExchangeError("request", expected="a replica that has not refused it", got="none")
        return self.epochs[self._turn]

    def request_bytes(self, request: Request) -> int:
        """Return how long the sealed request is."""
        whole, rest = divmod(len(request.body), PIECE_BYTES)
        contents = [TENANT_BYTES + len(request.head.encoded), *([PIECE_BYTES] * whole), *([rest] if rest else [])]
        return len(self._header.front) + sum(sealed_bytes(size, padding=self._padding) for size in contents)

    def request(self, request: Request) -> Iterator[bytes]:
        """Yield the sealed request, frame by frame, for the replica whose turn it is.

        Raises:
            ExchangeError: it was sealed to this replica before; a key seals once.
        """
        key = exchange_request_key(self._secret, transcript=self.transcript, epoch=self.epoch)
        if self._begun:
            raise ExchangeError("request", expected="to be sealed once for a replica", got="again")
        self._begun = True
        yield self._header.front
        sealer = FrameSealer(key, padding=self._padding)
        head = request.head.encoded
        commitment = Commitment(self.salt, head)
        sealed = sealer.seal(HEAD, request.tenant + head, final=not request.body)
        self.handed_over = not request.body
        yield sealed
        for piece, final in _pieces(request.body):
            commitment.add(piece)
            sealed = sealer.seal(BODY, piece, final=final)
            self.handed_over = final
            yield sealed
        self.committed = commitment.digest

    def refused(self, refusal: Refusal) -> None:
        """Go on to the next replica: the one whose turn it was has refused (a verified refusal).

        Raises:
            LineageError: a refusal of another request, or by another replica.
        """
        if (refusal.request, refusal.epoch) != (self.transcript.hex(), self.epoch):
            raise LineageError("refusal", expected="of this request, by whose turn it is", got="another")
        self._turn += 1
        self._begun = self.handed_over = False

    def answer(self) -> AnswerOpening:
        """Return what opens the answer."""
        return AnswerOpening(secret=self._secret, transcript=self.transcript, epochs=self.epochs, salt=self.salt)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """How an answer ended: its signed receipt (not yet verified), the epoch it came from, its commitment."""

    receipt: Signed
    epoch: str
    commitment: str


class AnswerOpening:
    """Opens one answer as its bytes come in."""

    def __init__(self, *, secret: bytes, transcript: bytes, epochs: Sequence[str], salt: bytes) -> None:
        self._secret = secret
        self._transcript = transcript
        self._epochs = epochs
        self._salt = salt
        self._start = bytearray()
        self._frames: FrameOpener | None = None
        self._epoch = ""
        self._nonce = b""
        self._commitment: Commitment | None = None
        self._answered: Answered | None = None
        self._refused: ConfedError | None = None

    def feed(self, data: bytes) -> list[AnswerHead | bytes]:
        """Return what these further bytes complete: the head first, then pieces of the body.

        Raises:
            TamperedError, EncodingError, SizeError: something other than this request's answer.
        """
        frames = self._frames
        if frames is None:
            self._start += data
            if len(self._start) < _ANSWER_START:
                return []
            frames, data = self._begin()
        found: list[AnswerHead | bytes] = []
        for frame in frames.feed(data):
            if frame.kind == BODY and self._commitment is not None and not frame.final:  # a token, nearly always
                self._commitment.add(frame.content)
                found.append(frame.content)
            else:
                self._read(frame, found)
        return found

    @property
    def window_key(self) -> bytes:
        """The key of what the requester goes on to say, once the answer has begun (``confed.inference.windows``)."""
        return exchange_window_key(self._secret, transcript=self._transcript, epoch=self._epoch, nonce=self._nonce)

    @property
    def commitment(self) -> str:
        """The commitment of the answer so far.

        Raises:
            EncodingError: it has not begun.
        """
        if self._commitment is None:
            raise EncodingError("answer", expected="a head", got="none")
        return self._commitment.digest

    def close(self) -> Answered:
        """Return how the answer ended.

        Raises:
            TruncatedError: it ended before its last frame: it is not the whole.
            ConfedError: the replica ended it, for the reason of its class.
        """
        if self._frames is None:
            raise EncodingError("answer", expected="an answer", got="its end before it began")
        self._frames.close()
        if self._refused is not None:
            raise self._refused
        if self._answered is None:
            raise EncodingError("answer", expected="a receipt", got="none")
        return self._answered

    def _begin(self) -> tuple[FrameOpener, bytes]:
        at = len(ANSWER_MAGIC)
        if not self._start.startswith(ANSWER_MAGIC) or self._start[at] >= len(self._epochs):
            raise EncodingError("answer", expected="an answer of one of the replicas", got="something else")
        self._epoch = self._epochs[self._start[at]]
        self._nonce, rest = bytes(self._start[at + 1 : _ANSWER_START]), bytes(self._start[_ANSWER_START:])
        key = exchange_answer_key(self._secret, transcript=self._transcript, epoch=self._epoch, nonce=self._nonce)
        self._frames = FrameOpener(key, what="answer", largest_bytes=None)
        return self._frames, rest

    def _read(self, frame: Frame, found: list[AnswerHead | bytes]) -> None:
        expected = (HEAD,) if self._commitment is None else (RECEIPT, REFUSED)
        if frame.kind not in expected or frame.final == (frame.kind == HEAD):
            raise EncodingError("answer frame", expected="a head, the body and a receipt at the end", got="another")
        if frame.kind == REFUSED:
            # Raised by ``close``: what came before it is for the reader to see, and that the request was taken.
            self._refused = error_for(frame.content.decode("ascii", "replace"), "answer")
            return
        if self._commitment is None:
            self._commitment = Commitment(self._salt, frame.content)
            found.append(AnswerHead.decode(frame.content))
        else:
            receipt = Signed.from_json(canonical.decode(frame.content))
            self._answered = Answered(receipt=receipt, epoch=self._epoch, commitment=self._commitment.digest)


@dataclass(kw_only=True)
class Answering:
    """Seals the answer of one request: start, head, body pieces, receipt."""

    epoch: str
    index: int
    secret: bytes = field(repr=False)
    transcript: bytes
    salt: bytes = field(repr=False)
    request_commitment: str

    def begin(self, head: AnswerHead, *, padding: PaddingTerms) -> bytes:
        """Return the answer's start and head, sealed.

        Raises:
            ExchangeError: it was begun before.
            SizeError: a head beyond its bound.
        """
        if hasattr(self, "_sealer"):
            raise ExchangeError("answer", expected="to begin once", got="twice")
        encoded = head.encoded
        if len(encoded) > HEAD_LIMIT_BYTES:
            raise SizeError("answer head in bytes", expected=f"at most {HEAD_LIMIT_BYTES}", got=len(encoded))
        nonce = self._nonce = os.urandom(_NONCE_BYTES)
        key = exchange_answer_key(self.secret, transcript=self.transcript, epoch=self.epoch, nonce=nonce)
        self._sealer = FrameSealer(key, padding=padding)
        self._commitment = Commitment(self.salt, encoded)
        return ANSWER_MAGIC + bytes([self.index]) + nonce + self._sealer.seal(HEAD, encoded, final=False)

    def body(self, body: bytes | memoryview) -> Iterable[bytes]:
        """Return a part of the body, sealed frame by frame; of any length."""
        if 0 < len(body) <= PIECE_BYTES:  # a token, nearly always
            self._commitment.add(body)
            return (self._sealer.seal(BODY, body, final=False),)
        return self._bodies(body)

    @property
    def window_key(self) -> bytes:
        """The key of what the requester goes on to say, once the answer has begun (``confed.inference.windows``)."""
        return exchange_window_key(self.secret, transcript=self.transcript, epoch=self.epoch, nonce=self._nonce)

    @property
    def commitment(self) -> str:
        """The commitment of the answer so far."""
        return self._commitment.digest

    def end(self, receipt: Signed) -> bytes:
        """Return the last frame: the receipt."""
        return self._sealer.seal(RECEIPT, canonical.encode(receipt.to_json()), final=True)

    def _bodies(self, body: bytes | memoryview) -> Iterator[bytes]:
        for piece, _ in _pieces(body):
            self._commitment.add(piece)
            yield self._sealer.seal(BODY, piece, final=False)

    def refuse(self, code: str, *, padding: PaddingTerms) -> bytes:
        """Return the last frame of an answer that must not go on: a stable code, for who asked alone."""
        begun = b"" if hasattr(self, "_sealer") else self.begin(AnswerHead(status=503, headers=()), padding=padding)
        return begun + self._sealer.seal(REFUSED, code.encode("ascii"), final=True)


def _pieces(body: bytes | bytearray | memoryview) -> Iterator[tuple[memoryview, bool]]:
    """Yield a body in pieces that fit a frame, each with whether it is the last one."""
    view = memoryview(body)
    for start in range(0, len(view), PIECE_BYTES):
        yield view[start : start + PIECE_BYTES], start + PIECE_BYTES >= len(view)


@functools.lru_cache(maxsize=64)
def _recipient(public: bytes) -> HpkeRecipient:
    """Return an epoch's public key, parsed once for all requests of the hour."""
    return HpkeRecipient(public)
