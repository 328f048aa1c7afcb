"""What a manifest may say of a low-rank adapter, and what it refuses by name."""

from __future__ import annotations

from typing import Any

import pytest
from test_manifest import make

from confed.adapter import LARGEST_STACK, AdapterTerms, factor_name, module_of
from confed.aggregation import AggregationTerms
from confed.compression import CompressionTerms
from confed.errors import ConfigError
from confed.manifest import CohortTerms, Manifest, MetricTerms, ModelTerms, StrategyTerms
from confed.privacy.terms import FixedClip, PrivacyTerms, SamplingTerms

MODULES = ("model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj")
TERMS: dict[str, Any] = {
    "method": "ffa",
    "rank": 4,
    "alpha": 8.0,
    "dropout": 0.1,
    "targets": ("q_proj", "v_proj"),
    "ranks": None,
}
PRIVACY = PrivacyTerms(
    mechanism="gaussian",
    adjacency="zero-out",
    clip=FixedClip(norm=1.0),
    noise_multiplier=1.0,
    weighting="uniform",
    denominator=3.0,
    sampling=SamplingTerms(by="manifest", rate=1.0),
    delta=1e-3,
    epsilon_budget=100.0,
)


def terms(**changes: Any) -> AdapterTerms:
    return AdapterTerms(**{**TERMS, **changes})


def manifest(adapter: AdapterTerms, *, trained: tuple[str, ...] | None = None, **changes: Any) -> Manifest:
    known = make().model
    names = adapter.trained_names(MODULES) if trained is None else trained
    model = ModelTerms(owner=known.owner, start=known.start, layout=known.layout, trained=names, tied={})
    return make(model=model, adapter=adapter, **changes)


RANKS = {site.owner.name: 1 + at % 4 for at, site in enumerate(make().sites)}


@pytest.mark.parametrize("method", ["ffa", "product", "stack"])
def test_many_sites_train_an_adapter_by_a_method_that_is_right(method: str) -> None:
    made = manifest(terms(method=method))
    assert Manifest.decode(made.encoded) == made
    assert made.adapter is not None
    assert made.adapter.scaling == 2.0
    assert {module_of(name) for name in made.model.trained} == set(MODULES)
    assert any("lora_A" in name for name in made.model.trained) == (method != "ffa")


def test_one_site_trains_both_factors() -> None:
    one = make().sites[:1]
    assert manifest(
        terms(method="single"),
        sites=one,
        cohort=CohortTerms(least=1, fraction_train=1.0, fraction_evaluate=1.0, extra=0),
    )


def test_sites_may_have_ranks_of_their_own() -> None:
    made = manifest(terms(method="product", ranks=RANKS))
    assert made.adapter is not None
    assert [made.adapter.rank_of(site.owner.name) for site in made.sites] == [1, 2, 3, 4, 1, 2]


OUT_OF_RANGE = {
    "rank 0": {"rank": 0},
    "a rank beyond all": {"rank": 1025},
    "alpha 0": {"alpha": 0.0},
    "alpha that is no number": {"alpha": float("nan")},
    "all dropped": {"dropout": 1.0},
    "no target": {"targets": ()},
    "an empty target": {"targets": ("",)},
    "a target twice": {"targets": ("q_proj", "q_proj")},
    "an unknown method": {"method": "average"},
    "ranks with one factor": {"ranks": RANKS},
    "a site's rank above the run's": {"method": "product", "ranks": {**RANKS, "site-00": 5}},
    "a site's rank 0": {"method": "product", "ranks": {**RANKS, "site-00": 0}},
}


@pytest.mark.parametrize("what", OUT_OF_RANGE)
def test_terms_out_of_their_range_are_refused(what: str) -> None:
    with pytest.raises(ConfigError):
        terms(**OUT_OF_RANGE[what])


A, B = factor_name(MODULES[0], "A"), factor_name(MODULES[0], "B")
CONTRADICTIONS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "means of both factors of many sites": ({"method": "single"}, {}, "model.trained"),
    "means of both factors, A by itself": ({"method": "single"}, {"trained": (A,)}, "model.trained"),
    "both factors where A is frozen": ({}, {"trained": (A, B)}, "model.trained"),
    "A where A is frozen": ({}, {"trained": (A,)}, "model.trained"),
    "B alone where both are combined": ({"method": "product"}, {"trained": (B,)}, "model.trained"),
    "a tensor of the base": ({}, {"trained": (B, "model.norm.weight")}, "model.trained"),
    "a module that is no target": ({"targets": ("o_proj",)}, {}, "adapter.targets"),
    "ranks of some sites": ({"method": "product", "ranks": {"site-00": 1}}, {}, "adapter.ranks"),
    "noise on both factors": ({"method": "product"}, {"privacy": PRIVACY, "metrics": MetricTerms(clear=(), decimals=4)}, "adapter.method"),
    "noise on a stack": ({"method": "stack"}, {"privacy": PRIVACY, "metrics": MetricTerms(clear=(), decimals=4)}, "adapter.method"),
    "a median of products": ({"method": "product"}, {"strategy": StrategyTerms(name="FedMedian", parameters={})}, "adapter.method"),
    "compressed factors": ({"method": "stack"}, {"compression": CompressionTerms(name="bf16", fraction=None, feedback=False)}, "adapter.method"),
    "products in batches": ({"method": "product"}, {"aggregation": AggregationTerms(batch=2)}, "adapter.method"),
    "a stack beyond its bound": ({"method": "stack"}, {"rounds": LARGEST_STACK // 12 + 1}, "adapter.rank"),
}  # fmt: skip


@pytest.mark.parametrize("what", CONTRADICTIONS)
def test_a_manifest_that_contradicts_its_adapter_is_refused(what: str) -> None:
    changed, rest, field = CONTRADICTIONS[what]
    with pytest.raises(ConfigError) as refused:
        manifest(terms(**changed), **rest)
    assert refused.value.field == field


def test_noise_on_one_factor_is_allowed() -> None:
    assert manifest(terms(), privacy=PRIVACY, metrics=MetricTerms(clear=(), decimals=4))


def test_the_largest_stack_is_one() -> None:
    assert manifest(terms(method="stack"), rounds=LARGEST_STACK // 12)
