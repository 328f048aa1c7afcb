"""kill -9 of whoever is in the middle of something: the run goes on, and ends as if nothing had happened."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from confed.governor.events import EventName
from tests.journey import runs
from tests.journey.test_dropouts import children_of

ROUNDS = 3


class Started:
    """A run as a process of its own that is watched through its events."""

    def __init__(self, config, tmp_path, *, engine="local"):
        self.runs = tmp_path / "runs"
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "confed.cli.main", "run", str(config)),
                *("--runs", str(self.runs), "--engine", engine, "--json"),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=runs.ROOT,
            env={**os.environ, "CONFED_HOME": str(tmp_path / "home")},
        )

    def wait(self, holds, *, seconds=150, pause_s=0.002):
        deadline = time.monotonic() + seconds
        while not holds():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline
            time.sleep(pause_s)

    @property
    def directory(self):
        return next(iter(self.runs.glob("*")), None)

    def events(self):
        path = self.directory / "events.jsonl" if self.directory else None
        lines = path.read_text().splitlines(keepends=True) if path and path.is_file() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def seen(self, name, **fields):
        return any(
            entry["event"] == name and all(entry.get(key) == value for key, value in fields.items())
            for entry in self.events()
        )

    def pid_of(self, word):
        """Return the newest child whose command line has this word."""
        return max(pid for pid, words in children_of(self.process.pid) if word in words)

    def kill(self, word):
        os.kill(self.pid_of(word), signal.SIGKILL)

    def finished(self):
        out, err = self.process.communicate(timeout=120)
        assert self.process.returncode == 0, out + err
        return json.loads(out.splitlines()[-1])

    def stop(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


@pytest.fixture
def start(tmp_path):
    started = []

    def _start(config, **options):
        started.append(Started(config, tmp_path, **options))
        return started[-1]

    yield _start
    for entry in started:
        entry.stop()


def tickets_of(directory):
    """Return every ticket that counted, in the committed records of all rounds and purposes."""
    found = []
    for path in sorted(Path(directory).glob("commits/**/*.json")):
        record = json.loads(path.read_bytes())
        found += [entry["signature"] for entry in record["tickets"]]
    return found


def digits(folder):
    """Write the digits app: torch, on data that its owners sealed."""
    return runs.digits(folder, rounds=ROUNDS)


def linear(folder):
    """Write the linear app with training that lasts long enough to be killed in, a tenth of a second or so."""
    config = runs.confidential_ordinary(folder, rounds=ROUNDS, app=runs.LINEAR)
    text = config.read_text()
    assert text.count("local-steps = 5\n") == 1
    config.write_text(text.replace("local-steps = 5\n", "local-steps = 5000\n"))
    return config


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The last weights of the same run when nobody is killed, by its app."""

    @cache
    def weights(experiment):
        folder = tmp_path_factory.mktemp("undisturbed")
        summary = runs.run(experiment(folder / "e"), home=folder / "home", runs=folder / "runs")
        return runs.final_weights(summary, home=folder / "home")[0]

    return weights


