"""Ray's own start-up is tried twice, and named when it fails."""

import os
import sys
import types

import pytest

from confed.errors import DeploymentError
from confed.simulation import ray_engine


@pytest.fixture
def fake_ray(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    calls = []
    fake = types.ModuleType("ray")
    fake.failures = 0

    def init(**arguments):
        calls.append("init")
        if calls.count("init") <= fake.failures:
            raise Exception("The current node timed out during startup.\nmore")  # noqa: TRY002 (as Ray does)

    fake.init, fake.shutdown = init, lambda: calls.append("shutdown")
    monkeypatch.setitem(sys.modules, "ray", fake)
    return fake, calls


@pytest.mark.parametrize(("failures", "expected"), [(0, ["init"]), (1, ["init", "shutdown", "init"])])
def test_a_slow_start_is_tried_once_more(failures, expected, fake_ray):
    fake, calls = fake_ray
    fake.failures = failures
    ray_engine._start_ray()
    assert calls == expected


def test_a_ray_that_does_not_start_is_a_clear_error(fake_ray):
    fake, calls = fake_ray
    fake.failures = 2
    with pytest.raises(DeploymentError, match="timed out during startup"):
        ray_engine._start_ray()
    assert calls == ["init", "shutdown", "init", "shutdown"]
