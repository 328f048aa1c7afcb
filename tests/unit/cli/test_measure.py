"""``confed measure``: what it prints is what an owner pastes, and a mistake is one clear line."""

from __future__ import annotations

import hashlib
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from confed import canonical
from confed.attestation import reference_values
from confed.attestation.measurement import aggregator_image, client_image, inference_image
from confed.attestation.policy.nitro import NitroPolicy
from confed.attestation.policy.sev_snp import SnpPolicy
from confed.cli import measure
from confed.errors import MissingFileError, UsageError
from confed.experiment.config import TeeTable

ROOT = Path(__file__).parents[3]
DIGITS = ROOT / "experiments" / "digits" / "config.toml"
REGISTERS = {name: hashlib.sha384(name.encode()).hexdigest() for name in ("PCR0", "PCR1", "PCR2")}


def run(*arguments: object) -> str:
    result = CliRunner().invoke(measure.app, [str(argument) for argument in arguments])
    if result.exception is not None:
        raise result.exception
    assert result.exit_code == 0
    return result.stdout


def as_json(*arguments: object) -> dict[str, Any]:
    return json.loads(run(*arguments, "--json"))


@pytest.fixture
def built(tmp_path: Path) -> Path:
    file = tmp_path / "enclave.json"
    file.write_text(json.dumps({"Measurements": {"HashAlgorithm": "Sha384 { ... }", **REGISTERS}}))
    return file


def test_the_installed_code_is_measured_with_an_experiment_s_app_and_lock() -> None:
    lock = canonical.digest((ROOT / "constraints.txt").read_bytes())
    found = as_json("simulated", DIGITS)
    assert found["values"] == {"client": client_image(DIGITS.parent, lock), "aggregator": aggregator_image(lock)}
    assert found["profile"] == "simulated/1"


def test_the_installed_code_is_measured_with_a_lock_file_alone(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("a==1\n")
    lock = canonical.digest(b"a==1\n")
    assert as_json("simulated", "--lock", tmp_path / "lock")["values"]["client"] == client_image(None, lock)
    assert as_json("simulated")["inputs"]["lock"] == canonical.digest(b"")


def test_an_inference_tee_is_measured_by_its_serving_file(tmp_path: Path) -> None:
    (tmp_path / "engine.py").write_text("x = 1\n")
    (tmp_path / "serving.toml").write_text("")
    (tmp_path / "constraints.txt").write_text("a==1\n")
    lock = canonical.digest(b"a==1\n")
    assert as_json("serving", tmp_path / "serving.toml")["values"] == {"inference": inference_image(tmp_path, lock)}


def test_what_is_printed_of_a_simulated_tee_says_what_it_is() -> None:
    text = run("simulated", DIGITS)
    assert "SIMULATED" in text
    assert client_image(DIGITS.parent, canonical.digest((ROOT / "constraints.txt").read_bytes())) in text


def test_the_lines_for_an_experiment_file_are_its_own(built: Path) -> None:
    for role in ("client", "aggregator"):
        table = tomllib.loads(as_json("nitro", built, "--role", role)["toml"])["tee"]
        assert TeeTable(**table).profile == "aws-nitro/1"
        assert table[f"{role}_measurements"] == [REGISTERS["PCR0"]]
    table = tomllib.loads(as_json("nitro", built, "--role", "inference")["toml"])["tee"]
    assert table["client_measurements"] == [REGISTERS["PCR0"]]


def test_the_lines_can_be_copied_from_what_a_person_sees(built: Path) -> None:
    text = run("nitro", built)
    lines = tomllib.loads(text[text.index("[tee]") :])
    assert lines["tee"]["client_measurements"] == [REGISTERS["PCR0"]]
    assert lines["policy"] == {name.lower(): [value] for name, value in REGISTERS.items()}
    for value in REGISTERS.values():
        assert value in text


def test_the_lines_for_an_appraisal_policy_are_fields_of_its_own(built: Path) -> None:
    fields = tomllib.loads(as_json("nitro", built)["policy"])["policy"]
    assert set(fields) <= set(NitroPolicy.__dataclass_fields__)
    assert {"measurements"} <= set(SnpPolicy.__dataclass_fields__)
    assert as_json("simulated")["policy"] == ""


def test_a_guest_is_described_by_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[reference_values.SnpGuest] = []

    def digest(guest: reference_values.SnpGuest) -> str:
        asked.append(guest)
        return "ab" * 48

    monkeypatch.setattr(reference_values, "snp_launch_digest", digest)
    files = {name: tmp_path / name for name in ("firmware", "kernel", "initrd")}
    options = [part for name, path in files.items() for part in (f"--{name}", path)]
    found = as_json(
        "snp", *options, "--append", "console=ttyS0", "--vcpus", 4, "--vcpu-type", "EPYC-Genoa",
        "--guest-features", "0x21", "--role", "aggregator",
    )  # fmt: skip
    assert asked == [
        reference_values.SnpGuest(
            **files, append="console=ttyS0", vcpus=4, vcpu_signature=0xA10F10, guest_features=0x21, vmm="qemu"
        )
    ]
    assert tomllib.loads(found["toml"])["tee"]["aggregator_measurements"] == ["ab" * 48]
    assert tomllib.loads(found["policy"])["policy"] == {"measurements": ["ab" * 48]}
    as_json("snp", "--firmware", files["firmware"], "--vcpus", 1, "--vcpu-signature", "0xa10f11")
    as_json("snp", "--firmware", files["firmware"], "--vcpus", 1, "--vmm", "ec2")
    assert [guest.vcpu_signature for guest in asked[1:]] == [0xA10F11, None]


def snp(*options: object) -> tuple[object, ...]:
    return ("snp", "--firmware", __file__, "--vcpus", 1, *options)


MISTAKES = {
    "a vCPU described twice": (snp("--vcpu-type", "EPYC-v4", "--vcpu-signature", "1"), UsageError),
    "a vCPU not described": (snp(), UsageError),
    "a vCPU that there is not": (snp("--vcpu-type", "Pentium"), UsageError),
    "a signature that is no number": (snp("--vcpu-signature", "EPYC"), UsageError),
    "features that are no number": (snp("--vcpu-type", "EPYC-v4", "--guest-features", "all"), UsageError),
    "a firmware that is none": (snp("--vcpu-type", "EPYC-v4"), UsageError),
    "a firmware that is not there": (
        ("snp", "--firmware", "/no/such", "--vcpus", 1, "--vcpu-type", "EPYC-v4"), MissingFileError,
    ),
    "measurements that are not there": (("nitro", "/no/such"), MissingFileError),
    "measurements that cannot be read": (("nitro", "/"), UsageError),
    "measurements that are none": (("nitro", __file__), UsageError),
    "an experiment that is not there": (("simulated", "/no/such.toml"), MissingFileError),
    "a lock file that is not there": (("simulated", "--lock", "/no/such"), MissingFileError),
    "an experiment and a lock file": (("simulated", DIGITS, "--lock", DIGITS), UsageError),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "error"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_one_clear_line(arguments: tuple[object, ...], error: type[UsageError]) -> None:
    with pytest.raises(error) as caught:
        run(*arguments)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
