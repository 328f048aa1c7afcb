"""A whole run whose TEEs attest with a TPM: quotes of a real TPM 2.0 implementation (swtpm), not of a simulated TEE.

What protects the run is no more than before (a software TPM proves nothing about the machine, and production refuses
it); what is shown is that the road takes a registered kind of evidence from the manifest on: policy, anchors, enrolment
after credential activation, broker, client, records and offline verification.
"""

import datetime
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from runs import LINEAR, confed, confidential_ordinary, digits

from confed.attestation.certificates import load_certificate, load_certificates
from confed.attestation.tee.tpm_enrolment import begin_enrolment, finish_enrolment
from confed.attestation.tee.tpm_evidence import measurement_of

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "attestation"))
import swtpm_world

attester = pytest.importorskip(
    "confed.attestation.attesters.tpm", reason="tpm2-pytss is not installed (the extra tpm, with libtss2-dev)"
)
pytest.importorskip("tpm2_pytss", reason="tpm2-pytss is not installed (the extra tpm, with libtss2-dev)")
pytestmark = swtpm_world.needs_swtpm

REGISTERS = (0, 1, 2, 3, 4, 5, 6, 7, 15)
POLICY = """
format = "confed-appraisal/1"
name = "software-tpm"
profile = "tpm/1"
issued = "{today}"
expires = "{later}"
sources = ["the software TPM of this test"]
[policy]
rooted_by = ["enrolment"]
attributes = true
attestation_keys = {{ unchecked = "enrolled keys of one authority" }}
endorsement_keys = {{ unchecked = "enrolled keys of one authority" }}
manufacturers = {{ unchecked = "a software TPM" }}
firmware_versions = {{ unchecked = "a software TPM" }}
[policy.quote]
nonce = true
banks = ["sha256"]
selection = {selection}
registers = {{ unchecked = "the manifest's measurement is over all of them" }}
replayed = {{ unchecked = "no firmware measured anything into this TPM" }}
"""


