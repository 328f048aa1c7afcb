"""The benchmark's ClientApp: trains one segment in blocks that take turns, and says how long each took."""

import training_loop
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

import confed.client

app = ClientApp(mods=[confed.client.confidential])


@app.train()
def train(message: Message, context: Context) -> Message:
    model = training_loop.network_of(context.run_config)
    model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    found = training_loop.measured(model, context.run_config, confed.client.checkpoints(context))
    metrics = MetricRecord({**found, "num-examples": 1})
    return Message(RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=message)
