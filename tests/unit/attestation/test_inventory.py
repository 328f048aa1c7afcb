import errno
import os
import sys

import pytest
from attester_world import GramineFiles

from confed.attestation import inventory
from confed.attestation.attesters.choose import DevicePaths
from confed.attestation.tee.nvidia_evidence import NvidiaState
from confed.errors import EvidenceUnavailableError


def names(interfaces, *, present: bool) -> set[str]:
    return {one.name for one in interfaces if one.present is present}


def test_a_machine_without_a_tee_has_no_interface(tmp_path):
    absent = DevicePaths(tsm=tmp_path / "tsm", nsm=tmp_path / "nsm", gramine=tmp_path / "attestation")
    found = inventory.interfaces(absent, root=tmp_path)
    assert {one.present for one in found} == {False}
    assert {one.says for one in found} == {"not there"}
    assert len(found) == 7


def test_what_is_there_is_found(tmp_path):
    (tmp_path / "dev").mkdir()
    for name in ("sev-guest", "tpmrm0", "nvidiactl"):
        (tmp_path / "dev" / name).write_bytes(b"")
    (tmp_path / "attestation").mkdir()
    GramineFiles(tmp_path / "attestation")
    (tmp_path / "nsm").write_bytes(b"")
    paths = DevicePaths(tsm=tmp_path / "tsm", nsm=tmp_path / "nsm", gramine=tmp_path / "attestation")
    found = inventory.interfaces(paths, root=tmp_path)
    assert names(found, present=True) == {
        "SEV-SNP guest driver", "TPM 2.0", "NVIDIA driver", "Gramine (SGX)", "Nitro Secure Module",
    }  # fmt: skip


def test_a_provider_of_configfs_tsm_says_its_name(tmp_path, monkeypatch):
    (tmp_path / "report").mkdir()
    monkeypatch.setattr(inventory.ConfigfsTsmAttester, "provider", lambda _: "tdx_guest")
    found = inventory.interfaces(DevicePaths(tsm=tmp_path), root=tmp_path)
    assert next(one.says for one in found if "configfs" in one.name) == "provider tdx_guest"


def test_configfs_tsm_without_a_provider_says_why(tmp_path):
    (tmp_path / "report").mkdir()
    found = inventory.interfaces(DevicePaths(tsm=tmp_path), root=tmp_path)
    one = next(one for one in found if "configfs" in one.name)
    assert one.present
    assert "ENOENT" in one.says
    assert list((tmp_path / "report").iterdir()) == []


def test_a_device_of_another_user_is_there_and_says_so(tmp_path, monkeypatch):
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "tpmrm0").write_bytes(b"")
    monkeypatch.setattr(os, "access", lambda _path, _mode: False)
    found = inventory.interfaces(DevicePaths(tsm=tmp_path), root=tmp_path)
    assert next(one for one in found if one.name == "TPM 2.0").says == "not for this user"


def test_a_place_that_may_not_be_looked_at_is_there_and_says_so(monkeypatch, tmp_path):
    def refuse(_path):
        raise PermissionError(errno.EACCES, "played")

    monkeypatch.setattr(inventory.Path, "stat", refuse)
    one = inventory._interface("TPM 2.0", tmp_path)
    assert (one.present, one.says) == (True, "permission denied")


def test_layers_are_those_of_a_process_that_confines_itself_and_this_one_is_not_confined():
    found = inventory.confinement()
    assert found.problem == ""
    assert "no-core" in found.active
    named = {"landlock" if layer[-1].isdigit() else layer for layer in found.active}
    assert named | set(found.missing) == set(inventory.LAYERS)
    assert not named & set(found.missing)
    assert os.listdir("/")  # noqa: PTH208 (this process sees everything still)


PROBES = {
    "ends with an error": ("raise SystemExit(5)", "ended with 5"),
    "prints nothing": ("", "could not be tried"),
    "prints something else": ("print(7)", "could not be tried"),
    "does not end": ("import time; time.sleep(60)", "no answer within"),
}


@pytest.mark.parametrize(("program", "problem"), PROBES.values(), ids=PROBES.keys())
def test_a_probe_is_named_that(program, problem):
    found = inventory.confinement(program=program, timeout_s=2 if "sleep" in program else 60)
    assert problem in found.problem
    assert (found.active, found.missing) == ((), tuple(inventory.LAYERS))


def test_a_layer_that_the_kernel_lacks_is_missing():
    found = inventory.confinement(program='print(\'["no-core", "landlock-4", "landlock-no-tcp"]\')')
    assert found.active == ("no-core", "landlock-4", "landlock-no-tcp")
    assert set(inventory.LAYERS) - set(found.missing) == {"no-core", "landlock", "landlock-no-tcp"}


def test_a_part_of_landlock_is_not_taken_for_the_whole():
    assert "landlock" in inventory.confinement(program="print('[\"landlock-no-tcp\"]')").missing


def test_packages_have_their_versions():
    found = inventory.packages(("cryptography", "no-such-distribution"))
    assert found["cryptography"].split(".")[0].isdecimal()
    assert found["no-such-distribution"] == ""
    assert inventory.packages()["confed"]


class Nvml:
    """NVML's module, as far as an inventory asks it."""

    class NVMLError(Exception):
        pass

    def __init__(self, *, names=("NVIDIA H100 80GB HBM3",), fails="") -> None:
        self.names, self.fails = names, fails
        self.open = 0

    def __getattr__(self, name):
        if name == self.fails:
            raise self.NVMLError("played")
        return {
            "nvmlInit": lambda: setattr(self, "open", self.open + 1),
            "nvmlShutdown": lambda: setattr(self, "open", self.open - 1),
            "nvmlDeviceGetCount": lambda: len(self.names),
            "nvmlDeviceGetHandleByIndex": lambda index: index,
            "nvmlDeviceGetName": lambda handle: self.names[handle],
            "nvmlSystemGetDriverVersion": lambda: "580.95.05",
        }[name]


MODES = NvidiaState(confidential_compute="on", devtools="off", environment="production", multi_gpu="none")


def test_gpus_say_their_modes(monkeypatch):
    monkeypatch.setattr(inventory.NvmlAttester, "state", lambda _: MODES)
    nvml = Nvml()
    found = inventory.gpus(nvml)
    assert (found.names, found.driver, found.problem) == (("NVIDIA H100 80GB HBM3",), "580.95.05", "")
    assert found.modes == {
        "confidential_compute": "on", "devtools": "off", "environment": "production", "multi_gpu": "none",
    }  # fmt: skip
    assert nvml.open == 0


def test_gpus_from_before_confidential_computing_are_named_all_the_same(monkeypatch):
    def refuse(_):
        raise EvidenceUnavailableError("NVML", expected="modes", got="Not Supported")

    monkeypatch.setattr(inventory.NvmlAttester, "state", refuse)
    found = inventory.gpus(Nvml())
    assert found.names
    assert (found.modes, "Not Supported" in found.problem) == ({}, True)


@pytest.mark.parametrize("fails", ["nvmlInit", "nvmlDeviceGetCount", "nvmlDeviceGetName", "nvmlSystemGetDriverVersion"])
def test_a_library_that_fails_says_why(fails):
    nvml = Nvml(fails=fails)
    assert (inventory.gpus(nvml).names, inventory.gpus(nvml).problem) == ((), "played")
    assert nvml.open == 0


def test_a_driver_without_gpus_says_so():
    assert inventory.gpus(Nvml(names=())).problem == "the driver knows of no GPU"


def test_without_nvidia_s_library_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "confed[gpu]" in inventory.gpus().problem
