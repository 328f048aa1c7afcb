"""The help desk's ServerApp: an ordinary Flower app, made confidential by one wrapper."""

from flwr.app import Array, ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from confed.governor.agreement import resolving
from confed.governor.strategy import ConfidentialStrategy

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run FedAvg over every site; the adapter's method says how its factors are combined."""
    sites = int(context.run_config["sites"])
    strategy = ConfidentialStrategy(FedAvg(min_train_nodes=sites, min_evaluate_nodes=sites, min_available_nodes=sites))
    strategy.start(grid=grid, initial_arrays=_start(context), num_rounds=int(context.run_config["num-server-rounds"]))


def _start(context: Context) -> ArrayRecord:
    """Return the base model where its owner resolves the experiment; the governor's process needs none."""
    if not resolving():
        return ArrayRecord()
    from base_model import of_settings  # noqa: PLC0415 (at the owner's alone)

    return ArrayRecord({name: Array(array) for name, array in of_settings(context.run_config).items()})
