"""Several requests in one batch that goes on all the time: who comes joins at the next token, who is done leaves.

1. A prompt is read by itself and in pieces, one piece between two steps of the others, so however long it is it holds
   nobody up for longer than that. Prompts that come together are read by turns: a short one does not wait for a long.
2. A step reads one token of every request that runs, and draws the next of each by the request's own options.
3. A request that ended, or that nobody reads or waits for any more, gives its place to one that waits.

Matrix products of several rows may round otherwise than those of one, so numbers can differ in their last bits from
those of a request by itself; which text follows hardly ever, and never by design.

Sources: Yu et al., "Orca: A Distributed Serving System for Transformer-Based Generative Models" (OSDI 2022), section
4.1 (scheduling by iteration); for pieces of prompts see ``decoding.Reading``.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator
from queue import SimpleQueue
from typing import Any

from clients.engines.decoding import Draw, PromptReader, Reading
from clients.engines.slots import Slots
from confed.inference.engine import GenerationOptions, requester_gone


class BatchFailedError(Exception):
    """The model failed at a batch; told to each request that was in it."""


class _Request:
    """One request's place in the batch."""

    def __init__(self, ids: list[int], options: GenerationOptions, most: int) -> None:
        self.ids = list(ids)
        self.salt = options.cache_salt
        self.draw = Draw(options)
        self.left = most
        self.closed = False
        self._left = requester_gone()
        self.reading: Reading | None = None
        """Its prompt, while that is being read."""
        self.tokens: SimpleQueue[int | Exception | None] = SimpleQueue()

    @property
    def gone(self) -> bool:
        """Whether nobody reads its tokens any more, or waits for the first."""
        return self.closed or self._left()

    def give(self, token: int) -> None:
        self.ids.append(token)
        self.left -= 1
        self.tokens.put(token)


class Batched:
    """The batch; its thread runs only while there are requests.

    Args:
        model: whose cache is plain (``decoding.require_plain_cache``).
        reader: reads the prompts.
        ends: tokens that end a request.
        most: requests that run, or whose prompts are read, at a time; more of them wait.
        piece: tokens of a prompt that are read between two steps.
    """

    def __init__(self, model: Any, *, reader: PromptReader, ends: frozenset[int], most: int, piece: int) -> None:
        self._model = model
        self._reader = reader
        self._ends = ends
        self._most = most
        self._piece = piece
        self._slots = Slots(model, most=most)
        self._lock = threading.Lock()
        self._waiting: deque[_Request] = deque()
        self._reading: deque[_Request] = deque()
        self._running: list[_Request] = []
        self._turning = False
        self.largest = 0
        """Requests in the largest step so far."""

    @property
    def held(self) -> int:
        """Requests that run, are read or wait."""
        with self._lock:
            return len(self._running) + len(self._reading) + len(self._waiting)

    def tokens(self, ids: list[int], options: GenerationOptions, *, most: int) -> Generator[int, None, None]:
        """Yield the tokens that follow (see ``decoding.Decoder``).

        Raises:
            BatchFailedError: the model failed.
        """
        request = _Request(ids, options, most)
        self._submit(request)
        try:
            while (found := request.tokens.get()) is not None:
                if isinstance(found, Exception):
                    raise BatchFailedError(type(found).__name__) from found
                yield found
        finally:
            request.closed = True

    def _submit(self, request: _Request) -> None:
        with self._lock:
            self._waiting.append(request)
            if not self._turning:
                self._turning = True
                threading.Thread(target=self._turn, name="batch", daemon=True).start()

    def _turn(self) -> None:
        """Go on until nobody is left."""
        while True:
            self._drop_gone()
            with self._lock:
                if not self._running and not self._reading and not self._waiting:
                    self._turning = False
                    return
                while self._waiting and len(self._running) + len(self._reading) < self._most:
                    self._reading.append(self._waiting.popleft())
            if self._reading:
                self._read(self._reading[0])
            if self._running:
                self._step()

    def _drop_gone(self) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, deque[_Request]()
            for request in waiting:
                if request.gone:
                    request.tokens.put(None)
                else:
                    self._waiting.append(request)
        for request in [request for request in self._reading if request.gone]:
            if request.reading is not None and request.reading.count:
                self._reader.keep(request.ids[: request.reading.count], request.salt, request.reading.cache)
            self._reading.remove(request)
            request.tokens.put(None)
        for row in range(len(self._running) - 1, -1, -1):
            if self._running[row].gone:
                self._leave(row)

    def _read(self, request: _Request) -> None:
        """Read a piece of the prompt whose turn it is, and draw its first token once it has been read (rule 1)."""
        try:
            if request.reading is None:
                request.reading = self._reader.begin(request.ids, request.salt)
            logits, cache = request.reading.read(self._piece), request.reading.cache
            if logits is None:
                self._reading.rotate(-1)
                return
            request.reading = None
            request.give(request.draw.token(logits))
            if self._is_done(request):
                self._reader.keep(request.ids[:-1], request.salt, cache)
                request.tokens.put(None)
            else:
                self._slots.add(cache)
                self._running.append(request)
        except Exception as error:  # noqa: BLE001 (the batch's edge: this request alone has failed, and is told)
            request.tokens.put(error)
        self._reading.popleft()

    def _step(self) -> None:
        """Read one token of each and draw the next (rule 2)."""
        self.largest = max(self.largest, len(self._running))
        try:
            logits = self._slots.step(self._model, [request.ids[-1] for request in self._running])
            likeliest = logits.argmax(-1).tolist()
            for row, request in enumerate(self._running):
                request.give(likeliest[row] if request.draw.likeliest else request.draw.token(logits[row]))
            for row in range(len(self._running) - 1, -1, -1):
                if self._is_done(self._running[row]):
                    self._leave(row)
        except Exception as error:  # noqa: BLE001 (the batch's edge: all that were in it have failed, and are told)
            for request in self._running:
                request.tokens.put(error)
            self._running.clear()
            self._slots = Slots(self._model, most=self._most)

    def _is_done(self, request: _Request) -> bool:
        return request.left == 0 or request.ids[-1] in self._ends

    def _leave(self, row: int) -> None:
        """Give up a request's place (rule 3); the last one takes it."""
        request = self._running[row]
        if request.salt is not None and self._reader.keeps:
            self._reader.keep(request.ids[: self._slots.lengths[row]], request.salt, self._slots.of(row))
        self._slots.remove(row)
        last = self._running.pop()
        if row < len(self._running):
            self._running[row] = last
        request.tokens.put(None)
