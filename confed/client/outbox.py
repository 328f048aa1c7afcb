"""Where a TEE that hosts many sites collects their sealed results, to send dozens of them as one object."""

from __future__ import annotations

from confed.client.step import Grants
from confed.model.bundle import Enclosed, bundle
from confed.wire.courier_client import CourierClient

LARGEST_RESULT_BYTES = 256 * 1024
"""A larger result goes by itself: for those, calls cost little beside the bytes."""

_RESULTS = 64
_BYTES = 8 * 1024 * 1024


class Outbox:
    """Sealed results that are not sent yet. Used by one thread."""

    def __init__(self, courier: CourierClient) -> None:
        self._courier = courier
        self._waiting: dict[str, Enclosed] = {}
        self._bytes = 0

    @property
    def full(self) -> bool:
        """Whether it is time to send."""
        return len(self._waiting) >= _RESULTS or self._bytes >= _BYTES

    def add(self, site: str, grants: Grants, sealed: bytes | bytearray | memoryview, *, digest: str) -> None:
        """Keep a result until ``send``."""
        self._waiting[digest] = Enclosed(
            site=site, credential=grants.credential, ticket=grants.ticket, sealed=bytes(sealed)
        )
        self._bytes += len(sealed)

    def send(self) -> dict[str, str]:
        """Send what waits as one object; return that object's digest for each result's own. What fails is not kept.

        Raises:
            ConfedError: the courier refused or is down.
        """
        waiting, self._waiting, self._bytes = self._waiting, {}, 0
        if not waiting:
            return {}
        return dict.fromkeys(waiting, self._courier.put(bundle(list(waiting.values()))))
