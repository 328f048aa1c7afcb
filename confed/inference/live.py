"""Live data: windows over long-lived exchanges, one after the other, each ended before its epoch's key is gone.

1. A window is sent once. Where its answer does not come whole, the error says that it may have run; nothing repeats it.
2. An exchange is ended, and the next one begun, between two windows: when its epoch's hour is over, or the replica's
   evidence has aged. Where the replica ends one first, its receipt says whether the last window was taken; one that was
   not goes over the next exchange.
3. Each exchange that ends leaves a proof: a receipt over all its windows and answers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Self

from confed import canonical
from confed.errors import EncodingError, ExchangeError, SizeError, TruncatedError, UnreachableError
from confed.inference.duplex import BROKEN, Duplex
from confed.inference.exchange import Answered, Sealing
from confed.inference.messages import AnswerHead, Headers, RequestHead
from confed.inference.receipts import Receipt
from confed.inference.requester import Proof, VerifiedReplica
from confed.inference.tensors import Array, read_tensors, require_answer, write_tensors
from confed.inference.windows import ANSWER_HEAD, MARK, STREAM_HEAD, Message, MessageReader, What, WindowSealer
from confed.statement import Signed

_MOST_EXCHANGES = 3
"""How many exchanges in a row may end before they take one window."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowAnswer:
    """A window's answer, whole."""

    head: AnswerHead
    body: bytes = field(repr=False)


class Exchange:
    """One long-lived exchange with one replica. Not for several threads at once.

    Args:
        connection: on which the opening was taken.
        sealing: of the opening, which has been sent.
        replica: that it was sealed to.
        epoch: the name of that replica's key.

    Raises:
        TruncatedError: the answer does not begin.
        RefusedError: it does not begin as this replica's would.
    """

    def __init__(self, connection: Duplex, *, sealing: Sealing, replica: VerifiedReplica, epoch: str) -> None:
        self.replica = replica
        self.epoch = epoch
        self._connection = connection
        self._sealing = sealing
        self._opening = sealing.answer()
        self._reader = MessageReader(largest_bytes=None)
        self._head: AnswerHead | None = None
        self._messages: list[Message] = []
        self._answered: Answered | None = None
        while self._head is None:
            self._read()
        key = self._opening.window_key
        self._sealer = WindowSealer(key, salt=sealing.salt, padding=replica.serving.padding)
        self.proof: Proof | None = None
        """Of all that passed, once the exchange has ended."""

    def ask(self, message: Message) -> Message | None:
        """Send a message and return its answer; ``None``: the replica has ended the exchange, and did not take it.

        Raises:
            UnreachableError: the connection was lost before; the message was not sent.
            TruncatedError: it was lost then; the message may have been taken.
            RefusedError: something else than its answer came.
        """
        if self._has_ended():
            self._settle(self._sealer.committed)
            return None
        sealed = self._sealer.seal(message)
        with suppress(*BROKEN):  # a replica that has ended meanwhile has said so: that is read now
            self._connection.send(sealed)
        while not self._messages and self._answered is None:
            self._read()
        if not self._messages:
            self._settle(self._sealer.committed_before)
            return None
        answer = self._messages.pop(0)
        if answer.what is not message.what or self._messages:
            raise EncodingError("answer", expected="one, of its window", got="another")
        return answer

    def mark(self) -> Receipt | None:
        """Return a receipt over everything so far; ``None``: the replica has ended the exchange.

        Raises:
            RefusedError: see ``ask``; or a receipt for something else.
        """
        answers = self._opening.commitment
        found = self.ask(MARK)
        if found is None:
            return None
        return self._verified(Signed.from_json(canonical.decode(found.body)), self._sealer.committed, answers)

    def end(self) -> None:
        """End the exchange, which leaves its proof.

        Raises:
            UnreachableError, TruncatedError: the connection was lost; there is no receipt.
            RefusedError: it ended otherwise than it must.
        """
        if not self._has_ended():
            with suppress(*BROKEN):
                self._connection.send(self._sealer.end())
                self._connection.end()
            while self._answered is None:
                self._read()
        self._settle(self._sealer.committed)

    def close(self) -> None:
        """Close the connection; the replica stops."""
        self._connection.close()

    def _has_ended(self) -> bool:
        """Whether the replica has ended the exchange while nothing was asked."""
        try:
            while self._answered is None and self._connection.is_readable:
                self._read()
        except TruncatedError as error:
            raise UnreachableError("stream", expected="open", got="lost; nothing was sent") from error
        if self._messages:
            raise EncodingError("answer", expected="none without a window", got="one")
        return self._answered is not None

    def _read(self) -> None:
        """Read a piece of the answer, or its end."""
        try:
            data = self._connection.read()
        except BROKEN as error:
            raise TruncatedError("answer", expected="its last frame", got="the connection's end") from error
        if not data:
            self._reader.close()
            self._answered = self._opening.close()
        for item in self._opening.feed(data) if data else ():
            if isinstance(item, bytes):
                self._messages += self._reader.feed(item)
            elif item != ANSWER_HEAD:
                raise ExchangeError("stream", expected="to be opened", got=f"status {item.status}")
            else:
                self._head = item

    def _settle(self, committed: str) -> None:
        """Check the last receipt: it is for exactly these windows."""
        if self._answered is None or self._head is None or self._messages:
            raise EncodingError("answer", expected="its end", got="more")
        self._verified(self._answered.receipt, committed, self._answered.commitment)
        self.proof = Proof(
            receipt=self._answered.receipt,
            salt=self._sealing.salt,
            request_head=STREAM_HEAD.encoded,
            answer_head=self._head.encoded,
            attestation=self.replica.attestation,
            verified_at=self.replica.verified_at,
        )

    def _verified(self, signed: Signed, request: str, answer: str) -> Receipt:
        return self.replica.receipt(signed, epoch=self.epoch, request=request, answer=answer)


