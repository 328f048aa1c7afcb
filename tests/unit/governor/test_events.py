"""The event log: what happened, whole lines only, and nothing that the governor may not hold."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confed.errors import EncodingError, MissingFileError, SizeError
from confed.governor.events import FIELDS, EventLog, EventName, EventReader, read_events

DIGEST = "0a" * 32

WRITTEN: list[tuple[EventName, dict[str, object]]] = [
    (EventName.RUN_STARTED, {"run": "digits-1", "engine": "local", "manifest": DIGEST, "rounds": 2, "sites": 2}),
    (
        EventName.ATTESTED,
        {"role": "aggregator", "instance": DIGEST, "profile": "simulated/1", "layers": ["not-dumpable"]},
    ),
    (EventName.ROUND_STARTED, {"round": 1, "purpose": "train", "cohort": 2, "names": ["St. Mary", "Königsberg"]}),
    (EventName.CLIENT_DONE, {"round": 1, "site": "St. Mary", "seconds": {"train": 0.5, "seal": 0}}),
    (EventName.CLIENT_FAILED, {"round": 1, "site": "Königsberg", "code": "no-answer"}),
    (EventName.ROUND_ABANDONED, {"round": 1, "purpose": "train", "code": "enclave-lost"}),
    (
        EventName.ROUND_COMBINED,
        {"round": 1, "cohort": 1, "metrics": {"loss": 0.25}, "excluded": {"Königsberg": "norm"}},
    ),
    (EventName.EVALUATED, {"round": 1, "version": 1, "metrics": {"accuracy": 0.5}}),
    (EventName.VERSION_COMMITTED, {"version": 1, "digest": DIGEST}),
    (EventName.RUN_FINISHED, {"rounds": 2, "seconds": {"combine": 1.5}}),
    (EventName.RUN_FAILED, {"code": "cohort", "reason": "cohort: expected at least 2, got 1"}),
]


def write_all(path: Path) -> None:
    with EventLog(path, clock=lambda: 12.3456) as log:
        for event, fields in WRITTEN:
            log.write(event, **fields)


def test_what_is_written_is_read_in_order_with_its_time(tmp_path: Path) -> None:
    write_all(tmp_path / "events.jsonl")
    found = list(read_events(tmp_path / "events.jsonl"))
    assert [(record.event, record.fields) for record in found] == WRITTEN
    assert {record.time for record in found} == {12345}
    assert {event for event, _ in WRITTEN} == set(EventName)


REFUSED: dict[str, tuple[str, dict[str, object]]] = {
    "an event that is not known": ("coffee-break", {}),
    "a field that is not known": ("client-done", {"key": "00"}),
    "metrics of one client": ("client-done", {"site": "a", "metrics": {"loss": 1.0}}),
    "metrics of a failed client": ("client-failed", {"metrics": {"loss": 1.0}}),
    "a site beside the cohort's metrics": ("round-combined", {"site": "a", "metrics": {"loss": 1.0}}),
    "metrics by client": ("evaluated", {"metrics": {"loss": {"a": 1.0}}}),
    "an error's text of a client": ("client-failed", {"site": "a", "reason": "row 7 of the data is bad"}),
    "bytes for a text": ("run-started", {"run": b"\x00" * 32}),
    "a key for a digest": ("version-committed", {"digest": b"\x00" * 32}),
    "a text for a digest": ("version-committed", {"digest": "latest"}),
    "a long text": ("run-started", {"name": "x" * 257}),
    "a line break": ("run-started", {"name": "a\nb"}),
    "a sentence for a code": ("client-failed", {"code": "it broke"}),
    "no code": ("client-failed", {"code": ""}),
    "a truth value for a number": ("round-started", {"round": True}),
    "a negative number": ("round-started", {"round": -1}),
    "a fraction for a number": ("round-started", {"round": 1.5}),
    "not a number": ("evaluated", {"metrics": {"loss": float("nan")}}),
    "infinity": ("client-done", {"seconds": {"train": float("inf")}}),
    "names that are one text": ("round-started", {"names": "abc"}),
}


@pytest.mark.parametrize(("event", "fields"), REFUSED.values(), ids=list(REFUSED))
def test_what_does_not_belong_in_the_log_is_refused_and_not_written(
    tmp_path: Path, event: str, fields: dict[str, object]
) -> None:
    path = tmp_path / "events.jsonl"
    with EventLog(path) as log, pytest.raises(EncodingError) as refused:
        log.write(event, **fields)
    assert path.read_bytes() == b""
    for value in fields.values():
        assert repr(value) not in str(refused.value)
    line = json.dumps({"time": 1, "event": event, **fields}, default=list)
    path.write_text(line + "\n")
    with pytest.raises(EncodingError):
        list(read_events(path))


def test_only_single_clients_have_a_site_and_only_cohorts_have_metrics() -> None:
    assert [event for event in EventName if {"site", "metrics"} <= FIELDS[event]] == []
    assert {event for event in EventName if "metrics" in FIELDS[event]} == {
        EventName.ROUND_COMBINED,
        EventName.EVALUATED,
        EventName.RUN_FINISHED,
    }


def test_a_reason_is_shortened_rather_than_refused(tmp_path: Path) -> None:
    with EventLog(tmp_path / "log") as log:
        log.write(EventName.RUN_FAILED, code="config", reason="line\nbreak " + "x" * 5000)
    (found,) = read_events(tmp_path / "log")
    assert found.fields["reason"].startswith("line\nbreak x")
    assert len(found.fields["reason"]) == 1000


def test_a_line_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with EventLog(tmp_path / "log") as log, pytest.raises(SizeError):
        log.write(EventName.ROUND_STARTED, names=["x" * 200] * 2000)
    assert (tmp_path / "log").read_bytes() == b""


@settings(deadline=None)
@given(cuts=st.lists(st.integers(min_value=0, max_value=1500), max_size=20))
def test_a_reader_that_follows_sees_every_event_once_wherever_the_writes_are_cut(
    cuts: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("events")
    write_all(folder / "whole")
    whole = (folder / "whole").read_bytes()
    reader, seen = EventReader(folder / "growing"), []
    assert reader.poll() == []
    for cut in [*sorted(cuts), len(whole)]:
        (folder / "growing").write_bytes(whole[:cut])
        seen += reader.poll()
        assert len(seen) == whole[:cut].count(b"\n")
    assert seen == list(read_events(folder / "whole"))
    assert reader.poll() == []


@pytest.mark.parametrize("half", [b'{"time": 1, "ev', b"x" * 200_000], ids=["short", "long"])
@pytest.mark.parametrize("before", [0, 3])
def test_a_half_written_last_line_is_left_out_and_removed_when_the_log_goes_on(
    tmp_path: Path, half: bytes, before: int
) -> None:
    path = tmp_path / "log"
    with EventLog(path) as log:
        for number in range(before):
            log.write(EventName.ROUND_STARTED, round=number)
    with path.open("ab") as file:
        file.write(half)
    reader = EventReader(path)
    assert len(reader.poll()) == len(list(read_events(path))) == before
    with EventLog(path) as log:
        log.write(EventName.ROUND_STARTED, round=before)
    assert [record.fields["round"] for record in reader.poll()] == [before]
    assert [record.fields["round"] for record in read_events(path)] == list(range(before + 1))


@pytest.mark.parametrize("line", [b"{}", b"[]", b"nonsense", b'{"event": "attested"}', b'{"event": 1, "time": 1}', b""])
def test_a_whole_line_that_is_no_event_is_refused_by_its_number(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "log"
    write_all(path)
    with path.open("ab") as file:
        file.write(line + b"\n")
    with pytest.raises(EncodingError) as refused:
        list(read_events(path))
    assert refused.value.field == f"event log line {len(WRITTEN) + 1}"


def test_a_log_that_lost_lines_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "log"
    write_all(path)
    reader = EventReader(path)
    reader.poll()
    path.write_bytes(b"")
    with pytest.raises(EncodingError):
        reader.poll()


def test_a_log_that_cannot_be_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError):
        EventLog(tmp_path / "no" / "folder")
    with pytest.raises(MissingFileError):
        list(read_events(tmp_path / "no log"))


def test_threads_that_write_at_once_do_not_mix_lines(tmp_path: Path) -> None:
    with EventLog(tmp_path / "log") as log:
        threads = [
            threading.Thread(target=lambda: [log.write(EventName.ROUND_STARTED, round=n) for n in range(50)])
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(record.fields["round"] for record in read_events(tmp_path / "log")) == sorted(list(range(50)) * 4)
