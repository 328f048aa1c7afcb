"""Contracts, pipelines and tables that several tests use."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from confed.preparation.contract import Contract
from confed.preparation.pipeline import Pipeline

CANARY = "canary-patient-4711"
CANARY_NUMBER = 918273.6450912


def contract_of(columns: dict[str, Any], **changes: Any) -> Contract:
    return Contract.from_document(
        {"name": "test", "rows": {"least": 1, "most": 1000}, "others": "ignore", "columns": columns, **changes}
    )


AGES = contract_of({"age": {"type": "float64", "least": 0.0, "most": 120.0}, "name": {"type": "text"}})
PLAIN = Pipeline.from_document({"name": "none"})


def ages(rows: int = 10, **columns: Any) -> pa.Table:
    values = {"age": [float(row) for row in range(rows)], "name": [f"name {row}" for row in range(rows)], **columns}
    return pa.table(values)


def not_utf8() -> pa.Array:
    """One text whose bytes are Latin-1: no reader of Parquet or Arrow looks."""
    places = pa.py_buffer((0).to_bytes(4, "little") + (1).to_bytes(4, "little"))
    return pa.Array.from_buffers(pa.string(), 1, [None, places, pa.py_buffer(b"\xe4")])
