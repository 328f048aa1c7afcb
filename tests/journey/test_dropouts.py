"""A client that errs or dies is named; the round goes on if the cohort rule holds and fails loudly if not."""

import os
import re
import signal
import subprocess
import sys
import time
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
    assert done.returncode == 5, done.stdout + done.stderr  # documented: a run that fell short
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert "cohort-short" in errors[0]
    assert "Traceback" not in done.stderr
    assert "site-01" in done.stdout
    assert "site-02" in done.stdout
    (directory,) = (tmp_path / "runs").iterdir()
    report = (directory / "report.html").read_text()
    for site in ("site-01", "site-02"):
        assert re.search(rf"<td>2</td><td>train</td><td>{site}</td><td><code>client-app-failed", report), report
    assert (directory / "versions" / "0001.sealed").is_file()
    assert not (directory / "versions" / "0002.sealed").exists()


def children_of(pid):
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if int(fields[1]) == pid and fields[0] != "Z":
                found.append((int(entry.name), [word.decode() for word in words]))
    return found


@pytest.fixture
def started(tmp_path):
    config = runs.digits(tmp_path / "experiment", rounds=500)
    process = subprocess.Popen(
        [sys.executable, "-m", "confed.cli.main", "run", str(config), "--runs", str(tmp_path / "runs")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=runs.ROOT,
        env={**os.environ, "CONFED_HOME": str(tmp_path / "home")},
    )
    line = process.stdout.readline()
    while line and "round   1/500" not in line:
        line = process.stdout.readline()
    yield process
    if process.poll() is None:
        process.kill()
        process.communicate()


def test_brokers_that_die_end_the_run_with_their_name(started):
    victim = next(pid for pid, words in children_of(started.pid) if "broker" in words)
    os.kill(victim, signal.SIGKILL)
    _, err = started.communicate(timeout=60)
    assert started.returncode in {2, 3}
    errors = [line for line in err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, err
    assert "Traceback" not in err
    assert "broker" in errors[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_outlives_the_command(number, started):
    before = [pid for pid, _ in children_of(started.pid)]
    assert len(before) == 5  # two with brokers, courier, aggregator, and what the two client TEEs were forked from
    before += [grandchild for pid in before for grandchild, _ in children_of(pid)]
    assert len(before) == 7
    started.send_signal(number)
    _, err = started.communicate(timeout=60)
    assert "Traceback" not in err
    if number != signal.SIGKILL:
        assert started.returncode == 130
        assert "stopped" in err
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and any(Path(f"/proc/{pid}").exists() for pid in before):
        time.sleep(0.05)
    assert not [pid for pid in before if Path(f"/proc/{pid}").exists()]
