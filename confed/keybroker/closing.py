"""The end of a run: the model owner's broker says so, every other owner's agrees by its own head (DESIGN §4)."""

from __future__ import annotations

from confed.errors import ForkError, LineageError, QuorumError, RoundError
from confed.journey import Purpose
from confed.keybroker.decision import Decision
from confed.keybroker.heads import HeadVersion, witness
from confed.keybroker.lineage import verified
from confed.keybroker.statements import Closing, ClosingCountersignature
from confed.statement import Signed


def close(decision: Decision, *, final_record: bytes, closing: Signed | None) -> Signed:
    """Sign that the run ended (the model owner's broker), or agree with that by one's own head (the others).

    Raises:
        RoundError: the head is not the last round.
        QuorumError: no closing from the model owner's broker, or not a data owner's broker.
        LineageError: a closing that is not equal to this broker's head.
    """
    kind = "closing" if closing is None else "closing-countersigned"
    about = "" if closing is None else closing.digest
    rounds = decision.terms.manifest.rounds
    for issued in decision.issued(kind, Purpose.TRAIN, rounds):
        if issued.about == about:
            return issued.signed
        raise ForkError("closing", expected="the one that was countersigned", got="another")
    head = witness(decision, final_record)
    if head.version != rounds:
        raise RoundError("closing", expected=f"version {rounds}", got=head.version)
    signed = _closing(decision, head) if closing is None else _countersigned_closing(decision, head, closing)
    decision.record(
        kind, closing=about or signed.digest, statement=signed.digest, version=head.version, digest=head.digest
    )
    return decision.issue(signed, kind=kind, purpose=Purpose.TRAIN, round_number=rounds, attempt=0, about=about)


def _closing(decision: Decision, head: HeadVersion) -> Signed:
    if not decision.terms.is_model_owner:
        raise QuorumError("closing", expected="the model owner's broker", got="another")
    return decision.sign(
        Closing(
            broker=decision.party.broker,
            run=decision.terms.run,
            manifest=decision.terms.digest,
            rounds=decision.terms.manifest.rounds,
            version=head.version,
            digest=head.digest,
            time=decision.now,
        )
    )


def _countersigned_closing(decision: Decision, head: HeadVersion, closing: Signed) -> Signed:
    terms = decision.terms
    if terms.site is None:
        raise QuorumError("closing countersignature", expected="a data owner's broker", got="another")
    owner = terms.manifest.model.owner.broker
    found = verified(closing, Closing, owner)
    expected = (owner, terms.run, terms.digest, terms.manifest.rounds, head.version, head.digest)
    got = (found.broker, found.run, found.manifest, found.rounds, found.version, found.digest)
    if expected != got:
        raise LineageError("closing", expected=f"version {head.version} as witnessed", got="another end")
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
