"""An owner on disk: made whole or not at all, loaded again, approving only what it may."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import pytest
from broker_world import MODEL_OWNER, START_MS, World, floors

from confed.errors import (
    ConfedError,
    ConfigError,
    EncodingError,
    FloorError,
    LedgerError,
    ManifestMismatchError,
    MissingFileError,
    NotApprovedError,
    TamperedError,
)
from confed.keybroker.broker import Broker
from confed.keybroker.identity import OwnerHome, confed_home
from confed.keybroker.ledger import verify_ledger
from confed.keybroker.statements import Approval
from confed.keybroker.store import Store
from confed.statement import verify


def test_who_asks_for_an_owner_that_is_not_there_is_told_of_twenty(place: Path) -> None:
    for number in range(22):
        (place / "owners" / f"site-{number:02d}").mkdir(parents=True)
        (place / "owners" / f"site-{number:02d}" / "owner.json").touch()
    with pytest.raises(MissingFileError, match=r"site-00, .*site-19 and 2 more"):
        OwnerHome.load("bob", home=place)


def test_making_owners_looks_at_nobody_else(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from confed.experiment import owners  # noqa: PLC0415 (brings Flower)

    monkeypatch.setattr(OwnerHome, "names", _refuse)
    made = owners._owner("site-01", place, START_MS)  # pyright: ignore[reportPrivateUsage]
    assert owners._owner("site-01", place, START_MS).party == made.party  # pyright: ignore[reportPrivateUsage]


def _refuse(*_: object) -> None:
    raise AssertionError("thousands are made, and each would look at all")


def test_an_owner_is_loaded_as_it_was_made(place: Path) -> None:
    made = OwnerHome.create("alice", home=place, environment="production", now_ms=START_MS)
    key_id, key = made.new_key(floors=floors(environment="production"))
    made.close()
    found = OwnerHome.load("alice", home=place)
    assert (found.party, found.environment, found.kek) == (made.party, "production", made.kek)
    assert found.hpke_identity.public == made.hpke_identity.public
    assert found.tls == made.tls
    assert found.key(key_id) == key
    assert OwnerHome.names(place) == ("alice",)
    assert [owner.party for owner in OwnerHome.owners(place)] == [made.party]
    found.close()


def test_the_home_is_given_by_argument_then_environment_then_user(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    monkeypatch.setenv("CONFED_HOME", str(place / "from-environment"))
    assert confed_home(place) == place
    assert confed_home() == place / "from-environment"
    monkeypatch.delenv("CONFED_HOME")
    assert confed_home() == Path.home() / ".confed"


def test_an_owner_shows_and_pickles_nothing(world: World) -> None:
    home = world.homes["north"]
    assert home.kek.hex() not in repr(home)
    assert repr(home) == "OwnerHome(north)"
    with pytest.raises(TypeError):
        pickle.dumps(home)


@pytest.mark.parametrize("name", ["", "../evil", "a/b", ".hidden", "x" * 80, "a b"])
def test_a_name_that_is_no_name_is_refused(place: Path, name: str) -> None:
    with pytest.raises(ConfigError):
        OwnerHome.create(name, home=place, environment="simulation", now_ms=START_MS)
    with pytest.raises(MissingFileError):
        OwnerHome.load(name, home=place)


def test_a_name_that_is_taken_is_refused_and_left_alone(world: World) -> None:
    before = world.homes["north"].party
    with pytest.raises(ConfigError):
        OwnerHome.create("north", home=world.home, environment="simulation", now_ms=START_MS)
    assert OwnerHome.load("north", home=world.home).party == before
    assert not [path for path in (world.home / "owners").iterdir() if path.name.startswith(".")]


def test_an_unknown_environment_is_refused(place: Path) -> None:
    with pytest.raises(ConfigError):
        OwnerHome.create("alice", home=place, environment="staging", now_ms=START_MS)
    assert OwnerHome.names(place) == ()


def _cut(name: str) -> Any:
    return lambda path: (path / name).unlink()


def _swap(path: Path) -> None:
    broker, identity = path / "broker.sealed", path / "identity.sealed"
    kept = broker.read_bytes()
    broker.write_bytes(identity.read_bytes())
    identity.write_bytes(kept)


DAMAGE: dict[str, tuple[Any, type[ConfedError]]] = {
    "no key-encryption key": (_cut("kek"), MissingFileError),
    "another key-encryption key": (lambda path: (path / "kek").write_bytes(b"x" * 32), TamperedError),
    "a short key-encryption key": (lambda path: (path / "kek").write_bytes(b"x"), ConfigError),
    "no broker key": (_cut("broker.sealed"), MissingFileError),
    "two keys swapped": (_swap, TamperedError),
    "no owner file": (_cut("owner.json"), MissingFileError),
    "an owner file that is none": (lambda path: (path / "owner.json").write_bytes(b"{}"), EncodingError),
}


@pytest.mark.parametrize("sentence", DAMAGE)
def test_a_damaged_owner_is_refused_with(world: World, sentence: str) -> None:
    damage, error = DAMAGE[sentence]
    damage(world.homes["north"].path)
    with pytest.raises(error):
        OwnerHome.load("north", home=world.home)


def test_a_store_of_another_schema_is_refused(world: World) -> None:
    home = world.homes["north"]
    home.store.rows("PRAGMA user_version=9")
    home.close()
    with pytest.raises(LedgerError):
        Broker.of(OwnerHome.load("north", home=world.home))
    with pytest.raises(MissingFileError):
        Store(home.path / "nothing.sqlite")


def test_an_approval_is_signed_by_the_identity_and_in_the_ledger(world: World) -> None:
    home = world.homes["north"]
    signed = home.approve(world.manifest)
    approval = verify(signed, Approval, signer=home.party.identity)
    assert (approval.manifest, approval.time) == (world.manifest.digest, START_MS)
    assert home.approve_simulation(world.manifest) == signed
    entries = verify_ledger(list(world.brokers["north"].records()), broker=home.party.broker)
    assert [entry.event for entry in entries] == ["created", "approved"]
    assert entries[1].body["approval"] == signed.digest


def test_a_runs_name_is_approved_once(world: World) -> None:
    with pytest.raises(NotApprovedError):
        world.homes["north"].approve(dataclasses.replace(world.manifest, seed=99))


def test_a_manifest_of_strangers_is_not_approved(world: World, place: Path) -> None:
    stranger = OwnerHome.create("alice", home=place / "other", environment="simulation", now_ms=START_MS)
    with pytest.raises(ManifestMismatchError):
        stranger.approve(world.manifest)
    stranger.close()


def test_a_key_is_born_in_its_owners_environment(world: World) -> None:
    with pytest.raises(FloorError):
        world.homes["north"].new_key(floors=floors(environment="production"))


def test_nothing_of_production_is_approved_by_itself(world: World, place: Path) -> None:
    production = dataclasses.replace(world.manifest, environment="production", run="run-2")
    with pytest.raises(FloorError):
        world.homes[MODEL_OWNER].approve_simulation(production)
    careful = OwnerHome.create("careful", home=place / "p", environment="production", now_ms=START_MS)
    key_id, _ = careful.new_key(floors=floors(environment="production"))
    site = world.manifest.sites[0]
    assert site.dataset is not None
    dataset = dataclasses.replace(site.dataset, key_id=key_id)
    own = dataclasses.replace(site, owner=careful.party, dataset=dataset)
    manifest = dataclasses.replace(world.manifest, sites=(own, *world.manifest.sites[1:]), run="run-3")
    with pytest.raises(FloorError):
        careful.approve_simulation(manifest)
    careful.approve(manifest)
    careful.close()


def test_a_certificate_is_renewed_before_it_ends(world: World) -> None:
    home = world.homes["north"]
    first = home.tls
    day = 24 * 3600 * 1000
    assert home.renew_tls(now_ms=START_MS + 300 * day) == first
    second = home.renew_tls(now_ms=START_MS + 340 * day)
    assert second.certificate != first.certificate
    assert OwnerHome.load("north", home=world.home).tls == second
