"""The parties of a confidential chat, each a process of ``confed`` as people start it: broker, inference TEE, proxy."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from confed.errors import UnreachableError
from confed.simulation.tethered import tether

_ENDS_WITHIN_S = 20


class Parties:
    """Processes that end with this one; use it as a context, which ends them in reverse.

    Args:
        folder: where each party's log is.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self, name: str, *words: str) -> Callable[[], Mapping[str, Any]]:
        """Start a command of ``confed`` that goes on; return what waits for its one JSON line, said when it is ready.

        That raises an UnreachableError if the command ends before: the last line of its log says why. The thread that
        starts a command must live as long as it.
        """
        log = self._folder / f"{name}.log"
        with log.open("wb") as errors:
            process = subprocess.Popen(  # noqa: S603
                tether([sys.executable, "-m", "confed.cli.main", *words]),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        self._stack.callback(_end, process)

        def ready() -> Mapping[str, Any]:
            line = process.stdout.readline() if process.stdout else b""
            if not line:
                process.wait()
                raise UnreachableError(name, expected="to start", got=_last_line(log.read_bytes()))
            return json.loads(line)

        return ready


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_ENDS_WITHIN_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout:
        process.stdout.close()


def _last_line(data: bytes) -> str:
    lines = data.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "nothing"
