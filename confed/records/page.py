"""The report's HTML: everything that is not ``Html`` already is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

_STYLE = """
:root { color-scheme: light dark; --ink: #1b2430; --dim: #627083; --line: #d9dfe7; --card: #f5f7fa; --page: #ffffff;
  --warn: #fdf1dc; --warn-ink: #6b4300; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e9f0; --dim: #98a4b5; --line: #333d4a; --card: #1e2630;
  --page: #141a21; --warn: #3b2c10; --warn-ink: #f4d9a4; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 2.5rem 1.5rem 4rem; background: var(--page); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { margin: 0; font-size: 1.9rem; } h2 { margin: 2.6rem 0 .7rem; font-size: 1.15rem; }
p { margin: .5rem 0; } .sub, .dim, .note { color: var(--dim); } .note { font-size: .87rem; }
.warning { background: var(--warn); color: var(--warn-ink); border-radius: 8px; padding: .7rem 1rem; margin: 1rem 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: .7rem; margin: 1.4rem 0; }
.tile { background: var(--card); border-radius: 8px; padding: .8rem 1rem; }
.tile b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
.tile span { color: var(--dim); font-size: .85rem; }
.scroll { overflow-x: auto; } svg { width: 100%; height: auto; display: block; }
table { border-collapse: collapse; width: 100%; margin: .8rem 0; font-size: .88rem; }
th { text-align: left; color: var(--dim); font-weight: 600; white-space: nowrap; }
th, td { padding: .42rem .8rem .42rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
dl { display: grid; grid-template-columns: 10rem 1fr; gap: .35rem 1rem; margin: .8rem 0 1.4rem; font-size: .92rem; }
dt { color: var(--dim); } dd { margin: 0; }
code, pre { font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; font-size: .86em; }
pre { background: var(--card); border-radius: 8px; padding: .8rem 1rem; overflow-x: auto; }
details ul { margin: .3rem 0; padding-left: 1rem; word-break: break-all; } summary { cursor: pointer; }
"""


NONE = "-"
"""Stands where there is nothing to say."""


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def page(*, title: str, parts: Iterable[Html]) -> str:
    """Return the whole page; a policy in it forbids scripts and anything from elsewhere."""
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def section(title: str, body: Html) -> Html:
    """Return a part of the page under its title."""
    return Html(f"<section><h2>{escape(title)}</h2>{body}</section>")


def rows(head: Sequence[str], body: Iterable[Html]) -> Html:
    """Return a table, scrollable where it is too wide."""
    titles = "".join(f"<th>{escape(title)}</th>" for title in head)
    table = f"<table><thead><tr>{titles}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    return Html(f"<div class=scroll>{table}</div>")


def cells(*values: object) -> Html:
    """Return one row of a table."""
    return Html("<tr>" + "".join(f"<td>{_text(value)}</td>" for value in values) + "</tr>")


def definitions(terms: Mapping[str, object]) -> Html:
    """Return names and what they stand for."""
    listed = "".join(f"<dt>{escape(name)}</dt><dd>{_text(value)}</dd>" for name, value in terms.items())
    return Html(f"<dl>{listed}</dl>")


def code(value: str) -> Html:
    """Return text in a fixed-width font."""
    return Html(f"<code>{escape(value)}</code>")


def short(digest: str) -> Html:
    """Return the start of a digest or key; the whole is in its title."""
    return Html(f'<code title="{escape(digest)}">{escape(digest[:16])}</code>')


def _text(value: object) -> str:
    return value if isinstance(value, Html) else escape(str(value))
