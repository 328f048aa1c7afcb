"""The private mean: nobody moves it by more than the clip norm, and what stands is noised."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from aggregator_world import norm_of, weights_of
from test_fold import PlainChunks, contribution, packed

from aggregator.combine import private
from aggregator.combine.fold import combine
from aggregator.combine.passes import Contribution
from aggregator.combine.private import PrivateMean
from confed.errors import CohortError, NormError, NotFiniteError
from confed.privacy.terms import AdaptiveClip, FixedClip, PrivacyTerms, SamplingTerms

if TYPE_CHECKING:
    from numpy.typing import NDArray

BASE = {"wide": np.linspace(-1, 1, 40, dtype=np.float32).reshape(8, 5), "deep": np.array([0.5, 2.0])}
TERMS = PrivacyTerms(
    mechanism="gaussian",
    adjacency="zero-out",
    clip=FixedClip(norm=1.0),
    noise_multiplier=1.0,
    weighting="uniform",
    denominator=4.0,
    sampling=SamplingTerms(by="manifest", rate=1.0),
    delta=1e-5,
    epsilon_budget=10.0,
)


class Silent:
    """A generator without noise: what is left is the clipped sum."""

    def normal(self, count: int) -> NDArray[np.float64]:
        return np.zeros(count)

    def add_to(self, values: NDArray[np.float64], *, sigma: float) -> None:
        assert sigma > 0

    def coin(self, probability: float) -> bool:
        return True


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private, "GaussianNoise", Silent)


def update(seed: int, *, norm: float, base: Any = None) -> dict[str, np.ndarray]:
    """Return the base moved by a vector of this norm."""
    base = BASE if base is None else base
    generator = np.random.default_rng(seed)
    moves = {name: generator.normal(size=array.shape) for name, array in base.items()}
    length = np.sqrt(sum(float((move**2).sum()) for move in moves.values()))
    return {name: np.asarray(array + moves[name] * (norm / length), dtype=array.dtype) for name, array in base.items()}


def rule(clip: float = 1.0, *, expected: float = 4.0, **changes: Any) -> PrivateMean:
    terms = dataclasses.replace(TERMS, **changes)
    return PrivateMean(terms=terms, clip=clip, expected=expected, norm_bound=100.0, weight_cap=50.0)


def folded(contributions: list[Contribution], mean: PrivateMean, *, base: Any = None, threads: int = 1) -> Any:
    return combine(
        contributions,
        base=weights_of(BASE if base is None else base),
        least=1,
        norm_bound=100.0,
        rule=mean,
        threads=threads,
    )


def difference(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([(one[n].astype(np.float64) - other[n].astype(np.float64)).ravel() for n in one])


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize("threads", [1, 3])
def test_differences_are_clipped_added_and_divided_by_the_fixed_denominator(threads: int) -> None:
    norms = [0.5, 1.0, 3.0]
    updates = [update(at, norm=norm) for at, norm in enumerate(norms)]
    result = folded(
        [contribution(f"s{at}", sent, BASE, weight=10.0 + at) for at, sent in enumerate(updates)],
        rule(),
        threads=threads,
    ).mean.arrays()
    expected = sum(min(1.0, 1 / norm) * difference(sent, BASE) for sent, norm in zip(updates, norms, strict=True)) / 4.0
    assert np.allclose(difference(result, BASE), expected, atol=2e-3 / 4)


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize("norm", [1e-3, 0.999, 1.0, 1.5, 99.0])
@pytest.mark.parametrize("weighting", ["uniform", "examples"])
@pytest.mark.parametrize("weight", [1.0, 50.0])
def test_no_identity_moves_the_sum_by_more_than_the_clip_norm(norm: float, weighting: str, weight: float) -> None:
    """With or without it, whatever the others sent: the denominator is nobody's."""
    others = [contribution(f"s{at}", update(at, norm=5.0), BASE, weight=20.0) for at in range(3)]
    one = contribution("z", update(9, norm=norm), BASE, weight=weight)
    mean = rule(weighting=weighting)
    with_it, without = folded([*others, one], mean), folded(others, mean)
    moved = np.linalg.norm(difference(with_it.mean.arrays(), without.mean.arrays())) * 4.0
    assert moved <= 1.0 + 1e-6
    if weighting == "examples":
        assert moved <= weight / 50.0 + 1e-6


@pytest.mark.usefixtures("silent")
def test_a_norm_that_is_false_within_the_tolerance_gains_nothing() -> None:
    sent = update(1, norm=4.0)
    honest = contribution("a", sent, BASE)
    lying = dataclasses.replace(honest, norm=honest.norm * (1 - 9e-4))
    moved = difference(folded([lying], rule()).mean.arrays(), BASE)
    assert np.linalg.norm(moved) * 4.0 <= 1.0 + 1e-6


