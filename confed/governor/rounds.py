"""One run as the governor sees it: names, references to ciphertext, and codes."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterable, Mapping

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from confed import canonical
from confed.errors import (
    ConfedError,
    EnclaveLostError,
    LineageError,
    MissingObjectError,
    RefusedError,
    RoundError,
    RoundFullError,
    RunEndedError,
    ShortCohortError,
)
from confed.governor.enclave_client import ClosedRound, Enclave
from confed.governor.events import EventLog, EventName
from confed.governor.taking_up import Letters, Survivor
from confed.journey import Purpose
from confed.keybroker.history import History
from confed.keybroker.statements import Candidate, Closing, CommitRecord
from confed.manifest import Manifest
from confed.statement import Signed, unverified
from confed.wire.patience import spread_sleep

RECORD = "confed"
"""Name of the one ConfigRecord that confed's messages carry."""

_NODE_WAIT_S = 120.0
POLL_S = 0.05
_FIRST_LOOK_S, _LONGEST_LOOK_S = 0.02, 1.0
_ASK_AGAIN_S = 0.5
_CLIENT_STAGES = ("attest", "release", "fetch", "open", "train", "seal", "send", "commit")
_LONGEST_S = 1e9


class Rounds:
    """Opens and closes the rounds of one run in the enclave, and hands it each reply's reference as it arrives.

    Guarantees: a round whose enclave is lost is taken up by the next instance as a new attempt, or counts as it is if
    its commit was published; at most the manifest's ``max_attempts``.

    Args:
        letters: where commit records are published.
        patience_s: how long a lost enclave may take to come back.
        sleep: waits between attempts to reach it; injectable for tests.
    """

    def __init__(
        self,
        manifest: Manifest,
        enclave: Enclave,
        events: EventLog,
        *,
        letters: Letters,
        patience_s: float,
        sleep: Callable[[float], None] = spread_sleep,
    ) -> None:
        self.manifest = manifest
        self._enclave = enclave
        self._events = events
        self._survivor = Survivor(manifest, enclave, letters, patience_s=patience_s, sleep=sleep)
        self._nodes: dict[str, int] = {}
        self._sites: dict[int, str] = {}
        self._attested = False
        self._expected: tuple[str, ...] = ()
        self._batches: tuple[tuple[str, ...], ...] = ((),)
        self._batch = 0
        self._answered: dict[str, str] = {}
        self._counted = 0
        self._bundles: dict[str, Mapping[str, str]] = {}
        self._purpose = ""
        self._round = 0
        self._attempt = 0
        self._history = History(manifest)
        self._published: ClosedRound | None = None
        self.lost: EnclaveLostError | RoundError | None = None
        """Set while the enclave of the open round is gone: there is nothing to wait for."""

    @property
    def full(self) -> bool:
        """Whether the enclave has as many results as the round takes: it would take no other."""
        buffer = self.manifest.strategy.buffer
        taken = buffer or self.manifest.cohort.taken(len(self.manifest.sites), purpose=self._purpose)
        return self._counted >= taken > 0

    @property
    def instance(self) -> str:
        """The enclave that the open round is of."""
        return self._survivor.instance

    def takes(self, reply: Message) -> bool:
        """Whether the open round has a place for a reply: of a site that has not answered in it, and not full."""
        return self._sites.get(reply.metadata.src_node_id) not in self._answered and not self.full

    def ended(self, round_number: int) -> bool:
        """Return whether a stop rule or the privacy budget ended the run before this round; the enclave refuses it."""
        if round_number <= self._history.version:
            return False
        return self._history.ending() is not None

    def open(self, round_number: int, kind: str, grid: Grid) -> list[Message]:
        """Open a round (``kind``: train or evaluate) and return the messages to the sites that the enclave drew.

        Raises:
            RefusedError: the enclave refused, of the class that says why.
            ShortCohortError: too few sites are connected.
        """
        if not self._attested:
            self._learn_nodes(grid)
            self._events.write(
                EventName.RUN_STARTED,
                run=self.manifest.run,
                rounds=self.manifest.rounds,
                sites=len(self.manifest.sites),
            )
            self._attest(round_number, Purpose.TRAIN)
            self._attested = True
        self._round, self._purpose = round_number, kind
        try:
            return self._opened()
        except (EnclaveLostError, RoundError) as error:
            return self.again(error)

    def again(self, error: ConfedError) -> list[Message]:
        """Take the round up in the next instance and return the messages of another attempt, or none: it is committed.

        Raises:
            ConfedError: ``error``, if no enclave was lost; or why the next instance cannot go on.
        """
        purpose, before = Purpose(self._purpose), self._survivor.instance
        if isinstance(error, RunEndedError):
            raise error
        self._events.write(EventName.ROUND_ABANDONED, round=self._round, purpose=self._purpose, code=error.code)
        for _ in range(self.manifest.max_attempts):
            self._published = self._survivor.published(self._round, purpose)
            try:
                self._attest(self._round + (self._published is not None and purpose is Purpose.TRAIN), purpose)
                if self._published is not None:
                    return []
                if isinstance(error, RoundError) and self._survivor.instance == before:
                    raise error  # It refused, and nothing was lost.
                return self._opened()
            except EnclaveLostError as lost:
                error = lost
            except (LineageError, RoundError) as refused:
                # It was not lost, the way to it was: it has committed the round before it answered here.
                known = refused is error or self._published is not None
                if known or self._survivor.published(self._round, purpose) is None:
                    raise
        raise error

    def _attest(self, round_number: int, purpose: Purpose) -> None:
        """Have the enclave attest for what comes; after an evaluation that is the next round to train."""
        started = time.perf_counter()
        instance = self._survivor.attest(round_number + (purpose is Purpose.EVALUATE))
        seconds = {"attest": time.perf_counter() - started}
        if instance:
            self._events.write(EventName.ATTESTED, role="aggregator", instance=instance, seconds=seconds)

    def _opened(self) -> list[Message]:
        attempt = self._survivor.next_attempt(self._round, Purpose(self._purpose))
        opened = self._enclave.open_round(round_number=self._round, attempt=attempt, purpose=Purpose(self._purpose))
        self.lost, self._answered, self._bundles, self._counted = None, {}, {}, 0
        self._expected = opened.cohort
        self._events.write(
            EventName.ROUND_STARTED,
            round=self._round,
            attempt=attempt,
            purpose=self._purpose,
            cohort=len(opened.cohort),
        )
        self._attempt, self._batch = attempt, 0
        trains = self._purpose == MessageType.TRAIN
        self._batches = self.manifest.aggregation.cut(opened.cohort) if trains else (opened.cohort,)
        return self._messages() or self.following()

    def following(self) -> list[Message]:
        """Have the batch that was sent for folded and return the messages to the next one; none after the last.

        Raises:
            RefusedError: the enclave could not fold it.
        """
        while self.lost is None and self._batch + 1 < len(self._batches):
            try:
                self._enclave.fold_batch(self._batch)
            except (EnclaveLostError, RoundError) as error:
                self.lost = error
                break
            self._batch += 1
            if messages := self._messages():
                return messages
        return []

    def _messages(self) -> list[Message]:
        told = ConfigRecord({"round": self._round, "attempt": self._attempt, "aggregator": self._survivor.instance})
        content = RecordDict({RECORD: told})
        return [
            Message(content=content, message_type=self._purpose, dst_node_id=self._nodes[site])
            for site in self._batches[self._batch]
            if site in self._nodes
        ]

    def receive(self, reply: Message) -> None:
        """Hand one reply's reference to the enclave as it arrives; note a failure by its code."""
        site = self._sites.get(reply.metadata.src_node_id)
        if site is None or site in self._answered or self.lost is not None:
            return
        seconds: dict[str, float] = {}
        if reply.has_error():
            code = _code(reply.error.reason)
        else:
            told = reply.content.config_records.get(RECORD, ConfigRecord())
            seconds = _seconds(told)
            code = self._submit(site, told)
        if self.lost is not None:
            return
        self._answered[site] = code
        self._counted += not code
        if code:
            self._events.write(EventName.CLIENT_FAILED, round=self._round, purpose=self._purpose, site=site, code=code)
        else:
            self._events.write(
                EventName.CLIENT_DONE, round=self._round, purpose=self._purpose, site=site, seconds=seconds
            )

    def _submit(self, site: str, told: ConfigRecord) -> str:
        """Return why a site's result does not count, as a code; a bundle is handed over with its first reply."""
        bundle = str(told.get("bundle", ""))
        try:
            if not bundle:
                self._enclave.submit(site=site, digest=str(told.get("digest", "")))
                return ""
            if bundle not in self._bundles:
                self._bundles[bundle] = self._enclave.submit_bundle(digest=bundle)
            return self._bundles[bundle].get(site, MissingObjectError.code)
        except EnclaveLostError as error:
            self.lost = error
            return ""
        except RefusedError as error:
            return error.code

    def close(self, replies: Iterable[Message]) -> tuple[str, Mapping[str, float]]:
        """Close the round and return the digest of the version and the cohort's clear metrics.

        Raises:
            RefusedError: the enclave refused; nothing was published.
        """
        closed = self._published
        if closed is None:
            for reply in replies:
                self.receive(reply)
            if self.lost is not None:
                raise self.lost
            closed = self._enclave.close_round(absent=self._absent())
        self._published = None
        event = EventName.EVALUATED if self._purpose == MessageType.EVALUATE else EventName.ROUND_COMBINED
        for site, code in closed.excluded.items():
            if not self._answered.get(site):
                self._events.write(
                    EventName.CLIENT_FAILED, round=self._round, purpose=self._purpose, site=site, code=code
                )
        # Read, not verified: whoever relies on a version checks the record; the governor only names it.
        record = CommitRecord.from_bytes(closed.record)
        self._history.add(record)
        privacy = unverified(record.candidate, Candidate).privacy
        spent = {} if privacy is None else {"epsilon": privacy.epsilon}
        self._events.write(
            event,
            round=self._round,
            purpose=self._purpose,
            cohort=closed.cohort_size,
            metrics=dict(closed.metrics),
            seconds=dict(closed.seconds),
            version=closed.version,
            digest=closed.digest,
            excluded=dict(closed.excluded),
            **spent,
        )
        return closed.digest, closed.metrics

    def _absent(self) -> dict[str, str]:
        if self.manifest.strategy.buffer is not None:  # who has not answered is at work, or waits for the next buffer
            codes = {site: self._answered.get(site, "busy") for site in self._expected}
            return {site: code for site, code in codes.items() if code}
        unheard = RoundFullError.code if self.full else "no-answer"
        absent = {site: self._answered.get(site, unheard) for site in self._expected}
        for site in self._expected:
            if site not in self._answered:
                self._answered[site] = unheard
                self._events.write(
                    EventName.CLIENT_FAILED, round=self._round, purpose=self._purpose, site=site, code=unheard
                )
        return {site: code for site, code in absent.items() if code}

    def finish(self) -> None:
        """End the run with its countersigned closing entry.

        Raises:
            RefusedError: the enclave or the brokers refused.
        """
        try:
            encoded = self._enclave.close_run()
        except (EnclaveLostError, RoundError) as error:
            # Its next instance takes up the last version alone.
            before = self._survivor.instance
            self._attest(self._history.version + 1, Purpose.TRAIN)
            if isinstance(error, RoundError) and self._survivor.instance == before:
                raise
            encoded = self._enclave.close_run()
        documents = canonical.decode(encoded)
        closing = unverified(Signed.from_json(documents["closing"]), Closing)
        self._events.write(EventName.RUN_FINISHED, rounds=closing.rounds, reason=closing.ending.told)

    def ask(self, grid: Grid, words: Mapping[str, str | int]) -> str:
        """Ask every client TEE for something other than a round; return why the first that refused did, or nothing."""
        # A train message, since Flower calls mods only for what the app has registered a function for.
        content = RecordDict({RECORD: ConfigRecord(dict(words))})
        asks = [
            Message(content=content, message_type=MessageType.TRAIN, dst_node_id=node) for node in self._nodes.values()
        ]
        replies = list(exchange(grid, asks, timeout_s=_NODE_WAIT_S))
        return next((_code(reply.error.reason) for reply in replies if reply.has_error()), "")

    def _learn_nodes(self, grid: Grid) -> None:
        """Ask every connected node which site it acts for; a lie can only make that site's update be refused."""
        wanted = {site.owner.name for site in self.manifest.sites}
        deadline = time.monotonic() + _NODE_WAIT_S
        while len(self._nodes) < len(wanted):
            if time.monotonic() > deadline:
                if len(self._nodes) >= self.manifest.cohort.least:
                    break
                raise ShortCohortError("sites", expected=f"{len(wanted)} connected", got=len(self._nodes))
            new = [node for node in grid.get_node_ids() if node not in self._sites]
            if not new:
                time.sleep(POLL_S)
                continue
            # A train message, since Flower calls mods only for what the app has registered a function for.
            ask = RecordDict({RECORD: ConfigRecord({"ask": "site"})})
            asks = [Message(content=ask, message_type=MessageType.TRAIN, dst_node_id=node) for node in new]
            for reply in exchange(grid, asks, timeout_s=_NODE_WAIT_S):
                told = None if reply.has_error() else reply.content.config_records.get(RECORD)
                site = str(told["site"]) if told is not None and "site" in told else ""
                if site in wanted and site not in self._nodes:
                    self._nodes[site] = reply.metadata.src_node_id
                    self._sites[reply.metadata.src_node_id] = site
            if len(self._nodes) < len(wanted):
                time.sleep(_ASK_AGAIN_S)


