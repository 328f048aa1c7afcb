"""The ``[tee]`` table's way into a manifest, and every wrong turn of it: each is one clear line, before a run starts."""

import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from confed.attestation.anchors import pinned_anchors
from confed.attestation.attesters.launch import MADE_HERE
from confed.attestation.endorsements import AmdCrl, Endorsement, encode_bundle
from confed.attestation.policy import document, ready
from confed.attestation.verifier import default_registry
from confed.errors import ConfigError, MissingFileError, PolicyFormatError
from confed.experiment.config import AttesterTable, TeeTable
from confed.experiment.tees import attester_terms, tee_policy, trust_anchors
from confed.journey import Role

CODE = "c1" * 32
MEASURED = "ab" * 48
NOW = datetime.datetime(2026, 12, 1, tzinfo=datetime.UTC)
LAST = datetime.datetime(2027, 3, 31, 23, 59, tzinfo=datetime.UTC)
SNP = {
    "profile": "sev-snp/1", "policies": ("sev-snp",), "client_measurements": (MEASURED,),
    "aggregator_measurements": ("cd" * 48,),
}  # fmt: skip
GPU = {"devices": ("nvidia-gpu/1",), "policies": ("sev-snp", "nvidia-h100")}


def made(directory, *, now=NOW, role=Role.CLIENT, **table):
    return tee_policy(TeeTable(**table), directory, role=role, code=CODE, now=now)


def test_the_simulated_tee_runs_the_code_here_and_needs_nothing_more(tmp_path):
    found = made(tmp_path)
    assert (found.profiles, found.measurements, found.appraisal) == (("simulated/1",), (CODE,), {})
    assert trust_anchors(TeeTable(), tmp_path, simulated=b"root") == {"simulated/1": (b"root",)}


def test_a_real_tee_brings_its_measurements_and_policies_for_itself_and_its_devices(tmp_path):
    found = made(tmp_path, **SNP)
    assert (found.profiles, found.measurements) == (("sev-snp/1",), (MEASURED,))
    assert found.appraisal == {"sev-snp/1": document.load(ready.ready_policy("sev-snp")).to_table()}
    assert made(tmp_path, role=Role.AGGREGATOR, **SNP).measurements == ("cd" * 48,)
    assert set(made(tmp_path, **{**SNP, **GPU}).appraisal) == {"sev-snp/1", "nvidia-gpu/1"}


def test_a_file_beside_the_experiment_goes_before_a_ready_policy_of_its_name(tmp_path):
    own = ready.ready_policy("sev-snp").replace(b'name = "sev-snp"', b'name = "ours"')
    (tmp_path / "sev-snp").write_bytes(own)
    assert made(tmp_path, **SNP).appraisal["sev-snp/1"]["name"] == "ours"


def test_a_policy_serves_to_its_last_day(tmp_path):
    made(tmp_path, now=LAST, **SNP)


