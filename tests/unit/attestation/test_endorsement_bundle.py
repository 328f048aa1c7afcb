"""Bundles: one canonical form, nothing in them trusted, and the command that writes them."""

import base64
import dataclasses
import itertools
import json

import intel_world as intel
import nvidia_world as nvidia
import pytest
import sev_snp_world as amd
import typer
from cryptography import x509
from endorsement_world import (
    CHAIN,
    COLLATERAL,
    CRL,
    NOW_MS,
    RIM,
    STATUS,
    TURIN,
    VCEK,
    Reply,
    Service,
    amd_chain,
    collateral,
    crl,
    fetcher,
    pem,
    rim,
    status,
    tells_intel,
    vcek,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from confed import canonical
from confed.attestation.endorsement_provider import BundleProvider
from confed.attestation.endorsements import AmdVcek, Endorsement, IntelCollateral, decode_bundle, encode_bundle
from confed.attestation.endorsing.plausibility import examined
from confed.attestation.endorsing.vendors import VENDOR_HOSTS
from confed.attestation.evidence import Envelope, Expectation
from confed.attestation.vendor_files import kind_of, verify_vendor_files
from confed.cli import endorse
from confed.errors import (
    AttestationError,
    ConfigError,
    EndorsementFetchError,
    EndorsementFormatError,
    EndorsementMismatchError,
    MissingEndorsementError,
    MissingFileError,
    StaleEndorsementError,
)

DATA = {
    VCEK: vcek(VCEK),
    TURIN: vcek(TURIN),
    CHAIN: amd_chain(CHAIN),
    CRL: crl("ARK-Milan"),
    COLLATERAL: json.dumps(collateral(COLLATERAL)).encode(),
    RIM: rim(RIM),
    STATUS: status(STATUS),
}
HELD = tuple(examined(need, data, fetched_at=NOW_MS) for need, data in DATA.items())
BUNDLE = encode_bundle(HELD)


# The form


def test_a_bundle_holds_what_was_put_in_and_has_one_spelling():
    assert set(decode_bundle(BUNDLE)) == set(HELD)
    assert encode_bundle(decode_bundle(BUNDLE)) == BUNDLE
    assert encode_bundle(reversed(HELD)) == BUNDLE
    value = json.loads(BUNDLE)
    assert value["format"] == "confed-endorsements/1"
    assert {tuple(entry) for entry in value["entries"]} == {("bytes", "expires", "fetched_at", "kind", "need")}
    assert BUNDLE.startswith(b'{"entries":'), "confed evidence verify knows a bundle by this"


def test_an_empty_bundle_is_one():
    assert decode_bundle(encode_bundle(())) == ()


def edited(change):
    value = json.loads(BUNDLE)
    change(value)
    return canonical.encode(value)


def entry(**changes):
    def change(value):
        value["entries"][0].update(changes)

    return edited(change)


def of_kind(kind, **changes):
    def change(value):
        next(entry for entry in value["entries"] if entry["kind"] == kind)["need"].update(changes)

    return edited(change)


MALFORMED = {
    "nothing": b"",
    "half of it": BUNDLE[:-20],
    "a byte more": BUNDLE + b"\n",
    "another spelling": json.dumps(json.loads(BUNDLE)).encode(),
    "no JSON": b"PK\x03\x04",
    "a list": b"[]",
    "text": b'"bundle"',
    "great depth": b"[" * 100_000,
    "another format": edited(lambda value: value.update(format="confed-endorsements/2")),
    "a format of another type": edited(lambda value: value.update(format=1)),
    "no entries": edited(lambda value: value.pop("entries")),
    "entries of another type": edited(lambda value: value.update(entries={})),
    "a field more": edited(lambda value: value.update(signed_by="AMD")),
    "an entry of another type": edited(lambda value: value.update(entries=[1])),
    "an entry without its time": edited(lambda value: value["entries"][0].pop("fetched_at")),
    "an entry with a field more": entry(trusted=True),
    "an entry twice": edited(lambda value: value["entries"].append(value["entries"][0])),
    "more entries than a bundle has": edited(lambda value: value.update(entries=value["entries"][:1] * 513)),
    "a kind that is not known": entry(kind="amd-root"),
    "a kind of another type": entry(kind=None),
    "bytes that are no base64": entry(bytes="?"),
    "bytes with a line's end": entry(bytes="AAA=\n"),
    "bytes in another spelling": entry(bytes="AAB="),
    "bytes of another type": entry(bytes=[1]),
    "no bytes": entry(bytes=""),
    "a time below zero": entry(fetched_at=-1),
    "a time of another type": entry(fetched_at=True),
    "a time with a fraction": entry(expires=1.5),
    "an end beyond all times": entry(expires=2.0**60),
    "a need of another type": entry(need=7),
    "a need with a field more": of_kind("amd-crl", url="https://evil.example"),
    "a need that is none": of_kind("amd-crl", product="../x"),
    "a need with a number for text": of_kind("amd-crl", product=1),
}


@pytest.mark.parametrize("sentence", MALFORMED)
def test_a_malformed_bundle_is_refused(sentence):
    for read in (decode_bundle, BundleProvider):
        with pytest.raises(EndorsementFormatError):
            read(MALFORMED[sentence])


def test_a_bundle_beyond_its_bound_is_refused_before_it_is_read(monkeypatch):
    monkeypatch.setattr("confed.attestation.endorsements.BUNDLE_LIMIT_BYTES", len(BUNDLE) - 1)
    with pytest.raises(EndorsementFormatError, match="at most"):
        decode_bundle(BUNDLE)
    with pytest.raises(EndorsementFormatError, match="at most"):
        encode_bundle(HELD)


def test_more_entries_than_a_bundle_has_are_refused_before_one_is_read():
    with pytest.raises(EndorsementFormatError) as refused:
        decode_bundle(edited(lambda value: value.update(entries=[1] * 513)))
    assert refused.value.field == "bundle.entries"


def test_a_need_twice_is_not_written():
    with pytest.raises(EndorsementFormatError):
        encode_bundle((*HELD, HELD[0]))


def test_an_endorsement_has_bounds():
    for changes in ({"data": b""}, {"data": bytes(20 << 20)}, {"fetched_at": -1}, {"expires_at": 2**53}):
        with pytest.raises(EndorsementFormatError):
            dataclasses.replace(HELD[0], **changes)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_bundle_with_any_byte_changed_is_refused_or_holds_other_bytes(data):
    at = data.draw(st.integers(0, len(BUNDLE) - 1))
    changed = bytearray(BUNDLE)
    changed[at] ^= data.draw(st.integers(1, 255))
    try:
        found = decode_bundle(bytes(changed))
    except EndorsementFormatError:
        return
    assert set(found) != set(HELD)


@settings(max_examples=200, deadline=None)
@given(
    number=st.integers(1, 2**512 - 1),
    levels=st.tuples(*[st.integers(0, 255)] * 4),
    content=st.binary(min_size=1, max_size=300),
    times=st.tuples(st.integers(0, 2**53 - 1), st.integers(0, 2**53 - 1)),
    fmspc=st.integers(0, 2**48 - 1),
)
def test_every_endorsement_goes_through_a_bundle_unchanged(number, levels, content, times, fmspc):
    bootloader, tee, snp, microcode = levels
    needs = (
        AmdVcek(
            product="Genoa",
            hwid=f"{number:0128x}",
            bootloader=bootloader,
            tee=tee,
            snp=snp,
            microcode=microcode,
            fmc=None,
        ),
        IntelCollateral(tee="sgx", fmspc=f"{fmspc:012X}", ca="processor"),
    )
    held = [Endorsement(need=need, data=content, fetched_at=times[0], expires_at=times[1]) for need in needs]
    assert set(decode_bundle(encode_bundle(held))) == set(held)


# Nothing in it is trusted


def swapped(need, data):
    return encode_bundle([dataclasses.replace(item, data=data) if item.need == need else item for item in HELD])


WRONG = {
    "another chip's certificate": (
        swapped(VCEK, vcek(dataclasses.replace(VCEK, hwid="11" * 64))),
        EndorsementMismatchError,
    ),
    "another product's list": (swapped(CRL, crl("ARK-Genoa")), EndorsementMismatchError),
    "another platform's collateral": (
        swapped(COLLATERAL, json.dumps(collateral(dataclasses.replace(COLLATERAL, fmspc="00806F050000"))).encode()),
        EndorsementMismatchError,
    ),
    "another manifest": (swapped(RIM, rim(RIM, version="550.144.04")), EndorsementMismatchError),
    "another certificate's status": (
        swapped(STATUS, status(dataclasses.replace(STATUS, serial="1"))),
        EndorsementMismatchError,
    ),
    "something else": (swapped(STATUS, b"something else"), EndorsementFormatError),
    "an end that is not its own": (
        encode_bundle([dataclasses.replace(HELD[0], expires_at=HELD[0].expires_at + 1)]),
        EndorsementFormatError,
    ),
}


@pytest.mark.parametrize("sentence", WRONG)
def test_an_entry_that_is_not_what_it_says_is_refused(sentence):
    bundle, error = WRONG[sentence]
    with pytest.raises(error):
        BundleProvider(bundle)


def envelope(quote):
    return Envelope(profile="tdx/1", evidence=quote, binding=b"")


TDX = IntelCollateral(tee="tdx", fmspc="90C06F000000", ca="platform")
TDX_HELD = examined(TDX, intel.good(), fetched_at=intel.NOW_MS)


def test_a_provider_gives_what_its_bundle_holds():
    provider = BundleProvider(encode_bundle([TDX_HELD, *HELD[:1]]))
    assert provider.endorsements_for(envelope(intel.td_quote()), now_ms=intel.NOW_MS) == (intel.good(),)


def test_a_bundle_is_read_from_a_file(tmp_path):
    file = tmp_path / "bundle.json"
    with pytest.raises(MissingFileError):
        BundleProvider.load(file)
    file.write_bytes(encode_bundle([TDX_HELD]))
    provider = BundleProvider.load(file)
    assert provider.endorsements_for(envelope(intel.td_quote()), now_ms=intel.NOW_MS) == (intel.good(),)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(EndorsementFormatError):
        BundleProvider.load(file)


def test_what_a_bundle_does_not_hold_is_missing():
    other = intel.td_quote(
        options={"chain": intel.pem(intel.pck_certificate(fmspc=intel.OTHER_FMSPC), intel.PLATFORM, intel.ROOT)}
    )
    with pytest.raises(MissingEndorsementError):
        BundleProvider(encode_bundle([TDX_HELD])).endorsements_for(envelope(other), now_ms=intel.NOW_MS)
    with pytest.raises(MissingEndorsementError):
        BundleProvider(BUNDLE).endorsements_for(
            Envelope(profile="sev-snp/1", evidence=amd.REPORT, binding=b""), now_ms=0
        )


def test_what_has_expired_is_stale_whatever_the_bundle_says():
    provider = BundleProvider(encode_bundle([TDX_HELD]))
    ends = TDX_HELD.expires_at
    assert provider.endorsements_for(envelope(intel.td_quote()), now_ms=ends)
    with pytest.raises(StaleEndorsementError):
        provider.endorsements_for(envelope(intel.td_quote()), now_ms=ends + 1)


def test_evidence_without_needs_takes_an_empty_bundle():
    evidence = Envelope(profile="aws-nitro/1", evidence=b"x", binding=b"")
    assert BundleProvider(encode_bundle(())).endorsements_for(evidence, now_ms=NOW_MS) == ()


# The command


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    service = Service().start(tmp_path_factory.mktemp("service"))
    yield service
    service.stop()


@pytest.fixture
def command(running, monkeypatch):
    """Run the command against the replaying service, at a time of the test's."""
    running.replies.clear()
    running.asked.clear()
    asked = {}

    def loopback(*, hosts, pccs, pccs_authorities):
        asked.update(hosts=hosts, pccs=pccs, pccs_authorities=pccs_authorities)
        return fetcher(running, hosts=(*hosts, *([pccs] if pccs else [])))

    monkeypatch.setattr(endorse, "vendor_fetcher", loopback)
    app = typer.Typer()
    app.command()(endorse.endorse)

    def run(*arguments, now=intel.NOW):
        monkeypatch.setattr(endorse.time, "time_ns", lambda: int(now.timestamp()) * 10**9)
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    run.asked = asked
    return run


@pytest.mark.parametrize("text", [False, True])
def test_a_quote_is_endorsed_and_verified_with_the_bundle_alone(running, command, tmp_path, text):
    quote = intel.td_quote()
    (tmp_path / "quote").write_bytes(quote.hex().encode() + b"\n" if text else quote)
    tells_intel(running, TDX, intel.collateral_fields())
    out = tmp_path / "bundle.json"
    result = command("--tee", "tdx", "--evidence", tmp_path / "quote", "--out", out)
    assert result.exit_code == 0, result.exception
    assert "1 endorsements" in result.output
    assert "2026-06-21" in result.output
    (held,) = decode_bundle(out.read_bytes())
    assert held.need == TDX
    claims = verify_vendor_files(
        kind_of("tdx"),
        quote,
        [out.read_bytes()],
        expectation=Expectation(nonce=None, report_data=None),
        now=intel.NOW,
        anchors=intel.ANCHORS,
    )
    assert claims
    assert command.asked == {"hosts": VENDOR_HOSTS, "pccs": None, "pccs_authorities": None}


def test_a_bundle_goes_to_the_output_where_no_file_is_named(running, command, tmp_path):
    (tmp_path / "quote").write_bytes(intel.td_quote())
    tells_intel(running, TDX, intel.collateral_fields())
    result = command("--tee", "tdx", "--evidence", tmp_path / "quote")
    assert result.exit_code == 0
    assert decode_bundle(result.stdout_bytes)[0].need == TDX
    assert "1 endorsements" in result.stderr


def test_a_report_is_endorsed_by_amd_and_a_hint_spares_the_chip(running, command, tmp_path):
    tcb = amd.TCB["Genoa"]
    base = "kdsintf.amd.com/vcek/v1/Genoa"
    chain = (x509.load_der_x509_certificate(der) for der in (amd.ASK, amd.ROOTS[1]))
    running.tells(f"{base}/{amd.CHIP.hex()}?blSPL={tcb[0]}&teeSPL={tcb[1]}&snpSPL={tcb[6]}&ucodeSPL={tcb[7]}", amd.VCEK)
    running.tells(f"{base}/cert_chain", pem(*chain))
    running.tells(f"{base}/crl", amd.crl())
    (tmp_path / "report").write_bytes(amd.REPORT)
    (tmp_path / "vcek").write_bytes(amd.VCEK)
    out = tmp_path / "bundle.json"
    assert command("--tee", "snp", "--evidence", tmp_path / "report", "--out", out, now=amd.NOW).exit_code == 0
    assert {item.need.KIND for item in decode_bundle(out.read_bytes())} == {"amd-vcek", "amd-chain", "amd-crl"}
    claims = verify_vendor_files(
        kind_of("snp"),
        amd.REPORT,
        [out.read_bytes()],
        expectation=Expectation(nonce=None, report_data=None),
        now=amd.NOW,
        anchors=amd.ROOTS,
    )
    assert claims.revocation_checked
    arguments = ("--endorsement", tmp_path / "vcek", "--out", out)
    assert command("--tee", "snp", "--evidence", tmp_path / "report", *arguments, now=amd.NOW).exit_code == 0
    assert {item.need.KIND for item in decode_bundle(out.read_bytes())} == {"amd-chain", "amd-crl"}


def test_a_gpu_is_endorsed_with_its_chain_beside_it(running, command, tmp_path):
    manifests = {
        "NV_GPU_DRIVER_GH100_550.90.07": nvidia.DRIVER_RIM,
        "NV_GPU_VBIOS_1010_0200_882_96009F0001": nvidia.VBIOS_RIM,
    }
    for name, manifest in manifests.items():
        running.tells(f"rim.attestation.nvidia.com/v1/rim/{name}", rim_reply(name, manifest))
    links = {
        subject.certificate.serial_number: (subject, issuer)
        for path in (nvidia.GPU.authorities, nvidia.SIGNER.path)
        for subject, issuer in itertools.pairwise(path)
    }
    running.tells(
        "ocsp.ndis.nvidia.com/",
        Reply(of=lambda body: nvidia.make_response(*links[x509.ocsp.load_der_ocsp_request(body).serial_number])),
    )
    (tmp_path / "report").write_bytes(nvidia.REPORT)
    (tmp_path / "chain").write_bytes(nvidia.GPU.pem)
    out = tmp_path / "bundle.json"
    common = ("--tee", "nvidia-gpu", "--evidence", tmp_path / "report")
    result = command(*common, "--endorsement", tmp_path / "chain", "--out", out, now=nvidia.NOW)
    assert result.exit_code == 0, result.exception
    claims = verify_vendor_files(
        kind_of("nvidia-gpu"),
        nvidia.REPORT,
        [nvidia.GPU.pem, out.read_bytes()],
        expectation=Expectation(nonce=nvidia.NONCE, report_data=None),
        now=nvidia.NOW,
        anchors=nvidia.ANCHORS,
    )
    assert [manifest.revocation for manifest in claims.devices[0].manifests] == ["good", "good"]
    assert isinstance(command(*common, now=nvidia.NOW).exception, MissingEndorsementError)


def rim_reply(name, manifest):
    value = {"id": name, "rim": base64.b64encode(manifest).decode(), "sha256": canonical.digest(manifest).upper()}
    return json.dumps(value).encode()


def test_evidence_that_needs_nothing_gives_an_empty_bundle(command, running, tmp_path):
    (tmp_path / "document").write_bytes(b"\x84")
    result = command("--tee", "nitro", "--evidence", tmp_path / "document", "--out", tmp_path / "bundle")
    assert result.exit_code == 0
    assert "needs no endorsements" in result.output
    assert decode_bundle((tmp_path / "bundle").read_bytes()) == ()
    assert running.asked == []


def test_a_pccs_is_asked_where_it_is_named(command, running, tmp_path):
    (tmp_path / "quote").write_bytes(intel.td_quote())
    pccs = "pccs.clinic.example:8443"
    tells_intel(running, TDX, intel.collateral_fields(), host=pccs)
    common = ("--tee", "tdx", "--evidence", tmp_path / "quote", "--out", tmp_path / "bundle")
    assert command(*common, "--pccs", pccs, "--pccs-ca", running.authorities).exit_code == 0
    assert command.asked == {"hosts": VENDOR_HOSTS, "pccs": pccs, "pccs_authorities": running.authorities}
    assert {address.partition("/")[0] for address in running.asked} == {pccs}


def test_only_hosts_that_are_named_are_asked(command, running, tmp_path):
    (tmp_path / "quote").write_bytes(intel.td_quote())
    result = command("--tee", "tdx", "--evidence", tmp_path / "quote", "--source-host", "kdsintf.amd.com")
    assert isinstance(result.exception, EndorsementFetchError)
    assert running.asked == []


def test_no_bundle_is_written_unless_it_holds_everything(command, running, tmp_path):
    (tmp_path / "quote").write_bytes(intel.td_quote())
    tells_intel(running, TDX, intel.collateral_fields())
    running.tells("certificates.trustedservices.intel.com/IntelSGXRootCA.der", Reply(status=500))
    result = command("--tee", "tdx", "--evidence", tmp_path / "quote", "--out", tmp_path / "bundle")
    assert isinstance(result.exception, EndorsementFetchError)
    assert result.exception.exit_code == 3
    assert not (tmp_path / "bundle").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["quote"]


def test_mistakes_of_a_user_are_named(command, tmp_path):
    quote = tmp_path / "quote"
    quote.write_bytes(intel.td_quote())
    (tmp_path / "large").write_bytes(bytes(5 << 20))
    (tmp_path / "document").write_bytes(b"\x84")
    for arguments, error in (
        (("--tee", "sev", "--evidence", quote), ConfigError),
        (("--tee", "tdx", "--evidence", tmp_path / "none"), MissingFileError),
        (("--tee", "tdx", "--evidence", quote, "--endorsement", tmp_path), MissingFileError),
        (("--tee", "tdx", "--evidence", tmp_path / "large"), ConfigError),
        (("--tee", "tdx", "--evidence", tmp_path / "document"), AttestationError),
        (("--tee", "nitro", "--evidence", tmp_path / "document", "--out", tmp_path / "no" / "bundle"), ConfigError),
    ):
        assert isinstance(command(*arguments).exception, error)
