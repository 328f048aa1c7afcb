"""``ConfidentialStrategy``: any Flower strategy, its arithmetic in the aggregator enclave.

Wrap the strategy of a ServerApp in it and nothing else changes. The governor draws no cohort, opens no update and
combines nothing: it asks the enclave who is drawn, relays references to ciphertext, and learns what the manifest
lets out. A wrapped strategy that differs from the manifest's is refused by parameter name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from confed.errors import ConfedError, ConfigError, EnclaveLostError, RefusedError, RoundError
from confed.governor.agreement import Start, StartCaught, require_same, resolving, strategy_name, strategy_parameters
from confed.governor.enclave_client import EnclaveClient
from confed.governor.events import EventLog, EventName
from confed.governor.late import LateAnswers
from confed.governor.launch import GovernorLaunch
from confed.governor.lone import LoneTee
from confed.governor.rounds import RECORD, Rounds, exchange
from confed.wire.addresses import GOVERNOR_BOX
from confed.wire.boxes import Boxes
from confed.wire.courier_client import CourierClient

SEALED_STYPE = "confed.sealed-reference"


class ConfidentialStrategy(Strategy):
    """Runs the rounds of ``strategy`` through the aggregator enclave.

    Args:
        strategy: one of Flower's strategies that the enclave knows, with scalar parameters only.
    """

    def __init__(self, strategy: Strategy) -> None:
        self._strategy = strategy
        self._rounds: Rounds | None = None
        self._ended = False
        self._grid: Grid | None = None
        self._timeout_s = 0.0

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord | Callable[[], ArrayRecord],
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Run the manifest's rounds, up to the one in which a stop rule fires: of those after it, none is opened.

        ``initial_arrays`` are what the model owner seals; here they are not used, since the start is the sealed
        version in the manifest. A function that makes them is called at the model owner's alone: a large model is then
        not made where nobody needs it.

        Raises:
            ManifestMismatchError: a parameter of the strategy, or of this call, differs from the manifest.
            ConfedError: the enclave refused, or fell short of the cohort.
        """
        if evaluate_fn is not None:
            raise ConfigError("evaluate_fn", expected="none: the governor holds no model to evaluate", got="a function")
        asked = Start(
            name=strategy_name(self._strategy),
            parameters=strategy_parameters(self._strategy),
            rounds=num_rounds,
            arrays=initial_arrays if isinstance(initial_arrays, ArrayRecord) else _made(initial_arrays),
            train_config=dict(train_config or {}),
            evaluate_config=dict(evaluate_config or {}),
        )
        if resolving():
            raise StartCaught(asked)
        launch = GovernorLaunch.from_environment()
        manifest = launch.manifest_decoded()
        require_same(asked, manifest)
        self._timeout_s = min(timeout, launch.round_timeout_s)
        with (
            EventLog(launch.events) as events,
            CourierClient(launch.courier) as courier,
            Boxes(launch.courier, own=GOVERNOR_BOX) as boxes,
        ):
            prompt = _prompt(grid, boxes, patience_s=launch.round_timeout_s)
            self._rounds = Rounds(
                manifest,
                EnclaveClient(launch.aggregator)
                if manifest.scenario.combines
                else LoneTee(manifest, courier, ask=lambda words: self._running.ask(prompt, words)),
                events,
                letters=courier,
                patience_s=launch.round_timeout_s,
            )
            self._grid = _WatchedGrid(prompt, self._rounds)
            try:
                result = super().start(
                    grid=self._grid,
                    initial_arrays=_reference(manifest.model.start.digest),
                    num_rounds=num_rounds,
                    timeout=self._timeout_s,
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
        del arrays, config
        self._ended = self._running.ended(server_round)
        return [] if self._ended else self._running.open(server_round, MessageType.TRAIN, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Close the round in the enclave: fold, seal, countersign, commit; return a reference and clear metrics."""
        del server_round
        if self._ended:
            return None, None
        digest, metrics = self._closed(replies)
        return _reference(digest), MetricRecord(dict(metrics))

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Open the evaluation of the round's own version."""
        del arrays, config
        if self._ended or self._running.manifest.cohort.fraction_evaluate == 0:
            return []
        return self._running.open(server_round, MessageType.EVALUATE, grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Close the evaluation: the cohort's weighted means, as the manifest allows."""
        del server_round
        if self._ended or self._running.manifest.cohort.fraction_evaluate == 0:
            return None
        return MetricRecord(dict(self._closed(replies)[1]))

    def _closed(self, replies: Iterable[Message]) -> tuple[str, Mapping[str, float]]:
        """Close the round, in as many attempts as enclaves are lost and the manifest allows."""
        while True:
            try:
                return self._running.close(replies)
            except (EnclaveLostError, RoundError) as error:
                if self._grid is None:
                    raise
                replies = self._grid.send_and_receive(self._running.again(error), timeout=self._timeout_s)

    @property
    def _running(self) -> Rounds:
        if self._rounds is None:
            raise RefusedError("strategy", expected="a call of start()", got="none")
        return self._rounds


class _WatchedGrid(Grid):
    """The given Grid, but replies reach the enclave as they arrive and not when the last one is there."""

    def __init__(self, grid: Grid, rounds: Rounds) -> None:
        self._grid = grid
        self._rounds = rounds
        self._late = LateAnswers(grid, rounds)

    @property
    def waits(self) -> bool:
        return getattr(self._grid, "waits", False)

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
        asked = list(messages)
        if not asked:
            return []
        if self._rounds.manifest.strategy.buffer is not None:
            return self._late.exchange(asked, timeout_s=timeout)
        replies: list[Message] = []
        while asked:  # batch by batch, each with the whole time of a round
            for reply in exchange(self._grid, asked, timeout_s=timeout):
                self._rounds.receive(reply)
                replies.append(reply)
                if self._rounds.lost is not None or self._rounds.full:
                    break  # Whoever still answers answers an attempt that is over, or a round that is full.
            asked = self._rounds.following()
        return replies


def _made(initial_arrays: Callable[[], ArrayRecord]) -> ArrayRecord:
    return initial_arrays() if resolving() else ArrayRecord()


def _prompt(grid: Grid, boxes: Boxes, *, patience_s: float) -> Grid:
    """Return a Grid that calls sites at their boxes, and looks for replies often where Flower's own would sleep."""
    if type(grid).__module__ != "flwr.superlink.grid.http_grid":
        return grid
    from confed.flower.grid import PromptGrid  # noqa: PLC0415 (a second to import, and only a deployment needs it)
    from confed.governor.calling import CallingGrid  # noqa: PLC0415 (as the one above)

    return CallingGrid(PromptGrid(grid), boxes, record=RECORD, patience_s=patience_s)


def _reference(digest: str) -> ArrayRecord:
    """Return what Flower carries in place of weights: the digest of a sealed version."""
    data = bytes.fromhex(digest)
    return ArrayRecord({"sealed": Array(dtype="uint8", shape=(len(data),), stype=SEALED_STYPE, data=data)})


def sealed_digest(arrays: ArrayRecord) -> str:
    """Return the digest of the sealed version that a result refers to."""
    return np.frombuffer(arrays["sealed"].data, dtype=np.uint8).tobytes().hex()
