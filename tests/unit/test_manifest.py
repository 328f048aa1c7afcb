from dataclasses import replace

import pytest

from confed import canonical, record
from confed.aggregation import AggregationTerms
from confed.errors import ConfigError, EncodingError, ManifestMismatchError
from confed.manifest import (
    CodeTerms,
    CohortTerms,
    Manifest,
    MetricTerms,
    ModelTerms,
    Party,
    SealedReference,
    Site,
    StrategyTerms,
    TeePolicy,
    TrustTerms,
    Unchecked,
    UpdateTerms,
)
from confed.privacy.terms import FixedClip, PrivacyTerms, SamplingTerms
from confed.scenario import Scenario
from confed.stopping import BudgetTerms, StopTerms, TargetTerms

DIGEST = "0" * 64
TEE = TeePolicy(
    profiles=("simulated/1",),
    measurements=(DIGEST,),
    devices=(),
    appraisal={},
    max_age_s=60,
    reattest_rounds=10,
    reattest_s=600,
)


def party(name):
    seed = canonical.digest(name.encode())
    return Party(name=name, identity=bytes.fromhex(seed), broker=bytes.fromhex(canonical.digest(seed.encode())))


def reference(name):
    return SealedReference(
        container_id=name, digest=canonical.digest(name.encode()), key_id=f"key-{name}", size_bytes=10
    )


def make(**changes):
    values = {
        "format": "confed-manifest/1",
        "name": "test",
        "scenario": Scenario.FEDERATED,
        "run": "test-1",
        "environment": "simulation",
        "rounds": 3,
        "seed": 7,
        "max_attempts": 2,
        "data_source": "sealed",
        "preparation": None,
        "model": ModelTerms(
            owner=party("model-owner"), start=reference("start"), layout=DIGEST, trained=("weight",), tied={}
        ),
        "sites": tuple(Site(owner=party(f"site-{n:02d}"), dataset=reference(f"data-{n}")) for n in range(6)),
        "code": CodeTerms(client_app="a:b", client_image=DIGEST, aggregator_image=DIGEST, lock=DIGEST, strategy=None),
        "strategy": StrategyTerms(name="FedAvg", parameters={"fraction_train": 1.0}),
        "cohort": CohortTerms(least=2, fraction_train=0.5, fraction_evaluate=1.0, extra=0),
        "settings": {"learning-rate": 0.5},
        "update": UpdateTerms(norm_bound=1.0, weight_cap=10.0, loss_cap=None),
        "metrics": MetricTerms(clear=("loss",), decimals=4),
        "stop": StopTerms.none(),
        "aggregation": AggregationTerms.at_once(),
        "adapter": None,
        "compression": None,
        "privacy": None,
        "serving": None,
        "client_tee": TEE,
        "aggregator_tee": TEE,
        "trust": TrustTerms(anchors={"simulated/1": (b"\x01",)}),
    }
    return Manifest(**{**values, **changes})


def test_a_manifest_is_its_bytes():
    manifest = make()
    assert Manifest.decode(manifest.encoded) == manifest
    assert manifest.digest == canonical.digest(manifest.encoded)


def every_leaf(value, path=()):
    if isinstance(value, dict):
        for key, entry in value.items():
            yield from every_leaf(entry, (*path, key))
    elif isinstance(value, list):
        for number, entry in enumerate(value):
            yield from every_leaf(entry, (*path, number))
    else:
        yield path


def test_everything_in_it_is_covered_by_its_digest():
    manifest = make()
    encoded = record.to_json(manifest)
    paths = list(every_leaf(encoded))
    assert len(paths) > 50
    for path in paths:
        changed = canonical.decode(manifest.encoded)
        place = changed
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = "something else"
        assert canonical.digest(canonical.encode(changed)) != manifest.digest


