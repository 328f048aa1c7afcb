"""Two owners with homes in simulation, and datasets that they seal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
from tables import AGES

from confed.data.croissant import About
from confed.data.owner import SealedTables, Tables, seal_tables, tables_of
from confed.journey import Purpose
from confed.keybroker.identity import OwnerHome
from confed.keybroker.vault import KeyFloors
from confed.manifest import SIMULATION, Unchecked
from confed.preparation.contract import Contract
from confed.sealing.container import Container, OpenContainer
from confed.sealing.derivation import container_key

ABOUT = About(
    name="ages",
    description="Ages of nobody.",
    licence="https://spdx.org/licenses/CC0-1.0",
    derived_from=("made for a test",),
    published="2026-01-02",
)


def floors(**changes: Any) -> KeyFloors:
    values: dict[str, Any] = {
        "environment": SIMULATION,
        "least_cohort": 2,
        "purposes": (Purpose.TRAIN, Purpose.EVALUATE),
        "measurements": Unchecked(unchecked="a test"),
        "total_rounds": 10,
        "discloses_to_model_owner": False,
        "counted_identities": Unchecked(unchecked="a test"),
    }
    return KeyFloors(**{**values, **changes})


class Owner:
    """An owner, and what it sealed last."""

    def __init__(self, folder: Path, name: str) -> None:
        self.home = OwnerHome.create(name, home=folder, environment=SIMULATION, now_ms=1)
        self.folder = folder / f"{name}-sealed"
        self.folder.mkdir()
        self._count = 0

    def seal(
        self, data: pa.Table | Tables, *, contract: Contract = AGES, pipeline: str | None = None
    ) -> tuple[SealedTables, bytes, bytes]:
        """Return what sealing made, the container and the description."""
        self._count += 1
        path, beside = self.folder / f"{self._count}.sealed", self.folder / f"{self._count}.json"
        tables = tables_of(data, what="data") if isinstance(data, pa.Table) else data
        sealed = seal_tables(
            tables,
            home=self.home,
            contract=contract,
            pipeline=pipeline,
            about=ABOUT,
            floors=floors(),
            path=path,
            description_path=beside,
        )
        return sealed, path.read_bytes(), beside.read_bytes()

    def key(self, sealed: SealedTables) -> bytes:
        return container_key(self.home.key(sealed.reference.key_id), container_id=sealed.reference.container_id)

    def opened(self, sealed: SealedTables, data: bytes) -> OpenContainer:
        return Container.parse(data).unlock(self.key(sealed))
