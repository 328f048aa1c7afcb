"""Fetching, against a service that replays answers: good ones, slow, oversized, wrong and hostile ones."""

import dataclasses
import datetime as dt
import json
import socket
import ssl
import threading
import time

import httpcore
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.x509 import ocsp
from endorsement_world import (
    AMD,
    CHAIN,
    COLLATERAL,
    CRL,
    DAY,
    HOSTS,
    NOW,
    NOW_MS,
    OCSP,
    PCCS,
    PCS,
    PCS_LIST,
    RIM,
    RIMS,
    SGX_COLLATERAL,
    STATUS,
    TURIN,
    VBIOS_RIM,
    VCEK,
    VLEK_CHAIN,
    Clock,
    Reply,
    Service,
    amd_chain,
    bomb,
    certificate,
    collateral,
    crl,
    der,
    fetcher,
    pem,
    rim,
    rim_answer,
    status,
    tells_intel,
    twice,
    vcek,
)

from confed.attestation.endorsements import AmdCrl, Endorsement
from confed.attestation.endorsing.amd_kds import AmdKds
from confed.attestation.endorsing.deadline import Deadline, DeadlineBackend
from confed.attestation.endorsing.fetching import Fetcher, Patience, tls_context
from confed.attestation.endorsing.intel_pcs import IntelPcs
from confed.attestation.endorsing.nvidia import Nvidia
from confed.errors import EndorsementFetchError, MissingFileError

SHORT = Patience(connect_s=0.3, read_s=0.3, total_s=0.6, attempts=3, wait_s=0)
VCEK_ADDRESS = f"{AMD}/vcek/v1/Milan/{VCEK.hwid}?blSPL=4&teeSPL=0&snpSPL=24&ucodeSPL=219"
TURIN_ADDRESS = f"{AMD}/vcek/v1/Turin/{TURIN.hwid}?fmcSPL=3&blSPL=1&teeSPL=0&snpSPL=2&ucodeSPL=71"
RIM_ADDRESS = f"{RIMS}/v1/rim/{RIM.id}"


@pytest.fixture(scope="module")
def _running(tmp_path_factory):
    service = Service().start(tmp_path_factory.mktemp("service"))
    yield service
    service.stop()


@pytest.fixture
def service(_running):
    _running.replies.clear()
    _running.asked.clear()
    _running.bodies.clear()
    return _running


def raw(*parts, pause_s=0.0):
    """Return a reply that writes these bytes to the connection, one part after the other."""

    def write(handler):
        for part in parts:
            handler.wfile.write(part)
            handler.wfile.flush()
            time.sleep(pause_s)

    return Reply(raw=write)


def head(*lines, status=b"200 OK"):
    return b"HTTP/1.1 " + status + b"\r\n" + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


# Good answers


@pytest.mark.parametrize(
    ("need", "address", "answer"),
    [
        (VCEK, VCEK_ADDRESS, vcek(VCEK)),
        (VCEK, VCEK_ADDRESS, vcek(VCEK, wrapped=True)),
        (TURIN, TURIN_ADDRESS, vcek(TURIN)),
        (CHAIN, f"{AMD}/vcek/v1/Milan/cert_chain", amd_chain(CHAIN)),
        (VLEK_CHAIN, f"{AMD}/vlek/v1/Genoa/cert_chain", amd_chain(VLEK_CHAIN)),
        (CRL, f"{AMD}/vcek/v1/Milan/crl", crl("ARK-Milan")),
        (AmdCrl(product="Turin", key="vlek"), f"{AMD}/vlek/v1/Turin/crl", crl("ARK-Turin")),
    ],
)
def test_amd_answers_at_its_addresses(service, need, address, answer):
    service.tells(address, answer)
    found = AmdKds(fetcher(service)).fetch(need, now_ms=NOW_MS)
    assert (found.need, found.data, found.fetched_at) == (need, answer, NOW_MS)
    assert service.asked == [address]