def test_a_cohort_is_drawn_by_the_seed_and_in_identity_order():
    manifest = make()
    drawn = [manifest.draw(purpose="train", round_number=number) for number in range(1, 20)]
    assert drawn == [manifest.draw(purpose="train", round_number=number) for number in range(1, 20)]
    assert all(len(cohort) == 3 for cohort in drawn)
    assert all([site.owner.name for site in cohort] == sorted(site.owner.name for site in cohort) for cohort in drawn)
    assert len({tuple(site.owner.name for site in cohort) for cohort in drawn}) > 5
    assert (
        make(seed=8).draw(purpose="train", round_number=1) != drawn[0]
        or make(seed=8).draw(purpose="train", round_number=2) != drawn[1]
    )


def test_a_cohort_does_not_depend_on_the_order_in_which_sites_are_listed():
    manifest = make()
    turned = make(sites=tuple(reversed(manifest.sites)))
    assert turned.draw(purpose="train", round_number=4) == manifest.draw(purpose="train", round_number=4)


def test_a_client_s_seed_depends_on_run_seed_round_and_site_alone():
    seeds = {make().client_seed(site=f"site-{n:02d}", round_number=r) for n in range(6) for r in range(5)}
    assert len(seeds) == 30
    assert make().client_seed(site="site-01", round_number=2) == make(max_attempts=1).client_seed(
        site="site-01", round_number=2
    )
    assert make(seed=9).client_seed(site="site-01", round_number=2) not in seeds


def test_a_quorum_is_more_than_half():
    assert make().quorum == 4
    assert make(sites=make().sites[:5]).quorum == 3


SITES = make().sites
FOUR = {"cohort": CohortTerms(least=4, fraction_train=1.0, fraction_evaluate=1.0, extra=0)}


def strategy(name, **parameters):
    return StrategyTerms(name=name, parameters=parameters)


@pytest.mark.parametrize(
    ("terms", "mixed"),
    [
        (strategy("FedAvg"), 9),
        (strategy("FedMedian"), 9),
        (strategy("Krum", num_malicious_nodes=2), 1),
        (strategy("MultiKrum"), 1),
        (strategy("MultiKrum", num_nodes_to_select=4), 4),
        (strategy("Bulyan", num_malicious_nodes=1), 7),
    ],
)
def test_a_selection_mixes_fewer_identities_than_its_cohort(terms, mixed):
    assert terms.mixed(9) == mixed


@pytest.mark.parametrize(
    ("sentence", "changes", "field"),
    [
        ("no rounds are refused", {"rounds": 0}, "rounds"),
        ("another environment is refused", {"environment": "test"}, "environment"),
        ("no sites are refused", {"sites": ()}, "sites"),
        ("a site twice is refused", {"sites": (*SITES, SITES[0])}, "sites.name"),
        (
            "an identity twice is refused",
            {"sites": (*SITES, replace(SITES[0], owner=replace(SITES[0].owner, name="x")))},
            "sites.identity",
        ),
        (
            "a broker twice is refused",
            {"sites": (*SITES, Site(owner=replace(party("x"), broker=SITES[0].owner.broker), dataset=reference("x")))},
            "sites.broker",
        ),
        (
            "a cohort larger than the sites is refused",
            {"cohort": CohortTerms(least=7, fraction_train=1.0, fraction_evaluate=1.0, extra=0)},
            "cohort.least",
        ),
        (
            "a site without data is refused",
            {"sites": (*SITES[1:], replace(SITES[0], dataset=None))},
            "sites.site-00.dataset",
        ),
        ("data where the app brings its own is refused", {"data_source": "app"}, "sites.site-00.dataset"),
        ("tables without a preparation are refused", {"data_source": "files"}, "preparation"),
        ("an unknown source of data is refused", {"data_source": "file"}, "data.source"),
        ("another format is refused", {"format": "confed-manifest/2"}, "format"),
        ("attempts without end are refused", {"max_attempts": 1000}, "max_attempts"),
        ("Krum over two is refused", {"strategy": strategy("Krum")}, "cohort.least"),
        ("Krum over 2f + 2 is refused", {"strategy": strategy("Krum", num_malicious_nodes=1), **FOUR}, "cohort.least"),
        (
            "Bulyan over 4f + 2 is refused",
            {"strategy": strategy("Bulyan", num_malicious_nodes=1), **FOUR},
            "cohort.least",
        ),
        (
            "MultiKrum that selects more than there are is refused",
            {"strategy": strategy("MultiKrum", num_nodes_to_select=5), **FOUR},
            "cohort.least",
        ),
        (
            "less than no faulty node is refused",
            {"strategy": strategy("Krum", num_malicious_nodes=-1), **FOUR},
            "strategy.num_malicious_nodes",
        ),
        (
            "half a faulty node is refused",
            {"strategy": strategy("Bulyan", num_malicious_nodes=0.5), **FOUR},
            "strategy.num_malicious_nodes",
        ),
        (
            "a selection of nobody is refused",
            {"strategy": strategy("MultiKrum", num_nodes_to_select=0), **FOUR},
            "strategy.num_nodes_to_select",
        ),
    ],
)
def test_a_contradiction_is_refused_by_the_key_s_name(sentence, changes, field):
    with pytest.raises(ConfigError) as caught:
        make(**changes)
    assert caught.value.field == field


