"""The interfaces that a served model is reached by, behind one door: which of them there are follows from the model.

Errors are each interface's own form. What goes wrong inside an engine is told as that, with nothing of the request.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from confed.inference import open_inference, openai_api
from confed.inference.engine import Answer, InvalidRequestError, Predictor, json_answer
from confed.inference.messages import Request

Handler = Callable[[Request], Answer]


class Door:
    """Answers inner requests with one served model.

    Args:
        model: what the engine's factory made.
        name: of the model, as requesters name it: the manifest's name.
    """

    def __init__(self, model: Any, *, name: str) -> None:
        self._routes: dict[tuple[str, str], Handler] = {}
        if isinstance(model, Predictor):
            self._routes |= open_inference.routes(model, name=name)
        self._routes |= openai_api.routes(model, name=name)
        self._model = model

    def answer(self, request: Request) -> Answer:
        """Return the answer to a request, whatever it is; nothing is raised to whoever carries it."""
        head = request.head
        try:
            route = self._routes.get((head.method, head.path.partition("?")[0]))
            if route is None:
                raise InvalidRequestError(404, "there is nothing here: no such path, or no such model")
            return route(request)
        except InvalidRequestError as error:
            return refusal(request, error.status, error.reason)
        except Exception as error:  # noqa: BLE001 (the service's edge: of an engine's failure only its kind is told)
            report_failure(error)
            return refusal(request, 500, "the engine failed")

    def close(self) -> None:
        """End what the model has beside itself: another program, say."""
        close = getattr(self._model, "close", None)
        if close is not None:
            close()

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths that are answered."""
        return tuple(sorted({path for _, path in self._routes}))


def refusal(request: Request, status: int, reason: str) -> Answer:
    """Return a refusal in the form of the interface that a request is for."""
    told = openai_api.error_answer if request.head.path.startswith("/v1/") else open_inference.error_answer
    return told(status, reason)


def report_failure(error: Exception) -> None:
    """Write to the log that something failed, and of what kind: never its text, which may quote a request."""
    sys.stderr.write(f"inference: an answer failed: {type(error).__name__}\n")
    sys.stderr.flush()


__all__ = ["Door", "json_answer", "refusal", "report_failure"]
