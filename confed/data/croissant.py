"""What a dataset is, in Croissant 1.1 (JSON-LD): what anybody may know of it, for people and for catalogues.

It says columns and types, licence and where the data come from, and the sealed container's digest. It does not say how
many rows there are, nor any value, nor a digest of anything in clear: of little data that would confirm a guess.

Source: MLCommons, "Croissant Format Specification", version 1.1 (2025), http://mlcommons.org/croissant/1.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from confed.errors import ConfigError
from confed.preparation.column_type import column_type

CONFORMS_TO = "http://mlcommons.org/croissant/1.1"
CONTEXT: Mapping[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "arrayShape": "cr:arrayShape",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "confed": "urn:confed:",
    "containedIn": "cr:containedIn",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "includes": "cr:includes",
    "isArray": "cr:isArray",
    "key": "cr:key",
    "prov": "http://www.w3.org/ns/prov#",
    "recordSet": "cr:recordSet",
    "sc": "https://schema.org/",
    "source": "cr:source",
}
_CONTAINER, _ROWS, _FILES = "container", "rows", "files"
_DATA_TYPES = {
    "bool": "sc:Boolean",
    **{f"int{bits}": f"cr:Int{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"cr:UInt{bits}" for bits in (8, 16, 32, 64)},
    "float32": "cr:Float32",
    "float64": "cr:Float64",
    "text": "sc:Text",
    "bytes": "sc:MediaObject",
    "date": "sc:Date",
    "datetime": "sc:DateTime",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What the owner says about a dataset in words.

    Attributes:
        name: of the dataset.
        description: what it is.
        licence: the URL of a licence, such as ``https://spdx.org/licenses/CC-BY-4.0``.
        derived_from: where it comes from, in words or as URLs; at least one.
        published: the date that it was sealed on, ``YYYY-MM-DD``.
    """

    name: str
    description: str
    licence: str
    derived_from: tuple[str, ...]
    published: str

    def __post_init__(self) -> None:
        for what in ("name", "description", "licence", "published"):
            if not getattr(self, what).strip():
                raise ConfigError(f"dataset {what}", expected="some text", got="nothing")
        if not self.derived_from:
            raise ConfigError("dataset provenance", expected="at least one source", got="none")


def croissant(
    about: About,
    *,
    owner: str,
    container_id: str,
    container: str,
    size_bytes: int,
    columns: Mapping[str, str],
    contract: str,
    pipeline: str | None,
) -> dict[str, Any]:
    """Return the description of a sealed dataset as a JSON-LD value.

    Args:
        about: the owner's words.
        owner: the owner's name.
        container_id: the container's id.
        container: SHA-256 of the whole sealed file in hexadecimal.
        size_bytes: of the sealed file.
        columns: column name -> a contract's type.
        contract: digest of the contract.
        pipeline: digest of the only pipeline that it may go through; ``None`` for any that the owner approves.
    """
    sealed = {
        "@type": "cr:FileObject",
        "@id": _CONTAINER,
        "name": f"{container_id}.sealed",
        "description": "Sealed container: AES-256-GCM, opened in attested TEEs only.",
        "contentUrl": f"urn:confed:container:{container_id}",
        "contentSize": f"{size_bytes} B",
        "encodingFormat": "application/octet-stream",
        "sha256": container,
    }
    inside = {
        "@type": "cr:FileSet",
        "@id": _FILES,
        "name": _FILES,
        "description": "Parquet files inside the sealed container.",
        "containedIn": {"@id": _CONTAINER},
        "encodingFormat": "application/x-parquet",
        "includes": "*.parquet",
    }
    return {
        "@context": dict(CONTEXT),
        "@type": "sc:Dataset",
        "conformsTo": CONFORMS_TO,
        "name": about.name,
        "description": about.description,
        "license": about.licence,
        "url": f"urn:confed:dataset:{container_id}",
        "creator": {"@type": "sc:Organization", "name": owner},
        "datePublished": about.published,
        "version": "1.0.0",
        "prov:wasDerivedFrom": list(about.derived_from),
        "confed:contract": contract,
        "confed:pipeline": pipeline or "any that its owner approves",
        "distribution": [sealed, inside],
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": _ROWS,
                "name": _ROWS,
                "field": [_field(name, kind) for name, kind in columns.items()],
            }
        ],
    }


def type_told(field: Mapping[str, Any]) -> str:
    """Return the type of a described column in words: its value's, with ``[]`` or ``[LENGTH]`` for lists."""
    if not field.get("isArray", False):
        return field["dataType"]
    return f"{field['dataType']}[{field['arrayShape'].removeprefix('-1')}]"


def _field(name: str, type_name: str) -> dict[str, Any]:
    kind = column_type(type_name)
    assert kind is not None  # noqa: S101 (the columns of a table that could be named)
    shape = {"isArray": True, "arrayShape": str(kind.length or -1)} if kind.is_list else {}
    return {
        "@type": "cr:Field",
        "@id": f"{_ROWS}/{name}",
        "name": name,
        "dataType": _DATA_TYPES[kind.value],
        **shape,
        "source": {"fileSet": {"@id": _FILES}, "extract": {"column": name}},
    }
