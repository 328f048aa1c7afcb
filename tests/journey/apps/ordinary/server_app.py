from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAdam
from task import make_model

app = ServerApp()


@app.main()
def main(grid, context):
    strategy = FedAdam(eta=0.05, min_train_nodes=3, min_evaluate_nodes=3, min_available_nodes=3)
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(make_model().state_dict()),
        num_rounds=int(context.run_config["num-server-rounds"]),
        train_config=ConfigRecord({"lr": 0.1}),
    )
