"""Wrong turns of an update at the aggregator: guarantees 5, 6, 9 and 11. What is refused is in no version."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from road import OTHER, SITES, Aggregator, Held, Land, Road, crafted, traveling

from confed import canonical
from confed.errors import (
    CohortError,
    ConfedError,
    ContainerFormatError,
    CredentialError,
    DuplicateUpdateError,
    EncodingError,
    MissingObjectError,
    RecipientError,
    RoundError,
    ShapeError,
    SignatureError,
    SizeError,
    StaleUpdateError,
    TamperedError,
    TicketError,
    TruncatedError,
)
from confed.governor.courier import Courier
from confed.journey import Kind, Purpose
from confed.keybroker.statements import ClientCredential, Ticket
from confed.manifest import CohortTerms, UpdateTerms
from confed.sealing.container import Container
from confed.sealing.header import FRAME_BYTES, SIGNATURE_BYTES, SIGNER_BYTES
from confed.sealing.identities import HpkeIdentity
from confed.sealing.recipients import HpkeRecipient
from confed.statement import Signed, sign, unverified

MakeRoad = Callable[..., Road]
SITE = "north"
OTHERS = tuple(name for name in SITES if name != SITE)


@dataclasses.dataclass
class Sending:
    """A client that is about to send, in a round that is open."""

    road: Road
    aggregator: Aggregator
    held: Held
    neighbour: Held | None = None
    """South's step, once somebody asked: a session lets go of a step whose update is sealed, and a ticket is one."""

    @classmethod
    def of(cls, road: Road, aggregator: Aggregator, *, attempt: int = 0, round_number: int = 1) -> Sending:
        return cls(road, aggregator, road.hold(SITE, round_number, attempt=attempt))

    def send(self, content: bytes, *, site: str = SITE) -> None:
        digest = self.road.courier.put(content)
        self.aggregator.governor.submit(site=site, digest=digest)

    def south(self) -> Held:
        self.neighbour = self.neighbour or self.road.hold("south", attempt=self.held.step.attempt)
        return self.neighbour

    def crafted(self, **changes: Any) -> bytes:
        return crafted(self.road, self.held, **changes)

    def trained(self) -> dict[str, np.ndarray]:
        """What the site would send."""
        return traveling(self.road, self.road.trained(SITE, self.held.step.arrays))

    def with_letter(self, *, credential: Signed | None = None, ticket: Signed | None = None) -> bytes:
        """An update that names other documents, which are in the site's letters."""
        step, road = self.held.step, self.road
        credential, ticket = credential or self.held.grants.credential, ticket or self.held.grants.ticket
        topic = f"{road.manifest.run}/{step.purpose}/{step.round_number}/{step.attempt}/{SITE}"
        body = canonical.encode({"credential": credential.to_json(), "ticket": ticket.to_json()})
        road.courier.post(topic, body)
        return self.crafted(detail={"credential": credential.digest, "ticket": ticket.digest})


def split(content: bytes) -> tuple[bytes, bytes]:
    """Return everything before the chunks, and the chunks."""
    length = int.from_bytes(content[8:12], "big")
    at = FRAME_BYTES + length + SIGNER_BYTES + SIGNATURE_BYTES
    return content[:at], content[at:]


def flip(content: bytes, at: int) -> bytes:
    changed = bytearray(content)
    changed[at] ^= 1
    return bytes(changed)


def ticketed(**changes: Any) -> Callable[[Sending], bytes]:
    """The site's own broker signs another ticket."""

    def make(sending: Sending) -> bytes:
        ticket = dataclasses.replace(unverified(sending.held.grants.ticket, Ticket), **changes)
        return sending.with_letter(ticket=sign(ticket, sending.road.homes[SITE].broker_key))

    return make


def credentialed(**changes: Any) -> Callable[[Sending], bytes]:
    """The site's own broker signs another credential, and a ticket for it."""

    def make(sending: Sending) -> bytes:
        key = sending.road.homes[SITE].broker_key
        true = unverified(sending.held.grants.credential, ClientCredential)
        credential = sign(dataclasses.replace(true, **changes), key)
        ticket = dataclasses.replace(unverified(sending.held.grants.ticket, Ticket), credential=credential.digest)
        return sending.with_letter(credential=credential, ticket=sign(ticket, key))

    return make


def detailed(**detail: Any) -> Callable[[Sending], bytes]:
    return lambda sending: sending.crafted(detail=detail)


