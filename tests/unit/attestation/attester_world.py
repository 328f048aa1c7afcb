"""Machines that TEEs would run in, played: configfs-tsm and Gramine behind real files, and a Nitro Secure Module.

What an attester does to them are its own system calls; what is played is how the other side reacts.
"""

from __future__ import annotations

import ctypes
import datetime as dt
import errno
import hashlib
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cbor2
from attestation_world import BINDING as SIMULATED_BINDING
from attestation_world import NOW
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from confed.attestation.attesters.device_files import SystemFiles
from confed.attestation.evidence import Binding

REPORT_DATA_BYTES = 64


def binding_for(profile: str, **changes: Any) -> Binding:
    fields = {name: getattr(SIMULATED_BINDING, name) for name in SIMULATED_BINDING.__dataclass_fields__}
    return Binding(**{**fields, "profile": profile, **changes})


def snp_report(report_data: bytes, *, vmpl: int = 0) -> bytes:
    """Return the layout of a report, unsigned."""
    report = bytearray(1184)
    report[0:4] = (5).to_bytes(4, "little")
    report[0x30:0x34] = vmpl.to_bytes(4, "little")
    report[0x50:0x90] = report_data
    return bytes(report)


def tdx_quote(report_data: bytes, *, version: int = 4, tee_type: int = 0x81, kind: int = 2) -> bytes:
    """Return the layout of a quote, unsigned."""
    body = bytearray(648 if kind == 3 else 584)
    body[520:584] = report_data
    descriptor = struct.pack("<HI", kind, len(body)) if version == 5 else b""
    return struct.pack("<HHI40x", version, 2, tee_type) + descriptor + bytes(body) + b"signature"


def sgx_quote(report_data: bytes, *, version: int = 3) -> bytes:
    body = bytearray(384)
    body[320:384] = report_data
    return struct.pack("<HHI40x", version, 2, 0) + bytes(body) + b"signature"


class TsmKernel:
    """The files of configfs-tsm in a directory, with the kernel's reactions to what is done to them.

    Every call goes to the real file first (``SystemFiles``), then the kernel does its part: it populates an entry that
    was made, counts writes, makes a report when one is read, and removes an entry's files with its directory.

    Args:
        root: an empty directory.
        provider: the module's name.
        make: report_data -> outblob.
        busy: how often reading ``outblob`` fails first, and with which number.
    """

    def __init__(
        self,
        root: Path,
        *,
        provider: str = "sev_guest",
        make: Callable[[bytes], bytes] = snp_report,
        auxblob: bytes | None = b"",
        busy: tuple[int, int] = (0, errno.EBUSY),
    ) -> None:
        self.root = root
        (root / "report").mkdir()
        self.system = SystemFiles()
        self.provider = provider
        self.make_report = make
        self.auxblob = auxblob
        self.busy, self.busy_number = busy
        self.entries: list[Path] = []
        self.writes = self.reads = 0
        self.on: dict[str, Callable[[Path], None]] = {}

    def make(self, directory: Path) -> None:
        self.system.make(directory)
        self.entries.append(directory)
        for name, content in (("generation", b"0\n"), ("provider", self.provider.encode() + b"\n")):
            (directory / name).write_bytes(content)
        (directory / "inblob").write_bytes(b"")
        (directory / "outblob").write_bytes(b"")
        if self.provider == "sev_guest":
            (directory / "privlevel").write_bytes(b"0")
            if self.auxblob is not None:
                (directory / "auxblob").write_bytes(self.auxblob)
        self._happens("made", directory)

    def remove(self, directory: Path) -> None:
        self._happens("removing", directory)
        for file in directory.iterdir():
            file.unlink()
        self.system.remove(directory)

    def write(self, file: Path, data: bytes) -> None:
        if file.exists():
            file.write_bytes(b"")
        self.system.write(file, data)
        self.writes += 1
        self.count(file.parent)
        self._happens(f"wrote {file.name}", file.parent)

    def read(self, file: Path, *, limit_bytes: int) -> bytes:
        if file.name == "outblob":
            self.reads += 1
            if self.busy:
                self.busy -= 1
                raise OSError(self.busy_number, "played")
            file.write_bytes(self.make_report((file.parent / "inblob").read_bytes()))
            self._happens("made a report", file.parent)
        data = self.system.read(file, limit_bytes=limit_bytes)
        self._happens(f"read {file.name}", file.parent)
        return data

    def count(self, entry: Path) -> None:
        """Add one to an entry's generation, as the kernel does for every write, whoever writes."""
        (entry / "generation").write_text(f"{int((entry / 'generation').read_text()) + 1}\n")

    def intrude(self, entry: Path, report_data: bytes) -> None:
        """Write into an entry as somebody else would."""
        (entry / "inblob").write_bytes(report_data)
        self.count(entry)

    def _happens(self, what: str, entry: Path) -> None:
        if what in self.on:
            self.on[what](entry)


class GramineFiles:
    """Gramine's pseudo-files in a directory; reading the quote makes one of what was written last."""

    def __init__(self, directory: Path, *, kind: bytes = b"dcap", make: Callable[[bytes], bytes] = sgx_quote) -> None:
        self.directory = directory
        self.system = SystemFiles()
        self.make_quote = make
        (directory / "attestation_type").write_bytes(kind)
        (directory / "user_report_data").write_bytes(bytes(REPORT_DATA_BYTES))
        (directory / "quote").write_bytes(b"")

    def write(self, file: Path, data: bytes) -> None:
        self.system.write(file, data)

    def read(self, file: Path, *, limit_bytes: int) -> bytes:
        if file.name == "quote":
            file.write_bytes(self.make_quote((self.directory / "user_report_data").read_bytes()))
        return self.system.read(file, limit_bytes=limit_bytes)


