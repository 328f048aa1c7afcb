"""Evidence of NVIDIA GPUs through NVML: a report under a nonce, the chain, and the modes that the driver tells.

The GPUs are named, by index or UUID; none is taken because it happens to be there. What is done:

1. the modes are asked first, and a system outside its confidential mode, with developer tools on, or outside
   production, is refused by name before any GPU is asked for anything;
2. every GPU that was named is found, and no two names are one GPU;
3. each gives its report under the nonce and its chain; a report for another nonce is refused;
4. the modes are asked again: they are the same, or nothing is returned.

The record of each GPU goes into an envelope's ``device_evidence``; the CPU's TEE signs their digest, and with it what
NVML told (``tee.nvidia_evidence``). Nothing here verifies a GPU: that is the relying party's.

Source: nvml.h, nvmlSystemGetConfComputeState, nvmlSystemGetConfComputeSettings,
nvmlDeviceGetConfComputeGpuAttestationReport and nvmlDeviceGetConfComputeGpuCertificate.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
from collections.abc import Generator, Sequence
from typing import Any

from confed.attestation.tee.nvidia_evidence import DEVICE_LIMIT, NvidiaState, encode_record, read_chain
from confed.attestation.tee.nvidia_identity import GPU
from confed.attestation.tee.nvidia_report import NONCE_BYTES, parse_report
from confed.errors import AttestationError, ConfigError, DeviceModeError, EvidenceUnavailableError

_ENVIRONMENTS = {0: "unavailable", 1: "simulation", 2: "production"}
_MULTI_GPU = {0: "none", 1: "protected-pcie", 2: "nvle"}


class NvmlAttester:
    """Collects evidence of the GPUs that are named.

    Args:
        gpus: indices, or UUIDs as NVML writes them; each GPU once.
        nvml: NVML's Python module; ``pynvml`` (nvidia-ml-py) where none is given.

    Raises:
        ConfigError: no GPU is named, too many are, or one twice.
    """

    def __init__(self, gpus: Sequence[int | str], *, nvml: Any = None) -> None:
        if not 1 <= len(gpus) <= DEVICE_LIMIT or len(set(gpus)) != len(gpus):
            raise ConfigError("gpus", expected=f"1 to {DEVICE_LIMIT}, each once", got=", ".join(map(str, gpus))[:80])
        self._gpus = tuple(gpus)
        self._nvml = nvml

    def collect(self, nonce: bytes) -> tuple[bytes, ...]:
        """Return one record for each GPU, in the order in which they were named.

        Args:
            nonce: 32 bytes, which derive from the binding (``Binding.device_nonce``).

        Raises:
            DeviceModeError: confidential computing is off, developer tools are on, or this is no production system.
            EvidenceUnavailableError: no NVML, no such GPU, or one that gave nothing for this nonce.
        """
        if len(nonce) != NONCE_BYTES:
            raise EvidenceUnavailableError("nonce in bytes", expected=NONCE_BYTES, got=len(nonce))
        nvml = self._nvml if self._nvml is not None else _pynvml()
        with _session(nvml):
            # 1.
            state = _read_state(nvml)
            require_confidential(state)
            # 2.
            handles = [_handle(nvml, gpu) for gpu in self._gpus]
            _require_distinct(nvml, handles)
            # 3.
            records = tuple(_record(nvml, handle, nonce, state) for handle in handles)
            # 4.
            again = _read_state(nvml)
        if again != state:
            raise EvidenceUnavailableError("NVML's modes", expected="the same throughout", got="others at the end")
        return records

    def state(self) -> NvidiaState:
        """Return the modes that NVML tells, whatever they are.

        Raises:
            EvidenceUnavailableError: no NVML, or one that does not tell.
        """
        nvml = self._nvml if self._nvml is not None else _pynvml()
        with _session(nvml):
            return _read_state(nvml)


def require_confidential(state: NvidiaState) -> None:
    """Refuse modes in which a GPU protects nothing.

    Raises:
        DeviceModeError: confidential computing off and no Protected PCIe, developer tools on, or not production.
    """
    if state.confidential_compute != "on" and state.multi_gpu != "protected-pcie":
        raise DeviceModeError("confidential computing of the GPUs", expected="on", got=state.confidential_compute)
    if state.devtools != "off":
        raise DeviceModeError("developer tools of the GPUs", expected="off", got=state.devtools)
    if state.environment != "production":
        raise DeviceModeError("environment of the GPUs", expected="production", got=state.environment)


def _pynvml() -> Any:
    try:
        return importlib.import_module("pynvml")
    except ImportError as error:
        raise EvidenceUnavailableError("NVML", expected="nvidia-ml-py (confed[gpu])", got="not installed") from error


@contextlib.contextmanager
def _session(nvml: Any) -> Generator[None]:
    """Have NVML ready, and give an error of NVML's the name that a caller can act on."""
    try:
        nvml.nvmlInit()
        try:
            yield
        finally:
            nvml.nvmlShutdown()
    except nvml.NVMLError as error:
        raise EvidenceUnavailableError("NVML", expected="evidence of the GPUs", got=str(error)[:120]) from error


