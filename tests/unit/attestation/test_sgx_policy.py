"""Genuine enclaves that are refused, each for its own reason: floors, defaults, and an owner's choices."""

import dataclasses
import functools

import pytest
from intel_world import ANCHORS, FMSPC, NOW, good, sgx_quote

from confed import record
from confed.attestation.policy import sgx
from confed.attestation.policy.intel_tcb import STATUSES, IntelTcbPolicy
from confed.attestation.policy.sgx import EnclaveAttribute, EnclaveMeasurements, EnclaveSigners, SgxPolicy
from confed.attestation.tee import intel_dcap
from confed.attestation.tee import sgx as verifier
from confed.errors import (
    AttributesError,
    ConfigurationError,
    DebugError,
    EvaluationNumberError,
    MeasurementError,
    PlatformError,
    PolicyFormatError,
    SecurityModuleError,
    SignerError,
    TcbStatusError,
)
from confed.manifest import Unchecked

ANY = Unchecked(unchecked="not part of this test")
TODAY = f"{NOW:%F}"
BITS = {"MODE64BIT": 2, "PROVISION_KEY": 4, "EINITTOKEN_KEY": 5, "CET": 6, "KSS": 7, "AEX_NOTIFY": 10}
SIGNERS = EnclaveSigners(mr_signer=("51" * 32,), isv_prod_ids=(7,), minimum_isv_svn=3)


@functools.cache
def genuine():
    quote = sgx_quote(
        attributes=b"\x85", config_id=b"c" * 32, config_svn=b"\x02", isv_family_id=b"f", isv_ext_prod_id=b"x"
    )
    return verifier.verify_quote(quote, collateral=[good("SGX")], now=NOW, anchors=ANCHORS)


def claims(*, report=None, tcb=None, platform=None, **fields):
    found = genuine()
    return dataclasses.replace(
        found,
        report=dataclasses.replace(found.report, **(report or {})),
        tcb=dataclasses.replace(found.tcb, **(tcb or {})),
        platform=dataclasses.replace(found.platform, **(platform or {})),
        **fields,
    )


def policy(**changes):
    tcb = IntelTcbPolicy(
        statuses={"UpToDate": TODAY},
        advisories=ANY,
        minimum_evaluation_number=18,
        fmspcs=(FMSPC.hex(),),
        ppids=ANY,
        platform_instance_ids=ANY,
    )
    found = {
        "tcb": tcb,
        "code": EnclaveMeasurements(mr_enclave=("01" * 32, "e1" * 32)),
        "config_ids": ((b"c" * 32).ljust(64, b"\x00").hex(),),
        "minimum_config_svn": 2,
        "isv_family_ids": (b"f".ljust(16, b"\x00").hex(),),
        "isv_ext_prod_ids": (b"x".ljust(16, b"\x00").hex(),),
        "attributes_required": (EnclaveAttribute.MODE64BIT, EnclaveAttribute.KSS),
        "attributes_forbidden": (EnclaveAttribute.PROVISION_KEY, EnclaveAttribute.EINITTOKEN_KEY),
        "xfrm": ("e7" + "00" * 7,),
        "misc_select": ("00000000",),
    }
    return SgxPolicy(**found | changes)


def loosest():
    """Return the least that a policy can demand."""
    unchecked = {field.name: ANY for field in dataclasses.fields(SgxPolicy) if field.name != "tcb"}
    tcb = dataclasses.replace(
        policy().tcb, statuses=dict.fromkeys(STATUSES, TODAY), minimum_evaluation_number=ANY, fmspcs=ANY
    )
    return SgxPolicy(tcb=tcb, **unchecked)


def attributes(*bits, init=True):
    return (sum(1 << bit for bit in bits) | init).to_bytes(8, "little")


def test_an_enclave_that_meets_everything_is_accepted():
    sgx.appraise(claims(), policy(), now=NOW)
    sgx.appraise(claims(), policy(code=SIGNERS), now=NOW)
    sgx.require_defaults(claims())


