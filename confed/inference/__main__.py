"""An inference TEE: ``python -m confed.inference --launch-fd N --listen-fd M [--outlet-fd O]``.

1. The launch document is read from an inherited descriptor; the listening socket is inherited too, and the outlet's
   where the manifest lets anything out but answers to requesters.
2. The process is confined.
3. The engine that the manifest names is imported; keys are made; the model owner's broker is attested to.
4. The model is opened, and requests are answered until SIGTERM, or with a lease for as long as it lasts. One JSON line
   says so.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import tempfile
import traceback
from contextlib import ExitStack
from pathlib import Path

_FAILED = 2

# Threads may only start once a process is confined.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def main(arguments: list[str]) -> int:
    """Serve until a signal ends it."""
    parser = argparse.ArgumentParser(prog="python -m confed.inference", description="Start an inference TEE.")
    parser.add_argument("--launch-fd", type=int, required=True, help="where the launch document comes")
    parser.add_argument("--listen-fd", type=int, required=True, help="the listening socket")
    parser.add_argument("--outlet-fd", type=int, help="where other outputs than answers to requesters go")
    told = parser.parse_args(arguments)
    # 1.
    with os.fdopen(told.launch_fd, "rb") as stream:
        data = stream.read()
    if not data:
        return 0  # The launcher gave up before it had anything to run.
    terms = json.loads(data)
    # 2.
    from confed.attestation.tee.confinement import confine, default_readable  # noqa: PLC0415 (starts no thread)
    from confed.memory import keep_freed  # noqa: PLC0415

    readable = [*default_readable(), *(Path(entry) for entry in terms["readable"])]
    keep_freed()  # what a request brings is as large as what the last one brought
    child = terms["child_folder"]
    writable = [Path(entry) for entry in (child, *terms["devices"]) if child]
    layers = confine(readable=readable, writable=writable, network=terms["network"], allow_exec=bool(child))
    # Nothing can be written, so no plaintext can end up in a temporary file; torch only wants a folder that is there.
    # An engine that runs another program has one folder, which it checks to be in memory.
    tempfile.tempdir = child or sys.prefix
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = sys.prefix
    from confed.errors import ConfedError  # noqa: PLC0415 (imports may start threads)

    try:
        outlet = None if told.outlet_fd is None else socket.socket(fileno=told.outlet_fd)
        _serve(data, socket.socket(fileno=told.listen_fd), outlet, layers)
    except ConfedError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except Exception as error:  # noqa: BLE001 (the TEE's edge: an engine's words may quote the model)
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}:{place.lineno}"
        sys.stderr.write(f"error: the replica failed: {type(error).__name__} at {where}\n")
        return _FAILED
    return 0


def _serve(data: bytes, listener: socket.socket, outlet: socket.socket | None, layers: tuple[str, ...]) -> None:
    from confed.attestation.attesters.launch import attester_of  # noqa: PLC0415
    from confed.inference.apis import Door  # noqa: PLC0415
    from confed.inference.edge import Edge  # noqa: PLC0415
    from confed.inference.engine import load_engine  # noqa: PLC0415
    from confed.inference.launch import InferenceLaunch  # noqa: PLC0415
    from confed.inference.leased import Leased  # noqa: PLC0415
    from confed.inference.listening import address_of, serve  # noqa: PLC0415
    from confed.inference.outlet import SocketOutlet  # noqa: PLC0415
    from confed.inference.replica import Replica  # noqa: PLC0415
    from confed.keybroker.client import BrokerClient  # noqa: PLC0415
    from confed.sealing.container import Container  # noqa: PLC0415
    from confed.wire.channel import open_channel  # noqa: PLC0415

    launch = InferenceLaunch.decode(data)
    manifest = launch.manifest_decoded()
    # 3.
    sys.path.insert(0, launch.app_directory)
    attester = attester_of(launch.attester, layers=layers, manifest_digest=manifest.digest)
    channel = open_channel(launch.broker.endpoint)
    out = None if outlet is None else SocketOutlet(outlet)
    replica = Replica(
        manifest=manifest,
        attester=attester,
        broker=BrokerClient(channel),
        evidence_outlet=out if launch.recorded else None,
    )
    # 4.
    container = Container.map(Path(launch.model))

    def open_door() -> Door:
        arrays = replica.open_model(container)
        return Door(
            load_engine(manifest.code.client_app, arrays=arrays, settings=manifest.settings), name=manifest.name
        )

    with ExitStack() as stack:
        terms = replica.serving.lease
        if terms is None:
            door = open_door()
            channel.close()
        else:
            door = stack.enter_context(Leased(replica, terms=terms, open_door=open_door))
        edge = Edge(replica, door, most_at_once=launch.most_at_once, outlet=out)
        said = {"instance": replica.instance, "manifest": manifest.digest, "paths": door.paths}
        sys.stdout.write(json.dumps({**said, "url": address_of(listener)}) + "\n")
        sys.stdout.flush()
        serve(edge, listener)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
