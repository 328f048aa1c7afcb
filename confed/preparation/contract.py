"""A data contract: what a table must look like, as a document that is hashed and agreed on.

Written as TOML; what a file leaves out is ``null``, and in a manifest everything is written out. For example::

    name = "tumours"
    rows = { least = 20, most = 100000 }
    others = "ignore"                      # or "refuse": what becomes of columns that are not named

    [columns.radius]
    type = "float64"
    least = 0.0
    most = 60.0

    [columns.diagnosis]
    type = "text"
    nullable = true
    choices = ["benign", "malignant"]

    [columns.readings]                     # of a list the bounds, choices and pattern are of each item
    type = "list<float32, 64>"
    least = -50.0

    [columns."scanner.age"]                # a field of a structure, by its path
    type = "int32"
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, cast

from confed import canonical, record
from confed.errors import ConfigError
from confed.preparation.column_type import FLOATING, TOLD, TYPES, WHOLE, ColumnType, column_type

__all__ = ["FLOATING", "IGNORE", "REFUSE", "TYPES", "WHOLE", "ColumnTerms", "Contract", "RowTerms", "Scalar"]

Scalar = bool | int | float | str

IGNORE, REFUSE = "ignore", "refuse"

_MOST_COLUMNS = 20_000
_LONGEST_PATTERN = 500
_LOOKS_AROUND = re.compile(r"\(\?(?:[=!]|<[=!]|P=|\(|>)|(?<!\\)(?:\\\\)*\\[1-9]")


@dataclass(frozen=True, slots=True, kw_only=True)
class RowTerms:
    """How many rows a table may have: from ``least`` (at least 1) to ``most``."""

    least: int
    most: int

    def __post_init__(self) -> None:
        _require(self.least >= 1, "contract.rows.least", "at least 1", self.least)
        _require(self.most >= self.least, "contract.rows.most", f"at least {self.least}", self.most)


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnTerms:
    """What one column must be; every check but ``nullable`` is about values that are there, in a list about each item.

    Attributes:
        type: as ``confed.preparation.column_type`` explains it.
        nullable: whether values may be missing, in a list items too; a NaN is missing too, and never within bounds.
        unique: whether each value may stand once; not of lists.
        least, most: bounds of a number, both included; ``None`` for none.
        choices: the only values; ``None`` for any.
        pattern: a regular expression that the whole of a text matches, without looking around or back, so that it takes
            time in proportion to the text; ``None`` for any.
        longest: most characters of a text, bytes, or items of a list of any length; ``None`` for any.
    """

    type: str
    nullable: bool
    unique: bool
    least: float | None
    most: float | None
    choices: tuple[Scalar, ...] | None
    pattern: str | None
    longest: int | None

    def __post_init__(self) -> None:
        kind = self.kind
        _require(not (self.unique and kind.is_list), "unique", "false for lists", self.unique)
        for name in ("least", "most"):
            bound: float | None = getattr(self, name)
            fits = bound is None or (kind.is_number and math.isfinite(bound))
            _require(fits, name, "none, or a number's bound", bound)
        if self.least is not None and self.most is not None:
            _require(self.least <= self.most, "most", f"at least {self.least}", self.most)
        if self.choices is not None:
            _require(bool(self.choices), "choices", "at least one", "none")
            _require(kind.value in ("text", "bool", *WHOLE), "choices", "none for this type", self.type)
            kinds: tuple[type, ...] = {"text": (str,), "bool": (bool,)}.get(kind.value, (int,))
            fits = all(type(choice) in kinds for choice in self.choices)
            _require(fits, "choices", f"values of type {self.type}", "another")
        if self.pattern is not None:
            _require(kind.value == "text", "pattern", "none for this type", self.type)
            _require(len(self.pattern) <= _LONGEST_PATTERN, "pattern", f"at most {_LONGEST_PATTERN} characters", "more")
            _compile(self.pattern)
        if self.longest is not None:
            measured = kind.length is None if kind.is_list else kind.value in ("text", "bytes")
            _require(measured, "longest", "none for this type", self.type)
            _require(self.longest >= 1, "longest", "at least 1", self.longest)

    @property
    def kind(self) -> ColumnType:
        """The type taken apart.

        Raises:
            ConfigError: no type.
        """
        kind = column_type(self.type)
        if kind is None:
            raise ConfigError("type", expected=f"one of {TOLD}", got=self.type[:60])
        return kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Contract:
    """What a table must look like. No field is optional.

    Attributes:
        name: for people.
        rows: how many there may be.
        others: ``ignore`` (other columns may be there, and are never opened) or ``refuse``.
        columns: by name, at least one.
    """

    name: str
    rows: RowTerms
    others: str
    columns: Mapping[str, ColumnTerms]

    def __post_init__(self) -> None:
        _require(bool(self.name.strip()) and len(self.name) <= 200, "contract.name", "1 to 200 characters", self.name)
        _require(self.others in (IGNORE, REFUSE), "contract.others", f"{IGNORE} or {REFUSE}", self.others)
        _require(1 <= len(self.columns) <= _MOST_COLUMNS, "contract.columns", "at least one", len(self.columns))
        for name in self.columns:
            _require(bool(name) and name.isprintable(), "contract.columns", "printable names", repr(name)[:60])

    @property
    def digest(self) -> str:
        """SHA-256 of the contract's canonical JSON in hexadecimal: its name in dataset manifests."""
        return canonical.digest(canonical.encode(record.to_json(self)))

    @classmethod
    def from_document(cls, value: Any) -> Contract:
        """Return the contract of a document that somebody wrote, in which what is not said is not checked.

        Raises:
            ConfigError: a key that is unknown, missing, of the wrong type or contradictory.
        """
        if not isinstance(value, dict):
            raise ConfigError("contract", expected="a table", got=type(value).__name__)
        document = cast("dict[str, Any]", value)
        columns = document.get("columns")
        if isinstance(columns, dict):
            filled = {name: _filled(column) for name, column in cast("dict[str, Any]", columns).items()}
            for name, column in filled.items():
                _check_column(name, column)
            document = {**document, "columns": filled}
        return record.from_json(cls, document, at="contract", error=ConfigError)


_UNSAID: dict[str, Any] = {
    **{field.name: None for field in fields(ColumnTerms) if field.name != "type"},
    "nullable": False,
    "unique": False,
}


def _filled(column: Any) -> Any:
    return {**_UNSAID, **cast("dict[str, Any]", column)} if isinstance(column, dict) else column


def _check_column(name: str, column: Any) -> None:
    """Check one column by itself, so that a mistake in it is named with it."""
    if not isinstance(column, dict):
        raise ConfigError(f"contract.columns.{name}", expected="a table", got=type(column).__name__)
    try:
        record.from_json(ColumnTerms, column, error=ConfigError)
    except ConfigError as error:
        raise ConfigError(f"contract.columns.{name}.{error.field}", expected=error.expected, got=error.got) from error


def _compile(pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ConfigError("pattern", expected="a regular expression", got=str(error)) from error
    if _LOOKS_AROUND.search(pattern):
        raise ConfigError("pattern", expected="none that looks around or back", got=pattern[:60])


def _require(holds: bool, field: str, expected: object, got: object) -> None:  # noqa: FBT001
    if not holds:
        raise ConfigError(field, expected=expected, got=got)
