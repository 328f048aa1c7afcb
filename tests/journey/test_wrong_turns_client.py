"""Wrong turns in front of a client: guarantees 3, 4 and 8. It verifies what it is told, and believes nobody."""

from __future__ import annotations

import base64
import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from road import CLIENT_CODE, MAX_ATTEMPTS, NOW, OTHER, OWNER, REATTEST_S, SITES, Held, Land, Road, Turns, small_model
from test_wrong_turns_release import HARDWARE, accept_pretended

from confed import canonical
from confed.attestation.evidence import Binding, instance_of
from confed.attestation.tee.simulated import SimulatedAttester, SimulatedPlatform
from confed.errors import (
    BindingMismatchError,
    BudgetError,
    CohortError,
    ConfedError,
    ConfigurationError,
    CredentialError,
    EncodingError,
    EvidenceFormatError,
    ForkError,
    InstanceError,
    LineageError,
    MeasurementError,
    MissingObjectError,
    QuorumError,
    RollbackError,
    RoundError,
    SessionError,
    ShapeError,
    SignatureError,
    SimulatedInProductionError,
    StaleEvidenceError,
    TamperedError,
    TicketError,
    TruncatedError,
    TrustAnchorError,
    UnknownKeyError,
    UnreachableError,
)
from confed.governor.courier import Courier
from confed.journey import Kind, Purpose, Role
from confed.keybroker.statements import AggregatorCredential, Candidate, Commit, CommitRecord, Countersignature
from confed.manifest import PRODUCTION
from confed.model.weights import pack
from confed.sealing.container import Container, Draft, seal_to_bytes
from confed.sealing.derivation import container_key
from confed.sealing.identities import HpkeIdentity
from confed.statement import Signed, sign, unverified

MakeRoad = Callable[..., Road]
SITE = "north"


def topic(road: Road, site: str = SITE) -> str:
    return f"{road.manifest.run}/aggregator/{site}"


def letter_of(road: Road, site: str = SITE) -> dict[str, Any]:
    """The aggregator's letter to a site, as it was posted."""
    return canonical.decode(Courier.collect(road.courier, topic(road, site))[-1])


def credential_of(road: Road) -> AggregatorCredential:
    return unverified(Signed.from_json(letter_of(road)["credential"]), AggregatorCredential)


def letter(credential: Signed, envelope: Any) -> bytes:
    return canonical.encode({"credential": credential.to_json(), "envelope": envelope})


def said(**changes: Any) -> Callable[[Road], bytes]:
    """The site's own broker signs another credential over the same evidence."""

    def forge(road: Road) -> bytes:
        credential = dataclasses.replace(credential_of(road), **changes)
        return letter(sign(credential, road.homes[SITE].broker_key), letter_of(road)["envelope"])

    return forge


def shown(envelope: Any) -> Callable[[Road], bytes]:
    """The true credential with other evidence."""
    return lambda road: canonical.encode({**letter_of(road), "envelope": envelope})


def attested(*, launch: Mapping[str, Any] | None = None, **binding: Any) -> Callable[[Road], bytes]:
    """The site's own broker credentials an enclave whose evidence does not hold, of keys that it has."""

    def forge(road: Road) -> bytes:
        hpke, key = HpkeIdentity.generate(), Ed25519PrivateKey.generate()
        public = key.public_key().public_bytes_raw()
        true = credential_of(road)
        values: dict[str, Any] = {
            "profile": "simulated/1",
            "nonce": true.nonce,
            "audience": canonical.digest(road.homes[SITE].party.broker),
            "manifest": road.manifest.digest,
            "role": Role.AGGREGATOR,
            "run": road.manifest.run,
            "hpke_public": hpke.public,
            "signing_public": public,
            "issued_at": true.issued_at,
            **binding,
        }
        terms = {"measurement": "a9" * 32, "shared": False, **(launch or {})}
        evidence = SimulatedAttester(road.launch(**terms)).attest(Binding(**values)).encode()
        credential = dataclasses.replace(
            true, instance=instance_of(hpke.public, public), hpke_public=hpke.public, signing_public=public
        )
        return letter(sign(credential, road.homes[SITE].broker_key), base64.b64encode(evidence).decode())

    return forge


