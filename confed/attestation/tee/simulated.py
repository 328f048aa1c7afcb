"""The simulated TEE: a local root, instances certified by it, evidence in a format of its own, and its verifier.

It proves that evidence came from a process that somebody with the root's key file launched, and nothing about
hardware: whoever can read that file can make any claim. Its format is no vendor's, its root says what it is, its
evidence class is ``simulated``, and appraisal refuses it in production by a floor in code.

Evidence is canonical JSON followed by a 64-byte Ed25519 signature of the instance's key over it. The instance's key is
certified at launch, for at most 24 hours, by a certificate that carries what was launched in a critical extension.
"""

from __future__ import annotations

import base64
import contextlib
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from confed import canonical, record
from confed.attestation.evidence import Binding, Envelope, Report, from_base64, parse_canonical
from confed.attestation.tee.simulated_certificate import (
    Launch,
    issue_instance,
    issue_root,
    launch_of,
    parse_certificate,
    public_key,
    require_chain,
)
from confed.errors import EncodingError, EvidenceFormatError, EvidenceSignatureError, MissingFileError
from confed.files import sync_folder

PROFILE = "simulated/1"
_EVIDENCE_FORMAT = "confed-simulated-evidence/1"
_INSTANCE_FORMAT = "confed-simulated-instance/1"
_DOMAIN = b"confed/v1/simulated-evidence\x00"
_SIGNATURE_BYTES = 64
_EVIDENCE_LIMIT_BYTES = 64 * 1024
_PRIVATE_BYTES = 32
_LAYER_LIMIT = 32
_LAYER_NAME_LIMIT = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class _Statement:
    """What an instance signs; ``certificate`` in base64."""

    format: str
    certificate: str
    report_data: bytes
    self_reported_layers: tuple[str, ...]


