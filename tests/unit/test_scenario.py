"""Scenarios: what one TEE trains is what the scenario's name says."""

from __future__ import annotations

import pytest

from confed.errors import ConfigError
from confed.journey import STEPS
from confed.scenario import Scenario


def test_tuning_needs_an_adapter_and_training_takes_none() -> None:
    for scenario, named in ((Scenario.TUNING, False), (Scenario.TRAINING, True)):
        with pytest.raises(ConfigError):
            scenario.require_adapter(named=named)
        scenario.require_adapter(named=not named)
    for named in (True, False):
        Scenario.FEDERATED.require_adapter(named=named)


def test_tuning_has_the_steps_of_training() -> None:
    assert STEPS[Scenario.TUNING] == STEPS[Scenario.TRAINING]
    assert len({scenario.told for scenario in Scenario}) == len(Scenario)
