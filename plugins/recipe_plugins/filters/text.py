"""What filters see of a record's text."""

from __future__ import annotations

import re

from recipe_runner import Record

_NOT_WORD = re.compile(r"[\W_]+")
_ASCII = bytes(ord(chr(code).lower()) if chr(code).isalnum() and code < 128 else 32 for code in range(256))


def text_of(record: Record) -> str:
    """The text of a document; of a conversation what its turns say, with empty lines between them."""
    if record.text is not None:
        return record.text
    return "\n\n".join(str(turn.get("content") or "") for turn in record.messages or ())


def plain(text: str) -> str:
    """Lower-case words, which are runs of letters and digits, with one space between them; "" if there is none."""
    if text.isascii():
        return b" ".join(text.encode().translate(_ASCII).split()).decode()
    return _NOT_WORD.sub(" ", text.lower()).strip()
