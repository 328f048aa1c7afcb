"""Owners on this machine: made by themselves in simulation, so that a newcomer needs one command.

Each has a home of its own (identity key, broker key, vault, ledger); what they do here is what they would do apart:
seal, approve by signature, and run a broker.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from confed import canonical
from confed.attestation.tee.simulated import PROFILE, SimulatedPlatform
from confed.errors import ConfigError, MissingPackageError
from confed.experiment.resolution import Arrays, Prepared, SealedParts, make_shards
from confed.experiment.tees import trust_anchors
from confed.files import PUBLIC, write_whole
from confed.journey import Kind, Purpose
from confed.keybroker.identity import OwnerHome, confed_home
from confed.keybroker.vault import KeyFloors
from confed.manifest import FILES, SEALED, SIMULATION, Manifest, SealedReference, Unchecked
from confed.model.weights import layout_of, pack
from confed.preparation.terms import PreparationTerms
from confed.privacy.floor import PrivacyFloor
from confed.records.trust import Trust
from confed.scenario import Scenario
from confed.sealing.derivation import container_key
from confed.sealing.recipients import RecipientEntry
from confed.sealing.sealer import Draft, seal_to_file
from confed.statement import Signed

MODEL_OWNER = "model-owner"
_AT_ONCE = 8
Item = TypeVar("Item")
Result = TypeVar("Result")
_CODE = Unchecked(unchecked="simulation: the code under development changes with every run")
_COUNTED = Unchecked(unchecked="simulation: every made site counts")


@dataclass(frozen=True, slots=True, kw_only=True)
class Owners:
    """The parties of one experiment, the simulated hardware on this machine, and the anchors that they trust."""

    home: Path
    model: OwnerHome
    sites: tuple[OwnerHome, ...]
    platform: SimulatedPlatform
    anchors: Mapping[str, tuple[bytes, ...]]

    @property
    def every(self) -> tuple[OwnerHome, ...]:
        """The model owner, then the sites."""
        return (self.model, *self.sites)


def load_owners(prepared: Prepared, *, home: Path | None) -> Owners:
    """Load the experiment's owners; in simulation make those that are not there, and note whom to trust.

    Raises:
        ConfigError: not in simulation.
        MissingFileError: a part of an owner is gone.
    """
    folder = confed_home(home)
    simulated = prepared.experiment.environment == SIMULATION
    if not simulated:
        raise ConfigError(
            "environment",
            expected="simulation: this machine can make simulated evidence only, which production refuses",
            got=prepared.experiment.environment,
        )
    now = time.time_ns() // 1_000_000
    homes = _side_by_side(lambda name: _owner(name, folder, now), (MODEL_OWNER, *prepared.site_names))
    platform = SimulatedPlatform.load_or_create(folder / "simulated-tee" / "root.pem", now)
    anchors = trust_anchors(prepared.experiment.tee, prepared.config_directory, simulated=platform.anchor)
    owners = Owners(home=folder, model=homes[0], sites=tuple(homes[1:]), platform=platform, anchors=anchors)
    write_trust(owners)
    return owners


def write_trust(owners: Owners) -> None:
    """Note in the home whom this user trusts: ``confed verify`` reads it."""
    target = owners.home / "trust.json"
    noted = Trust.load(target).anchors if target.is_file() else {}
    trusted = {**noted, **owners.anchors, PROFILE: (owners.platform.anchor,)}
    here = {owner.party.name: owner for owner in owners.every}
    everybody = (here.get(name) or OwnerHome.load(name, home=owners.home) for name in OwnerHome.names(owners.home))
    known = {
        "anchors": {profile: [anchor.hex() for anchor in anchors] for profile, anchors in trusted.items()},
        "owners": {owner.party.name: owner.party.identity.hex() for owner in everybody},
    }
    write_whole(target, canonical.encode(known), mode=PUBLIC)


def seal_everything(prepared: Prepared, owners: Owners, *, folder: Path) -> tuple[SealedParts, dict[str, Path]]:
    """Seal the start and every site's shard, each by its owner under a key of its own.

    Returns:
        The references, and the sealed files by digest.
    """
    files: dict[str, Path] = {}
    folder.mkdir(parents=True, exist_ok=True)
    start = _seal(
        owners.model,
        prepared.model.arrays,
        kind=Kind.MODEL,
        floors=_model_floors(prepared),
        path=folder / "start.sealed",
    )
    files[start.digest] = folder / "start.sealed"
    datasets: dict[str, SealedReference] = {}
    preparation: PreparationTerms | None = None
    if prepared.experiment.data.source == SEALED:
        datasets = _seal_shards(prepared, owners, folder, files)
    elif prepared.experiment.data.source == FILES:
        datasets, preparation = _seal_tables(prepared, owners, folder, files)
    for owner in owners.sites:
        owner.close()
    return SealedParts(start=start, datasets=datasets, preparation=preparation), files


def _seal_shards(
    prepared: Prepared, owners: Owners, folder: Path, files: dict[str, Path]
) -> dict[str, SealedReference]:
    shards, floors = make_shards(prepared), _data_floors(prepared)
    paths = {owner.party.name: folder / f"{owner.party.name}.sealed" for owner in owners.sites}

    def seal(owner: OwnerHome) -> SealedReference:
        name = owner.party.name
        try:
            return _seal(owner, shards[name], kind=Kind.DATASET, floors=floors, path=paths[name])
        finally:
            owner.close()

    datasets = dict(zip(paths, _side_by_side(seal, owners.sites), strict=True))
    files.update({sealed.digest: paths[name] for name, sealed in datasets.items()})
    return datasets


def _seal_tables(
    prepared: Prepared, owners: Owners, folder: Path, files: dict[str, Path]
) -> tuple[dict[str, SealedReference], PreparationTerms]:
    try:
        from confed.experiment import tables  # noqa: PLC0415 (the extra ``data``)
    except ModuleNotFoundError as error:
        raise MissingPackageError("data.source = files", expected="the extra confed[data]", got=error.name) from error
    return tables.seal_tables_of(prepared, owners.sites, floors=_data_floors(prepared), folder=folder, files=files)


def approve(owners: Owners, manifest: Manifest) -> list[Signed]:
    """Let every owner approve the manifest by signing its digest (in simulation: by itself).

    Raises:
        FloorError: a key that was not born in simulation.
    """

    def sign(owner: OwnerHome) -> Signed:
        try:
            return owner.approve_simulation(manifest)
        finally:
            owner.close()

    return _side_by_side(sign, owners.every)


def _side_by_side(act: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Return what ``act`` gives for each, in order: owners wait for the disk, and can do so at the same time.

    Whoever opens an owner's store in ``act`` closes it: thousands are more files than a process may have open.
    """
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="owners") as pool:
        return list(pool.map(act, items))