ADAPTER = ("q.lora_A.default.weight", "q.lora_B.default.weight", "q.lora_embedding_A", "q.lora_embedding_B")


@pytest.mark.parametrize(
    ("sentence", "names", "tied", "field"),
    [
        ("nothing is trained", (), {}, "model.trained"),
        ("one is trained twice", ("weight", "weight"), {}, "model.trained"),
        ("what follows another travels too", ("a", "b"), {"a": "b"}, "model.tied.a"),
        ("one follows what follows", ("c",), {"a": "b", "b": "c"}, "model.tied.a"),
        ("one follows itself", ("c",), {"a": "a"}, "model.tied.a"),
        ("both factors of an adapter are averaged", ADAPTER[:2], {}, "model.trained"),
        ("both factors of an embedding's are averaged", ADAPTER[2:], {}, "model.trained"),
    ],
)
def test_what_is_trained_and_tied_is_refused_by_the_key_s_name(sentence, names, tied, field):
    with pytest.raises(ConfigError) as caught:
        make(model=replace(make().model, trained=names, tied=tied))
    assert caught.value.field == field


def test_one_factor_of_an_adapter_is_averaged_and_one_site_trains_both():
    for names in (ADAPTER[1::2], ADAPTER[::2]):
        make(model=replace(make().model, trained=names))
    replace(make().model, trained=ADAPTER).require(sites=1, adapter=None)


@pytest.mark.parametrize(
    ("make_part", "field"),
    [
        (lambda: CohortTerms(least=0, fraction_train=1.0, fraction_evaluate=1.0, extra=0), "cohort.least"),
        (lambda: CohortTerms(least=1, fraction_train=0.0, fraction_evaluate=1.0, extra=0), "cohort.fraction_train"),
        (lambda: CohortTerms(least=1, fraction_train=1.5, fraction_evaluate=1.0, extra=0), "cohort.fraction_train"),
        (lambda: UpdateTerms(norm_bound=0, weight_cap=1.0, loss_cap=None), "update.norm_bound"),
        (lambda: UpdateTerms(norm_bound=1.0, weight_cap=-1.0, loss_cap=None), "update.weight_cap"),
        (lambda: UpdateTerms(norm_bound=1.0, weight_cap=1.0, loss_cap=0.0), "update.loss_cap"),
        (lambda: UpdateTerms(norm_bound=1.0, weight_cap=1.0, loss_cap=float("inf")), "update.loss_cap"),
        (lambda: MetricTerms(clear=(), decimals=12), "metrics.decimals"),
        (
            lambda: TeePolicy(
                profiles=(), measurements=("m",), devices=(), appraisal={}, max_age_s=1, reattest_rounds=1, reattest_s=1
            ),
            "tee.profiles",
        ),
        (
            lambda: TeePolicy(
                profiles=("p",), measurements=(), devices=(), appraisal={}, max_age_s=1, reattest_rounds=1, reattest_s=1
            ),
            "tee.measurements",
        ),
        (
            lambda: TeePolicy(
                profiles=("p",),
                measurements=("m",),
                devices=(),
                appraisal={},
                max_age_s=0,
                reattest_rounds=1,
                reattest_s=1,
            ),
            "tee.max_age_s",
        ),
        (lambda: replace(TEE, max_age_s=24 * 3600 + 1), "tee.max_age_s"),
        (lambda: replace(TEE, reattest_s=24 * 3600 + 1), "tee.reattest_s"),
        (lambda: Unchecked(unchecked=" "), "unchecked"),
    ],
)
def test_an_empty_or_senseless_term_is_refused(make_part, field):
    with pytest.raises(ConfigError) as caught:
        make_part()
    assert caught.value.field == field


