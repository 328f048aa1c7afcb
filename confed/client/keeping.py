"""Checkpoints of a training loop: kept sealed, resumed from after a kill, and no older one ever in place of the newest.

    kept = confed.client.checkpoints(context)
    state = kept.restore()                              # saved last, or carried over by the round before, or nothing
    ...
        if kept.due():
            kept.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step})
    kept.carry({"optimizer": optimizer.state_dict()})   # what the next round of the run goes on with

Where a manifest's scenario has one TEE that trains, a checkpoint goes this way:

1. ``save`` copies the state, which is all that the loop waits for; a thread does the rest.
2. It is sealed under the model owner's checkpoint key of this version, and lies with the courier once it is whole.
3. Its counter and digest are noted at both owners' brokers: from then on it is the newest, and none before it is.
4. A TEE that starts the round again asks both brokers, under a request of its own, and takes the highest counter: what
   the courier hands out must have that digest, be of this run, round, base and counter, and open under the key.

Anywhere else (a federation, plain Flower) the same calls keep the state in the process's memory.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from confed import canonical
from confed.client.tree import Array, Tree
from confed.errors import (
    ConfedError,
    ForkError,
    LineageError,
    LostCheckpointError,
    MissingObjectError,
    RollbackError,
    TamperedError,
)
from confed.journey import Kind
from confed.keybroker.client import BrokerClient
from confed.keybroker.statements import CheckpointNote, NewestCheckpoint
from confed.keybroker.topics import checkpoint_topic
from confed.sealing.container import Container
from confed.sealing.header import FRAME_BYTES, Header, header_length
from confed.sealing.recipients import RecipientEntry
from confed.sealing.sealer import Draft, seal_to_memory
from confed.statement import Signed, sign, unverified

if TYPE_CHECKING:
    from flwr.app import Context

    from confed.manifest import Manifest
    from confed.wire.courier_client import CourierClient

EVERY_STEPS, EVERY_S = "checkpoint-every-steps", "checkpoint-every-s"
"""Settings of an experiment: a checkpoint after so many calls of ``due``, or so many seconds; 0 is never."""

_THREADS = 2


class Checkpoints(Protocol):
    """What a training loop sees."""

    def restore(self) -> Any | None:
        """Return the newest state of this round, else what the round before carried over, else nothing."""
        ...

    def due(self) -> bool:
        """Count a step, and return whether it is time to save."""
        ...

    def save(self, state: Any) -> None:
        """Keep a state: tensors, numbers, text, and lists and maps of them."""
        ...

    def carry(self, state: Any) -> None:
        """Let the next round of the run begin with this state."""
        ...


class Pace:
    """When a checkpoint is due: by steps, by seconds, or never.

    Args:
        busy: whether one is still being kept; then none is due by the clock.
    """

    def __init__(self, context: Context, *, busy: Callable[[], bool] = lambda: False) -> None:
        self._every_steps = int(context.run_config.get(EVERY_STEPS, 0))
        self._every_s = float(context.run_config.get(EVERY_S, 0.0))
        self._busy = busy
        self._steps, self._since = 0, time.monotonic()

    def due(self) -> bool:
        """Count a step, and return whether it is time."""
        self._steps += 1
        by_steps = 0 < self._every_steps <= self._steps
        by_clock = 0 < self._every_s <= time.monotonic() - self._since and not self._busy()
        if by_steps or by_clock:
            self._steps, self._since = 0, time.monotonic()
        return by_steps or by_clock


class MemoryCheckpoints:
    """Keeps the last state in this process's memory: for plain training, and for clients of a federation."""

    def __init__(self, context: Context, kept: dict[str, Tree]) -> None:
        self._kept = kept
        self.due = Pace(context).due

    def restore(self) -> Any | None:
        """Return a copy of what was saved or carried last, or nothing."""
        kept = self._kept.get("state")
        return None if kept is None else Tree.parse(bytearray(b"".join(kept.parts)))

    def save(self, state: Any) -> None:
        """Keep a copy of a state.

        Raises:
            EncodingError: a value that is not data.
        """
        self._kept["state"] = Tree.of(state).copied({})

    carry = save


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """For which attempt at which round checkpoints are, and their key; ``carried`` opens what the base carries."""

    number: int
    attempt: int
    base: str
    key: bytes = field(repr=False)
    carried: Callable[[], memoryview | None] = field(repr=False)