def test_what_amd_gives_is_vouched_for_until_its_end(service):
    service.tells(VCEK_ADDRESS, vcek(VCEK, ends=NOW + 5 * DAY))
    service.tells(f"{AMD}/vcek/v1/Milan/cert_chain", amd_chain(CHAIN, ends=NOW + 7 * DAY))
    service.tells(f"{AMD}/vcek/v1/Milan/crl", crl("ARK-Milan", ends=NOW + 9 * DAY))
    kds = AmdKds(fetcher(service))
    ends = [kds.fetch(need, now_ms=NOW_MS).expires_at - NOW_MS for need in (VCEK, CHAIN, CRL)]
    assert ends == [5 * 86_400_000, 7 * 86_400_000, 9 * 86_400_000]


@pytest.mark.parametrize("need", [COLLATERAL, SGX_COLLATERAL])
def test_intel_answers_make_one_collateral(service, need):
    fields = collateral(need)
    tells_intel(service, need, fields)
    found = IntelPcs(fetcher(service)).fetch(need, now_ms=NOW_MS)
    assert json.loads(found.data) == fields
    assert found.expires_at - NOW_MS == 25 * 86_400_000
    assert service.asked[-1] == f"{PCS_LIST}/IntelSGXRootCA.der"


def test_what_intel_signed_is_kept_to_the_letter(service):
    odd = '{"id":"TDX", "fmspc" :"90c06f000000","issueDate":"2026-03-10T00:00:00Z","nextUpdate":"2026-04-10T00:00:00Z","pceId":"0000","tcbEvaluationDataNumber":7,"note":"\\u00e9 }, ,\\"signature\\":\\"ab\\""}'
    tells_intel(service, COLLATERAL, collateral(COLLATERAL, tcb_info=odd))
    found = IntelPcs(fetcher(service)).fetch(COLLATERAL, now_ms=NOW_MS)
    assert json.loads(found.data)["tcb_info"] == odd


def test_a_pccs_answers_everything_in_place_of_intel(service):
    fields = collateral(COLLATERAL)
    tells_intel(service, COLLATERAL, fields, host=PCCS)
    found = IntelPcs(fetcher(service), pccs=PCCS).fetch(COLLATERAL, now_ms=NOW_MS)
    assert json.loads(found.data) == fields
    assert {address.partition("/")[0] for address in service.asked} == {PCCS}


@pytest.mark.parametrize("need", [RIM, VBIOS_RIM])
def test_nvidia_gives_the_manifest_of_an_id(service, need):
    manifest = rim(RIM) if need is RIM else rim(VBIOS_RIM, version="96.00.9f.00.01")
    service.tells(f"{RIMS}/v1/rim/{need.id}", rim_answer(need, manifest))
    found = Nvidia(fetcher(service)).fetch(need, now_ms=NOW_MS)
    assert (found.data, found.expires_at - NOW_MS) == (manifest, 300 * 86_400_000)


def test_nvidia_gives_the_status_of_a_certificate(service):
    answer = status(STATUS)
    service.tells(f"{OCSP}/", answer)
    found = Nvidia(fetcher(service)).fetch(STATUS, now_ms=NOW_MS)
    assert (found.data, found.expires_at - NOW_MS) == (answer, 86_400_000)
    asked = ocsp_request(service.bodies[0])
    assert (asked.issuer_name_hash.hex(), asked.issuer_key_hash.hex()) == (STATUS.issuer_name, STATUS.issuer_key)
    assert (asked.serial_number, type(asked.hash_algorithm)) == (0xABC, hashes.SHA384)
    assert not list(asked.extensions)


def ocsp_request(body):
    return ocsp.load_der_ocsp_request(body)


# Wrong answers: each is a failed fetch that names the host, and says nothing of what was sent

