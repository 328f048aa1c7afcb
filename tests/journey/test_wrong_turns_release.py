"""Wrong turns on the way to a key: guarantees 1, 2 and 13. The same road without the turn gives the key."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from road import (
    AGGREGATOR_CODE,
    CLIENT_CODE,
    MAX_ATTEMPTS,
    OTHER,
    OWNER,
    REATTEST_S,
    SITES,
    Aggregator,
    Land,
    Road,
    Turns,
)

from confed.attestation import appraisal
from confed.attestation.tee.simulated import SimulatedPlatform, SimulatedVerifier
from confed.attestation.verifier import Registry
from confed.client import counterpart
from confed.client.releases import Ask, Terms
from confed.client.session import ClientSession
from confed.errors import (
    BindingMismatchError,
    BrokerError,
    BudgetError,
    ChallengeError,
    CohortError,
    ConfedError,
    ConfigurationError,
    CredentialError,
    DebugError,
    EncodingError,
    EvidenceFormatError,
    EvidenceSignatureError,
    FloorError,
    InstanceError,
    LineageError,
    ManifestMismatchError,
    MeasurementError,
    NotApprovedError,
    PolicyMissingError,
    PurposeError,
    QuorumError,
    RequestReplayError,
    RollbackError,
    RoundError,
    SharedInstanceError,
    SignatureError,
    SimulatedInProductionError,
    StaleEvidenceError,
    TrustAnchorError,
    UnknownKeyError,
    UnreachableError,
    WrongKeyError,
)
from confed.journey import Purpose, Role, Use
from confed.keybroker.client import ReleaseItem
from confed.keybroker.statements import KeyName, ReleaseRequest
from confed.manifest import PRODUCTION, Manifest, TeePolicy
from confed.sealing.identities import HpkeIdentity
from confed.statement import sign, unverified

MakeRoad = Callable[..., Road]
Make = Callable[[Road], Turns]
SITE = "north"


class PretendHardware(SimulatedVerifier):
    """Takes simulated evidence for hardware's: what a broker would be that is out of its mind, or a real driver."""

    EVIDENCE_CLASS = "pretend"
    HARDWARE_ROOTED = True


HARDWARE = Registry((PretendHardware(),))


def accept_pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the policies by kind: pretended hardware says nothing that one could appraise."""
    monkeypatch.setattr(appraisal, "_require_kinds", lambda *_: None)


def launched(**launch: Any) -> Make:
    return lambda _: Turns(launch=launch)


def bound(**changes: Any) -> Make:
    return lambda _: Turns(binding=lambda binding: dataclasses.replace(binding, **changes))


def asked(**changes: Any) -> Make:
    return lambda _: Turns(request=lambda request: dataclasses.replace(request, **changes))


def asked_of(name: str, **changes: Callable[[Road, ReleaseRequest], Any]) -> Make:
    """Change the request to one owner's broker alone."""

    def make(road: Road) -> Turns:
        def turn(request: ReleaseRequest) -> ReleaseRequest:
            if request.broker != road.homes[name].party.broker:
                return request
            return dataclasses.replace(request, **{key: value(road, request) for key, value in changes.items()})

        return Turns(request=turn)

    return make


def keys_of(name: str, **changes: Any) -> Make:
    """Change the one key that is asked of an owner's broker."""
    return asked_of(name, keys=lambda _, request: (dataclasses.replace(request.keys[0], **changes),))


def with_nonce(nonce: Callable[[Road, Any], bytes]) -> Make:
    """Use another nonce throughout: in the evidence and in the request."""
    return lambda road: Turns(challenge=lambda reply: dataclasses.replace(reply, nonce=nonce(road, reply)))


def of_another_broker(road: Road, _: Any) -> bytes:
    (challenge,) = road.client_of("south").challenge([(road.homes["south"].party.broker, road.manifest.digest)])
    assert not isinstance(challenge, ConfedError)
    return challenge.nonce


