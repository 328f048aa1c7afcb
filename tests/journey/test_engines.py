"""One seed, three engines, the same weights; and one engine twice, the same bits."""

import numpy as np
import pytest

from tests.journey import runs


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("engines")
    return folder, runs.digits(folder / "experiment")


@pytest.fixture(scope="module")
def local(place):
    folder, config = place
    summary = runs.run(config, home=folder / "home", runs=folder / "runs")
    return summary, runs.final_weights(summary, home=folder / "home")[0]


def test_local_ends_with_a_trained_model_and_every_stage_timed(local):
    summary, weights = local
    assert summary["rounds"] == 3
    assert summary["accuracy"] > 0.8
    assert summary["engine"] == "local"
    assert set(summary["seconds"]) >= {
        "attest",
        "release",
        "fetch",
        "open",
        "train",
        "seal",
        "send",
        "combine",
        "commit",
    }
    assert not summary["dropped"]
    assert all(np.isfinite(array).all() for array in weights.values())
    assert list(summary)[:6] == ["run", "engine", "rounds", "accuracy", "seconds", "model"]


def test_running_it_again_reaches_the_same_weights_to_the_bit_even_with_other_owners(place, local):
    folder, config = place
    again = runs.run(config, home=folder / "other-home", runs=folder / "runs")
    weights, _ = runs.final_weights(again, home=folder / "other-home")
    for name, array in local[1].items():
        assert np.array_equal(array, weights[name]), name


@pytest.mark.timeout(400)
@pytest.mark.parametrize("engine", ["ray", "deployment"])
def test_the_other_engines_reach_the_same_weights(place, local, engine):
    folder, config = place
    summary = runs.run(config, home=folder / "home", runs=folder / "runs", engine=engine, fresh=True)
    weights, _ = runs.final_weights(summary, home=folder / "home")
    for name, array in local[1].items():
        assert np.abs(array - weights[name]).max() <= 1e-6, name
    verified = runs.confed("verify", summary["run_dir"], home=folder / "home")
    assert verified.returncode == 0, verified.stdout + verified.stderr
