"""What a person sees while a run goes on, and at its end.

Everything comes from the governor's events, so nothing is shown that the governor may not see. On a terminal a live
table; elsewhere one plain line a round, so that a log stays readable.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from confed.governor.events import Event, EventName
from confed.journey import Purpose
from confed.manifest import PRODUCTION, Manifest
from confed.records.metrics import STAGES, accuracy_of, loss_of

_ROUNDS_SHOWN = 10
_FAILURES_SHOWN = 5


@dataclass(slots=True)
class RoundView:
    """One round as it is shown."""

    number: int
    started_at: int
    ended_at: int = 0
    cohort: int = 0
    epsilon: float | None = None
    metrics: dict[str, float] = field(default_factory=dict[str, float])
    failures: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def seconds(self) -> float:
        """From its start to the last thing heard of it."""
        return max(0, self.ended_at - self.started_at) / 1000


class RunProgress:
    """The state of a run as its events tell it; does no output.

    - a round begins with its first ``round-started`` and is complete with its evaluation, or with its combination
      where the run does not evaluate;
    - a site counts once as done in a purpose; a failure stays named;
    - a round that was given up names who makes its version;
    - events of another order or of unknown rounds change nothing that is complete.
    """

    def __init__(self, *, rounds: int, evaluates: bool, maker: str = "aggregator") -> None:
        self.rounds = rounds
        self.purpose = ""
        self.expected = 0
        self.complete: list[RoundView] = []
        self.current: RoundView | None = None
        self.attested = 0
        self.ended = ""
        self.reason = ""
        self._evaluates = evaluates
        self._maker = maker
        self._done: set[str] = set()

    @property
    def done(self) -> int:
        """Clients that have answered in the current purpose."""
        return len(self._done)

    def apply(self, event: Event) -> RoundView | None:
        """Take in one event; return the round that it completes, if it does."""
        fields = event.fields
        if event.event is EventName.ATTESTED:
            self.attested += 1
        elif event.event is EventName.ROUND_STARTED:
            self._start(event)
        elif event.event in (EventName.RUN_FINISHED, EventName.RUN_FAILED):
            self.ended = str(fields.get("code", "done"))
            self.reason = str(fields.get("reason", ""))
            # The round that a run ends in is shown too, with who was missing.
            cut, self.current = self.current, None
            return cut
        elif self.current is not None and fields.get("round", self.current.number) == self.current.number:
            return self._within(self.current, event)
        return None

    def _start(self, event: Event) -> None:
        number = int(event.fields.get("round", 0))
        if self.current is None or self.current.number != number:
            self.current = RoundView(number=number, started_at=event.time, ended_at=event.time)
        self.purpose = str(event.fields.get("purpose", ""))
        self.expected = int(event.fields.get("cohort", 0))
        self._done = set()

    def _within(self, view: RoundView, event: Event) -> RoundView | None:
        view.ended_at = event.time
        site = str(event.fields.get("site", ""))
        if event.event is EventName.CLIENT_DONE:
            self._done.add(site)
        elif event.event is EventName.CLIENT_FAILED:
            view.failures[site] = str(event.fields.get("code", "failed"))
        elif event.event is EventName.ROUND_ABANDONED:
            view.failures[self._maker] = str(event.fields.get("code", "lost"))
        elif event.event in (EventName.ROUND_COMBINED, EventName.EVALUATED):
            view.metrics.update(event.fields.get("metrics", {}))
            view.failures.update(event.fields.get("excluded", {}))
            if event.event is EventName.ROUND_COMBINED:
                view.cohort = int(event.fields.get("cohort", 0))
                view.epsilon = event.fields.get("epsilon")
            if event.event is EventName.EVALUATED or not self._evaluates:
                self.complete.append(view)
                self.current = None
                return view
        return None


class RunDisplay:
    """Shows a run's events between the start and the end of a ``with`` block.

    Args:
        quiet: show nothing.
        console: where to write; standard output by default.
    """

    def __init__(self, *, quiet: bool = False, console: Console | None = None) -> None:
        self._quiet = quiet
        self._console = console or Console()
        self._lock = threading.Lock()  # rich refreshes a live display from a thread of its own
        self._live: Live | None = None
        self._manifest: Manifest | None = None
        self.progress = RunProgress(rounds=0, evaluates=False)

    def __enter__(self) -> Self:
        if self._console.is_terminal and not self._quiet:
            self._live = Live(get_renderable=self._render, console=self._console, refresh_per_second=8)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def begin(self, manifest: Manifest) -> None:
        """Show what is about to run; a second call changes nothing."""
        if self._manifest is not None:
            return
        self._manifest = manifest
        maker = "aggregator" if manifest.scenario.combines else "training TEE"
        evaluates = manifest.cohort.fraction_evaluate > 0
        self.progress = RunProgress(rounds=manifest.rounds, evaluates=evaluates, maker=maker)
        if not self._quiet and self._live is None:
            self._console.print(_headline(manifest), soft_wrap=True, highlight=False)

    def show(self, event: Event) -> None:
        """Take in one event."""
        with self._lock:
            completed = self.progress.apply(event)
        if completed is not None and self._live is None and not self._quiet:
            self._console.print(_plain_line(completed, self.progress.rounds), soft_wrap=True, highlight=False)

    def _render(self) -> RenderableType:
        with self._lock:
            if self._manifest is None:
                return Text("sealing, approving and starting every party …", style="dim")
            return _board(self._manifest, self.progress)


def print_summary(summary: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the end of a run: result, where the model is, where the time went, who was left out."""
    console = console or Console()
    console.print(_result(summary), highlight=False, soft_wrap=True)
    if summary.get("ended"):
        console.print(f"ended by  {escape(str(summary['ended']))}", highlight=False, soft_wrap=True)
    seconds: Mapping[str, float] = summary.get("seconds", {})
    if seconds:
        console.print(_stages(seconds))
        share = float(summary.get("confidentiality_share", 0.0))
        console.print(
            f"Confidentiality took {share:.0%} of that time (attest, release, open, seal, commit).",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
    for item in summary.get("dropped", ()):
        why = f"round {item['round']}: {item['site']} left out ({item['code']})"
        console.print(f"[yellow]dropped[/]  {escape(why)}", highlight=False, soft_wrap=True)
    console.print(f"[dim]check it[/]  confed verify {escape(str(summary.get('run_dir', '')))}", soft_wrap=True)


def _result(summary: Mapping[str, Any]) -> Text:
    line = Text()
    line.append(f"{summary.get('run', '')}", style="bold")
    line.append(f"  {summary.get('rounds', 0)} rounds on {summary.get('engine', '')}")
    line.append(f" in {float(summary.get('total_s', 0.0)):.1f} s")
    for name in ("accuracy", "loss"):
        if isinstance(summary.get(name), int | float):
            line.append(f"  {name} {summary[name]:.4f}", style="green" if name == "accuracy" else "")
    if isinstance(summary.get("epsilon"), int | float):
        line.append(f"  epsilon {summary['epsilon']:.4g}")
    if summary.get("environment") != PRODUCTION:
        line.append(f"  {str(summary.get('environment', '')).upper()}", style="bold yellow")
    line.append(f"\nmodel     {summary.get('model', '')}")
    line.append(f"\nrecords   {summary.get('run_dir', '')}")
    return line


def _stages(seconds: Mapping[str, float]) -> Table:
    table = Table(title="seconds per stage, summed over clients", title_justify="left", title_style="dim", box=None)
    names = [name for name in STAGES if name in seconds] + sorted(set(seconds) - set(STAGES))
    for name in names:
        table.add_column(name, justify="right")
    table.add_row(*(f"{seconds[name]:.2f}" for name in names))
    return table


def _headline(manifest: Manifest) -> Text:
    line = Text(manifest.name, style="bold")
    who = f", {len(manifest.sites)} sites, {manifest.strategy.name}" if manifest.scenario.combines else ""
    line.append(f"  {manifest.scenario.told}{who}, {manifest.rounds} rounds", style="not bold")
    if manifest.adapter is not None:
        line.append(f", {manifest.adapter.told}", style="not bold")
    if manifest.stop.any:
        line.append(f", fewer if {manifest.stop.told}", style="not bold")
    if manifest.privacy is not None:
        line.append(f", {manifest.privacy.told}", style="not bold")
    if manifest.environment != PRODUCTION:
        line.append(f"  {manifest.environment.upper()}: its TEEs protect nothing", style="bold yellow")
    return line


def _plain_line(view: RoundView, rounds: int) -> str:
    parts = [f"round {view.number:>{len(str(rounds))}}/{rounds}", f"{view.cohort} clients"]
    for name, value in (("loss", loss_of(view.metrics)), ("accuracy", accuracy_of(view.metrics))):
        if value is not None:
            parts.append(f"{name} {value:.4f}")
    if view.epsilon is not None:
        parts.append(f"epsilon {view.epsilon:.4g}")
    parts.append(f"{view.seconds:.1f} s")
    if view.failures:
        parts.append("failed: " + ", ".join(f"{escape(site)} ({escape(code)})" for site, code in view.failures.items()))
    return "  ".join(parts)


def _board(manifest: Manifest, progress: RunProgress) -> RenderableType:
    parts: list[RenderableType] = [_headline(manifest), _bars(progress)]
    shown = progress.complete[-_ROUNDS_SHOWN:]
    if shown:
        parts.append(_rounds_table(shown))
    parts.extend(_failures(progress))
    if progress.reason:
        parts.append(Text(f"ended: {progress.reason}"))
    return Group(*parts)


def _bars(progress: RunProgress) -> Table:
    grid = Table.grid(padding=(0, 2))
    complete = len(progress.complete)
    bar = ProgressBar(total=progress.rounds, completed=complete, width=40)
    grid.add_row("rounds", bar, f"{complete}/{progress.rounds}")
    if progress.current is not None:
        doing = "evaluating" if progress.purpose == Purpose.EVALUATE else "training"
        label = f"{progress.done}/{progress.expected} clients, round {progress.current.number}"
        if progress.expected and progress.done >= progress.expected:
            label += ", combining"
        bar = ProgressBar(total=max(1, progress.expected), completed=progress.done, width=40)
        grid.add_row(doing, bar, label)
    elif not complete:
        grid.add_row("attesting", ProgressBar(total=None, width=40, pulse=True), f"{progress.attested} attested")
    return grid


def _rounds_table(views: list[RoundView]) -> Table:
    table = Table(box=None, header_style="dim")
    for name in ("round", "clients", "loss", "accuracy", "epsilon", "seconds", "failed"):
        table.add_column(name, justify="left" if name == "failed" else "right")
    number: Callable[[float | None], str] = lambda value: "" if value is None else f"{value:.4f}"  # noqa: E731
    for view in views:
        failed = Text(str(len(view.failures)) if view.failures else "", style="yellow")
        table.add_row(
            str(view.number), str(view.cohort), number(loss_of(view.metrics)), number(accuracy_of(view.metrics)),
            number(view.epsilon), f"{view.seconds:.1f}", failed,
        )  # fmt: skip
    return table


def _failures(progress: RunProgress) -> list[Text]:
    views = [*progress.complete, *([progress.current] if progress.current else [])]
    lines = [f"round {view.number}: {site} ({code})" for view in views for site, code in view.failures.items()]
    shown = [Text(line, style="yellow") for line in lines[-_FAILURES_SHOWN:]]
    hidden = len(lines) - len(shown)
    return [*([Text(f"{hidden} earlier failures", style="dim yellow")] if hidden > 0 else []), *shown]
