"""Cleaning steps on a polars frame: what ``confed.preparation.steps`` declares, done.

Guarantees: an error names the step, the column and at most a count; polars' own errors, which quote values, do not
leave, nor does anything that leads to them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import polars as pl
import pyarrow as pa

from confed.data.column_types import arrow_type
from confed.errors import ColumnError, EmptyDatasetError
from confed.preparation.steps import (
    ABOVE,
    AT_LEAST,
    AT_MOST,
    BELOW,
    EQUAL,
    UNLIKE,
    Cast,
    Clip,
    Deduplicate,
    DropNulls,
    Encode,
    Fill,
    Filter,
    OneHot,
    Predicate,
    Rename,
    Select,
    Standardise,
    Step,
    columns_read,
    one_hot_names,
)

Frame = pl.DataFrame


def clean(frame: Frame, steps: Sequence[Step]) -> Frame:
    """Return a frame after these steps, in their order.

    Raises:
        ColumnError: a step that a column's type or values do not fit.
        EmptyDatasetError: no row is left.
    """
    for place, step in enumerate(steps):
        frame = _applied(frame, step, at=f"pipeline.steps[{place}]")
        if frame.height == 0:
            raise EmptyDatasetError(f"pipeline.steps[{place}]", expected="rows that are left", got="none")
    return frame


def holds(predicate: Predicate) -> pl.Expr:
    """Return the expression of a predicate; a missing value satisfies none."""
    column, value = pl.col(predicate.column), pl.lit(predicate.value)
    compared = {
        EQUAL: column == value,
        UNLIKE: column != value,
        BELOW: column < value,
        AT_MOST: column <= value,
        ABOVE: column > value,
        AT_LEAST: column >= value,
    }[predicate.operator]
    return compared.fill_null(value=False)


def _applied(frame: Frame, step: Step, *, at: str) -> Frame:
    for name in columns_read(step):
        if name not in frame.columns:
            raise ColumnError(f"{at}: column {name}", expected="one that is there", got="none")
    try:
        return _STEPS[type(step)](frame, step, at)
    except (pl.exceptions.PolarsError, TypeError, ValueError, OverflowError):
        pass
    raise ColumnError(at, expected="a column of a type that this step fits", got="another")


def _select(frame: Frame, step: Select, at: str) -> Frame:
    del at
    return frame.select(step.columns)


def _rename(frame: Frame, step: Rename, at: str) -> Frame:
    del at
    return frame.rename(dict(step.names))


def _cast(frame: Frame, step: Cast, at: str) -> Frame:
    kind = pl.Series(pa.array([], arrow_type(step.type))).dtype
    result = frame.with_columns(pl.col(list(step.columns)).cast(kind, strict=False))
    for name in step.columns:
        lost = result[name].null_count() - frame[name].null_count()
        if lost:
            raise ColumnError(
                f"{at}: column {name}", expected=f"values that {step.type} can hold", got=f"{lost} others"
            )
    return result


def _fill(frame: Frame, step: Fill, at: str) -> Frame:
    column = pl.col(step.column)
    kind = frame.schema[step.column]
    if isinstance(step.value, str) != (kind == pl.String) or isinstance(step.value, bool) != (kind == pl.Boolean):
        raise ColumnError(f"{at}: column {step.column}", expected="a value of its type", got=type(step.value).__name__)
    return frame.with_columns(column.fill_null(pl.lit(step.value).cast(kind)))


def _drop_nulls(frame: Frame, step: DropNulls, at: str) -> Frame:
    del at
    return frame.drop_nulls(list(step.columns))


def _deduplicate(frame: Frame, step: Deduplicate, at: str) -> Frame:
    del at
    return frame.unique(list(step.columns), keep="first", maintain_order=True)


def _clip(frame: Frame, step: Clip, at: str) -> Frame:
    return frame.with_columns(_of_numbers(frame, step.column, lambda value: value.clip(step.least, step.most), at=at))


def _filter(frame: Frame, step: Filter, at: str) -> Frame:
    del at
    return frame.filter(holds(step.where))


def _standardise(frame: Frame, step: Standardise, at: str) -> Frame:
    return frame.with_columns(
        _of_numbers(frame, name, partial(_standardised, mean=mean, deviation=deviation), at=at)
        for name, (mean, deviation) in step.columns.items()
    )


def _standardised(value: pl.Expr, *, mean: float, deviation: float) -> pl.Expr:
    return ((value.cast(pl.Float64) - mean) / deviation).cast(pl.Float32)


def _one_hot(frame: Frame, step: OneHot, at: str) -> Frame:
    del at
    column = pl.col(step.column)
    made = [
        (column == pl.lit(category)).fill_null(value=False).cast(pl.Float32).alias(name)
        for name, category in zip(one_hot_names(step), step.categories, strict=True)
    ]
    return frame.with_columns(made).drop(step.column)


def _encode(frame: Frame, step: Encode, at: str) -> Frame:
    places = {category: place for place, category in enumerate(step.categories)}
    encoded = pl.col(step.column).replace_strict(places, default=None, return_dtype=pl.Int64)
    result = frame.with_columns(encoded)
    lost = result[step.column].null_count() - frame[step.column].null_count()
    if lost:
        expected = f"one of {len(places)} categories in each row"
        raise ColumnError(f"{at}: column {step.column}", expected=expected, got=f"{lost} rows with others")
    return result


def _of_numbers(frame: Frame, name: str, change: Callable[[pl.Expr], pl.Expr], *, at: str) -> pl.Expr:
    """Return the expression that changes a column's numbers, or those in its lists."""
    kind = frame.schema[name]
    number = kind.inner if isinstance(kind, pl.List | pl.Array) else kind
    if not number.is_numeric():
        raise ColumnError(f"{at}: column {name}", expected="numbers", got=str(kind))
    if isinstance(kind, pl.Array):
        return pl.col(name).arr.to_list().list.eval(change(pl.element())).list.to_array(kind.size)
    return pl.col(name).list.eval(change(pl.element())) if isinstance(kind, pl.List) else change(pl.col(name))


_STEPS: dict[type, Callable[[Frame, Any, str], Frame]] = {
    Select: _select,
    Rename: _rename,
    Cast: _cast,
    Fill: _fill,
    DropNulls: _drop_nulls,
    Deduplicate: _deduplicate,
    Clip: _clip,
    Filter: _filter,
    Standardise: _standardise,
    OneHot: _one_hot,
    Encode: _encode,
}
