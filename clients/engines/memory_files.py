"""An opened model as files that a child process can read and no disk ever holds.

A file here is memory (``memfd_create``): it has no name in any folder, is sealed against writing once it is filled, and
is gone when the last process that has it open ends, however that ends. A child inherits its descriptor and names it in
a folder of links (``clients/engines/child.py``); the folder holds no byte of the model, and is still required to be in
a file system that is memory, since what a child writes beside it nobody here knows. Memory that may be swapped to a
disk is refused.

Not promised: that memory is out of the host's sight. That is the TEE's part.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from confed.errors import SessionError
from confed.model.hub import DOCUMENTS, FOLDER, weights_of
from confed.model.weights import pack

_IN_MEMORY = frozenset({"tmpfs", "ramfs"})
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
_WEIGHTS = "model.safetensors"


def model_files(arrays: Mapping[str, NDArray[Any]]) -> dict[str, int]:
    """Return a model's directory in the Hub's layout as descriptors by file name; whoever calls closes them.

    Raises:
        SessionError: this kernel has no such files.
    """
    files: dict[str, int] = {}
    try:
        for name in DOCUMENTS:
            if FOLDER + name in arrays:
                files[name] = memory_file(name, [arrays[FOLDER + name].data])
        files[_WEIGHTS] = memory_file(_WEIGHTS, pack(weights_of(arrays)))
    except BaseException:
        for descriptor in files.values():
            os.close(descriptor)
        raise
    return files


def memory_file(name: str, parts: Iterable[bytes | memoryview]) -> int:
    """Return the descriptor of a file in memory with this content, which nobody can change any more.

    Raises:
        SessionError: this kernel has no such files.
    """
    if not hasattr(os, "memfd_create"):
        raise SessionError("memory files", expected="Linux (memfd_create)", got="another system")
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        for part in parts:
            view = memoryview(part).cast("B")
            while view:
                view = view[os.write(descriptor, view) :]
        os.lseek(descriptor, 0, os.SEEK_SET)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def require_memory(folder: Path, *, mounts: str | None = None, swaps: str | None = None) -> None:
    """Check that what is written to a folder stays in memory.

    Args:
        folder: as the launcher made it.
        mounts: ``/proc/self/mountinfo`` of this machine, unless a test gives another.
        swaps: ``/proc/swaps``, likewise.

    Raises:
        SessionError: a folder on a disk, or a machine that swaps to one.
    Source: proc_pid_mountinfo(5), proc_swaps(5).
    """
    mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8") if mounts is None else mounts
    found = _file_system(folder.resolve(), mounts)
    if found not in _IN_MEMORY:
        raise SessionError("engine's folder", expected=f"in memory ({' or '.join(sorted(_IN_MEMORY))})", got=found)
    swaps = Path("/proc/swaps").read_text(encoding="utf-8") if swaps is None else swaps
    if len(swaps.splitlines()) > 1:
        raise SessionError("swap", expected="none: memory must not reach a disk", got="some")


def _file_system(folder: Path, mounts: str) -> str:
    """Return the type of the file system that a folder is in: that of the longest mount point above it."""
    best, found = -1, "none"
    for line in mounts.splitlines():
        fields, _, rest = line.partition(" - ")
        point = Path(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields.split()[4]))
        # Of two mounts on one point the later one is seen.
        if (folder == point or point in folder.parents) and len(point.parts) >= best:
            best, found = len(point.parts), rest.split()[0]
    return found
