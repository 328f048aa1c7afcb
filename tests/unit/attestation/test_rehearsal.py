import dataclasses

import pytest
from attestation_world import CLAIMS, DAY, MANIFEST, MEASUREMENT, NOW, POLICY
from hypothesis import given, settings
from hypothesis import strategies as st

from confed.attestation import rehearsal
from confed.attestation.appraisal import appraise
from confed.attestation.rehearsal import UNCHECKED, Outcome, Verdict, rehearse
from confed.attestation.verifier import DeviceClaims
from confed.errors import (
    AliasCheckError,
    ConfedError,
    MigrationError,
    PolicyFormatError,
    TcbError,
    TcbStatusError,
)
from confed.manifest import PRODUCTION, SIMULATION

OTHER = "7" * 64


def of(claims=CLAIMS, **changes) -> tuple[Verdict, ...]:
    return rehearse(
        claims,
        **{"policy": POLICY, "environment": SIMULATION, "manifest_digest": MANIFEST, "now_ms": NOW, **changes},
    )


def codes(verdicts: tuple[Verdict, ...]) -> dict[str, str]:
    return {verdict.claim: verdict.code for verdict in verdicts if verdict.outcome is Outcome.REFUSED}


def outcomes(verdicts: tuple[Verdict, ...]) -> set[Outcome]:
    return {verdict.outcome for verdict in verdicts}


def test_what_a_broker_accepts_is_accepted_claim_by_claim():
    verdicts = of()
    assert [verdict.claim for verdict in verdicts] == list(rehearsal.CLAIMS)
    assert outcomes(verdicts) == {Outcome.OK}


def test_a_simulated_tee_in_production_is_refused_for_what_it_is_and_for_nothing_else():
    claims = dataclasses.replace(CLAIMS, environment=PRODUCTION)
    assert codes(of(claims, environment=PRODUCTION)) == {"evidence class": "simulated-in-production"}


REFUSED = {
    "one identity": ({"shared": True, "hardware_rooted": True, "evidence_class": "tdx"}, "shared-instance"),
    "environment": ({"environment": "elsewhere"}, "configuration"),
    "debug": ({"debug": True}, "debug"),
    "profile": ({"profile": "tdx/1"}, "profile-not-allowed"),
    "configuration": ({"configuration": OTHER}, "configuration"),
    "measurement": ({"measurement": OTHER}, "measurement"),
    "age": ({"issued_at": NOW - DAY - 1}, "stale-evidence"),
}


@pytest.mark.parametrize(("claim", "changes", "code"), [(claim, *case) for claim, case in REFUSED.items()])
def test_one_claim_is_refused_and_the_others_are_judged_all_the_same(claim, changes, code):
    environment = PRODUCTION if claim == "one identity" else SIMULATION
    changes = {"environment": environment, **changes}
    verdicts = of(dataclasses.replace(CLAIMS, **changes), environment=environment)
    # Only what is no simulated TEE has to have a policy of its own kind.
    missing = {"simulated/1: tee.appraisal.simulated/1": "policy-missing"} if claim == "one identity" else {}
    assert codes(verdicts) == {claim: code, **missing}
    assert outcomes(verdicts) == {Outcome.OK, Outcome.REFUSED}


def test_everything_that_is_wrong_is_told_at_once():
    claims = dataclasses.replace(
        CLAIMS, shared=True, debug=True, environment="elsewhere", profile="tdx/1", configuration=OTHER,
        measurement=OTHER, issued_at=0,
    )  # fmt: skip
    found = codes(of(claims, environment=PRODUCTION))
    assert found == {"evidence class": "simulated-in-production"} | {
        claim: code for claim, (_, code) in REFUSED.items()
    }


def test_a_refusal_says_what_was_expected_and_what_was_found():
    verdict = next(one for one in of(dataclasses.replace(CLAIMS, measurement=OTHER)) if one.claim == "measurement")
    assert (verdict.expected, verdict.got) == (MEASUREMENT[:16], OTHER[:16])


