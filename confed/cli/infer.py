"""``confed infer``: serve a model from a TEE, reach one without anybody in between, check an answer's receipt."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from confed import canonical, record
from confed.errors import ConfigError, EncodingError, MissingFileError
from confed.files import write_whole
from confed.keybroker.client import BrokerServer
from confed.manifest import Manifest

app = typer.Typer(help="Serve a model confidentially, and talk to one that is.", no_args_is_help=True)

_HOME = typer.Option(help="Where owners' keys are (default: $CONFED_HOME or ~/.confed).")
_FOLDER_MODE = 0o700


@app.command()
def manifest(
    config: Annotated[Path, typer.Argument(help="A serving file (TOML).")],
    *,
    home: Annotated[Path | None, _HOME] = None,
) -> None:
    """Print the manifest that a serving file resolves to; its owner approves it with `confed manifest approve`."""
    from confed.experiment.serving import serving_manifest  # noqa: PLC0415

    found = serving_manifest(config, home=home)
    sys.stdout.buffer.write(found.encoded)
    typer.echo(f"digest: {found.digest}", err=True)


@app.command()
def serve(
    manifest_file: Annotated[Path, typer.Argument(metavar="MANIFEST", help="The approved manifest (JSON).")],
    *,
    config: Annotated[Path, typer.Option(help="The serving file: where engine, model and TEE are on this machine.")],
    broker: Annotated[Path, typer.Option(help="Where the model owner's broker listens: its --endpoint-file.")],
    listen: Annotated[str, typer.Option(help="HOST:PORT that requesters reach (port 0 for a free one).")],
    at_once: Annotated[int, typer.Option(min=1, max=1024, help="Answers at once; one more is refused.")] = 128,
    home: Annotated[Path | None, _HOME] = None,
) -> None:
    """Start a replica: attest to the model owner's broker, open the model, answer sealed requests until SIGTERM.

    When it answers it says so as one JSON line: {"instance": ..., "manifest": ..., "paths": [...], "url": ...}.
    """
    from confed.experiment.serving import start_replica  # noqa: PLC0415
    from confed.inference.listening import bound_socket  # noqa: PLC0415

    process = start_replica(
        config,
        _manifest(manifest_file),
        broker=_broker(broker),
        listener=bound_socket(listen, loopback_only=False),
        most_at_once=at_once,
        home=home,
    )
    _wait(process)


@app.command()
def policy(
    manifest_file: Annotated[Path, typer.Argument(metavar="MANIFEST", help="A manifest (JSON) that you have read.")],
) -> None:
    """Print the policy of a requester who accepts this manifest and its terms, and no other."""
    from confed.inference.requester import RequesterPolicy  # noqa: PLC0415

    sys.stdout.buffer.write(RequesterPolicy.of(_manifest(manifest_file)).encode())


@app.command()
def proxy(
    url: Annotated[list[str], typer.Argument(help="A replica's address; several may be given.")],
    *,
    policy_file: Annotated[Path, typer.Option("--policy", help="What you accept (`confed infer policy`).")],
    listen: Annotated[str, typer.Option(help="HOST:PORT on loopback.")] = "127.0.0.1:8080",
    receipts: Annotated[Path | None, typer.Option(help="Keep each answer's proof in this folder.")] = None,
) -> None:
    """Let any client on this machine talk to an attested replica, as if it were here.

    The replica is verified before it listens; then it says so as one JSON line: {"manifest": ..., "url": ...}.
    """
    from confed.inference.client import ConfidentialClient  # noqa: PLC0415
    from confed.inference.listening import address_of, bound_socket  # noqa: PLC0415
    from confed.inference.listening import serve as serve_app  # noqa: PLC0415
    from confed.inference.proxy import Proxy  # noqa: PLC0415
    from confed.inference.requester import Proof, RequesterPolicy  # noqa: PLC0415

    def keep(proof: Proof) -> None:
        if receipts is not None:
            data = canonical.encode(proof.to_json())
            write_whole(receipts / f"{proof.receipt.digest}.json", data)

    if receipts is not None:
        receipts.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
    listener = bound_socket(listen, loopback_only=True)
    with ConfidentialClient(url, policy=RequesterPolicy.decode(_read(policy_file, "policy"))) as client:
        replica = client.verify()
        typer.echo(json.dumps({"manifest": replica.digest, "url": address_of(listener)}))
        sys.stdout.flush()
        serve_app(Proxy(client, keep=keep), listener)


@app.command(name="verify-receipt")
def verify_receipt(
    proof_file: Annotated[Path, typer.Argument(metavar="PROOF", help="A proof that the proxy or a client kept.")],
    *,
    policy_file: Annotated[Path, typer.Option("--policy", help="What you accept (`confed infer policy`).")],
    request: Annotated[Path | None, typer.Option(help="The request's body: is the receipt for it?")] = None,
    answer: Annotated[Path | None, typer.Option(help="The answer's body: is the receipt for it?")] = None,
) -> None:
    """Check an answer's receipt offline: evidence, manifest, model, signature, and (where given) the texts."""
    from confed.inference.requester import Proof, RequesterPolicy  # noqa: PLC0415

    proof = Proof.from_json(canonical.decode(_read(proof_file, "proof")))
    receipt, _ = proof.verify(policy=RequesterPolicy.decode(_read(policy_file, "policy")))
    proof.require_texts(
        receipt,
        request=None if request is None else _read(request, "request"),
        answer=None if answer is None else _read(answer, "answer"),
    )
    typer.echo(json.dumps(record.to_json(receipt)))


def _manifest(path: Path) -> Manifest:
    return Manifest.decode(_read(path, "manifest"))


def _broker(path: Path) -> BrokerServer:
    try:
        value = json.loads(_read(path, "broker"))
    except ValueError as error:
        raise ConfigError("broker", expected="what `confed broker serve` wrote", got="something else") from error
    try:
        return record.from_json(BrokerServer, value, at="broker")
    except EncodingError as error:
        raise ConfigError("broker", expected="what `confed broker serve` wrote", got=str(error)) from error


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise MissingFileError(what, expected="a file that can be read", got=path) from error


def _wait(process: subprocess.Popen[bytes]) -> None:
    """Wait for a replica's end, hand it the signals that are meant for it, and end with its code."""

    def end(number: int, frame: FrameType | None) -> None:
        del frame
        if process.poll() is None:
            os.kill(process.pid, number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    code = process.wait()
    if code not in (0, -signal.SIGTERM, -signal.SIGINT):
        raise typer.Exit(code if code > 0 else 1)
