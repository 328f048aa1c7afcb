"""An owner's secrets at rest: AES-256-GCM under the owner's key-encryption key, each bound to its kind and name.

Keys carry floors of their own, sealed with them: whatever manifest is approved later, a key goes nowhere below them.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from typing import NoReturn

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from confed import canonical, record
from confed.errors import ConfigError, TamperedError, UnknownKeyError
from confed.journey import Purpose
from confed.keybroker.store import Transaction
from confed.manifest import PRODUCTION, SIMULATION, Unchecked
from confed.privacy.floor import PrivacyFloor
from confed.scenario import Scenario

_DIGEST = re.compile(r"[0-9a-f]{64}")
_KEY_BYTES = 32
_NONCE_BYTES = 12
_DOMAIN = b"confed/v1/vault\x00"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyFloors:
    """Below what a key is never released, whatever its owner approves later. No field is optional.

    Attributes:
        environment: where the key was born; it never leaves it.
        least_cohort: distinct identities in any result that this key had a part in.
        purposes: kinds of step that it may serve.
        measurements: code digests that may have it, besides the manifest's own list.
        total_rounds: rounds over all manifests.
        discloses_to_model_owner: a cohort of one is allowed, which shows the model owner what this data did.
        counted_identities: the organisations that count towards ``least_cohort``.
        strategies: digests of code of strategy classes that this owner has read, and found to mix every update; any
            other class counts as one that selects a single update. A key from before there was such a list names none.
        statistics_epsilon: what statistics of this data may spend over all runs; 0 permits none, as does a key from
            before there were any.
        lease_s: longest lease of an inference TEE, in seconds; 0 permits none, as does a key from before there were.
        scenarios: kinds of run that it may serve. A key from before there was such a list serves federated ones.
        privacy: of a data key, what all releases over all manifests may tell together; with it the key serves no
            manifest without privacy. ``None``, and of a key from before there was one: the key asks for none.

    Raises:
        ConfigError: floors that would accept nothing or anything.
    """

    environment: str
    least_cohort: int
    purposes: tuple[Purpose, ...]
    measurements: tuple[str, ...] | Unchecked
    total_rounds: int
    discloses_to_model_owner: bool
    counted_identities: tuple[bytes, ...] | Unchecked
    strategies: tuple[str, ...] = ()
    scenarios: tuple[Scenario, ...] = (Scenario.FEDERATED,)
    privacy: PrivacyFloor | None = None
    statistics_epsilon: float = 0.0
    lease_s: int = 0

    def __post_init__(self) -> None:
        if self.environment not in (PRODUCTION, SIMULATION):
            raise ConfigError("floors.environment", expected=f"{PRODUCTION} or {SIMULATION}", got=self.environment)
        for name in ("least_cohort", "total_rounds"):
            if getattr(self, name) < 1:
                raise ConfigError(f"floors.{name}", expected="at least 1", got=getattr(self, name))
        if not 0 <= self.statistics_epsilon < math.inf:
            raise ConfigError("floors.statistics_epsilon", expected="0 or more", got=self.statistics_epsilon)
        if self.lease_s < 0:
            raise ConfigError("floors.lease_s", expected="0 or more", got=self.lease_s)
        for digest in self.strategies:
            if not _DIGEST.fullmatch(digest):
                raise ConfigError("floors.strategies", expected="digests", got=digest[:64])
        for name in ("purposes", "measurements", "counted_identities", "scenarios"):
            if not getattr(self, name):
                raise ConfigError(f"floors.{name}", expected="at least one", got="none")


class Vault:
    """Seals and opens an owner's secret records under its key-encryption key (32 bytes); never shows one.

    Not promised: that a record is the newest of its name. A store put back as a whole is what other owners'
    brokers are witnesses against.
    """

    __slots__ = ("_cipher", "_floors")

    def __init__(self, kek: bytes) -> None:
        if len(kek) != _KEY_BYTES:
            raise ConfigError("key-encryption key size in bytes", expected=_KEY_BYTES, got=len(kek))
        self._cipher = AESGCM(kek)
        self._floors: dict[str, KeyFloors] = {}

    def __repr__(self) -> str:
        return "Vault(…)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Vault holds a key-encryption key and is not pickled")

    def seal(self, secret: bytes, *, kind: str, name: str) -> bytes:
        """Return ``secret`` sealed as the one record of this kind and name: nonce ‖ ciphertext ‖ tag."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, secret, _label(kind, name))

    def open(self, sealed: bytes, *, kind: str, name: str) -> bytes:
        """Return the secret of a record.

        Raises:
            TamperedError: another record's bytes, another key-encryption key, or changed bytes.
        """
        try:
            return self._cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], _label(kind, name))
        except (InvalidTag, ValueError) as error:
            raise TamperedError(f"vault record {kind} {name[:16]}", expected="its own bytes", got="others") from error

    def new_key(self, tx: Transaction, *, floors: KeyFloors) -> tuple[str, bytes]:
        """Make a fresh 32-byte key with its floors and return its id and the key."""
        key_id, key = os.urandom(16).hex(), os.urandom(_KEY_BYTES)
        sealed_floors = self.seal(canonical.encode(record.to_json(floors)), kind="floors", name=key_id)
        sealed_key = self.seal(key, kind="key", name=key_id)
        tx.execute("INSERT INTO keys VALUES (?, ?, ?)", (key_id, sealed_key, sealed_floors))
        return key_id, key

    def key(self, tx: Transaction, key_id: str) -> bytes:
        """Return the key of this id.

        Raises:
            UnknownKeyError: none.
            TamperedError: a record that is not what was sealed.
        """
        return self.open(self._record(tx, key_id)[0], kind="key", name=key_id)

    def floors(self, tx: Transaction, key_id: str) -> KeyFloors:
        """Return the floors that the key of this id carries.

        Raises:
            UnknownKeyError: no such key.
            TamperedError: a record that is not what was sealed.
        """
        known = self._floors.get(key_id)
        if known is None:
            opened = self.open(self._record(tx, key_id)[1], kind="floors", name=key_id)
            known = self._floors[key_id] = record.from_json(KeyFloors, canonical.decode(opened), error=TamperedError)
        return known

    def _record(self, tx: Transaction, key_id: str) -> tuple[bytes, bytes]:
        row = tx.one("SELECT sealed_key, sealed_floors FROM keys WHERE key_id = ?", (key_id,))
        if row is None:
            raise UnknownKeyError("key id", expected="a key of this owner", got=key_id[:40])
        return row[0], row[1]


def _label(kind: str, name: str) -> bytes:
    return _DOMAIN + kind.encode() + b"\x00" + name.encode()