def test_a_floor_that_cannot_be_mended_ends_it_and_the_rest_was_not_reached():
    def check(claims, **rest):
        appraise(claims, **rest)
        raise AliasCheckError("PLATFORM_INFO", expected="ALIAS_CHECK_COMPLETE", got="0x0")

    verdicts = of(dataclasses.replace(CLAIMS, measurement=OTHER), check=check)
    assert codes(verdicts) == {"measurement": "measurement", "PLATFORM_INFO": "alias-check"}
    assert outcomes(verdicts) == {Outcome.REFUSED, Outcome.NOT_REACHED}
    assert verdicts[-1] == Verdict(
        claim="PLATFORM_INFO", outcome=Outcome.REFUSED, code="alias-check", expected="ALIAS_CHECK_COMPLETE", got="0x0"
    )


def test_a_claim_that_stays_refused_when_it_is_mended_ends_it():
    claims = dataclasses.replace(CLAIMS, measurement="0" * 64)
    verdicts = of(claims)
    assert codes(verdicts) == {"measurement": "measurement", "tee.measurements": "empty-allow-list"}
    assert Outcome.OK not in outcomes(verdicts)


def document(**fields) -> dict:
    return {"format": "confed-appraisal/1", "profile": "simulated/1", "policy": fields}


class Played:
    """An appraisal policy: ``status`` and ``tcb.least`` must be met, ``migration`` may not be left unchecked."""

    def __init__(self, *, status: str, tcb: int, migratable: bool = False) -> None:
        self.status, self.tcb, self.migratable = status, tcb, migratable

    def __call__(self, claims, *, policy, **rest) -> None:
        appraise(dataclasses.replace(claims, details=None), policy=policy, **rest)
        if claims.details is None:
            return
        fields = policy.appraisal["simulated/1"]["policy"]
        if fields["migration"] == UNCHECKED:
            raise PolicyFormatError("policy.migration", expected="true or false", got="a table")
        if self.migratable and not fields["migration"]:
            raise MigrationError("migration", expected="none", got="some")
        if fields["status"] != UNCHECKED and self.status not in fields["status"]:
            raise TcbStatusError("status", expected=fields["status"], got=self.status)
        tcb = fields["tcb"]
        if tcb not in (UNCHECKED, {}) and tcb["least"] != UNCHECKED and self.tcb < tcb["least"]:
            raise TcbError("tcb", expected=tcb["least"], got=self.tcb)


WITH_POLICY = dataclasses.replace(
    POLICY,
    appraisal={"simulated/1": document(migration=False, status=["up-to-date"], tcb={"least": 4, "other": 1})},
)
FIELDS = [
    "simulated/1: migration",
    "simulated/1: status",
    "simulated/1: tcb.least",
    "simulated/1: tcb.other",
    "simulated/1: tcb",
]


DETAILED = dataclasses.replace(CLAIMS, details="what this kind says")


def test_the_fields_of_an_appraisal_policy_are_judged_too():
    verdicts = of(DETAILED, policy=WITH_POLICY, check=Played(status="up-to-date", tcb=4))
    assert [verdict.claim for verdict in verdicts] == [*rehearsal.CLAIMS, *FIELDS]
    assert outcomes(verdicts) == {Outcome.OK}


def test_every_field_of_an_appraisal_policy_that_refuses_is_found():
    verdicts = of(dataclasses.replace(DETAILED, debug=True), policy=WITH_POLICY, check=Played(status="revoked", tcb=3))
    assert codes(verdicts) == {"debug": "debug", "simulated/1: status": "tcb-status", "simulated/1: tcb.least": "tcb"}
    assert {v.claim for v in verdicts if v.outcome is Outcome.OK} >= {"simulated/1: migration", "measurement"}


