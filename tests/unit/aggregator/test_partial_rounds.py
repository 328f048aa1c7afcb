"""What travels, through whole rounds: each type, a part of a model, tied tensors; and the rest is the base's, bit for bit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from aggregator_world import Changes, World, as_floats
from test_fold import same_bits
from test_run import candidate_of

from confed.errors import ConfedError, ShapeError, SizeError
from confed.manifest import StrategyTerms, UpdateTerms
from confed.model.bfloat16 import narrowed, widened
from confed.sealing.container import Container

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from aggregator.run import Closed, Run

Arrays = dict[str, np.ndarray]
TYPES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "F64": lambda x: x.astype(np.float64),
    "F32": lambda x: x.astype(np.float32),
    "F16": lambda x: x.astype(np.float16),
    "BF16": lambda x: narrowed(x.astype(np.float32)),
}


def model() -> Arrays:
    """Return a model of every type: a body, a head whose matrix is the embedding's, counters and a mask."""
    generator = np.random.default_rng(1)
    embedding = generator.normal(size=(6, 5)).astype(np.float32)
    return {
        "embed": embedding,
        "body.wide": generator.normal(size=7),
        "body.half": generator.normal(size=(3, 3)).astype(np.float16),
        "body.brain": narrowed(generator.normal(size=9).astype(np.float32)),
        "body.steps": np.array(3),
        "head.weight": embedding.copy(),
        "head.bias": np.zeros(5, np.float32),
        "head.mask": np.array([True, False]),
    }


def retrained(number: int, base: Mapping[str, np.ndarray], *, step: float = 0.1) -> Arrays:
    """Return what a site makes of a base: every tensor moved, counters too, in its own type."""
    generator = np.random.default_rng(number)
    found: Arrays = {}
    for name, array in base.items():
        moved = generator.normal(size=array.shape) * step
        if array.dtype.kind == "f":
            found[name] = np.asarray(array + moved).astype(array.dtype)
        elif array.dtype.kind == "u":
            found[name] = narrowed((widened(array) + moved).astype(np.float32))
        else:
            found[name] = np.asarray(array + 1).astype(array.dtype)
    return found


def opened(world: World, **step: Any) -> Run:
    run = world.run()
    run.attest(first_round=1, attempt=0)
    run.open_round(round_number=1, attempt=0, purpose="train")
    return run


def walked(world: World, base: Arrays, *, numbers: Any = range(4)) -> Closed:
    run = opened(world)
    for number in numbers:
        run.submit(site=f"site-{number}", digest=world.send(number, retrained(number, base)))
    return run.close_round(absent={})


def version_of(world: World, closed: Closed) -> Arrays:
    return world.open_version(candidate_of(closed).digest, version=1)


def mean_of(name: str, base: Arrays, numbers: Any = range(4)) -> np.ndarray:
    shares = np.array([10.0 * (number + 1) for number in numbers])
    updates = [as_floats(retrained(number, base)[name]) for number in numbers]
    return np.tensordot(shares / shares.sum(), np.stack(updates), axes=1)


