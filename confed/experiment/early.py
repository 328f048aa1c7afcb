"""What the ``local`` engine imports before it knows the run: a guess about time, about nothing else."""

from __future__ import annotations

import ast
import sys
from collections.abc import Generator
from pathlib import Path

_TORCH = ("torch", "torch._dynamo")  # any optimizer of torch imports the second
_WITHOUT_TORCH = frozenset({"confed", "flwr", "numpy", "pandas", "polars", "pyarrow", "scipy", "sklearn"})


def early_libraries(directory: Path, client: str) -> tuple[str, ...]:
    """Return what client TEEs need beside Flower, to be imported once before they are forked.

    That is torch, unless the app's own files are all there is of it and plainly do without: it takes seconds of
    processor time. Where the guess is wrong each TEE imports what it needs itself.

    Args:
        directory: of the app.
        client: entry point of its ClientApp, ``module:attribute``.

    Raises:
        Nothing.
    """
    files = list(directory.rglob("*.py"))
    own = {file.stem for file in files} | {file.parent.name for file in files}
    if client.partition(":")[0].partition(".")[0] not in own:
        return _TORCH
    # Who imports by name may import anything.
    known = own | _WITHOUT_TORCH | (sys.stdlib_module_names - {"importlib", "runpy"})
    try:
        imported = {name for file in files for name in _imported(file)}
    except (OSError, SyntaxError, ValueError):
        return _TORCH  # Whoever imports the file tells what is wrong with it.
    return () if imported <= known else _TORCH


def _imported(file: Path) -> Generator[str]:
    """Return the packages that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]
