"""DP-SGD in a client: per-example clipping, noise nobody can compute again, and a sensitivity that holds."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from opacus import GradSampleModule
from opacus.accountants import RDPAccountant

from clients.tasks import dpsgd
from clients.tasks.dpsgd import LocalPrivacy, gradients, sequence_losses, train_privately
from confed.errors import ConfigError, ShapeError
from confed.privacy import accounting
from confed.privacy.terms import FixedClip, PrivacyTerms, SamplingTerms

# Inputs of a model need no gradient, which torch tells Opacus' hooks about.
pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing")
TERMS = LocalPrivacy(clip_norm=1.0, noise_multiplier=1.5, sampling_rate=0.25, steps=8, delta=1e-5)
VOCABULARY, PADDING = 7, -100


class Silent:
    def coin(self, probability: float) -> bool:
        return True

    def add_to(self, values: object, *, sigma: float) -> None:
        assert sigma > 0


def classified(model: torch.nn.Module, pixels: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(model(pixels), labels, reduction="none")


def data(count: int = 12) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(count, 5), torch.randint(3, (count,))]


def test_epsilon_is_opacus_own_and_dp_accounting_s() -> None:
    accountant = RDPAccountant()
    for _ in range(8 * 3):
        accountant.step(noise_multiplier=1.5, sample_rate=0.25)
    assert TERMS.epsilon(trainings=3) == pytest.approx(accountant.get_epsilon(delta=1e-5))
    other = PrivacyTerms(
        mechanism="gaussian",
        adjacency="zero-out",
        clip=FixedClip(norm=1.0),
        noise_multiplier=1.5,
        weighting="uniform",
        denominator=1.0,
        sampling=SamplingTerms(by="enclave", rate=0.25),
        delta=1e-5,
        epsilon_budget=1.0,
    )
    assert TERMS.epsilon(trainings=3) == pytest.approx(accounting.epsilon(other, 24), rel=0.02)


@pytest.mark.parametrize(
    "change",
    [{"clip_norm": 0.0}, {"noise_multiplier": float("nan")}, {"sampling_rate": 1.5}, {"steps": 0}, {"delta": 1.0}],
)
def test_terms_that_promise_nothing_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        dataclasses.replace(TERMS, **change)


def test_each_example_s_gradient_is_clipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dpsgd, "GaussianNoise", Silent)
    examples = data(1)
    examples[0] *= 1000  # one example that would move the model far
    model = torch.nn.Linear(5, 3)
    before = torch.cat([parameter.detach().clone().ravel() for parameter in model.parameters()])
    terms = dataclasses.replace(TERMS, sampling_rate=1.0, steps=1)
    train_privately(model, examples, classified, terms=terms, learning_rate=1.0)
    after = torch.cat([parameter.detach().ravel() for parameter in model.parameters()])
    assert float((after - before).norm()) <= 1.0 + 1e-5


def trained(seed: int) -> torch.Tensor:
    examples = data()
    torch.manual_seed(1)
    model = torch.nn.Linear(5, 3)
    torch.manual_seed(seed)  # as a client does, with a seed that the manifest tells everybody
    train_privately(model, examples, classified, terms=TERMS, learning_rate=0.1)
    return model.weight.detach().clone()


def test_the_seed_that_everybody_knows_does_not_give_the_noise_away() -> None:
    assert not torch.equal(trained(2), trained(2))


def test_noise_has_the_spread_that_is_accounted_for() -> None:
    wide = torch.nn.Linear(200, 100, bias=False)
    torch.nn.init.zeros_(wide.weight)
    terms = dataclasses.replace(TERMS, steps=1, noise_multiplier=3.0, clip_norm=2.0, sampling_rate=0.5)
    nothing = [torch.zeros(4, 200), torch.zeros(4, dtype=torch.long)]
    train_privately(wide, nothing, classified, terms=terms, learning_rate=1.0)
    assert float(wide.weight.detach().std()) == pytest.approx(3.0 * 2.0 / (0.5 * 4), rel=0.05)


def test_a_step_without_examples_is_noised_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dpsgd.GaussianNoise, "coin", lambda *_: False)
    model = torch.nn.Linear(5, 3)
    before = model.weight.detach().clone()
    train_privately(model, data(), classified, terms=TERMS, learning_rate=0.1)
    assert not torch.equal(before, model.weight)


def test_it_learns() -> None:
    torch.manual_seed(3)
    pixels = torch.randn(400, 5)
    labels = (pixels[:, 0] > 0).long()
    model = torch.nn.Linear(5, 2)
    terms = LocalPrivacy(clip_norm=1.0, noise_multiplier=1.0, sampling_rate=0.2, steps=60, delta=1e-4)
    train_privately(model, [pixels, labels], classified, terms=terms, learning_rate=1.0)
    assert float((model(pixels).argmax(1) == labels).float().mean()) > 0.85
    assert not any(hasattr(parameter, "grad_sample") for parameter in model.parameters())


def mean_of_all(model: torch.nn.Module, pixels: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return classified(model, pixels, labels).mean()


def test_a_loss_that_is_not_one_an_example_is_refused() -> None:
    with pytest.raises(ShapeError):
        train_privately(torch.nn.Linear(5, 3), data(), mean_of_all, terms=TERMS, learning_rate=0.1)


def test_a_model_that_mixes_examples_is_refused() -> None:
    mixing = torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.BatchNorm1d(3))
    with pytest.raises(NotImplementedError):
        train_privately(mixing, data(), classified, terms=TERMS, learning_rate=0.1)


class Language(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(VOCABULARY, 6)
        self.head = torch.nn.Linear(6, VOCABULARY)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.embedding(tokens))


def per_sequence(model: torch.nn.Module, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return sequence_losses(model(tokens), targets)


def per_token_of_the_batch(model: torch.nn.Module, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The usual mean over all tokens of a batch, split into its sequences' parts."""
    counted = (targets != PADDING).sum(dim=1)
    return sequence_losses(model(tokens), targets) * counted / counted.sum()


