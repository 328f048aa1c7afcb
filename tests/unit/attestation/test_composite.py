"""A processor and its GPUs, judged as one: real kinds under roots that the test makes, all the way through a registry."""

import dataclasses

import nvidia_world as nv
import pytest
import sev_snp_world as amd

from confed.attestation.appraisal import appraise
from confed.attestation.evidence import Binding, Envelope
from confed.attestation.policy import document, ready
from confed.attestation.policy.nvidia_gpu import Exactly, Least, NvidiaGpuPolicy
from confed.attestation.verifier import Driver, ExpectedBinding, Registry, default_registry
from confed.errors import (
    AliasCheckError,
    BindingMismatchError,
    DebugError,
    DeviceCountError,
    DeviceModeError,
    DuplicateDeviceError,
    EvidenceSignatureError,
    GoldenValueError,
    MeasurementError,
    NonceError,
    PolicyExpiredError,
    PolicyFormatError,
    PolicyMissingError,
    TrustAnchorError,
    UnknownProfileError,
)
from confed.journey import Role
from confed.manifest import PRODUCTION, SIMULATION, TeePolicy, Unchecked

assert amd.NOW == nv.NOW
NOW_MS = int(amd.NOW.timestamp() * 1000)
CPU, GPU = "sev-snp/1", "nvidia-gpu/1"
MANIFEST = "2b" * 32
WHY = Unchecked(unchecked="not what is tested here")
BINDING = Binding(
    profile=CPU, nonce=b"n" * 32, audience="3c" * 32, manifest=MANIFEST, role=Role.CLIENT, run="digits-1",
    hpke_public=b"h" * 1216, signing_public=b"s" * 32, issued_at=NOW_MS,
)  # fmt: skip
EXPECTED = ExpectedBinding(
    nonce=BINDING.nonce, audience=BINDING.audience, manifest=MANIFEST, role=Role.CLIENT, run=BINDING.run
)
ANCHORS = {CPU: amd.ROOTS, GPU: nv.ANCHORS}
ENDORSEMENTS = (amd.vek(), amd.authority(), amd.crl(), nv.DRIVER_RIM, nv.VBIOS_RIM)
SECOND = nv.make_device(pdi=b"\x05" * 8)
CPU_POLICY = document.load(ready.ready_policy("sev-snp-2025"))
GPU_POLICY = document.PolicyDocument(
    format=document.FORMAT, name="gpus", profile=GPU, issued="2026-01-01", expires="2026-12-31", sources=("the test",),
    policy=NvidiaGpuPolicy(
        architectures=("HOPPER",), boards=WHY, drivers=WHY, vbios=WHY, manifests="required", revocation=WHY,
        allow_hold=False, nvml_state="required", modes=WHY, gpus=Least(least=1), switches=WHY, links=WHY,
    ),
)  # fmt: skip


def gpu(device=nv.GPU, *, nonce=BINDING.device_nonce, state=nv.STATE):
    return nv.make_record(device, nv.make_report(device, nonce=nonce), state=state)


GPUS = (gpu(),)


def envelope(devices=GPUS, *, covered=None, endorsements=None, flip=False, **fields):
    """Evidence of both; ``covered``: the device evidence that the processor signs for, if it is another."""
    if endorsements is None:
        endorsements = ENDORSEMENTS if devices else ENDORSEMENTS[:3]
    made = Envelope(
        profile=CPU, evidence=b"", binding=BINDING.encoded, device_evidence=devices, endorsements=endorsements
    )
    signed = made if covered is None else dataclasses.replace(made, device_evidence=covered)
    fields = {
        "report_data": BINDING.report_data(signed.device_digest),
        "host_data": bytes.fromhex(MANIFEST),
        **fields,
    }
    report = amd.report(**fields)
    return dataclasses.replace(made, evidence=amd.overwritten(report, "guest_svn", 9) if flip else report)


def verify(sent, *, registry=None, anchors=ANCHORS, endorsements=()):
    return (registry or default_registry().for_environment(PRODUCTION)).verify(
        sent.encode(), expected=EXPECTED, now_ms=NOW_MS, anchors=anchors, endorsements=endorsements
    )


def policy(**changes):
    values = {
        "profiles": (CPU,), "measurements": (amd.MEASUREMENT.hex(),), "devices": (GPU,),
        "appraisal": {CPU: CPU_POLICY.to_table(), GPU: GPU_POLICY.to_table()},
        "max_age_s": 300, "reattest_rounds": 1, "reattest_s": 300,
    }  # fmt: skip
    return TeePolicy(**{**values, **changes})


def judge(sent, rules=None, *, environment=PRODUCTION):
    claims = verify(sent)
    rules = rules or policy()
    appraise(claims, policy=rules, environment=environment, manifest_digest=MANIFEST, now_ms=NOW_MS)


@pytest.mark.parametrize("environment", [PRODUCTION, SIMULATION])
def test_a_processor_with_its_gpus_is_accepted(environment):
    judge(envelope(), environment=environment)
    judge(envelope((gpu(), gpu(SECOND))), environment=environment)
    judge(envelope(()), policy(devices=(), appraisal={CPU: CPU_POLICY.to_table()}), environment=environment)


