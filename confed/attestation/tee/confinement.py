"""Confines this process as far as the kernel allows: what stands in for hardware around a simulated TEE.

Layers, each applied if the kernel has it and named in what ``confine`` returns only if it is active:

1. ``network-namespace``    no network but inherited sockets and path-based Unix sockets (without ``network``);
2. ``no-core``              no core dumps;
3. ``not-dumpable``         nobody without CAP_SYS_PTRACE attaches or reads memory;
4. ``few-capabilities``     of a privileged process's only those that pass over file modes (Landlock bounds them);
5. ``no-new-privileges``    nothing that it executes gains any;
6. ``landlock-N`` …         only given paths; no TCP; no abstract sockets or signals to the outside;
7. ``seccomp`` …            no system calls that confined code never needs.

It cannot keep out the machine's administrator: it is no TEE, and its list is self-reported. Standard library and
ctypes only; it must run before any thread starts, since a thread that already runs would stay unconfined. Elsewhere
than on Linux only ``no-core`` is there.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import site
import sys
import sysconfig
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import confed
from confed.attestation.tee import landlock, seccomp
from confed.attestation.tee.kernel import Syscall, raw_syscall
from confed.errors import SessionError

# include/uapi/linux/prctl.h
_GET_DUMPABLE, _SET_DUMPABLE = 3, 4
_CAPBSET_DROP = 24
_SET_NO_NEW_PRIVS, _GET_NO_NEW_PRIVS = 38, 39
# include/uapi/linux/sched.h
_NEW_USER, _NEW_NET = 0x10000000, 0x40000000
# include/uapi/linux/capability.h: CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, so that root's own files stay usable.
_KEPT_CAPABILITIES = (1, 2)
_LAST_POSSIBLE_CAPABILITY = 63
_CAPABILITY_VERSION_3 = 0x20080522

_READABLE = (
    "/usr", "/lib", "/lib64", "/bin", "/sbin", "/proc", "/sys",
    "/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom",
    "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/ld.so.preload", "/etc/ssl", "/etc/pki",
    "/etc/ca-certificates", "/etc/passwd", "/etc/group", "/etc/nsswitch.conf", "/etc/hosts", "/etc/host.conf",
    "/etc/resolv.conf", "/etc/gai.conf", "/etc/localtime", "/etc/timezone", "/etc/os-release", "/etc/mime.types",
    "/etc/alternatives", "/etc/crypto-policies", "/etc/services", "/etc/protocols",
)  # fmt: skip


def confine(
    *,
    readable: Sequence[Path],
    writable: Sequence[Path],
    network: bool,
    allow_exec: bool = False,
    syscall: Syscall = raw_syscall,
) -> tuple[str, ...]:
    """Confine this process for good, and return the layers that are active.

    Guarantees: a layer that the kernel refuses is not in the result, and no layer is in it that is not active. What
    is open already stays open: inherited sockets and descriptors go on working.

    Args:
        readable: files and directories that stay readable; see ``default_readable`` for Python's own.
        writable: files and directories (existing now) in which it may read, write, make and remove.
        network: keep the network; otherwise only Unix sockets are left.
        allow_exec: other programs may be executed; forking is possible in any case.
        syscall: makes system calls; a test's may play another kernel.

    Raises:
        SessionError: another thread runs already.
    """
    threads = _thread_count()
    if threads != 1:
        raise SessionError("confinement", expected="a process with one thread", got=threads)
    active: list[str] = []
    # Namespaces first: the maps of a user namespace cannot be written once the process is not dumpable.
    if not network:
        active += _try(lambda: _leave_network(syscall))
    active += _protect_memory(syscall)
    active += _try(lambda: _drop_capabilities(syscall))
    # The kernel asks for this one before it takes the two that follow from an unprivileged process.
    active += _try(lambda: _refuse_privileges(syscall))
    active += _try(
        lambda: landlock.restrict(
            readable=readable, writable=writable, network=network, allow_exec=allow_exec, syscall=syscall
        )
    )
    active += _try(lambda: seccomp.restrict(network=network, allow_exec=allow_exec, syscall=syscall))
    return tuple(active)


def confine_late(*, syscall: Syscall = raw_syscall) -> tuple[str, ...]:
    """Apply what still works once threads run, because it holds for the whole process; return the active layers.

    For a process that somebody else starts (a Ray worker): no core dumps, and not dumpable. Nothing else.
    """
    return tuple(_protect_memory(syscall))


def default_readable() -> tuple[Path, ...]:
    """Return what Python, its packages and the C library read: the interpreter, confed, system libraries, /proc, /sys.

    Home directories, data and temporary files are not among it, nor is the working directory.
    """
    paths = [*_READABLE, sys.prefix, sys.base_prefix, sys.exec_prefix, str(Path(confed.__file__).parent)]
    paths += [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    if site.ENABLE_USER_SITE:
        paths.append(site.getusersitepackages())
    return tuple(path for path in map(Path, dict.fromkeys(paths)) if path.exists())


def _try(layer: Callable[[], Sequence[str]]) -> Sequence[str]:
    """Apply a layer; one that the kernel refuses is not there, which the evidence then shows."""
    try:
        return layer()
    except OSError:
        return ()


def _thread_count() -> int:
    # The kernel's count: threads of C libraries are in it, which Python does not know of.
    return len(list(Path("/proc/self/task").iterdir())) if sys.platform == "linux" else threading.active_count()


def _protect_memory(syscall: Syscall) -> list[str]:
    return [*_try(_refuse_core_dumps), *_try(lambda: _refuse_dumping(syscall))]


def _refuse_core_dumps() -> Sequence[str]:
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except ValueError:
        return ()
    return ("no-core",) if resource.getrlimit(resource.RLIMIT_CORE) == (0, 0) else ()


def _refuse_dumping(syscall: Syscall) -> Sequence[str]:
    syscall("prctl", _SET_DUMPABLE, 0, 0, 0, 0)
    return ("not-dumpable",) if syscall("prctl", _GET_DUMPABLE, 0, 0, 0, 0) == 0 else ()


def _refuse_privileges(syscall: Syscall) -> Sequence[str]:
    syscall("prctl", _SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    return ("no-new-privileges",) if syscall("prctl", _GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1 else ()


def _leave_network(syscall: Syscall) -> Sequence[str]:
    before = Path("/proc/self/ns/net").readlink()
    try:
        syscall("unshare", _NEW_NET)
    except PermissionError:
        # Without privileges a user namespace gives the right to make the other.
        user, group = os.geteuid(), os.getegid()
        syscall("unshare", _NEW_USER | _NEW_NET)
        for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            # Left undone, the process only looks like nobody to itself.
            with contextlib.suppress(OSError):
                Path("/proc/self", name).write_text(text, encoding="utf-8")
    return ("network-namespace",) if Path("/proc/self/ns/net").readlink() != before else ()


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


def _drop_capabilities(syscall: Syscall) -> Sequence[str]:
    if os.geteuid() == 0 or _effective_capabilities() != 0:
        for capability in range(_LAST_POSSIBLE_CAPABILITY + 1):
            if capability not in _KEPT_CAPABILITIES:
                with contextlib.suppress(OSError):  # Not permitted, or the kernel does not know it.
                    syscall("prctl", _CAPBSET_DROP, capability, 0, 0, 0)
        kept = sum(1 << capability for capability in _KEPT_CAPABILITIES) & _effective_capabilities()
        # Two times effective, permitted, inheritable; all kept ones are in the first.
        sets = (ctypes.c_uint32 * 6)(kept, kept, 0, 0, 0, 0)
        header = _CapabilityHeader(_CAPABILITY_VERSION_3, 0)
        syscall("capset", ctypes.byref(header), ctypes.byref(sets))
    allowed = sum(1 << capability for capability in _KEPT_CAPABILITIES)
    return ("few-capabilities",) if _effective_capabilities() & ~allowed == 0 else ()


def _effective_capabilities() -> int:
    for line in Path("/proc/self/status").read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    raise OSError("no capabilities in /proc/self/status")
