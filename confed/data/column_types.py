"""Column types: what Arrow calls them, and what a contract does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pyarrow as pa

from confed.errors import ColumnError, UnsafeDataError
from confed.preparation.column_type import TOLD, ColumnType, column_type, list_name

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
    kind = column_type(name)
    assert kind is not None  # noqa: S101 (a contract has no others)
    if not kind.is_list:
        return item_type(kind)
    return pa.list_(item_type(kind), -1 if kind.length is None else kind.length)


def item_type(kind: ColumnType) -> pa.DataType:
    """Return the Arrow type of a column's values, or of the items of its lists."""
    return _ARROW[kind.value]


def type_name(kind: pa.DataType) -> str | None:
    """Return what a contract calls an Arrow type; ``None`` for one that no contract can name."""
    if not _is_list(kind):
        return _value_name(kind)
    value = None if pa.types.is_dictionary(kind.value_type) else _value_name(kind.value_type)
    if value is None:
        return None
    return list_name(value, kind.list_size if pa.types.is_fixed_size_list(kind) else None)


def _value_name(kind: pa.DataType) -> str | None:
    if pa.types.is_dictionary(kind):
        return _value_name(kind.value_type)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return "text"
    if pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind) or pa.types.is_fixed_size_binary(kind):
        return "bytes"
    if pa.types.is_date64(kind):
        return "date"
    if pa.types.is_timestamp(kind) and kind.tz is None:
        return "datetime"
    return _NAMES.get(kind)


def fits(kind: pa.DataType, name: str) -> bool:
    """Return whether a column of an Arrow type is of a contract's: lengths of lists are counted apart."""
    known, wanted = column_type(type_name(kind) or ""), column_type(name)
    if known is None or wanted is None or (known.value, known.is_list) != (wanted.value, wanted.is_list):
        return False
    return None in (known.length, wanted.length) or known.length == wanted.length


def column_names(schema: pa.Schema) -> dict[str, str]:
    """Return what a contract calls the type of each column.

    Raises:
        ColumnError: a column of a type that no contract can name.
    """
    names: dict[str, str] = {}
    for field in schema:
        name = type_name(field.type)
        if name is None:
            raise ColumnError(f"column {field.name}", expected=f"one of {TOLD}", got=str(field.type)[:80])
        names[field.name] = name
    return names


def plain_table(table: pa.Table, types: Mapping[str, str]) -> pa.Table:
    """Return a table whose columns have exactly a contract's types: no dictionaries, no large variants.

    Args:
        table: has columns that fit (``fits``), and lists of the right lengths.
        types: contract's types, by column.

    Raises:
        ColumnError: a moment that microseconds cannot hold, or text that is not UTF-8.
    """
    try:
        found = table.cast(pa.schema([(name, arrow_type(types[name])) for name in table.column_names]))
        found.validate(full=True)  # a Parquet file may call any bytes text, and polars would believe it
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        failed = True
    else:
        return found
    # Outside of the block above: Arrow's own error quotes values.
    raise ColumnError("columns", expected="values that their types can hold", got="others" if failed else "")


def refuse_objects(schema: pa.Schema, *, what: str) -> None:
    """Refuse columns of objects: types that somebody's code would have to read.

    Raises:
        UnsafeDataError: such a column.
    """
    for field in schema:
        for part in _parts(field):
            named = part.metadata is not None and b"ARROW:extension:name" in part.metadata
            if named or isinstance(part.type, pa.BaseExtensionType):
                raise UnsafeDataError(f"{what}: column {field.name}", expected="plain values", got="objects")


def _parts(field: pa.Field) -> Iterator[pa.Field]:
    """Yield a field and all that is nested in it."""
    yield field
    for place in range(field.type.num_fields):
        yield from _parts(field.type.field(place))


def _is_list(kind: pa.DataType) -> bool:
    return any(
        of_kind(kind)
        for of_kind in (
            pa.types.is_list,
            pa.types.is_large_list,
            pa.types.is_fixed_size_list,
        )
    )
