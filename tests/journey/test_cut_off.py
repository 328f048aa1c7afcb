"""The connection between governor and enclave drops while the enclave commits: the round counts once, and goes on."""

from __future__ import annotations

import datetime
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp.strategy import FedAvg
from road import OWNER, Aggregator, Road

from aggregator.service import AggregatorService
from benchmarks.link import Link
from confed.flower.messages import set_message_id, use_local_task_identity
from confed.governor.calling import LISTENS
from confed.governor.courier import Courier
from confed.governor.enclave_client import EnclaveClient
from confed.governor.events import EventLog, EventName, read_events
from confed.governor.rounds import RECORD, Rounds
from confed.governor.strategy import ConfidentialStrategy, sealed_digest
from confed.journey import Purpose
from confed.wire.channel import TlsIdentity, serve


class SitesGrid:
    """Flower's side, where each node is a site of the road that answers at once; ``listening`` say that they listen."""

    waits = True

    def __init__(self, road: Road, *, listening: Collection[str] = ()) -> None:
        self._road, self._listening = road, listening
        self._nodes = dict(enumerate(road.land.sites, 1))
        self._replies: dict[str, Message] = {}
        self.asked: list[tuple[str, int, int, Purpose]] = []

    def get_node_ids(self) -> list[int]:
        return list(self._nodes)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        names: list[str] = []
        for message in messages:
            name = f"message-{len(self.asked)}-{message.metadata.dst_node_id}"
            set_message_id(message, name)
            self._replies[name] = self._answered(message)
            names.append(name)
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return [self._replies.pop(name) for name in list(message_ids) if name in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        del timeout
        return self.pull_messages(self.push_messages(messages))

    def _answered(self, message: Message) -> Message:
        site = self._nodes[message.metadata.dst_node_id]
        told = message.content.config_records[RECORD]
        fields: dict[str, Any] = {"site": site, LISTENS: int(site in self._listening)}
        if "round" in told:
            step = int(told["round"]), int(told["attempt"])  # pyright: ignore[reportArgumentType]
            purpose = Purpose(message.metadata.message_type)
            self.asked.append((site, *step, purpose))
            fields["digest"] = self._road.seal(self._road.hold(site, step[0], attempt=step[1], purpose=purpose))
        return Message(RecordDict({RECORD: ConfigRecord(fields)}), reply_to=message)


class Letters:
    """The courier's letters as the governor reads them; ``looked`` is set when it has looked for a commit."""

    def __init__(self, road: Road) -> None:
        self._courier = road.courier
        self.looked = threading.Event()

    def collect(self, topic: str) -> list[bytes]:
        found = Courier.collect(self._courier, topic)
        self.looked.set()
        return found


class Governor:
    """The real governor's rounds and strategy, over a link to the enclave that can be cut."""

    def __init__(self, road: Road, aggregator: Aggregator, events: EventLog) -> None:
        tls = TlsIdentity.generate(now=datetime.datetime.now(datetime.UTC))
        service = AggregatorService(aggregator.run)
        self._server = serve(service.register, listen="127.0.0.1:0", tls=tls)
        self.link = Link(self._server.endpoint)
        self.enclave = EnclaveClient(self.link.endpoint)
        self.letters, self.grid = Letters(road), SitesGrid(road)
        self.rounds = Rounds(road.manifest, self.enclave, events, letters=self.letters, patience_s=30.0)
        self._strategy = ConfidentialStrategy(FedAvg())
        self._strategy._rounds, self._strategy._grid, self._strategy._timeout_s = self.rounds, self.grid, 30.0  # pyright: ignore[reportAttributeAccessIssue]

    def round(self, number: int) -> str:
        """Take a whole round, and return the digest of the version."""
        messages = self.rounds.open(number, "train", self.grid)  # pyright: ignore[reportArgumentType]
        arrays, _ = self._strategy.aggregate_train(number, self.grid.send_and_receive(messages))
        assert arrays is not None
        return sealed_digest(arrays)

    def evaluation(self, number: int) -> None:
        """Take the evaluation of a round's version."""
        messages = self.rounds.open(number, "evaluate", self.grid)  # pyright: ignore[reportArgumentType]
        self._strategy._closed(self.grid.send_and_receive(messages))

    def stop(self) -> None:
        self.enclave.close()
        self.link.__exit__()
        self._server.stop(0)


@pytest.fixture
def governor(road: Road, place: Path) -> Iterator[Governor]:
    use_local_task_identity(run_id=1, node_id=1)
    with EventLog(place / "events.jsonl") as events:
        governor = Governor(road, road.aggregator(), events)
        yield governor
        governor.stop()


def wrapped(called: Callable[..., Any], *, before: Callable[[], None], after: Callable[[], None]) -> Callable[..., Any]:
    """Return ``called`` with something done before and after it the first time."""
    moments = [(before, after)]

    def call(*arguments: Any, **named: Any) -> Any:
        first, last = moments.pop() if moments else (lambda: None, lambda: None)
        first()
        found = called(*arguments, **named)
        last()
        return found

    return call


def nothing() -> None:
    pass


@pytest.mark.parametrize(
    ("moment", "number", "purpose"),
    [
        ("before the owner commits", 1, Purpose.TRAIN),
        ("before the owner commits", 2, Purpose.TRAIN),
        ("after the owner has committed", 2, Purpose.TRAIN),
        ("after the record is posted", 2, Purpose.TRAIN),
        ("before the owner commits", 2, Purpose.EVALUATE),
    ],
)
def test_a_round_that_commits_while_the_connection_drops_counts_once(
    moment: str, number: int, purpose: Purpose, road: Road, governor: Governor, place: Path
) -> None:
    for earlier in range(1, number + (purpose is Purpose.EVALUATE)):
        governor.round(earlier)

    def cut() -> None:
        governor.letters.looked.clear()
        governor.link.cut()
        # The worst moment: the governor has looked for the record, and found none if it is not posted yet.
        assert governor.letters.looked.wait(20)

    if moment == "after the record is posted":
        # The answer is what is cut off: nothing that the enclave waits for comes after the letter.
        road.courier.post = posting(road.courier.post, road.commit_topic(number, purpose), cut)  # pyright: ignore[reportAttributeAccessIssue]
    else:
        before, after = (cut, nothing) if moment.startswith("before") else (nothing, cut)
        road.doors[OWNER].commit = wrapped(road.doors[OWNER].broker.commit, before=before, after=after)
    if purpose is Purpose.EVALUATE:
        governor.evaluation(number)
    else:
        assert governor.round(number) == road.candidate(number).digest
    # One commit, of the one attempt: nobody was asked again, no update counts twice.
    assert len(Courier.collect(road.courier, road.commit_topic(number, purpose))) == 1
    # And the run goes on, with the same enclave, to its end.
    for later in range(number + 1, road.manifest.rounds + 1):
        assert governor.round(later) == road.candidate(later).digest
    governor.rounds.finish()
    every = range(1, road.manifest.rounds + 1)
    evaluated = [number] if purpose is Purpose.EVALUATE else []
    steps = [(each, 0, Purpose.TRAIN) for each in every] + [(each, 0, Purpose.EVALUATE) for each in evaluated]
    assert sorted(governor.grid.asked) == sorted((site, *step) for site in road.land.sites for step in steps)
    committed = [(body["round"], body["attempt"], body["purpose"]) for body in road.events(OWNER, "committed")]
    assert sorted(committed) == sorted(steps)
    told = tuple(read_events(place / "events.jsonl"))
    assert [event.fields["round"] for event in told if event.event is EventName.ROUND_COMBINED] == list(every)
    assert [event.fields["round"] for event in told if event.event is EventName.EVALUATED] == evaluated
    assert [event.fields["round"] for event in told if event.event is EventName.ROUND_ABANDONED] == [number]
    assert governor.link.connections == 2


def posting(post: Callable[[str, bytes], None], awaited: str, then: Callable[[], None]) -> Callable[[str, bytes], None]:
    """Return ``post`` with something done after a letter under a topic."""

    def posted(topic: str, body: bytes) -> None:
        post(topic, body)
        if topic == awaited:
            then()

    return posted
