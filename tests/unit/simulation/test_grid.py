"""The in-process Grid: messages reach the worker of their partition, replies come as they are made."""

import threading

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from confed.flower.messages import use_local_task_identity
from confed.governor.rounds import exchange
from confed.simulation.grid import LocalGrid


class FakeWorker:
    def __init__(self, number):
        self.number, self.seen, self.go = number, [], threading.Event()
        self.batches = []
        self.go.set()

    def handle_all(self, messages):
        self.batches.append(len(messages))
        for partition, message in messages:
            assert self.go.wait(10)
            self.seen.append(partition)
            content = RecordDict({"r": ConfigRecord({"worker": self.number, "partition": partition})})
            yield Message(content, reply_to=message)


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
    replies = list(made.send_and_receive(messages([1, 2, 3]), timeout=1.0))
    assert sorted(reply.metadata.src_node_id for reply in replies) == [1, 3]
    workers[1].go.set()


class CountingGrid(LocalGrid):
    """Counts how often replies are looked for, and how many names that takes."""

    looks, names = 0, 0

    def pull_messages(self, message_ids):
        self.looks += 1
        self.names += 0 if isinstance(message_ids, set) else len(list(message_ids))
        return super().pull_messages(message_ids)


@pytest.mark.parametrize("clients", [50, 400])
def test_looks_and_batches_do_not_grow_with_the_square_of_clients(clients):
    use_local_task_identity(run_id=1, node_id=1)
    workers = [FakeWorker(0), FakeWorker(1)]
    grid = CountingGrid(workers, partitions=clients)
    # Nobody starts before all are asked, as in a round whose clients take longer than the asking.
    for worker in workers:
        worker.go.clear()
    replies = exchange(grid, messages(grid.get_node_ids()), timeout_s=60)
    for worker in workers:
        worker.go.set()
    assert len(list(replies)) == clients
    assert grid.looks <= clients + 20
    assert grid.names == 0
    # The first message, which may have gone alone, and the rest.
    assert all(len(worker.batches) <= 2 + clients // 10 for worker in workers)
    grid.close()


def test_messages_that_wait_for_a_worker_go_as_one_batch(grid):
    made, workers = grid
    workers[0].go.clear()
    waiting = set(made.push_messages(messages([1, 3, 5, 1, 3, 5])))
    workers[0].go.set()
    found = []
    while len(found) < len(waiting):
        found += made.pull_messages(waiting)
    assert sum(workers[0].batches) == 6
    assert workers[0].seen == [0, 2, 4, 0, 2, 4]