def signed_by(key: Callable[[Road], Ed25519PrivateKey]) -> Callable[[Road], bytes]:
    return lambda road: letter(sign(credential_of(road), key(road)), letter_of(road)["envelope"])


def with_a_flipped_signature(road: Road) -> bytes:
    found = letter_of(road)
    signature = found["credential"]["signature"]
    found["credential"]["signature"] = ("1" if signature[0] != "1" else "2") + signature[1:]
    return canonical.encode(found)


AGGREGATORS: dict[str, tuple[Callable[[Road], bytes], type[ConfedError]]] = {
    # Empty and unknown.
    "an empty letter": (lambda _: b"", EncodingError),
    "a letter of nothing": (lambda _: b"{}", CredentialError),
    "a letter with more in it": (lambda road: canonical.encode({**letter_of(road), "more": 1}), CredentialError),
    "a credential that is none": (lambda _: canonical.encode({"credential": {}, "envelope": ""}), EncodingError),
    # Whose word it is.
    "another site's credential": (
        lambda road: Courier.collect(road.courier, topic(road, "south"))[-1],
        SignatureError,
    ),
    "a credential of another site's broker": (signed_by(lambda road: road.homes["south"].broker_key), SignatureError),
    "a credential of the model owner": (signed_by(lambda road: road.homes[OWNER].broker_key), SignatureError),
    "a credential of the site's identity key": (signed_by(lambda road: road.homes[SITE].identity_key), SignatureError),
    "a credential of nobody known": (signed_by(lambda _: Ed25519PrivateKey.generate()), SignatureError),
    "a flipped signature": (with_a_flipped_signature, SignatureError),
    # What it is for.
    "a credential in another broker's name": (said(broker=b"b" * 32), CredentialError),
    "a credential of another identity": (said(identity=b"i" * 32), CredentialError),
    "a credential of another manifest": (said(manifest=OTHER), CredentialError),
    "a credential of another run": (said(run="run-2"), CredentialError),
    "a credential of another instance": (said(instance=OTHER), CredentialError),
    "a credential with another enclave key": (
        said(hpke_public=HpkeIdentity.generate().public),
        CredentialError,
    ),
    "a credential from a later round on": (said(first_round=2), CredentialError),
    "a credential up to an earlier round": (said(first_round=0, last_round=0), CredentialError),
    "a credential that expired": (said(expires_at=NOW - 1), CredentialError),
    "a credential from the future": (said(issued_at=NOW + 60_000), CredentialError),
    # Unattested, or attested as something else: the broker errs or lies, the client looks itself.
    "no evidence": (shown(""), EvidenceFormatError),
    "evidence that is no text": (shown(7), CredentialError),
    "evidence that is none": (shown(base64.b64encode(b"{}").decode()), EvidenceFormatError),
    "evidence for another broker": (
        lambda road: shown(letter_of(road, "south")["envelope"])(road),
        BindingMismatchError,
    ),
    "evidence of a client": (attested(role=Role.CLIENT), BindingMismatchError),
    "evidence under another nonce": (attested(nonce=b"n" * 32), BindingMismatchError),
    "evidence of another run": (attested(run="run-2"), BindingMismatchError),
    "evidence under another manifest": (attested(manifest=OTHER), BindingMismatchError),
    "evidence of another instance": (
        attested(hpke_public=HpkeIdentity.generate().public),
        CredentialError,
    ),
    "evidence of old": (attested(issued_at=NOW - 61_000), StaleEvidenceError),
    "an aggregator of other code": (attested(launch={"measurement": "ee" * 32}), MeasurementError),
    "an aggregator of the client's code": (attested(launch={"measurement": CLIENT_CODE}), MeasurementError),
    "an aggregator of another configuration": (attested(launch={"configuration": OTHER}), ConfigurationError),
    "an aggregator under another root": (
        attested(launch={"platform": SimulatedPlatform.create(NOW)}),
        TrustAnchorError,
    ),
}


@pytest.fixture
def opened(road: Road) -> Road:
    """A road with an aggregator that attested, and round 1 open."""
    road.aggregator().open(1)
    return road


