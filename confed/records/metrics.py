"""One line a round, and one summary a run: made from the commits (what is true) and the events (how long it took).

Metrics, cohorts, versions and exclusions come from commit records, so ``confed verify`` can hold these lines against
them; seconds come from the governor's events and are nobody's promise.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from confed.journey import Purpose
from confed.keybroker.statements import Candidate, Closing, CommitRecord
from confed.records.run_directory import RunDirectory
from confed.statement import unverified

STAGES = ("attest", "release", "fetch", "open", "train", "seal", "send", "combine", "commit")
"""Where the time of a run goes, in the order of the road."""

CONFIDENTIAL_STAGES = frozenset({"attest", "release", "open", "seal", "commit"})
"""Stages that a plain run does not have: their share is what confidentiality costs."""


def collect(directory: RunDirectory) -> list[dict[str, Any]]:
    """Return the lines of ``metrics.jsonl``, one for each round that has a commit record, in order.

    Each has ``round``, ``version``, ``digest``, ``cohort``, ``train`` and ``evaluate`` (clear metrics by name),
    ``evaluate_cohort`` (0 without evaluation), ``excluded`` and ``evaluate_excluded`` (codes by site) and
    ``seconds`` (by stage, summed over the clients and the enclave), and ``epsilon`` (spent up to it; ``None`` without
    central privacy).

    Raises:
        EncodingError: a commit record that is not in its one form.
    """
    seconds = seconds_by_round(directory.events())
    evaluated = set(directory.rounds(Purpose.EVALUATE))
    lines: list[dict[str, Any]] = []
    for number in directory.rounds(Purpose.TRAIN):
        trained = directory.commit(Purpose.TRAIN, number)
        looked = directory.commit(Purpose.EVALUATE, number) if number in evaluated else None
        lines.append({**line_of(trained, looked), "seconds": seconds.get(number, {})})
    return lines


def line_of(trained: CommitRecord, evaluated: CommitRecord | None) -> dict[str, Any]:
    """Return what a round's line must say, its seconds left out.

    Raises:
        EncodingError: a candidate that is not in its one form.
    """
    made = unverified(trained.candidate, Candidate)
    looked = unverified(evaluated.candidate, Candidate) if evaluated else None
    return {
        "round": made.round,
        "version": made.version,
        "digest": made.digest,
        "cohort": len(made.cohort),
        "train": dict(trained.metrics.values),
        "excluded": dict(made.excluded),
        "evaluate": dict(evaluated.metrics.values) if evaluated else {},
        "evaluate_cohort": len(looked.cohort) if looked else 0,
        "evaluate_excluded": dict(looked.excluded) if looked else {},
        "epsilon": made.privacy.epsilon if made.privacy else None,
    }


def summarize(directory: RunDirectory, *, engine: str, total_s: float, model: str) -> dict[str, Any]:
    """Return what is printed at the end of a run and kept in ``summary.json``.

    ``total_s`` are wall-clock seconds of the whole run, ``model`` is the path of the final sealed version. ``seconds``
    are summed over clients, so they can exceed ``total_s``; ``confidentiality_share`` is the share of
    ``CONFIDENTIAL_STAGES`` in them.

    Raises:
        EncodingError, ConfigError: the manifest or a commit record is not in its one form.
    """
    manifest = directory.manifest()
    lines = collect(directory)
    seconds = seconds_by_stage(directory.events())
    return {
        "run": manifest.run,
        "engine": engine,
        "environment": manifest.environment,
        **results_of(lines),
        "dropped": dropped(lines) + not_combined(lines, directory.events()),
        "ended": ended(directory),
        "ended_by": ended_by(directory),
        "seconds": seconds,
        "total_s": round(total_s, 3),
        "confidentiality_share": confidentiality_share(seconds),
        "model": model,
        "run_dir": str(directory.path),
    }


def results_of(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what lines add up to: ``rounds``, the last ``accuracy``, ``loss`` and ``epsilon``, who was ``dropped``."""
    last = lines[-1] if lines else {}
    final = {**last.get("train", {}), **last.get("evaluate", {})}
    return {
        "rounds": len(lines),
        "accuracy": accuracy_of(final),
        "loss": loss_of(final),
        "dropped": dropped(lines),
        "epsilon": last.get("epsilon"),
    }


