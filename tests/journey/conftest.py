from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from road import Land, Road

if TYPE_CHECKING:
    from inference_road import Deployment, Served


@pytest.fixture(scope="session")
def quick_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A place whose fsync costs nothing, where the machine has one: durability is not what these tests measure."""
    memory = Path("/dev/shm")  # noqa: S108 (a private directory is made in it)
    if not os.access(memory, os.W_OK):
        yield tmp_path_factory.mktemp("roads")
        return
    with tempfile.TemporaryDirectory(prefix="confed-road-", dir=memory) as path:
        yield Path(path)


@pytest.fixture(scope="session")
def land(quick_disk: Path) -> Land:
    """Four sites, of which two are the least cohort."""
    return Land(folder=quick_disk / "land")


@pytest.fixture
def place(quick_disk: Path) -> Path:
    return Path(tempfile.mkdtemp(dir=quick_disk))


@pytest.fixture
def road(land: Land, place: Path) -> Iterator[Road]:
    with Road(land, place) as road:
        yield road


@pytest.fixture(scope="module")
def shared(land: Land, quick_disk: Path) -> Iterator[Road]:
    """One road for a whole table, with an aggregator that attested, and round 1 open."""
    with Road(land, Path(tempfile.mkdtemp(dir=quick_disk))) as road:
        road.aggregator().open(1)
        yield road


@pytest.fixture(scope="module")
def shared_committed(land: Land, quick_disk: Path) -> Iterator[Road]:
    """One road for a whole table, with version 1 committed and round 2 open."""
    with Road(land, Path(tempfile.mkdtemp(dir=quick_disk))) as road:
        road.round(1)
        road.aggregators[0].open(2)
        yield road


@pytest.fixture
def make_road(place: Path) -> Iterator[Callable[..., Road]]:
    """Make a road on a land of its own terms; ``registry`` and ``apart`` go to the road."""
    roads: list[Road] = []

    def make(*, registry: Any = None, apart: bool = False, **terms: Any) -> Road:
        number = len(roads)
        land = Land(folder=place / f"land-{number}", **terms)
        roads.append(Road(land, place / f"road-{number}", registry=registry, apart=apart))
        return roads[-1]

    yield make
    for road in roads:
        road.__exit__()


@pytest.fixture(scope="module")
def deployment(quick_disk: Path) -> Iterator[Deployment]:
    """A model's owner, its sealed model, an approved manifest and a broker."""
    from inference_road import Deployment  # noqa: PLC0415 (most tests serve nothing)

    with Deployment(folder=Path(tempfile.mkdtemp(dir=quick_disk))) as deployment:
        yield deployment


@pytest.fixture(scope="module")
def served(deployment: Deployment) -> Iterator[Served]:
    """A replica of it that listens."""
    with deployment.served() as served:
        yield served
