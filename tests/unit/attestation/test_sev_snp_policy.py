import dataclasses
import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sev_snp_world import (
    ASK,
    ASVK,
    AUTHOR_KEY,
    CHIP,
    CSP,
    DEBUG,
    HOST_DATA,
    ID_KEY,
    MEASUREMENT,
    MIGRATE_MA,
    MUST_BE_ONE,
    NOW,
    SMT,
    TURIN_CHIP,
    VCEK,
    VLEK,
    authority,
    crl,
    overwritten,
    report,
    vek,
    verify,
)

from confed import canonical, record
from confed.attestation.policy.sev_snp import appraise, require_defaults, require_floors
from confed.attestation.policy.sev_snp_terms import (
    AbiVersion,
    Committed,
    MinimumTcb,
    Mitigations,
    Revocation,
    SnpPolicy,
)
from confed.attestation.tee.sev_snp_report import FirmwareVersion, GuestPolicyBit, PlatformBit, Product, SigningKey, Tcb
from confed.errors import (
    AliasCheckError,
    AppraisalError,
    ConfigError,
    ConfigurationError,
    DebugError,
    EvidenceSignatureError,
    FirmwareError,
    GuestPolicyError,
    MeasurementError,
    MigrationError,
    MitigationError,
    PlatformError,
    PlatformInfoError,
    PolicyExpiredError,
    PolicyFormatError,
    PrivilegeLevelError,
    ProductError,
    ReportVersionError,
    RevocationStatusError,
    SignerError,
    TcbError,
)
from confed.manifest import Unchecked

NO = Unchecked(unchecked="a test of something else")
FLOOR = Tcb(fmc=0, bootloader=10, tee=1, snp=25, microcode=84)
MINIMUM = MinimumTcb(issued="2026-05-01", expires="2026-06-01", processors={"19-11-01": FLOOR})

POLICY = SnpPolicy(
    products=(Product.GENOA,),
    denied_processors=("19-11-02", "19-a0"),
    minimum_report_version=5,
    signing_keys=(SigningKey.VCEK,),
    csp_ids=NO,
    chips=(CHIP.hex(),),
    revocation=Revocation.REQUIRED,
    measurements=(MEASUREMENT.hex(),),
    id_keys=(ID_KEY.hex(),),
    author_keys=NO,
    minimum_guest_svn=2,
    family_ids=("01" + "00" * 15,),
    image_ids=("02" + "00" * 15,),
    host_data=(HOST_DATA.hex(),),
    privilege_levels=(0,),
    guest_policy_required=(GuestPolicyBit.SMT,),
    guest_policy_forbidden=(GuestPolicyBit.CXL_ALLOW, GuestPolicyBit.SINGLE_SOCKET),
    minimum_abi=AbiVersion(major=0, minor=31),
    platform_info_required=(PlatformBit.ECC_EN,),
    platform_info_forbidden=(PlatformBit.TIO_EN,),
    minimum_firmware=FirmwareVersion(major=1, minor=55, build=43),
    committed=Committed.CURRENT,
    minimum_tcb=MINIMUM,
    mitigations={"19-11-01": Mitigations(launch="0000000000000001", current="0000000000000006")},
)
LAX = dataclasses.replace(
    POLICY,
    products=tuple(Product),
    minimum_report_version=2,
    signing_keys=tuple(SigningKey),
    privilege_levels=(0, 1, 2, 3),
    **{
        field.name: NO
        for field in dataclasses.fields(POLICY)
        if field.name not in {"products", "minimum_report_version", "signing_keys", "privilege_levels"}
    },
)


def claims(data=None, *, crls=None, certificates=(VCEK, ASK), **fields):
    return verify(data or report(**fields), certificates, crls=[crl()] if crls is None else crls)


GOOD = claims()
V2 = claims(version=2, platform_info=0x21)
HIGHER, LOWER = b"\x0b\1\0\0\0\0\x19\x54", b"\x09\1\0\0\0\0\x19\x54"


