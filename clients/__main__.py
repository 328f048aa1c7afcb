"""Start client TEEs: ``python -m clients (--launch-fd N [--channel-fd M])… [--early LIBRARY]…``.

Each pair is one TEE. The launch document comes over an inherited descriptor, so that its secret is in no file and no
argument list. With several pairs (the ``local`` engine) libraries are imported once, and a process is forked for each
TEE; with one, this process becomes it. In either case, in this order:

1. Libraries may be imported that start no thread; nothing of the app is, and no key exists.
2. The launch document is read.
3. The process is confined.
4. The app that the manifest names is imported; keys are made; messages are served.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import importlib
import importlib.util
import json
import os
import signal
import sys
import tempfile
from pathlib import Path

# Threads may only start once a process is confined.
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
_LIBRARIES = ("flwr.app", "flwr.clientapp", "confed.client.host", "confed.client.mod")
_PR_SET_PDEATHSIG = 1  # Source: linux/prctl.h


def main(arguments: list[str]) -> int:
    """Serve until the channel closes (``local``) or a signal ends it (``deployment``)."""
    parser = argparse.ArgumentParser(prog="python -m clients", description="Start client TEEs.")
    parser.add_argument("--launch-fd", type=int, action="append", required=True, help="where a launch document comes")
    parser.add_argument("--channel-fd", type=int, action="append", default=[], help="socket that messages come over")
    parser.add_argument("--early", action="append", default=[], help="library to import before TEEs are forked")
    told = parser.parse_args(arguments)
    if len(told.launch_fd) > 1 and len(told.channel_fd) != len(told.launch_fd):
        parser.error("several TEEs need a channel each")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the launcher, and the launcher ends this process.
    if not told.channel_fd:
        return _become_tee(told.launch_fd[0], None)
    # 1.
    for name in (*told.early, *_LIBRARIES):
        if importlib.util.find_spec(name.split(".", 1)[0]) is not None:
            importlib.import_module(name)
    if len(told.launch_fd) == 1:
        return _become_tee(told.launch_fd[0], told.channel_fd[0])
    return _fork(list(zip(told.launch_fd, told.channel_fd, strict=True)))


def _fork(pairs: list[tuple[int, int]]) -> int:
    """Fork one process for each TEE and wait for them; return the largest exit code."""
    parent, children = os.getpid(), []
    for launch, channel in pairs:
        child = os.fork()
        if child == 0:
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
            if os.getppid() != parent:
                os._exit(1)
            for others in pairs:
                if others != (launch, channel):
                    for descriptor in others:
                        with contextlib.suppress(OSError):
                            os.close(descriptor)
            return _become_tee(launch, channel)
        children.append(child)
    for pair in pairs:
        for descriptor in pair:
            os.close(descriptor)
    return max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)


def _become_tee(launch_fd: int, channel_fd: int | None) -> int:
    # 2.
    with os.fdopen(launch_fd, "rb") as stream:
        data = stream.read()
    if not data:
        return 0  # The launcher gave up before it had anything to run.
    # 3.
    terms = json.loads(data)
    from confed.attestation.tee.confinement import confine, default_readable  # noqa: PLC0415 (starts no thread)

    readable = [*default_readable(), *(Path(entry) for entry in terms["readable"])]
    layers = confine(readable=readable, writable=(), network=terms["network"])
    # Nothing can be written, so no plaintext can end up in a temporary file; torch only wants a folder that is there.
    tempfile.tempdir = sys.prefix
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = sys.prefix
    # 4.
    from confed.client.host import serve_deployment, serve_socket  # noqa: PLC0415 (imports may start threads)
    from confed.client.launch import ClientLaunch  # noqa: PLC0415
    from confed.errors import ConfedError  # noqa: PLC0415

    try:
        launch = ClientLaunch.decode(data)
        if channel_fd is None:
            serve_deployment(launch, layers=layers)
        else:
            serve_socket(launch, channel_fd, layers=layers)
    except ConfedError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
