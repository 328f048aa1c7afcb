"""Quotes that real Intel hardware made: their verdicts, and what becomes of them when anything is changed."""

import datetime
import functools
import itertools
import json

import pytest
from folder import at, needs_vectors, read, sets_of

from confed.attestation.certificates import load_certificates
from confed.attestation.evidence import Expectation
from confed.attestation.policy import sgx as sgx_policy
from confed.attestation.policy import tdx as tdx_policy
from confed.attestation.tee import intel_dcap, sgx, tdx
from confed.attestation.tee.intel_quote import read_quote_file
from confed.errors import (
    AppraisalError,
    AttestationError,
    AttributesError,
    BindingMismatchError,
    CertificateChainError,
    CertificateValidityError,
    DebugError,
    EndorsementFormatError,
    EndorsementMismatchError,
    EventLogError,
    EvidenceSignatureError,
    KeyBindingError,
    MissingEndorsementError,
    NonceError,
    RevocationUnknownError,
    StaleEndorsementError,
    TcbStatusError,
    TrailingBytesError,
    TrustAnchorError,
)

pytestmark = needs_vectors

SETS = sets_of("tdx", "sgx")
MODULES = {"tdx": (tdx, tdx_policy), "sgx": (sgx, sgx_policy)}
# What each set's verdict is: the status, and what a relying party without policy refuses it with.
VERDICTS = {
    "sgx/dcap-qvl": ("ConfigurationAndSWHardeningNeeded", None),
    "sgx/trustee-occlum": ("NotEvaluated", DebugError),
    "tdx/dcap-qvl": ("UpToDate", None),
    "tdx/dcap-qvl-near": ("UpToDate", None),
    "tdx/dcap-qvl-outdated": ("NoMatchingLevel", TcbStatusError),
    "tdx/go-tdx-guest-cos113": ("UpToDate", None),
    "tdx/go-tdx-guest-spr": ("NoMatchingLevel", TcbStatusError),
    "tdx/automata-solana": ("OutOfDate", TcbStatusError),
    "tdx/trustee-quote-4": ("NotEvaluated", DebugError),
    "tdx/oak": ("UpToDate", None),
    "tdx/dstack-quote-report": ("UpToDate", None),
    "vtpm/lunal-az-tdx": ("UpToDate", None),
    "vtpm/trustee-az-tdx": ("NotEvaluated", AttributesError),
}
LIVE, SPR, COS = "tdx/lunal-live", "tdx/go-tdx-guest-spr", "tdx/go-tdx-guest-cos113"
DAY = datetime.timedelta(days=1)


@functools.cache
def evidence(name):
    """Return a set's quote without what follows it."""
    data = read_quote_file(read(SETS[name]["quote"]))
    if name == SPR:
        assert data.endswith(b"\nextra bytes(only for testing purpose)\n")
        data = data.removesuffix(b"\nextra bytes(only for testing purpose)\n")
    return data.rstrip(b"\x00") + b"\x00" * (len(data) > len(data.rstrip(b"\x00")))


def verify(name, quote=None, *, endorsements=None, now=None, anchors=None, nonce=None, report_data=None):
    entry = SETS[name]
    module, _ = MODULES[entry["kind"]]
    return module.verify_files(
        evidence(name) if quote is None else quote,
        [read(entry["collateral"])] if endorsements is None else endorsements,
        expectation=Expectation(nonce=nonce, report_data=report_data),
        now=at(entry["verify_at"]) if now is None else now,
        anchors=anchors,
    )


def flipped(data, position, bit=1):
    return data[:position] + bytes([data[position] ^ bit]) + data[position + 1 :]


def test_every_set_has_its_verdict_here():
    assert set(SETS) == {*VERDICTS, LIVE}


@pytest.mark.parametrize("name", VERDICTS)
def test_each_set_is_genuine_and_gets_its_verdict(name):
    status, refusal = VERDICTS[name]
    claims = verify(name)
    entry = SETS[name]
    assert claims.tcb.status == status
    if entry["dcap_qvl_0_7"]["ok"]:
        assert list(claims.tcb.advisory_ids) == entry["dcap_qvl_0_7"]["advisories"]
    else:
        assert entry["dcap_qvl_0_7"]["error"] == f"Verification failed: {claims.tcb.refusal}"
    require = MODULES[entry["kind"]][1]
    if refusal is None:
        require.require_defaults(claims)
    else:
        with pytest.raises(refusal) as caught:
            require.require_defaults(claims)
        assert isinstance(caught.value, AppraisalError)