FAIR = StrategyTerms(name="QFedAvg", parameters={"client_learning_rate": 0.1})
CAPPED = UpdateTerms(norm_bound=1.0, weight_cap=10.0, loss_cap=5.0)


def test_losses_are_capped_exactly_where_they_count():
    assert Manifest.decode(make(strategy=FAIR, update=CAPPED).encoded).update.loss_cap == 5.0
    for changes in ({"strategy": FAIR}, {"update": CAPPED}):
        with pytest.raises(ConfigError) as caught:
            make(**changes)
        assert caught.value.field == "update.loss_cap"
    value = record.to_json(make())
    del value["update"]["loss_cap"]
    with pytest.raises(ConfigError):
        Manifest.decode(canonical.encode(value))


def test_an_unknown_key_in_a_manifest_is_refused():
    value = canonical.decode(make().encoded)
    value["cohort"]["leats"] = 1
    with pytest.raises(ConfigError, match="nearest: least"):
        Manifest.decode(canonical.encode(value))


def test_bytes_that_are_not_canonical_are_no_manifest():
    with pytest.raises(EncodingError):
        Manifest.decode(make().encoded + b" ")


def test_who_is_not_listed_is_refused():
    manifest = make()
    assert manifest.site_of(SITES[2].owner.identity) == SITES[2]
    assert manifest.broker_key(SITES[2].owner.broker) == SITES[2].owner
    for look in (lambda: manifest.site_of(b"x"), lambda: manifest.site_named("x"), lambda: manifest.broker_key(b"x")):
        with pytest.raises(ManifestMismatchError):
            look()


TARGET = TargetTerms(metric="loss", purpose="evaluate", mode="min", value=0.1)


def test_a_manifest_says_by_which_rules_its_run_ends():
    stop = StopTerms(target=TARGET, patience=None, budget=BudgetTerms(seconds=60))
    manifest = make(stop=stop)
    assert Manifest.decode(manifest.encoded) == manifest
    assert manifest.digest != make().digest


@pytest.mark.parametrize(
    ("sentence", "change", "field"),
    [
        ("a manifest without the field", lambda stop: None, "stop"),
        (
            "one without a rule's explicit absence",
            lambda stop: {k: v for k, v in stop.items() if k != "budget"},
            "stop.budget",
        ),
        ("an unknown rule", lambda stop: {**stop, "mood": None}, "stop.mood"),
        ("a rule that lacks a term", lambda stop: {**stop, "target": {"metric": "loss"}}, "stop.target.purpose"),
        (
            "a rule with a term too many",
            lambda stop: {**stop, "budget": {"seconds": 1, "rounds": 2}},
            "stop.budget.rounds",
        ),
        ("a time in words", lambda stop: {**stop, "budget": {"seconds": "1"}}, "stop.budget.seconds"),
    ],
)
def test_stop_rules_are_read_strictly(sentence, change, field):
    value = record.to_json(make())
    changed = change(value.pop("stop"))
    if changed is not None:
        value["stop"] = changed
    with pytest.raises(ConfigError) as refused:
        Manifest.decode(canonical.encode(value))
    assert refused.value.field == field


