"""Child processes that are started, watched and ended together.

Guarantees:

- Each child is in a process group of its own, with a log file of its own, and without standard input.
- Every group is ended on leaving, first politely, then for certain.
- A child dies with this process, even where that is killed with SIGKILL. What a child itself starts is not so tethered.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from confed.errors import DeploymentError, UnreachableError
from confed.simulation.tethered import tether

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

_CHECK_INTERVAL_S = 0.05
_GRACE_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildProcess:
    """One process that was started.

    Args:
        name: what errors call it.
        popen: its handle; the id of the process is also that of its group.
        log: the file that its output goes to.
        may_end: whether it is expected to end by itself.
    """

    name: str
    popen: subprocess.Popen[bytes]
    log: Path
    may_end: bool

    def last_line(self) -> str:
        """Return the last line of its log that is not empty."""
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1] if lines else "(nothing logged)"


class ChildProcesses:
    """Child processes by name, for as long as a ``with`` block lasts; what they were is known after it."""

    def __init__(self) -> None:
        self._children: dict[str, ChildProcess] = {}

    def __enter__(self) -> Self:
        """Get ready to start processes."""
        # A tethered child dies with the thread that started it, so one thread starts them all and outlives them.
        self._starter = ThreadPoolExecutor(max_workers=1, thread_name_prefix="child-processes")
        return self

    def __exit__(self, *_: object) -> None:
        """End every process, whatever happened."""
        self._end_all()
        self._starter.shutdown()

    def __getitem__(self, name: str) -> ChildProcess:
        """Return the process of that name; ``KeyError`` if there is none."""
        return self._children[name]

    @property
    def process_ids(self) -> tuple[int, ...]:
        """The ids of the processes that were started; each is also the id of a process group."""
        return tuple(child.popen.pid for child in self._children.values())

    def start(
        self,
        name: str,
        command: Sequence[str],
        *,
        folder: Path,
        environment: Mapping[str, str],
        may_end: bool = False,
    ) -> ChildProcess:
        """Start a process in ``folder``, with its log there and exactly the given environment.

        Raises:
            OSError: the log cannot be written, or no process can be made.
        """
        log = folder / f"{name}.log"

        def start() -> subprocess.Popen[bytes]:
            with log.open("wb") as output:
                return subprocess.Popen(  # noqa: S603
                    tether(command),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    cwd=folder,
                    # An own group: Ctrl-C reaches this process alone, which then ends the others in order.
                    start_new_session=True,
                )

        popen = self._starter.submit(start).result()
        child = ChildProcess(name=name, popen=popen, log=log, may_end=may_end)
        self._children[name] = child
        return child

    def wait(
        self,
        condition: Callable[[], bool],
        *,
        what: str,
        timeout_s: float,
        check: Callable[[], None] | None = None,
    ) -> None:
        """Wait until ``condition`` holds, for as long as every process that may not end lives.

        Args:
            condition: looked at every few hundredths of a second.
            what: what the condition is, in words.
            timeout_s: how long to wait.
            check: called after each look; raises to give up.

        Raises:
            DeploymentError: a process died, or the time is over.
            UnreachableError: what ``condition`` raises while every process lives.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            self._must_live()
            try:
                if condition():
                    return
            except UnreachableError:
                # The better explanation, if there is one: which process died and what it said last.
                self._must_live()
                raise
            if check is not None:
                check()
            if time.monotonic() > deadline:
                raise DeploymentError(what, expected=f"within {timeout_s:g} s", got="not yet")
            time.sleep(_CHECK_INTERVAL_S)

    def _must_live(self) -> None:
        for child in self._children.values():
            code = child.popen.poll()
            if code is not None and not child.may_end:
                raise DeploymentError(child.name, expected="to run", got=f"exit code {code}: {child.last_line()}")

    def _end_all(self) -> None:
        """End every process group: politely, youngest first, then for certain."""
        groups = [child.popen for child in reversed(self._children.values())]
        for popen in groups:
            _signal(popen, signal.SIGTERM)
        deadline = time.monotonic() + _GRACE_S
        while any(_group_lives(popen) for popen in groups) and time.monotonic() < deadline:
            time.sleep(_CHECK_INTERVAL_S)
        for popen in groups:
            _signal(popen, signal.SIGKILL)
        for popen in groups:
            popen.wait()


def _signal(popen: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(popen.pid, number)


def _group_lives(popen: subprocess.Popen[bytes]) -> bool:
    popen.poll()
    try:
        os.killpg(popen.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return popen.returncode is None
    return True
