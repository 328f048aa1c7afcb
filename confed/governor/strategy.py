"""``ConfidentialStrategy``: any Flower strategy, its arithmetic in the aggregator enclave.

Wrap the strategy of a ServerApp in it and nothing else changes. The governor draws no cohort, opens no update and
combines nothing: it asks the enclave who is drawn, relays references to ciphertext, and learns what the manifest
lets out. A wrapped strategy that differs from the manifest's is refused by parameter name.
"""

from __future__ import annotations

import inspect
import re
import time
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from confed.errors import ConfedError, ConfigError, DeploymentError, ManifestMismatchError, RefusedError
from confed.governor.enclave_client import EnclaveClient
from confed.governor.events import EventLog, EventName
from confed.governor.launch import GovernorLaunch
from confed.journey import Purpose
from confed.keybroker.statements import Candidate, CommitRecord
from confed.manifest import Manifest
from confed.statement import unverified

RECORD = "confed"
SEALED_STYPE = "confed.sealed-reference"
_NODE_WAIT_S = 120.0
_POLL_S = 0.05
_ASK_AGAIN_S = 0.5
_CALLABLES = ("train_metrics_aggr_fn", "evaluate_metrics_aggr_fn")
Scalar = bool | int | float | str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What a ServerApp asked of ``start``: caught when an experiment is resolved, checked when it runs."""

    name: str
    parameters: Mapping[str, Scalar]
    rounds: int
    arrays: ArrayRecord
    train_config: Mapping[str, Any]
    evaluate_config: Mapping[str, Any]


class StartCaught(BaseException):
    """Ends a ServerApp at ``start`` while its experiment is being resolved."""

    def __init__(self, start: Start) -> None:
        super().__init__("resolved")
        self.start = start


_resolving: ContextVar[bool] = ContextVar("confed_resolving", default=False)


class ConfidentialStrategy(Strategy):
    """Runs the rounds of ``strategy`` through the aggregator enclave.

    Args:
        strategy: one of Flower's strategies that the enclave knows, with scalar parameters only.
    """

    def __init__(self, strategy: Strategy) -> None:
        self._strategy = strategy
        self._rounds: _Rounds | None = None

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Run the manifest's rounds. ``initial_arrays`` are not used: the start is the sealed version in the manifest.

        Raises:
            ManifestMismatchError: a parameter of the strategy, or of this call, differs from the manifest.
            ConfedError: the enclave refused, or fell short of the cohort.
        """
        if evaluate_fn is not None:
            raise ConfigError("evaluate_fn", expected="none: the governor holds no model to evaluate", got="a function")
        asked = Start(
            name=type(self._strategy).__name__,
            parameters=strategy_parameters(self._strategy),
            rounds=num_rounds,
            arrays=initial_arrays,
            train_config=dict(train_config or {}),
            evaluate_config=dict(evaluate_config or {}),
        )
        if _resolving.get():
            raise StartCaught(asked)
        launch = GovernorLaunch.from_environment()
        manifest = launch.manifest_decoded()
        require_same(asked, manifest)
        events = EventLog(launch.events)
        self._rounds = _Rounds(manifest, EnclaveClient(launch.aggregator), events)
        try:
            result = super().start(
                grid=_WatchedGrid(_prompt(grid), self._rounds),
                initial_arrays=_reference(manifest.model.start.digest),
                num_rounds=num_rounds,
                timeout=min(timeout, launch.round_timeout_s),
                train_config=train_config,
                evaluate_config=evaluate_config,
            )
            self._rounds.finish()
        except ConfedError as error:
            events.write(EventName.RUN_FAILED, code=error.code, reason=str(error))
            raise
        return result

    def summary(self) -> None:
        """Log the wrapped strategy's settings."""
        self._strategy.summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Open the round in the enclave and address the sites that it drew."""
        del config
        return self._running.open(server_round, MessageType.TRAIN, arrays, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Close the round in the enclave: fold, seal, countersign, commit; return a reference and clear metrics."""
        del server_round
        digest, metrics = self._running.close(replies)
        return _reference(digest), MetricRecord(dict(metrics))

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Open the evaluation of the round's own version."""
        del config
        if self._running.manifest.cohort.fraction_evaluate == 0:
            return []
        return self._running.open(server_round, MessageType.EVALUATE, arrays, grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Close the evaluation: the cohort's weighted means, as the manifest allows."""
        del server_round
        if self._running.manifest.cohort.fraction_evaluate == 0:
            return None
        return MetricRecord(dict(self._running.close(replies)[1]))

    @property
    def _running(self) -> _Rounds:
        if self._rounds is None:
            raise RefusedError("strategy", expected="a call of start()", got="none")
        return self._rounds


class _Rounds:
    """One run as the governor sees it: names, references and codes."""

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

    def open(self, round_number: int, kind: str, arrays: ArrayRecord, grid: Grid) -> list[Message]:
        del arrays
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
            seconds = {
                name.removeprefix("seconds-"): float(value)
                for name, value in told.items()
                if name.startswith("seconds-") and isinstance(value, float)
            }
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
        candidate = unverified(CommitRecord.from_bytes(closed.record).candidate, Candidate)
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
        self._enclave.close_run()
        self._events.write(EventName.RUN_FINISHED, rounds=self.manifest.rounds)

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
            for reply in _exchange(grid, asks, timeout_s=_NODE_WAIT_S):
                told = None if reply.has_error() else reply.content.config_records.get(RECORD)
                site = str(told["site"]) if told is not None and "site" in told else ""
                if site in wanted and site not in self._nodes:
                    self._nodes[site] = reply.metadata.src_node_id
                    self._sites[reply.metadata.src_node_id] = site
            if len(self._nodes) < len(wanted):
                time.sleep(_ASK_AGAIN_S)


class _WatchedGrid(Grid):
    """The given Grid, but replies reach the enclave as they arrive and not when the last one is there."""

    def __init__(self, grid: Grid, rounds: _Rounds) -> None:
        self._grid = grid
        self._rounds = rounds

    def set_run(self, run: Any) -> None:
        self._grid.set_run(run)

    @property
    def run(self) -> Any:
        return self._grid.run

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        return self._grid.create_message(*args, **kwargs)

    def get_node_ids(self) -> Iterable[int]:
        return self._grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return self._grid.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        replies: list[Message] = []
        for reply in _exchange(self._grid, list(messages), timeout_s=timeout):
            self._rounds.receive(reply)
            replies.append(reply)
        return replies


def _prompt(grid: Grid) -> Grid:
    """Return a Grid that looks for replies often where Flower's own would sleep for seconds between looks."""
    if type(grid).__module__ != "flwr.superlink.grid.http_grid":
        return grid
    from confed.flower.grid import PromptGrid  # noqa: PLC0415 (a second to import, and only a deployment needs it)

    return PromptGrid(grid)


def _exchange(grid: Grid, messages: list[Message], *, timeout_s: float | None) -> Iterable[Message]:
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


def strategy_parameters(strategy: Strategy) -> dict[str, Scalar]:
    """Return every constructor parameter of a Flower strategy by name.

    Raises:
        ConfigError: a parameter that is not a scalar, or a metric function of the app's own: the enclave runs only
            what the manifest can name.
    """
    found: dict[str, Scalar] = {}
    for name, parameter in inspect.signature(type(strategy).__init__).parameters.items():
        if name == "self":
            continue
        value = getattr(strategy, name)
        if name in _CALLABLES:
            if getattr(value, "__module__", "") != "flwr.serverapp.strategy.strategy_utils":
                raise ConfigError(f"strategy.{name}", expected="Flower's default", got="a function of the app")
            continue
        if not isinstance(value, bool | int | float | str | None):
            raise ConfigError(f"strategy.{name}", expected="a scalar", got=type(value).__name__)
        found[name] = float(value) if isinstance(parameter.default, float) and isinstance(value, int) else value
    return found


def require_same(asked: Start, manifest: Manifest) -> None:
    """Check what a ServerApp asks for against the manifest.

    Raises:
        ManifestMismatchError: names the first parameter that differs.
    """
    if asked.name != manifest.strategy.name:
        raise ManifestMismatchError("strategy", expected=manifest.strategy.name, got=asked.name)
    for name in sorted({*asked.parameters, *manifest.strategy.parameters}):
        expected, got = manifest.strategy.parameters.get(name), asked.parameters.get(name)
        if expected != got:
            raise ManifestMismatchError(f"strategy.{name}", expected=expected, got=got)
    if asked.rounds != manifest.rounds:
        raise ManifestMismatchError("num_rounds", expected=manifest.rounds, got=asked.rounds)
    for name, expected, got in (
        ("train_config", manifest.train_config, asked.train_config),
        ("evaluate_config", manifest.evaluate_config, asked.evaluate_config),
    ):
        if dict(expected) != dict(got):
            raise ManifestMismatchError(name, expected=dict(expected), got=dict(got))


def catch_start(run: Callable[[], object]) -> Start:
    """Run a ServerApp until its strategy's ``start`` and return what it asked for.

    Raises:
        ConfigError: it ended without starting a ConfidentialStrategy.
    """
    token = _resolving.set(True)
    try:
        run()
    except StartCaught as caught:
        return caught.start
    finally:
        _resolving.reset(token)
    raise ConfigError("server", expected="a ServerApp that starts a ConfidentialStrategy", got="one that does not")


def _reference(digest: str) -> ArrayRecord:
    """Return what Flower carries in place of weights: the digest of a sealed version."""
    data = bytes.fromhex(digest)
    return ArrayRecord({"sealed": Array(dtype="uint8", shape=(len(data),), stype=SEALED_STYPE, data=data)})


def sealed_digest(arrays: ArrayRecord) -> str:
    """Return the digest of the sealed version that a result refers to."""
    return np.frombuffer(arrays["sealed"].data, dtype=np.uint8).tobytes().hex()


def _code(reason: str | None) -> str:
    text = reason or ""
    return text if re.fullmatch(r"[a-z0-9-]{1,60}", text) else "client-error"
