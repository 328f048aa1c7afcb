"""Owner's side: handwritten digits in equal, random shards; a fifth of them is public and nobody's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from sklearn.datasets import load_digits

_PUBLIC_SHARE = 0.2
_PUBLIC_SEED = 0


def shards(
    sites: Sequence[str], seed: int, settings: Mapping[str, bool | int | float | str]
) -> dict[str, dict[str, np.ndarray]]:
    """Return each site's shard: pixels (float32 in 0..1, n x 64) and labels (int64)."""
    del settings
    _, (pixels, labels) = _split()
    parts = np.array_split(np.random.default_rng(seed).permutation(len(labels)), len(sites))
    return {site: {"pixels": pixels[part], "labels": labels[part]} for site, part in zip(sites, parts, strict=True)}


def public_test() -> tuple[np.ndarray, np.ndarray]:
    """Return the digits that no site has: pixels and labels."""
    return _split()[0]


def _split() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    pixels, labels = load_digits(return_X_y=True)
    pixels, labels = (pixels / 16).astype(np.float32), labels.astype(np.int64)
    order = np.random.default_rng(_PUBLIC_SEED).permutation(len(labels))
    public, private = np.split(order, [round(len(labels) * _PUBLIC_SHARE)])
    return (pixels[public], labels[public]), (pixels[private], labels[private])
