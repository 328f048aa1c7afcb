"""An attack on a run's versions: was a canary in one site's data? Noise is what makes the answer a guess.

Eight sites train a linear model; in half of the runs one of them also has the canary, a picture of noise under a label
drawn for it. The attacker is the model owner: it holds every version, and scores how much better the last one knows the
canary than the first. What it is good for is the area under its ROC curve: 1 is certainty, one half a guess.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from aggregator_world import weights_of
from test_fold import contribution
from test_private import TERMS

from aggregator.combine.fold import Rule, WeightedMean, combine
from aggregator.combine.private import PrivateMean
from confed.privacy import noise
from confed.privacy.accounting import epsilon
from confed.privacy.terms import FixedClip

SITES, ROUNDS, RUNS, CLASSES, PIXELS = 8, 4, 24, 4, 40
Shard = tuple[np.ndarray, np.ndarray]


def shards(generator: np.random.Generator) -> list[Shard]:
    centres = generator.normal(size=(CLASSES, PIXELS))
    labels = generator.integers(CLASSES, size=(SITES, 12))
    return [(centres[each] + generator.normal(size=(12, PIXELS)), each) for each in labels]


def probabilities(model: dict[str, np.ndarray], pixels: np.ndarray) -> np.ndarray:
    logits = pixels @ model["w"]
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)


def trained(model: dict[str, np.ndarray], shard: Shard) -> dict[str, np.ndarray]:
    pixels, labels = shard
    weights = {"w": model["w"].copy()}
    for _ in range(5):
        wrong = probabilities(weights, pixels) - np.eye(CLASSES)[labels]
        weights["w"] -= 0.2 * pixels.T @ wrong / len(labels)
    return weights


def federated(data: list[Shard], rule: Rule) -> dict[str, np.ndarray]:
    model = {"w": np.zeros((PIXELS, CLASSES))}
    for _ in range(ROUNDS):
        updates = [contribution(f"s{at}", trained(model, shard), model) for at, shard in enumerate(data)]
        combined = combine(updates, base=weights_of(model), least=1, norm_bound=1e3, rule=rule)
        assert not combined.excluded
        model = combined.mean.arrays()
    return model


def score(rule: Rule, *, inside: bool, seed: int) -> float:
    """Return how sure the last version is of the canary's label."""
    generator = np.random.default_rng(seed)
    data = shards(generator)
    canary, label = generator.normal(size=(1, PIXELS)) * 1.5, generator.integers(CLASSES, size=1)
    if inside:
        pixels, labels = data[0]
        data[0] = (np.concatenate([pixels, canary]), np.concatenate([labels, label]))
    return float(np.log(probabilities(federated(data, rule), canary)[0, label[0]]))


def area(rule: Rule) -> float:
    """Return how often a run with the canary scores above the same run without it, ties as one half."""
    pairs = [(score(rule, inside=True, seed=seed), score(rule, inside=False, seed=seed)) for seed in range(RUNS)]
    return float(np.mean([(one > other) + 0.5 * (one == other) for one, other in pairs]))


def private(multiplier: float) -> PrivateMean:
    terms = dataclasses.replace(TERMS, clip=FixedClip(norm=1.0), noise_multiplier=multiplier, denominator=float(SITES))
    return PrivateMean(terms=terms, clip=1.0, expected=SITES, norm_bound=1e3, weight_cap=1e3)


def test_without_noise_the_attack_succeeds() -> None:
    assert area(WeightedMean()) > 0.95


def test_clipping_alone_does_not_stop_it() -> None:
    assert area(private(1e-4)) > 0.95


def test_with_noise_it_is_a_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    # Known keys, so that this test does not fail by chance: the law of the noise has tests of its own.
    monkeypatch.setattr(noise.os, "urandom", np.random.default_rng(1).bytes)
    assert epsilon(dataclasses.replace(TERMS, noise_multiplier=8.0), ROUNDS) < 3
    assert 0.25 < area(private(8.0)) < 0.75