def _seconds(told: ConfigRecord) -> dict[str, float]:
    """Return the seconds that a client told (in simulation), of known stages and sane: a site may write anything."""
    found = {stage: told.get(f"seconds-{stage}") for stage in _CLIENT_STAGES}
    return {
        stage: value
        for stage, value in found.items()
        if isinstance(value, float) and math.isfinite(value) and 0 <= value < _LONGEST_S
    }


def exchange(grid: Grid, messages: list[Message], *, timeout_s: float | None) -> Iterable[Message]:
    """Send messages and yield replies as they arrive, until all are there or the time is over."""
    waiting = {identifier for identifier in grid.push_messages(messages) if identifier}
    started = time.monotonic()
    deadline = None if timeout_s is None else started + timeout_s
    while waiting and (deadline is None or time.monotonic() < deadline):
        arrived = list(grid.pull_messages(waiting))
        for reply in arrived:
            waiting.discard(reply.metadata.reply_to_message_id)
            yield reply
        if not arrived and not getattr(grid, "waits", False):
            # A look costs the SuperLink milliseconds: the longer a round takes, the less often; a twentieth is lost.
            time.sleep(min(max(_FIRST_LOOK_S, (time.monotonic() - started) / 20), _LONGEST_LOOK_S))


def _code(reason: str | None) -> str:
    text = reason or ""
    return text if re.fullmatch(r"[a-z0-9-]{1,60}", text) else "client-error"