def test_a_guest_that_meets_every_choice_is_accepted():
    appraise(GOOD, POLICY, now=NOW)
    require_defaults(GOOD)


# What no policy and no default can accept; each report is genuine.
FLOORS = {
    "debugging": ({"policy": MUST_BE_ONE | SMT | DEBUG}, DebugError),
    "a migration agent allowed": ({"policy": MUST_BE_ONE | MIGRATE_MA}, MigrationError),
    "a migration agent associated": ({"report_id_ma": b"\x01" + bytes(31)}, MigrationError),
    "an unknown bit of the guest policy": ({"policy": MUST_BE_ONE | 1 << 26}, GuestPolicyError),
    "the last bit of the guest policy": ({"policy": MUST_BE_ONE | 1 << 63}, GuestPolicyError),
    "an unknown bit of PLATFORM_INFO": ({"platform_info": 0x125}, PlatformInfoError),
    "the last bit of PLATFORM_INFO": ({"platform_info": 0x25 | 1 << 63}, PlatformInfoError),
    "a report that the host asked for": ({"vmpl": 0xFFFF_FFFF}, PrivilegeLevelError),
    "a privilege level that no guest has": ({"vmpl": 4}, PrivilegeLevelError),
    "a reported TCB above the current one": ({"current_tcb": LOWER, "committed_tcb": LOWER}, TcbError),
    "a committed TCB above the current one": ({"committed_tcb": HIGHER}, TcbError),
    "one component above, another below": ({"committed_tcb": b"\x09\1\0\0\0\0\x19\x55"}, TcbError),
    "committed firmware newer than the current": ({"committed_version": b"\x2c\x37\x01"}, TcbError),
    "a committed minor version newer than the current": ({"committed_version": b"\x00\x38\x01"}, TcbError),
    "no memory alias check": ({"platform_info": 0x05}, AliasCheckError),
    "a measurement of zeros": ({"measurement": bytes(48)}, MeasurementError),
}


@pytest.mark.parametrize(("fields", "error"), FLOORS.values(), ids=FLOORS.keys())
def test_a_floor_refuses_genuine_evidence_with(fields, error):
    found = claims(**fields)
    for check in (require_floors, require_defaults, lambda given: appraise(given, LAX, now=NOW)):
        with pytest.raises(AppraisalError) as raised:
            check(found)
        assert type(raised.value) is error


def test_debug_evidence_that_is_not_genuine_never_reaches_appraisal():
    with pytest.raises(EvidenceSignatureError):
        claims(overwritten(report(), "policy", MUST_BE_ONE | DEBUG))


def test_debugging_is_told_before_all_else():
    worst = claims(policy=MUST_BE_ONE | DEBUG | MIGRATE_MA | 1 << 40, platform_info=1 << 40, vmpl=9)
    with pytest.raises(DebugError):
        require_defaults(worst)


@pytest.mark.parametrize("report_id_ma", [bytes(32), b"\xff" * 32])
def test_no_migration_agent_is_written_in_two_ways(report_id_ma):
    require_floors(claims(report_id_ma=report_id_ma))


def test_a_cloud_may_report_less_than_it_has_committed():
    fleet = b"\x08\1\0\0\0\0\x19\x50"
    found = claims(certificates=(vek(tcb=fleet), ASK), reported_tcb=fleet)
    require_defaults(found)
    appraise(found, LAX, now=NOW)
    with pytest.raises(TcbError):
        appraise(found, POLICY, now=NOW)


DEFAULTS = {
    "version 2": (V2, ReportVersionError),
    "a lower privilege level": (claims(vmpl=1), PrivilegeLevelError),
    "a current TCB that is not committed": (claims(current_tcb=HIGHER), TcbError),
    "current firmware that is not committed": (claims(current_version=b"\x2c\x37\x01"), TcbError),
}


@pytest.mark.parametrize(("found", "error"), DEFAULTS.values(), ids=DEFAULTS.keys())
def test_without_a_policy_is_refused(found, error):
    with pytest.raises(AppraisalError) as raised:
        require_defaults(found)
    assert type(raised.value) is error
    appraise(found, LAX, now=NOW)  # A policy may say otherwise.


