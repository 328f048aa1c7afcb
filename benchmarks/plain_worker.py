"""A worker of plain Flower for the comparison: the same ClientApp and frames as a client TEE's, without confed."""

from __future__ import annotations

import importlib
import json
import socket
import sys

import torch
from flwr.app import Context, RecordDict
from flwr.clientapp import ClientApp

from confed.client.host import receive_frame, send_frame
from confed.flower.messages import decode_message, encode_message


def main() -> None:
    """Serve frames over the inherited socket: arguments are its descriptor and a JSON file of the run's settings."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    folder, names, seed, settings = json.loads(sys.argv[2])
    sys.path.insert(0, folder)
    shards = importlib.import_module("data").shards(names, seed, settings)
    task = importlib.import_module("clients.tasks.digits")
    app = task.make_app(ClientApp(), lambda context: shards[names[int(context.node_config["partition-id"])]])
    torch.set_num_threads(1)
    send_frame(channel, b"ready")
    while (frame := receive_frame(channel)) is not None:
        partition = int.from_bytes(frame[:4], "big")
        message = decode_message(frame[4:])
        context = Context(
            run_id=1,
            node_id=message.metadata.dst_node_id,
            node_config={"partition-id": partition},
            state=RecordDict(),
            run_config=settings,
        )
        send_frame(channel, encode_message(app(message, context)))


if __name__ == "__main__":
    main()
