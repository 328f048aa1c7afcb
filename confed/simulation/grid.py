"""An in-process Flower Grid over a pool of client TEEs, for the ``local`` engine.

Each worker is one simulated TEE that acts for a fixed share of the sites (partition modulo workers), so its brokers
are called in batches and the base version is opened once a worker, however many clients it hosts.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Protocol

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from confed.errors import DeploymentError
from confed.flower.messages import set_message_id

_STOP_S = 5.0


class Handler(Protocol):
    """Who answers the messages of its partitions, one after another (``confed.simulation.workers.Worker``)."""

    def handle_all(self, messages: Sequence[tuple[int, Message]]) -> Iterator[Message]:
        """Answer each message in turn; an error is an answer too."""
        ...


class LocalGrid(Grid):
    """A Grid whose nodes are the partitions 0 … n-1 (node id = partition + 1), spread over ``workers``."""

    def __init__(self, workers: Sequence[Handler], *, partitions: int) -> None:
        self._workers = workers
        self._partitions = partitions
        self._replies: dict[str, Message] = {}
        self._arrived = threading.Condition()
        self._counter = itertools.count(1)
        self._queues: list[queue.SimpleQueue[Message | None]] = [queue.SimpleQueue() for _ in workers]
        self._threads = [
            threading.Thread(target=self._serve, args=(worker, inbox), daemon=True)
            for worker, inbox in zip(workers, self._queues, strict=True)
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End the threads; messages that are under way are finished first."""
        for inbox in self._queues:
            inbox.put(None)
        for thread in self._threads:
            thread.join(_STOP_S)

    def set_run(self, run: Any) -> None:
        """Do nothing: there is one run."""

    @property
    def run(self) -> Any:
        """There is no Flower run record here."""
        raise DeploymentError("grid.run", expected="a Flower deployment", got="the local engine")

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Create a message to one node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes."""
        return range(1, self._partitions + 1)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages and return their ids."""
        identifiers: list[str] = []
        for message in messages:
            identifier = f"local-{next(self._counter)}"
            set_message_id(message, identifier)
            self._queues[(message.metadata.dst_node_id - 1) % len(self._workers)].put(message)
            identifiers.append(identifier)
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that have arrived, waiting up to a second for the first."""
        # A set is taken as it is: of thousands who wait, each look would copy thousands of names.
        wanted = message_ids if isinstance(message_ids, AbstractSet) else set(message_ids)
        with self._arrived:
            self._arrived.wait_for(lambda: any(identifier in wanted for identifier in self._replies), timeout=1.0)
            found = [identifier for identifier in self._replies if identifier in wanted]
            return [self._replies.pop(identifier) for identifier in found]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages and collect the replies until all are there or the time is over."""
        waiting = set(self.push_messages(messages))
        deadline = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while waiting and (deadline is None or time.monotonic() < deadline):
            for reply in self.pull_messages(waiting):
                waiting.discard(reply.metadata.reply_to_message_id)
                replies.append(reply)
        return replies

    def _serve(self, worker: Handler, inbox: queue.SimpleQueue[Message | None]) -> None:
        message = inbox.get()
        while message is not None:
            # All that waits goes as one batch.
            batch = [message]
            while not inbox.empty() and (message := inbox.get()) is not None:
                batch.append(message)
            replies = worker.handle_all([(asked.metadata.dst_node_id - 1, asked) for asked in batch])
            for asked, reply in zip(batch, replies, strict=True):
                with self._arrived:
                    self._replies[asked.metadata.message_id] = reply
                    self._arrived.notify_all()
            if message is not None:
                message = inbox.get()
