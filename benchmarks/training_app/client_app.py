"""The benchmark's ClientApp: trains one segment and says how long its loop took."""

import training_loop
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

import confed.client

app = ClientApp(mods=[confed.client.confidential])


@app.train()
def train(message: Message, context: Context) -> Message:
    model = training_loop.network_of(context.run_config)
    model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    kept = training_loop.Watched(confed.client.checkpoints(context))
    seconds, busy = training_loop.ready(model, context.run_config, kept)
    metrics = MetricRecord(
        {"loop-seconds": seconds, "loop-cpu-seconds": busy, "save-seconds": kept.seconds, "num-examples": 1}
    )
    return Message(RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=message)