def used_before(road: Road, challenge: Any) -> bytes:
    """The nonce of an honest session's release at the same broker."""
    if "used" not in road.__dict__:
        turns = Turns()
        road.__dict__["used"] = turns.released
        step(road, road.session(SITE, turns=turns), attempt=road.new_attempt())
    requests = [unverified(item[0], ReleaseRequest) for item in road.__dict__["used"]]
    return next((request.nonce for request in requests if request.broker == challenge.broker), os.urandom(32))


def after(milliseconds: int) -> Make:
    """Let time pass between the challenge and the release."""

    def make(road: Road) -> Turns:
        then = road.now + milliseconds

        def later(challenge: Any) -> Any:
            road.now = then
            return challenge

        return Turns(challenge=later)

    return make


def under_another_root(road: Road) -> Turns:
    return Turns(launch={"platform": SimulatedPlatform.create(road.now)})


def flipped(place: bytes) -> Make:
    """Flip the bit of a byte in the evidence after it was made: a letter of base64 becomes another one."""

    def flip(envelope: bytes) -> bytes:
        at = envelope.index(place) + len(place) + 8
        changed = bytearray(envelope)
        changed[at] = ord("A") if changed[at] != ord("A") else ord("B")
        return bytes(changed)

    return lambda _: Turns(envelope=flip)


def with_evidence_of_another(road: Road) -> Turns:
    """Show the evidence of an honest enclave, made under the same nonce, as one's own."""
    honest = HpkeIdentity.generate().public
    key = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    return Turns(binding=lambda binding: dataclasses.replace(binding, hpke_public=honest, signing_public=key))


ALL = (OWNER, SITE)
CLIENT: dict[str, tuple[Make, type[ConfedError], tuple[str, ...]]] = {
    # What runs (guarantee 1: measurement, configuration, code, debug).
    "other code": (launched(measurement="ee" * 32), MeasurementError, ALL),
    "the aggregator's code": (launched(measurement=AGGREGATOR_CODE), MeasurementError, ALL),
    "another measured configuration": (launched(configuration=OTHER), ConfigurationError, ALL),
    "no measured configuration": (launched(configuration="00" * 32), ConfigurationError, ALL),
    "a debug flag": (launched(debug=True), DebugError, ALL),
    "another environment": (launched(environment=PRODUCTION), ConfigurationError, ALL),
    "another root": (under_another_root, TrustAnchorError, ALL),
    # Evidence that is not what was signed, or for something else.
    "evidence with a flipped bit": (flipped(b'"evidence":"'), EvidenceFormatError, ALL),
    "a binding with a flipped bit": (flipped(b'"binding":"'), EvidenceFormatError, ALL),
    "evidence that is none": (lambda _: Turns(envelope=lambda _: b"{}"), EvidenceFormatError, ALL),
    "no evidence": (lambda _: Turns(envelope=lambda _: b""), InstanceError, ALL),
    "evidence for another audience": (bound(audience=OTHER), BindingMismatchError, ALL),
    "evidence under another manifest": (bound(manifest=OTHER), BindingMismatchError, ALL),
    "evidence for another role": (bound(role=Role.AGGREGATOR), BindingMismatchError, ALL),
    "evidence for another run": (bound(run="run-2"), BindingMismatchError, ALL),
    "evidence under another nonce": (bound(nonce=b"n" * 32), BindingMismatchError, ALL),
    "evidence for another enclave key": (
        lambda _: Turns(binding=lambda b: dataclasses.replace(b, hpke_public=HpkeIdentity.generate().public)),
        InstanceError,
        ALL,
    ),
    "evidence of another enclave": (with_evidence_of_another, InstanceError, ALL),
    "old evidence": (after(61_000), StaleEvidenceError, ALL),
    "evidence from the future": (
        lambda _: Turns(binding=lambda b: dataclasses.replace(b, issued_at=b.issued_at + 60_000)),
        StaleEvidenceError,
        ALL,
    ),
    "a request signed by another key": (lambda _: Turns(signing=Ed25519PrivateKey.generate()), SignatureError, ALL),
    # The nonce (guarantee 2).
    "a nonce that nobody issued": (with_nonce(lambda *_: b"n" * 32), ChallengeError, ALL),
    "another broker's nonce": (with_nonce(of_another_broker), ChallengeError, ALL),
    "a used nonce": (with_nonce(used_before), ChallengeError, ALL),
    "an expired nonce": (after(121_000), ChallengeError, ALL),
    # What is asked (role, purpose, round, attempt, base, version).
    "another role": (asked(role=Role.AGGREGATOR, identity=b""), PurposeError, ALL),
    "another purpose": (asked(purpose=Purpose.AGGREGATE), PurposeError, ALL),
    "an evaluation of what is not there": (asked(purpose=Purpose.EVALUATE), RoundError, ALL),
    "the next round": (asked(round=2), RoundError, ALL),
    "round 0": (asked(round=0), RoundError, ALL),
    "a round after the last": (asked(round=4), RoundError, ALL),
    "an attempt after the last": (asked(attempt=MAX_ATTEMPTS), BudgetError, ALL),
    "an attempt before the first": (asked(attempt=-1), RoundError, ALL),
    "another run": (asked(run="run-2"), ManifestMismatchError, ALL),
    "another manifest": (asked(manifest=OTHER), NotApprovedError, ALL),
    "a base that nobody committed": (asked(base=OTHER), LineageError, ALL),
    "a base record that is none": (lambda _: Turns(record=lambda _: b"{}"), EncodingError, ALL),
    "another instance's name": (asked(instance=OTHER), InstanceError, ALL),
    "this broker's nonce at another broker": (
        asked_of(SITE, broker=lambda road, _: road.homes["south"].party.broker),
        ChallengeError,
        (SITE, "south"),
    ),
    "the next version's key": (keys_of(OWNER, use=Use.VERSION, container="", version=1), PurposeError, (OWNER,)),
    "the strategy's state": (keys_of(OWNER, use=Use.STATE, container="", version=1), PurposeError, (OWNER,)),
    "another container's key": (keys_of(OWNER, container="container-2"), UnknownKeyError, (OWNER,)),
    "another key of the owner": (keys_of(OWNER, key_id="ab" * 16), UnknownKeyError, (OWNER,)),
    "another site's data": (keys_of(SITE, container="container-south"), UnknownKeyError, (SITE,)),
    "data at the model owner's": (keys_of(OWNER, use=Use.DATA), UnknownKeyError, (OWNER,)),
    "another identity at one's own broker": (
        asked_of(SITE, identity=lambda road, _: road.homes["south"].party.identity),
        CredentialError,
        (SITE,),
    ),
    "an identity that the manifest does not list": (
        asked_of(OWNER, identity=lambda *_: b"p" * 32),
        ManifestMismatchError,
        (OWNER,),
    ),
}


