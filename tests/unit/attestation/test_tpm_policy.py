"""Which genuine quotes are acceptable: floors, what holds by default, and an owner's choices."""

import dataclasses

import pytest
from gcp_world import (
    GCP_INTERMEDIATE,
    GCP_ROOT,
    ak_certificate,
    attestation,
    instance,
    item,
    quote,
    revocation_list,
    security,
)
from tpm_world import AK, EK, NONCE, NOW, SHA256, attest, public_area, registers

from confed import record
from confed.attestation.evidence import Expectation
from confed.attestation.policy import registry
from confed.attestation.policy.tpm import (
    GcpTpmPolicy,
    TpmPolicy,
    appraise,
    require_defaults,
    require_floors,
)
from confed.attestation.policy.tpm_quote import QuotePolicy
from confed.attestation.tee import gcp_tpm
from confed.attestation.tee.tpm_certificates import EndorsementKeyClaims
from confed.attestation.tee.tpm_claims import KeyRoot, claims_of, key_digest
from confed.attestation.tee.tpm_structures import parse_public, parse_quote
from confed.errors import (
    AppraisalError,
    AttributesError,
    FirmwareError,
    FreshnessError,
    LifecycleError,
    PlatformError,
    PlatformInfoError,
    PolicyFormatError,
    PolicyMissingError,
    RegisterError,
    RegisterSelectionError,
    RevocationStatusError,
    SecurityModuleError,
    TcbError,
)
from confed.manifest import Unchecked

WHY = Unchecked(unchecked="a test leaves it out")
PCRS = registers(0, 4, 7, 16)
HEX = {number: value.hex() for number, value in PCRS.items()}
KEY = key_digest(AK.public_key()).hex()
EK_CLAIMS = EndorsementKeyClaims(
    certificate=b"c" * 32, key=key_digest(EK.public_key()), manufacturer="id:49465800", model="m", version="v",
    root=b"r" * 32, activated=True,
)  # fmt: skip


def claims(pcrs=PCRS, *, nonce_checked=True, by="enrolment", public=True, endorsement_key=EK_CLAIMS, bank="sha256"):
    area = parse_public(public_area(AK)) if public else None
    return claims_of(
        parse_quote(attest(pcrs, bank=SHA256)),
        root=KeyRoot(by=by, key=AK.public_key(), public=area, endorsement_key=endorsement_key),
        pcrs=pcrs,
        bank=bank,
        nonce_checked=nonce_checked,
        event_log=None,
        evidence_class="software-tpm",
        hardware_rooted=False,
    )


def quotes(**changes):
    options = {
        "nonce": True,
        "banks": ("sha256",),
        "selection": (0, 4, 7, 16),
        "registers": {"0": (HEX[0],), "7": ("ab" * 32, HEX[7])},
        "replayed": WHY,
    } | changes
    return QuotePolicy(**options)


def policy(*, quote=None, **changes):
    options = {
        "quote": quote or quotes(),
        "rooted_by": ("enrolment",),
        "attributes": True,
        "attestation_keys": (KEY,),
        "endorsement_keys": (EK_CLAIMS.key.hex(),),
        "manufacturers": ("id:49465800",),
        "firmware_versions": ("2019102300163636",),
    } | changes
    return TpmPolicy(**options)


def test_a_tpm_that_the_policy_names_is_accepted():
    appraise(claims(), policy(), now=NOW)
    registry.appraise("tpm/1", claims(), policy(), now=NOW)


def test_what_is_unchecked_is_not_compared():
    loose = policy(
        quote=quotes(nonce=WHY, registers=WHY),
        rooted_by=("enrolment", "pinned-key"),
        attributes=WHY,
        attestation_keys=WHY,
        endorsement_keys=WHY,
        manufacturers=WHY,
        firmware_versions=WHY,
    )
    appraise(claims(by="pinned-key", public=False, endorsement_key=None, nonce_checked=False), loose, now=NOW)


EK_UNBOUND = dataclasses.replace(EK_CLAIMS, activated=False)
OTHER_EK = dataclasses.replace(EK_CLAIMS, key=b"o" * 32)
REFUSALS = {
    "no nonce was compared": (claims(nonce_checked=False), policy(), FreshnessError),
    "another bank": (claims(bank="sha384"), policy(), RegisterSelectionError),
    "a register less was signed": (claims(registers(0, 4, 7)), policy(), RegisterSelectionError),
    "a register more was signed": (claims(registers(0, 4, 7, 8, 16)), policy(), RegisterSelectionError),
    "another register was signed": (claims(registers(0, 4, 8, 16)), policy(), RegisterSelectionError),
    "another value": (claims(PCRS | {7: b"x" * 32}), policy(), RegisterError),
    "the value of another register": (claims(PCRS | {7: PCRS[0]}), policy(), RegisterError),
    "a register that no log explains": (claims(), policy(quote=quotes(replayed=(0,))), RegisterError),
    "a key that the caller named": (claims(by="pinned-key"), policy(), SecurityModuleError),
    "no public area": (claims(public=False), policy(), AttributesError),
    "another attestation key": (claims(), policy(attestation_keys=("00" * 31 + "01",)), PlatformError),
    "another endorsement key": (claims(endorsement_key=OTHER_EK), policy(), PlatformError),
    "no endorsement key": (claims(endorsement_key=None), policy(), PlatformError),
    "an endorsement key that activated nothing": (claims(endorsement_key=EK_UNBOUND), policy(), PlatformError),
    "a maker that activated nothing": (
        claims(endorsement_key=EK_UNBOUND), policy(endorsement_keys=WHY), SecurityModuleError,
    ),
    "another maker": (claims(), policy(manufacturers=("id:00001014",)), SecurityModuleError),
    "another firmware": (claims(), policy(firmware_versions=("2019102300163637",)), FirmwareError),
}  # fmt: skip


