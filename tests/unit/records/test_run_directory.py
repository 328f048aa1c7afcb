"""What a run leaves on disk: written whole or not at all, read in one form only."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from records_world import SITES, RecordedRun

from confed import canonical
from confed.errors import ConfedError, EncodingError, MissingFileError, SizeError
from confed.journey import Purpose
from confed.records import run_directory
from confed.records.run_directory import ClosingRecord, RunDirectory
from confed.statement import Signed

signed = st.builds(
    Signed,
    payload=st.binary(max_size=80),
    signer=st.binary(min_size=32, max_size=32),
    signature=st.binary(min_size=64, max_size=64),
)


def test_everything_written_is_read_back(directory: RunDirectory, run: RecordedRun) -> None:
    assert directory.manifest() == run.manifest
    assert list(directory.approvals()) == run.approvals
    assert directory.versions() == (0, 1, 2)
    assert directory.rounds(Purpose.TRAIN) == directory.rounds(Purpose.EVALUATE) == (1, 2)
    assert directory.commit(Purpose.TRAIN, 2) == run.records[Purpose.TRAIN, 2]
    assert set(directory.evidence()) == {canonical.digest(envelope) for envelope in run.evidence}
    assert {directory.read_evidence(digest) for digest in directory.evidence()} == set(run.evidence)
    assert {name: directory.ledger(name) for name in directory.ledgers()} == run.ledgers
    assert directory.closing() == run.closing
    assert [event["event"] for event in directory.events()] == [event["event"] for event in run.events]
    assert len(directory.metrics()) == 2
    assert directory.summary()["run"] == run.manifest.run


def test_a_record_of_ten_thousand_sites_is_read_back(directory: RunDirectory, run: RecordedRun) -> None:
    """It has 25 MB, more than any other document may have."""
    record = run.records[Purpose.TRAIN, 2]
    tickets = record.tickets * (20 * 1024 * 1024 // sum(len(signed.payload) for signed in record.tickets))
    large = dataclasses.replace(record, tickets=tickets).to_bytes()
    assert len(large) > canonical.LIMIT_BYTES
    directory.write_commit(Purpose.TRAIN, 2, large)
    assert directory.commit(Purpose.TRAIN, 2).to_bytes() == large


def test_a_directory_holds_one_run(directory: RunDirectory) -> None:
    with pytest.raises(EncodingError):
        RunDirectory.create(directory.path)


def test_a_run_that_has_not_ended_has_no_closing(tmp_path: Path) -> None:
    empty = RunDirectory.create(tmp_path / "run")
    assert empty.closing() is None
    assert empty.versions() == empty.rounds(Purpose.TRAIN) == empty.evidence() == empty.events() == ()
    assert empty.summary() == {}


def test_a_failed_write_leaves_what_was_there(
    directory: RunDirectory, run: RecordedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    before = directory.closing_file.read_bytes()
    names = set(directory.path.iterdir())
    monkeypatch.setattr(run_directory.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        directory.write_closing(ClosingRecord(closing=run.closing.closing, countersignatures=()))
    assert directory.closing_file.read_bytes() == before
    assert set(directory.path.iterdir()) == names


def test_a_second_spelling_of_a_number_is_no_second_version(directory: RunDirectory) -> None:
    (directory.path / "versions" / "00001.sealed").write_bytes(b"x")
    (directory.path / "versions" / ".0003.sealed.tmp").write_bytes(b"x")
    assert directory.versions() == (0, 1, 2)


REFUSALS = [
    ("a party's name that leaves the folder", lambda d, run: d.ledger_file("../north"), EncodingError),
    ("a party's name that is hidden", lambda d, run: d.ledger_file(".north"), EncodingError),
    ("evidence that is no digest", lambda d, run: d.evidence_file("../manifest"), EncodingError),
    ("a commit that is not there", lambda d, run: d.commit(Purpose.TRAIN, 9), MissingFileError),
    ("a ledger that is not there", lambda d, run: d.ledger("east"), MissingFileError),
    ("evidence that is not there", lambda d, run: d.read_evidence("00" * 32), MissingFileError),
    ("approvals that are no list", lambda d, run: (d.approvals_file.write_bytes(b"{}"), d.approvals()), EncodingError),
    ("a closing that is no record", lambda d, run: (d.closing_file.write_bytes(b"[]"), d.closing()), EncodingError),
    (
        "a ledger whose last line is cut off",
        lambda d, run: (d.ledger_file("west").write_bytes(d.ledger_file("west").read_bytes()[:-1]), d.ledger("west")),
        EncodingError,
    ),
    (
        "a document above its bound",
        lambda d, run: (d.approvals_file.write_bytes(b" " * (canonical.LIMIT_BYTES + 1)), d.approvals()),
        SizeError,
    ),
]


@pytest.mark.parametrize(("act", "error"), [row[1:] for row in REFUSALS], ids=[row[0] for row in REFUSALS])
def test_it_is_refused(act, error: type[ConfedError], directory: RunDirectory, run: RecordedRun) -> None:
    with pytest.raises(error):
        act(directory, run)


@given(closing=signed, countersignatures=st.lists(signed, max_size=3))
def test_a_closing_record_comes_back_as_it_was(closing: Signed, countersignatures: list[Signed]) -> None:
    record = ClosingRecord(closing=closing, countersignatures=tuple(countersignatures))
    assert ClosingRecord.from_bytes(record.to_bytes()) == record


@pytest.mark.parametrize("name", SITES)
def test_spare_bits_of_base64_are_refused(name: str, directory: RunDirectory) -> None:
    # "QQ==" and "QR==" decode to the same byte: the payload, its digest and signature hold, the file was edited.
    path = directory.ledger_file(name)
    lines = path.read_bytes().splitlines(keepends=True)
    at = next((i for i, line in enumerate(lines) if b'==","signature"' in line), None)
    assert at is not None
    alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    where = lines[at].index(b'==","signature"') - 1
    digit = alphabet.index(lines[at][where])
    lines[at] = lines[at][:where] + alphabet[digit + 1 : digit + 2] + lines[at][where + 1 :]
    path.write_bytes(b"".join(lines))
    with pytest.raises(EncodingError, match="line"):
        directory.ledger(name)
