"""Types of columns as contracts name them: one value, or a list of values of one type.

``float32`` is one number a row, ``list<float32>`` any number of them, ``list<float32, 64>`` exactly 64. A field of a
structure is a column of its own, named by its path: ``position.lat``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

WHOLE = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
FLOATING = ("float32", "float64")
TYPES = ("bool", *WHOLE, *FLOATING, "text", "bytes", "date", "datetime")
"""The closed vocabulary of values; text is UTF-8, a datetime has microseconds and no zone."""
TOLD = f"{', '.join(TYPES)}, or list<TYPE> or list<TYPE, LENGTH> of one"
"""What a column may be, in words."""

_LIST = re.compile(r"list<([a-z0-9]+)(?:, ([1-9][0-9]{0,6}))?>")


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnType:
    """A type taken apart.

    Attributes:
        value: one of ``TYPES``: of the row's value, or of each item of its list.
        is_list: whether a row has a list.
        length: how many items every list has; ``None`` for any number.
    """

    value: str
    is_list: bool
    length: int | None

    @property
    def is_number(self) -> bool:
        """Whether its values are numbers."""
        return self.value in (*WHOLE, *FLOATING)


def column_type(name: str) -> ColumnType | None:
    """Return a type taken apart; ``None`` for what is no type."""
    if name in TYPES:
        return ColumnType(value=name, is_list=False, length=None)
    found = _LIST.fullmatch(name)
    if found is None or found[1] not in TYPES:
        return None
    return ColumnType(value=found[1], is_list=True, length=None if found[2] is None else int(found[2]))


def list_name(value: str, length: int | None) -> str:
    """Return what a contract calls lists of a type."""
    return f"list<{value}>" if length is None else f"list<{value}, {length}>"
