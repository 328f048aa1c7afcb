"""Opening a sealed model beside reading the plain file, both from the kernel's cache, into new memory each time.

    python -m benchmarks.opening [--megabytes N] [--repeat N] [--json]

The sealed file is mapped, unlocked and read whole with one thread and with two; every chunk is authenticated before a
byte of it is used. Plain is the same safetensors bytes, read with one ``readinto``. The digest by which a run names a
file is another pass over it, measured beside. All take turns; each is compared with plain of the same turn, and the
median of these shares of plain's rate is told with the interval that it lies in (``benchmarks.paired``).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from benchmarks.paired import Paired, in_turns, ratio
from confed.journey import Kind
from confed.memory import room_for
from confed.model.weights import pack, unpack
from confed.sealing.container import Container, Draft, seal_to_file
from confed.sealing.derivation import new_data_key

_TENSORS = 64
AIM = 0.8


def measure(*, megabytes: int, repeat: int) -> dict[str, Any]:
    """Return seconds, and each way's share of plain's rate by wall and by processor time, as ``Paired`` in JSON."""
    size = megabytes * 10**6 // _TENSORS // 4
    with tempfile.TemporaryDirectory(dir=_quick()) as folder:
        plain, sealed = Path(folder) / "plain.safetensors", Path(folder) / "model.sealed"
        parts = pack({f"layer-{number}": _noise(size, number) for number in range(_TENSORS)})
        with plain.open("wb") as file:
            for part in parts:
                file.write(part)
        key = new_data_key()
        draft = Draft(kind=Kind.MODEL, container_id="benchmark")
        seal_to_file(parts, draft, data_key=key, signing_key=Ed25519PrivateKey.generate(), path=sealed, threads=2)
        del parts
        ways: dict[str, Callable[[], object]] = {
            "plain_s": lambda: unpack(_read(plain)),
            "opened_1_s": lambda: unpack(Container.map(sealed).unlock(key).read_all(1)),
            "confed_s": lambda: unpack(Container.map(sealed).unlock(key).read_all(2)),
            "digest_s": lambda: _digest(sealed),
        }
        taken = dict(zip(ways, in_turns(list(ways.values()), turns=repeat), strict=True))
    walls, busy = ({name: [each[at] for each in way] for name, way in taken.items()} for at in (0, 1))
    return {
        **{name: statistics.median(each) for name, each in walls.items()},
        "ratio": {name: ratio(walls["plain_s"], each).json() for name, each in walls.items()},
        "processor_ratio": {name: ratio(busy["plain_s"], each).json() for name, each in busy.items()},
        "megabytes": float(megabytes),
        "aim": AIM,
    }


def report(figures: dict[str, Any]) -> str:
    """Return the figures as text."""
    texts = {
        "plain_s": "plain file, read",
        "opened_1_s": "sealed file, opened by one thread",
        "confed_s": "sealed file, opened by two threads",
        "digest_s": "SHA-256 of the sealed file",
    }
    lines = [
        f"{text:36} {figures[name]:6.3f} s  {figures['megabytes'] / 1000 / figures[name]:5.2f} GB/s  "
        f"{Paired(**figures['ratio'][name]).told(2)} x plain's rate, "
        f"{Paired(**figures['processor_ratio'][name]).median:.2f} x by processor time"
        for name, text in texts.items()
    ]
    return "\n".join([*lines, f"aim: opened at {AIM} x plain's rate or more"])


def _noise(size: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(size, dtype=np.float32)


def _read(path: Path) -> memoryview:
    with path.open("rb", buffering=0) as file:
        room = room_for(os.fstat(file.fileno()).st_size)
        filled = 0
        while filled < len(room):
            filled += file.readinto(room[filled:])
    return room


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _quick() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 (a private folder is made in it)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.opening", description=__doc__)
    parser.add_argument("--megabytes", type=int, default=1000, help="of model (default 1000)")
    parser.add_argument("--repeat", type=int, default=11, help="turns (default 11)")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    told = parser.parse_args()
    figures = measure(megabytes=told.megabytes, repeat=told.repeat)
    print(json.dumps(figures) if told.json else report(figures))


if __name__ == "__main__":
    main()
