"""Stores of several owners that wait for the disk once: nothing is told before, and nothing is believed that failed."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from confed.files import can_sync_file_systems, sync_file_system
from confed.keybroker import store as module
from confed.keybroker.server import BrokerService
from confed.keybroker.store import Store, written_together

MANY = 12


@pytest.fixture
def stores(tmp_path: Path) -> Generator[list[Store]]:
    found: list[Store] = []
    for number in range(MANY):
        (tmp_path / str(number)).mkdir()
        found.append(Store.create(tmp_path / str(number) / "store.db"))
    yield found
    for store in found:
        store.close()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What waited for the disk, in order: ``all``, or one store's folder."""
    found: list[str] = []
    monkeypatch.setattr(module, "sync_file_system", lambda _: found.append("all"))
    monkeypatch.setattr(module, "can_sync_file_systems", lambda: True)
    own = Store.sync

    def sync(store: Store) -> None:
        found.append(store.folder.name)
        own(store)

    monkeypatch.setattr(Store, "sync", sync)
    return found


def write(store: Store, name: str = "a", *, durable: bool = True) -> None:
    with store.transaction(durable=durable) as tx:
        tx.execute("INSERT INTO endorsed VALUES (?, ?)", ("m", name))


def rows(store: Store) -> list[tuple[Any, ...]]:
    return store.rows("SELECT digest FROM endorsed ORDER BY digest")


def level(store: Store) -> int:
    return store.rows("PRAGMA synchronous")[0][0]


NORMAL, FULL = 1, 2


def test_many_stores_wait_once(stores: list[Store], waits: list[str]) -> None:
    with written_together():
        for store in stores:
            write(store)
            assert level(store) == NORMAL
        assert waits == []
    assert waits == ["all"]
    write(stores[0], "b")
    assert level(stores[0]) == FULL
    assert (rows(stores[0]), waits) == ([("a",), ("b",)], ["all"])


def test_everything_is_committed_before_the_wait(
    stores: list[Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "can_sync_file_systems", lambda: True)
    copy = tmp_path.with_name(f"{tmp_path.name}-copy")
    monkeypatch.setattr(module, "sync_file_system", lambda _: shutil.copytree(tmp_path, copy))
    with written_together():
        for store in stores:
            write(store)
    for number in range(MANY):
        assert rows(Store(copy / str(number) / "store.db")) == [("a",)]


@pytest.mark.parametrize("look", ["rows", "a transaction that writes nothing", "one that need not be durable"])
def test_who_reads_meanwhile_waits_for_the_disk_itself(look: str, stores: list[Store], waits: list[str]) -> None:
    def other() -> None:
        if look == "rows":
            rows(stores[0])
            return
        with stores[0].transaction(durable=look == "a transaction that writes nothing") as tx:
            tx.rows("SELECT digest FROM endorsed")

    with written_together():
        write(stores[0])
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert waits == ["0"]
    rows(stores[0])
    assert waits == ["0", "all"]


def test_what_another_thread_wrote_is_waited_for_by_who_reads_it_in_a_block(
    stores: list[Store], waits: list[str]
) -> None:
    stores[0]._committed = 1  # as if another thread's block had not ended yet
    with written_together():
        rows(stores[0])
    assert waits == ["all"]


@pytest.mark.usefixtures("waits")
def test_a_disk_that_fails_ends_the_block_and_is_not_believed(
    stores: list[Store], waits: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(module, "sync_file_system", fail)
    with pytest.raises(OSError, match="Input/output"), written_together():
        write(stores[0])
    rows(stores[0])
    assert waits == ["0"]


def test_a_block_that_raises_is_on_disk_too(stores: list[Store], waits: list[str]) -> None:
    def refused() -> None:
        write(stores[0])
        raise ValueError("refused")

    with pytest.raises(ValueError, match="refused"), written_together():
        refused()
    assert waits == ["all"]


def test_what_need_not_be_durable_waits_for_nothing(stores: list[Store], waits: list[str]) -> None:
    with written_together():
        write(stores[0], durable=False)
    assert waits == []


def test_without_the_system_s_help_each_waits_for_itself(
    stores: list[Store], waits: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "can_sync_file_systems", lambda: False)
    with written_together():
        write(stores[0])
        assert level(stores[0]) == FULL
    assert waits == []


def test_a_call_is_answered_after_the_wait(
    stores: list[Store], waits: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    service: Any = BrokerService({})

    def decide(store: Store) -> str:
        write(store, "c")
        return "".join(waits)

    assert service._each(stores, decide, str) == [""] * MANY
    assert waits == ["all"]
    assert service._each(stores[:3], lambda store: write(store, "d") or "few", str) == ["few"] * 3
    assert waits == ["all"]

    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(module, "sync_file_system", fail)
    with pytest.raises(OSError, match="Input/output"):
        service._each(stores, lambda store: write(store, "e") or "told", str)


def test_a_store_syncs_by_itself(stores: list[Store]) -> None:
    write(stores[0])
    stores[0].sync()
    assert rows(stores[0]) == [("a",)]


@pytest.mark.skipif(not can_sync_file_systems(), reason="no syncfs on this system")
def test_a_file_system_is_put_on_disk(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        file.write(b"data")
        file.flush()
        sync_file_system(file.fileno())
    with pytest.raises(OSError, match="descriptor"):
        sync_file_system(-1)
