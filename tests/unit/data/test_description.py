from __future__ import annotations

import dataclasses
import json
from typing import Any

import pyarrow as pa
import pytest
from sealed_world import Owner
from tables import AGES, PLAIN, ages, contract_of

from confed import canonical
from confed.data.croissant import CONFORMS_TO, CONTEXT, type_told
from confed.data.described import description_file, read_description
from confed.data.description import DatasetDescription, decode, encode, verify_description
from confed.errors import ManifestMismatchError, MissingFileError, SignatureError
from confed.manifest import Site
from confed.preparation.pipeline import Pipeline
from confed.preparation.terms import PreparationTerms
from confed.sealing.container import Container
from confed.statement import sign, unverified


@pytest.fixture(scope="module")
def owners(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Owner]:
    folder = tmp_path_factory.mktemp("owners")
    return {name: Owner(folder, name) for name in ("east", "west")}


def test_what_anybody_may_know_is_croissant_and_has_no_value_and_no_number_of_rows(owners):
    sealed, data, description = owners["east"].seal(ages(4321, city=["x"] * 4321), pipeline=PLAIN.digest)
    said: Any = json.loads(json.dumps(unverified(decode(description), DatasetDescription).croissant))
    # Croissant 1.1: what every dataset must say.
    required = ("name", "description", "license", "url", "creator", "datePublished", "distribution", "recordSet")
    assert all(said[key] for key in required)
    assert (said["@type"], said["conformsTo"]) == ("sc:Dataset", CONFORMS_TO)
    assert said["@context"] == dict(CONTEXT)
    prefixes = {name for name, entry in CONTEXT.items() if isinstance(entry, str) and entry.endswith(("/", "#", ":"))}
    for entry in walk(said):
        for key in entry:
            assert key.startswith("@") or ":" not in key or key.split(":")[0] in prefixes
    files = {entry["@id"]: entry for entry in said["distribution"]}
    assert files["container"]["@type"] == "cr:FileObject"
    assert files["container"]["sha256"] == sealed.reference.digest == canonical.digest(data)
    assert files["files"]["containedIn"] == {"@id": "container"}
    fields = said["recordSet"][0]["field"]
    assert {field["name"]: field["dataType"] for field in fields} == {
        "age": "cr:Float64",
        "name": "sc:Text",
        "city": "sc:Text",
    }
    assert len({field["@id"] for field in fields}) == 3
    assert all(field["source"]["fileSet"] == {"@id": "files"} for field in fields)
    assert (said["confed:contract"], said["confed:pipeline"]) == (AGES.digest, PLAIN.digest)
    assert "4321" not in json.dumps(said)
    assert b"4321" not in Container.parse(data).header.encode()


def test_lists_and_fields_of_structures_are_described_by_croissants_words(owners):
    table = pa.table({"v": pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2)), "s": [{"tags": ["a"], "n": 1}]})
    said: Any = unverified(decode(owners["east"].seal(table)[2]), DatasetDescription).croissant
    fields = said["recordSet"][0]["field"]
    assert {field["name"]: (field["dataType"], field.get("isArray"), field.get("arrayShape")) for field in fields} == {
        "v": ("cr:Float32", True, "2"),
        "s.tags": ("sc:Text", True, "-1"),
        "s.n": ("cr:Int64", None, None),
    }
    assert [type_told(field) for field in fields] == ["cr:Float32[2]", "sc:Text[]", "cr:Int64"]


def walk(value: Any) -> list[dict[str, Any]]:
    if isinstance(value, dict):
        inner = [entry for key, part in value.items() if key != "@context" for entry in walk(part)]
        return [value, *inner]
    return [entry for part in value for entry in walk(part)] if isinstance(value, list) else []


def agreed(owner: Owner, sealed: Any, **changes: Any) -> tuple[Site, PreparationTerms]:
    site = Site(owner=owner.home.party, dataset=sealed.reference)
    name = owner.home.party.name
    values = {
        "contract": AGES,
        "pipeline": PLAIN,
        "statistics": None,
        "descriptions": {name: sealed.description},
        **changes,
    }
    return site, PreparationTerms(**values)


def test_a_description_is_checked_against_the_manifest(owners):
    sealed, _, description = owners["east"].seal(ages(), pipeline=PLAIN.digest)
    site, terms = agreed(owners["east"], sealed)
    assert verify_description(description, site=site, terms=terms).container == sealed.reference.digest


def test_without_a_pipeline_of_its_own_any_that_is_approved_will_do(owners):
    sealed, _, description = owners["east"].seal(ages())
    other = Pipeline.from_document({"name": "other"})
    site, terms = agreed(owners["east"], sealed, pipeline=other)
    assert verify_description(description, site=site, terms=terms).pipeline is None


def other_description(owners, sealed, description):
    return owners["east"].seal(ages())[2], {}


def strangers_signature(owners, sealed, description):
    stated = unverified(decode(description), DatasetDescription)
    forged = encode(sign(stated, owners["west"].home.identity_key))
    return forged, {"descriptions": {"east": canonical.digest(forged)}}


def changed_statement(owners, sealed, description):
    stated = unverified(decode(description), DatasetDescription)
    other = encode(sign(dataclasses.replace(stated, container="00" * 32), owners["east"].home.identity_key))
    return other, {"descriptions": {"east": canonical.digest(other)}}


def other_contract(owners, sealed, description):
    columns = {"age": {"type": "float64"}, "name": {"type": "text"}}
    return description, {"contract": contract_of(columns)}


def other_pipeline(owners, sealed, description):
    return description, {"pipeline": Pipeline.from_document({"name": "other"})}


WRONG = [
    ("a description of another dataset", other_description, ManifestMismatchError, "description"),
    ("one that a stranger signed", strangers_signature, SignatureError, "signer"),
    ("one that speaks of another container", changed_statement, ManifestMismatchError, "dataset"),
    ("a run with another contract", other_contract, ManifestMismatchError, "contract"),
    ("a run with another pipeline", other_pipeline, ManifestMismatchError, "pipeline"),
]


@pytest.mark.parametrize(("what", "turn", "kind", "field"), WRONG, ids=[entry[0] for entry in WRONG])
def test_a_description_that_does_not_fit_is_refused(owners, what, turn, kind, field):
    sealed, _, description = owners["east"].seal(ages(), pipeline=PLAIN.digest)
    turned, changes = turn(owners, sealed, description)
    site, terms = agreed(owners["east"], sealed, **changes)
    with pytest.raises(kind, match=field):
        verify_description(turned, site=site, terms=terms)


def test_the_description_beside_a_file_is_of_this_very_file(owners, tmp_path):
    (_, data, description), (_, other, _) = (owners["east"].seal(ages(rows)) for rows in (3, 4))
    path = tmp_path / "a.sealed"
    for content, kind in ((data, None), (other, ManifestMismatchError)):
        path.write_bytes(content)
        description_file(path).write_bytes(description)
        if kind is None:
            assert read_description(path, Container.map(path)).contract == AGES.digest
        else:
            with pytest.raises(kind, match="described dataset"):
                read_description(path, Container.map(path))
    description_file(path).unlink()
    with pytest.raises(MissingFileError):
        read_description(path, Container.map(path))
