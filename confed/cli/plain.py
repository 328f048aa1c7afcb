"""Text from elsewhere (evidence, certificates, other machines), as a terminal may show it."""

from __future__ import annotations


def plain(text: str) -> str:
    """Return text with escapes in place of whatever does not print: no line, colour or command of a stranger's."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
