"""A run's records on disk: where each stands, how it is written, and how it is read back.

    manifest.json              the manifest's canonical bytes
    approvals.json             the owners' signed approvals of it
    versions/NNNN.sealed       sealed model versions; 0000 is the start
    commits/train-NNNN.json    commit record of a round's version; evaluate-NNNN.json of its evaluation
    evidence/<digest>.json     evidence envelopes, named by their SHA-256
    ledger/<party>.jsonl       the whole ledger of a party's broker, one signed entry a line
    closing.json               the signed closing and its countersignatures
    events.jsonl  metrics.jsonl  summary.json  report.html  logs/      for people; nothing rests on them

Everything here may have been touched by anybody: reading checks the form (canonical, bounded, one spelling), and
``verification`` the rest.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from confed import canonical
from confed.errors import EncodingError, MissingFileError, SizeError
from confed.files import PUBLIC, replacing
from confed.journey import Purpose
from confed.keybroker.statements import RECORD_LIMIT_BYTES, CommitRecord
from confed.manifest import Manifest
from confed.statement import Signed

T = TypeVar("T")

_PARTY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_LINE_LIMIT_BYTES = 1024 * 1024
_LEDGER_LIMIT_BYTES = 4 * 1024**3
_FOLDERS = ("versions", "commits", "evidence", "ledger", "logs")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosingRecord:
    """How a run ended: the model owner's signed ``Closing`` and the others' countersignatures; not yet verified."""

    closing: Signed
    countersignatures: tuple[Signed, ...]

    def to_bytes(self) -> bytes:
        """Return the record as canonical JSON."""
        return canonical.encode(
            {
                "closing": self.closing.to_json(),
                "countersignatures": [signed.to_json() for signed in self.countersignatures],
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> ClosingRecord:
        """Return the record of canonical JSON.

        Raises:
            EncodingError: anything else.
        """
        value = canonical.decode(data)
        if not isinstance(value, dict) or sorted(value) != ["closing", "countersignatures"]:  # pyright: ignore[reportUnknownArgumentType]
            raise EncodingError("closing record", expected="closing and countersignatures", got="something else")
        parts: dict[str, Any] = value  # pyright: ignore[reportUnknownVariableType]
        record = cls(
            closing=Signed.from_json(parts["closing"]),
            countersignatures=tuple(Signed.from_json(item) for item in _list(parts["countersignatures"])),
        )
        return _spelled_once("closing record", record, record.to_bytes(), data)


class RunDirectory:
    """The records of one run.

    Guarantees: every file is written to a temporary name beside it, synced and renamed, so that under its own name
    it is whole or not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest_file = path / "manifest.json"
        self.approvals_file = path / "approvals.json"
        self.closing_file = path / "closing.json"
        self.events_file = path / "events.jsonl"
        self.metrics_file = path / "metrics.jsonl"
        self.summary_file = path / "summary.json"
        self.report_file = path / "report.html"
        self.logs = path / "logs"

    def __repr__(self) -> str:
        return f"RunDirectory({str(self.path)!r})"

    @classmethod
    def create(cls, path: Path) -> RunDirectory:
        """Make the folders of a run that is about to start.

        Raises:
            EncodingError: there is a run in it already.
        """
        directory = cls(path)
        if directory.manifest_file.exists():
            raise EncodingError(f"run directory {path}", expected="one without a run", got="a manifest in it")
        for name in _FOLDERS:
            (path / name).mkdir(parents=True, exist_ok=True)
        return directory

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """Return the records of a run that was started.

        Raises:
            MissingFileError: no such directory, or no manifest in it.
        """
        directory = cls(path)
        if not directory.manifest_file.is_file():
            raise MissingFileError("run directory", expected=f"a run's records in {path}", got="no manifest.json")
        return directory

    # Where things are.

    def version_file(self, version: int) -> Path:
        """Return where a sealed version stands."""
        return self.path / "versions" / f"{version:04d}.sealed"

    def commit_file(self, purpose: Purpose, round_number: int) -> Path:
        """Return where a round's commit record stands."""
        return self.path / "commits" / f"{purpose}-{round_number:04d}.json"

    def evidence_file(self, digest: str) -> Path:
        """Return where the evidence of this digest stands.

        Raises:
            EncodingError: not a digest.
        """
        if not _DIGEST.fullmatch(digest):
            raise EncodingError("evidence digest", expected="SHA-256 in hexadecimal", got=digest[:64])
        return self.path / "evidence" / f"{digest}.json"

    def ledger_file(self, party: str) -> Path:
        """Return where a party's ledger stands.

        Raises:
            EncodingError: a name that is no plain file name.
        """
        if not _PARTY.fullmatch(party):
            raise EncodingError("party name", expected="letters, digits, '.', '_' and '-'", got=party[:40])
        return self.path / "ledger" / f"{party}.jsonl"

    # Writing.

    def write_manifest(self, manifest: Manifest) -> None:
        """Write the manifest's canonical bytes."""
        write_bytes(self.manifest_file, manifest.encoded)

    def write_approvals(self, approvals: Iterable[Signed]) -> None:
        """Write the owners' signed approvals."""
        write_bytes(self.approvals_file, canonical.encode([signed.to_json() for signed in approvals]))

    def write_version(self, version: int, sealed: bytes | memoryview) -> None:
        """Write a sealed version that is in memory."""
        write_bytes(self.version_file(version), sealed)

    def write_commit(self, purpose: Purpose, round_number: int, record: bytes) -> None:
        """Write a round's commit record as it was received."""
        write_bytes(self.commit_file(purpose, round_number), record)

    def write_evidence(self, envelope: bytes) -> str:
        """Write an evidence envelope as it was received and return its digest."""
        digest = canonical.digest(envelope)
        if not self.evidence_file(digest).exists():
            write_bytes(self.evidence_file(digest), envelope)
        return digest

    def write_ledger(self, party: str, entries: Iterable[Signed]) -> None:
        """Write the whole ledger of a party's broker."""
        _write_lines(self.ledger_file(party), (canonical.encode(entry.to_json()) for entry in entries))

    def write_closing(self, closing: ClosingRecord) -> None:
        """Write how the run ended."""
        write_bytes(self.closing_file, closing.to_bytes())

    def write_metrics(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Write the rounds' lines; ``metrics.collect`` makes them."""
        _write_lines(self.metrics_file, (json.dumps(line, sort_keys=True).encode() for line in lines))

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write what is printed at the end of a run."""
        write_bytes(self.summary_file, json.dumps(summary, indent=2, sort_keys=True).encode() + b"\n")

    # Reading: the form is checked, nothing else.

    def read_manifest(self) -> bytes:
        """Return the manifest's bytes as they are."""
        return _read(self.manifest_file)

    def manifest(self) -> Manifest:
        """Return the manifest.

        Raises:
            EncodingError, ConfigError: not a manifest in its one form.
        """
        return Manifest.decode(self.read_manifest())

    def approvals(self) -> tuple[Signed, ...]:
        """Return the approvals, unverified.

        Raises:
            MissingFileError: none were written.
            EncodingError: not their one form.
        """
        data = _read(self.approvals_file)
        approvals = tuple(Signed.from_json(item) for item in _list(canonical.decode(data)))
        again = canonical.encode([signed.to_json() for signed in approvals])
        return _spelled_once("approvals.json", approvals, again, data)

    def versions(self) -> tuple[int, ...]:
        """Return the numbers of the versions that are there, in order."""
        return _numbers(self.path / "versions", re.compile(r"([0-9]{4,6})\.sealed"))

    def rounds(self, purpose: Purpose) -> tuple[int, ...]:
        """Return the rounds of which there is a commit record of this purpose, in order."""
        return _numbers(self.path / "commits", re.compile(rf"{purpose}-([0-9]{{4,6}})\.json"))

    def commit(self, purpose: Purpose, round_number: int) -> CommitRecord:
        """Return a round's commit record, unverified.

        Raises:
            MissingFileError: none.
            EncodingError: not its one form.
        """
        path = self.commit_file(purpose, round_number)
        data = _read(path, RECORD_LIMIT_BYTES)
        record = CommitRecord.from_bytes(data)
        return _spelled_once(path.name, record, record.to_bytes(), data)

    def evidence(self) -> tuple[str, ...]:
        """Return the digests by which evidence files are named, in order; ``read_evidence`` checks each."""
        return tuple(path.stem for path in _files(self.path / "evidence") if path.suffix == ".json")

    def read_evidence(self, digest: str) -> bytes:
        """Return the envelope of this digest.

        Raises:
            MissingFileError: none.
            EncodingError: its bytes have another digest.
        """
        data = _read(self.evidence_file(digest))
        got = canonical.digest(data)
        if got != digest:
            raise EncodingError(f"evidence {digest[:16]}", expected="bytes of this digest", got=got[:16])
        return data

    def ledger(self, party: str) -> tuple[Signed, ...]:
        """Return a party's ledger, unverified.

        Raises:
            MissingFileError: none.
            EncodingError: a line that is not a signed entry in its one form; a last line without its end.
        """
        return tuple(_lines(self.ledger_file(party)))

    def ledgers(self) -> tuple[str, ...]:
        """Return the names of the parties of whom there is a ledger, in order."""
        return tuple(path.stem for path in _files(self.path / "ledger") if path.suffix == ".jsonl")

    def closing(self) -> ClosingRecord | None:
        """Return how the run ended, unverified; nothing if it has not.

        Raises:
            EncodingError: not its one form.
        """
        try:
            data = _read(self.closing_file)
        except MissingFileError:
            return None
        return ClosingRecord.from_bytes(data)

    def events(self) -> tuple[dict[str, Any], ...]:
        """Return the governor's events, unsigned; what is not a line of JSON is left out."""
        return _loose_lines(self.events_file)

    def metrics(self) -> tuple[dict[str, Any], ...]:
        """Return the rounds' lines, unsigned; what is not a line of JSON is left out."""
        return _loose_lines(self.metrics_file)

    def summary(self) -> dict[str, Any]:
        """Return the summary, unsigned; empty if there is none that can be read."""
        try:
            value = json.loads(self.summary_file.read_bytes())
        except (FileNotFoundError, ValueError, RecursionError):
            return {}
        return value if isinstance(value, dict) else {}  # pyright: ignore[reportUnknownVariableType]


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Write a whole file: temporary name, fsync, rename."""
    with _replacing(path) as target:
        target.write(data)


def _write_lines(path: Path, lines: Iterable[bytes]) -> None:
    with _replacing(path) as target:
        for line in lines:
            target.write(line + b"\n")


def _replacing(path: Path) -> AbstractContextManager[BinaryIO]:
    path.parent.mkdir(parents=True, exist_ok=True)
    return replacing(path, mode=PUBLIC)


def _read(path: Path, limit_bytes: int = canonical.LIMIT_BYTES) -> bytes:
    try:
        with path.open("rb") as source:
            data = source.read(limit_bytes + 1)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise MissingFileError(f"{path.parent.name}/{path.name}", expected="a file", got="none") from error
    if len(data) > limit_bytes:
        raise SizeError(f"{path.name} size in bytes", expected=f"at most {limit_bytes}", got="more")
    return data


def _lines(path: Path) -> Iterator[Signed]:
    try:
        source = path.open("rb")
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise MissingFileError(f"ledger/{path.name}", expected="a file", got="none") from error
    with source:
        if os.fstat(source.fileno()).st_size > _LEDGER_LIMIT_BYTES:
            raise SizeError(f"ledger/{path.name} size in bytes", expected=f"at most {_LEDGER_LIMIT_BYTES}", got="more")
        number = 0
        while line := source.readline(_LINE_LIMIT_BYTES + 1):
            number += 1
            where = f"ledger/{path.name} line {number}"
            if not line.endswith(b"\n"):
                raise EncodingError(where, expected="a whole line", got="one that is cut off or too long")
            signed = Signed.from_json(canonical.decode(line[:-1]))
            yield _spelled_once(where, signed, canonical.encode(signed.to_json()) + b"\n", line)


def _loose_lines(path: Path) -> tuple[dict[str, Any], ...]:
    found: list[dict[str, Any]] = []
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return ()
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(line)
            if isinstance(value, dict):
                found.append(value)
    return tuple(found)


def _files(folder: Path) -> Sequence[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return ()


def _numbers(folder: Path, pattern: re.Pattern[str]) -> tuple[int, ...]:
    """Return the numbers that file names hold; a second spelling of one (0001, 00001) is a file of its own."""
    names = (pattern.fullmatch(path.name) for path in _files(folder))
    return tuple(sorted(int(name[1]) for name in names if name and f"{int(name[1]):04d}" == name[1]))


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise EncodingError("signed statements", expected="a list", got=type(value).__name__)
    return value  # pyright: ignore[reportUnknownVariableType]


def _spelled_once(what: str, value: T, again: bytes, data: bytes) -> T:
    """Refuse bytes that parse to the same statements but are not their one form (base64 has spare bits)."""
    if again != data:
        raise EncodingError(what, expected="the canonical form", got="another spelling")
    return value
