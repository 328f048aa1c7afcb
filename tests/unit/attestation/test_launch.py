"""What a TEE is told about its evidence when it is launched: one attester, by the manifest's profile, and no other."""

import pytest
from attestation_world import BINDING, issue

from confed import canonical, record
from confed.attestation.attesters.launch import MADE_HERE, AttesterTerms, attester_of
from confed.attestation.tee.simulated import PROFILE, SimulatedAttester
from confed.errors import ConfigError, EvidenceUnavailableError

DIGEST = "ab" * 32


def made(**terms):
    return attester_of(AttesterTerms(**terms), layers=("no-core",), manifest_digest=DIGEST)


def test_a_simulated_tee_attests_with_its_instance():
    attester = made(profile=PROFILE, instance=issue().to_bytes())
    assert isinstance(attester, SimulatedAttester)
    assert attester.profile == PROFILE


def test_endorsements_go_along_with_every_envelope_and_change_nothing_else():
    instance = issue().to_bytes()
    bare = made(profile=PROFILE, instance=instance).attest(BINDING)
    stapled = made(profile=PROFILE, instance=instance, endorsements=(b"collateral",)).attest(BINDING)
    assert stapled.endorsements == (*bare.endorsements, b"collateral")
    assert stapled.binding == bare.binding


REFUSED = {
    "a profile that nobody makes evidence of": ({"profile": "azure-snp/1"}, ConfigError),
    "a profile that nobody knows": ({"profile": "unheard-of/1"}, ConfigError),
    "a simulated instance for real hardware": ({"profile": "sev-snp/1", "instance": b"x"}, ConfigError),
    "a TPM that is not named": ({"profile": "tpm/1", "registers": (0, 15)}, ConfigError),
    "a TPM with two event logs": (
        {"profile": "tpm/1", "tcti": "device:/nowhere", "registers": (0, 15), "event_logs": ("a", "b")},
        ConfigError,
    ),
}


@pytest.mark.parametrize(("terms", "error"), REFUSED.values(), ids=REFUSED.keys())
def test_there_is_no_attester_for(terms, error):
    with pytest.raises(error):
        made(**terms)


@pytest.mark.parametrize("profile", ["sev-snp/1", "tdx/1", "sgx/1", "aws-nitro/1"])
def test_hardware_that_is_not_here_is_named_and_nothing_else_is_tried(profile, tmp_path, monkeypatch):
    from confed.attestation.attesters import choose  # noqa: PLC0415

    places = choose.DevicePaths(tsm=tmp_path / "tsm", nsm=tmp_path / "nsm", gramine=tmp_path / "attestation")
    monkeypatch.setattr(choose, "DevicePaths", lambda: places)
    with pytest.raises(EvidenceUnavailableError, match=str(tmp_path)):
        made(profile=profile)


def test_terms_travel_as_canonical_json_and_show_no_secret():
    terms = AttesterTerms(
        profile=PROFILE, instance=b"secret", gpus=(0, "GPU-1"), registers=(0, 15), endorsements=(b"e",)
    )
    data = canonical.encode(record.to_json(terms))
    assert record.from_json(AttesterTerms, canonical.decode(data)) == terms
    assert "secret" not in repr(terms)
    assert b"secret".hex() not in repr(terms)


def test_every_profile_that_has_an_attester_has_a_verifier():
    from confed.attestation.verifier import default_registry  # noqa: PLC0415

    assert set(MADE_HERE) <= set(default_registry().profiles)
