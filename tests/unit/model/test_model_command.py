"""``confed model seal|open|show`` as an owner uses them, with a real owner's home."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner

from confed.cli.model import app
from confed.errors import (
    ConfedError,
    MissingFileError,
    RecipientError,
    ShapeError,
    SignatureError,
    TamperedError,
    TruncatedError,
    UsageError,
)
from confed.journey import Kind
from confed.keybroker.identity import OwnerHome
from confed.model import weights
from confed.sealing import derivation
from confed.sealing.container import Container, Draft, RecipientEntry, seal_to_file

NOW_MS = 1_700_000_000_000
ARRAYS = {"b": np.arange(4, dtype=np.float32), "a": np.zeros((2, 2), np.int8)}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OwnerHome:
    monkeypatch.setenv("CONFED_HOME", str(tmp_path / "home"))
    OwnerHome.create("guest", environment="simulation", now_ms=NOW_MS).close()
    return OwnerHome.create("alice", environment="simulation", now_ms=NOW_MS)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(ARRAYS, path)
    return path


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def test_what_an_owner_seals_that_owner_opens(home: OwnerHome, model: Path, tmp_path: Path) -> None:
    sealed, out = model.with_name("model.safetensors.sealed"), tmp_path / "out.safetensors"
    digest = run("seal", model, "--owner", "alice").strip()
    assert digest == Container.map(sealed).file_digest()
    run("open", sealed, "--owner", "alice", "--out", out)
    loaded = safetensors.numpy.load_file(out)
    assert all(np.array_equal(loaded[name], ARRAYS[name]) for name in ARRAYS)
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert not list(tmp_path.glob(".*.part"))


def test_show_needs_no_key_and_tells_no_tensor(home: OwnerHome, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = run("seal", model, "--owner", "alice").strip()
    monkeypatch.setenv("CONFED_HOME", "/nonexistent")
    shown = json.loads(run("show", str(model) + ".sealed", "--json"))
    assert (shown["kind"], shown["version"], shown["digest"]) == ("model", 0, digest)
    assert shown["owner"] == shown["signer"] == home.party.identity.hex()
    assert [entry["method"] for entry in shown["recipients"]] == ["owner-key"]
    assert shown["detail"] == {"layout": weights.layout_of(weights.unpack(model.read_bytes())).digest}
    assert shown["container_id"] in run("show", str(model) + ".sealed")


def test_a_recipient_opens_with_its_own_key(home: OwnerHome, model: Path, tmp_path: Path) -> None:
    key_file, out = tmp_path / "guest.key", tmp_path / "out.safetensors"
    key_file.write_text(OwnerHome.load("guest").hpke_identity.public.hex() + "\n")
    run("seal", model, "--owner", "alice", "--recipient", key_file)
    run("open", str(model) + ".sealed", "--owner", "guest", "--out", out)
    assert set(safetensors.numpy.load_file(out)) == set(ARRAYS)


def _seal_version(
    path: Path, home: OwnerHome, *, version: int, detail: dict[str, Any], signer: Ed25519PrivateKey
) -> None:
    key_id = Container.map(path.with_name("model.safetensors.sealed")).header.recipients[0].key_id
    key = home.key(key_id)
    data_key = (
        derivation.version_key(key, run="r", version=version, attempt=2)
        if version
        else derivation.container_key(key, container_id="c")
    )
    draft = Draft(
        kind=Kind.MODEL,
        container_id="c",
        version=version,
        owner=home.party.identity,
        detail=detail,
        recipients=(RecipientEntry.owner_key(key_id),),
    )
    seal_to_file(weights.pack(ARRAYS), draft, data_key=data_key, signing_key=signer, path=path)


def test_a_later_version_opens_with_the_key_that_sealed_the_start(home: OwnerHome, model: Path, tmp_path: Path) -> None:
    run("seal", model, "--owner", "alice")
    path, out = tmp_path / "v5.sealed", tmp_path / "out.safetensors"
    detail = {"run": "r", "attempt": 2, "layout": weights.layout_of(ARRAYS).digest}
    _seal_version(path, home, version=5, detail=detail, signer=Ed25519PrivateKey.generate())
    run("open", path, "--owner", "alice", "--out", out)
    assert list(weights.unpack(out.read_bytes())) == ["b", "a"]


@pytest.mark.parametrize(
    ("sentence", "version", "detail", "own", "error"),
    [
        ("a start that somebody else signed", 0, {}, False, SignatureError),
        ("a layout that is not the one inside", 0, {"layout": "00" * 32}, True, ShapeError),
        ("a version that does not say of which run", 5, {"attempt": 2}, True, RecipientError),
        ("a version of an attempt that is text", 5, {"run": "r", "attempt": "2"}, True, RecipientError),
    ],
)
def test_a_model_that_lies_about_itself_is_refused(
    home: OwnerHome,
    model: Path,
    tmp_path: Path,
    sentence: str,
    version: int,
    detail: Any,
    own: Any,
    error: type[ConfedError],
) -> None:
    run("seal", model, "--owner", "alice")
    path, out = tmp_path / "lie.sealed", tmp_path / "out.safetensors"
    signer = home.identity_key if own else Ed25519PrivateKey.generate()
    _seal_version(path, home, version=version, detail=detail, signer=signer)
    with pytest.raises(error):
        run("open", path, "--owner", "alice", "--out", out)
    assert not out.exists()


@pytest.mark.parametrize("name", ["model.pt", "model.pth", "model.bin", "model.PKL"])
def test_a_pickle_is_refused_by_name(home: OwnerHome, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"\x80\x05")
    with pytest.raises(UsageError, match="safetensors"):
        run("seal", path, "--owner", "alice")


@pytest.mark.parametrize(
    ("sentence", "content", "error"),
    [
        ("a missing file", None, MissingFileError),
        ("an empty file", b"", UsageError),
        ("a pickle under another name", b"\x80\x05\x95" + bytes(100), UsageError),
        ("a file that is cut", safetensors.numpy.save(ARRAYS)[:-1], UsageError),
    ],
)
def test_what_is_not_safetensors_is_not_sealed(
    home: OwnerHome, tmp_path: Path, sentence: str, content: bytes | None, error: type[ConfedError]
) -> None:
    path = tmp_path / "model.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error) as caught:
        run("seal", path, "--owner", "alice")
    assert (caught.value.exit_code, "\n" in str(caught.value)) == (2, False)
    assert not (tmp_path / "model.safetensors.sealed").exists()


def test_an_existing_output_is_kept_unless_forced(home: OwnerHome, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"mine")
    run("seal", model, "--owner", "alice")
    for arguments in (
        ("seal", model, "--owner", "alice"),
        ("open", f"{model}.sealed", "--owner", "alice", "--out", out),
    ):
        with pytest.raises(UsageError):
            run(*arguments)
    assert out.read_bytes() == b"mine"
    run("open", f"{model}.sealed", "--owner", "alice", "--out", out, "--force")
    assert out.read_bytes() != b"mine"


@pytest.mark.parametrize(
    ("sentence", "change", "error"),
    [
        ("a changed chunk", lambda data: data[:-1] + bytes([data[-1] ^ 1]), TamperedError),
        ("a cut file", lambda data: data[:-1], TruncatedError),
    ],
)
def test_a_damaged_container_writes_nothing(
    home: OwnerHome, model: Path, tmp_path: Path, sentence: str, change: Any, error: type[ConfedError]
) -> None:
    run("seal", model, "--owner", "alice")
    sealed, out = Path(f"{model}.sealed"), tmp_path / "out.safetensors"
    sealed.write_bytes(change(sealed.read_bytes()))
    with pytest.raises(error):
        run("open", sealed, "--owner", "alice", "--out", out)
    assert not out.exists()


def test_a_stranger_does_not_open(home: OwnerHome, model: Path, tmp_path: Path) -> None:
    run("seal", model, "--owner", "alice")
    with pytest.raises(RecipientError):
        run("open", f"{model}.sealed", "--owner", "guest", "--out", tmp_path / "out.safetensors")


@pytest.mark.parametrize("content", [None, "zz", "ab", "ff" * 1216])
def test_a_bad_recipient_file_is_a_users_mistake(
    home: OwnerHome, model: Path, tmp_path: Path, content: str | None
) -> None:
    key_file = tmp_path / "guest.key"
    if content is not None:
        key_file.write_text(content)
    with pytest.raises(UsageError):
        run("seal", model, "--owner", "alice", "--recipient", key_file)


def test_an_unknown_owner_is_a_users_mistake(home: OwnerHome, model: Path) -> None:
    with pytest.raises(UsageError):
        run("seal", model, "--owner", "nobody")
