"""The configs of the formats: which columns a record is made of, and which are kept beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, model_validator

from recipe_runner import Config, RecipeError


class Columns(Config):
    """Columns that any row may have."""

    id: str | None = Field(default="id", description="a row without it, or all with null, is named by its place")
    group: str = Field(default="group", description="rows that agree in it never stand on both sides of the split")


class FormatConfig(Config):
    """Base of the formats' configs."""

    keep: tuple[str, ...] = Field(default=(), description="columns kept in the record's `meta`")


class AutoFormat(FormatConfig):
    """`text` or `messages`, and perhaps `id`, `group` and `meta`."""

    fields: Columns = Field(default_factory=dict)  # type: ignore[assignment,arg-type]

    @model_validator(mode="before")
    @classmethod
    def _named(cls, data: Any) -> Any:
        """A column of `text` or `messages` is no field of this format, which finds them by these names."""
        fields = data.get("fields") if isinstance(data, Mapping) else None
        for name in ("text", "messages"):
            if isinstance(fields, Mapping) and name in fields:
                what = f"`auto` takes a column that is called {name!r} already"
                hint = f"name the format: {{use: {name}, fields: {{{name}: {fields[name]}}}}}"
                raise RecipeError(what, next=hint, field=["fields", name])
        return data


class TextColumns(Columns):
    """Columns of a document."""

    text: str = "text"


class TextFormat(FormatConfig):
    """A document in one column."""

    fields: TextColumns = Field(default_factory=dict)  # type: ignore[assignment,arg-type]


class AlpacaColumns(Columns):
    """Columns of an instruction row; `input` may be missing or empty."""

    instruction: str = "instruction"
    input: str = "input"
    output: str = "output"


class AlpacaFormat(FormatConfig):
    """One turn each: instruction and, after an empty line, input; then output."""

    fields: AlpacaColumns = Field(default_factory=dict)  # type: ignore[assignment,arg-type]


class TurnColumns(Columns):
    """The names inside a turn, and the column of the tools that a conversation may call."""

    role: str = "role"
    content: str = "content"
    reasoning: str = Field(default="reasoning_content", description="of a turn: what was thought before the answer")
    tool_calls: str = Field(default="tool_calls", description="of a turn: the calls that it makes")
    train: str = Field(default="train", description="of an assistant's turn: false where it is not to be learned")
    tools: str = Field(default="tools", description="of a row: a list of JSON Schemas, or a string of one")


class MessagesColumns(TurnColumns):
    """The column of the turns."""

    messages: str = "messages"


class MessagesFormat(FormatConfig):
    """A list of turns; `roles` translates the names of those who speak."""

    fields: MessagesColumns = Field(default_factory=dict)  # type: ignore[assignment,arg-type]
    roles: dict[str, str] = {"human": "user", "gpt": "assistant", "bot": "assistant"}


class ShareGPTColumns(MessagesColumns):
    """ShareGPT's names, and a column of a system prompt, which may be missing or empty."""

    messages: str = "conversations"
    role: str = "from"
    content: str = "value"
    system: str = "system"


class ShareGPTFormat(MessagesFormat):
    """ShareGPT's turns; a system prompt is kept, as a turn or from a column of its own."""

    fields: ShareGPTColumns = Field(default_factory=dict)  # type: ignore[assignment,arg-type]
    roles: dict[str, str] = {
        "human": "user",
        "gpt": "assistant",
        "chatgpt": "assistant",
        "bing": "assistant",
        "bard": "assistant",
        "bot": "assistant",
        "observation": "tool",
        "function_response": "tool",
    }


class PromptCompletionColumns(TurnColumns):
    """Columns of a prompt and what follows it, and the names inside a turn where they are lists of turns."""

    prompt: str = "prompt"
    completion: str = "completion"


class PromptCompletionFormat(FormatConfig):
    """A string is one turn: the user's in the prompt, the assistant's in the completion. A list is turns as they are.

    What is learned goes by role, so that an assistant's turn in the prompt is learned too.
    """

    fields: PromptCompletionColumns = Field(default_factory=dict)  # type: ignore[assignment,arg-type]
    roles: dict[str, str] = {"human": "user", "gpt": "assistant", "bot": "assistant"}


class PreferenceColumns(TurnColumns):
    """Columns of a prompt, which may be missing, and of a better and a worse answer to it."""

    prompt: str = Field(default="prompt", description="missing or null: both answers begin with the prompt's turns")
    chosen: str = "chosen"
    rejected: str = "rejected"


class PreferenceFormat(FormatConfig):
    """A better and a worse answer to one prompt, each a string or a list of turns (TRL's shapes of these columns).

    The prompt and the chosen answer are the record's messages: they are what filters judge and what the ledger counts.
    `meta.preference` has the number of the prompt's turns and the turns of the rejected answer. Rows of one prompt are
    one group, unless `group` says otherwise, so that none of them is held out while another is learned.
    """

    fields: PreferenceColumns = Field(default_factory=dict)  # type: ignore[assignment,arg-type]
    roles: dict[str, str] = {"human": "user", "gpt": "assistant", "bot": "assistant"}


class UnpairedPreferenceColumns(PromptCompletionColumns):
    """Columns of a prompt, of an answer, and of whether it was a good one."""

    label: str = Field(default="label", description="true or 1: the answer is as wanted; false or 0: it is not")


class UnpairedPreferenceFormat(FormatConfig):
    """An answer, and whether it was wanted; `meta.preference` has the number of the prompt's turns and `desirable`.

    Rows of one prompt are one group, unless `group` says otherwise.
    """

    fields: UnpairedPreferenceColumns = Field(default_factory=dict)  # type: ignore[assignment,arg-type]
    roles: dict[str, str] = {"human": "user", "gpt": "assistant", "bot": "assistant"}
