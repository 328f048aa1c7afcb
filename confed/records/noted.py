"""What brokers noted of a run in their ledgers, read without verifying it: for pages and tokens, not for verdicts."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from confed.errors import ConfedError
from confed.keybroker.statements import LedgerEntry
from confed.manifest import Manifest, Party
from confed.records.run_directory import RunDirectory
from confed.statement import unverified


def noted(directory: RunDirectory, manifest: Manifest, event: str) -> Iterator[tuple[Party, Mapping[str, Any]]]:
    """Yield whose broker noted an event of this run, and what, as far as the ledgers can be read; none is verified."""
    for party in owners_of(manifest):
        try:
            entries = [unverified(signed, LedgerEntry) for signed in directory.ledger(party.name)]
        except ConfedError:
            continue
        for entry in entries:
            if entry.event == event and entry.body.get("run") == manifest.run:
                yield party, entry.body


def noted_endorsements(directory: RunDirectory, manifest: Manifest) -> tuple[bytes, ...]:
    """Return what brokers noted that they verified evidence with, as far as the ledgers can be read."""
    found: set[bytes] = set()
    for _, body in noted(directory, manifest, "endorsed"):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            found.add(base64.b64decode(body["endorsement"], validate=True))
    return tuple(sorted(found))


def owners_of(manifest: Manifest) -> tuple[Party, ...]:
    """Return the model owner, then the sites' owners."""
    return (manifest.model.owner, *(site.owner for site in manifest.sites))
