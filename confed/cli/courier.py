"""``confed courier``: the governor's store of ciphertext as a process of its own."""

from __future__ import annotations

import datetime
import json
import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from confed import record
from confed.errors import MissingFileError
from confed.files import PUBLIC, write_whole
from confed.governor.callers import Callers
from confed.governor.courier import Courier, serve_courier
from confed.governor.expiry import Terms
from confed.manifest import Manifest
from confed.memory import keep_freed_by_all
from confed.wire.channel import TlsIdentity

app = typer.Typer(add_completion=False, no_args_is_help=True)


@app.callback()
def _courier() -> None:
    """The governor's store of ciphertext: it holds no key and reads nothing."""


@app.command()
def serve(
    *,
    directory: Annotated[Path, typer.Option(help="Where ciphertext is kept.")],
    listen: Annotated[str, typer.Option(help="127.0.0.1:PORT (0: a free one) or unix:PATH.")] = "127.0.0.1:0",
    endpoint_file: Annotated[Path | None, typer.Option(help="Where to write the endpoint (JSON).")] = None,
    without_fsync: Annotated[
        bool, typer.Option("--without-fsync", help="Do not wait for the disk: a power cut may lose the last objects.")
    ] = False,
    manifest: Annotated[
        Path | None, typer.Option(help="The run's manifest: what no later step of it needs is removed.")
    ] = None,
    keep_versions: Annotated[
        int,
        typer.Option(help="With --manifest: how many versions stay (0: all, as the run's records need them).", min=0),
    ] = 0,
    callers: Annotated[
        Path | None,
        typer.Option(
            help="Who may call over the network and their shares of the disk (JSON): name, certificate, share_bytes."
        ),
    ] = None,
    keep: Annotated[list[Path] | None, typer.Option(help="A sealed file to start with; may be repeated.")] = None,
) -> None:
    """Serve the courier until SIGTERM or Ctrl-C."""
    keep_freed_by_all()
    directory.mkdir(parents=True, exist_ok=True)
    terms = None
    if manifest is not None:
        if not manifest.is_file():
            raise MissingFileError("manifest", expected="a file", got=manifest)
        terms = Terms(manifest=Manifest.decode(manifest.read_bytes()), keep_versions=keep_versions or None)
    courier = Courier(directory, durable=not without_fsync, expiry=terms)
    for path in keep or []:
        if not path.is_file():
            raise MissingFileError("sealed file", expected="a file", got=path)
        courier.put(path)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stop.set())
    tls = None if listen.startswith("unix:") else _identity(directory / "tls.json")
    known = Callers.read(callers) if callers is not None else None
    with serve_courier(courier, listen=listen, tls=tls, callers=known) as server:
        told = {"certificate": server.endpoint.certificate, "target": server.endpoint.target}
        if endpoint_file is not None:
            write_whole(endpoint_file, json.dumps(told).encode(), mode=PUBLIC, durable=False)
        typer.echo(f"courier listens at {server.endpoint.target}", err=True)
        stop.wait()


def _identity(path: Path) -> TlsIdentity:
    """Return the courier's TLS identity: kept with what it stores, since sites pin it across restarts."""
    if path.is_file():
        return record.from_json(TlsIdentity, json.loads(path.read_bytes()), at="courier TLS identity")
    identity = TlsIdentity.generate(now=datetime.datetime.now(datetime.UTC))
    write_whole(path, json.dumps(record.to_json(identity)).encode())
    return identity
