"""What a researcher writes about privacy, and what is refused by the name of its key."""

from pathlib import Path

import pytest

from confed.errors import ConfigError
from confed.experiment.config import load_experiment
from confed.privacy.terms import AdaptiveClip, FixedClip, PrivacyTerms, SamplingTerms

PRIVATE = (Path(__file__).resolve().parents[3] / "experiments" / "private" / "config.toml").read_text()


def load(tmp_path, *changes):
    text = PRIVATE
    for old, new in changes:
        assert text.count(old) == 1
        text = text.replace(old, new)
    file = tmp_path / "config.toml"
    file.write_text(text)
    return load_experiment(file)


def test_the_table_becomes_the_manifests_terms(tmp_path):
    assert load(tmp_path).privacy.terms(drawn=100) == PrivacyTerms(
        mechanism="gaussian",
        adjacency="zero-out",
        clip=FixedClip(norm=1.0),
        noise_multiplier=5.0,
        weighting="uniform",
        denominator=100.0,
        sampling=SamplingTerms(by="manifest", rate=1.0),
        delta=1e-4,
        epsilon_budget=4.0,
    )


def test_an_adaptive_clip_and_secret_sampling_may_be_written(tmp_path):
    adaptive = "clip = { initial = 1.0, quantile = 0.5, learning_rate = 0.2, count_noise = 5.0 }"
    sampling = 'delta = 1e-4\nsampling = { by = "enclave", rate = 0.5 }'
    found = load(tmp_path, ("clip = { norm = 1.0 }", adaptive), ("delta = 1e-4", sampling)).privacy.terms(drawn=100)
    assert isinstance(found.clip, AdaptiveClip)
    assert found.denominator == 50.0, "the number of sites that a round expects"


@pytest.mark.parametrize(
    ("sentence", "change", "field"),
    [
        ("an unknown key", ("delta = 1e-4", "delta = 1e-4\nmood = 1"), "privacy.mood"),
        ("no clip norm", ("clip = { norm = 1.0 }", ""), "privacy.clip"),
        ("no noise", ("noise_multiplier = 5.0", "noise_multiplier = 0.0"), "privacy.noise_multiplier"),
        ("a governor that samples", ("delta = 1e-4", 'delta = 1e-4\nsampling = { by = "governor", rate = 0.5 }'), "privacy.sampling.by"),
        ("a public draw that amplifies", ("delta = 1e-4", 'delta = 1e-4\nsampling = { by = "manifest", rate = 0.5 }'), "privacy.sampling.rate"),
    ],
)  # fmt: skip
def test_a_privacy_table_is_refused_by_the_name_of_its_key(sentence, change, field, tmp_path):
    with pytest.raises(ConfigError) as refused:
        load(tmp_path, change)
    assert refused.value.field == field