def step(road: Road, session: ClientSession, *, site: str = SITE, round_number: int = 1, attempt: int = 0) -> Any:
    named = road.manifest.site_named(site)
    return session.step(named, round_number=round_number, attempt=attempt, purpose=Purpose.TRAIN)


@pytest.fixture
def opened(road: Road) -> Road:
    """A road with an aggregator that attested, and round 1 open."""
    road.aggregator().open(1)
    return road


def test_an_honest_client_gets_its_keys(opened: Road) -> None:
    session = opened.session(SITE, turns=Turns())
    prepared, _ = step(opened, session)
    assert set(prepared.arrays) == set(opened.land.model)
    assert sorted(opened.released_to(session.instance)) == sorted(ALL)


@pytest.mark.parametrize("sentence", CLIENT)
def test_a_client_gets_no_key_with(shared: Road, sentence: str) -> None:
    make, error, refusing = CLIENT[sentence]
    session = shared.session(SITE, turns=make(shared))
    with pytest.raises(ConfedError) as refused:
        step(shared, session, attempt=shared.new_attempt())
    assert type(refused.value) is error
    assert not set(refusing) & set(shared.released_to(session.instance))
    # The turn was this session's alone: whoever comes honestly after it, in the next attempt, gets in.
    step(shared, shared.session(SITE), attempt=shared.new_attempt())


