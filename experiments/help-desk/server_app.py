"""The help desk's ServerApp: an ordinary Flower app, made confidential by one wrapper."""

from flwr.app import Array, ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from confed.governor.strategy import ConfidentialStrategy

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run FedAvg over every site; the adapter's method says how its factors are combined."""
    sites = int(context.run_config["sites"])
    strategy = ConfidentialStrategy(FedAvg(min_train_nodes=sites, min_evaluate_nodes=sites, min_available_nodes=sites))

    def base_model() -> ArrayRecord:
        """Return the base model: asked for at its owner's alone."""
        from base_model import of_settings  # noqa: PLC0415 (what the governor's process does not need)

        return ArrayRecord({name: Array(array) for name, array in of_settings(context.run_config).items()})

    strategy.start(grid=grid, initial_arrays=base_model, num_rounds=int(context.run_config["num-server-rounds"]))
