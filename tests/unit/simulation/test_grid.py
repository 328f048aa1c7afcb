"""The in-process Grid: messages reach the worker of their partition, replies come as they are made."""

import threading

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from confed.flower.messages import use_local_task_identity
from confed.simulation.grid import LocalGrid


class FakeWorker:
    def __init__(self, number):
        self.number, self.seen, self.go = number, [], threading.Event()
        self.go.set()

    def handle(self, partition, message):
        assert self.go.wait(10)
        self.seen.append(partition)
        content = RecordDict({"r": ConfigRecord({"worker": self.number, "partition": partition})})
        return Message(content, reply_to=message)


@pytest.fixture
def grid():
    use_local_task_identity(run_id=1, node_id=1)
    workers = [FakeWorker(0), FakeWorker(1)]
    made = LocalGrid(workers, partitions=5)
    yield made, workers
    made.close()


def messages(nodes):
    return [Message(RecordDict(), dst_node_id=node, message_type="train") for node in nodes]


def test_each_partition_has_its_own_worker_and_node(grid):
    made, workers = grid
    assert list(made.get_node_ids()) == [1, 2, 3, 4, 5]
    replies = list(made.send_and_receive(messages(made.get_node_ids()), timeout=10))
    told = {reply.metadata.src_node_id: reply.content["r"] for reply in replies}
    assert {node: record["partition"] for node, record in told.items()} == {1: 0, 2: 1, 3: 2, 4: 3, 5: 4}
    assert workers[0].seen == [0, 2, 4]
    assert workers[1].seen == [1, 3]


def test_a_reply_can_be_pulled_once_and_before_the_others(grid):
    made, workers = grid
    workers[1].go.clear()
    first, second = made.push_messages(messages([1, 2]))
    (reply,) = [*made.pull_messages([first, second]), *made.pull_messages([first, second])][:1]
    assert reply.metadata.reply_to_message_id == first
    workers[1].go.set()
    found = []
    while not found:
        found = list(made.pull_messages([first, second]))
    assert found[0].metadata.reply_to_message_id == second
    assert list(made.pull_messages([first, second])) == []


def test_who_does_not_answer_in_time_is_missing(grid):
    made, workers = grid
    workers[1].go.clear()
    replies = list(made.send_and_receive(messages([1, 2, 3]), timeout=0.3))
    assert sorted(reply.metadata.src_node_id for reply in replies) == [1, 3]
    workers[1].go.set()
