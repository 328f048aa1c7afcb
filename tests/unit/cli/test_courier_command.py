"""A courier that is started again is the one that its callers have pinned, and its own mistakes are told."""

import sys

import pytest

from confed.cli import courier, main


def test_the_tls_identity_is_kept_with_what_is_stored_and_is_nobody_elses(tmp_path):
    path = tmp_path / "tls.json"
    first = courier._identity(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert courier._identity(path) == first
    assert courier._identity(tmp_path / "another.json") != first


@pytest.mark.parametrize("option", ["--manifest", "--callers", "--keep"])
def test_a_file_that_is_not_there_is_told_before_anything_listens(option, tmp_path, monkeypatch, capsys):
    arguments = ["courier", "serve", "--directory", str(tmp_path / "store"), option, str(tmp_path / "nowhere")]
    monkeypatch.setattr(sys, "argv", ["confed", *arguments])
    with pytest.raises(SystemExit) as ended:
        main.run()
    assert ended.value.code == 2
    assert "nowhere" in capsys.readouterr().err
