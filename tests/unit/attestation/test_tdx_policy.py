"""Genuine TDs that are refused, each for its own reason: floors, defaults, and an owner's choices."""

import dataclasses
import datetime
import functools
import itertools

import pytest
from attestation_world import CLAIMS, MANIFEST, MEASUREMENT, POLICY
from event_log_world import ACTION, SEPARATOR, ccel, digest, extend
from intel_world import ANCHORS, FMSPC, INSTANCE, MODULE_SVN, NOW, PPID, good, td_quote

from confed import record
from confed.attestation.appraisal import appraise
from confed.attestation.policy import intel_tcb, tdx
from confed.attestation.policy.document import FORMAT, PolicyDocument
from confed.attestation.policy.intel_tcb import DEFAULT_STATUSES, STATUSES, IntelTcbPolicy, NoneAccepted
from confed.attestation.policy.tdx import RegisterEvents, RegisterValues, TdxPolicy
from confed.attestation.tee import intel_dcap
from confed.attestation.tee import tdx as verifier
from confed.errors import (
    AdvisoryError,
    AppraisalError,
    AttributesError,
    ConfigurationError,
    DebugError,
    EvaluationNumberError,
    MeasurementError,
    MigrationError,
    PlatformError,
    PolicyFormatError,
    PolicyMissingError,
    RegisterError,
    ReportVersionError,
    SecurityModuleError,
    TcbStatusError,
)
from confed.manifest import PRODUCTION, SIMULATION, Unchecked

ANY = Unchecked(unchecked="not part of this test")
TODAY, YESTERDAY = f"{NOW:%F}", f"{NOW - datetime.timedelta(days=1):%F}"
MRTD, MRSEAM = "7d" * 48, "5e" * 48
XFAM = "e702060000000000"
ZEROS = "00" * 48
ENTRIES = ((1, SEPARATOR, bytes(4), None), (2, ACTION, b"booting", None))
VALUES = {}
for _register, _, _data, _ in ENTRIES:
    extend(VALUES, _register - 1, _data)
EVENTS = tuple(digest("sha384", data).hex() for _, _, data, _ in ENTRIES)


@functools.cache
def genuine():
    quote = td_quote(
        version=5, mr_config_id=b"c" * 32, mr_owner=b"o", mr_owner_config=b"w", rtmr0=VALUES[0], rtmr1=VALUES[1]
    )
    return verifier.verify_quote(quote, collateral=[good()], now=NOW, anchors=ANCHORS, event_logs=[ccel(*ENTRIES)])


def claims(*, report=None, tcb=None, platform=None, **fields):
    found = genuine()
    return dataclasses.replace(
        found,
        report=dataclasses.replace(found.report, **(report or {})),
        tcb=dataclasses.replace(found.tcb, **(tcb or {})),
        platform=dataclasses.replace(found.platform, **(platform or {})),
        **fields,
    )


def tcb_policy(**changes):
    found = {
        "statuses": {"UpToDate": TODAY, "OutOfDate": YESTERDAY, "SWHardeningNeeded": TODAY},
        "advisories": {"INTEL-SA-00837": TODAY, "INTEL-SA-00960": YESTERDAY},
        "minimum_evaluation_number": 18,
        "fmspcs": (FMSPC.hex(),),
        "ppids": (PPID.hex(),),
        "platform_instance_ids": (INSTANCE.hex(),),
    }
    return IntelTcbPolicy(**found | changes)


def padded(value):
    return value.ljust(48, b"\x00").hex()


def policy(**changes):
    found = {
        "tcb": tcb_policy(),
        "minimum_quote_version": 5,
        "mr_td": ("01" * 48, MRTD),
        "registers": RegisterValues(rtmr0=(VALUES[0].hex(),), rtmr1=(VALUES[1].hex(),), rtmr2=(ZEROS,), rtmr3=(ZEROS,)),
        "mr_config_id": (padded(b"c" * 32),),
        "mr_owner": (padded(b"o"),),
        "mr_owner_config": (padded(b"w"),),
        "attributes_required": ANY,
        "attributes_forbidden": (tdx.TdAttribute.PKS, tdx.TdAttribute.KL),
        "xfam": (XFAM,),
        "mr_seam": (MRSEAM,),
        "mr_signer_seam": (ZEROS,),
        "minimum_tee_tcb_svn": MODULE_SVN.hex(),
    }
    return TdxPolicy(**found | changes)


def attributes(*bits):
    return sum(1 << bit for bit in (28, *bits)).to_bytes(8, "little")


