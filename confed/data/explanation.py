"""Findings in words: column, check and count; and for who has the table, what its schema says of it. Never a value."""

from __future__ import annotations

import pyarrow as pa

from confed.data.checking import MISSING, ROWS, TYPE, Finding
from confed.data.column_types import type_name
from confed.preparation.contract import Contract

_MOST_NAMES = 5


def told(finding: Finding) -> str:
    """Return a finding in words."""
    where = f"column {finding.column}" if finding.column else "the table"
    return f"{where}: {finding.check}, {finding.count} times"


def explained(finding: Finding, table: pa.Table, contract: Contract) -> str:
    """Return a finding in words to whoever has the table: types and names of its columns where they help."""
    if finding.check == ROWS:
        return f"the table: rows, expected {contract.rows.least} to {contract.rows.most}, got {finding.count}"
    places = table.schema.get_all_field_indices(finding.column)
    if finding.check == MISSING:
        return f"column {finding.column}: missing{_instead(finding.column, table.column_names, len(places))}"
    if finding.check == TYPE and len(places) == 1:
        kind = table.schema.field(places[0]).type
        expected, got = contract.columns[finding.column].type, type_name(kind) or str(kind)[:80]
        if got != expected:
            return f"column {finding.column}: type, expected {expected}, got {got}"
    return told(finding)


def _instead(name: str, names: list[str], times: int) -> str:
    """Say what is there in a column's place. Other names are not said: of a file without a header they are values."""
    if times:
        return f", it is there {times} times"
    fields = [each for each in names if each.startswith(f"{name}.")]
    if fields:
        return f", it is a structure with {', '.join(fields[:_MOST_NAMES])}"
    alike = [each for each in names if each.strip().lower() == name.lower()]
    return f", there is {alike[0]!r}" if alike else ""
