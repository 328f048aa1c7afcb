"""Names the place of a failed check, so that the first broken link of a run is named with it."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from confed.errors import ConfedError, EncodingError, LineageError, MissingFileError, UsageError


@contextmanager
def at(place: str, *, missing: type[ConfedError] = LineageError) -> Generator[None]:
    """Put ``place`` before the field of any error raised in the block; its class stays.

    A file that is missing in a run's records is no user's mistake but a gap: it becomes ``missing``. So does a
    document that does not parse: ``EncodingError``.
    """
    try:
        yield
    except MissingFileError as error:
        raise missing(f"{place}: {error.field}", expected=error.expected, got=error.got) from error
    except UsageError as error:
        raise EncodingError(f"{place}: {error.field}", expected=error.expected, got=error.got) from error
    except ConfedError as error:
        raise type(error)(f"{place}: {error.field}", expected=error.expected, got=error.got) from error
