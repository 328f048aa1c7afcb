"""Checkpoints of a training TEE that is killed: the next one goes on from the newest, and from no other."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from road import OTHER, OWNER, Held, Land, Road
from test_training import SITE, TERMS, evaluate

from confed import canonical
from confed.client.keeping import SealedCheckpoints
from confed.errors import (
    BrokerError,
    ConfedError,
    CredentialError,
    EncodingError,
    ForkError,
    InstanceError,
    LineageError,
    LostCheckpointError,
    PurposeError,
    RollbackError,
    RoundError,
    SignatureError,
    TamperedError,
    UnreachableError,
    WrongKeyError,
    error_for,
)
from confed.governor.courier import Courier
from confed.governor.expiry import Expiry, Terms
from confed.journey import Purpose
from confed.keybroker.statements import CheckpointNote, NewestCheckpoint
from confed.keybroker.topics import checkpoint_topic
from confed.sealing.container import Container
from confed.sealing.derivation import checkpoint_key, state_key
from confed.statement import Signed, sign, unverified

MakeRoad = Callable[..., Road]


@pytest.fixture(scope="module")
def land(quick_disk: Path) -> Land:
    return Land(folder=quick_disk / "checkpoints", **TERMS)


@pytest.fixture
def road(land: Land, place: Path) -> Iterator[Road]:
    with Road(land, place) as road:
        yield road


def context(**settings: Any) -> Any:
    return SimpleNamespace(run_config=settings, run_id=1, node_id=1)


def kept_of(held: Held, **settings: Any) -> SealedCheckpoints:
    assert held.session.alone is not None
    return held.session.alone.checkpoints(held.step, context(**settings))


def saved(held: Held, *states: Any) -> None:
    """Save states one after another, each noted before the next."""
    kept = kept_of(held)
    for each in states:
        kept.save(each)
        kept.settle()


def digests(road: Road) -> list[str]:
    return [body["digest"] for body in road.events(OWNER, "checkpointed")]


def started_again(road: Road, *, number: int = 1, attempt: int = 1) -> Held:
    """A new TEE in place of one that was killed: another instance, another attempt."""
    return road.hold(SITE, number, attempt=attempt, session=road.session(SITE))


def restored(held: Held) -> Any:
    return kept_of(held).restore()


def state(number: int) -> dict[str, Any]:
    return {"weights": np.full(5, number, dtype=np.float32), "step": number}


def step_of(found: Any) -> int | None:
    return None if found is None else found["step"]


def test_a_tee_that_starts_again_goes_on_from_the_newest_checkpoint(road: Road) -> None:
    first = road.hold(SITE)
    assert restored(first) is None
    saved(first, state(1), state(2))
    second = started_again(road)
    assert step_of(restored(second)) == 2
    saved(second, state(3))
    third = started_again(road, attempt=2)
    found = restored(third)
    assert found["weights"].tolist() == [3.0] * 5
    assert [body["counter"] for body in road.events(SITE, "checkpointed")] == [1, 2, 3]
    road.seal(third)
    assert step_of(restored(road.hold(SITE, 2, session=third.session))) is None


def test_a_checkpoint_is_of_the_moment_that_it_was_saved_in(road: Road) -> None:
    held = road.hold(SITE)
    kept, weights, trained_on = kept_of(held), np.ones(5, dtype=np.float32), threading.Event()
    keep = kept._keeper.keep

    def later(*arguments: Any) -> None:
        assert trained_on.wait(30)
        keep(*arguments)

    kept._keeper.keep = later  # pyright: ignore[reportAttributeAccessIssue]
    kept.save({"weights": weights})
    weights += 1  # the loop does not wait
    trained_on.set()
    kept.settle()
    assert restored(started_again(road))["weights"].tolist() == [1.0] * 5


def test_what_is_carried_over_is_sealed_with_the_version_and_survives_the_tee(road: Road) -> None:
    held = road.hold(SITE)
    kept_of(held).carry(state(7))
    road.seal(held)
    candidate = road.candidate(1)
    key = state_key(road.land.keys[OWNER], run=road.manifest.run, version=1, attempt=0)
    Container.parse(road.courier.path(candidate.state).read_bytes()).unlock(key).read_all()
    evaluate(road, 1)
    second = road.hold(SITE, 2, session=road.session(SITE))
    assert step_of(restored(second)) == 7
    saved(second, state(8))
    assert step_of(restored(started_again(road, number=2))) == 8


def test_workers_that_take_turns_carry_on(road: Road) -> None:
    """As Ray has it: no worker hosts a site, and whichever is free takes the next step."""
    first, second = road.session(), road.session()
    held = road.hold(SITE, session=first)
    kept_of(held).carry(state(7))
    road.seal(held)
    road.seal(road.hold(SITE, 1, purpose=Purpose.EVALUATE, session=second), metrics={"loss": 0.25})
    held = road.hold(SITE, 2, session=second)
    assert step_of(restored(held)) == 7
    road.seal(held)
    road.seal(road.hold(SITE, 2, purpose=Purpose.EVALUATE, session=first), metrics={"loss": 0.25})
    made = {road.candidate(number).instance for number in (1, 2)}
    assert made == {first.instance, second.instance}


def test_a_state_that_was_swapped_is_not_carried_over(road: Road) -> None:
    held = road.hold(SITE)
    kept_of(held).carry(state(7))
    road.seal(held)
    road.courier.serve_instead(road.candidate(1).state, road.land.files[road.manifest.model.start.digest])
    with pytest.raises(TamperedError):
        restored(road.hold(SITE, 2))


def test_a_round_without_anything_carried_names_no_state(road: Road) -> None:
    road.seal(road.hold(SITE))
    assert road.candidate(1).state == ""
    assert restored(road.hold(SITE, 2)) is None


# What the courier may do.


def test_an_older_checkpoint_in_the_newest_ones_place_is_refused_by_name(road: Road) -> None:
    held = road.hold(SITE)
    saved(held, state(1))
    older = road.courier.path(digests(road)[0]).read_bytes()
    saved(held, state(2))
    road.courier.serve_instead(digests(road)[1], older)
    with pytest.raises(RollbackError):
        restored(started_again(road))


CHANGES: dict[str, tuple[Callable[[bytes], bytes], type[ConfedError]]] = {
    "a flipped bit": (lambda data: data[:-1] + bytes([data[-1] ^ 1]), TamperedError),
    "a flipped bit in its header": (lambda data: data[:40] + bytes([data[40] ^ 1]) + data[41:], TamperedError),
    "cut": (lambda data: data[:-40], TamperedError),
    "longer": (lambda data: data + b"\0", TamperedError),
    "nothing": (lambda _: b"", TamperedError),
}


@pytest.mark.parametrize(("change", "error"), CHANGES.values(), ids=CHANGES)
def test_a_checkpoint_that_is_not_whole_is_not_taken(
    road: Road, change: Callable[[bytes], bytes], error: type[ConfedError]
) -> None:
    saved(road.hold(SITE), state(1))
    (digest,) = digests(road)
    road.courier.serve_instead(digest, change(road.courier.path(digest).read_bytes()))
    with pytest.raises(error):
        restored(started_again(road))


def test_a_checkpoint_that_the_courier_has_lost_is_not_replaced_by_an_older_one(road: Road) -> None:
    saved(road.hold(SITE), state(1), state(2))
    road.courier.path(digests(road)[1]).unlink()
    with pytest.raises(LostCheckpointError):
        restored(started_again(road))
    # What the person who started the run is told is made of the code alone.
    assert "from the last version" in str(error_for(LostCheckpointError.code, "the training TEE"))


def test_what_was_sent_but_not_noted_never_was(road: Road) -> None:
    held = road.hold(SITE)
    saved(held, state(1))
    kept = kept_of(held)

    def dies(*_: Any, **__: Any) -> Any:
        raise UnreachableError("key broker", expected="an answer", got="none")

    kept._keeper._noted = dies
    kept.save(state(2))
    with pytest.raises(UnreachableError):
        kept.settle()
    assert step_of(restored(started_again(road))) == 1


def test_a_checkpoint_of_another_round_or_run_does_not_open(road: Road) -> None:
    held = road.hold(SITE)
    saved(held, state(1))
    body = road.courier.path(digests(road)[0]).read_bytes()
    key = checkpoint_key(road.land.keys[OWNER], run=road.manifest.run, version=1)
    container = Container.parse(body)
    container.unlock(key)
    for run, version in (("run-2", 1), (road.manifest.run, 2)):
        with pytest.raises(WrongKeyError):
            container.unlock(checkpoint_key(road.land.keys[OWNER], run=run, version=version))
    # Nor does its header fit, should a broker name it.
    keeper = held.session.alone._keeper  # pyright: ignore[reportOptionalMemberAccess]
    newest = newest_of(road, held)
    for of, said in (
        (dataclasses.replace(kept_of(held)._of, number=2), newest),
        (dataclasses.replace(kept_of(held)._of, base=OTHER), newest),
        (kept_of(held)._of, dataclasses.replace(newest, counter=2)),
    ):
        with pytest.raises(LineageError):
            keeper.opened(of, said)


# What an old store or an old answer may do.


def newest_of(road: Road, held: Held) -> NewestCheckpoint:
    (answer,) = road.client_of(OWNER).checkpoint([sign(note(road, held), held.session._signing)])
    assert isinstance(answer, Signed)
    return unverified(answer, NewestCheckpoint)


@pytest.mark.parametrize("name", [OWNER, SITE])
def test_one_owners_store_put_back_resumes_nothing_older(road: Road, name: str) -> None:
    held = road.hold(SITE)
    saved(held, state(1))
    copy = road.copy_of_home(name)
    saved(held, state(2))
    road.restart_broker(name, store=copy)
    again = started_again(road)
    assert step_of(restored(again)) == 2
    saved(again, state(3))
    assert step_of(restored(started_again(road, attempt=2))) == 3


def test_after_everything_has_started_again_the_newest_is_still_the_newest(road: Road) -> None:
    saved(road.hold(SITE), state(1), state(2))
    for name in road.homes:
        road.restart_broker(name)
    assert step_of(restored(started_again(road))) == 2


def test_two_checkpoints_under_one_counter_are_a_fork(road: Road) -> None:
    held = road.hold(SITE)
    for name, digest in ((OWNER, "d1" * 32), (SITE, "d2" * 32)):
        said = note(road, held, broker=road.homes[name].party.broker, counter=1, digest=digest)
        (answer,) = road.client_of(name).checkpoint([sign(said, held.session._signing)])
        assert isinstance(answer, Signed)
    with pytest.raises(ForkError):
        restored(started_again(road))


def test_a_broker_that_is_down_resumes_nothing(make_road: MakeRoad) -> None:
    road = make_road(**TERMS, apart=True)
    saved(road.hold(SITE), state(1))
    again = started_again(road)
    road.servers[SITE].stop()
    with pytest.raises(UnreachableError):
        restored(again)


def test_an_answer_to_another_note_is_refused(road: Road) -> None:
    held = road.hold(SITE)
    saved(held, state(1))
    client = road.client_of(OWNER)
    signed = sign(note(road, held), held.session._signing)
    (old,) = client.checkpoint([signed])
    assert isinstance(old, Signed)
    road.doors[OWNER].broker = SimpleNamespace(checkpoint=lambda _: old)  # pyright: ignore[reportAttributeAccessIssue]
    (answer,) = client.checkpoint([sign(note(road, held, request_id=b"another!"), held.session._signing)])
    assert isinstance(answer, BrokerError)


# What a TEE may note.


def note(road: Road, held: Held, **changes: Any) -> CheckpointNote:
    values: dict[str, Any] = {
        "request_id": b"0123456789abcdef", "broker": road.homes[OWNER].party.broker, "manifest": road.manifest.digest,
        "run": road.manifest.run, "instance": held.session.instance, "round": 1, "attempt": held.step.attempt,
        "base": held.step.base, "counter": 0, "digest": "", **changes,
    }  # fmt: skip
    return CheckpointNote(**values)


NOTES: dict[str, tuple[dict[str, Any], type[ConfedError]]] = {
    "an older counter": ({"counter": 1, "digest": "d1" * 32}, RollbackError),
    "the same counter with another digest": ({"counter": 2, "digest": "d1" * 32}, RollbackError),
    "a counter without a digest": ({"counter": 3}, EncodingError),
    "a digest without a counter": ({"digest": "d1" * 32}, EncodingError),
    "a digest that is none": ({"counter": 3, "digest": "d1"}, EncodingError),
    "another instance": ({"instance": OTHER}, CredentialError),
    "an attempt that nobody has begun": ({"attempt": 5}, InstanceError),
    "another round": ({"round": 2}, RoundError),
    "another base": ({"base": OTHER}, LineageError),
    "another run": ({"run": "run-2"}, ConfedError),
    "a request id that is none": ({"request_id": b""}, ConfedError),
}


def test_a_note_that_breaks_a_rule_is_refused_and_changes_nothing(road: Road) -> None:
    held = road.hold(SITE)
    saved(held, state(1), state(2))
    for sentence, (changes, error) in NOTES.items():
        for name in (OWNER, SITE):
            said = note(road, held, broker=road.homes[name].party.broker, **changes)
            (answer,) = road.client_of(name).checkpoint([sign(said, held.session._signing)])
            assert isinstance(answer, error), (sentence, name, answer)
    (answer,) = road.client_of(OWNER).checkpoint([sign(note(road, held), Ed25519PrivateKey.generate())])
    assert isinstance(answer, SignatureError)
    assert [body["counter"] for body in road.events(OWNER, "checkpointed")] == [1, 2]
    assert newest_of(road, held).counter == 2


def test_a_tee_that_was_given_up_notes_nothing_any_more(road: Road) -> None:
    held = road.hold(SITE)
    saved(held, state(1))
    again = started_again(road)
    kept = kept_of(held)
    kept.save(state(2))
    with pytest.raises(ForkError):
        kept.settle()
    assert step_of(restored(again)) == 1


def test_after_the_commit_nothing_is_noted_for_its_round(road: Road) -> None:
    held = road.hold(SITE)
    kept_of(held)
    road.seal(held)
    (answer,) = road.client_of(OWNER).checkpoint(
        [sign(note(road, held, counter=1, digest="d1" * 32), held.session._signing)]
    )
    assert isinstance(answer, ConfedError)


def test_a_federation_has_no_checkpoints(make_road: MakeRoad) -> None:
    road = make_road()
    road.aggregator().open(1)
    held = road.hold(SITE)
    (answer,) = road.client_of(OWNER).checkpoint(
        [sign(note(road, held, counter=1, digest="d1" * 32), held.session._signing)]
    )
    assert isinstance(answer, PurposeError)


# Pace, and what stays.


def test_a_checkpoint_is_due_by_steps_or_by_the_clock_or_never(road: Road) -> None:
    held = road.hold(SITE)
    assert not any(kept_of(held).due() for _ in range(10))
    for settings, due in (
        ({"checkpoint-every-steps": 3}, [False, False, True, False, False, True]),
        ({"checkpoint-every-s": 1e-9}, [True, True]),
        ({"checkpoint-every-s": 1000.0}, [False, False]),
    ):
        held.session.alone._kept = None  # pyright: ignore[reportOptionalMemberAccess]
        kept = kept_of(held, **settings)
        assert [kept.due() for _ in due] == due


def test_the_courier_keeps_the_newest_alone_and_nothing_after_the_commit(road: Road) -> None:
    road.courier.expiry = Expiry(Terms(manifest=road.manifest), road.courier.objects, road.courier.letters)
    held = road.hold(SITE)
    saved(held, state(1), state(2), state(3))
    road.courier.expiry.settle()
    kept = digests(road)
    present = [digest for digest in kept if road.courier.objects.progress(digest).complete]
    assert present == kept[-1:]
    forged = sign(dataclasses.replace(newest_of(road, held), counter=9, digest="d1" * 32), Ed25519PrivateKey.generate())
    Courier.post(road.courier, checkpoint_topic(road.manifest.run, 1), canonical.encode(forged.to_json()))
    road.courier.expiry.settle()
    assert road.courier.objects.progress(kept[-1]).complete
    road.seal(held)
    road.courier.expiry.settle()
    assert not road.courier.objects.progress(kept[-1]).complete
    assert not Courier.collect(road.courier, checkpoint_topic(road.manifest.run, 1))
