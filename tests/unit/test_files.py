"""Files that appear whole or not at all."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from confed.files import PUBLIC, begin_writing, forget_pages, replacing, sync_folder, write_whole


def test_a_file_is_replaced_whole_and_private(tmp_path: Path) -> None:
    path = tmp_path / "it"
    path.write_bytes(b"old and longer")
    path.chmod(PUBLIC)
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_for_everybody_is_readable_for_everybody(tmp_path: Path) -> None:
    write_whole(tmp_path / "it", b"new", mode=PUBLIC, durable=False)
    assert stat.S_IMODE((tmp_path / "it").stat().st_mode) == 0o644


def test_readers_see_the_old_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "it"
    path.write_bytes(b"old")
    with replacing(path) as file:
        file.write(b"n")
        file.flush()
        (draft,) = set(tmp_path.iterdir()) - {path}
        assert path.read_bytes() == b"old"
        assert stat.S_IMODE(draft.stat().st_mode) == 0o600
        file.write(b"ew")
    assert path.read_bytes() == b"new"


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "it"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        _break_off(path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def _break_off(path: Path) -> None:
    with replacing(path) as file:
        file.write(b"half of the ne")
        raise KeyboardInterrupt


def test_what_cannot_be_replaced_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "it").mkdir()
    with pytest.raises(OSError, match="it"):
        write_whole(tmp_path / "it", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["it"]


def test_only_a_folder_is_synced(tmp_path: Path) -> None:
    sync_folder(tmp_path)
    (tmp_path / "it").write_bytes(b"")
    with pytest.raises(NotADirectoryError):
        sync_folder(tmp_path / "it")


def test_neither_early_writing_nor_forgetting_changes_a_file(tmp_path: Path) -> None:
    path, data = tmp_path / "it", bytes(range(256)) * 4096
    with path.open("wb", buffering=0) as file:
        file.write(data)
        begin_writing(file, offset=0, size_bytes=len(data))
        forget_pages(file.fileno(), offset=0, size_bytes=len(data))
    assert path.read_bytes() == data
