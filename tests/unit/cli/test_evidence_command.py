"""``confed evidence``: as an engineer types it. Exit codes, the JSON line, every kind, and a clear line for each mistake."""

import base64
import datetime
import functools
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from confed.attestation.vendor_files import KINDS, verify_vendor_files
from confed.cli import evidence, main
from confed.cli.plain import plain
from confed.keybroker.identity import OwnerHome

sys.path.insert(0, str(Path(__file__).parents[1] / "attestation"))
import azure_world
import cca_world
import gcp_world
import intel_world
import nitro_world
import nvidia_world
import sev_snp_world
import tpm_world

GENUINE, REFUSED, NOT_GENUINE, USAGE = 0, 3, 4, 2


@functools.cache
def cases():
    """Return for each kind: genuine evidence, its endorsements, when to judge, the roots, and what it is bound to."""
    milan = sev_snp_world
    return {
        "snp": (milan.REPORT, (milan.VCEK, milan.ASK), milan.NOW, milan.ROOTS, {"report-data": milan.REPORT_DATA}),
        "tdx": (
            intel_world.td_quote(), (intel_world.good(),), intel_world.NOW, intel_world.ANCHORS,
            {"report-data": intel_world.REPORT_DATA},
        ),
        "sgx": (
            intel_world.sgx_quote(), (intel_world.good("SGX"),), intel_world.NOW, intel_world.ANCHORS,
            {"report-data": intel_world.REPORT_DATA},
        ),
        "nitro": (
            nitro_world.good(), (), nitro_world.TIME, (nitro_world.ROOT,),
            {"nonce": nitro_world.NONCE, "report-data": nitro_world.REPORT_DATA},
        ),
        "tpm": (
            tpm_world.files_json(), (tpm_world.spki(tpm_world.AK, Encoding.PEM),), tpm_world.NOW, None,
            {"nonce": tpm_world.NONCE},
        ),
        "azure-snp": (
            azure_world.file(azure_world.version_1(azure_world.snp())), (milan.ASK,), azure_world.NOW,
            azure_world.SNP_ANCHORS, {"nonce": azure_world.NONCE},
        ),
        "azure-tdx": (
            azure_world.file(azure_world.version_1(azure_world.tdx())), azure_world.TDX_ENDORSEMENTS,
            intel_world.NOW, azure_world.TDX_ANCHORS, {"nonce": azure_world.NONCE},
        ),
        "gcp-tpm": (
            gcp_world.attestation(), (gcp_world.GCP_INTERMEDIATE.der,), tpm_world.NOW, (gcp_world.GCP_ROOT.der,),
            {"nonce": tpm_world.NONCE},
        ),
        "nvidia-gpu": (
            nvidia_world.REPORT, (nvidia_world.GPU.pem,), nvidia_world.NOW, nvidia_world.ANCHORS,
            {"nonce": nvidia_world.NONCE},
        ),
        "cca": (
            cca_world.token(), (cca_world.KEY,), intel_world.NOW, None, {"report-data": cca_world.CHALLENGE},
        ),
    }  # fmt: skip


@pytest.fixture
def confed(monkeypatch, capsys):
    """Run the command line as the shell does; give its exit code and what it wrote."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["confed", "evidence", *(str(argument) for argument in arguments)])
        code = 0
        try:
            main.run()
        except SystemExit as ended:
            code = ended.code or 0
        found = capsys.readouterr()
        assert "Traceback" not in found.out + found.err
        return SimpleNamespace(code=code, out=found.out, err=found.err)

    return run


@pytest.fixture
def files(tmp_path):
    """Write contents to files of their own, and give the paths."""

    def write(*contents):
        paths = []
        for content in contents:
            path = tmp_path / f"file-{len(list(tmp_path.iterdir()))}"
            path.write_bytes(content)
            paths.append(path)
        return paths

    return write


@pytest.fixture
def verify(confed, files, monkeypatch):
    """Verify evidence of a kind under its own world's roots; give the exit code and the verdict."""

    def run(kind, *more, data=None, endorsements=None, at=None, both=True):
        genuine, its_own, time_, roots, _ = cases()[kind]
        monkeypatch.setattr(evidence, "verify_vendor_files", functools.partial(verify_vendor_files, anchors=roots))
        (path,) = files(genuine if data is None else data)
        options = [
            part
            for one in files(*(its_own if endorsements is None else endorsements))
            for part in ("--endorsement", one)
        ]
        at = int(time_.timestamp()) + 1 if at is None else at
        arguments = ("verify", "--tee", kind, "--evidence", path, *options, "--at", at, *more)
        line = confed(*arguments, "--json")
        told = confed(*arguments) if both else None
        assert told is None or told.code == line.code
        if line.code == USAGE:
            assert line.out == ""
            assert len(line.err.strip().splitlines()) == 1
            return line
        assert line.err == ""
        verdict = json.loads(line.out)
        assert set(verdict) == {"genuine", "acceptable", "code", "reason", "claims"}
        assert line.out.count("\n") == 1
        expected = {GENUINE: (True, True), REFUSED: (True, False), NOT_GENUINE: (False, False)}[line.code]
        assert (verdict["genuine"], verdict["acceptable"]) == expected
        assert (verdict["claims"] is not None) == verdict["genuine"]
        assert told is None or verdict["code"] in told.out or verdict["acceptable"]
        return SimpleNamespace(code=line.code, verdict=verdict, told=told and told.out)

    return run


