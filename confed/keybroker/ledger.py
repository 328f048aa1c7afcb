"""What a broker decided, in order: hash-chained entries, each signed by the broker, verifiable by anybody.

An entry is written in the transaction of the decision that it records, refusals too. Bodies hold digests and public
names, never a secret, so that a verifier can link every release, ticket and commit to the statements themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from confed.errors import ConfedError, LedgerError
from confed.keybroker.statements import LedgerEntry
from confed.keybroker.store import Store, Transaction
from confed.statement import Signed, public_bytes, sign, unverified, verify

EVENTS = frozenset(
    {
        "created",
        "approved",
        "refused",
        "endorsed",
        "released",
        "leased",
        "credentialed-aggregator",
        "credentialed-client",
        "ticketed",
        "statistics-permitted",
        "countersigned",
        "committed",
        "witnessed",
        "checkpointed",
        "closing",
        "closing-countersigned",
    }
)
_PAGE = 500


class Ledger:
    """Writes the one chain of a broker; its tip is always read from the store, so two processes share it."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self._public = public_bytes(key)

    def append(self, tx: Transaction, *, event: str, body: Mapping[str, Any], time: int) -> str:
        """Append an entry inside a transaction and return its digest.

        Raises:
            LedgerError: an event that no verifier knows.
        """
        if event not in EVENTS:
            raise LedgerError("ledger event", expected="a known one", got=event)
        sequence, previous, earliest = _last(tx)
        entry = LedgerEntry(
            broker=self._public,
            sequence=sequence + 1,
            previous=previous,
            time=max(time, earliest),
            event=event,
            body=body,
        )
        signed = sign(entry, self._key)
        digest = signed.digest
        tx.execute(
            "INSERT INTO ledger VALUES (?, ?, ?, ?, ?)",
            (entry.sequence, digest, entry.time, signed.payload, signed.signature),
        )
        tx.last_entry = (entry.sequence, digest, entry.time)
        return digest

    @staticmethod
    def time(tx: Transaction) -> int:
        """Return the time of the last entry (0 if there is none): the clock may not be before it."""
        return _last(tx)[2]

    @staticmethod
    def tip(tx: Transaction) -> str:
        """Return the digest of the last entry (empty if there is none)."""
        return _last(tx)[1]

    def read(self, store: Store, *, first: int = 0) -> Iterable[Signed]:
        """Yield the entries from a sequence number on, page by page."""
        while True:
            rows = store.rows(
                "SELECT sequence, payload, signature FROM ledger WHERE sequence >= ? ORDER BY sequence LIMIT ?",
                (first, _PAGE),
            )
            for _, payload, signature in rows:
                yield Signed(payload=payload, signer=self._public, signature=signature)
            if len(rows) < _PAGE:
                return
            first = rows[-1][0] + 1


def _last(tx: Transaction) -> tuple[int, str, int]:
    """Return the sequence number, digest and time of the last entry (-1, nothing and 0 before any): read once."""
    if tx.last_entry is None:
        row = tx.one("SELECT sequence, digest, time FROM ledger ORDER BY sequence DESC LIMIT 1")
        tx.last_entry = (-1, "", 0) if row is None else (row[0], row[1], row[2])
    return tx.last_entry


def verify_ledger(
    entries: Sequence[Signed], *, broker: bytes, through: str | None = None, part_from: str | None = None
) -> tuple[LedgerEntry, ...]:
    """Return the entries of a broker's ledger, its chain, signatures, order and times checked.

    Args:
        entries: all of them, from the first on; or a part, with ``part_from``.
        broker: the broker's public key, from outside the ledger.
        through: the digest of an entry that must be in it, such as a closing countersignature's ``head``. A chain
            alone cannot show that its end was cut off.
        part_from: the digest of the manifest whose ``approved`` entry the part begins with: what a run's records hold.
            What came before is not in it and not vouched for.

    Raises:
        LedgerError: names the first sequence number at which something does not hold.
    """
    found: list[LedgerEntry] = []
    start, previous, time = _start(entries, part_from)
    reached = through is None
    for sequence, signed in enumerate(entries, start):
        try:
            entry = verify(signed, LedgerEntry, signer=broker)
        except ConfedError as error:
            raise LedgerError(f"ledger entry {sequence}", expected="one signed by its broker", got="another") from error
        for what, expected, got in (
            ("broker", broker.hex()[:16], entry.broker.hex()[:16]),
            ("sequence", sequence, entry.sequence),
            ("previous", previous, entry.previous),
        ):
            if expected != got:
                raise LedgerError(f"ledger entry {sequence} {what}", expected=expected, got=got)
        if entry.time < time:
            raise LedgerError(f"ledger entry {sequence} time", expected=f"at least {time}", got=entry.time)
        if entry.event not in EVENTS or (entry.event == "created") != (sequence == 0):
            raise LedgerError(
                f"ledger entry {sequence} event", expected="a known one in its place", got=entry.event[:40]
            )
        previous, time = signed.digest, entry.time
        reached = reached or previous == through
        found.append(entry)
    if part_from is not None and start > 0:
        _require_approval(found, part_from)
    if not reached:
        raise LedgerError(
            f"ledger entry {start + len(found)}", expected=f"entries up to {str(through)[:16]}", got="the end"
        )
    return tuple(found)


def _start(entries: Sequence[Signed], part_from: str | None) -> tuple[int, str, int]:
    """Return the sequence number, previous digest and time that the first entry has to follow; nothing is trusted."""
    if part_from is None or not entries:
        return 0, "", 0
    try:
        first = unverified(entries[0], LedgerEntry)
    except ConfedError as error:
        raise LedgerError("ledger entry at the start", expected="a ledger entry", got="another") from error
    return first.sequence, first.previous, 0


def _require_approval(found: Sequence[LedgerEntry], manifest: str) -> None:
    if not found or found[0].event != "approved" or found[0].body.get("manifest") != manifest:
        at = found[0].sequence if found else 0
        got = found[0].event if found else "nothing"
        raise LedgerError(f"ledger entry {at}", expected="the approval of this run's manifest", got=got)
