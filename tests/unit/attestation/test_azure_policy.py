"""What an owner accepts of an Azure confidential VM, and what no policy can accept; the worst part decides."""

import contextlib
import dataclasses

import intel_world as intel
import pytest
import sev_snp_world as amd
from azure_world import PCRS, REMOVED, VM_ID, runtime, snp, tdx, verify_snp, verify_tdx

from confed import record
from confed.attestation.policy import document as documents
from confed.attestation.policy.azure import (
    AzureRuntimePolicy,
    AzureSnpPolicy,
    AzureTdxPolicy,
    InteractiveConsole,
    appraise,
    require_defaults,
    require_floors,
)
from confed.attestation.policy.intel_tcb import IntelTcbPolicy, NoneAccepted
from confed.attestation.policy.ready import ready_names, ready_policy
from confed.attestation.policy.sev_snp_terms import SnpPolicy
from confed.attestation.policy.tdx import TdxPolicy
from confed.attestation.policy.tpm_quote import QuotePolicy
from confed.attestation.tee.sev_snp_report import Product, SigningKey
from confed.errors import (
    AliasCheckError,
    AttributesError,
    DebugError,
    FreshnessError,
    MeasurementError,
    MigrationError,
    PlatformError,
    PlatformInfoError,
    PolicyFormatError,
    ProductError,
    RegisterError,
    RegisterSelectionError,
    SignerError,
    TcbError,
    TcbStatusError,
)
from confed.manifest import Unchecked

WHY = Unchecked(unchecked="a test")
RUNTIME = AzureRuntimePolicy(
    secure_boot=True,
    no_console=WHY,
    interactive_console=InteractiveConsole.OFF,
    no_filtered_devices=True,
    root_certificates=("6nZZnYaJc4KqUZ",),
    vm_ids=(VM_ID,),
    other_settings=("tpm-version",),
)
QUOTE = QuotePolicy(
    nonce=True,
    banks=("sha256",),
    selection=tuple(range(24)),
    registers={"4": (PCRS[4].hex(),), "7": ("ab" * 32, PCRS[7].hex())},
    replayed=WHY,
)
SNP_HARDWARE = SnpPolicy(
    **dict.fromkeys((field.name for field in dataclasses.fields(SnpPolicy)), WHY)
    | {
        "products": (Product.GENOA,),
        "minimum_report_version": 3,
        "signing_keys": (SigningKey.VCEK,),
        "privilege_levels": (0,),
        "measurements": (amd.MEASUREMENT.hex(),),
    }
)
TDX_HARDWARE = TdxPolicy(
    **dict.fromkeys((field.name for field in dataclasses.fields(TdxPolicy)), WHY)
    | {
        "tcb": IntelTcbPolicy(
            statuses={"UpToDate": "2030-01-01"},
            advisories=NoneAccepted(none_accepted="up to date"),
            minimum_evaluation_number=WHY,
            fmspcs=WHY,
            ppids=WHY,
            platform_instance_ids=WHY,
        ),
        "minimum_quote_version": 4,
        "mr_td": ("7d" * 48,),
    }
)
SNP_POLICY = AzureSnpPolicy(hardware=SNP_HARDWARE, runtime=RUNTIME, quote=QUOTE)
TDX_POLICY = AzureTdxPolicy(hardware=TDX_HARDWARE, runtime=RUNTIME, quote=QUOTE)
SNP, TDX = verify_snp(snp()), verify_tdx(tdx())


def check_snp(found=SNP, policy=SNP_POLICY):
    appraise(found, policy, now=amd.NOW)


def check_tdx(found=TDX, policy=TDX_POLICY):
    appraise(found, policy, now=intel.NOW)


def test_machines_that_the_policy_names_are_accepted():
    check_snp()
    check_tdx()
    for found in (SNP, TDX):
        require_floors(found)
        require_defaults(found)


def disabled(make, verify):
    return verify(make(data=runtime(settings={"tpm-enabled": False})))


def of_resettable(make, verify):
    return verify(make(pcrs={number: PCRS[number] for number in (16, 23)}))


FLOORS = {
    "debug on SNP": (verify_snp(snp(policy=amd.MUST_BE_ONE | amd.SMT | amd.DEBUG | 0x1F)), DebugError),
    "a migration agent on SNP": (
        verify_snp(snp(policy=amd.MUST_BE_ONE | amd.SMT | amd.MIGRATE_MA | 0x1F)),
        MigrationError,
    ),
    "no alias check on SNP": (verify_snp(snp(platform_info=0b101)), AliasCheckError),
    "debug on TDX": (verify_tdx(tdx(td_attributes=bytes.fromhex("0100001000000000"))), DebugError),
    "no SEPT_VE_DISABLE on TDX": (verify_tdx(tdx(td_attributes=bytes(8))), AttributesError),
    "a TPM that is disabled, on SNP": (disabled(snp, verify_snp), AttributesError),
    "a TPM that is disabled, on TDX": (disabled(tdx, verify_tdx), AttributesError),
    "registers that anybody can reset, on SNP": (of_resettable(snp, verify_snp), RegisterSelectionError),
    "registers that anybody can reset, on TDX": (of_resettable(tdx, verify_tdx), RegisterSelectionError),
}