def altered(change: Callable[[bytes], bytes]) -> Callable[[Sending], bytes]:
    return lambda sending: change(sending.crafted())


def more_tensors(sending: Sending) -> bytes:
    arrays = sending.trained()
    return sending.crafted(arrays={**arrays, "more": np.zeros(4, dtype=np.float32)})


def fewer_tensors(sending: Sending) -> bytes:
    arrays = sending.trained()
    return sending.crafted(arrays={name: array for name, array in arrays.items() if name != "bias"})


def other_shape(sending: Sending) -> bytes:
    arrays = sending.trained()
    return sending.crafted(arrays={**arrays, "bias": np.zeros(17, dtype=np.float32)})


def wider_type(sending: Sending) -> bytes:
    arrays = sending.trained()
    return sending.crafted(arrays={**arrays, "bias": arrays["bias"].astype(np.float64)})


def by_another_key(sending: Sending) -> bytes:
    return sending.crafted(key=Ed25519PrivateKey.generate())


def ticketed_by(name: str) -> Callable[[Sending], bytes]:
    def make(sending: Sending) -> bytes:
        # Of another number, since a statement is named by what it says and the true one is in the letters too.
        ticket = dataclasses.replace(unverified(sending.held.grants.ticket, Ticket), ticket_id=b"t" * 16)
        return sending.with_letter(ticket=sign(ticket, sending.road.homes[name].broker_key))

    return make


def credentialed_by(name: str) -> Callable[[Sending], bytes]:
    def make(sending: Sending) -> bytes:
        credential = dataclasses.replace(unverified(sending.held.grants.credential, ClientCredential), issued_at=1)
        signed = sign(credential, sending.road.homes[name].broker_key)
        ticket = dataclasses.replace(unverified(sending.held.grants.ticket, Ticket), credential=signed.digest)
        return sending.with_letter(credential=signed, ticket=sign(ticket, sending.road.homes[SITE].broker_key))

    return make


def of_another_site(sending: Sending) -> bytes:
    """Another site's whole update, honest and ticketed, in this site's place."""
    digest = sending.road.seal(sending.south())
    return sending.road.courier.path(digest).read_bytes()


def with_another_sites_papers(sending: Sending) -> bytes:
    grants = sending.south().grants
    return sending.with_letter(credential=grants.credential, ticket=grants.ticket)


def for_a_stranger(sending: Sending) -> bytes:
    return sending.crafted(recipient=HpkeRecipient(HpkeIdentity.generate().public))


def for_nobody(sending: Sending) -> bytes:
    return sending.crafted(header={"recipients": ()})


def for_two(sending: Sending) -> bytes:
    content = sending.crafted()
    entries = Container.parse(content).header.recipients
    return sending.crafted(header={"recipients": (*entries, *entries)})


