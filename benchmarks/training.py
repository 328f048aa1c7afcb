"""What confidential training costs a training loop: seconds of its steps, and of its checkpoints, beside plain torch.

    python -m benchmarks.training [--parameters N] [--steps N] [--every-s S] [--repeat N] [--json]

One thread each, the same network, data and batches. Plain torch is a loop written out, in a process of its own;
confed's is the ready loop inside an attested training TEE (simulated, engine local), once without and once with
checkpoints every S seconds. The three take turns; the best of each counts. A checkpoint holds weights and momentum:
8 bytes a parameter.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from confed.experiment.running import RunRequest, run_experiment
from confed.keybroker.ledger import verify_ledger
from confed.records.run_directory import RunDirectory

ROOT = Path(__file__).resolve().parents[1]
APP = ROOT / "benchmarks" / "training_app"
CONFIG = """
name = "training-benchmark"
environment = "simulation"
scenario = "training"
[app]
client = "client_app:app"
server = "server_app:app"
directory = "{directory}"
[run]
rounds = 1
seed = 3
[sites]
count = 1
[cohort]
least = 1
[data]
source = "app"
[update]
norm_bound = 1e6
weight_cap = 10.0
[metrics]
clear = ["loop-seconds", "loop-cpu-seconds", "save-seconds"]
decimals = 6
[settings]
{settings}
"""


def measure(*, parameters: int, steps: int, every_s: float, repeat: int) -> dict[str, Any]:
    """Return seconds and ratios."""
    settings: dict[str, Any] = {
        "model-seed": 5, "parameters": parameters, "steps": steps, "epochs": 1, "batch-size": 64, "learning-rate": 0.01,
    }  # fmt: skip
    taken: dict[str, list[tuple[float, float]]] = {"plain": [], "confed": [], "checkpointed": []}
    counts: list[int] = []
    waits: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(repeat):
            taken["plain"].append(_plain(settings))
            taken["confed"].append(_confed(Path(folder) / f"{turn}-bare", settings)[0])
            kept, waited, count = _confed(Path(folder) / f"{turn}-kept", {**settings, "checkpoint-every-s": every_s})
            taken["checkpointed"].append(kept)
            counts.append(count)
            waits.append(waited / kept[0])
    best = {f"{name}_s": min(wall for wall, _ in each) for name, each in taken.items()}
    best |= {f"{name}_cpu_s": min(busy for _, busy in each) for name, each in taken.items()}
    return {
        **best,
        "ratio": best["confed_s"] / best["plain_s"],
        "cpu_ratio": best["confed_cpu_s"] / best["plain_cpu_s"],
        "checkpoint_cost": best["checkpointed_s"] / best["confed_s"] - 1,
        "checkpoint_cpu_cost": best["checkpointed_cpu_s"] / best["confed_cpu_s"] - 1,
        "waited": min(waits),
        "checkpoints": counts,
        "step_ms": 1000 * best["plain_s"] / steps,
        "checkpoint_mb": 8 * parameters / 1e6,
        "every_s": every_s,
        "all": taken,
    }


def report(figures: dict[str, Any]) -> str:
    """Return the figures as text."""
    kept = f"({max(figures['checkpoints'])} of {figures['checkpoint_mb']:.0f} MB, every {figures['every_s']:g} s)"
    lines = [
        f"plain torch              {figures['plain_s']:8.2f} s  {figures['step_ms']:.1f} ms a step",
        f"in the training TEE      {figures['confed_s']:8.2f} s  {figures['ratio']:.3f} x plain",
        f"with sealed checkpoints  {figures['checkpointed_s']:8.2f} s  {figures['checkpoint_cost']:+.1%} {kept}",
        f"the loop waited for them {figures['waited']:8.2%} of its time (copies, and what was not done by then)",
        f"processor time of the loop's thread {figures['plain_cpu_s']:.2f} s, in the TEE {figures['cpu_ratio']:.3f} x",
    ]
    return "\n".join(lines)


def _plain(settings: dict[str, Any]) -> tuple[float, float]:
    done = subprocess.run(
        [sys.executable, str(APP / "training_loop.py"), json.dumps(settings)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    wall, busy = json.loads(done.stdout)
    return wall, busy


def _confed(folder: Path, settings: dict[str, Any]) -> tuple[tuple[float, float], float, int]:
    """Run in a training TEE; return its loop's seconds (wall, processor), those in saving, and noted checkpoints."""
    folder.mkdir()
    lines = "\n".join(f"{name} = {json.dumps(value)}" for name, value in settings.items())
    (folder / "config.toml").write_text(CONFIG.format(directory=APP, settings=lines))
    request = RunRequest(
        config_file=folder / "config.toml", engine="local", home=folder / "home", runs_directory=folder / "runs"
    )
    summary = run_experiment(request, watcher=lambda _manifest, _events: None)
    directory = RunDirectory.open(Path(summary["run_dir"]))
    manifest = directory.manifest()
    owner = manifest.model.owner
    entries = verify_ledger(directory.ledger(owner.name), broker=owner.broker, part_from=manifest.digest)
    (line,) = directory.metrics()
    told = line["train"]
    count = sum(entry.event == "checkpointed" for entry in entries)
    return (told["loop-seconds"], told["loop-cpu-seconds"]), told["save-seconds"], count


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.training", description=__doc__)
    parser.add_argument("--parameters", type=int, default=10_000_000, help="of the network (default 10 million)")
    parser.add_argument("--steps", type=int, default=300, help="of each loop (default 300)")
    parser.add_argument("--every-s", type=float, default=10.0, help="between checkpoints (default 10)")
    parser.add_argument("--repeat", type=int, default=2, help="turns, the best counts (default 2)")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    told = parser.parse_args()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    figures = measure(parameters=told.parameters, steps=told.steps, every_s=told.every_s, repeat=told.repeat)
    print(json.dumps(figures) if told.json else report(figures))


if __name__ == "__main__":
    main()
