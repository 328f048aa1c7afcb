"""Which genuine GPUs and switches are accepted: floors, defaults, and every choice of an owner."""

import dataclasses

import pytest
from cryptography import x509
from cryptography.x509 import ocsp as x509_ocsp
from nvidia_world import (
    DRIVER_RIM,
    GPU,
    MEASUREMENTS,
    NOW,
    SIGNER,
    STATE,
    SWITCH,
    SWITCH_RIM,
    TCB_INFO,
    VBIOS_RIM,
    make_device,
    make_manifest,
    make_record,
    make_report,
    resource,
    responses,
    switch_report,
    tcb_info,
    verify_devices,
    verify_files,
)

from confed import record
from confed.attestation.policy.nvidia_gpu import (
    AtLeast,
    Exactly,
    Least,
    NvidiaGpuPolicy,
    appraise,
    require_defaults,
    require_floors,
)
from confed.errors import (
    AppraisalError,
    DeviceCountError,
    DeviceModeError,
    FirmwareError,
    GoldenValueError,
    PolicyFormatError,
    ProductError,
    RevocationStatusError,
)
from confed.manifest import Unchecked

HOLD = {"status": x509_ocsp.OCSPCertStatus.REVOKED, "reason": x509.ReasonFlags.certificate_hold}
NOT_CHECKED = Unchecked(unchecked="a test")
STRICT = NvidiaGpuPolicy(
    architectures=("HOPPER", "LS10"),
    boards=("1010_0200_882",),
    drivers=("550.90.07",),
    vbios=("96.00.9F.00.01", "96.10.55.00.01"),
    manifests="required",
    revocation="required",
    allow_hold=False,
    nvml_state="required",
    modes=("spt",),
    gpus=Exactly(exactly=1),
    switches=Exactly(exactly=1),
    links="closed",
)
LOOSE = dataclasses.replace(
    STRICT,
    boards=NOT_CHECKED,
    drivers=NOT_CHECKED,
    vbios=NOT_CHECKED,
    manifests=NOT_CHECKED,
    revocation=NOT_CHECKED,
    nvml_state=NOT_CHECKED,
    modes=NOT_CHECKED,
    gpus=Least(least=1),
    switches=NOT_CHECKED,
    links=NOT_CHECKED,
)
RIMS = [DRIVER_RIM, VBIOS_RIM, SWITCH_RIM]
GOOD = [*responses(GPU.authorities[1:]), *responses(SWITCH.authorities[1:]), *responses(SIGNER.path)]


def gpu(fields=None, *, device=GPU, state=STATE):
    return make_record(device, make_report(device, fields=fields or {}), state=state)


def switch(fields=None):
    return make_record(SWITCH, switch_report(SWITCH, fields=fields or {}), kind="switch")


def claims(*records, endorsements=(*RIMS, *GOOD)):
    return verify_devices(list(records) or [gpu(), switch()], endorsements=endorsements)


def state(**changes):
    return dataclasses.replace(STATE, **changes)


def with_manifest(*resources):
    return verify_files(endorsements=[make_manifest(list(resources))])


def test_devices_that_are_as_the_owner_wants_them_are_accepted():
    appraise(claims(), STRICT, now=NOW)
    require_defaults(claims())
    appraise(claims(), LOOSE, now=NOW)


def test_links_are_compared_with_the_identities_that_chains_have():
    one, other = bytes(range(1, 9)), make_device("LS_10", pdi=bytes(range(9, 17)))
    linked = make_device(pdi=one)
    gpu_report = make_report(linked, fields={22: bytes(range(16, 8, -1))})
    bios_report = switch_report(other, fields={22: bytes(range(9, 17)), 26: one + bytes(120)})
    found = verify_devices([make_record(linked, gpu_report), make_record(other, bios_report, kind="switch")])
    appraise(found, dataclasses.replace(LOOSE, links="closed"), now=NOW)


def test_without_manifests_and_responses_the_defaults_accept_and_the_claims_say_so():
    found = verify_files()
    require_defaults(found)
    assert (found.devices[0].manifests, found.devices[0].revocation) == ((), "unknown")