@pytest.mark.parametrize(
    ("sentence", "service", "moment", "experiment"),
    [
        ("the aggregator, while clients train", "aggregator", {"name": EventName.ROUND_STARTED, "round": 2}, linear),
        (
            "the aggregator, with updates in its hands",
            "aggregator",
            {"name": EventName.CLIENT_DONE, "round": 2},
            digits,
        ),
        ("the aggregator, in an evaluation", "aggregator", {"name": EventName.ROUND_COMBINED, "round": 2}, linear),
        (
            "the aggregator, in the last evaluation",
            "aggregator",
            {"name": EventName.ROUND_COMBINED, "round": ROUNDS},
            linear,
        ),
        ("the courier", "courier", {"name": EventName.ROUND_STARTED, "round": 2}, linear),
    ],
    ids=["aggregator-early", "aggregator-late", "aggregator-evaluating", "aggregator-at-the-end", "courier"],
)
def test_the_run_goes_on_without_a_service_that_was_killed(
    sentence, service, moment, experiment, start, undisturbed, tmp_path
):
    run = start(experiment(tmp_path / "experiment"))
    run.wait(lambda: run.seen(**moment))
    run.kill(service)
    summary = run.finished()
    assert summary["rounds"] == ROUNDS
    # No site is missing and none counts twice: the same weights to the bit as when nobody was killed.
    weights = runs.final_weights(summary, home=tmp_path / "home")[0]
    expected = undisturbed(experiment)
    assert weights.keys() == expected.keys()
    for name, array in weights.items():
        np.testing.assert_array_equal(array, expected[name])
    tickets = tickets_of(summary["run_dir"])
    sites = len(json.loads((Path(summary["run_dir"]) / "manifest.json").read_text())["sites"])
    assert len(tickets) == len(set(tickets)) == 2 * sites * ROUNDS
    if service == "aggregator":
        assert run.seen(EventName.ROUND_ABANDONED) or moment["name"] == EventName.ROUND_COMBINED
        assert len({entry["instance"] for entry in run.events() if entry["event"] == EventName.ATTESTED}) == 2
    verified = runs.confed("verify", summary["run_dir"], home=tmp_path / "home")
    assert verified.returncode == 0, verified.stdout + verified.stderr


def grown(run):
    """Return the site of an update of which the courier has a part and not the whole, or nothing."""
    for path in (run.directory / "courier" / "partial").glob("*.*") if run.directory else ():
        try:
            with path.open("rb") as file:
                front = file.read(64 * 1024) if path.stat().st_size > 1 << 20 else b""
        except FileNotFoundError:
            continue
        found = re.search(rb'"site":"(site-\d+)"', front)
        if found:
            return found[1].decode()
    return None


def test_a_client_killed_while_its_update_flows_is_left_out_and_counts_in_the_next_round(start, tmp_path):
    shutil.copytree(runs.ROOT / "tests" / "journey" / "apps" / "large", tmp_path / "experiment")
    run = start(tmp_path / "experiment" / "config.toml")
    run.wait(lambda: run.seen(EventName.ROUND_STARTED, round=1))
    courier = run.pid_of("courier")
    tees = sorted(pid for parent, words in children_of(run.process.pid) if "clients" in words
                  for pid, _ in children_of(parent))  # fmt: skip
    assert len(tees) == 2
    run.wait(lambda: grown(run), pause_s=0.0005)
    os.kill(courier, signal.SIGSTOP)  # So that its upload is still under way when its sender dies.
    site = grown(run)
    os.kill(tees[(int(site[-2:]) - 1) % 2], signal.SIGKILL)
    os.kill(courier, signal.SIGCONT)
    summary = run.finished()
    assert summary["rounds"] == 2
    # It is left out, and so is whoever else its TEE acted for: a step has one instance at its broker.
    dropped = {entry["site"]: entry["code"] for entry in summary["dropped"]}
    assert {entry["round"] for entry in summary["dropped"]} == {1}
    assert dropped.pop(site) == "client-died"
    assert set(dropped) <= {f"site-{(int(site[-2:]) + 1) % 4 + 1:02d}"}
    assert set(dropped.values()) <= {"client-died", "credential"}  # It was being served too, or came next.
    missing = {site, *dropped}
    tickets = tickets_of(summary["run_dir"])
    assert len(tickets) == len(set(tickets)) == 4 - len(missing) + 4
    (numbers,) = runs.final_weights(summary, home=tmp_path / "home")[0].values()
    amounts = {f"site-0{number}": 1e-4 * number for number in (1, 2, 3, 4)}
    first = [amount for name, amount in amounts.items() if name not in missing]
    np.testing.assert_allclose(numbers, sum(first) / len(first) + sum(amounts.values()) / 4, rtol=1e-5)
    verified = runs.confed("verify", summary["run_dir"], home=tmp_path / "home")
    assert verified.returncode == 0, verified.stdout + verified.stderr