TURIN = verify(report("Turin"), [vek("Turin"), authority("Turin")])
CLOUD = verify(report(kind="VLEK"), [VLEK, ASVK], crls=[crl()])
AUTHOR = claims(key_flags=1, author_key_digest=AUTHOR_KEY)


def replaced(**changes):
    return dataclasses.replace(POLICY, **changes)


def launched(tcb):
    return claims(launch_tcb=tcb)


# One choice of the owner not met: the claims, the policy, the class that says why.
CHOICES = {
    "a version before the least": (claims(version=4), POLICY, ReportVersionError),
    "a product that is not named": (
        verify(report("Turin"), [vek("Turin"), authority("Turin")], crls=[crl("Turin")]),
        POLICY,
        ProductError,
    ),
    "another product": (GOOD, replaced(products=(Product.TURIN, Product.MILAN)), ProductError),
    "a denied stepping": (GOOD, replaced(denied_processors=("19-11-01",)), ProductError),
    "a denied model": (GOOD, replaced(denied_processors=("1a-02", "19-11")), ProductError),
    "a chip's key where a cloud's is demanded": (GOOD, replaced(signing_keys=(SigningKey.VLEK,)), PlatformError),
    "a cloud's key where a chip's is demanded": (CLOUD, POLICY, PlatformError),
    "another chip": (GOOD, replaced(chips=(CHIP[::-1].hex(),)), PlatformError),
    "no revocation list": (claims(crls=()), POLICY, RevocationStatusError),
    "another measurement": (claims(measurement=b"\x60" * 48), POLICY, MeasurementError),
    "another ID key": (claims(id_key_digest=b"\x1e" * 48), POLICY, SignerError),
    "no ID block": (claims(id_key_digest=bytes(48)), POLICY, SignerError),
    "another author key": (AUTHOR, replaced(author_keys=("0b" * 48,)), SignerError),
    "no author key": (GOOD, replaced(author_keys=(AUTHOR_KEY.hex(),)), SignerError),
    "an author key that is not enabled": (
        claims(author_key_digest=AUTHOR_KEY),
        replaced(author_keys=(AUTHOR_KEY.hex(),)),
        SignerError,
    ),
    "an older guest": (claims(guest_svn=1), POLICY, SignerError),
    "another family": (claims(family_id=bytes(16)), POLICY, SignerError),
    "another image": (claims(image_id=b"\x01" * 16), POLICY, SignerError),
    "other host data": (claims(host_data=bytes(32)), POLICY, ConfigurationError),
    "another privilege level": (claims(vmpl=2), replaced(privilege_levels=(0, 1, 3)), PrivilegeLevelError),
    "a guest policy without a demanded bit": (
        GOOD,
        replaced(guest_policy_required=(GuestPolicyBit.SMT, GuestPolicyBit.RAPL_DIS)),
        GuestPolicyError,
    ),
    "a guest policy with a forbidden bit": (
        GOOD,
        replaced(guest_policy_required=NO, guest_policy_forbidden=(GuestPolicyBit.SMT,)),
        GuestPolicyError,
    ),
    "several sockets": (GOOD, replaced(guest_policy_required=(GuestPolicyBit.SINGLE_SOCKET,)), GuestPolicyError),
    "an older interface": (GOOD, replaced(minimum_abi=AbiVersion(major=0, minor=32)), GuestPolicyError),
    "an older major interface": (GOOD, replaced(minimum_abi=AbiVersion(major=1, minor=0)), GuestPolicyError),
    "a platform without a demanded bit": (
        GOOD,
        replaced(platform_info_required=(PlatformBit.CIPHERTEXT_HIDING_DRAM_EN,)),
        PlatformInfoError,
    ),
    "a platform with a forbidden bit": (
        GOOD,
        replaced(platform_info_forbidden=(PlatformBit.SMT_EN,)),
        PlatformInfoError,
    ),
    "older firmware": (GOOD, replaced(minimum_firmware=FirmwareVersion(major=1, minor=55, build=44)), FirmwareError),
    "newer firmware that is not committed": (
        claims(current_version=b"\x2c\x37\x01"),
        replaced(committed=NO, minimum_firmware=FirmwareVersion(major=1, minor=55, build=44)),
        FirmwareError,
    ),
    "an uncommitted TCB": (claims(current_tcb=HIGHER), POLICY, TcbError),
    "an uncommitted version": (claims(current_version=b"\x2c\x37\x01"), POLICY, TcbError),
    "a boot loader below the least at launch": (launched(b"\x09\1\0\0\0\0\x19\x54"), POLICY, TcbError),
    "a TEE below the least at launch": (launched(b"\x0a\0\0\0\0\0\x19\x54"), POLICY, TcbError),
    "SNP firmware below the least at launch": (launched(b"\x0a\1\0\0\0\0\x18\x54"), POLICY, TcbError),
    "microcode below the least at launch": (launched(b"\x0a\1\0\0\0\0\x19\x53"), POLICY, TcbError),
    "a processor without a minimum": (
        claims(cpuid=b"\x19\x11\x00"),
        replaced(mitigations=NO),
        TcbError,
    ),
    "a processor without mitigations": (
        claims(cpuid=b"\x19\x11\x00"),
        replaced(minimum_tcb=NO),
        MitigationError,
    ),
    "a mitigation missing at launch": (claims(launch_mitigations=2), POLICY, MitigationError),
    "a mitigation missing now": (claims(current_mitigations=0xF3), POLICY, MitigationError),
    "a mitigation missing now where launch is unchecked": (
        claims(current_mitigations=0xF3),
        replaced(mitigations={"19-11-01": Mitigations(launch=NO, current="0000000000000004")}),
        MitigationError,
    ),
    "no mitigation vectors": (claims(version=4), replaced(minimum_report_version=3), MitigationError),
    "an unknown processor where some are denied": (
        V2,
        dataclasses.replace(LAX, denied_processors=("1a-02",)),
        ProductError,
    ),
    "an unknown processor where a minimum holds": (V2, dataclasses.replace(LAX, minimum_tcb=MINIMUM), TcbError),
    "a cloud that is not named": (CLOUD, dataclasses.replace(LAX, csp_ids=("CN=another",)), PlatformError),
    "a masked chip of a cloud": (CLOUD, dataclasses.replace(LAX, chips=(CHIP.hex(),)), PlatformError),
}


