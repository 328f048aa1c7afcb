"""What both sides of the benchmark train: a plain torch loop written out, and the ready one with its checkpoints."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from clients.tasks.central import Terms, fit

if TYPE_CHECKING:
    from confed.client.keeping import Checkpoints

CLASSES = 10
Settings = Mapping[str, bool | int | float | str]


def network_of(settings: Settings) -> torch.nn.Module:
    """Return a network of about ``parameters`` numbers: three equal layers and a small last one."""
    torch.manual_seed(int(settings["model-seed"]))
    width = int((int(settings["parameters"]) / 3) ** 0.5)
    layers = [layer for _ in range(3) for layer in (torch.nn.Linear(width, width), torch.nn.ReLU())]
    return torch.nn.Sequential(*layers, torch.nn.Linear(width, CLASSES))


def data_of(settings: Settings) -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs and labels for one epoch of ``steps`` batches."""
    width = int((int(settings["parameters"]) / 3) ** 0.5)
    examples = int(settings["steps"]) * int(settings["batch-size"])
    generator = torch.Generator().manual_seed(1)
    return torch.randn(examples, width, generator=generator), torch.randint(
        0, CLASSES, (examples,), generator=generator
    )


class Watched:
    """Checkpoints that count what the loop waits for: ``seconds`` in ``due`` and ``save`` together."""

    def __init__(self, kept: Checkpoints) -> None:
        self._kept = kept
        self.restore, self.carry = kept.restore, kept.carry
        self.seconds = 0.0

    def due(self) -> bool:
        """Pass on, and count."""
        started = time.perf_counter()
        due = self._kept.due()
        self.seconds += time.perf_counter() - started
        return due

    def save(self, state: object) -> None:
        """Pass on, and count."""
        started = time.perf_counter()
        self._kept.save(state)
        self.seconds += time.perf_counter() - started


def ready(model: torch.nn.Module, settings: Settings, kept: Checkpoints) -> tuple[float, float]:
    """Train with the ready loop; return the seconds that it took, and of processor time in its own thread."""
    data = data_of(settings)
    started, busy = time.perf_counter(), time.thread_time()
    fit(model, data, torch.nn.functional.cross_entropy, terms=Terms.of(settings), kept=kept)
    return time.perf_counter() - started, time.thread_time() - busy


def plain(model: torch.nn.Module, settings: Settings) -> tuple[float, float]:
    """Train as anybody would; return the seconds that it took, and of processor time in its own thread."""
    inputs, labels = data_of(settings)
    started, busy = time.perf_counter(), time.thread_time()
    optimizer = torch.optim.SGD(model.parameters(), lr=float(settings["learning-rate"]), momentum=0.9)
    model.train()
    for _ in range(int(settings["epochs"])):
        total = 0.0
        for batch in torch.randperm(len(labels)).split(int(settings["batch-size"])):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(inputs[batch]), labels[batch])
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(batch)
    return time.perf_counter() - started, time.thread_time() - busy


def main() -> None:
    """Train plainly with settings in JSON, as a process of its own, and print the seconds."""
    parser = argparse.ArgumentParser(prog="training_loop")
    parser.add_argument("settings")
    settings = json.loads(parser.parse_args().settings)
    torch.set_num_threads(1)
    print(json.dumps(plain(network_of(settings), settings)))


if __name__ == "__main__":
    main()
