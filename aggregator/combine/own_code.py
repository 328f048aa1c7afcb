"""Loads a strategy class of somebody's own from the very text whose digest the manifest holds; nothing from disk.

The files came with the launch document, which nobody vouches for. Their digest is compared first (``own_strategy``),
then they are imported from memory: what was compared is what runs. They see the standard library, and what is in the
enclave's image.

The class runs in the enclave's own process, with all that is in it. Its digest is what owners approve, as they approve
the measurement of the image; nothing here keeps an approved class from what it wants to do.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
from typing import TYPE_CHECKING, Any

from flwr.serverapp.strategy import Strategy

from confed.errors import StrategyError
from confed.strategy import StrategySource, require_entry

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

_OURS = ("start", "configure_evaluate", "aggregate_evaluate")
"""Methods that the enclave does not call: one that was written anew would be left out in silence."""


def load_strategy(entry: str, source: StrategySource) -> type[Strategy]:
    """Return the class ``module:Class`` of these files, imported anew; what they raise is raised.

    Raises:
        StrategyError: no such class, not a strategy of Flower's kind, one that shadows a module of the enclave, or one
            with methods of its own that would not be called.
    """
    module = require_entry("strategy.name", entry)
    top, name = module.split(".", maxsplit=1)[0], entry.partition(":")[2]
    _forget(top)
    if top in sys.modules or top in sys.stdlib_module_names:
        raise StrategyError("strategy module", expected="a name that nothing in the enclave has", got=top)
    sys.meta_path.insert(0, _FromMemory(source, top))
    found = getattr(importlib.import_module(module), name, None)
    if not isinstance(found, type) or not issubclass(found, Strategy):
        raise StrategyError("strategy class", expected=f"a subclass of Flower's Strategy in {module}", got=name)
    for method in _OURS:
        if not getattr(found, method).__module__.startswith("flwr."):
            raise StrategyError(f"strategy.{method}", expected="Flower's: the enclave does not call it", got="another")
    return found


def _forget(top: str) -> None:
    """Remove what an earlier call imported under this name: only this module's own imports."""
    sys.meta_path[:] = [
        finder for finder in sys.meta_path if not (isinstance(finder, _FromMemory) and finder.top == top)
    ]
    for name, module in list(sys.modules.items()):
        if name.split(".", maxsplit=1)[0] == top and isinstance(getattr(module, "__loader__", None), _FromMemory):
            del sys.modules[name]


class _FromMemory(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds and runs the modules of one top name in texts."""

    def __init__(self, source: StrategySource, top: str) -> None:
        self.top = top
        self._files = source.files

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        del path, target
        if fullname.split(".", maxsplit=1)[0] != self.top:
            return None
        file, package = self._place(fullname)
        if file not in self._files:
            return None
        return importlib.util.spec_from_loader(fullname, self, origin=file, is_package=package)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        del spec

    def exec_module(self, module: ModuleType) -> None:
        file, _ = self._place(module.__name__)
        names: dict[str, Any] = module.__dict__
        exec(compile(self._files[file], file, "exec", dont_inherit=True), names)  # noqa: S102 (its digest is approved)

    def _place(self, fullname: str) -> tuple[str, bool]:
        path = fullname.replace(".", "/")
        package = f"{path}/__init__.py" in self._files
        return (f"{path}/__init__.py" if package else f"{path}.py"), package
