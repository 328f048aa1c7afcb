"""The example as a newcomer runs it: one command, real data, ten sites, fifteen rounds; then every record holds."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from tests.journey import runs


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    config = runs.ROOT / "experiments" / "digits" / "config.toml"
    return runs.run(config, home=folder / "home", runs=folder / "runs", fresh=True), folder


def test_ten_sites_learn_to_read(finished):
    summary, _ = finished
    assert summary["rounds"] == 15
    assert summary["accuracy"] >= 0.95
    assert summary["environment"] == "simulation"
    assert not summary["dropped"]


def test_the_run_is_verified_offline_against_the_owners_keys(finished):
    summary, folder = finished
    done = runs.confed("verify", summary["run_dir"], home=folder / "home", fresh=True)
    assert done.returncode == 0, done.stdout + done.stderr
    elsewhere = runs.confed("verify", summary["run_dir"], "--trust", folder / "home" / "trust.json", home=folder / "x")
    assert elsewhere.returncode == 0, elsewhere.stdout + elsewhere.stderr


def test_without_trust_it_is_self_consistent_only(finished):
    summary, folder = finished
    done = runs.confed("verify", summary["run_dir"], home=folder / "nobody")
    assert done.returncode == 3
    assert "self-consistent only" in done.stderr


@pytest.mark.parametrize(
    ("sentence", "file", "told"),
    [
        ("a changed version is named", "versions/0007.sealed", "7"),
        ("a changed commit is named", "commits/train-0003.json", "3"),
        ("a changed ledger is named", "ledger/site-04.jsonl", "site-04"),
        ("a changed manifest is named", "manifest.json", ""),
    ],
)
def test_a_flipped_bit_in_the_records_is_refused(sentence, file, told, finished, tmp_path):
    summary, folder = finished
    copy = tmp_path / "run"
    shutil.copytree(summary["run_dir"], copy, ignore=shutil.ignore_patterns("courier", "sealed", "logs"))
    data = bytearray((copy / file).read_bytes())
    data[len(data) * 2 // 3] ^= 1
    (copy / file).write_bytes(data)
    done = runs.confed("verify", copy, home=folder / "home")
    assert done.returncode == 3, done.stdout
    assert done.stderr.startswith("error: ")
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_its_owner_opens_the_model_and_nobody_else_does(finished, tmp_path):
    summary, folder = finished
    out = tmp_path / "digits.safetensors"
    done = runs.confed("model", "open", summary["model"], "--owner", "model-owner", "--out", out, home=folder / "home")
    assert done.returncode == 0, done.stderr
    weights = load_file(out)
    assert {name: array.shape for name, array in weights.items()} == {
        "hidden.weight": (128, 64),
        "hidden.bias": (128,),
        "output.weight": (10, 128),
        "output.bias": (10,),
    }
    other = tmp_path / "other.safetensors"
    refused = runs.confed("model", "open", summary["model"], "--owner", "site-01", "--out", other, home=folder / "home")
    assert refused.returncode == 3, refused.stdout + refused.stderr
    assert not other.exists()


def test_anybody_sees_what_is_inside_and_for_whom(finished):
    summary, folder = finished
    done = runs.confed("model", "show", summary["model"], "--json", home=folder / "nobody")
    facts = json.loads(done.stdout)
    assert facts["kind"] == "model"
    assert facts["version"] == 15


def test_the_run_directory_holds_what_a_person_needs(finished):
    summary, _ = finished
    directory = Path(summary["run_dir"])
    assert len(list((directory / "versions").glob("*.sealed"))) == 16
    assert len((directory / "metrics.jsonl").read_text().splitlines()) == 15
    report = (directory / "report.html").read_text()
    assert "<svg" in report
    assert "http://" not in report.replace("http://www.w3.org", "")
    assert "SIMULATION" in report
