import dataclasses
import hashlib
import tomllib

import pytest
from attestation_world import MANIFEST, NOW
from attestation_world import ROOT as SIMULATED_ROOT
from attester_world import NITRO_ROOT, SecurityModule, signed_document

from confed import canonical
from confed.attestation import examination, rehearsal
from confed.attestation.attesters.choose import KINDS, DevicePaths, TpmOptions
from confed.attestation.attesters.nsm import NitroSecurityModule, NsmAttester
from confed.attestation.evidence import Binding
from confed.attestation.examination import BINDING, CHAIN, Case, attempt, attempt_gpus, judge, simulated_attester
from confed.attestation.measurement import aggregator_image, client_image
from confed.attestation.policy import ready
from confed.attestation.rehearsal import Outcome
from confed.attestation.tee.nitro import NitroVerifier
from confed.attestation.tee.simulated import SimulatedPlatform, SimulatedVerifier
from confed.attestation.verifier import Registry
from confed.errors import ConfigError, EncodingError, EvidenceUnavailableError, MissingFileError
from confed.journey import Role
from confed.manifest import PRODUCTION, SIMULATION, TeePolicy

REGISTRY = Registry((SimulatedVerifier(), NitroVerifier()))
POLICY = TeePolicy(
    profiles=("aws-nitro/1",), measurements=("ab" * 48,), devices=(), appraisal={}, max_age_s=300, reattest_rounds=1,
    reattest_s=300,
)  # fmt: skip


def case(**changes) -> Case:
    made = Case.made_up(role=Role.CLIENT, environment=SIMULATION, now_ms=NOW)
    return dataclasses.replace(made, manifest_digest=MANIFEST, **changes)


@pytest.fixture
def simulated(tmp_path):
    return simulated_attester(case(), app_directory=None, root_file=tmp_path / "root.pem")


def told(verdicts) -> dict[str, str]:
    return {verdict.claim: verdict.code or verdict.outcome for verdict in verdicts}


def test_a_simulated_instance_is_of_the_code_that_is_here(tmp_path, simulated):
    attester, anchors = simulated
    envelope = attester.attest(case().binding("simulated/1"))
    verdicts = judge(envelope, case(), registry=REGISTRY, anchors=anchors, endorsements=())
    assert set(told(verdicts).values()) == {Outcome.OK}
    assert [verdict.claim for verdict in verdicts] == [CHAIN, BINDING, *rehearsal.CLAIMS]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("role", "measured"), [(Role.CLIENT, lambda lock: client_image(None, lock)), (Role.AGGREGATOR, aggregator_image)]
)
def test_what_is_measured_is_the_role_s_code_and_the_lock(tmp_path, role, measured):
    lock = canonical.digest(b"lock")
    attester, _ = simulated_attester(case(role=role, lock=lock), app_directory=None, root_file=tmp_path / "root.pem")
    assert attester._instance.launch.measurement == measured(lock)


def test_the_home_s_root_is_used_where_there_is_one_and_is_not_changed(tmp_path):
    platform = SimulatedPlatform.create(NOW)
    platform.save(tmp_path / "root.pem")
    before = (tmp_path / "root.pem").read_bytes()
    _, anchors = simulated_attester(case(), app_directory=None, root_file=tmp_path / "root.pem")
    assert anchors == {"simulated/1": (platform.anchor,)}
    assert (tmp_path / "root.pem").read_bytes() == before


def test_a_root_that_is_none_is_told(tmp_path):
    (tmp_path / "root.pem").write_text("nonsense")
    with pytest.raises(EncodingError):
        simulated_attester(case(), app_directory=None, root_file=tmp_path / "root.pem")


def test_an_app_that_is_not_there_is_told(tmp_path):
    with pytest.raises(MissingFileError):
        simulated_attester(case(), app_directory=tmp_path / "absent", root_file=tmp_path / "root.pem")


def test_a_simulated_tee_in_production_is_refused_for_that_alone(tmp_path):
    production = case(environment=PRODUCTION)
    attester, anchors = simulated_attester(production, app_directory=None, root_file=tmp_path / "root.pem")
    tried, envelope = attempt("simulated", production, simulated=attester, privilege_level=0)
    assert (tried.attests, "SIMULATED" in tried.reason) == (True, True)
    found = told(judge(envelope, production, registry=REGISTRY, anchors=anchors, endorsements=()))
    assert {claim for claim, code in found.items() if code != Outcome.OK} == {"evidence class"}
    assert found["evidence class"] == "simulated-in-production"


