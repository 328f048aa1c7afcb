import datetime as dt
import errno
import os
import struct
import threading
import uuid
from pathlib import Path

import pytest
from attester_world import TsmKernel, binding_for, snp_report, tdx_quote
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from confed.attestation.attesters import certificate_table
from confed.attestation.attesters.certificate_table import GUIDS, certificates_of
from confed.attestation.attesters.configfs_tsm import ConfigfsTsmAttester
from confed.attestation.attesters.device_files import SystemFiles
from confed.errors import ConfigError, EvidenceFormatError, EvidenceUnavailableError

SNP = binding_for("sev-snp/1")
TDX = binding_for("tdx/1")
OTHERS = b"o" * 64


def certificate(name: str) -> bytes:
    key = ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    start = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), 7, start, start + dt.timedelta(days=1))
    return builder.sign(key, hashes.SHA384()).public_bytes(serialization.Encoding.DER)


VCEK, ASK, ARK = (certificate(name) for name in ("VCEK", "ASK", "ARK"))
PEM = x509.load_der_x509_certificate(ASK).public_bytes(serialization.Encoding.PEM)


def table(*entries: tuple[bytes, bytes], end: bytes = bytes(24), gap: int = 0) -> bytes:
    offset = (len(entries) * 24) + len(end) + gap
    header, content = b"", b""
    for guid, data in entries:
        header += guid + struct.pack("<II", offset + len(content), len(data))
        content += data
    return header + end + bytes(gap) + content


TABLE = table((GUIDS["VCEK"].bytes, VCEK), (GUIDS["ASK"].bytes, ASK), (GUIDS["ARK"].bytes, ARK))


def snp(kernel: TsmKernel, **options) -> ConfigfsTsmAttester:
    pauses: list[float] = []
    options = {"privilege_level": 0, "root": kernel.root, "files": kernel, "pause": pauses.append, **options}
    return ConfigfsTsmAttester.sev_snp(**options)


def tdx(kernel: TsmKernel, **options) -> ConfigfsTsmAttester:
    return ConfigfsTsmAttester.tdx(root=kernel.root, files=kernel, **options)


def test_an_snp_report_is_for_the_binding_and_its_entry_is_gone(tmp_path):
    kernel = TsmKernel(tmp_path, auxblob=TABLE)
    envelope = snp(kernel).attest(SNP)
    assert envelope.profile == "sev-snp/1"
    assert envelope.evidence == snp_report(SNP.report_data())
    assert envelope.binding == SNP.encoded
    assert envelope.endorsements == (VCEK, ASK, ARK)
    assert list((tmp_path / "report").iterdir()) == []
    assert type(envelope).decode(envelope.encode()) == envelope


@pytest.mark.parametrize(("version", "kind"), [(4, 2), (5, 2), (5, 3)])
def test_a_tdx_quote_is_for_the_binding(tmp_path, version, kind):
    def make(data: bytes) -> bytes:
        return tdx_quote(data, version=version, kind=kind)

    log = tmp_path / "CCEL"
    log.write_bytes(b"events")
    (tmp_path / "tsm").mkdir()
    kernel = TsmKernel(tmp_path / "tsm", provider="tdx_guest", make=make)
    envelope = tdx(kernel, event_logs=(log,)).attest(TDX)
    assert (envelope.profile, envelope.evidence) == ("tdx/1", make(TDX.report_data()))
    assert (envelope.endorsements, envelope.event_logs) == ((), (b"events",))


def test_device_evidence_is_asked_first_and_bound(tmp_path):
    asked = []

    def devices(nonce: bytes) -> tuple[bytes, ...]:
        asked.append(nonce)
        return (b"gpu 0", b"gpu 1")

    envelope = snp(TsmKernel(tmp_path), devices=devices).attest(SNP)
    assert asked == [SNP.device_nonce]
    assert envelope.device_evidence == (b"gpu 0", b"gpu 1")
    assert envelope.evidence[0x50:0x90] == SNP.report_data(envelope.device_digest) != SNP.report_data()


def test_devices_that_were_named_and_are_not_there_are_refused(tmp_path):
    with pytest.raises(EvidenceUnavailableError):
        snp(TsmKernel(tmp_path), devices=lambda _nonce: ()).attest(SNP)


