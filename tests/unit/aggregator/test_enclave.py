"""What brokers grant is believed only if it is for this enclave, this request and this evidence."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from aggregator_world import World

from aggregator.enclave import Asked, Enclave
from confed import canonical
from confed.attestation.evidence import Binding, Envelope
from confed.errors import (
    BindingMismatchError,
    CredentialError,
    SessionError,
    UnreachableError,
)
from confed.journey import Role
from confed.keybroker.statements import AggregatorCredential, ReleaseRequest
from confed.statement import Signed, unverified

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

OTHER = "a" * 64
ASKED = Asked(round=1, attempt=0, base="b" * 64, base_record=b"")


@pytest.fixture
def world(tmp_path: Path) -> World:
    found = World(tmp_path / "enclave")
    found.run()
    return found


def test_every_broker_is_attested_to_under_its_own_nonce_and_audience(world: World) -> None:
    assert world.enclave.credential_by(world.manifest.sites, ASKED) == {}
    nonces: set[bytes] = set()
    for request, envelope in zip(world.brokers.requests, world.brokers.envelopes, strict=True):
        binding = Binding.decode(Envelope.decode(envelope).binding)
        assert binding.audience == canonical.digest(request.broker)
        assert (binding.nonce, binding.role, binding.instance) == (request.nonce, Role.AGGREGATOR, request.instance)
        assert request.identity == b""
        nonces.add(binding.nonce)
    assert len(nonces) == len(world.manifest.sites)


def test_each_sites_client_finds_credential_and_evidence_in_its_mail(world: World) -> None:
    world.enclave.credential_by(world.manifest.sites, ASKED)
    for site in world.manifest.sites:
        (letter,) = world.courier.letters[f"run-1/aggregator/{site.owner.name}"]
        mail = canonical.decode(letter)
        assert sorted(mail) == ["credential", "envelope"]
        credential = unverified(Signed.from_json(mail["credential"]), AggregatorCredential)
        assert (credential.identity, credential.instance) == (site.owner.identity, world.enclave.instance)


CREDENTIALS: list[tuple[str, Callable[[Any], Any]]] = [
    ("another identity", lambda c: replace(c, identity=b"x" * 32)),
    ("another broker", lambda c: replace(c, broker=b"x" * 32)),
    ("another manifest", lambda c: replace(c, manifest=OTHER)),
    ("another run", lambda c: replace(c, run="run-2")),
    ("another instance", lambda c: replace(c, instance=OTHER)),
    ("another signing key", lambda c: replace(c, signing_public=b"x" * 32)),
    ("another HPKE key", lambda c: replace(c, hpke_public=b"x" * 1216)),
    ("another nonce", lambda c: replace(c, nonce=b"x" * 32)),
    ("rounds that are over", lambda c: replace(c, first_round=0, last_round=0)),
    ("rounds that are not yet", lambda c: replace(c, first_round=2)),
]


@pytest.mark.parametrize("tamper", [row[1] for row in CREDENTIALS], ids=[row[0] for row in CREDENTIALS])
def test_a_credential_for_something_else_is_not_taken(world: World, tamper: Callable[[Any], Any]) -> None:
    world.brokers.tamper["credential"] = tamper
    refused = world.enclave.credential_by(world.manifest.sites, ASKED)
    assert {type(error) for error in refused.values()} == {CredentialError}
    assert not any(world.enclave.covered(site, 1) for site in world.manifest.sites)
    assert not [topic for topic, letters in world.courier.letters.items() if "/aggregator/" in topic and letters]


GRANTS: list[tuple[str, Callable[[Any], Any]]] = [
    ("another request", lambda g: replace(g, request=OTHER)),
    ("other evidence", lambda g: replace(g, binding=OTHER)),
    ("another broker", lambda g: replace(g, broker=b"x" * 32)),
]


@pytest.mark.parametrize("tamper", [row[1] for row in GRANTS], ids=[row[0] for row in GRANTS])
def test_a_grant_for_something_else_is_refused(world: World, tamper: Callable[[Any], Any]) -> None:
    world.brokers.tamper["grant"] = tamper
    with pytest.raises(BindingMismatchError):
        world.enclave.model_keys([], ASKED)


def test_a_server_that_is_down_refuses_for_its_brokers_only(world: World) -> None:
    class Down:
        def challenge(self, items: Any) -> Any:
            raise UnreachableError("broker", expected="an answer", got="none")

    brokers: dict[bytes, Any] = {keys.party.broker: world.brokers for keys in (world.owner, *world.sites)}
    brokers[world.sites[1].party.broker] = Down()
    enclave = Enclave(manifest=world.manifest, attester=world.enclave._attester, brokers=brokers, letters=world.courier)
    refused = enclave.credential_by(world.manifest.sites, ASKED)
    assert {name: type(error) for name, error in refused.items()} == {"site-1": UnreachableError}


def test_a_broker_that_was_never_heard_has_no_time(world: World) -> None:
    with pytest.raises(SessionError):
        world.enclave.now(world.sites[0].party.broker)


def test_one_brokers_clock_does_not_move_anothers(world: World) -> None:
    world.enclave.credential_by(world.manifest.sites[:1], ASKED)
    world.brokers.time += 10**9
    world.enclave.credential_by(world.manifest.sites[1:2], ASKED)
    first, second = (world.enclave.now(site.owner.broker) for site in world.manifest.sites[:2])
    assert second - first > 10**8


def test_a_manifest_broker_without_a_server_is_refused_at_once(world: World) -> None:
    with pytest.raises(SessionError):
        Enclave(manifest=world.manifest, attester=world.enclave._attester, brokers={}, letters=world.courier)


def test_requests_are_signed_by_the_enclave_and_never_twice_the_same(world: World) -> None:
    for _ in range(2):
        world.enclave.model_keys([], ASKED)
    first, second = world.brokers.requests
    assert isinstance(first, ReleaseRequest)
    assert first.request_id != second.request_id
    assert first.nonce != second.nonce


def test_the_courier_being_down_is_not_a_sites_refusal(world: World) -> None:
    world.courier.down = True
    with pytest.raises(UnreachableError):
        world.enclave.credential_by(world.manifest.sites, ASKED)