def refused_before_a_ticket(road: Road, error: type[ConfedError]) -> None:
    before = road.events(SITE, "ticketed"), road.events(SITE, "refused")
    with pytest.raises(ConfedError) as refused:
        road.hold(SITE, attempt=road.new_attempt(), session=road.session(SITE))
    assert type(refused.value) is error
    # By the client itself: no broker was even asked for a ticket.
    assert (road.events(SITE, "ticketed"), road.events(SITE, "refused")) == before


@pytest.mark.parametrize("sentence", AGGREGATORS)
def test_a_client_seals_nothing_to(shared: Road, sentence: str) -> None:
    forge, error = AGGREGATORS[sentence]
    shared.courier.letters_instead[topic(shared)] = [forge(shared)]
    refused_before_a_ticket(shared, error)
    shared.courier.letters_instead.clear()
    shared.seal(shared.hold(SITE, attempt=shared.new_attempt()))


def test_a_client_seals_nothing_where_there_is_no_aggregator(opened: Road) -> None:
    opened.courier.letters_instead[topic(opened)] = []
    refused_before_a_ticket(opened, CredentialError)


def test_the_forger_of_a_letter_that_would_hold_is_the_sites_own_broker(opened: Road) -> None:
    """What makes the table above mean something: unchanged, the same forgery holds."""
    opened.courier.letters_instead[topic(opened)] = [attested()(opened)]
    with pytest.raises(CredentialError):  # of the broker, when a ticket is asked for: it never credentialed this one
        opened.hold(SITE)
    opened.courier.letters_instead[topic(opened)] = [said()(opened)]
    opened.hold(SITE, attempt=1)


def test_a_forged_letter_beside_the_true_one_does_no_harm(opened: Road) -> None:
    for forge, _ in list(AGGREGATORS.values())[:9]:
        opened.courier.post(topic(opened), forge(opened) or b" ")
    held = opened.hold(SITE)
    assert held.grants.aggregator.instance == opened.aggregators[0].instance