SECRET = b"<html>a page that nobody asked for, internal-7</html>"
WRONG = {
    "a page instead of a certificate": (VCEK, VCEK_ADDRESS, Reply(SECRET, headers=(("Content-Type", "text/html"),))),
    "nothing": (VCEK, VCEK_ADDRESS, Reply(b"")),
    "a certificate that ends early": (VCEK, VCEK_ADDRESS, Reply(vcek(VCEK)[:-1])),
    "a certificate with bytes after it": (VCEK, VCEK_ADDRESS, Reply(vcek(VCEK) + b"\0")),
    "a certificate in PEM": (
        VCEK,
        VCEK_ADDRESS,
        Reply(ssl.DER_cert_to_PEM_cert(vcek(VCEK)).encode()),
    ),
    "another chip's certificate": (VCEK, VCEK_ADDRESS, Reply(vcek(dataclasses.replace(VCEK, hwid="ee" * 64)))),
    "a certificate for another TCB": (VCEK, VCEK_ADDRESS, Reply(vcek(dataclasses.replace(VCEK, snp=23)))),
    "another product's certificate": (VCEK, VCEK_ADDRESS, Reply(vcek(dataclasses.replace(VCEK, product="Genoa")))),
    "a certificate of no chip": (VCEK, VCEK_ADDRESS, Reply(der(certificate("SEV-VCEK", "SEV-Milan")))),
    "a chain instead of a certificate": (VCEK, VCEK_ADDRESS, Reply(amd_chain(CHAIN))),
    "an expired certificate": (VCEK, VCEK_ADDRESS, Reply(vcek(VCEK, ends=NOW - DAY))),
    "another product's chain": (CHAIN, f"{AMD}/vcek/v1/Milan/cert_chain", Reply(amd_chain(VLEK_CHAIN))),
    "half a chain": (CHAIN, f"{AMD}/vcek/v1/Milan/cert_chain", Reply(amd_chain(CHAIN)[:-100])),
    "a chain the wrong way round": (
        CHAIN,
        f"{AMD}/vcek/v1/Milan/cert_chain",
        Reply(pem(certificate("ARK-Milan", "ARK-Milan"), certificate("SEV-Milan", "ARK-Milan"))),
    ),
    "another issuer's list": (CRL, f"{AMD}/vcek/v1/Milan/crl", Reply(crl("ARK-Genoa"))),
    "a list that has expired": (CRL, f"{AMD}/vcek/v1/Milan/crl", Reply(crl("ARK-Milan", ends=NOW - DAY))),
    "a certificate instead of a list": (CRL, f"{AMD}/vcek/v1/Milan/crl", Reply(vcek(VCEK))),
    "another manifest": (RIM, RIM_ADDRESS, Reply(rim_answer(VBIOS_RIM))),
    "a manifest of another version": (RIM, RIM_ADDRESS, Reply(rim_answer(RIM, rim(RIM, version="550.144.04")))),
    "a manifest of another architecture": (RIM, RIM_ADDRESS, Reply(rim_answer(RIM, rim(RIM, product="GB100")))),
    "a manifest of a product that is not known": (RIM, RIM_ADDRESS, Reply(rim_answer(RIM, rim(RIM, product="XX100")))),
    "a switch's manifest for a driver": (RIM, RIM_ADDRESS, Reply(rim_answer(RIM, rim(RIM, edition="SWITCH")))),
    "a manifest under another id": (RIM, RIM_ADDRESS, Reply(rim_answer(RIM, id="NV_GPU_DRIVER_GH100_550.144.04"))),
    "a manifest with another digest": (RIM, RIM_ADDRESS, Reply(rim_answer(RIM, sha256="00" * 32))),
    "a manifest that is no XML": (RIM, RIM_ADDRESS, Reply(rim_answer(RIM, b"\xd9\x01\xf4corim"))),
    "a manifest with entities": (
        RIM,
        RIM_ADDRESS,
        Reply(rim_answer(RIM, b'<!DOCTYPE a [<!ENTITY b "c">]>' + rim(RIM))),
    ),
    "a manifest without signers": (
        RIM,
        RIM_ADDRESS,
        Reply(rim_answer(RIM, rim(RIM, signers=()))),
    ),
    "a manifest that has expired": (RIM, RIM_ADDRESS, Reply(rim_answer(RIM, rim(RIM, ends=NOW - DAY)))),
    "a manifest that is no base64": (RIM, RIM_ADDRESS, Reply(rim_answer(RIM, rim="%%"))),
    "JSON of another form": (RIM, RIM_ADDRESS, Reply(b"[1, 2]")),
    "JSON without an id": (RIM, RIM_ADDRESS, Reply(b"{}")),
    "JSON without an end": (RIM, RIM_ADDRESS, Reply(rim_answer(RIM)[:-2])),
    "JSON of great depth": (RIM, RIM_ADDRESS, Reply(b"[" * 100_000)),
    "a number where text belongs": (RIM, RIM_ADDRESS, Reply(rim_answer(RIM, sha256=7))),
    "a page instead of a status": (STATUS, f"{OCSP}/", Reply(SECRET)),
    "another certificate's status": (STATUS, f"{OCSP}/", Reply(status(dataclasses.replace(STATUS, serial="abd")))),
    "another issuer's status": (STATUS, f"{OCSP}/", Reply(status(dataclasses.replace(STATUS, issuer_key="0f" * 48)))),
    "a status that has expired": (STATUS, f"{OCSP}/", Reply(status(STATUS, ends=NOW - dt.timedelta(hours=1)))),
    "a status without an end": (STATUS, f"{OCSP}/", Reply(status(STATUS, ends=None))),
    "two statuses": (STATUS, f"{OCSP}/", Reply(twice(status(STATUS)))),
    "a status that is refused": (STATUS, f"{OCSP}/", Reply(bytes.fromhex("30030a0106"))),
}


