"""Owners' side: each site has one department's requests, most of them about what that department has trouble with.

As arrays (``shards``), as tables (``tables``), or as JSON lines: ``python data.py FILE`` writes one department's.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from texts import DEPARTMENTS, Pair, departments_of, help_desk

from clients.tasks.instructions import pack_texts

_TEST_SHARE = 5
_LINES = 200

Settings = Mapping[str, bool | int | float | str]


def shards(sites: Sequence[str], seed: int, settings: Settings) -> dict[str, dict[str, np.ndarray]]:
    """Return each site's prompts and answers; every fifth is kept for evaluation."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for site, pairs in _pairs_of(sites, seed, settings).items():
        train = [pair for at, pair in enumerate(pairs) if at % _TEST_SHARE]
        found[site] = pack_texts(train, part="train") | pack_texts(pairs[::_TEST_SHARE], part="test")
    return found


def tables(sites: Sequence[str], seed: int, settings: Settings) -> dict[str, pa.Table]:
    """Return each site's prompts and answers as a table, a pair a row."""
    return {
        site: pa.table({"prompt": [pair[0] for pair in pairs], "answer": [pair[1] for pair in pairs]})
        for site, pairs in _pairs_of(sites, seed, settings).items()
    }


def lines_of(pairs: Sequence[Pair]) -> str:
    """Return prompts and answers as JSON lines: what ``confed data seal`` reads."""
    return "".join(json.dumps({"prompt": prompt, "answer": answer}) + "\n" for prompt, answer in pairs)


def _pairs_of(sites: Sequence[str], seed: int, settings: Settings) -> dict[str, list[Pair]]:
    count = int(settings["examples"])
    return {site: help_desk(department, count=count, seed=seed) for site, department in departments_of(sites).items()}


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(lines_of(help_desk(DEPARTMENTS[0], count=_LINES, seed=7)), encoding="utf-8")
