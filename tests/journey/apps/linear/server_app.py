from flwr.app import ConfigRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAdam
from task import start

app = ServerApp()


@app.main()
def main(grid, context):
    strategy = FedAdam(eta=0.05, min_train_nodes=3, min_evaluate_nodes=3, min_available_nodes=3)
    strategy.start(
        grid=grid,
        initial_arrays=start(),
        num_rounds=int(context.run_config["num-server-rounds"]),
        train_config=ConfigRecord({"lr": 0.1}),
    )
