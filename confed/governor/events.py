"""What happens in a run, as lines of JSON: the display, the report and the metrics are all made from them.

The log is the governor's, so it can hold nothing that the governor may not see: each event has its fields, each field
its type, and anything else is refused when it is written. Metrics are fields of cohort events alone.
"""

from __future__ import annotations

import json
import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

from confed.errors import EncodingError, MissingFileError, SizeError

_LINE_BYTES = 256 * 1024
_TEXT_CHARACTERS = 256
_REASON_CHARACTERS = 1000
_ENTRIES = 100_000
_BLOCK_BYTES = 64 * 1024


class EventName(StrEnum):
    """What can happen in a run."""

    RUN_STARTED = "run-started"
    ATTESTED = "attested"
    ROUND_STARTED = "round-started"
    CLIENT_DONE = "client-done"
    CLIENT_FAILED = "client-failed"
    ROUND_ABANDONED = "round-abandoned"
    ROUND_COMBINED = "round-combined"
    EVALUATED = "evaluated"
    VERSION_COMMITTED = "version-committed"
    RUN_FINISHED = "run-finished"
    RUN_FAILED = "run-failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that happened, at a time in Unix milliseconds."""

    event: EventName
    time: int
    fields: Mapping[str, Any]


def _text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= _TEXT_CHARACTERS and value.isprintable()


def _reason(value: object) -> bool:
    return isinstance(value, str)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def _texts(value: object) -> bool:
    return isinstance(value, list | tuple) and len(value) <= _ENTRIES and all(_text(item) for item in value)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _map_of(holds: Callable[[object], bool]) -> Callable[[object], bool]:
    def check(value: object) -> bool:
        if not isinstance(value, Mapping) or len(value) > _ENTRIES:  # pyright: ignore[reportUnknownArgumentType]
            return False
        return all(_text(key) and holds(item) for key, item in value.items())  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]

    return check


_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)


def _digest(value: object) -> bool:
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def _code(value: object) -> bool:
    # As wide as what the strategy lets through from Flower's error texts.
    return isinstance(value, str) and 0 < len(value) <= 64 and value.replace("-", "").isalnum()


_TYPES: Mapping[str, tuple[str, Callable[[object], bool]]] = {
    # Whole numbers.
    "attempt": ("a whole number", _whole),
    "cohort": ("a whole number", _whole),
    "issued_at": ("a whole number", _whole),
    "round": ("a whole number", _whole),
    "rounds": ("a whole number", _whole),
    "sites": ("a whole number", _whole),
    "size_bytes": ("a whole number", _whole),
    "version": ("a whole number", _whole),
    # Digests and codes.
    "aggregator": ("a digest", _digest),
    "base": ("a digest", _digest),
    "configuration": ("a digest", _digest),
    "digest": ("a digest", _digest),
    "evidence": ("a digest", _digest),
    "instance": ("a digest", _digest),
    "manifest": ("a digest", _digest),
    "measurement": ("a digest", _digest),
    "record": ("a digest", _digest),
    "code": ("an error's code", _code),
    # Names.
    "reason": ("an error's text", _reason),
    "engine": ("short text", _text),
    "name": ("short text", _text),
    "profile": ("short text", _text),
    "purpose": ("short text", _text),
    "role": ("short text", _text),
    "run": ("short text", _text),
    "service": ("short text", _text),
    "site": ("short text", _text),
    "strategy": ("short text", _text),
    "layers": ("a list of short texts", _texts),
    "names": ("a list of short texts", _texts),
    # Tables.
    "excluded": ("codes by site", _map_of(_code)),
    "metrics": ("finite numbers by name", _map_of(_finite)),
    "epsilon": ("a finite number", _finite),
    "seconds": ("finite numbers by stage", _map_of(_finite)),
}

_ROUND = frozenset({"run", "round", "attempt", "purpose"})
_COHORT = _ROUND | {"version", "digest", "cohort", "names", "excluded", "metrics", "seconds", "record", "epsilon"}

FIELDS: Mapping[EventName, frozenset[str]] = {
    EventName.RUN_STARTED: frozenset(
        {"run", "name", "engine", "manifest", "strategy", "rounds", "sites", "names", "version", "digest"}
    ),
    EventName.ATTESTED: _ROUND
    | {"role", "site", "names", "instance", "profile", "measurement", "configuration", "evidence", "layers"}
    | {"issued_at", "seconds"},
    EventName.ROUND_STARTED: _ROUND | {"version", "base", "cohort", "names", "aggregator", "instance"},
    EventName.CLIENT_DONE: _ROUND | {"site", "digest", "size_bytes", "seconds"},
    EventName.CLIENT_FAILED: _ROUND | {"site", "code"},
    EventName.ROUND_ABANDONED: _ROUND | {"code"},
    EventName.ROUND_COMBINED: _COHORT,
    EventName.EVALUATED: _COHORT,
    EventName.VERSION_COMMITTED: _ROUND | {"version", "digest", "base", "record", "cohort", "size_bytes"},
    EventName.RUN_FINISHED: frozenset(
        {"run", "engine", "rounds", "version", "digest", "manifest", "metrics", "reason", "seconds"}
    ),
    EventName.RUN_FAILED: _ROUND | {"code", "reason", "service", "site", "seconds"},
}
"""The fields that each event may have. Only cohorts and the run as a whole have metrics; only single clients a site."""


