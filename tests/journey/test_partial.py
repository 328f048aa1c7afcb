"""A part of a model goes the whole road: only what is trained travels, in every type, and the rest is the base's."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message, MetricRecord, RecordDict
from road import SITES, Held, Road

from confed.client import mod
from confed.errors import ShapeError
from confed.flower.messages import use_local_task_identity
from confed.manifest import Manifest
from confed.model.bfloat16 import narrowed, widened

MakeRoad = Callable[..., Road]
TRAINED = ("head.weight", "head.bias", "embed")


def model() -> dict[str, np.ndarray]:
    """A body that is frozen, a head in bfloat16, and an output that is the embedding."""
    generator = np.random.default_rng(1)
    embedding = generator.normal(size=(8, 4)).astype(np.float16)
    return {
        "embed": embedding,
        "body": generator.normal(size=(300, 1000)).astype(np.float32),
        "head.weight": narrowed(generator.normal(size=(4, 4)).astype(np.float32)),
        "head.bias": np.zeros(4, np.float32),
        "head.steps": np.array(3),
        "output": embedding.copy(),
    }


def partly(manifest: Manifest) -> Manifest:
    return dataclasses.replace(
        manifest, model=dataclasses.replace(manifest.model, trained=TRAINED, tied={"output": "embed"})
    )


def as_app_gives_it(arrays: Any, by: float, names: Any = None) -> dict[str, np.ndarray]:
    """What an ordinary app returns: all tensors, bfloat16 as float32, counters counted."""
    found: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        numbers = widened(array) if name == "head.weight" else array
        found[name] = np.asarray(numbers + (1 if numbers.dtype.kind == "i" else by)).astype(numbers.dtype)
    return {name: found[name] for name in names or found}


def sealed(held: Held, arrays: Any) -> str:
    seconds = dict.fromkeys(held.step.seconds, 0.0)
    return held.session.seal_result(
        held.site, held.step, held.grants, arrays=arrays, weight=1.0, metrics={}, seconds=seconds
    )


@pytest.mark.parametrize("names", [None, TRAINED])
def test_two_rounds_of_a_head(make_road: MakeRoad, names: Any) -> None:
    with make_road(model=model(), change=partly, rounds=2) as road:
        aggregator = road.aggregator()
        base = model()
        for round_number in (1, 2):
            aggregator.open(round_number)
            for at, site in enumerate(SITES):
                held = road.hold(site, round_number)
                digest = sealed(held, as_app_gives_it(held.step.arrays, 0.25 * at, names))
                assert road.courier.path(digest).stat().st_size < 5000
                aggregator.governor.submit(site=site, digest=digest)
            assert not aggregator.close_round().excluded
            version = road.open_version(round_number)
            for name, array in version.items():
                if name in ("body", "head.steps"):
                    assert array.tobytes() == base[name].tobytes()
            assert version["output"].tobytes() == version["embed"].tobytes()
            before, after = widened(base["head.weight"]), widened(version["head.weight"])
            np.testing.assert_allclose(after, before + 0.375, atol=0.02)
            np.testing.assert_allclose(version["head.bias"], base["head.bias"] + 0.375)
            np.testing.assert_allclose(version["embed"], base["embed"] + np.float16(0.375), atol=2e-3)
            base = version


def test_tied_tensors_that_came_apart_are_not_sealed(make_road: MakeRoad) -> None:
    with make_road(model=model(), change=partly) as road:
        road.aggregator().open(1)
        held = road.hold("north")
        arrays = as_app_gives_it(held.step.arrays, 0.25)
        with pytest.raises(ShapeError) as refused:
            sealed(held, {**arrays, "output": arrays["output"] + np.float16(1)})
        assert refused.value.field == "tensor output"


def test_an_app_sees_the_whole_model_and_bfloat16_as_float32(
    make_road: MakeRoad, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, np.ndarray] = {}

    def app(message: Message, context: Context) -> Message:
        seen.update({name: array.numpy() for name, array in message.content.array_records["arrays"].items()})
        content = RecordDict({"arrays": message.content["arrays"], "metrics": MetricRecord({"num-examples": 2})})
        return Message(content, reply_to=message)

    use_local_task_identity(run_id=1, node_id=1)
    with make_road(model=model(), change=partly) as road:
        aggregator = road.aggregator()
        aggregator.open(1)
        for at, site in enumerate(SITES):
            monkeypatch.setattr(mod, "installed", lambda site=site: road.session_of(site))
            told = mod.ConfigRecord({"round": 1, "attempt": 0})
            message = Message(RecordDict({mod.RECORD: told}), dst_node_id=1, message_type="train")
            context = Context(1, 1, {"partition-id": at}, RecordDict(), {})
            reply = mod.confidential(message, context, app)
            assert not reply.has_error(), reply.error
            digest = reply.content.config_records[mod.RECORD]["digest"]
            aggregator.governor.submit(site=site, digest=str(digest))
        assert not aggregator.close_round().excluded
        assert {name: array.dtype for name, array in seen.items()} == {
            name: np.dtype(np.float32) if name == "head.weight" else array.dtype for name, array in model().items()
        }
        assert all(array.tobytes() == model()[name].tobytes() for name, array in road.open_version(1).items())