def source_of(service, need, **changes):
    given = fetcher(service, **changes)
    return next(
        source for source in (AmdKds(given), IntelPcs(given), Nvidia(given)) if type(need) in type(source).NEEDS
    )


@pytest.mark.parametrize("sentence", WRONG)
def test_a_wrong_answer_is_a_failed_fetch_which_says_nothing_of_it(service, sentence):
    need, address, reply = WRONG[sentence]
    service.tells(address, reply)
    with pytest.raises(EndorsementFetchError) as refused:
        source_of(service, need).fetch(need, now_ms=NOW_MS)
    assert refused.value.field == address.partition("/")[0]
    assert "internal-7" not in str(refused.value)


WRONG_COLLATERAL = {
    "another platform's TCB info": {
        "tcb_info": collateral(dataclasses.replace(COLLATERAL, fmspc="00806F050000"))["tcb_info"]
    },
    "SGX's TCB info for TDX": {"tcb_info": collateral(dataclasses.replace(COLLATERAL, tee="sgx"))["tcb_info"]},
    "SGX's enclave identity for TDX": {
        "qe_identity": collateral(dataclasses.replace(COLLATERAL, tee="sgx"))["qe_identity"]
    },
    "TCB info that has expired": {"tcb_info": collateral(COLLATERAL, ends=NOW - DAY)["tcb_info"]},
    "an enclave identity that has expired": {"qe_identity": collateral(COLLATERAL, ends=NOW - 3 * DAY)["qe_identity"]},
    "TCB info without an end": {
        "tcb_info": '{"id":"TDX","fmspc":"90C06F000000","issueDate":"2026-03-10T00:00:00Z","pceId":"0000","tcbEvaluationDataNumber":7}'
    },
    "TCB info that is no object": {"tcb_info": '{"id":"TDX"}}'},
    "the other authority's list": {"pck_crl": crl("Intel SGX PCK Processor CA").hex()},
    "a list that has expired": {"pck_crl": crl("Intel SGX PCK Platform CA", ends=NOW - DAY).hex()},
    "another root's list": {"root_ca_crl": crl("ARK-Milan").hex()},
    "a root's list that has expired": {"root_ca_crl": crl("Intel SGX Root CA", ends=NOW - DAY).hex()},
    "a list that is none": {"root_ca_crl": "30" + "00" * 40},
    "a short signature": {"tcb_info_signature": "ab" * 63},
    "a signature that is none": {"qe_identity_signature": "zz" * 64},
    "a chain that is none": {"tcb_info_issuer_chain": "certificates"},
    "no chain": {"qe_identity_issuer_chain": ""},
    "a chain that has expired": {"pck_crl_issuer_chain": pem(certificate("a", "b", ends=NOW - DAY)).decode()},
}


@pytest.mark.parametrize("sentence", WRONG_COLLATERAL)
def test_a_collateral_with_one_wrong_part_is_a_failed_fetch(service, sentence):
    tells_intel(service, COLLATERAL, collateral(COLLATERAL, **WRONG_COLLATERAL[sentence]))
    with pytest.raises(EndorsementFetchError):
        IntelPcs(fetcher(service)).fetch(COLLATERAL, now_ms=NOW_MS)


