"""The JSON header of a safetensors file: its exact bytes both ways, bounded, every key known and there once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from confed.errors import EncodingError, SizeError

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 16 * 1024 * 1024
_METADATA = "__metadata__"
_ORDER = "order"
# Libraries that load a model into PyTorch refuse a file that does not say so.
_FORMAT = {"format": "pt"}
# Offsets are unsigned 64-bit in the format; 2^53 is the bound of JSON's exact integers and far above any model.
_MAX_INTEGER = 2**53


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A tensor as it stands in the header; ``start`` and ``end`` count from the beginning of the data."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def header_bytes(start: bytes | bytearray | memoryview) -> int:
    """Return the length of the header with its own length field, from a file's first 8 bytes.

    Raises:
        EncodingError: fewer than 8 bytes.
        SizeError: more than 16 MiB.
    """
    if len(start) < LENGTH_BYTES:
        raise EncodingError("safetensors file", expected=f"at least {LENGTH_BYTES} bytes", got=len(start))
    length = int.from_bytes(start[:LENGTH_BYTES], "little")
    if length > MAX_HEADER_BYTES:
        raise SizeError("safetensors header in bytes", expected=f"at most {MAX_HEADER_BYTES}", got=length)
    return LENGTH_BYTES + length


def encode_header(entries: Mapping[str, Entry], *, order: Sequence[str], alignment: int) -> bytes:
    """Return the header's bytes with their length, padded with spaces to a multiple of ``alignment``.

    Raises:
        EncodingError: a name that is the metadata's, or that UTF-8 cannot hold.
        SizeError: more than 16 MiB.
    """
    if _METADATA in entries:
        raise EncodingError("tensor name", expected=f"anything but {_METADATA}", got=_METADATA)
    value: dict[str, Any] = {_METADATA: {**_FORMAT, _ORDER: json.dumps(list(order), ensure_ascii=False)}}
    for name, entry in entries.items():
        value[name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [entry.start, entry.end]}
    try:
        encoded = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError as error:
        raise EncodingError("tensor name", expected="Unicode text", got="a lone surrogate") from error
    encoded += b" " * (-(LENGTH_BYTES + len(encoded)) % alignment)
    if len(encoded) > MAX_HEADER_BYTES:
        raise SizeError("safetensors header in bytes", expected=f"at most {MAX_HEADER_BYTES}", got=len(encoded))
    return len(encoded).to_bytes(LENGTH_BYTES, "little") + encoded


def parse_header(encoded: bytes) -> tuple[dict[str, Entry], list[str] | None]:
    """Return the tensors of a header, and their own order where the metadata tells it.

    Raises:
        EncodingError: not JSON, a key twice, unknown or missing, or a value of the wrong type.
    """
    if not encoded.startswith(b"{"):
        raise EncodingError("safetensors header", expected="a JSON object", got="something else")
    try:
        value = json.loads(encoded.decode(), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise EncodingError("safetensors header", expected="JSON", got="something else") from error
    metadata = value.pop(_METADATA, {})
    entries = {name: _entry(name, item) for name, item in value.items()}
    return entries, _order(metadata, entries)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise EncodingError("safetensors header", expected="every key once", got="one key twice")
    return value


def _entry(name: str, value: Any) -> Entry:
    if not isinstance(value, dict) or sorted(value) != ["data_offsets", "dtype", "shape"]:  # pyright: ignore[reportUnknownArgumentType]
        raise EncodingError(f"tensor {name[:60]}", expected="dtype, shape, data_offsets", got="other keys")
    item: dict[str, Any] = value  # pyright: ignore[reportUnknownVariableType]
    shape, offsets = _integers(name, item["shape"]), _integers(name, item["data_offsets"])
    if not isinstance(item["dtype"], str):
        raise EncodingError(f"type of tensor {name[:60]}", expected="text", got="something else")
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise EncodingError(f"data_offsets of tensor {name[:60]}", expected="start and end", got=str(offsets)[:60])
    return Entry(dtype=item["dtype"], shape=shape, start=offsets[0], end=offsets[1])


def _integers(name: str, value: Any) -> tuple[int, ...]:
    whole = isinstance(value, list) and all(
        type(item) is int and 0 <= item <= _MAX_INTEGER  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
        for item in value  # pyright: ignore[reportUnknownVariableType]
    )
    if not whole:
        raise EncodingError(f"tensor {name[:60]}", expected="whole numbers, 0 or more", got=repr(value)[:60])
    return tuple(value)


def _order(metadata: Any, entries: Mapping[str, Entry]) -> list[str] | None:
    texts = isinstance(metadata, dict) and all(isinstance(text, str) for text in metadata.values())  # pyright: ignore[reportUnknownVariableType]
    if not texts:
        raise EncodingError(_METADATA, expected="texts by name", got=repr(metadata)[:60])
    if _ORDER not in metadata:
        return None
    try:
        order = json.loads(metadata[_ORDER])  # pyright: ignore[reportUnknownArgumentType]
    except (ValueError, RecursionError) as error:
        raise EncodingError(f"{_METADATA}.order", expected="a JSON list", got="something else") from error
    named = isinstance(order, list) and all(isinstance(name, str) for name in order)  # pyright: ignore[reportUnknownVariableType]
    if not named or len(order) != len(entries) or set(order) != set(entries):
        raise EncodingError(f"{_METADATA}.order", expected="every tensor's name once", got="something else")
    return order
