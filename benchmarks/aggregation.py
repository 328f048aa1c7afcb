"""Seconds to open, verify and combine sealed updates, beside plain Flower on arrays that are open already.

    python -m benchmarks.aggregation [--clients 10] [--parameters 10000000] [--strategy FedAvg] [--threads 2] [--json]
    python -m benchmarks.aggregation --memory [--parameters 10000000] [--strategy FedMedian]   # 2, 10 and 100 clients

confed's side is what the enclave does when a cohort closes: header signature, key commitment, every chunk's tag,
finite values, the declared norm and its bound, and the strategy's rule, from ciphertext in files (in the page cache).
Flower's side is its strategy's own arithmetic on the same values. Each side is a process of its own; they take turns,
seconds are the best of REPEAT turns, and ``ratio`` is confed's by Flower's. ``cpu_s`` is the processor time of all
threads, which other work on the machine changes less. ``raw_aes_s`` is AES-256-GCM alone over as many bytes from
memory, on as many threads; ``raw_copy_s`` the same for copying them once.

``--memory`` fetches the updates through the enclave's own inbox first, and shows what one process holds:
``anonymous_mb`` at its highest, ``idle_mb`` of it before anything was fetched (Python and its libraries), ``file_mb``
of mapped files (libraries: no update is mapped), and ``bound_mb``: idle, two models and 64 MiB. Ciphertext on disk
(``disk_mb``) may lie in the system's page cache, which is not the process's and is given up under pressure.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import numpy as np

_KEY = bytes(range(32))
_TENSORS = 8
_POLL_S = 0.002
_MEMORY_CLIENTS = (2, 10, 100)
_MIB = 1024 * 1024


def model(parameters: int, seed: int) -> dict[str, np.ndarray]:
    """Return ``parameters`` float32 numbers in a few tensors."""
    generator = np.random.default_rng(seed)
    sizes = [parameters // _TENSORS] * (_TENSORS - 1)
    sizes.append(parameters - sum(sizes))
    return {f"layer{index}": generator.random(size, dtype=np.float32) for index, size in enumerate(sizes)}


def prepare(folder: Path, *, clients: int, parameters: int) -> None:
    """Write the base and every client's sealed update, with the norm that it would declare."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from confed.journey import Kind
    from confed.model.weights import pack
    from confed.sealing.container import Draft, seal_to_file

    base = model(parameters, 0)
    np.savez(folder / "base.npz", **base)
    signing_key, norms = Ed25519PrivateKey.generate(), []
    for number in range(clients):
        update = model(parameters, number + 1)
        norms.append(math.sqrt(sum(float(np.sum((update[name] - base[name]) ** 2.0)) for name in base)))
        draft = Draft(kind=Kind.UPDATE, container_id=f"update-{number}")
        seal_to_file(pack(update), draft, data_key=_KEY, signing_key=signing_key, path=folder / f"{number}.sealed")
    (folder / "norms.json").write_text(json.dumps(norms))


class Confed:
    """The enclave's side: what it does with the sealed updates in a folder, and how much memory that takes."""

    def __init__(self, folder: Path, *, strategy: str, threads: int) -> None:
        from aggregator.combine.flower_strategy import ServerOptimizer
        from aggregator.combine.weights import Weights
        from confed.manifest import StrategyTerms
        from confed.model.weights import layout_of

        self._folder = folder
        self._threads = threads
        self._norms: list[float] = json.loads((folder / "norms.json").read_text())
        self._rule = ServerOptimizer(StrategyTerms(name=strategy, parameters={})).rule
        self._idle_mb = memory_mb("RssAnon")
        with np.load(folder / "base.npz") as stored:
            self._base = Weights.of(dict(stored), layout_of(dict(stored)))

    def turn(self) -> dict[str, float]:
        """Open, verify and combine once."""
        updates = {f"{number:04}": self._folder / f"{number}.sealed" for number in range(len(self._norms))}
        return _timed(lambda: self._combine(updates))

    def memory(self) -> dict[str, float]:
        """Fetch every update through the inbox, as the enclave does, and combine them."""
        from aggregator.inbox import Inbox

        with Peak() as peak, tempfile.TemporaryDirectory(dir=self._folder) as name:
            store = UpdateFolder(self._folder)
            inbox = Inbox(store, folder=Path(name))
            found: dict[str, Any] = {}
            for number in range(len(self._norms)):
                digest = f"{number:064x}"
                parcel = inbox.fetch(digest, plaintext_bytes=self._base.layout.total_bytes)
                inbox.keep(f"{number:04}", parcel)
                store.forget(digest)
                found[f"{number:04}"] = inbox.container(f"{number:04}")
            disk = sum(path.stat().st_size for path in Path(name).iterdir()) / 1e6
            started = time.perf_counter()
            self._combine(found)
            seconds = time.perf_counter() - started
        model_mb = self._base.layout.total_bytes / 1e6
        return {
            "seconds": round(seconds, 3),
            "anonymous_mb": round(peak.highest, 1),
            "idle_mb": round(self._idle_mb, 1),
            "bound_mb": round(self._idle_mb + 2 * model_mb + 64 * _MIB / 1e6, 1),
            "file_mb": round(memory_mb("RssFile"), 1),
            "peak_rss_mb": round(memory_mb("VmHWM"), 1),
            "disk_mb": round(disk, 1),
        }

    def _combine(self, updates: dict[str, Any]) -> None:
        from aggregator.combine.fold import combine
        from aggregator.combine.passes import Contribution
        from confed.sealing.container import Container

        contributions = [
            Contribution(
                site=site,
                chunks=(Container.map(held) if isinstance(held, Path) else held).unlock(_KEY),
                weight=float(number + 1),
                norm=self._norms[number],
            )
            for number, (site, held) in enumerate(updates.items())
        ]
        found = combine(contributions, base=self._base, least=1, norm_bound=1e9, rule=self._rule, threads=self._threads)
        if found.excluded:
            raise SystemExit(f"excluded: {sorted(found.excluded)}")