PROTECTED = {36: b"\x02\x00", 21: b"\xaa"}
ACCEPTED = {
    "protected PCIe in place of confidential computing": gpu(
        PROTECTED, state=state(confidential_compute="off", multi_gpu="protected-pcie")
    ),
    "protected PCIe of an older driver": gpu(
        {34: None, 36: None, 21: b"\xaa"}, state=state(confidential_compute="off", multi_gpu="protected-pcie")
    ),
    "protected PCIe of which NVML does not tell": gpu(PROTECTED, state=state(multi_gpu="unreported")),
    "an older driver that tells no mode": gpu({34: None, 36: None}),
    "GPUs that are linked in encryption": gpu(state=state(multi_gpu="nvle")),
    "a chip that is not configured": gpu(
        device=make_device("GB100", dice=lambda _: {TCB_INFO: tcb_info(flags=b"\x00\x80\x00\x00\x01")})
    ),
}  # fmt: skip


@pytest.mark.parametrize("found", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_floors_accept(found):
    require_floors(claims(found, endorsements=()))


def dice_flags(byte):
    return gpu(device=make_device("GB100", dice=lambda _: {TCB_INFO: tcb_info(flags=bytes([0, byte]))}))


FLOORS = {
    "confidential computing off": (claims(gpu(state=state(confidential_compute="off"))), DeviceModeError),
    "confidential computing off among NVLE": (
        claims(gpu(state=state(confidential_compute="off", multi_gpu="nvle"))),
        DeviceModeError,
    ),
    "protected PCIe that NVML tells and the report does not": (
        claims(gpu(state=state(confidential_compute="off", multi_gpu="protected-pcie"))),
        DeviceModeError,
    ),
    "the same, of an older driver": (
        claims(gpu({34: None, 36: None}, state=state(confidential_compute="off", multi_gpu="protected-pcie"))),
        DeviceModeError,
    ),
    "protected PCIe that the report tells and NVML does not": (claims(gpu(PROTECTED)), DeviceModeError),
    "protected PCIe and confidential computing off, as an older NVML tells": (
        claims(gpu(PROTECTED, state=state(confidential_compute="off", multi_gpu="unreported"))),
        DeviceModeError,
    ),
    "developer tools on": (claims(gpu(state=state(devtools="on"))), DeviceModeError),
    "a simulated environment": (claims(gpu(state=state(environment="simulation"))), DeviceModeError),
    "an environment that is not told": (claims(gpu(state=state(environment="unavailable"))), DeviceModeError),
    "a mode that is not known": (claims(gpu({36: b"\x07\x00"})), DeviceModeError),
    "the mode ppcie without protected PCIe": (claims(gpu({36: b"\x02\x00"})), DeviceModeError),
    "protected PCIe in another mode": (claims(gpu({21: b"\xaa"})), DeviceModeError),
    "debug among the DICE flags": (claims(dice_flags(0x10), endorsements=()), DeviceModeError),
    "recovery among the DICE flags": (claims(dice_flags(0x20), endorsements=()), DeviceModeError),
    "not secure among the DICE flags": (claims(dice_flags(0x40), endorsements=()), DeviceModeError),
    "a switch that is not locked": (claims(switch({25: b"\x00\x00"})), DeviceModeError),
    "a switch that does not say": (claims(switch({25: None})), DeviceModeError),
    "a measurement that is not golden": (with_manifest(resource(20, [b"\x11" * 48])), GoldenValueError),
    "one that is among others that are": (
        with_manifest(resource(20, [MEASUREMENTS[21]]), resource(21, [b"\x11" * 48])),
        GoldenValueError,
    ),
    "a manifest without golden values": (with_manifest(), GoldenValueError),
    "a manifest whose golden values are all inactive": (
        with_manifest(resource(20, [MEASUREMENTS[21]], active="False")),
        GoldenValueError,
    ),
    "a manifest whose only golden value is zeros": (with_manifest(resource(8, [bytes(48)])), GoldenValueError),
}


@pytest.mark.parametrize(("found", "error"), FLOORS.values(), ids=FLOORS.keys())
def test_whatever_a_policy_says_there_is_refused(found, error):
    for attempt in (
        lambda: require_floors(found),
        lambda: require_defaults(found),
        lambda: appraise(found, LOOSE, now=NOW),
    ):
        with pytest.raises(error) as caught:
            attempt()
        assert caught.type is error


def test_a_hold_is_accepted_only_where_the_policy_says_so():
    for held in (
        claims(gpu(), endorsements=responses(GPU.authorities[1:], **HOLD)),
        claims(gpu(), endorsements=[DRIVER_RIM, *responses(SIGNER.path, **HOLD)]),
    ):
        require_floors(held)
        with pytest.raises(RevocationStatusError):
            require_defaults(held)
        with pytest.raises(RevocationStatusError):
            appraise(held, LOOSE, now=NOW)
        appraise(held, dataclasses.replace(LOOSE, allow_hold=True), now=NOW)
    everything = [
        *RIMS,
        *responses(GPU.authorities[1:], **HOLD),
        *responses(SWITCH.authorities[1:]),
        *responses(SIGNER.path),
    ]
    appraise(claims(endorsements=everything), dataclasses.replace(STRICT, allow_hold=True), now=NOW)


def test_a_hold_does_not_hide_that_nobody_speaks_of_another_certificate():
    chosen = dataclasses.replace(LOOSE, allow_hold=True, revocation="required")
    everything = responses(GPU.authorities[1:], **HOLD)
    appraise(claims(gpu(), endorsements=everything), chosen, now=NOW)
    for missing in range(len(everything)):
        partial = claims(gpu(), endorsements=[*everything[:missing], *everything[missing + 1 :]])
        with pytest.raises(RevocationStatusError):
            appraise(partial, chosen, now=NOW)
        with pytest.raises(RevocationStatusError):
            require_defaults(partial)


def test_protected_pcie_of_an_older_driver_is_no_unreported_mode():
    older = claims(gpu({34: None, 36: None, 21: b"\xaa"}, state=state(multi_gpu="unreported")))
    appraise(older, dataclasses.replace(LOOSE, modes=("ppcie",)), now=NOW)
    with pytest.raises(DeviceModeError):
        appraise(older, dataclasses.replace(LOOSE, modes=("unreported", "spt", "mpt")), now=NOW)


def policy(**changes):
    return dataclasses.replace(STRICT, **changes)


CHOICES = {
    "an architecture that is not named": (policy(architectures=("BLACKWELL", "LS10")), None, ProductError),
    "a switch where none is named": (policy(architectures=("HOPPER",)), None, ProductError),
    "a board that is not named": (policy(boards=("1010_0205_862",)), None, ProductError),
    "a driver that is not named": (policy(drivers=("550.90.08",)), None, FirmwareError),
    "a driver below the least of its branch": (policy(drivers=AtLeast(at_least=("550.90.08",))), None, FirmwareError),
    "a driver of a branch that is not named": (
        policy(drivers=AtLeast(at_least=("535.86.09", "570.1"))),
        None,
        FirmwareError,
    ),
    "a VBIOS that is not named": (policy(vbios=("96.10.55.00.01",)), None, FirmwareError),
    "a switch's BIOS that is not named": (policy(vbios=("96.00.9F.00.01",)), None, FirmwareError),
    "a VBIOS below the least of its family": (
        policy(vbios=AtLeast(at_least=("96.00.A0.00.00", "96.10.00.00.00"))),
        None,
        FirmwareError,
    ),
    "a VBIOS of a family that is not named": (
        policy(vbios=AtLeast(at_least=("97.00.00.00.00", "96.10.00.00.00"))),
        None,
        FirmwareError,
    ),
    "no driver manifest": (STRICT, claims(endorsements=[VBIOS_RIM, SWITCH_RIM, *GOOD]), GoldenValueError),
    "no VBIOS manifest": (STRICT, claims(endorsements=[DRIVER_RIM, SWITCH_RIM, *GOOD]), GoldenValueError),
    "no manifest of a switch": (STRICT, claims(endorsements=[DRIVER_RIM, VBIOS_RIM, *GOOD]), GoldenValueError),
    "no word on a device's certificates": (
        STRICT,
        claims(endorsements=[*RIMS, *responses(SWITCH.authorities[1:]), *responses(SIGNER.path)]),
        RevocationStatusError,
    ),
    "no word on a manifest's signer": (
        STRICT,
        claims(endorsements=[*RIMS, *responses(GPU.authorities[1:]), *responses(SWITCH.authorities[1:])]),
        RevocationStatusError,
    ),
    "no word from NVML": (
        policy(switches=NOT_CHECKED),
        verify_files(endorsements=[DRIVER_RIM, VBIOS_RIM, *GOOD]),
        DeviceModeError,
    ),
    "a mode that is not named": (policy(modes=("mpt", "unreported")), None, DeviceModeError),
    "too few GPUs": (policy(gpus=Exactly(exactly=2)), None, DeviceCountError),
    "fewer GPUs than the least": (policy(gpus=Least(least=2)), None, DeviceCountError),
    "no GPU": (policy(gpus=Least(least=1)), claims(switch()), DeviceCountError),
    "too many GPUs": (
        policy(gpus=Exactly(exactly=1)),
        claims(gpu(), gpu(device=make_device(pdi=b"\x07" * 8)), switch()),
        DeviceCountError,
    ),
    "too many switches": (policy(switches=Exactly(exactly=0)), None, DeviceCountError),
    "too few switches": (policy(switches=Least(least=2)), None, DeviceCountError),
    "a switch linked to a GPU that is not here": (
        STRICT,
        claims(gpu(), switch({26: b"\x01" * 8 + b"\x09" * 8})),
        DeviceCountError,
    ),
    "a GPU linked to a switch that is not here": (STRICT, claims(gpu({22: b"\x09" * 8}), switch()), DeviceCountError),
}


@pytest.mark.parametrize(("chosen", "found", "error"), CHOICES.values(), ids=CHOICES.keys())
def test_an_owner_refuses(chosen, found, error):
    with pytest.raises(error) as caught:
        appraise(claims() if found is None else found, chosen, now=NOW)
    assert caught.type is error
    assert issubclass(error, AppraisalError)


@pytest.mark.parametrize("drivers", [("550.90.06",), ("535.1", "550.90.07"), ("550.90",), ("550.9.99",)])
def test_a_driver_at_or_above_the_least_of_its_branch_is_accepted(drivers):
    appraise(claims(), policy(drivers=AtLeast(at_least=drivers)), now=NOW)


def test_a_vbios_at_or_above_the_least_of_its_family_is_accepted():
    appraise(claims(), policy(vbios=AtLeast(at_least=("96.00.9F.00.01", "96.10.54.FF.FF"))), now=NOW)


MALFORMED = {
    "no architecture": {"architectures": ()},
    "an architecture that is not known": {"architectures": ("AMPERE",)},
    "no board": {"boards": ()},
    "a board that is none": {"boards": ("H100",)},
    "no driver": {"drivers": ()},
    "a driver that is none": {"drivers": ("newest",)},
    "no least driver": {"drivers": AtLeast(at_least=())},
    "a least driver that is none": {"drivers": AtLeast(at_least=("550",))},
    "no VBIOS": {"vbios": ()},
    "a VBIOS that is none": {"vbios": ("96.00",)},
    "a mode that is not known": {"modes": ("off",)},
    "no mode": {"modes": ()},
    "manifests that are neither required nor unchecked": {"manifests": "no"},
    "revocation that is neither": {"revocation": ""},
    "NVML's modes that are neither": {"nvml_state": "maybe"},
    "links that are neither": {"links": "open"},
    "no GPU at all": {"gpus": Exactly(exactly=0)},
    "a least of no GPU": {"gpus": Least(least=0)},
    "more GPUs than there can be": {"gpus": Exactly(exactly=17)},
    "fewer than no switches": {"switches": Least(least=-1)},
}


@pytest.mark.parametrize("changes", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_policy_is_refused_with(changes):
    with pytest.raises(PolicyFormatError):
        policy(**changes)


@pytest.mark.parametrize("chosen", [STRICT, LOOSE, policy(drivers=AtLeast(at_least=("550.1",)), gpus=Least(least=2))])
def test_a_policy_is_read_as_it_was_written(chosen):
    written = record.to_json(chosen)
    assert record.from_json(NvidiaGpuPolicy, written, error=PolicyFormatError) == chosen


def test_a_field_cannot_be_left_out():
    written = record.to_json(STRICT)
    for name in written:
        with pytest.raises(PolicyFormatError):
            record.from_json(
                NvidiaGpuPolicy, {key: value for key, value in written.items() if key != name}, error=PolicyFormatError
            )
