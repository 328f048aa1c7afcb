"""A data key's own privacy budget: over all manifests, charged by ticket, never given back, above it nothing goes out."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import dp_accounting
import pytest
from broker_world import MODEL_OWNER, SITES, Enclave, World
from test_privacy_budget import TERMS
from typer.testing import CliRunner

from confed.cli.main import app
from confed.errors import ConfigError, DeploymentError, FloorError, PrivacyBudgetError
from confed.journey import Purpose, Role
from confed.keybroker.floors import require_manifest_floors
from confed.keybroker.key_budget import spendings
from confed.manifest import Manifest, MetricTerms
from confed.privacy import accounting
from confed.privacy.accounting import epsilon
from confed.privacy.floor import PrivacyFloor, Release
from confed.privacy.terms import SamplingTerms
from confed.statement import sign

DELTA = 1e-5
WIDE = dataclasses.replace(TERMS, epsilon_budget=1000.0)
"""A manifest that would let everything out."""
SITE = SITES[0]


def contract(run: str, **changes: Any) -> Callable[[Manifest], Manifest]:
    terms = dataclasses.replace(WIDE, **changes)

    def change(manifest: Manifest) -> Manifest:
        return dataclasses.replace(manifest, run=run, privacy=terms, metrics=MetricTerms(clear=(), decimals=4))

    return change


def budget(releases: int, **changes: Any) -> dict[str, Any]:
    """Floors whose budget has room for so many releases of ``TERMS``."""
    floor = PrivacyFloor(epsilon=epsilon(TERMS, releases) + 1e-3, delta=DELTA, adjacency="zero-out")
    return {"privacy": dataclasses.replace(floor, **changes)}


def agree(world: World, change: Callable[[Manifest], Manifest]) -> None:
    """Let every owner approve another manifest on the same keys, and go on under it."""
    world.manifest, world.records = change(world.manifest), {}
    for owner in world.homes.values():
        owner.approve(world.manifest, now_ms=world.now)


def ticket(world: World, *, round_number: int = 1, attempt: int = 0) -> None:
    aggregator = world.aggregator(round_number=round_number, attempt=attempt)
    world.ticket(Enclave(world, Role.CLIENT), SITE, aggregator, round_number=round_number, attempt=attempt)


def charged(world: World) -> int:
    return next(spent.releases for spent in spendings(world.homes[SITE]))


def test_manifests_share_one_budget_and_a_new_one_brings_nothing_back(make_world: Callable[..., World]) -> None:
    world = make_world(change=contract("run-1"), data_floors=budget(3))
    world.run_round(1)
    world.run_round(2)
    agree(world, contract("run-2"))
    world.run_round(1)
    for again in ("run-3", "run-4"):
        agree(world, contract(again))
        with pytest.raises(PrivacyBudgetError):
            ticket(world)
    assert charged(world) == 3


def test_what_failed_is_charged_and_survives_a_restart(make_world: Callable[..., World]) -> None:
    world = make_world(change=contract("run-1"), data_floors=budget(3))
    ticket(world)  # no version ever comes of it
    world.restart()
    ticket(world, attempt=1)  # a feigned crash of the aggregator, and another attempt
    agree(world, contract("run-2"))
    ticket(world)
    world.restart()
    with pytest.raises(PrivacyBudgetError):
        ticket(world, attempt=1)
    agree(world, contract("run-3"))
    with pytest.raises(PrivacyBudgetError):
        ticket(world)
    assert charged(world) == 3


def test_the_same_ticket_again_costs_nothing(make_world: Callable[..., World]) -> None:
    world = make_world(change=contract("run-1"), data_floors=budget(1))
    aggregator, client = world.aggregator(), Enclave(world, Role.CLIENT)
    released = world.release(client, SITE)
    assert released.credential is not None
    request = world.ticket_request(client, SITE, aggregator, released.credential)
    signed = sign(request, client.signing)
    assert world.brokers[SITE].ticket(signed) == world.brokers[SITE].ticket(signed)
    assert world.release(client, SITE), "nor does its key, asked for again"
    assert charged(world) == 1


@pytest.mark.parametrize("looks_away", ["release", "nobody"])
def test_neither_key_nor_ticket_goes_out_above_it(
    looks_away: str, make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(change=contract("run-1"), data_floors=budget(1))
    ticket(world)
    if looks_away == "release":
        monkeypatch.setattr("confed.keybroker.floors.charge_release", lambda *_, **__: None)
        with pytest.raises(PrivacyBudgetError):
            ticket(world, attempt=1)
    else:
        with pytest.raises(PrivacyBudgetError):
            world.release(Enclave(world, Role.CLIENT), SITE, attempt=1)
    assert charged(world) == 1


def test_releases_that_differ_are_composed_as_an_accountant_does(make_world: Callable[..., World]) -> None:
    world = make_world(change=contract("run-1"), data_floors=budget(40))
    ticket(world)
    agree(world, contract("run-2", noise_multiplier=5.0, delta=1e-7))
    ticket(world)
    ticket(world, attempt=1)
    agree(world, contract("run-3", sampling=SamplingTerms(by="enclave", rate=0.25), noise_multiplier=1.0))
    ticket(world)
    accountant = dp_accounting.rdp.RdpAccountant()
    for event in (
        dp_accounting.GaussianDpEvent(2.0),
        dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(5.0), 2),
        dp_accounting.PoissonSampledDpEvent(0.25, dp_accounting.GaussianDpEvent(1.0)),
    ):
        accountant.compose(event)
    (spent,) = spendings(world.homes[SITE])
    assert spent.epsilon == pytest.approx(accountant.get_epsilon(DELTA), rel=1e-9)
    assert (spent.releases, spent.rounds) == (4, 3)


def test_another_adjacency_is_the_floor_s_and_sampling_amplifies_only_its_own() -> None:
    floor = PrivacyFloor(epsilon=1.0, delta=DELTA, adjacency="replace-one")
    sampled = dataclasses.replace(WIDE, sampling=SamplingTerms(by="enclave", rate=0.5))
    replaced = dataclasses.replace(WIDE, adjacency="replace-one")
    assert floor.release(sampled) == floor.release(replaced) == Release(multiplier=1.0, rate=1.0)
    plain = dataclasses.replace(floor, adjacency="zero-out")
    assert plain.release(sampled) == Release(multiplier=2.0, rate=0.5)
    assert plain.release(replaced) == Release(multiplier=2.0, rate=1.0)


def test_a_key_with_a_budget_serves_no_manifest_without_privacy(make_world: Callable[..., World]) -> None:
    world = make_world(change=contract("run-1"), data_floors=budget(5))
    world.run_round(1)
    agree(world, lambda manifest: dataclasses.replace(manifest, run="run-2", privacy=None))
    with pytest.raises(FloorError):
        world.release(Enclave(world, Role.CLIENT), SITE)
    assert charged(world) == 1
    floors = world.homes[SITE].floors(world.keys[SITE][0])
    evaluating: Any = SimpleNamespace(terms=SimpleNamespace(manifest=world.manifest))
    with pytest.raises(FloorError):
        require_manifest_floors(evaluating, floors, is_data=True)


def test_a_key_without_one_serves_both_and_evaluations_cost_nothing(make_world: Callable[..., World]) -> None:
    make_world().run_round(1)
    world = make_world(change=contract("run-1"), data_floors=budget(1))
    world.run_round(1)
    aggregator = Enclave(world, Role.AGGREGATOR)
    for name in SITES:
        world.release(aggregator, name, round_number=1, purpose=Purpose.EVALUATE)
    assert world.tickets(aggregator, round_number=1, purpose=Purpose.EVALUATE)
    assert charged(world) == 1


def test_without_an_accountant_nothing_goes_out(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(change=contract("run-1"), data_floors=budget(2))
    accounting._composed.cache_clear()
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(DeploymentError):
        world.release(Enclave(world, Role.CLIENT), SITE)
    accounting._composed.cache_clear()


@pytest.mark.parametrize(
    "changes", [{"epsilon": 0.0}, {"epsilon": float("inf")}, {"delta": 1.0}, {"delta": 0.0}, {"adjacency": "near"}]
)
def test_a_budget_out_of_range_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        budget(1, **changes)


def test_the_store_of_an_earlier_release_is_brought_up_and_its_keys_have_no_budget(trained: World) -> None:
    paths = [path for path in trained.home.rglob("*") if path.is_file() and path.read_bytes()[:6] == b"SQLite"]
    trained.close()
    for path in paths:
        connection = sqlite3.connect(path)
        connection.executescript("DROP TABLE releases; DROP TABLE statistics; PRAGMA user_version=4;")
        connection.close()
    trained._open()
    trained.run_round(2)
    assert [spent.epsilon for spent in spendings(trained.homes[SITE])] == [None]


def test_an_owner_sees_what_is_spent(make_world: Callable[..., World]) -> None:
    world = make_world(change=contract("run-1"), data_floors=budget(2))
    world.run_round(1)
    told = CliRunner().invoke(app, ["broker", "budget", "--owner", SITE, "--home", str(world.home), "--json"])
    assert told.exit_code == 0, told.output
    (line,) = told.stdout.splitlines()
    assert json.loads(line)["epsilon"] == pytest.approx(epsilon(TERMS, 1))
    told = CliRunner().invoke(app, ["broker", "budget", "--owner", MODEL_OWNER, "--home", str(world.home)])
    assert "no privacy budget" in told.stdout
