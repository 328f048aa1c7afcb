"""An app's settings, read strictly: what is missing or does not fit is refused by the setting's name.

    settings = Settings(context.run_config)
    epochs = settings.whole("local-epochs", least=1)
    schedule = settings.choice("lr-schedule", ("constant", "cosine"), default="constant")

In a client TEE such a refusal leaves as the code ``setting-NAME`` where the manifest has a setting of this name, else
as ``setting``: a name that everybody who approved the manifest knows, and nothing of what the app was doing.

A module of a ClientApp may have a function ``require_settings(settings)``. It is called where an experiment is
resolved, so that a mistake is told in full before anything is sealed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from typing import NoReturn

from confed.errors import SettingError

Scalar = bool | int | float | str

_FIELD = "settings."
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,48}")


class Settings:
    """What an app gets as ``run_config``, by type and bounds. A setting without a default must be there."""

    def __init__(self, values: Mapping[str, Scalar]) -> None:
        self._values = values

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def whole(self, name: str, *, least: int, default: int | None = None) -> int:
        """Return a whole number, at least ``least``.

        Raises:
            SettingError: it is missing, or is none.
        """
        value = self._value(name, default, f"a whole number of at least {least}")
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            refuse(name, expected=f"a whole number of at least {least}", got=value)
        return value

    def number(
        self,
        name: str,
        *,
        above: float = -math.inf,
        least: float = -math.inf,
        most: float = math.inf,
        default: float | None = None,
    ) -> float:
        """Return a finite number within bounds; ``above`` alone is not one of them.

        Raises:
            SettingError: it is missing, or is none.
        """
        bounds = {"above": above, "at least": least, "at most": most}
        told = [f"{word} {bound:g}" for word, bound in bounds.items() if math.isfinite(bound)]
        expected = ", ".join(["a number", *told])
        value = self._value(name, default, expected)
        if isinstance(value, bool) or not isinstance(value, int | float):
            refuse(name, expected=expected, got=value)
        if not math.isfinite(value) or not (above < value and least <= value <= most):
            refuse(name, expected=expected, got=value)
        return float(value)

    def choice(self, name: str, choices: Collection[str], *, default: str | None = None) -> str:
        """Return one of a list of words.

        Raises:
            SettingError: it is missing, or is another.
        """
        expected = f"one of {', '.join(choices)}"
        value = self._value(name, default, expected)
        if not isinstance(value, str) or value not in choices:
            refuse(name, expected=expected, got=value)
        return value

    def text(self, name: str, *, default: str | None = None) -> str:
        """Return a text that is not empty.

        Raises:
            SettingError: it is missing, or is none.
        """
        value = self._value(name, default, "a text")
        if not isinstance(value, str) or not value:
            refuse(name, expected="a text", got=value)
        return value

    def _value(self, name: str, default: Scalar | None, expected: str) -> Scalar:
        value = self._values.get(name, default)
        if value is None:
            refuse(name, expected=expected, got="none")
        return value


def refuse(name: str, *, expected: object, got: object) -> NoReturn:
    """Refuse the value of a setting, by its name.

    Raises:
        SettingError: always.
    """
    raise SettingError(_FIELD + name, expected=expected, got=got)


def code_of(error: SettingError, known: Collection[str]) -> str:
    """Return what may leave a TEE of such an error: its code, and the setting's name where the manifest has it."""
    name = error.field.removeprefix(_FIELD)
    return f"{error.code}-{name}" if name in known and _NAME.fullmatch(name) else error.code
