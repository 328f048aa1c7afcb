"""Where a served model comes from, checked against the records of the run that made it."""

from __future__ import annotations

from pathlib import Path

from confed.errors import LineageError, ManifestMismatchError
from confed.journey import Purpose
from confed.keybroker.statements import Candidate
from confed.manifest import Manifest
from confed.records.run_directory import RunDirectory
from confed.records.trust import Trust
from confed.records.verification import Verified, verify_run
from confed.statement import unverified


def verify_origin(manifest: Manifest, run_directory: Path, *, trust: Trust | None) -> Verified:
    """Verify a whole run offline, and that the model of a serving manifest is the version of it that it names.

    Returns:
        What ``confed verify`` says of the run; ``self_consistent_only`` without a trust.

    Raises:
        ManifestMismatchError: a manifest that serves no version of a run, or the records of another run or owner.
        LineageError: a version that was never committed, or another model than it.
        RefusedError: records that do not hold, for the reason of its class.
    """
    origin = None if manifest.serving is None else manifest.serving.origin
    if origin is None:
        raise ManifestMismatchError("serving.origin", expected="a version that a run made", got="none")
    verified = verify_run(run_directory, trust=trust)
    directory = RunDirectory.open(run_directory)
    run = directory.manifest()
    if (run.run, verified.manifest) != (origin.run, origin.manifest):
        raise ManifestMismatchError("serving.origin", expected=f"{origin.run} by its manifest", got=run.run)
    if run.model.owner != manifest.model.owner or run.model.start.key_id != manifest.model.start.key_id:
        raise ManifestMismatchError("model owner", expected="the one of the run, with its key", got="another")
    if origin.version not in directory.rounds(Purpose.TRAIN):
        raise LineageError("serving.origin.version", expected="one that was committed", got=origin.version)
    candidate = unverified(directory.commit(Purpose.TRAIN, origin.version).candidate, Candidate)
    if (candidate.digest, candidate.attempt) != (manifest.model.start.digest, origin.attempt):
        expected = f"the committed {candidate.digest[:16]} of attempt {candidate.attempt}"
        got = f"{manifest.model.start.digest[:16]} of attempt {origin.attempt}"
        raise LineageError("served model", expected=expected, got=got)
    return verified