NOT_GENUINE = {
    "a GPU that answered another nonce": (envelope((gpu(nonce=b"x" * 32),)), {}, NonceError),
    "a GPU that answered the broker's nonce itself": (envelope((gpu(nonce=BINDING.nonce),)), {}, NonceError),
    "a GPU put in after the processor had signed": (envelope(covered=()), {}, BindingMismatchError),
    "a GPU taken away after that": (envelope((), covered=GPUS), {}, BindingMismatchError),
    "a GPU exchanged after that": (envelope((gpu(SECOND),), covered=GPUS), {}, BindingMismatchError),
    "GPUs in another order": (envelope((gpu(), gpu(SECOND)), covered=(gpu(SECOND), gpu())), {}, BindingMismatchError),
    "a copy added after that": (envelope(GPUS * 2, covered=GPUS), {}, BindingMismatchError),
    "one GPU counted twice": (envelope(GPUS * 2), {}, DuplicateDeviceError),
    "one GPU with two reports": (envelope((gpu(), gpu())), {}, DuplicateDeviceError),
    "a genuine GPU beside a report that was changed": (envelope(flip=True), {}, EvidenceSignatureError),
    "a GPU of another root": (envelope(), {"anchors": {**ANCHORS, GPU: (nv.OTHER_ROOT.der, nv.ANCHORS[1])}}, TrustAnchorError),
    "a GPU where no root is trusted": (envelope(), {"anchors": {CPU: amd.ROOTS}}, TrustAnchorError),
    "a GPU where nobody reads its evidence": (
        envelope(endorsements=ENDORSEMENTS[:3]), {"registry": Registry([Driver(CPU, "sev_snp", "SnpVerifier")])}, UnknownProfileError,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("sent", "how", "error"), NOT_GENUINE.values(), ids=NOT_GENUINE.keys())
def test_not_genuine_as_a_whole_is(sent, how, error):
    with pytest.raises(error) as caught:
        verify(sent, **how)
    assert type(caught.value) is error


DEBUG = {"policy": amd.defaults()["policy"] | amd.DEBUG}
TABLES = policy().appraisal
REFUSED = {
    "a processor that can be debugged beside a good GPU": (envelope(**DEBUG), {}, DebugError),
    "a platform without the alias check beside a good GPU": (envelope(platform_info=0b101), {}, AliasCheckError),
    "other code beside a good GPU": (envelope(measurement=b"\x01" * 48), {}, MeasurementError),
    "a GPU with devtools beside a good processor": (
        envelope((gpu(state=dataclasses.replace(nv.STATE, devtools="on")),)), {}, DeviceModeError,
    ),
    "a second GPU with confidential computing off": (
        envelope((gpu(), gpu(SECOND, state=dataclasses.replace(nv.STATE, confidential_compute="off")))), {}, DeviceModeError,
    ),
    "a GPU without its manifests": (envelope(endorsements=ENDORSEMENTS[:3]), {}, GoldenValueError),
    "a GPU that nobody asked for": (envelope(), {"devices": (), "appraisal": {CPU: TABLES[CPU]}}, DeviceCountError),
    "no GPU where one was asked for": (envelope(()), {}, DeviceCountError),
    "one GPU where two were asked for": (
        envelope(),
        {"appraisal": {**TABLES, GPU: dataclasses.replace(
            GPU_POLICY, policy=dataclasses.replace(GPU_POLICY.policy, gpus=Exactly(exactly=2))).to_table()}},
        DeviceCountError,
    ),
    "GPUs without a policy": (envelope(), {"appraisal": {CPU: TABLES[CPU]}}, PolicyMissingError),
    "a processor without a policy": (envelope(), {"appraisal": {GPU: TABLES[GPU]}}, PolicyMissingError),
    "GPUs whose policy has expired": (
        envelope(),
        {"appraisal": {**TABLES, GPU: dataclasses.replace(GPU_POLICY, expires="2026-05-31").to_table()}},
        PolicyExpiredError,
    ),
    "the GPUs' policy in the processor's place": (
        envelope(), {"appraisal": {CPU: TABLES[GPU], GPU: TABLES[GPU]}}, PolicyFormatError,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("sent", "changes", "error"), REFUSED.values(), ids=REFUSED.keys())
def test_the_whole_is_as_bad_as(sent, changes, error):
    with pytest.raises(error) as caught:
        judge(sent, policy(**changes))
    assert type(caught.value) is error


def test_what_an_attester_stapled_for_its_gpus_counts_only_where_the_broker_has_nothing_of_its_own():
    def matched(endorsements):
        (devices,) = verify(envelope(), endorsements=endorsements).devices
        return [len(found.manifests) for found in devices.details.devices]

    assert matched(()) == [2]
    assert matched((nv.DRIVER_RIM, nv.VBIOS_RIM)) == [2]
    assert matched((nv.DRIVER_RIM,)) == [1]
