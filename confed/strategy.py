"""How updates become one model: a strategy's terms in the manifest, and the code of an owner's own strategy class.

Flower's strategies are named by their class. A class of one's own is named ``module:Class``; its source files are
not in any image, so the manifest holds their digest, and the enclave runs them only if they have it. What such a
class makes of the updates cannot be read off its name: it counts as one that may select a single update.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from confed import canonical
from confed.errors import ConfigError, MissingFileError

CODE_FORMAT = "confed-strategy-code/1"
MOST_CODE_BYTES = 1024 * 1024
MOST_MEMORY_BYTES = 16 * 1024**3
"""Largest memory that a manifest may permit opened updates to take."""

_DIGEST = re.compile(r"[0-9a-f]{64}")
_ENTRY = re.compile(r"(?P<module>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):(?P<name>[A-Za-z_]\w*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class StrategyCode:
    """The code of an owner's own strategy class, and the most that the opened updates of a round take in memory.

    Attributes:
        digest: of its files, as ``StrategySource.digest`` says.
        memory_bytes: the opened updates together; what the class copies comes on top.

    Raises:
        ConfigError: no digest, or no size.
    """

    digest: str
    memory_bytes: int

    def __post_init__(self) -> None:
        if not _DIGEST.fullmatch(self.digest):
            raise ConfigError("code.strategy.digest", expected="a digest", got=self.digest[:64])
        if not 0 < self.memory_bytes <= MOST_MEMORY_BYTES:
            raise ConfigError(
                "code.strategy.memory_bytes", expected=f"from 1 to {MOST_MEMORY_BYTES}", got=self.memory_bytes
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class StrategyTerms:
    """The strategy: Flower's class name (or ``module:Class``), and every parameter of its constructor by name."""

    name: str
    parameters: Mapping[str, bool | int | float | str | None]

    @property
    def own(self) -> bool:
        """True for a class that is not Flower's or confed's."""
        return ":" in self.name

    @property
    def loss_key(self) -> str | None:
        """The metric by which updates are weighed, where the strategy reads one (QFedAvg's training loss)."""
        return str(self.parameters.get("train_loss_key") or "train_loss") if self.name == "QFedAvg" else None

    @property
    def staleness(self) -> int:
        """How many versions may have been made since an update's own base: 0 but for FedBuff.

        Raises:
            ConfigError: no whole number.
        """
        return self._count("max_staleness", default=0, least=1) if self.name == "FedBuff" else 0

    @property
    def buffer(self) -> int | None:
        """How many updates make a version, where no more may (FedBuff).

        Raises:
            ConfigError: no whole number.
        """
        return self._count("buffer_size", default=0, least=1) if self.name == "FedBuff" else None

    @property
    def least_cohort(self) -> int:
        """Fewest updates on which the strategy keeps its promise: ``2 f + 3`` for Krum's, ``4 f + 3`` for Bulyan.

        Raises:
            ConfigError: a number of nodes that is none.

        Source: Blanchard et al. (2017), proposition 2; El Mhamdi et al. (2018), section 4.
        """
        if self.name in ("Krum", "MultiKrum"):
            return max(2 * self._faulty + 3, self._selected)
        return 4 * self._faulty + 3 if self.name == "Bulyan" else 1

    def mixed(self, cohort: int) -> int:
        """Return how many identities' updates are surely in the result of a cohort of this size.

        Krum takes one alone; of a class of one's own nobody can tell, so it counts as taking one.

        Raises:
            ConfigError: a number of nodes that is none.
        """
        if self.own:
            return 1
        if self.name in ("Krum", "MultiKrum"):
            return min(cohort, self._selected)
        return cohort - 2 * self._faulty if self.name == "Bulyan" else cohort

    def require_code(self, code: StrategyCode | None, *, updates: int, size_bytes: int) -> None:
        """Check the terms against the code that goes with them.

        Args:
            code: of the manifest.
            updates: most that a round combines.
            size_bytes: of each.

        Raises:
            ConfigError: code for a class of Flower's, none for one's own, or too little memory for a round.
        """
        if self.own != (code is not None):
            expected = f"the code of {self.name}" if self.own else f"none: {self.name} is in the enclave's image"
            raise ConfigError("code.strategy", expected=expected, got="none" if code is None else "some")
        if code is None:
            return
        require_entry("strategy.name", self.name)
        if updates * size_bytes > code.memory_bytes:
            raise ConfigError(
                "code.strategy.memory_bytes",
                expected=f"at least {updates * size_bytes}, for {updates} opened updates",
                got=code.memory_bytes,
            )

    @property
    def _faulty(self) -> int:
        return self._count("num_malicious_nodes", default=0, least=0)

    @property
    def _selected(self) -> int:
        return 1 if self.name == "Krum" else self._count("num_nodes_to_select", default=1, least=1)

    def _count(self, name: str, *, default: int, least: int) -> int:
        value = self.parameters.get(name)
        if value is None:  # Flower's default
            return default
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ConfigError(f"strategy.{name}", expected=f"a whole number from {least}", got=value)
        return value


@dataclass(frozen=True, slots=True, kw_only=True)
class StrategySource:
    """The Python files of a strategy class: path (``fair.py``, ``fair/mean.py``) -> text.

    Raises:
        ConfigError: more than a mebibyte.
    """

    files: Mapping[str, str]

    def __post_init__(self) -> None:
        size = sum(len(text.encode()) for text in self.files.values())
        if size > MOST_CODE_BYTES:
            raise ConfigError("strategy code in bytes", expected=f"at most {MOST_CODE_BYTES}", got=size)

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical list of paths and of the digests of their UTF-8 text."""
        files = sorted([path, canonical.digest(text.encode())] for path, text in self.files.items())
        return canonical.digest(canonical.encode({"files": files, "format": CODE_FORMAT}))

    @classmethod
    def read(cls, directory: Path, entry: str) -> StrategySource:
        """Return the files of ``module:Class`` in a directory: one module, or the package that it is in.

        Raises:
            ConfigError: not ``module:Class``, a link, or text that is not UTF-8.
            MissingFileError: no such module.
        """
        top = require_entry("app.strategy", entry).split(".")[0]
        single, package = directory / f"{top}.py", directory / top
        found = [single] if single.is_file() else sorted(package.rglob("*.py"))
        if not found:
            raise MissingFileError("strategy code", expected=f"{top}.py in {directory}", got="none")
        files: dict[str, str] = {}
        for path in found:
            if path.is_symlink():
                raise ConfigError("app.strategy", expected="regular files", got=f"a link: {path.name}")
            try:
                files[path.relative_to(directory).as_posix()] = path.read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise ConfigError("app.strategy", expected=f"UTF-8 in {path.name}", got="other bytes") from error
        return cls(files=files)


def require_entry(field: str, entry: str) -> str:
    """Return the module of ``module:Class``.

    Raises:
        ConfigError: something else.
    """
    found = _ENTRY.fullmatch(entry)
    if found is None:
        raise ConfigError(field, expected="module:Class", got=entry[:80])
    return found["module"]
