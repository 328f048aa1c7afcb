"""A Flower Grid that sends nothing: for the places where a strategy runs but no message may leave."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid

from confed.errors import ConfedError


class NoGrid(Grid):
    """Refuses every use with the error that it was given a function for."""

    def __init__(self, refusal: Callable[[], ConfedError]) -> None:
        self._refusal = refusal

    def set_run(self, run: Any) -> None:
        """Refuse."""
        del run
        raise self._refusal()

    @property
    def run(self) -> Any:
        """Refuse."""
        raise self._refusal()

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """Refuse."""
        del args, kwargs
        raise self._refusal()

    def get_node_ids(self) -> Iterable[int]:
        """Refuse."""
        raise self._refusal()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Refuse."""
        del messages
        raise self._refusal()

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Refuse."""
        del message_ids
        raise self._refusal()

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Refuse."""
        del messages, timeout
        raise self._refusal()
