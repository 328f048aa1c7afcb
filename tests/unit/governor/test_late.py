"""Answers that come in a later round than they were asked in: who is busy is not asked, and nothing is lost."""

from types import SimpleNamespace

from flwr.app import ConfigRecord, Message, Metadata, RecordDict

from confed.governor.late import LateAnswers


def message(node, *, reply_to="", source=0, kind="train"):
    metadata = Metadata(0, "", source, node, reply_to, "", 0.0, 1.0, kind)
    return Message(RecordDict({"confed": ConfigRecord({})}), metadata=metadata)


class Grid:
    """Answers when told."""

    def __init__(self):
        self.asked, self.kinds, self.ready = {}, {}, []

    def push_messages(self, messages):
        found = []
        for one in messages:
            identifier = f"m{len(self.asked)}"
            self.asked[identifier] = one.metadata.dst_node_id
            self.kinds[identifier] = one.metadata.message_type
            found.append(identifier)
        return found

    def answer(self, identifier):
        kind = self.kinds[identifier]
        self.ready.append(message(0, reply_to=identifier, source=self.asked[identifier], kind=kind))

    def pull_messages(self, identifiers):
        found = [reply for reply in self.ready if reply.metadata.reply_to_message_id in identifiers]
        self.ready = [reply for reply in self.ready if reply not in found]
        return found


class Rounds(SimpleNamespace):
    def __init__(self, size):
        super().__init__(size=size, instance="one", lost=None, counted=[])

    @property
    def full(self):
        return len(self.counted) >= self.size

    def takes(self, reply):
        return not self.full and reply.metadata.src_node_id not in self.counted

    def receive(self, reply):
        self.counted.append(reply.metadata.src_node_id)


def test_a_round_ends_with_its_buffer_and_the_slow_one_counts_in_a_later_round():
    grid, rounds = Grid(), Rounds(2)
    late = LateAnswers(grid, rounds)
    original = grid.push_messages

    def push(messages):
        found = original(messages)
        for identifier in found:
            if grid.asked[identifier] != 1:
                grid.answer(identifier)
        return found

    grid.push_messages = push
    late.exchange([message(node) for node in (1, 2, 3)], timeout_s=5)
    assert sorted(rounds.counted) == [2, 3]
    rounds.counted = []
    grid.answer("m0")
    late.exchange([message(node) for node in (1, 2, 3)], timeout_s=5)
    assert list(grid.asked.values()) == [1, 2, 3, 2, 3]  # 1 was busy and is not asked again
    assert len(rounds.counted) == 2


def test_what_comes_beyond_the_buffer_is_kept_for_the_next_round():
    grid, rounds = Grid(), Rounds(1)
    late = LateAnswers(grid, rounds)
    original = grid.push_messages

    def push(messages):
        found = original(messages)
        for identifier in found:
            grid.answer(identifier)
        return found

    grid.push_messages = push
    late.exchange([message(1), message(2)], timeout_s=5)
    first = list(rounds.counted)
    rounds.counted = []
    late.exchange([], timeout_s=5)
    assert sorted(first + rounds.counted) == [1, 2]


def test_answers_for_an_enclave_that_is_gone_are_not_waited_for():
    grid, rounds = Grid(), Rounds(1)
    late = LateAnswers(grid, rounds)
    late.exchange([message(1)], timeout_s=0)
    rounds.instance = "two"
    late.exchange([message(1)], timeout_s=0)
    assert list(grid.asked.values()) == [1, 1]


def evaluations(*nodes):
    return [message(node, kind="evaluate") for node in nodes]


def test_who_trains_is_not_asked_to_evaluate_and_its_answer_is_kept_for_the_next_training_round():
    grid, rounds = Grid(), Rounds(2)
    late = LateAnswers(grid, rounds)
    late.exchange([message(node) for node in (1, 2, 3)], timeout_s=0)
    grid.answer("m1")
    grid.answer("m2")
    late.exchange([], timeout_s=5)
    assert sorted(rounds.counted) == [2, 3]
    rounds.counted = []
    original = grid.push_messages

    def push(messages):
        found = original(messages)
        grid.answer("m0")  # node 1 is done with its training meanwhile
        for identifier in found:
            grid.answer(identifier)
        return found

    grid.push_messages = push
    late.exchange(evaluations(1, 2, 3), timeout_s=5)
    assert (sorted(rounds.counted), list(grid.asked.values())) == ([2, 3], [1, 2, 3, 2, 3])
    rounds.counted, grid.push_messages = [], original
    late.exchange([message(2)], timeout_s=0)
    assert rounds.counted == [1]


def test_an_evaluation_that_comes_late_counts_nowhere():
    grid, rounds = Grid(), Rounds(1)
    late = LateAnswers(grid, rounds)
    late.exchange(evaluations(1, 2), timeout_s=0)
    grid.answer("m0")
    grid.answer("m1")
    late.exchange([message(3)], timeout_s=0)
    grid.answer("m2")
    late.exchange([], timeout_s=5)
    assert rounds.counted == [3]
    rounds.counted = []
    late.exchange(evaluations(1), timeout_s=0)
    assert rounds.counted == []


def test_an_evaluation_does_not_wait_for_who_trains():
    grid, rounds = Grid(), Rounds(3)
    late = LateAnswers(grid, rounds)
    late.exchange([message(1)], timeout_s=0)
    original = grid.push_messages

    def push(messages):
        found = original(messages)
        for identifier in found:
            grid.answer(identifier)
        return found

    grid.push_messages = push
    late.exchange(evaluations(1, 2), timeout_s=None)  # would wait for ever
    assert rounds.counted == [2]
