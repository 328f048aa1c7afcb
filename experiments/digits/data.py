"""Owner's side: scikit-learn's handwritten digits, split over the sites by a Dirichlet draw (non-IID)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from sklearn.datasets import load_digits

_SMALLEST_SHARD = 40
_TEST_SHARE = 0.2


def shards(
    sites: Sequence[str], seed: int, settings: Mapping[str, bool | int | float | str]
) -> dict[str, dict[str, np.ndarray]]:
    """Return each site's shard: train and test pixels (float32 in 0..1, n x 64) and labels (int64).

    The share of each class that a site gets is drawn from Dirichlet(alpha); drawn again until every site has at
    least 40 images. A fifth of each shard is held out for testing.
    """
    pixels, labels = load_digits(return_X_y=True)
    generator = np.random.default_rng(seed)
    owners = _dirichlet(labels, len(sites), float(settings["dirichlet-alpha"]), generator)
    result: dict[str, dict[str, np.ndarray]] = {}
    for number, site in enumerate(sites):
        mine = generator.permutation(np.flatnonzero(owners == number))
        test, train = np.split(mine, [max(1, round(len(mine) * _TEST_SHARE))])
        result[site] = {
            "train_pixels": (pixels[train] / 16).astype(np.float32),
            "train_labels": labels[train].astype(np.int64),
            "test_pixels": (pixels[test] / 16).astype(np.float32),
            "test_labels": labels[test].astype(np.int64),
        }
    return result


def _dirichlet(labels: np.ndarray, sites: int, alpha: float, generator: np.random.Generator) -> np.ndarray:
    while True:
        owners = np.empty(len(labels), dtype=np.int64)
        for label in np.unique(labels):
            where = generator.permutation(np.flatnonzero(labels == label))
            cuts = (np.cumsum(generator.dirichlet([alpha] * sites)) * len(where)).astype(int)[:-1]
            for site, part in enumerate(np.split(where, cuts)):
                owners[part] = site
        if np.bincount(owners, minlength=sites).min() >= _SMALLEST_SHARD:
            return owners