def test_a_td_that_meets_everything_is_accepted():
    tdx.appraise(claims(), policy(), now=NOW)
    tdx.require_defaults(claims())


FLOORS = {
    "debugging": ({"debug": True}, DebugError),
    "migration": ({"report": {"td_attributes": attributes(29)}}, MigrationError),
    "no SEPT_VE_DISABLE": ({"report": {"td_attributes": bytes(8)}}, AttributesError),
    **{
        f"unknown attribute {bit}": ({"report": {"td_attributes": attributes(bit)}}, AttributesError)
        for bit in (*range(8, 16), *range(17, 27), *range(32, 62))
    },
    "a service TD": ({"report": {"mr_service_td": b"\x01" + bytes(47)}}, SecurityModuleError),
    "nothing measured": ({"report": {"mr_td": bytes(48)}}, MeasurementError),
    "an unknown TDX module": ({"tcb": {"status": intel_dcap.UNKNOWN_MODULE}}, SecurityModuleError),
    "a revoked TCB": ({"tcb": {"status": intel_dcap.REVOKED}}, TcbStatusError),
    "a TCB below every level": ({"tcb": {"status": intel_dcap.NO_MATCHING_LEVEL}}, TcbStatusError),
    "a TCB that was not evaluated": ({"tcb": {"status": intel_dcap.NOT_EVALUATED}}, TcbStatusError),
    "a status that Intel does not give": ({"tcb": {"status": "Fine"}}, TcbStatusError),
}


@pytest.mark.parametrize("name", FLOORS)
def test_floors_hold_whatever_a_policy_says(name):
    changes, error = FLOORS[name]
    found = claims(**changes)
    for check in (
        tdx.require_floors,
        tdx.require_defaults,
        lambda refused: tdx.appraise(refused, policy(), now=NOW),
        lambda refused: tdx.appraise(refused, loosest(), now=NOW),
    ):
        with pytest.raises(error) as caught:
            check(found)
        assert type(caught.value) is error


def loosest():
    """Return the least that a policy can demand."""
    everything = tcb_policy(
        statuses=dict.fromkeys(STATUSES, TODAY), advisories=ANY, minimum_evaluation_number=ANY, fmspcs=ANY, ppids=ANY,
        platform_instance_ids=ANY,
    )  # fmt: skip
    unchecked = {
        field.name: ANY for field in dataclasses.fields(TdxPolicy) if field.name not in {"tcb", "minimum_quote_version"}
    }
    return TdxPolicy(tcb=everything, minimum_quote_version=4, **unchecked)


def test_what_dcap_qvl_has_refused_no_policy_accepts():
    for status in intel_dcap.UNACCEPTABLE:
        with pytest.raises(AppraisalError):
            tdx.appraise(claims(tcb={"status": status}), loosest(), now=NOW)
    assert not intel_dcap.UNACCEPTABLE & set(STATUSES)


@pytest.mark.parametrize("bit", [1, 4, 5, 6, 7])
def test_a_td_that_can_be_profiled_counts_as_one_under_debug(bit):
    quote = td_quote(td_attributes=attributes(bit))
    found = verifier.verify_quote(quote, collateral=[good()], now=NOW, anchors=ANCHORS)
    with pytest.raises(DebugError):
        tdx.require_floors(found)


ORDER = (
    ({"debug": True}, DebugError),
    ({"report": {"td_attributes": attributes(29)}}, MigrationError),
    ({"tcb": {"status": intel_dcap.NO_MATCHING_LEVEL}}, TcbStatusError),
    ({"report": {"td_attributes": bytes(8)}}, AttributesError),
    ({"report": {"mr_service_td": b"\x01" * 48}}, SecurityModuleError),
    ({"tcb": {"status": intel_dcap.NOT_EVALUATED}}, TcbStatusError),
)


def test_the_gravest_floor_gives_the_reason():
    for (graver, error), (lesser, _) in itertools.combinations(ORDER, 2):
        merged = {key: {**lesser.get(key, {}), **graver[key]} if key != "debug" else True for key in graver}
        with pytest.raises(error) as caught:
            tdx.require_floors(claims(**lesser | merged))
        assert type(caught.value) is error


@pytest.mark.parametrize("status", STATUSES)
def test_without_a_policy_nothing_out_of_date_is_accepted(status):
    found = claims(tcb={"status": status})
    tdx.require_floors(found)
    if status in {"UpToDate", "SWHardeningNeeded", "ConfigurationNeeded", "ConfigurationAndSWHardeningNeeded"}:
        tdx.require_defaults(found)
        assert status in DEFAULT_STATUSES
    else:
        with pytest.raises(TcbStatusError):
            tdx.require_defaults(found)


