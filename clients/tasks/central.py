"""Confidential training in one TEE: a plain torch loop, a segment of it every round, that survives being killed.

``fit`` knows nothing of confed but ``Checkpoints``: with a ``MemoryCheckpoints`` it is an ordinary training loop, and
what comes out is the same to the bit.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

import confed.client
from clients.tasks import digits
from confed.client.settings import Settings, refuse

if TYPE_CHECKING:
    from confed.client.keeping import Checkpoints

CONSTANT, COSINE, STEP = "constant", "cosine", "step"
SCHEDULES = (CONSTANT, COSINE, STEP)
FLOAT32, BFLOAT16 = "float32", "bfloat16"
PRECISIONS = (FLOAT32, BFLOAT16)
AUTO, CPU, CUDA = "auto", "cpu", "cuda"
DEVICES = (AUTO, CPU, CUDA)


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How to train; every one of these is a setting of the experiment, and so in the manifest.

    Attributes:
        epochs: of this segment; ``segments`` of them make the whole training.
        schedule: of the learning rate over all segments: ``constant``, ``cosine`` (to 0), or ``step`` (a tenth after
            half, and again after three quarters).
        patience: the segment ends after so many epochs in a row without a lower mean loss; 0 is never.
        precision: ``float32``, or ``bfloat16`` for autocast (CUDA, or a CPU that has it).
        device: ``cpu``, ``cuda``, or ``auto``, which takes CUDA where there is one.
    """

    epochs: int
    segments: int
    batch_size: int
    learning_rate: float
    momentum: float = 0.9
    schedule: str = CONSTANT
    patience: int = 0
    precision: str = FLOAT32
    device: str = AUTO

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("lr-schedule", self.schedule, SCHEDULES),
            ("precision", self.precision, PRECISIONS),
            ("device", self.device, DEVICES),
        ):
            if value not in choices:
                refuse(name, expected=f"one of {', '.join(choices)}", got=value)

    @classmethod
    def of(cls, settings: Mapping[str, bool | int | float | str]) -> Terms:
        """Return the terms that an experiment's settings name.

        Raises:
            SettingError: one that is missing, or has a value that this loop does not take.
        """
        read = Settings(settings)
        return cls(
            epochs=read.whole("epochs", least=1),
            segments=read.whole("num-server-rounds", least=1),
            batch_size=read.whole("batch-size", least=1),
            learning_rate=read.number("learning-rate", above=0),
            momentum=read.number("momentum", least=0, default=0.9),
            schedule=read.text("lr-schedule", default=CONSTANT),
            patience=read.whole("patience", least=0, default=0),
            precision=read.text("precision", default=FLOAT32),
            device=read.text("device", default=AUTO),
        )

    @property
    def place(self) -> torch.device:
        """Where to train.

        Raises:
            SettingError: CUDA, where there is none.
        """
        there = torch.cuda.is_available()
        if self.device == CUDA and not there:
            refuse("device", expected="one that is there", got=CUDA)
        return torch.device(CUDA if there and self.device != CPU else CPU)

    def autocast(self, place: torch.device) -> AbstractContextManager[Any]:
        """Return mixed precision, where it is asked for."""
        if self.precision == FLOAT32:
            return nullcontext()
        return torch.autocast(device_type=place.type, dtype=torch.bfloat16)

    def factor(self, epoch: int) -> float:
        """Return by what to multiply the learning rate in an epoch of the whole training, counted from 0."""
        whole = self.epochs * self.segments
        if self.schedule == COSINE:
            return 0.5 * (1 + float(np.cos(np.pi * min(epoch, whole) / whole)))
        if self.schedule == STEP:
            return 0.1 ** ((2 * epoch >= whole) + (4 * epoch >= 3 * whole))
        return 1.0


@dataclass(slots=True, kw_only=True)
class Progress:
    """Where a training is; all of it is in every checkpoint.

    ``order`` is the epoch's permutation and ``batch`` how many of its batches are done; ``total`` their summed loss.
    """

    epoch: int = 0
    in_segment: int = 0
    batch: int = 0
    total: float = 0.0
    mean: float = 0.0
    best: float = float("inf")
    since_best: int = 0
    order: torch.Tensor | None = None


