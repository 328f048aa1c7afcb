"""Frozen dataclasses to JSON and back: every key known, every key there, every type right.

One pair of functions serves manifests, statements and headers, so that no document is parsed loosely anywhere. What a
type needs is worked out once a type: a round of a thousand clients parses tens of thousands of statements.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Callable, Mapping
from enum import StrEnum
from functools import cache
from typing import Any, TypeVar

from confed.errors import ConfedError, EncodingError

T = TypeVar("T")
MakeError = Callable[..., ConfedError]
_Parse = Callable[[Any], Any]
_SCALARS = frozenset({str, int, float, bool, type(None)})


class _MismatchError(Exception):
    """A value that does not fit, and where: the path grows from the inside out while the exception rises."""

    def __init__(self, expected: str, got: str, *, path: str = "", whole: str = "") -> None:
        super().__init__()
        self.expected, self.got, self.path, self.whole = expected, got, path, whole

    def under(self, place: str) -> _MismatchError:
        self.path = _joined(place, self.path)
        return self


def to_json(record: Any) -> Any:
    """Return the JSON value of a record: dataclasses as objects, tuples as lists, bytes as hexadecimal."""
    kind = type(record)
    if kind in _SCALARS:
        return record
    if kind is bytes:
        return record.hex()
    names = _names(kind)
    if names is not None:
        return {name: to_json(getattr(record, name)) for name in names}
    if isinstance(record, Mapping):
        return {str(key): to_json(value) for key, value in record.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    if isinstance(record, list | tuple):
        return [to_json(value) for value in record]  # pyright: ignore[reportUnknownVariableType]
    return record


def from_json(kind: type[T], value: Any, *, at: str = "", error: MakeError = EncodingError) -> T:
    """Return a ``kind`` from its JSON value.

    Guarantees: a key that ``kind`` does not have is refused with the nearest valid one; so are missing keys
    and values of another type; integers are not booleans, and floats may be written as integers.

    Raises:
        error: the class given, with the dotted path of the offending key.
    """
    try:
        return _parser(kind)(value)
    except _MismatchError as problem:
        path = _joined(at, problem.path) if at else problem.path
        raise error(path or problem.whole, expected=problem.expected, got=problem.got) from None


@cache
def is_unchangeable(kind: Any) -> bool:
    """Whether nothing in a record of this type can change: no table, and nothing of which the type says nothing."""
    if dataclasses.is_dataclass(kind):
        frozen = getattr(kind, "__dataclass_params__").frozen  # noqa: B009 (pyright does not know it)
        return frozen and all(is_unchangeable(hint) for hint in _hints(kind).values())  # pyright: ignore[reportArgumentType]
    if typing.get_origin(kind) in (types.UnionType, typing.Union, tuple):
        return all(is_unchangeable(part) for part in typing.get_args(kind) if part is not Ellipsis)
    return kind in _SCALARS or kind is bytes or (isinstance(kind, type) and issubclass(kind, StrEnum))


@cache
def _names(kind: type) -> tuple[str, ...] | None:
    return tuple(field.name for field in dataclasses.fields(kind)) if dataclasses.is_dataclass(kind) else None


@cache
def _parser(kind: Any) -> _Parse:
    """Return the function that parses values of a type."""
    if dataclasses.is_dataclass(kind):
        return _dataclass_parser(kind)
    origin = typing.get_origin(kind)
    if origin in (types.UnionType, typing.Union):
        return _union_parser(kind)
    if origin is tuple:
        return _list_parser(_parser(typing.get_args(kind)[0]))
    if origin in (dict, Mapping, typing.get_origin(Mapping[str, Any])):
        return _table_parser(_parser(typing.get_args(kind)[1]))
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return _choice_parser(kind)
    known: dict[Any, _Parse] = {Any: lambda value: value, bytes: _bytes, float: _float, int: _int}
    return known[kind] if kind in known else _plain_parser(kind)


def _dataclass_parser(kind: Any) -> _Parse:
    fields: list[tuple[str, bool, _Parse]] = []

    def parse(value: Any) -> Any:
        if not fields:
            fields.extend(_fields(kind))
        if not isinstance(value, dict):
            raise _MismatchError("a table", repr(value)[:60], whole=kind.__name__)
        table: dict[Any, Any] = value  # pyright: ignore[reportUnknownVariableType]
        arguments: dict[str, Any] = {}
        name = ""
        try:
            for name, required, parse_field in fields:
                if name in table:
                    arguments[name] = parse_field(table[name])
                elif required:
                    raise _MismatchError("a value", "nothing")
        except _MismatchError as problem:
            _require_known(kind, table)
            raise problem.under(name) from None
        if len(arguments) != len(table):
            _require_known(kind, table)
        return kind(**arguments)

    return parse


def _fields(kind: Any) -> list[tuple[str, bool, _Parse]]:
    hints = _hints(kind)
    missing = dataclasses.MISSING
    return [
        (field.name, field.default is missing and field.default_factory is missing, _parser(hints[field.name]))
        for field in dataclasses.fields(kind)
    ]


def _require_known(kind: Any, table: Mapping[Any, Any]) -> None:
    hints = _hints(kind)
    for key in table:
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1, cutoff=0)
            raise _MismatchError(f"a known key (nearest: {near[0]})", "an unknown key", path=key)


def _union_parser(kind: Any) -> _Parse:
    optional = type(None) in typing.get_args(kind)
    options = [option for option in typing.get_args(kind) if option is not type(None)]
    parsers = [(option, _parser(option)) for option in options]

    def parse(value: Any) -> Any:
        if value is None and optional:
            return None
        failures: list[tuple[int, Exception]] = []
        for option, parse_option in parsers:
            if option is bool and not isinstance(value, bool):
                continue
            if option is float and isinstance(value, int) and int in options:
                continue
            try:
                return parse_option(value)
            except (ConfedError, _MismatchError) as problem:
                failures.append((_likeness(option, value), problem))
        if not failures:
            raise _MismatchError("another type", repr(value)[:60])
        raise max(failures, key=lambda failure: failure[0])[1]

    return parse


def _likeness(option: Any, value: Any) -> int:
    """How likely an option of a union is what was meant: of several failures, its is the one worth telling."""
    if dataclasses.is_dataclass(option):
        known = _hints(option) if isinstance(option, type) else {}
        return (2 if any(key in known for key in value) else 1) if isinstance(value, dict) else 0
    if isinstance(value, list):
        return int(typing.get_origin(option) is tuple)
    return int(isinstance(option, type))


def _list_parser(parse_item: _Parse) -> _Parse:
    def parse(value: Any) -> Any:
        if not isinstance(value, list):
            raise _MismatchError("a list", repr(value)[:60])
        found: list[Any] = []
        try:
            for entry in value:  # pyright: ignore[reportUnknownVariableType]
                found.append(parse_item(entry))  # noqa: PERF401 (its length is the failing item's place)
        except _MismatchError as problem:
            raise problem.under(f"[{len(found)}]") from None
        return tuple(found)

    return parse


def _table_parser(parse_item: _Parse) -> _Parse:
    def parse(value: Any) -> Any:
        if not isinstance(value, dict):
            raise _MismatchError("a table", repr(value)[:60])
        found: dict[Any, Any] = {}
        for key, entry in value.items():  # pyright: ignore[reportUnknownVariableType]
            try:
                found[key] = parse_item(entry)
            except _MismatchError as problem:
                raise problem.under(f".{key}") from None
        return found

    return parse


def _choice_parser(kind: type[StrEnum]) -> _Parse:
    members = {str(member): member for member in kind}
    choices = "one of " + ", ".join(members)

    def parse(value: Any) -> Any:
        if not isinstance(value, str):
            raise _MismatchError("text", repr(value)[:60])
        if value not in members:
            raise _MismatchError(choices, repr(value)[:60])
        return members[value]

    return parse


def _plain_parser(kind: Any) -> _Parse:
    names: dict[Any, str] = {str: "text", bool: "true or false", type(None): "nothing"}
    expected = names.get(kind, str(kind.__name__))

    def parse(value: Any) -> Any:
        if not isinstance(value, kind):
            raise _MismatchError(expected, repr(value)[:60])
        return value

    return parse


def _bytes(value: Any) -> bytes:
    if not isinstance(value, str):
        raise _MismatchError("hexadecimal text", repr(value)[:60])
    try:
        decoded = bytes.fromhex(value)
    except ValueError:
        raise _MismatchError("hexadecimal text", repr(value)[:60]) from None
    if decoded.hex() != value:
        raise _MismatchError("lower-case hexadecimal text", repr(value)[:60])
    return decoded


def _float(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise _MismatchError("a number", repr(value)[:60])
    return float(value)


def _int(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise _MismatchError("a whole number", repr(value)[:60])
    return value


@cache
def _hints(kind: type) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _joined(place: str, rest: str) -> str:
    return f"{place}.{rest}" if rest and rest[0] not in ".[" else f"{place}{rest}"