CHOICES = {
    "older TCB data": ({"tcb": {"evaluation_number": 17}}, {}, EvaluationNumberError),
    "a status that is not listed": ({"tcb": {"status": "ConfigurationNeeded"}}, {}, TcbStatusError),
    "a status past its day": ({"tcb": {"status": "OutOfDate"}}, {}, TcbStatusError),
    "an advisory that is not listed": ({"tcb": {"advisory_ids": ("INTEL-SA-00001",)}}, {}, AdvisoryError),
    "an advisory past its day": ({"tcb": {"advisory_ids": ("INTEL-SA-00837", "INTEL-SA-00960")}}, {}, AdvisoryError),
    "any advisory where none is accepted": (
        {"tcb": {"advisory_ids": ("INTEL-SA-00837",)}},
        {"tcb": tcb_policy(advisories=NoneAccepted(none_accepted="up to date"))},
        AdvisoryError,
    ),
    "another platform family": ({"platform": {"fmspc": bytes(6)}}, {}, PlatformError),
    "another processor": ({"platform": {"ppid": bytes(16)}}, {}, PlatformError),
    "another instance": ({"platform": {"platform_instance_id": bytes(16)}}, {}, PlatformError),
    "no instance": ({"platform": {"platform_instance_id": b""}}, {}, PlatformError),
    "a quote of version 4": ({"quote_version": 4}, {}, ReportVersionError),
    "another MRTD": ({"report": {"mr_td": b"\x01" * 47 + b"\x02"}}, {}, MeasurementError),
    "another MRCONFIGID": ({"report": {"mr_config_id": bytes(48)}}, {}, ConfigurationError),
    "another MROWNER": ({"report": {"mr_owner": bytes(48)}}, {}, ConfigurationError),
    "another MROWNERCONFIG": ({"report": {"mr_owner_config": bytes(48)}}, {}, ConfigurationError),
    "supervisor protection keys": ({"report": {"td_attributes": attributes(30)}}, {}, AttributesError),
    "Key Locker": ({"report": {"td_attributes": attributes(31)}}, {}, AttributesError),
    "an attribute that is missing": ({}, {"attributes_required": (tdx.TdAttribute.LASS,)}, AttributesError),
    "another XFAM": ({"report": {"xfam": bytes.fromhex("e700060000000000")}}, {}, AttributesError),
    "another TDX module": ({"report": {"mr_seam": b"\x01" * 48}}, {}, SecurityModuleError),
    "another signer of the TDX module": ({"report": {"mr_signer_seam": b"\x01" * 48}}, {}, SecurityModuleError),
    "an older TDX module": (
        {"report": {"tee_tcb_svn": bytes([4, 9, 9]) + bytes(13)}},
        {},
        SecurityModuleError,
    ),
    "an older TDX module that runs now": (
        {"report": {"tee_tcb_svn2": bytes([4, 9, 9]) + bytes(13)}},
        {},
        SecurityModuleError,
    ),
    "an older loader": ({"report": {"tee_tcb_svn": bytes([9, 9, 1]) + bytes(13)}}, {}, SecurityModuleError),
    "no log where events are demanded": (
        {"event_log_replayed": False, "events": ()},
        {"registers": RegisterEvents(accepted_events=EVENTS, required_events=ANY)},
        RegisterError,
    ),
    "an event that is not accepted": (
        {},
        {"registers": RegisterEvents(accepted_events=EVENTS[:1], required_events=ANY)},
        RegisterError,
    ),
    "an event that is demanded and missing": (
        {"events": ()},
        {"registers": RegisterEvents(accepted_events=EVENTS, required_events=EVENTS[1:])},
        RegisterError,
    ),
}


@pytest.mark.parametrize("name", CHOICES)
def test_each_choice_refuses_by_its_reason(name):
    found, changes, error = CHOICES[name]
    with pytest.raises(error) as caught:
        tdx.appraise(claims(**found), policy(**changes), now=NOW)
    assert type(caught.value) is error


@pytest.mark.parametrize("number", range(4))
def test_each_register_is_compared(number):
    registers = list(genuine().report.rtmr)
    registers[number] = b"\x09" * 48
    with pytest.raises(RegisterError, match=f"RTMR{number}"):
        tdx.appraise(claims(report={"rtmr": tuple(registers)}), policy(), now=NOW)