def test_out_of_date_evidence_passes_the_floors_and_not_the_defaults():
    tdx_policy.require_floors(verify("tdx/automata-solana"))


@pytest.mark.parametrize("name", VERDICTS)
def test_each_set_says_what_the_index_says(name):
    entry, claims = SETS[name], verify(name)
    report = claims.report
    assert claims.quote_version == entry["quote_version"]
    assert claims.platform.fmspc.hex() == entry["fmspc"].lower()
    assert report.report_data.hex() == entry["report_data"]
    if entry["kind"] == "sgx":
        assert (report.mr_enclave.hex(), report.mr_signer.hex()) == (entry["mr_enclave"], entry["mr_signer"])
        assert (report.attributes + report.xfrm).hex() == entry["attributes"]
    else:
        assert [value.hex() for value in report.rtmr] == entry["rtmr"]
        assert (report.mr_td.hex(), report.td_attributes.hex()) == (entry["mr_td"], entry["td_attributes"])
        assert (report.mr_config_id.hex(), report.mr_service_td.hex()) == (
            entry["mr_config_id"],
            entry["mr_service_td"],
        )
    parse = "%Y-%m-%dT%H:%M:%SZ"
    for found, wanted in (
        (claims.tcb.collateral_begins, entry["valid_from"]),
        (claims.tcb.collateral_ends, entry["valid_to"]),
    ):
        assert datetime.datetime.strptime(found, parse) == datetime.datetime.strptime(wanted, parse)  # noqa: DTZ007


@pytest.mark.parametrize("name", [name for name in VERDICTS if name != SPR])
def test_files_are_taken_as_they_are(name):
    assert verify(name, read(SETS[name]["quote"])) == verify(name)


def test_bytes_that_nobody_signed_after_a_quote_are_refused():
    with pytest.raises(TrailingBytesError):
        verify(SPR, read(SETS[SPR]["quote"]))
    for name in VERDICTS:
        with pytest.raises(TrailingBytesError):
            verify(name, evidence(name) + b"\x00\x01")


def test_a_quote_without_collateral_cannot_be_verified():
    with pytest.raises(MissingEndorsementError):
        verify(LIVE, endorsements=[], now=at(SETS["tdx/oak"]["verify_at"]))
    with pytest.raises(MissingEndorsementError):
        verify(LIVE, endorsements=[read("tdx/lunal-live/ccel.bin")], now=at(SETS["tdx/oak"]["verify_at"]))
    older = SETS["tdx/dcap-qvl"]
    with pytest.raises(CertificateValidityError):
        verify(LIVE, endorsements=[read(older["collateral"])], now=at(older["verify_at"]))


def test_the_log_beside_a_quote_must_replay():
    log, collateral = read(f"{COS}/ccel_data.bin"), read(SETS[COS]["collateral"])
    for endorsements in ([collateral, log], [log, collateral]):
        claims = verify(COS, endorsements=endorsements)
        assert claims.event_log_replayed
        assert len(claims.events) == 43
    with pytest.raises(EventLogError):
        verify("tdx/oak", endorsements=[read(SETS["tdx/oak"]["collateral"]), log])
    with pytest.raises(EventLogError):
        verify(COS, endorsements=[collateral, flipped(log, 0x60)])


@pytest.mark.parametrize("name", VERDICTS)
def test_what_was_signed_is_compared_with_what_is_expected(name):
    signed = bytes.fromhex(SETS[name]["report_data"])
    verify(name, nonce=signed[:32], report_data=signed)
    with pytest.raises(NonceError):
        verify(name, nonce=b"\x5a" * 32)
    with pytest.raises(BindingMismatchError):
        verify(name, report_data=flipped(signed, 63))


def test_what_an_enclave_said_is_padded():
    verify("sgx/dcap-qvl", report_data=b"Hello, world!", nonce=b"Hello")


def body_of(name):
    """Return where the report lies in a quote, and where its signature begins."""
    entry = SETS[name]
    if entry["kind"] == "sgx":
        return 48, 48 + 384 + 4
    return (54, 54 + 648 + 4) if entry["quote_version"] == 5 else (48, 48 + 584 + 4)