class WindowStream:
    """Windows, each answered before the next; safe for several threads, which wait for each other. Use it as a context.

    Args:
        begin: begins an exchange with a verified replica; raises an UnreachableError where none can be reached.
        is_current: whether the replica's evidence and key are those to use now.
        model: the name of the model that ``predict`` asks.
    """

    def __init__(self, begin: Callable[[], Exchange], *, is_current: Callable[[Exchange], bool], model: str) -> None:
        self._begin = begin
        self._is_current = is_current
        self._model = model
        self._exchange: Exchange | None = None
        self._lock = threading.Lock()
        self.proofs: list[Proof] = []
        """One of each exchange that has ended."""

    def predict(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """Return the model's outputs for one window of tensors (Open Inference Protocol, version 2, as raw bytes).

        Raises:
            AnswerError: the model refused them; the stream goes on.
            RefusedError: see ``ask``.
        """
        body, headers = write_tensors(tensors)
        found = self.ask("POST", f"/v2/models/{self._model}/infer", body=body, headers=headers)
        require_answer(found.head)
        return read_tensors(found.head, found.body)

    def ask(self, method: str, path: str, *, body: bytes = b"", headers: Headers = ()) -> WindowAnswer:
        """Send one window, a whole request, and return its answer.

        Raises:
            SizeError: larger than the manifest permits; the stream goes on.
            UnreachableError: no replica could be reached, or it was lost before: the window was not sent.
            TruncatedError: it was lost then: the window may have run. The next one opens another exchange.
            RefusedError: what came is not its answer.
        """
        head = RequestHead(method=method, path=path, headers=headers)
        found = self._asked(Message(what=What.WINDOW, head=head.encoded, body=body))
        return WindowAnswer(head=AnswerHead.decode(found.head), body=found.body)

    def receipt(self) -> Receipt | None:
        """Return a receipt over all windows and answers of the present exchange; ``None`` where there is none.

        Raises:
            RefusedError: see ``ask``.
        """
        with self._lock:
            if self._exchange is None:
                return None
            with self._held(self._exchange) as exchange:
                found = exchange.mark()
            if found is None:
                self._kept(exchange)
            return found

    def close(self) -> None:
        """End the present exchange; its proof is kept.

        Raises:
            UnreachableError, TruncatedError: it could not be ended as it must.
        """
        with self._lock:
            self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        elif self._exchange is not None:
            self._exchange.close()

    def _asked(self, message: Message) -> Message:
        with self._lock:
            for _ in range(_MOST_EXCHANGES):
                exchange = self._current()
                largest = exchange.replica.serving.largest_request_bytes
                if len(message.body) > largest:
                    raise SizeError("window size in bytes", expected=f"at most {largest}", got=len(message.body))
                with self._held(exchange):
                    found = exchange.ask(message)
                if found is not None:
                    return found
                self._kept(exchange)
        raise UnreachableError("stream", expected="a replica that takes windows", got="one that ends at once")

    def _current(self) -> Exchange:
        if self._exchange is not None and not self._is_current(self._exchange):
            self._end()
        if self._exchange is None:
            self._exchange = self._begin()
        return self._exchange

    def _end(self) -> None:
        if self._exchange is not None:
            with self._held(self._exchange) as exchange:
                exchange.end()
            self._kept(exchange)

    def _kept(self, exchange: Exchange) -> None:
        """Keep the proof of an exchange that has ended."""
        self._exchange = None
        exchange.close()
        if exchange.proof is not None:
            self.proofs.append(exchange.proof)

    @contextmanager
    def _held(self, exchange: Exchange) -> Generator[Exchange]:
        """Let go of an exchange that fails."""
        try:
            yield exchange
        except BaseException:
            self._exchange = None
            exchange.close()
            raise