@pytest.mark.parametrize("strategy", ["FedAvg", "FedAdam", "FedMedian"])
@pytest.mark.parametrize("kind", TYPES)
def test_each_type_goes_a_whole_round_and_is_rounded_once(kind: str, strategy: str, tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    base = {"w": TYPES[kind](generator.normal(size=1000)), "steps": np.array(3)}
    world = World(tmp_path / "enclave", model=base, strategy=StrategyTerms(name=strategy, parameters={}))
    closed = walked(world, base)
    assert (closed.excluded, closed.cohort_size) == ({}, 4)
    version = version_of(world, closed)
    assert version["w"].dtype == base["w"].dtype
    assert version["steps"] == 3
    if strategy != "FedAvg":
        assert not same_bits(version, base)
        return
    mean = mean_of("w", base)
    if kind in ("F32", "F64"):
        np.testing.assert_allclose(version["w"], mean, rtol=1e-5, atol=1e-6)
        return
    # Summed in float32 and rounded once: the nearest number of the type, but where float32 turned a tie.
    nearest = TYPES[kind](mean)
    assert (nearest.view(np.uint16) == version["w"].view(np.uint16)).mean() > 0.99
    assert np.abs(as_floats(version["w"]) - mean).max() <= np.abs(as_floats(nearest) - mean).max() * 1.01


def test_small_steps_of_many_are_not_lost_in_float16(tmp_path: Path) -> None:
    base = {"w": np.full(8, 1.0, np.float16)}
    world = World(tmp_path / "enclave", sites=10, model=base)
    run = opened(world)
    for number in range(10):
        moved = {"w": np.full(8, 1.0 + 2.0**-10 * (number % 2), np.float16)}
        run.submit(site=f"site-{number}", digest=world.send(number, moved, weight=1.0))
    # Half of the sites moved by one step: the mean lies in the middle, and goes to the even one.
    assert version_of(world, run.close_round(absent={}))["w"].tolist() == [1.0] * 8


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", TYPES)
def test_what_is_not_finite_is_refused_in_each_type(kind: str, value: float, tmp_path: Path) -> None:
    base = {"w": TYPES[kind](np.ones(20))}
    world = World(tmp_path / "enclave", model=base)
    run = opened(world)
    for number in (0, 2):
        run.submit(site=f"site-{number}", digest=world.send(number, retrained(number, base)))
    wrong = np.ones(20)
    wrong[-1] = value
    bits = wrong.astype(np.float32).view(np.uint32) >> 16
    sent = {"w": bits.astype(np.uint16).view(base["w"].dtype) if kind == "BF16" else TYPES[kind](wrong)}
    run.submit(site="site-1", digest=world.send(1, sent, changes=Changes(declared={"norm": 1.0})))
    closed = run.close_round(absent={})
    assert closed.excluded == {"site-1": "not-finite", "site-3": "no-answer"}
    assert np.isfinite(as_floats(version_of(world, closed)["w"])).all()


def test_a_result_beyond_the_type_is_no_version(tmp_path: Path) -> None:
    base = {"w": np.ones(4, np.float16)}
    strategy = StrategyTerms(name="FedAdam", parameters={"eta": 1e6})
    world = World(tmp_path / "enclave", model=base, strategy=strategy)
    with pytest.raises(ConfedError, match="next version F16"):
        walked(world, base)


PARTS = {
    "the head": (("head.weight", "head.bias"), {}),
    "one tensor of a type": (("body.half",), {}),
    "bfloat16 alone": (("body.brain",), {}),
    "the matrix that the head is tied to": (("embed", "head.bias"), {"head.weight": "embed"}),
    "a head, while what is tied is frozen": (("head.bias",), {"head.weight": "embed"}),
    "all, in another order": (("head.bias", "body.brain", "body.half", "body.wide", "embed"), {"head.weight": "embed"}),
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("strategy", ["FedAvg", "FedAvgM"])
def test_only_what_is_trained_travels_and_the_rest_is_the_bases(part: str, strategy: str, tmp_path: Path) -> None:
    names, tied = PARTS[part]
    base = model()
    parameters = {"server_momentum": 0.5} if strategy == "FedAvgM" else {}
    terms = StrategyTerms(name=strategy, parameters=parameters)
    world = World(tmp_path / "enclave", model=base, trained=names, tied=tied, strategy=terms)
    closed = walked(world, base)
    assert closed.excluded == {}
    version = version_of(world, closed)
    assert list(version) == list(base)
    copies = {name: source for name, source in tied.items() if source in names}
    for name, array in version.items():
        if name in names or name in copies:
            mean = mean_of(copies.get(name, name), base)
            coarse = {"float16": 1e-3}.get(str(array.dtype), 1e-2 if name == "body.brain" else 1e-5)
            np.testing.assert_allclose(as_floats(array), mean, rtol=coarse, atol=coarse, err_msg=name)
            assert array.tobytes() != base[name].tobytes()
        else:
            assert array.tobytes() == base[name].tobytes(), name
    for name, source in tied.items():
        assert version[name].tobytes() == version[source].tobytes()


def test_an_update_is_as_large_as_what_is_trained(tmp_path: Path) -> None:
    base = {"body": np.zeros(100_000, np.float32), "head": np.zeros(100, np.float32)}
    world = World(tmp_path / "enclave", model=base, trained=("head",))
    run = opened(world)
    digest = world.send(0, retrained(0, base))
    assert len(world.courier.objects[digest]) < 5000
    header = Container.parse(world.courier.get(digest)).header
    assert header.plaintext_bytes < 400 + 200
    run.submit(site="site-0", digest=digest)


def test_the_norm_bound_is_over_what_travels(tmp_path: Path) -> None:
    base = {"body": np.zeros(1000, np.float32), "head": np.zeros(10, np.float32)}
    bound = UpdateTerms(norm_bound=1.0, weight_cap=1000.0, loss_cap=None)
    world = World(tmp_path / "enclave", model=base, trained=("head",), update=bound)
    assert walked(world, base).excluded == {}  # the body moved by 3, and stayed where it is


def with_a_frozen_tensor(arrays: Arrays) -> Arrays:
    return {name: arrays[name] for name in ("embed", "head.weight", "head.bias")}


def without_one(arrays: Arrays) -> Arrays:
    return {"head.weight": arrays["head.weight"]}


def with_another_in_its_place(arrays: Arrays) -> Arrays:
    return {"hand.weight": arrays["head.weight"], "head.bias": arrays["head.bias"]}


def with_another_of_its_shape(arrays: Arrays) -> Arrays:
    return {"body.embed.": arrays["embed"], "head.bias": arrays["head.bias"]}


def of_another_type(arrays: Arrays) -> Arrays:
    return {"head.weight": arrays["head.weight"].astype(np.int32), "head.bias": arrays["head.bias"]}


@pytest.mark.parametrize(
    ("send", "error"),
    [
        (dict, SizeError),
        (with_a_frozen_tensor, SizeError),
        (without_one, SizeError),
        (with_another_in_its_place, None),
        (with_another_of_its_shape, None),
        (of_another_type, None),
    ],
)
def test_an_update_of_other_tensors_is_refused(
    send: Callable[[Arrays], Arrays], error: type[ConfedError] | None, tmp_path: Path
) -> None:
    base = model()
    world = World(tmp_path / "enclave", model=base, trained=("head.weight", "head.bias"))
    run = opened(world)
    for number in (0, 2):
        run.submit(site=f"site-{number}", digest=world.send(number, retrained(number, base)))
    wrong = world.send(1, send(retrained(1, base)), whole=True, changes=Changes(declared={"norm": 1.0}))
    if error is not None:
        with pytest.raises(error):
            run.submit(site="site-1", digest=wrong)
    else:  # as large as it must be: it shows when it is opened
        run.submit(site="site-1", digest=wrong)
    closed = run.close_round(absent={})
    assert closed.excluded["site-1"] == ("size" if error else "shape")
    for name in ("head.weight", "head.bias"):
        np.testing.assert_allclose(version_of(world, closed)[name], mean_of(name, base, (0, 2)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("names", "tied"), [(("hat",), {}), (("body.steps",), {}), (("embed",), {"head.bias": "embed"})]
)
def test_a_base_without_the_manifests_tensors_opens_no_round(
    names: tuple[str, ...], tied: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(ShapeError):
        opened(World(tmp_path / "enclave", model=model(), trained=names, tied=tied))
