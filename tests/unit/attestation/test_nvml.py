"""NVML's attester against a fake library whose GPUs sign under test roots."""

# ruff: noqa: N802, N815  # NVML's own names

import ctypes
import sys
from types import SimpleNamespace

import pytest
from nvidia_world import GPU, NONCE, make_device, make_report, verify_devices

from confed.attestation.attesters.nvml import NvmlAttester
from confed.attestation.policy.nvidia_gpu import require_floors
from confed.attestation.tee.nvidia_evidence import NvidiaState
from confed.errors import ConfigError, DeviceModeError, EvidenceUnavailableError

SECOND = make_device(pdi=b"\x05" * 8)


class FakeNvmlError(Exception):
    """What NVML raises."""


class Settings(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint) for name in ("environment", "ccFeature", "devToolsMode", "multiGpuMode")]


class FakeNvml:
    """A library with two GPUs; what it tells can be set, and calls are counted."""

    NVMLError = FakeNvmlError
    NVML_SUCCESS = 0
    NVML_CC_SYSTEM_FEATURE_ENABLED = 1
    NVML_CC_SYSTEM_DEVTOOLS_MODE_OFF = 0
    c_nvmlSystemConfComputeSettings_v1_t = Settings

    def __init__(self, *, environment=2, cc=1, devtools=0, multi_gpu=0, devices=(GPU, SECOND), old=False):
        self.told = {"environment": environment, "ccFeature": cc, "devToolsMode": devtools, "multiGpuMode": multi_gpu}
        self.devices = devices
        self.old = old
        self.open = 0
        self.asked = 0
        self.report = make_report
        self.chain = lambda device: device.pem
        self.at_the_end = {}

    def nvmlInit(self):
        self.open += 1

    def nvmlShutdown(self):
        self.open -= 1

    def nvmlSystemGetConfComputeSettings(self, settings):
        if self.old:
            raise FakeNvmlError("Function Not Found")
        for name, value in self.told.items():
            setattr(settings._obj, name, value)
        self.told |= self.at_the_end
        return 0

    def nvmlSystemGetConfComputeState(self):
        if self.told["ccFeature"] is None:
            raise FakeNvmlError("Not Supported")
        return SimpleNamespace(**{name: value for name, value in self.told.items() if name != "multiGpuMode"})

    def nvmlDeviceGetHandleByIndex(self, index):
        if index >= len(self.devices):
            raise FakeNvmlError("Invalid Argument")
        return self.devices[index]

    def nvmlDeviceGetHandleByUUID(self, uuid):
        return self.nvmlDeviceGetHandleByIndex(int(uuid.removeprefix("GPU-")))

    def nvmlDeviceGetUUID(self, device):
        return f"GPU-{self.devices.index(device)}"

    def nvmlDeviceGetConfComputeGpuAttestationReport(self, device, nonce):
        self.asked += 1
        report = self.report(device, nonce=nonce)
        buffer = (ctypes.c_uint8 * 0x2000)(*report)
        return SimpleNamespace(attestationReport=buffer, attestationReportSize=len(report))

    def nvmlDeviceGetConfComputeGpuCertificate(self, device):
        chain = self.chain(device)
        buffer = (ctypes.c_uint8 * 0x4000)(*chain)
        return SimpleNamespace(attestationCertChain=buffer, attestationCertChainSize=len(chain))


def test_gpus_that_are_named_give_evidence_that_verifies():
    nvml = FakeNvml()
    records = NvmlAttester([1, "GPU-0"], nvml=nvml).collect(NONCE)
    claims = verify_devices(records)
    require_floors(claims)
    assert [device.pdi[0] for device in claims.devices] == [5, 1]
    assert claims.devices[0].state == NvidiaState(
        confidential_compute="on", devtools="off", environment="production", multi_gpu="none"
    )
    assert nvml.open == 0


def test_an_older_driver_tells_no_mode_of_several_gpus():
    nvml = FakeNvml(old=True)
    assert NvmlAttester([0], nvml=nvml).state().multi_gpu == "unreported"
    assert len(NvmlAttester([0], nvml=nvml).collect(NONCE)) == 1


def test_protected_pcie_stands_for_confidential_computing():
    (device,) = verify_devices(NvmlAttester([0], nvml=FakeNvml(cc=0, multi_gpu=1)).collect(NONCE)).devices
    assert (device.state.confidential_compute, device.state.multi_gpu) == ("off", "protected-pcie")