@pytest.mark.parametrize(("found", "wanted", "error"), REFUSALS.values(), ids=REFUSALS.keys())
def test_a_tpm_is_refused_with(found, wanted, error):
    with pytest.raises(error) as refused:
        appraise(found, wanted, now=NOW)
    assert isinstance(refused.value, AppraisalError)
    require_defaults(found)


EMPTY = {
    "nothing": claims({}),
    "register 16": claims(registers(16)),
    "register 23": claims(registers(23)),
    "registers 16 and 23": claims(registers(16, 23)),
}


@pytest.mark.parametrize("found", EMPTY.values(), ids=EMPTY.keys())
def test_the_floor_refuses_a_quote_over(found):
    loose = policy(quote=quotes(selection=(0,), registers=WHY))
    for check in (require_floors, require_defaults, lambda made: appraise(made, loose, now=NOW)):
        with pytest.raises(RegisterSelectionError):
            check(found)


FORMATS = {
    "nonce = false": lambda: quotes(nonce=False),
    "no bank": lambda: quotes(banks=()),
    "SHA-1": lambda: quotes(banks=("sha256", "sha1")),
    "no selection": lambda: quotes(selection=()),
    "a selection out of order": lambda: quotes(selection=(4, 0, 7, 16)),
    "a selection with a register twice": lambda: quotes(selection=(0, 0, 4, 7)),
    "a selection with a register that there is not": lambda: quotes(selection=(0, 7, 24)),
    "a selection below zero": lambda: quotes(selection=(-1, 0, 7)),
    "a selection of nothing that proves anything": lambda: quotes(selection=(16, 23), registers=WHY),
    "register 16 as a reference": lambda: quotes(registers={"16": (HEX[16],)}),
    "register 23 as a reference": lambda: quotes(selection=(0, 23), registers={"23": (HEX[0],)}),
    "register 16 as explained": lambda: quotes(replayed=(16,)),
    "a reference that is not selected": lambda: quotes(registers={"8": (HEX[0],)}),
    "an explanation that is not selected": lambda: quotes(replayed=(8,)),
    "no explanation": lambda: quotes(replayed=()),
    "no references": lambda: quotes(registers={}),
    "a reference without values": lambda: quotes(registers={"7": ()}),
    "a reference of zeros for firmware": lambda: quotes(registers={"7": ("00" * 32,)}),
    "a reference of another size": lambda: quotes(registers={"7": ("ab" * 48,)}),
    "a reference in capitals": lambda: quotes(registers={"7": ("AB" * 32,)}),
    "a number in another spelling": lambda: quotes(registers={"07": (HEX[7],)}),
    "a number that there is not": lambda: quotes(registers={"24": (HEX[7],)}),
    "no root": lambda: policy(rooted_by=()),
    "a root that is not known": lambda: policy(rooted_by=("enrolment", "ek-certificate")),
    "Google's root": lambda: policy(rooted_by=("ak-certificate",)),
    "attributes = false": lambda: policy(attributes=False),
    "no attestation keys": lambda: policy(attestation_keys=()),
    "an attestation key of another size": lambda: policy(attestation_keys=("ab" * 20,)),
    "no endorsement keys": lambda: policy(endorsement_keys=()),
    "no makers": lambda: policy(manufacturers=()),
    "an empty maker": lambda: policy(manufacturers=("",)),
    "no firmware": lambda: policy(firmware_versions=()),
    "a firmware of another size": lambda: policy(firmware_versions=("2019",)),
    "no projects": lambda: google(projects=()),
    "no zones": lambda: google(zones=()),
    "no instances": lambda: google(instances=("",)),
    "no technologies": lambda: google(technologies=()),
    "a technology that is not known": lambda: google(technologies=("sev",)),
    "a firmware below zero": lambda: google(least_firmware=-1),
    "a security version below zero": lambda: google(least_security_version=-1),
    "production = false": lambda: google(production=False),
    "revocation = false": lambda: google(revocation=False),
}


@pytest.mark.parametrize("make", FORMATS.values(), ids=FORMATS.keys())
def test_no_policy_has(make):
    with pytest.raises(PolicyFormatError):
        make()


