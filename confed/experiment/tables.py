"""Sites' tables in a simulation: each owner made here checks its own against the contract, and seals it."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from confed.data.croissant import About
from confed.data.described import description_file
from confed.data.owner import Tables, check_tables, read_tables, seal_tables, tables_of, taken_up
from confed.errors import ConfigError, FloorError
from confed.experiment.resolution import Prepared, call_shards
from confed.keybroker.identity import OwnerHome
from confed.keybroker.vault import KeyFloors
from confed.manifest import SealedReference
from confed.preparation.documents import read_contract, read_pipeline, read_statistics
from confed.preparation.statistics import StatisticsTerms
from confed.preparation.terms import PreparationTerms

SEALED_SUFFIX = ".sealed"


def seal_tables_of(
    prepared: Prepared, sites: Sequence[OwnerHome], *, floors: KeyFloors, folder: Path, files: dict[str, Path]
) -> tuple[dict[str, SealedReference], PreparationTerms]:
    """Seal every site's table; return the references and the manifest's terms, and add what is sealed to ``files``.

    What its owner sealed before (``confed data seal``) is taken as it is, under the key and the floors that it has.

    Raises:
        DatasetError: a table that cannot be read or breaks the contract.
        MissingFileError, RefusedError: a sealed file that is not there, is not this owner's, or not for such a run.
        ConfigError: contract, pipeline and tables that do not fit each other.
    """
    table = prepared.experiment.data
    contract = read_contract(prepared.config_directory / table.contract)
    pipeline = read_pipeline(prepared.config_directory / table.pipeline)
    pipeline.require(contract)
    statistics = statistics_of(prepared)
    if statistics is not None:
        statistics.require(contract)
        floors = permitting(floors, statistics)
    about = About(
        name=prepared.experiment.name,
        description=table.description,
        licence=table.licence,
        derived_from=(table.derived_from,),
        published=datetime.datetime.now(datetime.UTC).date().isoformat(),
    )
    references: dict[str, SealedReference] = {}
    descriptions: dict[str, str] = {}
    made = call_shards(prepared) if table.shards else {}
    for home in sites:
        name = home.party.name
        if table.files.endswith(SEALED_SUFFIX):
            path = _file_of(prepared, name)
            sealed = taken_up(path, home=home, contract=contract, pipeline=pipeline.digest)
            _require_permitted(home.floors(sealed.reference.key_id), prepared, what=f"the key of {path.name}")
            references[name], descriptions[name] = sealed.reference, sealed.description
            files |= {sealed.reference.digest: path, sealed.description: description_file(path)}
            continue
        data = _made(made[name], name) if made else _read(prepared, name)
        check_tables(data, contract, what=f"dataset of {name}")
        sealed_path, description_path = folder / f"{name}.sealed", folder / f"{name}.dataset.json"
        sealed = seal_tables(
            data,
            home=home,
            contract=contract,
            pipeline=pipeline.digest,
            about=about,
            floors=floors,
            path=sealed_path,
            description_path=description_path,
        )
        references[name], descriptions[name] = sealed.reference, sealed.description
        files |= {sealed.reference.digest: sealed_path, sealed.description: description_path}
    return references, PreparationTerms(
        contract=contract, pipeline=pipeline, statistics=statistics, descriptions=descriptions
    )


def statistics_of(prepared: Prepared) -> StatisticsTerms | None:
    """Return the statistics that an experiment asks for, if it does.

    Raises:
        ConfigError, MissingFileError: a file that is not one of statistics.
    """
    name = prepared.experiment.data.statistics
    return read_statistics(prepared.config_directory / name) if name else None


def permitting(floors: KeyFloors, statistics: StatisticsTerms) -> KeyFloors:
    """Return floors of an owner made here: its data key permits what this one run asks for."""
    return dataclasses.replace(floors, statistics_epsilon=statistics.epsilon)


def _read(prepared: Prepared, name: str) -> Tables:
    data = prepared.experiment.data
    contract = read_contract(prepared.config_directory / data.contract)
    return read_tables(_file_of(prepared, name), contract)


def _require_permitted(floors: KeyFloors, prepared: Prepared, *, what: str) -> None:
    """Say before anything runs what the owner's broker would say to the TEE: the key was sealed for other runs.

    Raises:
        FloorError: names the first floor that the experiment is below.
    """
    experiment = prepared.experiment
    scenario, least = experiment.scenario, experiment.cohort.least
    statistics = statistics_of(prepared)
    epsilon = 0.0 if statistics is None else statistics.epsilon
    for name, holds, expected, got in (
        ("environment", floors.environment == experiment.environment, floors.environment, experiment.environment),
        (
            "scenario",
            scenario in floors.scenarios,
            f"one of {', '.join(floors.scenarios)}, as it was sealed for",
            scenario,
        ),
        ("cohort.least", floors.least_cohort <= least, f"at least {floors.least_cohort}, as it was sealed for", least),
        ("statistics", epsilon <= floors.statistics_epsilon, f"epsilon up to {floors.statistics_epsilon:g}", epsilon),
    ):
        if not holds:
            raise FloorError(f"{name} for {what}", expected=expected, got=got)


def _file_of(prepared: Prepared, name: str) -> Path:
    return prepared.config_directory / prepared.experiment.data.files.replace("{site}", name)


def _made(table: Any, name: str) -> Tables:
    if not isinstance(table, pa.Table):
        raise ConfigError("data.shards", expected=f"a pyarrow.Table for {name}", got=type(table).__name__)
    return tables_of(table, what=f"dataset of {name}")