class Keeper:
    """One TEE's way to where checkpoints are kept and noted.

    Args:
        brokers: the clients of both owners' brokers, by broker key.
    """

    def __init__(
        self,
        manifest: Manifest,
        *,
        digest: str,
        instance: str,
        signing_key: Ed25519PrivateKey,
        brokers: Sequence[tuple[bytes, BrokerClient]],
        courier: CourierClient,
    ) -> None:
        self._manifest = manifest
        self._digest = digest
        self._instance = instance
        self._signing = signing_key
        self._brokers = brokers
        self._courier = courier

    def keep(self, tree: Tree, of: Round, counter: int) -> None:
        """Seal a state, send it, and have it noted (steps 2 and 3).

        Raises:
            RollbackError, ForkError, InstanceError: this TEE may not note it any more.
            ConfedError: a broker or the courier refused or is down.
        """
        draft = Draft(
            kind=Kind.CHECKPOINT,
            container_id=f"{self._manifest.run}/{of.number}/checkpoint/{counter}",
            version=of.number,
            parents=(of.base,),
            owner=self._manifest.model.owner.identity,
            manifest=self._digest,
            detail=self._detail(of, counter),
            recipients=(RecipientEntry.owner_key(self._manifest.model.start.key_id),),
        )
        data, sealed = seal_to_memory(tree.parts, draft, data_key=of.key, signing_key=self._signing)
        self._courier.put(data, digest=sealed.digest)
        said = self._noted(of, counter=counter, digest=sealed.digest)
        for newest in said.values():
            if (newest.counter, newest.digest) != (counter, sealed.digest):
                raise RollbackError("checkpoint", expected=f"{counter} as the newest", got=newest.counter)
        # The model owner's word lets the courier remove those before it.
        owner = next(signed for signed in said if signed.signer == self._manifest.model.owner.broker)
        self._courier.post(checkpoint_topic(self._manifest.run, of.number), canonical.encode(owner.to_json()))

    def newest(self, of: Round) -> NewestCheckpoint:
        """Return the newest checkpoint that any owner's broker has noted (step 4); counter 0 is none.

        Raises:
            ForkError: they noted different ones under one counter.
            ConfedError: a broker refused or is down: who cannot say what is the newest resumes nothing.
        """
        said = self._noted(of, counter=0, digest="").values()
        newest = max(said, key=lambda one: one.counter)
        if any(one.counter == newest.counter and one.digest != newest.digest for one in said):
            raise ForkError("checkpoint", expected="one under each counter", got="two")
        return newest

    def opened(self, of: Round, newest: NewestCheckpoint) -> memoryview:
        """Fetch and open the newest checkpoint (step 4).

        Raises:
            RollbackError: the courier hands out an older one.
            TamperedError, TruncatedError: other bytes than those that were noted.
            LineageError: a checkpoint of another run, round, base or counter.
            WrongKeyError: not sealed under this version's checkpoint key.
            LostCheckpointError: the courier does not have it.
        """
        try:
            container = Container.parse(self._courier.get(newest.digest))
        except MissingObjectError as error:
            expected = f"the newest, {newest.counter}, with the courier"
            raise LostCheckpointError("checkpoint", expected=expected, got="none") from error
        except TamperedError as error:
            self._require_not_older(newest, error)
            raise
        header = container.header
        said = (header.kind, header.version, header.parents, header.manifest, header.detail.get("counter"))
        expected = (Kind.CHECKPOINT, of.number, (of.base,), self._digest, newest.counter)
        if said != expected or header.detail.get("run") != self._manifest.run:
            raise LineageError("checkpoint", expected=f"{newest.counter} of round {of.number}", got="another")
        return container.unlock(of.key).read_all(_THREADS)

    def _require_not_older(self, newest: NewestCheckpoint, error: TamperedError) -> None:
        """Say by name if what came in the newest one's place is an older one; else leave the error as it is."""
        try:
            front = self._courier.read_unverified(newest.digest, offset=0, size_bytes=FRAME_BYTES)
            size_bytes = header_length(front)
            held = Header.decode(
                self._courier.read_unverified(newest.digest, offset=FRAME_BYTES, size_bytes=size_bytes)
            )
        except ConfedError:
            return
        counter = held.detail.get("counter")
        if held.kind is Kind.CHECKPOINT and isinstance(counter, int) and counter < newest.counter:
            raise RollbackError("checkpoint", expected=f"the newest, {newest.counter}", got=counter) from error

    def _detail(self, of: Round, counter: int) -> dict[str, str | int]:
        return {"run": self._manifest.run, "version": of.number, "attempt": of.attempt, "counter": counter}

    def _noted(self, of: Round, *, counter: int, digest: str) -> dict[Signed, NewestCheckpoint]:
        found: dict[Signed, NewestCheckpoint] = {}
        for broker, client in self._brokers:
            (answer,) = client.checkpoint([self._note(of, broker, counter=counter, digest=digest)])
            if isinstance(answer, ConfedError):
                raise answer
            found[answer] = unverified(answer, NewestCheckpoint)
        return found

    def _note(self, of: Round, broker: bytes, *, counter: int, digest: str) -> Signed:
        note = CheckpointNote(
            request_id=os.urandom(16),
            broker=broker,
            manifest=self._digest,
            run=self._manifest.run,
            instance=self._instance,
            round=of.number,
            attempt=of.attempt,
            base=of.base,
            counter=counter,
            digest=digest,
        )
        return sign(note, self._signing)