@pytest.mark.parametrize(("found", "policy", "error"), CHOICES.values(), ids=CHOICES.keys())
def test_a_choice_of_the_owner_refuses(found, policy, error):
    with pytest.raises(AppraisalError) as raised:
        appraise(found, policy, now=NOW)
    assert type(raised.value) is error


ACCEPTED = {
    "Turin by its short chip id": (TURIN, dataclasses.replace(LAX, chips=(TURIN_CHIP.hex(),))),
    "Turin by its padded chip id": (TURIN, dataclasses.replace(LAX, chips=(TURIN_CHIP.hex().ljust(128, "0"),))),
    "a masked chip by its certificate": (claims(chip_id=bytes(64)), POLICY),
    "a named cloud": (CLOUD, dataclasses.replace(LAX, csp_ids=(CSP,))),
    "a chip where clouds are named": (GOOD, replaced(csp_ids=("CN=another",))),
    "a named author key": (AUTHOR, replaced(author_keys=(AUTHOR_KEY.hex(),))),
    "a privilege level that is named": (claims(vmpl=2), replaced(privilege_levels=(2,))),
    "a current TCB that is not committed, unchecked": (claims(current_tcb=HIGHER), replaced(committed=NO)),
    "a processor beside the denied ones": (GOOD, replaced(denied_processors=("19-11-00", "19-10", "1a-02"))),
    "mitigations at launch alone": (
        claims(current_mitigations=0),
        replaced(mitigations={"19-11-01": Mitigations(launch="0000000000000001", current=NO)}),
    ),
    "mitigations now alone": (
        claims(launch_mitigations=0),
        replaced(mitigations={"19-11-01": Mitigations(launch=NO, current="0000000000000006")}),
    ),
    "more than the minimum": (claims(launch_tcb=b"\x0c\2\0\0\0\0\x20\x60"), POLICY),
    "Milan where it is named": (verify(report("Milan"), [vek("Milan"), authority("Milan")]), LAX),
}