WRONG = {
    "a profile that no verifier knows": ({"profile": "sev-snp/2"}, ConfigError, "tee.profile"),
    "a device's profile as the TEE's": ({**SNP, "profile": "nvidia-gpu/1"}, ConfigError, "tee.profile"),
    "a device that no verifier knows": ({**SNP, "devices": ("tpu/1",)}, ConfigError, "tee.devices"),
    "a TEE as a device": ({**SNP, "devices": ("tdx/1",)}, ConfigError, "tee.devices"),
    "a device twice": ({**SNP, "devices": ("nvidia-gpu/1",) * 2}, ConfigError, "tee.devices"),
    "no policy": ({**SNP, "policies": ()}, ConfigError, "tee.policies"),
    "a policy for the simulated TEE": ({"policies": ("sev-snp",)}, ConfigError, "tee.policies"),
    "a policy that is not there": ({**SNP, "policies": ("ours.toml",)}, MissingFileError, "tee.policies"),
    "a folder as policy": ({**SNP, "policies": (".",)}, MissingFileError, "tee.policies"),
    "a policy of another kind": ({**SNP, "policies": ("tdx",)}, ConfigError, "tee.policies"),
    "two policies of one kind": ({**SNP, "policies": ("sev-snp", "sev-snp-milan")}, ConfigError, "tee.policies"),
    "a policy too many": ({**SNP, "policies": ("sev-snp", "nvidia-h100")}, ConfigError, "tee.policies"),
    "devices without a policy": ({**SNP, **GPU, "policies": ("sev-snp",)}, ConfigError, "tee.policies"),
    "devices whose policy is all there is": ({**SNP, **GPU, "policies": ("nvidia-h100",)}, ConfigError, "tee.policies"),
    "a policy past its last day": (
        {**SNP, "now": LAST + datetime.timedelta(minutes=1)}, ConfigError, "tee.policies",
    ),
    "measurements of a simulated TEE": ({"client_measurements": (CODE,)}, ConfigError, "tee.client_measurements"),
    "no measurements": ({**SNP, "client_measurements": ()}, ConfigError, "tee.client_measurements"),
    "no measurements of the aggregator": (
        {**SNP, "aggregator_measurements": (), "role": Role.AGGREGATOR}, ConfigError, "tee.aggregator_measurements",
    ),
    "a measurement in capitals": ({**SNP, "client_measurements": ("AB" * 48,)}, ConfigError, "tee.client_measurements"),
    "a measurement with a prefix": (
        {**SNP, "client_measurements": (f"sha384:{MEASURED}",)}, ConfigError, "tee.client_measurements",
    ),
    "a measurement with a line break": (
        {**SNP, "client_measurements": (f"{MEASURED}\n",)}, ConfigError, "tee.client_measurements",
    ),
    "half a byte": ({**SNP, "client_measurements": ("abc",)}, ConfigError, "tee.client_measurements"),
    "an empty measurement": ({**SNP, "client_measurements": ("",)}, ConfigError, "tee.client_measurements"),
    "zeros": ({**SNP, "client_measurements": (MEASURED, "00" * 48)}, ConfigError, "tee.client_measurements"),
    "evidence that serves for more than a day": ({"reattest_s": 24 * 3600 + 1}, ConfigError, "tee.reattest_s"),
}  # fmt: skip


@pytest.mark.parametrize(("table", "error", "field"), WRONG.values(), ids=WRONG.keys())
def test_a_table_is_refused_with(tmp_path, table, error, field):
    with pytest.raises(error) as caught:
        made(tmp_path, **table)
    assert type(caught.value) is error
    assert caught.value.field == field
    assert caught.value.exit_code == 2


def test_a_policy_that_is_none_is_told_with_the_key_at_fault(tmp_path):
    (tmp_path / "ours.toml").write_bytes(ready.ready_policy("sev-snp").replace(b"committed", b"comitted"))
    with pytest.raises(PolicyFormatError, match=r"policy\.comitted"):
        made(tmp_path, **{**SNP, "policies": ("ours.toml",)})


def certificate():
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "root")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 7, NOW, LAST)
    return builder.sign(key, hashes.SHA256())


ROOT = certificate()
PEM = ROOT.public_bytes(serialization.Encoding.PEM)
DER = ROOT.public_bytes(serialization.Encoding.DER)
SPKI = serialization.PublicFormat.SubjectPublicKeyInfo
KEY_PEM = ROOT.public_key().public_bytes(serialization.Encoding.PEM, SPKI)
KEY_DER = ROOT.public_key().public_bytes(serialization.Encoding.DER, SPKI)


def anchors(directory, content=None, *, profile="tpm/1", **table):
    if content is not None:
        (directory / "roots.pem").write_bytes(content)
        table = {"anchors": {profile: "roots.pem"}, **table}
    return trust_anchors(TeeTable(profile="tpm/1", **table), directory, simulated=b"")


def test_anchors_are_a_file_s_certificates_and_then_its_keys(tmp_path):
    assert anchors(tmp_path, KEY_PEM + PEM) == {"tpm/1": (DER, KEY_DER)}
    assert anchors(tmp_path, KEY_PEM) == {"tpm/1": (KEY_DER,)}


