"""Two more shapes that conversations come in: `sharegpt` and `prompt-completion`.

As in `rows`, nothing is guessed: a system prompt given twice, or a completion that begins with another's turn, is a bad
row that says so. Limits: a function call (ShareGPT's `function_call`) is no text and hence a bad row, unless `roles`
says whose turn it is.
"""

from __future__ import annotations

from recipe_plugins.formats.config import PromptCompletionFormat, ShareGPTFormat
from recipe_plugins.formats.rows import Unfit, made, string, turns
from recipe_runner import BadRow, Record, Row


class ShareGPT:
    """A conversation in ShareGPT's names."""

    def __init__(self, config: ShareGPTFormat) -> None:
        self.config = config

    def record(self, row: Row) -> Record | BadRow:
        """A record with `messages`; a system prompt from a column of its own goes first."""
        return made(row, self.config, self.config.fields, lambda: {"messages": self._turns(row)})

    def _turns(self, row: Row) -> list[dict[str, str]]:
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
        return made(row, self.config, self.config.fields, lambda: {"messages": self._turns(row)})

    def _turns(self, row: Row) -> list[dict[str, str]]:
        fields = self.config.fields
        completion = self._part(row, fields.completion, "assistant")
        if completion[0]["role"] != "assistant":
            raise Unfit(f"field {fields.completion!r} begins with a turn of the {completion[0]['role']}")
        return self._part(row, fields.prompt, "user") + completion

    def _part(self, row: Row, column: str, role: str) -> list[dict[str, str]]:
        """A column's turns; a string is one turn of `role`."""
        if isinstance(row.get(column), str):
            return [{"role": role, "content": string(row, column)}]
        return turns(row, column, self.config)
