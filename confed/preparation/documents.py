"""Contracts, pipelines and statistics as somebody wrote them: TOML files, or JSON."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any, cast

from confed import record
from confed.errors import ConfigError, MissingFileError
from confed.preparation.contract import Contract
from confed.preparation.pipeline import Pipeline
from confed.preparation.statistics import StatisticsTerms

_LARGEST_BYTES = 4 * 1024 * 1024


def read_contract(path: Path) -> Contract:
    """Return the contract in a file.

    Raises:
        MissingFileError: no such file.
        ConfigError: not TOML or JSON, or a key that is unknown, missing, of the wrong type or contradictory.
    """
    return Contract.from_document(_document("contract", path))


def read_pipeline(path: Path) -> Pipeline:
    """Return the pipeline in a file.

    Raises:
        MissingFileError, ConfigError: as ``read_contract``.
    """
    return Pipeline.from_document(_document("pipeline", path))


def read_statistics(path: Path) -> StatisticsTerms:
    """Return the statistics in a file: ``[[queries]]``, in which what a kind does not use is left out.

    Raises:
        MissingFileError, ConfigError: as ``read_contract``.
    """
    value = _document("statistics", path)
    queries = cast("dict[str, Any]", value).get("queries") if isinstance(value, dict) else None
    if isinstance(queries, list):
        unsaid = {"least": None, "most": None, "edges": None, "share": None}
        entries = cast("list[Any]", queries)
        filled = [
            {**unsaid, **cast("dict[str, Any]", entry)} if isinstance(entry, dict) else entry for entry in entries
        ]
        value = {**cast("dict[str, Any]", value), "queries": filled}
    return record.from_json(StatisticsTerms, value, at="statistics", error=ConfigError)


def _document(what: str, path: Path) -> Any:
    try:
        if path.stat().st_size > _LARGEST_BYTES:
            raise ConfigError(str(path), expected=f"at most {_LARGEST_BYTES} bytes", got=path.stat().st_size)
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise MissingFileError(what, expected="a file that can be read", got=path) from error
    except UnicodeDecodeError as error:
        raise ConfigError(str(path), expected="text", got="something else") from error
    try:
        return json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except ValueError as error:
        raise ConfigError(str(path), expected="JSON" if path.suffix == ".json" else "TOML", got=str(error)) from error
