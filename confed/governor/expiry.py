"""What of a run the courier removes, and when: by a rule that nobody but the owners' brokers can set off.

When a commit record of a round is posted that holds (signatures, countersignatures, cohort: ``Lineage``), these go:

- sealed updates for that round and every earlier one, whoever made them, those of abandoned attempts included;
- sealed evaluations of that version (after its evaluation) and of earlier ones;
- strategy states of earlier versions, and versions of that round that are not the one committed;
- checkpoints on the way to that version and to earlier ones; and, when a broker's signed word about the newest
  checkpoint of a round is posted, those of the round before it;
- versions before the last ``keep_versions``, where the operator says so: records need them all unless they are
  collected elsewhere;
- the letters that tickets and credentials of those rounds were shown in: commit records hold what counted.

Before that, when an aggregator that more than half of the owners' brokers credentialed says that a batch of the round
is folded (``confed.keybroker.folded``): the updates that it names, of that round and of this run.

The start, datasets, the newest version and its state, commit records, evidence and the closing stay, and so does
whatever does not say in its header that it belongs to this run.
"""

from __future__ import annotations

import logging
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from confed import canonical
from confed.errors import ConfedError
from confed.governor.letter_box import LetterBox
from confed.governor.object_store import ObjectStore
from confed.journey import Kind, Purpose
from confed.keybroker.folded import FoldedBatch, FoldedBatches, topic_of
from confed.keybroker.lineage import Lineage
from confed.keybroker.statements import CommitRecord, NewestCheckpoint
from confed.keybroker.topics import checkpoint_topic, commit_topic
from confed.manifest import Manifest
from confed.model.bundle import FRONT_BYTES, results_offset
from confed.sealing.header import FRAME_BYTES, Header, header_length
from confed.statement import Signed, verify

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """Of which run things are removed, and how many versions stay; ``None``: all of them."""

    manifest: Manifest
    keep_versions: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Belonging:
    """What an object says it is: unverified, and believed only to its sender's own cost."""

    kind: Kind
    round: int
    counter: int = 0


