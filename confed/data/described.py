"""A sealed dataset and the description that lies beside it."""

from __future__ import annotations

from pathlib import Path

from confed.data.dataset import DatasetDetail
from confed.data.description import DatasetDescription, decode
from confed.errors import ManifestMismatchError, MissingFileError
from confed.sealing.container import Container
from confed.statement import verify

_LARGEST_BYTES = 16 * 1024 * 1024


def description_file(container: Path) -> Path:
    """Return where the signed description of a sealed dataset lies."""
    return container.with_name(container.name + ".dataset.json")


def read_description(path: Path, container: Container) -> DatasetDescription:
    """Return the description beside a container, signed by who signed the container, of this very file.

    Raises:
        MissingFileError: none.
        SignatureError: another signer, or one who is not the owner that the header names.
        ManifestMismatchError: a description of another dataset.
        EncodingError: not a description.
    """
    beside = description_file(path)
    try:
        with beside.open("rb") as file:
            data = file.read(_LARGEST_BYTES)
    except OSError as error:
        raise MissingFileError("dataset description", expected="a file", got=beside) from error
    container.verify_signer(container.header.owner)
    stated = verify(decode(data), DatasetDescription, signer=container.signer)
    for what, expected, got in (
        ("dataset", container.file_digest(), stated.container),
        ("contract", DatasetDetail.of(container).contract, stated.contract),
    ):
        if expected != got:
            raise ManifestMismatchError(f"described {what}", expected=expected[:16], got=got[:16])
    return stated
