"""A child process of a run: its log, its secret, its end, and starting it again.

A secret goes over an inherited pipe, never into a file or an argument.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from confed.errors import DeploymentError
from confed.simulation.tethered import tether

_START_S = 60.0
_STOP_S = 5.0
_POLL_S = 0.01
_RESTARTS = 3


class Process:
    """A child process with its log; it ends with this one, and its early death is told by name."""

    def __init__(self, name: str, arguments: Sequence[str], *, log: Path, secret: bytes | None = None) -> None:
        self.name = name
        self._log = log
        self._starts_again: Callable[[], tuple[Sequence[str], bytes]] | None = None
        self._starts = 0
        self.process = self._spawn(arguments, secret or b"")

    def _spawn(self, arguments: Sequence[str], secret: bytes) -> subprocess.Popen[bytes]:
        self._starts += 1
        read_end, write_end = os.pipe()
        filled = [str(read_end) if argument == "{fd}" else argument for argument in arguments]
        with self._log.open("ab") as output:
            process = subprocess.Popen(  # noqa: S603
                tether(filled),
                pass_fds=(read_end,),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        os.close(read_end)
        with contextlib.suppress(BrokenPipeError), os.fdopen(write_end, "wb") as stream:
            stream.write(secret)
        return process

    def start_again_with(self, document: Callable[[], tuple[Sequence[str], bytes]]) -> None:
        """Let ``keep_alive`` start it again, with the arguments and secret that ``document`` then returns."""
        self._starts_again = document

    def keep_alive(self) -> None:
        """Start it again if it has died, a few times.

        Raises:
            DeploymentError: it died too often, or is not of those that go on.
        """
        if self.process.poll() is None:
            return
        if self._starts_again is None or self._starts > _RESTARTS:
            self.require_alive()
            return
        arguments, secret = self._starts_again()
        self.process = self._spawn(arguments, secret)

    def require_alive(self) -> None:
        """Raise if the process has ended.

        Raises:
            DeploymentError: names it and its last words.
        """
        if self.process.poll() is not None:
            lines = self._log.read_text(errors="replace").strip().splitlines()
            raise DeploymentError(self.name, expected="a running process", got=lines[-1] if lines else "its end")

    def wait_for_endpoint(self, path: Path) -> Mapping[str, Any]:
        """Return the endpoint document that the process writes once it listens.

        Raises:
            DeploymentError: it died, or took longer than a minute.
        """
        deadline = time.monotonic() + _START_S
        while not path.is_file():
            self.require_alive()
            if time.monotonic() > deadline:
                raise DeploymentError(self.name, expected=f"to listen within {_START_S:.0f} s", got="nothing")
            time.sleep(_POLL_S)
        return json.loads(path.read_bytes())

    def stop(self) -> None:
        """Ask it to end, and end it if it does not."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def reap(self) -> None:
        """Wait for its end."""
        try:
            self.process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
