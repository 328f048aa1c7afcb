"""Messages whose answers may come in a later round (FedBuff): sites that are busy are not asked again."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from flwr.app import MessageType

from confed.governor.rounds import POLL_S

if TYPE_CHECKING:
    from flwr.app import Message
    from flwr.serverapp import Grid

    from confed.governor.rounds import Rounds


class LateAnswers:
    """Asks idle sites, and ends a round when its buffer is full; who has not answered goes on with what it has.

    A trained answer that this round takes no more (its buffer is full, or its site is in it already) is kept for the
    next; one that comes while a version is evaluated too. An evaluation that comes late is of a version that is over
    and is dropped; nobody who trains is asked for one.
    """

    def __init__(self, grid: Grid, rounds: Rounds) -> None:
        self._grid = grid
        self._rounds = rounds
        self._instance = ""
        self._waiting: dict[str, tuple[int, str]] = {}
        self._held: list[Message] = []

    def exchange(self, messages: list[Message], *, timeout_s: float | None) -> list[Message]:
        """Ask those who are idle, and hand on what answers come until the buffer is full or the time is over."""
        if self._instance != self._rounds.instance:  # what was sealed to another enclave opens nowhere
            self._instance, self._waiting, self._held = self._rounds.instance, {}, []
        kind = _kind(messages[0]) if messages else MessageType.TRAIN
        busy = {node for node, _ in self._waiting.values()}
        asked = [message for message in messages if message.metadata.dst_node_id not in busy]
        places = [(message.metadata.dst_node_id, kind) for message in asked]
        self._waiting |= dict(zip(self._grid.push_messages(asked), places, strict=True))
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        replies = self._handed_on(self._held, kind)
        while self._goes_on(kind) and (deadline is None or time.monotonic() < deadline):
            arrived = list(self._grid.pull_messages(list(self._waiting)))
            for reply in arrived:
                self._waiting.pop(reply.metadata.reply_to_message_id, None)
            replies += self._handed_on(arrived, kind)
            if not arrived and not getattr(self._grid, "waits", False):
                time.sleep(POLL_S)
        return replies

    def _handed_on(self, arrived: list[Message], kind: str) -> list[Message]:
        taken: list[Message] = []
        kept: list[Message] = []
        for reply in arrived:
            if _kind(reply) == kind and self._rounds.takes(reply):
                self._rounds.receive(reply)
                taken.append(reply)
            elif _kind(reply) == MessageType.TRAIN:
                kept.append(reply)
        self._held = kept if arrived is self._held else [*self._held, *kept]
        return taken

    def _goes_on(self, kind: str) -> bool:
        awaited = any(asked == kind for _, asked in self._waiting.values())
        return awaited and not self._rounds.full and self._rounds.lost is None


def _kind(message: Message) -> str:
    """Train or evaluate; Flower lets an app's own name follow."""
    return message.metadata.message_type.split(".", 1)[0]
