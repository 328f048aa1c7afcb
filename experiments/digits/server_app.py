"""The digits federation's ServerApp: an ordinary Flower app, made confidential by one wrapper."""

import torch
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from clients.tasks.digits import Network
from confed.governor.strategy import ConfidentialStrategy

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run FedAvg over every site."""
    torch.manual_seed(int(context.run_config["model-seed"]))
    sites = int(context.run_config["sites"])
    strategy = ConfidentialStrategy(FedAvg(min_train_nodes=sites, min_evaluate_nodes=sites, min_available_nodes=sites))
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(Network().state_dict()),
        num_rounds=int(context.run_config["num-server-rounds"]),
    )
