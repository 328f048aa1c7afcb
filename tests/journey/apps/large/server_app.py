import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

from confed.governor.strategy import ConfidentialStrategy

app = ServerApp()


@app.main()
def main(grid, context):
    numbers = np.zeros(int(context.run_config["numbers"]), dtype=np.float32)
    ConfidentialStrategy(FedAvg(fraction_evaluate=0.0)).start(
        grid=grid, initial_arrays=ArrayRecord({"numbers": Array(numbers)}), num_rounds=2
    )
