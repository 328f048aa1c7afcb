"""``confed model`` on a language model's directory: sealed whole, and opened as what its libraries load."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from confed.adapter import module_of
from confed.cli.model import open_model, seal_model
from confed.errors import ConfigError, MissingFileError, UsageError
from confed.keybroker.identity import OwnerHome
from confed.manifest import SIMULATION
from confed.model.adapter import ADAPTER_CONFIG
from confed.model.weights import unpack

sys.path.insert(0, str(Path(__file__).parents[1] / "clients"))

import language_world

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
EXPERIMENT = """
name = "tuned"
environment = "simulation"
[app]
client = "clients.tasks.causal_lm:client_app"
server = "server_app:app"
[run]
rounds = 2
seed = 7
[sites]
count = 3
[cohort]
least = 2
[data]
source = "app"
[update]
norm_bound = 100.0
weight_cap = 1000.0
[metrics]
clear = []
"""
ADAPTER = """
[adapter]
method = "stack"
rank = 2
alpha = 4
targets = ["q_proj", "v_proj"]
"""


@pytest.fixture
def owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("CONFED_HOME", str(tmp_path / "home"))
    OwnerHome.create("owner", environment=SIMULATION, now_ms=1_800_000_000_000).close()
    return "owner"


def seal(folder: Path, owner: str, adapter: Path | None) -> Path:
    target = folder.with_suffix(".sealed")
    seal_model(
        folder, owner=owner, recipients=(), target=target, force=False, least_cohort=2, total_rounds=5, adapter=adapter
    )
    return target


SERVER = """
from flwr.app import ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from confed.governor.strategy import ConfidentialStrategy
app = ServerApp()
@app.main()
def main(grid, context):
    strategy = ConfidentialStrategy(FedAvg(fraction_train=0.7))
    strategy.start(grid=grid, initial_arrays=lambda: ArrayRecord(), num_rounds=2)
