"""Azure's confidential VMs under roots that the test makes: every link that can break, with its class."""

import base64
import contextlib
import dataclasses
import hashlib
import json
import struct

import azure_world as world
import intel_world as intel
import pytest
import sev_snp_world as amd
from attestation_world import BINDING
from azure_world import (
    NONCE,
    NOW,
    PCRS,
    REMOVED,
    SNP_ANCHORS,
    SNP_ENDORSEMENTS,
    TDX_ANCHORS,
    TDX_ENDORSEMENTS,
    USER_DATA,
    VM_ID,
    base64url,
    digest,
    file,
    hcl,
    jwk,
    quote_message,
    runtime,
    sign,
    snp,
    snp_report,
    tdx,
    tpm_key,
    verify_snp,
    verify_tdx,
    version_0,
    version_1,
)
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from confed import canonical, record
from confed.attestation.evidence import Envelope, Expectation
from confed.attestation.tee import azure
from confed.attestation.tee.azure_evidence import AzureEvidence, read_files
from confed.attestation.tee.azure_hcl import Isolation, parse_report
from confed.attestation.tee.tpm_evidence import configuration_value, measurement_of, nonce_of
from confed.attestation.verifier import ExpectedBinding, Registry
from confed.errors import (
    AlgorithmError,
    AttestationError,
    BindingMismatchError,
    CertificateChainError,
    CertificateValidityError,
    EndorsementFormatError,
    EndorsementMismatchError,
    EventLogError,
    EvidenceFormatError,
    EvidenceSignatureError,
    EvidenceSizeError,
    EvidenceVersionError,
    KeyBindingError,
    MissingClaimError,
    MissingEndorsementError,
    NonceError,
    PcrDigestError,
    StaleEndorsementError,
    TrailingBytesError,
    TrustAnchorError,
)

SNP, TDX = snp(), tdx()


def test_genuine_evidence_gives_its_three_parts():
    for found in (verify_snp(SNP), verify_tdx(TDX)):
        assert (found.runtime.secure_boot, found.runtime.tpm_enabled, found.runtime.console_enabled) == (
            True,
            True,
            True,
        )
        assert (found.runtime.interactive_console_enabled, found.runtime.filtered_devices_allowed) == (False, False)
        assert (found.runtime.vm_id, found.runtime.user_data, found.runtime.unknown) == (VM_ID, USER_DATA, ())
        assert {register.number: register.value for register in found.tpm.registers} == PCRS
        assert (found.tpm.nonce, found.tpm.nonce_checked) == (NONCE, True)
        assert (found.tpm.rooted_by, found.tpm.hardware_rooted) == ("hardware-report", True)
        json.dumps(record.to_json(found))
    assert verify_snp(SNP).hardware.report.measurement == amd.MEASUREMENT
    assert verify_tdx(TDX).hardware.report.mr_td == b"\x7d" * 48


def test_what_the_paravisor_does_not_say_is_none():
    older = {name: REMOVED for name in world.SETTINGS if name not in {"secure-boot", "tpm-enabled"}}
    found = verify_snp(snp(data=runtime(settings=older, **{"user-data": REMOVED}))).runtime
    assert (found.console_enabled, found.interactive_console_enabled, found.tpm_persisted) == (None, None, None)
    assert (found.vm_id, found.root_certificate_thumbprint, found.user_data) == ("", "", b"")


def test_settings_that_are_not_known_are_told_by_name():
    data = runtime(settings={"ipmi-enabled": True, "tpm-version": "1.38"}, extra=[1])
    assert verify_snp(snp(data=data)).runtime.unknown == ("extra", "ipmi-enabled", "tpm-version")


@pytest.mark.parametrize(("hash_type", "name"), [(1, "sha256"), (2, "sha384"), (3, "sha512")])
def test_runtime_data_may_be_hashed_with_what_the_header_says(hash_type, name):
    data = runtime()
    report = amd.report(report_data=digest(data, name))
    assert verify_snp(snp(data=data, report=report, hcl_changes={"hash_type": hash_type}))


def test_a_report_of_version_1_and_any_number_of_zeros_after_it_is_read():
    assert verify_snp(snp(hcl_changes={"version": 1, "pad": 0}))


def test_a_quote_may_be_over_some_registers_and_without_nonce():
    some = {number: PCRS[number] for number in (0, 4, 7, 15)}
    found = verify_snp(snp(pcrs=some, nonce=b""), nonce=None)
    assert [register.number for register in found.tpm.registers] == [0, 4, 7, 15]
    assert found.tpm.nonce_checked is False