def test_the_privilege_level_is_asked_for_and_must_be_the_report_s(tmp_path):
    kernel = TsmKernel(tmp_path, make=lambda data: snp_report(data, vmpl=2))
    seen = []
    kernel.on["wrote privlevel"] = lambda entry: seen.append((entry / "privlevel").read_text())
    assert snp(kernel, privilege_level=2).attest(SNP).evidence[0x30] == 2
    assert seen == ["2"]
    with pytest.raises(EvidenceUnavailableError):
        snp(kernel, privilege_level=1).attest(SNP)


@pytest.mark.parametrize("level", [-1, 4])
def test_a_privilege_level_that_there_is_not_is_refused(level):
    with pytest.raises(ConfigError):
        ConfigfsTsmAttester.sev_snp(privilege_level=level)


def test_a_binding_for_another_tee_is_refused_before_anything_is_asked(tmp_path):
    kernel = TsmKernel(tmp_path)
    with pytest.raises(EvidenceFormatError):
        snp(kernel).attest(TDX)
    assert kernel.entries == []


# When somebody else writes, how many of our writes are done when it is noticed, and how many reports were made.
RACES = {
    "somebody who wrote into our entry as soon as it was made": ("made", 0, 0),
    "somebody who wrote between our writes": ("wrote privlevel", 2, 0),
    "somebody who wrote after us, before the report": ("wrote inblob", 2, 0),
    "somebody who wrote while the report was read": ("made a report", 2, 1),
    "somebody who wrote after the certificates were read": ("read auxblob", 2, 1),
}


@pytest.mark.parametrize(("moment", "writes", "reads"), RACES.values(), ids=RACES.keys())
@pytest.mark.parametrize("data", [OTHERS, SNP.report_data()], ids=["other data", "the same data"])
def test_evidence_is_refused_after(tmp_path, moment, writes, reads, data):
    kernel = TsmKernel(tmp_path)
    kernel.on[moment] = lambda entry: kernel.intrude(entry, data)
    with pytest.raises(EvidenceUnavailableError, match="generation"):
        snp(kernel).attest(SNP)
    assert list((tmp_path / "report").iterdir()) == []
    assert (kernel.writes, kernel.reads) == (writes, reads)


def test_a_provider_that_changes_meanwhile_is_refused(tmp_path):
    kernel = TsmKernel(tmp_path)
    kernel.on["made a report"] = lambda entry: (entry / "provider").write_text("tdx_guest\n")
    with pytest.raises(EvidenceUnavailableError, match="provider"):
        snp(kernel).attest(SNP)


@pytest.mark.parametrize("provider", ["tdx_guest", "arm_cca_guest", "sev_guest2", "", "sev_guest\nsev_guest", "\udcff"])
def test_another_provider_is_refused_and_not_used(tmp_path, provider):
    kernel = TsmKernel(tmp_path, provider="sev_guest")
    kernel.on["made"] = lambda entry: (entry / "provider").write_bytes(provider.encode(errors="surrogateescape"))
    with pytest.raises(EvidenceUnavailableError):
        snp(kernel).attest(SNP)
    assert kernel.reads == 0
    assert list((tmp_path / "report").iterdir()) == []


REPORTS = {
    "a report of other data": lambda _: snp_report(OTHERS),
    "a report of no data": lambda _: snp_report(bytes(64)),
    "a report of another privilege level": lambda data: snp_report(data, vmpl=1),
    "a report that is too short": lambda data: snp_report(data)[:-1],
    "a report that is too long": lambda data: snp_report(data) + b"\0",
    "a report that is empty": lambda _: b"",
    "a report larger than any": lambda _: bytes(40_000),
    "a quote": tdx_quote,
}


@pytest.mark.parametrize("make", REPORTS.values(), ids=REPORTS.keys())
def test_snp_evidence_is_refused_for(tmp_path, make):
    with pytest.raises(EvidenceUnavailableError):
        snp(TsmKernel(tmp_path, make=make)).attest(SNP)
    assert list((tmp_path / "report").iterdir()) == []


