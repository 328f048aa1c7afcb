"""``confed evidence enrol``: two machines and four files, with software TPMs; and every file that is not the right one."""

import dataclasses
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from typer.testing import CliRunner

from confed.attestation import enrolment_files
from confed.attestation.attesters.tpm import TpmAttester
from confed.attestation.certificates import load_certificate
from confed.attestation.enrolment_files import ANSWER_WITHIN_S, Answer, Challenge, Kept, Request
from confed.attestation.evidence import Expectation
from confed.attestation.tee import tpm
from confed.attestation.tee.credential import Credential
from confed.attestation.tee.tpm_certificates import EndorsementKeyClaims
from confed.attestation.tee.tpm_enrolment import PendingEnrolment
from confed.cli import evidence
from confed.errors import (
    ConfigError,
    EvidenceUnavailableError,
    KeyBindingError,
    MissingFileError,
    StaleEndorsementError,
    TrustAnchorError,
)
from confed.keybroker.identity import OwnerHome

sys.path.insert(0, str(Path(__file__).parents[1] / "attestation"))
from attestation_world import BINDING
from swtpm_world import manufacture, missing, running

OWNER = "hospital"


def invoke(*arguments):
    return CliRunner().invoke(evidence.app, ["enrol", *(str(argument) for argument in arguments)])


def done(*arguments):
    result = invoke(*arguments)
    if result.exception is not None:
        raise result.exception
    assert result.exit_code == 0
    return result


def refused(error, *arguments):
    result = invoke(*arguments)
    assert type(result.exception) is error, repr(result.exception)
    assert "\n" not in str(result.exception)


