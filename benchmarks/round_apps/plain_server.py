"""The benchmark's ServerApp in plain Flower: the same FedAvg, and the time at which each round ended."""

import time
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from task import model

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run FedAvg over every client, without evaluation."""
    clients, ends = int(context.run_config["clients"]), Path(str(context.run_config["ends"]))

    class Timed(FedAvg):
        def aggregate_train(self, server_round, replies):  # noqa: ANN001, ANN202
            aggregated = super().aggregate_train(server_round, replies)
            with ends.open("a") as file:
                file.write(f"{time.time()}\n")
            return aggregated

    Timed(min_train_nodes=clients, min_available_nodes=clients, fraction_evaluate=0.0).start(
        grid=grid,
        initial_arrays=model(int(context.run_config["parameters"])),
        num_rounds=int(context.run_config["rounds"]),
    )
