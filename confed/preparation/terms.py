"""What a manifest says of data that sites sealed as files: contract, pipeline, and each site's own description."""

from __future__ import annotations

import re
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from confed.errors import ConfigError
from confed.preparation.contract import Contract
from confed.preparation.pipeline import Pipeline
from confed.preparation.statistics import StatisticsTerms

_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparationTerms:
    """What is done, in a client TEE and only there, to a site's table before the app sees it. No field is optional.

    Attributes:
        contract: what every site's table must look like.
        pipeline: cleaning and labels.
        statistics: what leaves each site with differential privacy; ``None`` for nothing.
        descriptions: site name -> SHA-256 of its signed dataset manifest (``confed.data.description``).
    """

    contract: Contract
    pipeline: Pipeline
    statistics: StatisticsTerms | None
    descriptions: Mapping[str, str]

    def __post_init__(self) -> None:
        self.pipeline.require(self.contract)
        if self.statistics is not None:
            self.statistics.require(self.contract)
        for site, digest in self.descriptions.items():
            if not _DIGEST.fullmatch(digest):
                raise ConfigError(f"preparation.descriptions.{site}", expected="a digest", got=digest[:64])

    def require(self, *, sites: AbstractSet[str]) -> None:
        """Check the terms against the rest of a manifest.

        Raises:
            ConfigError: descriptions of other sites than the manifest's.
        """
        if set(self.descriptions) != sites:
            expected = f"one for each of the {len(sites)} sites"
            raise ConfigError("preparation.descriptions", expected=expected, got=len(self.descriptions))
