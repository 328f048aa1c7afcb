"""Owner's side: scikit-learn's breast cancer table, split over the hospitals, each with three readers of its own.

Nobody at a hospital knows the diagnoses of its training rows: three readers looked at each, each errs in a way of its
own, and sometimes one of them did not look. The test rows' diagnoses are confirmed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from sklearn.datasets import load_breast_cancer

CLASSES = ("benign", "malignant")
FEATURES = ("mean radius", "mean texture", "mean smoothness", "mean concavity", "worst area", "worst symmetry")
_SEES_MALIGNANT = (0.95, 0.80, 0.60)
"""How often each reader sees what is malignant, and beside it how often what is benign."""
_SEES_BENIGN = (0.90, 0.85, 0.95)
_LOOKED = 0.9
_TEST_SHARE = 0.25


def shards(sites: Sequence[str], seed: int, settings: Mapping[str, bool | int | float | str]) -> dict[str, pa.Table]:
    """Return each hospital's table: measurements, readings, and the diagnosis where it is confirmed."""
    del settings
    loaded = load_breast_cancer()
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(loaded.target))
    places = [list(loaded.feature_names).index(name) for name in FEATURES]
    result: dict[str, pa.Table] = {}
    for site, mine in zip(sites, np.array_split(order, len(sites)), strict=True):
        malignant = loaded.target[mine] == 0
        test = generator.random(len(mine)) < _TEST_SHARE
        columns = {
            name.replace(" ", "_"): loaded.data[mine, place] for name, place in zip(FEATURES, places, strict=True)
        }
        for number in range(len(_SEES_MALIGNANT)):
            columns[f"reader_{number + 1}"] = _readings(malignant, number, generator)
        diagnosis = [CLASSES[int(ill)] if known else None for ill, known in zip(malignant, test, strict=True)]
        columns["confirmed"] = pa.array(diagnosis, pa.string())
        columns["ward"] = pa.array([f"ward {ward}" for ward in generator.integers(1, 9, len(mine))])
        result[site] = pa.table(columns)
    return result


def _readings(malignant: np.ndarray, number: int, generator: np.random.Generator) -> pa.Array:
    right = np.where(malignant, _SEES_MALIGNANT[number], _SEES_BENIGN[number])
    seen = malignant == (generator.random(len(malignant)) < right)
    looked = generator.random(len(malignant)) < _LOOKED
    return pa.array(
        [CLASSES[int(ill)] if there else None for ill, there in zip(seen, looked, strict=True)], pa.string()
    )
