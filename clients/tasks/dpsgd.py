"""DP-SGD in the client, through Opacus: what an update tells about any one example of a site's data is bounded.

This is privacy against everybody outside the client TEE, the aggregator and the model owner included; its unit is one
example, while the manifest's ``privacy`` protects a whole site. A task calls ``train_privately`` in place of its loop.

- Every step takes each example with probability ``sampling_rate``, by coins of its own; clips its gradient to
  ``clip_norm``; adds noise of ``noise_multiplier * clip_norm`` to their sum. Coins and noise come from the operating
  system's generator: torch's own is seeded in a client from the manifest, so everybody could compute it again.
- The loss is a vector, one number for each example, from that example alone. In language models one example is one
  sequence, and its loss the mean over its own tokens (``sequence_losses``): a mean over all tokens of a batch would let
  one long sequence change the weight of every other, by more than clipping and noise account for.
- Models whose layers mix the examples of a batch (batch normalisation) are refused by Opacus.

Not promised: that the number of examples is hidden (the mean divides by the expected size of a batch).

Source: Abadi et al., "Deep Learning with Differential Privacy" (2016), algorithm 1; Opacus 1.6.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from opacus import GradSampleModule
from opacus.accountants import RDPAccountant
from opacus.optimizers import DPOptimizer

from confed.errors import ConfigError, ShapeError
from confed.privacy.noise import GaussianNoise

Losses = Callable[..., torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalPrivacy:
    """DP-SGD's terms: per-example clip norm, noise in units of it, sampling rate of a step, steps a round, delta."""

    clip_norm: float
    noise_multiplier: float
    sampling_rate: float
    steps: int
    delta: float

    def __post_init__(self) -> None:
        for name in ("clip_norm", "noise_multiplier"):
            value = getattr(self, name)
            _require(math.isfinite(value) and value > 0, name, "above 0", value)
        _require(0 < self.sampling_rate <= 1, "sampling_rate", "above 0 and at most 1", self.sampling_rate)
        _require(self.steps >= 1, "steps", "at least 1", self.steps)
        _require(0 < self.delta < 1, "delta", "between 0 and 1", self.delta)

    def epsilon(self, *, trainings: int) -> float:
        """Return what so many calls of ``train_privately`` on the same data spend together, by Opacus' accountant.

        A repeated attempt at a round is a call more.
        """
        accountant = RDPAccountant()
        accountant.history = [(self.noise_multiplier, self.sampling_rate, self.steps * trainings)]
        return float(accountant.get_epsilon(delta=self.delta))


def train_privately(
    model: torch.nn.Module,
    examples: Sequence[torch.Tensor],
    losses: Losses,
    *,
    terms: LocalPrivacy,
    learning_rate: float,
) -> None:
    """Train ``model`` in place, for ``terms.steps`` steps.

    Args:
        model: of layers that Opacus knows, none of which mixes examples.
        examples: tensors that share their first axis, one entry for each example.
        losses: of (model, *batch) returns the losses of the batch, shape (examples,).
        terms: what is clipped, noised and sampled.
        learning_rate: of plain SGD.

    Raises:
        ShapeError: tensors of different lengths, or anything else than one loss for each example.
    """
    count = len(examples[0])
    if any(len(tensor) != count for tensor in examples) or count == 0:
        raise ShapeError("examples", expected="the same number in every tensor", got=[len(each) for each in examples])
    secret = GaussianNoise()
    wrapped = GradSampleModule(model, loss_reduction="sum")
    try:
        optimizer = _SecretNoise(
            torch.optim.SGD(wrapped.parameters(), lr=learning_rate),
            noise_multiplier=terms.noise_multiplier,
            max_grad_norm=terms.clip_norm,
            expected_batch_size=1,
            loss_reduction="mean",
        )
        optimizer.expected_batch_size = terms.sampling_rate * count  # pyright: ignore[reportAttributeAccessIssue]
        optimizer.secret = secret
        for _ in range(terms.steps):
            optimizer.zero_grad()
            taken = torch.tensor([at for at in range(count) if secret.coin(terms.sampling_rate)], dtype=torch.long)
            gradients(wrapped, [tensor[taken] for tensor in examples], losses)
            optimizer.step()
    finally:
        wrapped.to_standard_module()


def gradients(wrapped: GradSampleModule, batch: Sequence[torch.Tensor], losses: Losses) -> None:
    """Leave each example's own gradient in ``grad_sample`` of every parameter; none where the batch is empty.

    Raises:
        ShapeError: anything else than one loss for each example.
    """
    if len(batch[0]) == 0:
        for parameter in wrapped.parameters():
            parameter.grad_sample = parameter.new_zeros((0, *parameter.shape))  # pyright: ignore[reportAttributeAccessIssue]
        return
    found = losses(wrapped, *batch)
    if found.shape != (len(batch[0]),):
        raise ShapeError("losses", expected=f"one an example ({len(batch[0])})", got=tuple(found.shape))
    found.sum().backward()


def sequence_losses(logits: torch.Tensor, targets: torch.Tensor, *, ignored: int = -100) -> torch.Tensor:
    """Return each sequence's mean cross-entropy over its own tokens, shape (sequences,); 0 for one without any.

    Args:
        logits: shape (sequences, tokens, vocabulary).
        targets: token numbers, shape (sequences, tokens).
        ignored: the number of a place that does not count (padding).
    """
    each = torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets, ignore_index=ignored, reduction="none")
    counted = (targets != ignored).sum(dim=1)
    return each.sum(dim=1) / counted.clamp(min=1)


class _SecretNoise(DPOptimizer):
    """Opacus' optimizer with noise from a cryptographic generator in place of torch's seeded one."""

    secret: GaussianNoise

    def add_noise(self) -> None:
        for parameter in self.params:
            total: Any = parameter.summed_grad  # pyright: ignore[reportAttributeAccessIssue]
            values = total.detach().to("cpu", torch.float64).numpy().reshape(-1).copy()
            self.secret.add_to(values, sigma=self.noise_multiplier * self.max_grad_norm)
            parameter.grad = torch.from_numpy(values).to(total).view_as(parameter)


def _require(holds: bool, name: str, expected: str, got: object) -> None:  # noqa: FBT001
    if not holds:
        raise ConfigError(f"local privacy {name}", expected=expected, got=got)
