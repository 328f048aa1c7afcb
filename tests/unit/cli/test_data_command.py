from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from confed.cli import main
from confed.data.checking import Finding
from confed.data.findings import seal_findings
from confed.keybroker.identity import OwnerHome
from confed.manifest import SIMULATION, SealedReference
from confed.sealing.derivation import container_key

CANARY = "canary-patient-4711"
CONTRACT = """
name = "ages"
rows = { least = 1, most = 100 }
others = "ignore"
[columns]
age = { type = "float64", least = 0.0, most = 120.0 }
"""

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def confed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line in this process in a folder of its own: exit code, output, errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONFED_HOME", str(tmp_path / "home"))
    OwnerHome.create("east", home=tmp_path / "home", environment=SIMULATION, now_ms=1)
    (tmp_path / "c.toml").write_text(CONTRACT)
    pq.write_table(pa.table({"age": [1.0, 2.0], "name": [CANARY, "b"]}), tmp_path / "good.parquet")
    pq.write_table(pa.table({"age": [1.0, 500.0], "name": [CANARY, "b"]}), tmp_path / "bad.parquet")

    def run(*arguments: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["confed", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main.run()
        told = capsys.readouterr()
        return int(ended.value.code or 0), told.out, told.err

    return run


def test_a_dataset_is_checked_sealed_and_shown_without_a_key(confed, tmp_path):
    assert confed("data", "check", "good.parquet", "--contract", "c.toml")[0] == 0
    code, out, _ = confed("data", "seal", "good.parquet", "--owner", "east", "--contract", "c.toml", "--name", "ages")
    assert code == 0
    digest = out.strip()
    for path in tmp_path.rglob("*"):
        if path.is_file() and not path.name.endswith(".parquet"):
            assert CANARY.encode() not in path.read_bytes()
    OwnerHome.load("east", home=tmp_path / "home").close()
    (tmp_path / "home").rename(tmp_path / "elsewhere")
    code, out, _ = confed("data", "show", "good.parquet.sealed", "--json")
    shown = json.loads(out)
    assert (code, shown["name"], shown["digest"]) == (0, "ages", digest)
    assert shown["columns"] == {"age": "cr:Float64", "name": "sc:Text"}
    assert "age" in confed("data", "show", "good.parquet.sealed")[1]
    assert json.loads(confed("data", "show", "good.parquet.sealed", "--croissant")[1])["@type"] == "sc:Dataset"


def test_what_breaks_a_contract_is_told_without_a_value_and_is_not_sealed(confed, tmp_path):
    code, out, err = confed("data", "check", "bad.parquet", "--contract", "c.toml")
    assert (code, out) == (2, "column age: most, 1 times\n")
    assert err == "error: bad.parquet: expected contract 'ages' kept, got column age: most, 1 times\n"
    findings = json.loads(confed("data", "check", "bad.parquet", "--contract", "c.toml", "--json")[1])["findings"]
    assert findings == [{"column": "age", "check": "most", "count": 1}]
    code, _, err = confed("data", "seal", "bad.parquet", "--owner", "east", "--contract", "c.toml")
    assert code == 2
    assert "500" not in err
    assert not (tmp_path / "bad.parquet.sealed").exists()


MISTAKES: list[tuple[str, tuple[str, ...], str]] = [
    ("no such file", ("check", "gone.csv", "--contract", "c.toml"), "gone.csv"),
    ("no such contract", ("check", "good.parquet", "--contract", "gone.toml"), "contract"),
    ("a contract that is none", ("check", "good.parquet", "--contract", "good.parquet"), "good.parquet"),
    ("no such owner", ("seal", "good.parquet", "--contract", "c.toml", "--owner", "west"), "owner"),
    ("pickled data", ("check", "a.npy", "--contract", "c.toml"), "may hold code"),
    ("an empty file", ("check", "empty.parquet", "--contract", "c.toml"), "at least one row"),
    ("something else as Parquet", ("check", "junk.parquet", "--contract", "c.toml"), "junk.parquet"),
    ("something else as container", ("show", "good.parquet"), "a sealed container"),
    ("a folder that is not there", ("seal", "good.parquet", "--contract", "c.toml", "--owner", "east", "--out", "gone/x"), "--out"),
    ("a name without a letter", ("seal", "good.parquet", "--contract", "c.toml", "--owner", "east", "--name", ""), "dataset name"),
    ("a pipeline with a column that is not there", ("seal", "good.parquet", "--contract", "c.toml", "--owner", "east", "--pipeline", "p.toml"), "steps[0].column"),
]  # fmt: skip


@pytest.mark.parametrize(("what", "arguments", "named"), MISTAKES, ids=[entry[0] for entry in MISTAKES])
def test_a_mistake_is_one_clear_line(confed, tmp_path, what, arguments, named):
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY")
    (tmp_path / "junk.parquet").write_text(CANARY)
    (tmp_path / "p.toml").write_text('name = "p"\nsteps = [{ step = "drop_nulls", columns = ["ages"] }]\n')
    pq.write_table(pa.table({"age": pa.array([], pa.float64())}), tmp_path / "empty.parquet")
    code, _, err = confed("data", *arguments)
    assert code == (3 if arguments[0] == "show" else 2)
    assert named in err
    assert err.count("\n") == 1
    assert CANARY not in err


def test_a_privacy_budget_of_the_key_is_fixed_at_sealing(confed, tmp_path):
    seal = ("data", "seal", "good.parquet", "--owner", "east", "--contract", "c.toml")
    assert confed(*seal, "--epsilon", "3")[0] == 2
    assert confed(*seal, "--epsilon", "3", "--delta", "1e-5", "--adjacency", "near")[0] == 2
    assert confed(*seal, "--epsilon", "3", "--delta", "1e-5")[0] == 0
    told = json.loads(confed("broker", "budget", "--owner", "east", "--json")[1])
    assert (told["epsilon"], told["epsilon_budget"], told["delta"]) == (0.0, 3.0, 1e-5)


def test_an_existing_file_is_not_replaced_unless_it_is_asked_for(confed, tmp_path):
    arguments = ("data", "seal", "good.parquet", "--owner", "east", "--contract", "c.toml")
    assert confed(*arguments)[0] == 0
    assert confed(*arguments)[0] == 2
    assert confed(*arguments, "--force")[0] == 0


def test_an_owner_reads_what_a_tee_found(confed, tmp_path):
    assert confed("data", "seal", "good.parquet", "--owner", "east", "--contract", "c.toml")[0] == 0
    home = OwnerHome.load("east", home=tmp_path / "home")
    key_id = home.store.rows("SELECT key_id FROM keys", ())[0][0]
    reference = SealedReference(container_id="dataset-1", digest="00" * 32, key_id=key_id, size_bytes=1)
    letter = seal_findings(
        (Finding(column="age", check="most", count=3),),
        dataset=reference,
        data_key=container_key(home.key(key_id), container_id="dataset-1"),
        manifest="11" * 32,
        signing_key=home.identity_key,
    )
    home.close()
    (tmp_path / "found.sealed").write_bytes(letter)
    assert confed("data", "findings", "found.sealed", "--owner", "east")[1] == "column age: most, 3 times\n"
    OwnerHome.create("west", home=tmp_path / "home", environment=SIMULATION, now_ms=1)
    assert confed("data", "findings", "found.sealed", "--owner", "west")[0] == 3
    assert confed("data", "findings", "good.parquet.sealed", "--owner", "east")[0] == 3
