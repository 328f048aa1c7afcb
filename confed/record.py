"""Frozen dataclasses to JSON and back: every key known, every key there, every type right.

One pair of functions serves manifests, statements and headers, so that no document is parsed loosely anywhere.
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


def to_json(record: Any) -> Any:
    """Return the JSON value of a record: dataclasses as objects, tuples as lists, bytes as hexadecimal."""
    if dataclasses.is_dataclass(record) and not isinstance(record, type):
        return {field.name: to_json(getattr(record, field.name)) for field in dataclasses.fields(record)}
    if isinstance(record, Mapping):
        return {str(key): to_json(value) for key, value in record.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    if isinstance(record, list | tuple):
        return [to_json(value) for value in record]  # pyright: ignore[reportUnknownVariableType]
    if isinstance(record, bytes):
        return record.hex()
    return record


def from_json(kind: type[T], value: Any, *, at: str = "", error: MakeError = EncodingError) -> T:
    """Return a ``kind`` from its JSON value.

    Guarantees: a key that ``kind`` does not have is refused with the nearest valid one; so are missing keys
    and values of another type; integers are not booleans, and floats may be written as integers.

    Raises:
        error: the class given, with the dotted path of the offending key.
    """
    return _parse(kind, value, at, error)


def _parse(kind: Any, value: Any, at: str, error: MakeError) -> Any:
    if dataclasses.is_dataclass(kind):
        return _parse_dataclass(kind, value, at, error)
    origin = typing.get_origin(kind)
    if origin in (types.UnionType, typing.Union):
        return _parse_union(kind, value, at, error)
    if origin is tuple:
        item = typing.get_args(kind)[0]
        _expect(isinstance(value, list), at, "a list", value, error)
        return tuple(_parse(item, entry, f"{at}[{index}]", error) for index, entry in enumerate(value))
    if origin in (dict, Mapping, typing.get_origin(Mapping[str, Any])):
        _expect(isinstance(value, dict), at, "a table", value, error)
        item = typing.get_args(kind)[1]
        return {key: _parse(item, entry, f"{at}.{key}", error) for key, entry in value.items()}
    return _parse_plain(kind, value, at, error)


def _parse_plain(kind: Any, value: Any, at: str, error: MakeError) -> Any:
    if kind is Any:
        return value
    if kind is bytes:
        _expect(isinstance(value, str), at, "hexadecimal text", value, error)
        try:
            decoded = bytes.fromhex(value)
        except ValueError:
            raise error(at, expected="hexadecimal text", got=repr(value)[:60]) from None
        _expect(decoded.hex() == value, at, "lower-case hexadecimal text", value, error)
        return decoded
    if kind is float:
        _expect(isinstance(value, int | float) and not isinstance(value, bool), at, "a number", value, error)
        return float(value)
    if kind is int:
        _expect(isinstance(value, int) and not isinstance(value, bool), at, "a whole number", value, error)
        return value
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        _expect(isinstance(value, str), at, "text", value, error)
        choices = [str(member) for member in kind]
        _expect(value in choices, at, "one of " + ", ".join(choices), value, error)
        return kind(value)
    names = {str: "text", bool: "true or false", type(None): "nothing"}
    _expect(isinstance(value, kind), at, names.get(kind, kind.__name__), value, error)
    return value


def _parse_union(kind: Any, value: Any, at: str, error: MakeError) -> Any:
    options = typing.get_args(kind)
    if value is None and type(None) in options:
        return None
    options = [option for option in options if option is not type(None)]
    failures: list[tuple[int, ConfedError]] = []
    for option in options:
        if option is bool and not isinstance(value, bool):
            continue
        if option is float and isinstance(value, int) and int in options:
            continue
        try:
            return _parse(option, value, at, error)
        except ConfedError as problem:
            failures.append((_likeness(option, value), problem))
    if not failures:
        raise error(at, expected="another type", got=repr(value)[:60])
    raise max(failures, key=lambda failure: failure[0])[1]


def _likeness(option: Any, value: Any) -> int:
    """How likely an option of a union is what was meant: of several failures, its is the one worth telling."""
    if dataclasses.is_dataclass(option):
        known = _hints(option) if isinstance(option, type) else {}
        return (2 if any(key in known for key in value) else 1) if isinstance(value, dict) else 0
    if isinstance(value, list):
        return int(typing.get_origin(option) is tuple)
    return int(isinstance(option, type))


def _parse_dataclass(kind: Any, value: Any, at: str, error: MakeError) -> Any:
    _expect(isinstance(value, dict), at or kind.__name__, "a table", value, error)
    hints = _hints(kind)
    prefix = f"{at}." if at else ""
    for key in value:
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1, cutoff=0)
            raise error(f"{prefix}{key}", expected=f"a known key (nearest: {near[0]})", got="an unknown key")
    arguments: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        if field.name in value:
            arguments[field.name] = _parse(hints[field.name], value[field.name], f"{prefix}{field.name}", error)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise error(f"{prefix}{field.name}", expected="a value", got="nothing")
    return kind(**arguments)


@cache
def _hints(kind: type) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _expect(holds: Any, at: str, expected: str, got: Any, error: MakeError) -> None:
    if not holds:
        raise error(at, expected=expected, got=repr(got)[:60])
