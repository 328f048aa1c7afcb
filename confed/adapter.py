"""Low-rank adapters: which tensors of a model they are, and how the adapters of many sites become one.

Beside a matrix ``W`` (out, in) of the base an adapter has ``A`` (rank, in) and ``B`` (out, rank); the tuned model
computes with ``W + (alpha / rank) B A``, and only the factors travel. How they are combined is the manifest's choice:

- ``single``: one site trains both, and they are taken as they are.
- ``ffa``: A stays as the start has it, and sites train B. Means of B are means of products, so every strategy serves,
  and central privacy: noise on B stays linear.
- ``product``: sites train both; the next version has the best factors of this rank for the weighted mean of products
  ``sum w_i B_i A_i``. A site may hold only the first components: its own rank.
- ``stack``: sites train both, always from the start's; nothing is lost: the factors of every round and site lie side by
  side in ``stack_A`` and ``stack_B``, whose rank is rounds x updates of a round x rank.

Means of A and of B apart are refused for more than one site: their product is not the mean of the products.

Sources: Hu et al., "LoRA" (2021); Sun et al., "Improving LoRA in Privacy-preserving Federated Learning" (2024), section
3: FFA-LoRA; Bai et al., "Federated Fine-tuning of Large Language Models under Heterogeneous Tasks and Client Resources"
(2024), section 3: the product, ranks of one's own; Wang et al., "FLoRA" (2024), section 3: stacking.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from confed.errors import ConfigError

SINGLE, FFA, PRODUCT, STACK = "single", "ffa", "product", "stack"
METHODS = (SINGLE, FFA, PRODUCT, STACK)
LARGEST_RANK = 1024
LARGEST_STACK = 4096
"""Most components that a stacked adapter may come to have: above, what it saves beside the matrix is gone."""
PREFIX = "base_model.model."
"""What PEFT puts before the name of an adapted module in its files."""
_FACTORS = {"A": "lora_A", "B": "lora_B"}


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterTerms:
    """A low-rank adapter and how it is combined; ``null`` in a manifest without one. No field is optional.

    Attributes:
        method: ``single``, ``ffa``, ``product`` or ``stack``.
        rank: of every pair of factors, at most 1024.
        alpha: what the product is scaled by, over the rank.
        dropout: on what goes into an adapter while it is trained.
        targets: last parts of the names of the modules that have one (``q_proj``).
        ranks: of every site's own adapter, by site name, at most ``rank``; ``None`` where all have that.

    Raises:
        ConfigError: a value out of its range.
    """

    method: str
    rank: int
    alpha: float
    dropout: float
    targets: tuple[str, ...]
    ranks: Mapping[str, int] | None

    def __post_init__(self) -> None:
        _require(self.method in METHODS, "method", ", ".join(METHODS), self.method)
        _require(1 <= self.rank <= LARGEST_RANK, "rank", f"from 1 to {LARGEST_RANK}", self.rank)
        _require(math.isfinite(self.alpha) and self.alpha > 0, "alpha", "above 0", self.alpha)
        _require(0 <= self.dropout < 1, "dropout", "from 0, below 1", self.dropout)
        _require(bool(self.targets), "targets", "at least one module", "none")
        for target in self.targets:
            _require(bool(target) and target == target.strip(), "targets", "names of modules", repr(target))
        _require(len(set(self.targets)) == len(self.targets), "targets", "each module once", "one twice")
        if self.ranks is not None:
            _require(self.method in (PRODUCT, STACK), "ranks", f"one rank for all with {self.method}", "one a site")
            for site, rank in self.ranks.items():
                _require(1 <= rank <= self.rank, f"ranks.{site}", f"from 1 to {self.rank}", rank)

    @property
    def scaling(self) -> float:
        """What the product of the factors is multiplied by, whatever a site's own rank is."""
        return self.alpha / self.rank

    @property
    def told(self) -> str:
        """The terms in words."""
        how = {
            SINGLE: "both factors of one site",
            FFA: "one factor trained, averaged",
            PRODUCT: "combined by the product",
            STACK: "stacked, nothing lost",
        }[self.method]
        ranks = "" if self.ranks is None else f", sites' own from {min(self.ranks.values())}"
        return f"low-rank adapter, rank {self.rank}{ranks}, on {', '.join(self.targets)}: {how}"

    @property
    def recombines(self) -> bool:
        """True where the enclave makes new factors of the sites' products; otherwise the strategy combines tensors."""
        return self.method in (PRODUCT, STACK)

    def rank_of(self, site: str) -> int:
        """Return the rank of a site's adapter."""
        return self.rank if self.ranks is None else self.ranks[site]

    def targets_module(self, module: str) -> bool:
        """Return whether a module has an adapter."""
        return any(module == target or module.endswith(f".{target}") for target in self.targets)

    def trained_names(self, modules: Collection[str]) -> tuple[str, ...]:
        """Return the names of the tensors that travel, for adapted modules."""
        factors = ("B",) if self.method == FFA else ("A", "B")
        return tuple(factor_name(module, factor) for module in modules for factor in factors)

    def stacked_rank(self, *, rounds: int, updates: int) -> int:
        """Return how many components a stacked adapter can come to have.

        Raises:
            ConfigError: more than ``LARGEST_STACK``.
        """
        found = rounds * updates * self.rank
        expected = f"rounds x updates of a round x rank of at most {LARGEST_STACK} with {STACK}"
        _require(found <= LARGEST_STACK, "rank", expected, found)
        return found

    def require(  # noqa: PLR0913 (what a contract says of it)
        self,
        *,
        trained: Collection[str],
        tied: Collection[str],
        sites: Collection[str],
        strategy: str,
        private: bool,
        compressed: bool,
        at_once: bool,
        rounds: int,
        updates: int,
    ) -> None:
        """Check the terms against the rest of a contract.

        Raises:
            ConfigError: tensors that travel beside the factors, one factor of a pair where both do, a method that the
                number of sites, the strategy, compression or privacy rules out, or a stack beyond its bound.
        """
        modules = sorted({module_of(name) or "" for name in trained})
        wanted = set(self.trained_names(modules))
        stray = sorted(set(trained) ^ wanted)
        # One line: the first that is too many or missing.
        got = stray[0][:80] if stray else ""
        if "" in modules or stray:
            raise ConfigError("model.trained", expected=f"the adapter's factors alone ({self.method})", got=got)
        for module in modules:
            _require(self.targets_module(module), "targets", "those of the factors that travel", module[:80])
        _require(not set(tied) & set(trained), "targets", "no tied tensor", "one")
        if self.method == SINGLE and len(sites) > 1:
            expected = f"{FFA}, {PRODUCT} or {STACK} for {len(sites)} sites: means of A and B apart do not multiply"
            raise ConfigError("adapter.method", expected=expected, got=SINGLE)
        if self.ranks is not None:
            _require(
                set(self.ranks) == set(sites), "ranks", "a rank for every site", ", ".join(sorted(self.ranks))[:80]
            )
        if private:
            _require(self.method == FFA, "method", f"{FFA} with privacy: noise on both factors multiplies", self.method)
        if self.recombines:
            _require(at_once, "method", f"{SINGLE} or {FFA} in one TEE, {FFA} in batches", self.method)
            _require(strategy in ("FedAvg", "FedProx"), "method", f"{FFA} with {strategy}", self.method)
            _require(not compressed, "method", f"{FFA} or {SINGLE} with compression", self.method)
        if self.method == STACK:
            self.stacked_rank(rounds=rounds, updates=updates)


def factor_name(module: str, factor: str) -> str:
    """Return the name of a module's factor ``A`` or ``B``, as PEFT writes it into its files."""
    return f"{PREFIX}{module}.{_FACTORS[factor]}.weight"


def stack_name(module: str, factor: str) -> str:
    """Return the name of what is stacked of a module's factor."""
    return f"{PREFIX}{module}.stack_{factor}.weight"


def module_of(name: str) -> str | None:
    """Return the module that a factor belongs to, or ``None`` for another tensor."""
    for factor in _FACTORS.values():
        ending = f".{factor}.weight"
        if name.startswith(PREFIX) and name.endswith(ending):
            return name[len(PREFIX) : -len(ending)]
    return None


def _require(holds: bool, name: str, expected: object, got: object) -> None:  # noqa: FBT001
    if not holds:
        raise ConfigError(f"adapter.{name}", expected=expected, got=got)
