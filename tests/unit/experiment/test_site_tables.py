"""Sites' tables in a simulation: what their made owners seal, and what they refuse before anything runs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from confed.errors import ConfedError, ConfigError, FloorError
from confed.experiment.config import load_experiment
from confed.experiment.owners import load_owners, seal_everything
from confed.experiment.resolution import SealedParts, prepare
from confed.keybroker.identity import OwnerHome
from confed.manifest import SIMULATION
from confed.preparation.contract import Contract

TABULAR = Path(__file__).resolve().parents[3] / "experiments" / "tabular"
GOOD = "age,name\n1,a\n"
CONTRACT = """
name = "ages"
rows = { least = 1, most = 9 }
others = "ignore"
[columns]
age = { type = "float64", least = 0.0, most = 120.0 }
name = { type = "text" }
"""


def written(folder: Path, *changes: tuple[str, str]) -> Path:
    shutil.copytree(TABULAR, folder, ignore=shutil.ignore_patterns("__pycache__"))
    text = (folder / "config.toml").read_text()
    for old, new in (
        ('shards = "data:shards"', 'files = "shards/{site}.csv"'),
        ('statistics = "statistics.toml"', ""),
        *changes,
    ):
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    (folder / "config.toml").write_text(text)
    (folder / "contract.toml").write_text(CONTRACT)
    (folder / "pipeline.toml").write_text('name = "none"\n')
    (folder / "shards").mkdir()
    for number in (1, 2, 3):
        (folder / "shards" / f"site-0{number}.csv").write_text(GOOD)
    return folder / "config.toml"


def seal(config: Path, folder: Path) -> tuple[SealedParts, dict[str, Path]]:
    prepared = prepare(load_experiment(config), config_file=config)
    return seal_everything(prepared, load_owners(prepared, home=folder / "home"), folder=folder / "sealed")


def test_every_owner_seals_its_own_file(tmp_path):
    parts, files = seal(written(tmp_path / "experiment"), tmp_path)
    assert parts.preparation is not None
    assert sorted(parts.datasets) == sorted(parts.preparation.descriptions) == ["site-01", "site-02", "site-03"]
    assert {reference.digest for reference in parts.datasets.values()} < set(files)
    assert set(parts.preparation.descriptions.values()) < set(files)
    assert isinstance(parts.preparation.contract, Contract)


BAD = [
    ("a broken contract", "age,name\n1,a\n500,canary-4711\n", "contract", "column age: most, 1 times"),
    ("a column of the wrong type", "age,name\ncanary-4711,a\n", "column", "column age"),
    ("an empty shard", "age,name\n", "empty-dataset", "at least one row"),
    ("a missing column", "name\ncanary-4711\n", "contract", "column age: missing"),
    (
        "more rows than the contract takes",
        "age,name\n" + "1,a\n" * 10,
        "contract",
        "the table: rows, expected 1 to 9, got 10",
    ),
]


@pytest.mark.parametrize(("what", "content", "code", "named"), BAD, ids=[entry[0] for entry in BAD])
def test_data_that_cannot_be_used_are_a_user_s_mistake(tmp_path, what, content, code, named):
    config = written(tmp_path / "experiment")
    (config.parent / "shards" / "site-02.csv").write_text(content)
    with pytest.raises(ConfedError, match=named) as refused:
        seal(config, tmp_path)
    assert (refused.value.code, refused.value.exit_code) == (code, 2)
    assert "site-02" in str(refused.value)
    assert "canary" not in str(refused.value)
    assert not list((tmp_path / "sealed").glob("site-02*"))


TABLES = [
    ("neither files nor shards", ('files = "shards/{site}.csv"', ""), "data.files"),
    ("files of no site", ('files = "shards/{site}.csv"', 'files = "shards/a.csv"'), "data.files"),
    ("no contract", ('contract = "contract.toml"', ""), "data.contract"),
    ("no pipeline", ('pipeline = "pipeline.toml"', ""), "data.pipeline"),
    ("a contract of arrays", ('source = "files"', 'source = "app"'), "data.files"),
]


@pytest.mark.parametrize(("what", "change", "named"), TABLES, ids=[entry[0] for entry in TABLES])
def test_a_table_of_data_that_contradicts_itself_is_refused(tmp_path, what, change, named):
    with pytest.raises(ConfigError, match=named):
        load_experiment(written(tmp_path / "experiment", change))


def test_a_pipeline_that_does_not_fit_the_contract_is_refused_before_anything_is_sealed(tmp_path):
    config = written(tmp_path / "experiment")
    (config.parent / "pipeline.toml").write_text('name = "p"\nsteps = [{ step = "drop_nulls", columns = ["ages"] }]\n')
    with pytest.raises(ConfigError, match=r"steps\[0\].column"):
        seal(config, tmp_path)
    assert not list((tmp_path / "sealed").glob("site-*"))


# What an owner sealed before.


SEALED = ('files = "shards/{site}.csv"', 'files = "shards/{site}.csv.sealed"')
NAMED = ("count = 3", 'count = 3\nnames = ["north", "west", "east"]')
OWNERS = ("north", "west", "east")


def sealed_by(folder: Path, config: Path, **under: str) -> None:
    """Seal each owner's file, as ``confed data seal`` does; ``under`` names another contract than the run's."""
    from confed.cli.data import seal as seal_file  # noqa: PLC0415 (reads CONFED_HOME when it is called)

    contract = config.parent / "sealed-under.toml"
    contract.write_text(under.get("contract", CONTRACT))
    pipeline = None
    if "pipeline" in under:
        pipeline = config.parent / "sealed-for.toml"
        pipeline.write_text(under["pipeline"])
    for name in OWNERS:
        file = config.parent / "shards" / f"{name}.csv"
        file.write_text(GOOD)
        OwnerHome.create(name, home=folder / "home", environment=SIMULATION, now_ms=1).close()
        seal_file(file, name, contract, pipeline=pipeline, description=name, licence="l", derived_from=["d"])
        file.unlink()


@pytest.fixture
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CONFED_HOME", str(tmp_path / "home"))
    return tmp_path


def test_what_owners_sealed_before_is_taken_as_it_is(at_home):
    config = written(at_home / "experiment", SEALED, NAMED)
    sealed_by(at_home, config)
    parts, files = seal(config, at_home)
    assert set(parts.datasets) == set(OWNERS)
    assert parts.preparation is not None
    for name in OWNERS:
        file = config.parent / "shards" / f"{name}.csv.sealed"
        assert parts.datasets[name].size_bytes == file.stat().st_size
        assert files[parts.datasets[name].digest] == file
        described = files[parts.preparation.descriptions[name]]
        assert described.name == f"{name}.csv.sealed.dataset.json"
        with closing(OwnerHome.load(name, home=at_home / "home")) as owner:
            owner.key(parts.datasets[name].key_id)
    assert not list((at_home / "sealed").glob("north*"))


def swap(folder: Path) -> None:
    """Give north what west sealed, with its description."""
    for ending in ("", ".dataset.json"):
        shutil.copy(folder / f"west.csv.sealed{ending}", folder / f"north.csv.sealed{ending}")


def swap_description(folder: Path) -> None:
    shutil.copy(folder / "west.csv.sealed.dataset.json", folder / "north.csv.sealed.dataset.json")


def flip(folder: Path) -> None:
    file = folder / "north.csv.sealed"
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


OTHERS = CONTRACT.replace("120.0", "130.0")
BEFORE: dict[str, tuple[Callable[[Path], None], dict[str, str], str, str]] = {
    "another owner's": (swap, {}, "signature", "signer"),
    "another's description": (swap_description, {}, "signature", "sign"),
    "no description": (lambda folder: (folder / "north.csv.sealed.dataset.json").unlink(), {}, "missing-file", "description"),
    "no file": (lambda folder: (folder / "north.csv.sealed").unlink(), {}, "missing-file", "north"),
    "other bytes than were described": (flip, {}, "manifest-mismatch", "dataset"),
    "another contract": (lambda _: None, {"contract": OTHERS}, "config", "data.contract"),
    "for another pipeline alone": (lambda _: None, {"pipeline": 'name = "other"\n'}, "config", "data.pipeline"),
}  # fmt: skip


@pytest.mark.parametrize("what", BEFORE)
def test_what_does_not_belong_to_the_run_is_refused(what, at_home):
    turn, under, code, named = BEFORE[what]
    config = written(at_home / "experiment", SEALED, NAMED)
    sealed_by(at_home, config, **under)
    turn(config.parent / "shards")
    with pytest.raises(ConfedError, match=named) as refused:
        seal(config, at_home)
    assert refused.value.code == code


ONE_TEE = (NAMED[0], 'count = 1\nnames = ["north"]')
FLOORS: dict[str, tuple[tuple[tuple[str, str], ...], str]] = {
    "one TEE, whose result is of this data alone": (
        (ONE_TEE, ("least = 2", "least = 1"), ('environment = "sim', 'scenario = "training"\nenvironment = "sim')),
        "scenario for the key of north.csv.sealed: expected one of federated",
    ),
    "a smaller cohort": ((NAMED, ("least = 2", "least = 1")), "cohort.least for the key of north"),
    "statistics": ((NAMED, ('pipeline = "pipeline', 'statistics = "s.toml"\npipeline = "pipeline')), "statistics for"),
}


@pytest.mark.parametrize("what", FLOORS)
def test_a_key_that_was_sealed_for_other_runs_is_told_before_anything_runs(what, at_home):
    changes, named = FLOORS[what]
    config = written(at_home / "experiment", SEALED, *changes)
    asked = 'name = "n"\nkind = "count"\ncolumn = "age"\nepsilon = 0.5\n'
    (config.parent / "s.toml").write_text(f"[[queries]]\n{asked}")
    sealed_by(at_home, config)
    with pytest.raises(FloorError, match=named):
        seal(config, at_home)


def test_names_of_sites_are_as_many_as_sites(tmp_path):
    for names in ('["north"]', '["a", "b", "a"]'):
        with pytest.raises(ConfigError, match=r"sites\.names"):
            load_experiment(written(tmp_path / names[2:3], ("count = 3", f"count = 3\nnames = {names}")))
