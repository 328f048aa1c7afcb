"""The Flower mod that turns any ClientApp confidential: attest, open, train, seal.

The app sees ordinary ArrayRecords and the manifest's settings. Flower sees a reference to ciphertext, or a stable
code: no arrays, no metrics, no number of examples, no exception text, no state.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp.typing import ClientAppCallable

from confed.client.current import acting_for, installed, seed_everything
from confed.client.frozen import require_base, require_frozen
from confed.client.session import ClientSession
from confed.client.settings import code_of
from confed.client.step import Step, no_seconds
from confed.errors import (
    ConfedError,
    DeclarationError,
    ManifestMismatchError,
    PurposeError,
    SessionError,
    SettingError,
)
from confed.flower.arrays import let_go, numbers_of, record_of
from confed.journey import Purpose
from confed.manifest import SIMULATION, Site
from confed.model.bfloat16 import narrowed, widened

RECORD = "confed"
"""Name of the one ConfigRecord that confed's messages carry."""

_APP_FAILED = "client-app-failed"
_ERROR_CODE = 0
_PACKAGE = Path(__file__).parents[1]
_log = logging.getLogger(__name__)


def confidential(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Run the ClientApp on an opened base version and return only a reference to its sealed result.

    Guarantees: nothing of the model, the data, the metrics or an exception's text is in the reply or the context.
    A failure is a Flower error whose reason is a stable code.
    """
    session: ClientSession | None = None
    try:
        session = installed() or _session_from_environment()
        return _handle(session, message, context, call_next)
    except ConfedError as error:
        if not _is_ours(error):
            # An app may put data into an error of any class, its code included.
            _log.error("client app failed: %s at %s", type(error).__name__, _place(error))
            return _failed(message, _APP_FAILED)
        if isinstance(error, SettingError):
            # What was read as a setting is the app's word too: of it only a name that the manifest has is told.
            code = code_of(error, () if session is None else session.manifest.settings)
            _log.warning("refused (%s) at %s", code, _place(error))
            return _failed(message, code)
        _log.warning("refused (%s): %s", error.code, error)
        return _failed(message, error.code)
    # The service edge: whatever the app raised may quote data, so only its place in the code is logged.
    except Exception as error:  # noqa: BLE001
        _log.error("client app failed: %s at %s", type(error).__name__, _place(error))
        return _failed(message, _APP_FAILED)


def _handle(session: ClientSession, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    partition = context.node_config.get("partition-id")
    site = session.site_for(int(partition) if partition is not None else None)
    purpose = _purpose(message)
    told = message.content.config_records.get(RECORD)
    if told is None:
        raise SessionError("message", expected=f"a ConfigRecord named {RECORD}", got="none")
    if told.get("ask") == "site":
        return _reply(message, {"site": site.owner.name, "listens": int(session.listens)})
    if told.get("ask") == "close" and session.alone is not None:
        session.alone.close_run(int(_number(told, "version")))
        return _reply(message, {"site": site.owner.name})
    round_number, attempt = int(_number(told, "round")), int(_number(told, "attempt"))
    named = str(told.get("aggregator", ""))
    step, grants = session.step(site, round_number=round_number, attempt=attempt, purpose=purpose, aggregator=named)
    seconds, step.seconds = step.seconds, no_seconds()
    inner_context = _for_the_app(session, step, site, message, context)
    started = time.perf_counter()
    seed_everything(session.manifest.client_seed(site=site.owner.name, round_number=round_number))
    trained = session.manifest.model.trained
    with acting_for(site, step):
        reply = call_next(message, inner_context)
    if step.frozen:
        require_frozen(step.arrays, trained=trained, digest=step.frozen)
    seconds["train"] += time.perf_counter() - started
    if reply.has_error() or reply.content is not message.content:
        let_go(message.content)
    if reply.has_error():
        return _failed(message, _APP_FAILED)
    _keep_state(session, site, inner_context)
    arrays, weight, metrics = _result(session, step, reply)
    if step.frozen and arrays is not None:
        require_base(arrays, step.arrays, trained=trained)
    digest = session.seal_result(site, step, grants, arrays=arrays, weight=weight, metrics=metrics, seconds=seconds)
    let_go(reply.content)
    answer: dict[str, str | float] = {"site": site.owner.name, "digest": digest}
    if session.manifest.environment == SIMULATION:
        # Seconds per stage tell about the size of a site's data, so they leave only where nothing is at stake.
        answer |= {f"seconds-{stage}": value for stage, value in seconds.items()}
    return _reply(message, answer)


def _session_from_environment() -> ClientSession:
    """Start a session in a process that Flower itself started (Ray)."""
    from confed.client.host import session_from_environment  # noqa: PLC0415 (host imports this module's package)

    return session_from_environment()


def _purpose(message: Message) -> Purpose:
    kind = message.metadata.message_type.split(".", 1)[0]
    try:
        return {MessageType.TRAIN: Purpose.TRAIN, MessageType.EVALUATE: Purpose.EVALUATE}[kind]
    except KeyError:
        raise PurposeError("message type", expected="train or evaluate", got=kind) from None


def _number(record: ConfigRecord, name: str) -> int:
    value = record.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise SessionError(f"message {name}", expected="a whole number", got=type(value).__name__)
    return value


def _for_the_app(session: ClientSession, step: Step, site: Site, message: Message, context: Context) -> Context:
    """Put the opened base and the manifest's words in place of the governor's, and return the app's context."""
    manifest = session.manifest
    parameters = manifest.strategy.parameters
    config = dict(manifest.evaluate_config if step.purpose is Purpose.EVALUATE else manifest.train_config)
    if step.purpose is Purpose.TRAIN and manifest.strategy.name == "FedProx":
        config["proximal-mu"] = parameters.get("proximal_mu") or 0.0  # as Flower's configure_train sets it
    content = RecordDict(
        {
            str(parameters.get("arrayrecord_key", "arrays")): record_of(_told(session, step), shown=_for_numpy),
            str(parameters.get("configrecord_key", "config")): ConfigRecord(
                {**config, "server-round": step.round_number}
            ),
        }
    )
    message.content = content
    return Context(
        run_id=context.run_id,
        node_id=context.node_id,
        node_config=context.node_config,
        state=session.states.get(site.owner.name, RecordDict()),
        run_config=dict(manifest.settings),
    )


def _told(session: ClientSession, step: Step) -> Mapping[str, np.ndarray]:
    """Return what the message to the app holds of the base: all of it, or an adapter alone."""
    if session.manifest.adapter is None:
        return step.arrays
    return {name: array for name, array in step.arrays.items() if name in session.manifest.model.trained}


def _for_numpy(array: np.ndarray) -> np.ndarray:
    """Return what an app can work with: bfloat16, which neither NumPy nor Flower has, as float32."""
    return widened(array) if _is_brain(array) else array


def _is_brain(array: np.ndarray | None) -> bool:
    return array is not None and (array.dtype.metadata or {}).get("safetensors") == "BF16"


def _taken_from(record: ArrayRecord, base: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the numbers of an app's arrays; what is stored as bfloat16 is let go of as it is rounded."""
    found: dict[str, np.ndarray] = {}
    for name in list(record):
        numbers = numbers_of(record[name])
        if _is_brain(base.get(name)) and numbers.dtype == np.float32:
            numbers = narrowed(numbers)
            del record[name]
        found[name] = numbers
    return found


def _keep_state(session: ClientSession, site: Site, context: Context) -> None:
    """Keep the app's state inside the TEE: Flower never carries it."""
    if session.follows_flower and len(context.state) > 0:
        raise SessionError("context.state", expected="none: Ray may run the next round elsewhere", got="some")
    session.states[site.owner.name] = context.state


def _result(
    session: ClientSession, step: Step, reply: Message
) -> tuple[Mapping[str, np.ndarray] | None, float, dict[str, float]]:
    """Return the trained arrays (none when evaluating), the weight and the scalar metrics of an app's reply."""
    records = list(reply.content.metric_records.values())
    if len(records) != 1:
        raise DeclarationError("metric records in the reply", expected="exactly 1", got=len(records))
    key = str(session.manifest.strategy.parameters.get("weighted_by_key", "num-examples"))
    metrics = _scalars(records[0])
    if key not in metrics:
        raise DeclarationError("reply metrics", expected=f"{key} among them", got="none")
    weight = metrics.pop(key)
    if step.purpose is Purpose.EVALUATE:
        return None, weight, metrics
    arrays = list(reply.content.array_records.values())
    if len(arrays) != 1:
        raise ManifestMismatchError("array records in the reply", expected="exactly 1", got=len(arrays))
    return _taken_from(arrays[0], step.arrays), weight, metrics


def _scalars(record: MetricRecord) -> dict[str, float]:
    values: dict[str, float] = {}
    for name, value in record.items():
        if not isinstance(value, int | float):
            raise DeclarationError(f"metric {name}", expected="a number", got=type(value).__name__)
        values[name] = float(value)
    return values


def _reply(message: Message, fields: Mapping[str, Any]) -> Message:
    return Message(RecordDict({RECORD: ConfigRecord(dict(fields))}), reply_to=message)


def _failed(message: Message, code: str) -> Message:
    return Message(Error(code=_ERROR_CODE, reason=code), reply_to=message)


def _is_ours(error: BaseException) -> bool:
    """Whether an exception was raised in confed's own code, whose errors never quote a secret."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(frames[-1].filename).is_relative_to(_PACKAGE)


def _place(error: BaseException) -> str:
    """Return where an exception was raised, as file:line names: no message and no values."""
    frames = traceback.extract_tb(error.__traceback__)
    return " < ".join(f"{frame.filename}:{frame.lineno}" for frame in reversed(frames[-3:]))