SGX_FIELDS = (16, 4, 12, 16, 8, 8, 32, 32, 32, 32, 64, 2, 2, 2, 42, 16, 64)
TDX_FIELDS = (16, 48, 48, 8, 8, 8, 48, 48, 48, 48, 48, 48, 48, 48, 64)


@pytest.mark.parametrize("name", VERDICTS)
def test_every_field_of_the_report_is_signed(name):
    start, end = body_of(name)
    sizes = SGX_FIELDS if SETS[name]["kind"] == "sgx" else TDX_FIELDS
    if SETS[name]["quote_version"] == 5:
        sizes = (*sizes, 16, 48)
    assert start + sum(sizes) == end - 4
    quote = evidence(name)
    for first, size in zip(itertools.accumulate(sizes, initial=start), sizes, strict=False):
        for position in (first, first + size - 1):
            with pytest.raises(EvidenceSignatureError):
                verify(name, flipped(quote, position))


@pytest.mark.parametrize("name", VERDICTS)
def test_every_byte_of_the_header_is_of_its_form_or_signed(name):
    for position in range(48):
        with pytest.raises(AttestationError):
            verify(name, flipped(evidence(name), position, 0x40))


@pytest.mark.parametrize("name", VERDICTS)
def test_every_part_of_the_signature_data_counts(name):
    quote, (_, start) = evidence(name), body_of(name)
    inner = start + 128 + (0 if SETS[name]["kind"] == "sgx" else 6)
    parts = {
        "signature": (start, 64, EvidenceSignatureError),
        "attestation key": (start + 64, 64, KeyBindingError),
        "QE report": (inner, 384, EvidenceSignatureError),
        "QE report signature": (inner + 384, 64, EvidenceSignatureError),
        "QE authentication data": (inner + 450, 32, KeyBindingError),
    }
    for first, size, error in parts.values():
        for position in (first, first + size // 2, first + size - 1):
            with pytest.raises(error):
                verify(name, flipped(quote, position))


@pytest.mark.parametrize("name", VERDICTS)
def test_a_changed_chain_is_refused(name):
    quote = evidence(name)
    honest = verify(name)
    first = quote.index(b"-----BEGIN")
    for position in range(first, len(quote), 97):
        try:
            found = verify(name, flipped(quote, position))
        except AttestationError:
            continue
        # White space between lines says nothing.
        assert found == honest
        assert quote[position : position + 1].isspace()


@pytest.mark.parametrize("name", VERDICTS)
def test_the_root_inside_a_quote_is_the_pinned_one(name):
    *_, root = load_certificates(chain_of(name), what="PCK chain")
    assert (root.der,) == intel_dcap.pinned_roots()
    whole = chain_of(name)
    third = whole.rindex(b"-----BEGIN")
    for chain in (whole[:third], whole[:third] + whole[third + 1 :], whole.replace(b"-----\n-----", b"-----x-----")):
        with pytest.raises((TrustAnchorError, EndorsementFormatError)):
            verify(name, grafted(name, chain))
    for position in range(third, len(whole), 7):
        if not whole[position : position + 1].isspace():
            with pytest.raises((TrustAnchorError, EndorsementFormatError, CertificateChainError)):
                verify(name, grafted(name, flipped(whole, position)))


@pytest.mark.parametrize("name", VERDICTS)
def test_a_cut_quote_is_refused(name):
    quote = evidence(name)
    end = len(quote.rstrip(b"\x00"))
    for length in (*range(0, end, 61), *range(body_of(name)[1] - 8, body_of(name)[1] + 2), end - 2):
        with pytest.raises(AttestationError):
            verify(name, quote[:length])


def grafted(name, chain):
    """Return a set's quote with another PCK chain, every length made right."""
    quote, (_, start) = bytearray(evidence(name)), body_of(name)[:2]
    first = quote.index(b"-----BEGIN")
    end = start + int.from_bytes(quote[start - 4 : start], "little")
    lengths = [first - 4, start - 4, *([] if SETS[name]["kind"] == "sgx" else [start + 130])]
    for position in lengths:
        grown = int.from_bytes(quote[position : position + 4], "little") + len(chain) - (end - first)
        quote[position : position + 4] = grown.to_bytes(4, "little")
    return bytes(quote[:first]) + chain


def chain_of(name):
    return evidence(name)[evidence(name).index(b"-----BEGIN") :].rstrip(b"\x00")


@pytest.mark.parametrize("name", VERDICTS)
def test_another_platforms_chain_does_not_serve(name):
    assert verify(name, grafted(name, chain_of(name))) == verify(name)
    for donor, entry in SETS.items():
        if chain_of(donor) == chain_of(name) or "collateral" not in entry:
            continue
        quote = grafted(name, chain_of(donor))
        with pytest.raises(AttestationError):
            verify(name, quote)
        if entry["kind"] == SETS[name]["kind"]:
            # With everything of the donor's right, its key still has not signed this quoting enclave's report.
            with pytest.raises((EvidenceSignatureError, RevocationUnknownError)):
                verify(name, quote, endorsements=[read(entry["collateral"])], now=at(entry["verify_at"]))


def test_collateral_of_another_platform_family_is_refused():
    with pytest.raises(EndorsementMismatchError):
        verify("tdx/oak", endorsements=[read(SETS["tdx/dcap-qvl"]["collateral"])])
    with pytest.raises(EndorsementMismatchError):
        verify("sgx/dcap-qvl", endorsements=[read(SETS["tdx/dcap-qvl"]["collateral"])])


def test_the_right_collateral_is_chosen_of_many():
    every = sorted({entry["collateral"] for entry in SETS.values() if "collateral" in entry})
    for name in VERDICTS:
        assert verify(name, endorsements=[read(path) for path in every]).tcb.status


@pytest.mark.parametrize("name", VERDICTS)
def test_a_day_before_and_after_its_time_collateral_is_refused(name):
    entry = SETS[name]
    begins, ends = (datetime.datetime.fromisoformat(entry[key]) for key in ("valid_from", "valid_to"))
    second = datetime.timedelta(seconds=1)
    verify(name, now=begins)
    verify(name, now=ends - second)
    for now in (begins - DAY, begins - second, ends, ends + DAY):
        with pytest.raises(StaleEndorsementError):
            verify(name, now=now)


@pytest.mark.parametrize("name", VERDICTS)
@pytest.mark.parametrize("field", ["tcb_info", "qe_identity"])
def test_changed_collateral_is_refused(name, field):
    fields = json.loads(read(SETS[name]["collateral"]))
    text = fields[field]
    changed = text.replace('"tcbEvaluationDataNumber":1', '"tcbEvaluationDataNumber":2', 1)
    assert changed != text
    with pytest.raises(EvidenceSignatureError):
        verify(name, endorsements=[json.dumps(fields | {field: changed}).encode()])
    signature = fields[f"{field}_signature"]
    other = signature[:-1] + ("0" if signature[-1] != "0" else "1")
    with pytest.raises(EvidenceSignatureError):
        verify(name, endorsements=[json.dumps(fields | {f"{field}_signature": other}).encode()])


@pytest.mark.parametrize("name", VERDICTS)
def test_revocation_lists_that_were_changed_or_exchanged_are_refused(name):
    fields = json.loads(read(SETS[name]["collateral"]))
    exchanged = {"pck_crl": fields["root_ca_crl"], "root_ca_crl": fields["pck_crl"]}
    changed = {"pck_crl": fields["pck_crl"][:-2] + ("00" if fields["pck_crl"][-2:] != "00" else "01")}
    for changes in (exchanged, changed, {"pck_crl": fields["root_ca_crl"]}, {"root_ca_crl": fields["pck_crl"]}):
        with pytest.raises(AttestationError):
            verify(name, endorsements=[json.dumps(fields | changes).encode()])


@pytest.mark.parametrize("vendor", ["amd.pem", "aws_nitro.pem"])
def test_another_vendors_root_vouches_for_nothing(vendor):
    import importlib.resources  # noqa: PLC0415

    data = importlib.resources.files("confed.attestation.roots").joinpath(vendor).read_bytes()
    root = load_certificates(data[data.index(b"-----BEGIN") :], what=vendor)[0].der
    for name in VERDICTS:
        with pytest.raises(TrustAnchorError):
            verify(name, anchors=[root])


def test_the_pinned_root_is_the_one_that_dcap_qvl_knows():
    import dcap_qvl  # noqa: PLC0415

    name = "tdx/oak"
    source = dcap_qvl.QuoteCollateralV3.from_json(read(SETS[name]["collateral"]).decode())
    assert dcap_qvl.verify(evidence(name), source, SETS[name]["verify_at"]).status == "UpToDate"
    (root,) = intel_dcap.pinned_roots()
    assert verify(name, anchors=[root]) == verify(name)
