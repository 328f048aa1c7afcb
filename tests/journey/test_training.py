"""Confidential training: one TEE, two owners, and every wrong turn of it. The honest road is the same without the turn."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from road import OTHER, OWNER, REATTEST_S, Held, Land, Road, Turns, small_data

from confed.errors import (
    BudgetError,
    ConfedError,
    ConfigError,
    CredentialError,
    FloorError,
    ForkError,
    InstanceError,
    NormError,
    NotFiniteError,
    PurposeError,
    RollbackError,
    RoundError,
    ShapeError,
    SimulatedInProductionError,
    TamperedError,
    TicketError,
    UnknownKeyError,
    WeightError,
)
from confed.journey import Kind, Purpose, Role, Use
from confed.keybroker.statements import Candidate, ClearMetrics, KeyName, ReleaseRequest, TicketRequest
from confed.manifest import PRODUCTION, Manifest
from confed.model.weights import pack
from confed.scenario import Scenario
from confed.sealing.container import Draft, seal_to_bytes
from confed.sealing.derivation import container_key
from confed.sealing.recipients import RecipientEntry
from confed.statement import Signed, sign
from confed.stopping import PatienceTerms, StopTerms

MakeRoad = Callable[..., Road]
SITE = "east"


def training(manifest: Manifest) -> Manifest:
    return dataclasses.replace(manifest, scenario=Scenario.TRAINING)


def floors(_name: str, _homes: Any) -> Mapping[str, Any]:
    return {"scenarios": (Scenario.TRAINING,), "discloses_to_model_owner": True}


TERMS: dict[str, Any] = {"sites": (SITE,), "least": 1, "change": training, "floors": floors}


@pytest.fixture(scope="module")
def land(quick_disk: Path) -> Land:
    return Land(folder=quick_disk / "training", **TERMS)


@pytest.fixture
def road(land: Land, place: Path) -> Iterator[Road]:
    with Road(land, place) as road:
        yield road


def evaluate(road: Road, number: int) -> None:
    road.seal(road.hold(SITE, number, purpose=Purpose.EVALUATE), metrics={"loss": 0.25})


def test_one_tee_makes_every_version_and_closes_the_run(road: Road) -> None:
    base = dict(road.land.model)
    for number in (1, 2, 3):
        digest = road.seal(road.hold(SITE, number), metrics={"loss": 0.123456, "secret": 0.5})
        base = road.trained(SITE, base)
        made = road.open_version(number)
        assert {name: array.tobytes() for name, array in made.items()} == {
            name: np.asarray(array).tobytes() for name, array in base.items()
        }
        assert (road.candidate(number).digest, road.record(number).metrics.values) == (digest, {"loss": 0.1235})
        evaluate(road, number)
        assert road.record(number, "evaluate").metrics.values == {"loss": 0.25}
    alone = road.sessions[SITE].alone
    assert alone is not None
    alone.close_run(3)
    for name in road.homes:
        assert road.ledger(name)[-1].event.startswith("closing")
    # Nobody but the one TEE had a key, and it never had the role of an aggregator.
    assert {body["instance"] for name in road.homes for body in road.events(name, "released")} == {
        alone.itself.instance
    }
    assert {body["role"] for name in road.homes for body in road.events(name, "released")} == {str(Role.CLIENT)}


# Keys.


def successor_key(request: ReleaseRequest, **changes: Any) -> ReleaseRequest:
    """Ask for one more key of the model owner: of the version after the base's, but for ``changes``."""
    if not any(name.use in (Use.START, Use.VERSION) for name in request.keys):
        return request
    values: dict[str, Any] = {
        "key_id": request.keys[0].key_id, "use": Use.VERSION, "container": "", "version": request.round, "attempt": 0,
        **changes,
    }  # fmt: skip
    return dataclasses.replace(request, keys=(*request.keys, KeyName(**values)))