@pytest.mark.parametrize("sentence", FLOORS)
def test_no_policy_can_accept(sentence):
    found, error = FLOORS[sentence]
    for attempt in (require_floors, require_defaults, check_tdx if "TDX" in sentence else check_snp):
        with pytest.raises(error):
            attempt(found)


def test_without_a_policy_a_setting_that_is_not_known_is_refused():
    data = runtime(settings={"ipmi-enabled": True})
    for found in (verify_snp(snp(data=data)), verify_tdx(tdx(data=data))):
        require_floors(found)
        with pytest.raises(PlatformInfoError):
            require_defaults(found)


def test_without_a_policy_a_console_that_the_host_can_type_into_is_refused():
    typing, unsaid = (runtime(settings={"interactive-console-enabled": said}) for said in (True, REMOVED))
    for make, verify in ((snp, verify_snp), (tdx, verify_tdx)):
        require_floors(verify(make(data=typing)))
        require_defaults(verify(make(data=unsaid)))
        with pytest.raises(DebugError):
            require_defaults(verify(make(data=typing)))


def test_a_paravisor_s_silence_on_that_console_may_be_accepted_and_its_word_may_not():
    older = dataclasses.replace(RUNTIME, interactive_console=InteractiveConsole.OFF_OR_UNSAID)
    policy = dataclasses.replace(SNP_POLICY, runtime=older)
    for said in (False, REMOVED):
        check_snp(verify_snp(snp(data=runtime(settings={"interactive-console-enabled": said}))), policy)
    with pytest.raises(DebugError):
        check_snp(verify_snp(snp(data=runtime(settings={"interactive-console-enabled": True}))), policy)


def test_without_a_policy_the_hardware_s_own_defaults_hold():
    behind = verify_snp(snp(committed_tcb=bytes(8)))
    require_floors(behind)
    with pytest.raises(TcbError):
        require_defaults(behind)
    old = verify_tdx(
        tdx(), endorsements=(intel.collateral(tcb=intel.tcb_info(levels=[intel.level(0, "OutOfDate", tdx=bytes(16))])),)
    )
    require_floors(old)
    with pytest.raises(TcbStatusError):
        require_defaults(old)


SETTINGS = {
    "secure boot off": ({"secure-boot": False}, PlatformInfoError),
    "a console that the host can type into": ({"interactive-console-enabled": True}, DebugError),
    "no word on that console": ({"interactive-console-enabled": REMOVED}, DebugError),
    "the host's devices": ({"filtered-vpci-devices-allowed": True}, PlatformInfoError),
    "no word on the host's devices": ({"filtered-vpci-devices-allowed": REMOVED}, PlatformInfoError),
    "another authority for keys": ({"root-cert-thumbprint": "another"}, SignerError),
    "no authority for keys": ({"root-cert-thumbprint": ""}, SignerError),
    "another machine": ({"vmUniqueId": "another"}, PlatformError),
    "a setting that nobody named": ({"ipmi-enabled": False}, PlatformInfoError),
}


@pytest.mark.parametrize("sentence", SETTINGS)
def test_the_policy_refuses(sentence):
    settings, error = SETTINGS[sentence]
    data = runtime(settings=settings)
    for make, verify, check in ((snp, verify_snp, check_snp), (tdx, verify_tdx, check_tdx)):
        with pytest.raises(error) as caught:
            check(verify(make(data=data)))
        assert type(caught.value) is error


def test_settings_that_the_policy_names_or_leaves_unchecked_are_accepted():
    check_snp(verify_snp(snp(data=runtime(settings={"tpm-version": "1.38"}))))
    lax = AzureRuntimePolicy(**dict.fromkeys((field.name for field in dataclasses.fields(RUNTIME)), WHY))
    settings = {
        "secure-boot": False,
        "interactive-console-enabled": True,
        "filtered-vpci-devices-allowed": REMOVED,
        "vmUniqueId": "another",
        "root-cert-thumbprint": "",
        "ipmi-enabled": True,
    }
    check_snp(verify_snp(snp(data=runtime(settings=settings))), dataclasses.replace(SNP_POLICY, runtime=lax))