class SimulatedInstance:
    """One launched instance: its attestation key and the certificate that says what was launched."""

    def __init__(self, *, key: Ed25519PrivateKey, certificate: bytes) -> None:
        self._key = key
        self.certificate = certificate

    def __repr__(self) -> str:
        return "SimulatedInstance(…)"

    @property
    def launch(self) -> Launch:
        """What was launched, as its certificate says (not verified)."""
        return launch_of(parse_certificate(self.certificate))

    def sign(self, payload: bytes) -> bytes:
        """Sign the payload of evidence."""
        return self._key.sign(_DOMAIN + payload)

    def to_bytes(self) -> bytes:
        """Return key and certificate, a SECRET, to hand to the instance's own process over an inherited descriptor."""
        return canonical.encode(
            {
                "certificate": base64.b64encode(self.certificate).decode(),
                "format": _INSTANCE_FORMAT,
                "key": base64.b64encode(self._key.private_bytes_raw()).decode(),
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> SimulatedInstance:
        """Return the instance of ``to_bytes``.

        Raises:
            EvidenceFormatError: anything else, or a key that is not the certified one.
        """
        value = parse_canonical(data, limit_bytes=_EVIDENCE_LIMIT_BYTES, what="simulated instance")
        if not isinstance(value, dict) or sorted(value) != ["certificate", "format", "key"]:  # pyright: ignore[reportUnknownArgumentType]
            raise EvidenceFormatError("simulated instance", expected="its three fields", got="something else")
        fields: dict[str, Any] = value  # pyright: ignore[reportUnknownVariableType]
        private = from_base64("simulated instance key", fields["key"])
        if fields["format"] != _INSTANCE_FORMAT or len(private) != _PRIVATE_BYTES:
            raise EvidenceFormatError("simulated instance", expected=_INSTANCE_FORMAT, got="something else")
        certificate = from_base64("simulated instance certificate", fields["certificate"])
        key = Ed25519PrivateKey.from_private_bytes(private)
        if public_key(parse_certificate(certificate)) != key.public_key():
            raise EvidenceFormatError("simulated instance key", expected="the certified one", got="another")
        return cls(key=key, certificate=certificate)


class SimulatedAttester:
    """Makes simulated evidence.

    Args:
        layers: what ``confinement.confine`` returned; goes into the evidence as self-reported.

    Raises:
        EvidenceFormatError: too many layers, or names that are too long.
    """

    def __init__(self, instance: SimulatedInstance, layers: Sequence[str] = ()) -> None:
        _require_layers(tuple(layers))
        self._instance = instance
        self._layers = tuple(layers)

    @property
    def profile(self) -> str:
        """``simulated/1``."""
        return PROFILE

    def attest(self, binding: Binding) -> Envelope:
        """Return evidence for ``binding``; its time is the binding's.

        Raises:
            EvidenceFormatError: a binding for another profile.
        """
        if binding.profile != PROFILE:
            raise EvidenceFormatError("binding.profile", expected=PROFILE, got=binding.profile)
        statement = _Statement(
            format=_EVIDENCE_FORMAT,
            certificate=base64.b64encode(self._instance.certificate).decode(),
            report_data=binding.report_data(),
            self_reported_layers=self._layers,
        )
        payload = canonical.encode(record.to_json(statement))
        return Envelope(profile=PROFILE, evidence=payload + self._instance.sign(payload), binding=binding.encoded)


class SimulatedPlatform:
    """The local root of simulated TEEs, which launches instances. Whoever holds its key can simulate anything."""

    def __init__(self, *, key: Ed25519PrivateKey, certificate: x509.Certificate) -> None:
        self._key = key
        self._certificate = certificate

    def __repr__(self) -> str:
        return "SimulatedPlatform(…)"

    @property
    def anchor(self) -> bytes:
        """The root's certificate (DER): the trust anchor for ``simulated/1``."""
        return self._certificate.public_bytes(serialization.Encoding.DER)

    @classmethod
    def create(cls, now_ms: int) -> SimulatedPlatform:
        """Make a new root, valid for ten years."""
        key = Ed25519PrivateKey.generate()
        return cls(key=key, certificate=issue_root(key, now_ms=now_ms))

    @classmethod
    def load(cls, path: Path) -> SimulatedPlatform:
        """Return the root that ``save`` wrote.

        Raises:
            MissingFileError: no such file.
            EncodingError: something else is in it, or others may read it.
        """
        try:
            with path.open("rb") as file:
                mode = os.fstat(file.fileno()).st_mode & 0o777
                data = file.read(_EVIDENCE_LIMIT_BYTES)
        except FileNotFoundError as error:
            raise MissingFileError("simulated TEE root", expected="a file", got=str(path)) from error
        if mode & 0o077:
            raise EncodingError(f"mode of {path}", expected="readable by its owner alone (0600)", got=oct(mode))
        try:
            key = serialization.load_pem_private_key(data, password=None)
            certificate = x509.load_pem_x509_certificate(data)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise EncodingError(str(path), expected="a simulated TEE root (PEM)", got="something else") from error
        if not isinstance(key, Ed25519PrivateKey) or certificate.public_key() != key.public_key():
            raise EncodingError(str(path), expected="a certificate of the Ed25519 key beside it", got="another")
        return cls(key=key, certificate=certificate)

    @classmethod
    def load_or_create(cls, path: Path, now_ms: int) -> SimulatedPlatform:
        """Return the root in ``path``, made first if there is none; of several callers at once one makes it.

        Raises:
            EncodingError: see ``load``.
        """
        try:
            return cls.load(path)
        except MissingFileError:
            with contextlib.suppress(FileExistsError):  # Somebody else may be quicker; then theirs is the root.
                cls.create(now_ms).save(path)
            return cls.load(path)

    def save(self, path: Path) -> None:
        """Write the root with mode 0600, whole or not at all, and never over another.

        Raises:
            FileExistsError: there is one already.
        """
        data = self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ) + self._certificate.public_bytes(serialization.Encoding.PEM)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.link(temporary, path)  # Unlike a rename, a link never replaces what is there.
        finally:
            temporary.unlink()
        sync_folder(path.parent)

    def launch(
        self, *, measurement: str, configuration: str, environment: str, shared: bool, now_ms: int
    ) -> SimulatedInstance:
        """Certify a new instance for 24 hours, less what its certificate is backdated by.

        Args:
            measurement: digest of the code that the instance runs, measured by the caller.
            configuration: digest of the manifest.
            environment: the manifest's.
            shared: several identities are hosted in it.
            now_ms: when, in Unix milliseconds.

        Raises:
            EvidenceFormatError: a measurement or configuration that is not a digest.
        """
        launch = Launch(
            measurement=measurement, configuration=configuration, environment=environment, shared=shared, debug=False
        )
        key = Ed25519PrivateKey.generate()
        certificate = issue_instance(
            launch, key=key.public_key(), root=self._certificate, root_key=self._key, now_ms=now_ms
        )
        return SimulatedInstance(key=key, certificate=certificate)


class SimulatedVerifier:
    """Reads simulated evidence. A pure function of its arguments."""

    PROFILE: ClassVar[str] = PROFILE
    EVIDENCE_CLASS: ClassVar[str] = "simulated"
    HARDWARE_ROOTED: ClassVar[bool] = False

    def verify(
        self, envelope: Envelope, *, endorsements: Sequence[bytes], now_ms: int, anchors: Sequence[bytes]
    ) -> Report:
        """Return the report of evidence signed by an instance that a root among ``anchors`` certified.

        1. parse strictly; 2. chain, validity and lifetime; 3. what was launched; 4. the instance's signature.

        Raises:
            EvidenceFormatError: not this format; attachments, which this format does not have.
            TrustAnchorError: not certified by an anchor, not valid at ``now_ms``, or for more than 24 hours.
            EvidenceSignatureError: not signed by the instance.
        """
        del endorsements  # A simulated TEE has none that could matter.
        # 1.
        _require_no_attachments(envelope)
        payload, signature = envelope.evidence[:-_SIGNATURE_BYTES], envelope.evidence[-_SIGNATURE_BYTES:]
        statement = _parse_statement(payload)
        certificate = parse_certificate(from_base64("evidence.certificate", statement.certificate))
        # 2.
        require_chain(certificate, anchors=anchors, now_ms=now_ms)
        # 3.
        launch = launch_of(certificate)
        # 4.
        try:
            public_key(certificate).verify(signature, _DOMAIN + payload)
        except InvalidSignature as error:
            raise EvidenceSignatureError("evidence", expected="a signature of its instance", got="another") from error
        return Report(
            report_data=statement.report_data,
            measurement=launch.measurement,
            configuration=launch.configuration,
            environment=launch.environment,
            debug=launch.debug,
            shared=launch.shared,
            layers=statement.self_reported_layers,
        )


def _require_no_attachments(envelope: Envelope) -> None:
    for name in ("endorsements", "event_logs", "device_evidence"):
        if getattr(envelope, name):
            raise EvidenceFormatError(f"envelope.{name}", expected=f"none in {PROFILE}", got="some")


def _parse_statement(payload: bytes) -> _Statement:
    value = parse_canonical(payload, limit_bytes=_EVIDENCE_LIMIT_BYTES, what="evidence")
    statement = record.from_json(_Statement, value, at="evidence", error=EvidenceFormatError)
    if statement.format != _EVIDENCE_FORMAT:
        raise EvidenceFormatError("evidence.format", expected=_EVIDENCE_FORMAT, got=statement.format[:80])
    _require_layers(statement.self_reported_layers)
    return statement


def _require_layers(layers: tuple[str, ...]) -> None:
    if len(layers) > _LAYER_LIMIT or any(not 1 <= len(layer) <= _LAYER_NAME_LIMIT for layer in layers):
        raise EvidenceFormatError("self_reported_layers", expected=f"at most {_LAYER_LIMIT} short names", got="more")
