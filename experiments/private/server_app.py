"""The private federation's ServerApp: an ordinary Flower app, made confidential by one wrapper."""

from client_app import network
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from confed.governor.strategy import ConfidentialStrategy

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run FedAvg over every site, without evaluation."""
    sites = int(context.run_config["sites"])
    strategy = ConfidentialStrategy(FedAvg(fraction_evaluate=0.0, min_train_nodes=sites, min_available_nodes=sites))
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(network().state_dict()),
        num_rounds=int(context.run_config["num-server-rounds"]),
    )
