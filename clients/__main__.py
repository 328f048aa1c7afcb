"""Start a client TEE: confine the process first, then import and run the ClientApp that the manifest names.

``python -m clients --launch-fd N [--channel-fd M]``: the launch document comes over an inherited descriptor, so that
its secret is in no file and no argument list.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import tempfile
from pathlib import Path


def main(arguments: list[str]) -> int:
    """Run until the channel closes (``local``) or a signal ends it (``deployment``)."""
    if len(arguments) not in {2, 4} or arguments[0] != "--launch-fd":
        sys.stderr.write("usage: python -m clients --launch-fd N [--channel-fd M]\n")
        return 2
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the launcher, and the launcher ends this process.
    with os.fdopen(int(arguments[1]), "rb") as stream:
        data = stream.read()
    terms = json.loads(data)
    from confed.attestation.tee.confinement import confine, default_readable  # noqa: PLC0415 (nothing else may be imported before)

    readable = [*default_readable(), *(Path(entry) for entry in terms["readable"])]
    layers = confine(readable=readable, writable=(), network=terms["network"])
    # Nothing can be written, so no plaintext can end up in a temporary file; torch only wants a folder that is there.
    tempfile.tempdir = sys.prefix
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = sys.prefix

    from confed.client.host import serve_deployment, serve_socket  # noqa: PLC0415 (after confinement: imports start threads)
    from confed.client.launch import ClientLaunch  # noqa: PLC0415
    from confed.errors import ConfedError  # noqa: PLC0415

    try:
        launch = ClientLaunch.decode(data)
        if len(arguments) == 4:
            serve_socket(launch, socket.socket(fileno=int(arguments[3])), layers=layers)
        else:
            serve_deployment(launch, layers=layers)
    except ConfedError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
