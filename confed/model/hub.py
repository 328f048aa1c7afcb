"""A language model's directory in the Hub's layout, as one set of named arrays that is sealed; and back.

Beside the tensors a model needs its configuration and its tokenizer. They travel in the same container, as tensors of
bytes named ``hub/FILE``: so the layout's digest covers them, no version can be without them or change a bit of them
(bytes are never trained), and they have room that a safetensors header, which must stay small, has not: tokenizers of
today take 10 to 35 MB.

What may hold code is refused by name: pickled weights, and ``auto_map`` in a configuration, which asks whoever loads
the model to run Python from its directory.

Source: the layout of a repository on the Hugging Face Hub, https://huggingface.co/docs/hub/models-uploading
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from confed.errors import (
    EncodingError,
    LanguageModelError,
    MissingFileError,
    SequenceLengthError,
    ShapeError,
    SizeError,
    UsageError,
)
from confed.model.weights import unpack

Array = NDArray[Any]

FOLDER = "hub/"
CONFIG, TOKENIZER, TOKENIZER_CONFIG = "config.json", "tokenizer.json", "tokenizer_config.json"
DOCUMENTS = (
    CONFIG,
    TOKENIZER,
    TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
)
"""What of a directory travels beside the weights; everything else stays."""
LARGEST_DOCUMENT_BYTES = 64 * 1024**2
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz")
_ASKS_FOR_CODE = "auto_map"


def read_directory(directory: Path) -> dict[str, Array]:
    """Return the weights and documents of a directory: tensors as views of its mapped files, documents as bytes.

    Raises:
        MissingFileError: no directory, configuration, tokenizer or weights.
        UsageError: pickled weights, a configuration that asks for code, a document that is no JSON or too large, or
            files that are not safetensors, or name a tensor twice.
    """
    if not directory.is_dir():
        raise MissingFileError(str(directory), expected="a model's directory", got="none")
    files = sorted(entry for entry in directory.iterdir() if entry.is_file())
    for file in files:
        if file.suffix.lower() in PICKLES:
            raise UsageError(str(file), expected="weights as safetensors", got=f"{file.suffix} (may hold code)")
    for name, what in ((CONFIG, "the model's configuration"), (TOKENIZER, "the tokenizer, as the tokenizers library")):
        if not (directory / name).is_file():
            raise MissingFileError(str(directory / name), expected=f"{what} writes it", got="no such file")
    arrays = _all_tensors([file for file in files if file.suffix == ".safetensors"])
    if not arrays:
        raise MissingFileError(str(directory), expected="weights (*.safetensors)", got="none")
    return arrays | {FOLDER + name: _document(directory / name) for name in DOCUMENTS if (directory / name).is_file()}


def weights_of(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Return a model's tensors without its documents."""
    return {name: array for name, array in arrays.items() if not name.startswith(FOLDER)}


def text_of(arrays: Mapping[str, Array], name: str) -> str:
    """Return a document of an opened model.

    Raises:
        LanguageModelError: there is none, or it is no text.
    """
    array = arrays.get(FOLDER + name)
    if array is None or array.dtype != np.uint8 or array.ndim != 1:
        raise LanguageModelError(f"model {name}", expected="in the sealed model (confed model seal DIR)", got="none")
    try:
        return array.tobytes().decode()
    except UnicodeDecodeError as error:
        raise LanguageModelError(f"model {name}", expected="text in UTF-8", got="something else") from error


def settings_of(arrays: Mapping[str, Array], name: str) -> dict[str, Any]:
    """Return a JSON document of an opened model: an object that asks for no code.

    Raises:
        LanguageModelError: there is none, it is no object, or it has an ``auto_map``.
    """
    return _settings(text_of(arrays, name), f"model {name}")


def require_context(tokens: int, *, config: Mapping[str, Any], longest: int, what: str) -> None:
    """Check a sequence against a run's own bound and the model's context (``max_position_embeddings``).

    Raises:
        SequenceLengthError: it is longer than one of them.
    """
    context = config.get("max_position_embeddings") or config.get("n_positions") or longest
    if tokens > min(longest, context):
        raise SequenceLengthError(f"tokens of {what}", expected=f"at most {min(longest, context)}", got=tokens)


def documents_of(arrays: Mapping[str, Array]) -> dict[str, bytes]:
    """Return a model's documents by the names of their files."""
    return {name: arrays[FOLDER + name].tobytes() for name in DOCUMENTS if FOLDER + name in arrays}


def _all_tensors(files: Sequence[Path]) -> dict[str, Array]:
    arrays: dict[str, Array] = {}
    for file in files:
        for name, array in _tensors(file).items():
            if name in arrays or name.startswith(FOLDER):
                raise UsageError(f"{file}: tensor {name[:80]}", expected="a name of its own", got="one twice")
            arrays[name] = array
    return arrays


def _tensors(file: Path) -> dict[str, Array]:
    try:
        with file.open("rb") as handle:
            source = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
        return unpack(memoryview(source), aligned=False)
    except (ValueError, EncodingError, ShapeError, SizeError) as error:  # mmap does not map an empty file
        raise UsageError(f"{file}: not a safetensors file that can be sealed ({error})") from error


def _document(file: Path) -> Array:
    size = file.stat().st_size
    if not 0 < size <= LARGEST_DOCUMENT_BYTES:
        raise UsageError(f"{file} in bytes", expected=f"from 1 to {LARGEST_DOCUMENT_BYTES}", got=size)
    data = file.read_bytes()
    if file.suffix == ".json":
        try:
            _settings(data.decode(), str(file))
        except UnicodeDecodeError as error:
            raise UsageError(str(file), expected="text in UTF-8", got="something else") from error
        except LanguageModelError as error:
            raise UsageError(error.field, expected=error.expected, got=error.got) from error
    return np.frombuffer(data, dtype=np.uint8)


def _settings(text: str, what: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise LanguageModelError(what, expected="JSON", got="something else") from error
    if not isinstance(value, dict):
        raise LanguageModelError(what, expected="a JSON object", got=type(value).__name__)
    if _ASKS_FOR_CODE in value:
        expected = f"no {_ASKS_FOR_CODE}: code of a model (trust_remote_code) is never run"
        raise LanguageModelError(what, expected=expected, got=_ASKS_FOR_CODE)
    return value  # pyright: ignore[reportUnknownVariableType]
