"""A TEE that hosts many sites: one frame of messages in, replies out, results sent together before any is told."""

import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict

from confed.client.batches import answers, decode_batch, encode_batch
from confed.client.outbox import Outbox
from confed.client.step import Grants
from confed.errors import EncodingError, UnreachableError
from confed.flower.messages import set_message_id, use_local_task_identity
from confed.model.bundle import unbundle
from confed.statement import Signed

SIGNED = Signed(payload=b"{}", signer=b"s" * 32, signature=b"g" * 64)
GRANTS = Grants(credential=SIGNED, ticket=SIGNED, aggregator=None)


class FakeCourier:
    def __init__(self):
        self.stored = []
        self.down = False

    def put(self, data):
        if self.down:
            raise UnreachableError("courier", expected="an answer", got="none")
        self.stored.append(unbundle(data))
        return f"bundle-{len(self.stored)}"


class FakeSession:
    def __init__(self, *, sites):
        self.manifest = type("M", (), {"sites": tuple(range(sites))})()
        self.courier = FakeCourier()
        self.outbox = Outbox(self.courier)


def messages(count):
    use_local_task_identity(run_id=1, node_id=1)
    made = []
    for number in range(count):
        message = Message(RecordDict(), dst_node_id=number + 1, message_type="train")
        set_message_id(message, f"m-{number}")
        made.append((number, message))
    return made


def app_of(session, *, failing=()):
    def app(message, context):
        number = context.node_config["partition-id"]
        if number in failing:
            return Message(Error(code=0, reason="app-failed"), reply_to=message)
        session.outbox.add(f"site-{number}", GRANTS, b"x" * 10, digest=f"digest-{number}")
        return Message(RecordDict({"confed": ConfigRecord({"digest": f"digest-{number}"})}), reply_to=message)

    return app


def test_a_batch_survives_the_socket():
    sent = messages(3)
    assert [(at, m.metadata.dst_node_id) for at, m in decode_batch(encode_batch(sent))] == [(0, 1), (1, 2), (2, 3)]


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_batch_that_was_cut_is_refused(cut):
    frame = encode_batch(messages(2))
    with pytest.raises(EncodingError):
        list(decode_batch(frame[:-cut]))


@pytest.mark.parametrize(("clients", "objects"), [(64, 1), (65, 2), (640, 10)])
def test_objects_grow_with_the_results_and_are_far_fewer(clients, objects):
    session = FakeSession(sites=clients)
    replies = list(answers(app_of(session), session, messages(clients)))
    assert len(session.courier.stored) == objects
    assert [reply.metadata.reply_to_message_id for reply in replies] == [f"m-{number}" for number in range(clients)]
    held = [entry.site for stored in session.courier.stored for entry in stored]
    assert held == [f"site-{number}" for number in range(clients)]
    assert replies[-1].content["confed"]["bundle"] == f"bundle-{objects}"


def test_no_reply_comes_before_its_result_was_sent():
    session = FakeSession(sites=100)
    for _ in answers(app_of(session), session, messages(100)):
        assert session.courier.stored


def test_a_client_that_failed_is_in_no_object():
    session = FakeSession(sites=3)
    replies = list(answers(app_of(session, failing={1}), session, messages(3)))
    assert [reply.has_error() for reply in replies] == [False, True, False]
    assert [entry.site for entry in session.courier.stored[0]] == ["site-0", "site-2"]


def test_results_that_could_not_be_sent_are_failures_and_the_next_go_on():
    session = FakeSession(sites=2)
    session.courier.down = True
    replies = list(answers(app_of(session), session, messages(2)))
    assert [reply.error.reason for reply in replies] == [UnreachableError.code] * 2
    session.courier.down = False
    assert not any(reply.has_error() for reply in answers(app_of(session), session, messages(2)))
    assert len(session.courier.stored[0]) == 2
