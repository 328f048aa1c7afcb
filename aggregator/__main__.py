"""Start the aggregator enclave: ``python -m aggregator --launch-fd N``.

1. The launch document is read from an inherited descriptor, so that its secret is in no file and no argument list.
2. The process is confined before anything is imported that could start a thread.
3. The service listens; its endpoint is written beside it; SIGTERM ends it, and its keys with it.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from confed.files import PUBLIC, write_whole

if TYPE_CHECKING:
    from aggregator.launch import AggregatorLaunch

_MOST_THREADS = 4


def main(arguments: list[str]) -> int:
    """Serve until SIGTERM; return the exit code."""
    if len(arguments) != 2 or arguments[0] != "--launch-fd" or not arguments[1].isdigit():
        sys.stderr.write("usage: python -m aggregator --launch-fd N\n")
        return 2
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the launcher, and the launcher ends this process.
    os.umask(0o077)
    # 1.
    with os.fdopen(int(arguments[1]), "rb") as stream:
        data = stream.read()
    # 2.
    layers = _confine(data)
    # From here on threads may start. One thread of BLAS: folding has its own.
    os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1", FLWR_TELEMETRY_ENABLED="0")
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(message)s", stream=sys.stderr)

    from aggregator.launch import AggregatorLaunch  # noqa: PLC0415
    from confed.errors import ConfedError  # noqa: PLC0415

    try:
        _serve(AggregatorLaunch.decode(data), layers)
    except ConfedError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


def _confine(data: bytes) -> tuple[str, ...]:
    """Confine this process by what the document says of paths and network; strict parsing comes after."""
    from confed.attestation.tee.confinement import confine, default_readable  # noqa: PLC0415
    from confed.wire.addresses import handed_folder  # noqa: PLC0415

    terms = json.loads(data)
    writable = [Path(terms["endpoint_file"]).parent]
    if terms["listen"].startswith("unix:"):
        writable.append(Path(terms["listen"].removeprefix("unix:")).parent)
    if terms.get("courier_directory"):
        writable.append(handed_folder(Path(terms["courier_directory"])))
    readable = [*default_readable(), Path(__file__).resolve().parent, *(Path(entry) for entry in terms["readable"])]
    if terms.get("base_records_dir"):
        readable.append(Path(terms["base_records_dir"]))
    return confine(readable=readable, writable=writable, network=terms["network"])


def _serve(launch: AggregatorLaunch, layers: tuple[str, ...]) -> None:
    import gc  # noqa: PLC0415
    import shutil  # noqa: PLC0415
    import tempfile  # noqa: PLC0415
    import threading  # noqa: PLC0415

    from aggregator.enclave import Enclave  # noqa: PLC0415
    from aggregator.run import Run  # noqa: PLC0415
    from aggregator.service import AggregatorService  # noqa: PLC0415
    from confed.attestation.attesters.launch import attester_of  # noqa: PLC0415
    from confed.keybroker.client import connect_brokers  # noqa: PLC0415
    from confed.memory import keep_freed_by_all  # noqa: PLC0415
    from confed.wire.channel import serve  # noqa: PLC0415
    from confed.wire.courier_client import CourierClient  # noqa: PLC0415

    keep_freed_by_all()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda _number, _frame: stop.set())
    courier = CourierClient(launch.courier)
    manifest = launch.manifest_decoded()
    enclave = Enclave(
        manifest=manifest,
        attester=attester_of(launch.attester, layers=layers, manifest_digest=manifest.digest),
        brokers=connect_brokers(launch.brokers),
        letters=courier,
    )
    folder = Path(tempfile.mkdtemp(prefix="sealed-", dir=launch.folder))
    try:
        run = Run(
            enclave,
            courier,
            folder=folder,
            threads=min(_MOST_THREADS, os.cpu_count() or 1),
            courier_directory=Path(launch.courier_directory) if launch.courier_directory else None,
            records=Path(launch.base_records_dir) if launch.base_records_dir else None,
            strategy=launch.strategy,
        )
        gc.freeze()  # what is imported stays; the collector need not look through it again and again
        with serve(AggregatorService(run).register, listen=launch.listen, tls=launch.tls) as server:
            told = {"certificate": server.endpoint.certificate, "target": server.endpoint.target}
            write_whole(Path(launch.endpoint_file), json.dumps(told).encode(), mode=PUBLIC, durable=False)
            stop.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        courier.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
