"""What the experiment is made of: requests to an IT help desk and their answers, and plain sentences for a base model.

All of it comes out of templates: no person wrote in, and nothing is taken from elsewhere. A request says where somebody
is and what is wrong; the answer names the thing, the place and the steps, so that a model can learn something from it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

Pair = tuple[str, str]

DEPARTMENTS = ("Accounts", "Laboratory", "Warehouse", "Reception", "Workshop", "Archive")
_PLACES = ("room 12", "room 31", "the first floor", "the annex", "the front office", "hall B")
_NAMES = ("printer", "scanner", "label printer", "plotter")
_SYSTEMS = ("the ledger", "the stock list", "the rota", "the sample register", "the booking page")

# Topic -> phrasings of the request, and its answer.
TOPICS: dict[str, tuple[tuple[str, ...], str]] = {
    "printer": (
        (
            "the {thing} in {place} prints blank pages",
            "blank sheets come out of our {thing} in {place}",
            "nothing is on the paper, {thing}, {place}",
        ),
        "Change the cartridge of the {thing} in {place}, then print a test page.",
    ),
    "jam": (
        ("paper is stuck in the {thing} in {place}", "the {thing} in {place} says paper jam"),
        "Open the rear door of the {thing} in {place}, pull the sheet out and close it firmly.",
    ),
    "password": (
        ("I cannot sign in to {system}", "{system} says my password is wrong", "locked out of {system} since today"),
        "Set a new password for {system} on the sign-in page; it works after five minutes.",
    ),
    "access": (
        ("I need to see {system}", "please give me access to {system}", "a new colleague needs {system}"),
        "Ask the owner of {system} to approve it in the access form; we add you within a day.",
    ),
    "network": (
        ("no network in {place}", "the computer in {place} has no connection", "nothing loads in {place}"),
        "Check the cable at the wall socket in {place}, wait one minute and start the computer again.",
    ),
    "slow": (
        ("{system} is very slow in {place}", "we wait minutes for {system}"),
        "Close other programs, clear the cache of {system} and tell us the time if it stays slow.",
    ),
    "screen": (
        ("the second screen in {place} stays black", "no picture on the monitor in {place}"),
        "Press the source button of the screen in {place} until it says HDMI.",
    ),
    "badge": (
        ("my badge does not open {place}", "the door of {place} ignores my badge"),
        "Hold the badge to the reader at {place} for ten seconds; if it blinks red, bring it to us.",
    ),
}

_OFFICE = (
    "The office opens at eight and closes at six.",
    "Please bring a pen and write your name on the list.",
    "A new desk was delivered to the meeting room on Monday.",
    "Wait one minute, then open the door and close it again.",
    "The list is on the page; ask the owner for a copy.",
    "We start the day with a short talk about the work.",
    "Press the button, hold it for ten seconds and tell us what you see.",
    "Check the time of the train before you leave the room.",
    "The colleague at the front works with numbers and paper.",
    "If it is cold, close the window and call the building service.",
)
_SUBJECTS = ("The team", "A visitor", "Our neighbour", "The manager", "Everybody", "The guest")
_VERBS = ("opens", "closes", "checks", "brings", "changes", "reads", "needs")
_OBJECTS = ("the door", "the list", "a form", "the page", "the paper", "a screen", "the time table")


def prompt_of(department: str, request: str) -> str:
    """Return the text that a model continues."""
    return f"{department}: {request}\nAnswer:"


def help_desk(department: str, *, count: int, seed: int) -> list[Pair]:
    """Return one site's prompts and answers: its own department, and mostly the topics that it has trouble with."""
    drawn = random.Random(f"help-desk {department} {seed}")  # noqa: S311 (data, not keys)
    topics = list(TOPICS)
    drawn.shuffle(topics)
    weights = [0.45, 0.25, 0.15, 0.05, 0.04, 0.03, 0.02, 0.01]
    found: list[Pair] = []
    for topic in drawn.choices(topics, weights=weights, k=count):
        phrasings, answer = TOPICS[topic]
        slots = {"thing": drawn.choice(_NAMES), "place": drawn.choice(_PLACES), "system": drawn.choice(_SYSTEMS)}
        request = drawn.choice(phrasings).format(**slots)
        found.append((prompt_of(department, request), " " + answer.format(**slots)))
    return found


def office(*, count: int, seed: int) -> list[str]:
    """Return plain sentences of an office: what the model's owner has, and no site's data."""
    drawn = random.Random(seed)  # noqa: S311 (data, not keys)
    found: list[str] = []
    for _ in range(count):
        made = f"{drawn.choice(_SUBJECTS)} {drawn.choice(_VERBS)} {drawn.choice(_OBJECTS)}."
        found.append(" ".join(drawn.sample([*_OFFICE, made], 2)))
    return found


def departments_of(sites: Sequence[str]) -> dict[str, str]:
    """Return each site's department."""
    return {site: DEPARTMENTS[at % len(DEPARTMENTS)] for at, site in enumerate(sites)}
