"""From an experiment file to its manifest: every reference pinned by digest.

What the ServerApp will do is read from the app itself: it is run up to its strategy's ``start``, which tells the
strategy's parameters, the rounds and the starting arrays. This happens at the model owner's, never at the governor's.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Context, RecordDict

from confed import canonical
from confed.attestation.measurement import aggregator_image, client_image
from confed.errors import ConfigError, EmptyDatasetError
from confed.experiment.config import Experiment
from confed.experiment.starting import AdapterPlan, StartingModel, starting_model
from confed.experiment.tees import tee_policy
from confed.flower.arrays import numbers_of
from confed.flower.no_grid import NoGrid
from confed.governor.agreement import Start, catch_start
from confed.journey import Role
from confed.manifest import (
    FORMAT,
    CodeTerms,
    CohortTerms,
    Manifest,
    MetricTerms,
    ModelTerms,
    Party,
    SealedReference,
    Site,
    StrategyTerms,
    TrustTerms,
)
from confed.preparation.terms import PreparationTerms
from confed.strategy import StrategyCode, StrategySource

Arrays = Mapping[str, np.ndarray]
AGGREGATED_BY = (
    "FedAvg",
    "FedProx",
    "FedAvgM",
    "FedAdam",
    "FedYogi",
    "FedAdagrad",
    "QFedAvg",
    "FedBuff",
    "FedMedian",
    "FedTrimmedAvg",
    "Krum",
    "MultiKrum",
    "Bulyan",
    "GeometricMedian",
)
"""What ``aggregator/combine/flower_strategy.py`` permits; the library does not import the enclave."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """An experiment with what its apps said: not yet whose keys seal it."""

    experiment: Experiment
    config_directory: Path
    directory: Path
    start: Start
    model: StartingModel
    lock: str
    strategy_source: StrategySource | None

    @property
    def site_names(self) -> tuple[str, ...]:
        """Names of the sites' owners."""
        if self.experiment.sites.names:
            return self.experiment.sites.names
        digits = max(2, len(str(self.experiment.sites.count)))
        return tuple(f"site-{number:0{digits}d}" for number in range(1, self.experiment.sites.count + 1))

    @property
    def strategy(self) -> StrategyTerms:
        """The strategy that the ServerApp started."""
        return StrategyTerms(name=self.start.name, parameters=self.start.parameters)

    @property
    def strategy_code(self) -> StrategyCode | None:
        """The code of a strategy class of one's own, and what it may take."""
        if self.strategy_source is None:
            return None
        memory_bytes = self.experiment.app.strategy_memory_bytes
        return StrategyCode(digest=self.strategy_source.digest, memory_bytes=memory_bytes)

    def without_arrays(self) -> Prepared:
        """Return it without the starting weights: once they are sealed nobody here needs them."""
        start, model = replace(self.start, arrays=ArrayRecord()), replace(self.model, arrays={})
        return replace(self, start=start, model=model)

    @property
    def images(self) -> tuple[str, str]:
        """Measurements of the client's and the aggregator's code."""
        return client_image(self.directory, self.lock), aggregator_image(self.lock)


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedParts:
    """The sealed start, by site name the sealed datasets, and what is done to them if they are tables."""

    start: SealedReference
    datasets: Mapping[str, SealedReference]
    preparation: PreparationTerms | None


def prepare(experiment: Experiment, *, config_file: Path) -> Prepared:
    """Import an experiment's apps and run its ServerApp up to ``start``.

    Raises:
        ConfigError: an entry point that is not there, or a strategy that the enclave does not run.
    """
    directory = (config_file.parent / experiment.app.directory).resolve()
    with _importing(directory):
        entry_point("app.client", experiment.app.client)
        _require_settings(experiment)
        start = _caught(experiment)
    _require_strategy(start.name, experiment.app.strategy)
    if start.rounds != experiment.run.rounds:
        raise ConfigError(
            "run.rounds", expected=f"what the ServerApp asks for ({start.rounds})", got=experiment.run.rounds
        )
    return Prepared(
        experiment=experiment,
        config_directory=config_file.resolve().parent,
        directory=directory,
        start=start,
        model=starting_model(
            experiment.model,
            {name: numbers_of(array) for name, array in start.arrays.items()},
            adapter=_adapter_plan(experiment, _cohort(experiment, start)),
        ),
        lock=lock_digest(config_file),
        strategy_source=StrategySource.read(directory, start.name) if experiment.app.strategy else None,
    )


