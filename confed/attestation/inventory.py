"""What this machine has of what attestation and confinement need; nothing is changed by looking.

Each part is looked at on its own, and what could not be looked at says why. Confinement is tried in a process of its
own, since it is for good; a provider of configfs-tsm is read from an entry that is removed again.
"""

from __future__ import annotations

import errno
import importlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from confed import record
from confed.attestation.attesters.choose import DevicePaths
from confed.attestation.attesters.configfs_tsm import ConfigfsTsmAttester
from confed.attestation.attesters.nvml import NvmlAttester
from confed.errors import ConfedError, EvidenceUnavailableError

PACKAGES = (
    "confed", "cryptography", "cbor2", "dcap-qvl", "lxml", "joserfc", "httpx", "tpm2-pytss", "nvidia-ml-py",
    "sev-snp-measure", "flwr", "torch",
)  # fmt: skip
"""Distributions that attestation, measuring or training use."""

LAYERS = {
    "network-namespace": "no network but inherited and path-based Unix sockets",
    "no-core": "no core dumps",
    "not-dumpable": "nobody without CAP_SYS_PTRACE attaches or reads memory",
    "few-capabilities": "of a privileged process's only those that pass over file modes",
    "no-new-privileges": "nothing that it executes gains any",
    "landlock": "only given paths",
    "landlock-no-tcp": "no TCP",
    "landlock-scoped": "no abstract sockets or signals to the outside",
    "seccomp": "no system calls that confined code never needs",
    "seccomp-no-exec": "no other programs",
    "seccomp-unix-sockets-only": "no sockets but Unix sockets",
}
"""The layers that ``confinement.confine`` can give, and what each does."""

_PROBE = """
import json, sys
from confed.attestation.tee.confinement import confine
layers = confine(readable=(), writable=(), network=False)
sys.stdout.write(json.dumps(layers))
"""
_PROBE_TIMEOUT_S = 60.0
_OUTPUT_LIMIT = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """A way in which a machine gives evidence; ``says`` is what it told of itself, or why it could not be used."""

    name: str
    path: str
    present: bool
    says: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Confinement:
    """Which layers a confined process here has, and which not; ``problem`` where it could not be tried."""

    active: tuple[str, ...]
    missing: tuple[str, ...]
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpus:
    """NVIDIA GPUs, the driver, and the modes that NVML tells of them.

    Attributes:
        names: by index.
        driver: its version.
        modes: ``confidential_compute``, ``devtools``, ``environment`` and ``multi_gpu``; empty where nobody tells.
        problem: why something is missing.
    """

    names: tuple[str, ...]
    driver: str
    modes: Mapping[str, str]
    problem: str


def kernel() -> str:
    """Return which kernel on which machine this is."""
    return f"{platform.system()} {platform.release()} {platform.machine()}"


def interfaces(paths: DevicePaths | None = None, *, root: Path = Path("/")) -> tuple[Interface, ...]:
    """Return every interface that this machine could give evidence through, present or not.

    Args:
        paths: where TEEs' interfaces are.
        root: where the other device files are; only a test has them elsewhere.
    """
    places = paths or DevicePaths()
    return (
        _interface("SEV-SNP guest driver", root / "dev/sev-guest"),
        _interface("TDX guest driver", root / "dev/tdx_guest"),
        _tsm(places.tsm),
        _interface("Nitro Secure Module", places.nsm),
        _interface("TPM 2.0", root / "dev/tpmrm0"),
        _interface("Gramine (SGX)", places.gramine / "quote"),
        _interface("NVIDIA driver", root / "dev/nvidiactl"),
    )


def confinement(*, program: str = _PROBE, timeout_s: float = _PROBE_TIMEOUT_S) -> Confinement:
    """Return what a process that confines itself has here, without the network.

    Args:
        program: what is run; it prints the active layers as a JSON list.
        timeout_s: how long it may take.
    """
    try:
        done = subprocess.run(  # noqa: S603 (this interpreter, and a program of ours)
            [sys.executable, "-c", program],
            capture_output=True,
            timeout=timeout_s,
            check=True,
            stdin=subprocess.DEVNULL,
        )
        layers: Any = json.loads(done.stdout[:_OUTPUT_LIMIT])
        active = tuple(str(layer) for layer in layers)
    except subprocess.TimeoutExpired:
        return Confinement(active=(), missing=tuple(LAYERS), problem=f"no answer within {timeout_s:.0f} s")
    except subprocess.CalledProcessError as error:
        return Confinement(active=(), missing=tuple(LAYERS), problem=f"ended with {error.returncode}")
    except (OSError, ValueError, TypeError) as error:
        return Confinement(active=(), missing=tuple(LAYERS), problem=f"could not be tried: {type(error).__name__}")
    missing = tuple(name for name in LAYERS if not any(_is_layer(layer, name) for layer in active))
    return Confinement(active=active, missing=missing, problem="")


def packages(names: Sequence[str] = PACKAGES) -> Mapping[str, str]:
    """Return the version of each distribution, empty where it is not installed."""
    found: dict[str, str] = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = ""
    return found


def gpus(nvml: Any = None) -> Gpus:
    """Return the GPUs that NVIDIA's library knows of, and the modes that it tells.

    Args:
        nvml: NVML's Python module; ``pynvml`` (nvidia-ml-py) where none is given.
    """
    if nvml is None:
        try:
            nvml = importlib.import_module("pynvml")
        except ImportError:
            return _no_gpus("nvidia-ml-py is not installed (pip install confed[gpu])")
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return _no_gpus(str(error)[:200])
    try:
        count = int(nvml.nvmlDeviceGetCount())
        names = tuple(str(nvml.nvmlDeviceGetName(nvml.nvmlDeviceGetHandleByIndex(index))) for index in range(count))
        driver = str(nvml.nvmlSystemGetDriverVersion())
    except nvml.NVMLError as error:
        return _no_gpus(str(error)[:200])
    finally:
        nvml.nvmlShutdown()
    if not names:
        return Gpus(names=(), driver=driver, modes={}, problem="the driver knows of no GPU")
    try:
        modes = record.to_json(NvmlAttester((0,), nvml=nvml).state())
    except EvidenceUnavailableError as error:
        # A driver or a GPU from before confidential computing.
        return Gpus(names=names, driver=driver, modes={}, problem=str(error))
    return Gpus(names=names, driver=driver, modes=modes, problem="")


def _no_gpus(problem: str) -> Gpus:
    return Gpus(names=(), driver="", modes={}, problem=problem)


def _interface(name: str, path: Path) -> Interface:
    try:
        path.stat()
    except OSError as error:
        return Interface(name=name, path=str(path), present=error.errno == errno.EACCES, says=_reason(error))
    readable = os.access(path, os.R_OK | os.W_OK)
    return Interface(name=name, path=str(path), present=True, says="" if readable else "not for this user")


def _tsm(root: Path) -> Interface:
    found = _interface("configfs-tsm (SEV-SNP, TDX)", root / "report")
    if not found.present:
        return found
    try:
        says = f"provider {ConfigfsTsmAttester.tdx(root=root).provider()}"
    except ConfedError as error:
        says = str(error.got)
    return Interface(name=found.name, path=found.path, present=True, says=says)


def _reason(error: OSError) -> str:
    return "not there" if error.errno in (errno.ENOENT, errno.ENOTDIR) else os.strerror(error.errno or 0).lower()


def _is_layer(active: str, name: str) -> bool:
    """Landlock's first layer carries the version of its interface: ``landlock-7``."""
    return active == name or (name == "landlock" and active.removeprefix("landlock-").isdecimal())
