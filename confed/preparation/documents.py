"""Contracts and pipelines as somebody wrote them: TOML files, or JSON."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

from confed.errors import ConfigError, MissingFileError
from confed.preparation.contract import Contract
from confed.preparation.pipeline import Pipeline

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
