"""What confidential training costs a training loop: of its steps, and of its sealed checkpoints, beside plain torch.

    python -m benchmarks.training [--parameters N] [--turns N] [--block-steps N] [--every-s S] [--json]

One thread each, the same network, data and batches. In an attested training TEE (simulated, engine local) three blocks
of steps take turns: a plain torch loop written out, the ready loop, and the ready loop with a checkpoint in it; so
whatever else the machine does meets all three. A plain loop in a process of its own runs before and after, since the
first one shares the TEE's process. Of a checkpoint (weights and momentum: 8 bytes a parameter) there are three costs:
how much longer its block took, which holds what the loop waited for and what it lost to the sealing beside it;
processor time of the loop's thread; and of all other threads of the TEE, which seal and send. Each is a median of pairs
with the interval that it lies in (``benchmarks.paired``), and its share of training time at one checkpoint every
S seconds (default 10, as in ``experiments/central-digits``).
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.paired import Paired, difference, ratio
from confed.experiment.running import RunRequest, run_experiment
from confed.keybroker.ledger import verify_ledger
from confed.records.run_directory import RunDirectory

ROOT = Path(__file__).resolve().parents[1]
APP = ROOT / "benchmarks" / "training_app"
KINDS, MEASURED = ("plain", "bare", "kept"), ("wall", "thread", "process", "saving", "late")
"""As ``training_app/training_loop.py`` has them, which imports torch."""
AIM = 0.02
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
clear = {clear}
decimals = 6
[settings]
{settings}
"""

Series = dict[str, dict[str, list[float]]]


def measure(*, parameters: int, turns: int, block_steps: int, every_s: float) -> dict[str, Any]:
    """Return the figures; each ratio and difference is a ``Paired`` as JSON."""
    settings: dict[str, Any] = {
        "model-seed": 5, "parameters": parameters, "turns": turns, "block-steps": block_steps, "epochs": 1,
        "batch-size": 64, "learning-rate": 0.01,
    }  # fmt: skip
    apart = _plain(settings)
    with tempfile.TemporaryDirectory() as folder:
        series, checkpoints = _confed(Path(folder), settings)
    apart += _plain(settings)
    figures = _compared(series, every_s=every_s)
    own_process = {
        what: statistics.median(series["bare"][what]) / statistics.median(block[at] for block in apart)
        for at, what in enumerate(("wall", "thread"))
    }
    return {
        "step_ms": 1000 * statistics.median(series["plain"]["wall"]) / block_steps,
        "own_process": own_process,
        **figures,
        "checkpoints": checkpoints,
        "checkpoint_mb": 8 * parameters / 1e6,
        "block_s": statistics.median(series["bare"]["wall"]),
        "every_s": every_s,
        "aim": AIM,
        "all": series,
        "apart": apart,
    }


def _compared(series: Series, *, every_s: float) -> dict[str, Any]:
    plain, bare, kept = (series[kind] for kind in KINDS)
    beside = [
        [process - thread for process, thread in zip(each["process"], each["thread"], strict=True)]
        for each in (bare, kept)
    ]
    costs = {
        "wall": difference(kept["wall"], bare["wall"]),
        "thread": difference(kept["thread"], bare["thread"]),
        "beside": difference(beside[1], beside[0]),
    }
    return {
        "step": {what: ratio(bare[what], plain[what]).json() for what in ("wall", "thread")},
        "checkpoint_s": {what: cost.json() for what, cost in costs.items()},
        "share": {what: cost.median / every_s for what, cost in costs.items()},
        "least_every_s": {what: cost.median / AIM for what, cost in costs.items()},
        "saving_s": statistics.median(kept["saving"]),
        "late_s": max(kept["late"]),
    }


def report(figures: dict[str, Any]) -> str:
    """Return the figures as text."""
    step = {what: Paired(**entry) for what, entry in figures["step"].items()}
    cost = {what: Paired(**entry) for what, entry in figures["checkpoint_s"].items()}
    share, least = figures["share"], figures["least_every_s"]
    own = figures["own_process"]
    names = {
        "wall": "by which the loop is longer",
        "thread": "processor time of the loop's thread",
        "beside": "processor time of all other threads",
    }
    costs = "\n".join(
        f"    {names[what]}: {cost[what].told(1, 1000)} ms: {share[what]:.2%}; {AIM:.0%} from {least[what]:.1f} s on"
        for what in names
    )
    return (
        f"a step of plain torch: {figures['step_ms']:.1f} ms; blocks of {figures['block_s']:.2f} s\n"
        f"a step of the ready loop in the TEE: {step['wall'].told()} x plain by the wall,\n"
        f"    {step['thread'].told()} x in processor time (aim {1 + AIM:.2f}); beside a plain loop in a process\n"
        f"    of its own, before and after: {own['wall']:.3f} x by the wall, {own['thread']:.3f} x in processor time\n"
        f"a sealed checkpoint of {figures['checkpoint_mb']:.0f} MB ({figures['checkpoints']} of them), and its share"
        f" at one every {figures['every_s']:g} s (aim {AIM:.0%}):\n{costs}\n"
        f"    the loop waited in save for {1000 * figures['saving_s']:.1f} ms of that;"
        f" the latest was kept {figures['late_s']:.2f} s after its block's last step"
    )


def _plain(settings: dict[str, Any]) -> list[tuple[float, float]]:
    """Run the plain loop in a process of its own, a third as many blocks; return each one's seconds (wall, thread)."""
    few = {**settings, "turns": max(3, settings["turns"] // 3)}
    done = subprocess.run(
        [sys.executable, str(APP / "training_loop.py"), json.dumps(few)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    return json.loads(done.stdout)


def _confed(folder: Path, settings: dict[str, Any]) -> tuple[Series, int]:
    """Run in a training TEE; return what each block took, by kind and figure, and how many checkpoints were noted."""
    turns = range(settings["turns"])
    names = [f"{kind}-{what}-{turn}" for kind in KINDS for what in MEASURED for turn in turns]
    lines = "\n".join(f"{name} = {json.dumps(value)}" for name, value in settings.items())
    config = CONFIG.format(directory=APP, settings=lines, clear=json.dumps(names))
    (folder / "config.toml").write_text(config)
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
    series = {kind: {what: [told[f"{kind}-{what}-{turn}"] for turn in turns] for what in MEASURED} for kind in KINDS}
    return series, sum(entry.event == "checkpointed" for entry in entries)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.training", description=__doc__.splitlines()[0])
    parser.add_argument("--parameters", type=int, default=10_000_000, help="of the network (default 10 million)")
    parser.add_argument("--turns", type=int, default=15, help="of the three blocks (default 15)")
    parser.add_argument("--block-steps", type=int, default=16, help="steps of a block (default 16)")
    parser.add_argument("--every-s", type=float, default=10.0, help="between checkpoints, for their share (default 10)")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    told = parser.parse_args()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    figures = measure(parameters=told.parameters, turns=told.turns, block_steps=told.block_steps, every_s=told.every_s)
    print(json.dumps(figures) if told.json else report(figures))


if __name__ == "__main__":
    main()
