"""The app's own training loop and nothing else: one process of ``benchmarks.simulation``'s bare measurement.

Arguments: a file beside the app with all sites, the seed and the settings (JSON), this process' number and how many
there are. For each line on standard input it trains every one of its sites once and prints the CPU seconds.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from pathlib import Path

import torch

from clients.tasks.digits import Network, train


def main() -> None:
    """Serve rounds until standard input ends."""
    terms, number, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    names, seed, settings = json.loads(terms.read_text())
    sys.path.insert(0, str(terms.parent))
    shards = importlib.import_module("data").shards(names, seed, settings)
    torch.set_num_threads(1)
    base = Network().state_dict()
    print("ready", flush=True)
    for _ in sys.stdin:
        started = time.process_time()
        for name in names[number::count]:
            network = Network()
            network.load_state_dict(base)
            train(
                network,
                shards[name],
                epochs=int(settings["local-epochs"]),
                learning_rate=float(settings["learning-rate"]),
                batch_size=int(settings["batch-size"]),
            )
            network.state_dict()
        print(time.process_time() - started, flush=True)


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    main()