class Raw:
    """What the enclave's work cannot be faster than: AES-256-GCM alone, and one copy, over as many bytes."""

    def __init__(self, *, clients: int, parameters: int, threads: int) -> None:
        self._threads = threads
        self._pieces = clients * parameters * 4 // _MIB // threads
        self._source = np.ones(64 * _MIB, dtype=np.uint8)  # larger than the cache

    def turn(self) -> dict[str, float]:
        """Do each once, every thread its share."""
        found: dict[str, float] = {}
        for name, work in (("aes", self._open), ("copy", self._copy)):
            started = time.perf_counter()
            with ThreadPoolExecutor(max_workers=self._threads) as pool:
                for task in [pool.submit(work) for _ in range(self._threads)]:
                    task.result()
            found[name] = time.perf_counter() - started
        return found

    def _open(self) -> None:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        cipher, nonce, plain = AESGCM(_KEY), bytes(12), bytearray(_MIB)
        sealed = cipher.encrypt(nonce, bytes(plain), None)
        for _ in range(self._pieces):
            cipher.decrypt_into(nonce, sealed, None, plain)

    def _copy(self) -> None:
        target = np.empty(_MIB, dtype=np.uint8)
        for piece in range(self._pieces):
            start = piece % 64 * _MIB
            np.copyto(target, self._source[start : start + _MIB])


class UpdateFolder:
    """The courier's objects, as files; each is deleted once it was fetched, since the courier's disk is another's."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _path(self, digest: str) -> Path:
        return self._folder / f"{int(digest, 16)}.sealed"

    def get(self, digest: str, *, limit_bytes: int | None = None) -> bytearray:
        del limit_bytes
        return bytearray(self._path(digest).read_bytes())

    def read_unverified(self, digest: str, *, offset: int, size_bytes: int) -> bytes:
        with self._path(digest).open("rb") as file:
            file.seek(offset)
            return file.read(size_bytes)

    def forget(self, digest: str) -> None:
        self._path(digest).unlink()

    def get_to_file(self, digest: str, path: Path) -> None:
        path.write_bytes(self._path(digest).read_bytes())

    def put(self, data: object, *, digest: str | None = None) -> str:
        raise NotImplementedError


class Flower:
    """Plain Flower's side: the arithmetic of its strategy on replies that are in memory."""

    def __init__(self, *, clients: int, parameters: int, strategy: str) -> None:
        from flwr.app import Array, ArrayRecord, Message, MessageType, Metadata, MetricRecord, RecordDict
        from flwr.serverapp import strategy as strategies

        logging.getLogger("flwr").setLevel(logging.WARNING)  # importing it sets INFO
        self._strategy = getattr(strategies, strategy)()
        metadata = Metadata(0, "", 0, 0, "", "", 0.0, 1.0, MessageType.TRAIN)
        self._arrays = [
            ArrayRecord({name: Array(part) for name, part in model(parameters, number + 1).items()})
            for number in range(clients)
        ]

        def replies() -> list[Message]:
            # FedMedian takes the arrays out of their records, so every turn has records of its own.
            return [
                Message(
                    RecordDict(
                        {
                            "arrays": ArrayRecord(dict(arrays)),
                            "metrics": MetricRecord({"num-examples": float(number + 1)}),
                        }
                    ),
                    metadata=metadata,
                )
                for number, arrays in enumerate(self._arrays)
            ]

        self._replies = replies

    def turn(self) -> dict[str, float]:
        """Combine once."""
        replies = self._replies()
        return _timed(lambda: self._strategy.aggregate_train(1, replies))


def _timed(work: Callable[[], object]) -> dict[str, float]:
    started, cpu = time.perf_counter(), time.process_time()
    work()
    return {"seconds": time.perf_counter() - started, "cpu": time.process_time() - cpu}