AGGREGATOR: dict[str, tuple[Make, type[ConfedError]]] = {
    "other code": (launched(measurement="ee" * 32), MeasurementError),
    "a client's code": (launched(measurement=CLIENT_CODE), MeasurementError),
    "another measured configuration": (launched(configuration=OTHER), ConfigurationError),
    "a debug flag": (launched(debug=True), DebugError),
    "another root": (under_another_root, TrustAnchorError),
    "evidence for another audience": (bound(audience=OTHER), BindingMismatchError),
    "evidence for another role": (bound(role=Role.CLIENT), BindingMismatchError),
    "evidence for another enclave key": (
        lambda _: Turns(binding=lambda b: dataclasses.replace(b, hpke_public=HpkeIdentity.generate().public)),
        InstanceError,
    ),
    "evidence that is none": (lambda _: Turns(envelope=lambda _: b"{}"), EvidenceFormatError),
    "a nonce that nobody issued": (with_nonce(lambda *_: b"n" * 32), ChallengeError),
    "an expired nonce": (after(121_000), ChallengeError),
    "a request signed by another key": (lambda _: Turns(signing=Ed25519PrivateKey.generate()), SignatureError),
    "a client's role": (asked(role=Role.CLIENT), PurposeError),
    "a client's purpose": (asked(purpose=Purpose.TRAIN), PurposeError),
    "the next round": (asked(round=2), RoundError),
    "an attempt after the last": (asked(attempt=MAX_ATTEMPTS), BudgetError),
    "another base": (asked(base=OTHER), LineageError),
    "an identity": (asked(identity=b"i" * 32), CredentialError),
    "another manifest": (asked(manifest=OTHER), NotApprovedError),
    "a site's data": (
        asked_of(
            OWNER,
            keys=lambda road, _: (
                KeyName(
                    key_id=road.manifest.site_named(SITE).dataset.key_id,
                    use=Use.DATA,
                    container=f"container-{SITE}",
                    version=0,
                    attempt=0,
                ),
            ),
        ),
        PurposeError,
    ),
    "the key of the version after next": (keys_of(OWNER, version=2), PurposeError),
    "the next version's key of another attempt": (keys_of(OWNER, attempt=MAX_ATTEMPTS - 1), RoundError),
}


@pytest.fixture(scope="module")
def shared_by_aggregators(land: Land, quick_disk: Path) -> Iterator[Road]:
    """One road for the table of aggregators, which has attempts of its own."""
    with Road(land, Path(tempfile.mkdtemp(dir=quick_disk))) as road:
        yield road


@pytest.mark.parametrize("sentence", AGGREGATOR)
def test_an_aggregator_gets_no_key_with(shared_by_aggregators: Road, sentence: str) -> None:
    shared, (make, error) = shared_by_aggregators, AGGREGATOR[sentence]
    attempt, aggregator = shared.new_attempt(), shared.aggregator(make(shared))
    with pytest.raises(ConfedError) as refused:
        aggregator.open(1, attempt=attempt)
    assert type(refused.value) is error
    assert not shared.released_to(aggregator.instance)
    # The turn was this instance's alone: the next one may have the attempt.
    shared.aggregator().open(1, attempt=attempt)


def test_an_aggregator_that_the_sites_refuse_is_no_aggregator(road: Road) -> None:
    """The model owner's broker is content, the sites' are not: no quorum, no round."""

    def elsewhere(binding: Any) -> Any:
        owners = road.released_to(road.aggregators[-1].instance)
        return binding if not owners else dataclasses.replace(binding, audience=OTHER)

    aggregator = road.aggregator(Turns(binding=elsewhere))
    with pytest.raises(QuorumError):
        aggregator.open(1)
    assert road.released_to(aggregator.instance) == [OWNER]


# What was agreed: the manifest, its policy, the keys' own floors.


def looser(manifest: Manifest, **changes: Any) -> Manifest:
    return dataclasses.replace(manifest, **changes)


def policy(manifest: Manifest, **changes: Any) -> TeePolicy:
    return dataclasses.replace(manifest.client_tee, **changes)


