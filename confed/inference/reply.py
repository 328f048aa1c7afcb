"""An answer as its requester reads it: opened as it comes, and checked before its reader is told that it ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Self

import httpx

from confed.errors import EncodingError, TruncatedError
from confed.inference.exchange import Sealing
from confed.inference.messages import AnswerHead, Request
from confed.inference.receipts import Receipt
from confed.inference.requester import Proof, VerifiedReplica


class Reply:
    """An answer as it comes: its head, its body in pieces, and at the end its receipt.

    Reading it to the end checks that it ended; whoever stops before that should ``close`` it.

    Args:
        response: of HTTP.
        request: that is answered.
        sealing: of the request.
        replica: that it was sealed to.
        lost: is told where the answer breaks off: the replica may be gone.
    """

    def __init__(
        self,
        response: httpx.Response,
        *,
        request: Request,
        sealing: Sealing,
        replica: VerifiedReplica,
        lost: Callable[[], None],
    ) -> None:
        self._lost = lost
        self._response = response
        self._request = request
        self._sealing = sealing
        self._replica = replica
        self._items = self._opened()
        head = next(self._items)
        if not isinstance(head, AnswerHead):
            raise EncodingError("answer", expected="a head", got="another frame")
        self.head = head
        self.receipt: Receipt | None = None
        """Verified, once the body has been read to its end."""
        self.proof: Proof | None = None
        """What it takes to check the receipt later and elsewhere."""

    def __iter__(self) -> Iterator[bytes]:
        """Yield the body in pieces.

        Raises:
            TruncatedError: the answer ended before its last frame.
            TamperedError, EncodingError, SignatureError, LineageError: it is not this request's answer.
        """
        for item in self._items:
            if isinstance(item, bytes):
                yield item

    def read(self) -> bytes:
        """Return the rest of the body.

        Raises:
            RefusedError: see ``__iter__``.
        """
        return b"".join(self)

    def close(self) -> None:
        """Read no further; the replica stops answering."""
        self._response.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _opened(self) -> Iterator[AnswerHead | bytes]:
        opening = self._sealing.answer()
        try:
            for data in self._response.iter_raw():
                yield from opening.feed(data)
            answered = opening.close()
        except httpx.HTTPError as error:
            self._lost()
            raise TruncatedError("answer", expected="its last frame", got="the connection's end") from error
        except TruncatedError:
            self._lost()
            raise
        finally:
            self._response.close()
        self.receipt = self._replica.receipt(
            answered.receipt,
            epoch=answered.epoch,
            request=self._sealing.committed,
            answer=answered.commitment,
        )
        self.proof = Proof(
            receipt=answered.receipt,
            salt=self._sealing.salt,
            request_head=self._request.head.encoded,
            answer_head=self.head.encoded,
            attestation=self._replica.attestation,
            verified_at=self._replica.verified_at,
        )
