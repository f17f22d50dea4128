"""Records on their way through a curation: a record, the line it becomes, and its size."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

import xxhash

from recipe_runner import BadRow, Counts, Format, Record, Row

BATCH_DOCUMENTS = 512
BATCH_BYTES = 4_000_000


@dataclass(frozen=True, slots=True)
class Document:
    """A record with the line that a corpus has of it, and the bytes of its text."""

    record: Record
    line: bytes
    size: int

    @property
    def counts(self) -> Counts:
        """One document."""
        return Counts(1, self.size)

    @property
    def group(self) -> str:
        """What decides its side of the split."""
        return group_of(self.record)


def document(record: Record) -> Document:
    """Raises `ValueError` for what UTF-8 or JSON cannot hold: a lone surrogate, NaN in `meta`."""
    return Document(record, line_of(record), record.size)


def group_of(record: Record) -> str:
    """The `group` in its meta; a record without one, or with null there, stands for itself."""
    group = record.meta.get("group")
    return record.id if group is None else str(group)


def line_of(record: Record) -> bytes:
    """The line that a corpus has of a record."""
    return as_line({**body(record), **({"meta": record.meta} if record.meta else {})})


def body(record: Record) -> dict[str, Any]:
    """`id`, and `text` or `messages`."""
    content = {"text": record.text} if record.text is not None else {"messages": record.messages}
    return {"id": record.id, **content}


def as_line(values: Mapping[str, Any]) -> bytes:
    """One line of JSON, in UTF-8."""
    return json.dumps(values, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def stored(line: bytes, priority: int) -> Document:
    """The document of a line written by `line_of`."""
    record = Record(**json.loads(line), priority=priority)
    return Document(record, line, record.size)


def read_row(row: Row | BadRow, form: Format, place: str, priority: int) -> Document | BadRow:
    """The document of a row; `place` names the row, and the record if it has no id of its own."""
    if isinstance(row, BadRow):
        return row
    record = form.record(row)
    where = getattr(row, "where", place) if isinstance(record, BadRow) else ""
    if isinstance(record, BadRow):
        return replace(record, where=record.where or where)
    try:
        return document(replace(record, id=record.id or place, priority=priority))
    except (ValueError, TypeError, RecursionError) as error:
        reason = "a lone surrogate in its text" if isinstance(error, UnicodeError) else "`meta` is not JSON"
        return BadRow(getattr(row, "where", place), reason)


def batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Lists of at most `BATCH_DOCUMENTS`, closed at `BATCH_BYTES`."""
    held: list[Document] = []
    size = 0
    for found in documents:
        held.append(found)
        size += found.size
        if len(held) >= BATCH_DOCUMENTS or size >= BATCH_BYTES:
            yield held
            held, size = [], 0
    if held:
        yield held


def fingerprint(text: str, seed: int = 0) -> int:
    """64 bits of a text, the same everywhere."""
    return xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass"), seed=seed)


def side(group: str, heldout: float) -> str:
    """`train` or `heldout`: the same for a group in every stage, recipe and seed."""
    return "heldout" if fingerprint(group) < heldout * 2**64 else "train"


def plain_number(score: float) -> float | None:
    """A score as JSON has it, also of numpy; None for one that is not finite."""
    return float(score) if isfinite(score) else None
