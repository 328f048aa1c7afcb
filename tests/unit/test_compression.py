"""What may be compressed how, and what is refused by the name of its key."""

from dataclasses import replace
from pathlib import Path

import pytest

from confed.compression import CompressionTerms, name_of
from confed.errors import ConfigError
from confed.experiment.config import load_experiment
from confed.experiment.engines import require_staying
from confed.manifest import Manifest
from tests.unit.test_manifest import make

CONFIG = (Path(__file__).resolve().parents[2] / "experiments" / "digits" / "config.toml").read_text()
INT8 = CompressionTerms(name="int8", fraction=None, feedback=True)


def load(tmp_path, table):
    file = tmp_path / "config.toml"
    file.write_text(f"{CONFIG}\n{table}\n")
    return load_experiment(file)


def test_an_experiment_without_the_table_compresses_nothing(tmp_path):
    assert load(tmp_path, "").compression is None
    assert name_of(None) == "none"
    assert b'"compression":null' in make().encoded


def test_the_table_becomes_the_manifests_terms(tmp_path):
    found = load(tmp_path, '[compression]\nname = "top-k"\nfraction = 0.01\nfeedback = true').compression
    assert found.terms == CompressionTerms(name="top-k", fraction=0.01, feedback=True)
    assert load(tmp_path, '[compression]\nname = "bf16"').compression.terms.feedback is False


def test_a_manifest_says_it_and_one_that_does_not_is_none():
    manifest = make(compression=INT8)
    assert Manifest.decode(manifest.encoded) == manifest
    with pytest.raises(ConfigError) as refused:
        Manifest.decode(make().encoded.replace(b'"compression":null,', b""))
    assert refused.value.field == "compression"
    with pytest.raises(ConfigError) as refused:
        Manifest.decode(manifest.encoded.replace(b'"feedback":true,', b""))
    assert refused.value.field == "compression.feedback"


@pytest.mark.parametrize(
    ("table", "field"),
    [
        ('name = "zip"', "compression.name"),
        ("", "compression.name"),
        ('name = "int8"\nfraction = 0.1', "compression.fraction"),
        ('name = "top-k"', "compression.fraction"),
        ('name = "top-k"\nfraction = 0.0', "compression.fraction"),
        ('name = "top-k"\nfraction = 0.6', "compression.fraction"),
        ('name = "top-k"\nfraction = nan', "compression.fraction"),
        ('name = "bf16"\nlevel = 9', "compression.level"),
    ],
)
def test_a_table_is_refused_by_the_name_of_its_key(table, field, tmp_path):
    with pytest.raises(ConfigError) as refused:
        load(tmp_path, f"[compression]\n{table}")
    assert refused.value.field == field


def test_an_update_that_may_count_later_carries_nothing_over():
    with pytest.raises(ConfigError):
        make(compression=INT8, strategy=replace(make().strategy, name="FedBuff"))
    with pytest.raises(ConfigError) as refused:
        INT8.require(strategy="FedBuff")
    assert refused.value.field == "compression.feedback"


def test_ray_whose_workers_change_carries_nothing_over():
    require_staying("local", INT8)
    require_staying("ray", None)
    require_staying("ray", CompressionTerms(name="int8", fraction=None, feedback=False))
    with pytest.raises(ConfigError) as refused:
        require_staying("ray", INT8)
    assert refused.value.field == "compression.feedback"