def test_where_a_file_is_named_pinned_roots_are_not_trusted_beside_it(tmp_path):
    (tmp_path / "roots.pem").write_bytes(PEM)
    table = TeeTable(profile="sev-snp/1", devices=("nvidia-gpu/1",), anchors={"sev-snp/1": "roots.pem"})
    found = trust_anchors(table, tmp_path, simulated=b"")
    assert found == {"sev-snp/1": (DER,), "nvidia-gpu/1": pinned_anchors("nvidia-gpu/1")}


WITHOUT = {"tpm/1", "arm-cca/1", "simulated/1"}


@pytest.mark.parametrize("profile", [*default_registry().profiles, *default_registry().device_profiles])
def test_every_profile_has_pinned_roots_or_says_that_it_has_none(profile):
    found = pinned_anchors(profile)
    assert bool(found) == (profile not in WITHOUT)
    for der in found:
        x509.load_der_x509_certificate(der)


BROKEN = {
    "no file where none are pinned": {},
    "an empty file": {"content": b""},
    "blanks": {"content": b" \n"},
    "text": {"content": b"here be certificates\n"},
    "a broken certificate": {"content": PEM.replace(b"M", b"!", 1)},
    "a broken key": {"content": KEY_PEM.replace(b"M", b"A", 3)},
    "a broken key beside a certificate": {"content": PEM + KEY_PEM.replace(b"M", b"A", 3)},
    "trailing bytes in a certificate file": {"content": DER + b"\0"},
    "a private key": {"content": b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"},
    "a profile that the table does not name": {"content": PEM, "profile": "sev-snp/1"},
    "the simulated TEE's": {"content": PEM, "profile": "simulated/1"},
}


@pytest.mark.parametrize("how", BROKEN.values(), ids=BROKEN.keys())
def test_anchors_are_refused_with(tmp_path, how):
    with pytest.raises(ConfigError) as caught:
        anchors(tmp_path, **how)
    assert type(caught.value) is ConfigError
    assert caught.value.field == f"tee.anchors.{how.get('profile', 'tpm/1')}"


def test_the_simulated_tee_has_no_anchors_but_its_own_platform(tmp_path):
    (tmp_path / "roots.pem").write_bytes(PEM)
    with pytest.raises(ConfigError):
        trust_anchors(TeeTable(anchors={"simulated/1": "roots.pem"}), tmp_path, simulated=b"root")


def test_a_file_of_anchors_that_is_not_there_is_named(tmp_path):
    with pytest.raises(MissingFileError, match=r"roots\.pem"):
        anchors(tmp_path, anchors={"tpm/1": "roots.pem"})


def test_terms_carry_what_the_host_says_and_the_contents_of_its_files(tmp_path):
    entry = Endorsement(need=AmdCrl(product="Milan", key="vcek"), data=b"list", fetched_at=1, expires_at=2)
    (tmp_path / "bundle.json").write_bytes(encode_bundle([entry]))
    (tmp_path / "vek.der").write_bytes(DER)
    (tmp_path / "enrolled").write_bytes(b"signed")
    host = AttesterTable(privilege_level=2, enrolment="enrolled", endorsements=("vek.der", "bundle.json"), gpus=(0,))
    found = attester_terms(TeeTable(profile="sev-snp/1", attester=host), tmp_path)
    assert (found.profile, found.privilege_level, found.enrolment, found.gpus) == ("sev-snp/1", 2, b"signed", (0,))
    assert found.endorsements == (DER, b"list")


def test_evidence_that_is_not_made_here_has_no_terms(tmp_path):
    for profile in default_registry().profiles:
        if profile not in MADE_HERE:
            with pytest.raises(ConfigError, match="attester"):
                attester_terms(TeeTable(profile=profile), tmp_path)


@pytest.mark.parametrize("host", [{"enrolment": "nowhere"}, {"endorsements": ("nowhere",)}])
def test_a_file_of_the_host_s_that_is_not_there_is_named(tmp_path, host):
    with pytest.raises(MissingFileError, match="nowhere"):
        attester_terms(TeeTable(profile="tpm/1", attester=AttesterTable(**host)), tmp_path)