@pytest.fixture
def owner():
    """Give the public key of an owner whose home is on this machine."""
    made = OwnerHome.create(OWNER, environment="simulation", now_ms=time.time_ns() // 1_000_000)
    made.close()
    return made.identity_key.public_key()


# The files alone.

PENDING = PendingEnrolment(
    attestation_key=b"\x00\x0b" + b"a" * 32,
    endorsement_key=EndorsementKeyClaims(
        certificate=b"c" * 32, key=b"e" * 32, manufacturer="id:00001014", model="m", version="v", root=b"r" * 32,
        activated=False,
    ),
    secret=b"s" * 32,
)  # fmt: skip
FINGERPRINT = "ab" * 32
FILES = {
    "request": Request(attestation_key=b"a", endorsement_key=b"e", certificate=b"c"),
    "challenge": Challenge(request=FINGERPRINT, credential=Credential(blob=b"b", seed=b"s")),
    "kept": Kept(request=FINGERPRINT, pending=PENDING, opened_at=1_000),
    "answer": Answer(request=FINGERPRINT, secret=b"s" * 32),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_read_as_it_was_written_also_with_a_line_end_and_as_no_other(name):
    value = FILES[name]
    data = enrolment_files.encode(value)
    assert enrolment_files.decode(type(value), data + b"\n", what=name) == value
    for other in FILES.values():
        if other is not value:
            with pytest.raises(ConfigError):
                enrolment_files.decode(type(other), data, what=name)


def changed(**changes):
    document = json.loads(enrolment_files.encode(FILES["answer"]))
    return json.dumps({**document, **changes}, separators=(",", ":"), sort_keys=True).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{}", b"[]", b"null", b"\xff", b"[" * 5000, b"x" * (enrolment_files.LIMIT_BYTES + 1), changed(more=1),
        changed(content={}), changed(content=[]), changed(content={"request": FINGERPRINT}),
        changed(content={"request": FINGERPRINT, "secret": "zz"}), changed(format=1),
        changed(content={"request": FINGERPRINT, "secret": "00", "more": 1}), changed()[:-1], changed() + b" ",
    ],
)  # fmt: skip
def test_a_file_that_was_changed_is_a_mistake_in_one_line(data):
    with pytest.raises(ConfigError) as caught:
        enrolment_files.decode(Answer, data, what="answer")
    assert "\n" not in str(caught.value)


def test_secrets_are_not_shown():
    assert "73737373" not in repr(FILES["kept"]) + repr(FILES["answer"])
    assert "sss" not in repr(FILES["kept"]) + repr(FILES["answer"])


@pytest.mark.parametrize("now_ms", [999, 1_000 + ANSWER_WITHIN_S * 1000 + 1, 0])
def test_a_challenge_is_open_for_a_day(now_ms):
    FILES["kept"].require_open(1_000 + ANSWER_WITHIN_S * 1000)
    with pytest.raises(StaleEndorsementError):
        FILES["kept"].require_open(now_ms)


def written(folder, **values):
    paths = {name: folder / f"{name}.json" for name in FILES}
    for name, path in paths.items():
        path.write_bytes(enrolment_files.encode(values.get(name, FILES[name])))
    return SimpleNamespace(**paths)


def signing(files, out):
    return ("sign", files.answer, "--kept", files.kept, "--owner", OWNER, "--out", out)


def test_only_the_secret_is_signed_for_and_only_once(tmp_path, owner):
    kept = dataclasses.replace(FILES["kept"], opened_at=time.time_ns() // 1_000_000)
    out = tmp_path / "enrolment.json"
    for answer, error in (
        (Answer(request=FINGERPRINT, secret=b"t" * 32), KeyBindingError),
        (Answer(request=FINGERPRINT, secret=b""), KeyBindingError),
        (Answer(request="cd" * 32, secret=b"s" * 32), KeyBindingError),
    ):
        refused(error, *signing(written(tmp_path, kept=kept, answer=answer), out))
    refused(StaleEndorsementError, *signing(written(tmp_path), out))
    assert not out.exists()
    files = written(tmp_path, kept=kept)
    done(*signing(files, out))
    assert out.exists()
    assert not files.kept.exists()
    refused(MissingFileError, *signing(files, out))
    assert owner


def test_mistakes_are_told(tmp_path, owner):
    files = written(tmp_path)
    out = tmp_path / "out"
    root = ("--root", files.request, "--out", out, "--keep", tmp_path / "keep")
    refused(ConfigError, "challenge", files.answer, *root)
    refused(MissingFileError, "challenge", tmp_path / "none", *root)
    refused(ConfigError, "challenge", files.request, "--root", files.request, "--out", out, "--keep", out)
    refused(KeyBindingError, "challenge", files.request, *root, "--fingerprint", FINGERPRINT)
    refused(ConfigError, "activate", files.answer, "--tcti", "device:/dev/none", "--out", out)
    refused(ConfigError, "activate", files.challenge, "--tcti", "none", "--out", out)
    refused(ConfigError, "request", "--tcti", "", "--out", out)
    refused(ConfigError, *signing(SimpleNamespace(answer=files.answer, kept=files.answer), out))
    for days in (0, 367, "long"):
        assert invoke(*signing(files, out), "--days", days).exit_code == 2
    stranger = ("sign", files.answer, "--kept", files.kept, "--owner", "nobody", "--out", out)
    fresh = dataclasses.replace(FILES["kept"], opened_at=time.time_ns() // 1_000_000)
    written(tmp_path, kept=fresh)
    refused(MissingFileError, *stranger)
    refused(ConfigError, *signing(files, tmp_path / "no" / "such" / "folder"))
    assert files.kept.exists()
    assert not out.exists()


def test_a_tpm_that_is_not_there_is_told(tmp_path):
    pytest.importorskip("tpm2_pytss", reason="tpm2-pytss is not installed")
    refused(EvidenceUnavailableError, "request", "--tcti", "device:/dev/no-such-tpm", "--out", tmp_path / "out")


# With two TPMs of one authority.


@pytest.fixture(scope="module")
def tpms(tmp_path_factory):
    pytest.importorskip("tpm2_pytss", reason="tpm2-pytss is not installed: no software TPM can be asked")
    if missing():
        pytest.skip(f"no software TPM here: {missing()} not installed")
    folder = tmp_path_factory.mktemp("swtpm")
    states = [manufacture(folder, name) for name in ("one", "two")]
    authority = folder / "authority"
    with running(states[0]) as one, running(states[1]) as two:
        yield SimpleNamespace(
            one=one, two=two, issuer=authority / "issuercert.pem", root=authority / "swtpm-localca-rootca-cert.pem"
        )


@pytest.fixture
def road(tmp_path, tpms, owner):
    """Give where each machine has its files."""
    for name in ("site", "verifier"):
        (tmp_path / name).mkdir()
    site, verifier = tmp_path / "site", tmp_path / "verifier"
    return SimpleNamespace(
        **vars(tpms),
        key=owner,
        request=site / "request.json",
        challenge=verifier / "challenge.json",
        kept=verifier / "kept.json",
        answer=site / "answer.json",
        enrolment=verifier / "enrolment.json",
    )


def challenge(road, *more):
    return ("challenge", road.request, "--out", road.challenge, "--keep", road.kept, *more)


def trusted(road):
    return ("--root", road.root, "--intermediate", road.issuer)


def fingerprint(result):
    return next(line.split()[1] for line in result.stderr.splitlines() if line.startswith("fingerprint"))


def test_four_steps_give_an_enrolment_that_evidence_is_verified_with(road):
    shown = done("request", "--tcti", road.one, "--out", road.request)
    asked = done(*challenge(road, *trusted(road), "--fingerprint", fingerprint(shown)))
    assert fingerprint(asked) == fingerprint(shown)
    assert road.kept.stat().st_mode & 0o077 == 0
    done("activate", road.challenge, "--tcti", road.one, "--out", road.answer)
    printed = done(*signing(road, road.enrolment))
    assert not road.kept.exists()
    named = load_pem_public_key(printed.stdout.encode())
    assert named == road.key

    attester = TpmAttester.own(road.one, enrolment=road.enrolment.read_bytes(), selection=(0, 15))
    envelope = attester.attest(dataclasses.replace(BINDING, profile="tpm/1"))
    roots = [
        load_certificate(road.root.read_bytes(), what="root").der,
        named.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
    ]

    def verified(anchors):
        return tpm.verify_files(
            envelope.evidence,
            [load_certificate(road.issuer.read_bytes(), what="issuer").der],
            expectation=Expectation(nonce=None, report_data=None),
            now=evidence.datetime.now(evidence.UTC),
            anchors=anchors,
        )

    assert verified(roots).rooted_by == "enrolment"
    with pytest.raises(TrustAnchorError):
        verified(roots[:1])


def test_another_tpm_does_not_open_the_challenge(road):
    done("request", "--tcti", road.one, "--out", road.request)
    done(*challenge(road, *trusted(road)))
    refused(EvidenceUnavailableError, "activate", road.challenge, "--tcti", road.two, "--out", road.answer)
    assert not road.answer.exists()


def test_a_request_that_was_exchanged_on_its_way_is_found_by_its_fingerprint(road):
    shown = done("request", "--tcti", road.one, "--out", road.request)
    done("request", "--tcti", road.two, "--out", road.request)
    refused(KeyBindingError, *challenge(road, *trusted(road), "--fingerprint", fingerprint(shown)))
    assert not road.kept.exists()


def test_an_answer_to_another_challenge_is_not_signed_for(road):
    done("request", "--tcti", road.one, "--out", road.request)
    done(*challenge(road, *trusted(road)))
    done("activate", road.challenge, "--tcti", road.one, "--out", road.answer)
    done(*challenge(road, *trusted(road)))
    refused(KeyBindingError, *signing(road, road.enrolment))
    assert not road.enrolment.exists()


def test_an_ek_certificate_of_nobody_that_is_trusted_is_refused(road):
    done("request", "--tcti", road.one, "--out", road.request)
    refused(TrustAnchorError, *challenge(road, "--root", road.root))
    junk = road.request.with_name("junk.pem")
    junk.write_bytes(b"junk")
    refused(ConfigError, *challenge(road, "--root", junk))
    assert not road.challenge.exists()
    assert not road.kept.exists()
