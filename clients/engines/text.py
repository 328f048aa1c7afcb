"""From tokens to text as they come: pieces that are whole characters, and where a stop word ends them.

Pieces together are what the tokenizer makes of all tokens at once; each token is decoded with a few before it, not with
all of them, so that a long answer costs no more a token than a short one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"


class TextStream:
    """The text of one answer.

    Args:
        decode: the tokenizer's, from tokens to text.
        stops: words before the first of which the text ends.
    """

    def __init__(self, decode: Callable[[list[int]], str], *, stops: Sequence[str]) -> None:
        self._decode = decode
        self._stops = stops
        self._tokens: list[int] = []
        self._before = 0
        """Tokens from here to ``_said`` have been said, and are decoded again with what follows: some tokenizers write
        the first of several in another way."""
        self._said = 0
        self._held = ""
        self.stopped = False
        """Whether a stop word has come."""

    def add(self, token: int) -> str:
        """Return the text that a further token completes, perhaps none."""
        self._tokens.append(token)
        return self._taken(last=False)

    def rest(self) -> str:
        """Return what was held back, at the end of the tokens: a beginning of a stop word, or half a character."""
        return self._taken(last=True)

    def _taken(self, *, last: bool) -> str:
        if self.stopped:
            return ""
        text = self._held + self._new(last=last)
        ends = [at for at in (text.find(word) for word in self._stops) if at >= 0]
        if ends:
            self.stopped = True
            return text[: min(ends)]
        size = 0 if last else _beginning(text, self._stops)
        self._held = text[len(text) - size :]
        return text[: len(text) - size]

    def _new(self, *, last: bool) -> str:
        """Return the text of tokens that were not said, if it ends with a whole character."""
        text = self._decode(self._tokens[self._before :])
        if text.endswith(_UNFINISHED) and not last:
            return ""
        known = self._decode(self._tokens[self._before : self._said])
        self._before, self._said = self._said, len(self._tokens)
        return text[len(known) :]


def _beginning(text: str, stops: Sequence[str]) -> int:
    """Return how many characters at the end may be the beginning of a stop word: they wait."""
    longest = max((len(word) for word in stops), default=0)
    sizes = range(min(longest - 1, len(text)), 0, -1)
    return next((size for size in sizes if any(word.startswith(text[-size:]) for word in stops)), 0)
