"""The inbox keeps few small updates in memory and all others on disk, and every one still opens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from aggregator_world import MemoryCourier
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from aggregator.inbox import SMALL_BYTES, Inbox, _sealed_limit
from confed.errors import SizeError, TamperedError
from confed.journey import Kind
from confed.sealing.container import CHUNK_BYTES, Draft, seal_to_bytes

if TYPE_CHECKING:
    from pathlib import Path

KEY = bytes(range(32))
SIZE = 100_000


def sealed(number: int, size: int = SIZE) -> bytes:
    plaintext = bytes([number]) * size
    draft = Draft(kind=Kind.UPDATE, container_id=f"update-{number}")
    return bytes(
        seal_to_bytes([memoryview(plaintext)], draft, data_key=KEY, signing_key=Ed25519PrivateKey.generate())[0]
    )


def kept(inbox: Inbox, courier: MemoryCourier, number: int, size: int = SIZE) -> None:
    parcel = inbox.fetch(courier.put(sealed(number, size)), plaintext_bytes=size)
    inbox.keep(f"site-{number}", parcel)


def test_small_updates_lie_on_disk_once_memory_is_full_and_open_like_the_others(tmp_path: Path) -> None:
    courier = MemoryCourier()
    inbox = Inbox(courier, folder=tmp_path, memory_bytes=2 * SIZE + _sealed_limit(SIZE, CHUNK_BYTES))
    for number in range(5):
        kept(inbox, courier, number)
    assert len(list(tmp_path.iterdir())) == 3
    for number in range(5):
        assert inbox.container(f"site-{number}").unlock(KEY).read_all() == bytes([number]) * SIZE
    inbox.clear()
    assert not list(tmp_path.iterdir())
    kept(inbox, courier, 7)
    assert not list(tmp_path.iterdir())  # what was in memory is free again


def test_what_is_changed_on_disk_is_refused_when_it_is_read(tmp_path: Path) -> None:
    courier = MemoryCourier()
    inbox = Inbox(courier, folder=tmp_path, memory_bytes=0)
    kept(inbox, courier, 1)
    (path,) = tmp_path.iterdir()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(TamperedError):
        inbox.container("site-1").unlock(KEY).read_all()


@pytest.mark.parametrize("memory_bytes", [0, 10**9])
def test_more_than_an_update_can_be_is_refused_and_leaves_nothing(memory_bytes: int, tmp_path: Path) -> None:
    courier = MemoryCourier()
    inbox = Inbox(courier, folder=tmp_path, memory_bytes=memory_bytes)
    for size in (2 * SMALL_BYTES, 4 * SMALL_BYTES):
        digest = courier.put(sealed(1, 5 * SMALL_BYTES))
        with pytest.raises(SizeError):
            inbox.fetch(digest, plaintext_bytes=size)
    with pytest.raises(SizeError):
        inbox.fetch(digest, plaintext_bytes=SIZE)
    assert not list(tmp_path.iterdir())


def test_a_large_update_is_never_in_memory(tmp_path: Path) -> None:
    courier = MemoryCourier()
    inbox = Inbox(courier, folder=tmp_path)
    kept(inbox, courier, 3, size=SMALL_BYTES)
    assert len(list(tmp_path.iterdir())) == 1
    assert inbox.container("site-3").unlock(KEY).read_all() == bytes([3]) * SMALL_BYTES
