"""``confed broker serve``: owners' key brokers as a process of their own. It needs neither torch nor flwr."""

from __future__ import annotations

import gc
import json
import resource
import signal
import socket
import threading
from contextlib import closing
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from confed import record
from confed.attestation.endorsements import EndorsementProvider
from confed.cli.endorsement_options import Bundle, Cache, Pccs, PccsAuthorities, endorsement_provider
from confed.errors import ConfigError, PortInUseError
from confed.files import write_whole
from confed.keybroker.broker import Broker, wall_clock
from confed.keybroker.identity import OwnerHome
from confed.keybroker.key_budget import spendings
from confed.keybroker.server import serve_brokers
from confed.wire.channel import RunningServer

broker = typer.Typer(help="Run owners' key brokers.", no_args_is_help=True)
app = broker

_OWNER = typer.Option(help="Owner whose broker to serve; repeat for several.")
_LISTEN = typer.Option(help="127.0.0.1:PORT (0 for a free one), or unix:PATH.")
_HOME = typer.Option(help="Directory of the owners (default: CONFED_HOME or ~/.confed).")
_ENDPOINT = typer.Option(help="Write where it listens to this file, not to the output.")


@broker.callback()
def _group() -> None:
    """Run owners' key brokers: each owner's own, which alone decides when a key goes out."""


@broker.command()
def serve(
    *,
    owner: Annotated[list[str], _OWNER],
    listen: Annotated[str, _LISTEN] = "127.0.0.1:0",
    home: Annotated[Path | None, _HOME] = None,
    endpoint_file: Annotated[Path | None, _ENDPOINT] = None,
    endorsement_cache: Cache = None,
    endorsement_bundle: Bundle = None,
    pccs: Pccs = None,
    pccs_ca: PccsAuthorities = None,
) -> None:
    """Serve the key brokers of one or more owners until SIGTERM or Ctrl-C.

    Evidence is verified with the endorsements that come along, and with those of a provider if one is named here.
    When it listens it says so as one JSON line: {"brokers": [...], "certificate": ..., "target": ...}.

    Raises:
        UsageError: an owner that is not there, an address in use, a file that cannot be written.
    """
    ended = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        del number, frame
        ended.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    provider = endorsement_provider(endorsement_cache, endorsement_bundle, pccs=pccs, pccs_ca=pccs_ca)
    _permit_open_files()
    owners = _owners(owner, home)
    try:
        with _serve(owners, listen, provider) as server:
            _announce(server, owners, endpoint_file)
            gc.freeze()  # owners and libraries stay; the collector need not look through them again and again
            ended.wait()
    except OSError as error:
        raise ConfigError(str(error.filename or listen), expected="a place to write", got=error.strerror) from error
    finally:
        for entry in owners:
            entry.close()


@broker.command()
def create(
    *,
    owner: Annotated[str, typer.Option(help="Name of the new owner: letters, digits, dots, dashes.")],
    environment: Annotated[str, typer.Option(help="Of all its keys, for ever: simulation or production.")],
    home: Annotated[Path | None, _HOME] = None,
) -> None:
    """Make an owner: its identity, its broker's keys, an empty vault and ledger; print its identity key.

    Raises:
        ConfigError: a name that is taken or is none, or an unknown environment.
    """
    with closing(OwnerHome.create(owner, home=home, environment=environment, now_ms=wall_clock())) as made:
        typer.echo(made.party.identity.hex())


@broker.command()
def budget(
    *,
    owner: Annotated[str, typer.Option(help="Whose keys: a name in the confed home.")],
    home: Annotated[Path | None, _HOME] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a key, a line each.")] = False,
) -> None:
    """Show what each key of an owner has spent over all manifests: rounds, and epsilon where it has a budget of it."""
    with closing(OwnerHome.load(owner, home=home)) as found:
        for spent in spendings(found):
            typer.echo(json.dumps(record.to_json(spent)) if as_json else spent.told)


def _permit_open_files() -> None:
    """Let the process have as many files open as the system permits it: an owner's store takes three."""
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _owners(names: list[str], home: Path | None) -> list[OwnerHome]:
    if len(set(names)) != len(names):
        raise ConfigError("--owner", expected="each owner once", got=", ".join(names))
    return [OwnerHome.load(name, home=home) for name in names]


def _serve(owners: list[OwnerHome], listen: str, provider: EndorsementProvider | None) -> RunningServer:
    brokers = {entry.party.broker: Broker.of(entry, endorsements=provider) for entry in owners}
    if listen.startswith("unix:"):
        return serve_brokers(brokers, listen=listen, tls=None)
    _require_free(listen)
    return serve_brokers(brokers, listen=listen, tls=owners[0].renew_tls(now_ms=wall_clock()))


def _require_free(listen: str) -> None:
    """Try the address before gRPC does, which would add lines of its own to the one that a user should see."""
    host, _, port = listen.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError("--listen", expected="HOST:PORT or unix:PATH", got=listen)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
        except (OSError, OverflowError) as error:
            raise PortInUseError("--listen", expected="a free address", got=listen) from error


def _announce(server: RunningServer, owners: list[OwnerHome], endpoint_file: Path | None) -> None:
    value = {
        "target": server.endpoint.target,
        "certificate": server.endpoint.certificate,
        "brokers": [entry.party.broker.hex() for entry in owners],
    }
    text = json.dumps(value, sort_keys=True)
    if endpoint_file is None:
        typer.echo(text)
        return
    write_whole(endpoint_file, text.encode(), durable=False)