def swapped():
    return PCRS | {0: PCRS[1], 1: PCRS[0]}


DATA = runtime()
OTHER_DATA = runtime(settings={"secure-boot": False})
UNBOUND = dataclasses.replace
REFUSED = {
    # 1. the paravisor's report
    "no report": (UNBOUND(SNP, hcl_report=b""), EvidenceFormatError),
    "a report above its bound": (snp(hcl_changes={"pad": 20_000}), EvidenceSizeError),
    "another signature": (snp(hcl_changes={"signature": b"HCLB"}), EvidenceFormatError),
    "another request": (snp(hcl_changes={"request": 1}), EvidenceFormatError),
    "a status": (snp(hcl_changes={"status": 1}), EvidenceFormatError),
    "reserved bytes": (snp(hcl_changes={"reserved": b"\x01" + bytes(11)}), EvidenceFormatError),
    "another version": (snp(hcl_changes={"version": 3}), EvidenceVersionError),
    "another version of the runtime data": (snp(hcl_changes={"data_version": 2}), EvidenceVersionError),
    "a report type that is not known": (snp(hcl_changes={"kind": 3}), EvidenceVersionError),
    "a report of TDX": (snp(hcl_changes={"kind": 4}), EvidenceVersionError),
    "no hash": (snp(hcl_changes={"hash_type": 0}), AlgorithmError),
    "a hash that is not known": (snp(hcl_changes={"hash_type": 4}), AlgorithmError),
    "another hash than was used": (snp(hcl_changes={"hash_type": 2}), KeyBindingError),
    "a report size that is not its own": (snp(hcl_changes={"total": 1300}), EvidenceFormatError),
    "a data size that is not its own": (snp(hcl_changes={"data_size": 1000}), EvidenceFormatError),
    "runtime data beyond the end": (snp(hcl_changes={"size": 9999}), EvidenceFormatError),
    "runtime data cut short": (snp(hcl_changes={"size": 100}), TrailingBytesError),
    "bytes after the report": (UNBOUND(SNP, hcl_report=SNP.hcl_report[:-1] + b"\x01"), TrailingBytesError),
    # runtime data
    "runtime data above its bound": (snp(data=runtime(extra="x" * 9000)), EvidenceSizeError),
    "runtime data that is no JSON": (snp(data=b"keys"), EvidenceFormatError),
    "runtime data that is no text": (snp(data=b'{"keys": "\xff"}'), EvidenceFormatError),
    "runtime data that is a list": (snp(data=b"[]"), EvidenceFormatError),
    "runtime data that is deep": (snp(data=b"[" * 8000), EvidenceFormatError),
    "a number that is none": (snp(data=b'{"keys": NaN}'), EvidenceFormatError),
    "half of a surrogate pair": (snp(data=runtime(settings={"\ud800": 1})), EvidenceFormatError),
    "a key twice": (snp(data=DATA[:-1] + b',"keys":[]}'), EvidenceFormatError),
    "a setting twice": (snp(data=DATA.replace(b'"secure-boot":true', b'"secure-boot":false,"secure-boot":true')), EvidenceFormatError),
    "no keys": (snp(data=runtime(keys=REMOVED)), MissingClaimError),
    "no settings": (snp(data=runtime(**{"vm-configuration": REMOVED})), MissingClaimError),
    "settings in a list": (snp(data=runtime(**{"vm-configuration": []})), EvidenceFormatError),
    "no word on secure boot": (snp(data=runtime(settings={"secure-boot": REMOVED})), MissingClaimError),
    "no word on the TPM": (snp(data=runtime(settings={"tpm-enabled": REMOVED})), MissingClaimError),
    "a setting by number": (snp(data=runtime(settings={"secure-boot": 1})), EvidenceFormatError),
    "a null setting": (snp(data=runtime(settings={"interactive-console-enabled": None})), EvidenceFormatError),
    "an identifier by number": (snp(data=runtime(settings={"vmUniqueId": 1})), EvidenceFormatError),
    "an identifier that is long": (snp(data=runtime(settings={"vmUniqueId": "x" * 257})), EvidenceFormatError),
    "user data by number": (snp(data=runtime(**{"user-data": 1})), EvidenceFormatError),
    "user data of 32 bytes": (snp(data=runtime(**{"user-data": "ab" * 32})), EvidenceFormatError),
    "user data that is no hexadecimal": (snp(data=runtime(**{"user-data": "x" * 128})), EvidenceFormatError),
    # the attestation key
    "an empty list of keys": (snp(data=runtime(keys=[])), EvidenceFormatError),
    "keys in an object": (snp(data=runtime(keys=jwk())), EvidenceFormatError),
    "too many keys": (snp(data=runtime(keys=[jwk(n="")] * 17)), EvidenceFormatError),
    "a key that is text": (snp(data=runtime(keys=["HCLAkPub"])), EvidenceFormatError),
    "no attestation key": (snp(data=runtime(keys=[jwk(kid="HCLEkPub")])), KeyBindingError),
    "two attestation keys": (snp(data=runtime(keys=[jwk(), jwk(tpm_key("other"))])), KeyBindingError),
    "a key that encrypts": (snp(data=runtime(keys=[jwk(key_ops=["encrypt"])])), KeyBindingError),
    "a key that signs and encrypts": (snp(data=runtime(keys=[jwk(key_ops=["sign", "encrypt"])])), KeyBindingError),
    "a key of another kind": (snp(data=runtime(keys=[jwk(kty="EC")])), KeyBindingError),
    "a key without modulus": (snp(data=runtime(keys=[jwk(n=REMOVED)])), EvidenceFormatError),
    "a modulus in base64": (snp(data=runtime(keys=[jwk(n="+/" * 171)])), EvidenceFormatError),
    "a modulus by number": (snp(data=runtime(keys=[jwk(n=7)])), EvidenceFormatError),
    "a modulus of one letter too many": (snp(data=runtime(keys=[jwk(n=jwk()["n"] + "AAA")])), EvidenceFormatError),
    "a modulus with another last letter": (snp(data=runtime(keys=[jwk(n=jwk()["n"][:-1] + "_")])), EvidenceFormatError),
    "a modulus with zeros before it": (snp(data=runtime(keys=[jwk(n=base64url(b"\x00" + bytes(range(1, 256))))])), AlgorithmError),
    "a key of 1024 bits": (snp(data=runtime(keys=[jwk(rsa.generate_private_key(65537, 1024))])), AlgorithmError),  # noqa: S505
    "a key with exponent 3": (snp(data=runtime(keys=[jwk(e="Aw")])), AlgorithmError),
    "a modulus that nobody can sign for": (
        snp(data=runtime(keys=[jwk(n=base64url(b"\xff" * 255 + b"\x00"))])), KeyBindingError,
    ),
    # 2. the hardware
    "a report that nobody signed": (snp(signed=False), EvidenceSignatureError),
    "a report of another key": (snp(key=amd.ec_key("another")), EvidenceSignatureError),
    "a report of another chip": (snp(chip_id=b"\x07" * 64), EndorsementMismatchError),
    "a report that is zeros": (snp(report=bytes(1184)), EvidenceVersionError),
    # 3. the binding
    "runtime data that the hardware did not sign": (snp(data=OTHER_DATA, report=snp_report(DATA)), KeyBindingError),
    "runtime data in another spelling": (snp(data=DATA + b" ", report=snp_report(DATA)), KeyBindingError),
    "report data with something after the hash": (
        snp(report=amd.report(report_data=digest(DATA)[:32] + b"\x01" * 32)), KeyBindingError,
    ),
    "report data of zeros": (snp(report=amd.report(report_data=bytes(64))), KeyBindingError),
    "a report that the guest asked for": (snp(vmpl=2), KeyBindingError),
    "a report that the host asked for": (snp(vmpl=0xFFFFFFFF), KeyBindingError),
    # 4. the quote
    "a quote of another key": (snp(signature=sign(quote_message(), tpm_key("other"))), KeyBindingError),
    "a quote of the endorsement key": (snp(signature=sign(quote_message(), tpm_key("EK"))), KeyBindingError),
    "a signature of zeros": (snp(signature=bytes(256)), KeyBindingError),
    "a signature cut short": (snp(signature=sign(quote_message())[:-1]), AlgorithmError),
    "a message that no TPM made": (snp(message=quote_message(magic=0xFF544348)), EvidenceFormatError),
    "a message that is no quote": (snp(message=quote_message(kind=0x8017)), EvidenceFormatError),
    "bytes after the quote": (snp(message=quote_message() + b"\x00"), TrailingBytesError),
    "a quote of a bank of SHA-1": (snp(message=quote_message(bank=0x0004)), PcrDigestError),
    "registers that change places": (snp(message=quote_message(), pcrs=swapped()), PcrDigestError),
    "a register with another value": (snp(message=quote_message(), pcrs=PCRS | {7: bytes(32)}), PcrDigestError),
    "a register that was not signed": (snp(message=quote_message(numbers=range(23))), PcrDigestError),
    "a register that is left out": (
        snp(message=quote_message(), pcrs={number: PCRS[number] for number in range(23)}), PcrDigestError,
    ),
    "PCR16 presented as PCR11": (
        snp(
            message=quote_message(numbers=[*range(11), 16]),
            pcrs={number: PCRS[number] for number in range(11)} | {11: PCRS[16]},
        ),
        PcrDigestError,
    ),
    "a register of 20 bytes": (snp(message=quote_message(), pcrs=PCRS | {0: bytes(20)}), PcrDigestError),
    # 5.
    "another nonce": (snp(nonce=b"another"), NonceError),
    "no nonce": (snp(nonce=b""), NonceError),
}  # fmt: skip


