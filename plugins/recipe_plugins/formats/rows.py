"""From rows to records: `auto`, `text`, `alpaca`, `messages`.

The one idea: a row that lacks what its format needs is a bad row that names the column; nothing is guessed, cut or
filled in. What a turn has besides its text is kept: reasoning, tool calls, the name of who speaks, and whether it is to
be learned (`train`); so are a row's `tools`, in `meta`. Limit: content is text; images and the like are bad rows here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from recipe_plugins.formats.config import (
    AlpacaFormat,
    AutoFormat,
    Columns,
    FormatConfig,
    MessagesFormat,
    PreferenceFormat,
    PromptCompletionFormat,
    TextFormat,
    TurnColumns,
    UnpairedPreferenceFormat,
)
from recipe_runner import BadRow, Record, Row

ROLES = ("system", "user", "assistant", "tool")
Conversational = MessagesFormat | PromptCompletionFormat | PreferenceFormat | UnpairedPreferenceFormat
KEPT = ("name", "tool_call_id")
"""Strings of a turn that are kept under their own names."""


SHOWN, LONGEST = 12, 60
"""Columns that are named to people, and characters of a name."""


class Unfit(Exception):
    """What is wrong with a row."""

    def __init__(self, what: str, detail: str = "") -> None:
        super().__init__(what)
        self.detail = detail


def lacking(row: Mapping[str, Any], what: str) -> Unfit:
    """A row, or a turn, without something: which columns it has is what its reader needs to know."""
    names = [repr(str(name)[:LONGEST]) for name in row]
    more = ", …" if len(names) > SHOWN else ""
    return Unfit(what, f"it has {', '.join(names[:SHOWN]) or 'no columns'}{more}")


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
        return made(
            row, self.config, fields, lambda: conversation(row, turns(row, fields.messages, self.config), fields)
        )


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
            return conversation(row, turns(row, "messages", self._messages), self._messages.fields)
        if given:
            raise Unfit("both `text` and `messages`; name a `format`")
        raise lacking(row, "neither `text` nor `messages`; name a `format` and its `fields`")


def made(row: Row, config: FormatConfig, fields: Columns, content: Any) -> Record | BadRow:
    """The record of a row, or what the row lacks; `content` gives the part that differs between formats.

    What `content` gives as `meta` goes below the columns that the recipe names.
    """
    try:
        made = {"meta": {}, **content()}
        meta = {**made.pop("meta"), **_meta(row, config, fields)}
        return Record(id=_name(row, fields.id), meta=meta, **made)
    except Unfit as unfit:
        return BadRow("", str(unfit), unfit.detail)


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
            raise lacking(row, f"no field {column!r}")
        meta[column] = row[column]
    if row.get(fields.group) is not None:
        meta["group"] = str(row[fields.group])
    return meta


def string(row: Row, column: str) -> str:
    """The text in a column."""
    if column not in row:
        raise lacking(row, f"no field {column!r}")
    if not isinstance(row[column], str):
        raise Unfit(f"field {column!r} is not a string")
    return str(row[column])


def conversation(row: Row, messages: list[dict[str, Any]], fields: TurnColumns, **meta: Any) -> dict[str, Any]:
    """`messages`, and in `meta` the row's tools, if it has any, beside what is given."""
    tools = row.get(fields.tools)
    if isinstance(tools, str) and tools.strip():
        try:
            tools = json.loads(tools)
        except ValueError:
            raise Unfit(f"field {fields.tools!r} is not JSON") from None
    if tools:
        meta["tools"] = _objects(tools, f"field {fields.tools!r}")
    return {"messages": messages, "meta": meta}


def _objects(value: Any, what: str) -> list[dict[str, Any]]:
    """A list of objects."""
    if not isinstance(value, Sequence) or not all(isinstance(entry, Mapping) for entry in value):
        raise Unfit(f"{what} is not a list of objects")
    return [dict(entry) for entry in value]


def turns(row: Row, column: str, config: Conversational) -> list[dict[str, Any]]:
    """The turns in a column, with ChatML roles."""
    if column not in row:
        raise lacking(row, f"no field {column!r}")
    given = row[column]
    if not isinstance(given, Sequence) or isinstance(given, str) or not given:
        raise Unfit(f"field {column!r} is not a list of turns")
    return [_turn(turn, column, config) for turn in given]


def _turn(turn: Any, column: str, config: Conversational) -> dict[str, Any]:
    """`role` and `content`, and what else the turn has of the names in `config`; null is as good as missing."""
    fields = config.fields
    if not isinstance(turn, Mapping):
        raise Unfit(f"a turn in {column!r} is not an object")
    role = string(turn, fields.role)
    role = config.roles.get(role, role)
    if role not in ROLES:
        raise Unfit(f"role {role!r} in {column!r}; translate it with `roles`")
    calls = turn.get(fields.tool_calls)
    only_calls = bool(calls) and turn.get(fields.content) is None
    kept: dict[str, Any] = {"role": role, "content": "" if only_calls else string(turn, fields.content)}
    if turn.get(fields.reasoning) is not None:
        kept["reasoning_content"] = string(turn, fields.reasoning)
    if calls:
        kept["tool_calls"] = _objects(calls, f"field {fields.tool_calls!r}")
    kept |= {name: string(turn, name) for name in KEPT if turn.get(name) is not None}
    return kept | _learned(turn.get(fields.train), role, fields.train)


def _learned(train: Any, role: str, column: str) -> dict[str, bool]:
    """`train`, where a turn says it."""
    if train is None:
        return {}
    if train not in (True, False):
        raise Unfit(f"field {column!r} of a turn is not true or false")
    if train and role != "assistant":
        raise Unfit(f"field {column!r} is true in a turn of the {role}; only the assistant's are learned")
    return {"train": bool(train)} if role == "assistant" else {}