def ended(directory: RunDirectory) -> str | None:
    """Return why the run ended, as its closing says (unverified), or ``None`` where there is no closing.

    Raises:
        EncodingError: a closing that is not in its one form.
    """
    closing = directory.closing()
    return None if closing is None else unverified(closing.closing, Closing).ending.told


def ended_by(directory: RunDirectory) -> str | None:
    """Return the rule that ended the run, as its closing says (unverified), or ``None`` where there is no closing.

    Raises:
        EncodingError: a closing that is not in its one form.
    """
    closing = directory.closing()
    return None if closing is None else unverified(closing.closing, Closing).ending.rule


def dropped(lines: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return who was left out of a result, in which round and purpose, and the code of why."""
    return [
        {"round": line["round"], "purpose": str(purpose), "site": site, "code": code}
        for line in lines
        for purpose, key in ((Purpose.TRAIN, "excluded"), (Purpose.EVALUATE, "evaluate_excluded"))
        for site, code in sorted(line.get(key, {}).items())
    ]


def not_combined(lines: Iterable[Mapping[str, Any]], events: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return who failed in rounds that came to no result, as ``dropped`` does; the governor's word alone."""
    rounds = {line["round"]: line for line in lines}
    failed: dict[tuple[int, str, str], str] = {}
    for event in events:
        number, purpose = event.get("round"), str(event.get("purpose"))
        if event.get("event") != "client-failed" or not isinstance(number, int):
            continue
        cohort = rounds.get(number, {}).get("evaluate_cohort" if purpose == Purpose.EVALUATE else "cohort", 0)
        if not cohort:
            failed[number, purpose, str(event.get("site"))] = str(event.get("code"))
    return [
        {"round": number, "purpose": purpose, "site": site, "code": code}
        for (number, purpose, site), code in sorted(failed.items())
    ]


def seconds_by_stage(events: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Return the run's seconds by stage, in the order of the road, stages that no event names left out."""
    return _ordered(_sums((None, event) for event in events).get(None, {}))


def seconds_by_round(events: Iterable[Mapping[str, Any]]) -> dict[int, dict[str, float]]:
    """Return each round's seconds by stage; what belongs to no round is left out."""
    sums = _sums((event.get("round"), event) for event in events)
    return {number: _ordered(stages) for number, stages in sums.items() if isinstance(number, int)}


def confidentiality_share(seconds: Mapping[str, float]) -> float:
    """Return the share (0 to 1) of seconds spent in stages that a plain run does not have."""
    total = sum(seconds.values())
    return round(sum(seconds.get(stage, 0.0) for stage in CONFIDENTIAL_STAGES) / total, 4) if total > 0 else 0.0


def accuracy_of(metrics: Mapping[str, float]) -> float | None:
    """Return the accuracy among metrics: ``accuracy``, or the first name (sorted) that contains ``acc``."""
    return _named(metrics, "accuracy", "acc")


def loss_of(metrics: Mapping[str, float]) -> float | None:
    """Return the loss among metrics: ``loss``, or the first name (sorted) that contains it."""
    return _named(metrics, "loss", "loss")


def _named(metrics: Mapping[str, float], name: str, part: str) -> float | None:
    if name in metrics:
        return metrics[name]
    found = sorted(key for key in metrics if part in key.lower())
    return metrics[found[0]] if found else None


def _sums(events: Iterable[tuple[object, Mapping[str, Any]]]) -> dict[object, dict[str, float]]:
    sums: dict[object, dict[str, float]] = {}
    for key, event in events:
        # The run's own event repeats what its rounds said.
        told = event.get("seconds") if event.get("event") != "run-finished" else None
        if not isinstance(told, Mapping):
            continue
        stages = sums.setdefault(key, {})
        for stage, value in told.items():
            if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
                stages[str(stage)] = stages.get(str(stage), 0.0) + value
    return sums


def _ordered(stages: Mapping[str, float]) -> dict[str, float]:
    names = [stage for stage in STAGES if stage in stages] + sorted(set(stages) - set(STAGES))
    return {name: round(stages[name], 4) for name in names}
