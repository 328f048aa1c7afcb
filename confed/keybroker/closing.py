"""The end of a run: the model owner's broker says so, every other owner's agrees by its own head (DESIGN §4).

Why it ended there is for each broker to see for itself: it reads the stop rules' reason off the commit records.
"""

from __future__ import annotations

from collections.abc import Sequence

from confed.errors import ForkError, LineageError, QuorumError
from confed.journey import Purpose
from confed.keybroker.decision import Decision
from confed.keybroker.heads import HeadVersion, witness
from confed.keybroker.history import History
from confed.keybroker.lineage import parsed, read_record, verified
from confed.keybroker.statements import Candidate, Closing, ClosingCountersignature
from confed.record import to_json
from confed.statement import Signed
from confed.stopping import Ending


def close(decision: Decision, *, final_record: bytes, closing: Signed | None, history: Sequence[bytes]) -> Signed:
    """Sign that the run ended (the model owner's broker), or agree with that by one's own head (the others).

    ``history`` holds every commit record of the run in order, abridged, where the manifest has a stop rule.

    Raises:
        RoundError: the head is not the last round, and no stop rule fired in it.
        QuorumError: no closing from the model owner's broker, or not a data owner's broker.
        LineageError: a closing that is not equal to this broker's head or gives another reason than the records; or
            records that do not lead to this broker's head.
        ForkError: a second closing, or a record of another candidate than this broker signed.
        QuorumError, CohortError, SignatureError, EncodingError: a record that does not hold.
    """
    kind = "closing" if closing is None else "closing-countersigned"
    about = "" if closing is None else closing.digest
    rounds = decision.terms.manifest.rounds
    for issued in decision.issued(kind, Purpose.TRAIN, rounds):
        if issued.about == about:
            return issued.signed
        raise ForkError("closing", expected="the one that was countersigned", got="another")
    head = witness(decision, final_record)
    ending = _ending(decision, head, history)
    if closing is None:
        signed = _closing(decision, head, ending)
    else:
        signed = _countersigned_closing(decision, head, ending, closing)
    decision.record(
        kind,
        closing=about or signed.digest,
        statement=signed.digest,
        version=head.version,
        digest=head.digest,
        ending=to_json(ending),
    )
    # Whatever the round: a run has one end, so all of its closings are kept under its last possible round.
    return decision.issue(signed, kind=kind, purpose=Purpose.TRAIN, round_number=rounds, attempt=0, about=about)


def _ending(decision: Decision, head: HeadVersion, records: Sequence[bytes]) -> Ending:
    manifest = decision.terms.manifest
    if not manifest.stop.any:
        return History(manifest, version=head.version, privacy=head.privacy).require_ended()
    history = History.verified(decision.terms.lineage, records)
    _require_own_word(decision, records)
    if (history.version, history.digest) != (head.version, head.digest):
        raise LineageError("closing history", expected=f"up to version {head.version}", got=history.version)
    return history.require_ended()


def _require_own_word(decision: Decision, records: Sequence[bytes]) -> None:
    """Refuse a record of another candidate than this broker countersigned or committed itself.

    Records come abridged, so that those of a long run with many sites fit in one call: of a round that this broker
    did not countersign it has the model owner's broker's word alone. ``confed verify`` has the whole records.
    """
    for record in map(read_record, records):
        said = parsed(record.candidate, Candidate)
        for kind in ("countersigned", "committed"):
            issued = decision.issued_for(kind, said.purpose, said.round, said.attempt)
            if issued is not None and issued.about != record.candidate.digest:
                raise ForkError(
                    f"{said.purpose} record of round {said.round}", expected=f"what was {kind}", got="another"
                )


def _closing(decision: Decision, head: HeadVersion, ending: Ending) -> Signed:
    if not decision.terms.is_model_owner:
        raise QuorumError("closing", expected="the model owner's broker", got="another")
    return decision.sign(
        Closing(
            broker=decision.party.broker,
            run=decision.terms.run,
            manifest=decision.terms.digest,
            rounds=head.version,
            version=head.version,
            digest=head.digest,
            ending=ending,
            time=decision.now,
        )
    )


def _countersigned_closing(decision: Decision, head: HeadVersion, ending: Ending, closing: Signed) -> Signed:
    terms = decision.terms
    if terms.site is None:
        raise QuorumError("closing countersignature", expected="a data owner's broker", got="another")
    owner = terms.manifest.model.owner.broker
    found = verified(closing, Closing, owner)
    expected = (owner, terms.run, terms.digest, head.version, head.version, head.digest)
    got = (found.broker, found.run, found.manifest, found.rounds, found.version, found.digest)
    if expected != got:
        raise LineageError("closing", expected=f"version {head.version} as witnessed", got="another end")
    if found.ending != ending:
        raise LineageError("closing reason", expected=ending.told, got=found.ending.rule[:16])
    return decision.sign(
        ClosingCountersignature(
            broker=decision.party.broker,
            identity=decision.party.identity,
            closing=closing.digest,
            run=terms.run,
            version=head.version,
            digest=head.digest,
            head=decision.ledger_tip(),
            time=decision.now,
        )
    )
