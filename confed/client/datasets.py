"""The sites' data in one client TEE: fetched, opened, and (where they are tables) prepared, each once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from confed.client.step import Arrays, timed
from confed.errors import (
    ContractError,
    DatasetError,
    ManifestMismatchError,
    MissingPackageError,
    SessionError,
    ShapeError,
)
from confed.journey import Kind
from confed.manifest import Manifest, SealedReference, Site
from confed.model.weights import unpack
from confed.preparation.terms import PreparationTerms
from confed.sealing.container import Container
from confed.wire.courier_client import CourierClient

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa


class Datasets:
    """What one TEE has opened. A dataset that was refused is refused again without being opened again.

    Args:
        signing_key: the TEE's own; signs what it tells an owner whose dataset it refuses.
    """

    def __init__(self, manifest: Manifest, *, courier: CourierClient, signing_key: Ed25519PrivateKey) -> None:
        self._manifest = manifest
        self._courier = courier
        self._signing = signing_key
        self._arrays: dict[str, Arrays] = {}
        self._tables: dict[str, pa.Table] = {}
        self._checked: dict[str, pl.DataFrame] = {}
        self._refused: dict[str, DatasetError] = {}

    def has(self, site: Site) -> bool:
        """Return whether a site's data are open, or it has none."""
        name = site.owner.name
        return site.dataset is None or name in self._arrays or name in self._tables

    def open(self, site: Site, data_key: bytes, seconds: dict[str, float]) -> None:
        """Fetch, open and prepare a site's dataset.

        Raises:
            DatasetError: it cannot be used; of a broken contract its owner is told more, sealed.
            ManifestMismatchError, ShapeError, SignatureError: another dataset than the manifest names.
            SealError: another key, or a container that does not hold.
            ConfedError: the courier does not have it or is down.
        """
        name, reference = site.owner.name, site.dataset
        if reference is None or self.has(site):
            return
        if name in self._refused:
            raise self._refused[name]
        with timed(seconds, "fetch"):
            sealed = self._courier.get(reference.digest)
        if self._manifest.preparation is None:
            with timed(seconds, "open"):
                container = checked_container(sealed, site=site, reference=reference)
                self._arrays[name] = unpack(container.unlock(data_key).read_all())
            return
        terms = self._manifest.preparation
        with timed(seconds, "fetch"):
            description = self._courier.get(terms.descriptions[name])
        with timed(seconds, "open"):
            try:
                checked, self._tables[name] = prepared_table(sealed, description, data_key, site=site, terms=terms)
                if terms.statistics is not None:
                    self._checked[name] = checked
            except DatasetError as error:
                self._refused[name] = error
                self._tell_owner(site, reference, data_key, error)
                raise

    def arrays(self, site: Site) -> Arrays:
        """Return a site's arrays by name; of a table its columns of numbers, of which none may be missing.

        Raises:
            SessionError: not opened in this session.
        """
        table = self._tables.get(site.owner.name)
        if table is not None:
            from confed.data.arrays import columns_of  # noqa: PLC0415 (the extra ``data``)

            return columns_of(table)
        if site.owner.name not in self._arrays:
            raise SessionError("dataset", expected=f"opened for {site.owner.name}", got="none")
        return self._arrays[site.owner.name]

    def has_table(self, site: Site) -> bool:
        """Return whether a site's data, opened here, are a table."""
        return site.owner.name in self._tables

    def table(self, site: Site) -> pa.Table:
        """Return a site's prepared table.

        Raises:
            SessionError: not opened in this session, or a dataset of arrays.
        """
        table = self._tables.get(site.owner.name)
        if table is None:
            raise SessionError("dataset", expected=f"a table opened for {site.owner.name}", got="none")
        return table

    def checked(self, site: Site) -> pl.DataFrame:
        """Return a site's table as it kept its contract, before any cleaning: what statistics are of.

        Raises:
            SessionError: not opened, or forgotten.
        """
        found = self._checked.get(site.owner.name)
        if found is None:
            raise SessionError("dataset", expected=f"a table checked for {site.owner.name}", got="none")
        return found

    def forget_checked(self, site: Site) -> None:
        """Forget a site's table as it was before cleaning: nothing needs it any more."""
        self._checked.pop(site.owner.name, None)

    def _tell_owner(self, site: Site, reference: SealedReference, data_key: bytes, error: DatasetError) -> None:
        from confed.data.checking import Finding  # noqa: PLC0415 (the extra ``data``)
        from confed.data.findings import seal_findings, topic  # noqa: PLC0415

        if isinstance(error, ContractError):
            letter = seal_findings(
                tuple(finding for finding in error.findings if isinstance(finding, Finding)),
                dataset=reference,
                data_key=data_key,
                manifest=self._manifest.digest,
                signing_key=self._signing,
            )
            self._courier.post(topic(run=self._manifest.run, site=site.owner.name), letter)


def checked_container(sealed: memoryview, *, site: Site, reference: SealedReference) -> Container:
    """Return a site's container, its signer, kind and id checked; its digest is what it was fetched by.

    Raises:
        SignatureError: another signer than the site's owner.
        ShapeError: another kind or id.
        SealError: not a container.
    """
    container = Container.parse(sealed)
    container.verify_signer(site.owner.identity)
    for what, expected, got in (
        ("container kind", Kind.DATASET, container.header.kind),
        ("container id", reference.container_id, container.header.container_id),
    ):
        if expected != got:
            raise ShapeError(what, expected=expected, got=got)
    return container


def prepared_table(
    sealed: memoryview, description: memoryview, data_key: bytes, *, site: Site, terms: PreparationTerms
) -> tuple[pl.DataFrame, pa.Table]:
    """Return a sealed table as it kept its contract, and what an app gets of it.

    1. The description is the manifest's, signed by the site's owner, and speaks of this dataset, contract and pipeline.
    2. The container is the owner's, and its header names the same contract.
    3. Of its Parquet only the contract's columns are opened, checked, cleaned and labelled.

    Raises:
        DatasetError: a contract that it breaks, or steps that it does not fit.
        ManifestMismatchError, SignatureError, ShapeError, SealError: another dataset, or one that does not hold.
        MissingPackageError: this image lacks the extra ``data``.
    """
    try:
        from confed.data.dataset import DatasetDetail, SealedDataset  # noqa: PLC0415 (the extra ``data``)
        from confed.data.description import verify_description  # noqa: PLC0415
        from confed.data.preparing import prepare  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise MissingPackageError("data.source = files", expected="the extra confed[data]", got=error.name) from error

    # 1.
    verify_description(description, site=site, terms=terms)
    # 2.
    assert site.dataset is not None  # noqa: S101 (the manifest has checked it)
    container = checked_container(sealed, site=site, reference=site.dataset)
    contract = DatasetDetail.of(container).contract
    if contract != terms.contract.digest:
        raise ManifestMismatchError("contract of the container", expected=terms.contract.digest[:16], got=contract[:16])
    # 3.
    return prepare(SealedDataset(container.unlock(data_key)), terms)
