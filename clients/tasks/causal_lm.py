"""Tuning of a causal language model where the instructions are: a low-rank adapter, or every tensor of the model.

The manifest says which: with an ``adapter`` its factors alone are trained and travel; without one all floating tensors
are. The site's data are packed texts or a sealed table (``instructions.site_pairs``: ``test-every``, ``prompt-column``,
``answer-column``). Settings (``run_config``): ``local-epochs``, ``learning-rate``, ``batch-size``, ``max-tokens``; and

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
from clients.tasks.instructions import Batch, Pair, TableTerms, batch_of, batches, sequences, site_pairs
from clients.tasks.language import NF4, NONE, model_of, require_quantization, tokenizer_of
from clients.tasks.lora import adapted_modules, put_on, take_off
from confed.client.current import SiteAdapter
from confed.client.settings import Settings as Strict
from confed.client.settings import refuse
from confed.errors import LanguageModelError
from confed.model.adapter import Adapted, is_adapters
from confed.model.hub import CONFIG, settings_of, weights_of
from confed.model.weights import FLOATING, layout_of

Arrays = Mapping[str, np.ndarray]
Settings = Mapping[str, Any]

_LARGEST_DELTA = 0.1
"""Of DP-SGD: above it the promise says nothing."""


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
        SettingError: quantization that is not there, or not on this device.
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
        SettingError: terms that promise nothing; or no adapter: of a whole model's layers (norms, embeddings) nobody
            computes such gradients.
    """
    from clients.tasks.dpsgd import LocalPrivacy, train_privately  # noqa: PLC0415 (Opacus, which only DP needs)

    if tuning.adapter is None:
        refuse("noise-multiplier", expected="none, or an adapter to train", got="the whole model")
    terms = LocalPrivacy(**_privacy(Strict(settings)))
    batch = batch_of(examples, padding=tuning.padding)
    tensors = [tensor.to(tuning.device) for tensor in (batch.tokens, batch.mask, batch.targets)]
    tuning.model.train()
    rate = float(settings["learning-rate"])
    train_privately(tuning.model, tensors, sequence_losses_of, terms=terms, learning_rate=rate)


def _privacy(read: Strict) -> dict[str, Any]:
    return {
        "clip_norm": read.number("clip-norm", above=0),
        "noise_multiplier": read.number("noise-multiplier", above=0),
        "sampling_rate": read.number("sampling-rate", above=0, most=1),
        "steps": read.whole("local-steps", least=1),
        "delta": read.number("delta", above=0, most=_LARGEST_DELTA),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How to tune; every one of these is a setting of the experiment, and so in the manifest.

    ``private``: by DP-SGD, whose steps are counted in place of epochs.
    """

    epochs: int
    learning_rate: float
    batch_size: int
    longest: int
    quantize: str
    private: bool

    @classmethod
    def of(cls, settings: Settings) -> Terms:
        """Return the terms that an experiment's settings name.

        Raises:
            SettingError: one that is missing, or has a value that tuning does not take.
        """
        read = Strict(settings)
        private = "noise-multiplier" in read
        if private:
            _privacy(read)
        return cls(
            epochs=0 if private else read.whole("local-epochs", least=1),
            learning_rate=read.number("learning-rate", above=0),
            batch_size=read.whole("batch-size", least=1),
            longest=read.whole("max-tokens", least=2),
            quantize=read.choice("quantize", (NONE, NF4), default=NONE),
            private=private,
        )


def require_settings(settings: Settings) -> None:
    """Check an experiment's settings before anything is sealed.

    Raises:
        SettingError: one that is missing, or has a value that tuning does not take.
    """
    Terms.of(settings)
    if "test-every" in settings:
        TableTerms.of(Strict(settings))


def make_app(app: ClientApp, pairs: Callable[[Context, str], Sequence[Pair]]) -> ClientApp:
    """Give a ClientApp its train and evaluate functions on what ``pairs`` returns for ``train`` and ``test``."""

    @app.train()
    def _train(message: Message, context: Context) -> Message:
        terms = Terms.of(context.run_config)
        tuning = _opened(context, terms, whole=False)
        examples = _examples(tuning, pairs(context, "train"), terms)
        metrics: dict[str, int | float] = {"num-examples": len(examples)}
        if terms.private:
            train_with_privacy(tuning, examples, context.run_config)
        else:
            metrics["loss"] = train(
                tuning,
                examples,
                epochs=terms.epochs,
                learning_rate=terms.learning_rate,
                batch_size=terms.batch_size,
            )
        arrays = ArrayRecord({name: Array(array) for name, array in tuning.update().items()})
        return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord({**metrics})}), reply_to=message)

    @app.evaluate()
    def _evaluate(message: Message, context: Context) -> Message:
        terms = Terms.of(context.run_config)
        tuning = _opened(context, terms, whole=True)
        examples = _examples(tuning, pairs(context, "test"), terms)
        metrics: dict[str, int | float] = {"num-examples": len(examples)}
        if not terms.private:
            metrics["loss"] = evaluate(tuning, examples, batch_size=terms.batch_size)
        return Message(RecordDict({"metrics": MetricRecord({**metrics})}), reply_to=message)

    return app


def _opened(context: Context, terms: Terms, *, whole: bool) -> Tuning:
    arrays, adapter = confed.client.opened_model(context), confed.client.site_adapter(context)
    return open_model(arrays, adapter, whole=whole, quantize=terms.quantize)


def _examples(tuning: Tuning, pairs: Sequence[Pair], terms: Terms) -> list[tuple[list[int], int]]:
    return sequences(pairs, tuning.tokenizer, config=tuning.config, longest=terms.longest)


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


client_app = make_app(ClientApp(mods=[confed.client.confidential]), site_pairs)
