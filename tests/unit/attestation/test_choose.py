import pytest
from attestation_world import BINDING, INSTANCE, MANIFEST
from attester_world import GramineFiles, SecurityModule

from confed.attestation.attesters import choose, nsm
from confed.attestation.attesters.choose import KINDS, DevicePaths, TpmOptions, attester_for
from confed.attestation.attesters.configfs_tsm import ConfigfsTsmAttester
from confed.attestation.attesters.gramine import GramineAttester
from confed.attestation.attesters.nsm import NsmAttester
from confed.attestation.tee.simulated import SimulatedAttester
from confed.errors import ConfigError, EvidenceUnavailableError

SIMULATED = SimulatedAttester(INSTANCE)
NEEDED = {"simulated": {"simulated": SIMULATED}, "snp": {"privilege_level": 0}}
OWN = TpmOptions(tcti="device:/no/such", selection=(0, 15), enrolment=b"enrolment")
GOOGLE = TpmOptions(tcti="device:/no/such", selection=(0, 15), algorithm="ecc")
GOOGLE_WITHOUT = TpmOptions(tcti="device:/no/such", selection=(15,))
BOTH = TpmOptions(tcti="device:/no/such", selection=(15,), enrolment=b"x", algorithm="rsa")
WITH_A_PATH = ("snp", "tdx", "sgx", "nitro")


@pytest.fixture
def paths(tmp_path):
    """Return the places of a machine that has every interface there is."""
    (tmp_path / "tsm" / "report").mkdir(parents=True)
    (tmp_path / "attestation").mkdir()
    GramineFiles(tmp_path / "attestation")
    (tmp_path / "nsm").write_bytes(b"")
    return DevicePaths(tsm=tmp_path / "tsm", gramine=tmp_path / "attestation", nsm=tmp_path / "nsm")


CHOSEN = {
    "simulated": (SimulatedAttester, "simulated/1"),
    "snp": (ConfigfsTsmAttester, "sev-snp/1"),
    "tdx": (ConfigfsTsmAttester, "tdx/1"),
    "sgx": (GramineAttester, "sgx/1"),
    "nitro": (NsmAttester, "aws-nitro/1"),
}


@pytest.mark.parametrize("kind", CHOSEN)
def test_the_attester_is_the_one_that_was_named(paths, kind):
    attester = attester_for(kind, paths=paths, **NEEDED.get(kind, {}))
    assert (type(attester), attester.profile) == CHOSEN[kind]


@pytest.mark.parametrize("kind", WITH_A_PATH)
def test_a_device_that_is_not_there_is_named_and_no_other_is_tried(paths, kind, tmp_path):
    absent = DevicePaths(
        **{name: getattr(paths, name) for name in DevicePaths.__dataclass_fields__}
        | dict.fromkeys(
            {"snp": ("tsm",), "tdx": ("tsm",), "sgx": ("gramine",), "nitro": ("nsm",)}[kind], tmp_path / "absent"
        )
    )
    with pytest.raises(EvidenceUnavailableError, match="ENOENT") as caught:
        attester_for(kind, paths=absent, **NEEDED.get(kind, {}))
    assert str(absent.of(kind)) in str(caught.value)


@pytest.mark.parametrize("kind", WITH_A_PATH)
def test_this_machine_s_own_paths_are_the_default(kind):
    if choose.DevicePaths().of(kind).exists():
        pytest.skip(f"this machine has {choose.DevicePaths().of(kind)}")
    with pytest.raises(EvidenceUnavailableError):
        attester_for(kind, **NEEDED.get(kind, {}))


class PlayedTpm:
    """Stands in for a TPM's attester, whose making asks the TPM; notes how it was made."""

    def __init__(self, how, **options):
        self.how, self.options, self.profile = how, options, "tpm/1"
        self.configured = None

    def configure(self, manifest_digest):
        self.configured = manifest_digest


