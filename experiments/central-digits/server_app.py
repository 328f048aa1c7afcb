"""The ServerApp of confidential training: an ordinary Flower app, made confidential by one wrapper.

There is one client, so nothing is averaged; the strategy's rounds are segments of one training.
"""

import torch
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from clients.tasks.digits import Network
from confed.governor.strategy import ConfidentialStrategy

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train segment by segment."""
    torch.manual_seed(int(context.run_config["model-seed"]))
    strategy = ConfidentialStrategy(FedAvg(min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1))
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(Network().state_dict()),
        num_rounds=int(context.run_config["num-server-rounds"]),
    )
