"""Rounds through the enclave: the road once, and every wrong turn refused by name."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from aggregator_world import HOUR, MODEL_KEY, NOW, Changes, Keys, World, norm_of, stranger
from test_fold import flowers, same_bits

from confed import canonical
from confed.errors import (
    CohortError,
    ConfedError,
    ContainerFormatError,
    CredentialError,
    DuplicateUpdateError,
    EncodingError,
    InstanceError,
    LineageError,
    MissingFileError,
    PurposeError,
    QuorumError,
    RecipientError,
    RollbackError,
    RoundError,
    ShapeError,
    SignatureError,
    SizeError,
    StaleUpdateError,
    TicketError,
    UnreachableError,
)
from confed.journey import Kind, Purpose, Use
from confed.keybroker.lineage import verify_commit_record
from confed.keybroker.statements import Candidate, CommitRecord
from confed.manifest import CohortTerms, StrategyTerms, UpdateTerms
from confed.model.weights import pack, unpack
from confed.sealing.container import Container, Draft, seal_to_bytes
from confed.sealing.derivation import container_key, state_key
from confed.sealing.recipients import RecipientEntry
from confed.statement import unverified

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from aggregator.run import Closed, Run

ADAM = StrategyTerms(name="FedAdam", parameters={"eta": 0.05, "tau": 1e-3})


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "enclave")


def opened(world: World, *, purpose: str = "train") -> Run:
    run = world.run()
    run.attest(first_round=1, attempt=0)
    run.open_round(round_number=1, attempt=0, purpose=purpose)
    return run


def submit(world: World, run: Run, numbers: Any = range(4), **kwargs: Any) -> None:
    for number in numbers:
        digest = world.send(number, world.trained(number, kwargs.get("base") or world.model), **kwargs)
        run.submit(site=f"site-{number}", digest=digest)


def candidate_of(closed: Closed) -> Candidate:
    return unverified(CommitRecord.from_bytes(closed.record).candidate, Candidate)


def one_round(world: World, run: Run, round_number: int = 1, **kwargs: Any) -> Closed:
    run.open_round(round_number=round_number, attempt=0, purpose="train")
    submit(world, run, round_number=round_number, **kwargs)
    return run.close_round(absent={})


def test_a_round_ends_in_the_next_version_sealed_committed_and_published(world: World) -> None:
    run = opened(world)
    for number in (2, 0, 3, 1):  # the order of arrival does not matter
        submit(world, run, [number], metrics={"loss": 0.12345 + number, "secret": 1.0})
    closed = run.close_round(absent={})
    candidate = candidate_of(closed)
    updates = [world.trained(number, world.model) for number in range(4)]
    mean = flowers(updates, [10.0, 20.0, 30.0, 40.0])
    version = world.open_version(candidate.digest, version=1)
    assert list(version) == list(world.model)
    floats = {name for name, array in world.model.items() if array.dtype.kind == "f"}
    assert same_bits({n: version[n] for n in floats}, {n: mean[n] for n in floats})
    assert version["counter"] == world.model["counter"] == 3  # it does not travel
    assert version["flag"].tolist() == [True, False]
    assert closed.cohort_size == 4
    assert closed.excluded == {}
    assert closed.metrics == {"loss": round(0.12345 + 2.0, 4)}
    assert set(closed.seconds) >= {"combine", "open", "seal", "commit", "release"}
    assert world.courier.letters["run-1/commit/train/1"] == [closed.record]
    found = verify_commit_record(CommitRecord.from_bytes(closed.record), manifest=world.manifest, round_number=1)
    assert found == candidate
    header = Container.parse(world.courier.get(candidate.digest)).header
    assert (header.kind, header.container_id, header.version, header.parents) == (
        Kind.MODEL,
        "run-1/1.0",
        1,
        (world.manifest.model.start.digest,),
    )
    assert header.detail["layout"] == world.manifest.model.layout


def test_rounds_follow_each_other_without_opening_the_base_again(world: World) -> None:
    run = opened(world)
    closed = one_round(world, run)
    for number in (2, 3):
        base = world.open_version(candidate_of(closed).digest, version=number - 1)
        before = candidate_of(closed).digest
        closed = one_round(world, run, number, base=base, base_digest=before)
        assert candidate_of(closed).base == before
    names = [name for request in world.brokers.requests for name in request.keys]
    assert [(name.use, name.version) for name in names] == [
        (Use.VERSION, 1),
        (Use.START, 0),
        (Use.VERSION, 2),
        (Use.VERSION, 3),
    ]


@pytest.mark.parametrize("threads", [1, 2])
def test_a_model_larger_than_memorys_share_goes_through_files(tmp_path: Path, threads: int) -> None:
    large = {"w": np.random.default_rng(0).normal(size=(1100, 1000)).astype(np.float32)}
    world = World(
        tmp_path / "enclave", sites=2, model=large, update=UpdateTerms(norm_bound=1000.0, weight_cap=1e3, loss_cap=None)
    )
    run = world.run(threads=threads)
    run.attest(first_round=1, attempt=0)
    run.open_round(round_number=1, attempt=0, purpose="train")
    submit(world, run, range(2))
    assert len(list(world.folder.iterdir())) == 2
    closed = run.close_round(absent={})
    assert [path.name for path in world.folder.iterdir()] == ["model.sealed"]  # written over by the next
    mean = flowers([world.trained(number, large) for number in range(2)], [10.0, 20.0])
    assert same_bits(world.open_version(candidate_of(closed).digest, version=1), mean)
    # The next version is sealed over the file of the last, to its own length.
    with (world.folder / "model.sealed").open("ab") as file:
        file.write(b"more than the next one has")
    first = candidate_of(closed).digest
    run.open_round(round_number=2, attempt=0, purpose="train")
    submit(world, run, range(2), base=mean, base_digest=first, round_number=2)
    second = candidate_of(run.close_round(absent={})).digest
    assert second != first
    assert same_bits(
        world.open_version(second, version=2),
        flowers([world.trained(number, mean) for number in range(2)], [10.0, 20.0]),
    )


def test_fedadams_state_travels_sealed_to_a_new_instance(tmp_path: Path) -> None:
    world = World(tmp_path / "enclave", strategy=ADAM)
    run = opened(world)
    first = candidate_of(one_round(world, run))
    assert Container.parse(world.courier.get(first.state)).header.kind is Kind.STRATEGY_STATE
    base = world.open_version(first.digest, version=1)
    results: list[bytes] = []
    for instance in (run, world.run()):
        if instance is not run:
            instance.attest(first_round=2, attempt=1)
        attempt = 0 if instance is run else 1
        instance.open_round(round_number=2, attempt=attempt, purpose="train")
        world.enclave = instance._enclave
        submit(world, instance, base=base, base_digest=first.digest, round_number=2, attempt=attempt)
        closed = candidate_of(instance.close_round(absent={}))
        version = world.open_version(closed.digest, version=2, attempt=attempt)
        results.append(b"".join(array.tobytes() for array in version.values()))
    assert results[0] == results[1]


def test_evaluation_commits_clear_metrics_of_the_rounds_own_version(world: World) -> None:
    run = opened(world)
    digest = candidate_of(one_round(world, run)).digest
    run.open_round(round_number=1, attempt=0, purpose="evaluate")
    for number in range(3):
        sent = world.send(
            number, None, base_digest=digest, weight=float(number + 1), metrics={"accuracy": 0.5 + number / 10}
        )
        run.submit(site=f"site-{number}", digest=sent)
    closed = run.close_round(absent={"site-3": "client-error"})
    found = candidate_of(closed)
    assert closed.metrics == {"accuracy": round((0.5 + 1.2 + 2.1) / 6, 4)}
    assert closed.excluded == {"site-3": "client-error"}
    assert (found.purpose, found.base, found.digest, found.state, found.version) == (
        Purpose.EVALUATE,
        digest,
        digest,
        "",
        1,
    )
    assert world.courier.letters["run-1/commit/evaluate/1"] == [closed.record]
    with pytest.raises(RoundError):
        run.open_round(round_number=1, attempt=1, purpose="evaluate")


def test_a_metric_that_one_of_the_cohort_keeps_to_itself_does_not_leave(world: World) -> None:
    run = opened(world)
    submit(world, run, range(3), metrics={"loss": 1.0, "accuracy": 0.5})
    submit(world, run, [3], metrics={"loss": 2.0})
    assert set(run.close_round(absent={}).metrics) == {"loss"}


OTHER = "a" * 64
KEY = Keys("other").broker
ARRIVALS: list[tuple[str, Callable[[World], Changes], type[ConfedError]]] = [
    ("of another run", lambda _: Changes(detail={"run": "run-2"}), StaleUpdateError),
    ("of another manifest", lambda _: Changes(detail={"manifest": OTHER}), StaleUpdateError),
    ("of another round", lambda _: Changes(detail={"round": 2}), StaleUpdateError),
    ("of another attempt", lambda _: Changes(detail={"attempt": 1}), StaleUpdateError),
    ("of another purpose", lambda _: Changes(detail={"purpose": "evaluate"}), StaleUpdateError),
    ("on another base", lambda _: Changes(detail={"base": OTHER}), StaleUpdateError),
    ("for another aggregator", lambda _: Changes(detail={"aggregator": OTHER}), StaleUpdateError),
    ("of another site", lambda _: Changes(detail={"site": "site-0"}), StaleUpdateError),
    ("with a detail more", lambda _: Changes(detail={"more": 1}), StaleUpdateError),
    ("with other parents", lambda _: Changes(header={"parents": (OTHER,)}), StaleUpdateError),
    ("with another owner", lambda _: Changes(header={"owner": b"x" * 32}), StaleUpdateError),
    ("with another manifest in its header", lambda _: Changes(header={"manifest": OTHER}), StaleUpdateError),
    ("of another kind", lambda _: Changes(header={"kind": Kind.METRICS}), StaleUpdateError),
    ("of another layout", lambda _: Changes(detail={"layout": OTHER}), ShapeError),
    ("with bytes after the tensors", lambda _: Changes(plaintext=lambda p: p + b"\x00" * 8), SizeError),
    ("with too few bytes", lambda _: Changes(plaintext=lambda p: p[:-1]), SizeError),
    ("with bytes after the container", lambda _: Changes(sealed=lambda s: s + b"\x00"), ContainerFormatError),
    (
        "with a header that was changed",
        lambda _: Changes(sealed=lambda s: s.replace(b"run-1", b"run-2")),
        SignatureError,
    ),
    ("credentialed by another broker", lambda w: Changes(credential_key=w.sites[0].broker), CredentialError),
    ("credentialed by nobody known", lambda _: Changes(credential_key=KEY), CredentialError),
    ("with a credential of another identity", lambda _: Changes(credential={"identity": b"x" * 32}), CredentialError),
    ("with a credential of another broker", lambda _: Changes(credential={"broker": b"x" * 32}), CredentialError),
    ("with a credential of another run", lambda _: Changes(credential={"run": "run-2"}), CredentialError),
    ("with a credential of another manifest", lambda _: Changes(credential={"manifest": OTHER}), CredentialError),
    ("with a credential of another round", lambda _: Changes(credential={"round": 2}), CredentialError),
    ("with a credential of another attempt", lambda _: Changes(credential={"attempt": 1}), CredentialError),
    ("with a credential to evaluate", lambda _: Changes(credential={"purpose": "evaluate"}), CredentialError),
    ("with a credential of another key", lambda _: Changes(credential={"signing_public": b"x" * 32}), CredentialError),
    ("with a credential that expired", lambda _: Changes(credential={"expires_at": NOW - 1}), CredentialError),
    ("ticketed by another broker", lambda w: Changes(ticket_key=w.sites[0].broker), TicketError),
    ("with a ticket of another identity", lambda _: Changes(ticket={"identity": b"x" * 32}), TicketError),
    ("with a ticket of another run", lambda _: Changes(ticket={"run": "run-2"}), TicketError),
    ("with a ticket of another manifest", lambda _: Changes(ticket={"manifest": OTHER}), TicketError),
    ("with a ticket of another round", lambda _: Changes(ticket={"round": 2}), TicketError),
    ("with a ticket of another attempt", lambda _: Changes(ticket={"attempt": 1}), TicketError),
    ("with a ticket to evaluate", lambda _: Changes(ticket={"purpose": "evaluate"}), TicketError),
    ("with a ticket on another base", lambda _: Changes(ticket={"base": OTHER}), TicketError),
    ("with a ticket for another aggregator", lambda _: Changes(ticket={"aggregator": OTHER}), TicketError),
    ("with a ticket for another credential", lambda _: Changes(ticket={"credential": OTHER}), TicketError),
    ("with a ticket for another key", lambda _: Changes(ticket={"signing_public": b"x" * 32}), TicketError),
    ("with a ticket that expired", lambda _: Changes(ticket={"expires_at": NOW - 1}), TicketError),
    ("that names another ticket", lambda _: Changes(detail={"ticket": OTHER}), TicketError),
    ("that names another credential", lambda _: Changes(detail={"credential": OTHER}), CredentialError),
    ("with a letter that is none", lambda _: Changes(letter=lambda _: b"{}"), TicketError),
    ("sealed to somebody else", lambda _: Changes(recipient=stranger()), RecipientError),
    ("sealed to nobody", lambda _: Changes(header={"recipients": ()}), RecipientError),
]


@pytest.mark.parametrize(("change", "error"), [row[1:] for row in ARRIVALS], ids=[row[0] for row in ARRIVALS])
def test_an_update_is_refused_on_arrival(
    world: World, change: Callable[[World], Changes], error: type[ConfedError]
) -> None:
    run = opened(world)
    digest = world.send(1, world.trained(1, world.model), changes=change(world))
    with pytest.raises(error):
        run.submit(site="site-1", digest=digest)
    submit(world, run, [0, 2])
    closed = run.close_round(absent={"site-1": "reported", "site-3": "reported"})
    assert closed.excluded == {"site-1": error.code, "site-3": "reported"}


def declared(**values: Any) -> Changes:
    """Return a declaration that no honest client could make."""
    honest = {"weight": 20.0, "norm": 1.0, "metrics": {}, "dataset": canonical.digest(b"site-1")}
    return Changes(declaration=canonical.encode({**honest, **values}))


def with_value(value: float) -> Callable[[World], dict[str, np.ndarray]]:
    def arrays(world: World) -> dict[str, np.ndarray]:
        trained = world.trained(1, world.model)
        trained["weight"][-1, -1] = value
        return trained

    return arrays


def plain(world: World) -> dict[str, np.ndarray]:
    return world.trained(1, world.model)


def flipped(sealed: bytes) -> bytes:
    return sealed[:-20] + bytes([sealed[-20] ^ 1]) + sealed[-19:]


OPENINGS: list[tuple[str, Callable[[World], dict[str, np.ndarray]], Changes, str]] = [
    ("a weight of nothing", plain, declared(weight=0), "weight"),
    ("a weight below nothing", plain, declared(weight=-1), "declaration"),
    ("a weight above the cap", plain, declared(weight=1000.5), "weight"),
    ("a norm below nothing", plain, declared(norm=-1), "declaration"),
    ("a norm above the bound", plain, declared(norm=100.5), "norm"),
    ("a norm that is false", plain, Changes(declared={"norm": 50.0}), "norm"),
    ("NaN", with_value(np.nan), Changes(declared={"norm": 1.0}), "not-finite"),
    ("infinity", with_value(np.inf), Changes(declared={"norm": 1.0}), "not-finite"),
    ("a declaration with a key more", plain, declared(more=1), "declaration"),
    ("a declaration that is none", plain, Changes(declaration=b"[]"), "declaration"),
    ("no declaration", plain, Changes(declaration=b""), "declaration"),
    ("another dataset", plain, declared(dataset=OTHER), "manifest-mismatch"),
    ("no dataset", plain, declared(dataset=""), "manifest-mismatch"),
    ("a key wrapped for another site", plain, Changes(info_site="site-0"), "wrong-key"),
    ("a chunk that was changed", plain, Changes(sealed=flipped), "tampered"),
    ("another header of tensors", plain, Changes(plaintext=lambda p: p.replace(b"bias", b"bios")), "shape"),
]


@pytest.mark.parametrize(("arrays", "changes", "code"), [row[1:] for row in OPENINGS], ids=[row[0] for row in OPENINGS])
def test_an_update_that_opens_wrong_is_excluded_by_name_and_leaves_no_trace(
    world: World, arrays: Callable[[World], dict[str, np.ndarray]], changes: Changes, code: str
) -> None:
    run = opened(world)
    submit(world, run, [0, 2])
    run.submit(site="site-1", digest=world.send(1, arrays(world), changes=changes))
    closed = run.close_round(absent={"site-3": "client-error"})
    assert closed.excluded == {"site-1": code, "site-3": "client-error"}
    assert closed.cohort_size == 2
    mean = flowers([world.trained(number, world.model) for number in (0, 2)], [10.0, 30.0])
    version = world.open_version(candidate_of(closed).digest, version=1)
    assert version["weight"].tobytes() == mean["weight"].tobytes()


def test_an_identity_counts_once(world: World) -> None:
    run = opened(world)
    submit(world, run, [0])
    with pytest.raises(DuplicateUpdateError):
        submit(world, run, [0])
    submit(world, run, [1])
    assert run.close_round(absent={}).cohort_size == 2


def test_a_ticket_that_counted_counts_never_again(world: World) -> None:
    run = opened(world)
    ticket_id = b"t" * 16
    run.submit(site="site-0", digest=world.send(0, plain(world), changes=Changes(ticket={"ticket_id": ticket_id})))
    submit(world, run, [1])
    first = candidate_of(run.close_round(absent={}))
    base = world.open_version(first.digest, version=1)
    run.open_round(round_number=2, attempt=0, purpose="train")
    again = world.send(
        0, world.trained(0, base), base=base, base_digest=first.digest, round_number=2,
        changes=Changes(ticket={"ticket_id": ticket_id}),
    )  # fmt: skip
    with pytest.raises(DuplicateUpdateError):
        run.submit(site="site-0", digest=again)


def test_an_update_of_a_voided_attempt_does_not_count_in_the_next(world: World) -> None:
    run = opened(world)
    digest = world.send(0, plain(world))
    run.submit(site="site-0", digest=digest)
    run.open_round(round_number=1, attempt=1, purpose="train")
    with pytest.raises((StaleUpdateError, TicketError)):
        run.submit(site="site-0", digest=digest)
    with pytest.raises(CohortError):
        run.close_round(absent={})


def test_an_update_of_a_site_that_was_not_drawn_is_refused(tmp_path: Path) -> None:
    cohort = CohortTerms(least=2, fraction_train=0.5, fraction_evaluate=1.0, extra=0)
    world = World(tmp_path / "enclave", cohort=cohort)
    run = opened(world)
    drawn = {site.owner.name for site in world.manifest.draw(purpose="train", round_number=1)}
    (other, *_) = sorted({keys.name for keys in world.sites} - drawn)
    with pytest.raises(CohortError):
        run.submit(site=other, digest=world.send(int(other[-1]), plain(world)))


def test_what_the_courier_does_not_hold_is_refused(world: World) -> None:
    run = opened(world)
    with pytest.raises(MissingFileError):
        run.submit(site="site-0", digest=OTHER)
    with pytest.raises(EncodingError):
        run.submit(site="site-0", digest="../../etc/passwd")


def test_an_update_that_is_far_too_large_is_refused_before_it_is_taken(world: World) -> None:
    run = opened(world)
    with pytest.raises(SizeError):
        run.submit(site="site-0", digest=world.courier.put(bytes(3 * 1024 * 1024)))


def test_one_too_few_is_no_round_and_the_next_attempt_is(world: World) -> None:
    run = opened(world)
    submit(world, run, [0])
    with pytest.raises(CohortError):
        run.close_round(absent={"site-1": "client-error"})
    assert run.excluded == {"site-1": "client-error", "site-2": "no-answer", "site-3": "no-answer"}
    assert not world.brokers.commits
    with pytest.raises(RoundError):
        run.close_round(absent={})
    run.open_round(round_number=1, attempt=1, purpose="train")
    submit(world, run, attempt=1)
    assert candidate_of(run.close_round(absent={})).attempt == 1


def test_one_too_few_after_exclusion_is_no_round(world: World) -> None:
    run = opened(world)
    submit(world, run, [0])
    run.submit(site="site-1", digest=world.send(1, plain(world), changes=Changes(sealed=flipped)))
    with pytest.raises(CohortError):
        run.close_round(absent={})
    assert run.excluded["site-1"] == "tampered"
    assert set(world.courier.letters) & {"run-1/commit/train/1"} == set()


STEPS: list[tuple[str, int, int, str, type[ConfedError]]] = [
    ("a round ahead", 2, 0, "train", RoundError),
    ("round nought", 0, 0, "train", RoundError),
    ("a round after the last", 6, 0, "train", RoundError),
    ("an attempt after the last", 1, 3, "train", RoundError),
    ("the attempt that is open and used", 1, 0, "train", RoundError),
    ("an evaluation of what is not there", 1, 0, "evaluate", RoundError),
    ("something else", 1, 1, "aggregate", PurposeError),
    ("nonsense", 1, 1, "", PurposeError),
]


@pytest.mark.parametrize(
    ("number", "attempt", "purpose", "error"), [row[1:] for row in STEPS], ids=[row[0] for row in STEPS]
)
def test_a_round_out_of_order_is_not_opened(
    world: World, number: int, attempt: int, purpose: str, error: type[ConfedError]
) -> None:
    run = opened(world)
    submit(world, run, [0])
    with pytest.raises(error):
        run.open_round(round_number=number, attempt=attempt, purpose=purpose)
    submit(world, run, [1])
    assert run.close_round(absent={}).cohort_size == 2  # what was open still is


def test_asking_twice_for_a_round_that_nothing_was_sent_to_does_no_harm(world: World) -> None:
    run = opened(world)
    assert run.open_round(round_number=1, attempt=0, purpose="train").cohort == tuple(f"site-{n}" for n in range(4))
    one_round(world, run)
    with pytest.raises(RoundError):
        run.open_round(round_number=1, attempt=1, purpose="train")


def test_nothing_works_before_a_round_is_open(world: World) -> None:
    run = world.run()
    with pytest.raises(RoundError):
        run.submit(site="site-0", digest=OTHER)
    with pytest.raises(RoundError):
        run.close_round(absent={})
    with pytest.raises(RoundError):
        run.close_run()


def test_too_few_countersignatures_publish_nothing_and_the_round_may_be_closed_again(world: World) -> None:
    run = opened(world)
    submit(world, run)
    for name in ("site-0", "site-1"):
        world.brokers.refuse["countersign", name] = RollbackError("base")
    with pytest.raises(QuorumError):
        run.close_round(absent={})
    assert not world.brokers.commits
    assert "run-1/commit/train/1" not in world.courier.letters
    del world.brokers.refuse["countersign", "site-0"]
    assert run.close_round(absent={}).cohort_size == 4


def test_a_commit_that_was_refused_publishes_nothing(world: World) -> None:
    run = opened(world)
    submit(world, run)
    world.brokers.refuse["commit", "owner"] = RollbackError("base")
    with pytest.raises(RollbackError):
        run.close_round(absent={})
    assert "run-1/commit/train/1" not in world.courier.letters


def test_a_round_whose_commit_got_lost_is_committed_by_asking_again(world: World) -> None:
    run = opened(world)
    submit(world, run)
    world.brokers.refuse["commit", "owner"] = UnreachableError("broker")
    with pytest.raises(UnreachableError):
        run.close_round(absent={})
    world.brokers.refuse.clear()
    closed = run.close_round(absent={})
    found = verify_commit_record(CommitRecord.from_bytes(closed.record), manifest=world.manifest, round_number=1)
    assert found.digest in world.courier.objects


def test_a_commit_of_something_else_is_not_published(world: World) -> None:
    run = opened(world)
    submit(world, run)
    world.brokers.tamper["commit"] = lambda commit: replace(commit, digest=OTHER)
    with pytest.raises(LineageError):
        run.close_round(absent={})
    assert "run-1/commit/train/1" not in world.courier.letters


def test_a_code_that_the_governor_reports_must_be_one(world: World) -> None:
    run = opened(world)
    submit(world, run, [0, 1])
    with pytest.raises(EncodingError):
        run.close_round(absent={"site-2": "<b>not a code</b>"})


def test_closing_the_run_needs_a_quorum(tmp_path: Path) -> None:
    world = World(tmp_path / "enclave", rounds=1)
    run = opened(world)
    one_round(world, run)
    documents = json.loads(run.close_run())
    assert sorted(documents) == ["closing", "countersignatures"]
    assert len(documents["countersignatures"]) == 4
    for name in ("site-0", "site-1"):
        world.brokers.refuse["close", name] = LineageError("head")
    with pytest.raises(QuorumError):
        run.close_run()


def test_a_new_instance_takes_up_only_a_committed_version(world: World) -> None:
    run = opened(world)
    one_round(world, run)
    with pytest.raises(LineageError):
        world.run().attest(first_round=3, attempt=1)
    letters = world.courier.letters["run-1/commit/train/1"]
    letters[0] = letters[0].replace(b'"signature":"', b'"signature":"00', 1)
    with pytest.raises(ConfedError):
        world.run().attest(first_round=2, attempt=1)


def test_a_base_that_is_not_its_makers_is_not_opened(world: World) -> None:
    start = world.manifest.model.start.digest
    sealed = world.courier.objects[start]
    world.courier.objects[start] = sealed[:-1] + bytes([sealed[-1] ^ 1])
    run = world.run()
    run.attest(first_round=1, attempt=0)
    with pytest.raises(ConfedError) as refused:
        run.open_round(round_number=1, attempt=0, purpose="train")
    assert refused.value.code == "tampered"


def test_sites_whose_brokers_refuse_are_left_out_while_a_quorum_remains(world: World) -> None:
    world.brokers.refuse["release", "site-3"] = InstanceError("evidence")
    run = world.run()
    assert run.attest(first_round=1, attempt=0) == world.enclave.instance
    assert not world.courier.letters["run-1/aggregator/site-3"]
    world.brokers.refuse["challenge", "site-2"] = InstanceError("evidence")
    with pytest.raises(QuorumError):
        world.run().attest(first_round=1, attempt=0)


def test_credentials_that_do_not_cover_a_round_are_renewed(world: World) -> None:
    world.brokers.credential_rounds = 1
    run = opened(world)
    closed = one_round(world, run)
    asked = len(world.brokers.requests)
    base = world.open_version(candidate_of(closed).digest, version=1)
    one_round(world, run, 2, base=base, base_digest=candidate_of(closed).digest)
    renewed = [request for request in world.brokers.requests[asked:] if not request.keys]
    assert {(request.round, request.broker) for request in renewed} == {(2, keys.party.broker) for keys in world.sites}


def test_evidence_is_made_anew_only_when_it_is_too_old(world: World) -> None:
    run = opened(world)
    closed = one_round(world, run)
    assert world.brokers.envelopes[-1] != b""
    world.brokers.credential_rounds = 99
    base = world.open_version(candidate_of(closed).digest, version=1)
    closed = one_round(world, run, 2, base=base, base_digest=candidate_of(closed).digest)
    assert world.brokers.envelopes[-1] == b""
    world.brokers.time += 2 * HOUR
    run._enclave._clocks[world.owner.party.broker].advance(world.brokers.time)
    run.open_round(round_number=3, attempt=0, purpose="train")
    assert world.brokers.envelopes[-1] != b""


def test_a_broker_that_forgot_the_evidence_is_given_new(world: World) -> None:
    run = opened(world)
    closed = one_round(world, run)
    world.brokers.forgets_evidence = True
    base = world.open_version(candidate_of(closed).digest, version=1)
    one_round(world, run, 2, base=base, base_digest=candidate_of(closed).digest)
    assert [bool(envelope) for envelope in world.brokers.envelopes[-2:]] == [False, True]


def test_a_base_that_somebody_else_sealed_under_the_same_key_is_not_opened(world: World) -> None:
    start = world.manifest.model.start
    draft = Draft(kind=Kind.MODEL, container_id=start.container_id, recipients=(RecipientEntry.owner_key("model-key"),))
    forged, _ = seal_to_bytes(
        pack(world.model),
        draft,
        data_key=container_key(MODEL_KEY, container_id=start.container_id),
        signing_key=world.sites[0].identity,
    )
    world.courier.objects[start.digest] = forged
    run = world.run()
    run.attest(first_round=1, attempt=0)
    with pytest.raises(SignatureError):
        run.open_round(round_number=1, attempt=0, purpose="train")


def test_the_moments_go_on_from_the_sealed_state(tmp_path: Path) -> None:
    world = World(tmp_path / "enclave", strategy=ADAM)
    run = opened(world)
    states: list[dict[str, np.ndarray]] = []
    base, digest = world.model, ""
    for number in (1, 2):
        mean = flowers([world.trained(site, base) for site in range(4)], [10.0, 20.0, 30.0, 40.0])
        before = base
        candidate = candidate_of(one_round(world, run, number, base=base, base_digest=digest))
        key = state_key(MODEL_KEY, run="run-1", version=number, attempt=0)
        states.append(unpack(Container.parse(world.courier.get(candidate.state)).unlock(key).read_all()))
        base, digest = world.open_version(candidate.digest, version=number), candidate.digest
        earlier = 0.9 * states[0]["m_t/bias"] if number == 2 else 0.0
        expected = earlier + 0.1 * (mean["bias"] - before["bias"])
        np.testing.assert_allclose(states[-1]["m_t/bias"], expected, atol=1e-6)


def test_the_true_norm_is_what_honest_clients_declare(world: World) -> None:
    trained = world.trained(0, world.model)
    assert 0 < norm_of(trained, world.model) < 10
