"""Wrong turns of a key release: each changes one thing of a request that would be granted (guarantees 1, 2, 5)."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from broker_world import AGGREGATOR_CODE, CLIENT_CODE, MODEL_OWNER, SITES, Enclave, World

from confed.attestation.tee.simulated import SimulatedPlatform
from confed.errors import (
    BindingMismatchError,
    BrokerError,
    BudgetError,
    ChallengeError,
    CohortError,
    ConfedError,
    ConfigurationError,
    CredentialError,
    EncodingError,
    EvidenceFormatError,
    FloorError,
    InstanceError,
    LineageError,
    ManifestMismatchError,
    MeasurementError,
    NotApprovedError,
    PurposeError,
    RequestReplayError,
    RollbackError,
    RoundError,
    SignatureError,
    SizeError,
    StaleEvidenceError,
    TrustAnchorError,
    UnknownKeyError,
)
from confed.journey import Purpose, Role, Use
from confed.keybroker.decision import Decision, Terms
from confed.keybroker.floors import require_manifest_floors
from confed.keybroker.ledger import Ledger, verify_ledger
from confed.manifest import Manifest, StrategyTerms
from confed.sealing.identities import HpkeIdentity
from confed.statement import sign
from confed.strategy import StrategyCode

Make = Callable[..., World]
Ask = Callable[[World], Any]


STRATEGY_CODE = "cc" * 32


def client(world: World, **launch: Any) -> Enclave:
    return Enclave(world, Role.CLIENT, **launch)


def aggregator(world: World, **launch: Any) -> Enclave:
    return Enclave(world, Role.AGGREGATOR, **launch)


def ask_with_key(
    name: str, key: Callable[[World], Any], enclave: Callable[[World], Enclave] = client, **more: Any
) -> Ask:
    return lambda world: world.release(enclave(world), name, keys=(key(world),), **more)


def to_another_broker(world: World) -> Any:
    enclave, nonce = client(world), world.nonce("north")
    request = world.request(enclave, "north", nonce=nonce)
    return world.brokers["south"].release(
        sign(request, enclave.signing), envelope=enclave.attest(world.public("north"), nonce)
    )


def with_another_brokers_nonce(world: World) -> Any:
    enclave, nonce = client(world), world.nonce("south")
    request = world.request(enclave, "north", nonce=nonce)
    return world.brokers["north"].release(
        sign(request, enclave.signing), envelope=enclave.attest(world.public("north"), nonce)
    )


def with_a_nonce_for_another_manifest(world: World) -> Any:
    first, world.manifest = world.manifest, dataclasses.replace(world.manifest, run="run-2")
    world.homes["north"].approve(world.manifest, now_ms=world.now)
    nonce = world.nonce("north")
    world.manifest = first
    return world.release(client(world), "north", nonce=nonce)


def with_expired_nonce(world: World) -> Any:
    enclave, nonce = client(world), world.nonce("north")
    request = world.request(enclave, "north", nonce=nonce)
    world.now += 121_000
    return world.brokers["north"].release(
        sign(request, enclave.signing), envelope=enclave.attest(world.public("north"), nonce)
    )


def with_old_evidence(world: World) -> Any:
    enclave, nonce = client(world), world.nonce("north")
    envelope = enclave.attest(world.public("north"), nonce)
    world.now += 61_000
    return world.brokers["north"].release(
        sign(world.request(enclave, "north", nonce=nonce), enclave.signing), envelope=envelope
    )


def signed_by_another(world: World) -> Any:
    enclave, nonce = client(world), world.nonce("north")
    request = world.request(enclave, "north", nonce=nonce)
    return world.brokers["north"].release(
        sign(request, client(world).signing), envelope=enclave.attest(world.public("north"), nonce)
    )


def with_another_root(world: World) -> Any:
    world.platform, true = SimulatedPlatform.create(world.now), world.platform
    enclave = client(world)
    world.platform = true
    return world.release(enclave, "north")


def with_flipped_evidence(world: World) -> Any:
    enclave, nonce = client(world), world.nonce("north")
    envelope = bytearray(enclave.attest(world.public("north"), nonce))
    envelope[len(envelope) // 2] ^= 1
    request = sign(world.request(enclave, "north", nonce=nonce), enclave.signing)
    return world.brokers["north"].release(request, envelope=bytes(envelope))


def with_others_evidence(world: World) -> Any:
    """A stranger relays evidence of an honest enclave under the nonce that it got, and signs for itself."""
    honest, stranger, nonce = client(world), client(world), world.nonce("north")
    envelope = honest.attest(world.public("north"), nonce)
    request = world.request(stranger, "north", nonce=nonce)
    return world.brokers["north"].release(sign(request, stranger.signing), envelope=envelope)


def without_ever_attesting(world: World) -> Any:
    return world.release(client(world), "north", evidence=False)


def in_another_role_by_session(world: World) -> Any:
    enclave = client(world)
    world.release(enclave, "north")
    enclave.role = Role.AGGREGATOR
    return world.release(enclave, "north", evidence=False, keys=())


def long_after_evidence(world: World) -> Any:
    enclave = client(world)
    world.release(enclave, "north")
    world.now += 601_000
    return world.release(enclave, "north", evidence=False)


def rounds_after_evidence(world: World) -> Any:
    enclave = client(world)
    world.release(enclave, "north")
    world.run_round(1, attempt=1)
    world.run_round(2)
    return world.release(enclave, "north", round_number=3, evidence=False)


def an_old_round(world: World) -> Any:
    world.run_round(1)
    return world.release(client(world), "north", round_number=1, record=world.records[1])


def an_old_base(world: World) -> Any:
    world.run_round(1)
    return world.release(client(world), "north", round_number=2, base=world.base(0))


def the_committed_round_again(world: World) -> Any:
    world.run_round(1)
    return world.release(client(world), MODEL_OWNER, round_number=1, base=world.base(1), record=world.records[1])


def another_identity_at_the_model_owner(world: World) -> Any:
    return world.release(client(world), MODEL_OWNER, identity=os.urandom(32))


def second_client_instance(world: World) -> Any:
    world.release(client(world), "north")
    return world.release(client(world), "north")


def feigned_crash(world: World) -> Any:
    """The governor starts a second aggregator for the attempt that the first one holds."""
    world.release(aggregator(world), MODEL_OWNER)
    return world.release(aggregator(world), MODEL_OWNER)


def feigned_crash_after_restart(world: World) -> Any:
    world.release(aggregator(world), MODEL_OWNER)
    world.restart()
    return world.release(aggregator(world), MODEL_OWNER)


def request_id_for_another_request(world: World) -> Any:
    enclave, name = client(world), os.urandom(16)
    world.release(enclave, "north", request_id=name)
    return world.release(enclave, "north", request_id=name)


REFUSALS: dict[str, tuple[Ask, type[ConfedError]]] = {
    # What attests.
    "other code": (lambda w: w.release(client(w, measurement="ee" * 32), "north"), MeasurementError),
    "the aggregator's code as a client": (
        lambda w: w.release(client(w, measurement="a9" * 32), "north"),
        MeasurementError,
    ),
    "another measured configuration": (
        lambda w: w.release(client(w, configuration="12" * 32), "north"),
        ConfigurationError,
    ),
    "a TEE launched for production": (
        lambda w: w.release(client(w, environment="production"), "north"),
        ConfigurationError,
    ),
    "another root": (with_another_root, TrustAnchorError),
    "evidence with a flipped bit": (with_flipped_evidence, ConfedError),
    "evidence that is none": (lambda w: _with_envelope(w, b"{}"), EvidenceFormatError),
    "old evidence": (with_old_evidence, StaleEvidenceError),
    "evidence for another audience": (
        lambda w: w.release(client(w), "north", binding={"audience": "34" * 32}),
        BindingMismatchError,
    ),
    "evidence for another manifest": (
        lambda w: w.release(client(w), "north", binding={"manifest": "34" * 32}),
        BindingMismatchError,
    ),
    "evidence for another role": (
        lambda w: w.release(client(w), "north", binding={"role": Role.AGGREGATOR}),
        BindingMismatchError,
    ),
    "evidence for another run": (
        lambda w: w.release(client(w), "north", binding={"run": "run-2"}),
        BindingMismatchError,
    ),
    "evidence for another nonce": (
        lambda w: w.release(client(w), "north", binding={"nonce": os.urandom(32)}),
        BindingMismatchError,
    ),
    "evidence for another HPKE key": (
        lambda w: w.release(client(w), "north", binding={"hpke_public": HpkeIdentity.generate().public}),
        InstanceError,
    ),
    "evidence of somebody else": (with_others_evidence, InstanceError),
    "another signing key": (signed_by_another, SignatureError),
    "no evidence ever": (without_ever_attesting, InstanceError),
    "no evidence in this role": (in_another_role_by_session, InstanceError),
    "evidence that aged out": (long_after_evidence, InstanceError),
    "evidence of too many rounds ago": (rounds_after_evidence, InstanceError),
    # The nonce and the request.
    "an unknown nonce": (lambda w: w.release(client(w), "north", nonce=os.urandom(32)), ChallengeError),
    "an expired nonce": (with_expired_nonce, ChallengeError),
    "another broker's nonce": (with_another_brokers_nonce, ChallengeError),
    "a request to another broker": (to_another_broker, BrokerError),
    "a nonce for another manifest": (with_a_nonce_for_another_manifest, ChallengeError),
    "a request that names another broker": (
        lambda w: w.release(client(w), "south", broker=w.public("north")),
        BrokerError,
    ),
    "a request id used before": (request_id_for_another_request, RequestReplayError),
    "a request id of one byte": (lambda w: w.release(client(w), "north", request_id=b"1"), SizeError),
    "another manifest": (lambda w: w.release(client(w), "north", manifest="34" * 32), NotApprovedError),
    "another run": (lambda w: w.release(client(w), "north", run="run-2"), ManifestMismatchError),
    # The step.
    "a client that aggregates": (lambda w: w.release(client(w), "north", purpose=Purpose.AGGREGATE), PurposeError),
    "an aggregator that trains": (lambda w: w.release(aggregator(w), MODEL_OWNER, purpose=Purpose.TRAIN), PurposeError),
    "round 0": (lambda w: w.release(client(w), "north", round=0), RoundError),
    "a round after the last": (lambda w: w.release(client(w), "north", round=4), RoundError),
    "the round after next": (lambda w: w.release(client(w), "north", round=2), RoundError),
    "a round that is over": (an_old_round, RollbackError),
    "a committed round again": (the_committed_round_again, RoundError),
    "an attempt beyond the budget": (lambda w: w.release(client(w), "north", attempt=3), BudgetError),
    "a negative attempt": (lambda w: w.release(client(w), "north", attempt=-1), RoundError),
    "a base that nobody committed": (lambda w: w.release(client(w), "north", base="56" * 32), LineageError),
    "a base that was replaced": (an_old_base, RollbackError),
    "a base record that is none": (lambda w: w.release(client(w), "north", record=b"{}"), EncodingError),
    "a client that aggregates, asking no key": (
        lambda w: w.release(client(w), "north", purpose=Purpose.AGGREGATE, keys=()),
        PurposeError,
    ),
    "an aggregator that trains, asking no key": (
        lambda w: w.release(aggregator(w), "north", purpose=Purpose.TRAIN),
        PurposeError,
    ),
    # Whose data, whose key.
    "another identity": (lambda w: w.release(client(w), "north", identity=w.identity("south")), CredentialError),
    "an aggregator with an identity": (
        lambda w: w.release(aggregator(w), "north", identity=w.identity("north")),
        CredentialError,
    ),
    "an identity that the manifest does not list": (another_identity_at_the_model_owner, ManifestMismatchError),
    "a second client for one step": (second_client_instance, CredentialError),
    "a second aggregator for one attempt": (feigned_crash, InstanceError),
    "a second aggregator after the broker restarted": (feigned_crash_after_restart, InstanceError),
    "another site's data key": (ask_with_key("north", lambda w: w.data_key("south")), UnknownKeyError),
    "a data key with another container": (
        ask_with_key("north", lambda w: w.data_key("north", container="container-south")),
        UnknownKeyError,
    ),
    "a data key with a version": (ask_with_key("north", lambda w: w.data_key("north", version=1)), PurposeError),
    "a data key for the aggregator": (ask_with_key("north", lambda w: w.data_key("north"), aggregator), PurposeError),
    "a data key at the model owner's": (ask_with_key(MODEL_OWNER, lambda w: w.data_key("north")), UnknownKeyError),
    "a model key at a data owner's": (ask_with_key("north", lambda w: w.model_key(0)), UnknownKeyError),
    "another model key": (ask_with_key(MODEL_OWNER, lambda w: w.model_key(0, key_id="ab" * 16)), UnknownKeyError),
    "another start container": (ask_with_key(MODEL_OWNER, lambda w: w.model_key(0, container="x")), UnknownKeyError),
    "the start's key with an attempt": (ask_with_key(MODEL_OWNER, lambda w: w.model_key(0, attempt=1)), PurposeError),
    "the next version for a client": (ask_with_key(MODEL_OWNER, lambda w: w.model_key(1)), PurposeError),
    "strategy state for a client": (ask_with_key(MODEL_OWNER, lambda w: w.model_key(0, use=Use.STATE)), PurposeError),
    "state of the start": (
        ask_with_key(MODEL_OWNER, lambda w: w.model_key(0, use=Use.STATE), aggregator),
        PurposeError,
    ),
    "version 0 by the version key": (
        ask_with_key(
            MODEL_OWNER,
            lambda w: w.model_key(0, use=Use.START, container="").__class__(
                key_id=w.keys[MODEL_OWNER][0], use=Use.VERSION, container="", version=0, attempt=0
            ),
            aggregator,
        ),
        PurposeError,
    ),
    "the version after next": (ask_with_key(MODEL_OWNER, lambda w: w.model_key(2), aggregator), PurposeError),
    "the next version's key of another attempt": (
        ask_with_key(MODEL_OWNER, lambda w: w.model_key(1, attempt=1), aggregator),
        RoundError,
    ),
    "too many keys": (lambda w: w.release(client(w), "north", keys=(w.data_key("north"),) * 9), SizeError),
}


def _with_envelope(world: World, envelope: bytes) -> Any:
    enclave = client(world)
    request = sign(world.request(enclave, "north", nonce=world.nonce("north")), enclave.signing)
    return world.brokers["north"].release(request, envelope=envelope)


@pytest.mark.parametrize("sentence", REFUSALS)
def test_a_release_is_refused_with(world: World, sentence: str) -> None:
    ask, error = REFUSALS[sentence]
    with pytest.raises(error) as refused:
        ask(world)
    assert isinstance(refused.value, ConfedError)
    # What was refused left nothing behind but the refusal: no key, no seat, no credential, and the ledger holds.
    for name, broker in world.brokers.items():
        verify_ledger(list(broker.records()), broker=world.public(name))


def _changed(**changes: Any) -> Callable[[Manifest], Manifest]:
    return lambda manifest: dataclasses.replace(manifest, **changes)


def _cohort(least: int) -> Callable[[Manifest], Manifest]:
    return lambda manifest: dataclasses.replace(manifest, cohort=dataclasses.replace(manifest.cohort, least=least))


def _strategy(select: int) -> Callable[[Manifest], Manifest]:
    terms = StrategyTerms(name="MultiKrum", parameters={"num_nodes_to_select": select})
    return lambda manifest: dataclasses.replace(_cohort(3)(manifest), strategy=terms)


def _own_strategy(manifest: Manifest) -> Manifest:
    """Combine by a strategy class of somebody's own."""
    code = dataclasses.replace(manifest.code, strategy=StrategyCode(digest=STRATEGY_CODE, memory_bytes=10**9))
    return dataclasses.replace(manifest, strategy=StrategyTerms(name="fair:Fair", parameters={}), code=code)


