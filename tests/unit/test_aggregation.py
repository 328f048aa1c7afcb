"""Batches in the manifest: a number of sites or null, cut in identity order, refused where they cannot be."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confed.aggregation import SUMMED, AggregationTerms
from confed.errors import ConfigError
from confed.experiment.learning_tables import AggregationTable
from confed.experiment.resolution import AGGREGATED_BY
from confed.manifest import Manifest, StrategyTerms
from tests.unit.test_manifest import make


@given(st.lists(st.integers()), st.none() | st.integers(1, 40))
def test_batches_are_the_cohort_in_its_order_none_larger_than_said(cohort, batch):
    cut = AggregationTerms(batch=batch).cut(cohort)
    assert [entry for part in cut for entry in part] == cohort
    assert all(1 <= len(part) <= (batch or len(cohort)) for part in cut)
    assert all(len(part) == batch for part in cut[:-1])


def test_no_batches_are_written_as_null_and_cannot_be_left_out():
    assert AggregationTable().terms == AggregationTerms.at_once()
    assert b'"aggregation":{"batch":null}' in make().encoded
    for left_out in (b'"aggregation":{"batch":null},', b'"batch":null'):
        with pytest.raises(ConfigError) as refused:
            Manifest.decode(make().encoded.replace(left_out, b""))
        assert refused.value.field in ("aggregation", "aggregation.batch")


@pytest.mark.parametrize("batch", [0, -1])
def test_a_batch_has_somebody_in_it(batch):
    with pytest.raises(ConfigError):
        AggregationTable(batch=batch)


@pytest.mark.parametrize("name", [name for name in AGGREGATED_BY if name not in SUMMED])
def test_a_strategy_that_does_not_add_up_takes_no_batches(name):
    with pytest.raises(ConfigError) as refused:
        AggregationTerms(batch=2).require(strategy=name, extra=0)
    assert refused.value.field == "aggregation.batch"
    AggregationTerms.at_once().require(strategy=name, extra=0)


def test_a_class_of_ones_own_takes_no_batches():
    with pytest.raises(ConfigError):
        AggregationTerms(batch=2).require(strategy="mine:Strategy", extra=0)


def test_a_manifest_asks_its_own_terms():
    batched = AggregationTerms(batch=2)
    assert make(aggregation=batched).aggregation.batch == 2
    with pytest.raises(ConfigError) as refused:
        make(aggregation=batched, strategy=StrategyTerms(name="FedMedian", parameters={}))
    assert refused.value.field == "aggregation.batch"
    with pytest.raises(ConfigError) as refused:
        make(aggregation=batched, cohort=replace(make().cohort, extra=1))
    assert refused.value.field == "cohort.extra"
