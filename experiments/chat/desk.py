"""Model owner's side: the help desk's small Llama, tuned on requests and answers, as a directory to seal.

Model, tokenizer and texts are those of ``experiments/help-desk``, and so is the tuning, by ``clients.tasks.causal_lm``:
here of the whole model and in the clear, at its owner's, in a few seconds, so that there is something sensible to ask.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from confed.model.hub import documents_of, weights_of

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "help-desk"))

from base_model import base_model
from texts import help_desk, prompt_of

from clients.tasks.causal_lm import open_model, train
from clients.tasks.instructions import sequences

DEPARTMENT = "Accounts"
_BEFORE, _AFTER = prompt_of(DEPARTMENT, "|").split("|")
TEMPLATE = f"{_BEFORE}{{{{ messages[-1]['content'] }}}}{_AFTER}"
"""A chat here is one question; nothing that was said before it counts."""
_SEED = 7
_DRAWS = 8
"""How often requests are drawn: each draw has other topics that are frequent."""
_PAIRS = 75
_BATCH = 8
_LONGEST = 128
_COURSE = ((3, 6e-3), (1, 2e-3), (1, 5e-4))
"""Epochs and learning rates."""


def desk_model(*, tuned: bool) -> dict[str, np.ndarray]:
    """Return the model's tensors and documents; one that is not tuned babbles, and is there at once."""
    pairs = [pair for seed in range(_DRAWS) for pair in help_desk(DEPARTMENT, count=_PAIRS, seed=seed)]
    arrays = base_model(seed=_SEED, steps=0, lines=[prompt + answer for prompt, answer in pairs])
    if not tuned:
        return arrays
    tuning = open_model(arrays, None)
    examples = sequences(pairs, tuning.tokenizer, config=tuning.config, longest=_LONGEST)
    for epochs, rate in _COURSE:
        train(tuning, examples, epochs=epochs, learning_rate=rate, batch_size=_BATCH)
    return {**arrays, **tuning.update()}


def write_directory(arrays: dict[str, np.ndarray], folder: Path) -> None:
    """Write the model as its owner would have it: the Hub's layout, with a template for chats."""
    folder.mkdir()
    save_file(weights_of(arrays), folder / "model.safetensors")
    for name, data in documents_of(arrays).items():
        (folder / name).write_bytes(data)
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
