"""The benchmark's ServerApp."""

import training_loop
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from confed.governor.strategy import ConfidentialStrategy

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=1, min_evaluate_nodes=0, min_available_nodes=1)
    ConfidentialStrategy(strategy).start(
        grid=grid,
        initial_arrays=ArrayRecord(training_loop.network_of(context.run_config).state_dict()),
        num_rounds=int(context.run_config["num-server-rounds"]),
    )