def test_registers_can_be_accepted_by_the_events_behind_them():
    events = RegisterEvents(accepted_events=("0f" * 48, *EVENTS), required_events=EVENTS)
    tdx.appraise(claims(), policy(registers=events), now=NOW)


@pytest.mark.parametrize("attribute", tdx.TdAttribute)
def test_each_known_attribute_can_be_demanded_and_forbidden(attribute):
    bits = {"ICSSD": 16, "LASS": 27, "PKS": 30, "KL": 31, "TPA": 62, "PERFMON": 63}
    having, lacking = claims(report={"td_attributes": attributes(bits[attribute])}), claims()
    demanded = policy(attributes_required=(attribute,), attributes_forbidden=ANY)
    forbidden = policy(attributes_forbidden=(attribute,))
    tdx.appraise(having, demanded, now=NOW)
    tdx.appraise(lacking, forbidden, now=NOW)
    for refused, by in ((lacking, demanded), (having, forbidden)):
        with pytest.raises(AttributesError):
            tdx.appraise(refused, by, now=NOW)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(TdxPolicy)])
def test_what_is_left_unchecked_is_not_checked(field):
    if field in {"tcb", "minimum_quote_version"}:
        return
    other = {
        "mr_td": {"mr_td": b"\x09" * 48}, "registers": {"rtmr": (b"\x09" * 48,) * 4},
        "mr_config_id": {"mr_config_id": b"\x09" * 48}, "mr_owner": {"mr_owner": b"\x09" * 48},
        "mr_owner_config": {"mr_owner_config": b"\x09" * 48}, "xfam": {"xfam": b"\x09" * 8},
        "mr_seam": {"mr_seam": b"\x09" * 48}, "mr_signer_seam": {"mr_signer_seam": b"\x09" * 48},
        "minimum_tee_tcb_svn": {"tee_tcb_svn": bytes(16)},
        "attributes_forbidden": {"td_attributes": attributes(30)}, "attributes_required": {},
    }  # fmt: skip
    tdx.appraise(claims(report=other[field]), policy(**{field: ANY}), now=NOW)


def test_what_is_left_unchecked_of_the_tcb_is_not_checked():
    found = claims(
        tcb={"evaluation_number": 1, "advisory_ids": ("INTEL-SA-00001",)},
        platform={"fmspc": bytes(6), "ppid": bytes(16), "platform_instance_id": b""},
    )
    unchecked = dict.fromkeys(
        ("advisories", "minimum_evaluation_number", "fmspcs", "ppids", "platform_instance_ids"), ANY
    )
    tdx.appraise(found, policy(tcb=tcb_policy(**unchecked)), now=NOW)
    for name in unchecked:
        with pytest.raises(AppraisalError):
            tdx.appraise(found, policy(tcb=tcb_policy(**unchecked | {name: getattr(tcb_policy(), name)})), now=NOW)


def test_the_last_day_counts_to_its_end_in_utc():
    accepted = policy(tcb=tcb_policy(advisories={"INTEL-SA-00837": TODAY}))
    found = claims(tcb={"advisory_ids": ("INTEL-SA-00837",)})
    midnight = datetime.datetime.combine(NOW.date(), datetime.time(), datetime.UTC) + datetime.timedelta(days=1)
    tdx.appraise(found, accepted, now=midnight - datetime.timedelta(seconds=1))
    for late in (midnight, midnight.astimezone(datetime.timezone(datetime.timedelta(hours=-9)))):
        with pytest.raises(TcbStatusError):
            tdx.appraise(found, accepted, now=late)


