"""A strategy class of somebody's own: it gets the opened updates as Flower gives them, and its result is checked.

A round, all of it in the enclave:

1. every update is opened whole, with the checks of every pass (``passes``); together they take at most what the
   manifest permits;
2. the class is loaded anew from the manifest's code and made with the manifest's parameters; what the last round's
   instance kept on itself is put back. What it kept elsewhere (class or module) is forgotten after every round;
3. ``configure_train`` is called with the base, as Flower does; a message to clients that differs from what clients
   were told (the base and the manifest's train config) is refused;
4. ``aggregate_train`` gets one message a site, in identity order: arrays, metrics and weight. A site is a number, the
   same in every round, as Flower's node ids are. Its metrics go nowhere: what leaves in clear is the manifest's affair;
5. its arrays must have the names and shapes of the trained tensors, which are all that it sees, and be finite.

Whatever the class raises, prints or logs stays here: a ``StrategyError`` says only where it failed.

Not promised: that it ends, or that it mixes more than one update. Brokers count it accordingly.
"""

from __future__ import annotations

import contextlib
import logging
import os
import traceback
from collections.abc import Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, Metadata, MetricRecord, RecordDict
from numpy.typing import NDArray

from aggregator.combine.flower_strategy import Applied, Given
from aggregator.combine.kept_state import kept, restore
from aggregator.combine.opened import Opened, OpenedUpdates
from aggregator.combine.own_code import load_strategy
from aggregator.combine.weights import Weights
from confed.errors import ManifestMismatchError, NotFiniteError, ShapeError, SizeError, StrategyError
from confed.flower.messages import use_local_task_identity
from confed.flower.no_grid import NoGrid

if TYPE_CHECKING:
    from aggregator.combine.passes import Updates
    from confed.manifest import Manifest
    from confed.strategy import StrategyCode, StrategySource

_LOG = logging.getLogger("confed.aggregator")
_MOST_ASKED = 4
_OURS = Path(__file__).parent


class OwnStrategy:
    """The strategy class that a manifest names ``module:Class``; keeps nothing between rounds but what it returns.

    Raises:
        ManifestMismatchError: other code than the manifest's.
        StrategyError: no strategy that the enclave can run, or one that starts with what cannot be kept.
    """

    optimizes = False
    stateful = True

    def __init__(self, manifest: Manifest, code: StrategyCode, source: StrategySource) -> None:
        self._manifest = manifest
        self._code = code
        self._source = source
        self._numbers = {name: at for at, name in enumerate(sorted(site.owner.name for site in manifest.sites), 1)}
        self._state: Mapping[str, NDArray[Any]] = {}
        if source.digest != code.digest:
            raise ManifestMismatchError("strategy code", expected=code.digest[:16], got=source.digest[:16])
        with _quietly("state"):
            kept(self._make(), self._make())

    def rule_for(self, given: Given) -> OpenedUpdates:
        """Return the rule of one round."""
        return OpenedUpdates(self._code.memory_bytes, lambda updates, opened: self._combine(given, updates, opened))

    def apply(
        self,
        *,
        round_number: int,
        base: Mapping[str, NDArray[Any]],
        mean: Mapping[str, NDArray[Any]],
        state: Mapping[str, NDArray[Any]],
    ) -> Applied:
        """Return the class's own result and what it kept: there is nothing to add."""
        del round_number, base, state
        kept_now, self._state = self._state, {}
        return Applied(arrays=mean, state=kept_now)

    def _combine(self, given: Given, updates: Updates, opened: Opened) -> dict[str, NDArray[Any]]:
        strategy = self._make()
        restore(strategy, given.state)
        base = updates.base
        use_local_task_identity(run_id=1, node_id=1)
        with _quietly("configure_train"):
            asked = self._configured(strategy, given, _arrays(base))
            _require_ordinary(asked, self._content(given, base))
        messages = list(self._messages(given, updates, opened))
        with _quietly("aggregate_train"):
            result, _ = strategy.aggregate_train(given.round_number, messages)
            arrays = {} if result is None else {name: array.numpy() for name, array in result.items()}
        flats = _checked(arrays, base)
        with _quietly("state"):
            self._state = kept(strategy, self._make())
        size = sum(array.nbytes for array in self._state.values())
        if size > self._code.memory_bytes:
            raise SizeError("strategy state in bytes", expected=f"at most {self._code.memory_bytes}", got=size)
        return flats

    def _make(self) -> Any:
        with _quietly("constructor"):
            made: Any = load_strategy(self._manifest.strategy.name, self._source)
            strategy: Any = made(**dict(self._manifest.strategy.parameters))
        for name, default in _KEYS.items():
            expected = self._manifest.strategy.parameters.get(name, default)
            got = getattr(strategy, name, default)
            if got != expected:
                raise StrategyError(f"strategy.{name}", expected=str(expected), got=str(got)[:60])
        return strategy

    def _configured(self, strategy: Any, given: Given, base: dict[str, NDArray[Any]]) -> list[Message]:
        config = ConfigRecord(dict(self._manifest.train_config))
        grid = _Sites(len(self._numbers))
        return list(strategy.configure_train(given.round_number, _record(base), config, grid))

    def _content(self, given: Given, base: Weights) -> RecordDict:
        """Return what clients were told, as ``confed.client.mod`` does."""
        config: dict[str, Any] = {**self._manifest.train_config, "server-round": given.round_number}
        return RecordDict(
            {self._key("arrayrecord_key"): _record(_arrays(base)), self._key("configrecord_key"): ConfigRecord(config)}
        )

    def _key(self, name: str) -> str:
        return str(self._manifest.strategy.parameters.get(name, _KEYS[name]))

    def _messages(self, given: Given, updates: Updates, opened: Opened) -> Generator[Message]:
        for at, entry in enumerate(updates.contributions):
            whole = entry.weight.is_integer()
            metrics = {**given.metrics[entry.site], self._key("weighted_by_key"): _number(entry.weight, whole=whole)}
            content = RecordDict(
                {
                    self._key("arrayrecord_key"): _record(opened.take_out(at)),
                    "metrics": MetricRecord(metrics),  # pyright: ignore[reportArgumentType]
                }
            )
            metadata = Metadata(
                1, f"{at + 1}", self._numbers[entry.site], 1, "", str(given.round_number), 0.0, 1.0, MessageType.TRAIN
            )
            yield Message(content, metadata=metadata)  # pyright: ignore[reportCallIssue]