ARRIVALS: dict[str, tuple[Callable[[Sending], bytes], Any]] = {
    # Bytes (guarantee 9).
    "with a flipped bit in its header": (
        altered(lambda content: flip(content, 100)),
        (SignatureError, ContainerFormatError),
    ),
    "with a flipped bit in its signature": (altered(lambda c: flip(c, len(split(c)[0]) - 1)), SignatureError),
    "with a flipped bit in its signer": (altered(lambda c: flip(c, len(split(c)[0]) - 90)), SignatureError),
    "that is cut in its header": (altered(lambda c: c[:200]), TruncatedError),
    "that is cut by a byte": (altered(lambda c: c[:-1]), TruncatedError),
    "that is cut by its last tag": (altered(lambda c: c[:-16]), TruncatedError),
    "with a byte more": (altered(lambda c: c + b"\x00"), ContainerFormatError),
    "that is nothing": (lambda _: b"", ContainerFormatError),
    "that is no container": (lambda _: b"x" * 2000, ContainerFormatError),
    "signed by another key": (by_another_key, CredentialError),
    # What it says it is for (guarantee 4): the header is signed by the client's attested key.
    "of another run": (detailed(run="run-2"), StaleUpdateError),
    "of another manifest": (detailed(manifest=OTHER), StaleUpdateError),
    "of another round": (detailed(round=2), StaleUpdateError),
    "of another attempt": (detailed(attempt=99), StaleUpdateError),
    "of another purpose": (detailed(purpose="evaluate"), StaleUpdateError),
    "on another base": (detailed(base=OTHER), StaleUpdateError),
    "for another aggregator": (detailed(aggregator=OTHER), StaleUpdateError),
    "of a site that it is not": (detailed(site="south"), StaleUpdateError),
    "with a word more": (detailed(more=1), StaleUpdateError),
    "with other parents": (lambda s: s.crafted(header={"parents": (OTHER,)}), StaleUpdateError),
    "of another owner": (lambda s: s.crafted(header={"owner": b"o" * 32}), StaleUpdateError),
    "of another kind": (lambda s: s.crafted(header={"kind": Kind.METRICS}), StaleUpdateError),
    "that another site sealed": (of_another_site, StaleUpdateError),
    # Papers.
    "without a credential that anybody has": (detailed(credential=OTHER), CredentialError),
    "without a ticket that anybody has": (detailed(ticket=OTHER), TicketError),
    "with another site's papers": (with_another_sites_papers, CredentialError),
    "with a ticket signed by another site's broker": (ticketed_by("south"), TicketError),
    "with a ticket signed by the model owner's broker": (ticketed_by("model-owner"), TicketError),
    "with a ticket of another identity": (ticketed(identity=b"i" * 32), TicketError),
    "with a ticket of another run": (ticketed(run="run-2"), TicketError),
    "with a ticket of another manifest": (ticketed(manifest=OTHER), TicketError),
    "with a ticket of another round": (ticketed(round=2), TicketError),
    "with a ticket of another attempt": (ticketed(attempt=99), TicketError),
    "with a ticket to evaluate": (ticketed(purpose=Purpose.EVALUATE), TicketError),
    "with a ticket on another base": (ticketed(base=OTHER), TicketError),
    "with a ticket for another aggregator": (ticketed(aggregator=OTHER), TicketError),
    "with a ticket for another credential": (ticketed(credential=OTHER), TicketError),
    "with a ticket for another key": (ticketed(signing_public=b"k" * 32), TicketError),
    "with a ticket that expired": (ticketed(expires_at=1), TicketError),
    "credentialed by another site's broker": (credentialed_by("south"), CredentialError),
    "credentialed in another round": (credentialed(round=2), CredentialError),
    "credentialed in another attempt": (credentialed(attempt=99), CredentialError),
    "credentialed to evaluate": (credentialed(purpose=Purpose.EVALUATE), CredentialError),
    "credentialed in another run": (credentialed(run="run-2"), CredentialError),
    "credentialed under another manifest": (credentialed(manifest=OTHER), CredentialError),
    "credentialed as another identity": (credentialed(identity=b"i" * 32), CredentialError),
    "credentialed for another key": (credentialed(signing_public=b"k" * 32), CredentialError),
    "whose credential expired": (credentialed(expires_at=1), CredentialError),
    # To whom.
    "sealed to a stranger": (for_a_stranger, RecipientError),
    "sealed to nobody": (for_nobody, RecipientError),
    "sealed to this aggregator and once more": (for_two, RecipientError),
    # How much (guarantee 11).
    "with a tensor more": (more_tensors, SizeError),
    "with a tensor less": (fewer_tensors, SizeError),
    "with a larger tensor": (other_shape, SizeError),
    "with a wider type": (wider_type, SizeError),
    "with a counter that is not trained": (
        lambda s: s.crafted(arrays=s.road.trained(SITE, s.held.step.arrays)),
        SizeError,
    ),
    "with bytes after its tensors": (lambda s: s.crafted(plaintext=lambda p: p + bytes(64)), SizeError),
    "of eight megabytes": (lambda s: s.crafted(plaintext=lambda _: bytes(8 << 20)), SizeError),
    "of another layout by its own word": (detailed(layout=OTHER), ShapeError),
}


@pytest.fixture(scope="module")
def sending(shared: Road) -> Sending:
    return Sending.of(shared, shared.aggregators[0])


@pytest.mark.parametrize("sentence", ARRIVALS)
def test_no_update_counts(sending: Sending, sentence: str) -> None:
    make, error = ARRIVALS[sentence]
    with pytest.raises(error):
        sending.send(make(sending))
    assert SITE not in [entry.site.owner.name for entry in sending.aggregator.run._rounds.current.accepted]  # pyright: ignore[reportOptionalMemberAccess]


