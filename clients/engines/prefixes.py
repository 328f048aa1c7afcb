"""What a language model computed for the beginning of earlier prompts, kept for later ones of the same tenant.

A request that begins as an earlier one did is answered sooner, and whoever measures that learns how the earlier one
began. So nothing that was kept for one tenant is ever looked at for another: entries are found by the tenant's salt
(``confed.inference.messages.Request.cache_salt``) before a token is compared, and a request without one neither finds
nor leaves anything.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
import transformers

_LEAST_TOKENS = 8
"""A shorter beginning is not worth a copy."""


@dataclass(frozen=True, slots=True)
class _Entry:
    ids: list[int]
    layers: list[tuple[torch.Tensor, torch.Tensor]]


class Prefixes:
    """Keys and values by tenant and tokens; those used longest ago make room. Safe for several threads.

    Args:
        most_tokens: that are kept, of all tenants together.
    """

    def __init__(self, most_tokens: int) -> None:
        self._most = most_tokens
        self._kept: OrderedDict[tuple[str, tuple[int, ...]], _Entry] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()
        self.found_tokens = 0
        """Tokens that did not have to be read again, so far."""

    def cache_for(self, salt: str, ids: list[int]) -> Any:
        """Return a cache of the longest beginning of ``ids`` that this tenant has, without the last token; or none."""
        with self._lock:
            mine = [(name, entry) for name, entry in self._kept.items() if name[0] == salt]
            best = max(mine, key=lambda found: _shared(found[1].ids, ids), default=None)
            length = 0 if best is None else min(_shared(best[1].ids, ids), len(ids) - 1)
            if best is None or length < _LEAST_TOKENS:
                return None
            self._kept.move_to_end(best[0])
            self.found_tokens += length
        cache = transformers.DynamicCache()
        for number, (keys, values) in enumerate(best[1].layers):
            cache.update(keys[..., :length, :], values[..., :length, :], number)  # joined to nothing: a copy
        return cache

    def keep(self, salt: str, ids: list[int], cache: Any) -> None:
        """Keep the keys and values of these tokens, in place of a beginning of them that this tenant has."""
        if not _LEAST_TOKENS <= len(ids) <= self._most:
            return
        entry = _Entry(ids=ids, layers=[(layer.keys, layer.values) for layer in cache.layers])
        with self._lock:
            for name, other in [(name, other) for name, other in self._kept.items() if name[0] == salt]:
                shared = _shared(other.ids, ids)
                if shared == len(ids) < len(other.ids):
                    return  # a longer one is there
                if shared == len(other.ids):
                    self._forget(name)
            self._kept[salt, tuple(ids)] = entry
            self._size += len(ids)
            while self._size > self._most:
                self._forget(next(iter(self._kept)))

    def _forget(self, name: tuple[str, tuple[int, ...]]) -> None:
        self._size -= len(self._kept.pop(name).ids)


def _shared(one: list[int], other: list[int]) -> int:
    """Return with how many equal tokens two lists begin."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