@pytest.mark.parametrize("kind", ["snp", "tdx", "sgx", "nitro"])
def test_a_tee_that_is_not_here_gives_no_evidence_and_says_why(tmp_path, simulated, kind):
    absent = DevicePaths(tsm=tmp_path / "tsm", nsm=tmp_path / "nsm", gramine=tmp_path / "attestation")
    tried, envelope = attempt(kind, case(), simulated=simulated[0], privilege_level=0, paths=absent)
    assert (tried.attests, tried.code, envelope) == (False, "evidence-unavailable", None)
    assert str(tmp_path) in tried.reason


@pytest.mark.parametrize(
    ("kind", "options", "reason"),
    [
        ("tpm", None, "not asked"),
        ("gcp-tpm", None, "not asked"),
        ("tpm", TpmOptions(tcti="device:/no/such", selection=(15,), enrolment=b"x"), "expected"),
        ("gcp-tpm", TpmOptions(tcti="device:/no/such", selection=(15,), algorithm="rsa"), "expected"),
    ],
)
def test_a_tpm_is_asked_only_when_it_is_described(simulated, kind, options, reason):
    tried, envelope = attempt(kind, case(), simulated=simulated[0], privilege_level=0, tpm=options)
    assert (tried.attests, tried.code, envelope) == (False, "evidence-unavailable", None)
    assert reason in tried.reason


def test_every_kind_is_tried_here():
    assert set(KINDS) == {"simulated", "snp", "tdx", "sgx", "nitro", "tpm", "gcp-tpm"}


def test_devices_do_not_go_with_a_simulated_tee(simulated):
    with pytest.raises(ConfigError):
        attempt("simulated", case(), simulated=simulated[0], privilege_level=0, devices=lambda _: (b"gpu",))


def test_devices_that_fail_are_why_there_is_no_evidence(tmp_path, simulated):
    (tmp_path / "nsm").write_bytes(b"")
    paths = DevicePaths(tsm=tmp_path / "tsm", nsm=tmp_path / "nsm", gramine=tmp_path / "attestation")

    def fail(_nonce):
        raise EvidenceUnavailableError("NVML", expected="evidence of the GPUs", got="none")

    tried, _ = attempt("nitro", case(), simulated=simulated[0], privilege_level=0, devices=fail, paths=paths)
    assert "NVML" in tried.reason


def nitro(tmp_path, *, configured: bool):
    module = SecurityModule(sign=signed_document)
    (tmp_path / "nsm").write_bytes(b"")
    attester = NsmAttester(NitroSecurityModule(tmp_path / "nsm", ioctl=module.ioctl))
    if configured:
        attester.configure(MANIFEST)
    return attester.attest(case().binding("aws-nitro/1"))


def test_hardware_is_judged_claim_by_claim(tmp_path):
    envelope = nitro(tmp_path, configured=False)
    anchors = {"aws-nitro/1": (NITRO_ROOT,)}
    found = told(
        judge(
            envelope, case(environment=PRODUCTION, policy=POLICY), registry=REGISTRY, anchors=anchors, endorsements=()
        )
    )
    assert (found[CHAIN], found[BINDING], found["evidence class"]) == ("ok", "ok", "ok")
    assert (found["configuration"], found["measurement"]) == ("configuration", "measurement")
    assert found["aws-nitro/1: tee.appraisal.aws-nitro/1"] == "policy-missing"
    assert (found["debug"], found["age"], found["devices"]) == ("ok", "ok", "ok")


TODAY = {"issued": "2027-01-01", "expires": "2027-03-31"}


def nitro_policy(**fields) -> dict:
    """Return the ready policy as a manifest embeds it, dated to these tests' time, with some fields changed."""
    table = tomllib.loads(ready.ready_policy("nitro").decode())
    return {**table, **TODAY, "policy": {**table["policy"], **fields}}


def test_hardware_is_judged_by_the_fields_of_its_appraisal_policy_too(tmp_path):
    image = hashlib.sha384(b"image 0").hexdigest()
    wrong = {"pcr1": ["ab" * 48], "pcr8": ["cd" * 48], "registers": {"15": ["ef" * 48], "16": ["ef" * 48]}}
    policy = dataclasses.replace(POLICY, measurements=(image,), appraisal={"aws-nitro/1": nitro_policy(**wrong)})
    envelope = nitro(tmp_path, configured=True)
    found = told(
        judge(
            envelope, case(environment=PRODUCTION, policy=policy), registry=REGISTRY,
            anchors={"aws-nitro/1": (NITRO_ROOT,)}, endorsements=(),
        )
    )  # fmt: skip
    refused = {claim: code for claim, code in found.items() if code not in {"ok", "not reached"}}
    assert refused == {
        "aws-nitro/1: pcr8": "signer", "aws-nitro/1: pcr1": "register", "aws-nitro/1: registers": "register",
    }  # fmt: skip
    assert (found["aws-nitro/1: pcr2"], found["aws-nitro/1: max_age_s"]) == ("ok", "ok")