def test_after_all_that_the_honest_update_counts(shared: Road) -> None:
    """By hand as in the tables, and by a session; and the version is the mean of what counted, to the last digit."""
    aggregator = shared.aggregator()
    aggregator.open(1, attempt=50)
    sending = Sending.of(shared, aggregator, attempt=50)
    for make, error in list(ARRIVALS.values())[:12]:
        with pytest.raises(error):
            sending.send(make(sending))
    sending.send(sending.crafted())
    shared.send(aggregator, OTHERS, attempt=50)
    closed = aggregator.close_round()
    assert (closed.cohort_size, dict(closed.excluded)) == (4, {})
    opened, mean = shared.open_version(1), shared.mean(SITES, shared.land.model)
    for name, array in opened.items():
        expected = shared.land.model[name] if array.dtype.kind == "i" else mean[name]
        np.testing.assert_allclose(array, expected, rtol=1e-6)


# What shows only once it is opened: the sender is excluded by its code, and the version is the others' mean.


def splice(front: bytes, chunks: bytes) -> bytes:
    return split(front)[0] + split(chunks)[1]


def spliced_with_another_site(sending: Sending) -> bytes:
    return splice(sending.crafted(), of_another_site(sending))


def spliced_with_itself(sending: Sending) -> bytes:
    """Two containers of one session, one data key, one plaintext: only salt and header differ."""
    return splice(sending.crafted(), sending.crafted())


def with_value(value: float) -> Callable[[Sending], bytes]:
    def make(sending: Sending) -> bytes:
        arrays = sending.trained()
        arrays["weight"][-1, -1] = value
        return sending.crafted(arrays=arrays, norm=1.0)

    return make


def moved(by: float, **changes: Any) -> Callable[[Sending], bytes]:
    def make(sending: Sending) -> bytes:
        arrays = sending.trained()
        arrays["bias"] += np.float32(by)
        return sending.crafted(arrays=arrays, **changes)

    return make


def narrower_type(sending: Sending) -> bytes:
    """As many bytes, but other numbers: float32 said to be int32."""
    return sending.crafted(plaintext=lambda p: p.replace(b'"F32"', b'"I32"'))


def other_form(sending: Sending) -> bytes:
    """As many numbers in another shape."""
    return sending.crafted(plaintext=lambda p: p.replace(b"[16,16]", b"[32,8] "))


def declared(**values: Any) -> Callable[[Sending], bytes]:
    """A declaration that no honest client could make."""

    def make(sending: Sending) -> bytes:
        site = sending.held.site
        assert site.dataset is not None
        honest = {"weight": 20.0, "norm": 0.3, "metrics": {}, "dataset": site.dataset.digest}
        return sending.crafted(declaration=canonical.encode({**honest, **values}))

    return make


def said(text: bytes) -> Callable[[Sending], bytes]:
    return lambda sending: sending.crafted(declaration=text)


OPENINGS: dict[str, tuple[Callable[[Sending], bytes], str]] = {
    "a flipped bit in its tensors": (altered(lambda c: flip(c, -100)), "tampered"),
    "a flipped bit in its last tag": (altered(lambda c: flip(c, -1)), "tampered"),
    "another site's chunks": (spliced_with_another_site, "tampered"),
    "chunks of another container of its own": (spliced_with_itself, "tampered"),
    "a key wrapped for another site": (lambda s: s.crafted(info={"site": "south"}), "wrong-key"),
    "a key wrapped for another run": (lambda s: s.crafted(info={"run": "run-2"}), "wrong-key"),
    "a key wrapped for another round": (lambda s: s.crafted(info={"round_number": 2}), "wrong-key"),
    "a key wrapped for another attempt": (lambda s: s.crafted(info={"attempt": 98}), "wrong-key"),
    "a key wrapped for an evaluation": (lambda s: s.crafted(info={"purpose": Purpose.EVALUATE}), "wrong-key"),
    "NaN": (with_value(np.nan), "not-finite"),
    "infinity": (with_value(np.inf), "not-finite"),
    "minus infinity": (with_value(-np.inf), "not-finite"),
    "a value whose square is infinite": (with_value(3e38), "norm"),
    "a false norm, too small": (lambda s: s.crafted(norm=0.01), "norm"),
    "a false norm, too large": (lambda s: s.crafted(norm=9.0), "norm"),
    "a norm above the bound": (moved(50.0), "norm"),
    "a norm above the bound that it keeps quiet about": (moved(50.0, norm=1.0), "norm"),
    "a negative norm": (declared(norm=-1.0), "declaration"),
    "one huge weight": (lambda s: s.crafted(weight=1001.0), "weight"),
    "a weight of 1e300": (lambda s: s.crafted(weight=1e300), "weight"),
    "a weight of 0": (lambda s: s.crafted(weight=0.0), "weight"),
    "a negative weight": (declared(weight=-20.0), "declaration"),
    "a weight that is NaN": (said(b'{"dataset":"","metrics":{},"norm":1,"weight":NaN}'), "declaration"),
    "a weight that overflows": (said(b'{"dataset":"","metrics":{},"norm":1,"weight":1e999}'), "declaration"),
    "a weight that is a word": (declared(weight="many"), "declaration"),
    "a word more in its declaration": (declared(more=1), "declaration"),
    "no declaration": (said(b"[]"), "declaration"),
    "too many metrics": (declared(metrics={f"m{n}": 1.0 for n in range(257)}), "declaration"),
    "another dataset": (declared(dataset=OTHER), "manifest-mismatch"),
    "no dataset": (declared(dataset=""), "manifest-mismatch"),
    "another type of tensors": (narrower_type, "shape"),
    "another shape of tensors": (other_form, "shape"),
    "other names of tensors": (lambda s: s.crafted(plaintext=lambda p: p.replace(b"bias", b"bios")), "shape"),
    "no tensors": (lambda s: s.crafted(plaintext=lambda p: bytes(len(p))), "shape"),
}


