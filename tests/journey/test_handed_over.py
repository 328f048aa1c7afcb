"""Where enclave and courier share a machine, a version is handed over on disk: as whole, as late and as safe as sent."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from io import FileIO
from pathlib import Path

import numpy as np
import pytest
from road import SITES, Aggregator, Road

from aggregator import release
from confed.errors import UnreachableError
from confed.governor.courier import Courier
from confed.sealing.header import MAGIC
from confed.wire.addresses import handed_folder


@pytest.fixture
def handed(road: Road) -> Path:
    return handed_folder(road.folder / "courier")


@pytest.fixture
def aggregator(road: Road, handed: Path, monkeypatch: pytest.MonkeyPatch) -> Aggregator:
    """An enclave beside the courier, to which every version is a large one."""
    monkeypatch.setattr(release, "SMALL_BYTES", 0)
    aggregator = road.aggregator()
    run = aggregator.run
    run._releaser = release.Releaser(aggregator.enclave, run._courier, folder=run._folder, beside=handed.parent)
    return aggregator


def refuse(*_: object, **__: object) -> None:
    raise AssertionError


def test_versions_are_handed_over_whole_and_none_before_it_is_countersigned(
    road: Road, aggregator: Aggregator, handed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []

    def looking(countersign: Callable[..., object]) -> Callable[..., object]:
        def countersigned(*arguments: object, **named: object) -> object:
            (file,) = handed.iterdir()
            seen.append(file.read_bytes().startswith(MAGIC) or file.name.isalnum())
            return countersign(*arguments, **named)

        return countersigned

    for name in SITES:
        monkeypatch.setattr(road.doors[name], "countersign", looking(road.doors[name].countersign), raising=False)
    for number in (1, 2):
        base = road.open_version(number - 1) if number > 1 else road.land.model
        aggregator.open(number)
        road.send(aggregator, SITES, number)
        with monkeypatch.context() as patch:
            patch.setattr(Courier, "put", refuse)
            patch.setattr(aggregator.run._courier, "put", refuse)
            aggregator.close_round()
        for name, array in road.open_version(number).items():
            if array.dtype.kind == "f":
                np.testing.assert_allclose(array, road.mean(SITES, base)[name], rtol=1e-5, atol=1e-6)
        assert list(handed.iterdir()) == []
    assert seen == [False] * 2 * len(SITES)


def test_a_version_gets_the_memory_of_its_base_and_is_on_its_way_to_the_disk_while_it_is_sealed(
    road: Road, aggregator: Aggregator, monkeypatch: pytest.MonkeyPatch
) -> None:
    forgotten: list[tuple[int, int, int]] = []
    begun: list[tuple[int, int]] = []

    def forget(descriptor: int, *, offset: int, size_bytes: int) -> None:
        forgotten.append((os.fstat(descriptor).st_ino, offset, size_bytes))

    def begin(file: FileIO, *, offset: int, size_bytes: int) -> None:
        assert os.fstat(file.fileno()).st_size >= offset + size_bytes
        begun.append((offset, size_bytes))

    monkeypatch.setattr(release, "forget_pages", forget)
    monkeypatch.setattr(release, "begin_writing", begin)
    monkeypatch.setattr(release, "_AHEAD_BYTES", 1)
    bases = [road.land.manifest.model.start.digest]
    for number in (1, 2):
        forgotten.clear()
        begun.clear()
        aggregator.open(number)
        road.send(aggregator, SITES, number)
        aggregator.close_round()
        base, made = road.courier.path(bases[-1]), road.courier.path(road.candidate(number).digest)
        bases.append(road.candidate(number).digest)
        (told,) = forgotten
        assert told[0] == base.stat().st_ino
        assert begun == [told[1:]]
        assert sum(begun[0]) == made.stat().st_size
        assert hashlib.sha256(base.read_bytes()).hexdigest() == bases[-2]


def test_a_commit_that_is_tried_again_finds_the_version_handed_over(
    road: Road, aggregator: Aggregator, handed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aggregator.open(1)
    road.send(aggregator, SITES)
    committer = aggregator.enclave.committer
    down = UnreachableError("key broker", expected="an answer", got="UNAVAILABLE")
    with monkeypatch.context() as patch:

        def away(*_: object, **__: object) -> None:
            raise down

        patch.setattr(committer, "committed", away)
        with pytest.raises(UnreachableError):
            aggregator.run.close_round(absent={})
    assert list(handed.iterdir()) == []
    assert road.published(1) == []
    aggregator.close_round()
    assert road.courier.path(road.candidate(1).digest).is_file()


def test_a_file_of_an_attempt_that_came_to_nothing_is_written_over(
    road: Road, aggregator: Aggregator, handed: Path
) -> None:
    aggregator.open(1)
    road.send(aggregator, SITES)
    left = handed / f"{aggregator.instance[:16]}.model.sealed"
    left.write_bytes(b"x" * 10_000_000)
    aggregator.close_round()
    assert road.courier.path(road.candidate(1).digest).stat().st_size < 10_000
    assert list(handed.iterdir()) == []


def test_an_enclave_elsewhere_sends(road: Road, handed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release, "SMALL_BYTES", 0)
    aggregator = road.aggregator()
    aggregator.open(1)
    road.send(aggregator, SITES)
    monkeypatch.setattr(aggregator.run._courier, "hand_over", refuse)
    aggregator.close_round()
    assert road.courier.path(road.candidate(1).digest).is_file()
    assert list(handed.iterdir()) == []
