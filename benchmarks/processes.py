"""Peak memory, processor time and page faults of every process that a benchmark starts, by what the process is."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Self

_INTERVAL_S = 0.2


class Processes:
    """Watches the processes below this one while a ``with`` block lasts; ``peaks_mb`` has each name's largest.

    Peaks and times are the kernel's own, so what is missed is at most the last look's interval of a process.

    Args:
        name: what a process is, from its command line; empty for one that is not of interest.
    """

    def __init__(self, name: Callable[[str], str]) -> None:
        self._name = name
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._known: set[int] = {os.getpid()}
        self._seconds: dict[tuple[str, int], float] = {}
        self._faults: dict[tuple[str, int], int] = {}
        self.peaks_mb: dict[str, float] = {}

    def seconds(self) -> dict[str, float]:
        """Return the processor seconds of all processes of each name together."""
        names = sorted({name for name, _ in self._seconds})
        return {name: round(sum(s for (found, _), s in self._seconds.items() if found == name), 2) for name in names}

    def faults(self) -> dict[str, int]:
        """Return how often all processes of each name together were given memory that they did not have: page faults.

        One is 4 KiB, or up to 2 MiB where the kernel gives huge pages.
        """
        names = sorted({name for name, _ in self._faults})
        return {name: sum(n for (found, _), n in self._faults.items() if found == name) for name in names}

    def __enter__(self) -> Self:
        """Begin to watch."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Look once more, and stop."""
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(_INTERVAL_S):
            self._look()
        self._look()

    def _look(self) -> None:
        parents: dict[int, int] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError, IndexError, ValueError):
                    parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
        grown = True
        while grown:  # a child may have been read before its parent
            new = {process for process, parent in parents.items() if parent in self._known} - self._known
            self._known |= new
            grown = bool(new)
        for process in self._known - {os.getpid()}:
            with contextlib.suppress(OSError):
                self._note(Path(f"/proc/{process}"))

    def _note(self, process: Path) -> None:
        command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        found = re.search(r"VmHWM:\s+(\d+) kB", (process / "status").read_text())
        name = self._name(command)
        if name and found:
            peak = int(found[1]) * 1024 / 1e6
            self.peaks_mb[name] = max(self.peaks_mb.get(name, 0.0), round(peak, 1))
            stat = (process / "stat").read_text().rsplit(")", 1)[1].split()
            self._seconds[name, int(process.name)] = sum(map(int, stat[11:13])) / os.sysconf("SC_CLK_TCK")
            self._faults[name, int(process.name)] = int(stat[7])