FORMS = {
    "no status": lambda: tcb_policy(statuses={}),
    "a status that nobody can accept": lambda: tcb_policy(statuses={"Revoked": TODAY}),
    "a status that was not evaluated": lambda: tcb_policy(statuses={"NotEvaluated": TODAY}),
    "a day that is none": lambda: tcb_policy(statuses={"UpToDate": "2026-02-30"}),
    "a day in another form": lambda: tcb_policy(statuses={"UpToDate": "20260201"}),
    "no day": lambda: tcb_policy(advisories={"INTEL-SA-00837": ""}),
    "no advisory": lambda: tcb_policy(advisories={}),
    "an advisory of another form": lambda: tcb_policy(advisories={"SA-00837": TODAY}),
    "no reason why none is accepted": lambda: NoneAccepted(none_accepted=" "),
    "an evaluation number of zero": lambda: tcb_policy(minimum_evaluation_number=0),
    "an empty list of platforms": lambda: tcb_policy(fmspcs=()),
    "a platform family of another size": lambda: tcb_policy(fmspcs=("90c06f",)),
    "a processor in capitals": lambda: tcb_policy(ppids=("AB" * 16,)),
    "an instance of zeros": lambda: tcb_policy(platform_instance_ids=("00" * 16,)),
    "a version that is not known": lambda: policy(minimum_quote_version=3),
    "no MRTD": lambda: policy(mr_td=()),
    "an MRTD of zeros": lambda: policy(mr_td=(ZEROS,)),
    "an MRTD of another size": lambda: policy(mr_td=("7d" * 32,)),
    "an MRSEAM of zeros": lambda: policy(mr_seam=(ZEROS,)),
    "an MRCONFIGID of another size": lambda: policy(mr_config_id=("00" * 32,)),
    "no attribute": lambda: policy(attributes_forbidden=()),
    "no attribute demanded": lambda: policy(attributes_required=()),
    "an XFAM of another size": lambda: policy(xfam=("e7",)),
    "a TEE_TCB_SVN of another size": lambda: policy(minimum_tee_tcb_svn="05"),
    "a TEE_TCB_SVN that demands nothing": lambda: policy(minimum_tee_tcb_svn="00" * 16),
    "registers of which none is checked": lambda: RegisterValues(rtmr0=ANY, rtmr1=ANY, rtmr2=ANY, rtmr3=ANY),
    "a register without values": lambda: RegisterValues(rtmr0=(), rtmr1=ANY, rtmr2=ANY, rtmr3=ANY),
    "a register of another size": lambda: RegisterValues(rtmr0=("00",), rtmr1=ANY, rtmr2=ANY, rtmr3=ANY),
    "no event": lambda: RegisterEvents(accepted_events=(), required_events=ANY),
    "no event demanded": lambda: RegisterEvents(accepted_events=EVENTS, required_events=()),
    "an event demanded that is not accepted": lambda: RegisterEvents(
        accepted_events=EVENTS[:1], required_events=EVENTS
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_policy_that_says_nothing_or_nonsense_is_refused(name):
    with pytest.raises(PolicyFormatError):
        FORMS[name]()


@pytest.mark.parametrize(
    "written",
    [
        policy,
        loosest,
        lambda: policy(
            registers=RegisterEvents(accepted_events=EVENTS, required_events=ANY),
            tcb=tcb_policy(advisories=NoneAccepted(none_accepted="none is left")),
        ),
    ],
    ids=["values", "unchecked", "events"],
)
def test_a_policy_is_a_record(written):
    made = written()
    assert record.from_json(TdxPolicy, record.to_json(made), error=PolicyFormatError) == made


def test_no_field_of_a_policy_is_optional():
    for kind in (TdxPolicy, IntelTcbPolicy, RegisterValues, RegisterEvents, NoneAccepted):
        for field in dataclasses.fields(kind):
            assert field.default is dataclasses.MISSING, field.name
            assert field.default_factory is dataclasses.MISSING, field.name


def test_floors_of_the_tcb_stand_alone():
    for status in ("Revoked", "NoMatchingLevel", "Fine"):
        with pytest.raises(TcbStatusError):
            intel_tcb.require_tcb_floors(dataclasses.replace(genuine().tcb, status=status))
    for status in intel_dcap.UNACCEPTABLE:
        with pytest.raises(TcbStatusError):
            intel_tcb.require_evaluated(dataclasses.replace(genuine().tcb, status=status))
    intel_tcb.require_tcb_floors(dataclasses.replace(genuine().tcb, status="OutOfDate"))


def test_production_asks_for_registers_since_the_measurement_is_the_firmware_alone():
    now_ms = int(NOW.timestamp() * 1000)
    found = dataclasses.replace(
        CLAIMS, profile="tdx/1", evidence_class="tdx", hardware_rooted=True, environment="",
        details=claims(), measurement=MEASUREMENT, issued_at=now_ms,
    )  # fmt: skip

    def accept(environment, **changes):
        document = PolicyDocument(
            format=FORMAT, name="owner", profile="tdx/1", issued=TODAY, expires=TODAY, sources=("a test",),
            policy=policy(**changes),
        )  # fmt: skip
        terms = dataclasses.replace(POLICY, profiles=("tdx/1",), appraisal={"tdx/1": document.to_table()})
        appraise(found, policy=terms, environment=environment, manifest_digest=MANIFEST, now_ms=now_ms)

    accept(PRODUCTION)
    accept(SIMULATION, registers=ANY)
    with pytest.raises(PolicyMissingError, match="registers"):
        accept(PRODUCTION, registers=ANY)
