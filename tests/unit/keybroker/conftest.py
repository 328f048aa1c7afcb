from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from broker_world import World


@pytest.fixture(scope="session")
def quick_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A place whose fsync costs nothing, where the machine has one: durability is not what these tests measure."""
    memory = Path("/dev/shm")  # noqa: S108 (a private directory is made in it)
    if not os.access(memory, os.W_OK):
        yield tmp_path_factory.mktemp("homes")
        return
    with tempfile.TemporaryDirectory(prefix="confed-test-", dir=memory) as path:
        yield Path(path)


@pytest.fixture
def place(quick_disk: Path) -> Path:
    return Path(tempfile.mkdtemp(dir=quick_disk))


@pytest.fixture
def make_world(place: Path) -> Iterator[Callable[..., World]]:
    worlds: list[World] = []

    def make(**settings: Any) -> World:
        worlds.append(World(place / f"home-{len(worlds)}", **settings))
        return worlds[-1]

    yield make
    for world in worlds:
        world.close()


@pytest.fixture(scope="session")
def template(quick_disk: Path) -> World:
    world = World(quick_disk / "template")
    world.close()
    return world


@pytest.fixture
def world(template: World, place: Path) -> Iterator[World]:
    world = template.clone(place / "home")
    yield world
    world.close()


@pytest.fixture(scope="session")
def trained_template(template: World, quick_disk: Path) -> World:
    world = template.clone(quick_disk / "trained-template")
    world.run_round(1)
    world.close()
    return world


@pytest.fixture
def trained(trained_template: World, place: Path) -> Iterator[World]:
    """A world after its first round."""
    world = trained_template.clone(place / "home")
    yield world
    world.close()