MANIFESTS: dict[str, Callable[[Manifest], Manifest]] = {
    "other code permitted": lambda m: looser(m, client_tee=policy(m, measurements=("ee" * 32,))),
    "older evidence permitted": lambda m: looser(m, client_tee=policy(m, max_age_s=3600)),
    "a smaller cohort": lambda m: looser(m, cohort=dataclasses.replace(m.cohort, least=1)),
    "a higher norm": lambda m: looser(m, update=dataclasses.replace(m.update, norm_bound=1e9)),
    "one more metric in clear": lambda m: looser(m, metrics=dataclasses.replace(m.metrics, clear=("loss", "age"))),
    "another learning rate": lambda m: looser(m, train_config={"lr": 0.5}),
    "more rounds": lambda m: looser(m, rounds=10),
    "a site less": lambda m: looser(m, sites=m.sites[1:]),
    "other client code": lambda m: looser(m, code=dataclasses.replace(m.code, client_image=OTHER)),
}


@pytest.mark.parametrize("sentence", MANIFESTS)
def test_a_manifest_that_was_changed_after_approval_gets_no_key(
    land: Land, shared: Road, monkeypatch: pytest.MonkeyPatch, sentence: str
) -> None:
    monkeypatch.setattr(shared, "manifest", MANIFESTS[sentence](land.manifest))
    assert shared.manifest.digest != land.manifest.digest
    session, aggregator = shared.session("south"), shared.aggregator()
    with pytest.raises(NotApprovedError):
        step(shared, session, site="south")
    with pytest.raises(NotApprovedError):
        aggregator.open(1)
    with pytest.raises(NotApprovedError):
        shared.homes["south"].approve(shared.manifest)
    assert not shared.released_to(session.instance)
    assert not shared.released_to(aggregator.instance)


def floor(who: str, **changes: Any) -> dict[str, Any]:
    return {"floors": lambda name, _: changes if name == who else {}}


FLOORS: dict[str, tuple[dict[str, Any], type[ConfedError]]] = {
    "a data key that wants a larger cohort": (floor(SITE, least_cohort=3), FloorError),
    "a data key for other code": (floor(SITE, measurements=("ee" * 32,)), MeasurementError),
    "a data key that does not train": (floor(SITE, purposes=(Purpose.EVALUATE,)), PurposeError),
    "a model key for other code": (floor(OWNER, measurements=("ee" * 32,)), MeasurementError),
    "a model key that wants a larger cohort": (floor(OWNER, least_cohort=3), FloorError),
    "a data key whose owner counts too few of these sites": (
        {"floors": lambda name, homes: {"counted_identities": (homes[SITE].party.identity,)} if name == SITE else {}},
        FloorError,
    ),
    "a cohort of one that no data owner agreed to": ({"least": 1}, FloorError),
}


@pytest.mark.parametrize("sentence", FLOORS)
def test_a_key_does_not_go_below_its_own_floors(make_road: MakeRoad, sentence: str) -> None:
    terms, error = FLOORS[sentence]
    road = make_road(**terms)
    with pytest.raises(error):
        step(road, road.session(SITE))


def test_a_cohort_of_one_trains_where_every_data_owner_agreed_to_it(make_road: MakeRoad) -> None:
    road = make_road(least=1, floors=lambda *_: {"discloses_to_model_owner": True})
    assert road.round(1, sites=[SITE]).cohort_size == 1


def test_a_key_serves_only_so_many_rounds(make_road: MakeRoad) -> None:
    road = make_road(floors=lambda name, _: {"total_rounds": 1} if name == SITE else {})
    road.round(1)
    road.aggregators[-1].open(2)
    with pytest.raises(BudgetError):
        road.hold(SITE, 2)
    road.send(road.aggregators[-1], ["east", "south"], 2)
    assert road.aggregators[-1].close_round().excluded == {SITE: "no-answer", "west": "no-answer"}


def test_a_round_whose_model_key_is_spent_does_not_open(make_road: MakeRoad) -> None:
    road = make_road(floors=lambda name, _: {"total_rounds": 1} if name == OWNER else {})
    road.round(1)
    with pytest.raises(BudgetError):
        road.aggregators[-1].open(2)


# Guarantee 13: simulated, debug and shared evidence never passes as real.


def production(make_road: MakeRoad, **terms: Any) -> Road:
    return make_road(environment=PRODUCTION, **terms)