def test_a_client_of_a_federation_gets_no_key_of_a_version_that_follows(make_road: MakeRoad) -> None:
    road = make_road()
    road.aggregator().open(1)
    for use in (Use.VERSION, Use.STATE, Use.CHECKPOINT):
        session = road.session(SITE, turns=Turns(request=lambda request, use=use: successor_key(request, use=use)))
        with pytest.raises(PurposeError):
            road.hold(SITE, session=session)
        assert OWNER not in road.released_to(session.instance)


def test_an_aggregator_gets_nothing_where_one_tee_trains(road: Road) -> None:
    with pytest.raises(ConfedError) as refused:
        road.aggregator().governor.attest(first_round=1, attempt=0)
    assert refused.value.code == PurposeError.code


AHEAD: dict[str, tuple[dict[str, Any], type[ConfedError]]] = {
    "two versions ahead": ({"version": 2}, PurposeError),
    "of another attempt": ({"attempt": 1}, RoundError),
    "of another owner's key": ({"key_id": "0" * 32}, UnknownKeyError),
    "with a container": ({"container": "container-east"}, UnknownKeyError),
}


@pytest.mark.parametrize(("changes", "error"), AHEAD.values(), ids=AHEAD)
def test_a_key_that_no_step_gives_is_refused(road: Road, changes: dict[str, Any], error: type[ConfedError]) -> None:
    session = road.session(SITE, turns=Turns(request=lambda request: successor_key(request, **changes)))
    with pytest.raises(error):
        road.hold(SITE, session=session)


def test_an_evaluation_gives_no_key_of_a_version_that_follows(road: Road) -> None:
    road.seal(road.hold(SITE))
    session = road.session(SITE, turns=Turns(request=lambda request: successor_key(request, version=request.round + 1)))
    with pytest.raises(PurposeError):
        road.hold(SITE, purpose=Purpose.EVALUATE, session=session)


FLOORS: dict[str, tuple[str, dict[str, Any]]] = {
    "a model key that serves federations alone": (OWNER, {"scenarios": (Scenario.FEDERATED,)}),
    "a data key that serves federations alone": (SITE, {"scenarios": (Scenario.FEDERATED,)}),
    "a model key that serves tuning alone": (OWNER, {"scenarios": (Scenario.TUNING,)}),
    "a data key that discloses nothing to the model owner": (SITE, {"discloses_to_model_owner": False}),
    "a data key that wants company": (SITE, {"least_cohort": 2}),
}


@pytest.mark.parametrize(("whose", "changes"), FLOORS.values(), ids=FLOORS)
def test_a_key_goes_nowhere_below_its_floors(make_road: MakeRoad, whose: str, changes: dict[str, Any]) -> None:
    def below(name: str, homes: Any) -> Mapping[str, Any]:
        return {**floors(name, homes), **(changes if name == whose else {})}

    road = make_road(**{**TERMS, "floors": below})
    with pytest.raises(FloorError):
        road.hold(SITE)
    assert whose not in road.released_to(road.sessions[SITE].instance)


@pytest.mark.parametrize("whose", [OWNER, SITE])
def test_a_key_serves_as_many_rounds_as_its_floors_say(make_road: MakeRoad, whose: str) -> None:
    def one(name: str, homes: Any) -> Mapping[str, Any]:
        return {**floors(name, homes), **({"total_rounds": 1} if name == whose else {})}

    road = make_road(**{**TERMS, "floors": one})
    road.seal(road.hold(SITE, 1))
    with pytest.raises(BudgetError):
        road.hold(SITE, 2)


def test_someone_elses_dataset_key_is_refused(road: Road) -> None:
    def other_key(request: ReleaseRequest) -> ReleaseRequest:
        keys = tuple(
            dataclasses.replace(name, key_id="0" * 32) if name.use is Use.DATA else name for name in request.keys
        )
        return dataclasses.replace(request, keys=keys)

    with pytest.raises(UnknownKeyError):
        road.hold(SITE, session=road.session(SITE, turns=Turns(request=other_key)))


