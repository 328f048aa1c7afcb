"""Plain Flower on Ray: the same app, sites and rounds as ``benchmarks.simulation`` gives confed, nothing sealed.

Arguments: a file beside the app with all sites, the seed and the settings (JSON), and the number of rounds. Prints the
seconds of each round as a JSON list, last line.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys
import time
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg


class Timed(FedAvg):
    """FedAvg that notes when each round's updates were asked for and averaged."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.seconds: list[float] = []
        self._started = 0.0

    def configure_train(self, *arguments: Any, **named: Any) -> Any:
        """Note the start of a round."""
        self._started = time.perf_counter()
        return super().configure_train(*arguments, **named)

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        """Note the end of a round.

        Raises:
            RuntimeError: a client failed; a round without it is no round to compare with.
        """
        replies = list(replies)
        failed = [reply.error.reason for reply in replies if reply.has_error()]
        if failed or len(replies) < self.min_train_nodes:
            raise RuntimeError(f"{len(replies)} replies, {len(failed)} failed: {failed[:1]}")
        found = super().aggregate_train(server_round, replies)
        self.seconds.append(time.perf_counter() - self._started)
        return found


class PlainApp(ClientApp):
    """The digits ClientApp on plain shards, which are made once in each of Ray's actors."""

    def __init__(self, folder: str, names: list[str], seed: int, settings: dict[str, Any]) -> None:
        super().__init__()
        self._terms = (folder, names, seed, settings)

    def __call__(self, message: Message, context: Context) -> Message:
        """Train; Flower's simulation has no run_config, so the app gets the experiment's."""
        own = Context(
            run_id=context.run_id,
            node_id=context.node_id,
            node_config=context.node_config,
            state=context.state,
            run_config=self._terms[3],
        )
        return _made(self._terms[0], tuple(self._terms[1]), self._terms[2], json.dumps(self._terms[3]))(message, own)


@cache
def _made(folder: str, names: tuple[str, ...], seed: int, settings: str) -> ClientApp:
    from clients.tasks.digits import make_app

    sys.path.insert(0, folder)
    shards = importlib.import_module("data").shards(names, seed, json.loads(settings))
    return make_app(ClientApp(), lambda context: shards[names[int(context.node_config["partition-id"])]])


def main() -> None:
    """Run and print."""
    terms, rounds = Path(sys.argv[1]), int(sys.argv[2])
    names, seed, settings = json.loads(terms.read_text())
    folder = str(terms.parent)
    logging.getLogger("flwr").setLevel(logging.ERROR)
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", FLWR_TELEMETRY_ENABLED="0", FLWR_HOME=f"{folder}/flower-home")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray
    from flwr.simulation import run_simulation

    from clients.tasks.digits import Network

    ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    strategy = Timed(fraction_evaluate=0.0, min_train_nodes=len(names), min_available_nodes=len(names))
    app = ServerApp()

    @app.main()
    def _main(grid: Grid, context: Context) -> None:
        del context
        strategy.start(grid=grid, initial_arrays=ArrayRecord(Network().state_dict()), num_rounds=rounds)

    run_simulation(
        server_app=app,
        client_app=PlainApp(folder, names, seed, settings),
        num_supernodes=len(names),
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )
    print(json.dumps(strategy.seconds))


if __name__ == "__main__":
    # Under its own name: Ray's actors import what the client app is made of, and have another ``__main__``.
    importlib.import_module("benchmarks.ray_run").main()