def _caught(experiment: Experiment) -> Start:
    server_app = entry_point("app.server", experiment.app.server)
    context = Context(run_id=0, node_id=0, node_config={}, state=RecordDict(), run_config=dict(experiment.run_config))
    return catch_start(lambda: server_app(grid=NoGrid(_too_early), context=context))


def updates_of_round(experiment: Experiment, *, config_file: Path) -> int:
    """Return how many sites' updates a round takes: the part of them that the ServerApp's strategy asks for.

    Raises:
        ConfigError: an entry point that is not there, or a ServerApp that starts no strategy.
    """
    directory = (config_file.parent / experiment.app.directory).resolve()
    with _importing(directory):
        start = _caught(experiment)
    return _cohort(experiment, start).taken(experiment.sites.count, purpose="train")


def call_shards(prepared: Prepared) -> dict[str, Any]:
    """Run the owners' function that makes each site's data.

    Raises:
        ConfigError: it returns other sites than asked for.
    """
    experiment = prepared.experiment
    with _importing(prepared.directory):
        function = entry_point("data.shards", experiment.data.shards)
        shards = function(list(prepared.site_names), experiment.run.seed, dict(experiment.run_config))
    if not isinstance(shards, dict) or set(shards) != set(prepared.site_names):
        raise ConfigError("data.shards", expected="one entry for each site", got=f"{len(shards)} entries")
    return shards


def make_shards(prepared: Prepared) -> dict[str, Arrays]:
    """Make each site's arrays, and check that every site has some.

    Raises:
        ConfigError: the function returns other sites than asked for.
        EmptyDatasetError: a site without arrays or rows.
    """
    shards: dict[str, Arrays] = call_shards(prepared)
    for site, arrays in shards.items():
        if not arrays or any(array.size == 0 for array in arrays.values()):
            raise EmptyDatasetError(f"dataset of {site}", expected="at least one row in each array", got="none")
    return shards


def resolve(
    prepared: Prepared,
    *,
    run: str,
    model_owner: Party,
    site_owners: Sequence[Party],
    sealed: SealedParts,
    anchors: Mapping[str, tuple[bytes, ...]],
) -> Manifest:
    """Return the manifest: the contract that owners approve.

    Raises:
        ConfigError: the experiment contradicts itself.
    """
    experiment, start = prepared.experiment, prepared.start
    client, aggregator = prepared.images
    cohort = _cohort(experiment, start)
    privacy = experiment.privacy
    tee = partial(tee_policy, experiment.tee, prepared.config_directory, now=datetime.now(UTC))
    return Manifest(
        format=FORMAT,
        name=experiment.name,
        scenario=experiment.scenario,
        run=run,
        environment=experiment.environment,
        rounds=experiment.run.rounds,
        seed=experiment.run.seed,
        max_attempts=experiment.run.max_attempts,
        data_source=experiment.data.source,
        preparation=sealed.preparation,
        model=ModelTerms(
            owner=model_owner,
            start=sealed.start,
            layout=prepared.model.layout.digest,
            trained=prepared.model.trained,
            tied=prepared.model.tied,
        ),
        sites=tuple(Site(owner=owner, dataset=sealed.datasets.get(owner.name)) for owner in site_owners),
        code=CodeTerms(
            client_app=experiment.app.client,
            client_image=client,
            aggregator_image=aggregator,
            lock=prepared.lock,
            strategy=prepared.strategy_code,
        ),
        strategy=prepared.strategy,
        cohort=cohort,
        settings=experiment.run_config,
        update=experiment.update.terms,
        metrics=MetricTerms(clear=experiment.metrics.clear, decimals=experiment.metrics.decimals),
        stop=experiment.stop.terms,
        aggregation=experiment.aggregation.terms,
        adapter=None if experiment.adapter is None else experiment.adapter.terms,
        compression=None if experiment.compression is None else experiment.compression.terms,
        privacy=None if privacy is None else privacy.terms(drawn=cohort.taken(len(site_owners), purpose="train")),
        serving=None,
        client_tee=tee(code=client, role=Role.CLIENT),
        aggregator_tee=tee(code=aggregator, role=Role.AGGREGATOR),
        trust=TrustTerms(anchors=anchors),
        train_config=start.train_config,
        evaluate_config=start.evaluate_config,
    )


