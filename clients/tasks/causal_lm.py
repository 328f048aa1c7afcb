"""Tuning of a causal language model where the instructions are: a low-rank adapter, or every tensor of the model.

The manifest says which: with an ``adapter`` its factors alone are trained and travel; without one all floating tensors
are. Settings (``run_config``): ``local-epochs``, ``learning-rate``, ``batch-size``, ``max-tokens``; and

- ``quantize = "nf4"``: the frozen base in 4 bits (QLoRA), on CUDA alone;
- ``noise-multiplier`` with ``clip-norm``, ``sampling-rate``, ``local-steps`` and ``delta``: DP-SGD (``dpsgd``), whose
  unit is one sequence. Then no metric but the number of examples is reported, since nothing would noise it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

import confed.client
from clients.tasks.instructions import Batch, batch_of, batches, sequences, unpack_texts
from clients.tasks.language import NONE, model_of, require_quantization, tokenizer_of
from clients.tasks.lora import adapted_modules, put_on, take_off
from confed.client.current import SiteAdapter
from confed.errors import LanguageModelError
from confed.model.adapter import Adapted, is_adapters
from confed.model.hub import CONFIG, settings_of, weights_of
from confed.model.weights import FLOATING, layout_of

Arrays = Mapping[str, np.ndarray]
Settings = Mapping[str, Any]


@dataclass(slots=True, kw_only=True)
class Tuning:
    """An opened model on this device, with what of it is trained; ``adapter`` is ``None`` where all of it is."""

    model: Any
    tokenizer: Any
    config: Mapping[str, Any]
    arrays: Arrays
    adapter: SiteAdapter | None
    modules: tuple[Adapted, ...]
    device: torch.device

    @property
    def padding(self) -> int:
        """The token that fills a batch; it is masked."""
        return self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id

    @property
    def trained(self) -> list[torch.nn.Parameter]:
        """The parameters that training changes."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def update(self) -> dict[str, np.ndarray]:
        """Return the tensors that travel."""
        if self.adapter is not None:
            return take_off(self.model, self.adapter.terms, modules=self.modules)
        state = self.model.state_dict()
        found: dict[str, np.ndarray] = {}
        for name in _floating(self.arrays):
            tensor = state[name].detach().to("cpu")
            # NumPy has no bfloat16: apps give it back as float32, as they are given it.
            found[name] = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
        return found


def open_model(
    arrays: Arrays, adapter: SiteAdapter | None, *, whole: bool = False, quantize: str = NONE, device: str = ""
) -> Tuning:
    """Return an opened version, ready to be tuned.

    Args:
        arrays: of the version, as ``confed.client.opened_model`` returns them.
        adapter: what of it is trained, or ``None`` for all of it.
        whole: give the adapter all its components, also where the site's own rank is smaller.
        quantize: ``none`` or ``nf4``.
        device: torch's name; CUDA where there is one, if it is not given.

    Raises:
        LanguageModelError: not a model that can be tuned here.
        AdapterError: an adapter that does not fit the base.
    """
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    require_quantization(quantize, device=where)
    modules = () if adapter is None else adapted_modules(arrays, adapter.terms)
    model: Any = model_of({name: array for name, array in arrays.items() if not is_adapters(name)})
    if quantize != NONE:
        from clients.tasks.quantized import quantized  # noqa: PLC0415 (needs CUDA's library)

        model = quantized(model, device=where)
    if adapter is None:
        # Training must not write into the opened version: the update's norm is measured from it.
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
            parameter.requires_grad_(requires_grad=True)
    else:
        rank = adapter.terms.rank if whole else adapter.rank
        model = put_on(model, arrays, adapter.terms, rank=rank, modules=modules)
    return Tuning(
        model=model.to(where),
        tokenizer=tokenizer_of(arrays),
        config=settings_of(arrays, CONFIG),
        arrays=arrays,
        adapter=adapter,
        modules=modules,
        device=where,
    )


def train(
    tuning: Tuning, examples: Sequence[tuple[list[int], int]], *, epochs: int, learning_rate: float, batch_size: int
) -> float:
    """Train with AdamW and return the mean loss of the last epoch over its batches."""
    optimizer = torch.optim.AdamW(tuning.trained, lr=learning_rate, weight_decay=0.0)
    tuning.model.train()
    mean = 0.0
    for _ in range(epochs):
        taken = batches(examples, size=batch_size, padding=tuning.padding, shuffled=True)
        losses = [step(tuning, batch, optimizer) for batch in taken]
        mean = float(torch.stack(losses).mean())
    return mean


def step(tuning: Tuning, batch: Batch, optimizer: torch.optim.Optimizer) -> torch.Tensor:
    """Take one step on a batch and return its loss: the mean over all tokens that count in it."""
    optimizer.zero_grad(set_to_none=True)
    loss = _forward(tuning, batch).loss
    loss.backward()
    optimizer.step()
    return loss.detach()


