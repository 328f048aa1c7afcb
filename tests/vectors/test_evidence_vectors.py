"""``confed evidence verify`` on every set of real evidence: the exit code and the reason that an engineer gets."""

import datetime
import json
import sys

import pytest
from folder import FOLDER, needs_vectors, sets_of

from confed.cli import main

pytestmark = needs_vectors

SETS = sets_of("snp", "tdx", "sgx", "nitro", "gpu", "vtpm", "cca")
# Collateral of the trust domains that the Azure evidence holds.
DOMAINS = {"vtpm/trustee-az-tdx-v0": "vtpm/trustee-az-tdx", "vtpm/lunal-az-tdx-tpm": "vtpm/lunal-az-tdx"}
NOW = 1_795_219_200  # 21 November 2026, for sets whose certificates are long-lived.
SOFTWARE_TPM = 1_796_083_200  # 1 December 2026: its certificates were made a few days before.
PINNED_KEY = ("vtpm/trustee-tpm", "vtpm/neg-pcr-index-confusion")

# What is not here is genuine and acceptable.
VERDICTS = {
    "snp/virtee-milan": (3, "alias-check"),
    "snp/trustee-milan": (3, "alias-check"),
    "snp/trustee-milan-wrong-vcek-legacy": (4, "certificate-chain"),
    "snp/trustee-milan-wrong-vcek-new": (4, "certificate-chain"),
    "snp/trustee-milan-vlek": (3, "privilege-level"),
    "snp/go-sev-guest-milan": (3, "debug"),
    "sgx/trustee-occlum": (3, "debug"),
    "tdx/dcap-qvl-outdated": (3, "tcb-status"),
    "tdx/go-tdx-guest-spr": (4, "trailing-bytes"),
    "tdx/automata-solana": (3, "tcb-status"),
    "tdx/trustee-quote-4": (3, "debug"),
    "tdx/lunal-live": (4, "missing-endorsement"),
    "vtpm/trustee-az-tdx": (3, "attributes"),
    "vtpm/trustee-az-tdx-v0": (3, "attributes"),
    "nitro/evervault-debug": (3, "debug"),
    "nitro/evervault-cert-debug": (3, "debug"),
    "nitro/dstack-attest-dbg": (3, "debug"),
    "vtpm/trustee-tpm": (4, "trust-anchor"),
    "vtpm/neg-pcr-index-confusion": (4, "pcr-digest"),
    "gpu/sdk-hopper-badsig": (4, "evidence-signature"),
    "gpu/trustee-case2": (4, "certificate-chain"),
    "gpu/trustee-case4": (4, "certificate-chain"),
    "cca/veraison": (4, "algorithm"),
}


def middle(validity):
    start, end = (datetime.datetime.fromisoformat(text).timestamp() for text in validity)
    return int((start + end) / 2)


def command(name):
    """Return the command for a set, or nothing where it is no evidence by itself (an event log)."""
    found = SETS[name]
    match found["kind"]:
        case "snp":
            options = {"evidence": "report", "endorsement": ["vek"], "report-data": "report_data"}
            return given("snp", found, options, middle(found["vek_validity"]))
        case "tdx" | "sgx":
            collateral = ["collateral"] if "collateral" in found else []
            options = {"evidence": "quote", "endorsement": collateral, "report-data": "report_data"}
            return given(found["kind"], found, options, found.get("verify_at", NOW))
        case "nitro":
            nonce = {"nonce": "nonce"} if found["nonce"] else {}
            return given("nitro", found, {"evidence": "doc", **nonce}, found["verify_at"])
        case "gpu":
            chain = [] if found["chain"] == "(inline)" else ["chain"]
            return given("nvidia-gpu", found, {"evidence": "report", "endorsement": chain, "nonce": "nonce"}, NOW)
        case "cca":
            key = ("--endorsement", FOLDER / "cca/trustee/cpak-pub.json")
            return (*given("cca", found, {"evidence": "evidence"}, NOW), *key)
        case _:
            return security_module(name, found)


def security_module(name, found):
    options = {"evidence": "evidence", "nonce": "quote_nonce"}
    if found.get("hw") == "snp":
        return given("azure-snp", found, options, middle(found["vcek_validity"]))
    if found.get("hw") == "tdx":
        domain = SETS[DOMAINS[name]]
        collateral = ("--endorsement", FOLDER / domain["collateral"])
        return (*given("azure-tdx", found, options, domain["verify_at"]), *collateral)
    if name in PINNED_KEY:
        return given("tpm", found, {"evidence": "evidence"}, SOFTWARE_TPM)
    if name == "vtpm/gce-cos-85-no-nonce":
        return given("gcp-tpm", found, {"evidence": "evidence", "endorsement": ["intermediate"]}, NOW)
    if name == "vtpm/swtpm-local":
        folder = FOLDER / found["evidence"]
        parts = [part for file in ("q.sig", "q.pcrs", "ak.pub") for part in ("--endorsement", folder / file)]
        nonce = ("--nonce", found["quote_nonce"], "--at", SOFTWARE_TPM)
        return ("--tee", "tpm", "--evidence", folder / "q.msg", *parts, *nonce)
    return None


def given(kind, found, options, at):
    """Return options by name; the values are keys of the set, of files for evidence and endorsements."""
    parts = ["--tee", kind, "--at", at]
    for option, key in options.items():
        for one in key if isinstance(key, list) else [key]:
            value = FOLDER / found[one] if option in {"evidence", "endorsement"} else found[one]
            parts += [f"--{option}", value]
    return tuple(parts)


CASES = [name for name in SETS if command(name) is not None]


@pytest.fixture
def verify(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["confed", "evidence", "verify", *(str(argument) for argument in arguments)])
        code = 0
        try:
            main.run()
        except SystemExit as ended:
            code = ended.code or 0
        found = capsys.readouterr()
        assert found.err == ""
        return code, found.out

    return run


def test_there_is_evidence_of_every_kind():
    kinds = {command(name)[1] for name in CASES}
    assert kinds == {
        "snp", "tdx", "sgx", "nitro", "tpm", "azure-snp", "azure-tdx", "gcp-tpm", "nvidia-gpu", "cca",
    }  # fmt: skip
    assert set(VERDICTS) <= set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_every_set_gets_its_exit_code_and_its_reason(verify, name):
    expected = VERDICTS.get(name, (0, "ok"))
    code, line = verify(*command(name), "--json")
    verdict = json.loads(line)
    assert set(verdict) == {"genuine", "acceptable", "code", "reason", "claims"}
    assert (code, verdict["code"]) == expected
    assert (verdict["genuine"], verdict["acceptable"]) == (code != 4, code == 0)
    told, text = verify(*command(name))
    assert told == code
    assert {0: "genuine and acceptable", 3: "genuine, refused", 4: "not genuine"}[code] in text
    if name.startswith("nitro/"):
        # Told by the index of the set itself, not by this file.
        assert (code == 0) == SETS[name]["expected"].startswith("ACCEPT")


@pytest.mark.parametrize("name", [name for name in CASES if VERDICTS.get(name, (0, ""))[0] != 4])
def test_another_nonce_or_other_data_make_it_not_genuine(verify, name):
    arguments = list(command(name))
    for option in ("--nonce", "--report-data"):
        if option in arguments:
            at = arguments.index(option)
            del arguments[at : at + 2]
        code, line = verify(*arguments, option, "5a" * 32, "--json")
        assert (code, json.loads(line)["genuine"]) == (4, False)
