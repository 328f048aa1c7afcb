"""A client that errs or dies is named; the round goes on if the cohort rule holds and fails loudly if not."""

import json
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
        if context.node_config["partition-id"] in {partitions}:
{deeds}
        return train(message, context)
    return wrapped
"""


def failing_app(folder, *, partitions, deeds, rounds=3):
    """Write the ordinary app with ``deeds`` by round, done by the clients of these partitions in place of training."""
    config = runs.confidential_ordinary(folder, rounds=rounds, app=runs.LINEAR)
    text = (folder / "client_app.py").read_text()
    assert text.count("app.train()(train_fn)") == 1
    text = text.replace("app.train()(train_fn)", "app.train()(failing(train_fn))")
    lines = text.splitlines()
    after = max(number for number, line in enumerate(lines) if line.startswith(("import", "from"))) + 1
    done = [f"            if number == {number}:\n                {deed}" for number, deed in deeds.items()]
    errs = ERRS.replace("{partitions}", str(partitions)).replace("{deeds}", "\n".join(done))
    lines[after:after] = errs.splitlines()
    (folder / "client_app.py").write_text("\n".join(lines) + "\n")
    return config


POISONED = """
def poisoned(reply):
    from flwr.app import Array, ArrayRecord
    arrays = {name: array.numpy().copy() for name, array in reply.content["arrays"].items()}
    next(iter(arrays.values())).flat[0] = float("nan")
    reply.content["arrays"] = ArrayRecord({name: Array(array) for name, array in arrays.items()})
    return reply
"""
DEEDS = {
    "a client that raises is named by a code, never by its text": (
        2,
        f"raise ValueError({CANARY!r})",
        "client-app-failed",
    ),
    "a client that returns NaN is excluded by the enclave": (
        3,
        "return poisoned(train(message, context))",
        "not-finite",
    ),
    "a client that dies is named": (4, "import os; os._exit(1)", "client-died"),
}
"""Sentence to round, what a client does in it, and the code that names it."""
ROUNDS = 5


@pytest.fixture(scope="module")
def fallen(tmp_path_factory):
    """A run in which one site fails in another way in each of three rounds, and then is there again."""
    folder = tmp_path_factory.mktemp("fallen")
    deeds = {number: deed for number, deed, _ in DEEDS.values()}
    config = failing_app(folder / "experiment", partitions={1}, deeds=deeds, rounds=ROUNDS)
    app = folder / "experiment" / "client_app.py"
    app.write_text(app.read_text() + POISONED)
    return runs.run(config, home=folder / "home", runs=folder / "runs"), folder


@pytest.mark.parametrize("sentence", DEEDS)
def test_the_round_goes_on_without_it(sentence, fallen):
    summary, _ = fallen
    number, _, code = DEEDS[sentence]
    (dropped,) = (entry for entry in summary["dropped"] if entry["round"] == number)
    assert (dropped["purpose"], dropped["site"], dropped["code"]) == ("train", "site-02", code)
    report = (Path(summary["run_dir"]) / "report.html").read_text()
    assert re.search(rf"<td>{number}</td><td>train</td><td>site-02</td><td><code>{code}", report), report
    lines = [json.loads(line) for line in (Path(summary["run_dir"]) / "events.jsonl").read_text().splitlines()]
    cohorts = [line["cohort"] for line in lines if line["event"] == "round-combined" and line["round"] == number]
    assert cohorts == [2]


def test_whoever_failed_is_there_again_and_nobody_else_was_missing(fallen):
    summary, folder = fallen
    assert summary["rounds"] == ROUNDS
    assert len(summary["dropped"]) == len(DEEDS)
    for file in Path(summary["run_dir"]).rglob("*"):
        if file.is_file():
            assert CANARY.encode() not in file.read_bytes(), file
    verified = runs.confed("verify", summary["run_dir"], home=folder / "home")
    assert verified.returncode == 0, verified.stdout + verified.stderr


def test_too_few_left_ends_the_run_loudly(tmp_path):
    config = failing_app(tmp_path / "experiment", partitions={0, 1}, deeds={2: "raise ValueError('x')"})
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
    config = runs.confidential_ordinary(tmp_path / "experiment", rounds=500, app=runs.LINEAR)
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