FLOORS: dict[str, tuple[dict[str, Any], type[ConfedError]]] = {
    "a cohort smaller than the key's": ({"data_floors": {"least_cohort": 3}}, FloorError),
    "a cohort of one that the key does not allow": (
        {"data_floors": {"least_cohort": 1}, "change": _cohort(1)},
        FloorError,
    ),
    "a strategy that takes one update alone": ({"change": _strategy(1)}, FloorError),
    "a strategy that takes one, and a key that shows it to nobody": (
        {"data_floors": {"least_cohort": 1}, "change": _strategy(1)},
        FloorError,
    ),
    "a strategy that takes two, of which the key counts one": (
        {"change": _strategy(2), "counted": lambda homes: [homes[name].party.identity for name in ("north", "south")]},
        FloorError,
    ),
    "a strategy class that its owner did not read": ({"change": _own_strategy}, FloorError),
    "a strategy class that its owner did not read, of which it counts one update": (
        {"data_floors": {"least_cohort": 1}, "change": _own_strategy},
        FloorError,
    ),
    "a strategy class when its owner read another": (
        {"data_floors": {"strategies": ("ee" * 32,)}, "change": _own_strategy},
        FloorError,
    ),
    "a purpose that the key does not serve": ({"data_floors": {"purposes": (Purpose.EVALUATE,)}}, PurposeError),
    "code that the key does not allow": ({"data_floors": {"measurements": ("dd" * 32,)}}, MeasurementError),
    "too few sites that the key counts": ({"counted": lambda homes: (homes["north"].party.identity,)}, FloorError),
}