@pytest.mark.parametrize("name", ["pckcrl?ca=platform&encoding=der", "tcb?fmspc=90C06F000000", "qe/identity"])
def test_an_answer_without_its_issuers_chain_is_a_failed_fetch(service, name):
    tells_intel(service, COLLATERAL, collateral(COLLATERAL))
    address = f"{PCS}/{'sgx' if 'pckcrl' in name else 'tdx'}/certification/v4/{name}"
    service.tells(address, dataclasses.replace(service.replies[address][0], headers=()))
    with pytest.raises(EndorsementFetchError, match="the header"):
        IntelPcs(fetcher(service)).fetch(COLLATERAL, now_ms=NOW_MS)


@pytest.mark.parametrize("body", [b"\xff\xfe", b"{}", b"[]", b'{"tcbInfo":{"id":"TDX"}}', b"<html>"])
def test_tcb_info_that_is_not_signed_json_is_a_failed_fetch(service, body):
    tells_intel(service, COLLATERAL, collateral(COLLATERAL))
    address = f"{PCS}/tdx/certification/v4/tcb?fmspc={COLLATERAL.fmspc}"
    service.tells(address, dataclasses.replace(service.replies[address][0], body=body))
    with pytest.raises(EndorsementFetchError):
        IntelPcs(fetcher(service)).fetch(COLLATERAL, now_ms=NOW_MS)


@pytest.mark.parametrize("body", [b"", b"zz", b"\xff"])
def test_a_root_list_that_is_neither_der_nor_hexadecimal_is_a_failed_fetch(service, body):
    tells_intel(service, COLLATERAL, collateral(COLLATERAL), host=PCCS)
    service.tells(f"{PCCS}/sgx/certification/v4/rootcacrl", body)
    with pytest.raises(EndorsementFetchError):
        IntelPcs(fetcher(service), pccs=PCCS).fetch(COLLATERAL, now_ms=NOW_MS)


# The transport: what a hostile server may try

CRL_ADDRESS = f"{AMD}/vcek/v1/Milan/crl"
LARGE = b"\x30" * 40_000
HOSTILE = {
    "more than its bound, and says so": raw(head(b"Content-Length: 70000") + b"\x30" * 70_000),
    "more than its bound, announced as less": raw(head(b"Content-Length: 20") + b"\x30" * 70_000),
    "more than its bound, in chunks": raw(
        head(b"Transfer-Encoding: chunked") + b"9c40\r\n" + LARGE + b"\r\n" + b"9c40\r\n" + LARGE + b"\r\n0\r\n\r\n"
    ),
    "more than its bound, without a length": raw(head(b"Connection: close") + LARGE + LARGE),
    "a length that is no number": raw(head(b"Content-Length: many") + LARGE),
    "a length beyond all numbers": raw(head(b"Content-Length: " + b"9" * 400) + LARGE),
    "less than it announced": raw(head(b"Content-Length: 500") + crl("ARK-Milan")),
    "chunks that end early": raw(head(b"Transfer-Encoding: chunked") + b"9c40\r\nabc"),
    "a small answer that unpacks to a large one": raw(
        head(b"Content-Encoding: gzip", b"Content-Length: " + str(len(bomb(1 << 20))).encode()) + bomb(1 << 20)
    ),
    "something that is not HTTP": raw(b"SSH-2.0-OpenSSH_9.6 internal-7\r\n"),
    "a header without an end": raw(b"HTTP/1.1 200 OK\r\nX: " + b"a" * 300_000),
    "a redirect to another host": Reply(status=302, headers=(("Location", "https://evil.example/crl"),)),
    "a redirect to itself": Reply(status=301, headers=(("Location", f"https://{CRL_ADDRESS}"),)),
    "a redirect to plain HTTP": Reply(status=307, headers=(("Location", f"http://{CRL_ADDRESS}"),)),
    "not found": Reply(status=404),
    "not allowed": Reply(status=403),
    "a failure": Reply(status=500),
    "nothing new": Reply(status=304),
    "part of it": Reply(crl("ARK-Milan"), status=206),
    "no more requests": Reply(status=429),
    "not now": Reply(status=503),
}


