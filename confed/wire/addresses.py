"""How things are named on the wire: objects by the digest of their bytes, letters by topic; and how large they may be.

A name is checked before anything is done with it, by whoever sends it and by whoever receives it.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from confed.errors import EncodingError, SizeError

PART_BYTES = 1024 * 1024
"""Most bytes of an object in one message: measured, larger parts are no faster and 64 KiB ones take twice as long."""

LETTER_BYTES = 48 * 1024 * 1024
"""Most bytes in one letter: a commit record of 10,000 sites has half of that."""

LETTERS_PER_TOPIC = 10_000
"""Most letters under one topic."""

GOVERNOR_BOX = "the governor"
"""The governor's name among a courier's callers, and of its box; no site's, since it has a space."""

MESSAGE_BYTES = 1024 * 1024
"""Most bytes in one message of a box."""

EVIDENCE_TOPICS = 256
"""Over how many topics a run's evidence is spread: of 10,000 sites there are 20,000 envelopes, too many for one."""

_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)
_TOPIC_CHARACTERS = 240


def check_digest(digest: str) -> None:
    """Refuse what is not a SHA-256 in 64 lower-case hexadecimal digits.

    Raises:
        EncodingError: anything else.
    """
    if not _DIGEST.fullmatch(digest):
        raise EncodingError("object digest", expected="64 lower-case hexadecimal digits", got=repr(digest)[:80])


def object_path(directory: Path, digest: str) -> Path:
    """Return where a courier's directory has an object, if it is there: for those on the same machine.

    Raises:
        EncodingError: not a digest.
    """
    check_digest(digest)
    return directory / "objects" / digest[:2] / digest


def handed_folder(directory: Path) -> Path:
    """Return the folder of a courier's directory into which others on its machine put files for it, by digest."""
    return directory / "handed"


def evidence_topic(run: str, envelope: bytes) -> str:
    """Return where an envelope of evidence is posted: by the first byte of its digest."""
    return f"{run}/evidence/{hashlib.sha256(envelope).digest()[0]:02x}"


def evidence_topics(run: str) -> list[str]:
    """Return every topic under which evidence of a run may lie."""
    return [f"{run}/evidence/{number:02x}" for number in range(EVIDENCE_TOPICS)]


def check_topic(topic: str) -> None:
    """Refuse what is not a topic: at most 240 printable characters, segments with slashes between them.

    Raises:
        EncodingError: anything else; also a backslash, and a segment that is empty, ``.`` or ``..``.
    """
    segments = topic.split("/")
    plain = len(topic) <= _TOPIC_CHARACTERS and topic.isprintable() and "\\" not in topic
    if not plain or any(segment in ("", ".", "..") for segment in segments):
        raise EncodingError("topic", expected="printable segments between slashes", got=repr(topic)[:80])


def check_letter(body: bytes) -> None:
    """Refuse a letter that is too large.

    Raises:
        SizeError: more than ``LETTER_BYTES``.
    """
    if len(body) > LETTER_BYTES:
        raise SizeError("letter size in bytes", expected=f"at most {LETTER_BYTES}", got=len(body))