READY = [name for name in ready_names() if name.startswith("azure-")]
NEWER = {"hardware-sealing-policy": "signer", "tpm-version": "1.38"}
NEW_SETTINGS = {
    "nothing new": ({}, None),
    "what a newer paravisor tells": (NEWER, None),
    "silence on the console": ({"interactive-console-enabled": REMOVED}, None),
    "a console that the host can type into": ({"interactive-console-enabled": True}, DebugError),
    "a management controller": (NEWER | {"ipmi-enabled": False}, PlatformInfoError),
    "secure boot off": ({"secure-boot": False}, PlatformInfoError),
}


@pytest.mark.parametrize("name", READY)
@pytest.mark.parametrize("sentence", NEW_SETTINGS)
def test_a_ready_policy_says_of_a_machine_with(sentence, name):
    settings, error = NEW_SETTINGS[sentence]
    ready = documents.load(ready_policy(name)).policy
    policy = dataclasses.replace(SNP_POLICY, runtime=ready.runtime)
    found = verify_snp(snp(data=runtime(settings=settings)))
    with pytest.raises(error) if error else contextlib.nullcontext():
        check_snp(found, policy)


def test_a_console_may_be_forbidden_altogether():
    policy = dataclasses.replace(SNP_POLICY, runtime=dataclasses.replace(RUNTIME, no_console=True))
    with pytest.raises(PlatformInfoError):
        check_snp(policy=policy)
    check_snp(verify_snp(snp(data=runtime(settings={"console-enabled": False}))), policy)


def test_each_part_is_appraised():
    with pytest.raises(ProductError):
        check_snp(
            policy=dataclasses.replace(
                SNP_POLICY, hardware=dataclasses.replace(SNP_HARDWARE, products=(Product.TURIN,))
            )
        )
    with pytest.raises(MeasurementError):
        check_snp(verify_snp(snp(measurement=b"\x07" * 48)))
    with pytest.raises(MeasurementError):
        check_tdx(verify_tdx(tdx(mr_td=b"\x07" * 48)))
    with pytest.raises(RegisterError):
        check_snp(verify_snp(snp(pcrs=PCRS | {4: PCRS[7]})))
    with pytest.raises(RegisterError):
        check_tdx(verify_tdx(tdx(pcrs=PCRS | {7: PCRS[4]})))
    with pytest.raises(FreshnessError):
        check_snp(verify_snp(snp(), nonce=None))
    with pytest.raises(RegisterSelectionError):
        check_snp(verify_snp(snp(pcrs={number: PCRS[number] for number in range(23)})))


def test_a_policy_for_the_other_hardware_is_refused():
    with pytest.raises(PolicyFormatError):
        check_snp(policy=TDX_POLICY)
    with pytest.raises(PolicyFormatError):
        check_tdx(policy=SNP_POLICY)


def test_a_policy_has_to_pin_the_paravisor():
    with pytest.raises(PolicyFormatError):
        dataclasses.replace(SNP_POLICY, hardware=dataclasses.replace(SNP_HARDWARE, measurements=WHY))
    with pytest.raises(PolicyFormatError):
        dataclasses.replace(TDX_POLICY, hardware=dataclasses.replace(TDX_HARDWARE, mr_td=WHY))
    for pin in ("id_keys", "author_keys"):
        hardware = dataclasses.replace(SNP_HARDWARE, measurements=WHY, **{pin: (amd.ID_KEY.hex(),)})
        assert dataclasses.replace(SNP_POLICY, hardware=hardware)


@pytest.mark.parametrize(
    "changes",
    [
        {"secure_boot": False},
        {"no_console": False},
        {"no_filtered_devices": False},
        {"root_certificates": ()},
        {"root_certificates": ("",)},
        {"vm_ids": ()},
        {"other_settings": ()},
    ],
)
def test_runtime_choices_are_refused_with(changes):
    with pytest.raises(PolicyFormatError):
        dataclasses.replace(RUNTIME, **changes)


@pytest.mark.parametrize("register", ["16", "23"])
def test_registers_that_anybody_can_reset_cannot_be_pinned(register):
    with pytest.raises(PolicyFormatError):
        dataclasses.replace(QUOTE, registers={register: ("ab" * 32,)})


@pytest.mark.parametrize("policy", [SNP_POLICY, TDX_POLICY])
def test_a_policy_is_read_from_its_document_and_no_field_is_optional(policy):
    table = record.to_json(policy)
    assert record.from_json(type(policy), table, error=PolicyFormatError) == policy
    for field in table:
        with pytest.raises(PolicyFormatError):
            record.from_json(type(policy), {key: table[key] for key in table if key != field}, error=PolicyFormatError)
