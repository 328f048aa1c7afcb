"""Compressed updates through whole rounds: what they stand for is combined, and every wrong turn is refused by name."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from aggregator_world import Changes, World, as_floats, norm_of
from test_fold import same_bits
from test_own_strategy import HEAD
from test_own_strategy import world_of as own_strategy
from test_partial_rounds import model, opened, retrained, version_of
from test_private import TERMS, Silent
from test_run import candidate_of

from aggregator.combine import private
from confed.compression import CompressionTerms
from confed.errors import CompressionError, ConfedError, SizeError
from confed.manifest import CohortTerms, MetricTerms, StrategyTerms, UpdateTerms
from confed.model.compressed import Decoded, compress
from confed.model.weights import flats_of, unpack
from confed.privacy.terms import FixedClip

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from aggregator.run import Closed, Run

Arrays = dict[str, np.ndarray]
WAYS = {
    "bf16": CompressionTerms(name="bf16", fraction=None, feedback=False),
    "int8": CompressionTerms(name="int8", fraction=None, feedback=True),
    "top-k": CompressionTerms(name="top-k", fraction=0.2, feedback=True),
}
LARGE = {"w": np.zeros(500_000, np.float32), "scale": np.zeros(3)}
"""Several chunks in every way."""


def world_of(tmp_path: Path, way: str, **terms: Any) -> World:
    return World(tmp_path / "enclave", compression=WAYS[way], **terms)


def stood_for(world: World, number: int, base: Arrays) -> Arrays:
    """Return what a site's compressed update stands for."""
    form = world.form
    assert form is not None
    given = [flats_of(world.traveling(which), form.layout) for which in (retrained(number, base), base)]
    made = compress(form, *given, carried=None, generator=np.random.default_rng(number))

    class Parts:
        def read_chunk_into(self, index: int, buffer: memoryview) -> None:
            buffer[:] = bytes(made.parts[index])

    decoded, whole = Decoded(Parts(), form, given[1]), bytearray(form.layout.total_bytes)
    for index in range(decoded.chunk_count):
        start, end = decoded.chunk_span(index)
        decoded.read_chunk_into(index, memoryview(whole)[start:end])
    return unpack(whole)


def walk(world: World, base: Arrays, *, threads: int = 1, numbers: Any = range(4)) -> Closed:
    run = world.run(threads=threads)
    run.attest(first_round=1, attempt=0)
    run.open_round(round_number=1, attempt=0, purpose="train")
    for number in numbers:
        run.submit(site=f"site-{number}", digest=world.send(number, retrained(number, base)))
    return run.close_round(absent={})


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("base", [model(), LARGE], ids=["every type", "several chunks"])
@pytest.mark.parametrize("way", WAYS)
def test_the_version_is_the_mean_of_what_updates_stand_for(
    way: str, base: Arrays, threads: int, tmp_path: Path
) -> None:
    world = world_of(tmp_path, way, model=base, update=UpdateTerms(norm_bound=1000.0, weight_cap=1000.0, loss_cap=None))
    closed = walk(world, base, threads=threads)
    assert (closed.excluded, closed.cohort_size) == ({}, 4)
    version = version_of(world, closed)
    updates = [stood_for(world, number, base) for number in range(4)]
    for name, array in version.items():
        if name not in world.manifest.model.trained:
            assert array.tobytes() == base[name].tobytes()
            continue
        mean = sum(as_floats(update[name]) * share for update, share in zip(updates, (0.1, 0.2, 0.3, 0.4), strict=True))
        coarse = {"float16": 2e-3, "uint16": 1e-2}.get(str(array.dtype), 1e-5)
        np.testing.assert_allclose(as_floats(array), mean, rtol=coarse, atol=coarse, err_msg=name)
        assert array.tobytes() != base[name].tobytes()


@pytest.mark.parametrize("strategy", ["FedAdam", "FedMedian", "Krum"])
@pytest.mark.parametrize("way", WAYS)
def test_every_rule_reads_them(way: str, strategy: str, tmp_path: Path) -> None:
    base = model()
    terms = StrategyTerms(name=strategy, parameters={"num_malicious_nodes": 0} if strategy == "Krum" else {})
    cohort = CohortTerms(least=4, fraction_train=1.0, fraction_evaluate=1.0, extra=0)
    world = world_of(tmp_path, way, model=base, strategy=terms, cohort=cohort)
    closed = walk(world, base)
    assert closed.excluded == {}
    found = {name: array for name, array in version_of(world, closed).items() if name in world.manifest.model.trained}
    assert not same_bits(found, world.traveling(base))
    if strategy == "Krum":
        assert any(same_bits(found, stood_for(world, number, base)) for number in range(4))