class SecurityModule:
    """A Nitro Secure Module that reads requests and writes responses through the pointers of its one ioctl.

    Args:
        sign: user_data, nonce -> attestation document.
        answers: answers to give instead of its own, by request.
    """

    def __init__(
        self,
        *,
        sign: Callable[[SecurityModule, bytes | None, bytes | None], bytes] | None = None,
        answers: Mapping[str, Any] | None = None,
    ) -> None:
        self.registers = {index: bytes(48) for index in range(32)}
        for index in range(3):
            self.registers[index] = hashlib.sha384(b"image %d" % index).digest()
        self.locked = set(range(16))
        self.answers = dict(answers or {})
        self.requests: list[Any] = []
        self._sign = sign or unsigned_document

    def ioctl(self, descriptor: int, request: int, message: Any) -> int:
        assert (descriptor >= 3, request) == (True, 0xC0200A00)
        asked = ctypes.string_at(message.request.address, message.request.length)
        assert len(asked) <= 0x1000
        answer = self.answer(cbor2.loads(asked))
        encoded = answer if isinstance(answer, bytes) else cbor2.dumps(answer)
        assert message.response.length == 0x3000
        ctypes.memmove(message.response.address, encoded, min(len(encoded), message.response.length))
        message.response.length = len(encoded)
        return 0

    def answer(self, request: Any) -> Any:
        self.requests.append(request)
        name, arguments = (request, {}) if isinstance(request, str) else next(iter(request.items()))
        if name in self.answers:
            return self.answers[name]
        return getattr(self, f"_{name}")(**arguments)

    def _DescribeNSM(self) -> Any:  # noqa: N802
        return {
            "DescribeNSM": {
                "version_major": 1, "version_minor": 2, "version_patch": 0, "module_id": "i-1-enc1",
                "max_pcrs": 32, "locked_pcrs": sorted(self.locked), "digest": "SHA384",
            }
        }  # fmt: skip

    def _DescribePCR(self, index: int) -> Any:  # noqa: N802
        if index not in self.registers:
            return {"Error": "InvalidIndex"}
        return {"DescribePCR": {"lock": index in self.locked, "data": self.registers[index]}}

    def _ExtendPCR(self, index: int, data: bytes) -> Any:  # noqa: N802
        if index in self.locked:
            return {"Error": "ReadOnlyIndex"}
        self.registers[index] = hashlib.sha384(self.registers[index] + data).digest()
        return {"ExtendPCR": {"data": self.registers[index]}}

    def _LockPCR(self, index: int) -> Any:  # noqa: N802
        self.locked.add(index)
        return "LockPCR"

    def _Attestation(self, user_data: bytes | None, nonce: bytes | None, public_key: bytes | None) -> Any:  # noqa: N802
        assert public_key is None
        return {"Attestation": {"document": self._sign(self, user_data, nonce)}}


def document_payload(module: SecurityModule, user_data: bytes | None, nonce: bytes | None, **changes: Any) -> bytes:
    return cbor2.dumps(
        {
            "module_id": "i-1-enc1", "digest": "SHA384", "timestamp": SIMULATED_BINDING.issued_at,
            "pcrs": {index: module.registers[index] for index in sorted(module.locked)},
            "certificate": b"leaf", "cabundle": [b"root"],
            "public_key": None, "user_data": user_data, "nonce": nonce, **changes,
        }
    )  # fmt: skip


def cose_sign1(payload: bytes, key: ec.EllipticCurvePrivateKey | None) -> bytes:
    """Return COSE_Sign1 with ES384; without a key the signature is zeros."""
    protected = cbor2.dumps({1: -35})
    signature = bytes(96)
    if key is not None:
        der = key.sign(cbor2.dumps(["Signature1", protected, b"", payload]), ec.ECDSA(hashes.SHA384()))
        signature = b"".join(number.to_bytes(48, "big") for number in decode_dss_signature(der))
    return cbor2.dumps([protected, {}, payload, signature])


def unsigned_document(module: SecurityModule, user_data: bytes | None, nonce: bytes | None) -> bytes:
    return cose_sign1(document_payload(module, user_data, nonce), None)


def nitro_certificates() -> tuple[bytes, bytes, ec.EllipticCurvePrivateKey]:
    """Return a root, a leaf that it issued, and the leaf's key."""
    keys = [ec.generate_private_key(ec.SECP384R1()) for _ in range(2)]
    names = [x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]) for name in ("root", "i-1-enc1")]
    start = dt.datetime.fromtimestamp(NOW / 1000, tz=dt.UTC) - dt.timedelta(hours=1)
    found: list[bytes] = []
    for name, key, authority in zip(names, keys, (True, False), strict=True):
        usage = dict.fromkeys(
            (
                "content_commitment",
                "key_encipherment",
                "data_encipherment",
                "key_agreement",
                "encipher_only",
                "decipher_only",
            ),
            False,
        )
        builder = x509.CertificateBuilder(names[0], name, key.public_key(), 7, start, start + dt.timedelta(hours=3))
        builder = builder.add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        signs = {"digital_signature": not authority, "key_cert_sign": authority, "crl_sign": authority}
        builder = builder.add_extension(x509.KeyUsage(**usage, **signs), critical=True)
        found.append(builder.sign(keys[0], hashes.SHA384()).public_bytes(serialization.Encoding.DER))
    return found[0], found[1], keys[1]


NITRO_ROOT, NITRO_LEAF, NITRO_KEY = nitro_certificates()


def signed_document(module: SecurityModule, user_data: bytes | None, nonce: bytes | None) -> bytes:
    return cose_sign1(
        document_payload(module, user_data, nonce, certificate=NITRO_LEAF, cabundle=[NITRO_ROOT]), NITRO_KEY
    )