_KEYS = {"weighted_by_key": "num-examples", "arrayrecord_key": "arrays", "configrecord_key": "config"}
"""Names in messages that clients use too, and Flower's defaults."""


class _Sites(NoGrid):
    """What ``configure_train`` sees of Flower's Grid: as many nodes as there are sites. Nothing can be sent."""

    def __init__(self, count: int) -> None:
        super().__init__(_nothing_sent)
        self._count = count
        self._asked = 0

    def get_node_ids(self) -> Iterable[int]:
        self._asked += 1
        if self._asked > _MOST_ASKED:  # Flower waits here for more nodes, for ever
            raise StrategyError("strategy.min_available_nodes", expected=f"at most {self._count}", got="more")
        return range(1, self._count + 1)


def _nothing_sent() -> StrategyError:
    return StrategyError("strategy.configure_train", expected="no use of the grid but its node ids", got="another")


def _arrays(weights: Weights) -> dict[str, NDArray[Any]]:
    """Return a model's tensors as a class sees them: bfloat16 as float32."""
    brain = "BF16" in weights.flats
    flats = {
        dtype: weights.numbers().flats[dtype] if dtype == "BF16" else weights.flats[dtype] for dtype in weights.flats
    }
    return Weights(layout=weights.layout, flats=flats).arrays() if brain else weights.arrays()


def _record(arrays: Mapping[str, NDArray[Any]]) -> ArrayRecord:
    return ArrayRecord({name: Array(np.asarray(array)) for name, array in arrays.items()})


def _number(weight: float, *, whole: bool) -> int | float:
    return int(weight) if whole else weight


def _require_ordinary(asked: Sequence[Message], told: RecordDict) -> None:
    """Require that clients were told what the class would have told them.

    Raises:
        StrategyError: a message with other arrays or another config, or none.
    """
    seen: set[int] = set()
    for message in asked:
        if id(message.content) not in seen:
            seen.add(id(message.content))
            if message.content != told:
                raise StrategyError(
                    "strategy.configure_train",
                    expected="the model and the manifest's train config",
                    got="something else",
                )
    if not asked:
        raise StrategyError("strategy.configure_train", expected="a message to each site drawn", got="none")


def _checked(arrays: Mapping[str, NDArray[Any]], base: Weights) -> dict[str, NDArray[Any]]:
    """Return a class's result as flat arrays of numbers, in the base's order.

    Raises:
        StrategyError: no arrays, or other names than the model's.
        ShapeError: another shape or kind of number.
        NotFiniteError: NaN or infinity.
    """
    expected = _arrays(base)
    if set(arrays) != set(expected):
        raise StrategyError("strategy result", expected=f"the model's {len(expected)} tensors", got="others, or none")
    for name, array in arrays.items():
        wanted = expected[name]
        if array.shape != wanted.shape:
            raise ShapeError(f"strategy result {name}", expected=wanted.shape, got=array.shape)
        if array.dtype.kind != "f":  # only floating tensors are trained
            raise ShapeError(f"strategy result {name}", expected=str(wanted.dtype), got=str(array.dtype))
        if not np.isfinite(array).all():
            raise NotFiniteError(f"strategy result {name}", expected="finite values", got="NaN or infinity")
    return dict(Weights.of({name: arrays[name] for name in expected}, base.layout).flats)


@contextlib.contextmanager
def _quietly(what: str) -> Generator[None]:
    """Let nothing out of a block but its end or a code: not what it prints, warns of, logs or raises."""
    others = logging.getLogger().manager.disable
    logging.disable(logging.CRITICAL)
    failure: StrategyError | None = None
    with (
        Path(os.devnull).open("w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        try:
            yield
        except BaseException as error:  # noqa: BLE001 (whatever a class does, only a code leaves)
            failure = _failure(what, error)
        finally:
            logging.disable(others)
    if failure is not None:
        _LOG.warning("%s", failure)
        raise failure from None


def _failure(what: str, error: BaseException) -> StrategyError:
    """Return what may be told: our own refusal, or an exception's class and place, without its message."""
    frames = traceback.extract_tb(error.__traceback__)
    if type(error) is StrategyError and Path(frames[-1].filename).parent == _OURS:
        return error
    where = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames[-3:]))
    return StrategyError(f"strategy.{what}", expected="no exception", got=f"{type(error).__name__} at {where}")
