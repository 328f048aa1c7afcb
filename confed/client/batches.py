"""Messages for several sites of one TEE: sent to it as one frame, answered one by one, their results sent together."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from flwr.app import Context, Error, Message, RecordDict

from confed.client.mod import RECORD
from confed.errors import ConfedError, EncodingError
from confed.flower.messages import decode_message, encode_message

if TYPE_CHECKING:
    from confed.client.session import ClientSession

_PARTITION_BYTES, _LENGTH_BYTES = 4, 8
_log = logging.getLogger(__name__)


def encode_batch(messages: Sequence[tuple[int, Message]]) -> bytes:
    """Return messages, each for a partition, as one frame."""
    parts: list[bytes] = []
    for partition, message in messages:
        data = encode_message(message)
        parts += [partition.to_bytes(_PARTITION_BYTES, "big"), len(data).to_bytes(_LENGTH_BYTES, "big"), data]
    return b"".join(parts)


def decode_batch(frame: bytes) -> Iterator[tuple[int, Message]]:
    """Yield the messages of a frame that ``encode_batch`` made.

    Raises:
        EncodingError: bytes that are not whole messages.
    """
    at = 0
    while at < len(frame):
        start = at + _PARTITION_BYTES + _LENGTH_BYTES
        end = start + int.from_bytes(frame[at + _PARTITION_BYTES : start], "big")
        if end > len(frame):
            raise EncodingError("batch of messages", expected="whole messages", got="a part of one")
        yield int.from_bytes(frame[at : at + _PARTITION_BYTES], "big"), decode_message(frame[start:end])
        at = end


def answers(
    app: Callable[[Message, Context], Message], session: ClientSession, messages: Iterable[tuple[int, Message]]
) -> Iterator[Message]:
    """Yield the app's answer to each message, in their order; never before its result has been sent."""
    waiting: list[tuple[Message, Message]] = []
    for partition, message in messages:
        context = Context(
            run_id=message.metadata.run_id,
            node_id=message.metadata.dst_node_id,
            node_config={"partition-id": partition, "num-partitions": len(session.manifest.sites)},
            state=RecordDict(),
            run_config={},
        )
        waiting.append((message, app(message, context)))
        if session.outbox is None or session.outbox.full:
            yield from _sent(session, waiting)
            waiting = []
    yield from _sent(session, waiting)


def _sent(session: ClientSession, waiting: Sequence[tuple[Message, Message]]) -> Iterator[Message]:
    """Send what is in the outbox and say in each reply where its result went; without it the reply is a failure."""
    try:
        bundles = session.outbox.send() if session.outbox is not None else {}
    except ConfedError as error:
        _log.warning("refused (%s): %s", error.code, error)
        for message, _ in waiting:
            yield Message(Error(code=0, reason=error.code), reply_to=message)
        return
    for _, reply in waiting:
        told = None if reply.has_error() else reply.content.config_records.get(RECORD)
        digest = "" if told is None else str(told.get("digest", ""))
        if told is not None and digest in bundles:
            told["bundle"] = bundles[digest]
        yield reply
