"""From rows to records: `auto`, `text`, `alpaca`, `messages`.

The one idea: a row that lacks what its format needs is a bad row that names the column; nothing is guessed, cut or
filled in. Limits: content of a turn is text; parts of another kind (images, tool calls) are bad rows here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from recipe_plugins.formats.config import (
    AlpacaFormat,
    AutoFormat,
    Columns,
    FormatConfig,
    MessagesFormat,
    PromptCompletionFormat,
    TextFormat,
)
from recipe_runner import BadRow, Record, Row

ROLES = ("system", "user", "assistant", "tool")
Conversational = MessagesFormat | PromptCompletionFormat


class Unfit(Exception):
    """What a row lacks."""


class Text:
    """A document in one column."""

    def __init__(self, config: TextFormat) -> None:
        self.config = config

    def record(self, row: Row) -> Record | BadRow:
        """A record with `text`."""
        fields = self.config.fields
        return made(row, self.config, fields, lambda: {"text": string(row, fields.text)})


class Alpaca:
    """One question and one answer."""

    def __init__(self, config: AlpacaFormat) -> None:
        self.config = config

    def record(self, row: Row) -> Record | BadRow:
        """A record with two `messages`."""
        return made(row, self.config, self.config.fields, lambda: {"messages": self._turns(row)})

    def _turns(self, row: Row) -> list[dict[str, str]]:
        fields = self.config.fields
        question, answer = string(row, fields.instruction), string(row, fields.output)
        more = string(row, fields.input) if row.get(fields.input) is not None else ""
        if more.strip():
            question = f"{question}\n\n{more}"
        return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


class Messages:
    """A conversation."""

    def __init__(self, config: MessagesFormat) -> None:
        self.config = config

    def record(self, row: Row) -> Record | BadRow:
        """A record with `messages` of ChatML roles."""
        fields = self.config.fields
        return made(row, self.config, fields, lambda: {"messages": turns(row, fields.messages, self.config)})


class Auto:
    """A row in the shape of a record."""

    def __init__(self, config: AutoFormat) -> None:
        self.config = config
        self._messages = MessagesFormat()

    def record(self, row: Row) -> Record | BadRow:
        """A record with `text` or `messages`, whichever the row has; its `meta` is kept."""
        return made(row, self.config, self.config.fields, lambda: self._content(row))

    def _content(self, row: Row) -> dict[str, Any]:
        given = [name for name in ("text", "messages") if row.get(name) is not None]
        if given == ["text"]:
            return {"text": string(row, "text")}
        if given == ["messages"]:
            return {"messages": turns(row, "messages", self._messages)}
        if given:
            raise Unfit("both `text` and `messages`; name a `format`")
        raise Unfit("neither `text` nor `messages`; name a `format` and its `fields`")


def made(row: Row, config: FormatConfig, fields: Columns, content: Any) -> Record | BadRow:
    """The record of a row, or what the row lacks; `content` gives the part that differs between formats."""
    try:
        return Record(id=_name(row, fields.id), meta=_meta(row, config, fields), **content())
    except Unfit as unfit:
        return BadRow("", str(unfit))


def _name(row: Row, column: str | None) -> str:
    found = None if column is None else row.get(column)
    if found is None:
        return ""
    if not isinstance(found, (str, int)):
        raise Unfit(f"field {column!r} is not a string or a whole number")
    return str(found)


def _meta(row: Row, config: FormatConfig, fields: Columns) -> dict[str, Any]:
    given = row.get("meta")
    meta = dict(given) if isinstance(config, AutoFormat) and isinstance(given, Mapping) else {}
    for column in config.keep:
        if column not in row:
            raise Unfit(f"no field {column!r}")
        meta[column] = row[column]
    if row.get(fields.group) is not None:
        meta["group"] = str(row[fields.group])
    return meta


def string(row: Row, column: str) -> str:
    """The text in a column."""
    if column not in row:
        raise Unfit(f"no field {column!r}")
    if not isinstance(row[column], str):
        raise Unfit(f"field {column!r} is not a string")
    return str(row[column])


def turns(row: Row, column: str, config: Conversational) -> list[dict[str, str]]:
    """The turns in a column, with ChatML roles."""
    if column not in row:
        raise Unfit(f"no field {column!r}")
    given = row[column]
    if not isinstance(given, Sequence) or isinstance(given, str) or not given:
        raise Unfit(f"field {column!r} is not a list of turns")
    return [_turn(turn, column, config) for turn in given]


def _turn(turn: Any, column: str, config: Conversational) -> dict[str, str]:
    fields = config.fields
    if not isinstance(turn, Mapping):
        raise Unfit(f"a turn in {column!r} is not an object")
    role, content = string(turn, fields.role), string(turn, fields.content)
    role = config.roles.get(role, role)
    if role not in ROLES:
        raise Unfit(f"role {role!r} in {column!r}; translate it with `roles`")
    return {"role": role, "content": content}