@pytest.mark.parametrize(("kind", "options", "how"), [("tpm", OWN, "own"), ("gcp-tpm", GOOGLE, "google")])
def test_a_tpm_s_attester_is_made_as_it_was_described(monkeypatch, kind, options, how):
    for name in ("own", "google"):
        monkeypatch.setattr(
            choose.TpmAttester, name, lambda tcti, *, _how=name, **given: PlayedTpm(_how, tcti=tcti, **given)
        )
    made = attester_for(kind, tpm=options)
    assert (made.how, made.configured) == (how, None)
    named = {name: getattr(options, name) for name in ("tcti", "selection", "event_log", "intermediates")}
    only = {"enrolment": options.enrolment} if how == "own" else {"algorithm": options.algorithm}
    assert made.options == {**named, **only, "devices": None}
    assert attester_for(kind, tpm=options, manifest_digest=MANIFEST).configured == MANIFEST


@pytest.mark.parametrize(("kind", "options"), [("tpm", OWN), ("gcp-tpm", GOOGLE)])
def test_a_tpm_that_is_not_there_is_told(kind, options):
    with pytest.raises(EvidenceUnavailableError):
        attester_for(kind, tpm=options)


MISTAKES = {
    "a kind that there is not": ("sev", {}),
    "a kind in capitals": ("SNP", {}),
    "no kind": ("", {}),
    "a simulated TEE that nobody launched": ("simulated", {}),
    "a simulated TEE with devices": ("simulated", {"simulated": SIMULATED, "devices": lambda _: (b"x",)}),
    "SEV-SNP without a privilege level": ("snp", {}),
    "SEV-SNP with one that there is not": ("snp", {"privilege_level": 4}),
    "SEV-SNP with a simulated instance": ("snp", {"privilege_level": 0, "simulated": SIMULATED}),
    "SEV-SNP with event logs": ("snp", {"privilege_level": 0, "event_logs": ("CCEL",)}),
    "TDX with a privilege level": ("tdx", {"privilege_level": 0}),
    "SGX with a privilege level": ("sgx", {"privilege_level": 0}),
    "a TPM that nobody described": ("tpm", {}),
    "a TPM without an enrolment": ("tpm", {"tpm": GOOGLE_WITHOUT}),
    "a TPM with one of Google's keys": ("tpm", {"tpm": BOTH}),
    "a TPM of Google's without a key": ("gcp-tpm", {"tpm": GOOGLE_WITHOUT}),
    "a TPM of Google's with an enrolment": ("gcp-tpm", {"tpm": BOTH}),
    "SEV-SNP with a TPM": ("snp", {"privilege_level": 0, "tpm": OWN}),
    "Nitro with event logs": ("nitro", {"event_logs": ("CCEL",)}),
}


@pytest.mark.parametrize(("kind", "options"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_told(paths, kind, options):
    with pytest.raises(ConfigError) as caught:
        attester_for(kind, paths=paths, **options)
    # A kind that there is not is told as that, with those that there are.
    assert (kind in KINDS) or all(known in str(caught.value) for known in KINDS)


def test_a_nitro_enclave_is_configured_when_it_is_told_its_manifest(paths, monkeypatch):
    module = SecurityModule()
    monkeypatch.setattr(nsm.NitroSecurityModule.__init__, "__kwdefaults__", {"ioctl": module.ioctl})
    attester_for("nitro", paths=paths)
    assert module.requests == []
    attester_for("nitro", paths=paths, manifest_digest=MANIFEST)
    assert 16 in module.locked


def test_the_simulated_attester_is_the_launched_one():
    attester = attester_for("simulated", simulated=SIMULATED, manifest_digest=MANIFEST)
    assert attester is SIMULATED
    assert attester.attest(BINDING).profile == "simulated/1"


@pytest.mark.parametrize("kind", ["simulated", "tpm"])
def test_a_kind_without_a_device_has_no_path(kind):
    with pytest.raises(ConfigError):
        DevicePaths().of(kind)


def test_every_kind_is_chosen_in_these_tests():
    assert set(KINDS) == {*CHOSEN, "tpm", "gcp-tpm"}
