"""Secrets at rest: sealed under the owner's key, each in its own place, shown nowhere (guarantee 10)."""

from __future__ import annotations

import pickle
import tempfile
from pathlib import Path
from typing import Any

import pytest
from broker_world import MODEL_OWNER, Enclave, World, floors
from hypothesis import given, settings
from hypothesis import strategies as st

from confed.errors import ConfigError, TamperedError, UnknownKeyError
from confed.journey import Role
from confed.keybroker.store import Store
from confed.keybroker.vault import KeyFloors, Vault
from confed.manifest import Unchecked


@given(secret=st.binary(max_size=200), kind=st.sampled_from(["key", "reply"]), name=st.text(max_size=20))
def test_what_was_sealed_opens_in_its_own_place_only(secret: bytes, kind: str, name: str) -> None:
    vault = Vault(b"k" * 32)
    sealed = vault.seal(secret, kind=kind, name=name)
    assert vault.open(sealed, kind=kind, name=name) == secret
    for other_kind, other_name in ((kind + "x", name), (kind, name + "x")):
        with pytest.raises(TamperedError):
            vault.open(sealed, kind=other_kind, name=other_name)
    with pytest.raises(TamperedError):
        Vault(b"l" * 32).open(sealed, kind=kind, name=name)


@given(at=st.integers(min_value=0, max_value=59))
def test_a_flipped_bit_is_refused(at: int) -> None:
    sealed = bytearray(Vault(b"k" * 32).seal(b"s" * 32, kind="key", name="a"))
    sealed[at] ^= 1
    with pytest.raises(TamperedError):
        Vault(b"k" * 32).open(bytes(sealed), kind="key", name="a")


@pytest.mark.parametrize("sealed", [b"", b"short", b"n" * 12])
def test_a_cut_record_is_refused(sealed: bytes) -> None:
    with pytest.raises(TamperedError):
        Vault(b"k" * 32).open(sealed, kind="key", name="a")


def test_a_vault_shows_and_pickles_nothing() -> None:
    vault = Vault(b"secret-key-encryption-key-32-byt")
    assert "secret" not in repr(vault)
    with pytest.raises(TypeError):
        pickle.dumps(vault)


def test_swapped_rows_of_two_keys_are_refused(world: World) -> None:
    home = world.homes["north"]
    other, _ = home.new_key(floors=floors(least_cohort=1))
    first = world.keys["north"][0]
    with home.store.transaction() as tx:
        row = tx.one("SELECT sealed_key, sealed_floors FROM keys WHERE key_id = ?", (other,))
        assert row is not None
        tx.execute("UPDATE keys SET sealed_key = ?, sealed_floors = ? WHERE key_id = ?", (*row, first))
    with pytest.raises(TamperedError):
        home.key(first)
    with pytest.raises(TamperedError):
        home.floors(first)


def test_an_unknown_key_is_refused(world: World) -> None:
    with pytest.raises(UnknownKeyError):
        world.homes["north"].key("ab" * 16)


def test_no_file_of_a_broker_holds_a_key_or_a_reply_in_the_clear(world: World) -> None:
    client = Enclave(world, Role.CLIENT)
    released = [(name, world.release(client, name)) for name in ("north", MODEL_OWNER)]
    secrets = [world.keys[name][1] for name, _ in released]
    secrets += [key for name, reply in released for key in world.unwrap(client, name, reply)]
    secrets += [wrapped for _, reply in released for wrapped in reply.wrapped_keys]
    secrets += [home.identity_key.private_bytes_raw() for home in world.homes.values()]
    secrets += [home.broker_key.private_bytes_raw() for home in world.homes.values()]
    secrets += [home.hpke_identity.to_private_bytes()[:32] for home in world.homes.values()]
    files = [path for path in world.home.rglob("*") if path.is_file() and path.name != "kek"]
    assert len(files) > 20
    for path in files:
        data = path.read_bytes()
        for secret in secrets:
            assert secret not in data, path.name
            assert secret.hex().encode() not in data, path.name


def test_only_the_owner_may_read(world: World) -> None:
    for path in world.home.glob("owners/*"):
        assert path.stat().st_mode & 0o077 == 0
        for file in (path / "kek", path / "broker.sqlite", *path.glob("*.sealed")):
            assert file.stat().st_mode & 0o077 == 0, file.name


BAD_FLOORS = {
    "an unknown environment": {"environment": "staging"},
    "no cohort": {"least_cohort": 0},
    "no round": {"total_rounds": 0},
    "no purpose": {"purposes": ()},
    "no measurement": {"measurements": ()},
    "nobody who counts": {"counted_identities": ()},
}


@pytest.mark.parametrize("sentence", BAD_FLOORS)
def test_floors_are_refused_with(sentence: str) -> None:
    with pytest.raises(ConfigError):
        floors(**BAD_FLOORS[sentence])


def test_floors_have_no_optional_field() -> None:
    with pytest.raises(TypeError):
        KeyFloors(environment="simulation")  # type: ignore[call-arg]


@settings(max_examples=20, deadline=None)
@given(
    least=st.integers(1, 100),
    rounds=st.integers(1, 10**6),
    measured=st.one_of(st.just(Unchecked(unchecked="why")), st.lists(st.just("ab" * 32), min_size=1).map(tuple)),
)
def test_floors_come_back_as_they_were_sealed(least: int, rounds: int, measured: Any) -> None:
    made = floors(least_cohort=least, total_rounds=rounds, measurements=measured)
    with tempfile.TemporaryDirectory() as folder:
        store = Store.create(Path(folder) / "s.sqlite")
        with store.transaction(durable=False) as tx:
            key_id, key = Vault(b"k" * 32).new_key(tx, floors=made)
            assert Vault(b"k" * 32).floors(tx, key_id) == made
            assert Vault(b"k" * 32).key(tx, key_id) == key
        store.close()