@pytest.fixture(scope="module")
def reopened(land: Land, quick_disk: Path) -> Iterator[Road]:
    """One road on which no round is ever committed: only the site under test and too few others send."""
    with Road(land, quick_disk / "reopened") as road:
        road.aggregator().open(1)
        yield road


@pytest.mark.parametrize("sentence", OPENINGS)
def test_an_update_is_excluded_by_name_for(reopened: Road, sentence: str) -> None:
    make, code = OPENINGS[sentence]
    aggregator, attempt = reopened.aggregators[0], reopened.new_attempt()
    aggregator.open(1, attempt=attempt)
    sending = Sending.of(reopened, aggregator, attempt=attempt)
    sending.send(make(sending))
    reopened.send(aggregator, ["east"], attempt=attempt)
    with pytest.raises(CohortError):
        aggregator.close_round({"south": "client-error", "west": "client-error"})
    assert aggregator.run.excluded == {SITE: code, "south": "client-error", "west": "client-error"}
    assert not reopened.published(1)


@pytest.mark.parametrize(
    "sentence", ["NaN", "a flipped bit in its tensors", "one huge weight", "a false norm, too small"]
)
def test_who_is_excluded_leaves_no_trace_in_the_version(road: Road, sentence: str) -> None:
    make, code = OPENINGS[sentence]
    road.aggregator().open(1)
    sending = Sending.of(road, road.aggregators[0])
    sending.send(make(sending))
    road.send(road.aggregators[0], OTHERS)
    closed = road.aggregators[0].close_round()
    assert (closed.cohort_size, dict(closed.excluded)) == (3, {SITE: code})
    assert road.homes[SITE].party.identity not in road.candidate(1).cohort
    opened, mean = road.open_version(1), road.mean(OTHERS, road.land.model)
    np.testing.assert_allclose(opened["weight"], mean["weight"], rtol=1e-6)


def large_model() -> dict[str, np.ndarray]:
    return {"weight": np.random.default_rng(2).normal(size=(700, 1024)).astype(np.float32)}


CHUNK = (1 << 20) + 16


def reordered(content: bytes) -> bytes:
    front, chunks = split(content)
    return front + chunks[CHUNK : 2 * CHUNK] + chunks[:CHUNK] + chunks[2 * CHUNK :]


def repeated(content: bytes) -> bytes:
    front, chunks = split(content)
    return front + chunks[:CHUNK] * 2 + chunks[2 * CHUNK :]


@pytest.mark.parametrize("change", [reordered, repeated], ids=["reordered", "repeated"])
def test_chunks_that_are_reordered_or_repeated_are_excluded(
    make_road: MakeRoad, change: Callable[[bytes], bytes]
) -> None:
    road = make_road(
        model=large_model(),
        change=lambda m: dataclasses.replace(m, update=UpdateTerms(norm_bound=1e3, weight_cap=1e3, loss_cap=None)),
    )
    road.aggregator().open(1)
    sending = Sending.of(road, road.aggregators[0])
    sending.send(change(sending.crafted()))
    road.send(road.aggregators[0], ["east", "south"])
    assert dict(road.aggregators[0].close_round().excluded) == {SITE: "tampered", "west": "no-answer"}


