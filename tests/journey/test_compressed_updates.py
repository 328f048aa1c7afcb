"""Compressed updates the whole road: sealed by client TEEs, opened in the enclave, what was left out carried over."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from road import SITES, Held, Road

from confed.client.session import ClientSession
from confed.compression import CompressionTerms
from confed.errors import SessionError
from confed.manifest import Manifest

MakeRoad = Callable[..., Road]
STEP = np.linspace(-0.3, 0.5, 40).astype(np.float32)


def model() -> dict[str, np.ndarray]:
    return {"weight": np.zeros(40, np.float32), "steps": np.array(3)}


def by(name: str, fraction: float | None = None, *, feedback: bool) -> Callable[[Manifest], Manifest]:
    terms = CompressionTerms(name=name, fraction=fraction, feedback=feedback)
    return lambda manifest: dataclasses.replace(manifest, compression=terms)


def send(road: Road, round_number: int, attempt: int, moves: dict[str, Any], *, submit: Any = SITES) -> None:
    """Let every site move the base so far, seal it, and the sites of ``submit`` send it."""
    for site in SITES:
        held: Held = road.hold(site, round_number, attempt=attempt)
        arrays = {"weight": held.step.arrays["weight"] + np.float32(1) * moves[site], "steps": np.array(4)}
        digest = held.session.seal_result(
            held.site,
            held.step,
            held.grants,
            arrays=arrays,
            weight=1.0,
            metrics={},
            seconds=dict.fromkeys(held.step.seconds, 0.0),
        )
        if site in submit:
            road.aggregators[-1].governor.submit(site=site, digest=digest)


def moved(step: Any) -> dict[str, Any]:
    return dict.fromkeys(SITES, step)


def close_round(road: Road) -> None:
    assert not {code for code in road.aggregators[-1].close_round().excluded.values() if code != "no-answer"}


@pytest.mark.parametrize("feedback", [False, True])
def test_what_one_round_leaves_out_comes_in_the_next(make_road: MakeRoad, feedback: bool) -> None:
    with make_road(model=model(), change=by("top-k", 0.25, feedback=feedback), rounds=3) as road:
        aggregator = road.aggregator()
        for round_number, step in ((1, STEP), (2, STEP * 0), (3, STEP * 0)):
            aggregator.open(round_number)
            send(road, round_number, 0, moved(step))
            close_round(road)
        first, last = road.open_version(1), road.open_version(3)
        largest = np.argsort(-np.abs(STEP))
        expected = np.zeros_like(STEP)
        expected[largest[:10]] = STEP[largest[:10]]
        np.testing.assert_allclose(first["weight"], expected, atol=1e-6)
        if feedback:
            expected[largest[:30]] = STEP[largest[:30]]
        np.testing.assert_allclose(last["weight"], expected, atol=1e-6)
        assert last["steps"] == 3


def test_what_did_not_count_is_not_carried_over_and_not_sent_twice(make_road: MakeRoad) -> None:
    """Of an attempt that was given up, and of a site that came too late, what was before holds."""
    with make_road(model=model(), change=by("top-k", 0.25, feedback=True), rounds=2) as road:
        aggregator = road.aggregator()
        aggregator.open(1)
        send(road, 1, 0, moved(STEP * -7))  # this attempt comes to nothing
        aggregator.open(1, attempt=1)
        send(road, 1, 1, moved(STEP), submit=SITES[:3])  # and the last site comes too late
        close_round(road)
        late = SITES[3]
        aggregator.open(2)
        send(road, 2, 0, moved(STEP * 0))
        close_round(road)
        largest = np.argsort(-np.abs(STEP))
        expected = np.zeros_like(STEP)
        expected[largest[:10]] = STEP[largest[:10]]
        np.testing.assert_allclose(road.open_version(1)["weight"], expected, atol=1e-6)
        expected[largest[10:20]] = STEP[largest[10:20]] * 3 / 4  # the late one carries nothing over
        np.testing.assert_allclose(road.open_version(2)["weight"], expected, atol=1e-6)
        assert road.session_of(late)._feedback._settled == {}  # pyright: ignore[reportOptionalMemberAccess]


def test_a_tee_that_starts_anew_has_nothing_to_carry_over(make_road: MakeRoad) -> None:
    with make_road(model=model(), change=by("top-k", 0.25, feedback=True), rounds=2) as road:
        aggregator = road.aggregator()
        aggregator.open(1)
        send(road, 1, 0, moved(STEP))
        close_round(road)
        road.sessions.clear()
        aggregator.open(2)
        send(road, 2, 0, moved(STEP * 0))
        close_round(road)
        assert road.open_version(2)["weight"].tobytes() == road.open_version(1)["weight"].tobytes()


@pytest.mark.parametrize(("name", "coarse"), [("bf16", 1 / 256), ("int8", 0.5 / 127 * 1.01)])
def test_a_mean_is_as_near_as_its_encoding(make_road: MakeRoad, name: str, coarse: float) -> None:
    with make_road(model=model(), change=by(name, feedback=False), rounds=1) as road:
        road.aggregator().open(1)
        send(road, 1, 0, moved(STEP))
        close_round(road)
        found = road.open_version(1)["weight"]
        assert 0 < np.abs(found - STEP).max() <= coarse


def test_where_the_next_round_may_run_elsewhere_nothing_is_sealed(
    make_road: MakeRoad, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ClientSession, "follows_flower", property(lambda _: True))
    with make_road(model=model(), change=by("int8", feedback=True)) as road:
        road.aggregator().open(1)
        with pytest.raises(SessionError):
            send(road, 1, 0, moved(STEP))
    with make_road(model=model(), change=by("int8", feedback=False)) as road:
        road.aggregator().open(1)
        send(road, 1, 0, moved(STEP))
        close_round(road)