def test_a_field_that_may_not_be_left_unchecked_is_not_blamed_and_leaves_the_rest_of_its_kind():
    check = Played(status="revoked", tcb=4, migratable=True)
    verdicts = of(dataclasses.replace(DETAILED, measurement=OTHER), policy=WITH_POLICY, check=check)
    assert codes(verdicts) == {"measurement": "measurement", "simulated/1: migration": "migration"}
    not_reached = {v.claim for v in verdicts if v.outcome is Outcome.NOT_REACHED}
    assert not_reached == {*FIELDS} - {"simulated/1: migration"}


def test_a_missing_appraisal_policy_is_named_and_the_rest_is_judged():
    verdicts = of(dataclasses.replace(DETAILED, debug=True))
    assert codes(verdicts) == {"debug": "debug", "simulated/1: tee.appraisal.simulated/1": "policy-missing"}
    assert outcomes(verdicts) == {Outcome.OK, Outcome.REFUSED}


GPU = DeviceClaims(profile="nvidia-gpu/1", details="what GPUs say")


def test_devices_that_nobody_asked_for_are_refused_and_the_rest_is_judged():
    verdicts = of(dataclasses.replace(CLAIMS, devices=(GPU,), measurement=OTHER))
    assert codes(verdicts) == {
        "measurement": "measurement", "devices": "device-count",
        "nvidia-gpu/1: tee.appraisal.nvidia-gpu/1": "policy-missing",
    }  # fmt: skip
    assert outcomes(verdicts) == {Outcome.OK, Outcome.REFUSED}


def test_devices_that_are_asked_for_and_not_there_are_refused():
    policy = dataclasses.replace(POLICY, devices=("nvidia-gpu/1",), appraisal={"nvidia-gpu/1": document(mode="on")})
    verdicts = of(policy=policy)
    assert codes(verdicts) == {"devices": "device-count"}
    assert {v.claim for v in verdicts if v.outcome is Outcome.NOT_REACHED} == {"nvidia-gpu/1: mode"}


def test_a_check_that_never_ends_is_left():
    count = iter(range(10**6))

    def check(claims, **rest):
        raise TcbError("tcb", expected=next(count), got=0)

    policy = dataclasses.replace(POLICY, appraisal={"simulated/1": document(tcb=1)})
    verdicts = of(policy=policy, check=check)
    assert Outcome.OK not in outcomes(verdicts)
    assert next(count) < 1000


def test_a_policy_is_not_changed_by_looking_at_it():
    before = repr(WITH_POLICY)
    of(policy=WITH_POLICY, check=Played(status="revoked", tcb=3))
    assert repr(WITH_POLICY) == before


WRONG = st.fixed_dictionaries(
    {},
    optional={
        "shared": st.booleans(),
        "debug": st.booleans(),
        "environment": st.sampled_from(["", SIMULATION, PRODUCTION]),
        "profile": st.sampled_from(["simulated/1", "tdx/1"]),
        "configuration": st.sampled_from([MANIFEST, OTHER, ""]),
        "measurement": st.sampled_from([MEASUREMENT, OTHER]),
        "issued_at": st.sampled_from([NOW, 0, NOW + DAY]),
        "hardware_rooted": st.booleans(),
        "evidence_class": st.sampled_from(["simulated", "tdx"]),
    },
)


@settings(max_examples=300, deadline=None)
@given(WRONG, st.sampled_from([SIMULATION, PRODUCTION, "test"]))
def test_the_verdicts_are_a_broker_s(changes, environment):
    claims = dataclasses.replace(CLAIMS, **changes)
    arguments = {"policy": POLICY, "environment": environment, "manifest_digest": MANIFEST, "now_ms": NOW}
    found = codes(rehearse(claims, **arguments))
    refusal = ""
    try:
        appraise(claims, **arguments)
    except ConfedError as error:
        refusal = error.code
    assert (refusal in found.values()) if refusal else (found == {})