@pytest.mark.parametrize("sentence", FLOORS)
def test_a_key_itself_refuses(make_world: Make, sentence: str) -> None:
    settings, error = FLOORS[sentence]
    world = make_world(**settings)
    with pytest.raises(error):
        world.release(client(world), "north")


def test_a_key_with_its_own_measurement_list_serves_that_code(make_world: Make) -> None:
    world = make_world(data_floors={"measurements": (CLIENT_CODE,)})
    world.release(client(world), "north")


def test_a_cohort_of_one_needs_the_owners_word(make_world: Make) -> None:
    world = make_world(data_floors={"least_cohort": 1, "discloses_to_model_owner": True}, change=_cohort(1))
    world.release(client(world), "north")


@pytest.mark.parametrize(("select", "least", "shown"), [(2, 2, False), (3, 3, False), (1, 1, True)])
def test_a_selection_of_enough_updates_is_no_less_than_a_mean_of_them(
    make_world: Make, select: int, least: int, shown: bool
) -> None:
    floors = {"least_cohort": least, "discloses_to_model_owner": shown}
    world = make_world(data_floors=floors, model_floors={"least_cohort": least}, change=_strategy(select))
    world.release(client(world), "north")


@pytest.mark.parametrize(
    "floors", [{"strategies": ("cc" * 32,)}, {"least_cohort": 1, "discloses_to_model_owner": True}], ids=str
)
def test_a_strategy_class_counts_as_a_mean_where_the_owner_read_its_code(
    make_world: Make, floors: dict[str, Any]
) -> None:
    model_floors = {"least_cohort": floors.get("least_cohort", 2), "strategies": (STRATEGY_CODE,)}
    world = make_world(data_floors=floors, model_floors=model_floors, change=_own_strategy)
    world.release(client(world), "north")


