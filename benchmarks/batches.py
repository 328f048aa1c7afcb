"""Memory, disk and seconds of a cohort that is folded at once, beside the same cohort in batches.

``python -m benchmarks.batches [--clients 40] [--batch 10] [--parameters 2500000] [--threads 2] [--json]``. Both fetch
the same sealed updates through the enclave's inbox, and open, verify and average them; each is a process of its own.
``disk_mb`` is the most that lay on the enclave's disk at a time (ciphertext, and between batches the sealed sum), which
is what the courier's quota has to hold too; ``anonymous_mb`` the most memory, ``idle_mb`` of it before anything was
fetched; ``seconds`` and ``cpu_s`` are those of opening and adding up, without the fetching. ``apart`` is the largest
difference between both results.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.aggregation import Peak, UpdateFolder, memory_mb, prepare, report

_KEY = bytes(range(32))
_AT_ONCE = 0


def fold(folder: Path, *, batch: int, threads: int) -> dict[str, float]:
    """Fold every update in a folder, ``batch`` at a time (0: at once); write the result beside them."""
    from aggregator.combine.batched import BatchedFold, WeightedSum
    from aggregator.combine.fold import combine
    from aggregator.combine.weights import Weights
    from aggregator.inbox import Inbox
    from confed.model.weights import layout_of

    idle_mb = memory_mb("RssAnon")
    norms: list[float] = json.loads((folder / "norms.json").read_text())
    with np.load(folder / "base.npz") as stored:
        base = Weights.of(dict(stored), layout_of(dict(stored)))
    terms: dict[str, Any] = {"norm_bound": 1e9, "threads": threads}
    seconds = cpu = disk = 0.0
    with Peak() as peak, tempfile.TemporaryDirectory(dir=folder) as name:
        own = Path(name)
        inbox = Inbox(UpdateFolder(folder), folder=own)
        batched = BatchedFold(base, folder=own, summation=WeightedSum(), **terms) if batch else None
        for first in range(0, len(norms), batch or len(norms)):
            numbers = range(first, min(first + (batch or len(norms)), len(norms)))
            opened = [_fetched(inbox, base, number, norms[number]) for number in numbers]
            started, before = time.perf_counter(), time.process_time()
            if batched is None:
                mean = combine(opened, base=base, least=1, **terms).mean
            else:
                batched.add(opened, excluded={})
            seconds, cpu = seconds + time.perf_counter() - started, cpu + time.process_time() - before
            # Sums lie in files without a name, each twice the model's float32 size: the one before, and the next.
            spilled = 2 * base.layout.total_bytes * min(2, first // batch + 1) if batch else 0
            disk = max(disk, (sum(path.stat().st_size for path in own.iterdir()) + spilled) / 1e6)
            inbox.clear()
        started, before = time.perf_counter(), time.process_time()
        if batched is not None:
            mean = batched.finish(least=1)
            batched.close()
        seconds, cpu = seconds + time.perf_counter() - started, cpu + time.process_time() - before
    np.savez(folder / f"result-{batch}.npz", **mean.arrays())
    return {
        "seconds": round(seconds, 3),
        "cpu_s": round(cpu, 3),
        "anonymous_mb": round(peak.highest, 1),
        "idle_mb": round(idle_mb, 1),
        "disk_mb": round(disk, 1),
    }


def _fetched(inbox: Any, base: Any, number: int, norm: float) -> Any:
    from aggregator.combine.passes import Contribution

    parcel = inbox.fetch(f"{number:064x}", plaintext_bytes=base.layout.total_bytes)
    site = f"{number:04}"
    inbox.keep(site, parcel)
    chunks = inbox.container(site).unlock(_KEY)
    return Contribution(site=site, chunks=chunks, weight=float(number + 1), norm=norm)


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for the cohort at once, and one for it in batches."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="confed-batches-") as name:
        prepare(Path(name), clients=arguments.clients, parameters=arguments.parameters)
        for batch in (_AT_ONCE, arguments.batch):
            command = [sys.executable, "-m", "benchmarks.batches", "--folder", name, "--batch", str(batch)]
            command += ["--threads", str(arguments.threads)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            row = {"clients": arguments.clients, "parameters": arguments.parameters, "batch": batch or "at once"}
            rows.append(row | json.loads(done.stdout))
        with np.load(f"{name}/result-0.npz") as one, np.load(f"{name}/result-{arguments.batch}.npz") as other:
            apart = max(float(np.abs(one[tensor] - other[tensor]).max()) for tensor in one)
    return [row | {"apart": apart} for row in rows]


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=40)
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--parameters", type=int, default=2_500_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.folder is not None:
        print(json.dumps(fold(arguments.folder, batch=arguments.batch, threads=arguments.threads)))
        return
    if not 0 < arguments.batch < arguments.clients:
        raise SystemExit("--batch: expected fewer than --clients")
    rows = measure(arguments)
    print(json.dumps(rows) if arguments.json else report(rows))


if __name__ == "__main__":
    main()
