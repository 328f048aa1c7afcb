"""OPENS and TRAINS: what runs in a client TEE, and the one line that turns a Flower ClientApp confidential.

The public names are imported when they are first used: a client TEE confines itself before it imports Flower.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from confed.client.current import (
        checkpoints,
        opened_model,
        site_adapter,
        site_data,
        site_has_table,
        site_table,
    )
    from confed.client.mod import confidential

_CURRENT = ("checkpoints", "opened_model", "site_adapter", "site_data", "site_has_table", "site_table")
__all__ = ["checkpoints", "confidential", "opened_model", "site_adapter", "site_data", "site_has_table", "site_table"]


def __getattr__(name: str) -> Any:
    if name == "confidential":
        from confed.client.mod import confidential  # noqa: PLC0415

        return confidential
    if name in _CURRENT:
        from confed.client import current  # noqa: PLC0415

        return getattr(current, name)
    raise AttributeError(name)
