"""Structures as columns of their own: a field of one is a column named by its path, ``position.lat``.

Parquet keeps each field in chunks of its own, so a path is pruned like any column.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from confed.data.column_types import item_type
from confed.preparation.column_type import column_type


def flattened(table: pa.Table) -> pa.Table:
    """Return a table whose structures are columns by path; what is missing of a whole structure is missing in each."""
    while any(pa.types.is_struct(field.type) for field in table.schema):
        table = table.flatten()
    return table


def flat_schema(schema: pa.Schema) -> pa.Schema:
    """Return the schema of ``flattened``."""
    return flattened(schema.empty_table()).schema


def chosen(table: pa.Table, columns: Sequence[str]) -> pa.Table:
    """Return these columns of a table, in this order, by paths; each as often as it is there."""
    flat = flattened(table)
    places = [place for name in dict.fromkeys(columns) for place in flat.schema.get_all_field_indices(name)]
    return flat.select(places)


def json_schema(types: Mapping[str, str]) -> pa.Schema:
    """Return what JSON is read by, given contract's types by path: a path is a key with dots, or objects in objects."""
    fields = [(name, _json_type(kind)) for name, kind in types.items()]
    paths = {name: kind for name, kind in types.items() if "." in name}
    nested = _objects({tuple(name.split(".")): kind for name, kind in paths.items()})
    return pa.schema([*fields, *((name, kind) for name, kind in nested.items() if name not in types)])


def without_unused(table: pa.Table, names: Iterable[str]) -> pa.Table:
    """Return what was read by ``json_schema`` without the spelling of each path that the file does not use."""
    for name in names:
        root = name.split(".")[0]
        if name == root or table.schema.get_field_index(root) < 0 or table.schema.get_field_index(name) < 0:
            continue
        if not pa.types.is_struct(table.schema.field(root).type):
            continue
        unused = root if table[root].null_count == table.num_rows > table[name].null_count else name
        if table[unused].null_count == table.num_rows:
            table = table.drop_columns([unused])
    return table


def _objects(paths: Mapping[tuple[str, ...], str]) -> dict[str, pa.DataType]:
    """Return the types of the objects that paths go through; a path that another one ends in is left out."""
    inner: dict[str, dict[tuple[str, ...], str]] = {}
    ends: dict[str, pa.DataType] = {}
    for path, kind in paths.items():
        if len(path) == 1:
            ends[path[0]] = _json_type(kind)
        else:
            inner.setdefault(path[0], {})[path[1:]] = kind
    found: dict[str, Any] = {name: pa.struct(list(_objects(rest).items())) for name, rest in inner.items()}
    return {**found, **ends}


def _json_type(name: str) -> pa.DataType:
    """Return the Arrow type that JSON is read as: its reader has lists of any length alone."""
    kind = column_type(name)
    assert kind is not None  # noqa: S101 (a contract has no others)
    return pa.list_(item_type(kind)) if kind.is_list else item_type(kind)
