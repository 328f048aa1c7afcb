"""How many bytes may be held: promised before they arrive, given back when they do not."""

from __future__ import annotations

import threading

from confed.errors import QuotaError


class Quota:
    """The bytes that a store may hold, counted across objects, uploads and letters; safe between threads."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._used = 0
        self._lock = threading.Lock()

    @property
    def used_bytes(self) -> int:
        """Bytes held or promised to uploads in progress."""
        return self._used

    def take(self, size_bytes: int) -> None:
        """Count ``size_bytes`` more.

        Raises:
            QuotaError: they do not fit; nothing is counted.
        """
        with self._lock:
            if self._used + size_bytes > self._limit:
                free = max(0, self._limit - self._used)
                raise QuotaError("courier quota in bytes", expected=f"at most {free} more", got=size_bytes)
            self._used += size_bytes

    def count(self, size_bytes: int) -> None:
        """Count what is there already, even beyond the limit; a negative number gives back."""
        with self._lock:
            self._used += size_bytes
