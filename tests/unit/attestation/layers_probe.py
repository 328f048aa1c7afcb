"""Runs in a process of its own: confines a forked child for each kernel that it plays, prints the layers as JSON."""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
from pathlib import Path

from confed.attestation.tee.confinement import confine
from confed.attestation.tee.kernel import raw_syscall


def playing(names: str):
    """Return the system call function of a kernel that lacks what ``names``, joined by "and", say."""
    syscall = raw_syscall
    for name in names.split(" and "):
        syscall = _lacking(name, syscall)
    return syscall


def _lacking(name: str, real):

    def syscall(call, *arguments):
        first = arguments[0] if arguments else None
        if name.startswith("abi ") and call == "landlock_create_ruleset" and arguments[2] == 1:
            return int(name.removeprefix("abi "))
        refused = {
            "no landlock": call.startswith("landlock"),
            "landlock that restricts nothing": call == "landlock_restrict_self",
            "no seccomp": call == "seccomp",
            "no network namespaces": call == "unshare",
            "network namespaces for users only": call == "unshare" and first == 0x40000000,
            "no way to refuse privileges": call == "prctl" and first == 38,
            "no way to drop capabilities": call == "capset",
            "nothing": True,
        }.get(name, False)
        if refused:
            raise OSError(errno.EPERM, "played")
        if name == "dumps all the same" and call == "prctl" and first == 4:
            return 0
        if name == "capabilities dropped in name only" and call == "capset":
            return 0
        if name == "namespaces in name only" and call == "unshare":
            return 0
        return real(call, *arguments)

    return syscall


def layers_of(name: str) -> dict[str, object]:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        layers = confine(readable=[], writable=[], network=False, syscall=playing(name))
        try:
            readable = bool(Path(__file__).read_bytes())
        except OSError:
            readable = False
        try:
            with socket.socket() as probe:
                probe.connect(TCP.getsockname())
            connected = True
        except OSError:
            connected = False
        os.write(writer, json.dumps({"layers": layers, "readable": readable, "connected": connected}).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        data = pipe.read()
    os.waitpid(child, 0)
    return json.loads(data)


TCP = socket.create_server(("127.0.0.1", 0))

if __name__ == "__main__":
    sys.stdout.write(json.dumps({name: layers_of(name) for name in sys.argv[1:]}))
