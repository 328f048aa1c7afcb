"""TLS before a replica, as a reverse proxy speaks it: streams, requests, and who is taken for whom."""

from __future__ import annotations

import datetime
import json
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from inference_road import Deployment, Linear, Served, TlsBefore, pem_files
from typer.testing import CliRunner

from confed.cli.infer import app as infer_app
from confed.cli.tls_options import tls_context
from confed.errors import ConfedError, ConfigError, MissingFileError, UnreachableError
from confed.inference.client import wall_clock
from confed.inference.windows import STREAM_PATH
from confed.wire.channel import TlsIdentity

X = np.arange(8, dtype=np.float32).reshape(2, 4)
CALLER, OTHER = (TlsIdentity.generate(now=datetime.datetime.now(datetime.UTC)) for _ in range(2))


@pytest.fixture
def before(served: Served) -> Iterator[TlsBefore]:
    with TlsBefore.before(served.url) as before:
        yield before


def plain(deployment: Deployment, x: np.ndarray) -> bytes:
    return Linear(deployment.arrays, {}).predict({"x": x})["y"].tobytes()


@pytest.mark.parametrize("mutual", [False, True], ids=["one way", "mutual"])
def test_windows_and_requests_go_over_tls(deployment: Deployment, before: TlsBefore, *, mutual: bool) -> None:
    if mutual:
        before.require(CALLER)
    large = np.random.default_rng(2).normal(size=(50_000, 4)).astype(np.float32)
    context = before.context(CALLER if mutual else None)
    with deployment.client(before.url, tls=context) as client, client.stream() as stream:
        for x in (X, large, X + 1):
            assert stream.predict({"x": x})["y"].tobytes() == plain(deployment, x)
            assert client.predict({"x": x})["y"].tobytes() == plain(deployment, x)
        assert stream.receipt() is not None
    assert len(stream.proofs) == 1
    assert before.saw(STREAM_PATH)  # who speaks TLS sees that there are exchanges, and no word of them
    assert not before.saw("models")


CONTEXTS: dict[str, Callable[[TlsBefore], ssl.SSLContext]] = {
    "one that is not the replica's": lambda _before: ssl.create_default_context(cadata=CALLER.certificate),
    "a caller that shows nothing": lambda before: before.context(),
    "a caller that shows another's": lambda before: before.context(OTHER),
}


@pytest.mark.parametrize("context", CONTEXTS.values(), ids=CONTEXTS)
def test_who_is_not_whom_tls_takes_gets_no_further(
    deployment: Deployment, served: Served, before: TlsBefore, context: Callable[[TlsBefore], ssl.SSLContext]
) -> None:
    before.require(CALLER)
    with deployment.client(before.url, tls=before.context(CALLER)) as honest:
        known = honest.verify()
    runs = served.engine.runs
    with deployment.client(before.url, tls=context(before)) as client:
        with pytest.raises(UnreachableError):
            client.predict({"x": X})
        client._places[0].replica = known  # what it knew before does not help
        client._places[0].heard_at = wall_clock()
        client._places[0].epoch = honest._places[0].epoch
        with pytest.raises(UnreachableError):
            client.stream().predict({"x": X})
    assert served.engine.runs == runs


@pytest.mark.parametrize("mutual", [False, True])
def test_the_commands_take_files(deployment: Deployment, before: TlsBefore, tmp_path: Path, *, mutual: bool) -> None:
    policy, ca = tmp_path / "policy.json", tmp_path / "ca.pem"
    policy.write_bytes(deployment.policy.encode())
    ca.write_text(before.identity.certificate)
    words = ["stream", before.url, "--policy", str(policy), "--ca", str(ca)]
    line = json.dumps({"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]})
    with pem_files(CALLER) as (certificate, key):
        if mutual:
            before.require(CALLER)
            words += ["--certificate", certificate, "--key", key]
        good = CliRunner().invoke(infer_app, words, input=line)
    assert good.exit_code == 0, good.stderr
    assert json.loads(good.stdout)["outputs"][0]["shape"] == [1, 3]


OPTIONS: dict[str, tuple[list[str], type[ConfedError]]] = {
    "a certificate without its key": (["--certificate", "ca.pem"], ConfigError),
    "authorities that are none": (["--ca", "policy.json"], ConfigError),
    "a key of another certificate": (["--certificate", "ca.pem", "--key", "other.pem"], ConfigError),
    "a file that is not there": (["--ca", "nowhere.pem"], MissingFileError),
}


@pytest.mark.parametrize(("options", "error"), OPTIONS.values(), ids=OPTIONS)
def test_files_that_do_not_do_are_refused_before_anything_is_sent(
    tmp_path: Path, options: list[str], error: type[ConfedError]
) -> None:
    files = {"policy.json": "{}", "ca.pem": CALLER.certificate, "other.pem": OTHER.private_key}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    given = [
        None if (at := f"--{name}") not in options else tmp_path / options[options.index(at) + 1]
        for name in ("ca", "certificate", "key")
    ]
    with pytest.raises(error):
        tls_context(["https://127.0.0.1:9"], *given)
    with pytest.raises(ConfigError):
        tls_context(["http://127.0.0.1:9"], tmp_path / "ca.pem", None, None)
    assert tls_context(["http://127.0.0.1:9"], None, None, None) is None