def test_a_dataset_swapped_for_another_of_the_same_schema_is_refused(road: Road, land: Land) -> None:
    dataset = land.manifest.sites[0].dataset
    assert dataset is not None
    draft = Draft(
        kind=Kind.DATASET,
        container_id=dataset.container_id,
        owner=road.homes[SITE].party.identity,
        recipients=(RecipientEntry.owner_key(dataset.key_id),),
    )
    key = container_key(land.keys[SITE], container_id=dataset.container_id)
    other, _ = seal_to_bytes(pack(small_data(5)), draft, data_key=key, signing_key=road.homes[SITE].identity_key)
    assert len(other) == dataset.size_bytes
    road.courier.serve_instead(dataset.digest, other)
    with pytest.raises(TamperedError):
        road.hold(SITE)


def test_a_simulated_tee_is_refused_in_production(make_road: MakeRoad) -> None:
    road = make_road(**TERMS, environment=PRODUCTION)
    with pytest.raises(SimulatedInProductionError):
        road.hold(SITE)
    assert not any(road.events(name, "released") for name in road.homes)


# Versions.


@pytest.fixture
def held(road: Road) -> Held:
    return road.hold(SITE)


RESULTS: dict[str, tuple[Callable[[Held], Any], type[ConfedError]]] = {
    "NaN": (lambda held: {**held.step.arrays, "bias": held.step.arrays["bias"] * np.float32("nan")}, NotFiniteError),
    "infinity": (lambda held: {**held.step.arrays, "bias": held.step.arrays["bias"] + np.float32("inf")}, NotFiniteError),
    "far from the base": (lambda held: {**held.step.arrays, "bias": held.step.arrays["bias"] + np.float32(1e6)}, NormError),
    "another shape": (lambda held: {**held.step.arrays, "bias": held.step.arrays["bias"][:1]}, ShapeError),
    "a counter of another type": (lambda held: {**held.step.arrays, "steps": np.array(4, dtype=np.int32)}, ShapeError),
    "a tensor too many": (lambda held: {**held.step.arrays, "more": held.step.arrays["bias"]}, ShapeError),
}  # fmt: skip


@pytest.mark.parametrize(("change", "error"), RESULTS.values(), ids=RESULTS)
def test_a_result_beyond_the_manifest_becomes_no_version(
    road: Road, held: Held, change: Callable[[Held], Any], error: type[ConfedError]
) -> None:
    with pytest.raises(error):
        finish(held, arrays=change(held))
    assert not road.published(1)


def finish(held: Held, *, arrays: Any = None, weight: float = 1.0, metrics: Mapping[str, float] | None = None) -> str:
    return held.session.seal_result(
        held.site, held.step, held.grants, arrays=arrays, weight=weight, metrics=metrics or {},
        seconds=dict.fromkeys(held.step.seconds, 0.0),
    )  # fmt: skip


def test_weights_and_metrics_are_numbers_within_bounds(road: Road, held: Held) -> None:
    for weight, metrics, error in (
        (0.0, {}, WeightError), (1e9, {}, WeightError), (float("nan"), {}, NotFiniteError),
        (1.0, {"loss": float("inf")}, NotFiniteError),
    ):  # fmt: skip
        with pytest.raises(error):
            finish(held, arrays=road.trained(SITE, held.step.arrays), weight=weight, metrics=metrics)
    assert not road.published(1)


def candidate(road: Road, held: Held, **changes: Any) -> Candidate:
    values: dict[str, Any] = {
        "run": road.manifest.run, "manifest": road.manifest.digest, "round": 1, "attempt": 0, "purpose": "train",
        "base": road.manifest.model.start.digest, "version": 1, "digest": "d1" * 32, "state": "",
        "instance": held.session.instance, "cohort": (held.site.owner.identity,),
        "tickets": (held.grants.ticket.digest,), "excluded": {}, "metrics": ClearMetrics.none().digest, "privacy": None,
    }  # fmt: skip
    return Candidate(**{**values, **changes})


def countersign(road: Road, held: Held, signed: Signed) -> Signed | ConfedError:
    broker = held.site.owner.broker
    (answer,) = road.client_of(SITE).countersign([broker], candidate=signed, tickets=[held.grants.ticket])
    return answer


