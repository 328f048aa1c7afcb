"""A small world of vendors: endorsements under names like theirs, and a service that replays what a test tells it to.

Nothing here is genuine, and nothing needs to be: whoever fetches checks that an answer is plausible, verifiers check
that it is genuine. The service speaks TLS on the loopback under the vendors' host names, by a test authority.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime as dt
import gzip
import hashlib
import http.server
import json
import ssl
import threading
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import ocsp
from cryptography.x509.oid import NameOID

from confed.attestation.endorsements import AmdChain, AmdCrl, AmdVcek, IntelCollateral, NvidiaOcsp, NvidiaRim
from confed.attestation.endorsing.fetching import Fetcher, Patience, tls_context

NOW = dt.datetime(2026, 3, 20, tzinfo=dt.UTC)
NOW_MS = int(NOW.timestamp() * 1000)
DAY = dt.timedelta(days=1)
DAY_MS = 86_400_000
KEY = ec.generate_private_key(ec.SECP384R1())

CHIP = bytes(range(1, 65))
VCEK = AmdVcek(product="Milan", hwid=CHIP.hex(), bootloader=4, tee=0, snp=24, microcode=219, fmc=None)
TURIN = AmdVcek(product="Turin", hwid="3b42092f69c656d3", bootloader=1, tee=0, snp=2, microcode=71, fmc=3)
CHAIN = AmdChain(product="Milan", key="vcek")
VLEK_CHAIN = AmdChain(product="Genoa", key="vlek")
CRL = AmdCrl(product="Milan", key="vcek")
COLLATERAL = IntelCollateral(tee="tdx", fmspc="90C06F000000", ca="platform")
SGX_COLLATERAL = IntelCollateral(tee="sgx", fmspc="00A067110000", ca="processor")
RIM = NvidiaRim(id="NV_GPU_DRIVER_GH100_550.144.03")
VBIOS_RIM = NvidiaRim(id="NV_GPU_VBIOS_1010_0200_882_96009F0001")


def name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def certificate(
    subject: str,
    issuer: str,
    *,
    ends: dt.datetime = NOW + 3000 * DAY,
    extensions: dict[str, bytes] | None = None,
    hosts: tuple[str, ...] = (),
    authority: bool = False,
    key: ec.EllipticCurvePrivateKey = KEY,
    signer: ec.EllipticCurvePrivateKey = KEY,
    serial: int | None = None,
) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(name(issuer))
        .public_key(key.public_key())
        .serial_number(serial or x509.random_serial_number())
        .not_valid_before(NOW - 9000 * DAY)
        .not_valid_after(ends)
    )
    for oid, value in (extensions or {}).items():
        builder = builder.add_extension(x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value), critical=False)
    if hosts:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(host) for host in hosts]), False)
    if authority:
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    return builder.sign(signer, hashes.SHA384())


def der(parsed: Any) -> bytes:
    return parsed.public_bytes(serialization.Encoding.DER)


def pem(*parsed: Any) -> bytes:
    return b"".join(entry.public_bytes(serialization.Encoding.PEM) for entry in parsed)


def vcek(need: AmdVcek, *, ends: dt.datetime = NOW + 3000 * DAY, wrapped: bool = False) -> bytes:
    """Return the certificate that AMD would give for a need; ``wrapped`` has its chip id as an OCTET STRING."""

    def number(value: int) -> bytes:
        return bytes((2, 1, value)) if value < 128 else bytes((2, 2, 0, value))

    def text(value: str) -> bytes:
        return bytes((0x16, len(value))) + value.encode()

    base, chip = "1.3.6.1.4.1.3704.1", bytes.fromhex(need.hwid)
    levels = {"1": need.bootloader, "2": need.tee, "8": need.microcode}
    levels |= {"9": need.fmc or 0, "3": need.snp} if need.product == "Turin" else {"3": need.snp, "4": 0}
    extensions = {f"{base}.3.{part}": number(0) for part in "45678"}
    extensions |= {f"{base}.3.{part}": number(level) for part, level in levels.items()}
    extensions |= {f"{base}.1": number(0), f"{base}.2": text(need.product)}
    extensions |= {f"{base}.4": bytes((4, len(chip))) + chip if wrapped else chip}
    return der(certificate("SEV-VCEK", f"SEV-{need.product}", ends=ends, extensions=extensions))


def amd_chain(need: AmdChain, *, ends: dt.datetime = NOW + 8000 * DAY) -> bytes:
    middle = f"SEV-VLEK-{need.product}" if need.key == "vlek" else f"SEV-{need.product}"
    root = f"ARK-{need.product}"
    return pem(certificate(middle, root, ends=ends, authority=True), certificate(root, root, authority=True))


def crl(issuer: str, *, ends: dt.datetime = NOW + 30 * DAY) -> bytes:
    builder = x509.CertificateRevocationListBuilder().issuer_name(name(issuer)).last_update(ends - 60 * DAY)
    return der(builder.next_update(ends).sign(KEY, hashes.SHA384()))


def amd_answer(need: AmdVcek | AmdChain | AmdCrl) -> bytes:
    match need:
        case AmdVcek():
            return vcek(need)
        case AmdChain():
            return amd_chain(need)
        case AmdCrl():
            return crl(f"ARK-{need.product}")


def moment(time: dt.datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


def collateral(need: IntelCollateral, *, ends: dt.datetime = NOW + 25 * DAY, **changes: Any) -> dict[str, str]:
    """Return what dcap-qvl calls a collateral, with any of its fields changed; nothing in it is signed by Intel."""
    root, signing = "Intel SGX Root CA", "Intel SGX TCB Signing"
    pck = f"Intel SGX PCK {need.ca.capitalize()} CA"
    kinds = {"tdx": ("TDX", "TD_QE"), "sgx": ("SGX", "QE")}[need.tee]
    chains = {issuer: pem(certificate(issuer, root), certificate(root, root)).decode() for issuer in (signing, pck)}
    both = {"issueDate": moment(ends - 30 * DAY), "tcbEvaluationDataNumber": 18, "pceId": "0000", "tcbType": 0}
    tcb = {"id": kinds[0], "version": 3, "nextUpdate": moment(ends), "fmspc": need.fmspc.lower()} | both
    identity = {"id": kinds[1], "version": 2, "nextUpdate": moment(ends + DAY)} | both
    return {
        "pck_crl_issuer_chain": chains[pck],
        "root_ca_crl": crl(root).hex(),
        "pck_crl": crl(pck).hex(),
        "tcb_info_issuer_chain": chains[signing],
        "tcb_info": json.dumps(tcb, separators=(",", ":")),
        "tcb_info_signature": "ab" * 64,
        "qe_identity_issuer_chain": chains[signing],
        "qe_identity": json.dumps(identity, separators=(",", ":")),
        "qe_identity_signature": "cd" * 64,
    } | changes


def rim(
    need: NvidiaRim,
    *,
    version: str | None = None,
    edition: str = "GPU",
    product: str = "GH100",
    ends: dt.datetime = NOW + 300 * DAY,
    signers: tuple[x509.Certificate, ...] | None = None,
) -> bytes:
    """Return a manifest of a version, with certificates where NVIDIA's have theirs; its signature is none."""
    stated = version or need.id.rsplit("_", 1)[-1]
    held = "".join(
        f"<X509Certificate>{base64.b64encode(der(entry)).decode()}</X509Certificate>"
        for entry in (rim_chain(ends=ends) if signers is None else signers)
    )
    c14n = "http://www.w3.org/2006/12/xml-c14n11"
    sha384 = "http://www.w3.org/2001/04/xmldsig-more#sha384"
    return (
        '<SoftwareIdentity xmlns="http://standards.iso.org/iso/19770/-2/2015/schema.xsd" name="GH100" tagId="t">'
        '<Meta xmlns:t="https://trustedcomputinggroup.org/resource/tcg-reference-integrity-manifest-rim-information-model/"'
        f' colloquialVersion="{stated}" edition="{edition}" product="{product}" t:PlatformManufacturerId="5703"/><Payload/>'
        f'<Signature xmlns="http://www.w3.org/2000/09/xmldsig#"><SignedInfo><CanonicalizationMethod Algorithm="{c14n}"/>'
        '<SignatureMethod Algorithm="http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha384"/><Reference URI=""><Transforms>'
        '<Transform Algorithm="http://www.w3.org/2000/09/xmldsig#enveloped-signature"/>'
        f'<Transform Algorithm="{c14n}"/></Transforms><DigestMethod Algorithm="{sha384}"/>'
        f"<DigestValue>{'A' * 64}</DigestValue></Reference></SignedInfo><SignatureValue>{'A' * 128}</SignatureValue>"
        f"<KeyInfo><X509Data>{held}</X509Data></KeyInfo></Signature></SoftwareIdentity>"
    ).encode()