def test_an_update_of_several_chunks_counts(make_road: MakeRoad) -> None:
    road = make_road(
        model=large_model(),
        change=lambda m: dataclasses.replace(m, update=UpdateTerms(norm_bound=1e3, weight_cap=1e3, loss_cap=None)),
    )
    road.aggregator().open(1)
    sending = Sending.of(road, road.aggregators[0])
    sending.send(sending.crafted())
    road.send(road.aggregators[0], ["east"])
    assert road.aggregators[0].close_round({}).cohort_size == 2


# Guarantee 5: cohorts count distinct identities.


def test_one_identity_too_few_is_no_round(road: Road) -> None:
    road.aggregator().open(1)
    road.send(road.aggregators[0], ["east"])
    with pytest.raises(CohortError):
        road.aggregators[0].close_round()
    assert not road.published(1)
    assert not any(road.events(name, "countersigned") for name in SITES)
    assert road.round(1, attempt=1, sites=["east", "north"]).cohort_size == 2


def test_a_second_session_of_an_identity_gets_no_ticket(road: Road) -> None:
    road.aggregator().open(1)
    road.send(road.aggregators[0], [SITE])
    with pytest.raises(CredentialError):
        road.hold(SITE, session=road.session(SITE))
    with pytest.raises(CohortError):
        road.aggregators[0].close_round()


def test_a_second_update_of_an_identity_does_not_count(road: Road) -> None:
    road.aggregator().open(1)
    sending = Sending.of(road, road.aggregators[0])
    sending.send(sending.crafted())
    for content in (sending.crafted(), sending.crafted(weight=999.0)):
        with pytest.raises(DuplicateUpdateError):
            sending.send(content)
    with pytest.raises(DuplicateUpdateError):
        sending.aggregator.governor.submit(site=SITE, digest=road.seal(sending.held))
    with pytest.raises(CohortError):
        sending.aggregator.close_round()


def test_of_updates_that_race_one_counts(road: Road) -> None:
    road.aggregator().open(1)
    sending = Sending.of(road, road.aggregators[0])
    contents = [sending.crafted(weight=10.0 + number) for number in range(8)]

    def send(content: bytes) -> type[ConfedError] | None:
        try:
            sending.send(content)
        except ConfedError as error:
            return type(error)
        return None

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(send, contents))
    assert answers.count(None) == 1
    assert answers.count(DuplicateUpdateError) == 7
    road.send(road.aggregators[0], ["east"])
    assert road.aggregators[0].close_round().cohort_size == 2


def test_a_puppet_that_the_manifest_does_not_list_does_not_count(road: Road) -> None:
    """It has keys, a broker and papers of its own, and sends under its own name or under another's."""
    road.aggregator().open(1)
    sending = Sending.of(road, road.aggregators[0])
    puppet = Ed25519PrivateKey.generate()
    identity = puppet.public_key().public_bytes_raw()
    with pytest.raises(CohortError):
        sending.send(sending.crafted(detail={"site": "puppet"}), site="puppet")
    credential = sign(
        dataclasses.replace(
            unverified(sending.held.grants.credential, ClientCredential), identity=identity, broker=identity
        ),
        puppet,
    )
    ticket = sign(
        dataclasses.replace(
            unverified(sending.held.grants.ticket, Ticket),
            identity=identity,
            broker=identity,
            credential=credential.digest,
        ),
        puppet,
    )
    with pytest.raises(CredentialError):
        sending.send(sending.with_letter(credential=credential, ticket=ticket))
    sending.send(sending.crafted())


def test_a_site_that_was_not_drawn_does_not_count(make_road: MakeRoad) -> None:
    half = CohortTerms(least=2, fraction_train=0.5, fraction_evaluate=1.0, extra=0)
    road = make_road(change=lambda m: dataclasses.replace(m, cohort=half))
    opened = road.aggregator().open(1)
    (other, *_) = [name for name in SITES if name not in opened.cohort]
    held = road.hold(opened.cohort[0])
    digest = road.seal(held)
    with pytest.raises(CohortError):
        road.aggregators[0].governor.submit(site=other, digest=digest)
    road.aggregators[0].governor.submit(site=opened.cohort[0], digest=digest)


