import dataclasses
import datetime
import difflib
import re
import tomllib
import types
import typing

import pytest

from confed.attestation.policy import document as documents
from confed.attestation.policy import registry
from confed.attestation.policy.ready import ready_names, ready_policy
from confed.errors import PolicyExpiredError, UsageError
from confed.manifest import Unchecked

NAMES = ready_names()
LAST_DAY = datetime.datetime(2027, 3, 31, 23, 59, tzinfo=datetime.UTC)


def document(name):
    return documents.load(ready_policy(name))


def fields_of(kind, seen=()):
    """Every field of a policy class, and of the records within it, as (class, field, type)."""
    for field in dataclasses.fields(kind):
        hint = typing.get_type_hints(kind)[field.name]
        yield kind, field, hint
        for inner in records_in(hint):
            if inner is not Unchecked and inner not in seen:
                yield from fields_of(inner, (*seen, inner))


def records_in(hint):
    if dataclasses.is_dataclass(hint):
        return [hint]
    return [found for part in typing.get_args(hint) for found in records_in(part)]


def may_be_none(hint):
    return hint is types.NoneType or any(may_be_none(part) for part in typing.get_args(hint))


KINDS = {rules.policy.__name__: rules.policy for rules in registry.RULES.values()}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_no_policy_has_an_optional_field(kind):
    for owner, field, hint in fields_of(kind):
        where = f"{owner.__name__}.{field.name}"
        assert field.default is dataclasses.MISSING, where
        assert field.default_factory is dataclasses.MISSING, where
        assert not may_be_none(hint), where


def test_every_profile_has_its_rules():
    assert set(registry.RULES) == {
        "sev-snp/1", "tdx/1", "sgx/1", "aws-nitro/1", "tpm/1", "gcp-tpm/1", "azure-snp/1", "azure-tdx/1",
        "nvidia-gpu/1", "arm-cca/1",
    }  # fmt: skip
    for profile, rules in registry.RULES.items():
        assert profile == rules.policy.PROFILE


def test_there_is_a_ready_policy_for_every_cloud_and_card_that_we_promise():
    assert {
        "sev-snp", "sev-snp-milan", "tdx", "sgx", "nitro", "azure-snp", "azure-tdx", "gcp-snp-milan", "gcp-tdx", "gcp-tpm",
        "nvidia-h100", "nvidia-h200", "nvidia-blackwell",
    } <= set(NAMES)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_ready_policy_loads_and_goes_into_a_manifest_and_back(name):
    found = document(name)
    assert found.name == name
    assert documents.from_table(found.profile, found.to_table()) == found


@pytest.mark.parametrize("name", NAMES)
def test_a_ready_policy_says_where_its_values_come_from_and_expires(name):
    found = document(name)
    assert all(len(source) > 20 for source in found.sources)
    assert "Expires 2027-03-31" in ready_policy(name).decode()
    found.require_current(LAST_DAY)
    with pytest.raises(PolicyExpiredError):
        found.require_current(LAST_DAY + datetime.timedelta(minutes=2))


def dates_in(value, key=""):
    if isinstance(value, dict):
        for name, item in value.items():
            yield from dates_in(item, name)
    elif isinstance(value, list):
        for item in value:
            yield from dates_in(item, key)
    elif isinstance(value, str) and re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", value):
        yield key, value


@pytest.mark.parametrize("name", NAMES)
def test_no_value_in_a_ready_policy_outlives_the_policy(name):
    table = tomllib.loads(ready_policy(name).decode())
    for key, date in dates_in(table):
        assert date <= (table["issued"] if key == "issued" else table["expires"]), key


@pytest.mark.parametrize("name", NAMES)
def test_a_ready_policy_names_no_code_of_anybody(name):
    policy = tomllib.loads(ready_policy(name).decode())["policy"]
    for key in ("measurements", "pcr0", "mr_td", "code"):
        if key in policy:
            assert set(policy[key]) == {"unchecked"}


@pytest.mark.parametrize("name", NAMES)
def test_lines_of_a_ready_policy_s_remarks_are_short(name):
    for line in ready_policy(name).decode().splitlines():
        assert not line.startswith("#") or len(line) <= 120
        assert re.match(r"#( |$)", line) or not line.startswith("#")


def test_only_the_policies_that_say_so_accept_milan():
    for name in NAMES:
        policy = tomllib.loads(ready_policy(name).decode())["policy"]
        products = policy.get("hardware", policy).get("products", [])
        assert ("Milan" in products) == ("milan" in name), name


def test_a_cloud_s_policy_for_a_processor_s_own_evidence_is_the_processor_s():
    assert document("gcp-tdx").policy == document("tdx").policy
    assert document("gcp-snp-milan").policy == document("sev-snp-milan").policy


def test_an_unknown_name_is_told_with_the_nearest_one():
    with pytest.raises(UsageError, match="nearest: nitro"):
        ready_policy("nitr")
    with pytest.raises(UsageError):
        ready_policy("../document")
    assert difflib.get_close_matches("nitr", NAMES, n=1)