def test_zeros_are_a_reference_where_nothing_has_to_be_measured():
    quotes(selection=(7, 12), registers={"12": ("00" * 32,)})
    quotes(selection=(0, 16, 23), registers={"0": (HEX[0],)})


def test_a_policy_is_read_from_its_table():
    for made in (policy(), google()):
        assert record.from_json(type(made), record.to_json(made), error=PolicyFormatError) == made


# Google's.


def genuine(*, properties=None, nonce=NONCE, log=None, lists=()):
    extension = instance() if properties is None else instance(properties=properties)
    made = attestation(ak_cert=item(6, ak_certificate(AK, extension=extension)))
    if log is not None:
        made = attestation(quote(PCRS), event_log=log)
    return gcp_tpm.verify_files(
        made, lists, expectation=Expectation(nonce=nonce, report_data=None), now=NOW, anchors=(GCP_ROOT.der,)
    )


def google(*, quote=None, **changes):
    options = {
        "quote": quote or quotes(selection=(0, 4, 7, 10, 23), registers=WHY, replayed=(0,)),
        "projects": ("hospital",),
        "zones": ("europe-west4-a",),
        "instances": (str(2**63 + 1),),
        "technologies": ("amd-sev-snp", "intel-tdx"),
        "least_firmware": 7,
        "least_security_version": 3,
        "production": True,
        "revocation": WHY,
    } | changes
    return GcpTpmPolicy(**options)


def test_a_vtpm_of_googles_that_the_policy_names_is_accepted():
    appraise(genuine(), google(), now=NOW)
    registry.appraise("gcp-tpm/1", genuine(), google(), now=NOW)
    require_defaults(genuine())


def test_a_certificate_that_was_looked_up_is_accepted():
    lists = (revocation_list(GCP_INTERMEDIATE), revocation_list(GCP_ROOT))
    appraise(genuine(lists=lists), google(revocation=True), now=NOW)


def test_a_host_of_no_production_is_refused_even_without_a_policy():
    with pytest.raises(LifecycleError):
        require_defaults(genuine(properties=security(3, False)))
    require_defaults(genuine(properties=b""))
    require_floors(genuine(properties=security(3, False)))


LOOSE = {
    "quote": quotes(selection=(0, 4, 7, 10, 23), registers=WHY, nonce=WHY),
    "projects": WHY,
    "zones": WHY,
    "instances": WHY,
    "technologies": WHY,
    "least_firmware": WHY,
    "least_security_version": WHY,
    "production": WHY,
    "revocation": WHY,
}
NO_LOG = {**LOOSE, "quote": quotes(registers=WHY)}
GOOGLE = {
    "no nonce was compared": ({"nonce": None}, {"quote": quotes(selection=(0, 4, 7, 10, 23), registers=WHY)}, FreshnessError),
    "another selection": ({}, {"quote": quotes(selection=(0, 4, 7), registers=WHY)}, RegisterSelectionError),
    "another project": ({}, {"projects": ("clinic",)}, PlatformError),
    "another zone": ({}, {"zones": ("europe-west4-b",)}, PlatformError),
    "another instance": ({}, {"instances": ("1",)}, PlatformError),
    "another protection": ({}, {"technologies": ("intel-tdx",)}, PlatformInfoError),
    "no protection shown": ({"log": b""}, NO_LOG | {"technologies": ("amd-sev-snp",)}, PlatformInfoError),
    "an older firmware": ({}, {"least_firmware": 8}, FirmwareError),
    "no firmware shown": ({"log": b""}, NO_LOG | {"least_firmware": 1}, FirmwareError),
    "an older host": ({}, {"least_security_version": 4}, TcbError),
    "no version of the host": ({"properties": b""}, {"least_security_version": 1}, TcbError),
    "no version among others": ({"properties": security(None, True)}, {"least_security_version": 0}, TcbError),
    "a host of no production": ({"properties": security(3, False)}, {"production": True}, LifecycleError),
    "a host that does not say": ({"properties": b""}, {"production": True}, LifecycleError),
    "a host that does not say among others": ({"properties": security(3, None)}, {"production": True}, LifecycleError),
    "no revocation list": ({}, {"revocation": True}, RevocationStatusError),
}  # fmt: skip


@pytest.mark.parametrize(("made", "changes", "error"), GOOGLE.values(), ids=GOOGLE.keys())
def test_a_vtpm_of_googles_is_refused_with(made, changes, error):
    found = genuine(**made)
    appraise(found, google(**(NO_LOG if "log" in made else LOOSE)), now=NOW)
    with pytest.raises(error) as refused:
        appraise(found, google(**(LOOSE | changes)), now=NOW)
    assert isinstance(refused.value, AppraisalError)


def test_a_policy_is_of_its_own_kind():
    with pytest.raises(PolicyFormatError):
        appraise(claims(), google(), now=NOW)
    with pytest.raises(PolicyFormatError):
        appraise(genuine(), policy(), now=NOW)
    with pytest.raises(PolicyMissingError):
        registry.appraise("tpm/1", claims(), google(), now=NOW)
