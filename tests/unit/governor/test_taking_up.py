"""What the governor does when the enclave is gone: wait, see what was committed, make an attempt that nobody made."""

from types import SimpleNamespace

import pytest

from confed.errors import EnclaveLostError, InstanceError, LineageError, RoundError, RunEndedError
from confed.governor import rounds as rounds_module
from confed.governor import taking_up
from confed.governor.enclave_client import OpenedRound
from confed.governor.events import EventLog, EventName, read_events
from confed.governor.rounds import Rounds
from confed.journey import Purpose
from tests.unit.test_manifest import make

LOST = EnclaveLostError("aggregator", expected="an answer", got="UNAVAILABLE")


class FakeEnclave:
    """Answers as it is told: an entry that is an error is raised, once; instances are named after each loss."""

    def __init__(self):
        self.calls = []
        self.refusals = []
        self.number = 1

    def _answer(self, *call):
        self.calls.append(call)
        if self.refusals and self.refusals[0][0] == call[0]:
            error = self.refusals.pop(0)[1]
            self.number += isinstance(error, EnclaveLostError)
            raise error

    def attest(self, *, first_round, attempt):
        self._answer("attest", first_round, attempt)
        return f"{self.number:02x}" * 32

    def open_round(self, *, round_number, attempt, purpose):
        self._answer("open", round_number, attempt, str(purpose))
        return OpenedRound(base="ab" * 32, version=0, instance="", cohort=("north", "south"))

    def close_round(self, *, absent):
        self._answer("close", dict(absent))


class FakeGrid:
    def get_node_ids(self):
        return []


@pytest.fixture
def letters():
    found = SimpleNamespace(bodies=[], asked=[])

    def collect(topic):
        found.asked.append(topic)
        return list(found.bodies)

    found.collect = collect
    return found


@pytest.fixture
def naps():
    return []


@pytest.fixture
def enclave():
    return FakeEnclave()


@pytest.fixture
def rounds(tmp_path, enclave, letters, naps, monkeypatch):
    monkeypatch.setattr(Rounds, "_learn_nodes", lambda self, grid: None)
    with EventLog(tmp_path / "events.jsonl") as events:
        yield Rounds(make(max_attempts=3), enclave, events, letters=letters, patience_s=0.0, sleep=naps.append)


def open_first(rounds):
    rounds.open(1, "train", FakeGrid())


def test_a_lost_enclave_is_followed_by_an_attempt_that_nobody_has_made(rounds, enclave, tmp_path):
    enclave.refusals = [("close", LOST)]
    open_first(rounds)
    with pytest.raises(EnclaveLostError) as lost:
        rounds.close([])
    rounds.again(lost.value)
    assert [call for call in enclave.calls if call[0] != "close"] == [
        ("attest", 1, 0), ("open", 1, 0, "train"), ("attest", 1, 1), ("open", 1, 1, "train"),
    ]  # fmt: skip
    events = tuple(read_events(tmp_path / "events.jsonl"))
    started = [event.fields["attempt"] for event in events if event.event is EventName.ROUND_STARTED]
    assert started == [0, 1]
    assert [event.fields["code"] for event in events if event.event is EventName.ROUND_ABANDONED] == ["enclave-lost"]


def test_an_evaluation_is_taken_up_by_attesting_for_the_next_round(rounds, enclave):
    open_first(rounds)
    rounds.open(1, "evaluate", FakeGrid())
    rounds.again(LOST)
    assert enclave.calls[-2:] == [("attest", 2, 0), ("open", 1, 1, "evaluate")]
    rounds.open(2, "train", FakeGrid())
    assert enclave.calls[-1] == ("open", 2, 0, "train")


def test_an_attempt_whose_keys_went_to_an_instance_that_died_is_spent(rounds, enclave):
    open_first(rounds)
    enclave.refusals = [("attest", InstanceError("evidence"))]
    rounds.again(LOST)
    assert enclave.calls[-3:] == [("attest", 1, 1), ("attest", 1, 2), ("open", 1, 2, "train")]


def test_attempts_end(rounds, enclave):
    open_first(rounds)
    rounds.again(LOST)
    rounds.again(LOST)
    with pytest.raises(EnclaveLostError, match="at most 3 attempts"):
        rounds.again(LOST)
    assert [call[2] for call in enclave.calls if call[0] == "open"] == [0, 1, 2]


def test_a_refusal_of_the_same_instance_is_a_refusal(rounds, enclave):
    open_first(rounds)
    error = RoundError("round", expected="an open one", got="none")
    with pytest.raises(RoundError) as refused:
        rounds.again(error)
    assert refused.value is error
    assert [call[0] for call in enclave.calls] == ["attest", "open", "attest"]


