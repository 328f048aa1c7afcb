"""What confidentiality costs a round: the digits run through confed beside the same run in plain Flower.

``python -m benchmarks.confidentiality [--rounds N] [--clients N] [--json]``. Both run the same ClientApp on the same
in-process Grid over two worker processes; plain Flower averages in the ServerApp's process, confed seals, attests,
countersigns and commits every round. The first round (imports, attestation) is left out of both.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from flwr.app import Message

from confed.client.host import receive_frame, send_frame
from confed.experiment.config import load_experiment
from confed.flower.messages import decode_message, encode_message, use_local_task_identity
from confed.simulation.grid import LocalGrid

ROOT = Path(__file__).resolve().parents[1]
DIGITS = ROOT / "experiments" / "digits"
WORKERS = 2


class PlainWorker:
    """A process of ``benchmarks.plain_worker``."""

    def __init__(self, settings: list[object]) -> None:
        self.channel, theirs = socket.socketpair()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.plain_worker", str(theirs.fileno()), json.dumps(settings)],
            pass_fds=(theirs.fileno(),),
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        theirs.close()

    def handle_all(self, messages: Sequence[tuple[int, Message]]) -> Iterator[Message]:
        """Send one message after another, each when the reply to the one before is there."""
        for partition, message in messages:
            send_frame(self.channel, partition.to_bytes(4, "big") + encode_message(message))
            frame = receive_frame(self.channel)
            if frame is None:
                raise SystemExit("a plain worker died")
            yield decode_message(frame)

    def stop(self) -> None:
        """End the process."""
        self.channel.close()
        self.process.wait(10)


def prepare(folder: Path, *, rounds: int, clients: int) -> Path:
    """Copy the digits experiment with other numbers of rounds and clients."""
    for file in DIGITS.glob("*.py"):
        shutil.copy(file, folder)
    text = (DIGITS / "config.toml").read_text()
    for key, value in {"rounds": rounds, "count": clients, "sites": clients, "least": clients // 2 + 1}.items():
        text = re.sub(rf"(?m)^{key} = .*$", f"{key} = {value}", text)
    (folder / "config.toml").write_text(text)
    return folder / "config.toml"


def confed_rounds(config: Path, folder: Path) -> tuple[list[float], float]:
    """Run through confed; return the seconds of each round after the first, and the accuracy."""
    done = subprocess.run(
        [sys.executable, "-m", "confed.cli.main", "run", str(config), "--runs", str(folder / "runs"), "--json"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, "CONFED_HOME": str(folder / "home")},
    )
    summary = json.loads(done.stdout.splitlines()[-1])
    ends = [
        event["time"] / 1000
        for line in (Path(summary["run_dir"]) / "events.jsonl").read_text().splitlines()
        if (event := json.loads(line))["event"] == "evaluated"
    ]
    return [later - earlier for earlier, later in itertools.pairwise(ends)], summary["accuracy"]


def plain_rounds(config: Path, folder: Path) -> tuple[list[float], float]:
    """Run the same app in plain Flower; return the seconds of each round after the first, and the accuracy."""
    from flwr.app import ArrayRecord
    from flwr.serverapp.strategy import FedAvg

    from clients.tasks.digits import Network

    experiment = load_experiment(config)
    names = [f"site-{number:02d}" for number in range(1, experiment.sites.count + 1)]
    use_local_task_identity(run_id=1, node_id=1)
    settings = [str(folder), names, experiment.run.seed, experiment.run_config]
    workers = [PlainWorker(settings) for _ in range(WORKERS)]
    ends: list[float] = []

    class Timed(FedAvg):
        def aggregate_evaluate(self, server_round, replies):  # noqa: ANN001, ANN202
            metrics = super().aggregate_evaluate(server_round, replies)
            ends.append(time.perf_counter())
            return metrics

    try:
        for worker in workers:
            receive_frame(worker.channel)
        count = len(names)
        grid = LocalGrid(workers, partitions=count)  # pyright: ignore[reportArgumentType]
        result = Timed(min_train_nodes=count, min_evaluate_nodes=count, min_available_nodes=count).start(
            grid=grid, initial_arrays=ArrayRecord(Network().state_dict()), num_rounds=experiment.run.rounds
        )
        grid.close()
    finally:
        for worker in workers:
            worker.stop()
    accuracy = float(result.evaluate_metrics_clientapp[experiment.run.rounds]["accuracy"])
    return [later - earlier for earlier, later in itertools.pairwise(ends)], accuracy


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="confed-benchmark-") as name:
        folder = Path(name)
        config = prepare(folder, rounds=arguments.rounds, clients=arguments.clients)
        sealed, sealed_accuracy = confed_rounds(config, folder)
        import logging

        logging.getLogger("flwr").setLevel(logging.ERROR)
        plain, plain_accuracy = plain_rounds(config, folder)
    found = {
        "clients": arguments.clients,
        "rounds": arguments.rounds,
        "confed_s": round(statistics.median(sealed), 4),
        "flower_s": round(statistics.median(plain), 4),
        "ratio": round(statistics.median(sealed) / statistics.median(plain), 2),
        "confed_accuracy": sealed_accuracy,
        "flower_accuracy": round(plain_accuracy, 6),
    }
    if arguments.json:
        print(json.dumps(found))
        return
    print(f"{arguments.clients} clients, median of {arguments.rounds - 1} rounds (train, combine, evaluate)")
    print(f"  plain Flower, same grid and workers  {found['flower_s']:.3f} s  accuracy {plain_accuracy:.4f}")
    print(f"  confed, sealed and attested          {found['confed_s']:.3f} s  accuracy {sealed_accuracy:.4f}")
    print(f"  ratio                                {found['ratio']:.2f}")


if __name__ == "__main__":
    main()
