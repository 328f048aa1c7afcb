"""One decision of a broker: the open transaction, the owner's keys, the time, and an approved manifest's terms.

The rules themselves are in ``release`` (keys), ``tickets``, ``succession`` (countersignatures and commits),
``closing`` and ``heads`` (which version is the newest); they read and write only through a decision.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from confed.errors import InstanceError, ManifestMismatchError, RoundError
from confed.journey import Purpose, Role
from confed.keybroker.ledger import Ledger
from confed.keybroker.lineage import Lineage, lineage_of
from confed.keybroker.statements import policy_digest
from confed.keybroker.store import Transaction
from confed.keybroker.vault import KeyFloors, Vault
from confed.manifest import Manifest, Party, Site, TeePolicy
from confed.serving import Origin
from confed.statement import Signed, Statement, sign

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """An approved manifest as one owner's broker sees it: ``site`` is that owner's, if it is a data owner."""

    manifest: Manifest
    lineage: Lineage
    is_model_owner: bool
    site: Site | None
    policies: Mapping[Role, tuple[TeePolicy, str]]

    @classmethod
    def of(cls, manifest: Manifest, party: Party) -> Terms:
        """Return the terms of ``manifest`` for ``party``.

        Raises:
            ManifestMismatchError: the manifest does not list this party with these keys.
        """
        keys = (party.identity, party.broker)
        is_model_owner = (manifest.model.owner.identity, manifest.model.owner.broker) == keys
        site = manifest.site_with(identity=party.identity, broker=party.broker)
        if site is None and not is_model_owner:
            raise ManifestMismatchError("owner", expected="a party of the manifest", got=party.name)
        policies = {
            Role.CLIENT: manifest.client_tee,
            Role.AGGREGATOR: manifest.aggregator_tee,
            Role.INFERENCE: manifest.client_tee,
        }
        return cls(
            manifest=manifest,
            lineage=lineage_of(manifest),
            is_model_owner=is_model_owner,
            site=site,
            policies={role: (policy, policy_digest(policy)) for role, policy in policies.items()},
        )

    @property
    def digest(self) -> str:
        """The manifest's digest."""
        return self.lineage.digest

    @property
    def run(self) -> str:
        """The run's name."""
        return self.manifest.run

    @property
    def origin(self) -> Origin | None:
        """Which run made the model that this manifest serves; ``None`` where it serves a start, or none."""
        return None if self.manifest.serving is None else self.manifest.serving.origin


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A statement of this broker in its store: what it answered, and one detail that later rules need."""

    attempt: int
    about: str
    detail: bytes
    signed: Signed


class Decision:
    """The one road from a rule to the store, the ledger and the broker's signature."""

    def __init__(
        self,
        *,
        tx: Transaction,
        party: Party,
        key: Ed25519PrivateKey,
        vault: Vault,
        ledger: Ledger,
        now: int,
        terms: Terms,
    ) -> None:
        self.tx = tx
        self.party = party
        self.vault = vault
        self.now = now
        self.terms = terms
        self._key = key
        self._ledger = ledger

    def sign(self, statement: Statement) -> Signed:
        """Sign a statement as this broker."""
        return sign(statement, self._key)

    def record(self, event: str, **body: Any) -> str:
        """Append a ledger entry about this manifest and return its digest."""
        about = {"manifest": self.terms.digest, "run": self.terms.run}
        return self._ledger.append(self.tx, event=event, body={**about, **body}, time=self.now)

    def ledger_tip(self) -> str:
        """Return the digest of the last ledger entry."""
        return self._ledger.tip(self.tx)

    def issue(
        self,
        signed: Signed,
        *,
        kind: str,
        purpose: Purpose,
        round_number: int,
        attempt: int,
        about: str,
        detail: bytes = b"",
    ) -> Signed:
        """Keep a statement as the only one of its kind for this purpose, round and attempt, and return it."""
        self.tx.execute(
            "INSERT INTO issued VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (self.terms.digest, kind, purpose, round_number, attempt, about, detail, signed.payload, signed.signature),
        )
        return signed

    def issued(self, kind: str, purpose: Purpose, round_number: int) -> list[Issued]:
        """Return the statements of a kind for a purpose and round, oldest attempt first."""
        rows = self.tx.rows(
            "SELECT attempt, about, detail, payload, signature FROM issued"
            " WHERE manifest = ? AND kind = ? AND purpose = ? AND round = ? ORDER BY attempt",
            (self.terms.digest, kind, purpose, round_number),
        )
        return [
            Issued(
                attempt=row[0],
                about=row[1],
                detail=row[2],
                signed=Signed(payload=row[3], signer=self.party.broker, signature=row[4]),
            )
            for row in rows
        ]

    def issued_for(self, kind: str, purpose: Purpose, round_number: int, attempt: int) -> Issued | None:
        """Return the statement of a kind for one purpose, round and attempt, if there is one."""
        found = self.issued(kind, purpose, round_number)
        return next((entry for entry in found if entry.attempt == attempt), None)

    def take_seat(self, *, purpose: Purpose, round_number: int, attempt: int, instance: str) -> None:
        """Make ``instance`` the one aggregator of this attempt, as this broker sees it.

        Raises:
            InstanceError: another one has been since: a restarted aggregator is a new attempt.
        """
        where = (self.terms.digest, purpose, round_number, attempt)
        self.tx.execute("INSERT OR IGNORE INTO seats VALUES (?, ?, ?, ?, ?)", (*where, instance))
        row = self.tx.one(
            "SELECT instance FROM seats WHERE manifest = ? AND purpose = ? AND round = ? AND attempt = ?", where
        )
        if row is None or row[0] != instance:
            raise InstanceError("aggregator instance", expected="the one of this attempt", got=instance[:16])

    def data_floors(self) -> tuple[str, KeyFloors] | None:
        """Return the id and the floors of this owner's data key, if the manifest names a dataset of this owner."""
        site = self.terms.site
        if site is None or site.dataset is None:
            return None
        return site.dataset.key_id, self.vault.floors(self.tx, site.dataset.key_id)

    def require_open(self) -> None:
        """Refuse everything new once this broker has agreed that the run ended.

        Raises:
            RoundError: it has.
        """
        row = self.tx.one(
            "SELECT 1 FROM issued WHERE manifest = ? AND kind IN ('closing', 'closing-countersigned')",
            (self.terms.digest,),
        )
        if row is not None:
            raise RoundError("run", expected="one that goes on", got="a closed one")
