"""A file that lies with the courier becomes an object without a copy: whole, of its digest, once."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from confed.errors import ConfedError, EncodingError, MissingObjectError, SizeError, TamperedError
from confed.governor import incoming, object_store
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
        ("other bytes", lambda handed: (handed / DIGEST).write_bytes(DATA[1:]), DIGEST, TamperedError),
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
    if error is TamperedError:
        assert list(handed.iterdir()) == []


def test_a_courier_that_died_on_the_way_takes_it_when_it_is_asked_again(
    courier: Courier, handed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    (handed / DIGEST).write_bytes(DATA)
    with monkeypatch.context() as patch:
        patch.setattr(courier.objects, "_publish", killed)
        patch.setattr(courier.objects, "_settle", lambda upload: upload.file.close())  # a process that is gone does not
        with pytest.raises(Killed):
            courier.take(DIGEST)
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
    monkeypatch.setattr(object_store, "begin_writing", noting)
    courier = Courier(tmp_path / "another", durable=durable)
    courier.put(bytes(20 * MIB))
    assert begun == ([(0, 8 * MIB), (8 * MIB, 8 * MIB)] if durable else [])
    begun.clear()
    (handed_folder(tmp_path / "another") / DIGEST).write_bytes(DATA)
    courier.take(DIGEST)
    assert begun == ([(0, len(DATA))] if durable else [])