@pytest.mark.parametrize("sentence", REFUSED)
def test_evidence_of_snp_is_refused_with(sentence):
    evidence, error = REFUSED[sentence]
    with pytest.raises(AttestationError) as caught:
        verify_snp(evidence)
    assert type(caught.value) is error


TDX_REFUSED = {
    "a report of SNP": (tdx(hcl_changes={"kind": 2}), EvidenceVersionError),
    "a quote that is none": (tdx(quote=b"quote"), EvidenceFormatError),
    "no quote": (tdx(quote=b""), EvidenceFormatError),
    "a quote of SGX": (tdx(quote=intel.sgx_quote()), EvidenceVersionError),
    "a quote of another key": (tdx(options={"bound_key": intel.OTHER_KEY}), KeyBindingError),
    "runtime data that the hardware did not sign": (
        tdx(data=OTHER_DATA, quote=intel.td_quote(report_data=digest(DATA))), KeyBindingError,
    ),
    "report data with something after the hash": (
        tdx(quote=intel.td_quote(report_data=digest(DATA)[:32] + b"\x01" * 32)), KeyBindingError,
    ),
    "a TPM quote of another key": (UNBOUND(TDX, signature=sign(TDX.quote, tpm_key("other"))), KeyBindingError),
    "registers that change places": (tdx(message=quote_message(), pcrs=swapped()), PcrDigestError),
    "another nonce": (tdx(nonce=b"another"), NonceError),
}  # fmt: skip


