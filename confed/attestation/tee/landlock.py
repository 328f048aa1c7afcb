"""Landlock: what the process may open, and whom it may reach, decided by itself and never widened again.

Source: Linux Documentation/userspace-api/landlock.rst and include/uapi/linux/landlock.h, up to ABI 7.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from confed.attestation.tee.kernel import Syscall

_CREATE_VERSION = 1
_RULE_PATH_BENEATH = 1

_EXECUTE = 1 << 0
_WRITE_FILE = 1 << 1
_READ_FILE = 1 << 2
_READ_DIR = 1 << 3
_REMOVE_DIR = 1 << 4
_REMOVE_FILE = 1 << 5
_MAKE_DIR = 1 << 7
_MAKE_REG = 1 << 8
_MAKE_SOCK = 1 << 9
_MAKE_FIFO = 1 << 10
_MAKE_SYM = 1 << 12
_REFER = 1 << 13
_TRUNCATE = 1 << 14

# How many of the file system rights an ABI knows; each is one bit, from bit 0.
_RIGHTS_BY_ABI = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16, 6: 16, 7: 16}
_NEWEST_ABI = 7
_NET_ABI = 4
_NET_BIND_AND_CONNECT = 0b11
_SCOPE_ABI = 6
_SCOPE_ABSTRACT_SOCKETS_AND_SIGNALS = 0b11

_READ = _READ_FILE | _READ_DIR
_WRITE = (
    _READ | _WRITE_FILE | _TRUNCATE | _REMOVE_DIR | _REMOVE_FILE
    | _MAKE_DIR | _MAKE_REG | _MAKE_SOCK | _MAKE_FIFO | _MAKE_SYM | _REFER
)  # fmt: skip
_ON_A_FILE = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE


class _RulesetAttribute(ctypes.Structure):
    _fields_ = (
        ("handled_access_fs", ctypes.c_uint64),
        ("handled_access_net", ctypes.c_uint64),
        ("scoped", ctypes.c_uint64),
    )


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


def restrict(
    *, readable: Sequence[Path], writable: Sequence[Path], network: bool, allow_exec: bool, syscall: Syscall
) -> tuple[str, ...]:
    """Leave this process only the given paths, and return what is active then.

    Every file system right that the kernel's ABI knows is handled, so what is not granted is refused. Without
    ``network``, TCP bind and connect are refused too (ABI 4). From ABI 6 on, abstract Unix sockets and processes
    outside cannot be reached; path-based Unix sockets can. A path that does not exist is not granted.
    ``no_new_privileges`` must be set before.

    Raises:
        OSError: the kernel has no Landlock, or refused; nothing is restricted then.
    """
    abi = min(syscall("landlock_create_ruleset", None, 0, _CREATE_VERSION), _NEWEST_ABI)
    handled = (1 << _RIGHTS_BY_ABI[abi]) - 1
    net = _NET_BIND_AND_CONNECT if not network and abi >= _NET_ABI else 0
    scoped = _SCOPE_ABSTRACT_SOCKETS_AND_SIGNALS if abi >= _SCOPE_ABI else 0
    attribute = _RulesetAttribute(handled, net, scoped)
    size = 24 if abi >= _SCOPE_ABI else 16 if abi >= _NET_ABI else 8
    ruleset = syscall("landlock_create_ruleset", ctypes.byref(attribute), size, 0)
    try:
        run = _EXECUTE if allow_exec else 0
        for paths, rights in ((readable, _READ | run), (writable, _WRITE)):
            for path in paths:
                _grant(ruleset, path, rights & handled, syscall)
        # Written to by whoever silences a stream; nothing can be kept there.
        _grant(ruleset, Path(os.devnull), (_READ_FILE | _WRITE_FILE) & handled, syscall)
        syscall("landlock_restrict_self", ruleset, 0)
    finally:
        with contextlib.suppress(OSError):
            os.close(ruleset)
    active = [f"landlock-{abi}"]
    if net:
        active.append("landlock-no-tcp")
    if scoped:
        active.append("landlock-scoped")
    return tuple(active)


def _grant(ruleset: int, path: Path, rights: int, syscall: Syscall) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # What cannot be opened is not granted: the stricter side.
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            rights &= _ON_A_FILE
        rule = _PathBeneath(rights, descriptor)
        syscall("landlock_add_rule", ruleset, _RULE_PATH_BENEATH, ctypes.byref(rule), 0)
    finally:
        os.close(descriptor)
