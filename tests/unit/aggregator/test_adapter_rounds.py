"""Low-rank adapters in the enclave: by their product, side by side, one factor alone; and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from aggregator_world import Changes, World
from hypothesis import given, settings
from hypothesis import strategies as st
from test_run import candidate_of

from aggregator.combine.adapter import product_factors
from confed.adapter import AdapterTerms, factor_name, stack_name
from confed.errors import AdapterError, ShapeError
from confed.manifest import MetricTerms, UpdateTerms
from confed.model.adapter import with_adapter
from confed.privacy.terms import FixedClip, PrivacyTerms, SamplingTerms

if TYPE_CHECKING:
    from pathlib import Path

    from aggregator.run import Closed, Run

Arrays = dict[str, np.ndarray]
MODULES = ("block.q_proj", "block.up_proj")
SITES = 3
WEIGHTS = (10.0, 20.0, 30.0)


def base() -> Arrays:
    generator = np.random.default_rng(1)
    return {
        "block.q_proj.weight": generator.normal(size=(9, 7)).astype(np.float32),
        "block.up_proj.weight": generator.normal(size=(6, 30)).astype(np.float32),
        "norm.weight": np.ones(7, np.float32),
        "hub/config.json": np.frombuffer(b"{}", dtype=np.uint8),
    }


def terms(method: str, **changes: Any) -> AdapterTerms:
    values: dict[str, Any] = {"rank": 2, "alpha": 4.0, "dropout": 0.0, "targets": ("q_proj", "up_proj"), "ranks": None}
    return AdapterTerms(**{**values, "method": method, **changes})


def world_of(folder: Path, adapter: AdapterTerms, *, sites: int = SITES, rounds: int = 2, **rest: Any) -> World:
    model, trained = with_adapter(base(), adapter, rounds=rounds, updates=sites, seed=1)
    return World(folder, sites=sites, model=model, trained=trained, rounds=rounds, adapter=adapter, **rest)


def opened(world: World) -> Run:
    run = world.run()
    run.attest(first_round=1, attempt=0)
    run.open_round(round_number=1, attempt=0, purpose="train")
    return run


def tuned(world: World, number: int, model: Arrays, *, rank: int | None = None) -> Arrays:
    """Return what a site makes of a version: its factors moved, and zeros beyond its own rank."""
    generator = np.random.default_rng(50 + number)
    made = dict(model)
    for name in world.manifest.model.trained:
        moved = (model[name] + generator.normal(size=model[name].shape) * 0.3).astype(np.float32)
        if rank is not None and "lora_A" in name:
            moved[rank:] = 0
        if rank is not None and "lora_B" in name:
            moved[:, rank:] = 0
        made[name] = moved
    return made


def walked(world: World, sent: dict[int, Arrays], **changes: Any) -> tuple[Closed, Arrays]:
    run = opened(world)
    for number, arrays in sent.items():
        digest = world.send(number, arrays, weight=WEIGHTS[number % SITES], **changes)
        run.submit(site=f"site-{number}", digest=digest)
    closed = run.close_round(absent={})
    return closed, world.open_version(candidate_of(closed).digest, version=1)


def product(arrays: Arrays, module: str) -> np.ndarray:
    return arrays[factor_name(module, "B")].astype(np.float64) @ arrays[factor_name(module, "A")].astype(np.float64)


def stacked(arrays: Arrays, module: str) -> np.ndarray:
    return arrays[stack_name(module, "B")].astype(np.float64) @ arrays[stack_name(module, "A")].astype(np.float64)


def mean_product(sent: dict[int, Arrays], module: str) -> np.ndarray:
    shares = np.array([WEIGHTS[number % SITES] for number in sent])
    products = [product(arrays, module) for arrays in sent.values()]
    return np.tensordot(shares / shares.sum(), np.stack(products), axes=1)


def best_of_rank(matrix: np.ndarray, rank: int) -> np.ndarray:
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    return left[:, :rank] * values[:rank] @ right[:rank]


@settings(max_examples=40, deadline=None)
@given(
    outputs=st.integers(1, 12),
    inputs=st.integers(1, 12),
    ranks=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    rank=st.integers(1, 6),
    seed=st.integers(0, 1000),
)
def test_the_factors_are_those_of_the_whole_matrix(
    outputs: int, inputs: int, ranks: list[int], rank: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    pairs = [(generator.normal(size=(outputs, r)), generator.normal(size=(r, inputs))) for r in ranks]
    shares = generator.dirichlet(np.ones(len(ranks))).tolist()
    whole = sum(share * b @ a for (b, a), share in zip(pairs, shares, strict=True))
    last, first = product_factors(pairs, shares, rank=rank)
    assert (last.shape, first.shape) == ((outputs, rank), (rank, inputs))
    np.testing.assert_allclose(last @ first, best_of_rank(whole, rank), atol=1e-9)
    kept = first[first.any(axis=1)]
    np.testing.assert_allclose(kept @ kept.T, np.eye(len(kept)), atol=1e-9)


def test_where_nobody_learnt_anything_gradients_still_pass() -> None:
    pairs = [(np.zeros((5, 2)), np.ones((2, 8)))]
    last, first = product_factors(pairs, [1.0], rank=2)
    assert not last.any()
    np.testing.assert_allclose(first @ first.T, np.eye(2), atol=1e-12)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_round_by_the_product_is_the_whole_matrix_cut_to_the_rank(tmp_path: Path, threads: int) -> None:
    world = world_of(tmp_path / "enclave", terms("product"))
    sent = {number: tuned(world, number, world.model) for number in range(SITES)}
    run = world.run(threads=threads)
    run.attest(first_round=1, attempt=0)
    run.open_round(round_number=1, attempt=0, purpose="train")
    for number, arrays in sent.items():
        run.submit(site=f"site-{number}", digest=world.send(number, arrays, weight=WEIGHTS[number]))
    closed = run.close_round(absent={})
    version = world.open_version(candidate_of(closed).digest, version=1)
    assert closed.excluded == {}
    for module in MODULES:
        np.testing.assert_allclose(product(version, module), best_of_rank(mean_product(sent, module), 2), atol=1e-5)
    for name, array in base().items():
        assert version[name].tobytes() == array.tobytes()


def test_sites_of_other_ranks_count_with_what_they_have(tmp_path: Path) -> None:
    ranks = {"site-0": 1, "site-1": 2, "site-2": 1}
    world = world_of(tmp_path / "enclave", terms("product", ranks=ranks))
    sent = {number: tuned(world, number, world.model, rank=ranks[f"site-{number}"]) for number in range(SITES)}
    closed, version = walked(world, sent)
    assert closed.excluded == {}
    for module in MODULES:
        np.testing.assert_allclose(product(version, module), best_of_rank(mean_product(sent, module), 2), atol=1e-5)


def test_a_rank_above_a_site_s_own_is_refused_by_name(tmp_path: Path) -> None:
    ranks = {"site-0": 1, "site-1": 2, "site-2": 2}
    world = world_of(tmp_path / "enclave", terms("product", ranks=ranks))
    sent = {number: tuned(world, number, world.model) for number in range(SITES)}
    closed, version = walked(world, sent)
    assert closed.excluded == {"site-0": "adapter"}
    del sent[0]
    for module in MODULES:
        np.testing.assert_allclose(product(version, module), best_of_rank(mean_product(sent, module), 2), atol=1e-5)


def test_components_that_nobody_has_can_still_be_trained(tmp_path: Path) -> None:
    ranks = {"site-0": 1, "site-1": 1, "site-2": 2}
    world = world_of(tmp_path / "enclave", terms("product", ranks=ranks, rank=5))
    closed, version = walked(world, {0: tuned(world, 0, world.model, rank=1), 1: tuned(world, 1, world.model, rank=1)})
    assert closed.excluded == {"site-2": "no-answer"}
    for module in MODULES:
        assert version[factor_name(module, "A")].any(axis=1).all()


def test_a_stack_loses_nothing_in_any_round(tmp_path: Path) -> None:
    world = world_of(tmp_path / "enclave", terms("stack"))
    run, model, expected = world.run(), world.model, dict.fromkeys(MODULES, 0.0)
    run.attest(first_round=1, attempt=0)
    digest = ""
    for round_number in (1, 2):
        run.open_round(round_number=round_number, attempt=0, purpose="train")
        sent = {number: tuned(world, 10 * round_number + number, model) for number in range(SITES)}
        for number, arrays in sent.items():
            sealed = world.send(
                number, arrays, base=model, base_digest=digest, round_number=round_number, weight=WEIGHTS[number]
            )
            run.submit(site=f"site-{number}", digest=sealed)
        closed = run.close_round(absent={})
        assert closed.excluded == {}
        digest = candidate_of(closed).digest
        start, model = world.model, world.open_version(digest, version=round_number)
        for module in MODULES:
            expected[module] = expected[module] + mean_product_of(sent, module)
            np.testing.assert_allclose(stacked(model, module), expected[module], atol=1e-5)
            assert not model[factor_name(module, "B")].any()
            assert model[factor_name(module, "A")].tobytes() == start[factor_name(module, "A")].tobytes()
    for name, array in base().items():
        assert model[name].tobytes() == array.tobytes()


def mean_product_of(sent: dict[int, Arrays], module: str) -> Any:
    return mean_product(dict(enumerate(sent.values())), module)


@pytest.mark.parametrize("method", ["product", "stack", "ffa"])
def test_what_is_no_number_and_false_norms_are_refused(method: str, tmp_path: Path) -> None:
    world = world_of(
        tmp_path / "enclave", terms(method), update=UpdateTerms(norm_bound=5.0, weight_cap=1000.0, loss_cap=None)
    )
    run = opened(world)
    first = factor_name(MODULES[0], "B")
    wrong = tuned(world, 0, world.model)
    wrong[first] = wrong[first].copy()
    wrong[first][0, 0] = np.nan
    run.submit(site="site-0", digest=world.send(0, wrong, changes=Changes(declared={"norm": 1.0})))
    far = tuned(world, 1, world.model)
    far[first] = far[first] + 100
    run.submit(site="site-1", digest=world.send(1, far, changes=Changes(declared={"norm": 1.0})))
    with pytest.raises(Exception, match="cohort") as fell_short:
        run.close_round(absent={})
    assert "site-0: not-finite" in str(fell_short.value)
    assert "site-1: norm" in str(fell_short.value)


def test_one_factor_is_averaged_and_noised(tmp_path: Path) -> None:
    private = PrivacyTerms(
        mechanism="gaussian",
        adjacency="zero-out",
        clip=FixedClip(norm=2.0),
        noise_multiplier=0.01,
        weighting="uniform",
        denominator=float(SITES),
        sampling=SamplingTerms(by="manifest", rate=1.0),
        delta=1e-3,
        epsilon_budget=1e6,
    )
    world = world_of(tmp_path / "enclave", terms("ffa"), privacy=private, metrics=MetricTerms(clear=(), decimals=4))
    sent = {number: tuned(world, number, world.model) for number in range(SITES)}
    closed, version = walked(world, sent)
    assert closed.excluded == {}
    for module in MODULES:
        a, b = factor_name(module, "A"), factor_name(module, "B")
        assert version[a].tobytes() == world.model[a].tobytes()
        assert version[b].any()


def test_an_update_of_more_than_the_adapter_is_refused(tmp_path: Path) -> None:
    world = world_of(tmp_path / "enclave", terms("ffa"))
    run = opened(world)
    more = {name: world.model[name] for name in (*world.manifest.model.trained, "norm.weight")}
    digest = world.send(0, more, whole=True)
    with pytest.raises(Exception, match="plaintext size"):
        run.submit(site="site-0", digest=digest)


UNFIT = {
    "a factor of another shape": (factor_name(MODULES[0], "A"), np.zeros((2, 8), np.float32)),
    "a factor of another rank": (factor_name(MODULES[0], "B"), np.zeros((9, 3), np.float32)),
    "a stack that is too small": (stack_name(MODULES[0], "A"), np.zeros((2, 7), np.float32)),
    "a base of another width": ("block.q_proj.weight", np.zeros((9, 8), np.float32)),
}


@pytest.mark.parametrize("what", UNFIT)
def test_an_adapter_that_does_not_fit_its_base_is_refused(what: str, tmp_path: Path) -> None:
    name, array = UNFIT[what]
    adapter = terms("stack")
    model, trained = with_adapter(base(), adapter, rounds=2, updates=SITES, seed=1)
    world = World(
        tmp_path / "enclave", sites=SITES, model={**model, name: array}, trained=trained, rounds=2, adapter=adapter
    )
    with pytest.raises(AdapterError):
        opened(world)


def test_an_adapter_without_its_matrix_is_refused(tmp_path: Path) -> None:
    adapter = terms("product")
    model, trained = with_adapter(base(), adapter, rounds=2, updates=SITES, seed=1)
    del model["block.q_proj.weight"]
    world = World(tmp_path / "enclave", sites=SITES, model=model, trained=trained, rounds=2, adapter=adapter)
    with pytest.raises((AdapterError, ShapeError)):
        opened(world)
