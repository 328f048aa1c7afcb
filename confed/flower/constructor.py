"""What a strategy's class can be given."""

from __future__ import annotations

import inspect
from collections.abc import Mapping


def constructor_parameters(kind: type) -> Mapping[str, inspect.Parameter]:
    """Return a class's constructor parameters by name, and those of the class above where it hands on ``**keywords``.

    A name that both have is the lower class's.
    """
    found: dict[str, inspect.Parameter] = {}
    for above in kind.__mro__:
        if "__init__" not in vars(above):
            continue
        parameters = list(inspect.signature(above.__init__).parameters.values())[1:]
        variable = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        for parameter in parameters:
            if parameter.kind not in variable:
                found.setdefault(parameter.name, parameter)
        if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
            break
    return found
