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
from typing import Any, Self

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
_SERVES_WITHIN_S = 60.0


class Started:
    """A command that goes on, and has said its one JSON line; use it as a context, which ends it with SIGTERM."""

    def __init__(self, arguments: Sequence[str], *, environment: Mapping[str, str], log: Path) -> None:
        read_end, write_end = os.pipe()
        with log.open("wb") as errors, os.fdopen(write_end, "wb") as out:
            self._number = _warm().start(arguments, environment=environment, files=(out.fileno(), errors.fileno()))
        with os.fdopen(read_end, "rb") as lines:
            line = lines.readline()
        assert line, log.read_text()
        self.said: Mapping[str, Any] = json.loads(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        _warm().end(self._number)


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
        request = {"arguments": arguments, "environment": dict(environment), "stays": False}
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            answer = self._asked(request, (out.fileno(), err.fileno()), timeout_s=timeout_s)
            texts = []
            for file in (out, err):
                file.seek(0)
                texts.append(file.read().decode())
        return subprocess.CompletedProcess(list(arguments), answer, *texts)

    def start(self, arguments: Sequence[str], *, environment: Mapping[str, str], files: tuple[int, int]) -> int:
        """Start a command that goes on, with these files as output and errors, and return its process id."""
        request = {"arguments": arguments, "environment": dict(environment), "stays": True}
        return self._asked(request, files, timeout_s=_SERVES_WITHIN_S)

    def end(self, number: int) -> int:
        """End a command that was started, and return its exit code."""
        return self._asked({"end": number}, (), timeout_s=_SERVES_WITHIN_S)

    def _asked(self, request: Mapping[str, object], files: Sequence[int], *, timeout_s: float) -> int:
        self._ours.settimeout(timeout_s)
        socket.send_fds(self._ours, [json.dumps(request).encode()], files)
        try:
            answer = self._ours.recv(16)
        except TimeoutError:
            self._process.kill()
            raise
        assert answer, "the process that forks has ended"
        return int(answer)

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
        told = json.loads(request)
        if "end" in told:
            os.kill(told["end"], signal.SIGTERM)
            control.send(_code_of(told["end"]))
            continue
        parent, child = os.getpid(), os.fork()
        if child == 0:
            control.close()
            _become(told, descriptors, parent)
        for descriptor in descriptors:
            os.close(descriptor)
        control.send(str(child).encode() if told["stays"] else _code_of(child))


def _code_of(child: int) -> bytes:
    """Wait for a process's end and return its exit code."""
    return str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])).encode()


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
