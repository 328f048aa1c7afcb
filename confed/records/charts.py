"""The report's pictures as inline SVG: the same data gives the same bytes, and text takes the page's colour."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from confed.records.metrics import CONFIDENTIAL_STAGES, STAGES, accuracy_of, loss_of

Lines = Sequence[Mapping[str, Any]]

_INK = "#010203"
"""Stands for the page's text colour while matplotlib draws; replaced by ``currentColor``."""

_BLUE, _ORANGE, _GREY = "#3b7dd8", "#d9822b", "#9aa4b2"
_PLAIN = ("#1f4e8c", "#3b7dd8", "#7fb0ea", "#b9d6f5", "#5b8fa8", "#8ec1c9")
_CONFIDENTIAL = ("#8c3a1f", "#c4552d", "#e07a3f", "#f0a35e", "#f7cb94")
_STYLE: Mapping[str, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.titlecolor": _INK,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": _GREY,
    "grid.alpha": 0.3,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
    "savefig.transparent": True,
}


def learning_chart(lines: Lines) -> str:
    """Return loss and accuracy by round, of training and of evaluation where they were told."""

    def draw(figure: Any) -> None:
        left, right = figure.subplots(1, 2)
        for axes, title, find in ((left, "loss", loss_of), (right, "accuracy", accuracy_of)):
            for key, label, colour in (("train", "training", _GREY), ("evaluate", "evaluation", _BLUE)):
                points = [(line["round"], find(line.get(key, {}))) for line in lines]
                told = [(number, value) for number, value in points if value is not None]
                if told:
                    rounds, values = zip(*told, strict=True)
                    axes.plot(rounds, values, color=colour, label=label, marker="o", markersize=3.5, linewidth=2)
            _finish(axes, title, lines)
            if axes.lines:
                axes.legend()
            else:
                axes.text(0.5, 0.5, "not told", ha="center", transform=axes.transAxes)

    return _svg("learning", draw, height=3.0)


def cohort_chart(lines: Lines, *, least: int) -> str:
    """Return how many sites are in each round's result, how many were left out, and the least that is permitted."""

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        rounds = [line["round"] for line in lines]
        counted = [line["cohort"] for line in lines]
        left_out = [len(line.get("excluded", {})) for line in lines]
        axes.bar(rounds, counted, color=_BLUE, label="in the result", width=0.7)
        if any(left_out):
            axes.bar(rounds, left_out, bottom=counted, color=_ORANGE, label="left out", width=0.7)
        axes.axhline(least, color=_INK, linestyle="--", linewidth=1, label=f"least permitted ({least})")
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.margins(y=0.1)
        _finish(axes, "sites per round", lines)
        _legend_outside(axes)

    return _svg("cohort", draw, height=2.4)


def stage_chart(lines: Lines) -> str:
    """Return each round's seconds by stage, stacked: blue as in a plain run, orange what confidentiality adds."""

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        rounds = [line["round"] for line in lines]
        bottoms = [0.0] * len(rounds)
        for stage, colour in stage_colours(lines).items():
            values = [float(line.get("seconds", {}).get(stage, 0.0)) for line in lines]
            axes.bar(rounds, values, bottom=bottoms, color=colour, label=stage, width=0.7)
            bottoms = [low + value for low, value in zip(bottoms, values, strict=True)]
        _finish(axes, "seconds per round, summed over clients", lines)
        _legend_outside(axes, reverse=True)

    return _svg("stages", draw, height=3.2)


def stage_colours(lines: Lines) -> dict[str, str]:
    """Return the stages that took time and their colours: plain ones first, so that the two kinds do not mix."""
    named = {stage for line in lines for stage in line.get("seconds", {})}
    known = [stage for stage in STAGES if stage in named] + sorted(named - set(STAGES))
    plain = [stage for stage in known if stage not in CONFIDENTIAL_STAGES]
    added = [stage for stage in known if stage in CONFIDENTIAL_STAGES]
    colours = {stage: _PLAIN[at % len(_PLAIN)] for at, stage in enumerate(plain)}
    return colours | {stage: _CONFIDENTIAL[at % len(_CONFIDENTIAL)] for at, stage in enumerate(added)}


def _finish(axes: Any, title: str, lines: Lines) -> None:
    axes.set_title(title)
    axes.set_xlabel("round")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(visible=False, axis="x")
    first, last = lines[0]["round"], lines[-1]["round"]
    axes.set_xlim(first - 0.6, last + 0.6)


def _legend_outside(axes: Any, *, reverse: bool = False) -> None:
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), reverse=reverse)


def _svg(name: str, draw: Callable[[Any], None], *, height: float) -> str:
    # Imported here: a broker or a verifier needs no plotting library.
    import matplotlib as mpl  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    style: dict[Any, Any] = {**_STYLE, "svg.hashsalt": name}
    with mpl.rc_context(style):
        figure = Figure(figsize=(8.4, height), layout="constrained")
        draw(figure)
        sink = io.StringIO()
        figure.savefig(sink, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _inline(sink.getvalue(), name)


def _inline(svg: str, name: str) -> str:
    """Return the svg element alone, its ids unique in the page, in the page's font and colour, as wide as its place."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", body)
    body = re.sub(r"font: ([0-9.]+)px [^;\"]*", r"font: \1px system-ui, sans-serif", body)
    body = body.replace(_INK, "currentColor")
    body = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"|(<svg[^>]*?) height="[^"]*"', r"\1\2", body, count=1)
    body = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", body, count=1)
    return body.replace("<svg", f'<svg role="img" aria-label="{name}"', 1).strip()
