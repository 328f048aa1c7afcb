"""A served model is the version that its manifest names: committed and countersigned in the run's own records."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
from records_world import CODE, RecordedRun

from confed.errors import ConfedError, LineageError, ManifestMismatchError, QuorumError
from confed.journey import Purpose, Role
from confed.keybroker.statements import Candidate
from confed.manifest import UNTRAINED, CodeTerms, Manifest, untrained
from confed.records.origin import verify_origin
from confed.records.run_directory import RunDirectory
from confed.scenario import Scenario
from confed.serving import Origin, OutputTerms, Padding, PaddingTerms, ServingTerms
from confed.statement import unverified


def serving(run: RecordedRun, *, version: int = 2) -> Manifest:
    """The manifest that serves a version of the run, as its owner would make it."""
    made = unverified(run.records[Purpose.TRAIN, version].candidate, Candidate)
    start = dataclasses.replace(run.manifest.model.start, container_id=f"version-{version}", digest=made.digest)
    return Manifest(
        **untrained(),
        format=Manifest.FORMAT,
        name="digits",
        scenario=Scenario.INFERENCE,
        run="serving-1",
        environment="simulation",
        model=dataclasses.replace(run.manifest.model, start=start, trained=UNTRAINED),
        code=CodeTerms(
            client_app="a:b",
            client_image=CODE[Role.CLIENT],
            aggregator_image=CODE[Role.CLIENT],
            lock="11" * 32,
            strategy=None,
        ),
        settings={},
        serving=ServingTerms(
            origin=Origin(run=run.manifest.run, manifest=run.manifest.digest, version=version, attempt=made.attempt),
            output=OutputTerms.to_requester(),
            lease=None,
            padding=PaddingTerms(kind=Padding.NONE, block_bytes=0),
            largest_request_bytes=1024,
        ),
        client_tee=run.manifest.client_tee,
        aggregator_tee=run.manifest.client_tee,
        trust=run.manifest.trust,
    )


def of_origin(**changes: object) -> Callable[[Manifest], Manifest]:
    def change(manifest: Manifest) -> Manifest:
        assert manifest.serving is not None
        assert manifest.serving.origin is not None
        origin = dataclasses.replace(manifest.serving.origin, **changes)  # type: ignore[arg-type]
        return dataclasses.replace(manifest, serving=dataclasses.replace(manifest.serving, origin=origin))

    return change


def of_model(**changes: object) -> Callable[[Manifest], Manifest]:
    return lambda manifest: dataclasses.replace(manifest, model=dataclasses.replace(manifest.model, **changes))  # type: ignore[arg-type]


def swapped(manifest: Manifest) -> Manifest:
    return of_model(start=dataclasses.replace(manifest.model.start, digest="dd" * 32))(manifest)


def with_another_key(manifest: Manifest) -> Manifest:
    return of_model(start=dataclasses.replace(manifest.model.start, key_id="dd" * 16))(manifest)


def without_origin(manifest: Manifest) -> Manifest:
    assert manifest.serving is not None
    return dataclasses.replace(manifest, serving=dataclasses.replace(manifest.serving, origin=None))


def of_another_owner(manifest: Manifest) -> Manifest:
    return of_model(owner=dataclasses.replace(manifest.model.owner, broker=bytes(32)))(manifest)


@pytest.mark.parametrize("version", [1, 2])
def test_a_committed_version_is_what_it_says(directory: RunDirectory, run: RecordedRun, version: int) -> None:
    verified = verify_origin(serving(run, version=version), directory.path, trust=run.trust)
    assert (verified.run, verified.self_consistent_only) == (run.manifest.run, False)


MANIFESTS: dict[str, tuple[Callable[[Manifest], Manifest], type[ConfedError]]] = {
    "a swapped model": (swapped, LineageError),
    "a version that was never committed": (of_origin(version=3), LineageError),
    "another version's model": (of_origin(version=1), LineageError),
    "another attempt": (of_origin(attempt=0), LineageError),
    "another run": (of_origin(run="digits-2"), ManifestMismatchError),
    "another manifest of the run": (of_origin(manifest="dd" * 32), ManifestMismatchError),
    "another key of its owner": (with_another_key, ManifestMismatchError),
    "another owner": (of_another_owner, ManifestMismatchError),
    "no origin at all": (without_origin, ManifestMismatchError),
}


@pytest.mark.parametrize(("change", "error"), MANIFESTS.values(), ids=MANIFESTS)
def test_a_model_that_the_run_did_not_commit_is_refused(
    directory: RunDirectory, run: RecordedRun, change: Callable[[Manifest], Manifest], error: type[ConfedError]
) -> None:
    manifest = serving(run, version=2)
    with pytest.raises(error):
        verify_origin(change(manifest), directory.path, trust=run.trust)


def test_a_version_without_its_countersignatures_is_none(directory: RunDirectory, run: RecordedRun) -> None:
    record = run.records[Purpose.TRAIN, 2]
    directory.write_commit(Purpose.TRAIN, 2, dataclasses.replace(record, countersignatures=()).to_bytes())
    with pytest.raises((QuorumError, LineageError)):
        verify_origin(serving(run), directory.path, trust=run.trust)
