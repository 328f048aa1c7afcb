"""Chats as the text that a model goes on with, by its own template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from numpy.typing import NDArray

from confed.inference.engine import InvalidRequestError
from confed.model.hub import FOLDER, TOKENIZER_CONFIG, settings_of, text_of

_TEMPLATE = "chat_template.jinja"


def chat_template(arrays: Mapping[str, NDArray[Any]]) -> str | None:
    """Return an opened model's template for chats, if it has one.

    Raises:
        LanguageModelError: a document that is none.
    """
    if FOLDER + _TEMPLATE in arrays:
        return text_of(arrays, _TEMPLATE)
    if FOLDER + TOKENIZER_CONFIG in arrays:
        found = settings_of(arrays, TOKENIZER_CONFIG).get("chat_template")
        return found if isinstance(found, str) else None
    return None


def chat_prompt(tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> str:
    """Return the text that stands for messages of a chat, by the tokenizer's template (in jinja's sandbox).

    Raises:
        InvalidRequestError: there is no template, or it refuses these messages.
    """
    if not tokenizer.chat_template:
        raise InvalidRequestError(400, "the model has no chat template: use /v1/completions")
    try:
        found = tokenizer.apply_chat_template(
            [dict(entry) for entry in messages], tokenize=False, add_generation_prompt=True
        )
    except jinja2.TemplateError as error:
        raise InvalidRequestError(400, "messages: the model's template does not take these") from error
    return str(found)
