"""Becomes a child's command after making a folder of links to the files that it inherited.

    python child.py FOLDER NAME=DESCRIPTOR… -- COMMAND…

A link names the descriptor of this very process, which the command takes over with its process id, so that all of its
own children can open the file too. Standard library only; nothing of the model is read.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def main(words: list[str]) -> None:
    """Make the links and become the command."""
    at = words.index("--")
    folder, files, command = Path(words[0]), words[1:at], words[at + 1 :]
    folder.mkdir(mode=0o700)
    for entry in files:
        name, _, descriptor = entry.rpartition("=")
        (folder / name).symlink_to(f"/proc/{os.getpid()}/fd/{int(descriptor)}")
    os.execv(command[0], command)  # noqa: S606 (no shell)


if __name__ == "__main__":
    main(sys.argv[1:])