def rim_chain(*, ends: dt.datetime = NOW + 300 * DAY) -> tuple[x509.Certificate, ...]:
    names = ("NVIDIA RIM signer", "NVIDIA RIM authority", "NVIDIA RIM root")
    issuers = (*names[1:], names[-1])
    return tuple(
        certificate(subject, issuer, ends=ends, authority=subject != names[0], serial=0x5000 + at)
        for at, (subject, issuer) in enumerate(zip(names, issuers, strict=True))
    )


def rim_answer(need: NvidiaRim, manifest: bytes | None = None, **changes: Any) -> bytes:
    manifest = rim(need) if manifest is None else manifest
    value = {
        "id": need.id,
        "rim": base64.b64encode(manifest).decode(),
        "sha256": hashlib.sha256(manifest).hexdigest(),
        "last_updated": "2025-03-14T15:09:03.011000",
        "rim_format": "TCG",
        "request_id": "ca80a80a-054c-476e-bdd2-7be7e3047fe5",
    }
    return json.dumps(value | changes).encode()


def status_need(subject: x509.Certificate, issuer: x509.Certificate) -> NvidiaOcsp:
    request = ocsp.OCSPRequestBuilder().add_certificate(subject, issuer, hashes.SHA384()).build()
    return NvidiaOcsp(
        issuer_name=request.issuer_name_hash.hex(),
        issuer_key=request.issuer_key_hash.hex(),
        serial=f"{request.serial_number:x}",
    )