def corpus(lengths: list[int]) -> list[torch.Tensor]:
    torch.manual_seed(4)
    longest = max(lengths)
    tokens = torch.randint(VOCABULARY, (len(lengths), longest))
    targets = torch.randint(VOCABULARY, (len(lengths), longest))
    for row, length in enumerate(lengths):
        targets[row, length:] = PADDING
    return [tokens, targets]


def clipped_sum(model: torch.nn.Module, batch: list[torch.Tensor], losses: dpsgd.Losses, clip: float) -> torch.Tensor:
    """The sum that noise is added to."""
    wrapped = GradSampleModule(copy.deepcopy(model), loss_reduction="sum")
    gradients(wrapped, batch, losses)
    each = torch.cat([parameter.grad_sample.flatten(1) for parameter in wrapped.parameters()], dim=1)
    return (each * (clip / each.norm(dim=1, keepdim=True)).clamp(max=1)).sum(dim=0)


def moved(losses: dpsgd.Losses, clip: float) -> float:
    """How far one long sequence moves the sum over twenty short ones."""
    torch.manual_seed(5)
    model, batch = Language(), corpus([1] * 20 + [400])
    without = [tensor[:-1] for tensor in batch]
    return float((clipped_sum(model, batch, losses, clip) - clipped_sum(model, without, losses, clip)).norm())


def test_a_sequence_moves_the_sum_by_at_most_the_clip_norm_where_losses_are_its_own() -> None:
    for clip in (0.01, 0.1, 1.0):
        assert moved(per_sequence, clip) <= clip * (1 + 1e-5)


def test_a_mean_over_the_batch_s_tokens_breaks_that() -> None:
    assert moved(per_token_of_the_batch, 0.03) > 2 * 0.03


def test_a_sequence_s_loss_is_the_mean_over_its_own_tokens() -> None:
    tokens, targets = corpus([3, 5, 0])
    logits = Language()(tokens).detach()
    found = sequence_losses(logits, targets).detach()
    assert float(found[0]) == pytest.approx(float(torch.nn.functional.cross_entropy(logits[0, :3], targets[0, :3])))
    assert float(found[2]) == 0.0
