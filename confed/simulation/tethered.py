"""Run a command that is killed when its parent ends, however that ends: ``python tethered.py PARENT COMMAND…``.

1. Ask the kernel for a SIGKILL when the parent ends (PR_SET_PDEATHSIG).
2. Give up if the parent ended before that.
3. Become the command: same process id, same environment, same open files.

``subprocess`` could do the first step itself between fork and exec (``preexec_fn``), but not safely in a process with
threads. The file is run by its path and imports nothing of confed, so it works in any folder and costs some 20 ms.

Not promised: that what the command starts ends as well, or that a set-user-ID command stays tethered. For the kernel
the parent is the thread that started the command: it must live for as long as the command shall.

Source: prctl(2), PR_SET_PDEATHSIG; Linux only.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

# Source: linux/prctl.h.
_PR_SET_PDEATHSIG = 1


def tether(command: Sequence[str]) -> list[str]:
    """Return the command line that runs ``command`` tethered to this process.

    Raises:
        Nothing.
    """
    # Isolated and without site: quick, and nothing in the environment or the folder changes what is imported.
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *command]


def _run() -> None:
    # Here, so that who only wants a command line does not load it.
    import ctypes  # noqa: PLC0415

    parent, *command = sys.argv[1:]
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != int(parent):
        sys.exit("tethered: the parent has ended")
    os.execvp(command[0], command)  # noqa: S606


if __name__ == "__main__":
    _run()