def memory_mb(name: str) -> float:
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields[name].split()[0]) * 1024 / 1e6


class Peak:
    """The most anonymous memory of this process while the block ran, looked at every 2 ms."""

    def __enter__(self) -> Self:
        self.highest = memory_mb("RssAnon")
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(_POLL_S):
            self.highest = max(self.highest, memory_mb("RssAnon"))


class _Side:
    """One side in a process of its own, which takes a turn for each line that it gets."""

    def __init__(self, side: str, arguments: argparse.Namespace, *more: str) -> None:
        command = [sys.executable, "-m", "benchmarks.aggregation", "--side", side, *more]
        for name in ("clients", "parameters", "threads", "strategy"):
            command += [f"--{name}", str(getattr(arguments, name))]
        # One thread of BLAS, as in the enclave: folding has its own. Flower's arithmetic here uses none of BLAS.
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def ask(self, what: str) -> dict[str, float]:
        """Have one turn taken, and return what it measured."""
        if self._process.stdin is None or self._process.stdout is None:
            raise SystemExit("no pipes")
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a side ended with exit code {self._process.wait()}")
        return json.loads(line)


def serve(side: Confed | Flower | Raw) -> None:
    """Take a turn for every line."""
    for line in sys.stdin:
        what = line.strip()
        if what == "peak":
            found = {"peak_rss_mb": memory_mb("VmHWM")}
        else:
            found = side.memory() if what == "memory" and isinstance(side, Confed) else side.turn()
        print(json.dumps(found), flush=True)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Let both sides take turns, and return the figures."""
    with ExitStack() as stack:
        name = stack.enter_context(tempfile.TemporaryDirectory(prefix="confed-aggregation-"))
        prepare(Path(name), clients=arguments.clients, parameters=arguments.parameters)
        confed = stack.enter_context(_Side("confed", arguments, "--folder", name))
        flower = stack.enter_context(_Side("flower", arguments))
        raw = stack.enter_context(_Side("raw", arguments))
        turns = [(confed.ask("turn") | raw.ask("turn"), flower.ask("turn")) for _ in range(arguments.repeat)]
        peaks = {"confed": confed.ask("peak"), "flower": flower.ask("peak")}
    ours = {name: min(turn[0][name] for turn in turns) for name in ("seconds", "cpu", "aes", "copy")}
    flowers = {name: min(turn[1][name] for turn in turns) for name in ("seconds", "cpu")}
    return {
        "strategy": arguments.strategy,
        "clients": arguments.clients,
        "parameters": arguments.parameters,
        "threads": arguments.threads,
        "confed_s": round(ours["seconds"], 4),
        "flower_s": round(flowers["seconds"], 4),
        "ratio": round(ours["seconds"] / flowers["seconds"], 3),
        "cpu_s": {"confed": round(ours["cpu"], 4), "flower": round(flowers["cpu"], 4)},
        "raw_aes_s": round(ours["aes"], 4),
        "raw_copy_s": round(ours["copy"], 4),
        "gb_per_s": round(arguments.clients * arguments.parameters * 4 / 1e9 / ours["seconds"], 2),
        "peak_rss_mb": {side: round(found["peak_rss_mb"], 1) for side, found in peaks.items()},
    }


def memory(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return what the enclave's process holds at 2, 10 and 100 clients, each in a process of its own."""
    rows: list[dict[str, Any]] = []
    for clients in _MEMORY_CLIENTS:
        arguments.clients = clients
        with tempfile.TemporaryDirectory(prefix="confed-aggregation-") as name:
            prepare(Path(name), clients=clients, parameters=arguments.parameters)
            with _Side("confed", arguments, "--folder", name) as confed:
                row = {"strategy": arguments.strategy, "clients": clients, "parameters": arguments.parameters}
                rows.append(row | confed.ask("memory"))
    return rows


def report(rows: list[dict[str, Any]]) -> str:
    """Return rows of figures as text, one figure a line, one row a column."""
    return "\n".join(f"{name:14} " + " ".join(f"{row[name]!s:>12}" for row in rows) for name in rows[0])


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--parameters", type=int, default=10_000_000)
    parser.add_argument("--strategy", choices=("FedAvg", "FedMedian", "FedTrimmedAvg"), default="FedAvg")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--side", choices=("confed", "flower", "raw"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side == "confed":
        serve(Confed(arguments.folder, strategy=arguments.strategy, threads=arguments.threads))
    elif arguments.side == "flower":
        serve(Flower(clients=arguments.clients, parameters=arguments.parameters, strategy=arguments.strategy))
    elif arguments.side == "raw":
        serve(Raw(clients=arguments.clients, parameters=arguments.parameters, threads=arguments.threads))
    else:
        found = memory(arguments) if arguments.memory else measure(arguments)
        rows = found if isinstance(found, list) else [found]
        print(json.dumps(found) if arguments.json else report(rows))


if __name__ == "__main__":
    main()