REASONS = {
    "more than its bound, and says so": "70000 announced",
    "more than its bound, in chunks": "more",
    "more than its bound, without a length": "more",
    "less than it announced": "one that is not HTTP, or cut short",
    "a small answer that unpacks to a large one": "an encoded one",
    "something that is not HTTP": "one that is not HTTP, or cut short",
    "a redirect to another host": "HTTP 302",
    "part of it": "HTTP 206",
    "no more requests": "no answer in 3 attempts",
}


@pytest.mark.parametrize("sentence", HOSTILE)
def test_a_hostile_answer_is_a_failed_fetch(service, sentence):
    service.tells(CRL_ADDRESS, HOSTILE[sentence])
    with pytest.raises(EndorsementFetchError) as refused:
        source_of(service, CRL).fetch(CRL, now_ms=NOW_MS)
    assert refused.value.field == AMD
    assert refused.value.got == REASONS.get(sentence, refused.value.got)
    assert "internal-7" not in str(refused.value)
    assert set(service.asked) == {CRL_ADDRESS}
    assert len(service.asked) == (3 if sentence in ("no more requests", "not now") else 1)


def test_what_is_too_large_is_cut_off_while_it_streams(service):
    sent = []

    def endless(handler):
        handler.wfile.write(head(b"Transfer-Encoding: chunked"))
        try:
            while not service.ended.is_set():
                handler.wfile.write(b"4000\r\n" + b"\x30" * 0x4000 + b"\r\n")
                sent.append(0x4000)
        except OSError:
            pass

    service.tells(CRL_ADDRESS, Reply(raw=endless))
    with pytest.raises(EndorsementFetchError) as refused:
        source_of(service, CRL).fetch(CRL, now_ms=NOW_MS)
    assert refused.value.got == "more"
    assert sum(sent) < 64 * 1024 * 1024


SLOW = {
    "no answer at all": (),
    "a header that drips": tuple(bytes((byte,)) for byte in b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100),
    "a body that drips": (head(b"Content-Length: 1000"), *(b"\x30" for _ in range(200))),
    "chunks that drip": (head(b"Transfer-Encoding: chunked"), *(b"1\r\n0\r\n" for _ in range(200))),
}


@pytest.mark.parametrize("sentence", SLOW)
def test_a_slow_answer_ends_at_the_deadline(service, sentence):
    def drip(handler):
        try:
            for part in SLOW[sentence]:
                handler.wfile.write(part)
                if service.ended.wait(0.1):
                    return
            service.ended.wait(20)
        except OSError:
            pass

    service.tells(CRL_ADDRESS, Reply(raw=drip))
    started = time.monotonic()
    with pytest.raises(EndorsementFetchError) as refused:
        source_of(service, CRL, patience=SHORT).fetch(CRL, now_ms=NOW_MS)
    assert refused.value.got == "none in time"
    assert time.monotonic() - started < 10, "where a machine is busy; without a deadline it takes twenty"


def test_a_server_that_never_shakes_hands_ends_at_the_deadline(service):
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        given = fetcher(service, patience=SHORT, addresses={AMD: deaf.getsockname()[:2]})
        started = time.monotonic()
        with pytest.raises(EndorsementFetchError) as refused:
            AmdKds(given).fetch(CRL, now_ms=NOW_MS)
    assert refused.value.got == "none in time"
    assert time.monotonic() - started < 10


def test_a_server_that_is_not_there_is_a_failed_fetch(service):
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    given = fetcher(service, addresses={AMD: ("127.0.0.1", port)})
    with pytest.raises(EndorsementFetchError, match="refused"):
        AmdKds(given).fetch(CRL, now_ms=NOW_MS)


def test_a_name_that_does_not_resolve_is_a_failed_fetch(service):
    for unknown in ("name.invalid", f"{'a' * 64}.invalid"):
        given = fetcher(service, addresses={AMD: (unknown, 443)})
        with pytest.raises(EndorsementFetchError, match="resolve"):
            AmdKds(given).fetch(CRL, now_ms=NOW_MS)


# Who is asked


