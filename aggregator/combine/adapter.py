"""Low-rank adapters of many sites become one: by their product, or side by side, as the manifest says.

What the sites' adapters stand for is ``sum w_i B_i A_i``, with the weights' shares ``w_i``. Both rules open every
update whole, with the checks of every pass; an adapter is small beside its base.

- ``product``: the best factors of the manifest's rank for that sum. It is never written out where its rank is below
  both its sides: of the stacked factors ``[w_1 B_1 … w_n B_n]`` and ``[A_1; …; A_n]``, each is split by QR, and the
  small matrix between them by SVD. B gets the singular values, A has orthonormal rows: so A lets gradients through to B
  also where a singular value is 0. What is beyond the rank is lost.
- ``stack``: nothing is lost: the factors take the components of ``stack_A`` and ``stack_B`` that belong to the round,
  and the sites' own begin anew, with the start's A and with zeros for B.

Sources: Bai et al., "Federated Fine-tuning of Large Language Models under Heterogeneous Tasks and Client Resources"
(2024), section 3; Wang et al., "FLoRA" (2024), section 3; Golub and Van Loan, "Matrix Computations" (2013), section 5.4
(SVD of a product by QR of its factors).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from aggregator.combine.fold import factors
from aggregator.combine.opened import Opened, OpenedUpdates
from aggregator.combine.passes import WrongSenders
from aggregator.combine.weights import Weights
from confed.adapter import PRODUCT, STACK, AdapterTerms, factor_name, stack_name
from confed.errors import AdapterError
from confed.model.adapter import Adapted, adapter_of, require_own_rank

if TYPE_CHECKING:
    from aggregator.combine.passes import Updates
    from confed.errors import ConfedError
    from confed.manifest import Manifest
    from confed.model.weights import Layout

Array = NDArray[Any]

MOST_OPENED_BYTES = 8 * 1024**3
"""How much the opened adapters of a round take together at most."""


def rule_of(manifest: Manifest, whole: Layout, *, round_number: int) -> AdapterRule | None:
    """Return the rule of a round that makes new factors; ``None`` where the strategy combines what travels.

    Raises:
        AdapterError: an adapter that does not fit the base.
    """
    terms = manifest.adapter
    if terms is None:
        return None
    modules = adapter_of(whole, terms, trained=manifest.model.trained)
    if terms.method == STACK:
        _require_room(manifest, terms, whole, modules)
    if not terms.recombines:
        return None
    updates = manifest.cohort.taken(len(manifest.sites), purpose="train")
    return AdapterRule(terms, modules, first_component=(round_number - 1) * updates * terms.rank)


class AdapterRule:
    """One round's rule.

    Args:
        terms: the manifest's.
        modules: those that have an adapter.
        first_component: where in a stack the round's own begin.
    """

    least = 1

    def __init__(self, terms: AdapterTerms, modules: Sequence[Adapted], *, first_component: int) -> None:
        self._terms = terms
        self._modules = tuple(modules)
        self._first = first_component
        self._stacked: list[tuple[str, Any, Array]] = []

    def combine(self, updates: Updates) -> dict[str, Array]:
        """Return the next version's factors, as numbers.

        Raises:
            WrongSenders: a pass found somebody wrong, or an adapter of more than its site's rank.
            SizeError: adapters that take more memory together than is permitted.
        """
        return OpenedUpdates(MOST_OPENED_BYTES, self._made).combine(updates)

    def place(self, version: Weights) -> None:
        """Write what is stacked into the next version, whose memory is its own."""
        arrays = version.arrays()
        for name, place, values in self._stacked:
            arrays[name][place] = values

    def _made(self, updates: Updates, opened: Opened) -> dict[str, Array]:
        entries = updates.contributions
        given = [opened.take_out(at) for at in range(len(entries))]
        self._require_ranks([entry.site for entry in entries], given)
        shares = factors([entry.weight for entry in entries])
        base = updates.base.numbers().arrays()
        by_product = self._terms.method == PRODUCT
        made = self._products(given, shares) if by_product else self._side_by_side(given, shares, base)
        return dict(Weights.of({name: made[name] for name in base}, updates.base.layout).flats)

    def _require_ranks(self, sites: Sequence[str], given: Sequence[Mapping[str, Array]]) -> None:
        failed: dict[str, ConfedError] = {}
        for site, arrays in zip(sites, given, strict=True):
            try:
                require_own_rank(arrays, self._modules, self._terms.rank_of(site), site=site)
            except AdapterError as error:
                failed[site] = error
        if failed:
            raise WrongSenders(failed)

    def _products(self, given: Sequence[Mapping[str, Array]], shares: Sequence[float]) -> dict[str, Array]:
        made: dict[str, Array] = {}
        for each in self._modules:
            name_a, name_b = (factor_name(each.module, factor) for factor in ("A", "B"))
            pairs = [(arrays[name_b], arrays[name_a]) for arrays in given]
            last, first = product_factors(pairs, shares, rank=self._terms.rank)
            made |= {name_a: first.astype(np.float32), name_b: last.astype(np.float32)}
        return made

    def _side_by_side(
        self, given: Sequence[Mapping[str, Array]], shares: Sequence[float], base: Mapping[str, Array]
    ) -> dict[str, Array]:
        made: dict[str, Array] = {}
        self._stacked = []
        for each in self._modules:
            name_a, name_b = (factor_name(each.module, factor) for factor in ("A", "B"))
            for at, (arrays, share) in enumerate(zip(given, shares, strict=True)):
                first = self._first + at * self._terms.rank
                place = slice(first, first + self._terms.rank)
                weighted = (arrays[name_b].astype(np.float64) * share).astype(np.float32)
                self._stacked.append((stack_name(each.module, "A"), place, arrays[name_a]))
                self._stacked.append((stack_name(each.module, "B"), (slice(None), place), weighted))
            made |= {name_a: base[name_a], name_b: np.zeros_like(base[name_b])}
        return made


def product_factors(
    pairs: Sequence[tuple[Array, Array]], shares: Sequence[float], *, rank: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (B, A) of a rank whose product is nearest to the sum of ``share * B_i A_i``, in the Frobenius norm.

    Args:
        pairs: (B_i, A_i) of shapes (out, r_i) and (r_i, in).
        shares: of each, not negative.
        rank: of the result; what is beyond the matrix's own sides is zeros in both.

    The rows of A are orthonormal, and each has its largest number positive, so that the signs do not depend on LAPACK.
    """
    last = np.hstack([share * b.astype(np.float64) for (b, _), share in zip(pairs, shares, strict=True)])
    first = np.vstack([a.astype(np.float64) for _, a in pairs])
    if first.shape[0] < min(last.shape[0], first.shape[1]):
        outer, upper = np.linalg.qr(last)
        inner, lower = np.linalg.qr(first.T)
        left, values, right = np.linalg.svd(upper @ lower.T)
        left, right = outer @ left, right @ inner.T
    else:  # the product is no larger than its factors
        left, values, right = np.linalg.svd(last @ first, full_matrices=False)
    kept = min(rank, len(values))
    signs = np.sign(right[np.arange(kept), np.argmax(np.abs(right[:kept]), axis=1)])
    result_b, result_a = np.zeros((last.shape[0], rank)), np.zeros((rank, first.shape[1]))
    result_b[:, :kept] = left[:, :kept] * (values[:kept] * signs)
    result_a[:kept] = right[:kept] * signs[:, None]
    return result_b, result_a


def _require_room(manifest: Manifest, terms: AdapterTerms, whole: Layout, modules: Sequence[Adapted]) -> None:
    updates = manifest.cohort.taken(len(manifest.sites), purpose="train")
    rank = terms.stacked_rank(rounds=manifest.rounds, updates=updates)
    shapes = {tensor.name: tensor.shape for tensor in whole.tensors if tensor.dtype == "F32"}
    for each in modules:
        for name, shape in each.stacked(rank).items():
            if shapes.get(name) != shape:
                raise AdapterError(f"tensor {name[:80]}", expected=f"F32 {list(shape)}", got=shapes.get(name, "none"))
