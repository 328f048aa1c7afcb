import threading

import pytest
from attester_world import GramineFiles, binding_for, sgx_quote, tdx_quote

from confed.attestation.attesters.gramine import GramineAttester
from confed.errors import EvidenceFormatError, EvidenceUnavailableError

BINDING = binding_for("sgx/1")
OTHERS = b"o" * 64


def attester(files: GramineFiles, **options) -> GramineAttester:
    return GramineAttester(directory=files.directory, files=files, **options)


@pytest.mark.parametrize("kind", [b"dcap", b"dcap\n"])
def test_a_quote_is_for_the_binding(tmp_path, kind):
    envelope = attester(GramineFiles(tmp_path, kind=kind)).attest(BINDING)
    assert (envelope.profile, envelope.evidence) == ("sgx/1", sgx_quote(BINDING.report_data()))
    assert (envelope.binding, envelope.endorsements) == (BINDING.encoded, ())


def test_device_evidence_is_asked_first_and_bound(tmp_path):
    files = GramineFiles(tmp_path)
    envelope = attester(files, devices=lambda nonce: (b"gpu " + nonce,)).attest(BINDING)
    assert envelope.device_evidence == (b"gpu " + BINDING.device_nonce,)
    assert envelope.evidence == sgx_quote(BINDING.report_data(envelope.device_digest))


def test_a_binding_for_another_tee_is_refused(tmp_path):
    with pytest.raises(EvidenceFormatError):
        attester(GramineFiles(tmp_path)).attest(binding_for("tdx/1"))


@pytest.mark.parametrize("kind", [b"none", b"epid", b"", b"dcap\0", b"DCAP", b"dcap" * 20])
def test_another_attestation_type_is_refused_and_nothing_is_written(tmp_path, kind):
    files = GramineFiles(tmp_path, kind=kind)
    with pytest.raises(EvidenceUnavailableError):
        attester(files).attest(BINDING)
    assert (tmp_path / "user_report_data").read_bytes() == bytes(64)


QUOTES = {
    "a quote of other data": lambda _: sgx_quote(OTHERS),
    "a quote of no data": lambda _: sgx_quote(bytes(64)),
    "a quote of another version": lambda data: sgx_quote(data, version=4),
    "a TDX quote": tdx_quote,
    "a quote that ends with its body": lambda data: sgx_quote(data)[: 48 + 384],
    "a quote that ends in its header": lambda data: sgx_quote(data)[:1],
    "an empty quote": lambda _: b"",
    "a quote larger than any": lambda data: sgx_quote(data) + bytes(16 * 1024),
}


@pytest.mark.parametrize("make", QUOTES.values(), ids=QUOTES.keys())
def test_evidence_is_refused_for(tmp_path, make):
    with pytest.raises(EvidenceUnavailableError):
        attester(GramineFiles(tmp_path, make=make)).attest(BINDING)


@pytest.mark.parametrize("missing", ["attestation_type", "user_report_data", "quote"])
def test_without_gramine_s_files_nothing_else_is_tried(tmp_path, missing):
    GramineFiles(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(EvidenceUnavailableError, match=f"{missing}.*ENOENT"):
        GramineAttester(directory=tmp_path).attest(BINDING)


def test_threads_take_turns(tmp_path):
    files = GramineFiles(tmp_path)
    maker = attester(files)
    bindings = [binding_for("sgx/1", nonce=bytes([number]) * 32) for number in range(8)]
    found: dict[int, bytes] = {}
    together = threading.Barrier(len(bindings))

    def attest(number: int) -> None:
        together.wait(10)
        found[number] = maker.attest(bindings[number]).evidence

    threads = [threading.Thread(target=attest, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == {number: sgx_quote(bindings[number].report_data()) for number in range(8)}


def test_two_attesters_of_one_process_take_turns_too(tmp_path):
    files = GramineFiles(tmp_path)
    inside, release = threading.Event(), threading.Event()

    class Slow(GramineFiles):
        def read(self, file, *, limit_bytes):
            if file.name == "quote":
                inside.set()
                release.wait(10)
            return super().read(file, limit_bytes=limit_bytes)

    slow = Slow(tmp_path)
    other = binding_for("sgx/1", nonce=b"2" * 32)
    found: list[bytes] = []
    first = threading.Thread(target=lambda: found.append(attester(slow).attest(BINDING).evidence))
    second = threading.Thread(target=lambda: found.append(attester(files).attest(other).evidence))
    first.start()
    assert inside.wait(10)
    second.start()
    second.join(0.2)
    assert second.is_alive()
    assert (tmp_path / "user_report_data").read_bytes() == BINDING.report_data()
    release.set()
    first.join(10)
    second.join(10)
    assert found == [sgx_quote(BINDING.report_data()), sgx_quote(other.report_data())]
