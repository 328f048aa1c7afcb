"""The records of a serving manifest: what a replica's host keeps, and what the model's owner adds to it.

The host has the manifest and each evidence under which a key was released; the owner has the approval and its broker's
ledger. Together they are what ``confed verify`` checks offline.
"""

from __future__ import annotations

from pathlib import Path

from confed.errors import EncodingError
from confed.keybroker.client import BrokerServer, connect_brokers
from confed.keybroker.identity import OwnerHome
from confed.manifest import Manifest
from confed.records.run_directory import RunDirectory


def begin_records(path: Path, manifest: Manifest) -> RunDirectory:
    """Return the directory that a host keeps a serving manifest's records in, made where it is not there.

    Raises:
        EncodingError: another manifest's records are in it.
    """
    directory = RunDirectory(path)
    if not directory.manifest_file.exists():
        directory = RunDirectory.create(path)
        directory.write_manifest(manifest)
    if directory.read_manifest() != manifest.encoded:
        raise EncodingError(f"records in {path}", expected="those of this manifest", got="another's")
    return directory


def add_owners_part(path: Path, *, owner: OwnerHome, server: BrokerServer) -> RunDirectory:
    """Add the owner's approval and its broker's ledger, from the approval on; a newer one takes an older one's place.

    Raises:
        MissingFileError: no records there.
        NotApprovedError: this owner did not approve the manifest.
        UnreachableError: the broker does not answer.
    """
    directory = RunDirectory.open(path)
    manifest = directory.manifest()
    first = owner.approved_at(manifest)
    directory.write_approvals([owner.approve(manifest)])
    client = connect_brokers([server])[owner.party.broker]
    directory.write_ledger(owner.party.name, client.records(owner.party.broker, first=first))
    return directory
