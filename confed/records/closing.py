"""How a run ended, held against its commit records: by whose word, in which version, and why there.

1. the model owner's broker signed the closing, of the last version that was committed
2. the run ended where its manifest ends it, for the reason that the commit records show, and went on no further
3. the closing and its reason are in the model owner's ledger
4. a majority of the sites' brokers countersigned it, each with the same reason in its ledger
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from confed.errors import LedgerError, LineageError, QuorumError
from confed.keybroker.history import History
from confed.keybroker.lineage import Lineage
from confed.keybroker.statements import Closing, ClosingCountersignature
from confed.manifest import Manifest
from confed.record import to_json
from confed.records.comparison import equal
from confed.records.entries import Witness
from confed.records.places import at
from confed.records.run_directory import ClosingRecord
from confed.records.witnesses import Committed
from confed.statement import Signed, verify
from confed.stopping import Ending


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A closing that holds: the last version, the reason, and how many sites' brokers countersigned."""

    version: int
    ending: Ending
    countersigned: int

    @property
    def told(self) -> str:
        """The end in words."""
        return f"version {self.version} after {self.version} rounds; {self.ending.told}"


def verify_closing(
    record: ClosingRecord | None,
    *,
    lineage: Lineage,
    trained: Sequence[Committed],
    evaluated: Sequence[Committed],
    witnesses: Mapping[bytes, Witness],
) -> Ended:
    """Verify how a run ended; ``witnesses`` are by broker, the commit records are verified before.

    Raises:
        LedgerError: no closing, or one that is not in a ledger as it is.
        RoundError: the records show no end: neither the last round nor a stop rule that fired.
        LineageError: another version or reason than the records show.
        SignatureError, QuorumError: as the names say.
    """
    if record is None:
        raise LedgerError("closing", expected="a countersigned closing entry", got="none: the run is incomplete")
    manifest = lineage.manifest
    owner = manifest.model.owner.broker
    with at("closing"):
        # 1.
        closing = verify(record.closing, Closing, signer=owner)
        for what, expected, got in (
            ("broker", owner, closing.broker),
            ("run", manifest.run, closing.run),
            ("manifest", lineage.digest, closing.manifest),
            ("rounds", len(trained), closing.rounds),
            ("version", closing.rounds, closing.version),
            ("digest", trained[-1].candidate.digest if trained else None, closing.digest),
        ):
            equal(what, expected, got)
        # 2.
        ending = _history(manifest, trained, evaluated).require_ended()
        if closing.ending != ending:
            raise LineageError("reason of the end", expected=ending.told, got=closing.ending.rule[:16])
        # 3.
        _in_ledger(witnesses[owner], "closing", record.closing, ending)
        # 4.
        agreed = _countersigned(record, closing, manifest, witnesses)
        if len(agreed) < manifest.quorum:
            raise QuorumError("countersignatures", expected=f"at least {manifest.quorum}", got=len(agreed))
    return Ended(version=closing.version, ending=ending, countersigned=len(agreed))


def _countersigned(
    record: ClosingRecord, closing: Closing, manifest: Manifest, witnesses: Mapping[bytes, Witness]
) -> set[bytes]:
    sites = {site.owner.broker: site.owner for site in manifest.sites}
    agreed: set[bytes] = set()
    for signed in record.countersignatures:
        party = sites.get(signed.signer)
        if party is None:
            raise QuorumError("countersignature", expected="a site's broker", got=signed.signer.hex()[:16])
        with at(f"countersignature of {party.name}"):
            found = verify(signed, ClosingCountersignature, signer=party.broker)
            end = (record.closing.digest, closing.run, closing.version, closing.digest)
            expected = (party.broker, party.identity, *end)
            got = (found.broker, found.identity, found.closing, found.run, found.version, found.digest)
            if expected != got:
                raise LedgerError("countersignature", expected="of this closing", got="of another")
            previous = _in_ledger(witnesses[party.broker], "closing-countersigned", signed, closing.ending)
            equal("head", found.head, previous)
        agreed.add(party.identity)
    return agreed


def _history(manifest: Manifest, trained: Sequence[Committed], evaluated: Sequence[Committed]) -> History:
    """Return what the records show, round by round: a version, then its evaluation where there is one."""
    looked = {one.candidate.round: one.record for one in evaluated}
    history = History(manifest)
    for one in trained:
        history.add(one.record)
        if one.candidate.round in looked:
            history.add(looked[one.candidate.round])
    return history


def _in_ledger(witness: Witness, event: str, signed: Signed, ending: Ending) -> str:
    """Return the digest of the entry before the one in which a statement is recorded, with the reason of the end."""
    for entry in witness.of(event):
        if entry.body.get("statement") == signed.digest:
            if entry.body.get("ending") != to_json(ending):
                where = f"ledger of {witness.party.name}: {event}: ending"
                raise LedgerError(where, expected=ending.told, got="another")
            return entry.previous
    raise LedgerError(f"ledger of {witness.party.name}: {event}", expected=signed.digest[:16], got="none")