def evaluate(tuning: Tuning, examples: Sequence[tuple[list[int], int]], *, batch_size: int) -> float:
    """Return the mean loss over all tokens that count."""
    tuning.model.eval()
    total, tokens = 0.0, 0
    with torch.no_grad():
        for batch in batches(examples, size=batch_size, padding=tuning.padding, shuffled=False):
            counted = int((batch.targets[:, 1:] >= 0).sum())
            total += float(_forward(tuning, batch).loss) * counted
            tokens += counted
    return total / max(tokens, 1)


def sequence_losses_of(model: Any, tokens: torch.Tensor, mask: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return each sequence's mean loss over its own tokens, shape (sequences,)."""
    from clients.tasks.dpsgd import sequence_losses  # noqa: PLC0415 (Opacus, which only DP needs)

    logits = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
    return sequence_losses(logits[:, :-1], targets[:, 1:])


def train_with_privacy(tuning: Tuning, examples: Sequence[tuple[list[int], int]], settings: Settings) -> None:
    """Train with DP-SGD, whose unit is one sequence.

    Raises:
        ConfigError: terms that promise nothing.
        LanguageModelError: no adapter: of a whole model's layers (norms, embeddings) nobody computes such gradients.
    """
    from clients.tasks.dpsgd import LocalPrivacy, train_privately  # noqa: PLC0415 (Opacus, which only DP needs)

    if tuning.adapter is None:
        raise LanguageModelError("settings.noise-multiplier", expected="an adapter to train", got="the whole model")
    terms = LocalPrivacy(
        clip_norm=float(settings["clip-norm"]),
        noise_multiplier=float(settings["noise-multiplier"]),
        sampling_rate=float(settings["sampling-rate"]),
        steps=int(settings["local-steps"]),
        delta=float(settings["delta"]),
    )
    batch = batch_of(examples, padding=tuning.padding)
    tensors = [tensor.to(tuning.device) for tensor in (batch.tokens, batch.mask, batch.targets)]
    tuning.model.train()
    rate = float(settings["learning-rate"])
    train_privately(tuning.model, tensors, sequence_losses_of, terms=terms, learning_rate=rate)


def make_app(app: ClientApp, data: Callable[[Context], Arrays]) -> ClientApp:
    """Give a ClientApp its train and evaluate functions on the instructions that ``data`` returns."""

    @app.train()
    def _train(message: Message, context: Context) -> Message:
        settings = context.run_config
        tuning = _opened(context, whole=False)
        examples = _examples(tuning, data(context), settings, part="train")
        metrics: dict[str, int | float] = {"num-examples": len(examples)}
        if "noise-multiplier" in settings:
            train_with_privacy(tuning, examples, settings)
        else:
            metrics["loss"] = train(
                tuning,
                examples,
                epochs=int(settings["local-epochs"]),
                learning_rate=float(settings["learning-rate"]),
                batch_size=int(settings["batch-size"]),
            )
        arrays = ArrayRecord({name: Array(array) for name, array in tuning.update().items()})
        return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord({**metrics})}), reply_to=message)

    @app.evaluate()
    def _evaluate(message: Message, context: Context) -> Message:
        settings = context.run_config
        tuning = _opened(context, whole=True)
        examples = _examples(tuning, data(context), settings, part="test")
        metrics: dict[str, int | float] = {"num-examples": len(examples)}
        if "noise-multiplier" not in settings:
            metrics["loss"] = evaluate(tuning, examples, batch_size=int(settings["batch-size"]))
        return Message(RecordDict({"metrics": MetricRecord({**metrics})}), reply_to=message)

    return app


def _opened(context: Context, *, whole: bool) -> Tuning:
    quantize = str(context.run_config.get("quantize", NONE))
    arrays, adapter = confed.client.opened_model(context), confed.client.site_adapter(context)
    return open_model(arrays, adapter, whole=whole, quantize=quantize)


def _examples(tuning: Tuning, shard: Arrays, settings: Settings, *, part: str) -> list[tuple[list[int], int]]:
    longest = int(settings["max-tokens"])
    return sequences(unpack_texts(shard, part=part), tuning.tokenizer, config=tuning.config, longest=longest)


def _forward(tuning: Tuning, batch: Batch) -> Any:
    return tuning.model(
        input_ids=batch.tokens.to(tuning.device),
        attention_mask=batch.mask.to(tuning.device),
        labels=batch.targets.to(tuning.device),
        use_cache=False,
    )


def _floating(arrays: Arrays) -> list[str]:
    found = [tensor.name for tensor in layout_of(weights_of(arrays)).tensors if tensor.dtype in FLOATING]
    if not found:
        raise LanguageModelError("model", expected="a floating tensor", got="none")
    return found


client_app = make_app(ClientApp(mods=[confed.client.confidential]), confed.client.site_data)