def bound(kind):
    return [part for name, value in cases()[kind][4].items() for part in (f"--{name}", value.hex())]


# Every kind.


def test_there_is_a_case_of_every_kind():
    assert list(cases()) == list(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_genuine_evidence_of_every_kind_is_told_so_with_its_claims(verify, kind):
    found = verify(kind, *bound(kind))
    assert (found.code, found.verdict["code"]) == (GENUINE, "ok"), found.verdict
    assert "genuine and acceptable" in found.told
    assert found.verdict["claims"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_not_asked_for_is_told_to_be_unchecked(verify, kind):
    assert "unchecked" in verify(kind).told


@pytest.mark.parametrize("kind", KINDS)
def test_evidence_that_is_bound_to_something_else_is_not_genuine(verify, kind):
    for name, value in cases()[kind][4].items():
        assert verify(kind, f"--{name}", bytes([value[0] ^ 1, *value[1:]]).hex()).code == NOT_GENUINE
        assert verify(kind, f"--{name}", (value + b"\x01").hex()).code == NOT_GENUINE


@pytest.mark.parametrize("kind", KINDS)
def test_evidence_that_was_cut_or_lengthened_is_not_genuine(verify, kind):
    data = cases()[kind][0]
    for changed in (b"", data[: len(data) // 2], data[:-2], data + b"\x01\x02"):
        assert verify(kind, data=changed).code == NOT_GENUINE


@pytest.mark.parametrize("kind", [kind for kind in KINDS if cases()[kind][3] is not None])
def test_the_vendors_roots_are_pinned_so_no_other_is_trusted(confed, files, kind):
    data, endorsements, time_, _, _ = cases()[kind]
    options = [part for one in files(*endorsements) for part in ("--endorsement", one)]
    found = confed(
        "verify", "--tee", kind, "--evidence", *files(data), *options, "--at", int(time_.timestamp()) + 1, "--json"
    )
    assert found.code == NOT_GENUINE
    assert not json.loads(found.out)["genuine"]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if cases()[kind][1] and kind != "gcp-tpm"])
def test_without_endorsements_it_says_what_is_missing(verify, kind):
    found = verify(kind, endorsements=())
    assert found.code == NOT_GENUINE
    if found.verdict["code"] == "missing-endorsement":
        assert "confed evidence endorse" in found.told


@pytest.mark.parametrize("kind", KINDS)
def test_evidence_of_another_kind_is_not_genuine(verify, kind):
    for other in KINDS:
        if other != kind and {kind, other} != {"tpm", "gcp-tpm"}:
            assert verify(kind, data=cases()[other][0], both=False).code == NOT_GENUINE, other


@pytest.mark.parametrize("kind", KINDS)
def test_an_endorsement_that_is_none_is_not_overlooked(verify, kind):
    for junk in (b"", b"junk", b'{"entries":[', b"-----BEGIN CERTIFICATE-----\n", b"\x30\x82\x00\x05abcde"):
        assert verify(kind, endorsements=(junk, *cases()[kind][1]), both=False).code == NOT_GENUINE
    # A download that failed leaves an empty file: wherever it stands, it is told.
    assert verify(kind, endorsements=(*cases()[kind][1], b""), both=False).code == NOT_GENUINE


@pytest.mark.parametrize("kind", ["snp", "tdx", "sgx", "nitro", "azure-snp", "azure-tdx", "gcp-tpm", "nvidia-gpu"])
@pytest.mark.parametrize("at", [0, 253_402_300_799])
def test_a_time_outside_validity_is_not_genuine(verify, kind, at):
    assert verify(kind, at=at).code == NOT_GENUINE


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_no_change_of_one_bit_is_a_traceback(verify, kind, position, bit):
    data = bytearray(cases()[kind][0])
    data[int(position * len(data))] ^= 1 << bit
    assert verify(kind, data=bytes(data), both=False).code in {GENUINE, REFUSED, NOT_GENUINE}


# Forms of files.


def pem(der):
    return x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM)


SNP = (sev_snp_world.VCEK, sev_snp_world.ASK)
FORMS = {
    "PEM": [pem(one) for one in SNP],
    "PEM with the line ends of Windows": [pem(one).replace(b"\n", b"\r\n") for one in SNP],
    "one file of both": [pem(SNP[0]) + pem(SNP[1])],
    "in another order": [SNP[1], SNP[0]],
    "one of them twice": [*SNP, pem(SNP[0])],
}


@pytest.mark.parametrize("endorsements", FORMS.values(), ids=FORMS.keys())
def test_certificates_are_read_as_vendors_and_tools_write_them(verify, endorsements):
    assert verify("snp", endorsements=endorsements).code == GENUINE


@pytest.mark.parametrize("kind", ["snp", "tdx", "sgx", "nvidia-gpu"])
def test_binary_evidence_is_read_in_hexadecimal_too(verify, kind):
    data = cases()[kind][0]
    for text in (data.hex(), data.hex() + "\n", data.hex().upper() + "\r\n"):
        assert verify(kind, data=text.encode(), both=False).code == GENUINE
    assert verify(kind, data=data.hex().encode()[:-1]).code == NOT_GENUINE


# Acceptable?


def test_debug_evidence_is_genuine_and_refused_and_with_a_broken_signature_not_genuine(verify):
    zeros = nitro_world.document(pcrs={index: bytes(48) for index in range(16)})
    found = verify("nitro", data=zeros)
    assert (found.code, found.verdict["code"]) == (REFUSED, "debug")
    assert "genuine, refused" in found.told
    broken = zeros[:-1] + bytes([zeros[-1] ^ 1])
    assert verify("nitro", data=broken).code == NOT_GENUINE


def test_a_ready_policy_is_named_and_decides(verify):
    found = verify("nitro", *bound("nitro"), "--policy", "nitro")
    assert (found.code, found.verdict["code"]) == (GENUINE, "ok")
    assert "to policy nitro" in found.told
    found = verify("snp", *bound("snp"), "--policy", "sev-snp")
    assert (found.code, found.verdict["code"]) == (REFUSED, "revocation-status")


def test_a_policy_for_another_kind_accepts_nothing(verify):
    found = verify("nitro", "--policy", "sev-snp")
    assert (found.code, found.verdict["code"]) == (REFUSED, "profile-not-allowed")
    assert verify("nitro", "--policy", "sev-snp", data=b"junk").code == NOT_GENUINE


def test_an_expired_policy_accepts_nothing(verify):
    later = int(datetime.datetime(2040, 1, 1, tzinfo=datetime.UTC).timestamp())
    assert verify("tpm", "--policy", "sev-snp", at=later).code == REFUSED


def test_a_policy_is_signed_and_believed_only_with_its_signature(confed, verify, tmp_path):
    owner = OwnerHome.create("hospital", environment="simulation", now_ms=time.time_ns() // 1_000_000)
    key = owner.party.identity.hex()
    owner.close()
    text = evidence.ready.ready_policy("nitro")
    file = tmp_path / "policy.toml"
    file.write_bytes(text)
    assert confed("sign", file, "--owner", "hospital").code == 0
    assert verify("nitro", "--policy", file, "--policy-key", key).code == GENUINE
    # No verdict on evidence: exit code 3 would say that it is genuine.
    assert verify("nitro", "--policy", file, "--policy-key", "00" * 32).code == USAGE
    file.write_bytes(text + b"\n")
    assert verify("nitro", "--policy", file, "--policy-key", key).code == USAGE
    assert verify("nitro", "--policy", file).code == GENUINE
    assert confed("policy", file, "--key", key).code == REFUSED
    assert confed("policy", file).code == 0


# Mistakes.

NOTHING = "/no/such/file"
MISTAKES = {
    "a kind that there is not": ("--tee", "sev-snp", "--evidence", __file__),
    "no evidence file": ("--tee", "snp", "--evidence", NOTHING),
    "a folder for evidence": ("--tee", "snp", "--evidence", "/"),
    "no endorsement file": ("--tee", "snp", "--evidence", __file__, "--endorsement", NOTHING),
    "a nonce that is no hexadecimal": ("--tee", "snp", "--evidence", __file__, "--nonce", "xyz"),
    "half a byte of nonce": ("--tee", "snp", "--evidence", __file__, "--nonce", "abc"),
    "a nonce with a prefix": ("--tee", "snp", "--evidence", __file__, "--nonce", "0xab"),
    "a nonce that was not set": ("--tee", "snp", "--evidence", __file__, "--nonce", ""),
    "data that were not set": ("--tee", "snp", "--evidence", __file__, "--report-data", " "),
    "data in another script": ("--tee", "snp", "--evidence", __file__, "--report-data", "١٢"),
    "a time before time": ("--tee", "snp", "--evidence", __file__, "--at", "-1"),
    "a time after time": ("--tee", "snp", "--evidence", __file__, "--at", "253402300800"),
    "a time in milliseconds": ("--tee", "snp", "--evidence", __file__, "--at", "1795219200000000"),
    "no policy file": ("--tee", "snp", "--evidence", __file__, "--policy", NOTHING),
    "a policy that is none": ("--tee", "snp", "--evidence", __file__, "--policy", __file__),
    "a key without a policy": ("--tee", "snp", "--evidence", __file__, "--policy-key", "00" * 32),
    "a policy without its signature": (
        "--tee", "snp", "--evidence", __file__, "--policy", "sev-snp", "--policy-key", "00" * 32,
    ),
}  # fmt: skip


@pytest.mark.parametrize("arguments", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_one_clear_line_and_two(confed, arguments):
    for more in ((), ("--json",)):
        found = confed("verify", *arguments, *more)
        assert found.code == USAGE
        assert found.out == ""
        assert found.err.startswith("error: ")
        assert found.err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [(), ("--tee", "snp"), ("--evidence", __file__), ("--tee", "snp", "--evidence", __file__, "--at", "noon")],
)
def test_an_option_that_is_missing_or_wrong_is_two(confed, arguments):
    assert confed("verify", *arguments).code == USAGE


def test_a_file_without_end_costs_no_more_than_the_bound(confed):
    if not Path("/dev/zero").exists():
        pytest.skip("no device without end here")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = confed("verify", "--tee", "snp", "--evidence", "/dev/zero")
    assert found.code == USAGE
    assert "at most" in found.err
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 512 * 1024


def test_evidence_may_come_through_a_pipe(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "confed.cli.main", "evidence", "verify", "--tee", "nitro", "--evidence", "/dev/stdin",
         "--json"],
        input=nitro_world.good(), capture_output=True, check=False, timeout=120, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == NOT_GENUINE
    assert json.loads(done.stdout)["code"] == "trust-anchor"


# What a stranger wrote is shown, not obeyed.


@pytest.mark.parametrize("text", ["\x1b[2J", "\x9b2J", "a\nb", "a\rb", "\u202eabc", "\x00", "\x7f"])
def test_what_does_not_print_is_shown_as_an_escape(text):
    assert plain(text).isprintable()
    assert plain("plain Text, ö, 中: [bold]") == "plain Text, ö, 中: [bold]"


def test_a_claim_cannot_write_to_the_terminal(verify):
    found = verify("nitro", data=nitro_world.document(module_id="\x1b[2J[bold]\r\ngenuine"))
    assert "\x1b" not in found.told
    assert "\r" not in found.told


def test_a_reason_cannot_write_to_the_terminal(confed, files):
    (path,) = files(json.dumps([{"arch": "\x1b[2J\nok", "nonce": "\x1b[31m"}]).encode())
    told = confed("verify", "--tee", "nvidia-gpu", "--evidence", path)
    assert "\x1b" not in told.out
    assert len(told.out.strip().splitlines()) == 1


def test_a_long_claim_is_cut_for_people_and_whole_in_json(verify):
    found = verify("nitro", data=nitro_world.document(public_key=b"k" * 1000))
    assert (b"k" * 1000).hex() in json.dumps(found.verdict["claims"])
    assert (b"k" * 1000).hex() not in found.told


def test_base64_of_a_report_is_not_taken_for_the_report(verify):
    assert verify("snp", data=base64.b64encode(sev_snp_world.REPORT)).code == NOT_GENUINE
