"""A person's mistakes: one clear line, the right exit code, no traceback, nothing half-written."""

import socket
import sys

import pytest

from confed.cli import main
from tests.journey import runs


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)

    def _call(*arguments):
        monkeypatch.setattr(sys, "argv", ["confed", *map(str, arguments)])
        path = list(sys.path)
        try:
            main.run()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        finally:
            sys.path[:] = path
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return _call


def one_line(err):
    lines = err.strip().splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    assert "Traceback" not in err
    return lines[0]


def changed(folder, before, after, file="config.toml", **values):
    config = runs.digits(folder, **values)
    target = folder / file
    assert target.read_text().count(before) >= 1
    target.write_text(target.read_text().replace(before, after, 1))
    return config


@pytest.mark.parametrize(
    ("sentence", "before", "after", "told"),
    [
        ("an unknown key is told with the nearest valid one", "least = 2", "laest = 2", ["cohort.laest", "least"]),
        ("an unknown section is told", "[cohort]", "[cohrt]", ["cohrt", "cohort"]),
        ("a missing key is told", "seed = 7", "", ["run.seed"]),
        ("a value of the wrong type is told", "rounds = 3", 'rounds = "three"', ["run.rounds", "a whole number"]),
        ("a cohort larger than the sites is told", "least = 2", "least = 9", ["cohort.least", "9"]),
        ("an unknown environment is told", '"simulation"', '"test"', ["environment"]),
        (
            "production is refused on a machine that can only simulate",
            '"simulation"',
            '"production"',
            ["environment", "production refuses"],
        ),
        ("a server app that is not there is told", '"server_app:app"', '"nowhere:app"', ["app.server", "nowhere"]),
        (
            "an attribute that is not there is told",
            '"server_app:app"',
            '"server_app:nothing"',
            ["app.server", "nothing"],
        ),
        (
            "an entry point of another form is told",
            '"server_app:app"',
            '"server_app"',
            ["app.server", "module:attribute"],
        ),
        ("sealed data without a function for it is told", 'shards = "data:shards"', "", ["data.shards"]),
        (
            "rounds that contradict the settings are told",
            "[settings]",
            "[settings]\nnum-server-rounds = 5",
            ["settings.num-server-rounds"],
        ),
        ("text that is no TOML is told", "[run]", "[run", ["TOML"]),
        ("a negative bound is told", "norm_bound = 20.0", "norm_bound = -1.0", ["update.norm_bound"]),
    ],
)
def test_a_mistake_in_the_experiment_file(sentence, before, after, told, tmp_path, call):
    config = changed(tmp_path / "experiment", before, after)
    code, _, err = call("run", config)
    line = one_line(err)
    assert code == 2
    for part in told:
        assert part in line
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("sentence", "before", "after", "told"),
    [
        (
            "a strategy that the enclave does not run is told",
            "FedAvg(",
            "FedXgbBagging(",
            ["strategy", "FedAvg, FedProx"],
        ),
        (
            "a server-side evaluation is told: the governor has no model",
            "num_rounds=",
            "evaluate_fn=lambda r, a: None, num_rounds=",
            ["evaluate_fn"],
        ),
        (
            "an unwrapped strategy is told",
            "= ConfidentialStrategy(",
            "= (",
            ["grid"],
        ),
        (
            "a metric function of the app's own is told",
            "FedAvg(",
            "FedAvg(train_metrics_aggr_fn=lambda r, k: None, ",
            ["train_metrics_aggr_fn"],
        ),
    ],
)
def test_a_server_app_that_the_enclave_cannot_serve(sentence, before, after, told, tmp_path, call):
    folder = tmp_path / "experiment"
    config = runs.digits(folder)
    text = (folder / "server_app.py").read_text()
    assert before in text
    (folder / "server_app.py").write_text(
        text.replace(before, after, 1).replace("import FedAvg", "import FedAvg, FedXgbBagging")
    )
    code, _, err = call("run", config)
    assert code == 2
    for part in told:
        assert part in one_line(err)


def test_an_empty_dataset_is_told_by_its_site(tmp_path, call):
    folder = tmp_path / "experiment"
    config = runs.digits(folder)
    data = (folder / "data.py").read_text()
    (folder / "data.py").write_text(
        data.replace(
            "    return result\n",
            '    result["site-02"]["train_labels"] = np.zeros(0, np.int64)\n    return result\n',
            1,
        )
    )
    code, _, err = call("run", config)
    assert code == 2
    assert "site-02" in one_line(err)
    assert not list((tmp_path / "runs").glob("*/manifest.json"))


@pytest.mark.parametrize(
    ("sentence", "arguments", "expected", "told"),
    [
        ("a missing experiment file", ["run", "nowhere.toml"], 2, "nowhere.toml"),
        ("a missing run directory", ["verify", "nowhere"], 2, "nowhere"),
        ("a missing model file", ["model", "show", "nowhere.sealed"], 2, "nowhere.sealed"),
        ("a missing manifest", ["manifest", "show", "nowhere.json"], 2, "nowhere.json"),
        ("an owner who is not here", ["broker", "serve", "--owner", "nobody"], 2, "nobody"),
    ],
)
def test_what_is_not_there(sentence, arguments, expected, told, call):
    code, _, err = call(*arguments)
    assert code == expected
    assert told in one_line(err)


def test_an_engine_that_does_not_exist(tmp_path, call):
    config = runs.digits(tmp_path / "experiment")
    code, _, err = call("run", config, "--engine", "cloud")
    assert code == 2
    assert "local, ray, deployment" in one_line(err)


def test_a_port_in_use_is_told(tmp_path, call):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, err = call("courier", "serve", "--directory", tmp_path / "store", "--listen", f"127.0.0.1:{port}")
    assert code == 2
    assert str(port) in one_line(next(line for line in err.splitlines() if line.startswith("error")))


def test_a_file_that_is_no_container_is_refused(tmp_path, call):
    (tmp_path / "text.sealed").write_text("nothing sealed")
    code, _, err = call("model", "show", tmp_path / "text.sealed")
    assert code == 3
    one_line(err)


@pytest.mark.parametrize("command", [[], ["run"], ["verify"], ["model"], ["manifest"], ["broker"], ["courier"]])
def test_help_says_what_a_command_does(command, call):
    code, out, _ = call(*command, "--help")
    assert code == 0
    assert "Usage" in out
    assert len(out.splitlines()) > 5
