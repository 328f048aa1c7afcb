"""Where a served model comes from: a version that this very broker committed, or none.

A version's key derives from the key of the owner who started its run, so the broker that may release it is the one
that committed it, with the countersignatures that its run asks for. What it has not committed is no version: neither
one of a run that it never approved, nor one whose round did not end.
"""

from __future__ import annotations

from confed.errors import LineageError
from confed.keybroker.store import Transaction
from confed.serving import Origin


def require_committed(tx: Transaction, origin: Origin, *, digest: str) -> None:
    """Refuse a model that the store's owner never committed as this version.

    Args:
        tx: of the owner's store.
        origin: run, manifest, version and attempt that it is said to come from.
        digest: file digest of the model.

    Raises:
        LineageError: a run that this owner did not approve, a version that was not committed, or another one than it.
    """
    approved = tx.one("SELECT manifest FROM approvals WHERE run = ?", (origin.run,))
    if approved is None or approved[0] != origin.manifest:
        expected = "a run that this owner approved, by its manifest"
        raise LineageError("serving.origin.run", expected=expected, got=origin.run[:64])
    version = tx.one(
        "SELECT digest, attempt FROM versions WHERE manifest = ? AND version = ?", (origin.manifest, origin.version)
    )
    if version is None:
        raise LineageError("serving.origin.version", expected="one that was committed", got=origin.version)
    if version != (digest, origin.attempt):
        got = f"{digest[:16]} of attempt {origin.attempt}"
        raise LineageError("served model", expected=f"the committed {version[0][:16]} of attempt {version[1]}", got=got)
