"""The benchmark's ServerApp, confidential: training rounds only."""

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from task import model

from confed.governor.strategy import ConfidentialStrategy

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run FedAvg over every client, without evaluation."""
    clients = int(context.run_config["clients"])
    strategy = FedAvg(min_train_nodes=clients, min_available_nodes=clients, fraction_evaluate=0.0)
    ConfidentialStrategy(strategy).start(
        grid=grid,
        initial_arrays=lambda: model(int(context.run_config["parameters"])),
        num_rounds=int(context.run_config["num-server-rounds"]),
    )
