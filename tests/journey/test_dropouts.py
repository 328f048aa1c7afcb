"""A client that errs or dies is named; the round goes on if the cohort rule holds and fails loudly if not."""

from pathlib import Path

import pytest

from tests.journey import runs

CANARY = "canary-7c1d-quoted-from-the-data"

ERRS = """
def failing(train):
    def wrapped(message, context):
        number = int(message.content["config"]["server-round"])
        if number == 2 and context.node_config["partition-id"] in {partitions}:
            {deed}
        return train(message, context)
    return wrapped
"""


def failing_app(folder, *, partitions, deed):
    config = runs.confidential_ordinary(folder)
    text = (folder / "client_app.py").read_text()
    assert text.count("app.train()(train_fn)") == 1
    text = text.replace("app.train()(train_fn)", "app.train()(failing(train_fn))")
    lines = text.splitlines()
    after = max(number for number, line in enumerate(lines) if line.startswith(("import", "from"))) + 1
    lines[after:after] = ERRS.replace("{partitions}", str(partitions)).replace("{deed}", deed).splitlines()
    (folder / "client_app.py").write_text("\n".join(lines) + "\n")
    return config


@pytest.mark.parametrize(
    ("sentence", "deed", "code"),
    [
        (
            "a client that raises is named by a code, never by its text",
            f"raise ValueError({CANARY!r})",
            "client-app-failed",
        ),
        ("a client that dies is named", "import os; os._exit(1)", "client-died"),
        (
            "a client that returns NaN is excluded by the enclave",
            "return poisoned(train(message, context))",
            "not-finite",
        ),
    ],
)
def test_the_round_goes_on_without_it(sentence, deed, code, tmp_path):
    config = failing_app(tmp_path / "experiment", partitions={1}, deed=deed)
    app = tmp_path / "experiment" / "client_app.py"
    app.write_text(
        app.read_text()
        + """
def poisoned(reply):
    from flwr.app import Array, ArrayRecord
    arrays = {name: array.numpy().copy() for name, array in reply.content["arrays"].items()}
    next(iter(arrays.values())).flat[0] = float("nan")
    reply.content["arrays"] = ArrayRecord({name: Array(array) for name, array in arrays.items()})
    return reply
"""
    )
    summary = runs.run(config, home=tmp_path / "home", runs=tmp_path / "runs")
    assert summary["rounds"] == 3
    named = [(entry["round"], entry["purpose"], entry["site"]) for entry in summary["dropped"]]
    assert named == [(2, "train", "site-02")]
    assert summary["dropped"][0]["code"] == code
    report = (Path(summary["run_dir"]) / "report.html").read_text()
    assert "site-02" in report
    assert code in report
    for file in Path(summary["run_dir"]).rglob("*"):
        if file.is_file():
            assert CANARY.encode() not in file.read_bytes(), file
    verified = runs.confed("verify", summary["run_dir"], home=tmp_path / "home")
    assert verified.returncode == 0, verified.stdout + verified.stderr


def test_too_few_left_ends_the_run_loudly(tmp_path):
    config = failing_app(tmp_path / "experiment", partitions={0, 1}, deed="raise ValueError('x')")
    done = runs.confed("run", config, "--runs", tmp_path / "runs", home=tmp_path / "home")
    assert done.returncode == 3, done.stdout + done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert "Traceback" not in done.stderr
    assert "site-01" in done.stdout
    assert "site-02" in done.stdout
    (directory,) = (tmp_path / "runs").iterdir()
    assert (directory / "versions" / "0001.sealed").is_file()
    assert not (directory / "versions" / "0002.sealed").exists()