QUOTES = {
    "a quote of other data": lambda _: tdx_quote(OTHERS),
    "a quote of another TEE": lambda data: tdx_quote(data, tee_type=0),
    "a quote of an older version": lambda data: tdx_quote(data, version=3),
    "a quote of a newer version": lambda data: tdx_quote(data, version=6),
    "a quote of version 5 with a body of another kind": lambda data: tdx_quote(data, version=5, kind=1),
    "a quote of version 5 with a body of another size": lambda data: (
        tdx_quote(data, version=5)[:50] + b"\x88\x02" + tdx_quote(data, version=5)[52:] + bytes(100)
    ),
    "a quote that ends with its body": lambda data: tdx_quote(data)[: 48 + 584],
    "a quote that ends in its header": lambda data: tdx_quote(data)[:40],
    "a report": snp_report,
}


@pytest.mark.parametrize("make", QUOTES.values(), ids=QUOTES.keys())
def test_tdx_evidence_is_refused_for(tmp_path, make):
    with pytest.raises(EvidenceUnavailableError):
        tdx(TsmKernel(tmp_path, provider="tdx_guest", make=make)).attest(TDX)


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EAGAIN])
def test_a_busy_provider_is_asked_again_a_few_times(tmp_path, number):
    pauses: list[float] = []
    kernel = TsmKernel(tmp_path, busy=(9, number))
    assert snp(kernel, pause=pauses.append).attest(SNP).evidence
    assert (kernel.reads, len(pauses)) == (10, 9)
    assert sum(pauses) < 10


@pytest.mark.parametrize(("busy", "reads"), [((10, errno.EBUSY), 10), ((1, errno.EIO), 1), ((1, errno.ENOTTY), 1)])
def test_a_provider_that_stays_busy_or_fails_is_given_up(tmp_path, busy, reads):
    kernel = TsmKernel(tmp_path, busy=busy)
    with pytest.raises(EvidenceUnavailableError, match=errno.errorcode[busy[1]]):
        snp(kernel).attest(SNP)
    assert kernel.reads == reads
    assert list((tmp_path / "report").iterdir()) == []


def test_without_configfs_nothing_else_is_tried(tmp_path):
    attester = ConfigfsTsmAttester.sev_snp(privilege_level=0, root=tmp_path / "tsm")
    with pytest.raises(EvidenceUnavailableError, match="ENOENT") as caught:
        attester.attest(SNP)
    assert str(tmp_path / "tsm" / "report") in str(caught.value)


def test_a_tree_of_plain_files_that_no_kernel_fills_gives_nothing(tmp_path):
    (tmp_path / "report").mkdir()
    with pytest.raises(EvidenceUnavailableError, match="ENOENT"):
        ConfigfsTsmAttester.sev_snp(privilege_level=0, root=tmp_path).attest(SNP)
    assert list((tmp_path / "report").iterdir()) == []


def test_an_option_that_the_kernel_refuses_is_told(tmp_path):
    kernel = TsmKernel(tmp_path)

    def refuse(entry: Path) -> None:
        raise OSError(errno.EINVAL, "played")

    kernel.on["wrote privlevel"] = refuse
    with pytest.raises(EvidenceUnavailableError, match=r"privlevel.*EINVAL"):
        snp(kernel).attest(SNP)
    assert list((tmp_path / "report").iterdir()) == []


def test_an_entry_that_stays_is_told(tmp_path):
    kernel = TsmKernel(tmp_path)

    def refuse(entry: Path) -> None:
        raise OSError(errno.EBUSY, "played")

    kernel.on["removing"] = refuse
    with pytest.raises(EvidenceUnavailableError, match="can be removed"):
        snp(kernel).attest(SNP)


def test_an_entry_that_stays_does_not_hide_what_went_wrong_before(tmp_path):
    kernel = TsmKernel(tmp_path, make=lambda _: snp_report(OTHERS))
    kernel.on["made a report"] = kernel.on["removing"] = lambda entry: (_ for _ in ()).throw(OSError(5, "played"))
    with pytest.raises(EvidenceUnavailableError, match="outblob"):
        snp(kernel).attest(SNP)


def test_a_missing_certificate_table_leaves_the_report(tmp_path):
    assert snp(TsmKernel(tmp_path, auxblob=None)).attest(SNP).endorsements == ()


def test_a_trust_domain_has_no_certificate_table(tmp_path):
    kernel = TsmKernel(tmp_path, provider="tdx_guest", make=tdx_quote)
    kernel.on["made"] = lambda entry: (entry / "auxblob").write_bytes(TABLE)
    assert tdx(kernel).attest(TDX).endorsements == ()


