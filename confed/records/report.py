"""``report.html``: what a run was, what came of it, who attested with what, how to check it; one file, no links out.

Made from records that were not verified while making it: the page says so, and names the command that does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from confed import canonical
from confed.attestation.evidence import Binding, Envelope
from confed.attestation.verifier import Claims, ExpectedBinding, default_registry
from confed.errors import ConfedError
from confed.journey import Purpose
from confed.keybroker.statements import Candidate
from confed.manifest import PRODUCTION, Manifest, TeePolicy
from confed.records import metrics
from confed.records.charts import cohort_chart, learning_chart, stage_chart
from confed.records.noted import noted, noted_endorsements, owners_of
from confed.records.page import NONE, Html, cells, code, definitions, page, rows, section, short
from confed.records.run_directory import RunDirectory, write_bytes
from confed.statement import unverified

_OF_AN_AGGREGATOR = ("strategy", "updates", "aggregator code", "strategy code", "aggregator TEE")
"""Terms that mean nothing where one TEE makes the versions itself."""


def write_report(directory: RunDirectory) -> Path:
    """Write the report of a run, complete or not, and return where it is.

    Raises:
        EncodingError, ConfigError: the manifest or a commit record is not in its one form.
        MissingFileError: no manifest.
    """
    manifest = directory.manifest()
    lines = directory.metrics() or tuple(metrics.collect(directory))
    summary = directory.summary()
    parts = [
        _headline(manifest, summary, lines, ended=metrics.ended(directory)),
        _pictures(manifest, lines),
        _left_out(lines, directory.events()),
        _terms(manifest),
        _attested(directory, manifest),
        _versions(directory, manifest),
        _how_to_verify(directory),
    ]
    html = page(title=f"{manifest.name} · {manifest.run}", parts=parts)
    write_bytes(directory.report_file, html.encode())
    return directory.report_file


def _headline(
    manifest: Manifest, summary: Mapping[str, Any], lines: Sequence[Mapping[str, Any]], *, ended: str | None
) -> Html:
    results = metrics.results_of(lines)
    tiles = [
        ("accuracy", _number(results["accuracy"])),
        ("loss", _number(results["loss"])),
        ("rounds", f"{len(lines)} of {manifest.rounds}"),
        ("sites", str(len(manifest.sites))),
        *([] if manifest.privacy is None else [("epsilon spent", _number(results["epsilon"]))]),
        ("seconds", _number(summary.get("total_s"), digits=1)),
        ("confidentiality's share", _percent(summary.get("confidentiality_share"))),
    ]
    shown = "".join(f"<div class=tile><b>{escape(value)}</b><span>{escape(name)}</span></div>" for name, value in tiles)
    warnings: list[str] = []
    if manifest.environment != PRODUCTION:
        warnings.append(
            f"<b>{escape(manifest.environment.upper())}.</b> The TEEs of this run are simulated: the protocol is the "
            "real one, but nothing protects keys, data or weights from whoever administers this machine."
        )
    if ended is None:
        failed = summary.get("failed")
        why = f" It failed with <code>{escape(str(failed))}</code>." if failed else ""
        warnings.append(f"<b>INCOMPLETE.</b> No closing entry: this run did not end as its manifest says.{why}")
    banner = "".join(f"<p class=warning>{warning}</p>" for warning in warnings)
    reason = f"<p>Ended by {escape(ended)}.</p>" if ended is not None else ""
    engine = f", engine {escape(str(summary['engine']))}" if summary.get("engine") else ""
    return Html(
        f"<h1>{escape(manifest.name)}</h1><p class=sub>run {code(manifest.run)}{engine} · "
        f"manifest {short(manifest.digest)}</p>{banner}<div class=tiles>{shown}</div>{reason}"
    )


def _pictures(manifest: Manifest, lines: Sequence[Mapping[str, Any]]) -> Html:
    if not lines:
        return section("Learning", Html("<p>No round was committed.</p>"))
    timed = any(line.get("seconds") for line in lines)
    stages = (
        "<p class=note>Blue is what a plain federated run does too, orange what confidentiality adds: attest, release, "
        "open, seal, commit.</p>"
    )
    return Html(
        section("Learning", Html(learning_chart(lines)))
        + section("Cohorts", Html(cohort_chart(lines, least=manifest.cohort.least)))
        + (section("Where the time went", Html(stages + stage_chart(lines))) if timed else "")
    )


def _left_out(lines: Sequence[Mapping[str, Any]], events: Iterable[Mapping[str, Any]]) -> Html:
    dropped = metrics.dropped(lines) + metrics.not_combined(lines, events)
    if not dropped:
        return section("Left out", Html("<p>Nobody: every site that was drawn is in every result.</p>"))
    body = [cells(item["round"], item["purpose"], item["site"], code(item["code"])) for item in dropped]
    return section("Left out", rows(("round", "purpose", "site", "why"), body))


def _terms(manifest: Manifest) -> Html:
    strategy = ", ".join(f"{name} = {value}" for name, value in sorted(manifest.strategy.parameters.items()))
    clear = ", ".join(manifest.metrics.clear) or "nothing"
    terms = {
        "scenario": manifest.scenario.told,
        "environment": manifest.environment,
        "model": Html(f"of {escape(manifest.model.owner.name)}, start {short(manifest.model.start.digest)}"),
        "trained": "tensors of the model" if manifest.adapter is None else manifest.adapter.told,
        "strategy": Html(f"{escape(manifest.strategy.name)} <span class=dim>{escape(strategy)}</span>"),
        "rounds": f"{manifest.rounds}, each tried at most {manifest.max_attempts} times, seed {manifest.seed}",
        "ends before the last round": manifest.stop.told,
        "cohort": f"at least {manifest.cohort.least} distinct sites in any result; {manifest.quorum} of "
        f"{len(manifest.sites)} sites' brokers countersign every version",
        "updates": f"norm at most {manifest.update.norm_bound:g}, weight at most {manifest.update.weight_cap:g}; "
        + (f"training loss at most {manifest.update.loss_cap:g}; " if manifest.update.loss_cap else "")
        + "seen by the aggregator enclave alone",
        "leaves in clear": f"{clear}: means over a cohort, {manifest.metrics.decimals} decimals",
        "central privacy": "none" if manifest.privacy is None else manifest.privacy.told,
        "client code": Html(f"{code(manifest.code.client_app)} {short(manifest.code.client_image)}"),
        "aggregator code": short(manifest.code.aggregator_image),
        "strategy code": short(manifest.code.strategy.digest) if manifest.code.strategy else "in the aggregator's",
        "client TEE": _policy(manifest.client_tee),
        "aggregator TEE": _policy(manifest.aggregator_tee),
    }
    if not manifest.scenario.combines:
        terms = {name: what for name, what in terms.items() if name not in _OF_AN_AGGREGATOR}
    owners = [manifest.model.owner, *(site.owner for site in manifest.sites)]
    roles = ["model owner", *("data owner" for _ in manifest.sites)]
    body = [
        cells(owner.name, role, short(owner.identity.hex()), short(owner.broker.hex()))
        for owner, role in zip(owners, roles, strict=True)
    ]
    listed = rows(("owner", "holds", "identity key", "broker key"), body)
    return section("What was agreed", Html(definitions(terms) + listed))


def _policy(policy: TeePolicy) -> str:
    return (
        f"{', '.join(policy.profiles)}; evidence at most {policy.max_age_s} s old, "
        f"renewed after {policy.reattest_rounds} rounds or {policy.reattest_s} s"
    )


def _attested(directory: RunDirectory, manifest: Manifest) -> Html:
    found: dict[str, list[tuple[Claims, str]]] = {}
    refused = 0
    endorsements = noted_endorsements(directory, manifest)
    for digest in directory.evidence():
        try:
            claims = _claims(directory.read_evidence(digest), manifest, endorsements)
        except ConfedError:
            refused += 1
            continue
        found.setdefault(claims.binding.instance, []).append((claims, digest))
    hosted = _hosted(directory, manifest)
    ordered = sorted(found.items(), key=lambda item: (item[1][0][0].binding.role, item[1][0][0].issued_at, item[0]))
    body = [_attested_row(instance, shown, hosted.get(instance, set()), manifest) for instance, shown in ordered]
    note = (
        "<p class=note>Each broker got evidence of its own, under its own nonce. Layers are what a TEE says of its "
        "confinement; they prove nothing.</p>"
    )
    if refused:
        note += f"<p class=warning>{refused} evidence files do not verify.</p>"
    head = ("who", "TEE", "code", "layers", "attested to, with")
    return section("Who attested, with what", Html(rows(head, body) + note))


def _claims(envelope: bytes, manifest: Manifest, endorsements: Sequence[bytes]) -> Claims:
    """Read evidence as genuine for whatever it says it is for; whether that was right is for the verification."""
    binding = Binding.decode(Envelope.decode(envelope).binding)
    expected = ExpectedBinding(
        nonce=binding.nonce, audience=binding.audience, manifest=manifest.digest, role=binding.role, run=manifest.run
    )
    return default_registry().verify(
        envelope,
        endorsements=endorsements,
        expected=expected,
        now_ms=binding.issued_at,
        anchors=manifest.trust.anchors,
    )


def _attested_row(instance: str, shown: Sequence[tuple[Claims, str]], hosted: set[str], manifest: Manifest) -> Html:
    claims = shown[0][0]
    audiences = {canonical.digest(party.broker): party.name for party in owners_of(manifest)}
    told = sorted((audiences.get(item.binding.audience, "a stranger"), digest) for item, digest in shown)
    kind = claims.evidence_class + (", shared by several sites" if claims.shared else "")
    who = f"client of {', '.join(sorted(hosted))}" if hosted else str(claims.binding.role)
    listed = "".join(f"<li>{escape(name)} {code(digest)}</li>" for name, digest in told)
    brokers = len({name for name, _ in told})
    details = f"<details><summary>{brokers} broker{'s' * (brokers > 1)}</summary><ul>{listed}</ul></details>"
    return cells(
        Html(f"{escape(who)}<br>{short(instance)}"),
        Html(f"{escape(claims.profile)}<br><span class=dim>{escape(kind)}</span>"),
        short(claims.measurement),
        ", ".join(claims.layers) or "none",
        Html(details),
    )


def _hosted(directory: RunDirectory, manifest: Manifest) -> dict[str, set[str]]:
    """Return for which sites each client instance was credentialed, as far as the ledgers can be read."""
    hosted: dict[str, set[str]] = {}
    for party, body in noted(directory, manifest, "credentialed-client"):
        hosted.setdefault(str(body.get("instance")), set()).add(party.name)
    return hosted


def _versions(directory: RunDirectory, manifest: Manifest) -> Html:
    start = manifest.model.start.digest
    body = [cells("0", short(start), NONE, NONE, NONE, f"sealed by {manifest.model.owner.name}")]
    for number in directory.rounds(Purpose.TRAIN):
        record = directory.commit(Purpose.TRAIN, number)
        candidate = unverified(record.candidate, Candidate)
        agreed = f"{len(record.countersignatures)} of {len(manifest.sites)}"
        told = ", ".join(f"{name} {value:g}" for name, value in sorted(record.metrics.values.items()))
        if candidate.privacy is not None:
            told = f"epsilon {candidate.privacy.epsilon:.4f} after {candidate.privacy.releases} releases"
        tried = f" (attempt {candidate.attempt + 1})" if candidate.attempt else ""
        body.append(
            cells(
                f"{candidate.version}{tried}", short(candidate.digest), short(candidate.base),
                len(candidate.cohort), agreed, told or NONE,
            )
        )  # fmt: skip
    head = (
        "version",
        "file digest",
        "parent",
        "cohort",
        "countersigned",
        "privacy" if manifest.privacy else "training metrics",
    )
    return section("Versions", rows(head, body))


def _how_to_verify(directory: RunDirectory) -> Html:
    folder = escape(str(directory.path))
    return section(
        "Check it yourself",
        Html(
            "<p>This page was made from the run's records without verifying them, and anybody may have edited it. "
            "Approvals, versions, cohorts, evidence, tickets, countersignatures, ledgers and the closing are checked "
            f"offline by</p><pre>confed verify {folder}\nconfed verify {folder} --trust FILE</pre>"
            "<p>against the owners' keys and trust anchors that you have from elsewhere.</p>"
        ),
    )


def _number(value: Any, *, digits: int = 4) -> str:
    return f"{value:.{digits}f}" if isinstance(value, int | float) and not isinstance(value, bool) else NONE


def _percent(value: Any) -> str:
    return f"{value:.0%}" if isinstance(value, int | float) and not isinstance(value, bool) else NONE
