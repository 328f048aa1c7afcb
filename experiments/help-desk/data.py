"""Owners' side: each site has one department's requests, most of them about what that department has trouble with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from texts import departments_of, help_desk

from clients.tasks.instructions import pack_texts

_TEST_SHARE = 5


def shards(
    sites: Sequence[str], seed: int, settings: Mapping[str, bool | int | float | str]
) -> dict[str, dict[str, np.ndarray]]:
    """Return each site's prompts and answers; every fifth is kept for evaluation."""
    count = int(settings["examples"])
    found: dict[str, dict[str, np.ndarray]] = {}
    for site, department in departments_of(sites).items():
        pairs = help_desk(department, count=count, seed=seed)
        test = pairs[::_TEST_SHARE]
        train = [pair for at, pair in enumerate(pairs) if at % _TEST_SHARE]
        found[site] = pack_texts(train, part="train") | pack_texts(test, part="test")
    return found