def test_a_certificate_table_that_cannot_be_read_is_told(tmp_path):
    kernel = TsmKernel(tmp_path, auxblob=None)
    kernel.on["made a report"] = lambda entry: (entry / "auxblob").mkdir()
    kernel.on["removing"] = lambda entry: (entry / "auxblob").rmdir()
    with pytest.raises(EvidenceUnavailableError, match="auxblob"):
        snp(kernel).attest(SNP)


def test_an_event_log_larger_than_its_bound_is_refused(tmp_path):
    (tmp_path / "CCEL").write_bytes(bytes(256 * 1024 + 1))
    (tmp_path / "tsm").mkdir()
    kernel = TsmKernel(tmp_path / "tsm", provider="tdx_guest", make=tdx_quote)
    with pytest.raises(EvidenceUnavailableError, match="CCEL"):
        tdx(kernel, event_logs=(tmp_path / "CCEL",)).attest(TDX)


def test_the_provider_is_read_without_making_evidence(tmp_path):
    kernel = TsmKernel(tmp_path, provider="tdx_guest")
    assert tdx(kernel).provider() == "tdx_guest"
    assert kernel.reads == 0
    assert list((tmp_path / "report").iterdir()) == []


def test_threads_do_not_meet(tmp_path):
    kernel = TsmKernel(tmp_path)
    attester = snp(kernel)
    bindings = [binding_for("sev-snp/1", nonce=bytes([number]) * 32) for number in range(8)]
    together = threading.Barrier(len(bindings))
    kernel.on["made"] = lambda _entry: together.wait(10)
    envelopes: dict[int, bytes] = {}

    def attest(number: int) -> None:
        envelopes[number] = attester.attest(bindings[number]).evidence

    threads = [threading.Thread(target=attest, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert envelopes == {number: snp_report(bindings[number].report_data()) for number in range(8)}
    assert len(set(kernel.entries)) == 8


def test_a_second_thread_does_not_come_into_an_entry_of_the_same_name(tmp_path, monkeypatch):
    monkeypatch.setattr("confed.attestation.attesters.configfs_tsm.secrets.token_hex", lambda _bytes: "same")
    kernel = TsmKernel(tmp_path)
    second: list[Exception] = []

    def meanwhile(entry: Path) -> None:
        kernel.on.clear()
        try:
            snp(kernel).attest(binding_for("sev-snp/1", nonce=b"2" * 32))
        except EvidenceUnavailableError as error:
            second.append(error)

    kernel.on["wrote inblob"] = meanwhile
    assert snp(kernel).attest(SNP).evidence == snp_report(SNP.report_data())
    assert "EEXIST" in str(second[0])


def test_files_are_read_within_bounds_and_links_are_not_followed(tmp_path):
    files = SystemFiles()
    (tmp_path / "file").write_bytes(b"12345")
    assert files.read(tmp_path / "file", limit_bytes=5) == b"12345"
    assert files.read(tmp_path / "file", limit_bytes=3) == b"1234"
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for action in (
        lambda: files.read(tmp_path / "link", limit_bytes=5),
        lambda: files.write(tmp_path / "link", b"x"),
        lambda: files.write(tmp_path / "absent", b"x"),
        lambda: files.make(tmp_path),
        lambda: files.remove(tmp_path),
    ):
        with pytest.raises(OSError, match="Errno"):
            action()


def test_a_file_is_read_to_its_end_however_small_the_parts(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"12345")
    read = os.read
    monkeypatch.setattr(os, "read", lambda descriptor, _size: read(descriptor, 1))
    assert SystemFiles().read(tmp_path / "file", limit_bytes=5) == b"12345"
    assert SystemFiles().read(tmp_path / "file", limit_bytes=3) == b"1234"


def test_no_descriptor_stays_open(tmp_path):
    attester = snp(TsmKernel(tmp_path, auxblob=TABLE))
    attester.attest(SNP)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 (the directory changes while it is read)
    attester.attest(SNP)
    # Fewer, where what an earlier test left is closed meanwhile.
    assert len(os.listdir("/proc/self/fd")) <= before  # noqa: PTH208 (the same)


def test_a_short_write_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setattr("os.write", lambda _descriptor, data: len(data) - 1)
    with pytest.raises(OSError, match="short write"):
        SystemFiles().write(tmp_path / "file", b"data")


UNKNOWN = uuid.UUID("11111111-2222-3333-4444-555555555555").bytes
LITTLE_ENDIAN = table((GUIDS["VCEK"].bytes_le, VCEK), (GUIDS["ASK"].bytes_le, PEM))

TABLES = {
    "nothing": (b"", ()),
    "an end alone": (bytes(24), ()),
    "an end and padding": (bytes(4096), ()),
    "an end and padding up to the bound": (bytes(certificate_table.LIMIT_BYTES), ()),
    "sixteen entries": (table(*((bytes([number + 1]) * 16, b"x") for number in range(16))), ()),
    "three certificates": (TABLE, (VCEK, ASK, ARK)),
    "certificates after a gap": (table((GUIDS["VLEK"].bytes, VCEK), gap=100), (VCEK,)),
    "GUIDs in the other byte order, and a certificate as text": (LITTLE_ENDIAN, (VCEK, ASK)),
    "other GUIDs among them": (table((UNKNOWN, b"anything"), (GUIDS["ASK"].bytes, ASK)), (ASK,)),
}


@pytest.mark.parametrize(("data", "certificates"), TABLES.values(), ids=TABLES.keys())
def test_a_certificate_table_may_hold(data, certificates):
    assert certificates_of(data) == certificates


def entry(offset: int, length: int, guid: bytes = GUIDS["VCEK"].bytes) -> bytes:
    return guid + struct.pack("<II", offset, length)


BAD_TABLES = {
    "one without end": TABLE[:72],
    "one that ends within an entry": TABLE[:40],
    "one larger than its bound": bytes(certificate_table.LIMIT_BYTES + 1),
    "an end that points somewhere": TABLE[:72] + bytes(16) + b"\1" + TABLE[89:],
    "an end that has a length": TABLE[:72] + bytes(20) + b"\1" + TABLE[93:],
    "another entry within the table": entry(48, len(VCEK)) + entry(0, 8, UNKNOWN) + bytes(24) + VCEK,
    "another entry that overlaps": entry(72, len(VCEK)) + entry(80, 8, UNKNOWN) + bytes(24) + VCEK,
    "another entry of no length": entry(72, len(VCEK)) + entry(72 + len(VCEK), 0, UNKNOWN) + bytes(24) + VCEK + b"x",
    "seventeen entries": table(*((bytes([number + 1]) * 16, b"x") for number in range(17))),
    "a certificate outside": entry(48, len(VCEK) + 1) + bytes(24) + VCEK,
    "a certificate far outside": entry(2**32 - 1, 2**32 - 1) + bytes(24) + VCEK,
    "a certificate within the table": entry(24, 24) + bytes(24) + VCEK,
    "a certificate of no length": entry(48, 0) + bytes(24) + VCEK,
    "certificates that overlap": entry(72, len(VCEK)) + entry(73, len(VCEK), GUIDS["ASK"].bytes) + bytes(24) + VCEK + b"x",
    "one GUID twice": table((GUIDS["VCEK"].bytes, VCEK), (GUIDS["VCEK"].bytes_le, VCEK)),
    "something other than a certificate": table((GUIDS["VCEK"].bytes, b"x" * 100)),
    "a certificate and more": table((GUIDS["VCEK"].bytes, VCEK + b"\0")),
    "two certificates for one GUID": table((GUIDS["ASK"].bytes, PEM + PEM)),
}  # fmt: skip


@pytest.mark.parametrize("data", BAD_TABLES.values(), ids=BAD_TABLES.keys())
def test_a_certificate_table_is_refused_with(data):
    with pytest.raises(EvidenceUnavailableError):
        certificates_of(data)


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 200), st.binary(min_size=1, max_size=8), st.integers(0, len(TABLE)))
def test_whatever_a_host_gives_is_read_or_refused(at, changed, end):
    data = (TABLE[:at] + changed + TABLE[at + len(changed) :])[:end]
    try:
        found = certificates_of(data)
    except EvidenceUnavailableError:
        return
    for der in found:
        assert x509.load_der_x509_certificate(der)
