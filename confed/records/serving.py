"""What the model owner's ledger says of a serving manifest: releases to replicas, and their leases.

1. released: genuine and acceptable evidence of an inference TEE (``instances``); for the one key of the one model that
   the manifest names, and nothing else;
2. leased, exactly where the manifest has terms of a lease: to the instance of the release before it, for the
   manifest's time, and by its own digest once;
3. besides only the approval, endorsements and refusals.

Not promised: that the ledger has no further entries. A model may be served as long as its owner likes, so there is no
closing that would show that an end was cut off.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from confed.attestation.verifier import Registry
from confed.errors import CredentialError, LeaseError, LedgerError, LineageError, PurposeError
from confed.journey import Purpose, Role, Use
from confed.manifest import Manifest
from confed.records.entries import Entry, Witness, choice, number, text
from confed.records.instances import Instances
from confed.records.run_directory import RunDirectory

_OTHERS = ("approved", "refused")


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What was released under a serving manifest: evidences, instances and leases."""

    evidence: int
    instances: int
    leases: int


def verify_releases(witness: Witness, *, manifest: Manifest, directory: RunDirectory, registry: Registry) -> Served:
    """Check each entry of the model owner's ledger about a serving manifest (1 to 3).

    Raises:
        RefusedError: the class of the first rule that an entry breaks; its message names the entry.
    """
    reader = _Reader(manifest, Instances(manifest, broker=witness.party.broker, directory=directory, registry=registry))
    for entry in witness.entries:
        with witness.at(entry):
            reader.read(entry)
    reader.require_no_lease_outstanding()
    return reader.served


class _Reader:
    """Goes through the ledger in order."""

    def __init__(self, manifest: Manifest, instances: Instances) -> None:
        self._manifest = manifest
        self._serving = manifest.serving
        self._instances = instances
        self._leases: set[str] = set()
        self._released: Entry | None = None
        self._key = expected_key(manifest)

    @property
    def served(self) -> Served:
        found = self._instances.found
        instances = {attested.claims.binding.instance for attested in found.values()}
        return Served(evidence=len(found), instances=len(instances), leases=len(self._leases))

    def read(self, entry: Entry) -> None:
        if entry.event == "leased":
            self._read_lease(entry)
            return
        self.require_no_lease_outstanding()
        if entry.event == "endorsed":
            self._instances.endorsed(entry)
        elif entry.event == "released":
            self._read_release(entry)
        elif entry.event not in _OTHERS:
            raise LedgerError("entry", expected="what a serving manifest leads to", got=entry.event)

    def require_no_lease_outstanding(self) -> None:
        if self._serving is not None and self._serving.lease is not None and self._released is not None:
            raise LeaseError("lease", expected="one with each release", got="none")

    def _read_release(self, entry: Entry) -> None:
        # 1.
        self._instances.released(entry)
        asked = (choice(entry, "role", Role), choice(entry, "purpose", Purpose))
        if asked != (Role.INFERENCE, Purpose.INFER):
            raise PurposeError("purpose", expected="inference by an inference TEE", got=f"{asked[0]} {asked[1]}")
        if text(entry, "identity"):
            raise CredentialError("identity", expected="none", got=text(entry, "identity")[:16])
        if text(entry, "base") != self._manifest.model.start.digest:
            raise LineageError("base", expected=self._manifest.model.start.digest[:16], got=text(entry, "base")[:16])
        keys = entry.body.get("keys")
        if keys != [self._key]:
            raise PurposeError("keys", expected="the one of the model that is served", got="others")
        self._released = entry

    def _read_lease(self, entry: Entry) -> None:
        # 2.
        terms = None if self._serving is None else self._serving.lease
        released, self._released = self._released, None
        if terms is None or released is None:
            raise LeaseError("lease", expected="one after a release, where the manifest has terms of it", got="one")
        for name in ("instance", "evidence", "request"):
            if text(entry, name) != text(released, name):
                raise LeaseError(f"lease {name}", expected=text(released, name)[:16], got=text(entry, name)[:16])
        length_ms = number(entry, "expires_at") - entry.time
        if length_ms != terms.seconds * 1000:
            raise LeaseError("lease length in ms", expected=terms.seconds * 1000, got=length_ms)
        if text(entry, "lease") in self._leases:
            raise LeaseError("lease", expected="each once", got="one twice")
        self._leases.add(text(entry, "lease"))


def expected_key(manifest: Manifest) -> Mapping[str, str | int]:
    """Return the one key that a serving manifest's replicas may have, as ledgers write it."""
    start, origin = manifest.model.start, None if manifest.serving is None else manifest.serving.origin
    return {
        "key_id": start.key_id,
        "use": str(Use.START if origin is None else Use.VERSION),
        "container": start.container_id if origin is None else "",
        "version": 0 if origin is None else origin.version,
        "attempt": 0 if origin is None else origin.attempt,
    }
