"""Column types: what Arrow calls them, and what a contract does."""

from __future__ import annotations

import pyarrow as pa

from confed.errors import ColumnError, UnsafeDataError
from confed.preparation.contract import TYPES

_ARROW: dict[str, pa.DataType] = {
    "bool": pa.bool_(),
    "int8": pa.int8(),
    "int16": pa.int16(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "uint8": pa.uint8(),
    "uint16": pa.uint16(),
    "uint32": pa.uint32(),
    "uint64": pa.uint64(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "text": pa.string(),
    "bytes": pa.binary(),
    "date": pa.date32(),
    "datetime": pa.timestamp("us"),
}
_NAMES = {arrow: name for name, arrow in _ARROW.items()}


def arrow_type(name: str) -> pa.DataType:
    """Return the Arrow type of a contract's."""
    return _ARROW[name]


def type_name(kind: pa.DataType) -> str | None:
    """Return what a contract calls an Arrow type; ``None`` for one that no contract can name."""
    if pa.types.is_dictionary(kind):
        return type_name(kind.value_type)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return "text"
    if pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind) or pa.types.is_fixed_size_binary(kind):
        return "bytes"
    if pa.types.is_date64(kind):
        return "date"
    if pa.types.is_timestamp(kind) and kind.tz is None:
        return "datetime"
    return _NAMES.get(kind)


def plain_table(table: pa.Table) -> pa.Table:
    """Return a table whose columns have exactly a contract's types: no dictionaries, no large variants.

    Raises:
        ColumnError: a column of a type that no contract can name; a moment that microseconds cannot hold.
    """
    fields: list[pa.Field] = []
    for field in table.schema:
        name = type_name(field.type)
        if name is None:
            raise ColumnError(f"column {field.name}", expected=f"one of {', '.join(TYPES)}", got=str(field.type)[:80])
        fields.append(pa.field(field.name, _ARROW[name]))
    try:
        return table.cast(pa.schema(fields))
    except pa.ArrowInvalid:
        failed = True
    # Outside of the block above: Arrow's own error quotes values.
    raise ColumnError("columns", expected="values that their types can hold", got="others" if failed else "")


def refuse_objects(schema: pa.Schema, *, what: str) -> None:
    """Refuse columns of objects: types that somebody's code would have to read.

    Raises:
        UnsafeDataError: such a column.
    """
    for field in schema:
        named = field.metadata is not None and b"ARROW:extension:name" in field.metadata
        if named or isinstance(field.type, pa.BaseExtensionType):
            raise UnsafeDataError(f"{what}: column {field.name}", expected="plain values", got="objects")