class EventLog:
    """The log of one run, appended to by one process; safe between its threads.

    Guarantees: every line is written whole by one call, so a reader sees it at once; a line that a crash cut is
    removed when the log is opened again; a field that an event does not have is never written.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._clock, self._lock = clock, threading.Lock()
        try:
            self._file = path.open("a+b", buffering=0)
        except OSError as error:
            raise MissingFileError("event log", expected="a folder to write in", got=path) from error
        self._file.truncate(_end_of_last_line(self._file.fileno()))

    def write(self, event: str, **fields: object) -> None:
        """Append one event.

        Raises:
            EncodingError: an event that is not known, or a field that it does not have or of another type.
            SizeError: a line that would be too long.
        """
        name = _checked_name(event)
        _check_fields(name, fields)
        line = json.dumps(
            {"time": int(self._clock() * 1000), "event": str(name), **{key: _plain(fields[key]) for key in fields}},
            allow_nan=False,
        ).encode()
        if len(line) > _LINE_BYTES:
            raise SizeError(f"{name} event in bytes", expected=f"at most {_LINE_BYTES}", got=len(line))
        with self._lock:
            self._file.write(line + b"\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class EventReader:
    """Follows a log that is being written; a line that is not whole yet comes with a later ``poll``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._line = 0

    def poll(self) -> list[Event]:
        """Return the events since the last call; none while the log does not exist.

        Raises:
            EncodingError: a whole line that is not an event, or a log that lost lines it had.
        """
        try:
            file = self._path.open("rb")
        except FileNotFoundError:
            return []
        with file:
            size = os.fstat(file.fileno()).st_size
            if size < self._offset:
                raise EncodingError("event log in bytes", expected=f"at least {self._offset}", got=size)
            file.seek(self._offset)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        events: list[Event] = []
        for line in whole.splitlines():
            events.append(_parse(line, at=f"event log line {self._line + len(events) + 1}"))
        self._offset += len(whole)
        self._line += len(events)
        return events


def read_events(path: Path) -> Iterator[Event]:
    """Yield the events of a log; a half-written last line is left out.

    Raises:
        MissingFileError: no such log.
        EncodingError: a whole line that is not an event.
    """
    if not path.is_file():
        raise MissingFileError("event log", expected="a file", got=path)
    yield from EventReader(path).poll()


def _checked_name(event: str) -> EventName:
    try:
        return EventName(event)
    except ValueError:
        raise EncodingError("event", expected="one of " + ", ".join(EventName), got=repr(event)[:60]) from None


def _check_fields(name: EventName, fields: Mapping[str, object]) -> None:
    for key, value in fields.items():
        if key not in FIELDS[name]:
            raise EncodingError(f"{name} field", expected="one of " + ", ".join(sorted(FIELDS[name])), got=key[:60])
        expected, holds = _TYPES[key]
        if not holds(value):
            # Never the value itself: it may be what must not be here.
            raise EncodingError(f"{name} field {key}", expected=expected, got=type(value).__name__)


def _plain(value: object) -> object:
    if isinstance(value, str) and len(value) > _REASON_CHARACTERS:
        return value[:_REASON_CHARACTERS]  # Only a reason can be so long, and none may hide the failure itself.
    if isinstance(value, Mapping):
        return {str(key): item for key, item in value.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    return list(value) if isinstance(value, tuple) else value  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]


def _parse(line: bytes, *, at: str) -> Event:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise EncodingError(at, expected="a JSON object", got="something else") from error
    if not isinstance(value, dict) or not isinstance(value.get("event"), str) or not _whole(value.get("time")):  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
        raise EncodingError(at, expected="an event with its time", got="something else")
    fields: dict[str, Any] = dict(value)  # pyright: ignore[reportUnknownArgumentType]
    name = _checked_name(fields.pop("event"))
    moment: int = fields.pop("time")
    _check_fields(name, fields)
    return Event(event=name, time=moment, fields=fields)


def _end_of_last_line(descriptor: int) -> int:
    end = os.fstat(descriptor).st_size
    while end:
        start = max(0, end - _BLOCK_BYTES)
        found = os.pread(descriptor, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0