@pytest.mark.parametrize("role", ["client", "aggregator"])
def test_simulated_evidence_is_refused_in_production(make_road: MakeRoad, role: str) -> None:
    road = production(make_road)
    with pytest.raises(SimulatedInProductionError):
        step(road, road.session(SITE)) if role == "client" else road.aggregator().open(1)
    assert not any(road.events(name, "released") for name in road.homes)


@pytest.mark.parametrize(
    ("launch", "error"),
    [({"debug": True}, DebugError), ({"shared": True}, SharedInstanceError)],
    ids=["debug", "shared"],
)
def test_hardware_that_is_shared_or_debugged_is_refused_in_production(
    make_road: MakeRoad, launch: dict[str, Any], error: type[ConfedError]
) -> None:
    road = production(make_road, registry=HARDWARE)
    session = road.session(SITE, turns=Turns(launch=launch))
    with pytest.raises(error):
        step(road, session)
    assert not road.released_to(session.instance)


def test_hardware_would_pass_in_production(make_road: MakeRoad, monkeypatch: pytest.MonkeyPatch) -> None:
    accept_pretended(monkeypatch)
    monkeypatch.setattr(counterpart, "default_registry", lambda: HARDWARE)
    assert production(make_road, registry=HARDWARE).round(1).cohort_size == len(SITES)


def test_hardware_without_a_policy_of_its_kind_is_refused(make_road: MakeRoad) -> None:
    road = production(make_road, registry=HARDWARE)
    with pytest.raises(PolicyMissingError):
        step(road, road.session(SITE))
    assert not any(road.events(name, "released") for name in road.homes)


def test_keys_born_in_simulation_never_leave_it(make_road: MakeRoad, monkeypatch: pytest.MonkeyPatch) -> None:
    """The owners approve a production manifest over keys of simulation, and even the evidence is hardware's."""
    accept_pretended(monkeypatch)
    road = make_road(change=lambda m: dataclasses.replace(m, environment=PRODUCTION), registry=HARDWARE)
    with pytest.raises(FloorError):
        step(road, road.session(SITE))
    assert not any(road.events(name, "released") for name in road.homes)


# Guarantee 2: nonces are single-use, and evidence is nobody else's.


def item_of(road: Road, session: ClientSession, name: str, nonce: bytes) -> ReleaseItem:
    """What an honest session would send to an owner's broker under this nonce."""
    terms = Terms(round_number=1, attempt=0, purpose=Purpose.TRAIN, base=road.manifest.model.start.digest, record=b"")
    site = road.manifest.site_named(name)
    assert site.dataset is not None
    key = KeyName(key_id=site.dataset.key_id, use=Use.DATA, container=site.dataset.container_id, version=0, attempt=0)
    ask = Ask(broker=site.owner.broker, identity=site.owner.identity, keys=(key,))
    return session._releases.request(ask, terms, nonce=nonce)


def nonce_of(road: Road, session: ClientSession, name: str = SITE) -> bytes:
    (challenge,) = road.client_of(name).challenge([(road.homes[name].party.broker, road.manifest.digest)])
    assert not isinstance(challenge, ConfedError)
    session._clock.advance(challenge.issued_at)
    return challenge.nonce


