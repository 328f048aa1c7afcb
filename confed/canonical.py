"""Canonical JSON (RFC 8785) and SHA-256 digests: the one form in which confed signs and hashes documents."""

from __future__ import annotations

import hashlib
import json
from enum import StrEnum
from typing import Any

import rfc8785

from confed.errors import EncodingError, SizeError

LIMIT_BYTES = 16 * 1024 * 1024
"""Largest document that is parsed unless a caller sets a smaller bound."""


_MAX_INTEGER = 2**53 - 1
_LEAST_FLOAT, _MOST_FLOAT = 1e-4, 1e16
_ENCODER = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"), check_circular=False)
_DECODER = json.JSONDecoder()


def encode(value: Any) -> bytes:
    """Return ``value`` as canonical JSON.

    Raises:
        EncodingError: a value that JSON, or RFC 8785's number range, cannot hold.
    Source: RFC 8785.
    """
    plain = _encoded_plain(value)
    if plain is None:
        plain = _encoded_plain(_with_whole(value))
    if plain is not None:
        return plain
    try:
        return rfc8785.dumps(value)
    except (rfc8785.CanonicalizationError, UnicodeEncodeError, RecursionError) as error:
        raise EncodingError("canonical JSON", expected="a JSON value", got=type(value).__name__) from error


def decode(data: bytes, *, limit_bytes: int = LIMIT_BYTES) -> Any:
    """Return the value of canonical JSON, refusing any other spelling of it.

    Raises:
        SizeError: more than ``limit_bytes``.
        EncodingError: not JSON, or not the canonical form.
    """
    if len(data) > limit_bytes:
        raise SizeError("document size in bytes", expected=f"at most {limit_bytes}", got=len(data))
    try:
        # Without a look for white space around it, and for another encoding: neither is canonical.
        value, _ = _DECODER.raw_decode(str(data, "utf-8"))
        if _encoded_plain(value) == data:
            return value
        value = json.loads(data, parse_int=_integer)
    except (ValueError, RecursionError) as error:
        raise EncodingError("document", expected="JSON", got="something else") from error
    if encode(value) != data:
        raise EncodingError("document", expected="the canonical form (RFC 8785)", got="another spelling")
    return value


def digest(data: bytes | bytearray | memoryview) -> str:
    """Return the SHA-256 of ``data`` as 64 lower-case hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def _encoded_plain(value: Any) -> bytes | None:
    """Return the canonical form of a value for which the standard library's encoder writes it, else ``None``.

    That is text, numbers that both write alike, lists, and objects with ASCII keys (whose code points sort as UTF-16
    does): nearly all statements, which are encoded and compared several times each.
    """
    try:
        return _ENCODER.encode(value).encode() if _is_plain(value) else None
    except (UnicodeEncodeError, RecursionError):
        return None


def _is_plain(value: Any) -> bool:
    kind = type(value)
    if kind is str or value is None or kind is bool:
        return True
    if kind is int:
        return -_MAX_INTEGER <= value <= _MAX_INTEGER
    if kind is dict:
        for key, entry in value.items():
            # Most of what is signed is text: a call for each would take as long as the rest.
            if type(key) is not str or not key.isascii() or (type(entry) is not str and not _is_plain(entry)):
                return False
        return True
    if kind is list:
        return all(_is_plain(entry) for entry in value)
    # Between these floats both write the fewest digits without an exponent; RFC 8785 whole numbers without a point.
    return isinstance(value, StrEnum) or (
        kind is float and _LEAST_FLOAT <= abs(value) < _MOST_FLOAT and not value.is_integer()
    )


def _with_whole(value: Any) -> Any:
    """Return a value with every float that is a whole number as such."""
    kind = type(value)
    if kind is float and value.is_integer() and abs(value) <= _MAX_INTEGER:
        return int(value)
    if kind is dict:
        return {key: _with_whole(entry) for key, entry in value.items()}
    if kind is list:
        return [_with_whole(entry) for entry in value]
    return value


def _integer(text: str) -> int | float:
    # RFC 8785 writes a whole number below 1e21 without exponent; beyond 2^53 it can only have been a float.
    value = int(text)
    return value if -_MAX_INTEGER <= value <= _MAX_INTEGER else float(text)