def fit(
    model: torch.nn.Module,
    data: tuple[torch.Tensor, torch.Tensor],
    loss_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    *,
    terms: Terms,
    kept: Checkpoints,
) -> float:
    """Train a segment, going on from what ``kept`` restores, and return the mean loss of its last epoch.

    Guarantees: killed at any step and started again, the weights are the same to the bit as if it had not been
    (on a device whose operations are deterministic); so they are over several segments and one long training.
    """
    place = terms.place
    model.to(place)
    inputs, targets = (part.to(place) for part in data)
    optimizer = torch.optim.SGD(model.parameters(), lr=terms.learning_rate, momentum=terms.momentum)
    progress = _restored(kept.restore(), model, optimizer)
    model.train()
    while progress.in_segment < terms.epochs and not 0 < terms.patience <= progress.since_best:
        for group in optimizer.param_groups:
            group["lr"] = terms.learning_rate * terms.factor(progress.epoch)
        for batch in _batches(progress, len(targets), terms.batch_size):
            optimizer.zero_grad()
            with terms.autocast(place):
                loss = loss_of(model(inputs[batch]), targets[batch])
            loss.backward()
            optimizer.step()
            progress.total += float(loss.detach()) * len(batch)
            progress.batch += 1
            if kept.due():
                kept.save({**_state(optimizer, progress), "model": model.state_dict()})
        _end_epoch(progress, len(targets))
    mean = progress.mean
    progress.in_segment, progress.since_best = 0, 0
    kept.carry(_state(optimizer, progress))
    model.to("cpu")
    return mean


def _batches(progress: Progress, examples: int, batch_size: int) -> Iterator[torch.Tensor]:
    """Yield the batches of an epoch that are not done yet; a new epoch draws its order."""
    if progress.order is None:
        progress.order = torch.randperm(examples)
    yield from progress.order.split(batch_size)[progress.batch :]


def _end_epoch(progress: Progress, examples: int) -> None:
    progress.mean = progress.total / examples
    improved = progress.mean < progress.best
    progress.best = min(progress.best, progress.mean)
    progress.since_best = 0 if improved else progress.since_best + 1
    progress.epoch, progress.in_segment = progress.epoch + 1, progress.in_segment + 1
    progress.batch, progress.total, progress.order = 0, 0.0, None


def _state(optimizer: torch.optim.Optimizer, progress: Progress) -> dict[str, Any]:
    """Return everything beside the weights that training goes on from; the learning rate follows from the epoch."""
    return {
        "optimizer": optimizer.state_dict(),
        "progress": {name: getattr(progress, name) for name in Progress.__slots__},
        "generators": {
            "python": random.getstate(),
            "numpy": np.random.get_state(),  # noqa: NPY002 (what apps draw from)
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        },
    }


def _restored(state: Any | None, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
    """Put everything back to where a state says; the weights too, where it is a checkpoint within a segment."""
    if state is None:
        return Progress()
    if "model" in state:
        model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    generators = state["generators"]
    random.setstate(generators["python"])
    np.random.set_state(generators["numpy"])  # noqa: NPY002
    torch.set_rng_state(generators["torch"])
    if generators["cuda"]:
        torch.cuda.set_rng_state_all(generators["cuda"])
    return Progress(**state["progress"])


def require_settings(settings: Mapping[str, bool | int | float | str]) -> None:
    """Check an experiment's settings before anything is sealed.

    Raises:
        SettingError: one that is missing, or has a value that this loop does not take.
    """
    Terms.of(settings)


def make_app(app: ClientApp, data: Callable[[Context], digits.Shard]) -> ClientApp:
    """Give a ClientApp its train and evaluate functions on what ``data`` returns."""

    @app.train()
    def _train(message: Message, context: Context) -> Message:
        network, shard = digits.network_of(message), data(context)
        train = digits.tensors_of(shard, part="train")
        loss = fit(
            network,
            train,
            torch.nn.functional.cross_entropy,
            terms=Terms.of(context.run_config),
            kept=confed.client.checkpoints(context),
        )
        metrics = MetricRecord({"loss": loss, "num-examples": len(train[1])})
        return Message(RecordDict({"arrays": ArrayRecord(network.state_dict()), "metrics": metrics}), reply_to=message)

    @app.evaluate()
    def _evaluate(message: Message, context: Context) -> Message:
        shard = data(context)
        loss, accuracy = digits.evaluate(digits.network_of(message), shard)
        metrics = MetricRecord({"loss": loss, "accuracy": accuracy, "num-examples": len(shard["test_labels"])})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


client_app = make_app(ClientApp(mods=[confed.client.confidential]), confed.client.site_data)