@pytest.mark.parametrize("sentence", TDX_REFUSED)
def test_evidence_of_tdx_is_refused_with(sentence):
    evidence, error = TDX_REFUSED[sentence]
    with pytest.raises(AttestationError) as caught:
        verify_tdx(evidence)
    assert type(caught.value) is error


ENDORSED = {
    "no certificate": ({"endorsements": ()}, MissingEndorsementError),
    "a certificate of another product": (
        {"endorsements": (amd.vek("Milan"), amd.authority("Milan"))},
        EndorsementMismatchError,
    ),
    "an endorsement that is none": ({"endorsements": (b"certificate",)}, EndorsementFormatError),
    "another root": ({"anchors": (amd.root(owner="another"),)}, CertificateChainError),
    "no root": ({"anchors": ()}, TrustAnchorError),
    "Intel's root": ({"anchors": TDX_ANCHORS}, TrustAnchorError),
    "an anchor that is no certificate": ({"anchors": (b"root",)}, EndorsementFormatError),
    "a day past expiry": ({"now": amd.END + amd.DAY}, CertificateValidityError),
    "a day before validity": ({"now": amd.START - amd.DAY}, CertificateValidityError),
    "an event log that is none": ({"event_logs": (b"log",)}, EvidenceFormatError),
    "two event logs": ({"event_logs": (b"log", b"log")}, EvidenceFormatError),
}


@pytest.mark.parametrize("sentence", ENDORSED)
def test_evidence_is_refused_under(sentence):
    options, error = ENDORSED[sentence]
    with pytest.raises(AttestationError) as caught:
        verify_snp(SNP, **options)
    assert type(caught.value) is error


def test_evidence_of_tdx_is_refused_without_collateral_root_or_time():
    for options, error in (
        ({"endorsements": ()}, MissingEndorsementError),
        ({"endorsements": (b"{}",)}, EndorsementFormatError),
        ({"anchors": ()}, TrustAnchorError),
        ({"anchors": SNP_ANCHORS}, AttestationError),
        ({"now": intel.NOW + 60 * intel.DAY}, StaleEndorsementError),
    ):
        with pytest.raises(error):
            verify_tdx(TDX, **options)