def test_a_client_that_hosts_several_identities_is_as_many_and_no_more(road: Road) -> None:
    aggregator = road.aggregator()
    aggregator.open(1)
    session = road.session("east", "north")
    for name in ("east", "north"):
        aggregator.governor.submit(site=name, digest=road.seal(road.hold(name, session=session)))
    with pytest.raises(DuplicateUpdateError):
        aggregator.governor.submit(site="east", digest=road.seal(road.hold("east", session=session)))
    assert aggregator.close_round().cohort_size == 2


# Guarantee 6: an update counts once, and nowhere else.


def test_last_rounds_update_does_not_count_again(road: Road) -> None:
    road.aggregator().open(1)
    digest = road.seal(road.hold(SITE))
    road.aggregators[0].governor.submit(site=SITE, digest=digest)
    road.send(road.aggregators[0], OTHERS)
    road.aggregators[0].close_round()
    road.aggregators[0].open(2)
    # The governor also brings its papers to where those of this round are looked for.
    for body in Courier.collect(road.courier, f"run-1/train/1/0/{SITE}"):
        road.courier.post(f"run-1/train/2/0/{SITE}", body)
    with pytest.raises(StaleUpdateError):
        road.aggregators[0].governor.submit(site=SITE, digest=digest)
    with pytest.raises(StaleUpdateError):
        road.aggregators[0].governor.submit(site="south", digest=digest)
    road.aggregators[0].governor.submit(site=SITE, digest=road.seal(road.hold(SITE, 2)))


def test_last_rounds_ticket_does_not_serve_again(road: Road) -> None:
    road.aggregator().open(1)
    first = Sending.of(road, road.aggregators[0])
    first.send(first.crafted())
    road.send(road.aggregators[0], OTHERS)
    road.aggregators[0].close_round()
    road.aggregators[0].open(2)
    second = Sending.of(road, road.aggregators[0], round_number=2)
    with pytest.raises(TicketError):
        second.send(second.with_letter(ticket=first.held.grants.ticket))
    with pytest.raises(CredentialError):
        second.send(second.with_letter(credential=first.held.grants.credential, ticket=first.held.grants.ticket))
    # Even if its own broker signs this round into a ticket of the same number.
    again = dataclasses.replace(
        unverified(second.held.grants.ticket, Ticket), ticket_id=unverified(first.held.grants.ticket, Ticket).ticket_id
    )
    with pytest.raises(DuplicateUpdateError):
        second.send(second.with_letter(ticket=sign(again, road.homes[SITE].broker_key)))
    second.send(second.crafted())


def test_an_update_of_an_attempt_that_is_void_does_not_count_in_the_next(road: Road) -> None:
    road.aggregator().open(1)
    held = road.hold(SITE)
    digest = road.seal(held)
    road.aggregators[0].governor.submit(site=SITE, digest=digest)
    road.aggregators[0].open(1, attempt=1)
    road.courier.post(f"run-1/train/1/1/{SITE}", Courier.collect(road.courier, f"run-1/train/1/0/{SITE}")[0])
    with pytest.raises(StaleUpdateError):
        road.aggregators[0].governor.submit(site=SITE, digest=digest)
    with pytest.raises(RoundError):
        road.aggregators[0].open(1, attempt=0)
    road.send(road.aggregators[0], [SITE, "east"], attempt=1)
    assert road.aggregators[0].close_round().cohort_size == 2


def test_an_update_sealed_to_an_aggregator_that_is_gone_counts_nowhere(road: Road) -> None:
    """Its opening key died with the instance; a new one is a new attempt, and takes only what is sealed to it."""
    road.aggregator().open(1)
    held = road.hold(SITE)
    digest = road.seal(held)
    road.aggregators[0].governor.submit(site=SITE, digest=digest)
    road.aggregators[0].stop()
    second = road.aggregator()
    second.open(1, attempt=1)
    with pytest.raises((StaleUpdateError, TicketError)):
        second.governor.submit(site=SITE, digest=digest)
    road.courier.post(f"run-1/train/1/1/{SITE}", Courier.collect(road.courier, f"run-1/train/1/0/{SITE}")[0])
    with pytest.raises(StaleUpdateError):
        second.governor.submit(site=SITE, digest=digest)
    moved_on = Sending(road, second, held)
    to_the_second = HpkeRecipient(second.enclave.hpke.public)
    with pytest.raises(CredentialError):
        moved_on.send(moved_on.crafted(detail={"attempt": 1, "aggregator": second.instance}, recipient=to_the_second))
    road.send(second, [SITE, "east"], attempt=1)
    assert second.close_round().cohort_size == 2


