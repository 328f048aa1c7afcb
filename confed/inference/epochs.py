"""Keys that requests are sealed to: a new one every hour, signed by the attested instance, gone ten minutes after it.

What was sealed to a key that is gone cannot be opened by anybody, the TEE included. Each key has the list of requests
that it was used for, so none runs twice; a request that is refused by signature stands there too, so it never runs. The
list outlives its key by a while: who refuses what was sealed to a key that is gone must know that it was not taken
before.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from confed.errors import BusyError, EvidenceFormatError, ReplayedError, StaleEpochError
from confed.sealing.identities import HpkeIdentity
from confed.statement import Signed, sign, verify

EPOCH_MS = 3600 * 1000
OVERLAP_MS = 600 * 1000
REMEMBERED_MS = OVERLAP_MS
"""How long after a key's time its list is kept: a refusal that comes later than that comes without a signature."""
MOST_REQUESTS = 1_000_000
"""Requests that an epoch remembers; then a new one begins early."""
SKEW_MS = 30_000
"""How far a requester's clock may be from the TEE's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochKey:
    """An attested inference TEE says: seal requests to this key, from then to then (Unix milliseconds).

    Signed with the instance's own signing key, which its evidence vouches for.
    """

    TYPE: ClassVar[str] = "confed/v1/epoch-key"
    manifest: str
    instance: str
    number: int
    hpke_public: bytes
    not_before: int
    not_after: int


def verify_epoch(signed: Signed, *, manifest: str, instance: str, signing_public: bytes, now_ms: int) -> EpochKey:
    """Return an epoch's key that this attested instance signed and whose time is now.

    Raises:
        SignatureError, EncodingError: not signed by the instance, or something else.
        EvidenceFormatError: for another manifest or instance, or for longer than an epoch lasts.
        StaleEpochError: its time is over, or has not come.
    """
    epoch = verify(signed, EpochKey, signer=signing_public)
    if (epoch.manifest, epoch.instance) != (manifest, instance):
        raise EvidenceFormatError("epoch key", expected="of this manifest and instance", got="of another")
    if not 0 < epoch.not_after - epoch.not_before <= EPOCH_MS + OVERLAP_MS:
        raise EvidenceFormatError("epoch length", expected="at most 70 minutes", got="more")
    if not epoch.not_before - SKEW_MS <= now_ms < epoch.not_after:
        raise StaleEpochError("epoch key", expected="one whose time is now", got="another")
    return epoch


class OpenEpoch:
    """An epoch: while its private key is held, what was sealed to it can be opened, once."""

    def __init__(self, *, key: EpochKey, signed: Signed, identity: HpkeIdentity) -> None:
        self.key = key
        self.signed = signed
        self._identity: HpkeIdentity | None = identity
        self._taken: set[bytes] = set()
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """The digest of the signed statement."""
        return self.signed.digest

    @property
    def is_full(self) -> bool:
        """Whether it remembers as many requests as it can."""
        return len(self._taken) >= MOST_REQUESTS

    def unwrap(self, wrapped: bytes, *, info: bytes) -> bytes:
        """Return the secret of a request.

        Raises:
            RecipientError, WrongKeyError: not wrapped to this key with this ``info``.
            StaleEpochError: the key is gone.
        """
        identity = self._identity
        if identity is None:
            raise _gone()
        return identity.unwrap(wrapped, info=info)

    def close(self) -> None:
        """Let the key go: nothing that was sealed to it is taken from now on, not even what has been opened."""
        with self._lock:
            self._identity = None

    def take(self, transcript: bytes) -> None:
        """Note that a request is about to run; of several callers with the same one, one succeeds.

        Raises:
            ReplayedError: it was taken, or refused, before.
            StaleEpochError: the key has gone meanwhile.
            BusyError: the epoch is full.
        """
        with self._lock:
            self._require_new(transcript)
            if self._identity is None:
                raise _gone()
            if self.is_full:
                raise BusyError("requests in this epoch", expected=f"at most {MOST_REQUESTS}", got="more")
            self._taken.add(transcript)

    def refuse(self, transcript: bytes) -> None:
        """Make sure that this request is never taken: note it, unless nothing more is taken anyway.

        Raises:
            ReplayedError: it was taken, or refused, before.
        """
        with self._lock:
            self._require_new(transcript)
            if self._identity is not None and not self.is_full:
                self._taken.add(transcript)

    def _require_new(self, transcript: bytes) -> None:
        if transcript in self._taken:
            raise ReplayedError("request", expected="one that was not taken before", got="a replay")


class Epochs:
    """The epochs of one instance: makes the next key when it is time, and lets go of those whose time is over.

    Args:
        manifest, instance: what every epoch key names.
        signing_key: the instance's own.
        now: the enclave's clock, Unix milliseconds.
    """

    def __init__(self, *, manifest: str, instance: str, signing_key: Ed25519PrivateKey, now: Callable[[], int]) -> None:
        self._manifest = manifest
        self._instance = instance
        self._signing = signing_key
        self._now = now
        self._lock = threading.Lock()
        self._held: list[OpenEpoch] = []
        self._past: list[OpenEpoch] = []
        self._number = 0

    def current(self) -> OpenEpoch:
        """Return the epoch to seal to now."""
        with self._lock:
            self._drop()
            newest = self._held[-1] if self._held else None
            if newest is None or newest.is_full or self._now() >= newest.key.not_before + EPOCH_MS:
                newest = self._begin()
            return newest

    def named(self, name: str) -> OpenEpoch | None:
        """Return the epoch of this name, if it is held."""
        with self._lock:
            self._drop()
            return next((epoch for epoch in self._held if epoch.name == name), None)

    def refuse(self, names: Sequence[str], transcript: bytes) -> str | None:
        """Make sure that a request is never taken, and return the first of its epochs that is this instance's.

        Args:
            names: of the epochs that it was sealed to.
            transcript: of the request.

        Returns:
            ``None`` where no such epoch is remembered: then nobody knows whether the request was taken.

        Raises:
            ReplayedError: it was taken, or refused, before.
        """
        with self._lock:
            self._drop()
            known = {epoch.name: epoch for epoch in (*self._held, *self._past)}
        mine = [known[name] for name in names if name in known]
        for epoch in mine:
            epoch.refuse(transcript)
        return mine[0].name if mine else None

    def drop_all(self) -> None:
        """Let every key go: what was sealed to them can be opened by nobody."""
        with self._lock:
            self._let_go(self._held)

    def left_ms(self, name: str) -> int:
        """Return how long an epoch's key is still held: 0 if it is not."""
        epoch = self.named(name)
        return 0 if epoch is None else epoch.key.not_after - self._now()

    def _drop(self) -> None:
        now = self._now()
        self._let_go([epoch for epoch in self._held if now >= epoch.key.not_after])
        self._past = [epoch for epoch in self._past if now < epoch.key.not_after + REMEMBERED_MS]

    def _let_go(self, epochs: Sequence[OpenEpoch]) -> None:
        for epoch in epochs:
            epoch.close()
        self._past += epochs
        self._held = [epoch for epoch in self._held if epoch not in epochs]

    def _begin(self) -> OpenEpoch:
        identity, now = HpkeIdentity.generate(), self._now()
        self._number += 1
        key = EpochKey(
            manifest=self._manifest,
            instance=self._instance,
            number=self._number,
            hpke_public=identity.public,
            not_before=now,
            not_after=now + EPOCH_MS + OVERLAP_MS,
        )
        epoch = OpenEpoch(key=key, signed=sign(key, self._signing), identity=identity)
        self._held.append(epoch)
        return epoch


def _gone() -> StaleEpochError:
    return StaleEpochError("epoch", expected="one whose key is held", got="one whose time is over")