def event_log(*events):
    """Return a firmware's log of SHA-256 with events (register, digest)."""
    spec = b"Spec ID Event03\x00" + struct.pack("<IBBBBIHHB", 0, 0, 2, 0, 2, 1, 0x000B, 32, 0)
    log = struct.pack("<II20sI", 0, 3, bytes(20), len(spec)) + spec
    for register, value in events:
        log += struct.pack("<III", register, 13, 1) + struct.pack("<H", 0x000B) + value + struct.pack("<I", 1) + b"x"
    return log


def test_an_event_log_is_replayed_before_it_is_read():
    extended = b"\x0a" * 32
    value = hashlib.sha256(bytes(32) + extended).digest()
    pcrs = PCRS | {4: value}
    found = verify_snp(snp(pcrs=pcrs), event_logs=(event_log((4, extended)),)).tpm
    assert 4 in found.replayed
    assert [event.register for event in found.events] == [4]
    with pytest.raises(EventLogError):
        verify_snp(SNP, event_logs=(event_log((4, extended)),))


# Files.


def verify_file(value, *, isolation=Isolation.SNP, endorsements=None, expectation=world.UNCHECKED, anchors=None):
    data = value if isinstance(value, bytes) else file(value)
    if isolation is Isolation.SNP:
        return azure.verify_snp_files(
            data,
            (amd.ASK,) if endorsements is None else endorsements,
            expectation=expectation,
            now=NOW,
            anchors=SNP_ANCHORS if anchors is None else anchors,
        )
    return azure.verify_tdx_files(
        data,
        TDX_ENDORSEMENTS if endorsements is None else endorsements,
        expectation=expectation,
        now=intel.NOW,
        anchors=TDX_ANCHORS if anchors is None else anchors,
    )


def test_each_form_of_a_file_gives_the_same_claims():
    wanted = verify_snp(SNP, nonce=None)
    for value in (version_0(SNP), version_1(SNP), {"platform": "az-snp", "evidence": version_1(SNP)}):
        assert verify_file(value) == wanted
    assert verify_file(SNP.encode(), endorsements=SNP_ENDORSEMENTS) == wanted
    wanted = verify_tdx(TDX, nonce=None)
    for value in (version_0(TDX), version_1(TDX), {"platform": "az-tdx", "evidence": version_1(TDX)}, TDX.encode()):
        assert verify_file(value, isolation=Isolation.TDX) == wanted


def test_base64url_may_be_padded():
    padded = base64.urlsafe_b64encode(SNP.hcl_report).decode()
    assert verify_file(version_1(SNP, hcl_report=padded)) == verify_file(version_1(SNP))


def test_the_certificate_in_a_file_is_a_hint():
    other = base64url(amd.vek(owner="another"))
    with pytest.raises(AttestationError):
        verify_file(version_1(SNP, vcek=other))
    assert verify_file(version_1(SNP, vcek=other), endorsements=SNP_ENDORSEMENTS)


EXPECTATIONS = {
    "the same nonce": ({"nonce": NONCE}, None),
    "another nonce": ({"nonce": b"n"}, NonceError),
    "an empty nonce": ({"nonce": b""}, NonceError),
    "the guest's data": ({"report_data": USER_DATA}, None),
    "other data": ({"report_data": b"d"}, BindingMismatchError),
    "longer data": ({"report_data": USER_DATA + b"\x00"}, BindingMismatchError),
    "the nonce as data": ({"report_data": NONCE}, BindingMismatchError),
}


@pytest.mark.parametrize("sentence", EXPECTATIONS)
def test_of_what_is_expected(sentence):
    wanted, error = EXPECTATIONS[sentence]
    expectation = Expectation(**{"nonce": None, "report_data": None, **wanted})
    for evidence, isolation in ((SNP, Isolation.SNP), (TDX, Isolation.TDX)):
        with pytest.raises(error) if error else contextlib.nullcontext():
            verify_file(version_1(evidence), isolation=isolation, expectation=expectation)


def test_the_guests_data_is_padded_with_zeros():
    data = runtime(**{"user-data": (b"short" + bytes(59)).hex()})
    expectation = Expectation(nonce=None, report_data=b"short")
    assert verify_file(version_1(snp(data=data)), expectation=expectation)
    none = runtime(**{"user-data": REMOVED})
    for wanted in (b"", bytes(64)):
        with pytest.raises(BindingMismatchError):
            verify_file(version_1(snp(data=none)), expectation=Expectation(nonce=None, report_data=wanted))


