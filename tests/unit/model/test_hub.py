"""A model's directory: what travels of it, and what is refused in one line that names the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from confed.errors import LanguageModelError, MissingFileError, SequenceLengthError, UsageError
from confed.model import hub
from confed.model.weights import layout_of, pack, unpack

CONFIG = {"model_type": "llama", "max_position_embeddings": 8}


def directory(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer.json").write_text('{"model": {}}')
    (folder / "README.md").write_text("a card")
    for number in (1, 2):
        parts = pack({f"layer.{number}": np.full(3, number, np.float32)})
        (folder / f"model-0000{number}-of-00002.safetensors").write_bytes(b"".join(parts))
    return folder


def test_weights_and_documents_travel_as_one_layout(tmp_path: Path) -> None:
    arrays = hub.read_directory(directory(tmp_path / "model"))
    assert list(arrays) == ["layer.1", "layer.2", "hub/config.json", "hub/tokenizer.json"]
    opened = unpack(bytearray(b"".join(pack(arrays))))
    assert hub.settings_of(opened, "config.json") == CONFIG
    assert hub.documents_of(opened)["tokenizer.json"] == b'{"model": {}}'
    assert list(hub.weights_of(opened)) == ["layer.1", "layer.2"]
    (tmp_path / "model" / "tokenizer.json").write_text('{"model": {"other": 1}}')
    assert layout_of(hub.read_directory(tmp_path / "model")).digest != layout_of(arrays).digest


def pickled(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(b"\x80\x02")


def changed(name: str, **values: object) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(json.dumps(values))


def twice(folder: Path) -> None:
    (folder / "more.safetensors").write_bytes(b"".join(pack({"layer.1": np.zeros(2, np.float32)})))


def posing(folder: Path) -> None:
    (folder / "more.safetensors").write_bytes(b"".join(pack({"hub/config.json": np.zeros(2, np.uint8)})))


WRONG: dict[str, tuple[Callable[[Path], object], type[UsageError], str]] = {
    "pickled weights": (pickled("pytorch_model.bin"), UsageError, "pytorch_model.bin"),
    "a torch file": (pickled("model.pt"), UsageError, "model.pt"),
    "a checkpoint": (pickled("last.ckpt"), UsageError, "last.ckpt"),
    "a pickle": (pickled("vocab.PKL"), UsageError, "vocab.PKL"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), MissingFileError, "tokenizer.json"),
    "no configuration": (lambda folder: (folder / "config.json").unlink(), MissingFileError, "config.json"),
    "no weights": (lambda folder: [file.unlink() for file in folder.glob("*.safetensors")], MissingFileError, "weights"),
    "code of its own": (changed("config.json", auto_map={"AutoModel": "x.Y"}), UsageError, "auto_map"),
    "a tokenizer's code": (changed("tokenizer_config.json", auto_map={"AutoTokenizer": "x.Y"}), UsageError, "auto_map"),
    "a configuration that is no object": (lambda folder: (folder / "config.json").write_text("[1]"), UsageError, "config.json"),
    "a configuration that is no text": (lambda folder: (folder / "config.json").write_bytes(b"\xff"), UsageError, "config.json"),
    "an empty document": (lambda folder: (folder / "tokenizer.json").write_bytes(b""), UsageError, "tokenizer.json"),
    "other bytes as weights": (lambda folder: (folder / "x.safetensors").write_bytes(b"no"), UsageError, "x.safetensors"),
    "an empty file as weights": (lambda folder: (folder / "x.safetensors").write_bytes(b""), UsageError, "x.safetensors"),
    "a tensor twice": (twice, UsageError, "layer.1"),
    "a tensor that poses as a document": (posing, UsageError, "hub/config.json"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_a_directory_that_is_none_is_refused_by_name(what: str, tmp_path: Path) -> None:
    change, kind, named = WRONG[what]
    folder = directory(tmp_path / "model")
    change(folder)
    with pytest.raises(kind, match=named.replace(".", r"\.")) as refused:
        hub.read_directory(folder)
    assert "\n" not in str(refused.value)


def test_no_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError):
        hub.read_directory(tmp_path / "none")


def test_a_document_larger_than_its_bound_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "LARGEST_DOCUMENT_BYTES", 12)
    with pytest.raises(UsageError, match=r"config\.json"):
        hub.read_directory(directory(tmp_path / "model"))


def test_an_opened_model_that_asks_for_code_is_refused_too() -> None:
    asks = np.frombuffer(json.dumps({"auto_map": {}}).encode(), dtype=np.uint8)
    with pytest.raises(LanguageModelError, match="trust_remote_code"):
        hub.settings_of({"hub/config.json": asks}, "config.json")
    with pytest.raises(LanguageModelError):
        hub.settings_of({}, "config.json")


@pytest.mark.parametrize(("tokens", "longest"), [(9, 100), (6, 5)])
def test_a_sequence_is_never_cut_off(tokens: int, longest: int) -> None:
    hub.require_context(min(8, longest), config=CONFIG, longest=longest, what="example 0")
    with pytest.raises(SequenceLengthError):
        hub.require_context(tokens, config=CONFIG, longest=longest, what="example 0")