def _owner(name: str, home: Path, now: int) -> OwnerHome:
    if OwnerHome.exists(name, home=home):
        return OwnerHome.load(name, home=home)
    return OwnerHome.create(name, home=home, environment=SIMULATION, now_ms=now)


def _floors(prepared: Prepared, *, purposes: Sequence[Purpose]) -> KeyFloors:
    experiment, code = prepared.experiment, prepared.strategy_code
    # Owners made here approve by themselves: of a strategy class of one's own, that it mixes every update.
    mixed = experiment.cohort.least if code else prepared.strategy.mixed(experiment.cohort.least)
    return KeyFloors(
        environment=SIMULATION,
        least_cohort=mixed,
        purposes=tuple(purposes),
        measurements=_CODE,
        total_rounds=experiment.run.rounds,
        discloses_to_model_owner=mixed == 1,
        counted_identities=_COUNTED,
        strategies=(code.digest,) if code else (),
        scenarios=(experiment.scenario,),
    )


def _model_floors(prepared: Prepared) -> KeyFloors:
    """Return those of the model's key: its owner may have what the run makes served, by a manifest of its own."""
    steps = (Purpose.TRAIN, Purpose.EVALUATE, Purpose.AGGREGATE, Purpose.INFER)
    floors = _floors(prepared, purposes=steps)
    return replace(floors, scenarios=(*floors.scenarios, Scenario.INFERENCE))


def _data_floors(prepared: Prepared) -> KeyFloors:
    """Return those of a site's key: where the run has privacy, its budget is the key's own over all runs."""
    terms = prepared.experiment.privacy
    floor = None
    if terms is not None:
        floor = PrivacyFloor(epsilon=terms.epsilon_budget, delta=terms.delta, adjacency=terms.adjacency)
    return replace(_floors(prepared, purposes=(Purpose.TRAIN, Purpose.EVALUATE)), privacy=floor)


def _seal(owner: OwnerHome, arrays: Arrays, *, kind: Kind, floors: KeyFloors, path: Path) -> SealedReference:
    key_id, key = owner.new_key(floors=floors)
    container_id = os.urandom(16).hex()
    draft = Draft(
        kind=kind,
        container_id=container_id,
        owner=owner.party.identity,
        detail={"layout": layout_of(arrays).digest} if kind is Kind.MODEL else {},
        recipients=(RecipientEntry.owner_key(key_id),),
    )
    sealed = seal_to_file(
        pack(arrays),
        draft,
        data_key=container_key(key, container_id=container_id),
        signing_key=owner.identity_key,
        path=path,
    )
    return SealedReference(container_id=container_id, digest=sealed.digest, key_id=key_id, size_bytes=sealed.size_bytes)
