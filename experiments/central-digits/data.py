"""Owner's side: all of scikit-learn's handwritten digits, a fifth of them held out for testing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from sklearn.datasets import load_digits

_TEST_SHARE = 0.2


def shards(
    sites: Sequence[str], seed: int, settings: Mapping[str, bool | int | float | str]
) -> dict[str, dict[str, np.ndarray]]:
    """Return the one site's data: train and test pixels (float32 in 0..1, n x 64) and labels (int64)."""
    del settings
    (site,) = sites
    pixels, labels = load_digits(return_X_y=True)
    mixed = np.random.default_rng(seed).permutation(len(labels))
    test, train = np.split(mixed, [round(len(labels) * _TEST_SHARE)])
    return {
        site: {
            "train_pixels": (pixels[train] / 16).astype(np.float32),
            "train_labels": labels[train].astype(np.int64),
            "test_pixels": (pixels[test] / 16).astype(np.float32),
            "test_labels": labels[test].astype(np.int64),
        }
    }