@pytest.mark.parametrize(
    "url",
    [
        "http://kdsintf.amd.com/vcek/v1/Milan/crl",
        "ftp://kdsintf.amd.com/",
        "https://evil.example/",
        "https://kdsintf.amd.com.evil.example/",
        "https://kdsintf.amd.com:8443/",
        "https://user@kdsintf.amd.com/",
        "https://kdsintf.amd.com@evil.example/",
        "https://127.0.0.1/",
        "https:///vcek",
        "kdsintf.amd.com",
    ],
)
def test_nobody_is_asked_but_the_hosts_that_are_allowed_over_https(service, url):
    with pytest.raises(EndorsementFetchError, match=r"expected (https|one that is allowed)"):
        fetcher(service).get(url, limit_bytes=100)
    assert service.asked == []


def test_a_host_that_is_not_in_the_list_is_not_asked(service):
    given = fetcher(service, hosts=(PCS,))
    for need in (VCEK, CHAIN, CRL):
        with pytest.raises(EndorsementFetchError, match="allowed"):
            AmdKds(given).fetch(need, now_ms=NOW_MS)
    assert service.asked == []


def test_a_server_with_another_name_or_authority_is_not_believed(service):
    service.tells(CRL_ADDRESS, crl("ARK-Milan"))
    for tls in ({}, None):
        with pytest.raises(EndorsementFetchError, match="CERTIFICATE_VERIFY_FAILED"):
            source_of(service, CRL, tls=tls).fetch(CRL, now_ms=NOW_MS)
    believed = tls_context(service.authorities)
    given = fetcher(
        service,
        hosts=("mirror.example",),
        tls={"mirror.example": believed},
        addresses={"mirror.example": ("127.0.0.1", service.port)},
    )
    with pytest.raises(EndorsementFetchError, match="ostname"):
        AmdKds(given, host="mirror.example").fetch(CRL, now_ms=NOW_MS)
    assert service.asked == []


def test_no_proxy_comes_from_the_environment(service, monkeypatch):
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    service.tells(CRL_ADDRESS, crl("ARK-Milan"))
    assert isinstance(source_of(service, CRL).fetch(CRL, now_ms=NOW_MS), Endorsement)


def test_authorities_that_are_no_file_are_a_mistake_of_the_user(tmp_path):
    (tmp_path / "empty.pem").write_text("")
    for file in (tmp_path / "none.pem", tmp_path / "empty.pem"):
        with pytest.raises(MissingFileError):
            tls_context(file)
    assert tls_context().minimum_version >= ssl.TLSVersion.TLSv1_2


# Patience


@pytest.mark.parametrize("status_code", [429, 503])
def test_a_service_that_is_busy_is_asked_again_after_a_wait_that_doubles(service, status_code):
    clock, busy = Clock(), Reply(status=status_code)
    service.tells(CRL_ADDRESS, busy, busy, Reply(crl("ARK-Milan")))
    patience = Patience(total_s=60, attempts=3, wait_s=10)
    found = source_of(service, CRL, patience=patience, clock=clock, wait=clock.wait).fetch(CRL, now_ms=NOW_MS)
    assert found.data == crl_data(service)
    assert clock.waits == [10, 20]


def crl_data(service):
    return service.replies[CRL_ADDRESS][0].body


def test_nobody_waits_after_the_last_attempt(service):
    clock = Clock()
    service.tells(CRL_ADDRESS, Reply(status=503))
    patience = Patience(total_s=600, attempts=3, wait_s=10)
    with pytest.raises(EndorsementFetchError, match="3 attempts"):
        source_of(service, CRL, patience=patience, clock=clock, wait=clock.wait).fetch(CRL, now_ms=NOW_MS)
    assert clock.waits == [10, 20]


def test_a_deadline_bounds_every_time_out():
    clock = Clock()
    deadline = Deadline(clock, 10)
    assert [deadline.within(timeout) for timeout in (None, 3, 30)] == [10, 3, 10]
    clock.now += 8
    assert [deadline.within(timeout) for timeout in (None, 1, 3)] == [2, 1, 2]
    for seconds in (2, 5):
        clock.now += seconds
        with pytest.raises(httpcore.TimeoutException):
            deadline.within(1)