def test_a_new_instance_that_knows_of_no_round_is_a_lost_enclave(rounds, enclave):
    open_first(rounds)
    enclave.number += 1
    rounds.again(RoundError("round", expected="an open one", got="none"))
    assert enclave.calls[-1] == ("open", 1, 1, "train")


def test_a_run_that_has_ended_is_not_taken_up(rounds, enclave):
    open_first(rounds)
    with pytest.raises(RunEndedError):
        rounds.again(RunEndedError("round to train"))
    assert len(enclave.calls) == 2


@pytest.mark.parametrize("error", [LineageError("base"), InstanceError("other")])
def test_why_the_next_instance_cannot_go_on_is_told(rounds, enclave, error):
    open_first(rounds)
    enclave.refusals = [("attest", error)] * 3
    with pytest.raises(type(error)):
        rounds.again(LOST)


def test_an_enclave_that_does_not_come_back_is_waited_for_with_pauses_that_double(enclave, letters, naps, monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(taking_up.time, "monotonic", lambda: float(next(clock)))
    survivor = taking_up.Survivor(make(), enclave, letters, patience_s=9.0, sleep=naps.append)
    enclave.refusals = [("attest", LOST)] * 100
    with pytest.raises(EnclaveLostError):
        survivor.attest(1)
    assert naps == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0]
    assert {call[2] for call in enclave.calls} == {0}


@pytest.fixture
def verified(rounds, monkeypatch):
    """What was verified, where a record holds unless it is somebody else's letter."""
    record = SimpleNamespace(metrics=SimpleNamespace(values={"loss": 0.5}), candidate=b"signed")
    candidate = SimpleNamespace(
        privacy=None, version=1, digest="cd" * 32, excluded={"west": "norm"}, cohort=(b"1", b"2")
    )
    verified = []

    def verify(found, *, manifest, round_number, purpose):
        verified.append((round_number, purpose))
        if found == b"somebody else's letter":
            raise LineageError("commit record")
        return candidate

    monkeypatch.setattr(taking_up, "verify_commit_record", verify)
    monkeypatch.setattr(
        taking_up.CommitRecord, "from_bytes", lambda body: body if body.startswith(b"somebody") else record
    )
    monkeypatch.setattr(rounds._history, "add", lambda _: None)
    monkeypatch.setattr(rounds_module, "unverified", lambda signed, kind: candidate)
    return verified


def test_an_enclave_that_was_only_cut_off_and_has_committed_meanwhile_is_not_lost(rounds, enclave, letters, verified):
    """Its answer to the next instance's call comes after the record: it was busy with the round."""
    open_first(rounds)
    bodies = [[], [b"the record"], [b"the record"]]
    letters.collect = lambda topic: bodies.pop(0)
    enclave.refusals = [("attest", LineageError("commit record"))]
    assert rounds.again(LOST) == []
    assert [call[:2] for call in enclave.calls[-2:]] == [("attest", 1), ("attest", 2)]
    assert rounds.close([]) == ("cd" * 32, {"loss": 0.5})


def test_a_round_whose_commit_was_published_is_over(rounds, enclave, letters, verified):
    """The enclave died after it published the record and before the governor heard of it."""
    open_first(rounds)
    letters.bodies = [b"somebody else's letter", b"the record"]
    assert rounds.again(LOST) == []
    assert letters.asked == ["test-1/commit/train/1"]
    assert verified == [(1, Purpose.TRAIN)] * 2
    assert enclave.calls[-1] == ("attest", 2, 0)
    assert rounds.close([]) == ("cd" * 32, {"loss": 0.5})
    assert not any(call[0] == "close" for call in enclave.calls)


def test_a_round_that_is_full_is_not_waited_for(rounds, tmp_path):
    """Six sites, of which half are taken."""
    open_first(rounds)
    rounds._expected = ("a", "b", "c", "d")
    rounds._answered, rounds._counted = {"a": "", "b": "norm", "c": ""}, 2
    assert not rounds.full
    rounds._answered["e"], rounds._counted = "", 3
    assert rounds.full
    assert rounds._absent() == {"b": "norm", "d": "round-full"}
    failed = [event for event in read_events(tmp_path / "events.jsonl") if event.event is EventName.CLIENT_FAILED]
    assert [(event.fields["site"], event.fields["code"]) for event in failed] == [("d", "round-full")]


def test_a_failure_fills_no_round(rounds):
    open_first(rounds)
    rounds._expected, rounds._sites = ("a", "b", "c"), {1: "a", 2: "b", 3: "c"}
    for node in (1, 2, 3):
        failed = SimpleNamespace(
            metadata=SimpleNamespace(src_node_id=node), has_error=lambda: True, error=SimpleNamespace(reason="norm")
        )
        rounds.receive(failed)
    assert rounds._answered == {"a": "norm", "b": "norm", "c": "norm"}
    assert not rounds.full