def test_a_rule_reads_only_metrics_that_the_run_shows():
    with pytest.raises(ConfigError) as refused:
        make(stop=replace(StopTerms.none(), target=replace(TARGET, metric="accuracy")))
    assert refused.value.field == "stop.target.metric"
    assert "loss" in str(refused.value)
    cohort = CohortTerms(least=2, fraction_train=0.5, fraction_evaluate=0.0, extra=0)
    with pytest.raises(ConfigError) as refused:
        make(stop=replace(StopTerms.none(), target=TARGET), cohort=cohort)
    assert refused.value.field == "cohort.fraction_evaluate"


PRIVATE = PrivacyTerms(
    mechanism="gaussian",
    adjacency="zero-out",
    clip=FixedClip(norm=1.0),
    noise_multiplier=3.0,
    weighting="uniform",
    denominator=3.0,
    sampling=SamplingTerms(by="manifest", rate=1.0),
    delta=1e-5,
    epsilon_budget=20.0,
)
NOTHING_CLEAR = MetricTerms(clear=(), decimals=4)


def test_a_manifest_says_whether_its_run_is_private():
    manifest = make(privacy=PRIVATE, metrics=NOTHING_CLEAR)
    assert Manifest.decode(manifest.encoded) == manifest
    assert record.to_json(make())["privacy"] is None


@pytest.mark.parametrize(
    ("sentence", "change", "field"),
    [
        ("a manifest without the field", lambda _: {}, "privacy"),
        ("terms without a budget", lambda p: {"privacy": {k: v for k, v in p.items() if k != "epsilon_budget"}}, "privacy.epsilon_budget"),
        ("an unknown term", lambda p: {"privacy": {**p, "noise": 1}}, "privacy.noise"),
        ("a fixed clip norm with a quantile", lambda p: {"privacy": {**p, "clip": {"norm": 1, "quantile": 0.5}}}, "privacy.clip.quantile"),
        ("noise in words", lambda p: {"privacy": {**p, "noise_multiplier": "3"}}, "privacy.noise_multiplier"),
    ],
)  # fmt: skip
def test_privacy_terms_are_read_strictly(sentence, change, field):
    value = record.to_json(make(privacy=PRIVATE, metrics=NOTHING_CLEAR))
    value |= change(value.pop("privacy"))
    with pytest.raises(ConfigError) as refused:
        Manifest.decode(canonical.encode(value))
    assert refused.value.field == field


@pytest.mark.parametrize(
    "change",
    [
        {"metrics": MetricTerms(clear=("loss",), decimals=4)},
        {"strategy": StrategyTerms(name="FedMedian", parameters={})},
        {"update": UpdateTerms(norm_bound=0.5, weight_cap=1.0, loss_cap=None)},
    ],
)
def test_privacy_is_refused_where_its_sensitivity_is_not_known(change):
    with pytest.raises(ConfigError) as refused:
        make(**{"privacy": PRIVATE, "metrics": NOTHING_CLEAR, **change})
    assert refused.value.field.startswith("privacy.")


def test_more_are_drawn_than_a_round_takes_where_the_manifest_says_so():
    terms = {"least": 2, "fraction_train": 0.5, "fraction_evaluate": 0.34}
    exact, more, all_of_them = (make(cohort=CohortTerms(**terms, extra=extra)) for extra in (0, 2, 100))
    for purpose, taken in (("train", 3), ("evaluate", 2)):
        counts = [len(manifest.draw(purpose=purpose, round_number=1)) for manifest in (exact, more, all_of_them)]
        assert counts == [taken, taken + 2, 6]
        for manifest in (exact, more, all_of_them):
            assert manifest.cohort.taken(6, purpose=purpose) == taken
    nobody = make(cohort=CohortTerms(least=2, fraction_train=0.5, fraction_evaluate=0.0, extra=2))
    assert nobody.draw(purpose="evaluate", round_number=1) == ()
    with pytest.raises(ConfigError, match=r"cohort\.extra"):
        CohortTerms(**terms, extra=-1)