def test_one_nonce_serves_once_however_many_ask_at_once(road: Road) -> None:
    session = road.session(SITE)
    nonce = nonce_of(road, session)
    items = [item_of(road, session, SITE, nonce) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        answers = [answer for (answer,) in pool.map(lambda item: road.client_of(SITE).release([item]), items)]
    refusals = [answer for answer in answers if isinstance(answer, ConfedError)]
    assert len(refusals) == 7
    assert {type(refusal) for refusal in refusals} == {ChallengeError}
    assert len(road.events(SITE, "released")) == 1


def test_a_refusal_burns_the_nonce(road: Road) -> None:
    session = road.session(SITE)
    nonce = nonce_of(road, session)
    request, envelope, record = item_of(road, session, SITE, nonce)
    (refused,) = road.client_of(SITE).release([(request, b"{}", record)])
    assert isinstance(refused, EvidenceFormatError)
    (again,) = road.client_of(SITE).release([item_of(road, session, SITE, nonce)])
    assert isinstance(again, ChallengeError)
    (same,) = road.client_of(SITE).release([(request, envelope, record)])
    assert isinstance(same, ChallengeError)


def test_a_release_that_is_replayed_is_useless_to_anyone_else(road: Road) -> None:
    session = road.session(SITE)
    item = item_of(road, session, SITE, nonce_of(road, session))
    (first,) = road.client_of(SITE).release([item])
    (again,) = road.client_of(SITE).release([item])
    assert not isinstance(first, ConfedError)
    assert first == again
    assert len(road.events(SITE, "released")) == 1
    for wrapped in again.wrapped_keys:
        assert len(session._hpke.unwrap(wrapped, info=again.grant.context)) == 32
        with pytest.raises(WrongKeyError):
            HpkeIdentity.generate().unwrap(wrapped, info=again.grant.context)
        with pytest.raises(WrongKeyError):
            session._hpke.unwrap(wrapped, info=b"another grant")


def test_a_request_id_serves_one_request(road: Road) -> None:
    session = road.session(SITE)
    request, envelope, record = item_of(road, session, SITE, nonce_of(road, session))
    road.client_of(SITE).release([(request, envelope, record)])
    said = dataclasses.replace(unverified(request, ReleaseRequest), nonce=nonce_of(road, session))
    (refused,) = road.client_of(SITE).release([(sign(said, session._signing), envelope, record)])
    assert isinstance(refused, RequestReplayError)


def test_evidence_for_one_broker_is_nothing_to_another(road: Road) -> None:
    """A dishonest broker relays what it was shown, under a nonce that it got from the other one."""
    session, nonces = road.session(SITE), {}
    for name in (SITE, "south"):
        nonces[name] = nonce_of(road, session, name)
    _, envelope, _ = item_of(road, session, SITE, nonces["south"])
    request, _, record = item_of(road, session, "south", nonces["south"])
    (refused,) = road.client_of("south").release([(request, envelope, record)])
    assert isinstance(refused, BindingMismatchError)


def test_a_stranger_gets_nothing_for_evidence_that_it_relays(road: Road) -> None:
    honest, stranger = road.session(SITE), road.session(SITE)
    nonce = nonce_of(road, honest)
    nonce_of(road, stranger)
    _, envelope, record = item_of(road, honest, SITE, nonce)
    request = unverified(item_of(road, stranger, SITE, nonce)[0], ReleaseRequest)
    (refused,) = road.client_of(SITE).release([(sign(request, stranger._signing), envelope, record)])
    assert isinstance(refused, InstanceError)
    honest_name = dataclasses.replace(request, instance=honest.instance, nonce=nonce_of(road, stranger))
    (refused,) = road.client_of(SITE).release([(sign(honest_name, stranger._signing), b"", record)])
    assert isinstance(refused, InstanceError)


def test_evidence_with_a_forged_signature_is_refused(opened: Road) -> None:
    def forged(envelope: bytes) -> bytes:
        from confed.attestation.evidence import Envelope  # noqa: PLC0415

        found = Envelope.decode(envelope)
        return dataclasses.replace(found, evidence=found.evidence[:-64] + bytes(64)).encode()

    with pytest.raises(EvidenceSignatureError):
        step(opened, opened.session(SITE, turns=Turns(envelope=forged)))


def test_evidence_serves_only_for_as_long_as_the_manifest_says(opened: Road) -> None:
    session = opened.session(SITE)
    step(opened, session)
    opened.now += REATTEST_S * 1000 + 1
    request, envelope, record = item_of(opened, session, SITE, nonce_of(opened, session))
    (refused,) = opened.client_of(SITE).release([(request, b"", record)])
    assert isinstance(refused, InstanceError)
    assert envelope  # an honest session knows, and attests anew


def test_evidence_that_grows_old_in_a_run_is_made_anew_in_time(road: Road) -> None:
    """Rounds of two thirds of the time that evidence serves: none of them is cut off in its middle."""
    aggregator = road.aggregator()
    for number in (1, 2, 3):
        aggregator.open(number)
        road.send(aggregator, SITES[:2], number)
        road.wait(REATTEST_S * 1000 * 2 // 3)
        road.send(aggregator, SITES[2:], number)
        assert aggregator.close_round().cohort_size == len(SITES)


# The base moves: what was the base is none any more.


def test_a_base_that_was_replaced_gets_no_key(road: Road) -> None:
    road.round(1)
    start = road.manifest.model.start
    old = KeyName(key_id=start.key_id, use=Use.START, container=start.container_id, version=0, attempt=0)
    changes: dict[str, tuple[dict[str, Any], type[ConfedError]]] = {
        "round 1 again, on the start": ({"round": 1, "base": start.digest, "keys": (old,)}, RollbackError),
        "round 2 on the start": ({"base": start.digest, "keys": (old,)}, RollbackError),
        "round 2 with the start's key": ({"keys": (old,)}, PurposeError),
        "round 1 on version 1": ({"round": 1}, RoundError),
    }
    for changed, error in changes.values():
        turn = asked_of(OWNER, **{key: lambda *_, value=value: value for key, value in changed.items()})(road)
        session = road.session(SITE, turns=turn)
        with pytest.raises(error):
            step(road, session, round_number=2)
        assert OWNER not in road.released_to(session.instance)
    road.aggregators[-1].open(2, attempt=1)
    step(road, road.session(SITE), round_number=2, attempt=1)


def test_a_site_that_was_not_drawn_gets_no_key(make_road: MakeRoad) -> None:
    road = make_road(change=lambda m: dataclasses.replace(m, cohort=dataclasses.replace(m.cohort, fraction_train=0.5)))
    drawn = {site.owner.name for site in road.manifest.draw(purpose="train", round_number=1)}
    (other, *_) = sorted(set(SITES) - drawn)
    road.aggregator().open(1)
    session = road.session(other)
    nonce = nonce_of(road, session, other)
    (refused,) = road.client_of(other).release([item_of(road, session, other, nonce)])
    assert isinstance(refused, CohortError)
    step(road, road.session(min(drawn)), site=min(drawn))


def test_a_request_to_one_broker_is_not_answered_by_another(make_road: MakeRoad) -> None:
    road = make_road(apart=True)
    session = road.session(SITE)
    (refused,) = road.client_of("south").release([item_of(road, session, SITE, nonce_of(road, session))])
    assert isinstance(refused, BrokerError)


# Guarantee 3's last sentence: a broker that is down fails closed.


@pytest.mark.parametrize("name", [OWNER, SITE])
def test_a_client_without_an_answer_from_a_broker_gets_nothing(make_road: MakeRoad, name: str) -> None:
    road = make_road(apart=True)
    road.aggregator().open(1)
    road.servers[name].stop()
    with pytest.raises(UnreachableError):
        step(road, road.session(SITE))


def test_an_aggregator_without_the_model_owners_broker_gets_nothing(make_road: MakeRoad) -> None:
    road = make_road(apart=True)
    road.servers[OWNER].stop()
    with pytest.raises(UnreachableError):
        road.aggregator().open(1)


def test_an_aggregator_needs_the_brokers_of_more_than_half_of_the_sites(make_road: MakeRoad) -> None:
    road = make_road(apart=True)
    road.servers["east"].stop()
    road.aggregator().open(1)
    road.servers["west"].stop()
    with pytest.raises(QuorumError):
        road.aggregator().open(1, attempt=1)


def test_a_site_whose_broker_was_down_is_left_out_and_named(make_road: MakeRoad) -> None:
    road = make_road(apart=True)
    road.servers["east"].stop()
    aggregator: Aggregator = road.aggregator()
    aggregator.open(1)
    road.send(aggregator, ["north", "south"])
    with pytest.raises(UnreachableError):
        road.hold("east")
    closed = aggregator.close_round({"east": "unreachable"})
    assert closed.excluded == {"east": "unreachable", "west": "no-answer"}


def test_a_broker_that_is_down_stops_its_own_site_alone_in_a_shared_client(make_road: MakeRoad) -> None:
    road = make_road(apart=True)
    road.aggregator().open(1)
    shared = road.session("east", "north")
    road.servers["east"].stop()
    assert road.hold("north", session=shared).grants.ticket
    with pytest.raises(UnreachableError):
        road.hold("east", session=shared)
