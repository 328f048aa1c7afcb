"""A simulated round of very many clients: sealed and attested, beside Flower on Ray and the app's bare training loop.

``python -m benchmarks.simulation [--clients N] [--rounds N] [--without-ray] [--json]``. All three train the digits
network at N sites with two images each (``benchmarks/crowd``), on two processes: confed on its ``local`` engine with
everything on, plain Flower on Ray, and the app's own training loop with nothing around it. A round is training alone.
The first round (imports, evidence, opening of every dataset) and the start are told apart.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.processes import Processes
from confed.experiment.config import Experiment, load_experiment
from confed.simulation.workers import workers_for

ROOT = Path(__file__).resolve().parents[1]
CROWD = Path(__file__).parent / "crowd"
_LOOK_S = 0.2
_NAMES = (
    ("broker serve", "brokers"),
    ("courier serve", "courier"),
    ("aggregator", "aggregator"),
    ("-m clients", "clients"),
    ("confed.cli.main run", "governor"),
)


def prepare(folder: Path, *, rounds: int, clients: int) -> Path:
    """Copy the crowd's experiment with other numbers of rounds and clients."""
    for file in CROWD.glob("*.py"):
        shutil.copy(file, folder)
    text = (CROWD / "config.toml").read_text()
    for key, value in {"rounds": rounds, "count": clients, "sites": clients, "least": clients // 2 + 1}.items():
        text = re.sub(rf"(?m)^{key} = .*$", f"{key} = {value}", text)
    (folder / "config.toml").write_text(text)
    return folder / "config.toml"


def confed_run(config: Path, folder: Path) -> dict[str, Any]:
    """Run through confed and return what each part took, and what its processes cost."""
    started = time.time()
    output = folder / "summary.json"
    looks: list[tuple[float, dict[str, float]]] = []
    with Processes(_named) as watched, output.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "confed.cli.main", "run", str(config), "--runs", str(folder / "runs"), "--json"],
            stdout=stream,
            cwd=ROOT,
            env={**os.environ, "CONFED_HOME": str(folder / "home"), "PYTHONPATH": str(ROOT)},
        )
        while process.poll() is None:
            time.sleep(_LOOK_S)
            looks.append((time.time(), watched.seconds()))
    if process.returncode:
        raise SystemExit(f"confed run ended with {process.returncode}")
    summary = json.loads(output.read_text().splitlines()[-1])
    lines = (Path(summary["run_dir"]) / "events.jsonl").read_text().splitlines()
    events = [event for line in lines if (event := json.loads(line))["event"] != "client-done"]
    begun = {event["round"]: event["time"] / 1000 for event in events if event["event"] == "round-started"}
    done = {event["round"]: event["time"] / 1000 for event in events if event["event"] == "round-combined"}
    rounds = [done[number] - begun[number] for number in sorted(done)]
    later = len(rounds) - 1
    cpu = _between(looks, done[1], done[len(rounds)])
    return {
        "start_s": round(begun[1] - started, 2),
        "first_round_s": round(rounds[0], 3),
        "rounds_s": [round(value, 3) for value in rounds[1:]],
        "cpu_s": {name: round(value / later, 3) for name, value in cpu.items()},
        "peak_rss_mb": watched.peaks_mb,
        "complete_s": round(time.time() - started, 1),
    }


def _named(command: str) -> str:
    return next((name for part, name in _NAMES if part in command), "")


def _terms(config: Path, experiment: Experiment, names: list[str]) -> Path:
    """Write the sites, the seed and the settings beside the app, for processes: too long for an argument."""
    file = config.parent / "terms.json"
    file.write_text(json.dumps([names, experiment.run.seed, dict(experiment.run_config)]))
    return file


def _between(looks: list[tuple[float, dict[str, float]]], start: float, end: float) -> dict[str, float]:
    """Return processor seconds by name between two moments, as the nearest looks after them say."""
    first = next((seen for at, seen in looks if at >= start), {})
    last = next((seen for at, seen in looks if at >= end), looks[-1][1])
    return {name: value - first.get(name, 0.0) for name, value in last.items()}


class Bare:
    """Processes of ``benchmarks.bare_worker``."""

    def __init__(self, config: Path, experiment: Experiment, names: list[str]) -> None:
        count = workers_for(len(names))
        terms = _terms(config, experiment, names)
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.bare_worker", str(terms), str(number), str(count)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            )
            for number in range(count)
        ]
        self._read()

    def round(self) -> tuple[float, float]:
        """Train every site once; return the seconds, and the CPU seconds of all processes."""
        started = time.perf_counter()
        for process in self._processes:
            if process.stdin is not None:
                process.stdin.write("go\n")
                process.stdin.flush()
        cpu = sum(float(line) for line in self._read())
        return time.perf_counter() - started, cpu

    def stop(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.communicate()

    def _read(self) -> list[str]:
        return [process.stdout.readline() for process in self._processes if process.stdout is not None]


def ray_rounds(config: Path, experiment: Experiment, names: list[str], *, rounds: int) -> list[float]:
    """Run plain Flower on Ray and return the seconds of its rounds after the first."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.ray_run", str(_terms(config, experiment, names)), str(rounds)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    return json.loads(done.stdout.splitlines()[-1])[1:]


def measure(*, clients: int, rounds: int, with_ray: bool) -> dict[str, Any]:
    """Measure all three; the bare loop before and after, since machines are noisy."""
    with tempfile.TemporaryDirectory(prefix="confed-benchmark-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        config = prepare(folder, rounds=rounds, clients=clients)
        experiment = load_experiment(config)
        digits = max(2, len(str(clients)))
        names = [f"site-{number:0{digits}d}" for number in range(1, clients + 1)]
        bare = Bare(config, experiment, names)
        bare.round()
        times = min(3, rounds - 1)
        alone = [bare.round() for _ in range(times)]
        found = confed_run(config, folder)
        alone += [bare.round() for _ in range(times)]
        bare.stop()
        flower = ray_rounds(config, experiment, names, rounds=rounds) if with_ray else []
    confed_s = statistics.median(found["rounds_s"])
    bare_s = statistics.median(seconds for seconds, _ in alone)
    flower_s = statistics.median(flower) if flower else None
    return {
        "clients": clients,
        "rounds": rounds,
        "confed_s": round(confed_s, 3),
        "flower_s": round(flower_s, 3) if flower_s else None,
        "bare_s": round(bare_s, 3),
        "ratio": round(confed_s / flower_s, 3) if flower_s else None,
        "bare_ratio": round(confed_s / bare_s, 2),
        "bare_cpu_s": round(statistics.median(cpu for _, cpu in alone), 3),
        **found,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--without-ray", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = measure(clients=arguments.clients, rounds=arguments.rounds, with_ray=not arguments.without_ray)
    if arguments.json:
        print(json.dumps(found))
        return
    print(f"{arguments.clients} clients, median of {arguments.rounds - 1} rounds of training")
    print(f"  confed, sealed and attested      {found['confed_s']:.3f} s")
    if found["flower_s"]:
        print(f"  plain Flower on Ray              {found['flower_s']:.3f} s: {found['ratio']} times")
    print(f"  the app's loop alone             {found['bare_s']:.3f} s: {found['bare_ratio']} times")
    print(f"  start {found['start_s']} s, first round {found['first_round_s']} s, all {found['complete_s']} s")
    for title, values, unit in (("CPU a round", found["cpu_s"], "s"), ("peak memory", found["peak_rss_mb"], "MB")):
        print(f"  {title}: " + ", ".join(f"{name} {value} {unit}" for name, value in values.items()))


if __name__ == "__main__":
    main()
