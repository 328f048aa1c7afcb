"""The contract check: a contract as a pandera schema, and what breaks it as column, check and count.

Guarantees: no value of the table is in a finding, an exception, its context or its traceback.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from dataclasses import dataclass
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.compute

from confed.data.column_types import arrow_type, fits, plain_table
from confed.data.item_checks import item_checks
from confed.errors import ConfigError, ContractError
from confed.preparation.contract import FLOATING, REFUSE, ColumnTerms, Contract

# pandera's first import tells what is new in it and looks for an update; neither is for a TEE.
os.environ.setdefault("DISABLE_PANDERA_IMPORT_WARNING", "True")

import pandera.polars as pandera
from pandera.errors import SchemaError, SchemaErrors

TYPE, MISSING, NULL, UNIQUE, ROWS, OTHERS = "type", "missing", "null", "unique", "rows", "others"
ITEMS = "items"
compute: Any = pyarrow.compute  # its functions are made when it is imported, so no checker knows them
_OWN_CHECKS = {"not_nullable": NULL, "field_uniqueness": UNIQUE}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What breaks a contract: a column of the contract (empty for the table itself), its check, and how often.

    Attributes:
        check: ``type``, ``missing``, ``null``, ``unique``, ``rows``, ``others``, ``items`` (lists of another length),
            or the name of the contract's own key.
        count: rows; of ``type`` and ``missing`` 1, of ``others`` columns, of ``rows`` how many there are.
    """

    column: str
    check: str
    count: int


def check(table: pa.Table, contract: Contract) -> pl.DataFrame:
    """Return the contract's columns of a table that keeps it.

    Raises:
        ContractError: it does not; its ``findings`` say what breaks it.
    """
    frame, findings = examine(table, contract)
    if findings or frame is None:
        raise broken(findings)
    return frame


def broken(findings: tuple[Finding, ...]) -> ContractError:
    """Return the refusal that carries these findings; its message has none of them."""
    error = ContractError("dataset", expected="one that keeps its contract", got=f"{len(findings)} findings")
    error.findings = findings
    return error


def examine(table: pa.Table, contract: Contract) -> tuple[pl.DataFrame | None, tuple[Finding, ...]]:
    """Return the contract's columns (``None`` if some are not there or of another type), and what breaks it.

    Raises:
        ConfigError: a check that cannot be done.
    """
    findings = _shape_findings(table, contract)
    unfit = {finding.column for finding in findings if finding.check in (TYPE, MISSING, ITEMS)}
    rest = {name: terms for name, terms in contract.columns.items() if name not in unfit}
    types = {name: terms.type for name, terms in rest.items()}
    frame = pl.DataFrame(plain_table(table.select(list(rest)), types))
    findings += _value_findings(frame, rest)
    return (None if unfit else frame), tuple(sorted(findings, key=lambda finding: (finding.column, finding.check)))


def _shape_findings(table: pa.Table, contract: Contract) -> list[Finding]:
    findings: list[Finding] = []
    rows = contract.rows
    if not rows.least <= table.num_rows <= rows.most:
        findings.append(Finding(column="", check=ROWS, count=table.num_rows))
    others = [name for name in table.column_names if name not in contract.columns]
    if others and contract.others == REFUSE:
        findings.append(Finding(column="", check=OTHERS, count=len(others)))
    for name, terms in contract.columns.items():
        places = table.schema.get_all_field_indices(name)
        if len(places) != 1:
            findings.append(Finding(column=name, check=MISSING, count=1))
        elif not fits(table.schema.field(places[0]).type, terms.type):
            findings.append(Finding(column=name, check=TYPE, count=1))
        elif terms.kind.length is not None and (unlike := _of_other_length(table[name], terms.kind.length)):
            findings.append(Finding(column=name, check=ITEMS, count=unlike))
    return findings


def _of_other_length(column: pa.ChunkedArray, length: int) -> int:
    """Count the lists of a column that have more or fewer items."""
    count = compute.sum(compute.not_equal(compute.list_value_length(column), length))
    return count.as_py() or 0


def _value_findings(frame: pl.DataFrame, columns: dict[str, ColumnTerms]) -> list[Finding]:
    cases: Any = None
    try:
        schema_of(columns).validate(frame, lazy=True)
    except (SchemaErrors, SchemaError) as error:
        cases = error.failure_cases
    # Outside of the block above: pandera's errors hold the values, and nothing raised from here may lead to them.
    if cases is None:
        return []
    places = zip(cases["column"].to_list(), cases["check"].to_list(), cases["index"].to_list(), strict=True)
    rows = list(places)
    for column, name, row in rows:
        if name in _CHECKS and row is None:
            # It failed for no row: polars could not do it at all (its regular expressions have a bounded size).
            raise ConfigError(f"contract.columns.{column}.{name}", expected="a check that can be done", got="another")
    found = Counter(_named(column, name, columns) for column, name, _ in rows)
    return [Finding(column=column, check=name, count=count) for (column, name), count in found.items()]


def _named(column: Any, name: Any, columns: dict[str, ColumnTerms]) -> tuple[str, str]:
    """Name a failure in the contract's words only: pandera's own may quote the data."""
    known = column if column in columns else ""
    return known, _OWN_CHECKS.get(name, name if name in _CHECKS else TYPE)


def schema_of(columns: dict[str, ColumnTerms]) -> Any:
    """Return the pandera schema (polars) of a contract's columns."""
    return pandera.DataFrameSchema(
        {
            name: pandera.Column(
                pl.Series(pa.array([], arrow_type(terms.type))).dtype,
                checks=_checks(terms),
                nullable=terms.nullable,
                unique=terms.unique,
            )
            for name, terms in columns.items()
        }
    )


def _checks(terms: ColumnTerms) -> list[Any]:
    if terms.kind.is_list:
        return [pandera.Check(check, name=name, error=name) for name, check in item_checks(terms).items()]
    checks: list[Any] = []
    if terms.type in FLOATING and not (terms.least is None and terms.most is None):
        checks.append(pandera.Check(_is_number, name="number", error="number"))
    if terms.least is not None:
        least = terms.least if terms.type in FLOATING else math.ceil(terms.least)
        checks.append(pandera.Check.ge(least, name="least", error="least"))
    if terms.most is not None:
        most = terms.most if terms.type in FLOATING else math.floor(terms.most)
        checks.append(pandera.Check.le(most, name="most", error="most"))
    if terms.choices is not None:
        checks.append(pandera.Check.isin(list(terms.choices), name="choices", error="choices"))
    if terms.pattern is not None:
        checks.append(pandera.Check.str_matches(f"^(?:{terms.pattern})$", name="pattern", error="pattern"))
    if terms.longest is not None:
        checks.append(pandera.Check(_shorter_than(terms), name="longest", error="longest"))
    return checks


_CHECKS = frozenset({NULL, "number", "least", "most", "choices", "pattern", "longest"})


def _is_number(data: Any) -> Any:
    return data.lazyframe.select(pl.col(data.key).is_nan().not_())


def _shorter_than(terms: ColumnTerms) -> Any:
    def check_length(data: Any) -> Any:
        column = pl.col(data.key)
        length = column.str.len_chars() if terms.type == "text" else column.bin.size()
        return data.lazyframe.select(length <= terms.longest)

    return check_length
