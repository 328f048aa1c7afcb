"""A crowd: a hundred sites in two batches on the local engine, everything sealed and attested, every record verified."""

import json
from pathlib import Path

import pytest

from benchmarks.simulation import prepare
from confed.manifest import Manifest
from tests.journey import runs

CLIENTS, ROUNDS = 100, 2


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("crowd")
    (folder / "app").mkdir()
    config = prepare(folder / "app", rounds=ROUNDS, clients=CLIENTS)
    config.write_text(config.read_text() + "\n[aggregation]\nbatch = 60\n")
    return runs.run(config, home=folder / "home", runs=folder / "runs"), folder


def test_a_hundred_clients_are_in_every_round(finished):
    summary, _ = finished
    lines = (Path(summary["run_dir"]) / "events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    assert [event["cohort"] for event in events if event["event"] == "round-combined"] == [CLIENTS] * ROUNDS
    assert not summary["dropped"]


def test_batches_are_the_manifests_and_the_first_is_gone_from_the_courier(finished):
    directory = Path(finished[0]["run_dir"])
    assert Manifest.decode((directory / "manifest.json").read_bytes()).aggregation.batch == 60
    assert "folded" not in (directory / "logs" / "courier.log").read_text(), "no letter that does not hold"


def test_the_crowd_s_run_is_verified_offline(finished):
    summary, folder = finished
    done = runs.confed("verify", summary["run_dir"], home=folder / "home")
    assert done.returncode == 0, done.stdout + done.stderr


def test_ledgers_do_not_grow_with_the_crowd(finished):
    summary, _ = finished
    ledger = Path(summary["run_dir"]) / "ledger" / "site-001.jsonl"
    # An entry names the cohort by a bit for each site; a digest for each would be twelve kilobytes an entry here.
    assert ledger.stat().st_size < 2_500 * len(ledger.read_text().splitlines())
