"""What compression left out of a site's updates, kept in its TEE until it is in one that counted.

1. What an update leaves out is noted beside its ticket; it is carried over to the site's next update.
2. Which updates counted is read from commit records: one that did not (it came late, or its attempt was given up)
   leaves everything as it was before it, so nothing is sent twice. Its own difference is lost, as without compression.
3. It lives in memory only and ends with the TEE: what a TEE that starts anew had not sent is lost, nothing else.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from confed.model.encodings import Numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class _Noted:
    round_number: int
    ticket: str
    residual: Numbers = field(repr=False)


class Feedback:
    """What is carried over for each site of one TEE.

    Args:
        tickets_of: returns the digests of the tickets that count in the version of a round.
    """

    def __init__(self, tickets_of: Callable[[int], Collection[str]]) -> None:
        self._tickets_of = tickets_of
        self._settled: dict[str, Numbers] = {}
        self._noted: dict[str, _Noted] = {}
        self._lock = threading.Lock()

    def carried(self, site: str, *, round_number: int) -> Numbers | None:
        """Return what to add to a site's difference in a round; ``None`` is nothing.

        Raises:
            LineageError: the commit record of the site's last update's round is not to be had.
        """
        with self._lock:
            noted = self._noted.get(site)
            if noted is not None and noted.round_number < round_number:
                if noted.ticket in self._tickets_of(noted.round_number):
                    self._settled[site] = noted.residual
                del self._noted[site]
            return self._settled.get(site)

    def note(self, site: str, *, round_number: int, ticket: str, residual: Numbers) -> None:
        """Note what the update under a ticket left out; an earlier attempt at the round is forgotten."""
        with self._lock:
            self._noted[site] = _Noted(round_number=round_number, ticket=ticket, residual=residual)
