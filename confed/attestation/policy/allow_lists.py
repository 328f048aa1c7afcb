"""Lists of accepted values in a policy, as lower-case hexadecimal text: their one form, and membership."""

from __future__ import annotations

import re
from collections.abc import Collection

from confed.errors import AppraisalError, PolicyFormatError
from confed.manifest import Unchecked

Allowed = tuple[str, ...] | Unchecked
"""Accepted values, or why none is checked."""

_HEX = re.compile(r"(?:[0-9a-f]{2})+\Z")


def require_allow_list(field: str, allowed: Allowed, *, sizes: Collection[int] = (), zeros: bool = False) -> None:
    """Refuse a list that is empty, or that holds anything but lower-case hexadecimal text of these sizes.

    Args:
        field: the policy's key, for messages.
        allowed: the list; ``Unchecked`` passes.
        sizes: how many bytes an entry may have; any number if empty.
        zeros: accept an entry of zeros, which mostly means that nothing was measured.

    Raises:
        PolicyFormatError: anything else.
    """
    if isinstance(allowed, Unchecked):
        return
    if not allowed:
        raise PolicyFormatError(field, expected="at least one entry", got="none")
    for index, entry in enumerate(allowed):
        if not _HEX.match(entry) or (sizes and len(entry) // 2 not in sizes):
            wanted = "/".join(map(str, sorted(sizes))) or "some"
            raise PolicyFormatError(f"{field}[{index}]", expected=f"{wanted} bytes in hexadecimal", got=entry[:60])
        if not zeros and not entry.strip("0"):
            raise PolicyFormatError(f"{field}[{index}]", expected="a measured value", got="zeros")


def require_text_list(field: str, allowed: Allowed) -> None:
    """Refuse a list of names that is empty or holds an empty one.

    Raises:
        PolicyFormatError: see above.
    """
    if not isinstance(allowed, Unchecked) and not (allowed and all(allowed)):
        raise PolicyFormatError(field, expected="at least one entry, and none that is empty", got=allowed)


def require_allowed(field: str, found: bytes | str | None, allowed: Allowed, error: type[AppraisalError]) -> None:
    """Refuse a value that a list does not name; ``None`` is a value that evidence does not have.

    Raises:
        error: the class given.
    """
    if isinstance(allowed, Unchecked):
        return
    text = found.hex() if isinstance(found, bytes) else found
    if text is None or text not in allowed:
        shown = ", ".join(entry[:32] for entry in allowed)
        raise error(field, expected=shown, got="none" if text is None else text[:64])