class Expiry:
    """Applies the rules of this module to one store; safe between threads, removes in a thread of its own."""

    def __init__(self, terms: Terms, objects: ObjectStore, letters: LetterBox) -> None:
        self._manifest, self._keep = terms.manifest, terms.keep_versions
        self._digest = terms.manifest.digest
        self._owner = terms.manifest.model.owner.broker
        self._lineage = Lineage(terms.manifest)
        self._objects, self._letters = objects, letters
        rounds = self._manifest.rounds + 1
        self._topics = {
            commit_topic(self._manifest.run, purpose, number): (purpose, number)
            for purpose in (Purpose.TRAIN, Purpose.EVALUATE)
            for number in range(1, rounds)
        }
        self._folded = FoldedBatches(terms.manifest, letters.collect)
        self._folded_topics = f"{self._manifest.run}/folded/"
        self._checkpoints = frozenset(checkpoint_topic(self._manifest.run, number) for number in range(1, rounds))
        self._known: dict[str, _Belonging | None] = {}
        self._over: dict[Purpose, int] = {}
        self._lock = threading.Lock()
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="confed-expiry")

    def notice(self, topic: str, body: bytes) -> None:
        """Look at a letter that was posted, later and elsewhere, if it may set off a rule of this module."""
        if topic in self._topics:
            self._worker.submit(self._look_at, topic, body)
        elif topic.startswith(self._folded_topics):
            # The next batch needs the room: whoever posts this waits for it.
            self._worker.submit(self._look_at_folded, body).result()
        elif topic in self._checkpoints:
            self._worker.submit(self._look_at_checkpoint, body)

    def catch_up(self) -> None:
        """Do what an earlier process may have left undone."""
        for topic in self._topics:
            for body in self._letters.collect(topic):
                self.notice(topic, body)
        self.settle()
        open_round = self._over.get(Purpose.TRAIN, 0) + 1
        for topic in self._told_folded(open_round):
            for body in self._letters.collect(topic):
                self.notice(topic, body)

    def settle(self) -> None:
        """Wait until everything noticed so far is done."""
        done: Future[None] = self._worker.submit(lambda: None)
        done.result()

    def _look_at(self, topic: str, body: bytes) -> None:
        purpose, number = self._topics[topic]
        try:
            candidate = self._lineage.verify(CommitRecord.from_bytes(body), round_number=number, purpose=purpose)
        except ConfedError as error:
            _logger.warning("a letter under %s is no commit record that holds: %s", topic, error.code)
            return
        try:
            self._remove(purpose, number, committed=candidate.digest)
        except OSError as error:
            _logger.warning("what is over could not be removed: %s", error.strerror)

    def _look_at_folded(self, body: bytes) -> None:
        try:
            self._remove_folded(self._folded.verify(body))
        except ConfedError as error:
            _logger.warning("a letter is no folded batch that holds: %s", error.code)
        except OSError as error:
            _logger.warning("what is folded could not be removed: %s", error.strerror)

    def _remove_folded(self, said: FoldedBatch) -> None:
        mine = _Belonging(kind=Kind.UPDATE, round=said.round)
        with self._lock:
            for digest in said.updates:
                if self._objects.progress(digest).complete:
                    if self._belonging(digest, self._objects.path(digest)) == mine:
                        self._objects.remove(digest)
                    self._known.pop(digest, None)

    def _told_folded(self, number: int) -> list[str]:
        attempts = range(self._manifest.max_attempts)
        return [topic_of(self._manifest.run, round_number=number, attempt=attempt) for attempt in attempts]

    def _look_at_checkpoint(self, body: bytes) -> None:
        try:
            newest = verify(Signed.from_json(canonical.decode(body)), NewestCheckpoint, signer=self._owner)
        except ConfedError as error:
            _logger.warning("a letter about a checkpoint does not hold: %s", error.code)
            return
        if newest.manifest != self._digest:
            return
        try:
            self._remove_checkpoints(newest)
        except OSError as error:
            _logger.warning("what is over could not be removed: %s", error.strerror)

    def _remove_checkpoints(self, newest: NewestCheckpoint) -> None:
        with self._lock:
            for digest, path in list(self._objects.stored()):
                belonging = self._belonging(digest, path)
                if belonging is None or belonging.kind is not Kind.CHECKPOINT or belonging.round != newest.round:
                    continue
                if belonging.counter < newest.counter and digest != newest.digest:
                    self._objects.remove(digest)
                    del self._known[digest]

    def _remove(self, purpose: Purpose, number: int, *, committed: str) -> None:
        with self._lock:
            for digest, path in list(self._objects.stored()):
                belonging = self._belonging(digest, path)
                if belonging is not None and self._is_over(belonging, digest, purpose, number, committed=committed):
                    # An enclave may have read an update until it was committed, nobody does afterwards.
                    self._objects.remove(digest, reuse=belonging.kind is Kind.UPDATE)
                    del self._known[digest]
            if purpose is Purpose.TRAIN:
                self._letters.remove([checkpoint_topic(self._manifest.run, number)])
            for ended, last in self._ended(purpose, number):
                first = self._over.get(ended, 0) + 1
                self._letters.remove(topic for each in range(first, last + 1) for topic in self._shown(ended, each))
                self._over[ended] = max(last, self._over.get(ended, 0))

    def _is_over(self, belonging: _Belonging, digest: str, purpose: Purpose, number: int, *, committed: str) -> bool:
        about, trains = belonging.round, purpose is Purpose.TRAIN
        match belonging.kind:
            case Kind.UPDATE:
                return trains and about <= number
            case Kind.METRICS:
                return about < number or (not trains and about == number)
            case Kind.CHECKPOINT:
                return trains and about <= number
            case Kind.STRATEGY_STATE:
                return trains and about < number
            case Kind.MODEL:
                abandoned = about == number and digest != committed
                old = self._keep is not None and 0 < about <= number - self._keep
                return trains and (abandoned or old)
            case _:
                return False

    def _ended(self, purpose: Purpose, number: int) -> list[tuple[Purpose, int]]:
        if purpose is Purpose.EVALUATE:
            return [(Purpose.EVALUATE, number)]
        return [(Purpose.TRAIN, number), (Purpose.EVALUATE, number - 1)]

    def _shown(self, purpose: Purpose, number: int) -> list[str]:
        """Return the topics under which sites showed their tickets for a round."""
        run = self._manifest.run
        return [
            f"{run}/{purpose}/{number}/{attempt}/{site.owner.name}"
            for site in self._manifest.sites
            for attempt in range(self._manifest.max_attempts)
        ] + (self._told_folded(number) if purpose is Purpose.TRAIN else [])

    def _belonging(self, digest: str, path: Path) -> _Belonging | None:
        if digest not in self._known:
            self._known[digest] = self._read(path)
        return self._known[digest]

    def _read(self, path: Path) -> _Belonging | None:
        try:
            with path.open("rb") as file:
                # A bundle's results are of one step, so its first one tells.
                file.seek(results_offset(file.read(FRONT_BYTES)))
                header = Header.decode(file.read(header_length(file.read(FRAME_BYTES))))
        except (ConfedError, FileNotFoundError):
            return None
        if header.manifest != self._digest:
            return None
        number = header.detail.get("round") if header.kind in (Kind.UPDATE, Kind.METRICS) else header.version
        counter = header.detail.get("counter") if header.kind is Kind.CHECKPOINT else 0
        if not isinstance(number, int) or not isinstance(counter, int):
            return None
        return _Belonging(kind=header.kind, round=number, counter=counter)