QUOTE_0, QUOTE_1 = version_0(SNP)["quote"], version_1(SNP)["tpm_quote"]
FILES = {
    "nothing": (b"", EvidenceFormatError),
    "no JSON": (b"evidence", EvidenceFormatError),
    "a list": (b"[]", EvidenceFormatError),
    "an empty object": ({}, EvidenceFormatError),
    "JSON that is deep": (b"[" * 200_000, EvidenceFormatError),
    "a file above its bound": (b" " * 300_000, EvidenceSizeError),
    "a field twice": (file(version_1(SNP))[:-1] + b', "version": 1}', EvidenceFormatError),
    "a byte after the object": (file(version_1(SNP)) + b"x", EvidenceFormatError),
    "another version": (version_1(SNP, version=2), EvidenceVersionError),
    "a version that is true": (version_1(SNP, version=True), EvidenceVersionError),
    "another platform": ({"platform": "az-tdx", "evidence": version_1(SNP)}, EvidenceVersionError),
    "a platform that is a list": ({"platform": [], "evidence": version_1(SNP)}, EvidenceVersionError),
    "a platform around the older form": ({"platform": "az-snp", "evidence": version_0(SNP)}, EvidenceFormatError),
    "a platform around text": ({"platform": "az-snp", "evidence": "x"}, EvidenceFormatError),
    "evidence of TDX": (version_1(TDX), EvidenceFormatError),
    "an unknown field": (version_1(SNP, extra=1), EvidenceFormatError),
    "no certificate": (version_1(SNP, vcek=REMOVED), EvidenceFormatError),
    "a TD quote beside it": (version_1(SNP, td_quote="AAAA"), EvidenceFormatError),
    "a report by number": (version_1(SNP, hcl_report=7), EvidenceFormatError),
    "an empty report": (version_1(SNP, hcl_report=""), EvidenceFormatError),
    "a report in base64": (version_1(SNP, hcl_report="+/+/"), EvidenceFormatError),
    "a report above its bound": (version_1(SNP, hcl_report="A" * 40_000), EvidenceFormatError),
    "a report with too much padding": (version_1(SNP, hcl_report=base64url(SNP.hcl_report) + "==="), EvidenceFormatError),
    "a certificate that is none": (version_1(SNP, vcek="AAAA"), EndorsementFormatError),
    "a quote that is text": (version_1(SNP, tpm_quote="quote"), EvidenceFormatError),
    "a quote with more in it": (version_1(SNP, tpm_quote={**QUOTE_1, "bank": 1}), EvidenceFormatError),
    "a message in capitals": (version_1(SNP, tpm_quote={**QUOTE_1, "message": SNP.quote.hex().upper()}), EvidenceFormatError),
    "a message of numbers in version 1": (version_1(SNP, tpm_quote=QUOTE_0), EvidenceFormatError),
    "registers by name": (version_1(SNP, tpm_quote={**QUOTE_1, "pcrs": {}}), EvidenceFormatError),
    "a register too many": (version_1(SNP, tpm_quote={**QUOTE_1, "pcrs": QUOTE_1["pcrs"] + ["00"]}), EvidenceFormatError),
    "a register too few": (version_1(SNP, tpm_quote={**QUOTE_1, "pcrs": QUOTE_1["pcrs"][:-1]}), PcrDigestError),
    "hexadecimal in the older form": (version_0(SNP, quote=QUOTE_1), EvidenceFormatError),
    "a number above 255": (version_0(SNP, report=[256] * 2600), EvidenceFormatError),
    "a number that is true": (version_0(SNP, report=[True] * 2600), EvidenceFormatError),
    "a fraction": (version_0(SNP, report=[1.0] * 2600), EvidenceFormatError),
    "too many numbers": (version_0(SNP, report=[0] * 17_000), EvidenceSizeError),
    "a certificate by number": (version_0(SNP, vcek=1), EvidenceFormatError),
    "an envelope's evidence of TDX": (TDX.encode(), EvidenceFormatError),
    "an envelope's evidence in another spelling": (SNP.encode() + b"\n", EvidenceFormatError),
    "an envelope's evidence without registers": (
        canonical.encode({**json.loads(SNP.encode()), "pcrs": []}), EvidenceFormatError,
    ),
    "an envelope's register in another spelling": (
        canonical.encode({**json.loads(SNP.encode()), "pcrs": {"00": "AAAA"}}), EvidenceFormatError,
    ),
    "an envelope's register 24": (
        canonical.encode({**json.loads(SNP.encode()), "pcrs": {"24": "AAAA"}}), EvidenceFormatError,
    ),
    "an envelope's quote by number": (canonical.encode({**json.loads(SNP.encode()), "quote": 1}), EvidenceFormatError),
}  # fmt: skip


