"""vLLM as a child: the adapter's half of the contract, against a small fake of vLLM's interface."""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_vllm
import numpy as np
import pytest
from language_world import asked, hub_directory, said
from safetensors.numpy import load

from clients.engines import vllm
from clients.engines.memory_files import memory_file, model_files, require_memory
from clients.engines.vllm import Vllm, VllmFailedError
from confed.errors import ConfedError, DeploymentError, LanguageModelError, MissingPackageError, SessionError
from confed.inference.engine import InvalidRequestError
from confed.model.hub import read_directory, weights_of

Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> Arrays:
    found = read_directory(hub_directory(tmp_path_factory.mktemp("llama")))
    template = b"{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    return found | {"hub/chat_template.jinja": np.frombuffer(template, dtype=np.uint8)}


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An image that has the fake; whether this machine swaps is not this test's matter."""
    folder = tmp_path_factory.mktemp("vllm-image")
    fake_vllm.install(folder)
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(str(folder))
        patched.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("memory")))
        patched.setattr(vllm, "require_memory", lambda folder: None)
        yield folder


@pytest.fixture(scope="module")
def engine(image: Path, arrays: Arrays) -> Iterator[Vllm]:
    made = Vllm(arrays, {"max-model-len": 96, "dtype": "float32"})
    yield made
    made.close()
    assert made._child.poll() is not None
    assert not made._folder.exists()


def seen(engine: Vllm) -> dict[str, Any]:
    found: dict[str, Any] = engine._http.get("/seen").json()
    return found


def test_words_come_as_pieces_and_the_last_says_why(engine: Vllm) -> None:
    pieces = list(engine.generate("a b c", asked()))
    assert [piece.text for piece in pieces] == ["a ", "b ", "c ", ""]
    assert [(piece.finish, piece.prompt_tokens, piece.tokens) for piece in pieces[-2:]] == [
        (None, 7, 3),
        ("stop", 7, 3),
    ]
    assert [piece.finish for piece in engine.generate("a b c", asked(max_tokens=2))] == [None, "length"]


def test_what_a_request_says_reaches_vllm_and_nothing_else(engine: Vllm) -> None:
    said(
        engine,
        "a",
        stop=("x",),
        temperature=0.5,
        top_p=0.9,
        seed=4,
        max_tokens=3,
        special_tokens=False,
        cache_salt="s1",
    )
    assert seen(engine)["requests"][-1] == {
        "model": "model", "prompt": "a", "stream": True, "max_tokens": 3, "temperature": 0.5, "top_p": 0.9, "seed": 4,
        "stop": ["x"], "add_special_tokens": False, "cache_salt": "s1",
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }  # fmt: skip


def test_the_cache_is_salted_with_the_tenants_salt_or_with_one_of_the_requests_own(engine: Vllm) -> None:
    for salt in ("one", "two", None, None):
        said(engine, "a", cache_salt=salt)
    salts = [request["cache_salt"] for request in seen(engine)["requests"][-4:]]
    assert salts[:2] == ["one", "two"]
    assert len({*salts}) == 4
    assert all(len(salt) == 64 for salt in salts[2:])