STATUS = status_need(certificate("device", "NVIDIA authority", serial=0xABC), certificate("NVIDIA authority", "root"))


def status(need: NvidiaOcsp, *, ends: dt.datetime | None = NOW + DAY, algorithm: Any = None) -> bytes:
    builder = ocsp.OCSPResponseBuilder().add_response_by_hash(
        issuer_name_hash=bytes.fromhex(need.issuer_name),
        issuer_key_hash=bytes.fromhex(need.issuer_key),
        serial_number=int(need.serial, 16),
        algorithm=algorithm or hashes.SHA384(),
        cert_status=ocsp.OCSPCertStatus.GOOD,
        this_update=NOW - DAY,
        next_update=ends,
        revocation_time=None,
        revocation_reason=None,
    )
    responder = certificate("NVIDIA OCSP", "root")
    return der(builder.responder_id(ocsp.OCSPResponderEncoding.HASH, responder).sign(KEY, hashes.SHA384()))


def twice(response: bytes) -> bytes:
    """Return an OCSP response whose one status stands in it twice; its signature was none before."""

    def element(tag: int, content: bytes) -> bytes:
        size = len(content)
        length = bytes([size]) if size < 0x80 else bytes([0x82]) + size.to_bytes(2)
        return bytes([tag]) + length + content

    def elements(data: bytes) -> list[tuple[int, bytes]]:
        found = []
        while data:
            size, start = (data[1], 2) if data[1] < 0x80 else (0, 2 + (data[1] & 0x7F))
            size = size or int.from_bytes(data[2:start])
            found.append((data[0], data[start : start + size]))
            data = data[start + size :]
        return found

    def joined(parts: list[tuple[int, bytes]]) -> bytes:
        return b"".join(element(tag, content) for tag, content in parts)

    status_part, wrapped = elements(elements(response)[0][1])
    kind, octets = elements(elements(wrapped[1])[0][1])
    basic = elements(elements(octets[1])[0][1])
    signed = elements(basic[0][1])
    at = next(at for at, (tag, _) in enumerate(signed) if tag == 0x30)
    signed[at] = (0x30, signed[at][1] * 2)
    basic[0] = (0x30, joined(signed))
    inner = element(0x30, joined([kind, (0x04, element(0x30, joined(basic)))]))
    return element(0x30, joined([status_part, (wrapped[0], inner)]))


AMD, PCS, PCS_LIST = "kdsintf.amd.com", "api.trustedservices.intel.com", "certificates.trustedservices.intel.com"
RIMS, OCSP, PCCS = "rim.attestation.nvidia.com", "ocsp.ndis.nvidia.com", "pccs.clinic.example:8443"
HOSTS = (AMD, PCS, PCS_LIST, RIMS, OCSP, PCCS)


@dataclasses.dataclass(frozen=True)
class Reply:
    """What the service sends: a status, headers and a body, one made ``of`` the request's, or what ``raw`` writes."""

    body: bytes = b""
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    of: Callable[[bytes], bytes] | None = None
    raw: Callable[[http.server.BaseHTTPRequestHandler], None] | None = None


