"""A causal language model in memory, and its adapter: what libraries do from files, from opened arrays alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from language_world import hub_directory, start, terms, tiny_llama
from opacus import GradSampleModule
from transformers import AutoModelForCausalLM

from clients.tasks import causal_lm
from clients.tasks.causal_lm import (
    Tuning,
    evaluate,
    open_model,
    sequence_losses_of,
    train,
    train_with_privacy,
)
from clients.tasks.dpsgd import gradients
from clients.tasks.instructions import batch_of, pack_texts, sequences, unpack_texts
from clients.tasks.language import model_of, tokenizer_of
from clients.tasks.lora import take_off
from confed.adapter import STACK, factor_name, stack_name
from confed.client.current import SiteAdapter
from confed.errors import AdapterError, ConfigError, LanguageModelError, SequenceLengthError, SettingError
from confed.model.adapter import with_adapter
from confed.model.hub import read_directory
from confed.model.weights import pack, unpack

pytestmark = [
    pytest.mark.filterwarnings("ignore:Full backward hook is firing"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),
]
Arrays = dict[str, np.ndarray]
PAIRS = [("the door?", " push it"), ("no paper", " open the tray and close it"), ("a", " b")]
MODULE = "model.layers.0.self_attn.q_proj"


def opened(arrays: Arrays) -> Arrays:
    """Return arrays as a TEE has them: views of one writable buffer."""
    return unpack(bytearray(b"".join(pack(arrays))))


def adapted(folder: Path, method: str = "ffa", *, rank: int = 4, **changes: Any) -> tuple[Arrays, SiteAdapter]:
    of = terms(method, **changes)
    return opened(start(folder, of)), SiteAdapter(terms=of, rank=rank)


def examples_of(tuning: Tuning) -> list[tuple[list[int], int]]:
    return sequences(PAIRS, tuning.tokenizer, config=tuning.config, longest=64)


@pytest.fixture
def tuning(tmp_path: Path) -> Tuning:
    torch.manual_seed(0)
    return open_model(*adapted(tmp_path / "model"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [False, True])
def test_a_model_in_memory_is_the_one_in_the_files(tied: bool, dtype: torch.dtype, tmp_path: Path) -> None:
    folder = hub_directory(tmp_path / "model", tied=tied, dtype=dtype)
    arrays = opened(read_directory(folder))
    made, plain = model_of(arrays), AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    tokens = torch.randint(257, (2, 20))
    with torch.no_grad():
        assert torch.equal(made(tokens).logits, plain(tokens).logits)
    for name, parameter in made.named_parameters():
        assert parameter.data_ptr() == arrays[name].ctypes.data  # no number was copied
        assert not parameter.requires_grad


def test_the_tokenizer_is_the_one_in_the_files(tmp_path: Path) -> None:
    found = tokenizer_of(opened(read_directory(hub_directory(tmp_path / "model"))))
    text = "Straße 7: plötzlich 日本"
    assert found.decode(found.encode(text, add_special_tokens=False)) == text
    assert (found.eos_token, found.eos_token_id) == ("<end>", 0)


def test_an_adapter_that_begins_changes_nothing(tuning: Tuning, tmp_path: Path) -> None:
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    tokens = torch.randint(257, (2, 20))
    with torch.no_grad():
        assert torch.equal(tuning.model(tokens).logits, plain(tokens).logits)


@pytest.mark.parametrize(("method", "factors"), [("ffa", "B"), ("product", "AB"), ("single", "AB")])
def test_training_changes_the_adapter_alone(method: str, factors: str, tmp_path: Path) -> None:
    arrays, adapter = adapted(tmp_path / "model", method)
    before = {name: array.tobytes() for name, array in arrays.items()}
    made = open_model(arrays, adapter)
    examples = examples_of(made)
    torch.manual_seed(1)
    first = evaluate(made, examples, batch_size=2)
    train(made, examples, epochs=6, learning_rate=0.1, batch_size=3)
    assert evaluate(made, examples, batch_size=2) < first - 0.1
    update = made.update()
    assert sorted({name.split("lora_")[1][0] for name in update}) == sorted(factors)
    assert len(made.trained) == len(update)
    assert all(array.shape == arrays[name].shape for name, array in update.items())
    assert any(array.tobytes() != before[name] for name, array in update.items())
    assert {name: array.tobytes() for name, array in arrays.items()} == before


def test_a_whole_model_is_trained_on_copies(tmp_path: Path) -> None:
    arrays = opened(read_directory(hub_directory(tmp_path / "model", tied=True)))
    before = {name: array.tobytes() for name, array in arrays.items()}
    made = open_model(arrays, None)
    train(made, examples_of(made), epochs=2, learning_rate=0.01, batch_size=2)
    update = made.update()
    assert set(update) == {name for name in arrays if not name.startswith("hub/")}
    assert all(array.tobytes() != before[name] for name, array in update.items())
    assert {name: array.tobytes() for name, array in arrays.items()} == before


def test_a_smaller_rank_is_padded_and_scaled_alike(tmp_path: Path) -> None:
    arrays, _ = adapted(tmp_path / "model", "product")
    for name in list(arrays):
        if "lora_B" in name:
            arrays[name][:, :2] = 0.1
    of = terms("product", ranks={"one": 2, "two": 4})
    small, whole = open_model(arrays, SiteAdapter(terms=of, rank=2)), open_model(arrays, SiteAdapter(terms=of, rank=4))
    tokens = torch.randint(257, (1, 9))
    with torch.no_grad():  # the components that the small one lacks are zero
        torch.testing.assert_close(small.model(tokens).logits, whole.model(tokens).logits)
    update = small.update()
    assert not update[factor_name(MODULE, "A")][2:].any()
    assert not update[factor_name(MODULE, "B")][:, 2:].any()
    assert update[factor_name(MODULE, "A")][:2].any()


def test_what_is_stacked_counts_beside_the_base(tmp_path: Path) -> None:
    arrays, adapter = adapted(tmp_path / "model", STACK)
    a, b = arrays[stack_name(MODULE, "A")], arrays[stack_name(MODULE, "B")]
    a[:3], b[:, :3] = 0.1, 0.2
    plain = tiny_llama()
    with torch.no_grad():
        plain.get_submodule(MODULE).weight += 2.0 * torch.from_numpy(b @ a)
        tokens = torch.randint(257, (1, 9))
        before = arrays[f"{MODULE}.weight"].tobytes()
        made = open_model(arrays, adapter)
        torch.testing.assert_close(made.model(tokens).logits, plain(tokens).logits)
    assert arrays[f"{MODULE}.weight"].tobytes() == before


def test_each_sequence_s_gradient_is_its_own(tmp_path: Path) -> None:
    made = open_model(*adapted(tmp_path / "model", "product"))
    for parameter in made.trained:  # B begins with zeros, where A would have no gradient
        parameter.data += 0.05 * torch.randn_like(parameter)
    batch = batch_of(examples_of(made), padding=made.padding)
    tensors = [batch.tokens, batch.mask, batch.targets]
    one_by_one: list[list[torch.Tensor]] = []
    for row in range(len(PAIRS)):
        loss = sequence_losses_of(made.model, *(tensor[row : row + 1] for tensor in tensors))
        one_by_one.append(list(torch.autograd.grad(loss.sum(), made.trained)))
    wrapped = GradSampleModule(made.model, loss_reduction="sum")
    gradients(wrapped, tensors, sequence_losses_of)
    for at, parameter in enumerate(made.trained):
        for row in range(len(PAIRS)):
            torch.testing.assert_close(parameter.grad_sample[row], one_by_one[row][at], rtol=1e-4, atol=1e-6)
    wrapped.to_standard_module()


def test_a_sequence_s_loss_is_the_mean_over_its_own_tokens(tuning: Tuning) -> None:
    examples = examples_of(tuning)
    batch = batch_of(examples, padding=tuning.padding)
    together = sequence_losses_of(tuning.model, batch.tokens, batch.mask, batch.targets)
    for row, example in enumerate(examples):
        alone = batch_of([example], padding=tuning.padding)
        plain = tuning.model(input_ids=alone.tokens, attention_mask=alone.mask, labels=alone.targets).loss
        torch.testing.assert_close(together[row], plain)


PRIVATE = {"clip-norm": 1.0, "noise-multiplier": 0.5, "sampling-rate": 0.5, "local-steps": 2, "delta": 1e-3, "learning-rate": 0.1}  # fmt: skip


def test_an_adapter_is_trained_with_privacy(tuning: Tuning) -> None:
    before = take_off(tuning.model, terms(), modules=tuning.modules)
    train_with_privacy(tuning, examples_of(tuning), PRIVATE)
    after = tuning.update()
    assert all(after[name].tobytes() != array.tobytes() for name, array in before.items())
    with pytest.raises(ConfigError):
        train_with_privacy(tuning, examples_of(tuning), {**PRIVATE, "noise-multiplier": 0.0})


def test_a_whole_model_is_not_trained_with_privacy(tmp_path: Path) -> None:
    made = open_model(opened(read_directory(hub_directory(tmp_path / "model"))), None)
    with pytest.raises(SettingError, match="noise-multiplier"):
        train_with_privacy(made, examples_of(made), PRIVATE)


def test_texts_are_packed_and_unpacked() -> None:
    arrays = pack_texts([*PAIRS, ("ü", "")], part="train")
    assert unpack_texts(arrays, part="train") == [*PAIRS, ("ü", "")]
    for wrong in (
        {},
        {**arrays, "train_ends": arrays["train_ends"][:-1]},
        {**arrays, "train_bytes": arrays["train_bytes"][1:]},
    ):
        with pytest.raises(LanguageModelError):
            unpack_texts(wrong, part="train")


def test_a_sequence_beyond_the_context_is_refused(tuning: Tuning) -> None:
    with pytest.raises(SequenceLengthError) as refused:
        sequences([("a" * 96, "b")], tuning.tokenizer, config=tuning.config, longest=1000)
    assert (refused.value.expected, refused.value.got) == ("at most 96", 98)


def with_config(arrays: Arrays, **changes: Any) -> Arrays:
    settings = json.loads(arrays["hub/config.json"].tobytes()) | changes
    settings = {name: value for name, value in settings.items() if value is not None}
    return {**arrays, "hub/config.json": np.frombuffer(json.dumps(settings).encode(), dtype=np.uint8)}


def without(arrays: Arrays, name: str) -> Arrays:
    return {other: array for other, array in arrays.items() if other != name}


MODELS: dict[str, Any] = {
    "an unknown architecture": lambda arrays: with_config(arrays, model_type="mine"),
    "no architecture": lambda arrays: with_config(arrays, model_type=None),
    "code of its own": lambda arrays: with_config(arrays, auto_map={"AutoModelForCausalLM": "x.Y"}),
    "no language model": lambda arrays: with_config(arrays, model_type="vit"),
    "quantized weights": lambda arrays: with_config(arrays, quantization_config={"quant_method": "gptq"}),
    "no configuration": lambda arrays: without(arrays, "hub/config.json"),
    "no tokenizer": lambda arrays: without(arrays, "hub/tokenizer.json"),
    "a tokenizer that is none": lambda arrays: {**arrays, "hub/tokenizer.json": np.frombuffer(b"{}", dtype=np.uint8)},
    "a tensor that is missing": lambda arrays: without(arrays, "model.norm.weight"),
    "a tensor too many": lambda arrays: {**arrays, "more": np.zeros(2, np.float32)},
    "a tensor of another shape": lambda arrays: {**arrays, "model.norm.weight": np.zeros(3, np.float32)},
}


@pytest.mark.parametrize("what", MODELS)
def test_what_is_no_model_is_refused(what: str, tmp_path: Path) -> None:
    arrays = opened(read_directory(hub_directory(tmp_path / "model")))
    with pytest.raises(LanguageModelError) as refused:
        open_model(MODELS[what](arrays), None)
    assert "\n" not in str(refused.value)


def test_four_bits_without_the_device_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    arrays, adapter = adapted(tmp_path / "model")
    with pytest.raises(SettingError, match="CUDA"):
        open_model(arrays, adapter, quantize="nf4")
    with pytest.raises(SettingError, match="nf4"):
        open_model(arrays, adapter, quantize="int3")


def test_an_adapter_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    arrays, adapter = adapted(tmp_path / "model")
    name = factor_name(MODULE, "A")
    for wrong in ({**arrays, name: np.zeros((4, 31), np.float32)}, without(arrays, name)):
        with pytest.raises(AdapterError):
            open_model(wrong, adapter)
    bare = {name: array for name, array in arrays.items() if "lora" not in name}
    with pytest.raises(AdapterError):
        open_model(bare, adapter)


def test_targets_that_the_model_does_not_have_are_refused(tmp_path: Path) -> None:
    arrays = read_directory(hub_directory(tmp_path / "model"))
    with pytest.raises(ConfigError, match="c_attn"):
        with_adapter(arrays, terms(targets=("q_proj", "c_attn")), rounds=1, updates=1, seed=1)
    made = opened(with_adapter(arrays, terms(targets=("embed_tokens",)), rounds=1, updates=1, seed=1)[0])
    with pytest.raises(LanguageModelError, match="Embedding"):
        open_model(made, SiteAdapter(terms=terms(targets=("embed_tokens",)), rank=4))


def test_nothing_looks_for_a_hub() -> None:
    import huggingface_hub.constants  # noqa: PLC0415

    assert causal_lm.NONE == "none"
    assert huggingface_hub.constants.HF_HUB_OFFLINE
