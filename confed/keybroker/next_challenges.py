"""Nonces that came with earlier answers: a later request needs no call for one, but it is used once, and in time.

A nonce is the broker's as any other: signed by it, burnt when it is used, refused when it is late. Whoever has none,
or is refused for it, asks for one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from confed.keybroker.client import Release
from confed.keybroker.statements import Challenge

_IN_TIME_MS = 20_000
"""What a request may take on its way."""


class NextChallenges:
    """The nonces of one enclave, by broker; safe between threads.

    Args:
        now: the enclave's clock for a broker's statements, Unix milliseconds.
    """

    def __init__(self, now: Callable[[bytes], int]) -> None:
        self._now = now
        self._kept: dict[bytes, Challenge] = {}
        self._lock = threading.Lock()

    def keep(self, release: Release) -> None:
        """Keep the nonce that came with a verified answer, in place of an older one."""
        challenge = release.next_challenge
        if challenge is not None:
            with self._lock:
                self._kept[challenge.broker] = challenge

    def take(self, broker: bytes) -> Challenge | None:
        """Return a broker's nonce that is good for a while yet, if there is one; nobody is given it again."""
        with self._lock:
            challenge = self._kept.pop(broker, None)
        if challenge is None or self._now(broker) + _IN_TIME_MS > challenge.expires_at:
            return None
        return challenge
