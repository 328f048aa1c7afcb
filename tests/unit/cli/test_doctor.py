"""``confed doctor``: what it says of this machine, of a manifest, and what it never says."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from confed import canonical
from confed.aggregation import AggregationTerms
from confed.attestation import inventory
from confed.attestation.attesters.choose import KINDS
from confed.attestation.measurement import aggregator_image, client_image
from confed.attestation.rehearsal import CLAIMS
from confed.attestation.tee.simulated import SimulatedPlatform
from confed.cli import doctor
from confed.errors import (
    ConfigError,
    EncodingError,
    EvidenceUnavailableError,
    MissingFileError,
    PolicyFormatError,
)
from confed.manifest import (
    PRODUCTION,
    CodeTerms,
    CohortTerms,
    Manifest,
    MetricTerms,
    ModelTerms,
    Party,
    SealedReference,
    Site,
    StrategyTerms,
    TeePolicy,
    TrustTerms,
    UpdateTerms,
)
from confed.scenario import Scenario
from confed.stopping import StopTerms

LOCK = canonical.digest(b"lock")
CONFINED = inventory.Confinement(active=("no-core", "landlock-7"), missing=("seccomp",), problem="")


@pytest.fixture(autouse=True)
def _one_probe_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    # What a confined process has is tested with the inventory; here it would only take time.
    monkeypatch.setattr(inventory, "confinement", lambda: CONFINED)


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(doctor.app, [str(argument) for argument in arguments])


def text(*arguments: object) -> str:
    result = invoke(*arguments)
    if result.exception is not None:
        raise result.exception
    assert result.exit_code == 0
    return result.stdout


def as_json(*arguments: object) -> dict[str, Any]:
    return json.loads(text(*arguments, "--json"))


def refused(report: dict[str, Any]) -> dict[str, str]:
    return {one["claim"]: one["code"] for one in report["broker"]["claims"] if one["outcome"] == "refused"}


def party(name: str) -> Party:
    identity, broker = (bytes.fromhex(canonical.digest(f"{name} {kind}".encode())) for kind in ("identity", "broker"))
    return Party(name=name, identity=identity, broker=broker)


def manifest(platform: SimulatedPlatform, **changes: Any) -> Manifest:
    tee = TeePolicy(
        profiles=("simulated/1",), measurements=(client_image(None, LOCK),), devices=(), appraisal={}, max_age_s=300,
        reattest_rounds=1, reattest_s=300,
    )  # fmt: skip
    values: dict[str, Any] = {
        "format": Manifest.FORMAT, "name": "test", "scenario": Scenario.FEDERATED, "run": "test-1", "environment": "simulation", "rounds": 1, "seed": 7,
        "max_attempts": 1, "data_source": "app", "preparation": None,
        "model": ModelTerms(
            owner=party("model-owner"), layout="00" * 32, trained=("weight",), tied={},
            start=SealedReference(container_id="start", digest="00" * 32, key_id="key", size_bytes=10),
        ),
        "sites": tuple(Site(owner=party(f"site-{number}"), dataset=None) for number in range(2)),
        "code": CodeTerms(client_app="a:b", client_image="11" * 32, aggregator_image="22" * 32, lock=LOCK, strategy=None),
        "strategy": StrategyTerms(name="FedAvg", parameters={}),
        "cohort": CohortTerms(least=2, fraction_train=1.0, fraction_evaluate=1.0, extra=0), "settings": {},
        "update": UpdateTerms(norm_bound=1.0, weight_cap=10.0, loss_cap=None), "metrics": MetricTerms(clear=("loss",), decimals=4),
        "stop": StopTerms.none(),
        "aggregation": AggregationTerms.at_once(),
        "adapter": None,
        "compression": None,
        "privacy": None,
        "serving": None,
        "client_tee": tee,
        "aggregator_tee": dataclasses.replace(tee, measurements=(aggregator_image(LOCK),)),
        "trust": TrustTerms(anchors={"simulated/1": (platform.anchor,)}),
    }  # fmt: skip
    return Manifest(**{**values, **changes})


@pytest.fixture
def platform(own_home: Path) -> SimulatedPlatform:
    """Return the root of simulated TEEs that this test's home keeps."""
    found = SimulatedPlatform.create(time.time_ns() // 1_000_000)
    found.save(own_home / "simulated-tee" / "root.pem")
    return found


def written(tmp_path: Path, contract: Manifest) -> Path:
    file = tmp_path / "manifest.json"
    file.write_bytes(contract.encoded)
    return file


def test_here_only_simulated_evidence_is_given_and_production_refuses_it() -> None:
    if any(one.present for one in inventory.interfaces()):
        pytest.skip("this machine has an interface of a TEE or a device")
    report = as_json()
    assert {one["kind"] for one in report["attests"] if one["attests"]} == {"simulated"}
    assert {one["code"] for one in report["attests"] if not one["attests"]} == {"evidence-unavailable"}
    assert refused(report) == {"evidence class": "simulated-in-production"}
    assert (report["broker"]["accepted"], report["broker"]["simulated"]) == (False, True)
    printed = text()
    assert "no TEE here" in printed
    assert "simulated-in-production" in printed
    assert "a broker would refuse" in printed


def test_every_part_of_the_report_is_there() -> None:
    report = as_json()
    assert set(report) == {"kernel", "confinement", "interfaces", "attests", "gpus", "packages", "broker"}
    assert [one["kind"] for one in report["attests"]] == [*KINDS, "nvidia-gpu"]
    assert [one["claim"] for one in report["broker"]["claims"]][-len(CLAIMS) :] == list(CLAIMS)
    printed = text()
    for part in (report["kernel"], "landlock-7", "seccomp", "/dev/nsm", "cryptography", "measurement"):
        assert part in printed


def test_without_a_manifest_it_does_not_say_that_a_broker_would_accept() -> None:
    report = as_json("--environment", "simulation")
    assert refused(report) == {}
    assert report["broker"]["assumed"] == ["profile", "configuration", "measurement"]
    printed = text("--environment", "simulation")
    assert [line.split()[0] for line in printed.splitlines() if "nothing pinned" in line] == ["unknown"] * 3
    assert "would accept" not in printed


@pytest.mark.parametrize("role", ["client", "aggregator"])
def test_what_fits_a_manifest_would_be_accepted(tmp_path: Path, platform: SimulatedPlatform, role: str) -> None:
    file = written(tmp_path, manifest(platform))
    report = as_json("--manifest", file, "--role", role)
    assert (refused(report), report["broker"]["accepted"], report["broker"]["assumed"]) == ({}, True, [])
    assert "would accept" in text("--manifest", file, "--role", role)


def test_a_manifest_for_other_code_in_production_is_refused_claim_by_claim(
    tmp_path: Path, platform: SimulatedPlatform
) -> None:
    contract = manifest(platform)
    other = dataclasses.replace(contract.client_tee, measurements=("33" * 32,), profiles=("tdx/1",))
    file = written(tmp_path, dataclasses.replace(contract, client_tee=other, environment=PRODUCTION))
    report = as_json("--manifest", file)
    assert refused(report) == {
        "evidence class": "simulated-in-production", "profile": "profile-not-allowed", "measurement": "measurement",
    }  # fmt: skip
    assert report["broker"]["environment"] == PRODUCTION
    printed = text("--manifest", file)
    assert "expected " + "33" * 8 in printed
    only_code = as_json("--manifest", file, "--environment", "simulation")
    assert refused(only_code) == {"profile": "profile-not-allowed", "measurement": "measurement"}


def test_an_app_is_a_part_of_a_client_s_measurement(tmp_path: Path, platform: SimulatedPlatform) -> None:
    app = tmp_path / "app"
    app.mkdir()
    (app / "app.py").write_text("code = 1\n")
    policy = dataclasses.replace(manifest(platform).client_tee, measurements=(client_image(app, LOCK),))
    file = written(tmp_path, manifest(platform, client_tee=policy))
    assert refused(as_json("--manifest", file)) == {"measurement": "measurement"}
    assert refused(as_json("--manifest", file, "--app", app)) == {}


def test_a_manifest_that_trusts_another_root_is_told_before_anything_is_appraised(tmp_path: Path) -> None:
    stranger = SimulatedPlatform.create(time.time_ns() // 1_000_000)
    report = as_json("--manifest", written(tmp_path, manifest(stranger)))
    assert refused(report) == {"signature and chain": "trust-anchor"}
    assert {one["outcome"] for one in report["broker"]["claims"]} == {"refused", "not reached"}
    assert "not reached" in text("--manifest", written(tmp_path, manifest(stranger)))


def test_a_tee_that_is_not_here_has_nothing_to_be_judged() -> None:
    if Path("/dev/nsm").exists():
        pytest.skip("this machine is a Nitro enclave")
    report = as_json("--tee", "nitro")
    assert (report["broker"]["claims"], report["broker"]["accepted"]) == ([], False)
    assert "there is no evidence to judge: /dev/nsm" in text("--tee", "nitro")


@pytest.mark.parametrize("kind", [*(kind for kind in KINDS if kind != "simulated"), "nvidia-gpu"])
def test_a_kind_that_is_required_and_not_here_ends_with_three_and_a_report(kind: str) -> None:
    report = as_json()
    if next(one["attests"] for one in report["attests"] if one["kind"] == kind):
        pytest.skip(f"this machine has {kind}")
    result = invoke("--require", kind, "--json")
    assert isinstance(result.exception, EvidenceUnavailableError)
    assert result.exception.exit_code == 3
    assert json.loads(result.stdout)["packages"]


def test_a_tpm_that_is_described_is_asked() -> None:
    report = as_json("--tcti", "device:/no/such", "--enrolment", __file__, "--google-key", "ecc")
    reasons = {one["kind"]: one["reason"] for one in report["attests"]}
    assert "not asked" not in reasons["tpm"]
    assert "not asked" not in reasons["gcp-tpm"]


def test_a_kind_that_is_required_and_here_ends_with_zero() -> None:
    assert "SIMULATED" in text("--require", "simulated")


MISTAKES = {
    "a kind that there is not": (("--tee", "sev"), ConfigError),
    "a required kind that there is not": (("--require", "sev"), ConfigError),
    "GPUs as a TEE": (("--tee", "nvidia-gpu"), ConfigError),
    "GPUs beside a simulated TEE": (("--gpu", "0"), ConfigError),
    "an environment that there is not": (("--environment", "test"), ConfigError),
    "a privilege level that there is not": (("--privilege-level", "9"), SystemExit),
    "a TPM's enrolment without the TPM": (("--enrolment", __file__), ConfigError),
    "a TPM's key without the TPM": (("--google-key", "rsa"), ConfigError),
    "registers that are no numbers": (("--tcti", "device:/no", "--registers", "all"), ConfigError),
    "an enrolment that is not there": (("--tcti", "device:/no", "--enrolment", "/no/such"), MissingFileError),
    "a TPM that is not named in full": (("--tcti", "device", "--google-key", "rsa"), ConfigError),
    "a manifest that is not there": (("--manifest", "/no/such"), MissingFileError),
    "a manifest that is none": (("--manifest", __file__), EncodingError),
    "an appraisal policy that is not there": (("--policy", "/no/such"), MissingFileError),
    "an appraisal policy that is none": (("--policy", __file__), PolicyFormatError),
    "an appraisal policy for another TEE": (("--policy", "nitro"), ConfigError),
    "an endorsement that is not there": (("--endorsement", "/no/such"), MissingFileError),
    "an app that is not there": (("--app", "/no/such"), MissingFileError),
}


@pytest.mark.parametrize(("arguments", "error"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_told(arguments: tuple[str, ...], error: type[Exception], tmp_path: Path) -> None:
    result = invoke(*arguments)
    assert type(result.exception) is error
    assert result.stdout == ""


def test_gpus_are_shown_with_their_modes(monkeypatch: pytest.MonkeyPatch) -> None:
    modes = {"confidential_compute": "on", "devtools": "off", "environment": "production", "multi_gpu": "none"}
    gpus = inventory.Gpus(names=("NVIDIA H100 [PCIe]",), driver="580.95.05", modes=modes, problem="")
    monkeypatch.setattr(inventory, "gpus", lambda: gpus)
    printed = text()
    assert "NVIDIA H100 [PCIe]" in printed
    assert "confidential compute on" in printed
    assert as_json()["gpus"]["modes"] == modes


def test_nothing_secret_is_told_and_nothing_is_written(
    tmp_path: Path, own_home: Path, platform: SimulatedPlatform
) -> None:
    before = {path: path.read_bytes() for path in own_home.rglob("*") if path.is_file()}
    printed = text("--manifest", written(tmp_path, manifest(platform))) + json.dumps(as_json())
    assert {path: path.read_bytes() for path in own_home.rglob("*") if path.is_file()} == before
    private = "".join(next(iter(before.values())).decode().split("\n")[1:3])
    assert private[:20] not in printed


def test_a_home_without_a_root_stays_without(tmp_path: Path) -> None:
    text("--home", tmp_path / "empty")
    assert not (tmp_path / "empty").exists()


def test_simulated_evidence_is_never_called_real() -> None:
    printed = text("--environment", "simulation")
    line = next(line for line in printed.splitlines() if "what a broker would say" in line)
    assert "SIMULATED evidence" in line
    assert all("SIMULATED" in line for line in printed.splitlines() if line.split()[:2] == ["yes", "simulated"])
