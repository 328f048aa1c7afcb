"""A round of a deployment: confed, sealed and attested, beside stock Flower with the same app, in the same run.

``python -m benchmarks.round --parameters N --clients 2 [--rounds R] [--no-flower] [--bfloat16] [--json]``.

Every party is a process of its own on loopback with TLS. Nothing is trained: the app returns the model, changed a
little; evaluation is off on both sides. Seconds are the median of the rounds after the first (which attests). Peak
memory is the kernel's, in MB, of the largest process of each kind; processor seconds and page faults are of the whole
run, all processes of a kind together: they tell more than the clock where the machine is shared.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.plain_flower import run_plain
from benchmarks.processes import Processes

ROOT = Path(__file__).resolve().parents[1]
APPS = Path(__file__).with_name("round_apps")
_KINDS = {
    r"broker serve": "broker",
    r"courier serve": "courier",
    r"-m aggregator": "aggregator",
    r"-m clients": "client",
    r"confed\.cli\.main run": "launcher",
    r"flower-superlink": "superlink",
    r"flwr-serverapp": "serverapp",
    r"flower-supernode": "supernode",
    r"flwr-clientapp": "clientapp",
}
CONFIG = """
name = "round"
environment = "simulation"
[app]
client = "client_app:app"
server = "server_app:app"
[run]
rounds = {rounds}
seed = 1
round_timeout_s = 3600.0
[sites]
count = {clients}
[cohort]
least = {clients}
[data]
source = "app"
[update]
norm_bound = 1000.0
weight_cap = 10.0
[metrics]
clear = []
[model]
bfloat16 = {bfloat16}
[settings]
clients = {clients}
parameters = {parameters}
"""


def kind_of(command: str) -> str:
    """Return what a process is, from its command line."""
    return next((name for pattern, name in _KINDS.items() if re.search(pattern, command)), "")


def confed_rounds(folder: Path, arguments: argparse.Namespace) -> tuple[list[float], dict[str, float]]:
    """Run through confed; return when the first round began and when each ended, and seconds by stage and round."""
    app = folder / "app"
    shutil.copytree(APPS, app, ignore=shutil.ignore_patterns("plain_*", "__pycache__"))
    terms = {"rounds": arguments.rounds, "clients": arguments.clients, "parameters": arguments.parameters}
    terms["bfloat16"] = '["*"]' if arguments.bfloat16 else "[]"
    (app / "config.toml").write_text(CONFIG.format(**terms))
    command = ["run", str(app / "config.toml"), "--engine", "deployment", "--runs", str(folder / "runs"), "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "confed.cli.main", *command],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, "CONFED_HOME": str(folder / "home")},
    )
    summary = json.loads(done.stdout.splitlines()[-1])
    events = [json.loads(line) for line in (Path(summary["run_dir"]) / "events.jsonl").read_text().splitlines()]
    ends = [event["time"] / 1000 for event in events if event["event"] == "round-combined"]
    ends = [event["time"] / 1000 for event in events if event["event"] == "round-started"][:1] + ends
    return ends, {stage: round(seconds / arguments.rounds, 3) for stage, seconds in summary["seconds"].items()}


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Run both sides, one after the other, and return what was found."""
    found: dict[str, object] = {
        "parameters": arguments.parameters,
        "clients": arguments.clients,
        "rounds": arguments.rounds,
        "model_mb": round(arguments.parameters * (2 if arguments.bfloat16 else 4) / 1e6, 1),
    }
    with Processes(kind_of) as ours:
        ends, stages = confed_rounds(folder, arguments)
    # Of one round alone, its first: the clients attest in it, and every service is called for the first time.
    found |= {"confed_s": median(ends[min(1, arguments.rounds - 1) :]), "seconds_by_stage": stages}
    found |= {"peak_rss_mb": {"confed": ours.peaks_mb}, "cpu_s": {"confed": ours.seconds()}}
    found |= {"page_faults": {"confed": ours.faults()}}
    if arguments.no_flower:
        return found
    shutil.rmtree(folder / "runs")
    with Processes(kind_of) as theirs:
        plain = run_plain(
            APPS,
            folder / "plain",
            clients=arguments.clients,
            rounds=arguments.rounds,
            parameters=arguments.parameters,
            timeout_s=3600,
        )
    found["flower_s"] = median(plain)
    found["ratio"] = round(median(ends[1:]) / median(plain), 3)
    found["peak_rss_mb"] = {"confed": ours.peaks_mb, "flower": theirs.peaks_mb}
    found["cpu_s"] = {"confed": ours.seconds(), "flower": theirs.seconds()}
    found["page_faults"] = {"confed": ours.faults(), "flower": theirs.faults()}
    return found


def median(ends: list[float]) -> float:
    """Return the median seconds of the rounds after the first."""
    return round(statistics.median(later - earlier for earlier, later in itertools.pairwise(ends)), 3)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parameters", type=int, default=100_000)
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bfloat16", action="store_true", help="confed's model is kept as bfloat16: half the bytes")
    parser.add_argument("--no-flower", action="store_true", help="measure confed alone")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.rounds < (1 if arguments.no_flower else 2):
        parser.error("at least 2 rounds: the first is not measured beside Flower's")
    with tempfile.TemporaryDirectory(prefix="confed-benchmark-") as name:
        found = measure(arguments, Path(name))
    if arguments.json:
        print(json.dumps(found))
        return
    for key, value in found.items():
        print(f"{key:>18}  {value}")


if __name__ == "__main__":
    main()
