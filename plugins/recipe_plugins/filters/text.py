"""What filters see of a record's text. Combining marks are part of words: a vowel sign tells two words apart."""

from __future__ import annotations

import re
from functools import cache

from recipe_plugins.filters.marks import COMBINING
from recipe_runner import Record

_ASCII = bytes(range(128))
_LOWER = bytes(code if code > 127 else ord(chr(code).lower()) if chr(code).isalnum() else 32 for code in range(256))
MARKS = 32
"""Different characters outside ASCII that are put out of a text one by one; more of them at once."""


def text_of(record: Record) -> str:
    """The text of a document; of a conversation what its turns say, with empty lines between them."""
    if record.text is not None:
        return record.text
    return "\n\n".join(str(turn.get("content") or "") for turn in record.messages or ())


def plain(text: str) -> str:
    """Lower-case words, which are runs of letters, digits and combining marks, with one space between them; "" if there
    is none. What is composed and what is not are different words: normalise texts before, where both come."""
    return b" ".join(parted(text).split()).decode("utf-8", "surrogatepass")


def parted(text: str) -> bytes:
    """The same in UTF-8 with any number of spaces between the words, and around them."""
    data = _utf8(text)
    if len(data) != len(text):
        beyond = beyond_ascii(text)
        if beyond.lower() != beyond:
            text = text.lower()
            data, beyond = _utf8(text), beyond_ascii(text)
        marks = [character for character in set(beyond) if not character.isalnum() and character not in COMBINING]
        if len(marks) > MARKS:
            return _utf8(_not_word().sub(" ", text.lower()))
        for mark in marks:
            data = data.replace(_utf8(mark), b" ")
    return data.translate(_LOWER)


@cache
def _not_word() -> re.Pattern[str]:
    """Compiled for those who need it: that takes longer than all that `check` does with filters."""
    return re.compile(rf"(?:[^\w{''.join(sorted(COMBINING))}]|_)+")


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def beyond_ascii(text: str) -> str:
    """Its characters outside ASCII, in their order."""
    return _utf8(text).translate(None, _ASCII).decode("utf-8", "surrogatepass")