def test_the_model_is_in_memory_and_only_links_are_in_the_folder(engine: Vllm, arrays: Arrays) -> None:
    files = model_files(arrays)
    digests = {}
    for name, descriptor in files.items():
        with os.fdopen(descriptor, "rb") as file:
            digests[name] = hashlib.sha256(file.read()).hexdigest()
    assert seen(engine)["files"] == digests
    entries = list((engine._folder / "model").iterdir())
    assert {entry.name for entry in entries} == set(files)
    assert all(entry.is_symlink() and "memfd:" in str(entry.readlink().readlink()) for entry in entries)
    weights = weights_of(arrays)["model.norm.weight"].tobytes()
    written = [path for path in engine._folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert not any(weights in path.read_bytes() for path in written)


def test_files_in_memory_are_the_opened_tensors_and_cannot_be_changed(arrays: Arrays) -> None:
    descriptor = model_files(arrays)["model.safetensors"]
    with os.fdopen(descriptor, "r+b") as file:
        tensors = load(file.read())
        assert {name: array.tobytes() for name, array in tensors.items()} == {
            name: array.tobytes() for name, array in weights_of(arrays).items()
        }
        with pytest.raises(PermissionError):
            os.pwrite(descriptor, b"x", 0)
        with pytest.raises(PermissionError):
            os.ftruncate(descriptor, 0)


def test_vllm_reports_nothing_home_and_looks_nowhere(engine: Vllm) -> None:
    found = seen(engine)
    environment = found["environment"]
    assert environment["HF_HUB_OFFLINE"] == environment["VLLM_NO_USAGE_STATS"] == "1"
    assert environment["HOME"] == environment["TMPDIR"] == str(engine._folder)
    assert "CONFED_HOME" not in environment
    assert found["arguments"][-4:] == ["--max-model-len", "96", "--dtype", "float32"]


def test_who_goes_away_ends_the_generation(engine: Vllm) -> None:
    stream = engine.generate("forever", asked())
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    waited = threading.Event()
    assert any(seen(engine)["gone"] == 1 or waited.wait(0.01) for _ in range(1000))


def test_a_prompt_that_vllm_refuses_is_told_as_that(engine: Vllm) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        said(engine, "x" * 201)
    assert refused.value.reason == "the prompt is too long for it"


@pytest.mark.parametrize("prompt", ["fail", "break off"])
def test_what_goes_wrong_in_vllm_is_told_without_its_words(engine: Vllm, prompt: str) -> None:
    with pytest.raises(VllmFailedError) as failed:
        said(engine, prompt)
    assert "canary" not in str(failed.value)
    assert said(engine, "a") == "a "


def test_a_chat_is_what_the_models_template_makes_of_it(engine: Vllm) -> None:
    assert engine.chat_prompt([{"role": "user", "content": "Hello"}]) == "<user>Hello<assistant>"


def test_vllm_that_died_answers_nobody(image: Path, arrays: Arrays) -> None:
    engine = Vllm(arrays, {})
    engine._child.kill()
    engine._child.wait()
    with pytest.raises(VllmFailedError):
        said(engine, "a")
    engine.close()


def test_an_image_without_vllm_says_so(arrays: Arrays, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [path for path in sys.path if "vllm-image" not in path])
    sys.modules.pop("vllm", None)
    with pytest.raises(MissingPackageError):
        Vllm(arrays, {})


BAD: dict[str, tuple[dict[str, Any], type[ConfedError]]] = {
    "it does not start": ({"max-model-len": 13}, DeploymentError),
    "it takes too long": ({"start-timeout-s": 0}, DeploymentError),
    "a length as text": ({"max-model-len": "96"}, LanguageModelError),
    "a type with a space": ({"dtype": "auto --uds /x"}, LanguageModelError),
}


@pytest.mark.parametrize(("settings", "error"), BAD.values(), ids=BAD)
def test_what_does_not_start_is_one_clear_error(
    image: Path, arrays: Arrays, settings: dict[str, Any], error: type[ConfedError]
) -> None:
    before = set(Path(tempfile.gettempdir()).glob("vllm-*"))
    with pytest.raises(error):
        Vllm(arrays, settings)
    assert set(Path(tempfile.gettempdir()).glob("vllm-*")) == before


MOUNTS = """\
21 1 0:20 / / rw - ext4 /dev/root rw
22 21 0:21 / /memory rw - tmpfs tmpfs rw
23 22 0:22 / /memory/disk\\040here rw - ext4 /dev/sdb rw
24 21 0:23 / /ram rw - ramfs ramfs rw
"""
NO_SWAP = "Filename Type Size Used Priority\n"
FOLDERS: dict[str, tuple[str, str, bool]] = {
    "memory": ("/memory/a", NO_SWAP, True),
    "ramfs": ("/ram", NO_SWAP, True),
    "a disk": ("/var/a", NO_SWAP, False),
    "a name that only begins alike": ("/memory2", NO_SWAP, False),
    "a disk within": ("/memory/disk here/a", NO_SWAP, False),
    "memory that is swapped": ("/memory/a", NO_SWAP + "/dev/sda2 partition 1 0 -2\n", False),
}


@pytest.mark.parametrize(("folder", "swaps", "holds"), FOLDERS.values(), ids=FOLDERS)
def test_a_folder_that_may_reach_a_disk_is_refused(folder: str, swaps: str, holds: bool) -> None:
    if holds:
        require_memory(Path(folder), mounts=MOUNTS, swaps=swaps)
        return
    with pytest.raises(SessionError):
        require_memory(Path(folder), mounts=MOUNTS, swaps=swaps)


def test_a_system_without_files_in_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    with pytest.raises(SessionError):
        memory_file("a", [b"x"])
