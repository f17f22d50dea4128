"""Chat templates: any Jinja file, if it marks what the assistant generates and gives the same text every day."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from recipe_runner import RecipeError

_TURNS = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
_CHANGING = re.compile(r"strftime_now|\bnow\s*\(|\benviron\b|\bgetenv\b")
"""What gives other text on another day or machine."""


def changes(template: str) -> bool:
    """Whether what a template gives depends on the day or the machine."""
    return bool(_CHANGING.search(template))


def template_of_file(path: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The template in a file. Raises `RecipeError` where it asks for date or environment, or marks no answer."""
    text = Path(path).read_text(encoding="utf-8")
    if changes(text):
        raise RecipeError(
            f"{path}: a template that asks for the date or the environment gives other tokens every day",
            next="write what it should say into the file",
        )
    try:
        rendered: Any = tokenizer.apply_chat_template(
            _TURNS, chat_template=text, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
    except TemplateError as error:
        raise RecipeError(
            f"{path}: {error}", next="mend the template; it is Jinja, as transformers renders it"
        ) from error
    if not any(rendered["assistant_masks"]):
        raise RecipeError(
            f"{path} does not mark what the assistant generates",
            next="put {% generation %} and {% endgeneration %} around the answer and its end of turn",
        )
    return text