@pytest.mark.parametrize(("found", "policy"), ACCEPTED.values(), ids=ACCEPTED.keys())
def test_is_accepted(found, policy):
    appraise(found, policy, now=NOW)


def test_milan_is_accepted_only_where_it_is_named():
    milan = verify(report("Milan"), [vek("Milan"), authority("Milan")])
    with pytest.raises(ProductError):
        appraise(milan, dataclasses.replace(LAX, products=(Product.GENOA, Product.TURIN)), now=NOW)


def test_a_minimum_tcb_holds_for_the_reported_tcb_too():
    low = b"\x0a\1\0\0\0\0\x18\x54"
    found = claims(certificates=(vek(tcb=low), ASK), reported_tcb=low)
    with pytest.raises(TcbError) as raised:
        appraise(found, POLICY, now=NOW)
    assert raised.value.field == "REPORTED_TCB"


def test_a_minimum_tcb_lasts_until_the_end_of_its_last_day():
    appraise(GOOD, POLICY, now=datetime.datetime(2026, 6, 1, 23, 59, 59, tzinfo=datetime.UTC))
    with pytest.raises(PolicyExpiredError):
        appraise(GOOD, POLICY, now=datetime.datetime(2026, 6, 2, tzinfo=datetime.UTC))
    east = datetime.timezone(datetime.timedelta(hours=9))
    appraise(GOOD, POLICY, now=datetime.datetime(2026, 6, 2, 8, tzinfo=east))


@settings(max_examples=300, deadline=None)
@given(st.tuples(*[st.integers(0, 255)] * 5), st.tuples(*[st.integers(0, 255)] * 5))
def test_one_tcb_covers_another_exactly_where_every_component_does(one, other):
    names = ("fmc", "bootloader", "tee", "snp", "microcode")
    first, second = (Tcb(**dict(zip(names, levels, strict=True))) for levels in (one, other))
    assert first.covers(second) == all(left >= right for left, right in zip(one, other, strict=True))


# The policy's own form.

DIGITS = "1a" * 48
BAD = {
    **{
        f"an empty list of {name}": {name: ()}
        for name in (
            "products", "denied_processors", "signing_keys", "csp_ids", "chips", "measurements", "id_keys",
            "author_keys", "family_ids", "image_ids", "host_data", "privilege_levels", "guest_policy_required",
            "guest_policy_forbidden", "platform_info_required", "platform_info_forbidden",
        )
    },
    **{
        f"{name} of zeros": {name: ("00" * size,)}
        for name, size in (("chips", 64), ("measurements", 48), ("id_keys", 48), ("author_keys", 48), ("host_data", 32))
    },
    "no mitigations": {"mitigations": {}},
    "a short measurement": {"measurements": (DIGITS[2:],)},
    "a measurement in upper case": {"measurements": (DIGITS.upper(),)},
    "a measurement that is not hexadecimal": {"measurements": ("x" * 96,)},
    "a measurement with a line behind it": {"measurements": (DIGITS[1:] + "\n",)},
    "a chip id of another length": {"chips": ("ab" * 32,)},
    "a processor by another name": {"denied_processors": ("Milan",)},
    "a processor in upper case": {"denied_processors": ("1A-02-01",)},
    "a family alone": {"denied_processors": ("19",)},
    "mitigations of a model": {"mitigations": {"19-11": Mitigations(launch=NO, current=NO)}},
    "a nameless cloud": {"csp_ids": (" ",)},
    "version 1": {"minimum_report_version": 1},
    "version 6": {"minimum_report_version": 6},
    "a privilege level of the host": {"privilege_levels": (0, 4)},
    "a negative privilege level": {"privilege_levels": (-1,)},
    "a negative guest version": {"minimum_guest_svn": -1},
    "a guest version that demands nothing": {"minimum_guest_svn": 0},
    "an interface version that demands nothing": {"minimum_abi": AbiVersion(major=0, minor=0)},
    "a firmware version that demands nothing": {"minimum_firmware": FirmwareVersion(major=0, minor=0, build=0)},
    "a guest version beyond 32 bits": {"minimum_guest_svn": 2**32},
    "an interface version beyond a byte": {"minimum_abi": AbiVersion(major=1, minor=256)},
    "a negative firmware version": {"minimum_firmware": FirmwareVersion(major=-1, minor=0, build=0)},
}  # fmt: skip


