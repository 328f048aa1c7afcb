"""One run as the governor sees it: names, references to ciphertext, and codes."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable, Mapping

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from confed import canonical
from confed.errors import DeploymentError, RefusedError
from confed.governor.enclave_client import EnclaveClient
from confed.governor.events import EventLog, EventName
from confed.journey import Purpose
from confed.keybroker.history import History
from confed.keybroker.statements import Candidate, Closing, CommitRecord
from confed.manifest import Manifest
from confed.statement import Signed, unverified

RECORD = "confed"
"""Name of the one ConfigRecord that confed's messages carry."""

_NODE_WAIT_S = 120.0
_POLL_S = 0.05
_ASK_AGAIN_S = 0.5
_CLIENT_STAGES = ("attest", "release", "fetch", "open", "train", "seal", "send")
_LONGEST_S = 1e9


class Rounds:
    """Opens and closes the rounds of one run in the enclave, and hands it each reply's reference as it arrives."""

    def __init__(self, manifest: Manifest, enclave: EnclaveClient, events: EventLog) -> None:
        self.manifest = manifest
        self._enclave = enclave
        self._events = events
        self._nodes: dict[str, int] = {}
        self._sites: dict[int, str] = {}
        self._attested = False
        self._expected: tuple[str, ...] = ()
        self._answered: dict[str, str] = {}
        self._purpose = ""
        self._round = 0
        self._history = History(manifest)

    def ended(self, round_number: int) -> bool:
        """Return whether a stop rule ended the run before this round; the enclave would refuse it."""
        if not self.manifest.stop.any or round_number <= self._history.version:
            return False
        return self._history.ending() is not None

    def open(self, round_number: int, kind: str, grid: Grid) -> list[Message]:
        """Open a round (``kind``: train or evaluate) and return the messages to the sites that the enclave drew.

        Raises:
            RefusedError: the enclave refused, of the class that says why.
            DeploymentError: too few sites are connected.
        """
        if not self._attested:
            self._learn_nodes(grid)
            self._events.write(
                EventName.RUN_STARTED,
                run=self.manifest.run,
                rounds=self.manifest.rounds,
                sites=len(self.manifest.sites),
            )
            started = time.perf_counter()
            instance = self._enclave.attest(first_round=round_number, attempt=0)
            seconds = {"attest": time.perf_counter() - started}
            self._events.write(EventName.ATTESTED, role="aggregator", instance=instance, seconds=seconds)
            self._attested = True
        opened = self._enclave.open_round(round_number=round_number, attempt=0, purpose=Purpose(kind))
        self._round, self._purpose, self._answered = round_number, kind, {}
        self._expected = opened.cohort
        self._events.write(EventName.ROUND_STARTED, round=round_number, purpose=kind, cohort=len(opened.cohort))
        content = RecordDict({RECORD: ConfigRecord({"round": round_number, "attempt": 0})})
        return [
            Message(content=content, message_type=kind, dst_node_id=self._nodes[site])
            for site in opened.cohort
            if site in self._nodes
        ]

    def receive(self, reply: Message) -> None:
        """Hand one reply's reference to the enclave as it arrives; note a failure by its code."""
        site = self._sites.get(reply.metadata.src_node_id)
        if site is None or site in self._answered:
            return
        seconds: dict[str, float] = {}
        if reply.has_error():
            code = _code(reply.error.reason)
        else:
            told = reply.content.config_records.get(RECORD, ConfigRecord())
            seconds = _seconds(told)
            code = self._submit(site, str(told.get("digest", "")))
        self._answered[site] = code
        if code:
            self._events.write(EventName.CLIENT_FAILED, round=self._round, purpose=self._purpose, site=site, code=code)
        else:
            self._events.write(
                EventName.CLIENT_DONE, round=self._round, purpose=self._purpose, site=site, seconds=seconds
            )

    def _submit(self, site: str, digest: str) -> str:
        try:
            self._enclave.submit(site=site, digest=digest)
        except RefusedError as error:
            return error.code
        return ""

    def close(self, replies: Iterable[Message]) -> tuple[str, Mapping[str, float]]:
        """Close the round and return the digest of the version and the cohort's clear metrics.

        Raises:
            RefusedError: the enclave refused; nothing was published.
        """
        for reply in replies:
            self.receive(reply)
        absent = {site: self._answered.get(site, "no-answer") for site in self._expected}
        absent = {site: code for site, code in absent.items() if code}
        for site in self._expected:
            if site not in self._answered:
                self._events.write(
                    EventName.CLIENT_FAILED, round=self._round, purpose=self._purpose, site=site, code="no-answer"
                )
        closed = self._enclave.close_round(absent=absent)
        event = EventName.EVALUATED if self._purpose == MessageType.EVALUATE else EventName.ROUND_COMBINED
        for site, code in closed.excluded.items():
            if site not in absent:
                self._events.write(
                    EventName.CLIENT_FAILED, round=self._round, purpose=self._purpose, site=site, code=code
                )
        # Read, not verified: whoever relies on a version checks the record; the governor only names it.
        record = CommitRecord.from_bytes(closed.record)
        candidate = unverified(record.candidate, Candidate)
        self._history.add(record)
        self._events.write(
            event,
            round=self._round,
            purpose=self._purpose,
            cohort=closed.cohort_size,
            metrics=dict(closed.metrics),
            seconds=dict(closed.seconds),
            version=candidate.version,
            digest=candidate.digest,
            excluded=dict(closed.excluded),
        )
        return candidate.digest, closed.metrics

    def finish(self) -> None:
        """End the run with its countersigned closing entry.

        Raises:
            RefusedError: the enclave or the brokers refused.
        """
        documents = canonical.decode(self._enclave.close_run())
        closing = unverified(Signed.from_json(documents["closing"]), Closing)
        self._events.write(EventName.RUN_FINISHED, rounds=closing.rounds, reason=closing.ending.told)

    def _learn_nodes(self, grid: Grid) -> None:
        """Ask every connected node which site it acts for; a lie can only make that site's update be refused."""
        wanted = {site.owner.name for site in self.manifest.sites}
        deadline = time.monotonic() + _NODE_WAIT_S
        while len(self._nodes) < len(wanted):
            if time.monotonic() > deadline:
                if len(self._nodes) >= self.manifest.cohort.least:
                    break
                raise DeploymentError("sites", expected=f"{len(wanted)} connected", got=len(self._nodes))
            new = [node for node in grid.get_node_ids() if node not in self._sites]
            if not new:
                time.sleep(_POLL_S)
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
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    while waiting and (deadline is None or time.monotonic() < deadline):
        arrived = list(grid.pull_messages(list(waiting)))
        for reply in arrived:
            waiting.discard(reply.metadata.reply_to_message_id)
            yield reply
        if not arrived:
            time.sleep(_POLL_S)


def _code(reason: str | None) -> str:
    text = reason or ""
    return text if re.fullmatch(r"[a-z0-9-]{1,60}", text) else "client-error"
