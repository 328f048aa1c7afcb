"""An inference TEE: ``python -m confed.inference --launch-fd N --listen-fd M``.

1. The launch document is read from an inherited descriptor; the listening socket is inherited too.
2. The process is confined.
3. The engine that the manifest names is imported; keys are made; the model owner's broker is attested to.
4. The model is opened, and requests are answered until SIGTERM. One JSON line says so.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import tempfile
from pathlib import Path

# Threads may only start once a process is confined.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def main(arguments: list[str]) -> int:
    """Serve until a signal ends it."""
    parser = argparse.ArgumentParser(prog="python -m confed.inference", description="Start an inference TEE.")
    parser.add_argument("--launch-fd", type=int, required=True, help="where the launch document comes")
    parser.add_argument("--listen-fd", type=int, required=True, help="the listening socket")
    told = parser.parse_args(arguments)
    # 1.
    with os.fdopen(told.launch_fd, "rb") as stream:
        data = stream.read()
    if not data:
        return 0  # The launcher gave up before it had anything to run.
    terms = json.loads(data)
    # 2.
    from confed.attestation.tee.confinement import confine, default_readable  # noqa: PLC0415 (starts no thread)

    readable = [*default_readable(), *(Path(entry) for entry in terms["readable"])]
    layers = confine(readable=readable, writable=(), network=terms["network"])
    # Nothing can be written, so no plaintext can end up in a temporary file; torch only wants a folder that is there.
    tempfile.tempdir = sys.prefix
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = sys.prefix
    from confed.errors import ConfedError  # noqa: PLC0415 (imports may start threads)

    try:
        _serve(data, socket.socket(fileno=told.listen_fd), layers)
    except ConfedError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


def _serve(data: bytes, listener: socket.socket, layers: tuple[str, ...]) -> None:
    from confed.attestation.attesters.launch import attester_of  # noqa: PLC0415
    from confed.inference.apis import Door  # noqa: PLC0415
    from confed.inference.edge import Edge  # noqa: PLC0415
    from confed.inference.engine import load_engine  # noqa: PLC0415
    from confed.inference.launch import InferenceLaunch  # noqa: PLC0415
    from confed.inference.listening import address_of, serve  # noqa: PLC0415
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
    replica = Replica(manifest=manifest, attester=attester, broker=BrokerClient(channel))
    # 4.
    arrays = replica.open_model(Container.map(Path(launch.model)))
    channel.close()
    model = load_engine(manifest.code.client_app, arrays=arrays, settings=manifest.settings)
    door = Door(model, name=manifest.name)
    told = {"instance": replica.instance, "manifest": manifest.digest, "paths": door.paths, "url": address_of(listener)}
    sys.stdout.write(json.dumps(told) + "\n")
    sys.stdout.flush()
    serve(Edge(replica, door, most_at_once=launch.most_at_once), listener)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
