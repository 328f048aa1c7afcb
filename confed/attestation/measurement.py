"""What runs, as one digest: the measurement of a simulated TEE.

Measured is what the interpreter can load: files ending in ``.py``, ``.pyc`` (outside ``__pycache__``: such a file is
imported on its own) and ``.so``. Settings and experiment files are not code: they are in the manifest, whose digest is
the measured configuration. Installed dependencies are covered by the digest of the lock file, passed as ``extra``.

Not entered: ``__pycache__`` and hidden directories. Python trusts a cached ``.pyc`` whose time stamp fits its source,
so a host that could write there could run what was not measured; start a measured image with
``-X pycache_prefix=`` some empty directory. Data files beside the code are not measured either.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from confed import canonical
from confed.errors import ConfigError, MeasurementError, MissingFileError

FORMAT = "confed-measurement/1"
SUFFIXES = (".py", ".pyc", ".so")
_NOT_ENTERED = "__pycache__"


def measure(paths: Mapping[str, Path], *, extra: Mapping[str, str]) -> str:
    """Return the digest of all code under ``paths`` (label -> file or directory) and of the ``extra`` strings.

    Guarantees: it depends on labels, relative paths (separators as ``/``), contents and ``extra`` alone, not on where
    things are, their times, or the order of a directory. A symbolic link that code could be loaded through is refused:
    what it points to can change.

    Raises:
        MissingFileError: a path that is not there, or one that holds no code.
        MeasurementError: a symbolic link to a directory or to code.
    """
    files: list[tuple[str, str, str]] = []
    for label, path in paths.items():
        found = [(label, name, _file_digest(file)) for name, file in _code_under(path)]
        if not found:
            raise MissingFileError(f"code of {label}", expected=f"files ending in {', '.join(SUFFIXES)}", got=str(path))
        files.extend(found)
    return canonical.digest(canonical.encode({"extra": dict(extra), "files": sorted(files), "format": FORMAT}))


def client_image(app_directory: Path | None, lock: str) -> str:
    """Return the measurement of a client TEE: the installed ``confed`` and ``clients``, the app, and what they run on.

    Args:
        app_directory: absolute path of the app's code; ``None`` for an app that the lock file pins.
        lock: digest of the lock file.

    Raises:
        ConfigError: a relative path, which would mean something else in another process.
        MissingFileError, MeasurementError: see ``measure``.
    """
    return measure(_of_clients(app_directory), extra={"lock": lock, "role": "client", **_interpreter()})


def inference_image(app_directory: Path, lock: str) -> str:
    """Return the measurement of an inference TEE: ``confed``, ``clients``, its engine's folder, the lock.

    A folder without code adds nothing: the engine is then one of ``clients``.

    Raises:
        ConfigError: a relative path, which would mean something else in another process.
        MissingFileError, MeasurementError: see ``measure``.
    """
    paths = _of_clients(app_directory)
    if next(_code_under(app_directory), None) is None:
        del paths["app"]
    return measure(paths, extra={"lock": lock, "role": "inference", **_interpreter()})


def aggregator_image(lock: str) -> str:
    """Return the measurement of the aggregator enclave: the installed ``confed`` and ``aggregator``, and the lock.

    Raises:
        MissingFileError, MeasurementError: see ``measure``.
    """
    paths = {name: package_directory(name) for name in ("confed", "aggregator")}
    return measure(paths, extra={"lock": lock, "role": "aggregator", **_interpreter()})


def _of_clients(app_directory: Path | None) -> dict[str, Path]:
    """Return what a TEE that runs an app loads: ``python -m clients`` is where it starts."""
    paths = {name: package_directory(name) for name in ("confed", "clients")}
    if app_directory is not None:
        if not app_directory.is_absolute():
            raise ConfigError("app directory", expected="an absolute path", got=str(app_directory))
        paths["app"] = app_directory
    return paths


def package_directory(name: str) -> Path:
    """Return where ``import name`` would load a package from; nothing is imported.

    Raises:
        MissingFileError: it is not installed, or has no ``__init__.py``.
    """
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None or not spec.submodule_search_locations:
        raise MissingFileError(f"package {name}", expected="an installed package", got="none")
    return Path(spec.origin).parent


def _interpreter() -> dict[str, str]:
    return {"implementation": sys.implementation.name, "python": platform.python_version()}


def _code_under(path: Path) -> Iterator[tuple[str, str]]:
    if not path.exists():
        raise MissingFileError("code", expected="a file or directory", got=str(path))
    # The path given may itself lie behind a link (a home directory often does); below it none is followed.
    resolved = path.resolve()
    if resolved.is_file():
        yield resolved.name, str(resolved)
        return
    pending = [("", str(resolved))]
    while pending:
        prefix, directory = pending.pop()
        with os.scandir(directory) as entries:
            for entry in entries:
                name = prefix + entry.name
                if entry.is_symlink():
                    _refuse_code_link(entry, name)
                elif entry.is_dir():
                    if entry.name != _NOT_ENTERED and not entry.name.startswith("."):
                        pending.append((f"{name}/", entry.path))
                elif entry.name.endswith(SUFFIXES):
                    if not entry.is_file():
                        raise MeasurementError(f"measured file {name}", expected="a regular file", got="a special file")
                    yield name, entry.path


def _refuse_code_link(entry: os.DirEntry[str], name: str) -> None:
    if entry.name.startswith("."):
        return
    if entry.name.endswith(SUFFIXES) or entry.is_dir():
        raise MeasurementError(f"measured file {name}", expected="a regular file or directory", got="a symbolic link")


def _file_digest(path: str) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