@pytest.mark.parametrize("way", WAYS)
def test_a_class_of_ones_own_gets_them_opened(way: str, tmp_path: Path) -> None:
    base = {"w": BASE["w"]}
    world = own_strategy(tmp_path / "own", HEAD, model=base, compression=WAYS[way])
    plain = World(tmp_path / "plain", model=base, compression=WAYS[way])
    found = [version_of(each, walk(each, base)) for each in (world, plain)]
    assert same_bits(*found)


@pytest.mark.parametrize("way", WAYS)
def test_they_are_clipped_and_noised_as_others_are(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private, "GaussianNoise", Silent)
    base = model()
    terms = dataclasses.replace(TERMS, clip=FixedClip(norm=0.5))
    world = world_of(tmp_path, way, model=base, privacy=terms, metrics=MetricTerms(clear=(), decimals=4))
    closed = walk(world, base)
    assert closed.excluded == {}
    version = version_of(world, closed)
    updates = [stood_for(world, number, base) for number in range(4)]
    norms = [norm_of(update, base) for update in updates]
    assert min(norms) > 0.5
    for name in world.manifest.model.trained:
        here = as_floats(base[name])
        pairs = zip(updates, norms, strict=True)
        expected = here + sum((as_floats(update[name]) - here) * 0.5 / norm for update, norm in pairs) / 4
        coarse = {"float16": 2e-3, "uint16": 1e-2}.get(str(version[name].dtype), 1e-3)
        np.testing.assert_allclose(as_floats(version[name]), expected, rtol=coarse, atol=coarse, err_msg=name)


@pytest.mark.parametrize(("way", "share"), [("bf16", 0.52), ("int8", 0.27), ("top-k", 0.42)])
def test_an_update_is_small(way: str, share: float, tmp_path: Path) -> None:
    world = world_of(tmp_path, way, model=LARGE)
    opened(world)
    whole = World(tmp_path / "other", model=LARGE)
    opened(whole)
    sizes = [len(each.courier.objects[each.send(0, retrained(0, LARGE))]) for each in (world, whole)]
    assert sizes[0] < share * sizes[1]


def at(offset: int, data: bytes) -> Callable[[bytes], bytes]:
    """Return plaintext with other bytes at a place; below 0 counts from the end."""

    def change(plaintext: bytes) -> bytes:
        start = offset % len(plaintext)
        return plaintext[:start] + data + plaintext[start + len(data) :]

    return change


def four(value: float) -> bytes:
    return np.float32(value).tobytes()


def index(value: int) -> bytes:
    return value.to_bytes(4, "little")


BASE = {"w": np.random.default_rng(9).normal(size=2000).astype(np.float32)}
WRONG: list[tuple[str, str, Callable[[bytes], bytes], str]] = [
    ("a scale that is NaN", "int8", at(0, four(np.nan)), "compression"),
    ("a scale that is infinite", "int8", at(4, four(np.inf)), "compression"),
    ("a scale below 0", "int8", at(0, four(-1.0)), "compression"),
    ("a scale that makes it too large", "int8", at(0, four(1e4)), "norm"),
    ("a scale that makes it infinite", "int8", at(0, four(3e38)), "not-finite"),
    ("a step of -128", "int8", at(-1, b"\x80"), "compression"),
    ("another step", "int8", at(8, bytes(200)), "norm"),
    ("NaN", "bf16", at(0, b"\xc0\x7f"), "not-finite"),
    ("infinity", "bf16", at(-2, b"\x80\xff"), "not-finite"),
    ("a large number", "bf16", at(0, b"\x00\x45"), "norm"),
    ("an index twice", "top-k", at(0, index(1999) * 2), "compression"),
    ("indices that fall", "top-k", at(0, index(1) + index(0)), "compression"),
    ("an index out of range", "top-k", at(4 * 399, index(2000)), "compression"),
    ("the largest index there is", "top-k", at(4 * 399, b"\xff" * 4), "compression"),
    ("NaN in a value", "top-k", at(-4, four(np.nan)), "not-finite"),
    ("infinity in a value", "top-k", at(-4, four(np.inf)), "not-finite"),
    ("another value", "top-k", at(-4, four(50.0)), "norm"),
]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("way", "change", "code"), [row[1:] for row in WRONG], ids=[f"{r[1]}: {r[0]}" for r in WRONG])
def test_what_opens_wrong_is_excluded_by_name_and_leaves_no_trace(
    way: str, change: Callable[[bytes], bytes], code: str, threads: int, tmp_path: Path
) -> None:
    def version(folder: str, wrong: bool) -> tuple[dict[str, str], Arrays]:
        world = world_of(tmp_path / folder, way, model=BASE)
        world.folder.parent.mkdir(exist_ok=True)
        run = world.run(threads=threads)
        run.attest(first_round=1, attempt=0)
        run.open_round(round_number=1, attempt=0, purpose="train")
        for number in (0, 2):
            run.submit(site=f"site-{number}", digest=world.send(number, retrained(number, BASE)))
        if wrong:
            digest = world.send(1, retrained(1, BASE), changes=Changes(plaintext=change))
            run.submit(site="site-1", digest=digest)
        closed = run.close_round(absent={})
        return dict(closed.excluded), version_of(world, closed)

    excluded, found = version("one", wrong=True)
    assert excluded == {"site-1": code, "site-3": "no-answer"}
    assert same_bits(found, version("other", wrong=False)[1])


