"""Which strategy a manifest names: one of Flower's, or a class of somebody's own with the code that came along."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aggregator.combine.flower_strategy import ServerOptimizer
from aggregator.combine.own_strategy import OwnStrategy
from confed.strategy import StrategySource

if TYPE_CHECKING:
    from collections.abc import Mapping

    from confed.manifest import Manifest

ServerStrategy = ServerOptimizer | OwnStrategy


def strategy_of(manifest: Manifest, files: Mapping[str, str]) -> ServerStrategy:
    """Return the strategy that a manifest names.

    Args:
        manifest: of the run.
        files: the code of a class of somebody's own, path -> text, as the launch document has it; not trusted.

    Raises:
        ManifestMismatchError: a name or a parameter that the enclave does not have, or other code than the manifest's.
        StrategyError: a class that the enclave cannot run.
    """
    if manifest.code.strategy is None:
        return ServerOptimizer(manifest.strategy)
    return OwnStrategy(manifest, manifest.code.strategy, StrategySource(files=files))
