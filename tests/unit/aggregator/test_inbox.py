"""The enclave reads a large update where the courier keeps it, and believes no more of it than of a fetched one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from aggregator.inbox import SMALL_BYTES, Inbox
from confed.errors import SizeError, TamperedError, TruncatedError
from confed.governor.courier import Courier
from confed.journey import Kind
from confed.sealing.container import Draft, seal_to_bytes

LARGE = 2 * SMALL_BYTES
KEY = bytes(32)


class NoFetching:
    """A courier that nobody may ask for anything."""

    def get(self, digest: str, *, limit_bytes: int | None = None) -> bytes:
        raise AssertionError(digest)

    def get_to_file(self, digest: str, path: Path) -> None:
        raise AssertionError(digest)

    def read_unverified(self, digest: str, *, offset: int, size_bytes: int) -> bytes:
        raise AssertionError(digest)

    def put(self, data: object, *, digest: str | None = None) -> str:
        raise AssertionError(digest)


@pytest.fixture
def stored(tmp_path: Path) -> tuple[Inbox, str, bytes, Path]:
    """Return an inbox beside a courier, a large update in it, the update's plaintext and where it lies."""
    plaintext = os.urandom(LARGE)
    draft = Draft(kind=Kind.UPDATE, container_id="an update")
    sealed, _ = seal_to_bytes([plaintext], draft, data_key=KEY, signing_key=Ed25519PrivateKey.generate())
    courier = Courier(tmp_path / "courier")
    digest = courier.put(sealed)
    folder = tmp_path / "enclave"
    folder.mkdir()
    return Inbox(NoFetching(), folder=folder, beside=tmp_path / "courier"), digest, plaintext, courier.path(digest)


def test_a_large_update_is_read_from_the_courier_and_left_there(stored) -> None:
    inbox, digest, plaintext, path = stored
    parcel = inbox.fetch(digest, plaintext_bytes=LARGE)
    inbox.keep("site-01", parcel)
    assert bytes(inbox.container("site-01").unlock(KEY).read_all()) == plaintext
    inbox.discard(parcel)
    inbox.clear()
    assert path.is_file()


def test_one_that_is_larger_than_the_model_is_refused(stored) -> None:
    inbox, digest, _, _ = stored
    with pytest.raises(SizeError):
        inbox.fetch(digest, plaintext_bytes=SMALL_BYTES)


def test_what_the_host_changes_or_deletes_afterwards_is_not_believed(stored) -> None:
    inbox, digest, _, path = stored
    opened = inbox.fetch(digest, plaintext_bytes=LARGE).container.unlock(KEY)
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    with pytest.raises(TamperedError):
        opened.read_all()
    path.unlink()
    with pytest.raises(TruncatedError):
        opened.read_all()


def test_one_that_the_courier_does_not_keep_there_is_fetched(stored) -> None:
    inbox, _, _, _ = stored
    with pytest.raises(AssertionError):
        inbox.fetch("0" * 64, plaintext_bytes=LARGE)
