"""What a contract says of lists, as pandera's checks: each counts rows in which some item breaks it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import polars as pl

from confed.preparation.column_type import FLOATING
from confed.preparation.contract import ColumnTerms

Test = Callable[[pl.Expr], pl.Expr]


def item_checks(terms: ColumnTerms) -> dict[str, Callable[[Any], Any]]:
    """Return checks of a column of lists by the names of their findings; a missing list keeps all of them."""
    tests = {name: _of_items(terms, test) for name, test in _tests(terms).items()}
    if terms.longest is not None:
        longest = terms.longest
        tests["longest"] = lambda data: data.lazyframe.select(_lists(terms, data.key).list.len() <= longest)
    return tests


def _tests(terms: ColumnTerms) -> dict[str, Test]:
    floating = terms.kind.value in FLOATING
    tests: dict[str, Test] = {}
    if not terms.nullable:
        tests["null"] = _is_there_as_number if floating else pl.Expr.is_not_null
    if floating and not (terms.least is None and terms.most is None):
        tests["number"] = _is_number
    if terms.least is not None:
        tests["least"] = lambda item: item >= terms.least
    if terms.most is not None:
        tests["most"] = lambda item: item <= terms.most
    if terms.choices is not None:
        choices = list(terms.choices)
        tests["choices"] = lambda item: item.is_in(choices)
    if terms.pattern is not None:
        pattern = f"^(?:{terms.pattern})$"
        tests["pattern"] = lambda item: item.str.contains(pattern)
    return tests


def _of_items(terms: ColumnTerms, test: Test) -> Callable[[Any], Any]:
    def check(data: Any) -> Any:
        return data.lazyframe.select(_lists(terms, data.key).list.eval(test(pl.element())).list.all())

    return check


def _lists(terms: ColumnTerms, name: str) -> pl.Expr:
    return pl.col(name) if terms.kind.length is None else pl.col(name).arr.to_list()


def _is_number(item: pl.Expr) -> pl.Expr:
    return item.is_nan().not_()


def _is_there_as_number(item: pl.Expr) -> pl.Expr:
    return item.is_not_null() & item.is_nan().not_().fill_null(value=True)
