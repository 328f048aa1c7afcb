"""What the benchmark trains: a plain torch loop written out, and the training TEE's ready one, in blocks by turns.

In each turn there are three blocks of as many steps: of the plain loop, of the ready loop, and of the ready loop with a
sealed checkpoint in it. Which one comes first changes from turn to turn. All in one process, on the same data.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from clients.tasks.central import Terms, fit

if TYPE_CHECKING:
    from confed.client.keeping import Checkpoints

CLASSES = 10
PLAIN, BARE, KEPT = "plain", "bare", "kept"
KINDS = (PLAIN, BARE, KEPT)
MEASURED = ("wall", "thread", "process", "saving", "late")
WARM = 3
"""Steps of each loop before anything is measured: memory that is new, code that is chosen."""
Settings = Mapping[str, bool | int | float | str]


@dataclass(slots=True)
class Block:
    """Seconds of a block: by the wall, of the loop's thread, of the whole process until nothing of it was left to do.

    ``saving`` is what ``save`` took of it, ``late`` how long after its last step its checkpoint was kept.
    """

    wall: float = 0.0
    thread: float = 0.0
    process: float = 0.0
    saving: float = 0.0
    late: float = 0.0


def network_of(settings: Settings) -> torch.nn.Module:
    """Return a network of about ``parameters`` numbers: three equal layers and a small last one."""
    torch.manual_seed(int(settings["model-seed"]))
    width = int((int(settings["parameters"]) / 3) ** 0.5)
    layers = [layer for _ in range(3) for layer in (torch.nn.Linear(width, width), torch.nn.ReLU())]
    return torch.nn.Sequential(*layers, torch.nn.Linear(width, CLASSES))


def data_of(settings: Settings) -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs and labels for the ready loop's one epoch."""
    width = int((int(settings["parameters"]) / 3) ** 0.5)
    steps = WARM + 1 + 2 * int(settings["turns"]) * int(settings["block-steps"])
    examples = steps * int(settings["batch-size"])
    generator = torch.Generator().manual_seed(1)
    return torch.randn(examples, width, generator=generator), torch.randint(
        0, CLASSES, (examples,), generator=generator
    )


def plain_steps(model: torch.nn.Module, data: tuple[torch.Tensor, torch.Tensor], settings: Settings) -> Iterator[None]:
    """Train as anybody would, without end; stop after each step."""
    inputs, labels = data
    optimizer = torch.optim.SGD(model.parameters(), lr=float(settings["learning-rate"]), momentum=0.9)
    model.train()
    while True:
        total = 0.0
        for batch in torch.randperm(len(labels)).split(int(settings["batch-size"])):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(inputs[batch]), labels[batch])
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(batch)
            yield


class Turns:
    """Checkpoints of the ready loop that let the blocks take turns: all of it happens in ``due``, after a step.

    Args:
        kept: the session's own checkpoints.
        plain: the plain loop.
    """

    def __init__(self, kept: Checkpoints, plain: Iterator[None], settings: Settings) -> None:
        self._kept, self._plain = kept, plain
        self._steps, turns = int(settings["block-steps"]), int(settings["turns"])
        order = [KINDS[(turn + place) % len(KINDS)] for turn in range(turns) for place in range(len(KINDS))]
        self._left = iter(order)
        self.blocks: dict[str, list[Block]] = {kind: [] for kind in KINDS}
        self.restore, self.carry = kept.restore, kept.carry
        self._block: Block | None = None
        self._kind, self._taken = "", 0

    def due(self) -> bool:
        """Count a step of the ready loop; at the end of a block do what comes before the next one of the ready loop."""
        due = self._kept.due()
        self._taken += 1
        if self._block is None:
            if self._taken < WARM:
                return due
        elif self._taken < self._steps:
            return due
        else:
            self._end()
        return self._begin()

    def save(self, state: object) -> None:
        """Pass on, and count."""
        started = time.perf_counter()
        self._kept.save(state)
        if self._block is not None:
            self._block.saving += time.perf_counter() - started

    def _begin(self) -> bool:
        for kind in self._left:
            self._kind = kind
            self._start()
            if kind != PLAIN:
                return kind == KEPT
            for _ in range(self._steps):
                next(self._plain)
            self._end()
        self._block = None
        return False

    def _start(self) -> None:
        self._taken = 0
        self._block = Block(wall=-time.perf_counter(), thread=-time.thread_time(), process=-time.process_time())

    def _end(self) -> None:
        block = self._block
        assert block is not None  # noqa: S101 (a block has begun)
        block.wall += time.perf_counter()
        block.thread += time.thread_time()
        ended = time.perf_counter()
        settle: Any = getattr(self._kept, "settle", None)
        if settle is not None:
            settle()
        block.late = time.perf_counter() - ended
        block.process += time.process_time()
        self.blocks[self._kind].append(block)


def measured(model: torch.nn.Module, settings: Settings, kept: Checkpoints) -> dict[str, float]:
    """Train in turns; return each block's figures by ``KIND-FIGURE-TURN``."""
    data = data_of(settings)
    plain = plain_steps(network_of(settings), data, settings)
    for _ in range(WARM):
        next(plain)
    turns = Turns(kept, plain, settings)
    fit(model, data, torch.nn.functional.cross_entropy, terms=Terms.of(settings), kept=turns)
    return {
        f"{kind}-{figure}-{turn}": getattr(block, figure)
        for kind, blocks in turns.blocks.items()
        for turn, block in enumerate(blocks)
        for figure in MEASURED
    }


def main() -> None:
    """Train plainly with settings in JSON, as a process of its own; print each block's seconds (wall, thread)."""
    parser = argparse.ArgumentParser(prog="training_loop")
    parser.add_argument("settings")
    settings = json.loads(parser.parse_args().settings)
    torch.set_num_threads(1)
    steps = plain_steps(network_of(settings), data_of(settings), settings)
    for _ in range(WARM):
        next(steps)
    found: list[tuple[float, float]] = []
    for _ in range(int(settings["turns"])):
        started, busy = time.perf_counter(), time.thread_time()
        for _ in range(int(settings["block-steps"])):
            next(steps)
        found.append((time.perf_counter() - started, time.thread_time() - busy))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
