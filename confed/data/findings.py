"""What a client TEE tells a dataset's owner when it refuses the dataset: column, check and count, sealed to that owner.

It is a container like any other, under the data key that opened the dataset: whoever owns the data can open it, and
nobody else, the model's owner and the governor included. What others learn is the code ``contract``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from confed import canonical, record
from confed.data.checking import Finding
from confed.errors import ContainerFormatError, ShapeError
from confed.journey import Kind
from confed.manifest import SealedReference
from confed.sealing.container import Container, Draft, RecipientEntry, seal_to_bytes

_MOST = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What breaks a dataset's contract."""

    FORMAT: ClassVar[str] = "confed-findings/1"

    format: str
    findings: tuple[Finding, ...]


def topic(*, run: str, site: str) -> str:
    """Return where a site's findings are posted."""
    return f"{run}/findings/{site}"


def seal_findings(
    findings: tuple[Finding, ...],
    *,
    dataset: SealedReference,
    data_key: bytes,
    manifest: str,
    signing_key: Ed25519PrivateKey,
) -> bytes:
    """Return findings sealed under the data key of the dataset that they are about."""
    said = Findings(format=Findings.FORMAT, findings=findings[:_MOST])
    draft = Draft(
        kind=Kind.FINDINGS,
        container_id=dataset.container_id,
        parents=(dataset.digest,),
        manifest=manifest,
        recipients=(RecipientEntry.owner_key(dataset.key_id),),
    )
    return seal_to_bytes([canonical.encode(record.to_json(said))], draft, data_key=data_key, signing_key=signing_key)[0]


def open_findings(container: Container, data_key: bytes) -> tuple[Finding, ...]:
    """Return the findings in a container.

    Raises:
        ShapeError: another kind of container.
        WrongKeyError, TamperedError: another key, or a changed container.
        ContainerFormatError: something else inside.
    """
    if container.header.kind is not Kind.FINDINGS:
        raise ShapeError("container kind", expected=Kind.FINDINGS, got=container.header.kind)
    value = canonical.decode(bytes(container.unlock(data_key).read_all()))
    said = record.from_json(Findings, value, at="findings", error=ContainerFormatError)
    if said.format != Findings.FORMAT:
        raise ContainerFormatError("findings.format", expected=Findings.FORMAT, got=said.format[:40])
    return said.findings
