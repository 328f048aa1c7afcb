"""A process that has imported what the command line imports, and forks a process for each command.

Importing torch, Flower and scikit-learn takes seconds of processor time, and dozens of tests run ``confed``. A command
is a process all the same: arguments, environment, folder, output and exit code of its own, imported like ``python -m``.
"""

from __future__ import annotations

import atexit
import ctypes
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
_PROGRAM = "confed.cli.main"
_LIBRARIES = (
    "torch",
    "sklearn.datasets",
    "flwr.app",
    "flwr.clientapp",
    "flwr.serverapp.strategy",
    _PROGRAM,
    "confed.cli.run",
    "confed.cli.verify",
    "confed.client",
    "confed.experiment.running",
    "confed.governor.strategy",
    "confed.records.verification",
    "matplotlib.backends.backend_svg",
    "matplotlib.figure",
)
_PR_SET_PDEATHSIG = 1  # Source: linux/prctl.h
_LARGEST_REQUEST = 1 << 16


class _Warm:
    """The process, started when first asked for; it ends with this one."""

    def __init__(self) -> None:
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.journey.warm", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            cwd=_ROOT,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        )
        theirs.close()

    def run(
        self, arguments: Sequence[str], *, environment: Mapping[str, str], timeout_s: float
    ) -> subprocess.CompletedProcess[str]:
        request = json.dumps({"arguments": arguments, "environment": dict(environment)}).encode()
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            self._ours.settimeout(timeout_s)
            socket.send_fds(self._ours, [request], [out.fileno(), err.fileno()])
            try:
                answer = self._ours.recv(16)
            except TimeoutError:
                self._process.kill()
                raise
            assert answer, "the process that forks has ended"
            texts = []
            for file in (out, err):
                file.seek(0)
                texts.append(file.read().decode())
        return subprocess.CompletedProcess(list(arguments), int(answer), *texts)

    def close(self) -> None:
        self._ours.close()
        self._process.wait(30)


@cache
def _warm() -> _Warm:
    warm = _Warm()
    atexit.register(warm.close)
    return warm


def run(
    arguments: Sequence[str], *, environment: Mapping[str, str], timeout_s: float
) -> subprocess.CompletedProcess[str]:
    """Run ``confed`` with these arguments and return it, finished."""
    return _warm().run(arguments, environment=environment, timeout_s=timeout_s)


def _serve(control: socket.socket) -> None:
    for name in _LIBRARIES:
        importlib.import_module(name)
    while True:
        request, descriptors, _, _ = socket.recv_fds(control, _LARGEST_REQUEST, 2)
        if not request:
            return
        parent, child = os.getpid(), os.fork()
        if child == 0:
            control.close()
            _become(json.loads(request), descriptors, parent)
        for descriptor in descriptors:
            os.close(descriptor)
        control.send(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])).encode())


def _become(request: Mapping[str, object], descriptors: Sequence[int], parent: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
    for descriptor, number in zip(descriptors, (1, 2), strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)
    environment, arguments = request["environment"], request["arguments"]
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [_PROGRAM, *arguments]
    sys.modules.pop(_PROGRAM)  # it runs as the program, as nothing that was imported before: else runpy warns
    runpy.run_module(_PROGRAM, run_name="__main__", alter_sys=True)
    sys.exit(0)


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