FLOORS = {
    "debugging": ({"debug": True}, DebugError),
    "not initialised": ({"report": {"attributes": attributes(2, init=False)}}, AttributesError),
    **{
        f"unknown attribute {bit}": ({"report": {"attributes": attributes(2, bit)}}, AttributesError)
        for bit in (3, 8, 9, *range(11, 64))
    },
    "unknown MISCSELECT": ({"report": {"misc_select": b"\x04\x00\x00\x00"}}, AttributesError),
    "nothing measured": ({"report": {"mr_enclave": bytes(32)}}, MeasurementError),
    "a revoked TCB": ({"tcb": {"status": intel_dcap.REVOKED}}, TcbStatusError),
    "a TCB below every level": ({"tcb": {"status": intel_dcap.NO_MATCHING_LEVEL}}, TcbStatusError),
    "a TCB that was not evaluated": ({"tcb": {"status": intel_dcap.NOT_EVALUATED}}, TcbStatusError),
    "a module that an enclave does not have": ({"tcb": {"status": intel_dcap.UNKNOWN_MODULE}}, SecurityModuleError),
}


@pytest.mark.parametrize("name", FLOORS)
def test_floors_hold_whatever_a_policy_says(name):
    changes, error = FLOORS[name]
    found = claims(**changes)
    for check in (
        sgx.require_floors,
        sgx.require_defaults,
        lambda refused: sgx.appraise(refused, policy(), now=NOW),
        lambda refused: sgx.appraise(refused, loosest(), now=NOW),
    ):
        with pytest.raises(error) as caught:
            check(found)
        assert type(caught.value) is error


@pytest.mark.parametrize("bit", [4, 5])
def test_without_a_policy_an_enclave_may_not_use_the_platforms_own_keys(bit):
    found = claims(report={"attributes": attributes(2, bit)})
    sgx.require_floors(found)
    with pytest.raises(AttributesError):
        sgx.require_defaults(found)
    sgx.appraise(found, policy(attributes_required=ANY, attributes_forbidden=ANY), now=NOW)


@pytest.mark.parametrize("status", ["OutOfDate", "OutOfDateConfigurationNeeded"])
def test_without_a_policy_nothing_out_of_date_is_accepted(status):
    with pytest.raises(TcbStatusError):
        sgx.require_defaults(claims(tcb={"status": status}))
    sgx.require_defaults(claims(tcb={"status": "ConfigurationAndSWHardeningNeeded"}))


CHOICES = {
    "older TCB data": ({"tcb": {"evaluation_number": 17}}, {}, EvaluationNumberError),
    "a status that is not listed": ({"tcb": {"status": "SWHardeningNeeded"}}, {}, TcbStatusError),
    "another platform family": ({"platform": {"fmspc": bytes(6)}}, {}, PlatformError),
    "another enclave": ({"report": {"mr_enclave": b"\x09" * 32}}, {}, MeasurementError),
    "another signer": ({"report": {"mr_signer": b"\x09" * 32}}, {"code": SIGNERS}, SignerError),
    "another product": ({"report": {"isv_prod_id": 8}}, {"code": SIGNERS}, SignerError),
    "an older version": ({"report": {"isv_svn": 2}}, {"code": SIGNERS}, SignerError),
    "another CONFIGID": ({"report": {"config_id": bytes(64)}}, {}, ConfigurationError),
    "an older CONFIGSVN": ({"report": {"config_svn": 1}}, {}, ConfigurationError),
    "another family": ({"report": {"isv_family_id": bytes(16)}}, {}, SignerError),
    "another extended product": ({"report": {"isv_ext_prod_id": bytes(16)}}, {}, SignerError),
    "32-bit mode": ({"report": {"attributes": attributes(7)}}, {}, AttributesError),
    "the provisioning key": ({"report": {"attributes": attributes(2, 4, 7)}}, {}, AttributesError),
    "the launch key": ({"report": {"attributes": attributes(2, 5, 7)}}, {}, AttributesError),
    "another XFRM": ({"report": {"xfrm": b"\x03" + bytes(7)}}, {}, AttributesError),
    "another MISCSELECT": ({"report": {"misc_select": b"\x01\x00\x00\x00"}}, {}, AttributesError),
}


