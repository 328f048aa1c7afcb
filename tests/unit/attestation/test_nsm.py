import contextlib
import ctypes
import errno
import hashlib
import os

import cbor2
import pytest
from attestation_world import EXPECTED, MANIFEST, NOW
from attester_world import (
    NITRO_ROOT,
    SecurityModule,
    binding_for,
    cose_sign1,
    document_payload,
    signed_document,
    unsigned_document,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from confed.attestation.attesters import nsm
from confed.attestation.attesters.nsm import (
    NitroSecurityModule,
    NsmAttester,
    Register,
    decode_response,
    encode_request,
)
from confed.attestation.tee.nitro import NitroVerifier
from confed.attestation.verifier import Registry
from confed.errors import EvidenceFormatError, EvidenceUnavailableError, SessionError

BINDING = binding_for("aws-nitro/1")
CONFIGURED = hashlib.sha384(bytes(48) + bytes.fromhex(MANIFEST)).digest()
OTHER = "7" * 64


@pytest.fixture
def device(tmp_path):
    """Return how to reach a played module through a real file and the one ioctl."""
    (tmp_path / "nsm").write_bytes(b"")
    return lambda module: NitroSecurityModule(tmp_path / "nsm", ioctl=module.ioctl)


def test_a_configured_enclave_s_document_is_genuine_and_names_the_manifest(device):
    attester = NsmAttester(device(SecurityModule(sign=signed_document)))
    attester.configure(MANIFEST)
    envelope = attester.attest(BINDING)
    claims = Registry((NitroVerifier(),)).verify(
        envelope.encode(), expected=EXPECTED, now_ms=NOW, anchors={"aws-nitro/1": (NITRO_ROOT,)}
    )
    assert (claims.evidence_class, claims.configuration) == ("aws-nitro", MANIFEST)
    assert claims.measurement == hashlib.sha384(b"image 0").hexdigest()
    assert not claims.debug


def test_an_enclave_that_was_not_configured_does_not_name_the_manifest(device):
    envelope = NsmAttester(device(SecurityModule(sign=signed_document))).attest(BINDING)
    claims = Registry((NitroVerifier(),)).verify(
        envelope.encode(), expected=EXPECTED, now_ms=NOW, anchors={"aws-nitro/1": (NITRO_ROOT,)}
    )
    assert claims.configuration == ""


def test_configuring_extends_once_and_locks(device):
    module = SecurityModule()
    attester = NsmAttester(device(module))
    attester.configure(MANIFEST)
    assert (module.registers[16], 16 in module.locked) == (CONFIGURED, True)
    attester.configure(MANIFEST)
    NsmAttester(device(module)).configure(MANIFEST)
    names = [next(iter(request)) for request in module.requests]
    assert (names.count("ExtendPCR"), names.count("LockPCR")) == (1, 1)
    assert module.registers[16] == CONFIGURED


def test_a_register_that_was_extended_but_not_locked_is_locked(device):
    module = SecurityModule()
    module.registers[16] = CONFIGURED
    NsmAttester(device(module)).configure(MANIFEST)
    assert 16 in module.locked


def module_with(register: bytes, *, locked: bool) -> SecurityModule:
    module = SecurityModule()
    module.registers[16] = register
    if locked:
        module.locked.add(16)
    return module


class Deaf(SecurityModule):
    """Says that it locked a register and does not."""

    def _LockPCR(self, index):  # noqa: N802
        return "LockPCR"


class Raced(SecurityModule):
    """Is extended by somebody else between reading and extending."""

    def _ExtendPCR(self, index, data):  # noqa: N802
        super()._ExtendPCR(index, b"somebody else's")
        return super()._ExtendPCR(index, data)


class Undone(SecurityModule):
    """Is extended by somebody else before it is locked."""

    def _LockPCR(self, index):  # noqa: N802
        super()._ExtendPCR(index, b"somebody else's")
        return super()._LockPCR(index)


UNCONFIGURABLE = {
    "an enclave that another manifest was put into": module_with(hashlib.sha384(b"x").digest(), locked=True),
    "an enclave whose PCR16 was extended with something else": module_with(hashlib.sha384(b"x").digest(), locked=False),
    "an enclave whose PCR16 was locked empty": module_with(bytes(48), locked=True),
    "a module that does not lock": Deaf(),
    "a module that was extended meanwhile": Raced(),
    "a module that was extended before it was locked": Undone(),
    "a module whose answer is too short": SecurityModule(answers={"DescribePCR": {"DescribePCR": {"lock": False, "data": b""}}}),
    "a module that refuses to extend": SecurityModule(answers={"ExtendPCR": {"Error": "ReadOnlyIndex"}}),
    "a module that refuses to lock": SecurityModule(answers={"LockPCR": {"Error": "InvalidOperation"}}),
    "a module that answers something else than was asked": SecurityModule(answers={"LockPCR": "LockPCRs"}),
}  # fmt: skip


@pytest.mark.parametrize("module", UNCONFIGURABLE.values(), ids=UNCONFIGURABLE.keys())
def test_configuration_is_refused_by(device, module):
    attester = NsmAttester(device(module))
    with pytest.raises(EvidenceUnavailableError):
        attester.configure(MANIFEST)


@pytest.mark.parametrize("register", [hashlib.sha384(b"x").digest(), bytes(47) + b"\1"])
def test_a_register_of_another_value_is_not_locked(device, register):
    module = module_with(register, locked=False)
    with pytest.raises(EvidenceUnavailableError):
        NsmAttester(device(module)).configure(MANIFEST)
    assert 16 not in module.locked


LOCKS = [{"Error": "InvalidIndex"}, "LockPCRs", "Success", {"LockPCRs": {}}, 1, None, ["LockPCR"]]


@pytest.mark.parametrize("answer", LOCKS)
def test_a_lock_is_taken_for_one_only_when_the_module_says_so(device, answer):
    with pytest.raises(EvidenceUnavailableError):
        device(SecurityModule(answers={"LockPCR": answer})).lock(16)


def test_something_other_than_a_digest_is_not_put_into_a_register(device):
    module = SecurityModule()
    with pytest.raises(EvidenceFormatError):
        NsmAttester(device(module)).configure("ab")
    assert module.requests == []


def test_a_binding_for_another_manifest_than_the_enclave_s_is_refused(device):
    attester = NsmAttester(device(SecurityModule()))
    attester.configure(OTHER)
    with pytest.raises(SessionError):
        attester.attest(BINDING)
    assert attester.attest(binding_for("aws-nitro/1", manifest=OTHER)).evidence


def test_attesting_changes_no_register(device):
    module = SecurityModule()
    before = dict(module.registers), set(module.locked)
    NsmAttester(device(module)).attest(BINDING)
    assert (module.registers, module.locked) == before
    assert [next(iter(request)) for request in module.requests] == ["Attestation"]


def test_device_evidence_is_bound(device):
    module = SecurityModule()
    envelope = NsmAttester(device(module), devices=lambda nonce: (b"gpu " + nonce,)).attest(BINDING)
    assert envelope.device_evidence == (b"gpu " + BINDING.device_nonce,)
    assert module.requests[0]["Attestation"]["user_data"] == BINDING.report_data(envelope.device_digest)


def test_a_binding_for_another_tee_is_refused(device):
    with pytest.raises(EvidenceFormatError):
        NsmAttester(device(SecurityModule())).attest(binding_for("tdx/1"))


DOCUMENTS = {
    "other user data": lambda module, _, nonce: unsigned_document(module, b"o" * 64, nonce),
    "no user data": lambda module, _, nonce: unsigned_document(module, None, nonce),
    "another nonce": lambda module, data, _: unsigned_document(module, data, b"o" * 32),
    "no nonce": lambda module, data, _: unsigned_document(module, data, None),
    "more after it": lambda *given: unsigned_document(*given) + b"\0",
    "an array of three": lambda *_: cbor2.dumps([b"", {}, b""]),
    "another algorithm": lambda module, data, nonce: cbor2.dumps(
        [cbor2.dumps({1: -7}), {}, document_payload(module, data, nonce), bytes(96)]
    ),
    "a payload that is no map": lambda *_: cose_sign1(cbor2.dumps([1]), None),
    "a payload that is not CBOR": lambda *_: cose_sign1(b"\xff", None),
    "nothing": lambda *_: b"",
}


@pytest.mark.parametrize("sign", DOCUMENTS.values(), ids=DOCUMENTS.keys())
def test_a_document_is_refused_with(device, sign):
    with pytest.raises(EvidenceUnavailableError):
        NsmAttester(device(SecurityModule(sign=sign))).attest(BINDING)


RESPONSES = {
    "an error": {"Error": "InternalError"},
    "an error of another form": {"Error": {"code": 1}},
    "another request's answer": {"GetRandom": {"random": b"x"}},
    "its name alone": "Attestation",
    "two answers": {"Attestation": {"document": b"x"}, "Error": "Success"},
    "an answer that is no map": {"Attestation": [b"x"]},
    "an answer without its field": {"Attestation": {}},
    "a field of another type": {"Attestation": {"document": "x"}},
    "a number": 7,
    "bytes that are not CBOR": b"\xff\xff",
    "an item and more": b"\x01\x02",
    "nothing": b"",
    "more than it may": b"\x59\x30\x00" + bytes(0x3000),
    "a tag": b"\xc0\x60",
}


@pytest.mark.parametrize("response", RESPONSES.values(), ids=RESPONSES.keys())
def test_a_module_is_refused_that_answers_with(device, response):
    module = SecurityModule(answers={"Attestation": response})
    with pytest.raises(EvidenceUnavailableError):
        NsmAttester(device(module)).attest(BINDING)


def test_an_error_is_named(device):
    with pytest.raises(EvidenceUnavailableError, match="InvalidIndex"):
        device(SecurityModule()).register(99)


def test_the_module_describes_itself(device):
    found = device(SecurityModule()).describe()
    assert (found.version, found.module_id, found.digest, found.registers) == ("1.2.0", "i-1-enc1", "SHA384", 32)
    assert found.locked == tuple(range(16))


DESCRIPTION = SecurityModule().answer("DescribeNSM")["DescribeNSM"]
DESCRIPTIONS = {
    "a version that is no number": {"version_major": "1"},
    "a version that is a truth value": {"version_minor": True},
    "a module without a name": {"module_id": None},
    "registers that are no numbers": {"locked_pcrs": ["0"]},
    "registers that are no list": {"locked_pcrs": 0},
}


@pytest.mark.parametrize("changes", DESCRIPTIONS.values(), ids=DESCRIPTIONS.keys())
def test_a_description_is_refused_with(device, changes):
    module = SecurityModule(answers={"DescribeNSM": {"DescribeNSM": {**DESCRIPTION, **changes}}})
    with pytest.raises(EvidenceUnavailableError):
        device(module).describe()


def test_registers_are_read_as_they_are(device):
    module = SecurityModule()
    assert device(module).register(0) == Register(value=hashlib.sha384(b"image 0").digest(), locked=True)
    assert device(module).register(20) == Register(value=bytes(48), locked=False)


def test_without_a_device_nothing_else_is_tried(tmp_path):
    with pytest.raises(EvidenceUnavailableError, match="ENOENT") as caught:
        NsmAttester(NitroSecurityModule(tmp_path / "nsm")).attest(BINDING)
    assert str(tmp_path / "nsm") in str(caught.value)


def test_a_file_that_is_no_device_gives_nothing(tmp_path):
    (tmp_path / "nsm").write_bytes(b"")
    with pytest.raises(EvidenceUnavailableError, match="ENOTTY"):
        NsmAttester(NitroSecurityModule(tmp_path / "nsm")).attest(BINDING)


def test_a_call_that_fails_is_told(device, tmp_path):
    class Failing(SecurityModule):
        def ioctl(self, descriptor, request, message):
            raise OSError(errno.EMSGSIZE, "played")

    with pytest.raises(EvidenceUnavailableError, match="EMSGSIZE"):
        device(Failing()).describe()


def test_a_response_is_not_longer_than_it_can_be(device):
    document = bytes(0x3000 - 26)
    answer = cbor2.dumps({"Attestation": {"document": document}})
    assert len(answer) == 0x3000
    module = SecurityModule(answers={"Attestation": answer})
    assert device(module).attestation(user_data=b"", nonce=b"") == document

    class Lying(SecurityModule):
        def ioctl(self, descriptor, request, message):
            super().ioctl(descriptor, request, message)
            message.response.length += 1

    with pytest.raises(EvidenceUnavailableError, match="bytes"):
        device(Lying(answers={"Attestation": answer})).attestation(user_data=b"", nonce=b"")


def test_no_descriptor_stays_open(device):
    module = device(SecurityModule())
    module.describe()
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 (the directory changes while it is read)
    module.describe()
    # Fewer, where what an earlier test left is closed meanwhile.
    assert len(os.listdir("/proc/self/fd")) <= before  # noqa: PTH208 (the same)


@pytest.mark.parametrize("value", [b"", bytes(47), bytes(49)])
def test_a_register_of_another_size_is_refused(device, value):
    module = SecurityModule(answers={"DescribePCR": {"DescribePCR": {"lock": True, "data": value}}})
    with pytest.raises(EvidenceUnavailableError):
        device(module).register(0)


@pytest.mark.parametrize("length", [0, 0x3001, 2**64 - 1])
def test_a_response_length_that_cannot_be_is_refused(device, length):
    class Lying(SecurityModule):
        def ioctl(self, descriptor, request, message):
            super().ioctl(descriptor, request, message)
            message.response.length = length
            return 0

    with pytest.raises(EvidenceUnavailableError):
        device(Lying()).describe()


def test_the_message_is_laid_out_as_the_kernel_reads_it():
    assert ctypes.sizeof(nsm._Message) == 32
    # _IOWR(0x0A, 0, 32 bytes): direction, size, type and number from the high bits down.
    direction, size, kind, number = 3, ctypes.sizeof(nsm._Message), 0x0A, 0
    expected = direction << 30 | size << 16 | kind << 8 | number
    assert expected == nsm._IOCTL_RAW


def test_requests_are_the_bytes_that_aws_s_library_sends():
    assert encode_request("DescribeNSM", None) == b"\x6bDescribeNSM"
    assert encode_request("LockPCR", {"index": 16}) == b"\xa1\x67LockPCR\xa1\x65index\x10"
    assert encode_request("ExtendPCR", {"index": 16, "data": b"ab"}) == (
        b"\xa1\x69ExtendPCR\xa2\x65index\x10\x64data\x42ab"
    )
    assert encode_request("Attestation", {"user_data": b"u", "nonce": b"n", "public_key": None}) == (
        b"\xa1\x6bAttestation\xa3\x69user_data\x41u\x65nonce\x41n\x6apublic_key\xf6"
    )


def test_a_request_larger_than_the_module_takes_is_refused():
    least = len(encode_request("ExtendPCR", {"index": 16, "data": bytes(0x100)})) - 0x100
    assert len(encode_request("ExtendPCR", {"index": 16, "data": bytes(0x1000 - least)})) == 0x1000
    with pytest.raises(EvidenceUnavailableError):
        encode_request("ExtendPCR", {"index": 16, "data": bytes(0x1001 - least)})


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_whatever_a_module_answers_is_read_or_refused(data):
    with contextlib.suppress(EvidenceUnavailableError):
        decode_response(data)