class Recorded:
    """A network and its streams in one: remembers with which time-out each operation was asked for."""

    def __init__(self):
        self.timeouts = []

    def connect_tcp(self, host, port, timeout, *_):
        self.timeouts.append(timeout)
        return self

    def start_tls(self, context, hostname, timeout):
        self.timeouts.append(timeout)
        return self

    def read(self, size, timeout):
        self.timeouts.append(timeout)
        return b""

    def write(self, data, timeout):
        self.timeouts.append(timeout)


def test_every_operation_on_a_connection_ends_at_the_deadline():
    clock, inner = Clock(), Recorded()
    backend = DeadlineBackend(Deadline(clock, 10), {"host.example": ("127.0.0.1", 443)})
    backend._inner = inner
    stream = backend.connect_tcp("host.example", 443, 30)
    clock.now += 4
    secured = stream.start_tls(tls_context(), "host.example", 30)
    secured.write(b"x", 30)
    secured.read(1, 30)
    assert inner.timeouts == [10, 6, 6, 6]
    clock.now += 6
    for attempt in (lambda: secured.write(b"x", 30), lambda: secured.read(1, 30)):
        with pytest.raises(httpcore.TimeoutException):
            attempt()
    assert len(inner.timeouts) == 4


def test_the_wait_that_a_service_names_is_kept(service):
    clock = Clock()
    service.tells(CRL_ADDRESS, Reply(status=429, headers=(("Retry-After", "7"),)), Reply(crl("ARK-Milan")))
    patience = Patience(total_s=60, attempts=2, wait_s=10)
    source_of(service, CRL, patience=patience, clock=clock, wait=clock.wait).fetch(CRL, now_ms=NOW_MS)
    assert clock.waits == [7]


@pytest.mark.parametrize("named", ["Fri, 20 Mar 2026 00:00:00 GMT", "-1", "1e9", "\xb2", "\N{FULLWIDTH DIGIT NINE}"])
def test_a_wait_that_is_no_number_of_seconds_is_not_kept(service, named):
    clock = Clock()
    service.tells(
        CRL_ADDRESS,
        Reply(status=429, headers=(("Retry-After", named.encode().decode("latin-1")),)),
        Reply(crl("ARK-Milan")),
    )
    patience = Patience(total_s=60, attempts=2, wait_s=10)
    source_of(service, CRL, patience=patience, clock=clock, wait=clock.wait).fetch(CRL, now_ms=NOW_MS)
    assert clock.waits == [10]


def test_a_wait_beyond_the_deadline_is_not_waited_for(service):
    clock = Clock()
    service.tells(CRL_ADDRESS, Reply(status=503, headers=(("Retry-After", "3600"),)))
    patience = Patience(total_s=60, attempts=3, wait_s=10)
    with pytest.raises(EndorsementFetchError, match="3600 s"):
        source_of(service, CRL, patience=patience, clock=clock, wait=clock.wait).fetch(CRL, now_ms=NOW_MS)
    assert clock.waits == []


def test_no_more_is_asked_in_a_minute_than_the_budget_has(service):
    clock = Clock()
    service.tells(CRL_ADDRESS, crl("ARK-Milan"))
    source = source_of(service, CRL, most_per_minute=3, clock=clock, wait=clock.wait)
    for _ in range(3):
        source.fetch(CRL, now_ms=NOW_MS)
    with pytest.raises(EndorsementFetchError, match="a minute"):
        source.fetch(CRL, now_ms=NOW_MS)
    clock.now += 59
    with pytest.raises(EndorsementFetchError, match="a minute"):
        source.fetch(CRL, now_ms=NOW_MS)
    clock.now += 1
    source.fetch(CRL, now_ms=NOW_MS)
    assert len(service.asked) == 4


def test_threads_share_a_fetcher(service):
    answer = crl("ARK-Milan")
    service.tells(CRL_ADDRESS, answer)
    source, found = source_of(service, CRL), []
    threads = [threading.Thread(target=lambda: found.append(source.fetch(CRL, now_ms=NOW_MS).data)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [answer] * 4


def test_the_default_patience_is_bounded():
    patience = Patience()
    assert patience.total_s <= 60
    assert Fetcher(HOSTS)._patience == patience
