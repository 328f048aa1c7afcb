"""The closed vocabulary of cleaning: what may be done to a table, as data.

A step is a table with its name under ``step`` and, with it, every key that the class below has; none is optional::

    { step = "clip", column = "age", least = 0.0, most = 120.0 }

Steps are applied in their order. A step that names a column which is not there (any more) is refused before a run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from confed import record
from confed.errors import ConfigError
from confed.preparation.contract import TYPES, Scalar

EQUAL, UNLIKE, BELOW, AT_MOST, ABOVE, AT_LEAST = "==", "!=", "<", "<=", ">", ">="
OPERATORS = (EQUAL, UNLIKE, BELOW, AT_MOST, ABOVE, AT_LEAST)
"""A missing value satisfies none of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicate:
    """``column operator value``, such as ``{ column = "age", operator = ">=", value = 18 }``."""

    column: str
    operator: str
    value: Scalar

    def __post_init__(self) -> None:
        _require(self.operator in OPERATORS, "operator", f"one of {', '.join(OPERATORS)}", self.operator)


@dataclass(frozen=True, slots=True, kw_only=True)
class Select:
    """Keep these columns, in this order."""

    columns: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rename:
    """Give columns other names: old name -> new name."""

    names: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cast:
    """Change the type of columns; a value that the new type cannot hold is refused."""

    columns: tuple[str, ...]
    type: str

    def __post_init__(self) -> None:
        _require(self.type in TYPES, "type", f"one of {', '.join(TYPES)}", self.type)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fill:
    """Put a value where a column's are missing."""

    column: str
    value: Scalar


@dataclass(frozen=True, slots=True, kw_only=True)
class DropNulls:
    """Leave out rows in which one of these columns is missing."""

    columns: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Deduplicate:
    """Keep the first of rows that are equal in these columns."""

    columns: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """Bring a column's numbers into bounds."""

    column: str
    least: float
    most: float

    def __post_init__(self) -> None:
        _require(self.least <= self.most, "most", f"at least {self.least}", self.most)


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Keep rows that satisfy a predicate."""

    where: Predicate


@dataclass(frozen=True, slots=True, kw_only=True)
class Standardise:
    """Subtract a constant mean and divide by a constant deviation (column -> both); the results are float32.

    Constants are given, never computed from the data: what a table's own mean were would be a statistic of it.
    """

    columns: Mapping[str, tuple[float, ...]]

    def __post_init__(self) -> None:
        for name, pair in self.columns.items():
            fits = len(pair) == 2 and all(map(math.isfinite, pair)) and pair[1] > 0
            _require(fits, f"columns.{name}", "a mean and a deviation above 0", list(pair))


@dataclass(frozen=True, slots=True, kw_only=True)
class OneHot:
    """Replace a column by a float32 column of 0 and 1 for each category, named ``column=category``.

    A value that is missing or no category is 0 in all of them.
    """

    column: str
    categories: tuple[Scalar, ...]

    def __post_init__(self) -> None:
        distinct = 0 < len(self.categories) == len(set(self.categories))
        _require(distinct, "categories", "at least one, each once", len(self.categories))


@dataclass(frozen=True, slots=True, kw_only=True)
class Encode:
    """Replace a column's categories by their places (int64, from 0); a value that is no category is refused."""

    column: str
    categories: tuple[Scalar, ...]

    def __post_init__(self) -> None:
        distinct = 0 < len(self.categories) == len(set(self.categories))
        _require(distinct, "categories", "at least one, each once", len(self.categories))


Step = Select | Rename | Cast | Fill | DropNulls | Deduplicate | Clip | Filter | Standardise | OneHot | Encode

STEPS: Mapping[str, type[Step]] = {
    "select": Select,
    "rename": Rename,
    "cast": Cast,
    "fill": Fill,
    "drop_nulls": DropNulls,
    "deduplicate": Deduplicate,
    "clip": Clip,
    "filter": Filter,
    "standardise": Standardise,
    "one_hot": OneHot,
    "encode": Encode,
}


def parse_step(value: Mapping[str, Any], *, at: str) -> Step:
    """Return the step of a table.

    Raises:
        ConfigError: no step of that name, or a key that is unknown, missing or of the wrong type.
    """
    name = value.get("step")
    kind = STEPS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise ConfigError(f"{at}.step", expected=f"one of {', '.join(STEPS)}", got=str(name)[:60])
    rest = {key: entry for key, entry in value.items() if key != "step"}
    return record.from_json(kind, rest, at=at, error=ConfigError)


def columns_after(step: Step, columns: AbstractSet[str], *, at: str) -> set[str]:
    """Return which columns are there after a step.

    Raises:
        ConfigError: it names one that is not there before, or makes one that is.
    """
    for name in columns_read(step):
        _require(name in columns, f"{at}.column", "one that is there", name)
    if isinstance(step, Select):
        return set(step.columns)
    if isinstance(step, Rename):
        rest = set(columns) - set(step.names)
        for name in step.names.values():
            _require(bool(name) and name not in rest, f"{at}.names", "new names", name)
        _require(len(set(step.names.values())) == len(step.names), f"{at}.names", "each name once", "one twice")
        return rest | set(step.names.values())
    if isinstance(step, OneHot):
        made = one_hot_names(step)
        rest = set(columns) - {step.column}
        _require(not rest & set(made), f"{at}.column", "no columns of these names yet", step.column)
        return rest | set(made)
    return set(columns)


def one_hot_names(step: OneHot) -> tuple[str, ...]:
    """Return the names of the columns that a one-hot step makes."""
    return tuple(f"{step.column}={category}" for category in step.categories)


def columns_read(step: Step) -> tuple[str, ...]:
    """Return the columns that a step looks at."""
    if isinstance(step, Select | Cast | DropNulls | Deduplicate):
        return step.columns
    if isinstance(step, Rename):
        return tuple(step.names)
    if isinstance(step, Standardise):
        return tuple(step.columns)
    return (step.where.column,) if isinstance(step, Filter) else (step.column,)


def _require(holds: bool, field: str, expected: object, got: object) -> None:  # noqa: FBT001
    if not holds:
        raise ConfigError(field, expected=expected, got=got)