@pytest.mark.parametrize("changes", BAD.values(), ids=BAD.keys())
def test_a_policy_is_refused_with(changes):
    with pytest.raises(PolicyFormatError):
        replaced(**changes)


BAD_MINIMUMS = {
    "no processors": {"processors": {}},
    "a processor by another name": {"processors": {"Genoa": FLOOR}},
    "a model alone": {"processors": {"19-11": FLOOR}},
    "a level above 255": {"processors": {"19-11-01": dataclasses.replace(FLOOR, snp=256)}},
    "a level that demands nothing": {
        "processors": {"19-11-01": Tcb(fmc=0, bootloader=0, tee=0, snp=0, microcode=0)},
    },
    "a negative level": {"processors": {"19-11-01": dataclasses.replace(FLOOR, fmc=-1)}},
    "an end before its beginning": {"expires": "2026-04-30"},
    "a date of another form": {"expires": "1 June 2026"},
    "a date without dashes": {"expires": "20260601"},
    "a day that does not exist": {"expires": "2026-06-31"},
    "a beginning that is no date": {"issued": ""},
}


@pytest.mark.parametrize("changes", BAD_MINIMUMS.values(), ids=BAD_MINIMUMS.keys())
def test_a_minimum_tcb_is_refused_with(changes):
    with pytest.raises(PolicyFormatError):
        dataclasses.replace(MINIMUM, **changes)


@pytest.mark.parametrize("mask", ["", "1", "0x01", "1" * 15, "1" * 17, "G" * 16, "0" * 16])
def test_a_mask_of_mitigations_has_16_digits_and_demands_something(mask):
    with pytest.raises(PolicyFormatError):
        Mitigations(launch=mask, current=NO)
    with pytest.raises(PolicyFormatError):
        Mitigations(launch=NO, current=mask)


@pytest.mark.parametrize("policy", [POLICY, LAX], ids=["everything checked", "nothing checked"])
def test_a_policy_survives_its_document(policy):
    written = canonical.encode(record.to_json(policy))
    assert record.from_json(SnpPolicy, canonical.decode(written), error=PolicyFormatError) == policy


WHOLE = record.to_json(POLICY)
DOCUMENTS = {f"{name} left out": {key: value for key, value in WHOLE.items() if key != name} for name in WHOLE} | {
    "an unknown key": WHOLE | {"debug": True},
    "an unknown product": WHOLE | {"products": ["Rome"]},
    "an unknown bit": WHOLE | {"guest_policy_forbidden": ["DEBUGGING"]},
    "an unknown demand": WHOLE | {"revocation": "optional"},
    "a reason that is missing": WHOLE | {"chips": {"unchecked": " "}},
    "a truth value for a level": WHOLE | {"privilege_levels": [False]},
}


@pytest.mark.parametrize("document", DOCUMENTS.values(), ids=DOCUMENTS.keys())
def test_a_document_is_refused_with(document):
    with pytest.raises(ConfigError):
        record.from_json(SnpPolicy, document, error=PolicyFormatError)


def test_every_choice_is_demanded():
    for field in dataclasses.fields(SnpPolicy):
        assert field.default is dataclasses.MISSING
        assert field.default_factory is dataclasses.MISSING