class SealedCheckpoints:
    """The checkpoints of one attempt at one round; used by one thread."""

    def __init__(self, keeper: Keeper, of: Round, context: Context) -> None:
        self._keeper = keeper
        self._of = of
        self._room: dict[str, Array] = {}
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._running: Future[None] | None = None
        self._counter = 0
        # The first attempt at a round has nothing before it, so nobody need be asked.
        self._asked = of.attempt == 0
        self._found: NewestCheckpoint | None = None
        self.carried: Tree | None = None
        self.due = Pace(context, busy=self._busy).due

    def restore(self) -> Any | None:
        """Return the newest state of this round, else what the round before carried over, else nothing.

        Raises:
            ConfedError: what is the newest cannot be said, had, or opened; see ``Keeper``.
        """
        newest = self._newest()
        if newest is not None and newest.counter:
            return Tree.parse(self._keeper.opened(self._of, newest))
        carried = self._of.carried()
        return None if carried is None else Tree.parse(carried)

    def save(self, state: Any) -> None:
        """Copy a state and keep it in the background; waits only while the one before is still being kept.

        Raises:
            EncodingError: a value that is not data.
            ConfedError: the one before could not be kept.
        """
        tree = Tree.of(state)
        self.settle()
        self._newest()
        tree = tree.copied(self._room)
        self._counter += 1
        self._running = self._worker.submit(self._keeper.keep, tree, self._of, self._counter)

    def carry(self, state: Any) -> None:
        """Let the next round begin with this state: it is sealed with the version, which is committed with it.

        Raises:
            EncodingError: a value that is not data.
        """
        self.carried = Tree.of(state)

    def settle(self) -> None:
        """Wait for what is being kept.

        Raises:
            ConfedError: it could not be.
        """
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def end(self) -> None:
        """Settle, and let go of the copies.

        Raises:
            ConfedError: the last one could not be kept.
        """
        try:
            self.settle()
        finally:
            self._worker.shutdown()
            self._room = {}

    def abandon(self) -> None:
        """Let go of everything without waiting: the attempt was given up, and brokers take nothing of it any more."""
        self._worker.shutdown(wait=False, cancel_futures=True)
        self._room = {}

    def _newest(self) -> NewestCheckpoint | None:
        if not self._asked:
            self._found = self._keeper.newest(self._of)
            self._asked, self._counter = True, self._found.counter
        return self._found

    def _busy(self) -> bool:
        return self._running is not None and not self._running.done()
