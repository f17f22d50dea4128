"""More shapes that conversations come in: `sharegpt`, `prompt-completion`, and the two with a judgement beside them,
`preference` and `unpaired-preference`.

As in `rows`, nothing is guessed: a system prompt given twice, or a completion that begins with another's turn, is a bad
row that says so. Limits: a function call (ShareGPT's `function_call`) is no text and hence a bad row, unless `roles`
says whose turn it is.
"""

from __future__ import annotations

import json
from typing import Any

import xxhash

from recipe_plugins.formats.config import (
    PreferenceFormat,
    PromptCompletionFormat,
    ShareGPTFormat,
    UnpairedPreferenceFormat,
)
from recipe_plugins.formats.rows import Conversational, Unfit, conversation, lacking, made, string, turns
from recipe_runner import BadRow, Record, Row

Turns = list[dict[str, Any]]


class ShareGPT:
    """A conversation in ShareGPT's names."""

    def __init__(self, config: ShareGPTFormat) -> None:
        self.config = config

    def record(self, row: Row) -> Record | BadRow:
        """A record with `messages`; a system prompt from a column of its own goes first."""
        fields = self.config.fields
        return made(row, self.config, fields, lambda: conversation(row, self._turns(row), fields))

    def _turns(self, row: Row) -> Turns:
        fields = self.config.fields
        found = turns(row, fields.messages, self.config)
        system = string(row, fields.system) if row.get(fields.system) is not None else ""
        if not system.strip():
            return found
        if found[0]["role"] == "system":
            raise Unfit(f"a system prompt both in {fields.system!r} and in {fields.messages!r}")
        return [{"role": "system", "content": system}, *found]


class PromptCompletion:
    """A prompt and a completion, each a string or a list of turns (TRL's two shapes of these columns)."""

    def __init__(self, config: PromptCompletionFormat) -> None:
        self.config = config

    def record(self, row: Row) -> Record | BadRow:
        """A record with `messages`: those of the prompt, then those of the completion."""
        return made(row, self.config, self.config.fields, lambda: self._content(row))

    def _content(self, row: Row) -> dict[str, Any]:
        fields = self.config.fields
        messages = part(row, fields.prompt, "user", self.config) + answer(row, fields.completion, self.config)
        return conversation(row, messages, fields)


class Preference:
    """A better and a worse answer to one prompt."""

    def __init__(self, config: PreferenceFormat) -> None:
        self.config = config

    def record(self, row: Row) -> Record | BadRow:
        """A record whose `messages` are the prompt's and the chosen answer's; see `PreferenceFormat`."""
        return made(row, self.config, self.config.fields, lambda: self._content(row))

    def _content(self, row: Row) -> dict[str, Any]:
        prompt, chosen, rejected = self._parts(row)
        meta = {"group": group(prompt), "preference": {"prompt": len(prompt), "rejected": rejected}}
        return conversation(row, prompt + chosen, self.config.fields, **meta)

    def _parts(self, row: Row) -> tuple[Turns, Turns, Turns]:
        """The prompt and the two answers. Without a prompt of its own, it is what both begin with."""
        fields = self.config.fields
        if row.get(fields.prompt) is not None:
            prompt = part(row, fields.prompt, "user", self.config)
            pair = [
                self._after(prompt, part(row, c, "assistant", self.config)) for c in (fields.chosen, fields.rejected)
            ]
        else:
            both = [turns(row, column, self.config) for column in (fields.chosen, fields.rejected)]
            size = min(shared(*both), asked(both[0]), asked(both[1]))
            prompt, pair = both[0][:size], [messages[size:] for messages in both]
        for column, found in zip((fields.chosen, fields.rejected), pair, strict=True):
            if not prompt or not found or found[0]["role"] != "assistant":
                raise Unfit(f"field {column!r} is no answer to the prompt that both share; name the prompt's column")
        return prompt, pair[0], pair[1]

    @staticmethod
    def _after(prompt: Turns, given: Turns) -> Turns:
        """An answer without the prompt, where it repeats it, as UltraFeedback's do."""
        return given[len(prompt) :] if given[: len(prompt)] == prompt else given


class UnpairedPreference:
    """An answer, and whether it was wanted."""

    def __init__(self, config: UnpairedPreferenceFormat) -> None:
        self.config = config

    def record(self, row: Row) -> Record | BadRow:
        """A record with `messages`; see `UnpairedPreferenceFormat`."""
        return made(row, self.config, self.config.fields, lambda: self._content(row))

    def _content(self, row: Row) -> dict[str, Any]:
        fields = self.config.fields
        if fields.label not in row:
            raise lacking(row, f"no field {fields.label!r}")
        if row[fields.label] not in (True, False):
            raise Unfit(f"field {fields.label!r} is not true or false")
        prompt = part(row, fields.prompt, "user", self.config)
        given = answer(row, fields.completion, self.config)
        judged = {"prompt": len(prompt), "desirable": bool(row[fields.label])}
        return conversation(row, prompt + given, fields, group=group(prompt), preference=judged)


def part(row: Row, column: str, role: str, config: Conversational) -> Turns:
    """A column's turns; a string is one turn of `role`."""
    if isinstance(row.get(column), str):
        return [{"role": role, "content": string(row, column)}]
    return turns(row, column, config)


def answer(row: Row, column: str, config: Conversational) -> Turns:
    """A column's turns, the first of them the assistant's."""
    found = part(row, column, "assistant", config)
    if found[0]["role"] != "assistant":
        raise Unfit(f"field {column!r} begins with a turn of the {found[0]['role']}")
    return found


def shared(one: Turns, other: Turns) -> int:
    """With how many equal turns two conversations begin."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def asked(messages: Turns) -> int:
    """The number of turns up to the last one that is the user's (or a tool's): an answer to it may still follow."""
    return max((n for n, turn in enumerate(messages, 1) if turn["role"] in ("user", "tool")), default=0)


def group(prompt: Turns) -> str:
    """A name for a prompt, the same wherever it comes."""
    return f"prompt-{xxhash.xxh3_64_hexdigest(json.dumps(prompt, sort_keys=True).encode())}"