def test_the_size_that_a_driver_counts_one_too_many_is_left_as_it_is():
    nvml = FakeNvml()
    nvml.report = lambda device, nonce: make_report(device, nonce=nonce, trailing=b"\x00")
    nvml.chain = lambda device: device.pem + b"\x00"
    assert verify_devices(NvmlAttester([0], nvml=nvml).collect(NONCE))


MODES = {
    "confidential computing off": {"cc": 0},
    "confidential computing off with several GPUs": {"cc": 0, "multi_gpu": 2},
    "developer tools on": {"devtools": 1},
    "a simulated environment": {"environment": 1},
    "no environment": {"environment": 0},
    "an environment that is not known": {"environment": 7},
    "confidential computing off, as an older driver tells": {"cc": 0, "old": True},
}


@pytest.mark.parametrize("told", MODES.values(), ids=MODES.keys())
def test_no_gpu_is_asked_in_a_system_with(told):
    nvml = FakeNvml(**told)
    with pytest.raises(DeviceModeError):
        NvmlAttester([0], nvml=nvml).collect(NONCE)
    assert (nvml.asked, nvml.open) == (0, 0)


def other_nonce(device, nonce):
    return make_report(device, nonce=bytes(32))


def refusing(*names):
    """Return a library of which some calls fail as NVML's do."""
    nvml = FakeNvml()

    def fail(*arguments):
        raise FakeNvmlError(*names)

    for name in names:
        setattr(nvml, name, fail)
    return nvml


def telling(**changes):
    nvml = FakeNvml()
    for name, value in changes.items():
        setattr(nvml, name, value)
    return nvml


UNAVAILABLE = {
    "a library that does not start": ([0], refusing("nvmlInit")),
    "a driver without the modes": ([0], FakeNvml(old=True, cc=None)),
    "a GPU that is not there": ([2], FakeNvml()),
    "one GPU under two names": ([0, "GPU-0"], FakeNvml()),
    "a GPU that gives no report": ([0], refusing("nvmlDeviceGetConfComputeGpuAttestationReport")),
    "a GPU that gives no chain": ([0], refusing("nvmlDeviceGetConfComputeGpuCertificate")),
    "a report for another nonce": ([0], telling(report=other_nonce)),
    "a report that is none": ([0], telling(report=lambda device, nonce: b"x" * 40)),
    "a chain that is none": ([0], telling(chain=lambda device: b"")),
    "a chain cut short": ([0], telling(chain=lambda device: b"".join(device.pem.partition(b"-----END")[:1]))),
    "several GPUs in a mode that is not known": ([0], FakeNvml(multi_gpu=3)),
    "modes that changed meanwhile": ([0], telling(at_the_end={"devToolsMode": 1})),
}


@pytest.mark.parametrize(("gpus", "nvml"), UNAVAILABLE.values(), ids=UNAVAILABLE.keys())
def test_evidence_is_unavailable_with(gpus, nvml):
    with pytest.raises(EvidenceUnavailableError):
        NvmlAttester(gpus, nvml=nvml).collect(NONCE)
    assert nvml.open == 0


def test_a_nonce_has_32_bytes():
    with pytest.raises(EvidenceUnavailableError):
        NvmlAttester([0], nvml=FakeNvml()).collect(b"short")


@pytest.mark.parametrize("gpus", [[], [0, 0], list(range(17))])
def test_gpus_are_named_each_once(gpus):
    with pytest.raises(ConfigError):
        NvmlAttester(gpus, nvml=FakeNvml())


def test_without_the_library_there_is_no_evidence(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    for attempt in (NvmlAttester([0]).state, lambda: NvmlAttester([0]).collect(NONCE)):
        with pytest.raises(EvidenceUnavailableError):
            attempt()


def test_the_real_library_has_what_is_asked_of_it():
    pynvml = pytest.importorskip("pynvml")
    for name in vars(FakeNvml):
        if not name.startswith("_"):
            assert hasattr(pynvml, name), name
    names = [name for name, _ in pynvml.c_nvmlSystemConfComputeSettings_v1_t._fields_]
    assert {name for name, _ in Settings._fields_} <= set(names)
