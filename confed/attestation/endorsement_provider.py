"""Providers of endorsements: one that fetches and keeps, one that has only what a bundle holds.

1. what evidence needs is read from evidence that nobody has verified yet (``endorsing.needs``), bounded in number;
2. each need is met from what is kept, or by asking its vendor;
3. what a manifest needs in turn (the status of its signers) is met too;
4. all of it is given, or the first need that cannot be met is raised.

How long an answer is used is a matter of its kind (``LIFETIMES``): after ``refresh_s`` the vendor is asked again. If it
does not answer, what is kept serves on with a log line, and the vendor is left alone for a minute; until ``keep_s``, or
until its issuer no longer vouches for it, whichever is earlier. Then the provider fails closed. So a vendor's outage
does not stop a federation within minutes, and nobody who blocks the network can hold back a revocation for longer than
``keep_s``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from confed.attestation.endorsement_cache import EndorsementCache
from confed.attestation.endorsements import (
    BUNDLE_LIMIT_BYTES,
    AmdChain,
    AmdCrl,
    AmdVcek,
    Endorsement,
    EndorsementSource,
    IntelCollateral,
    Need,
    NvidiaOcsp,
    NvidiaRim,
    decode_bundle,
    need_digest,
)
from confed.attestation.endorsing.needs import further_needs, needs_of
from confed.attestation.endorsing.plausibility import examined, require_current
from confed.attestation.endorsing.vendors import Sources
from confed.attestation.evidence import Envelope
from confed.errors import (
    EndorsementFetchError,
    EndorsementFormatError,
    EvidenceSizeError,
    MissingEndorsementError,
    MissingFileError,
    StorageError,
)

_log = logging.getLogger(__name__)
_MOST_NEEDS = 128
_LOCKS = 64
_RETRY_MS = 60_000
_MOST_FAILED = 1024
_HOUR_S = 3600
_DAY_S = 24 * _HOUR_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Lifetime:
    """For how long an answer of one kind is used: asked again after ``refresh_s``, never used after ``keep_s``."""

    refresh_s: int
    keep_s: int


LIFETIMES: Mapping[type[Need], Lifetime] = {
    # What a chip's key is at one TCB does not change; its product's list can still revoke it.
    AmdVcek: Lifetime(refresh_s=365 * _DAY_S, keep_s=10 * 365 * _DAY_S),
    AmdChain: Lifetime(refresh_s=30 * _DAY_S, keep_s=10 * 365 * _DAY_S),
    AmdCrl: Lifetime(refresh_s=_DAY_S, keep_s=7 * _DAY_S),
    IntelCollateral: Lifetime(refresh_s=_DAY_S, keep_s=7 * _DAY_S),
    NvidiaRim: Lifetime(refresh_s=_DAY_S, keep_s=30 * _DAY_S),
    NvidiaOcsp: Lifetime(refresh_s=6 * _HOUR_S, keep_s=2 * _DAY_S),
}
"""By kind; the time until which an issuer vouches bounds each of them."""


def gathered(wanted: Iterable[Need], obtain: Callable[[Need], Endorsement]) -> tuple[Endorsement, ...]:
    """Return an endorsement for each need, and for each further need of those.

    Raises:
        EvidenceSizeError: more needs than evidence may have.
        ConfedError: what ``obtain`` raises for the first need that it cannot meet.
    """
    found: dict[Need, Endorsement] = {}
    waiting = list(wanted)
    while waiting:
        need = waiting.pop(0)
        if need in found:
            continue
        # 1.
        if len(found) >= _MOST_NEEDS:
            raise EvidenceSizeError("endorsements that evidence needs", expected=f"at most {_MOST_NEEDS}", got="more")
        # 2.
        found[need] = obtain(need)
        # 3.
        waiting.extend(further_needs(found[need]))
    # 4.
    return tuple(found.values())


class CachedProvider:
    """Fetches endorsements from vendors and keeps them; threads may share one, processes its directory.

    Args:
        cache: where answers are kept.
        sources: whom to ask; each need is asked of the first source that knows its kind.
    """

    def __init__(self, cache: EndorsementCache, sources: Iterable[EndorsementSource]) -> None:
        self._cache = cache
        self._sources = Sources(sources)
        # When a vendor last failed to refresh what is kept.
        self._failed: dict[Need, int] = {}
        # One fetch at a time for a need; needs that share a lock only wait for each other.
        self._locks = tuple(Lock() for _ in range(_LOCKS))

    def endorsements_for(self, envelope: Envelope, *, now_ms: int) -> tuple[bytes, ...]:
        """Return all endorsements that the envelope's evidence needs, each in the form that verifiers take.

        Raises:
            AttestationError: evidence or hints that cannot be read.
            EndorsementFetchError: something needed that cannot be had.
        """
        found = gathered(needs_of(envelope), lambda need: self.obtain(need, now_ms=now_ms))
        return tuple(part for endorsement in found for part in endorsement.parts)

    def obtain(self, need: Need, *, now_ms: int) -> Endorsement:
        """Return the endorsement for one need: kept and young enough, or fetched, or kept and still vouched for.

        Raises:
            EndorsementFetchError: it cannot be had.
        """
        kept = self._fresh(need, now_ms)
        if kept is not None:
            return kept
        with self._locks[int(need_digest(need)[:8], 16) % _LOCKS]:
            # Another thread may have fetched it while this one waited.
            kept = self._fresh(need, now_ms)
            return kept if kept is not None else self._refreshed(need, now_ms)

    def _fresh(self, need: Need, now_ms: int) -> Endorsement | None:
        """Return what is kept if its vendor need not be asked: it is young, or the vendor failed a moment ago."""
        kept, lifetime = self._cache.get(need), LIFETIMES[type(need)]
        failed_at = self._failed.get(need)
        recently = failed_at is not None and failed_at <= now_ms < failed_at + _RETRY_MS
        age_s = lifetime.keep_s if recently else lifetime.refresh_s
        return kept if kept is not None and _serves(kept, age_s, now_ms) else None

    def _refreshed(self, need: Need, now_ms: int) -> Endorsement:
        try:
            fetched = self._sources.fetch(need, now_ms=now_ms)
        except EndorsementFetchError as error:
            kept = self._cache.get(need)
            if kept is None or not _serves(kept, LIFETIMES[type(need)].keep_s, now_ms):
                raise
            _log.warning("endorsement %s: %s; the one that is kept serves on", need.KIND, error)
            if len(self._failed) >= _MOST_FAILED:
                self._failed.clear()
            self._failed[need] = now_ms
            return kept
        self._failed.pop(need, None)
        try:
            self._cache.put(fetched)
        except StorageError as error:
            _log.warning("endorsement %s is not kept: %s", need.KIND, error)
        return fetched


class BundleProvider:
    """Gives what a bundle holds and nothing else, for a site without internet.

    An endorsement serves until its issuer no longer vouches for it, which is read from the endorsement itself.

    Args:
        bundle: the bytes of a bundle (``confed evidence endorse``), of which nothing is trusted.

    Raises:
        EndorsementFormatError: not a bundle, or an entry that is not what it says.
        EndorsementMismatchError: an entry for another need than it says.
    """

    def __init__(self, bundle: bytes) -> None:
        self._held: dict[Need, Endorsement] = {}
        for entry in decode_bundle(bundle):
            found = examined(entry.need, entry.data, fetched_at=entry.fetched_at)
            if found.expires_at != entry.expires_at:
                raise EndorsementFormatError("bundle expiry", expected=found.expires_at, got=entry.expires_at)
            self._held[entry.need] = entry

    @classmethod
    def load(cls, path: Path) -> BundleProvider:
        """Return the provider of a file.

        Raises:
            MissingFileError: no file that can be read.
            EndorsementFormatError, EndorsementMismatchError: as the class.
        """
        try:
            with path.open("rb") as file:
                return cls(file.read(BUNDLE_LIMIT_BYTES + 1))
        except OSError as error:
            raise MissingFileError("bundle of endorsements", expected="a file that can be read", got=path) from error

    def endorsements_for(self, envelope: Envelope, *, now_ms: int) -> tuple[bytes, ...]:
        """Return all endorsements that the envelope's evidence needs, each in the form that verifiers take.

        Raises:
            MissingEndorsementError: something needed that the bundle does not hold.
            StaleEndorsementError: something needed that has expired.
            AttestationError: evidence or hints that cannot be read.
        """
        found = gathered(needs_of(envelope), lambda need: self._held_for(need, now_ms))
        return tuple(part for endorsement in found for part in endorsement.parts)

    def _held_for(self, need: Need, now_ms: int) -> Endorsement:
        held = self._held.get(need)
        if held is None:
            raise MissingEndorsementError("bundle", expected=f"{need.KIND} for this evidence", got="none")
        require_current(held, now_ms=now_ms)
        return held


def _serves(kept: Endorsement, age_s: int, now_ms: int) -> bool:
    """Tell whether what is kept is no older than this, not from the future, and still vouched for."""
    return kept.fetched_at <= now_ms <= min(kept.expires_at, kept.fetched_at + age_s * 1000)