@pytest.mark.parametrize(("read", "refused"), [((), True), (("ee" * 32,), True), (("cc" * 32,), False)])
def test_a_model_key_that_pins_code_pins_that_of_a_strategy_class_too(
    make_world: Make, read: tuple[str, ...], refused: bool
) -> None:
    floors = {"least_cohort": 1, "measurements": (CLIENT_CODE, AGGREGATOR_CODE), "strategies": read}
    data_floors = {"strategies": (STRATEGY_CODE,)}
    world = make_world(model_floors=floors, data_floors=data_floors, change=_own_strategy)
    with pytest.raises(MeasurementError) if refused else contextlib.nullcontext():
        world.release(aggregator(world), MODEL_OWNER, keys=(world.model_key(1),))


def test_a_key_of_simulation_serves_no_other_environment(world: World) -> None:
    other = dataclasses.replace(world.manifest, environment="production", run="run-2")
    party, key_id = world.homes["north"].party, world.keys["north"][0]
    with world.homes["north"].store.transaction() as tx:
        decision = Decision(
            tx=tx,
            party=party,
            key=world.homes["north"].broker_key,
            vault=world.homes["north"].vault,
            ledger=Ledger(world.homes["north"].broker_key),
            now=world.now,
            terms=Terms.of(other, party),
        )
        # Production refuses the simulated TEE before this; the key's own floor is the second line.
        with pytest.raises(FloorError):
            require_manifest_floors(decision, world.homes["north"].vault.floors(tx, key_id), is_data=True)