def test_a_tee_commits_once_for_one_base(road: Road, held: Held) -> None:
    key = held.session._signing
    first = countersign(road, held, sign(candidate(road, held), key))
    assert isinstance(first, Signed)
    again = countersign(road, held, sign(candidate(road, held, digest="d2" * 32), key))
    assert isinstance(again, ForkError)
    finished = countersign(road, held, sign(candidate(road, held, attempt=1), key))
    assert isinstance(finished, ConfedError)


def test_a_version_has_one_successor_whoever_makes_it(road: Road) -> None:
    road.seal(road.hold(SITE))
    second = road.session(SITE)
    with pytest.raises(ConfedError) as refused:
        road.hold(SITE, attempt=1, session=second)
    assert refused.value.code in (RollbackError.code, RoundError.code)


def test_nobody_but_the_attested_tee_has_a_candidate_countersigned(road: Road, held: Held) -> None:
    said = candidate(road, held)
    for signed in (
        sign(said, Ed25519PrivateKey.generate()),
        sign(dataclasses.replace(said, instance=OTHER), held.session._signing),
    ):
        assert isinstance(countersign(road, held, signed), ConfedError)


def test_an_attempt_has_one_instance(road: Road, held: Held) -> None:
    del held
    with pytest.raises(InstanceError):
        road.hold(SITE, session=road.session(SITE))
    road.hold(SITE, attempt=1, session=road.session(SITE))


def test_a_ticket_is_for_the_tee_itself(road: Road) -> None:
    def other(request: TicketRequest) -> TicketRequest:
        return dataclasses.replace(request, aggregator=OTHER)

    with pytest.raises(CredentialError):
        road.hold(SITE, session=road.session(SITE, turns=Turns(ticket=other)))
    # Nor for another one that attested.
    second = road.hold(SITE, attempt=1, session=road.session(SITE)).session

    def the_second(request: TicketRequest) -> TicketRequest:
        return dataclasses.replace(request, aggregator=second.instance)

    with pytest.raises(TicketError):
        road.hold(SITE, attempt=2, session=road.session(SITE, turns=Turns(ticket=the_second)))


def test_old_evidence_makes_no_version(road: Road, held: Held) -> None:
    road.wait(REATTEST_S * 1000 + 1)
    with pytest.raises(ConfedError):
        finish(held, arrays=road.trained(SITE, held.step.arrays))
    assert not road.published(1)


# The manifest.


def test_a_manifest_of_one_tee_has_one_site_and_nothing_to_combine(land: Land, make_road: MakeRoad) -> None:
    two = make_road().manifest
    for manifest, changes in (
        (two, {}),
        (land.manifest, {"strategy": dataclasses.replace(land.manifest.strategy, name="FedAdam")}),
    ):
        with pytest.raises(ConfigError):
            dataclasses.replace(manifest, scenario=Scenario.TRAINING, **changes)


def patient(manifest: Manifest) -> Manifest:
    rule = PatienceTerms(metric="loss", purpose="evaluate", mode="min", rounds=1, min_delta=0.001)
    return dataclasses.replace(training(manifest), stop=StopTerms(target=None, patience=rule, budget=None))


def test_a_stop_rule_ends_the_run_for_the_tee_too(make_road: MakeRoad) -> None:
    road = make_road(**{**TERMS, "change": patient})
    road.seal(road.hold(SITE, 1))
    with pytest.raises(RoundError):  # its evaluation decides whether there is a second
        road.hold(SITE, 2)
    evaluate(road, 1)
    road.seal(road.hold(SITE, 2))
    evaluate(road, 2)
    fresh = road.session(SITE)
    for session in (road.sessions[SITE], fresh):
        with pytest.raises(ConfedError) as refused:
            road.hold(SITE, 3, session=session)
        assert refused.value.code == "run-ended"
    assert fresh.alone is not None
    fresh.alone.close_run(2)
    assert road.ledger(OWNER)[-1].body["ending"]["rule"] == "patience"
