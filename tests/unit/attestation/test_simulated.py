import dataclasses
import stat
import threading

import pytest
from attestation_world import BINDING, LAUNCH, MANIFEST, MEASUREMENT, NOW, ROOT, issue, verify
from cryptography import x509

from confed import canonical
from confed.attestation.tee.simulated import PROFILE, SimulatedAttester, SimulatedInstance, SimulatedPlatform
from confed.attestation.tee.simulated_certificate import ROOT_SUBJECT
from confed.errors import EncodingError, EvidenceFormatError, MissingFileError


def launched(platform: SimulatedPlatform = ROOT) -> SimulatedInstance:
    return platform.launch(
        measurement=MEASUREMENT, configuration=MANIFEST, environment="simulation", shared=True, now_ms=NOW
    )


def test_a_launched_instance_attests_to_what_was_launched():
    instance = launched()
    claims = verify(SimulatedAttester(instance).attest(BINDING))
    assert instance.launch == dataclasses.replace(LAUNCH, shared=True)
    assert (claims.measurement, claims.configuration, claims.shared) == (MEASUREMENT, MANIFEST, True)
    assert claims.debug is False
    assert claims.layers == ()


def test_the_root_says_what_it_is_not():
    root = x509.load_der_x509_certificate(ROOT.anchor)
    assert ROOT_SUBJECT in root.subject.rfc4514_string()
    assert "SIMULATED" in ROOT_SUBJECT
    assert "not hardware" in ROOT_SUBJECT


def test_an_instance_survives_the_way_to_its_own_process():
    instance = launched()
    arrived = SimulatedInstance.from_bytes(instance.to_bytes())
    verify(SimulatedAttester(arrived).attest(BINDING))
    assert arrived.to_bytes() == instance.to_bytes()


def test_no_secret_shows_in_a_repr():
    instance = launched()
    secret = instance._key.private_bytes_raw()
    for shown in (repr(instance), repr(ROOT), repr(SimulatedAttester(instance))):
        assert secret.hex() not in shown
        assert repr(secret) not in shown


def swapped_key() -> bytes:
    one, two = launched(), launched()
    return SimulatedInstance(key=two._key, certificate=one.certificate).to_bytes()


INSTANCES = {
    "a key that is not the certified one": swapped_key(),
    "a trailing byte": launched().to_bytes() + b" ",
    "another format": launched().to_bytes().replace(b"simulated-instance/1", b"simulated-instance/2"),
    "something else": b"{}",
    "a short key": canonical.encode({"certificate": "", "format": "confed-simulated-instance/1", "key": "QQ=="}),
}


@pytest.mark.parametrize("data", INSTANCES.values(), ids=INSTANCES.keys())
def test_an_instance_is_refused_with(data):
    with pytest.raises(EvidenceFormatError):
        SimulatedInstance.from_bytes(data)


@pytest.mark.parametrize("changes", [{"measurement": "x"}, {"configuration": "2B" * 32}])
def test_only_digests_can_be_launched(changes):
    with pytest.raises(EvidenceFormatError):
        issue(**changes)


def test_evidence_is_made_for_its_own_profile_only():
    with pytest.raises(EvidenceFormatError):
        SimulatedAttester(launched()).attest(dataclasses.replace(BINDING, profile="tdx/4"))


@pytest.mark.parametrize("layers", [("x",) * 33, ("x" * 65,), ("",)])
def test_layers_are_few_and_short(layers):
    with pytest.raises(EvidenceFormatError):
        SimulatedAttester(launched(), layers=layers)


def test_a_saved_root_is_its_owners_alone_and_launches_again(tmp_path):
    path = tmp_path / "tee" / "root.pem"
    platform = SimulatedPlatform.create(NOW)
    platform.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["root.pem"]
    loaded = SimulatedPlatform.load(path)
    assert loaded.anchor == platform.anchor
    verify(SimulatedAttester(launched(loaded)).attest(BINDING), anchors={PROFILE: (platform.anchor,)})


def test_a_root_is_never_written_over(tmp_path):
    path = tmp_path / "root.pem"
    ROOT.save(path)
    with pytest.raises(FileExistsError):
        SimulatedPlatform.create(NOW).save(path)
    assert SimulatedPlatform.load(path).anchor == ROOT.anchor
    assert len(list(tmp_path.iterdir())) == 1


def test_of_several_who_make_a_root_at_once_all_use_the_same(tmp_path):
    path = tmp_path / "root.pem"
    barrier, anchors = threading.Barrier(4), []

    def make():
        barrier.wait()
        anchors.append(SimulatedPlatform.load_or_create(path, NOW).anchor)

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(anchors) == 4
    assert len(set(anchors)) == 1


def test_a_root_is_not_loaded_from(tmp_path):
    path = tmp_path / "root.pem"
    with pytest.raises(MissingFileError):
        SimulatedPlatform.load(path)
    ROOT.save(path)
    whole = path.read_bytes()
    path.chmod(0o640)
    with pytest.raises(EncodingError):
        SimulatedPlatform.load(path)
    path.chmod(0o600)
    other = tmp_path / "other.pem"
    SimulatedPlatform.create(NOW).save(other)
    marker = b"-----BEGIN CERTIFICATE"
    for data in (
        b"",
        b"key",
        whole[: whole.index(marker)],
        whole.split(marker)[0] + marker + other.read_bytes().split(marker)[1],
    ):
        path.write_bytes(data)
        with pytest.raises(EncodingError):
            SimulatedPlatform.load(path)
