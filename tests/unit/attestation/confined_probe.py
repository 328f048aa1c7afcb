"""Runs in a process of its own: confines itself, tries things, prints what happened as JSON."""

from __future__ import annotations

import ctypes
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

from confed.attestation.tee.confinement import confine, default_readable
from confed.attestation.tee.kernel import raw_syscall


def attempt(action) -> str:
    try:
        result = action()
    except OSError as error:
        return f"refused {error.errno}"
    return f"done {result}"


def connect(family: int, kind: int, address) -> None:
    with socket.socket(family, kind) as probe:
        probe.connect(address)
        probe.send(b"x")


def call_grpc(target: str) -> bytes:
    from confed.wire.channel import Endpoint, open_channel  # noqa: PLC0415

    with open_channel(Endpoint(target=target, certificate="")) as channel:
        return channel.unary_unary("/probe/Echo")(b"hello", timeout=20)


def matmul() -> float:
    import torch  # noqa: PLC0415

    return float((torch.ones(64, 64) @ torch.ones(64, 64)).sum())


def numpy_threads() -> list[float]:
    import numpy as np  # noqa: PLC0415

    sums = []
    threads = [threading.Thread(target=lambda: sums.append(float((np.ones((64, 64)) @ np.ones((64, 64))).sum())))
               for _ in range(4)]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sums


def fork() -> int:
    child = os.fork()
    if child == 0:
        os._exit(7)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def read_random() -> int:
    with Path("/dev/urandom").open("rb") as source:
        return len(source.read(8))


def open_forbidden(outside: Path) -> str:
    return outside.read_text(encoding="utf-8")


def main() -> None:
    terms = json.loads(sys.argv[1])
    outside, inside = Path(terms["outside"]), Path(terms["inside"])
    parent, port, abstract = os.getppid(), terms["port"], "\0" + terms["abstract"]
    layers = confine(
        readable=[*default_readable(), Path(terms["shared"])],
        writable=[inside],
        network=terms["network"],
        allow_exec=terms["allow_exec"],
    )
    word = ctypes.c_long(0)
    stack = ctypes.create_string_buffer(65536)
    results = {
        "layers": layers,
        "read outside": attempt(lambda: open_forbidden(outside / "secret")),
        "list outside": attempt(lambda: len(list(outside.iterdir()))),
        "write outside": attempt(lambda: (outside / "leak").write_text("x")),
        "read shared": attempt((Path(terms["shared"]) / "public").read_text),
        "write shared": attempt(lambda: (Path(terms["shared"]) / "leak").write_text("x")),
        "write inside": attempt(lambda: (inside / "kept").write_text("x")),
        "rename inside": attempt(lambda: (inside / "kept").rename(inside / "moved").read_text()),
        "ptrace": attempt(lambda: raw_syscall("ptrace", 0, 0, 0, 0)),
        "read a stranger's memory": attempt(
            lambda: raw_syscall("process_vm_readv", parent, ctypes.byref(word), 0, ctypes.byref(word), 0, 0)
        ),
        "mount": attempt(lambda: raw_syscall("mount", b"none", b"/mnt", b"tmpfs", 0, None)),
        "unshare": attempt(lambda: raw_syscall("unshare", 0x10000000)),
        "clone a namespace": attempt(
            lambda: raw_syscall("clone", 0x10000000 | 17, ctypes.byref(stack, 60000), 0, 0, 0)
        ),
        "clone3": attempt(lambda: raw_syscall("clone3", None, 0)),
        "bpf": attempt(lambda: raw_syscall("bpf", 0, None, 0)),
        "io_uring": attempt(lambda: raw_syscall("io_uring_setup", 1, ctypes.byref(stack))),
        "environment of the parent": attempt(lambda: len(Path(f"/proc/{parent}/environ").read_bytes())),
        "signal the parent": attempt(lambda: os.kill(parent, 0)),
        "TCP": attempt(lambda: connect(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", port))),
        "UDP": attempt(lambda: connect(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", port))),
        "abstract socket": attempt(lambda: connect(socket.AF_UNIX, socket.SOCK_STREAM, abstract)),
        "gRPC over a Unix socket": attempt(lambda: call_grpc(terms["target"]).decode()),
        "execute": attempt(lambda: subprocess.run(["/bin/true"], check=True).returncode),
        "execute what it wrote": attempt(lambda: run_written(inside / "program")),
        "fork": attempt(fork),
        "random": attempt(read_random),
        "status": attempt(lambda: "Seccomp:" in Path("/proc/self/status").read_text()),
        "silence": attempt(lambda: Path(os.devnull).write_text("x")),
        "numpy in threads": attempt(numpy_threads),
    }
    if terms["torch"]:
        results["torch"] = attempt(matmul)
    sys.stdout.write(json.dumps(results))


def run_written(program: Path) -> int:
    program.write_text("#!/bin/true\n")
    program.chmod(0o700)
    return subprocess.run([program], check=True).returncode


if __name__ == "__main__":
    main()