def test_a_keys_rounds_are_counted_over_all_manifests(make_world: Make) -> None:
    world = make_world(data_floors={"total_rounds": 1})
    aggregator_one = world.aggregator()
    world.ticket(client(world), "north", aggregator_one)
    world.manifest = dataclasses.replace(world.manifest, run="run-2")
    for owner in world.homes.values():
        owner.approve(world.manifest, now_ms=world.now)
    with pytest.raises(BudgetError):
        world.release(client(world), "north")
    world.release(client(world), "south")


def test_a_model_keys_rounds_are_counted_when_a_version_key_goes_out(make_world: Make) -> None:
    world = make_world(model_floors={"total_rounds": 1})
    world.run_round(1)
    with pytest.raises(BudgetError):
        world.release(aggregator(world), MODEL_OWNER, round_number=2)


def test_a_site_that_was_not_drawn_gets_nothing(make_world: Make) -> None:
    def fewer(manifest: Manifest) -> Manifest:
        return dataclasses.replace(manifest, cohort=dataclasses.replace(manifest.cohort, fraction_train=0.67))

    world = make_world(change=fewer)
    drawn = {site.owner.name for site in world.manifest.draw(purpose="train", round_number=1)}
    (left,) = {"north", "south", "west"} - drawn
    with pytest.raises(CohortError):
        world.release(client(world), left)
    with pytest.raises(CohortError):
        world.release(client(world), MODEL_OWNER, identity=world.identity(left))