def wrong_sender(what: str) -> Contribution:
    sent = update(5, norm=8.0)
    honest = contribution("wrong", sent, BASE)
    if what == "false norm":
        return dataclasses.replace(honest, norm=0.5)
    sent["wide"][3, 2] = np.nan
    return dataclasses.replace(honest, chunks=PlainChunks(packed(sent)))


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize(("what", "error"), [("false norm", NormError), ("NaN", NotFiniteError)])
def test_a_wrong_sender_is_excluded_by_name_and_nothing_of_it_stays(what: str, error: type[Exception]) -> None:
    good = [contribution(f"s{at}", update(at, norm=2.0), BASE) for at in range(2)]
    found = folded([*good, wrong_sender(what)], rule())
    assert {site: type(problem) for site, problem in found.excluded.items()} == {"wrong": error}
    alone = folded(good, rule())
    assert np.array_equal(difference(found.mean.arrays(), BASE), difference(alone.mean.arrays(), BASE))


def test_too_few_that_are_right_make_no_version() -> None:
    with pytest.raises(CohortError):
        folded([wrong_sender("NaN")], rule())


@pytest.mark.usefixtures("silent")
def test_a_huge_weight_weighs_one() -> None:
    huge = contribution("a", update(1, norm=1.0), BASE, weight=1e9)
    for weighting in ("uniform", "examples"):
        moved = difference(folded([huge], rule(weighting=weighting)).mean.arrays(), BASE)
        assert np.linalg.norm(moved) * 4.0 <= 1.0 + 1e-6


def test_noise_has_the_spread_of_the_clip_norm_over_the_denominator() -> None:
    base = {"x": np.zeros(40_000)}
    still = contribution("a", base, base)
    found = difference(folded([still], rule(clip=3.0, noise_multiplier=2.0), base=base, threads=2).mean.arrays(), base)
    assert found.std() == pytest.approx(2.0 * 3.0 / 4.0, rel=0.03)
    assert abs(found.mean()) < 0.05
    again = difference(folded([still], rule(clip=3.0, noise_multiplier=2.0), base=base).mean.arrays(), base)
    assert abs(np.corrcoef(found, again)[0, 1]) < 0.03
    chunk = 8  # elements of a chunk here: no two chunks or threads share their noise
    parts = found.reshape(-1, chunk)
    assert len(np.unique(parts, axis=0)) == len(parts)


@pytest.mark.usefixtures("silent")
def test_an_adaptive_clip_norm_moves_to_the_quantile() -> None:
    adaptive = AdaptiveClip(initial=1.0, quantile=0.5, learning_rate=0.2, count_noise=1.0)
    for norm, grows in ((0.5, False), (2.0, True)):
        mean = PrivateMean(
            terms=dataclasses.replace(TERMS, clip=adaptive), clip=1.0, expected=4.0, norm_bound=100.0, weight_cap=50.0
        )
        folded([contribution(f"s{at}", update(at, norm=norm), BASE) for at in range(4)], mean)
        assert mean.next_clip == pytest.approx(np.exp(0.1 if grows else -0.1))


def test_the_count_behind_an_adaptive_clip_is_noised() -> None:
    adaptive = AdaptiveClip(initial=1.0, quantile=0.5, learning_rate=0.2, count_noise=2.0)
    found = set()
    for _ in range(5):
        mean = PrivateMean(
            terms=dataclasses.replace(TERMS, clip=adaptive), clip=1.0, expected=4.0, norm_bound=100.0, weight_cap=50.0
        )
        folded([contribution("a", update(1, norm=0.5), BASE)], mean)
        found.add(mean.next_clip)
    assert len(found) == 5


def test_the_enclave_s_coin_leaves_an_update_out_of_the_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    class Coins(Silent):
        def coin(self, probability: float) -> bool:
            assert probability == 0.5
            tossed.append(len(tossed) % 2 == 0)
            return tossed[-1]

    tossed: list[bool] = []
    monkeypatch.setattr(private, "GaussianNoise", Coins)
    sent = [update(at, norm=0.5) for at in range(4)]
    contributions = [contribution(f"s{at}", one, BASE) for at, one in enumerate(sent)]
    result = folded(contributions, rule(sampling=SamplingTerms(by="enclave", rate=0.5))).mean.arrays()
    expected = (difference(sent[0], BASE) + difference(sent[2], BASE)) / 4.0
    assert np.allclose(difference(result, BASE), expected, atol=1e-6)
    assert norm_of(sent[0], BASE) == pytest.approx(0.5, rel=1e-5)
