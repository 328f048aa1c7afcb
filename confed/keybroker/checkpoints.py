"""Which checkpoint is the newest: noted by the TEE that makes a round's version, so that none older is resumed from.

1. Only where the manifest's scenario gives a client keys of checkpoints, and while its round may still be committed.
2. Only by the instance that has this attempt's seat, with the key that it attested, and not once a later attempt has
   begun: a TEE that was given up cannot speak for the run any more.
3. Counters rise, whatever the attempt. The same note again is answered alike; an older one is refused by name.
4. Every note is in the ledger.

Both owners' brokers are asked; the highest counter that either has noted is the newest (``confed.client.keeping``).
So one owner's store that was put back resumes nothing older.
"""

from __future__ import annotations

import re

from confed.errors import EncodingError, ForkError, InstanceError, PurposeError, RollbackError
from confed.journey import STEPS, Purpose, Role, Step, Use
from confed.keybroker.credentials import maker_key
from confed.keybroker.decision import Decision
from confed.keybroker.heads import head_of, require_base
from confed.keybroker.statements import CheckpointNote, NewestCheckpoint
from confed.statement import Signed, verify

_STEP = Step(role=Role.CLIENT, purpose=Purpose.TRAIN, use=Use.CHECKPOINT, ahead=1)
_DIGEST = re.compile(r"[0-9a-f]{64}")


def checkpoint(decision: Decision, note: CheckpointNote, signed: Signed) -> Signed:
    """Note a checkpoint as the newest of its round, or only say which is (counter 0); return this broker's word.

    Raises:
        PurposeError: the scenario has no checkpoints.
        CredentialError, SignatureError, InstanceError: not the instance that attested, or not this attempt's.
        ForkError: a later attempt has begun.
        RollbackError: a checkpoint that is not newer than the newest, or a base that was replaced.
        RoundError, LineageError, EncodingError: as the names say.
    """
    # 1.
    decision.require_open()
    if _STEP not in STEPS[decision.terms.manifest.scenario]:
        raise PurposeError("checkpoint", expected="a scenario that has them", got=decision.terms.manifest.scenario)
    require_base(decision, head_of(decision), purpose=Purpose.TRAIN, round_number=note.round, base=note.base)
    # 2.
    verify(signed, CheckpointNote, signer=maker_key(decision, instance=note.instance, round_number=note.round))
    _require_seat(decision, note)
    # 3.
    counter, digest = _newest(decision, note.round)
    if note.counter or note.digest:
        _require_newer(note, counter, digest)
        if note.counter > counter:
            counter, digest = note.counter, note.digest
            # 4.
            _keep(decision, note, signed.digest)
    return decision.sign(
        NewestCheckpoint(
            broker=decision.party.broker,
            manifest=decision.terms.digest,
            run=decision.terms.run,
            round=note.round,
            note=signed.digest,
            counter=counter,
            digest=digest,
            time=decision.now,
        )
    )


def _require_seat(decision: Decision, note: CheckpointNote) -> None:
    row = decision.tx.one(
        "SELECT attempt, instance FROM seats WHERE manifest = ? AND purpose = ? AND round = ?"
        " ORDER BY attempt DESC LIMIT 1",
        (decision.terms.digest, Purpose.TRAIN, note.round),
    )
    if row is not None and row[0] > note.attempt:
        raise ForkError("checkpoint attempt", expected=f"at least {row[0]}, which has begun", got=note.attempt)
    if row is None or row != (note.attempt, note.instance):
        raise InstanceError("checkpoint instance", expected="the one of this attempt", got=note.instance[:16])


def _newest(decision: Decision, round_number: int) -> tuple[int, str]:
    row = decision.tx.one(
        "SELECT counter, digest FROM checkpoints WHERE manifest = ? AND round = ?",
        (decision.terms.digest, round_number),
    )
    return (0, "") if row is None else (row[0], row[1])


def _require_newer(note: CheckpointNote, counter: int, digest: str) -> None:
    if note.counter < 1 or not _DIGEST.fullmatch(note.digest):
        raise EncodingError("checkpoint", expected="a counter from 1 and a digest", got="another")
    if (note.counter, note.digest) != (counter, digest) and note.counter <= counter:
        raise RollbackError("checkpoint", expected=f"one after {counter}", got=note.counter)


def _keep(decision: Decision, note: CheckpointNote, statement: str) -> None:
    decision.tx.execute(
        "INSERT OR REPLACE INTO checkpoints VALUES (?, ?, ?, ?)",
        (decision.terms.digest, note.round, note.counter, note.digest),
    )
    decision.record(
        "checkpointed",
        note=statement,
        instance=note.instance,
        round=note.round,
        attempt=note.attempt,
        purpose=Purpose.TRAIN,
        base=note.base,
        counter=note.counter,
        digest=note.digest,
    )