class Service:
    """Replays replies by host and path, one after the other and then the last one again; remembers what was asked."""

    def __init__(self) -> None:
        self.replies: dict[str, list[Reply]] = {}
        self.asked: list[str] = []
        self.bodies: list[bytes] = []
        self.ended = threading.Event()
        service = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                service.answer(self)

            def do_POST(self) -> None:
                service.answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        authority_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
        names = tuple(host.partition(":")[0] for host in HOSTS)
        own = certificate("service", "test authority", hosts=names, key=key, signer=authority_key)
        self.authority = pem(
            certificate("test authority", "test authority", authority=True, key=authority_key, signer=authority_key)
        )
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # a client that turns away is what these tests are about
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._own = pem(own) + key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def start(self, directory: Path) -> Service:
        file = directory / "service.pem"
        file.write_bytes(self._own)
        (directory / "authority.pem").write_bytes(self.authority)
        self.authorities = directory / "authority.pem"
        self.context = tls_context(self.authorities)
        self._tls.load_cert_chain(file)
        # The handshake is the handler's thread's, so that a client that goes away stops nobody.
        self._server.socket = self._tls.wrap_socket(
            self._server.socket, server_side=True, do_handshake_on_connect=False
        )
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        self.ended.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def port(self) -> int:
        return self._server.server_address[1]

    def tells(self, address: str, *replies: Reply | bytes) -> None:
        """Set what is replied at ``host/path?query``."""
        self.replies[address] = [reply if isinstance(reply, Reply) else Reply(body=reply) for reply in replies]

    def answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        address = f"{handler.headers['Host']}{handler.path}"
        self.asked.append(address)
        self.bodies.append(handler.rfile.read(int(handler.headers.get("Content-Length", "0"))))
        waiting = self.replies.get(address, [Reply(status=404)])
        reply = waiting.pop(0) if len(waiting) > 1 else waiting[0]
        if reply.raw is not None:
            handler.close_connection = True
            reply.raw(handler)
            return
        if reply.of is not None:
            reply = dataclasses.replace(reply, body=reply.of(self.bodies[-1]))
        handler.send_response(reply.status)
        stated = {key.lower() for key, _ in reply.headers}
        for key, value in reply.headers:
            handler.send_header(key, value)
        if not stated & {"content-length", "transfer-encoding"}:
            handler.send_header("Content-Length", str(len(reply.body)))
        handler.end_headers()
        handler.wfile.write(reply.body)


class Clock:
    """Monotonic seconds that pass only while somebody waits."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.waits: list[float] = []

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


def fetcher(service: Service, **changes: Any) -> Fetcher:
    """Return a fetcher of the service's: every host leads there, and is believed by its own certificate."""
    arguments: dict[str, Any] = {
        "hosts": HOSTS,
        "tls": dict.fromkeys(HOSTS, service.context),
        "addresses": {host.partition(":")[0]: ("127.0.0.1", service.port) for host in HOSTS},
        "patience": Patience(connect_s=5, read_s=5, total_s=20, attempts=3, wait_s=0),
    }
    return Fetcher(**(arguments | changes))


def tells_intel(service: Service, need: IntelCollateral, fields: dict[str, str], *, host: str = PCS) -> None:
    """Let a host answer as Intel's PCS does: signed JSON as it is, issuers' chains in headers, lists in DER."""

    def chain(header: str, field: str) -> tuple[tuple[str, str], ...]:
        return ((header, urllib.parse.quote(fields[field])),)

    def signed(part: str, field: str) -> bytes:
        return f'{{"{part}":{fields[field]},"signature":"{fields[field + "_signature"]}"}}'.encode()

    base = f"{host}/sgx/certification/v4"
    service.tells(
        f"{base}/pckcrl?ca={need.ca}&encoding=der",
        Reply(bytes.fromhex(fields["pck_crl"]), headers=chain("SGX-PCK-CRL-Issuer-Chain", "pck_crl_issuer_chain")),
    )
    own = f"{host}/{need.tee}/certification/v4"
    service.tells(
        f"{own}/tcb?fmspc={need.fmspc}",
        Reply(signed("tcbInfo", "tcb_info"), headers=chain("TCB-Info-Issuer-Chain", "tcb_info_issuer_chain")),
    )
    service.tells(
        f"{own}/qe/identity",
        Reply(
            signed("enclaveIdentity", "qe_identity"),
            headers=chain("SGX-Enclave-Identity-Issuer-Chain", "qe_identity_issuer_chain"),
        ),
    )
    service.tells(f"{base}/rootcacrl", fields["root_ca_crl"].encode())
    service.tells(f"{PCS_LIST}/IntelSGXRootCA.der", bytes.fromhex(fields["root_ca_crl"]))


def bomb(size_bytes: int) -> bytes:
    return gzip.compress(b"\0" * size_bytes)