@pytest.mark.parametrize("name", CHOICES)
def test_each_choice_refuses_by_its_reason(name):
    found, changes, error = CHOICES[name]
    with pytest.raises(error) as caught:
        sgx.appraise(claims(**found), policy(**changes), now=NOW)
    assert type(caught.value) is error


@pytest.mark.parametrize("attribute", EnclaveAttribute)
def test_each_known_attribute_can_be_demanded_and_forbidden(attribute):
    having = claims(report={"attributes": attributes(BITS[attribute])})
    lacking = claims(report={"attributes": attributes()})
    demanded = policy(attributes_required=(attribute,), attributes_forbidden=ANY)
    forbidden = policy(attributes_required=ANY, attributes_forbidden=(attribute,))
    sgx.appraise(having, demanded, now=NOW)
    sgx.appraise(lacking, forbidden, now=NOW)
    for refused, by in ((lacking, demanded), (having, forbidden)):
        with pytest.raises(AttributesError):
            sgx.appraise(refused, by, now=NOW)


def test_what_is_left_unchecked_is_not_checked():
    found = claims(
        report={
            "mr_enclave": b"\x09" * 32, "mr_signer": b"\x09" * 32, "isv_prod_id": 9, "isv_svn": 0, "config_svn": 0,
            "config_id": bytes(64), "isv_family_id": bytes(16), "isv_ext_prod_id": bytes(16),
            "attributes": attributes(4), "xfrm": b"\x09" * 8, "misc_select": b"\x03\x00\x00\x00",
        },
        tcb={"status": "OutOfDate"},
    )  # fmt: skip
    sgx.appraise(found, loosest(), now=NOW)


FORMS = {
    "no measurement": lambda: EnclaveMeasurements(mr_enclave=()),
    "a measurement of zeros": lambda: EnclaveMeasurements(mr_enclave=("00" * 32,)),
    "a measurement of another size": lambda: EnclaveMeasurements(mr_enclave=("e1" * 48,)),
    "no signer": lambda: dataclasses.replace(SIGNERS, mr_signer=()),
    "a signer of zeros": lambda: dataclasses.replace(SIGNERS, mr_signer=("00" * 32,)),
    "no product": lambda: dataclasses.replace(SIGNERS, isv_prod_ids=()),
    "a product that cannot be": lambda: dataclasses.replace(SIGNERS, isv_prod_ids=(65536,)),
    "a version that cannot be": lambda: dataclasses.replace(SIGNERS, minimum_isv_svn=-1),
    "a CONFIGID of another size": lambda: policy(config_ids=("00" * 32,)),
    "a CONFIGSVN that cannot be": lambda: policy(minimum_config_svn=65536),
    "a CONFIGSVN that demands nothing": lambda: policy(minimum_config_svn=0),
    "no family": lambda: policy(isv_family_ids=()),
    "an extended product of another size": lambda: policy(isv_ext_prod_ids=("00",)),
    "no attribute demanded": lambda: policy(attributes_required=()),
    "no attribute forbidden": lambda: policy(attributes_forbidden=()),
    "an XFRM of another size": lambda: policy(xfrm=("e7",)),
    "a MISCSELECT of another size": lambda: policy(misc_select=("00",)),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_policy_that_says_nothing_or_nonsense_is_refused(name):
    with pytest.raises(PolicyFormatError):
        FORMS[name]()


@pytest.mark.parametrize("written", [policy, loosest, lambda: policy(code=SIGNERS)], ids=["values", "loose", "signer"])
def test_a_policy_is_a_record(written):
    made = written()
    assert record.from_json(SgxPolicy, record.to_json(made), error=PolicyFormatError) == made


def test_no_field_of_a_policy_is_optional():
    for kind in (SgxPolicy, EnclaveMeasurements, EnclaveSigners):
        for field in dataclasses.fields(kind):
            assert field.default is dataclasses.MISSING, field.name
            assert field.default_factory is dataclasses.MISSING, field.name
