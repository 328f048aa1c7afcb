"""The ready training loop: plain torch to the bit, over segments, killed at any step, early stopping and schedules."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import confed.client
from clients.tasks.central import Progress, Terms, fit
from confed.client.keeping import MemoryCheckpoints
from confed.errors import SettingError

EXAMPLES, BATCH = 40, 8


class KilledError(Exception):
    """Stands for SIGKILL."""


class Mortal(MemoryCheckpoints):
    """Dies at one of its saves, after or before it has kept the state."""

    def __init__(self, kept: dict[str, Any], *, every: int, dies_at: int | None = None) -> None:
        super().__init__(SimpleNamespace(run_config={"checkpoint-every-steps": every}), kept)  # pyright: ignore[reportArgumentType]
        self._dies_at, self._saves = dies_at, 0

    def save(self, state: Any) -> None:
        super().save(state)
        self._saves += 1
        if self._saves == self._dies_at:
            raise KilledError


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def made() -> tuple[torch.nn.Module, tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(5)
    model = torch.nn.Sequential(
        torch.nn.Linear(6, 16), torch.nn.BatchNorm1d(16), torch.nn.Dropout(0.3), torch.nn.Linear(16, 3)
    )
    data = torch.randn(EXAMPLES, 6), torch.randint(0, 3, (EXAMPLES,))
    torch.manual_seed(9)
    return model, data


def plain(terms: Terms) -> dict[str, torch.Tensor]:
    """Train as anybody would, without any of the loop's code."""
    model, (inputs, targets) = made()
    whole = terms.epochs * terms.segments
    optimizer = torch.optim.SGD(model.parameters(), lr=terms.learning_rate, momentum=terms.momentum)
    for epoch in range(whole):
        for group in optimizer.param_groups:
            group["lr"] = terms.learning_rate * (0.5 * (1 + math.cos(math.pi * epoch / whole)))
        for batch in torch.randperm(EXAMPLES).split(BATCH):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(inputs[batch]), targets[batch]).backward()
            optimizer.step()
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def terms(**changes: Any) -> Terms:
    values = {
        "epochs": 3,
        "segments": 2,
        "batch_size": BATCH,
        "learning_rate": 0.1,
        "schedule": "cosine",
        "device": "cpu",
    }
    return Terms(**{**values, **changes})


def segments(kept: dict[str, Any], **changes: Any) -> torch.nn.Module:
    model, data = made()
    chosen = terms(**changes)
    for _ in range(chosen.segments):
        torch.manual_seed(torch.seed()) if kept else None  # whatever happens to the generators between two rounds
        fit(model, data, torch.nn.functional.cross_entropy, terms=chosen, kept=Mortal(kept, every=0))
    return model


def test_segments_are_plain_torch_to_the_bit():
    expected, found = plain(terms()), segments({}).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(("every", "dies_at"), [(1, 1), (1, 7), (4, 3), (5, 2), (7, 1)])
def test_killed_and_started_again_is_as_if_it_had_not_been(every: int, dies_at: int):
    chosen = terms(segments=1, epochs=4)
    model, data = made()
    fit(model, data, torch.nn.functional.cross_entropy, terms=chosen, kept=Mortal({}, every=0))
    kept: dict[str, Any] = {}
    for dies in (dies_at, None):
        again, data = made()  # a new process has the start's weights and the round's seed
        mortal = Mortal(kept, every=every, dies_at=dies)
        if dies is None:
            fit(again, data, torch.nn.functional.cross_entropy, terms=chosen, kept=mortal)
            continue
        with pytest.raises(KilledError):
            fit(again, data, torch.nn.functional.cross_entropy, terms=chosen, kept=mortal)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


def test_patience_ends_a_segment_and_a_kill_does_not_reset_it():
    seen: list[Progress] = []

    class Watching(Mortal):
        def carry(self, state: Any) -> None:
            seen.append(Progress(**state["progress"]))
            super().carry(state)

    flat = lambda logits, targets: (logits * 0).sum() + 1.0  # noqa: E731 (a loss that never falls)
    for every, dies_at in ((0, None), (3, 4)):
        kept: dict[str, Any] = {}
        if dies_at:
            with pytest.raises(KilledError):
                fit(*made(), flat, terms=terms(epochs=9, patience=2), kept=Watching(kept, every=every, dies_at=dies_at))
        fit(*made(), flat, terms=terms(epochs=9, patience=2), kept=Watching(kept, every=every))
        assert seen.pop().epoch == 3  # the best, and two that were not better


def test_the_learning_rate_follows_its_schedule_over_all_segments():
    assert [terms(schedule="step", epochs=4).factor(epoch) for epoch in range(8)] == pytest.approx(
        [1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01]
    )
    assert {terms(schedule="constant").factor(epoch) for epoch in range(6)} == {1.0}
    for changes in ({"schedule": "warm"}, {"precision": "float8"}):
        with pytest.raises(SettingError, match="expected one of"):
            terms(**changes)


def test_mixed_precision_trains_in_bfloat16_and_keeps_float32_weights():
    model, data = made()
    seen: set[torch.dtype] = set()

    def loss_of(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        seen.add(logits.dtype)
        return torch.nn.functional.cross_entropy(logits.float(), targets)

    fit(model, data, loss_of, terms=terms(precision="bfloat16", epochs=1, segments=1), kept=Mortal({}, every=0))
    assert seen == {torch.bfloat16}
    assert all(parameter.dtype is torch.float32 for parameter in model.parameters())


def test_plain_training_keeps_its_checkpoints_in_memory():
    context: Any = SimpleNamespace(run_config={}, run_id=71, node_id=3)
    assert confed.client.checkpoints(context).restore() is None
    confed.client.checkpoints(context).save({"step": 4, "t": torch.ones(2)})
    found = confed.client.checkpoints(context).restore()
    assert (found["step"], found["t"].tolist()) == (4, [1.0, 1.0])
    other: Any = SimpleNamespace(run_config={}, run_id=71, node_id=4)
    assert confed.client.checkpoints(other).restore() is None
