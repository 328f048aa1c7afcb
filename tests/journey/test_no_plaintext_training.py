"""Guarantee 10 where one TEE trains: nothing of model, data, checkpoints or state is readable on a disk, a wire or in a log.

A first attempt keeps a checkpoint and dies with an exception that quotes what it saw; a second goes on from there.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import context_to_proto
from road import OWNER, Land, Road
from test_no_plaintext import (
    be_a_server_app_process,
    context_of,
    encodings,
    everything_said,
    files_under,
    found,
    of_array,
    of_float,
    recorded,
    told,
)
from test_training import SITE, TERMS, training

import confed.client
from confed.client import confidential, current
from confed.flower.messages import encode_message
from confed.manifest import Manifest, UpdateTerms
from confed.sealing.derivation import checkpoint_key, state_key

MODEL, DATA, TRAINED = np.float32(1234.5677), np.float32(7777.771), np.float32(4321.123)
MOMENTUM, CARRIED, SECRET, LOSS = np.float32(2468.135), np.float32(1357.246), 0.5432109876, 0.9182736451
TEXT = "canary-patient-4712"
ELEMENTS = 1_300_000

CANARIES: dict[str, list[bytes]] = {
    "model": of_array(MODEL),
    "data": of_array(DATA),
    "trained": of_array(TRAINED),
    "a checkpoint's tensor": of_array(MOMENTUM),
    "a checkpoint's number": [SECRET.hex().encode(), *of_float(SECRET)],
    "what is carried over": of_array(CARRIED),
    "exception": encodings(TEXT.encode()),
    "the exact loss": of_float(LOSS),
}
app = ClientApp(mods=[confidential])
seen: dict[str, Any] = {}


@app.train()
def train(message: Message, context: Context) -> Message:
    data, kept = confed.client.site_data(context), confed.client.checkpoints(context)
    state = kept.restore()
    if state is None:
        kept.save({"momentum": np.full(ELEMENTS, MOMENTUM), "secret": SECRET, "text": TEXT})
        kept.settle()  # pyright: ignore[reportAttributeAccessIssue]
        raise ValueError(f"{TEXT}: {data['x'][0, 0]} {MOMENTUM}")
    seen["restored"] = (state["momentum"][0], state["secret"], state["text"])
    kept.carry({"momentum": np.full(ELEMENTS, CARRIED)})
    arrays = ArrayRecord({"weight": Array(message.content["arrays"]["weight"].numpy() * 0 + TRAINED)})
    metrics = MetricRecord({"loss": LOSS, "num-examples": 3})
    return Message(content=RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


def changed(manifest: Manifest) -> Manifest:
    terms = UpdateTerms(norm_bound=1e9, weight_cap=1e9, loss_cap=None)
    return dataclasses.replace(training(manifest), update=terms)


@pytest.fixture(scope="module")
def walked(quick_disk: Path) -> Iterator[tuple[Road, dict[str, bytes], dict[str, list[bytes]], list[Message]]]:
    folder = Path(tempfile.mkdtemp(dir=quick_disk))
    land = Land(
        folder=folder / "land",
        **{**TERMS, "change": changed},
        model={"weight": np.full(ELEMENTS, MODEL, dtype=np.float32)},
        data=lambda _: {"x": np.full((64, 8), DATA, dtype=np.float32)},
    )
    everything: dict[str, bytes] = {}
    with pytest.MonkeyPatch.context() as patch, everything_said() as said, recorded(patch) as messages:
        be_a_server_app_process(patch)
        patch.setattr(tempfile, "tempdir", str(folder))
        with Road(land, folder / "road") as road:
            replies: list[Message] = []
            keys = dict(land.keys)
            for attempt in (0, 1):
                session = road.session(SITE)
                patch.setattr(current, "_session", session)
                message, context = told("train", 1, attempt=attempt), context_of(SITE)
                replies.append(app(message, context))
                everything[f"reply {attempt}"] = encode_message(replies[-1])
                everything[f"context {attempt}"] = context_to_proto(context).SerializeToString()
                everything |= {f"{name} after {attempt}": data for name, data in files_under(folder).items()}
                keys[f"signing key {attempt}"] = session._signing.private_bytes_raw()
                keys[f"opening key {attempt}"] = session._hpke.to_private_bytes()
            run = road.manifest.run
            keys["version key"] = road.version_key(1, 1)
            keys["checkpoint key"] = checkpoint_key(land.keys[OWNER], run=run, version=1)
            keys["state key"] = state_key(land.keys[OWNER], run=run, version=1, attempt=1)
            everything |= {f"gRPC message {number}": message for number, message in enumerate(messages)}
            everything["log"] = said.getvalue().encode()
            yield road, everything, {what: encodings(key) for what, key in keys.items()}, replies


def test_no_canary_and_no_key_is_anywhere_outside_the_tee(walked: Any) -> None:
    road, everything, keys, _ = walked
    for kind in (b'"kind":"checkpoint"', b'"kind":"strategy-state"', b'"kind":"model"', b'"kind":"dataset"'):
        assert any("/courier/objects/" in name and kind in data for name, data in everything.items()), kind
    assert found(everything, CANARIES) == []
    assert found(everything, keys) == []
    # Who may open them finds the canaries: they did go this road.
    assert seen["restored"] == (MOMENTUM, SECRET, TEXT)
    opened = road.open_version(1)["weight"]
    assert np.all(opened == TRAINED)
    assert found({"the opened version": opened.tobytes()}, CANARIES) == ["trained in the opened version"]


def test_what_leaves_is_a_code_or_a_digest_and_the_rounded_loss(walked: Any) -> None:
    road, everything, _, replies = walked
    assert (replies[0].error.reason, replies[0].has_content()) == ("client-app-failed", False)
    assert {name for name in replies[1].content["confed"] if not name.startswith("seconds-")} == {"site", "digest"}
    assert road.record(1).metrics.values == {"loss": round(LOSS, 4)}
    assert b"client app failed: ValueError" in everything["log"]
    assert b"Traceback" not in everything["log"]
