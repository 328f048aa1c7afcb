"""Plain Flower in one process: the same apps without confed, for the tests that compare the two."""

import itertools
import random

import numpy as np
import torch
from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid

from confed.flower.messages import decode_message, encode_message, set_message_id, use_local_task_identity


class PlainGrid(Grid):
    """Calls the ClientApp directly, seeded as a confidential client is, one node a site in the sites' order."""

    def __init__(self, client_app, names, *, run_config, seed_of):
        use_local_task_identity(run_id=1, node_id=1)
        self._app, self._names, self._run_config, self._seed_of = client_app, names, run_config, seed_of
        self._count = itertools.count(1)
        self._round = 0

    def set_run(self, run):
        pass

    @property
    def run(self):
        return None

    def create_message(self, content, message_type, dst_node_id, group_id, ttl=None):
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self):
        return range(1, len(self._names) + 1)

    def push_messages(self, messages):
        raise NotImplementedError

    def pull_messages(self, message_ids):
        raise NotImplementedError

    def send_and_receive(self, messages, *, timeout=None):
        # Flower's sampling is not seeded; the order of the replies is the order of the mean, so it is fixed here.
        return [self._answer(message) for message in sorted(messages, key=lambda entry: entry.metadata.dst_node_id)]

    def _answer(self, message):
        partition = message.metadata.dst_node_id - 1
        number = int(next(iter(message.content.config_records.values()))["server-round"])
        set_message_id(message, f"plain-{next(self._count)}")
        seed = self._seed_of(site=self._names[partition], round_number=number)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 (as the client does)
        torch.manual_seed(seed)
        context = Context(
            run_id=1,
            node_id=partition + 1,
            node_config={"partition-id": partition, "num-partitions": len(self._names)},
            state=RecordDict(),
            run_config=dict(self._run_config),
        )
        return decode_message(encode_message(self._app(decode_message(encode_message(message)), context)))