def test_a_challenge_is_only_for_an_approved_manifest(world: World) -> None:
    with pytest.raises(NotApprovedError):
        world.brokers["north"].challenge("34" * 32)


def test_outstanding_nonces_are_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("confed.keybroker.nonces.MOST_NONCES", 3)
    for _ in range(3):
        world.nonce("north")
    with pytest.raises(ChallengeError):
        world.nonce("north")
    world.now += 121_000
    world.nonce("north")


def test_a_nonce_is_burnt_by_a_refusal(world: World) -> None:
    enclave, nonce = client(world), world.nonce("north")
    envelope = enclave.attest(world.public("north"), nonce)
    bad = world.request(enclave, "north", nonce=nonce, round=2)
    with pytest.raises(RoundError):
        world.brokers["north"].release(sign(bad, enclave.signing), envelope=envelope)
    good = world.request(enclave, "north", nonce=nonce)
    with pytest.raises(ChallengeError):
        world.brokers["north"].release(sign(good, enclave.signing), envelope=envelope)
    world.restart()
    with pytest.raises(ChallengeError):
        world.brokers["north"].release(sign(good, enclave.signing), envelope=envelope)
    entries = verify_ledger(list(world.brokers["north"].records()), broker=world.public("north"))
    assert [entry.body["code"] for entry in entries if entry.event == "refused"] == ["round", "challenge", "challenge"]


def test_one_nonce_serves_one_of_eight_threads(world: World) -> None:
    enclave, nonce = client(world), world.nonce("north")
    envelope = enclave.attest(world.public("north"), nonce)
    requests = [sign(world.request(enclave, "north", nonce=nonce), enclave.signing) for _ in range(8)]

    def ask(request: Any) -> str:
        try:
            world.brokers["north"].release(request, envelope=envelope)
        except ChallengeError:
            return "refused"
        return "released"

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(ask, requests))
    assert sorted(outcomes) == ["refused"] * 7 + ["released"]
    verify_ledger(list(world.brokers["north"].records()), broker=world.public("north"))


def test_the_same_request_gets_the_same_bytes_also_after_a_restart(world: World) -> None:
    enclave, nonce = client(world), world.nonce("north")
    request = sign(world.request(enclave, "north", nonce=nonce), enclave.signing)
    envelope = enclave.attest(world.public("north"), nonce)
    first = world.brokers["north"].release(request, envelope=envelope)
    assert world.brokers["north"].release(request, envelope=envelope) == first
    world.restart()
    assert world.brokers["north"].release(request) == first
    assert len(list(world.brokers["north"].records())) == 4


def test_a_restarted_aggregator_may_take_the_next_attempt(world: World) -> None:
    world.release(aggregator(world), MODEL_OWNER)
    world.release(aggregator(world), MODEL_OWNER, attempt=1)


def test_a_clock_that_is_set_back_revives_nothing(world: World) -> None:
    enclave = client(world)
    world.release(enclave, "north")
    world.now += 601_000
    world.release(aggregator(world), "north")
    world.now -= 601_000
    with pytest.raises(InstanceError):
        world.release(enclave, "north", evidence=False)


def test_a_refused_request_leaves_no_session(world: World) -> None:
    enclave = client(world)
    with pytest.raises(LineageError):
        world.release(enclave, "north", base="56" * 32)
    with pytest.raises(InstanceError):
        world.release(enclave, "north", evidence=False)


def test_an_owner_of_model_and_data_gives_its_data_to_its_own_client_only(make_world: Make) -> None:
    def both(manifest: Manifest) -> Manifest:
        site = manifest.sites[0]
        assert site.dataset is not None
        start = dataclasses.replace(manifest.model.start, key_id=site.dataset.key_id)
        return dataclasses.replace(manifest, model=dataclasses.replace(manifest.model, owner=site.owner, start=start))

    world = make_world(change=both, homes_that_approve=SITES)
    start = world.model_key(0, key_id=world.keys["north"][0])
    others = world.release(client(world), "north", identity=world.identity("south"), keys=(start,))
    assert others.credential is None
    with pytest.raises(UnknownKeyError):
        world.release(client(world), "north", identity=world.identity("south"))
    own = world.release(client(world), "north", keys=(start, world.data_key("north")))
    assert own.credential is not None