"""


def config(folder: Path, text: str) -> Path:
    (folder / "config.toml").write_text(text)
    (folder / "server_app.py").write_text(SERVER)
    return folder / "config.toml"


def test_a_directory_comes_back_as_its_libraries_load_it(tmp_path: Path, owner: str) -> None:
    folder = language_world.hub_directory(tmp_path / "model")
    sealed = seal(folder, owner, config(tmp_path, EXPERIMENT + ADAPTER))
    open_model(sealed, owner=owner, target=tmp_path / "tuned", force=False, directory=True)
    assert (tmp_path / "tuned").stat().st_mode & 0o077 == 0
    before, after = (AutoModelForCausalLM.from_pretrained(each) for each in (folder, tmp_path / "tuned"))
    tokens = torch.randint(257, (1, 9))
    with torch.no_grad():
        assert torch.equal(before(tokens).logits, after(tokens).logits)
        with_adapter = peft.PeftModel.from_pretrained(after, tmp_path / "tuned" / "adapter")
        torch.testing.assert_close(with_adapter(tokens).logits, before(tokens).logits)
    # Room for each round's updates: two of the three sites, as the ServerApp's strategy says.
    assert with_adapter.peft_config["default"].r == 2 * 2 * 2
    text = "plötzlich"
    assert AutoTokenizer.from_pretrained(tmp_path / "tuned").encode(text) == language_world.byte_tokenizer().encode(
        text
    )


def test_what_was_trained_is_what_peft_computes(tmp_path: Path) -> None:
    from confed.cli.model_directory import write_directory  # noqa: PLC0415

    of = language_world.terms("product")
    arrays = language_world.start(tmp_path / "model", of)
    generator = np.random.default_rng(1)
    for name in arrays:
        if "lora_B" in name:
            arrays[name] = generator.normal(size=arrays[name].shape).astype(np.float32)
    write_directory(arrays, tmp_path / "tuned")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "tuned")
    tokens = torch.randint(257, (1, 9))
    from clients.tasks.causal_lm import SiteAdapter, open_model  # noqa: PLC0415

    ours = open_model(arrays, SiteAdapter(terms=of, rank=of.rank))
    with torch.no_grad():
        plain = base(tokens).logits.clone()
        tuned = peft.PeftModel.from_pretrained(base, tmp_path / "tuned" / "adapter")
        torch.testing.assert_close(tuned(tokens).logits, ours.model(tokens).logits)
        assert not torch.allclose(tuned(tokens).logits, plain)


def test_without_an_adapter_the_whole_model_is_sealed(tmp_path: Path, owner: str) -> None:
    folder = language_world.hub_directory(tmp_path / "model")
    sealed = seal(folder, owner, None)
    open_model(sealed, owner=owner, target=tmp_path / "plain.safetensors", force=False)
    arrays = unpack(bytearray((tmp_path / "plain.safetensors").read_bytes()))
    assert "hub/tokenizer.json" in arrays
    assert ADAPTER_CONFIG not in arrays


def test_what_cannot_be_sealed_is_refused_before_a_key_is_made(tmp_path: Path, owner: str) -> None:
    folder = language_world.hub_directory(tmp_path / "model")
    with pytest.raises(ConfigError, match="adapter"):
        seal(folder, owner, config(tmp_path, EXPERIMENT))
    with pytest.raises(ConfigError, match="c_attn"):
        seal(folder, owner, config(tmp_path, EXPERIMENT + ADAPTER.replace("q_proj", "c_attn")))
    with pytest.raises(ConfigError, match="rank"):
        seal(folder, owner, config(tmp_path, EXPERIMENT + ADAPTER.replace("rank = 2", "rank = 0")))
    with pytest.raises(UsageError, match="--adapter"):
        seal(folder / "model.safetensors", owner, config(tmp_path, EXPERIMENT + ADAPTER))
    (folder / "tokenizer.json").unlink()
    with pytest.raises(MissingFileError, match="tokenizer"):
        seal(folder, owner, None)
    assert not list(tmp_path.glob("*.sealed"))


def test_a_directory_is_never_written_over(tmp_path: Path, owner: str) -> None:
    sealed = seal(language_world.hub_directory(tmp_path / "model"), owner, None)
    (tmp_path / "tuned").mkdir()
    with pytest.raises(UsageError):
        open_model(sealed, owner=owner, target=tmp_path / "tuned", force=True, directory=True)
    assert not list((tmp_path / "tuned").iterdir())


def test_an_adapter_that_lies_beside_the_model_goes_on(tmp_path: Path, owner: str) -> None:
    from confed.cli.model_directory import write_directory  # noqa: PLC0415

    arrays = language_world.start(tmp_path / "model", language_world.terms("product", rank=2, alpha=4.0))
    learnt = {name: np.full_like(array, 0.25) for name, array in arrays.items() if module_of(name) is not None}
    write_directory(arrays | learnt, tmp_path / "tuned")
    product = ADAPTER.replace("stack", "product")
    sealed = seal(tmp_path / "tuned", owner, config(tmp_path, EXPERIMENT + product))
    open_model(sealed, owner=owner, target=tmp_path / "again.safetensors", force=False)
    again = unpack(bytearray((tmp_path / "again.safetensors").read_bytes()))
    assert {name: array.tobytes() for name, array in again.items()} == {
        name: array.tobytes() for name, array in (arrays | learnt).items()
    }
    sealed.unlink()
    for other in (ADAPTER, product.replace("rank = 2", "rank = 4"), product.replace("alpha = 4", "alpha = 8")):
        with pytest.raises(UsageError, match="begin anew"):
            seal(tmp_path / "tuned", owner, config(tmp_path, EXPERIMENT + other))
    (tmp_path / "tuned" / "adapter" / "adapter_model.safetensors").write_bytes(b"none")
    with pytest.raises(UsageError, match="as PEFT writes it"):
        seal(tmp_path / "tuned", owner, config(tmp_path, EXPERIMENT + product))