@pytest.mark.parametrize("sentence", FILES)
def test_a_file_is_refused_that_is(sentence):
    value, error = FILES[sentence]
    with pytest.raises(AttestationError) as caught:
        verify_file(value)
    assert type(caught.value) is error


def test_evidence_of_an_envelope_has_one_form():
    assert AzureEvidence.decode(SNP.encode(), isolation=Isolation.SNP) == SNP
    assert AzureEvidence.decode(TDX.encode(), isolation=Isolation.TDX) == TDX


@settings(max_examples=120, deadline=None)
@given(st.binary(max_size=300), st.data())
def test_nothing_but_attestation_errors_comes_out_of_any_bytes(data, draw):
    mutated = bytearray(SNP.hcl_report)
    for _ in range(draw.draw(st.integers(1, 6))):
        mutated[draw.draw(st.integers(0, len(mutated) - 1))] = draw.draw(st.integers(0, 255))
    for attempt in (
        lambda: parse_report(data),
        lambda: parse_report(bytes(mutated)),
        lambda: parse_report(hcl(b"", data)),
        lambda: read_files(data, isolation=Isolation.SNP),
    ):
        with contextlib.suppress(AttestationError):
            attempt()


JUNK = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
VALUES = st.recursive(JUNK, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*jwk(), *world.SETTINGS, *QUOTE_1, *version_1(SNP), "report", "quote"]), inner, max_size=5), max_leaves=8)  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(VALUES, VALUES, st.sampled_from(Isolation))
def test_nothing_but_attestation_errors_comes_out_of_json_of_any_kind(one, other, isolation):
    for attempt in (
        lambda: read_files(file(one), isolation=isolation),
        lambda: read_files(
            file({"version": 1, "tpm_quote": one, "hcl_report": other, "vcek": one}), isolation=isolation
        ),
        lambda: parse_report(hcl(b"", file({"keys": [one], "vm-configuration": other}))),
        lambda: parse_report(hcl(b"", runtime(keys=[jwk(n=one, e=other)]))),
        lambda: parse_report(hcl(b"", runtime(settings={"secure-boot": one, "vmUniqueId": other}))),
    ):
        with contextlib.suppress(AttestationError):
            attempt()


def test_a_flipped_bit_in_what_is_signed_is_refused():
    for index in range(0, len(SNP.hcl_report), 7):
        mutated = SNP.hcl_report[:index] + bytes([SNP.hcl_report[index] ^ 1 << index % 8]) + SNP.hcl_report[index + 1 :]
        with pytest.raises(AttestationError):
            verify_snp(UNBOUND(SNP, hcl_report=mutated))
    for index in range(0, len(SNP.quote), 2):
        mutated = SNP.quote[:index] + bytes([SNP.quote[index] ^ 1]) + SNP.quote[index + 1 :]
        with pytest.raises(KeyBindingError):
            verify_snp(UNBOUND(SNP, quote=mutated))


def test_every_truncation_of_a_report_is_refused():
    for end in range(0, len(SNP.hcl_report) - 100, 7):
        with pytest.raises(AttestationError):
            verify_snp(UNBOUND(SNP, hcl_report=SNP.hcl_report[:end]))


def test_parts_of_two_machines_do_not_go_together():
    other = snp(data=runtime(keys=[jwk(tpm_key("other"))]), signature=sign(quote_message(), tpm_key("other")))
    assert verify_snp(other)
    with pytest.raises(KeyBindingError):
        verify_snp(UNBOUND(SNP, hcl_report=other.hcl_report))
    with pytest.raises(KeyBindingError):
        verify_snp(UNBOUND(SNP, quote=other.quote, signature=other.signature))


# The drivers.

MANIFEST = bytes.fromhex(BINDING.manifest)
DRIVEN = PCRS | {15: configuration_value(MANIFEST)}


def letter(profile, make, *, pcrs=DRIVEN, binding=None, evidence=None, **changes):
    binding = binding or dataclasses.replace(BINDING, profile=profile)
    nonce = nonce_of(binding.report_data())
    return Envelope(
        profile=profile,
        evidence=evidence or make(pcrs=pcrs, nonce=nonce).encode(),
        binding=binding.encoded,
        **changes,
    )


def driven_snp(envelope, *, anchors=SNP_ANCHORS, endorsements=SNP_ENDORSEMENTS):
    now_ms = int(NOW.timestamp() * 1000)
    return azure.AzureSnpVerifier().verify(envelope, endorsements=endorsements, now_ms=now_ms, anchors=anchors)


def driven_tdx(envelope, *, anchors=TDX_ANCHORS, endorsements=TDX_ENDORSEMENTS):
    return azure.AzureTdxVerifier().verify(envelope, endorsements=endorsements, now_ms=intel.NOW_MS, anchors=anchors)