def bomb(plaintext: bytes) -> bytes:
    return plaintext + bytes(64 << 20)


ARRIVALS: list[tuple[str, str, Changes, type[ConfedError]]] = [
    (f"{sentence}, {way}", way, changes, error)
    for way in WAYS
    for sentence, changes, error in [
        ("one byte less", Changes(plaintext=lambda plaintext: plaintext[:-1]), SizeError),
        ("a byte more", Changes(plaintext=lambda plaintext: plaintext + b"\x00"), SizeError),
        ("64 MiB more", Changes(plaintext=bomb), SizeError),
        ("nothing", Changes(plaintext=lambda _: b""), SizeError),
        ("larger chunks", Changes(chunk_bytes=1 << 20), SizeError),
        ("another compression by its own word", Changes(detail={"compression": "none"}), CompressionError),
        ("a compression that is none", Changes(detail={"compression": "zip"}), CompressionError),
    ]
]


@pytest.mark.parametrize(("way", "changes", "error"), [row[1:] for row in ARRIVALS], ids=[row[0] for row in ARRIVALS])
def test_what_is_no_compressed_update_does_not_arrive(
    way: str, changes: Changes, error: type[ConfedError], tmp_path: Path
) -> None:
    world = world_of(tmp_path, way, model=BASE)
    run = opened(world)
    with pytest.raises(error):
        run.submit(site="site-1", digest=world.send(1, retrained(1, BASE), changes=changes))
    assert run._rounds.current is not None
    assert run._rounds.current.accepted == ()


@pytest.mark.parametrize("other", ["bf16", "int8", "top-k"])
@pytest.mark.parametrize("way", WAYS)
def test_an_update_in_another_way_than_the_manifests_is_refused(way: str, other: str, tmp_path: Path) -> None:
    if way == other:
        return
    world, elsewhere = world_of(tmp_path, way, model=BASE), world_of(tmp_path / "other", other, model=BASE)
    run = opened(world)
    honest = elsewhere.form
    assert honest is not None
    flats = [flats_of(which, honest.layout) for which in (retrained(1, BASE), BASE)]
    made = compress(honest, *flats, carried=None, generator=np.random.default_rng(1))
    plaintext = b"".join(bytes(part) for part in made.parts)
    digest = world.send(1, retrained(1, BASE), changes=Changes(plaintext=lambda _: plaintext))
    with pytest.raises(SizeError):
        run.submit(site="site-1", digest=digest)


def test_an_update_that_is_not_compressed_is_refused(tmp_path: Path) -> None:
    world, plain = world_of(tmp_path, "bf16", model=BASE), World(tmp_path / "plain", model=BASE)
    for one, other in ((world, "none"), (plain, "bf16")):
        run: Run = opened(one)
        digest = one.send(1, retrained(1, BASE), changes=Changes(detail={"compression": other}))
        with pytest.raises(CompressionError):
            run.submit(site="site-1", digest=digest)


def test_a_bad_last_chunk_is_found(tmp_path: Path) -> None:
    world = world_of(tmp_path, "int8", model=LARGE)
    run = opened(world)
    for number in (0, 2):
        run.submit(site=f"site-{number}", digest=world.send(number, retrained(number, LARGE)))
    flipped = Changes(sealed=lambda sealed: sealed[:-20] + bytes([sealed[-20] ^ 1]) + sealed[-19:])
    run.submit(site="site-1", digest=world.send(1, retrained(1, LARGE), changes=flipped))
    closed = run.close_round(absent={})
    assert closed.excluded["site-1"] == "tampered"
    assert candidate_of(closed).excluded["site-1"] == "tampered"