@pytest.fixture(scope="module")
def tpm(tmp_path_factory):
    """Start a TPM on a Unix socket, which TEEs without a network can reach; give its TCTI and its authority."""
    folder = tmp_path_factory.mktemp("tpm")
    state = swtpm_world.manufacture(folder, "machine")
    socket = folder / "tpm.sock"
    process = subprocess.Popen(
        ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={state}", "--server", f"type=unixio,path={socket}",
         "--ctrl", f"type=unixio,path={socket}.ctrl", "--flags", "not-need-init,startup-clear"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 20
        while not (socket.exists() and Path(f"{socket}.ctrl").exists()):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield f"swtpm:path={socket}", folder / "authority"
    finally:
        process.terminate()
        process.wait(timeout=20)


def enrolled(tcti, authority_folder, *, authority):
    """Let an authority enrol the TPM's attestation key; return the enrolment and the root of its EK certificate."""
    request = attester.enrolment_request(tcti)
    root = load_certificate((authority_folder / "swtpm-localca-rootca-cert.pem").read_bytes(), what="root")
    credential, pending = begin_enrolment(
        attestation_key=request.attestation_key,
        endorsement_key=request.endorsement_key,
        certificate=load_certificate(request.certificate, what="EK"),
        intermediates=load_certificates((authority_folder / "issuercert.pem").read_bytes(), what="issuer"),
        anchors=[root],
        now=datetime.datetime.now(datetime.UTC),
    )
    answer = attester.activate_credential(tcti, credential)
    now = time.time_ns() // 1_000_000
    return finish_enrolment(pending, answer, authority=authority, now_ms=now, lifetime_s=3600)


def experiment(folder, tpm, *, measurement=None, signer=None, tcti=None):
    """Write an experiment whose TEEs attest with the TPM: digits, or a smaller one where something is wrong with it."""
    honest = measurement is signer is tcti is None
    authority_folder = tpm[1]
    authority = Ed25519PrivateKey.generate()
    config = digits(folder, rounds=1) if honest else confidential_ordinary(folder, rounds=1, app=LINEAR)
    today = datetime.datetime.now(datetime.UTC).date()
    (folder / "enrolment.json").write_bytes(enrolled(tpm[0], authority_folder, authority=signer or authority))
    (folder / "anchors.pem").write_bytes(
        (authority_folder / "swtpm-localca-rootca-cert.pem").read_bytes()
        + authority.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    later = today + datetime.timedelta(days=30)
    (folder / "policy.toml").write_text(POLICY.format(today=today, later=later, selection=list(REGISTERS)))
    (folder / "issuer.pem").write_bytes((authority_folder / "issuercert.pem").read_bytes())
    zeros = measurement_of(dict.fromkeys(REGISTERS, bytes(32)))
    config.write_text(
        config.read_text()
        + f"""
[tee]
profile = "tpm/1"
policies = ["policy.toml"]
client_measurements = ["{measurement or zeros}"]
aggregator_measurements = ["{zeros}"]
[tee.anchors]
"tpm/1" = "anchors.pem"
[tee.attester]
tcti = "{tcti or tpm[0]}"
registers = {list(REGISTERS)}
enrolment = "enrolment.json"
endorsements = ["issuer.pem"]
"""
    )
    return config


@pytest.fixture(autouse=True)
def _fresh_configuration(tpm):
    """PCR15 takes one manifest for each start of the machine: restart the TPM before each run."""
    from tpm2_pytss import ESAPI  # noqa: PLC0415
    from tpm2_pytss.constants import TPM2_SU  # noqa: PLC0415

    with ESAPI(tpm[0]) as device:
        device.shutdown(TPM2_SU.CLEAR)
    control = tpm[0].removeprefix("swtpm:path=") + ".ctrl"
    subprocess.run(["swtpm_ioctl", "--unix", control, "-i"], check=True, timeout=20)
    with ESAPI(tpm[0]) as device:
        device.startup(TPM2_SU.CLEAR)


def test_a_run_takes_evidence_of_a_tpm_and_verifies_offline(tmp_path, tpm):
    home = tmp_path / "home"
    done = confed(
        "run", str(experiment(tmp_path / "experiment", tpm)), "--runs", str(tmp_path / "runs"), "--json", home=home
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.strip().splitlines()[-1])
    assert summary["rounds"] == 1
    checked = confed("verify", summary["run_dir"], "--json", home=home)
    assert checked.returncode == 0, checked.stderr
    assert json.loads(checked.stdout)["evidence"] > 0
    evidence = list(Path(summary["run_dir"], "evidence").iterdir())
    assert evidence
    assert all(b'"profile":"tpm/1"' in file.read_bytes() for file in evidence)
    assert "software-tpm" in Path(summary["report"]).read_text()


def test_a_tpm_that_another_authority_enrolled_gets_no_key(tmp_path, tpm):
    config = experiment(tmp_path / "experiment", tpm, signer=Ed25519PrivateKey.generate())
    done = confed("run", str(config), "--runs", str(tmp_path / "runs"), home=tmp_path / "home")
    assert done.returncode == 3
    assert "trust-anchor" in done.stderr


def test_a_measurement_that_the_manifest_does_not_name_gets_no_key(tmp_path, tpm):
    config = experiment(tmp_path / "experiment", tpm, measurement="ab" * 32)
    done = confed("run", str(config), "--runs", str(tmp_path / "runs"), home=tmp_path / "home")
    assert done.returncode != 0
    assert "measurement" in done.stderr + "".join(
        file.read_text() for file in (tmp_path / "runs").rglob("events.jsonl")
    )


def test_a_tpm_that_is_not_there_ends_the_run_by_name(tmp_path, tpm):
    config = experiment(tmp_path / "experiment", tpm, tcti="swtpm:path=/nonexistent")
    done = confed("run", str(config), "--runs", str(tmp_path / "runs"), home=tmp_path / "home")
    assert done.returncode != 0
    assert "TPM swtpm:path=/nonexistent" in done.stderr
    assert not os.path.lexists("/nonexistent")
