"""Trust files: what they may hold, and what a manifest must have in common with one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from records_world import RecordedRun

from confed.errors import ConfedError, ConfigError, MissingFileError
from confed.records.trust import Trust


def test_json_and_toml_say_the_same(tmp_path: Path, run: RecordedRun) -> None:
    owners = {name: key.hex() for name, key in run.trust.owners.items()}
    anchors = {profile: [item.hex() for item in items] for profile, items in run.trust.anchors.items()}
    (tmp_path / "trust.json").write_text(json.dumps({"owners": owners, "anchors": anchors}))
    lines = ["[owners]", *(f'{name} = "{key}"' for name, key in owners.items())]
    lines += ["[anchors]", *(f'"{profile}" = {json.dumps(items)}' for profile, items in anchors.items())]
    (tmp_path / "trust.toml").write_text("\n".join(lines))
    assert Trust.load(tmp_path / "trust.json") == Trust.load(tmp_path / "trust.toml") == run.trust
    assert Trust.from_home(tmp_path) == run.trust


REFUSALS = [
    ("no file", None, MissingFileError),
    ("no JSON", "{", ConfigError),
    ("not a table", "[]", ConfigError),
    ("an unknown key", '{"owners": {"a": "' + "00" * 32 + '"}, "anchors": {}, "extra": 1}', ConfigError),
    ("no anchors", '{"owners": {"a": "' + "00" * 32 + '"}}', ConfigError),
    ("no owner", '{"owners": {}, "anchors": {}}', ConfigError),
    ("a key that is too short", '{"owners": {"a": "00"}, "anchors": {}}', ConfigError),
    ("a key that is not hexadecimal", '{"owners": {"a": "zz"}, "anchors": {}}', ConfigError),
]


@pytest.mark.parametrize(("content", "error"), [row[1:] for row in REFUSALS], ids=[row[0] for row in REFUSALS])
def test_a_trust_file_is_read_strictly(content: str | None, error: type[ConfedError], tmp_path: Path) -> None:
    path = tmp_path / "trust.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(error) as refused:
        Trust.load(path)
    assert refused.value.exit_code == 2
