"""Owner's side: tiny shards of scikit-learn's handwritten digits, drawn with overlaps, for any number of sites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from sklearn.datasets import load_digits

_TRAIN, _TEST = 2, 1


def shards(
    sites: Sequence[str], seed: int, settings: Mapping[str, bool | int | float | str]
) -> dict[str, dict[str, np.ndarray]]:
    """Return each site's shard: two images to train on and one to test on, as ``experiments/digits`` names them.

    The data set has 1,797 images, so with more sites than a third of that, an image lies at several of them.
    """
    del settings
    pixels, labels = load_digits(return_X_y=True)
    pixels, labels = (pixels / 16).astype(np.float32), labels.astype(np.int64)
    generator = np.random.default_rng(seed)
    result: dict[str, dict[str, np.ndarray]] = {}
    for site in sites:
        train, test = np.split(generator.choice(len(labels), _TRAIN + _TEST, replace=False), [_TRAIN])
        result[site] = {
            "train_pixels": pixels[train],
            "train_labels": labels[train],
            "test_pixels": pixels[test],
            "test_labels": labels[test],
        }
    return result
