"""What records say against what they must say; the first difference is named."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from confed.errors import ContainerFormatError, LineageError, RefusedError

_DIGEST = re.compile(r"[0-9a-f]{64}")


def equal(what: str, expected: object, got: object) -> None:
    """Check one value.

    Raises:
        ContainerFormatError: another kind or id of a container.
        LineageError: another value of anything else.
    """
    if expected != got:
        kind = ContainerFormatError if what in ("kind", "container id") else LineageError
        raise kind(what, expected=_shown(expected), got=_shown(got))


def same(expected: Mapping[str, Any], got: Mapping[str, Any]) -> None:
    """Check that a table has every expected value; it may have more.

    Raises:
        RefusedError: names the first that differs.
    """
    for name, value in expected.items():
        if got.get(name) != value:
            raise RefusedError(name, expected=_shown(value), got=_shown(got.get(name)))


def _shown(value: object) -> str:
    if isinstance(value, bytes):
        return value.hex()[:16]
    if isinstance(value, tuple):
        return ", ".join(_shown(item) for item in value) or "none"  # pyright: ignore[reportUnknownVariableType]
    shown = str(value)
    return shown[:16] if _DIGEST.fullmatch(shown) else shown[:120]
