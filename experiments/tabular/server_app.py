"""The tables' ServerApp: FedAvg over every hospital."""

import numpy as np
from client_app import CLASSES, FEATURES
from flwr.app import Array, ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from confed.governor.strategy import ConfidentialStrategy

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    generator = np.random.default_rng(int(context.run_config["model-seed"]))
    weights = generator.normal(scale=0.01, size=(len(FEATURES), CLASSES)).astype(np.float32)
    sites = int(context.run_config["sites"])
    strategy = ConfidentialStrategy(FedAvg(min_train_nodes=sites, min_evaluate_nodes=sites, min_available_nodes=sites))
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord({"weights": Array(weights), "bias": Array(np.zeros(CLASSES, dtype=np.float32))}),
        num_rounds=int(context.run_config["num-server-rounds"]),
    )