DRIVERS = [
    pytest.param(azure.SNP_PROFILE, snp, driven_snp, SNP_ENDORSEMENTS, id="snp"),
    pytest.param(azure.TDX_PROFILE, tdx, driven_tdx, TDX_ENDORSEMENTS, id="tdx"),
]


@pytest.mark.parametrize(("profile", "make", "drive", "endorsements"), DRIVERS)
def test_a_driver_reports_registers_and_the_manifest(profile, make, drive, endorsements):
    report = drive(letter(profile, make))
    binding = dataclasses.replace(BINDING, profile=profile)
    assert report.report_data == binding.report_data()
    assert report.measurement == measurement_of(DRIVEN)
    assert report.configuration == BINDING.manifest
    assert (report.environment, report.debug, report.shared, report.layers) == ("", False, False, ())
    assert report.details.tpm.nonce_checked is True
    assert drive(letter(profile, make, endorsements=endorsements), endorsements=()) == report


@pytest.mark.parametrize(("profile", "make", "drive", "endorsements"), DRIVERS)
def test_a_driver_refuses(profile, make, drive, endorsements):
    other = dataclasses.replace(BINDING, profile=profile, nonce=b"m" * 32)
    good = letter(profile, make)
    for envelope, error in (
        (dataclasses.replace(good, binding=other.encoded), NonceError),
        (dataclasses.replace(good, device_evidence=(b"gpu",)), NonceError),
        (dataclasses.replace(good, evidence=good.evidence + b" "), EvidenceFormatError),
        (letter(profile, make, pcrs={number: DRIVEN[number] for number in range(15)}), MissingClaimError),
        (letter(profile, make, pcrs={number: DRIVEN[number] for number in (15, 16, 23)}), MissingClaimError),
        (dataclasses.replace(good, event_logs=(b"log",)), EvidenceFormatError),
    ):
        with pytest.raises(error):
            drive(envelope)
    with pytest.raises(TrustAnchorError):
        drive(good, anchors=())
    assert endorsements


@pytest.mark.parametrize(("profile", "make", "drive", "endorsements"), DRIVERS)
def test_a_pcr15_of_another_manifest_is_told_as_it_is(profile, make, drive, endorsements):
    assert drive(letter(profile, make, pcrs=PCRS)).configuration == PCRS[15].hex()
    assert endorsements


def test_debug_is_what_the_hardware_says():
    nonce = nonce_of(dataclasses.replace(BINDING, profile=azure.SNP_PROFILE).report_data())
    policy = amd.MUST_BE_ONE | amd.SMT | amd.DEBUG | 0x1F
    evidence = snp(pcrs=DRIVEN, nonce=nonce, policy=policy).encode()
    assert driven_snp(letter(azure.SNP_PROFILE, snp, evidence=evidence)).debug is True
    nonce = nonce_of(dataclasses.replace(BINDING, profile=azure.TDX_PROFILE).report_data())
    evidence = tdx(pcrs=DRIVEN, nonce=nonce, td_attributes=bytes.fromhex("0100001000000000")).encode()
    assert driven_tdx(letter(azure.TDX_PROFILE, tdx, evidence=evidence)).debug is True


def test_a_registry_accepts_the_evidence_of_its_own_binding_only():
    registry = Registry((azure.AzureSnpVerifier(), azure.AzureTdxVerifier()))
    binding = dataclasses.replace(BINDING, profile=azure.SNP_PROFILE)
    expected = ExpectedBinding(
        nonce=binding.nonce, audience=binding.audience, manifest=binding.manifest, role=binding.role, run=binding.run
    )

    def check(envelope, expected=expected):
        return registry.verify(
            envelope.encode(),
            endorsements=SNP_ENDORSEMENTS,
            expected=expected,
            now_ms=int(NOW.timestamp() * 1000),
            anchors={azure.SNP_PROFILE: SNP_ANCHORS, azure.TDX_PROFILE: TDX_ANCHORS},
        )

    found = check(letter(azure.SNP_PROFILE, snp))
    assert (found.evidence_class, found.hardware_rooted) == ("azure-sev-snp", True)
    with pytest.raises(BindingMismatchError):
        check(letter(azure.SNP_PROFILE, snp), dataclasses.replace(expected, audience="9" * 64))
    with pytest.raises(EvidenceFormatError):
        check(dataclasses.replace(letter(azure.SNP_PROFILE, snp), profile=azure.TDX_PROFILE))
