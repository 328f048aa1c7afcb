"""A file that lies with the courier becomes an object, neither copied nor read: as it lies there, and once."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from confed.errors import ConfedError, EncodingError, MissingObjectError, SizeError, TamperedError
from confed.governor import incoming
from confed.governor.courier import Courier, Limits, serve_courier
from confed.wire.addresses import handed_folder
from confed.wire.courier_client import CourierClient

MIB = 1024 * 1024
DATA = os.urandom(3 * 1024 * 1024 + 5)
DIGEST = hashlib.sha256(DATA).hexdigest()
LIMITS = Limits(object_bytes=len(DATA), store_bytes=2 * len(DATA))


@pytest.fixture
def courier(tmp_path: Path) -> Courier:
    return Courier(tmp_path / "courier", limits=LIMITS)


@pytest.fixture
def handed(tmp_path: Path, courier: Courier) -> Path:
    return handed_folder(tmp_path / "courier")


def test_it_is_the_same_file_afterwards_and_counts_once(courier: Courier, handed: Path, tmp_path: Path) -> None:
    (handed / DIGEST).write_bytes(DATA)
    inode = (handed / DIGEST).stat().st_ino
    with (
        serve_courier(courier, listen=f"unix:{tmp_path}/socket", tls=None) as server,
        CourierClient(server.endpoint) as client,
    ):
        client.hand_over(DIGEST)
        client.hand_over(DIGEST)  # its answer may have been lost
        assert client.get(DIGEST) == DATA
    assert courier.path(DIGEST).stat().st_ino == inode
    assert courier.used_bytes == len(DATA)
    assert list(handed.iterdir()) == list((tmp_path / "courier" / "partial").iterdir()) == []


def test_what_is_there_already_stays_and_the_file_goes(courier: Courier, handed: Path) -> None:
    courier.put(DATA)
    inode = courier.path(DIGEST).stat().st_ino
    (handed / DIGEST).write_bytes(DATA)
    assert courier.take(DIGEST) == len(DATA)
    assert courier.path(DIGEST).stat().st_ino == inode
    assert list(handed.iterdir()) == []
    assert courier.used_bytes == len(DATA)


def to_a_link(handed: Path) -> None:
    (handed.parent.parent / "elsewhere").write_bytes(DATA)
    (handed / DIGEST).symlink_to(handed.parent.parent / "elsewhere")


@pytest.mark.parametrize(
    ("sentence", "put", "digest", "error"),
    [
        ("nothing of this name", lambda _: None, DIGEST, MissingObjectError),
        ("a folder", lambda handed: (handed / DIGEST).mkdir(), DIGEST, MissingObjectError),
        ("a link to somebody else's file", to_a_link, DIGEST, MissingObjectError),
        ("more than an object", lambda handed: (handed / DIGEST).write_bytes(DATA + b"1"), DIGEST, SizeError),
        ("a name that leads elsewhere", lambda _: None, "../objects", EncodingError),
    ],
    ids=lambda value: value if isinstance(value, str) and " " in value else "",
)
def test_nothing_else_becomes_an_object(
    sentence: str, put: object, digest: str, error: type[ConfedError], courier: Courier, handed: Path
) -> None:
    del sentence
    put(handed)  # pyright: ignore[reportCallIssue]
    with pytest.raises(error):
        courier.take(digest)
    assert courier.used_bytes == 0
    assert list((handed.parent / "partial").iterdir()) == []
    assert not courier.progress(DIGEST).complete


def test_other_bytes_than_those_of_the_name_are_refused_by_whoever_reads_them(
    courier: Courier, handed: Path, tmp_path: Path
) -> None:
    (handed / DIGEST).write_bytes(DATA[:-1] + bytes([DATA[-1] ^ 1]))
    with (
        serve_courier(courier, listen=f"unix:{tmp_path}/socket", tls=None) as server,
        CourierClient(server.endpoint) as client,
    ):
        client.hand_over(DIGEST)
        with pytest.raises(TamperedError):
            client.get(DIGEST)
        with pytest.raises(TamperedError):
            client.get_to_file(DIGEST, tmp_path / "base")
        with pytest.raises(TamperedError):
            list(client.stream(DIGEST))
    assert not (tmp_path / "base").exists()


def test_calls_for_one_file_at_a_time_take_it_and_count_it_once(courier: Courier, handed: Path) -> None:
    (handed / DIGEST).write_bytes(DATA)
    with ThreadPoolExecutor(max_workers=8) as pool:
        assert set(pool.map(courier.take, [DIGEST] * 8)) == {len(DATA)}
    assert courier.used_bytes == len(DATA)


def test_a_courier_that_died_on_the_way_takes_it_when_it_is_asked_again(
    courier: Courier, handed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    (handed / DIGEST).write_bytes(DATA)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", killed)
        with pytest.raises(Killed):
            courier.take(DIGEST)
    assert courier.used_bytes == 0
    assert not courier.progress(DIGEST).complete
    again = Courier(tmp_path / "courier", limits=LIMITS)
    assert again.take(DIGEST) == len(DATA)
    assert again.path(DIGEST).read_bytes() == DATA
    assert again.used_bytes == len(DATA)
    assert list(handed.iterdir()) == []


@pytest.mark.parametrize("durable", [True, False])
def test_what_arrives_is_brought_to_the_disk_meanwhile_where_it_is_waited_for(
    durable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[tuple[int, int]] = []

    def noting(file: object, *, offset: int, size_bytes: int) -> None:
        del file
        begun.append((offset, size_bytes))

    monkeypatch.setattr(incoming, "begin_writing", noting)
    courier = Courier(tmp_path / "another", durable=durable)
    courier.put(bytes(20 * MIB))
    assert begun == ([(0, 8 * MIB), (8 * MIB, 8 * MIB)] if durable else [])


@pytest.mark.parametrize("durable", [True, False])
def test_a_file_that_is_taken_is_on_the_disk_before_it_is_visible(
    durable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    courier, synced = Courier(tmp_path / "another", durable=durable), list[bool]()

    def noting(_: int) -> None:
        synced.append(courier.progress(DIGEST).complete)

    (handed_folder(tmp_path / "another") / DIGEST).write_bytes(DATA)
    monkeypatch.setattr(os, "fsync", noting)
    courier.take(DIGEST)
    assert synced == ([False, True, True] if durable else [])