def test_a_tee_that_fits_its_manifest_is_not_refused_for_what_it_is(tmp_path):
    measured = hashlib.sha384(b"image 0").hexdigest()
    policy = dataclasses.replace(POLICY, measurements=(measured,), appraisal={"aws-nitro/1": nitro_policy()})
    fitting = case(environment=PRODUCTION, policy=policy)
    envelope = nitro(tmp_path, configured=True)
    found = told(judge(envelope, fitting, registry=REGISTRY, anchors={"aws-nitro/1": (NITRO_ROOT,)}, endorsements=()))
    assert set(found.values()) == {Outcome.OK}
    assert set(found) > {CHAIN, BINDING, *rehearsal.CLAIMS, "aws-nitro/1: pcr0"}


NOT_GENUINE = {
    "no anchor": ({}, {}, CHAIN, "trust-anchor"),
    "another root": ({"simulated/1": (SIMULATED_ROOT.anchor,)}, {}, CHAIN, "trust-anchor"),
    "another manifest": (None, {"manifest_digest": "7" * 64}, BINDING, "binding"),
    "another run": (None, {"run": "another"}, BINDING, "binding"),
    "another role": (None, {"role": Role.AGGREGATOR}, BINDING, "binding"),
    "another broker": (None, {"audience": "7" * 64}, BINDING, "binding"),
}


@pytest.mark.parametrize(("anchors", "changes", "claim", "code"), NOT_GENUINE.values(), ids=NOT_GENUINE.keys())
def test_evidence_that_is_not_genuine_is_not_appraised_for(simulated, anchors, changes, claim, code):
    attester, right = simulated
    envelope = attester.attest(case().binding("simulated/1"))
    anchors = right if anchors is None else anchors
    judged = dataclasses.replace(case(), **changes)
    verdicts = judge(envelope, judged, registry=REGISTRY, anchors=anchors, endorsements=())
    found = told(verdicts)
    assert found[claim] == code
    assert {found[name] for name in rehearsal.CLAIMS} == {Outcome.NOT_REACHED}
    assert found[CHAIN] == (code if claim == CHAIN else Outcome.OK)
    assert len(found) == len(verdicts) == 2 + len(rehearsal.CLAIMS)


def test_a_binding_is_for_keys_that_nobody_holds_and_each_is_another():
    bindings = [case().binding("simulated/1") for _ in range(2)]
    assert len({binding.nonce for binding in bindings} | {binding.signing_public for binding in bindings}) == 4
    assert Binding.decode(bindings[0].encoded) == bindings[0]


def test_an_appraisal_policy_that_was_given_stands_beside_the_manifest_s(simulated):
    attester, anchors = simulated
    policy = dataclasses.replace(POLICY, profiles=("simulated/1",))

    def judged(**appraisal):
        given = case(policy=policy, appraisal=appraisal)
        envelope = attester.attest(given.binding("simulated/1"))
        return judge(envelope, given, registry=REGISTRY, anchors=anchors, endorsements=())

    assert "simulated/1: a" in told(judged(**{"simulated/1": {"policy": {"a": 1}}}))
    with pytest.raises(ConfigError):
        judged(**{"tdx/1": {"policy": {"a": 1}}})


def test_without_a_manifest_nothing_is_pinned_and_that_is_said():
    assert case().assumed == examination.UNPINNED
    assert case(policy=POLICY).assumed == ()


def test_gpus_that_are_not_there_give_no_evidence():
    assert attempt_gpus(0, case()).code == "evidence-unavailable"


def test_gpus_are_asked_under_a_fresh_nonce(monkeypatch):
    asked = []

    class Played:
        def __init__(self, gpus, *, nvml):
            asked.append(tuple(gpus))

        def collect(self, nonce):
            asked.append(len(nonce))
            return (b"gpu",)

    monkeypatch.setattr(examination, "NvmlAttester", Played)
    assert attempt_gpus(2, case()).attests
    assert asked == [(0, 1), 32]
