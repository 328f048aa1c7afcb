"""What a researcher writes about the end of a run, and what is refused by the name of its key."""

from pathlib import Path

import pytest

from confed.errors import ConfigError
from confed.experiment.config import load_experiment
from confed.stopping import BudgetTerms, PatienceTerms, StopTerms

CONFIG = (Path(__file__).resolve().parents[3] / "experiments" / "digits" / "config.toml").read_text()
PATIENCE = 'patience = { metric = "accuracy", purpose = "evaluate", mode = "max", rounds = 3, min_delta = 0.001 }'


def load(tmp_path, table):
    file = tmp_path / "config.toml"
    file.write_text(f"{CONFIG}\n{table}\n")
    return load_experiment(file)


def test_an_experiment_without_the_table_runs_its_rounds(tmp_path):
    assert load(tmp_path, "").stop.terms == StopTerms.none()


def test_the_table_becomes_the_manifests_terms(tmp_path):
    found = load(tmp_path, f"[stop]\n{PATIENCE}\nbudget = {{ seconds = 60 }}").stop.terms
    patience = PatienceTerms(metric="accuracy", purpose="evaluate", mode="max", rounds=3, min_delta=0.001)
    assert found == StopTerms(target=None, patience=patience, budget=BudgetTerms(seconds=60))


@pytest.mark.parametrize(
    ("sentence", "table", "field"),
    [
        ("an unknown rule", "[stop]\nmood = 1", "stop.mood"),
        (
            "a metric that is not in metrics.clear",
            f"[stop]\n{PATIENCE.replace('accuracy', 'f1')}",
            "stop.patience.metric",
        ),
        ("an unknown mode", f"[stop]\n{PATIENCE.replace('max', 'most')}", "stop.patience.mode"),
        ("a missing key", "[stop]\n" + PATIENCE.replace(", min_delta = 0.001", ""), "stop.patience.min_delta"),
        (
            "patience as long as the run",
            "[stop]\n" + PATIENCE.replace("rounds = 3", "rounds = 15"),
            "stop.patience.rounds",
        ),
        ("a budget of nothing", "[stop]\nbudget = { seconds = 0 }", "stop.budget.seconds"),
    ],
)
def test_a_stop_table_is_refused_by_the_name_of_its_key(sentence, table, field, tmp_path):
    with pytest.raises(ConfigError) as refused:
        load(tmp_path, table)
    assert refused.value.field == field