def _read_state(nvml: Any) -> NvidiaState:
    """Ask for the modes: the settings where the driver has them, otherwise the older state without multi-GPU modes."""
    settings: Any = nvml.c_nvmlSystemConfComputeSettings_v1_t()
    try:
        told = nvml.nvmlSystemGetConfComputeSettings(ctypes.byref(settings)) == nvml.NVML_SUCCESS
    except nvml.NVMLError:
        told = False
    found = settings if told else nvml.nvmlSystemGetConfComputeState()
    multi_gpu = _MULTI_GPU.get(int(found.multiGpuMode)) if told else "unreported"
    if multi_gpu is None:
        raise EvidenceUnavailableError("NVML's multi-GPU mode", expected="0 to 2", got=int(found.multiGpuMode))
    return NvidiaState(
        confidential_compute="on" if int(found.ccFeature) == nvml.NVML_CC_SYSTEM_FEATURE_ENABLED else "off",
        devtools="off" if int(found.devToolsMode) == nvml.NVML_CC_SYSTEM_DEVTOOLS_MODE_OFF else "on",
        environment=_ENVIRONMENTS.get(int(found.environment), "unavailable"),
        multi_gpu=multi_gpu,
    )


def _handle(nvml: Any, gpu: int | str) -> Any:
    if isinstance(gpu, int):
        return nvml.nvmlDeviceGetHandleByIndex(gpu)
    return nvml.nvmlDeviceGetHandleByUUID(gpu)


def _require_distinct(nvml: Any, handles: Sequence[Any]) -> None:
    uuids = [str(nvml.nvmlDeviceGetUUID(handle)) for handle in handles]
    if len(set(uuids)) != len(uuids):
        raise EvidenceUnavailableError("GPUs", expected="each named once", got=", ".join(uuids)[:200])


def _record(nvml: Any, handle: Any, nonce: bytes, state: NvidiaState) -> bytes:
    told = nvml.nvmlDeviceGetConfComputeGpuAttestationReport(handle, nonce)
    certificates = nvml.nvmlDeviceGetConfComputeGpuCertificate(handle)
    report = bytes(told.attestationReport)[: int(told.attestationReportSize)]
    chain = bytes(certificates.attestationCertChain)[: int(certificates.attestationCertChainSize)]
    try:
        if parse_report(report).nonce != nonce:
            raise EvidenceUnavailableError("GPU report", expected="one for this nonce", got="one for another")
        return encode_record(kind=GPU, report=report, chain=read_chain(chain.rstrip(b"\x00")), state=state)
    except AttestationError as error:
        raise EvidenceUnavailableError("GPU evidence", expected="a report and a chain", got=str(error)[:160]) from error
