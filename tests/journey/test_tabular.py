"""The tabular experiment as a person starts it."""

from __future__ import annotations

import base64
import re
import shutil
from pathlib import Path

import pytest
from runs import ROOT, run

from confed import canonical
from confed.errors import RefusedError
from confed.keybroker.statistics import StatisticsRelease
from confed.records.trust import Trust
from confed.records.verification import verify_run
from confed.statement import Signed, unverified

TABULAR = ROOT / "experiments" / "tabular"


def copy(folder: Path, **changes: str) -> Path:
    """Copy the experiment; ``changes`` replace lines ``key = …`` of its file."""
    shutil.copytree(TABULAR, folder, ignore=shutil.ignore_patterns("__pycache__", "runs"))
    text = (folder / "config.toml").read_text()
    for key, value in changes.items():
        text, found = re.subn(rf"(?m)^{key} = .*$", value, text)
        assert found == 1, key
    (folder / "config.toml").write_text(text)
    return folder / "config.toml"


def check_statistics(directory: Path) -> None:
    """What left is near the truth, signed and permitted; whoever touches it is found out."""
    files = sorted((directory / "statistics").iterdir())
    assert [file.stem for file in files] == ["site-01", "site-02", "site-03"]
    answers = unverified(documents_of(files[0])["release"], StatisticsRelease).answers
    assert 100 < answers["rows"] < 280
    assert 12 < answers["mean radius"] < 17
    assert len(answers["area"]) == 4
    original, other = files[0].read_bytes(), files[1].read_bytes()
    release, permit = (canonical.decode(original)[name] for name in ("release", "permit"))
    turns = {
        "another site's": other,
        "another answer": canonical.encode({**canonical.decode(original), "release": changed(release, "rows")}),
        "a permit that is no permit": canonical.encode({**canonical.decode(original), "permit": release}),
        "no credential": canonical.encode({"permit": permit, "release": release}),
    }
    for content in turns.values():
        files[0].write_bytes(content)
        with pytest.raises(RefusedError, match=r"statistics/site-01\.json"):
            verify_run(directory, trust=None)
    files[0].write_bytes(original)


def documents_of(file: Path) -> dict[str, Signed]:
    return {name: Signed.from_json(value) for name, value in canonical.decode(file.read_bytes()).items()}


def changed(release: dict[str, str], name: str) -> dict[str, str]:
    """The release with one answer that is greater by one, under the old signature."""
    payload = canonical.decode(base64.b64decode(release["payload"]))
    payload["answers"][name] += 1
    return {**release, "payload": base64.b64encode(canonical.encode(payload)).decode()}


def test_hospitals_learn_from_tables_that_only_their_tees_open(tmp_path: Path) -> None:
    config = copy(tmp_path / "tabular", rounds="rounds = 2")
    summary = run(config, home=tmp_path / "home", runs=tmp_path / "runs")
    assert summary["dropped"] == []
    assert summary["accuracy"] > 0.85
    directory, trust = Path(summary["run_dir"]), Trust.load(tmp_path / "home" / "trust.json")
    verified = verify_run(directory, trust=trust)
    assert "of 3 sites, each permitted once and charged" in [checked.what for checked in verified.steps]
    check_statistics(directory)
    for path in directory.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert b"ward 3" not in content, path  # a value of a column that nobody opens
            assert b"PAR1" not in content or path.suffix == ".sealed", path