def test_the_update_of_one_run_does_not_count_in_another(land: Land, make_road: MakeRoad, road: Road) -> None:
    other = make_road(change=lambda m: dataclasses.replace(m, run="run-2"))
    other.aggregator().open(1)
    road.aggregator().open(1)
    content = other.courier.path(other.seal(other.hold(SITE))).read_bytes()
    sending = Sending.of(road, road.aggregators[0])
    for letter in Courier.collect(other.courier, f"run-2/train/1/0/{SITE}"):
        road.courier.post(f"run-1/train/1/0/{SITE}", letter)
    with pytest.raises(StaleUpdateError):
        sending.send(content)
    sending.send(splice(sending.crafted(), content))  # of the same length, so it shows when it is opened
    road.send(road.aggregators[0], ["east", "south"])
    assert road.aggregators[0].close_round().excluded[SITE] == "tampered"


def test_an_update_to_train_is_none_to_evaluate(road: Road) -> None:
    road.round(1)
    aggregator = road.aggregators[0]
    digest = Courier.collect(road.courier, f"run-1/train/1/0/{SITE}")
    assert digest
    aggregator.open(1, purpose="evaluate")
    held = road.hold(SITE, 1, purpose=Purpose.EVALUATE)
    with pytest.raises(ConfedError) as refused:
        Sending(road, aggregator, held).send(crafted(road, held))
    assert type(refused.value) in (StaleUpdateError, SizeError)
    road.send(aggregator, [SITE, "east"], 1, purpose=Purpose.EVALUATE)
    assert dict(aggregator.close_round().metrics) == {"loss": 0.5}
    with pytest.raises(RoundError):
        aggregator.open(1, purpose="evaluate", attempt=1)


def test_metrics_of_one_identity_too_few_do_not_leave(make_road: MakeRoad) -> None:
    """Two were accepted, and one of them shows only when it is opened that it does not count."""
    road = make_road(floors=lambda *_: {"least_cohort": 1})  # so that the manifest's rule alone is left
    road.round(1)
    aggregator = road.aggregators[0]
    aggregator.open(1, purpose="evaluate")
    road.send(aggregator, ["east"], 1, purpose=Purpose.EVALUATE)
    held = road.hold(SITE, 1, purpose=Purpose.EVALUATE)
    aggregator.governor.submit(site=SITE, digest=road.seal(held, weight=0.0))
    with pytest.raises(CohortError):
        aggregator.close_round()
    assert aggregator.run.excluded[SITE] == "weight"
    assert not Courier.collect(road.courier, road.commit_topic(1, "evaluate"))
    aggregator.open(1, purpose="evaluate", attempt=1)
    road.send(aggregator, ["east", SITE], 1, purpose=Purpose.EVALUATE, attempt=1)
    assert aggregator.close_round().cohort_size == 2


def test_what_the_courier_changes_after_it_was_taken_does_not_matter(road: Road) -> None:
    road.aggregator().open(1)
    digests = {name: road.seal(road.hold(name)) for name in ("east", SITE)}
    for name, digest in digests.items():
        road.aggregators[0].governor.submit(site=name, digest=digest)
        road.courier.serve_instead(digest, os.urandom(100))
    assert road.aggregators[0].close_round().cohort_size == 2


def test_what_the_courier_changes_before_it_is_taken_is_refused(road: Road) -> None:
    road.aggregator().open(1)
    digest = road.seal(road.hold(SITE))
    true = road.courier.path(digest).read_bytes()
    for content in (flip(true, -1), true[:-1], true + b"\x00", b""):
        road.courier.serve_instead(digest, content)
        with pytest.raises((TamperedError, TruncatedError)):
            road.aggregators[0].governor.submit(site=SITE, digest=digest)
    road.courier.remove(digest)
    with pytest.raises(MissingObjectError):
        road.aggregators[0].governor.submit(site=SITE, digest=digest)
    with pytest.raises(EncodingError):
        road.aggregators[0].governor.submit(site=SITE, digest="../../etc/passwd")
