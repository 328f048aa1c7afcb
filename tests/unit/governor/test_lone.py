"""The governor beside one training TEE: a round is over when its commit record is published, and not by anybody's word."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from confed.errors import ConfedError, EnclaveLostError, NormError, RefusedError, RoundError
from confed.governor import lone
from confed.governor.lone import LoneTee
from confed.keybroker.topics import closing_topic, commit_topic

MANIFEST: Any = SimpleNamespace(run="run-1", sites=(SimpleNamespace(owner=SimpleNamespace(name="site-01")),))


class Letters:
    def __init__(self) -> None:
        self.posted: dict[str, list[bytes]] = {}

    def collect(self, topic: str) -> list[bytes]:
        return self.posted.get(topic, [])


@pytest.fixture
def letters() -> Letters:
    return Letters()


def tee(letters: Letters, code: str = "", asked: list[Any] | None = None) -> LoneTee:
    def ask(words: Any) -> str:
        if asked is not None:
            asked.append(dict(words))
        return code

    return LoneTee(MANIFEST, letters, ask=ask)


def test_a_round_is_of_the_manifests_one_site_on_the_version_before(letters: Letters) -> None:
    opened = tee(letters).open_round(round_number=3, attempt=0, purpose="train")
    assert (opened.cohort, opened.version) == (("site-01",), 2)
    assert tee(letters).open_round(round_number=3, attempt=0, purpose="evaluate").version == 3
    assert tee(letters).attest(first_round=1, attempt=0) == ""


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("client-died", EnclaveLostError),
        ("no-answer", EnclaveLostError),
        ("instance", EnclaveLostError),
        ("norm", NormError),
        ("no-code", RefusedError),
    ],
)
def test_without_a_record_the_round_failed_as_the_tee_says(
    letters: Letters, code: str, error: type[ConfedError]
) -> None:
    one = tee(letters)
    one.open_round(round_number=1, attempt=0, purpose="train")
    with pytest.raises(error) as refused:
        one.close_round(absent={"site-01": code})
    assert isinstance(refused.value, EnclaveLostError) == (error is EnclaveLostError)


def test_an_answer_alone_is_no_version(letters: Letters) -> None:
    one = tee(letters)
    with pytest.raises(RoundError):
        one.close_round(absent={})
    one.open_round(round_number=1, attempt=0, purpose="train")
    one.submit(site="site-01", digest="d1" * 32)
    letters.posted[commit_topic("run-1", "train", 1)] = [b"{}", b"no record"]  # pyright: ignore[reportArgumentType]
    with pytest.raises(RoundError):
        one.close_round(absent={})
    with pytest.raises(RoundError):
        one.submit_bundle(digest="d1" * 32)


def test_a_published_record_is_the_round_whatever_the_tee_answered(
    letters: Letters, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: Any = SimpleNamespace(version=1)
    monkeypatch.setattr(lone, "published", lambda *_, **told: made if told["round_number"] == 1 else None)
    asked: list[Any] = []
    one = tee(letters, asked=asked)
    one.open_round(round_number=1, attempt=0, purpose="train")
    assert one.close_round(absent={"site-01": "client-died"}) is made
    letters.posted[closing_topic("run-1")] = [b"documents"]
    assert one.close_run() == b"documents"
    assert asked == [{"ask": "close", "version": 1}]


@pytest.mark.parametrize(("code", "error"), [("quorum", ConfedError), ("", RoundError)])
def test_a_run_without_a_closing_is_not_closed(letters: Letters, code: str, error: type[ConfedError]) -> None:
    with pytest.raises(error) as refused:
        tee(letters, code).close_run()
    assert refused.value.code == (code or "round")