def test_a_simulated_aggregator_is_refused_in_production_by_the_client_itself(
    make_road: MakeRoad, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The brokers took its evidence for hardware's, and credentialed it."""
    accept_pretended(monkeypatch)
    road = make_road(environment=PRODUCTION, registry=HARDWARE)
    road.aggregator().open(1)
    refused_before_a_ticket(road, SimulatedInProductionError)
    assert road.events(SITE, "credentialed-aggregator")


def test_a_credential_ends_with_its_rounds(road: Road) -> None:
    """Two rounds are covered; in the third the old letter alone does not do."""
    road.round(1)
    road.round(2)
    old = Courier.collect(road.courier, topic(road))
    road.aggregators[0].open(3)
    road.courier.letters_instead[topic(road)] = old
    with pytest.raises(CredentialError):
        road.hold(SITE, 3, session=road.session(SITE))
    road.courier.letters_instead.clear()
    road.hold(SITE, 3, attempt=1)


def test_a_credential_ends_with_its_time(opened: Road) -> None:
    opened.now += REATTEST_S * 1000 + 1
    refused_before_a_ticket(opened, CredentialError)


def test_the_mail_of_an_aggregator_that_was_replaced_is_worth_no_ticket(opened: Road) -> None:
    """Its credential still holds, but the attempt is another instance's by now."""
    old = Courier.collect(opened.courier, topic(opened))
    opened.aggregators[0].stop()
    opened.aggregator().open(1, attempt=1)
    opened.courier.letters_instead[topic(opened)] = old
    with pytest.raises(InstanceError):
        opened.hold(SITE, attempt=1, session=opened.session(SITE))
    assert not opened.events(SITE, "ticketed")
    opened.courier.letters_instead.clear()
    assert opened.hold("south", attempt=1).grants.aggregator.instance == opened.aggregators[1].instance


# Guarantee 8: which version a client opens.


@dataclasses.dataclass
class Forger:
    """A dishonest model owner: it has its own keys, the model key, and an enclave key that it made up."""

    road: Road

    def __post_init__(self) -> None:
        self.key = Ed25519PrivateKey.generate()
        self.owner = self.road.homes[OWNER]
        self.true = self.road.record(1)

    def side_sealed(self, *, signer: Ed25519PrivateKey | None = None, key: bytes | None = None) -> str:
        """Seal another version 1 under the true key, give it to the courier and return its digest."""
        header = Container.parse(self.road.courier.path(self.road.candidate(1).digest).read_bytes()).header
        fields = {
            name: getattr(header, name)
            for name in ("kind", "container_id", "version", "parents", "owner", "manifest", "detail", "recipients")
        }
        sealed, told = seal_to_bytes(
            pack({name: array * 2 for name, array in small_model().items()}),
            Draft(**fields),
            data_key=key or self.road.version_key(1),
            signing_key=signer or self.key,
        )
        self.road.courier.put(sealed)
        return told.digest

    def record(
        self,
        *,
        candidate: Signed | None = None,
        countersignatures: tuple[Signed, ...] | None = None,
        commit: Callable[[Commit], Commit] = lambda same: same,
        by: Ed25519PrivateKey | None = None,
        tickets: tuple[Signed, ...] | None = None,
    ) -> bytes:
        """A commit record by the model owner's broker key over whatever it likes."""
        candidate = candidate or self.true.candidate
        proposed = unverified(candidate, Candidate)
        signatures = self.true.countersignatures if countersignatures is None else countersignatures
        said = Commit(
            broker=self.owner.party.broker,
            candidate=candidate.digest,
            run=proposed.run,
            round=proposed.round,
            attempt=proposed.attempt,
            purpose=proposed.purpose,
            version=proposed.version,
            digest=proposed.digest,
            countersignatures=tuple(signed.digest for signed in signatures),
            time=self.road.now,
        )
        return CommitRecord(
            candidate=candidate,
            tickets=self.true.tickets if tickets is None else tickets,
            countersignatures=signatures,
            commit=sign(commit(said), by or self.owner.broker_key),
            metrics=self.true.metrics,
        ).to_bytes()

    def candidate(self, *, key: Ed25519PrivateKey | None = None, **changes: Any) -> Signed:
        changes.setdefault("digest", self.side_sealed())
        return sign(dataclasses.replace(self.road.candidate(1), **changes), key or self.key)

    def countersigned(self, candidate: Signed, *keys: Ed25519PrivateKey, named: bool = True) -> tuple[Signed, ...]:
        """Countersign with these keys, in the names of the sites."""
        proposed = unverified(candidate, Candidate)
        return tuple(
            sign(
                Countersignature(
                    broker=self.road.homes[site].party.broker,
                    identity=self.road.homes[site].party.identity,
                    candidate=candidate.digest,
                    run=proposed.run,
                    round=proposed.round,
                    attempt=proposed.attempt,
                    purpose=proposed.purpose,
                    base=proposed.base,
                    digest=proposed.digest,
                    time=self.road.now,
                ),
                key,
            )
            for site, key in zip(SITES, keys, strict=False)
        )


def without_quorum(forger: Forger) -> bytes:
    return forger.record(candidate=forger.candidate(), countersignatures=())


def with_one_site_on_its_side(forger: Forger) -> bytes:
    candidate = forger.candidate()
    return forger.record(
        candidate=candidate, countersignatures=forger.countersigned(candidate, forger.road.homes["east"].broker_key)
    )


def with_one_site_many_times(forger: Forger) -> bytes:
    candidate = forger.candidate()
    (one,) = forger.countersigned(candidate, forger.road.homes["east"].broker_key)
    return forger.record(candidate=candidate, countersignatures=(one,) * 4)


def with_half_of_the_sites(forger: Forger) -> bytes:
    candidate = forger.candidate()
    keys = [forger.road.homes[name].broker_key for name in ("east", "north")]
    return forger.record(candidate=candidate, countersignatures=forger.countersigned(candidate, *keys))


def with_own_countersignatures(forger: Forger) -> bytes:
    candidate = forger.candidate()
    return forger.record(
        candidate=candidate, countersignatures=forger.countersigned(candidate, *[forger.owner.broker_key] * 4)
    )


def with_countersignatures_by_identity_keys(forger: Forger) -> bytes:
    candidate = forger.candidate()
    keys = [forger.road.homes[name].identity_key for name in SITES]
    return forger.record(candidate=candidate, countersignatures=forger.countersigned(candidate, *keys))


def a_second_commit(forger: Forger) -> bytes:
    """The lying model owner: true candidate, true countersignatures, and a commit of another file."""
    other = forger.side_sealed()
    return forger.record(commit=lambda said: dataclasses.replace(said, digest=other))


def a_commit_of_another_candidate(forger: Forger) -> bytes:
    other = forger.candidate()
    return forger.record(commit=lambda said: dataclasses.replace(said, candidate=other.digest))


def a_commit_of_other_countersignatures(forger: Forger) -> bytes:
    return forger.record(commit=lambda said: dataclasses.replace(said, countersignatures=said.countersignatures[:3]))


def a_commit_by_another(forger: Forger) -> bytes:
    return forger.record(by=forger.road.homes["south"].broker_key)


def without_a_commit(forger: Forger) -> bytes:
    """The countersigned candidate alone, with somebody's signature where the model owner's has to be."""
    return forger.record(by=forger.key)


def with_too_small_a_cohort(forger: Forger) -> bytes:
    candidate = forger.candidate(
        cohort=forger.road.candidate(1).cohort[:1], tickets=forger.road.candidate(1).tickets[:1]
    )
    keys = [forger.road.homes[name].broker_key for name in SITES]
    return forger.record(
        candidate=candidate,
        countersignatures=forger.countersigned(candidate, *keys),
        tickets=forger.true.tickets[:1],
    )


def without_tickets(forger: Forger) -> bytes:
    return forger.record(tickets=())


def of_another_version(forger: Forger) -> bytes:
    keys = [forger.road.homes[name].broker_key for name in SITES]
    candidate = forger.candidate(version=2)
    return forger.record(candidate=candidate, countersignatures=forger.countersigned(candidate, *keys))


def on_another_start(forger: Forger) -> bytes:
    keys = [forger.road.homes[name].broker_key for name in SITES]
    candidate = forger.candidate(base=OTHER)
    return forger.record(candidate=candidate, countersignatures=forger.countersigned(candidate, *keys))


VERSIONS: dict[str, tuple[Callable[[Forger], bytes], type[ConfedError]]] = {
    "sealed on the side, with the model owner's commit alone": (without_quorum, QuorumError),
    "sealed on the side, with one site's countersignature": (with_one_site_on_its_side, QuorumError),
    "sealed on the side, with one site's countersignature four times": (with_one_site_many_times, QuorumError),
    "sealed on the side, with half of the sites": (with_half_of_the_sites, QuorumError),
    "sealed on the side, with the model owner's countersignatures": (with_own_countersignatures, LineageError),
    "sealed on the side, with identities' in place of brokers' keys": (
        with_countersignatures_by_identity_keys,
        LineageError,
    ),
    "sealed on the side, with the true version's countersignatures": (
        lambda forger: forger.record(candidate=forger.candidate()),
        LineageError,
    ),
    "committed a second time by the lying model owner": (a_second_commit, LineageError),
    "with a commit of another candidate": (a_commit_of_another_candidate, LineageError),
    "with a commit over other countersignatures": (a_commit_of_other_countersignatures, LineageError),
    "committed by a site": (a_commit_by_another, LineageError),
    "committed by nobody known": (without_a_commit, LineageError),
    "of too small a cohort": (with_too_small_a_cohort, CohortError),
    "of a cohort without tickets": (without_tickets, TicketError),
    "of another number": (of_another_version, LineageError),
    "made from another start": (on_another_start, LineageError),
    "that is none": (lambda _: b"{}", EncodingError),
}


@pytest.fixture
def committed(road: Road) -> Road:
    """A road with version 1 committed and round 2 open."""
    road.round(1)
    road.aggregators[0].open(2)
    return road


@pytest.mark.parametrize("sentence", VERSIONS)
def test_a_client_opens_no_version(shared_committed: Road, sentence: str) -> None:
    road, (forge, error) = shared_committed, VERSIONS[sentence]
    forged = forge(Forger(road))
    road.courier.letters_instead[road.commit_topic(1)] = [forged]
    session, attempt = road.session(SITE), road.new_attempt()
    with pytest.raises(ConfedError) as refused:
        road.hold(SITE, 2, attempt=attempt, session=session)
    assert type(refused.value) is error
    assert not road.released_to(session.instance)
    # Nor does a broker witness it.
    (answer,) = road.client_of("west").observe([(road.homes["west"].party.broker, "run-1", b"", forged)])
    assert isinstance(answer, ConfedError)
    road.courier.letters_instead.clear()
    road.hold(SITE, 2, attempt=attempt, session=session)


def test_the_forgery_of_all_sites_together_would_be_the_version(committed: Road) -> None:
    """What makes the table above mean something: with a majority of the sites' keys it is no forgery any more.

    It still is a fork to every broker that witnessed the other one.
    """
    forger = Forger(committed)
    candidate = forger.candidate()
    keys = [committed.homes[name].broker_key for name in SITES]
    signatures = forger.countersigned(candidate, *keys)
    body = forger.record(candidate=candidate, countersignatures=signatures)
    committed.courier.letters_instead[committed.commit_topic(1)] = [body]
    session = committed.session(SITE)
    with pytest.raises(ForkError):
        committed.hold(SITE, 2, session=session)
    assert OWNER not in committed.released_to(session.instance)


def test_a_forged_record_beside_the_true_one_does_no_harm(committed: Road) -> None:
    forger = Forger(committed)
    forged = [forge(forger) for forge, _ in VERSIONS.values()]
    committed.courier.letters_instead[committed.commit_topic(1)] = [*forged, forger.true.to_bytes()]
    held = committed.hold(SITE, 2)
    assert held.step.base == committed.candidate(1).digest


def test_a_version_without_a_record_is_none(committed: Road) -> None:
    committed.courier.letters_instead[committed.commit_topic(1)] = []
    with pytest.raises(LineageError):
        committed.hold(SITE, 2, session=committed.session(SITE))


def test_an_earlier_version_is_not_taken_for_a_later_one(committed: Road) -> None:
    """Rolled back: version 1's record in the place of version 2's."""
    committed.send(committed.aggregators[0], SITES, 2)
    committed.aggregators[0].close_round()
    committed.aggregators[0].open(3)
    committed.courier.letters_instead[committed.commit_topic(2)] = Courier.collect(
        committed.courier, committed.commit_topic(1)
    )
    with pytest.raises(LineageError):
        committed.hold(SITE, 3, session=committed.session(SITE))
    committed.courier.letters_instead.clear()
    assert committed.hold(SITE, 3).step.base == committed.candidate(2).digest


@pytest.mark.parametrize("witness", [OWNER, SITE])
def test_of_two_histories_a_broker_knows_only_its_own(land: Land, place: Path, witness: str) -> None:
    """A fork with a full quorum: all brokers' stores were put back, and the other history is shown to a client here."""
    with Road(land, place / "here") as here, Road(land, place / "there") as there:
        here.round(1)
        there.round(1, sites=["east", "south", "west"])
        assert here.candidate(1).digest != there.candidate(1).digest
        here.courier.put(there.courier.path(there.candidate(1).digest))
        here.courier.letters_instead[here.commit_topic(1)] = there.published(1)
        if witness != OWNER:  # even if the model owner's broker is put back too, and plays along
            copy = there.copy_of_home(OWNER)
            here.restart_broker(OWNER, store=copy)
        # The site's broker does not learn of a commit before somebody shows it one.
        here.client_of(SITE).observe([(here.homes[SITE].party.broker, "run-1", b"", here.record_body(1))])
        session = here.session(SITE)
        with pytest.raises(ForkError):
            here.hold(SITE, 2, session=session)
        assert SITE not in here.released_to(session.instance)


# The governor says when, and nothing else (guarantee 4); Flower's words to the mod are in test_no_plaintext.


LIES: dict[str, tuple[dict[str, Any], type[ConfedError]]] = {
    "a round whose base is not there yet": ({"round_number": 3}, LineageError),
    "a round that is over": ({"round_number": 1}, RollbackError),
    "round 0": ({"round_number": 0}, LineageError),
    "a round after the last": ({"round_number": 4}, LineageError),
    "an attempt after the last": ({"attempt": MAX_ATTEMPTS}, BudgetError),
    "an attempt before the first": ({"attempt": -1}, RoundError),
    "to evaluate what is not there yet": ({"purpose": Purpose.EVALUATE}, LineageError),
}


@pytest.mark.parametrize("sentence", LIES)
def test_a_client_does_not_follow_the_governor_to(shared_committed: Road, sentence: str) -> None:
    road, (lie, error) = shared_committed, LIES[sentence]
    session, attempt = road.session(SITE), road.new_attempt()
    with pytest.raises(ConfedError) as refused:
        road.hold(SITE, **{"round_number": 2, "attempt": attempt, "session": session, **lie})
    assert type(refused.value) is error
    assert not road.released_to(session.instance)
    road.hold(SITE, 2, attempt=attempt, session=session)


def test_a_client_acts_for_its_own_site_and_a_drawn_one(make_road: MakeRoad) -> None:
    half = lambda m: dataclasses.replace(m, cohort=dataclasses.replace(m.cohort, fraction_train=0.5))  # noqa: E731
    road = make_road(change=half)
    road.aggregator().open(1)
    drawn = [site.owner.name for site in road.manifest.draw(purpose="train", round_number=1)]
    others = [name for name in SITES if name not in drawn]
    with pytest.raises(SessionError):
        road.hold(others[0])
    session = road.session(drawn[1])
    with pytest.raises(SessionError):
        road.hold(drawn[0], session=session)
    assert not road.released_to(session.instance)
    road.hold(drawn[0])


def test_an_attempt_that_the_aggregator_does_not_know_ends_in_nothing(opened: Road) -> None:
    """The governor tells the client attempt 1 and the aggregator attempt 0: nothing fits, nothing counts."""
    held = opened.hold(SITE, attempt=1)
    with pytest.raises(TicketError):
        opened.aggregators[0].governor.submit(site=SITE, digest=opened.seal(held))
    with pytest.raises(ConfedError):  # and attempt 0 is over for this site, wherever the governor sends it
        opened.hold(SITE, attempt=0)


# The courier carries what it likes; a client opens only what it asked for.


def other_bytes(road: Road, digest: str) -> bytes:
    return os.urandom(road.courier.path(digest).stat().st_size)


def flipped(road: Road, digest: str) -> bytes:
    content = bytearray(road.courier.path(digest).read_bytes())
    content[-20] ^= 1
    return bytes(content)


def another_container(road: Road, digest: str) -> bytes:
    others = [content for other, content in road.land.files.items() if other != digest]
    return next(content for content in others if len(content) == road.courier.path(digest).stat().st_size)


def resealed(road: Road, digest: str) -> bytes:
    """The owner's own key, container id and header; other values. Only the pinned digest tells."""
    true = Container.parse(road.courier.path(digest).read_bytes()).header
    name = OWNER if true.kind is Kind.MODEL else SITE
    draft = Draft(
        kind=true.kind, container_id=true.container_id, owner=true.owner, detail=true.detail, recipients=true.recipients
    )
    arrays: Mapping[str, np.ndarray] = road.land.model if name == OWNER else road.land.data(SITES.index(SITE))
    return seal_to_bytes(
        pack({key: array * 2 for key, array in arrays.items()}),
        draft,
        data_key=container_key(road.land.keys[name], container_id=true.container_id),
        signing_key=road.homes[name].identity_key,
    )[0]


SWAPS: dict[str, Callable[[Road, str], bytes]] = {
    "other bytes": other_bytes,
    "a flipped bit": flipped,
    "nothing": lambda _road, _digest: b"",
    "its first half": lambda road, digest: road.courier.path(digest).read_bytes()[:-100],
    "one byte more": lambda road, digest: road.courier.path(digest).read_bytes() + b"\x00",
    "what its owner sealed on the side": resealed,
}


@pytest.mark.parametrize("what", ["start", "dataset"])
@pytest.mark.parametrize("sentence", SWAPS)
def test_a_client_opens_nothing_where_the_courier_serves(shared: Road, sentence: str, what: str) -> None:
    opened = shared
    site = opened.manifest.site_named(SITE)
    assert site.dataset is not None
    digest = opened.manifest.model.start.digest if what == "start" else site.dataset.digest
    true = opened.courier.path(digest).read_bytes()
    opened.courier.serve_instead(digest, SWAPS[sentence](opened, digest))
    session = opened.session(SITE)
    with pytest.raises((TamperedError, TruncatedError)):
        opened.hold(SITE, attempt=opened.new_attempt(), session=session)
    opened.courier.serve_instead(digest, true)
    opened.hold(SITE, attempt=opened.new_attempt(), session=session)


def test_a_client_does_not_open_another_sites_data_for_its_own(opened: Road) -> None:
    site = opened.manifest.site_named(SITE)
    assert site.dataset is not None
    opened.courier.serve_instead(site.dataset.digest, another_container(opened, site.dataset.digest))
    with pytest.raises(TamperedError):
        opened.hold(SITE)


def test_a_committed_version_under_other_chunks_is_not_opened(committed: Road) -> None:
    """The model owner has the key: it can put other chunks under the true, enclave-signed header."""
    digest = committed.candidate(1).digest
    true = committed.courier.path(digest).read_bytes()
    other = committed.courier.path(Forger(committed).side_sealed(signer=committed.aggregators[0].enclave.signing_key))
    forged = (
        true[: -len(committed.land.model["weight"].tobytes())]
        + other.read_bytes()[-len(committed.land.model["weight"].tobytes()) :]
    )
    committed.courier.serve_instead(digest, forged)
    with pytest.raises(TamperedError):
        committed.hold(SITE, 2, session=committed.session(SITE))
    committed.courier.serve_instead(digest, other.read_bytes())
    with pytest.raises((TamperedError, TruncatedError)):
        committed.hold(SITE, 2, attempt=1, session=committed.session(SITE))
    committed.courier.serve_instead(digest, true)
    committed.hold(SITE, 2, attempt=2)


def test_what_the_courier_does_not_have_is_refused(opened: Road) -> None:
    opened.courier.remove(opened.manifest.model.start.digest)
    with pytest.raises(MissingObjectError):
        opened.hold(SITE)


def test_a_courier_that_is_down_is_refused(opened: Road) -> None:
    session = opened.session(SITE)
    opened._courier_server.stop()
    with pytest.raises(UnreachableError):
        opened.hold(SITE, session=session)
    assert not opened.events(SITE, "ticketed")


# What a client seals is what it was told to seal.


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays: {**arrays, "more": np.zeros(1, dtype=np.float32)},
        lambda arrays: {name: array for name, array in arrays.items() if name != "bias"},
        lambda arrays: {**arrays, "bias": np.zeros(17, dtype=np.float32)},
        lambda arrays: {**arrays, "bias": arrays["bias"].astype(np.float64)},
    ],
    ids=["a tensor more", "a tensor less", "another shape", "another type"],
)
def test_a_client_seals_no_update_with(opened: Road, change: Callable[[Any], Any]) -> None:
    held: Held = opened.hold(SITE)
    with pytest.raises(ShapeError):
        held.session.seal_result(
            held.site,
            held.step,
            held.grants,
            arrays=change(opened.trained(SITE, held.step.arrays)),
            weight=1.0,
            metrics={},
            seconds=dict.fromkeys(held.step.seconds, 0.0),
        )


def test_a_key_of_anothers_dataset_is_nothing_to_ask_for(opened: Road) -> None:
    def turn(request: Any) -> Any:
        keys = tuple(
            dataclasses.replace(key, key_id=opened.manifest.site_named("south").dataset.key_id)
            if key.use == "data"
            else key
            for key in request.keys
        )
        return dataclasses.replace(request, keys=keys)

    with pytest.raises(UnknownKeyError):
        opened.hold(SITE, session=opened.session(SITE, turns=Turns(request=turn)))
