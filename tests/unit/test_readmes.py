"""What the documents tell people to type, and where they send them, is there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from confed.cli.main import app

ROOT = Path(__file__).parents[2]
FOLDERS = ("confed", "clients", "aggregator", "benchmarks", "experiments", "tests")
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "README.md", *(found for folder in FOLDERS for found in (ROOT / folder).rglob("README.md")))
)
"""What was true of an earlier release stands in CHANGELOG and DECISIONS, and is left as it was."""
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")
PLACE = re.compile(rf"`((?:{'|'.join(FOLDERS)})/[\w./-]+)`")
COMMAND = re.compile(r"(?:^|[`(\s/])confed ((?:[a-z][a-z-]*)[^`#&>\n]*)")
BENCHMARK = re.compile(r"python -m benchmarks\.(\w+)([^`]*)")
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]*")


def flags(words: str) -> set[str]:
    return set(FLAG.findall(words)) - {"--help"}


def options(command: Any) -> set[str]:
    return {name for entry in command.params for name in (*entry.opts, *entry.secondary_opts)}


def subcommands(command: Any, words: list[str]) -> Iterator[tuple[Any, list[str]]]:
    """Yield what the words name, several where they say ``one|other``; the first word may be prose."""
    if not hasattr(command, "list_commands"):
        yield command, words
        return
    names = words[0].strip(".,;:)").split("|") if words else []
    for name in names:
        found = command.get_command(None, name)
        if found is not None:
            yield from subcommands(found, words[1:])
        elif command is not ROOT_COMMAND and not name.startswith(("-", "…")):
            raise AssertionError(f"{command.name}: no {name}")


ROOT_COMMAND: Any = get_command(app)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_what_a_document_says_to_type_and_where_it_leads_is_there(document: str) -> None:
    path = ROOT / document
    text = path.read_text(encoding="utf-8")
    gone = [link for link in LINK.findall(text) if "://" not in link and not (path.parent / link).exists()]
    gone += [place for place in PLACE.findall(text) if not (ROOT / place).exists()]
    for line in text.splitlines():
        for words in COMMAND.findall(line):
            for command, rest in subcommands(ROOT_COMMAND, words.split()):
                gone += sorted(flags(" ".join(rest)) - options(command) if hasattr(command, "params") else ())
    for name, words in BENCHMARK.findall(text):
        module = ROOT / "benchmarks" / f"{name}.py"
        source = module.read_text(encoding="utf-8") if module.is_file() else ""
        gone += [f"{name} {flag}" for flag in flags(words) | {"--json"} if f'"{flag}"' not in source]
    assert not gone


def test_the_tree_names_what_is_there() -> None:
    tree = (ROOT / "README.md").read_text(encoding="utf-8").partition("## The tree")[2].split("```")[1]
    library = {path.name for path in (ROOT / "confed").iterdir() if path.suffix == ".py" or path.is_dir()}
    unnamed = {name for name in library - {"__init__.py", "__pycache__"} if name.partition(".")[0] not in tree}
    assert not unnamed
    named = {found for found in re.findall(r"[\w/]+\.py|\w+/(?=\s)", tree) if "." in found or found.endswith("/")}
    places = [ROOT, ROOT / "confed", ROOT / "confed" / "attestation"]
    assert not [found for found in named if not any((place / found).exists() for place in places)]
