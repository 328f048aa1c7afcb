"""A seccomp filter: system calls that confined code never needs, refused with EPERM.

Source: Linux Documentation/userspace-api/seccomp_filter.rst; BPF as in include/uapi/linux/filter.h.
"""

from __future__ import annotations

import ctypes
import platform
import struct

from confed.attestation.tee.kernel import Syscall, number

DENIED = (
    # other processes' memory and descriptors
    "ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "pidfd_getfd", "kcmp",
    # another kernel, other kernel code, more of the kernel's surface
    "kexec_load", "kexec_file_load", "reboot", "init_module", "finit_module", "delete_module",
    "bpf", "perf_event_open", "userfaultfd", "io_uring_setup", "io_uring_enter", "io_uring_register",
    # other file trees, namespaces after the fact
    "mount", "umount2", "pivot_root", "chroot", "move_mount", "open_tree", "open_tree_attr", "fsopen", "fsconfig",
    "fsmount", "fspick", "mount_setattr", "setns", "unshare", "open_by_handle_at", "fanotify_init",
    # keys, clocks and the machine's settings
    "add_key", "request_key", "keyctl", "settimeofday", "clock_settime", "adjtimex", "clock_adjtime",
    "swapon", "swapoff", "acct", "quotactl", "quotactl_fd", "syslog", "sethostname", "setdomainname",
    "iopl", "ioperm", "modify_ldt",
)  # fmt: skip
EXEC = ("execve", "execveat")

# include/uapi/linux/audit.h
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# include/uapi/linux/bpf_common.h and filter.h: load word, jump if equal / greater or equal / any bit set, return.
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
# Offsets in struct seccomp_data (include/uapi/linux/seccomp.h); the low half of the first argument is at 16.
_NUMBER, _ARCH, _ARGUMENT_0 = 0, 4, 16
_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
_EPERM, _ENOSYS, _EAFNOSUPPORT = 1, 38, 97
_X32_BIT = 0x40000000
# CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET (include/uapi/linux/sched.h).
_NEW_NAMESPACES = 0x7E020000
_AF_UNIX = 1
_SET_MODE_FILTER = 1

Instruction = tuple[int, int, int, int]


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def program(*, machine: str, network: bool, allow_exec: bool) -> list[Instruction]:
    """Return the filter as BPF instructions (code, jump if true, jump if false, operand).

    A call from another instruction set than ``machine``'s kills the process. New namespaces cannot be made: ``clone``
    with such flags is refused, and ``clone3``, whose flags a filter cannot see, does not exist (the C library goes
    back to ``clone``). Without ``network``, sockets are Unix sockets.

    Raises:
        KeyError: a machine that this module does not know.
    """
    code: list[Instruction] = [
        (_LOAD, 0, 0, _ARCH),
        (_EQUAL, 1, 0, _AUDIT_ARCH[machine]),
        _refuse(_KILL_PROCESS),
        (_LOAD, 0, 0, _NUMBER),
    ]
    if machine == "x86_64":
        code += [(_AT_LEAST, 0, 1, _X32_BIT), _refuse(_ERRNO | _EPERM)]
    for name in DENIED if allow_exec else (*DENIED, *EXEC):
        found = number(name, machine=machine)
        if found is not None:
            code += [(_EQUAL, 0, 1, found), _refuse(_ERRNO | _EPERM)]
    code += [(_EQUAL, 0, 1, _known("clone3", machine)), _refuse(_ERRNO | _ENOSYS)]
    code += [
        (_EQUAL, 0, 4, _known("clone", machine)),
        (_LOAD, 0, 0, _ARGUMENT_0),
        (_ANY_BIT, 0, 1, _NEW_NAMESPACES),
        _refuse(_ERRNO | _EPERM),
        _refuse(_ALLOW),
    ]
    if not network:
        code += [
            (_EQUAL, 0, 3, _known("socket", machine)),
            (_LOAD, 0, 0, _ARGUMENT_0),
            (_EQUAL, 1, 0, _AF_UNIX),
            _refuse(_ERRNO | _EAFNOSUPPORT),
        ]
    return [*code, _refuse(_ALLOW)]


def restrict(*, network: bool, allow_exec: bool, syscall: Syscall) -> tuple[str, ...]:
    """Install the filter in this thread and all that it will start, and return what is active then.

    ``no_new_privileges`` must be set before.

    Raises:
        OSError: the kernel has no seccomp filters, or refused; nothing is restricted then.
    """
    machine = platform.machine()
    if machine not in _AUDIT_ARCH:
        raise OSError(_ENOSYS, "no filter for this machine", machine)
    instructions = program(machine=machine, network=network, allow_exec=allow_exec)
    data = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *entry) for entry in instructions))
    held = _Program(len(instructions), ctypes.cast(data, ctypes.c_void_p))
    syscall("seccomp", _SET_MODE_FILTER, 0, ctypes.byref(held))
    active = ["seccomp"]
    if not allow_exec:
        active.append("seccomp-no-exec")
    if not network:
        active.append("seccomp-unix-sockets-only")
    return tuple(active)


def _refuse(action: int) -> Instruction:
    return (_RETURN, 0, 0, action)


def _known(name: str, machine: str) -> int:
    found = number(name, machine=machine)
    if found is None:
        raise KeyError(name)
    return found