def lock_digest(config_file: Path) -> str:
    """Return the digest of the nearest ``constraints.txt`` above an experiment file (of nothing, if there is none)."""
    for folder in config_file.resolve().parents:
        if (folder / "constraints.txt").is_file():
            return canonical.digest((folder / "constraints.txt").read_bytes())
    return canonical.digest(b"")


def entry_point(key: str, value: str) -> Callable[..., Any]:
    """Import ``module:attribute``.

    Raises:
        ConfigError: no such module or attribute.
    """
    module, _, attribute = value.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except ModuleNotFoundError as error:
        raise ConfigError(
            key, expected="a module that can be imported", got=f"{value} ({error.name} is not there)"
        ) from error
    if found is None:
        raise ConfigError(key, expected=f"an attribute of {module}", got=attribute)
    return found


def _require_settings(experiment: Experiment) -> None:
    """Let the ClientApp's module check the settings, where it has a function for it (``confed.client.settings``)."""
    module = importlib.import_module(experiment.app.client.partition(":")[0])
    check = getattr(module, "require_settings", None)
    if check is not None:
        check(experiment.run_config)


def _require_strategy(name: str, own: str) -> None:
    """Require a strategy that the enclave runs: one of its own, or the experiment's own class."""
    if own and name != own:
        raise ConfigError("app.strategy", expected=f"the strategy that the ServerApp starts ({name})", got=own)
    if not own and name not in AGGREGATED_BY:
        expected = f"one that the enclave runs ({', '.join(AGGREGATED_BY)}), or app.strategy = {name!r}"
        raise ConfigError("strategy", expected=expected, got=name)


def _cohort(experiment: Experiment, start: Start) -> CohortTerms:
    return CohortTerms(
        least=experiment.cohort.least,
        fraction_train=_fraction(start, "train"),
        fraction_evaluate=_fraction(start, "evaluate"),
        extra=experiment.cohort.extra,
    )


def _adapter_plan(experiment: Experiment, cohort: CohortTerms) -> AdapterPlan | None:
    if experiment.adapter is None:
        return None
    return AdapterPlan(
        terms=experiment.adapter.terms,
        rounds=experiment.run.rounds,
        updates=cohort.taken(experiment.sites.count, purpose="train"),
        seed=experiment.run.seed,
    )


def _fraction(start: Start, which: str) -> float:
    value = start.parameters.get(f"fraction_{which}", 1.0)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ConfigError(f"strategy.fraction_{which}", expected="a number", got=value)
    return float(value)


@contextmanager
def _importing(directory: Path) -> Generator[None]:
    """Let an experiment's own modules be imported from its directory, and forget them afterwards."""
    before = set(sys.modules)
    sys.path.insert(0, str(directory))
    try:
        yield
    finally:
        sys.path.remove(str(directory))
        for name in set(sys.modules) - before:
            origin = getattr(sys.modules[name], "__file__", None)
            if origin and Path(origin).parent == directory:
                del sys.modules[name]


def _too_early() -> ConfigError:
    return ConfigError("server", expected="no use of the grid before strategy.start()", got="one")
