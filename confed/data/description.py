"""A dataset's manifest: its Croissant description and the digests that bind it, signed by the data's owner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from confed import canonical
from confed.errors import EncodingError, ManifestMismatchError
from confed.manifest import Site
from confed.preparation.terms import PreparationTerms
from confed.statement import Signed, verify


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetDescription:
    """What an owner states of one sealed dataset. No field is optional.

    Attributes:
        owner: identity key of the owner.
        container_id, container: id of the sealed container, and SHA-256 of the whole file.
        contract: digest of the contract that it was sealed under.
        pipeline: digest of the only pipeline that it may go through; ``None`` for any that the owner approves.
        croissant: the same for people and catalogues, and more (``confed.data.croissant``).
    """

    TYPE: ClassVar[str] = "confed/dataset-description/1"

    owner: bytes
    container_id: str
    container: str
    contract: str
    pipeline: str | None
    croissant: Mapping[str, Any]


def encode(signed: Signed) -> bytes:
    """Return a signed description as the bytes of its file."""
    return canonical.encode(signed.to_json())


def decode(data: bytes | memoryview) -> Signed:
    """Return the signed description of a file, not yet verified.

    Raises:
        EncodingError, SizeError: not the canonical form of one.
    """
    return Signed.from_json(canonical.decode(bytes(data)))


def verify_description(data: bytes | memoryview, *, site: Site, terms: PreparationTerms) -> DatasetDescription:
    """Return a site's dataset description, checked against the run's manifest.

    Raises:
        ManifestMismatchError: another file than the manifest names; one of another dataset, contract or pipeline.
        SignatureError: the site's owner did not sign it.
        EncodingError: not a description.
    """
    name = site.owner.name
    _expect("dataset description", terms.descriptions[name], canonical.digest(data))
    stated = verify(decode(data), DatasetDescription, signer=site.owner.identity)
    if site.dataset is None:
        raise EncodingError("dataset", expected=f"one for {name}", got="none")
    _expect("owner of the dataset", site.owner.identity.hex(), stated.owner.hex())
    _expect("dataset", site.dataset.digest, stated.container)
    _expect("dataset id", site.dataset.container_id, stated.container_id)
    _expect("contract of the dataset", terms.contract.digest, stated.contract)
    if stated.pipeline is not None:
        _expect("pipeline of the dataset", terms.pipeline.digest, stated.pipeline)
    return stated


def _expect(what: str, expected: str, got: str) -> None:
    if expected != got:
        raise ManifestMismatchError(what, expected=expected[:16], got=got[:16])
