"""The crowd's ServerApp: FedAvg over every site, training only."""

import torch
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from clients.tasks.digits import Network
from confed.governor.strategy import ConfidentialStrategy

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run FedAvg over every site; nothing is evaluated, so that a round is what the bare training loop is."""
    torch.manual_seed(int(context.run_config["model-seed"]))
    sites = int(context.run_config["sites"])
    strategy = ConfidentialStrategy(FedAvg(fraction_evaluate=0.0, min_train_nodes=sites, min_available_nodes=sites))
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(Network().state_dict()),
        num_rounds=int(context.run_config["num-server-rounds"]),
    )
