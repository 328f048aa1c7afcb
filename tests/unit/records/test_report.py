"""The report: one file that stands alone, and nothing in it that somebody else could have made into HTML."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser

import pytest
from records_world import RecordedRun

from confed.records.report import write_report
from confed.records.run_directory import RunDirectory

_VOID = {"meta", "br", "use", "path", "rect"}


class _Page(HTMLParser):
    """Collects tags, links and text, and that every tag is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []
        self.words = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "xlink:href")]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in _VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def _read(directory: RunDirectory) -> tuple[str, _Page]:
    text = write_report(directory).read_text()
    page = _Page()
    page.feed(text)
    assert page.open == []
    return text, page


@pytest.fixture(scope="module")
def honest(run: RecordedRun, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDirectory, str, _Page]:
    directory = run.write(tmp_path_factory.mktemp("report") / "run")
    return directory, *_read(directory)


def test_a_report_stands_alone(honest: tuple[RunDirectory, str, _Page]) -> None:
    _, text, page = honest
    assert text.count("<svg") == 3
    assert "script" not in page.tags
    assert all(link.startswith("#") for link in page.links)
    assert not re.search(r"https?://(?!www\.w3\.org/)", text)
    assert len(set(page.ids)) == len(page.ids)
    for link in page.links:
        assert link[1:] in page.ids


def test_a_report_says_what_was_seen(honest: tuple[RunDirectory, str, _Page], run: RecordedRun) -> None:
    directory, _, page = honest
    for said in (
        "SIMULATION", "0.7000", "no-answer", "west", "landlock-4", "simulated, shared by several sites",
        "at least 2 distinct sites", f"confed verify {directory.path}", run.base(2)[:16], "2 (attempt 2)",
        run.manifest.digest[:16], "c1" * 8, "client of north, south, west", "4 brokers",
    ):  # fmt: skip
        assert said in page.words
    assert "INCOMPLETE" not in page.words
    assert "do not verify" not in page.words


def test_a_report_is_the_same_twice(honest: tuple[RunDirectory, str, _Page]) -> None:
    directory, text, _ = honest
    assert write_report(directory).read_text() == text


def test_text_from_records_stays_text(directory: RunDirectory, run: RecordedRun) -> None:
    evil = "<script>alert(1)</script>&\"'"
    directory.write_manifest(dataclasses.replace(run.manifest, name=evil))
    lines = list(directory.metrics())
    lines[0]["excluded"] = {evil: evil}
    lines[0]["seconds"] = {evil: 1.0}
    directory.write_metrics(lines)
    directory.write_summary({"engine": evil, "total_s": evil, "confidentiality_share": evil})
    text, page = _read(directory)
    assert "<script" not in text
    assert "script" not in page.tags
    assert evil in page.words


@pytest.mark.parametrize("removed", ["closing.json", "metrics.jsonl", "ledger/west.jsonl"])
def test_a_report_is_made_of_what_is_there(removed: str, directory: RunDirectory) -> None:
    (directory.path / removed).unlink()
    _, page = _read(directory)
    assert ("INCOMPLETE" in page.words) == (removed == "closing.json")


def test_a_run_that_failed_at_once_has_a_report(directory: RunDirectory) -> None:
    for folder in ("commits", "evidence", "ledger"):
        for path in (directory.path / folder).iterdir():
            path.unlink()
    for path in (directory.closing_file, directory.metrics_file, directory.events_file):
        path.unlink()
    directory.write_summary({"failed": "cohort"})
    text, page = _read(directory)
    assert "<svg" not in text
    assert "failed with cohort" in page.words


def test_evidence_that_does_not_verify_is_counted(directory: RunDirectory) -> None:
    next((directory.path / "evidence").iterdir()).write_bytes(b"{}")
    _, page = _read(directory)
    assert "1 evidence files do not verify" in page.words
